"""How an `executemany` of an INSERT goes to Hyper: in statements of many rows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest
import trio
from psycopg import sql

from trio_hyperpool._cursors import HyperCursor, HyperServerBindingCursor
from trio_hyperpool._hyper import HyperConnection

Connection = HyperConnection[tuple[Any, ...]]


class NotingCursor(HyperCursor[Any]):
    """Keeps what it sends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[str] = []

    def _execute_send(self, query: Any, **kwargs: Any) -> None:
        super()._execute_send(query, **kwargs)
        self.sent.append(query.query.decode())


@pytest.fixture
async def conn(hyperd: Any) -> AsyncGenerator[Connection]:
    connection = await HyperConnection.connect(**hyperd.conninfo, dbname="")
    connection.cursor_factory = NotingCursor
    yield connection
    await connection.close()


def noting(conn: Connection) -> NotingCursor:
    cursor = conn.cursor()
    assert isinstance(cursor, NotingCursor)
    return cursor


async def test_rows_are_joined_in_their_order_and_counted(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b text)")
    rows = [(n, f"text {n}") for n in range(1_234)]
    cursor = noting(conn)
    await cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
    assert cursor.rowcount == 1_234
    assert [text.count("'text ") for text in cursor.sent] == [500, 500, 234]
    assert await conn.fetch_all("SELECT * FROM t") == rows


async def test_a_row_of_other_types_begins_the_next_statement(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a numeric(38,10))")
    cursor = noting(conn)
    rows: list[list[Any]] = [[2**53 + 1], [None], [1.5], [None], [Decimal("0.5")], [3]]
    await cursor.executemany("INSERT INTO t VALUES (%s)", rows)
    assert [text.partition("VALUES ")[2] for text in cursor.sent] == [
        "('9007199254740993'::bigint), (NULL::bigint)",
        "('1.5'::double precision), (NULL::double precision)",
        "('0.5'::numeric(1,1))",
        "(3)",
    ]
    assert await conn.fetch_all("SELECT a FROM t") == [
        (None if value is None else Decimal(value),) for [value] in rows
    ]


async def test_none_and_one_row_are_as_before(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b text)")
    cursor = noting(conn)
    await cursor.executemany("INSERT INTO t VALUES (%s, %s)", [])
    assert cursor.rowcount == 0
    assert not cursor.sent
    await cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(1, None)])
    assert cursor.rowcount == 1
    assert cursor.sent == ["INSERT INTO t VALUES (1, NULL)"]
    await cursor.executemany("INSERT INTO t VALUES (2, 'b')", [(), {}, None])  # type: ignore[list-item]
    assert cursor.rowcount == 3
    assert cursor.sent[1:] == ["INSERT INTO t VALUES (2, 'b'), (2, 'b'), (2, 'b')"]


async def test_constants_expressions_names_and_compositions_work(
    conn: Connection,
) -> None:
    await conn.execute('CREATE TEMP TABLE t (a int, "b%" timestamptz, c text, d text)')
    cursor = noting(conn)
    query = """insert into t (a, "b%%", c, d) values (
        5 %% 3 /* ) */, now(), upper(%(c)s), 'a)b%%' -- %%
    ) ;"""
    await cursor.executemany(query, [{"c": c} for c in ("x", "x", None, "y%s")])
    assert len(cursor.sent) == 3
    composed = sql.SQL("INSERT INTO {} (a, c, d) VALUES (%s::int, {}, %s)").format(
        sql.Identifier("t"), sql.Literal("%s")
    )
    await cursor.executemany(composed, [["3", "%%"], [None, None]])
    assert len(cursor.sent) == 4
    assert cursor.rowcount == 2
    assert await conn.fetch_all("SELECT a, c, d FROM t") == [
        (2, "X", "a)b%"),
        (2, "X", "a)b%"),
        (2, None, "a)b%"),
        (2, "Y%S", "a)b%"),
        (3, "%s", "%%"),
        (None, "%s", None),
    ]


async def test_a_value_too_long_for_a_literal_goes_by_itself_bound_by_the_server(
    conn: Connection,
) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b bytea)")
    rows: list[Any] = [(n, b"b") for n in range(6)]
    rows[2] = (2, b"\0" * 1_000_001)
    rows[3] = (3, b"\0" * 999_999)
    cursor = noting(conn)
    await cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
    assert [text.count("), (") for text in cursor.sent] == [1, 0, 0, 1]
    assert cursor.sent[1:3] == [f"INSERT INTO t VALUES ({n}, $1)" for n in (2, 3)]
    assert await conn.fetch_all("SELECT a, b FROM t") == rows
    await cursor.executemany("INSERT INTO t VALUES (%s, %s)", [rows[2], rows[0]])
    assert cursor.rowcount == 2


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("INSERT INTO t VALUES (%s)", "\0"),
        ("INSERT INTO t VALUES ('%s')", "a"),
        ("INSERT INTO t VALUES (/* %s */ 1)", "a"),
        ("INSERT INTO t VALUES (E%s)", "a"),
        ("INSERT INTO t VALUES (%s, %s)", "a"),
        ("INSERT INTO t VALUES (%s, '\0')", "a"),
    ],
)
async def test_what_cannot_be_bound_is_refused_before_its_statement_is_sent(
    conn: Connection, query: str, value: str
) -> None:
    cursor = noting(conn)
    with pytest.raises((psycopg.DataError, psycopg.ProgrammingError)):
        await cursor.executemany(query, [["b"], [value]])
    assert not cursor.sent
    assert await conn.fetch_value("SELECT 1") == 1


