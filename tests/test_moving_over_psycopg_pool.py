"""What the page for those who move over says of psycopg_pool, tried on Hyper."""

from __future__ import annotations

import asyncio
import inspect
import logging
import textwrap
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from tests._moving_page import PAGE, Name, Table, on_asyncio

psycopg_pool = pytest.importorskip("psycopg_pool", minversion="3.3")
AsyncConnectionPool = psycopg_pool.AsyncConnectionPool

TABLE = Table("psycopg_pool")
OPTIONS = inspect.signature(AsyncConnectionPool).parameters


@pytest.mark.parametrize("name", TABLE.names, ids=lambda name: name.text)
def test_each_name_exists_and_has_the_default(name: Name) -> None:
    if name.path in OPTIONS and "(" not in name.text:
        assert name.default in {None, OPTIONS[name.path].default}
        return
    assert name.default is None
    home = AsyncConnectionPool if name.text.islower() else psycopg_pool
    found = getattr(home, name.path.removeprefix("pool."))
    assert name.parameters <= set(inspect.signature(found).parameters)


def test_every_row_is_tried() -> None:
    assert sorted(TABLE.tried) == sorted(TABLE.cells)


@pytest.fixture
def conninfo(hyperd: Any) -> str:
    return make_conninfo("", **hyperd.conninfo)


def pool_of(conninfo: str, **options: Any) -> Any:
    """A pool of one connection, which is opened at once."""
    return AsyncConnectionPool(
        conninfo, **{"min_size": 1, "kwargs": {"autocommit": True}} | options
    )


async def one(pool: Any) -> psycopg.AsyncConnection[Any]:
    """The connection of which it is the turn."""
    async with pool.connection() as connection:
        return connection  # type: ignore[no-any-return]


async def until_stat(pool: Any, stat: str, value: int) -> None:
    while pool.get_stats().get(stat, 0) != value:  # noqa: ASYNC110  it tells nobody
        await asyncio.sleep(0.01)


async def test_it_does_not_run_on_trio(conninfo: str) -> None:
    with pytest.raises(RuntimeError, match="no running loop"):
        async with pool_of(conninfo):
            pass


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@TABLE.tries("`AsyncConnectionPool(conninfo, kwargs=...)`")
@on_asyncio
async def test_a_pool_may_be_open_before_its_block(conninfo: str) -> None:
    with pytest.warns(RuntimeWarning, match="opening the async pool"):
        pool = pool_of(conninfo, open=True)
    assert (await one(pool)).autocommit
    await pool.close()


@TABLE.tries("`open()`, `wait()`, `close()`")
@on_asyncio
async def test_closing_does_not_wait_for_borrowers(conninfo: str) -> None:
    pool = pool_of(conninfo, open=False)
    await pool.open()
    await pool.wait()
    assert pool.get_stats()["pool_available"] == 1
    connection = await pool.getconn()
    await pool.close()
    await connection.execute("SELECT 1")
    await pool.putconn(connection)
    assert connection.closed


@TABLE.tries("`min_size` (4), `max_size` (the same)")
@on_asyncio
async def test_the_largest_size_is_the_smallest_which_counts_the_leased_ones(
    conninfo: str,
) -> None:
    pool = AsyncConnectionPool(conninfo, open=False)
    assert (pool.min_size, pool.max_size) == (4, 4)
    async with pool_of(conninfo, max_size=2) as pool:
        await pool.wait()
        async with pool.connection():
            stats = pool.get_stats()
            assert (stats["pool_size"], stats["pool_available"]) == (1, 0)


@TABLE.tries("`pool.connection(timeout=...)`")
@on_asyncio
async def test_the_end_of_a_block_commits(conninfo: str) -> None:
    async def insert_and_fail() -> None:
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
            raise ValueError("in the block")

    async with pool_of(conninfo, kwargs=None) as pool:
        async with pool.connection(timeout=5) as connection:
            assert not connection.autocommit
            await connection.execute("CREATE TEMPORARY TABLE t (n int)")
            await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ValueError, match="in the block"):
            await insert_and_fail()
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT n FROM t")
            assert await cursor.fetchall() == [(1,)]


@TABLE.tries("`getconn()`, `putconn()`")
@on_asyncio
async def test_a_connection_may_be_had_without_a_block(conninfo: str) -> None:
    async with pool_of(conninfo) as pool:
        connection = await pool.getconn()
        await pool.putconn(connection)
        assert await pool.getconn() is connection
        await pool.putconn(connection)


