"""One contender's run: prints the microseconds of each round, then exits.

Each runs in a process of its own, because asyncio and trio do not share one fairly.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

ROUNDS = 5


async def race(borrow: Callable[[], Awaitable[None]], tasks: int, leases: int) -> None:
    """Time rounds of so many tasks in trio."""
    import trio

    for _ in range(ROUNDS):
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(borrow)
        report(started, leases)


def report(started: float, leases: int) -> None:
    print((time.perf_counter() - started) / leases * 1e6, flush=True)


async def trio_hyperpool(
    host: str, port: str, path: str, tasks: int, leases: int, query: str
) -> None:
    from trio_hyperpool import open_pool

    each = leases // tasks
    endpoint = f"tab.domain://{host}/domain/.s.PGSQL.{port}"
    async with open_pool(endpoint, path, max_size=16) as pool:

        async def borrow() -> None:
            for _ in range(each):
                async with pool.lease() as connection:
                    if query:
                        await connection.execute(query)

        await race(borrow, tasks, leases)


async def capacity_limiter(
    _host: str, _port: str, _path: str, tasks: int, leases: int, _query: str
) -> None:
    import trio

    each = leases // tasks
    limiter = trio.CapacityLimiter(16)

    async def borrow() -> None:
        for _ in range(each):
            async with limiter:
                pass

    await race(borrow, tasks, leases)


async def psycopg_pool(
    host: str, port: str, path: str, tasks: int, leases: int, query: str
) -> None:
    from psycopg_pool import AsyncConnectionPool

    each = leases // tasks
    async with AsyncConnectionPool(
        kwargs={
            "host": host,
            "port": port,
            "dbname": path,
            "user": "tableau_internal_user",
            "autocommit": True,
            "prepare_threshold": None,
        },
        min_size=16,
        max_size=16,
        timeout=60,
    ) as pool:
        await pool.wait()

        async def borrow() -> None:
            for _ in range(each):
                async with pool.connection() as connection:
                    if query:
                        await connection.execute(query)

        for _ in range(ROUNDS):
            started = time.perf_counter()
            await asyncio.gather(*(borrow() for _ in range(tasks)))
            report(started, leases)


CONTENDERS: dict[str, Callable[..., Awaitable[None]]] = {
    contender.__name__: contender
    for contender in (trio_hyperpool, capacity_limiter, psycopg_pool)
}


def main() -> None:
    name, host, port, path, tasks, leases, query = sys.argv[1:]
    arguments = host, port, path, int(tasks), int(leases), query
    contender = CONTENDERS[name]
    if name == "psycopg_pool":
        asyncio.run(contender(*arguments))  # type: ignore[arg-type]
    else:
        import trio

        trio.run(contender, *arguments)


if __name__ == "__main__":
    main()