async def test_a_statement_is_all_or_nothing_and_those_before_it_stay(
    conn: Connection,
) -> None:
    await conn.execute("CREATE TEMP TABLE t (a smallint)")
    insert = "INSERT INTO t VALUES (%s)"
    rows = [[n] for n in range(1_500)]
    rows[1_200] = [40_000]
    cursor = conn.cursor()
    for is_in_transaction, kept in ((False, 1_000), (True, 0)):
        await conn.execute("DELETE FROM t")
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            if is_in_transaction:
                async with conn.transaction():
                    await cursor.executemany(insert, rows)
            else:
                await cursor.executemany(insert, rows)
        assert await conn.fetch_value("SELECT count(*) FROM t") == kept
    with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
        await cursor.executemany("INSERT INTO nowhere VALUES (%s)", rows)


async def test_what_is_no_insert_of_one_row_goes_set_by_set(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int)")
    cursor = noting(conn)
    insert = "INSERT INTO t VALUES (%s) RETURNING a"
    await cursor.executemany(insert, [[1], [2]], returning=True)
    assert await cursor.fetchall() == [(1,)]
    await cursor.executemany("INSERT INTO t VALUES (%s)", [[1], [2]], returning=True)
    await cursor.executemany("INSERT INTO t VALUES (%s), (0)", [[1], [2]])
    assert cursor.rowcount == 4
    await cursor.executemany("UPDATE t SET a = %s WHERE a = %s", [[3, 1], [4, 2]])
    assert cursor.rowcount == 6
    assert len(cursor.sent) == 8


async def test_the_server_is_left_to_bind_row_by_row(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int)")
    sent = []

    class Cursor(HyperServerBindingCursor[Any]):
        def _execute_send(self, query: Any, **kwargs: Any) -> None:
            super()._execute_send(query, **kwargs)
            sent.append(query.query)

    cursor = Cursor(conn)
    await cursor.executemany("INSERT INTO t VALUES (%s)", [[1], [2]])
    assert cursor.rowcount == 2
    assert sent == [b"INSERT INTO t VALUES ($1)"] * 2


async def test_in_a_pipeline_rows_are_joined_too(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int)")
    async with conn.pipeline():
        cursor = noting(conn)
        await cursor.executemany("INSERT INTO t VALUES (%s)", [[1], [2], [None]])
        counting = await conn.execute("SELECT count(*) FROM t")
        assert await counting.fetchone() == (3,)
        assert len(cursor.sent) == 1
    assert cursor.rowcount == 3


async def test_without_pipelines_rows_are_joined_too(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.AsyncPipeline, "is_supported", lambda: False)
    await conn.execute("CREATE TEMP TABLE t (a int)")
    cursor = noting(conn)
    await cursor.executemany("INSERT INTO t VALUES (%s)", [[1], [2], [1.5]])
    assert cursor.rowcount == 3
    assert len(cursor.sent) == 2
    cursor = noting(conn)
    await cursor.executemany("SELECT %s", [[1], [2]], returning=True)
    assert len(cursor.sent) == 2


async def test_no_more_rows_are_asked_for_than_a_statement_holds(
    conn: Connection,
) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int)")
    cursor = noting(conn)

    def rows() -> Iterator[list[int]]:
        for n in range(5_000):
            assert n <= sum(text.count("(") for text in cursor.sent) + 1_000
            yield [n]

    await cursor.executemany("INSERT INTO t VALUES (%s)", rows())
    assert cursor.rowcount == 5_000
    assert len(cursor.sent) == 5


async def test_other_tasks_have_a_turn_between_statements(conn: Connection) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int, b text)")
    cursor = noting(conn)
    turns = set()

    async def others() -> None:
        while True:
            turns.add(len(cursor.sent))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        rows = ((n, f"text {n}") for n in range(10_000))
        await cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
        nursery.cancel_scope.cancel()
    assert len(turns) >= len(cursor.sent) // 4


@pytest.mark.parametrize("is_in_transaction", [False, True])
async def test_cancelled_between_statements_the_connection_is_usable(
    conn: Connection, is_in_transaction: bool
) -> None:
    await conn.execute("CREATE TEMP TABLE t (a int)")
    insert = "INSERT INTO t VALUES (%s)"
    with trio.move_on_after(0.1) as scope:
        if is_in_transaction:
            async with conn.transaction():
                await conn.cursor().executemany(insert, ([n] for n in count()))
        else:
            await conn.cursor().executemany(insert, ([n] for n in count()))
    assert scope.cancelled_caught
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    number = await conn.fetch_value("SELECT count(*) FROM t")
    assert number == 0 if is_in_transaction else number % 1_000 == 0
    await conn.cursor().executemany(insert, [[1], [2]])
    assert await conn.fetch_value("SELECT count(*) FROM t") == number + 2
