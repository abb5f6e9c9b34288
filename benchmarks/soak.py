"""Minutes of random load and faults on a real hyperd, and a count of what is left.

    python benchmarks/soak.py --minutes 1

Ends with exit status 1 if a token, a socket, a task or a server session has leaked, if
memory has grown, or if the pool is not usable any more.
"""

# ruff: noqa: D102 - what a borrower does is said by its name

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import psycopg
import trio
from contenders import MINUTES

from trio_hyperpool import (
    CreateMode,
    HyperConnection,
    HyperdError,
    Pool,
    PoolError,
    open_hyperd,
    open_pool,
)
from trio_hyperpool._endpoint import parse_endpoint

BORROWERS = 24
MAX_SIZE = 8
MAX_LEASE = 0.5
GROWTH = 8.0
"""Megabytes that memory may differ by between its two halves' ends."""


class Server:
    """A hyperd that is killed now and then, and started again."""

    def __init__(self, nursery: trio.Nursery, directory: str) -> None:
        self._nursery = nursery
        self._directory = directory
        self._ended = trio.Event()
        self.endpoint = ""
        self.pid = 0

    async def start(self) -> None:
        self._ended = trio.Event()
        self.endpoint, self.pid = await self._nursery.start(self._run)

    async def restart(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        await self._ended.wait()
        await trio.sleep(random.choice((0, 0, 0.05)))
        await self.start()

    async def _run(self, task_status: trio.TaskStatus[tuple[str, int]]) -> None:
        try:
            async with open_hyperd(socket_dir=self._directory, port=7483) as hyperd:
                task_status.started((hyperd.endpoint, hyperd.pid))
                await trio.sleep_forever()
        except HyperdError:
            pass
        finally:
            self._ended.set()


class Soak:
    """What goes on, and how often."""

    def __init__(self, pool: Pool[HyperConnection], server: Server) -> None:
        self.pool = pool
        self.server = server
        self.done: Counter[str] = Counter()
        self.is_over = False

    async def borrow(self) -> None:
        """Do something at random, again and again."""
        deeds = [
            self.ask,
            self.ask,
            self.ask,
            self.write,
            self.transact,
            self.leave_dirty,
            self.change,
            self.stream,
            self.copy,
            self.hang,
            self.overstay,
            self.nest,
        ]
        while not self.is_over:
            deed = random.choice(deeds)
            name = deed.__name__
            try:
                patience = random.choice((0.001, 0.01, 0.1, 1, 10, 10))
                with trio.move_on_after(patience) as scope:
                    await deed()
                self.done[f"{name} cancelled" if scope.cancelled_caught else name] += 1
            except (PoolError, psycopg.Error) as error:
                self.done[f"{name}: {type(error).__name__}"] += 1
                await trio.sleep(0.002)

    async def ask(self) -> None:
        number = random.randrange(1000)
        answer = await self.pool.fetch_value("SELECT %s", (number,))
        if answer != number:
            raise AssertionError(f"asked for {number}, was told {answer}")

    async def write(self) -> None:
        await self.pool.execute("INSERT INTO t VALUES (1)")

    async def transact(self) -> None:
        async def increment(connection: HyperConnection[Any]) -> None:
            await connection.execute("UPDATE one SET x = x + 1")

        await self.pool.run_transaction(increment, attempts=3)

    async def leave_dirty(self) -> None:
        async with self.pool.lease() as connection:
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO t VALUES (2)")

    async def change(self) -> None:
        async with self.pool.lease() as connection:
            await connection.execute("SET timezone = 'UTC'")
            await connection.execute("CREATE TEMPORARY TABLE mine (x int)")

    async def stream(self) -> None:
        async with self.pool.lease() as connection:
            count = 0
            query = "SELECT * FROM generate_series(1, 5000)"
            rows = cast("AsyncGenerator[Any]", connection.cursor().stream(query))
            async with contextlib.aclosing(rows):
                async for _ in rows:
                    count += 1
                    if random.random() < 0.0002:
                        return
            if count != 5000:
                raise AssertionError(f"{count} rows of 5000 came")

    async def copy(self) -> None:
        async with self.pool.lease() as connection:
            async with connection.cursor().copy(
                "COPY (SELECT * FROM generate_series(1, 5000)) TO STDOUT "
                "WITH (FORMAT text)"
            ) as copy:
                size = 0
                async for chunk in copy:
                    size += bytes(chunk).count(b"\n")
            if size != 5000:
                raise AssertionError(f"{size} rows of 5000 came")

    async def hang(self) -> None:
        with trio.move_on_after(random.random() / 20):
            await self.pool.execute(MINUTES)

    async def overstay(self) -> None:
        """Mostly revoked, and sometimes in a query."""
        async with self.pool.lease() as connection:
            await trio.sleep(random.random() * MAX_LEASE * 1.2)
            await connection.execute("SELECT 1")

    async def nest(self) -> None:
        """Two leases of one task; many of them would be a deadlock."""
        async with self.pool.lease(), self.pool.lease(wait_timeout=0.1) as connection:
            await connection.execute("SELECT 1")

    async def disturb(self) -> None:
        """What happens to the pool and its server."""
        while not self.is_over:
            await trio.sleep(random.random() * 0.4)
            chance = random.random()
            try:
                if chance < 0.2:
                    self.pool.resize(random.randint(1, MAX_SIZE))
                    self.done["~ resize"] += 1
                elif chance < 0.3:
                    self.pool.reset()
                    self.done["~ reset"] += 1
                elif chance < 0.4:
                    self.pool.retire_idle()
                    self.done["~ retire_idle"] += 1
                elif chance < 0.8:
                    with trio.move_on_after(random.choice((0.05, 5))):
                        async with self.pool.quiesce():
                            await trio.sleep(random.random() / 20)
                            if self.pool.statistics().size:
                                raise AssertionError("a connection inside quiesce()")
                        self.done["~ quiesce"] += 1
                else:
                    await self.server.restart()
                    self.done["~ server killed"] += 1
            except PoolError as error:
                self.done[f"~ {type(error).__name__}"] += 1
        self.pool.resize(MAX_SIZE)

    async def watch(self) -> None:
        """Whether the numbers agree, all the while."""
        while not self.is_over:
            await trio.sleep(0.001)
            now = self.pool.statistics()
            parts = now.idle + now.leased + now.opening + now.cleaning
            if now.size != parts or now.size > 2 * MAX_SIZE:
                raise AssertionError(f"sizes do not agree: {now}")


def megabytes() -> float:
    """Memory that is resident, after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def sockets() -> int:
    """File descriptors of this process that are sockets."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(path.readlink()).startswith("socket:")
    return found


async def sessions(endpoint: str) -> int:
    """Sessions on the server but for the own one, when those that ended are gone."""
    where: dict[str, Any] = parse_endpoint(endpoint).conninfo()
    async with await HyperConnection.connect(
        **where, user="tableau_internal_user", dbname=""
    ) as connection:
        count = -1
        # It may take 5 s to see that the client of a running query has gone.
        with trio.move_on_after(15):
            while count:
                count = int(
                    await connection.fetch_value(
                        "SELECT count(*) - 1 FROM pg_catalog.pg_stat_activity"
                    )
                )
                await trio.sleep(0.05)
        return count


async def load(pool: Pool[HyperConnection], server: Server, seconds: float) -> Soak:
    """Load and disturb the pool for so long."""
    soak = Soak(pool, server)
    async with trio.open_nursery() as nursery:
        for _ in range(BORROWERS):
            nursery.start_soon(soak.borrow)
        nursery.start_soon(soak.disturb)
        nursery.start_soon(soak.watch)
        await trio.sleep(seconds)
        soak.is_over = True
        # Nobody has more patience than 10 s, and the server is there.
        nursery.cancel_scope.deadline = trio.current_time() + 20
    if nursery.cancel_scope.cancelled_caught:
        raise AssertionError("a borrower hangs")
    return soak


async def main(minutes: float) -> bool:
    """Soak, count, and say whether all is well."""
    seconds = 60 * minutes
    leaks: dict[str, float] = {}
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        async with trio.open_nursery() as nursery:
            server = Server(nursery, directory)
            await server.start()
            path = Path(directory) / "soak.hyper"
            tasks = len(nursery.child_tasks)
            before = sockets()
            async with open_pool(
                server.endpoint, path, create_mode=CreateMode.CREATE
            ) as pool:
                await pool.execute("CREATE TABLE t (x int)")
                await pool.execute("CREATE TABLE one (x int)")
                await pool.execute("INSERT INTO one VALUES (0)")
            began = time.monotonic()
            async with open_pool(
                server.endpoint,
                path,
                max_size=MAX_SIZE,
                min_idle=1,
                max_lease=MAX_LEASE,
                max_lifetime=5,
                idle_timeout=1,
                create_attempts=3,
                recycle_timeout=1,
                cancel_timeout=1,
                create_timeout=5,
            ) as pool:
                done += (await load(pool, server, seconds / 3)).done
                warm = megabytes()
                done += (await load(pool, server, seconds * 2 / 3)).done
                grown = megabytes() - warm
                with trio.fail_after(30):
                    while True:
                        now = pool.statistics()
                        if not now.leased + now.opening + now.cleaning:
                            break
                        await trio.sleep(0.01)
                leaks["tokens"] = pool._supply.queue.borrowed  # noqa: SLF001
                leaks["waiters"] = now.waiting
                if await pool.fetch_value("SELECT 42") != 42:
                    raise AssertionError("the pool is of no use any more")
                text = str(pool.statistics())
            leaks["sockets"] = sockets() - before
            leaks["tasks"] = len(nursery.child_tasks) - tasks
            leaks["sessions"] = await sessions(server.endpoint)
            elapsed = time.monotonic() - began
            nursery.cancel_scope.cancel()
    for name, count in sorted(done.items()):
        print(f"{count:>8,}  {name}")
    print(f"\n{text}\n")
    print(
        f"{elapsed:.0f} s; leaked: {leaks}; memory grew by {grown:.1f} of {warm:.0f} MB"
    )
    return not any(leaks.values()) and grown < GROWTH


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1, help="default: 1")
    parser.add_argument("--seed", type=int, default=None, help="for the random numbers")
    options = parser.parse_args()
    random.seed(options.seed)
    logging.getLogger("trio_hyperpool").setLevel(logging.CRITICAL)
    sys.exit(not trio.run(main, options.minutes))
