"""Stock asyncio drivers on real servers: psycopg on Hyper, asyncpg on PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import ModuleType
from typing import Any, Protocol

import psycopg
import pytest
import trio
from psycopg.pq import TransactionStatus

from tests._invariants import at_step
from trio_hyperpool import (
    ConnectError,
    HealthCheck,
    LeaseEndedError,
    LeaseRevokedError,
    Pool,
    open_pool,
)
from trio_hyperpool.testing import assert_at_rest


class Kind(Protocol):
    """A driver, in its own words."""

    @property
    def minutes(self) -> str: ...

    @property
    def error(self) -> type[Exception]: ...

    def connector(self, aio: ModuleType) -> Any: ...

    async def value(self, conn: Any, query: str) -> Any: ...

    def numbers(self, conn: Any, query: str) -> Any: ...


class PsycopgOnHyper:
    minutes = (
        "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
        "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
    )
    error: type[Exception] = psycopg.Error

    def __init__(self, hyperd: Any) -> None:
        self.conninfo = hyperd.conninfo

    def connector(self, aio: ModuleType) -> Any:
        async def connect() -> psycopg.AsyncConnection[Any]:
            return await psycopg.AsyncConnection.connect(
                **self.conninfo, autocommit=True, prepare_threshold=None
            )

        async def ping(driver: psycopg.AsyncConnection[Any]) -> None:
            await driver.execute("")

        idle = TransactionStatus.IDLE
        return aio.AsyncioConnector(
            connect=connect,
            close=psycopg.AsyncConnection.close,
            ping=ping,
            is_alive=lambda driver: not driver.closed,
            is_clean=lambda driver: driver.info.transaction_status == idle,
            reset=psycopg.AsyncConnection.rollback,
            abort=lambda driver: driver.pgconn.finish(),
        )

    async def value(self, conn: Any, query: str) -> Any:
        cursor = await conn.execute(query)
        return (await cursor.fetchone())[0]

    async def numbers(self, conn: Any, query: str) -> AsyncGenerator[int]:
        async with conn.cursor() as cursor:
            async for (number,) in cursor.stream(query):
                yield number


class AsyncpgOnPostgres:
    minutes = "SELECT pg_sleep(100)"

    def __init__(self, env: dict[str, str]) -> None:
        self.asyncpg = pytest.importorskip("asyncpg")
        self.error: type[Exception] = self.asyncpg.PostgresError
        self.where = {
            "host": env["PGHOST"],
            "port": int(env["PGPORT"]),
            "user": env["PGUSER"],
            "database": env["PGDATABASE"],
        }

    def connector(self, aio: ModuleType) -> Any:
        connection = self.asyncpg.Connection

        async def ping(driver: Any) -> None:
            await driver.execute("SELECT 1")

        return aio.AsyncioConnector(
            connect=lambda: self.asyncpg.connect(**self.where),
            close=connection.close,
            ping=ping,
            is_alive=lambda driver: not driver.is_closed(),
            reset=connection.reset,
            abort=connection.terminate,
        )

    async def value(self, conn: Any, query: str) -> Any:
        return await conn.fetchval(query)

    async def numbers(self, conn: Any, query: str) -> AsyncGenerator[int]:
        async with conn.transaction():
            async for (number,) in conn.cursor(query):
                yield number


@pytest.fixture(
    params=["hyperd", "postgres_env"], ids=["psycopg on Hyper", "asyncpg on PostgreSQL"]
)
def kind(request: pytest.FixtureRequest) -> Kind:
    server = request.getfixturevalue(request.param)
    return (
        PsycopgOnHyper(server)
        if request.param == "hyperd"
        else AsyncpgOnPostgres(server)
    )


@pytest.fixture
def pool_of(kind: Kind, aio: ModuleType) -> Callable[..., Any]:
    return lambda **options: open_pool(connector=kind.connector(aio), **options)


async def test_queries_blocks_and_iterators_work_from_trio(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async with pool_of(max_size=2) as pool, pool.lease() as conn:
        assert await kind.value(conn, "SELECT 1") == 1
        query = "SELECT * FROM generate_series(1, 3)"
        async with contextlib.aclosing(kind.numbers(conn, query)) as numbers:
            assert [number async for number in numbers] == [1, 2, 3]
        with pytest.raises(kind.error, match="nope"):
            await kind.value(conn, "SELECT nope")
        async with conn.transaction():
            assert await kind.value(conn, "SELECT 2") == 2


async def test_many_tasks_share_few_connections(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async def work(number: int) -> None:
        async with pool.lease() as conn:
            assert await kind.value(conn, f"SELECT {number}") == number
            done.append(number)

    done: list[int] = []
    async with pool_of(max_size=3) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(work, number)
        assert sorted(done) == list(range(30))
        assert pool.statistics().opened <= 3
        await assert_at_rest(pool)


async def test_a_cancelled_query_stops_and_its_connection_is_not_leased_again(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async with pool_of(max_size=2) as pool:
        async with pool.lease() as conn:
            with trio.fail_after(5):
                with trio.move_on_after(0.2) as scope:
                    async with conn.transaction():
                        await kind.value(conn, kind.minutes)
                assert scope.cancelled_caught
                assert await kind.value(conn, "SELECT 42") == 42
        await assert_at_rest(pool)
        assert pool.statistics().retired["cancelled query"] == 1


async def test_a_transaction_left_open_does_not_reach_the_next_borrower(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async with pool_of(max_size=1) as pool:
        async with pool.lease() as conn:
            await conn.execute("BEGIN")
            await conn.execute("CREATE TEMPORARY TABLE mine (n int)")
        async with pool.lease() as conn:
            async with conn.transaction():
                await kind.value(conn, "SELECT 1")
            await conn.execute("BEGIN")  # both would warn, or refuse, in a transaction
            await conn.execute("ROLLBACK")
        await assert_at_rest(pool)
        assert pool.statistics().opened == 1


async def test_a_connection_is_dead_after_its_lease(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async with pool_of() as pool:
        async with pool.lease() as conn:
            await kind.value(conn, "SELECT 1")
        with pytest.raises(LeaseEndedError):
            await kind.value(conn, "SELECT 1")
        with pytest.raises(LeaseRevokedError):
            async with pool.lease() as conn:
                with pytest.raises(LeaseRevokedError):
                    pool._supply.revoke(next(iter(pool._supply.table.leased)))
                    await kind.value(conn, kind.minutes)
                await kind.value(conn, "SELECT 1")


async def test_a_session_that_died_is_replaced(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async with pool_of(health_check_after=0) as pool:
        async with pool.lease() as conn:
            await kind.value(conn, "SELECT 1")
            await conn.close()
        async with pool.lease() as conn:
            assert await kind.value(conn, "SELECT 1") == 1
        await assert_at_rest(pool)
        async with pool.lease() as conn:
            assert await kind.value(conn, "SELECT 1") == 1
        await assert_at_rest(pool)
        assert pool.statistics().discarded["returned broken"] == 1
        assert pool.statistics().opened == 2
        assert not pool.statistics().health_check_failures


async def test_the_health_check_may_be_of_either_flavour(
    kind: Kind, pool_of: Callable[..., Any], aio: ModuleType
) -> None:
    async def hook(conn: Any) -> None:
        assert await kind.value(conn, "SELECT 1") == 1

    for check in (HealthCheck.SELECT_ONE, hook, aio.hook(hook)):
        async with pool_of(
            health_check=check,
            health_check_after=0,
            after_connect=hook,
            before_acquire=aio.hook(hook),
        ) as pool:
            for _ in range(3):
                async with pool.lease() as conn:
                    await kind.value(conn, "SELECT 1")
                await assert_at_rest(pool)
            assert pool.statistics().opened == 1


async def test_a_server_that_is_not_there(aio: ModuleType) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    connector = aio.AsyncioConnector(
        connect=lambda: asyncpg.connect(host="127.0.0.1", port=1, user="nobody"),
        close=asyncpg.Connection.close,
    )
    async with open_pool(connector=connector) as pool:
        with pytest.raises(ConnectError) as caught:
            async with pool.lease():
                pass
    assert caught.value.unreachable


@pytest.mark.slow
async def test_nothing_is_lost_wherever_a_task_is_cancelled(
    kind: Kind, pool_of: Callable[..., Any]
) -> None:
    async def use(pool: Pool[Any]) -> None:
        async with pool.lease() as conn, conn.transaction():
            await kind.value(conn, "SELECT 1")

    async def assert_works(
        pool: Pool[Any], query: Callable[..., Awaitable[Any]]
    ) -> None:
        await assert_at_rest(pool)
        async with pool.lease() as conn:
            assert await query(conn, "SELECT 1") == 1

    step, goes_on = 1, True
    async with pool_of(max_size=1) as pool:
        while goes_on:
            with trio.CancelScope() as scope, at_step(step, scope.cancel) as instrument:
                await use(pool)
            goes_on = instrument.has_acted
            with trio.fail_after(5):
                await assert_works(pool, kind.value)
            step += 1
    assert step > 10
