"""What the page for those who move over says of triopg, tried on PostgreSQL.

It is tried on the trio-asyncio of the fixture `aio`, which confines that to this module.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._moving_page import Name, Table
from tests._postgres_server import Postgres
from trio_hyperpool import open_pool

asyncpg = pytest.importorskip("asyncpg")

TABLE = Table("triopg")
LIMIT = 20


@pytest.fixture
def triopg(aio: ModuleType) -> Any:
    return pytest.importorskip("triopg")


@pytest.fixture
def open_loop(aio: ModuleType) -> Any:
    return pytest.importorskip("trio_asyncio").open_loop


@pytest.fixture
def pool_of(triopg: Any, postgres: Postgres) -> Callable[..., Any]:
    return lambda **options: triopg.create_pool(
        postgres.url, **{"min_size": 0, "max_size": 1} | options
    )


@pytest.mark.parametrize(
    "name",
    [name for name in TABLE.names if name.text != "conn"],
    ids=lambda name: name.text,
)
def test_each_name_exists_and_has_the_default(name: Name, triopg: Any) -> None:
    home, _, attribute = name.path.rpartition(".")
    if home == "trio_asyncio":
        assert callable(getattr(pytest.importorskip(home), attribute))
    elif home == "pool":
        assert hasattr(triopg._triopg.TrioPoolProxy, attribute)
    elif home == "conn":
        assert hasattr(triopg._triopg.TrioConnectionProxy, attribute)
    elif name.text.endswith(")"):
        assert callable(getattr(triopg, attribute))
    else:
        options = inspect.signature(asyncpg.create_pool).parameters
        assert name.default in {None, options[attribute].default}


def test_every_row_is_tried() -> None:
    assert sorted(TABLE.tried) == sorted(TABLE.cells)


@TABLE.tries("`trio_asyncio.open_loop()` around the program")
def test_without_a_loop_nothing_works(triopg: Any) -> None:
    # In a process of its own, for it leaves a coroutine behind.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import trio, triopg; trio.run(triopg.connect().__aenter__)",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "AttributeError: 'NoneType' object has no attribute 'run_aio" in done.stderr


@TABLE.tries("`triopg.create_pool(dsn, ...)`", "`min_size` (10), `max_size` (10)")
async def test_a_pool_connects_when_it_is_opened(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    async with open_loop(), pool_of(min_size=2, max_size=3) as pool:
        assert pool._asyncpg_pool.get_size() == 2
        async with pool.acquire(), pool.acquire():
            assert pool._asyncpg_pool.get_idle_size() == 0


@TABLE.tries("`pool.acquire()`")
async def test_a_wait_for_a_connection_can_be_bounded_only_from_outside(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    async with open_loop(), pool_of() as pool, pool.acquire():
        with pytest.raises(TypeError, match="timeout"):
            pool.acquire(timeout=1)
        with trio.move_on_after(0.1) as scope:
            async with pool.acquire():
                pass
        assert scope.cancelled_caught


@TABLE.tries("`conn` after its block")
async def test_a_connection_is_usable_after_its_block_beside_the_next_borrower(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    query = "SELECT pg_backend_pid()"
    async with open_loop(), pool_of() as pool:
        async with pool.acquire() as first:
            pid = await first.fetchval(query)
        async with pool.acquire() as second:
            assert await second.fetchval(query) == pid
            assert await first.fetchval(query) == pid


async def use(conn: Any) -> list[Any]:
    found: list[Any] = []
    async with conn.transaction():
        cursor = await conn.cursor("SELECT generate_series(1, 5)")
        found += await cursor.fetch(2)
        async for row in conn.cursor("SELECT generate_series(3, 5)"):
            found.append(row)
    statement = await conn.prepare("SELECT $1::int + 1")
    found.append(await statement.fetchval(41))
    with trio.move_on_after(0.1):
        async with conn.transaction():
            await conn.execute("SET LOCAL application_name = 'cancelled'")
            await conn.execute("SELECT pg_sleep(60)")
    found.append(await conn.fetchval("SHOW application_name"))
    return found


@TABLE.tries("`conn.transaction()`, `conn.cursor()`, `conn.prepare()`")
async def test_blocks_cursors_and_statements_are_the_same_here(
    pool_of: Callable[..., Any], open_loop: Any, aio: ModuleType, postgres: Postgres
) -> None:
    with trio.fail_after(LIMIT):
        async with open_loop(), pool_of() as theirs, theirs.acquire() as conn:
            expected = await use(conn)
        connector = aio.AsyncioConnector(
            connect=lambda: asyncpg.connect(postgres.url),
            close=asyncpg.Connection.close,
        )
        async with open_pool(connector=connector) as ours, ours.lease() as conn:
            assert await use(conn) == expected
    assert expected == [(1,), (2,), (3,), (4,), (5,), 42, ""]


@TABLE.tries("`conn.listen(channel, ...)`")
async def test_a_listener_here_fills_a_channel_as_well(
    pool_of: Callable[..., Any], open_loop: Any, aio: ModuleType, postgres: Postgres
) -> None:
    with trio.fail_after(LIMIT):
        async with (
            open_loop(),
            pool_of() as pool,
            pool.acquire() as conn,
            conn.listen("news", max_buffer_size=1) as heard,
        ):
            await conn.execute("NOTIFY news, 'theirs'")
            assert await heard.receive() == "theirs"
        connector = aio.AsyncioConnector(
            connect=lambda: asyncpg.connect(postgres.url),
            close=asyncpg.Connection.close,
        )
        send, receive = trio.open_memory_channel[str](1)
        async with open_pool(connector=connector) as ours, ours.lease() as conn:
            await conn.add_listener("news", lambda *told: send.send_nowait(told[-1]))
            await conn.execute("NOTIFY news, 'ours'")
            assert await receive.receive() == "ours"


@TABLE.tries("`pool.execute`, `pool.fetch`, `pool.fetchrow`, `pool.fetchval`")
async def test_a_pool_has_queries_of_its_own(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    async with open_loop(), pool_of() as pool:
        assert await pool.execute("SELECT 1") == "SELECT 1"
        assert await pool.fetch("SELECT 1") == [(1,)]
        assert await pool.fetchrow("SELECT 1") == (1,)
        assert await pool.fetchval("SELECT 1") == 1


@TABLE.tries("`init=`, given an asyncio connection")
async def test_what_prepares_a_connection_is_given_that_of_asyncio(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    async def init(connection: Any) -> None:
        given.append(type(connection))

    given: list[type] = []
    async with open_loop(), pool_of(init=init) as pool:
        await pool.execute("SELECT 1")
    assert given == [asyncpg.Connection]


@TABLE.tries("`connect(...)` without a pool")
async def test_one_connection_is_a_block(
    triopg: Any, open_loop: Any, postgres: Postgres
) -> None:
    async with open_loop(), triopg.connect(postgres.url) as conn:
        assert await conn.fetchval("SELECT 1") == 1


@TABLE.tries("closing waits for every borrower, without an end")
async def test_not_even_a_cancellation_ends_the_wait_for_borrowers(
    pool_of: Callable[..., Any], open_loop: Any
) -> None:
    async def borrow() -> None:
        async with pool.acquire():
            borrowed.set()
            await gate.wait()

    async def close() -> None:
        with scope:
            async with pool:
                nursery.start_soon(borrow)
                await borrowed.wait()
        closed.set()

    borrowed, gate, closed = trio.Event(), trio.Event(), trio.Event()
    scope = trio.CancelScope()
    pool = pool_of()
    async with open_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await borrowed.wait()
        scope.cancel()
        await wait_all_tasks_blocked(0.1)
        assert not closed.is_set()
        gate.set()
        with trio.fail_after(LIMIT):
            await closed.wait()
