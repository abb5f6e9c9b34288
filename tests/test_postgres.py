"""A pool on a real PostgreSQL: what the connector promises."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiosql
import psycopg
import pytest
import trio
from psycopg.types import TypeInfo

from tests._postgres_server import (
    Postgres,
    bouncing,
    private_folder,
    replicating,
    running,
)
from trio_hyperpool import (
    ConnectError,
    CreateMode,
    Pool,
    PoolConfig,
    PostgresConnection,
    PostgresConnector,
    open_pool,
)
from trio_hyperpool.testing import assert_at_rest

BACKEND = "SELECT pg_backend_pid()"


# Which server, and how


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://tester@127.0.0.1:{}/postgres",
        "host=127.0.0.1 port={} user=tester dbname=postgres",
    ],
)
async def test_a_uri_and_keywords_both_select_postgresql(
    postgres: Postgres, form: str
) -> None:
    async with open_pool(form.format(postgres.port)) as pool:
        assert "PostgreSQL 18" in await pool.fetch_value("SELECT version()")
        async with pool.lease() as connection:
            assert isinstance(connection, PostgresConnection)


async def test_database_user_and_password_go_before_the_connection_string(
    postgres: Postgres,
) -> None:
    postgres.ask("DROP ROLE IF EXISTS other")
    postgres.ask("CREATE ROLE other LOGIN")

    async def password() -> str:
        return "of no consequence"

    async with open_pool(
        f"host=127.0.0.1 port={postgres.port} user=nobody dbname=nothing",
        "template1",
        user="other",
        password=password,
        load_balance=True,
    ) as pool:
        row = await pool.fetch_one("SELECT current_user, current_database()")
        assert row == ("other", "template1")
        assert pool.name == "template1 at 127.0.0.1"


async def test_environment_and_service_files_count_as_libpq_has_them(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(postgres.port))
    monkeypatch.setenv("PGUSER", "tester")
    async with open_pool("postgresql:///postgres") as pool:
        assert await pool.fetch_value("SELECT current_user") == "tester"
    for name in ("PGHOST", "PGPORT", "PGUSER"):
        monkeypatch.delenv(name)
    services = tmp_path / "services"
    services.write_text(
        f"[ours]\nhost=127.0.0.1\nport={postgres.port}\nuser=tester\ndbname=postgres\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    async with open_pool("service=ours") as pool:
        assert await pool.fetch_value("SELECT current_user") == "tester"
        assert pool.name == "PostgreSQL at ours"


def test_what_only_hyper_has_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(
        ValueError, match=r"create_mode: only CreateMode\.DO_NOT_CREATE"
    ):
        open_pool("postgresql://h/db", create_mode=CreateMode.CREATE)
    with pytest.raises(ValueError, match=r"endpoint: no connection string: .*nonsense"):
        open_pool("nonsense=1")
    with pytest.raises(TypeError, match="database: "):
        open_pool("postgresql://h/db", 3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="endpoint: a PostgresConnector needs"):
        PostgresConnector(PoolConfig("localhost", "x.hyper"))


@pytest.mark.parametrize(
    "endpoint",
    [
        "postgresql://me:se:cret@h/db",
        "postgresql://me@h/db?password=secret&port=1",
        "host=h password=secret dbname=d",
        "host=h password = 'se\\'cret' dbname=d",
    ],
)
def test_no_password_is_shown(endpoint: str) -> None:
    shown = repr(PoolConfig(endpoint))
    assert "cret" not in shown
    assert "cret" not in PostgresConnector(PoolConfig(endpoint)).name
    with pytest.raises(ValueError, match="no connection string") as caught:
        open_pool(endpoint.replace("h/db", "[h/db").replace("host=h", "hist=h"))
    assert "cret" not in str(caught.value)


async def test_scram_takes_the_password_and_a_wrong_one_is_final(
    postgres: Postgres,
) -> None:
    postgres.ask("DROP ROLE IF EXISTS scrammer")
    postgres.ask("CREATE ROLE scrammer LOGIN PASSWORD 'right'")
    url = f"postgresql://scrammer@127.0.0.1:{postgres.port}/postgres"
    async with open_pool(url, password="right") as pool:
        assert await pool.fetch_value("SELECT current_user") == "scrammer"
    async with open_pool(url, password="wrong", create_attempts=3) as pool:
        with pytest.raises(ConnectError, match="password authentication") as caught:
            await pool.execute("SELECT 1")
        assert not caught.value.unreachable
        assert pool.statistics().open_failures == 1


async def test_nobody_there_is_tried_again(postgres: Postgres) -> None:
    from tests._postgres_server import free_port

    url = f"host=127.0.0.1 port={free_port()} dbname=x"
    async with open_pool(url, create_attempts=2, create_backoff=0.01) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.execute("SELECT 1")
        assert caught.value.unreachable


async def test_tls_is_verified(postgres: Postgres) -> None:
    """The server's build has none, so that pgbouncer's is tested."""
    with (
        private_folder() as folder,
        bouncing(postgres, folder, with_tls=True) as url,
    ):
        local = url.replace("127.0.0.1", "localhost") + "?hostaddr=127.0.0.1"
        verify = f"{local}&sslmode=verify-full&sslrootcert={folder}"
        async with (
            open_pool(f"{verify}/server.crt") as pool,
            pool.lease() as connection,
        ):
            assert connection.pgconn.ssl_in_use
            assert await connection.fetch_value("SELECT 1") == 1
        async with open_pool(f"{verify}/nobodys.crt") as pool:
            with pytest.raises(ConnectError, match="certificate"):
                await pool.execute("SELECT 1")


# What a borrower finds


async def set_zone(connection: PostgresConnection) -> None:
    await connection.execute("SET TIME ZONE 'Asia/Tokyo'")


async def set_quietly(connection: PostgresConnection) -> None:
    await connection.execute("/* so that */ SET statement_timeout = 12345")


async def set_by_function(connection: PostgresConnection) -> None:
    await connection.fetch_value("SELECT set_config('work_mem', '123MB', false)")


async def set_often(connection: PostgresConnection) -> None:
    for _ in range(8):  # the last of them is prepared
        await set_by_function(connection)


async def set_by_words_nobody_reads(connection: PostgresConnection) -> None:
    async with psycopg.AsyncRawCursor(connection) as cursor:
        await cursor.execute("SET DateStyle = 'German'")


async def set_with_a_cursor_of_another_class(connection: PostgresConnection) -> None:
    connection.cursor_factory = psycopg.AsyncRawCursor
    await connection.execute("SET lock_timeout = 54321")


async def lock(connection: PostgresConnection) -> None:
    await connection.execute("SELECT pg_advisory_lock(7)")


async def listen(connection: PostgresConnection) -> None:
    await connection.execute("LISTEN news")


async def make_temporary(connection: PostgresConnection) -> None:
    await connection.execute("CREATE TEMP TABLE scratch (x int)")


async def prepare(connection: PostgresConnection) -> None:
    await connection.execute("PREPARE mine AS SELECT 1")


async def hold(connection: PostgresConnection) -> None:
    await connection.execute("DECLARE kept CURSOR WITH HOLD FOR SELECT 1")


async def stream(connection: PostgresConnection) -> None:
    cursor = connection.cursor()
    rows = cursor.stream("SELECT set_config('work_mem', '123MB', false)")
    assert [row async for row in rows] == [("123MB",)]


TRACES = """
SELECT (SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid())
     + (SELECT count(*) FROM pg_listening_channels())
     + (SELECT count(*) FROM pg_class WHERE relname = 'scratch')
     + (SELECT count(*) FROM pg_prepared_statements WHERE NOT name LIKE '\\_pg3%')
     + (SELECT count(*) FROM pg_cursors WHERE is_holdable)
     + (SELECT count(*) FROM pg_settings WHERE setting <> reset_val
        AND name IN ('TimeZone', 'DateStyle', 'statement_timeout', 'lock_timeout',
                     'work_mem'))