@TABLE.tries("`timeout` (30)", "`PoolTimeout`")
@on_asyncio
async def test_one_timeout_is_for_all_and_its_error_does_not_say_why(
    conninfo: str,
) -> None:
    async with pool_of(conninfo, timeout=0.1) as pool:
        await pool.wait()
        async with pool.connection():
            with pytest.raises(psycopg_pool.PoolTimeout) as in_use:
                await pool.getconn()
    async with pool_of("host=127.0.0.1 port=1", timeout=0.1) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout) as unreachable:
            await pool.getconn()
    assert str(in_use.value) == str(unreachable.value)
    assert unreachable.value.__cause__ is None


@TABLE.tries("`max_waiting` (0), `TooManyRequests`")
@on_asyncio
async def test_zero_waiting_tasks_are_any_number(conninfo: str) -> None:
    async with pool_of(conninfo) as pool, pool.connection():
        waiting = [asyncio.create_task(pool.getconn()) for _ in range(3)]
        await until_stat(pool, "requests_waiting", 3)
        await cancelled(*waiting)
    async with pool_of(conninfo, max_waiting=1) as pool, pool.connection():
        waiting = [asyncio.create_task(pool.getconn())]
        await until_stat(pool, "requests_waiting", 1)
        with pytest.raises(psycopg_pool.TooManyRequests):
            await pool.getconn()
        await cancelled(*waiting)


@TABLE.tries("`PoolClosed`")
@on_asyncio
async def test_a_closed_pool_is_closed_for_those_who_wait_too(conninfo: str) -> None:
    pool = pool_of(conninfo, open=False)
    with pytest.raises(psycopg_pool.PoolClosed, match="not open yet"):
        await pool.getconn()
    await pool.open()
    async with pool.connection():
        waiting = asyncio.create_task(pool.getconn())
        await until_stat(pool, "requests_waiting", 1)
        await pool.close()
        with pytest.raises(psycopg_pool.PoolClosed, match="is closed"):
            await waiting
    with pytest.raises(psycopg_pool.PoolClosed, match="already closed"):
        await pool.getconn()


@TABLE.tries("`max_lifetime` (3600), `max_idle` (600)")
@on_asyncio
async def test_age_is_looked_at_only_when_a_connection_is_returned(
    conninfo: str,
) -> None:
    async with pool_of(conninfo, max_lifetime=0.05) as pool:
        await pool.wait()
        await asyncio.sleep(0.1)
        async with pool.connection() as old:
            await old.execute("SELECT 1")
        assert old.closed
        assert await one(pool) is not old


@on_asyncio
async def test_of_idle_connections_one_is_closed_each_time(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "psycopg.pool")
    async with pool_of(conninfo, max_size=3, max_idle=0.2) as pool:
        async with pool.connection(), pool.connection(), pool.connection():
            assert pool.get_stats()["pool_size"] == 3
        await until_stat(pool, "pool_size", 1)
    messages = [record.getMessage() for record in caplog.records]
    shrunk = [text.split()[4] for text in messages if text.startswith("shrinking")]
    assert shrunk == ["2", "1"]


@TABLE.tries("`reconnect_timeout` (300), `reconnect_failed`")
@on_asyncio
async def test_attempts_to_connect_go_on_when_who_waited_has_gone() -> None:
    async def note(pool: Any) -> None:
        failed.append(pool)
        has_failed.set()

    failed: list[Any] = []
    has_failed = asyncio.Event()
    async with pool_of(
        "host=127.0.0.1 port=1", reconnect_timeout=0.3, reconnect_failed=note
    ) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.05)
        await has_failed.wait()
        assert failed == [pool]
        assert pool.get_stats()["connections_errors"] >= 2


@TABLE.tries("`configure`")
@on_asyncio
async def test_what_configures_may_not_leave_a_transaction_open(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def begin(connection: Any) -> None:
        configured.append(connection)
        await connection.execute("BEGIN")

    configured: list[Any] = []
    async with pool_of(conninfo, configure=begin) as pool:
        while "left in status INTRANS by configure" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.1)
    for connection in configured:
        await connection.close()


