"""What is sent to Hyper, by which protocol, and what is refused before."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import pq, sql

from trio_hyperpool._cursors import HyperServerBindingCursor
from trio_hyperpool._hyper import HyperConnection

Connection = HyperConnection[tuple[Any, ...]]


@pytest.fixture
async def conn(hyperd: Any) -> AsyncGenerator[Connection]:
    connection = await HyperConnection.connect(**hyperd.conninfo, dbname="")
    yield connection
    await connection.close()


@contextmanager
def refused_unsent(
    conn: Connection,
    error: type[Exception] = psycopg.NotSupportedError,
    match: str | None = None,
) -> Iterator[None]:
    """Something is refused, and not a byte of it is sent."""
    sent: list[object] = []
    wait = conn.wait

    async def listening(gen: Any, *args: Any, **kwargs: Any) -> Any:
        def spy() -> Any:
            want = None
            try:
                want = gen.send(None)
                while True:
                    sent.append(want)
                    want = gen.send((yield want))
            except StopIteration as done:
                return done.value

        spying = spy()
        spying.__name__ = gen.__name__  # the driver goes by it
        return await wait(spying, *args, **kwargs)

    conn.wait = listening  # type: ignore[method-assign]
    try:
        with pytest.raises(error, match=match):
            yield
    finally:
        del conn.wait
    assert not sent


async def test_limit_in_values_lists_and_null_work(conn: Connection) -> None:
    assert await conn.fetch_all(
        "SELECT a FROM generate_series(1, 9) t(a) LIMIT %s", [2]
    )
    assert await conn.fetch_all("VALUES (%s), (%s)", [1, 2]) == [(1,), (2,)]
    assert await conn.fetch_all("SELECT 1 WHERE %s IN (%s, %s)", [1, 2, 1]) == [(1,)]
    assert await conn.fetch_all("SELECT 1 WHERE 2 = ANY(%s)", [[1, 2]]) == [(1,)]
    assert await conn.fetch_value("SELECT coalesce(%s, %s)", [None, 5]) == 5
    assert await conn.fetch_value("SELECT -%s", [-5]) == 5
    assert await conn.fetch_value("SELECT %s::text", [-5]) == "-5"
    assert await conn.fetch_value("SELECT %s / 7", [1.5]) == 1.5 / 7


async def test_a_query_without_parameters_is_sent_as_it_is(conn: Connection) -> None:
    assert await conn.fetch_all("SELECT 5 % 3, '%s'") == [(2, "%s")]


async def test_a_nul_in_a_query_is_refused(conn: Connection) -> None:
    with refused_unsent(conn, psycopg.DataError):
        await conn.execute("SELECT 1\0 this would not be sent")


async def test_percent_signs_in_composed_literals_and_names_are_theirs(
    conn: Connection,
) -> None:
    query = sql.SQL("SELECT {}, {}, %s AS {}, {}").format(
        "100%%", "%s", sql.Identifier("%%"), sql.Placeholder()
    )
    cursor = await conn.execute(query, [1, 2])
    assert await cursor.fetchone() == ("100%%", "%s", 1, 2)
    assert cursor.description is not None
    assert cursor.description[2].name == "%%"
    plain = sql.SQL("SELECT {}").format("100%%")
    assert await conn.fetch_value(plain) == "100%%"


async def test_executemany_binds_every_set(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b numeric(10,2), c text)")
    rows = [(n, Decimal(n) / 4, "x" * n) for n in range(20)]
    cursor = conn.cursor()
    await cursor.executemany("INSERT INTO t VALUES (%s, %s, %s)", rows)
    assert cursor.rowcount == 20
    assert await conn.fetch_all("SELECT * FROM t ORDER BY a") == rows
    long = "y" * 1_100_000
    await cursor.executemany("INSERT INTO t VALUES (1, 1, %s)", [["s"], [long], ["s"]])
    assert await conn.fetch_all("SELECT c FROM t WHERE c = %s", [long]) == [(long,)]
    await cursor.executemany("SELECT %s", [[1], ["a"]], returning=True)
    assert await cursor.fetchone() == (1,)
    assert cursor.nextset()
    assert await cursor.fetchone() == ("a",)


async def test_mogrify_gives_the_text_that_is_sent(  # noqa: ASYNC124
    conn: Connection,
) -> None:
    cursor: Any = conn.cursor()
    assert cursor.mogrify("SELECT %s, %s", [Decimal("1.5"), "a'\\"]) == (
        "SELECT '1.5'::numeric(2,1), E'a''\\\\'"
    )
    with pytest.raises(psycopg.NotSupportedError):
        cursor.mogrify("SELECT %s", ["x" * 2_000_000])


async def test_a_connection_that_is_to_prepare_is_refused_before_it_opens(
    hyperd: Any,
) -> None:
    with pytest.raises(psycopg.NotSupportedError, match="stale"):
        await HyperConnection.connect(**hyperd.conninfo, prepare_threshold=5)


async def test_preparing_is_refused(conn: Connection) -> None:
    assert conn.prepare_threshold is None
    with refused_unsent(conn, match="stale"):
        await conn.execute("SELECT 1", prepare=True)
    with refused_unsent(conn, match="stale"):
        await conn.cursor().execute("SELECT 1", prepare=True)
    with pytest.raises(psycopg.NotSupportedError):
        conn.prepare_threshold = 5
    await conn.execute("SELECT 1", prepare=False)
    conn.cursor_factory = HyperServerBindingCursor
    for _ in range(10):
        await conn.execute("SELECT %s", [1])
    await conn.execute("CREATE TEMP TABLE t (a int)")
    for _ in range(10):
        await conn.execute("DROP TABLE IF EXISTS t")
        await conn.execute("CREATE TEMP TABLE t (a int)")


@pytest.mark.parametrize("verb", ["FETCH", "MOVE", "EXECUTE", "VALUES (1), "])
async def test_what_harms_by_the_extended_protocol_is_refused_unsent(
    conn: Connection, verb: str
) -> None:
    query = f"/* x */ {verb} (2)"
    with refused_unsent(conn):
        await conn.execute(query, binary=True)
    with refused_unsent(conn):
        await conn.cursor(binary=True).execute(query)
    with refused_unsent(conn):
        async for _ in conn.cursor().stream(query):
            pass
    with refused_unsent(conn):
        await conn.execute(f"{query} %s", ["x" * 1_100_000])
    with refused_unsent(conn):
        await HyperServerBindingCursor(conn).execute(f"{query} %s", [1])
    async with conn.pipeline():
        with pytest.raises(psycopg.NotSupportedError):
            await conn.execute(query)
    assert await conn.fetch_value("SELECT 1") == 1


async def test_fetch_works_by_the_simple_protocol(conn: Connection) -> None:
    await conn.execute("DECLARE c CURSOR WITH HOLD FOR SELECT %s", ["x"])
    assert await conn.fetch_all("FETCH ALL FROM c") == [("x",)]


@pytest.mark.parametrize("binary", [False, True])
async def test_named_cursors_take_parameters_and_iterate(
    conn: Connection, binary: bool
) -> None:
    async with conn.transaction():
        async with conn.cursor('it\'s "a" name', binary=binary) as cursor:
            cursor.itersize = 7
            await cursor.execute(
                "SELECT a, %s, %s FROM generate_series(1, 20) t(a) ORDER BY a",
                [Decimal("1.50"), "%'\\"],
                binary=binary,
            )
            assert await cursor.fetchone() == (1, Decimal("1.50"), "%'\\")
            assert len(await cursor.fetchmany(4)) == 4
            assert [row[0] async for row in cursor] == list(range(6, 21))
        async with conn.cursor("another") as cursor:
            with refused_unsent(conn):
                await cursor.execute("SELECT %s", ["x" * 1_100_000])
    assert await conn.fetch_value("SELECT 1") == 1


async def test_a_named_cursor_is_refused_in_a_pipeline_that_came_later(
    conn: Connection,
) -> None:
    async with conn.cursor("c", withhold=True, scrollable=True) as cursor:
        await cursor.execute("SELECT a FROM generate_series(1, 9) t(a)")
        async with conn.pipeline():
            for operation in (
                cursor.fetchone,
                cursor.fetchall,
                lambda: cursor.scroll(1),
            ):
                with pytest.raises(psycopg.NotSupportedError, match="pipeline"):
                    await operation()
        assert len(await cursor.fetchall()) == 9


async def test_a_named_cursor_scrolls(conn: Connection) -> None:
    async with conn.cursor("c", withhold=True, scrollable=True) as cursor:
        await cursor.execute("SELECT a FROM generate_series(1, 9) t(a)")
        await cursor.scroll(2)
        assert await cursor.fetchone() == (3,)
        await cursor.scroll(4)
        assert await cursor.fetchall() == [(8,), (9,)]


needs_libpq_17 = pytest.mark.skipif(
    pq.version() < 170000, reason="chunks need libpq 17"
)


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=needs_libpq_17)])
@pytest.mark.parametrize("binary", [False, True])
async def test_streams_give_every_row(
    conn: Connection, size: int, binary: bool
) -> None:
    query = "SELECT a, a / 10.0::double precision, %s FROM generate_series(1, 10) t(a)"
    stream = conn.cursor().stream(query, ["x"], binary=binary, size=size)
    rows = [row async for row in stream]
    assert sorted(rows) == [(n, n / 10, "x") for n in range(1, 11)]


async def test_binary_results_are_read_as_binary_in_pipelines_too(
    conn: Connection,
) -> None:
    async with conn.pipeline():
        cursors = [
            await conn.execute("SELECT %s, %s", [n, n / 3], binary=bool(n % 2))
            for n in range(6)
        ]
        assert [await c.fetchone() for c in cursors] == [(n, n / 3) for n in range(6)]
    cursor = conn.cursor(binary=True)
    await cursor.executemany("SELECT %s", [[1.5], [[1, 2]]], returning=True)
    assert await cursor.fetchone() == (1.5,)
    assert cursor.nextset()
    assert await cursor.fetchone() == ([1, 2],)


async def test_copy_goes_in_and_out_as_text(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b text, c numeric(5,2), d bytea)")
    rows = [(1, "a\t\\\n'", Decimal("1.50"), b"\0\\"), (2, None, None, None)]
    cursor = conn.cursor()
    async with cursor.copy("COPY t FROM STDIN WITH (FORMAT TEXT)") as copy:
        for row in rows:
            await copy.write_row(row)
    assert await conn.fetch_all("SELECT * FROM t ORDER BY a") == rows
    out = "COPY (SELECT b FROM t WHERE b = %s) TO STDOUT WITH (FORMAT TEXT)"
    async with cursor.copy(out, ["a\t\\\n'"]) as copy:
        assert [row async for row in copy.rows()] == [("a\t\\\n'",)]


async def test_a_copy_without_a_format_is_refused_in_words(conn: Connection) -> None:
    for query in ("COPY t FROM STDIN", "COPY (SELECT 1) TO STDOUT"):
        with refused_unsent(conn, psycopg.ProgrammingError, "FORMAT TEXT"):
            async with conn.cursor().copy(query):
                pass
    with refused_unsent(conn):
        async with conn.cursor().copy(
            "COPY (SELECT %s) TO STDOUT WITH (FORMAT TEXT)", ["x" * 1_100_000]
        ):
            pass
    async with conn.pipeline():
        with pytest.raises(psycopg.NotSupportedError):
            async with conn.cursor().copy("COPY t FROM STDIN WITH (FORMAT TEXT)"):
                pass


async def test_a_transaction_within_another_is_refused_unsent(conn: Connection) -> None:
    async with conn.transaction():
        with refused_unsent(conn, match="savepoints"):
            async with conn.transaction():
                pass
        assert await conn.fetch_value("SELECT 1") == 1
    assert conn.info.transaction_status == pq.TransactionStatus.IDLE
    with refused_unsent(conn, match="savepoints"):
        async with conn.transaction("name"):
            pass
    await conn.execute("BEGIN")
    with refused_unsent(conn, match="savepoints"):
        async with conn.transaction():
            pass
    await conn.rollback()
    async with conn.transaction(force_rollback=True):
        await conn.execute("SELECT 1")


async def test_a_transaction_within_another_is_refused_in_pipelines_too(
    conn: Connection,
) -> None:
    async with conn.pipeline(), conn.transaction():
        with pytest.raises(psycopg.NotSupportedError):
            async with conn.transaction():
                pass
        cursor = await conn.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)
    async with conn.pipeline():
        await conn.execute("BEGIN")
        with pytest.raises(psycopg.NotSupportedError):
            async with conn.transaction():
                pass
        await conn.execute("ROLLBACK")
    async with conn.pipeline(), conn.transaction():
        await conn.execute("SELECT 1")
    assert conn.info.transaction_status == pq.TransactionStatus.IDLE


async def test_without_autocommit_a_transaction_block_comes_first_or_is_refused(
    conn: Connection,
) -> None:
    await conn.set_autocommit(False)
    async with conn.transaction():
        await conn.execute("SELECT 1")
    await conn.execute("SELECT 1")
    with refused_unsent(conn, match="autocommit"):
        async with conn.transaction():
            pass
    await conn.rollback()


async def test_a_read_only_transaction_is_refused_as_it_would_write(
    conn: Connection,
) -> None:
    with pytest.raises(psycopg.NotSupportedError):
        await conn.set_read_only(True)
    await conn.set_read_only(None)


async def test_every_session_has_an_id(conn: Connection, hyperd: Any) -> None:
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as other:
        assert conn.session_id
        assert conn.session_id != other.session_id


async def test_adapters_are_shared_until_changed(conn: Connection, hyperd: Any) -> None:
    class Upper(psycopg.adapt.Dumper):
        def dump(self, obj: str) -> bytes:
            return obj.upper().encode()

    conn.adapters.register_dumper(str, Upper)
    assert await conn.fetch_value("SELECT %s", ["a"]) == "A"
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as other:
        assert await other.fetch_value("SELECT %s", ["a"]) == "a"
