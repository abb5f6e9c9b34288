"""An `executemany` of an INSERT stores what `execute` stores, row by row, and faster."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from psycopg.types.json import Json

from trio_hyperpool._hyper import HyperConnection
from trio_hyperpool._inserts import Batch, Place, read_insert

Connection = HyperConnection[tuple[Any, ...]]


# Which INSERTs are joined


@pytest.mark.parametrize(
    ("query", "places"),
    [
        (b"insert into t values (%s)", [Place.COLUMN]),
        (b'INSERT INTO "a b".t (a, "b") VALUES ( %s,%s ) ; -- x', [Place.COLUMN] * 2),
        (b"/* x */ insert /* ( */ into t values (1) /* y */;;", []),
        (b"insert into t values (%(a)s, %(b)s)", [Place.COLUMN] * 2),
        (b"insert into t values (%s::date, 1)", [Place.CAST]),
        (b"insert into t values (%s::numeric(5, 2)[])", [Place.CAST]),
        (b"insert into t values (%s::numeric(%s, 2))", [Place.EXPRESSION] * 2),
        (b"insert into t values (%s + 1, (%s))", [Place.EXPRESSION] * 2),
        (b"insert into t values (5 %% 2, upper(%s), ',')", [Place.EXPRESSION]),
        (b"insert into t values (array[%s, %s], %s)", None),
        (b"insert into t values ('a)b', now(), $$)$$, \"c)\", %s)", [Place.COLUMN]),
        (b"insert into t values ()", []),
    ],
)
def test_an_insert_of_one_row_is_cut_around_it(
    query: bytes, places: Sequence[Place] | None
) -> None:
    insert = read_insert(query)
    assert insert is not None
    if places is None:
        places = [Place.EXPRESSION, Place.EXPRESSION, Place.COLUMN]
    assert list(insert.places) == places
    chunks = insert.row.chunks
    assert chunks[0].startswith(b"(")
    assert chunks[-1].endswith(b")")
    whole = insert.head + b"%s".join(chunks) + insert.tail
    assert whole == query.replace(b"%%", b"%").replace(b"%(a)s", b"%s").replace(
        b"%(b)s", b"%s"
    )


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"select %s",
        b"update t set a = %s",
        b"insert into t select %s",
        b"insert into t select * from (values (%s)) as v",
        b"insert into t select 1 union values (%s)",
        b"insert into t values (%s), (%s)",
        b"insert into t values (1), (%s)",
        b"insert into t values (%s) returning a",
        b"insert into t values (%s) on conflict do nothing",
        b"insert into t as x values (%s)",
        b"insert into t(a) overriding system value values (%s)",
        b"insert into %s values (1)",
        b"insert into t values ((select max(a) from t) + %s)",
        b"insert into t values ((table t), %s)",
        b"insert into t default values",
        b"insert into t values (%s",
        b"with x as (select 1) insert into t values (%s)",
        b"insert into t values [%s]",
        b"values (%s)",
        b"explain insert into t values (%s)",
    ],
)
def test_all_else_goes_as_it_is(query: bytes) -> None:
    assert read_insert(query) is None


@pytest.mark.parametrize(
    "query",
    [
        b"insert into t values ('%s')",
        b"insert into t values (/* %s */ 1)",
        b"insert into t values (E%s)",
        b"insert into t values (1) -- %s",
        b'insert into "%s" values (1)',
        b"insert into t values (%s %s)",
        b"insert into t values ($1, %s)",
        b"insert into t values (%s, 'open)",
    ],
)
def test_a_placeholder_where_no_literal_may_stand_is_refused(query: bytes) -> None:
    with pytest.raises(psycopg.ProgrammingError):
        read_insert(query)


_PIECES = ["%s", "%%", "(", ")", ",", "'", '"', "--", "\n", ";", "$$", "/*", "*/", "E"]


@given(st.lists(st.sampled_from(_PIECES), max_size=9).map(" ".join))
def test_what_is_cut_says_the_same_as_what_was_written(row: str) -> None:
    query = f"insert into t values {row}".encode()
    try:
        insert = read_insert(query)
    except psycopg.ProgrammingError:
        return
    if insert is not None:
        parts = (insert.head, *insert.row.chunks, insert.tail)
        head, *chunks, tail = (part.replace(b"%", b"%%") for part in parts)
        assert head + b"%s".join(chunks) + tail == query


# Which rows share a statement


def statements(rows: Sequence[Sequence[bytes]], row: bytes = b"(%s)") -> list[bytes]:
    insert = read_insert(b"insert into t values " + row)
    assert insert is not None
    texts = []
    batch = Batch(insert)
    for literals in rows:
        if not batch.add(literals):
            texts.append(batch.text())
            batch = Batch(insert)
            assert batch.add(literals)
    return [
        text.removeprefix(b"insert into t values ") for text in (*texts, batch.text())
    ]


@pytest.mark.parametrize(
    ("literals", "expected"),
    [
        (["1", "(-2)", "'5'::bigint"], "(1), ((-2)), ('5'::bigint)"),
        (["NULL", "1", "NULL"], "(NULL::int), (1), (NULL::int)"),
        (["NULL", "NULL"], "(NULL), (NULL)"),
        (["true", "NULL"], "(true), (NULL::bool)"),
        (["'a'", "NULL", r"E'\\'"], r"('a'), (NULL::text), (E'\\')"),
        (["'a''b'", "''"], "('a''b'), ('')"),
        (["' [1]'", "'[]'"], "(' [1]'), ('[]')"),
        (
            ["NULL", "'1.5'::numeric(2,1)", "'12.5'::numeric(3,1)"],
            "(NULL::numeric(2,1)), ('1.5'::numeric(2,1)), ('12.5'::numeric(3,1))",
        ),
        (["now()", "now()"], "(now()), (now())"),
    ],
)
def test_rows_of_one_type_share_a_statement(literals: list[str], expected: str) -> None:
    rows = [[literal.encode()] for literal in literals]
    assert statements(rows) == [expected.encode()]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "true"),
        ("1", "'1'"),
        ("1", "'1'::double precision"),
        ("'1'::bigint", "'1'::numeric(38,0)"),
        ("'1.5'::numeric(2,1)", "'1.55'::numeric(3,2)"),
        ("'1.5'::numeric(18,1)", "'1.5'::numeric(19,1)"),
        ("'[1.5]'::numeric(2,1)[]", "'1.5'::numeric(2,1)"),
        ("'2020-01-01'::date", "'2020-01-01'::timestamp"),
        ("'2020-01-01'", "'2020-01-01'::date"),
        ("'[]'", "'a'"),
        ("'[]'", "NULL"),
        ("'[]'", "'[1]'::int[]"),
        ("now()", "random()"),
        ("now()", "NULL"),
        (r"E'\n'", "NULL"),
        ("'a' || 'b'", "'c'"),
    ],
)
def test_rows_of_other_types_begin_another_statement(one: str, other: str) -> None:
    a, b = one.encode(), other.encode()
    for rows in ([[a], [b]], [[b], [a]]):
        assert statements(rows) == [b"(%b)" % row[0] for row in rows]


def test_before_a_cast_only_literals_of_the_very_same_type_share_a_statement() -> None:
    row = b"(%s::text)"
    assert len(statements([[b"1"], [b"NULL"], [b"2"]], row)) == 1
    assert len(statements([[b"1"], [b"'2'::bigint"]], row)) == 2
    wider = [[b"'1.5'::numeric(2,1)"], [b"'12.5'::numeric(3,1)"]]
    assert len(statements(wider, row)) == 2


def test_within_an_expression_only_the_same_literals_share_a_statement() -> None:
    # The server makes of coalesce(5, 1.5) an integer, and of coalesce(NULL, 1.5) none.
    row = b"(coalesce(%s, 1.5))"
    assert len(statements([[b"5"], [b"5"]], row)) == 1
    assert len(statements([[b"5"], [b"6"]], row)) == 2
    assert len(statements([[b"5"], [b"NULL"]], row)) == 2
    assert len(statements([[b"NULL"], [b"NULL"]], row)) == 1


def test_a_statement_is_bounded_by_its_literals_and_by_its_bytes() -> None:
    rows = [[b"1", b"2"]] * 1_001
    assert [text.count(b"(") for text in statements(rows, b"(%s, %s)")] == [500, 500, 1]
    assert len(statements([[]] * 1_001, b"(1)")) == 2
    long = [[b"'%b'" % (b"x" * 50_000)]] * 5
    assert [text.count(b"(") for text in statements(long)] == [2, 2, 1]
    longer = [[b"'%b'" % (b"x" * 500_000)]] * 2
    assert len(statements(longer)) == 2


# What is stored


class Column(NamedTuple):
    type: str
    item: str
    values: tuple[Any, ...]


ITEMS = [
    *("%s",) * 60,
    *("%s::text", "%s::double precision", "%s::numeric(20,3)", "%s::date", "%s::int[]"),
    *("coalesce(%s, 1.5)", "upper(%s)", "(%s)", "%s || 'x'", "-%s", "%s IS NULL"),
    *("CASE WHEN %s IS NULL THEN 1.25 ELSE 2 END", "'a)b'", "NULL", "5", "DEFAULT"),
]
NUMBERS = st.one_of(
    st.sampled_from([1, -2, 300, 2**40, 2**53 + 1, 10**30, True, False]),
    st.sampled_from([1.5, -0.1, 1e15, 0.1 + 0.2, float("nan"), float("inf")]),
    st.sampled_from(["5", "1.5", "-7", "2e3", "9007199254740993", "NaN", "t", "1.125"]),
    st.integers(-200, 200),
    st.integers(-(2**63), 2**63 - 1),
    st.decimals(-99, 99, places=1),
    st.decimals(-99, 99, places=2),
    st.decimals(-(10**7), 10**7, places=2),
    st.decimals(-(10**18), 10**18, places=2),
    st.decimals(-9, 9, places=5),
    st.decimals(-1, 1, places=38),
)
TIMES = st.one_of(
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(dt.datetime(2, 1, 1), timezones=st.just(dt.UTC)),
    st.timedeltas(dt.timedelta(days=-(10**6)), dt.timedelta(days=10**6)),
    st.sampled_from(
        ["2020-01-01", "2020-01-01 12:00:00.5", "2020-01-01 12:00:00+05:30"]
    ),
    st.sampled_from(["12:30", "1 day", "2 hours"]),
)
LISTS = st.one_of(
    st.lists(st.none() | st.integers(-9, 9), max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.decimals(-99, 99, places=1), max_size=3),
    st.lists(st.decimals(-9, 9, places=2), max_size=3),
    st.lists(st.none() | st.floats(), max_size=3),
    st.lists(st.none() | st.text("a,", max_size=2), max_size=3),
    st.sampled_from(["[1]", "[1.5,NULL]", '["a"]', " []"]),
)
TEXTS = st.text("ab1 [\\'%", max_size=6)
BYTES = st.binary(max_size=4) | st.just(r"\x00ff")
UUIDS = st.uuids() | st.uuids().map(str)
DOCUMENTS = st.one_of(
    st.builds(Json, st.sampled_from([None, 1, [1], {"a": "'"}])),
    st.sampled_from(["5", "[1]", '{"a": 1}', "null"]),
)
PLACES = st.just("POINT(1 2)")
VALUES = st.one_of(NUMBERS, TIMES, LISTS, TEXTS, BYTES, UUIDS, DOCUMENTS, PLACES)
# What may go into each type. The others are refused, one by one and together.
FITTING = {
    **dict.fromkeys(("smallint", "int", "bigint", "oid", "real", "bool"), NUMBERS),
    **dict.fromkeys(("double precision", "numeric(10,2)", "numeric(18,6)"), NUMBERS),
    **dict.fromkeys(("numeric(38,0)", "numeric(38,10)"), NUMBERS),
    **dict.fromkeys(("date", "time", "timestamp", "timestamptz", "interval"), TIMES),
    **dict.fromkeys(("int[]", "bigint[]", "text[]"), LISTS),
    **dict.fromkeys(("numeric(10,2)[]", "double precision[]"), LISTS),
    **dict.fromkeys(("text", "varchar(5)", "char(5)"), VALUES),
    "char(1)": TEXTS,
    "bytea": BYTES,
    "uuid": UUIDS,
    "json": DOCUMENTS,
    "geography": PLACES,
}


@st.composite
def inserts(draw: st.DrawFn) -> tuple[list[Column], list[list[Any]]]:
    """Columns, and rows of them: few values for each, so that they come again."""
    columns = []
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from([*FITTING]))
        values = st.one_of(FITTING[kind], FITTING[kind], st.none(), VALUES)
        columns.append(
            Column(
                kind,
                draw(st.sampled_from(ITEMS)),
                tuple(draw(st.lists(values, min_size=1, max_size=4))),
            )
        )
    chosen = [column for column in columns if "%s" in column.item]
    row = st.tuples(*(st.sampled_from(column.values) for column in chosen)).map(list)
    return columns, draw(st.lists(row, min_size=2, max_size=9))


class Table:
    """A table of such columns, and what an INSERT makes of rows."""

    def __init__(self, conn: Connection, columns: Sequence[Column]) -> None:
        self.conn = conn
        self.columns = [f"c{i} {column.type}" for i, column in enumerate(columns)]
        # What Python cannot hold is there all the same.
        self.read = [
            f"c{i}" if "[" in column.type else f"c{i}::text"
            for i, column in enumerate(columns)
        ]
        items = ", ".join(column.item for column in columns)
        self.insert = f"INSERT INTO t VALUES (%s, {items})"

    async def clear(self) -> None:
        await self.conn.execute("DROP TABLE IF EXISTS t")
        definition = ", ".join(["number int", *self.columns])
        await self.conn.execute(f"CREATE TEMP TABLE t ({definition})")

    async def stored(self) -> list[str]:
        query = f"SELECT number, {', '.join(self.read)} FROM t ORDER BY number"
        return [repr(row) for row in await self.conn.fetch_all(query)]

    async def one_by_one(self, rows: list[list[Any]]) -> list[list[Any]]:
        """Insert each row by itself, and say which could be."""
        await self.clear()
        possible = []
        for row in rows:
            with suppress(psycopg.Error):
                await self.conn.execute(self.insert, row)
                possible.append(row)
        return possible

    async def together(self, rows: list[list[Any]]) -> int:
        await self.clear()
        cursor = self.conn.cursor()
        await cursor.executemany(self.insert, rows)
        return cursor.rowcount


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(inserts())
@example(([Column("bigint", "%s", ())], [[2**53 + 1], [1.5], [None]]))
@example(([Column("text", "%s", ())], [[Decimal("1.50")], [Decimal("12.345")]]))
@example(([Column("text", "%s", ())], [[None], [5], [2**40], [True], ["a"], [None]]))
@example(([Column("json", "%s", ())], [["[1]"], [None], ["1"], [None]]))
@example(([Column("text[]", "%s", ())], [["[1]"], [None], [[]], [["a"]], [None]]))
@example(([Column("double precision", "%s", ())], [[10**37], [Decimal("1E-38")]]))
@example(([Column("time", "%s", ())], [[dt.date.min], [dt.datetime.min]]))
@example(([Column("text", "coalesce(%s, 1.5)", ())], [[5], [None], [5]]))
@example(([Column("int", "%s", ())], [[1], [2], ["x"], [3]]))
async def test_what_executemany_stores_is_what_row_by_row_is_stored(
    hyperd: Any, insert: tuple[list[Column], list[list[Any]]]
) -> None:
    columns, rows = insert
    rows = [[number, *row] for number, row in enumerate(rows)]
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        table = Table(conn, columns)
        possible = await table.one_by_one(rows)
        expected = await table.stored()
        assert await table.together(possible) == len(possible)
        assert await table.stored() == expected
        if len(possible) < len(rows):
            with pytest.raises(psycopg.Error):
                await table.together(rows)
            # A statement is all or nothing; those before it stay.
            got = await table.stored()
            assert got == expected[: len(got)]
            assert len(got) <= next(
                i for i, row in enumerate(rows) if row not in possible
            )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["'", "\\", '"', "$$", "--", "/*", "*/", "%s", "%", "), (", ";", "\n", "E'"]
        ),
        max_size=9,
    ).map("".join)
)
async def test_no_text_breaks_out_of_its_row(hyperd: Any, value: str) -> None:
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        await conn.execute("CREATE TEMP TABLE t (a text, b text)")
        rows = [(value, None), (None, value), ("x" + value, value + "x")]
        await conn.cursor().executemany("INSERT INTO t VALUES (%s, %s)", rows)
        assert await conn.fetch_all("SELECT * FROM t") == rows