@TABLE.tries("`check`, `check_connection`")
@on_asyncio
async def test_without_a_check_a_dead_connection_is_handed_out(conninfo: str) -> None:
    check = AsyncConnectionPool.check_connection
    assert OPTIONS["check"].default is None
    async with pool_of(conninfo) as pool:
        await (await one(pool)).close()
        assert (await pool.getconn()).closed
    async with pool_of(conninfo, check=check) as pool:
        dead = await one(pool)
        await dead.close()
        async with pool.connection() as connection:
            assert connection is not dead
            await connection.execute("SELECT 1")


@TABLE.tries("`reset`")
@on_asyncio
async def test_a_reset_runs_behind_the_borrower_for_as_long_as_it_takes(
    conninfo: str,
) -> None:
    async def wait(_connection: Any) -> None:
        began.set()
        await gate.wait()

    began, gate = asyncio.Event(), asyncio.Event()
    async with pool_of(conninfo, reset=wait) as pool:
        connection = await one(pool)
        await began.wait()
        with pytest.raises(psycopg_pool.PoolTimeout):
            await pool.getconn(timeout=0.1)
        gate.set()
        assert await one(pool) is connection


@TABLE.tries("`num_workers` (3)")
@on_asyncio
async def test_so_many_tasks_do_all_there_is_to_do(conninfo: str) -> None:
    async with pool_of(conninfo, name="mine") as pool:
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert sum(name.startswith("mine-worker-") for name in names) == 3
        await one(pool)


@TABLE.tries("`resize(min_size, max_size)`")
@on_asyncio
async def test_a_smaller_pool_keeps_its_idle_connections(conninfo: str) -> None:
    async with pool_of(conninfo, min_size=3) as pool:
        await pool.wait()
        await pool.resize(1, 2)
        stats = pool.get_stats()
        assert (stats["pool_min"], stats["pool_max"]) == (1, 2)
        assert (stats["pool_size"], stats["pool_available"]) == (3, 3)


@TABLE.tries("`drain()`")
@on_asyncio
async def test_draining_opens_as_many_connections_again(conninfo: str) -> None:
    async with pool_of(conninfo, min_size=2) as pool:
        await pool.wait()
        async with pool.connection() as leased:
            await pool.drain()
            await until_stat(pool, "pool_available", 1)
            assert not leased.closed
        assert leased.closed
        await until_stat(pool, "pool_available", 2)
        assert pool.get_stats()["connections_num"] == 4


@TABLE.tries("`get_stats()`, `pop_stats()`")
@on_asyncio
async def test_counters_may_be_reset(conninfo: str) -> None:
    async with pool_of(conninfo) as pool:
        await one(pool)
        assert pool.get_stats()["requests_num"] == 1
        assert pool.pop_stats()["requests_num"] == 1
        assert "requests_num" not in pool.get_stats()


@TABLE.tries("`AsyncNullConnectionPool`")
@on_asyncio
async def test_a_pool_may_keep_nothing(conninfo: str) -> None:
    async with psycopg_pool.AsyncNullConnectionPool(conninfo, max_size=1) as pool:
        first = await one(pool)
        assert first.closed
        assert await one(pool) is not first


@TABLE.tries("an open transaction at return: rolled back, with a warning in the log")
@on_asyncio
async def test_an_open_transaction_is_rolled_back_by_the_borrower_and_logged(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(conninfo) as pool:
        connection = await pool.getconn()
        await connection.execute("BEGIN")
        await pool.putconn(connection)
        assert connection.info.transaction_status == TransactionStatus.IDLE
        assert await one(pool) is connection
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.getMessage().startswith("rolling back returned connection")


@on_asyncio
async def test_the_program_of_the_page_runs(hyperd: Any, db: str) -> None:
    block = PAGE.partition("The program\n\n```py\n")[2].partition("```")[0]
    code = "async def program(AsyncConnectionPool, conninfo):\n"
    code += textwrap.indent(block, "    ").replace(
        "pool.get_stats", "return pool.get_stats"
    )
    conninfo = make_conninfo("", **hyperd.conninfo)
    async with await psycopg.AsyncConnection.connect(
        conninfo, autocommit=True
    ) as connection:
        await connection.execute(f'CREATE DATABASE "{db}"')
    conninfo = make_conninfo(conninfo, dbname=db)
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        await connection.execute("CREATE TABLE t (n int)")
        await connection.commit()
    names: dict[str, Any] = {}
    exec(code, names)
    assert await names["program"](AsyncConnectionPool, conninfo) == 1
    async with await psycopg.AsyncConnection.connect(conninfo) as connection:
        cursor = await connection.execute("SELECT n FROM t")
        assert await cursor.fetchall() == [(1,)]