"""

CHANGES: list[Callable[[Any], Awaitable[None]]] = [
    set_zone,
    set_quietly,
    set_by_function,
    set_often,
    set_by_words_nobody_reads,
    set_with_a_cursor_of_another_class,
    lock,
    listen,
    make_temporary,
    prepare,
    hold,
    stream,
]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_session_is_as_new_for_the_next(
    postgres: Postgres, change: Callable[[Any], Awaitable[None]]
) -> None:
    async with open_pool(postgres.url, max_size=1) as pool:
        async with pool.lease() as connection:
            first = await connection.fetch_value(BACKEND)
            await change(connection)
            assert await connection.fetch_value(TRACES) > 0
        async with pool.lease() as connection:
            assert await connection.fetch_value(BACKEND) == first
            assert await connection.fetch_value(TRACES) == 0


async def test_what_after_connect_set_is_kept_by_replacing_a_changed_session(
    postgres: Postgres,
) -> None:
    async def after_connect(connection: Any) -> None:
        await connection.execute("SET work_mem = '99MB'")

    async with open_pool(postgres.url, max_size=1, after_connect=after_connect) as pool:
        first = await pool.fetch_value(BACKEND)
        assert await pool.fetch_value("SHOW work_mem") == "99MB"
        assert await pool.fetch_value(BACKEND) == first
        await pool.execute("SET lock_timeout = 1")
        assert await pool.fetch_value("SHOW lock_timeout") == "0"
        assert await pool.fetch_value("SHOW work_mem") == "99MB"
        assert await pool.fetch_value(BACKEND) != first
        assert pool.statistics().retired["changed session"] == 1


async def test_a_reset_leaves_what_after_connect_made_of_the_object(
    postgres: Postgres,
) -> None:
    async def after_connect(connection: Any) -> None:
        await connection.set_autocommit(False)

    async with open_pool(postgres.url, max_size=1, after_connect=after_connect) as pool:
        first = await pool.fetch_value(BACKEND)
        async with pool.lease() as connection:
            await connection.execute("SET lock_timeout = 1")
            await connection.commit()
        async with pool.lease() as connection:
            assert not connection.autocommit
            assert await connection.fetch_value("SHOW lock_timeout") == "0"
            assert await connection.fetch_value(BACKEND) == first


async def test_closing_the_pool_ends_what_a_borrower_left_running(
    postgres: Postgres,
) -> None:
    async with open_pool(postgres.url, max_size=1) as pool:
        async with pool.lease() as connection:
            connection.pgconn.send_query(b"SELECT pg_sleep(62)")
        await assert_at_rest(pool)
        assert pool.statistics().retired["returned busy"] == 1
    left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(62)'"
    assert await trio.to_thread.run_sync(postgres.ask, left) == 0


async def test_what_before_acquire_sets_costs_no_reset(postgres: Postgres) -> None:
    async def before_acquire(connection: Any) -> None:
        await connection.execute("SET TIME ZONE 'Asia/Tokyo'")

    async with open_pool(
        postgres.url, max_size=1, before_acquire=before_acquire
    ) as pool:
        first = await pool.fetch_value(BACKEND)
        for _ in range(3):
            assert await pool.fetch_value("SHOW timezone") == "Asia/Tokyo"
        assert await pool.fetch_value(BACKEND) == first


async def test_prepared_statements_are_kept_across_leases_and_dropped_by_a_reset(
    postgres: Postgres,
) -> None:
    count = "SELECT count(*) FROM pg_prepared_statements"
    async with open_pool(postgres.url, max_size=1) as pool:
        for number in range(8):
            assert await pool.fetch_value("SELECT %s + 1", (number,)) == number + 1
        assert await pool.fetch_value(count) >= 1
        await pool.execute("SET lock_timeout = 1")
        assert await pool.fetch_value(count) == 0
        for number in range(8):
            assert await pool.fetch_value("SELECT %s + 1", (number,)) == number + 1


async def test_no_lease_leaves_a_session_idle_in_a_transaction(
    postgres: Postgres,
) -> None:
    async with open_pool(postgres.url, max_size=3) as pool:

        async def leave_it_open() -> None:
            async with pool.lease() as connection:
                await connection.execute("BEGIN")
                await connection.execute("SELECT 1")

        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(leave_it_open)
        await assert_at_rest(pool)
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
        assert await pool.fetch_value(idle) == 0
        assert pool.statistics().opened == 3


async def test_transactions_nest_with_savepoints(postgres: Postgres) -> None:
    async with open_pool(postgres.url, max_size=1) as pool, pool.lease() as connection:
        await connection.execute("CREATE TEMP TABLE t (x int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (2)")
                    raise ZeroDivisionError
            async with connection.transaction("named"):
                await connection.execute("INSERT INTO t VALUES (3)")
        assert await connection.fetch_all("SELECT x FROM t") == [(1,), (3,)]


async def test_results_are_exact_in_the_binary_form(postgres: Postgres) -> None:
    async with open_pool(postgres.url) as pool, pool.lease() as connection:
        cursor = connection.cursor(binary=True)
        await cursor.execute(
            "SELECT 0.1::float8, 1.50::numeric, ARRAY[1, NULL], '\\x00ff'::bytea"
        )
        assert cursor.pgresult is not None
        assert cursor.pgresult.fformat(0) == 1
        (row,) = await cursor.fetchall()
        assert row[0] == 0.1
        assert str(row[1]) == "1.50"
        assert row[2:] == ([1, None], b"\x00\xff")


# Cancellation


async def test_a_cancelled_query_is_gone_from_the_server_in_half_a_second(
    postgres: Postgres,
) -> None:
    async with open_pool(postgres.url, max_size=1) as pool:
        async with pool.lease() as connection:
            with trio.move_on_after(0.1) as scope:
                await connection.execute("SELECT pg_sleep(60), 'to be cancelled'")
            assert scope.cancelled_caught
            with trio.fail_after(0.5):
                query = (
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
                    "AND query LIKE '%to be cancelled%' AND pid <> pg_backend_pid()"
                )
                while await trio.to_thread.run_sync(  # noqa: ASYNC110
                    postgres.ask, query
                ):
                    await trio.sleep(0.01)
            assert await connection.fetch_value("SELECT 42") == 42
        await assert_at_rest(pool)
        assert pool.statistics().cancelled_queries == 1


async def test_a_query_in_flight_ends_with_its_revoked_lease(
    postgres: Postgres,
) -> None:
    from trio_hyperpool import LeaseRevokedError

    async with open_pool(postgres.url, max_size=1, max_lease=0.1) as pool:
        with pytest.raises(LeaseRevokedError):
            async with pool.lease() as connection:
                await connection.execute("SELECT pg_sleep(61)")
        await assert_at_rest(pool)
        query = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE query LIKE '%(61)%' AND pid <> pg_backend_pid()"
        )
        assert await pool.fetch_value(query) == 0


async def test_notifications_come_as_a_stream_that_a_cancellation_ends(
    postgres: Postgres,
) -> None:
    async with open_pool(postgres.url, max_size=2) as pool:
        async with pool.lease() as connection:
            await connection.execute("LISTEN news")
            await pool.execute("NOTIFY news, 'one'")
            with trio.fail_after(5):
                async with aclosing(connection.notifies()) as news:
                    assert (await anext(news)).payload == "one"
            with trio.move_on_after(0.05) as scope:
                async for _ in connection.notifies():
                    pytest.fail("nobody sent that")
            assert scope.cancelled_caught
            assert await connection.fetch_value("SELECT 1") == 1
        await pool.execute("NOTIFY news, 'two'")
        async with pool.lease() as connection:
            assert [n async for n in connection.notifies(timeout=0.02)] == []


# Other people's code


async def test_aiosql_and_type_info_work_with_a_leased_connection(
    postgres: Postgres,
) -> None:
    queries: Any = aiosql.from_str(
        "-- name: add(a, b)$\nSELECT CAST(:a AS int) + CAST(:b AS int);\n", "apsycopg"
    )
    async with open_pool(postgres.url, max_size=1) as pool:
        await pool.execute("DROP TYPE IF EXISTS mood")
        await pool.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
        async with pool.lease() as connection:
            info = await TypeInfo.fetch(connection, "mood")
            assert info is not None
            assert info.name == "mood"
            info.register(connection)
            assert await queries.add(connection, a=2, b=3) == 5


# Many machines


@pytest.mark.slow
async def test_reads_spread_writes_find_the_primary_and_a_promotion_is_survived() -> (
    None
):
    with (
        private_folder() as folder,
        running(folder) as primary,
        replicating(primary, folder) as replica,
    ):
        both = (
            f"host=127.0.0.1,127.0.0.1 port={primary.port},{replica.port} "
            "user=tester dbname=postgres connect_timeout=2"
        )
        where = "SELECT pg_is_in_recovery()"
        async with open_pool(f"{both} load_balance_hosts=random", max_size=16) as pool:
            seen = set()

            async def read() -> None:
                async with pool.lease() as connection:
                    seen.add(await connection.fetch_value(where))
                    await trio.sleep(0.1)

            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(read)
            assert seen == {True, False}
        async with open_pool(f"{both} target_session_attrs=prefer-standby") as pool:
            assert await pool.fetch_value(where) is True
        await fail_over(primary, replica, f"{both} target_session_attrs=read-write")


async def fail_over(primary: Postgres, replica: Postgres, conninfo: str) -> None:
    confirmed: list[int] = []
    async with open_pool(
        conninfo, max_size=4, create_attempts=20, create_backoff=0.05
    ) as pool:
        await pool.execute("CREATE TABLE done (x int PRIMARY KEY)")
        # Nothing that was confirmed may be lost: the replica has to have it first.
        await pool.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await pool.execute("SELECT pg_reload_conf()")
        recovered = trio.Event()
        is_over = False

        async def write(start: int) -> None:
            for number in range(start, 1_000_000, 4):
                if recovered.is_set():
                    return
                try:
                    async with pool.lease() as connection:
                        await connection.execute(
                            "INSERT INTO done VALUES (%s)", (number,)
                        )
                except (psycopg.Error, ConnectError):
                    continue
                confirmed.append(number)
                if is_over:
                    recovered.set()

        async with trio.open_nursery() as nursery:
            for start in range(4):
                nursery.start_soon(write, start)
            await trio.sleep(0.5)
            before = len(confirmed)
            assert before > 10
            await trio.to_thread.run_sync(primary.stop)
            await trio.to_thread.run_sync(replica.promote)
            is_over = True
            with trio.fail_after(5):
                await recovered.wait()
        rows = await pool.fetch_all("SELECT x FROM done")
        assert {x for (x,) in rows} >= set(confirmed)
        assert await pool.fetch_value("SELECT pg_is_in_recovery()") is False
        await assert_at_rest(pool)


async def test_pgbouncer_in_transaction_mode(postgres: Postgres) -> None:
    async def after_connect(connection: Any) -> None:
        connection.prepare_threshold = None

    with private_folder() as folder, bouncing(postgres, folder) as url:
        async with open_pool(url, max_size=6, after_connect=after_connect) as pool:
            await pool.execute("DROP TABLE IF EXISTS b")
            await pool.execute("CREATE TABLE b (x int)")

            async def add(pool: Pool[Any], number: int) -> None:
                async with pool.lease() as connection, connection.transaction():
                    await connection.execute("INSERT INTO b VALUES (%s)", (number,))
                    await trio.sleep(0.001)

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(add, pool, number)
            assert await pool.fetch_value("SELECT count(DISTINCT x) FROM b") == 60
            async with pool.lease() as connection:
                with trio.move_on_after(0.1):
                    await connection.execute("SELECT pg_sleep(60)")
                assert await connection.fetch_value("SELECT 1") == 1
            assert pool.config.wait_timeout == math.inf
