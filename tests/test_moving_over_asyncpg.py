"""What the page for those who move over says of asyncpg's pool, tried on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests._moving_page import Name, Table, on_asyncio
from tests._postgres_server import Postgres

asyncpg = pytest.importorskip("asyncpg")

TABLE = Table("asyncpg.Pool")
OPTIONS = inspect.signature(asyncpg.create_pool).parameters
keeps_a_floor = pytest.mark.skipif(
    not hasattr(asyncpg.Pool, "get_init_size"), reason="since asyncpg 0.32"
)


@pytest.mark.parametrize("name", TABLE.names, ids=lambda name: name.text)
def test_each_name_exists_and_has_the_default(name: Name) -> None:
    if name.path in OPTIONS:
        assert name.default in {None, OPTIONS[name.path].default}
        return
    found: Any = asyncpg.Pool
    method = name.path.removeprefix("pool.").removesuffix("()")
    if name.text == "timeout=None":
        assert (
            inspect.signature(asyncpg.Pool.acquire).parameters["timeout"].default
            is None
        )
        return
    if name.path == "create_pool" or name.path.startswith("InterfaceError"):
        found, method = asyncpg, name.path.partition(":")[0]
    assert name.default is None
    found = getattr(found, method)
    assert name.parameters <= set(inspect.signature(found).parameters)


def test_every_row_is_tried() -> None:
    assert sorted(TABLE.tried) == sorted(TABLE.cells)


def pool_of(postgres: Postgres, **options: Any) -> Any:
    return asyncpg.create_pool(postgres.url, **{"min_size": 0, "max_size": 1} | options)


@contextlib.asynccontextmanager
async def terminated(pool: Any) -> AsyncGenerator[Any]:
    """A pool whose end waits for nobody."""
    await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def pid(pool: Any) -> int:
    return int(await pool.fetchval("SELECT pg_backend_pid()"))


async def until_size(pool: Any, size: int) -> None:
    while pool.get_size() != size:  # noqa: ASYNC110  it tells nobody
        await asyncio.sleep(0.01)


@TABLE.tries("`create_pool(dsn, ...)`")
@on_asyncio
async def test_a_pool_connects_when_it_is_opened(postgres: Postgres) -> None:
    async with pool_of(postgres, min_size=2, max_size=3) as pool:
        assert pool.get_size() == 2
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncpg.create_pool("postgresql://tester@127.0.0.1:1/postgres")


@TABLE.tries("`min_size` (10), `max_size` (10)")
@on_asyncio
async def test_the_smallest_size_counts_the_leased_ones(postgres: Postgres) -> None:
    async with pool_of(postgres, min_size=1, max_size=2) as pool, pool.acquire():
        assert (pool.get_size(), pool.get_idle_size()) == (1, 0)


@keeps_a_floor
@on_asyncio
async def test_the_smallest_size_is_kept(postgres: Postgres) -> None:
    async with pool_of(postgres, min_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.close()
        assert pool.get_size() == 0
        await until_size(pool, 1)


@TABLE.tries("`max_queries` (50000)")
@on_asyncio
async def test_a_connection_is_replaced_after_so_many_queries(
    postgres: Postgres,
) -> None:
    async with pool_of(postgres, max_queries=1) as pool:
        assert await pid(pool) != await pid(pool)
    async with pool_of(postgres) as pool:
        assert await pid(pool) == await pid(pool)


@TABLE.tries("`max_inactive_connection_lifetime` (300)")
@on_asyncio
async def test_an_idle_connection_is_closed_and_zero_is_never(
    postgres: Postgres,
) -> None:
    async with pool_of(postgres, max_inactive_connection_lifetime=0.05) as pool:
        await pid(pool)
        await until_size(pool, 0)
    async with pool_of(postgres, max_inactive_connection_lifetime=0) as pool:
        await pid(pool)
        (holder,) = pool._holders
        assert pool.get_size() == 1
        assert holder._inactive_callback is None


@keeps_a_floor
@on_asyncio
async def test_idle_connections_are_not_closed_below_the_smallest_size(
    postgres: Postgres,
) -> None:
    options = {"min_size": 1, "max_size": 2, "max_inactive_connection_lifetime": 0.05}
    async with pool_of(postgres, **options) as pool:
        async with pool.acquire(), pool.acquire():
            assert pool.get_size() == 2
        await until_size(pool, 1)
        before = await pid(pool)
        await asyncio.sleep(0.1)
        assert await pid(pool) == before


async def fail(_connection: Any) -> None:
    raise ValueError("as the hook wants it")


@TABLE.tries("`init`")
@on_asyncio
async def test_what_fails_at_the_first_use_of_a_connection_is_raised_bare(
    postgres: Postgres,
) -> None:
    async with pool_of(postgres, init=fail) as pool:
        with pytest.raises(ValueError, match="as the hook") as caught:
            await pid(pool)
        assert caught.value.__cause__ is None
        assert pool.get_size() == 0


@TABLE.tries("`setup`")
@on_asyncio
async def test_what_fails_at_a_reuse_is_raised_to_the_borrower(
    postgres: Postgres,
) -> None:
    async def once(connection: Any) -> None:
        seen.append(connection)
        if len(seen) == 2:
            await fail(connection)

    seen: list[Any] = []
    async with pool_of(postgres, max_size=2, setup=once) as pool:
        first = await pid(pool)
        assert len(seen) == 1
        with pytest.raises(ValueError, match="as the hook"):
            await pid(pool)
        assert pool.get_size() == 0
        assert await pid(pool) != first


@TABLE.tries("`reset`")
@on_asyncio
async def test_a_failing_reset_is_raised_to_the_borrower(postgres: Postgres) -> None:
    async with pool_of(postgres, reset=fail) as pool:
        with pytest.raises(ValueError, match="as the hook"):
            async with pool.acquire():
                pass
        assert pool.get_size() == 0


@on_asyncio
async def test_a_reset_keeps_the_borrower_for_as_long_as_it_takes(
    postgres: Postgres,
) -> None:
    async def wait(_connection: Any) -> None:
        began.set()
        await gate.wait()

    async def borrow() -> None:
        async with pool.acquire():
            pass

    began, gate = asyncio.Event(), asyncio.Event()
    async with pool_of(postgres, reset=wait) as pool:
        borrower = asyncio.create_task(borrow())
        await began.wait()
        done, _ = await asyncio.wait([borrower], timeout=0.1)
        assert not done
        gate.set()
        await borrower


@TABLE.tries("`pool.acquire(timeout=...)`")
@on_asyncio
async def test_a_wait_for_a_connection_may_be_bounded(postgres: Postgres) -> None:
    async with pool_of(postgres) as pool, pool.acquire():
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.05)


@TABLE.tries("`pool.release(connection)`")
@on_asyncio
async def test_a_release_can_be_cancelled_and_goes_on(postgres: Postgres) -> None:
    async def wait(_connection: Any) -> None:
        began.set()
        await gate.wait()

    began, gate = asyncio.Event(), asyncio.Event()
    async with pool_of(postgres, reset=wait) as pool:
        release = asyncio.create_task(pool.release(await pool.acquire()))
        await began.wait()
        release.cancel()
        with pytest.raises(asyncio.CancelledError):
            await release
        assert pool.get_idle_size() == 0
        gate.set()
        async with pool.acquire(timeout=5):
            assert pool.get_size() == 1


@TABLE.tries("`timeout=None` waits for ever in a ring of tasks")
@on_asyncio
async def test_tasks_that_hold_and_want_wait_for_ever(postgres: Postgres) -> None:
    async def hold_and_want() -> None:
        async with pool.acquire():
            await both.wait()
            await pool.acquire()

    both = asyncio.Barrier(2)
    async with terminated(pool_of(postgres, max_size=2)) as pool:
        ring = [asyncio.create_task(hold_and_want()) for _ in range(2)]
        done, pending = await asyncio.wait(ring, timeout=0.3)
        assert (len(done), len(pending)) == (0, 2)
        for task in ring:
            task.cancel()
        await asyncio.wait(ring)


@TABLE.tries("`pool.expire_connections()`")
@on_asyncio
async def test_expired_connections_are_replaced(postgres: Postgres) -> None:
    async with pool_of(postgres) as pool:
        before = await pid(pool)
        await pool.expire_connections()
        assert await pid(pool) != before


@TABLE.tries("`pool.set_connect_args()`")
@on_asyncio
async def test_new_arguments_are_for_new_connections(postgres: Postgres) -> None:
    query = "SELECT current_setting('application_name')"
    async with pool_of(postgres) as pool:
        assert not await pool.fetchval(query)
        named = {"server_settings": {"application_name": "anew"}}
        pool.set_connect_args(postgres.url, **named)
        assert not await pool.fetchval(query)
        await pool.expire_connections()
        assert await pool.fetchval(query) == "anew"


@TABLE.tries("`pool.close()`, `pool.terminate()`")
@on_asyncio
async def test_closing_waits_for_borrowers_and_terminating_does_not(
    postgres: Postgres,
) -> None:
    pool = await pool_of(postgres)
    connection = await pool.acquire()
    closing = asyncio.create_task(pool.close())
    done, _ = await asyncio.wait([closing], timeout=0.2)
    assert not done
    assert await connection.fetchval("SELECT 1") == 1
    await pool.release(connection)
    await closing
    pool = await pool_of(postgres)
    connection = await pool.acquire()
    pool.terminate()
    with pytest.raises(asyncpg.InterfaceError):
        await connection.fetchval("SELECT 1")


@on_asyncio
async def test_an_exception_in_the_block_waits_for_borrowers_too(
    postgres: Postgres,
) -> None:
    async def borrow() -> None:
        async with pool.acquire():
            borrowed.set()
            await gate.wait()

    async def fail_in_the_block() -> None:
        async with pool:
            borrower.append(asyncio.create_task(borrow()))
            await borrowed.wait()
            raise ValueError("in the block")

    borrower: list[asyncio.Task[None]] = []
    borrowed, gate = asyncio.Event(), asyncio.Event()
    pool = pool_of(postgres)
    block = asyncio.create_task(fail_in_the_block())
    await borrowed.wait()
    done, _ = await asyncio.wait([block], timeout=0.2)
    assert not done
    gate.set()
    with pytest.raises(ValueError, match="in the block"):
        await block


@TABLE.tries("`get_size()`, `get_idle_size()`")
@on_asyncio
async def test_sizes_are_all_that_is_told(postgres: Postgres) -> None:
    async with pool_of(postgres, max_size=2) as pool:
        async with pool.acquire():
            await pid(pool)
            assert (pool.get_size(), pool.get_idle_size()) == (2, 1)
        assert (pool.get_size(), pool.get_idle_size()) == (2, 2)


@TABLE.tries("`InterfaceError: released back to the pool`")
@on_asyncio
async def test_after_its_release_a_connection_refuses_and_so_does_what_it_made(
    postgres: Postgres,
) -> None:
    async with pool_of(postgres) as pool:
        async with pool.acquire() as connection:
            statement = await connection.prepare("SELECT 1")
            transaction = connection.transaction()
            await transaction.start()
            cursor = await connection.cursor("SELECT 1")
        for use in (
            lambda: connection.fetchval("SELECT 1"),
            statement.fetchval,
            lambda: cursor.fetch(1),
            transaction.rollback,
        ):
            with pytest.raises(asyncpg.InterfaceError, match="released back to the"):
                await use()
