"""Tables to and from Arrow: exact, whole, and nobody kept waiting."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings, strategies as st
from psycopg import DataError, errors, sql

from trio_hyperpool import (
    Column,
    HyperConnection,
    Pool,
    TableName,
)

pa = pytest.importorskip("pyarrow")

from trio_hyperpool._arrow_messages import END, Messages  # noqa: E402
from trio_hyperpool._arrow_types import sql_type  # noqa: E402
from trio_hyperpool.arrow import fetch_arrow, insert_arrow, stream_arrow  # noqa: E402

pytestmark = pytest.mark.slow

HyperPool = Pool[HyperConnection[Any]]
MINUTES = "SELECT * FROM generate_series(1::bigint, 100000000000) s(x)"

# What a column is made of: its type in Arrow, its type in SQL, and values.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KINDS: dict[str, tuple[Any, str, st.SearchStrategy[Any]]] = {
    "boolean": (pa.bool_(), "boolean", st.booleans()),
    "smallint": (pa.int16(), "smallint", st.integers(-(2**15), 2**15 - 1)),
    "integer": (pa.int32(), "integer", st.integers(-(2**31), 2**31 - 1)),
    "bigint": (pa.int64(), "bigint", st.integers(-(2**63), 2**63 - 1)),
    "real": (pa.float32(), "real", st.floats(width=32, allow_nan=False)),
    "double": (pa.float64(), "double precision", st.floats(allow_nan=False)),
    "numeric": (
        pa.decimal128(38, 6),
        "numeric(38, 6)",
        st.decimals(-(10**31), 10**31, places=6),
    ),
    "text": (pa.string(), "text", texts),
    "bytes": (pa.binary(), "bytea", st.binary(max_size=20)),
    "date": (pa.date32(), "date", st.dates()),
    "time": (pa.time64("us"), "time", st.times()),
    "timestamp": (pa.timestamp("us"), "timestamp", st.datetimes()),
    "timestamptz": (
        pa.timestamp("us", "UTC"),
        "timestamptz",
        st.datetimes(timezones=st.just(dt.UTC)),
    ),
    "interval": (
        pa.month_day_nano_interval(),
        "interval",
        st.builds(
            lambda months, days, micros: pa.MonthDayNano([months, days, micros * 1000]),
            st.integers(-1000, 1000),
            st.integers(-1000, 1000),
            st.integers(-(10**12), 10**12),
        ),
    ),
}


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """A table of a few columns and rows, cut anywhere."""
    size = draw(st.integers(0, 12))
    names = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True))
    columns, fields = [], []
    for name in names:
        kind, _, values = KINDS[name]
        nullable = draw(st.booleans())
        one = st.none() | values if nullable else values
        some = draw(st.lists(one, min_size=size, max_size=size))
        columns.append(pa.array(some, kind))
        fields.append(pa.field(f"{name} %s\"'", kind, nullable=nullable))
    table = pa.table(columns, schema=pa.schema(fields))
    cut = draw(st.integers(0, size))
    return pa.concat_tables([table[:cut], table[cut:]])


@pytest.fixture
async def conn(hyper_pool: HyperPool) -> Any:
    async with hyper_pool.lease() as connection:
        yield connection


async def count(conn: Any, table: str) -> int:
    return int(await conn.fetch_value(f'SELECT count(*) FROM "{table}"'))


# Out and in


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(table=tables())
async def test_what_went_in_comes_out_equal(hyperd: Any, table: Any) -> None:
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        columns = [
            Column(field.name, KINDS[field.name.partition(" ")[0]][1], field.nullable)
            for field in table.schema
        ]
        await conn.create_table("t", columns, temporary=True)
        assert await insert_arrow(conn, "t", table) == table.num_rows
        assert await insert_arrow(conn, "t", table[:0]) == 0
        fetched = await fetch_arrow(conn, "SELECT * FROM t")
    assert fetched.schema == table.schema
    # A busy server gives batches back in another order.
    rows = [sorted(map(repr, each.to_pylist())) for each in (fetched, table)]
    assert rows[0] == rows[1]


async def test_every_type_comes_out_as_arrow_has_it(conn: Any) -> None:
    table = await fetch_arrow(
        conn,
        "SELECT 1::smallint a, 2 b, 3::bigint c, 4::oid d, 1.5::real e, 0.1 + 0.2 f, "
        "'x'::char(3) g, 'x'::varchar(3) h, '{}'::json i, DATE '2020-02-29' j, "
        "TIMESTAMPTZ '2020-01-01 02:00:00+02' k, ARRAY[DATE '2020-02-29', NULL] l, "
        "ARRAY[TIMESTAMPTZ '2020-01-01 02:00:00+02'] m, 'x'::bytea n, TRUE o",
    )
    utc = pa.timestamp("us", "UTC")
    assert table.schema.types[:-6] == [
        *(pa.int16(), pa.int32(), pa.int64(), pa.uint32(), pa.float32()),
        *(pa.decimal128(3, 1), pa.string(), pa.string(), pa.string()),
    ]
    assert table.schema.field("j").type == pa.date32()
    assert table.schema.field("k").type == utc
    assert table.schema.field("l").type.value_type == pa.date32()
    assert table.schema.field("m").type.value_type == utc
    [row] = table.to_pylist()
    then = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    assert row["f"] == Decimal("0.3")
    assert row["g"] == "x  "
    assert row["k"] == then
    assert row["l"] == [dt.date(2020, 2, 29), None]
    assert row["m"] == [then]


async def test_parameters_and_composed_queries_are_bound(conn: Any) -> None:
    queries: list[tuple[Any, Any]] = [
        ("SELECT %s::text AS x, 5 %% 3 AS y -- a comment", ("it's %s",)),
        (b"SELECT %(a)s::text AS x, 2 AS y", {"a": "it's %s"}),
        (sql.SQL("SELECT {} AS x, 5 % 3 AS y").format("it's %s"), None),
    ]
    for query, params in queries:
        table = await fetch_arrow(conn, query, params)
        assert table.to_pylist() == [{"x": "it's %s", "y": 2}]
    for word in ("VALUES (1)", "WITH t AS (SELECT 1) SELECT * FROM t"):
        assert (await fetch_arrow(conn, word)).num_rows == 1


async def test_a_result_without_rows_has_its_columns(conn: Any) -> None:
    table = await fetch_arrow(conn, "SELECT 1 AS x WHERE FALSE")
    assert (table.num_rows, table.schema.names) == (0, ["x"])


async def test_rows_come_in_order_and_whole_however_many(conn: Any) -> None:
    query = "SELECT x, repeat('x', x % 3000) t FROM generate_series(1, 50000) s(x)"
    table = await fetch_arrow(conn, f"{query} ORDER BY x DESC")
    assert table["x"].to_pylist() == list(range(50_000, 0, -1))
    assert all(
        len(t) == x % 3000 for x, t in zip(*table.to_pydict().values(), strict=True)
    )
    long = await fetch_arrow(conn, "SELECT repeat('x', 15000000) AS t")
    assert len(long["t"][0].as_py()) == 15_000_000


async def test_a_bad_query_raises_and_the_connection_is_usable(conn: Any) -> None:
    with pytest.raises(errors.UndefinedTable):
        await fetch_arrow(conn, "SELECT * FROM nothing")
    with pytest.raises(errors.FeatureNotSupported):
        await fetch_arrow(conn, "SELECT '9c5b94b1-35ad-49bb-b118-8e8fc24abf80'::uuid")
    with pytest.raises(errors.DivisionByZero):
        await fetch_arrow(
            conn, "SELECT 1 / (x - 9000) FROM generate_series(1, 9999) s(x)"
        )
    with pytest.raises(TypeError, match=r"str, bytes or psycopg\.sql object, not int"):
        await fetch_arrow(conn, 1)  # type: ignore[arg-type]
    assert await conn.fetch_value("SELECT 42") == 42


# Streaming


async def test_a_stream_gives_its_schema_then_its_batches(conn: Any) -> None:
    query = "SELECT x FROM generate_series(1, %s) s(x)"
    async with stream_arrow(conn, query, (30_000,)) as batches:
        assert batches.schema.names == ["x"]
        sizes = [batch.num_rows async for batch in batches]
        assert sum(sizes) == 30_000
        assert max(sizes) <= 10_240
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert await conn.fetch_value("SELECT 42") == 42


async def test_a_stream_left_early_is_stopped_on_the_server(conn: Any) -> None:
    async with stream_arrow(conn, MINUTES) as batches:
        first = await anext(batches)
        assert 0 < first.num_rows <= 10_240
    with trio.fail_after(5):
        assert await conn.fetch_value("SELECT 42") == 42
    with pytest.raises(psycopg.Error):
        await anext(batches)


@pytest.mark.parametrize("query", [MINUTES, f"{MINUTES} ORDER BY -x"])
async def test_a_cancelled_fetch_leaves_the_connection_usable(
    conn: Any, query: str
) -> None:
    with trio.move_on_after(0.2) as scope:
        if query is MINUTES:
            async with stream_arrow(conn, query) as batches:
                async for _ in batches:
                    pass
        else:
            await fetch_arrow(conn, query)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await conn.fetch_value("SELECT 42") == 42


async def test_the_server_waits_for_who_reads(conn: Any, hyperd: Any) -> None:
    def resident() -> int:
        status = Path(f"/proc/{hyperd.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell how much memory a process has")
    async with stream_arrow(conn, MINUTES) as batches:
        await anext(batches)
        before = resident()
        await trio.sleep(0.5)
        assert resident() - before < 64
        read = 0
        async for batch in batches:
            read += batch.num_rows
            if read > 2_000_000:
                break
        assert pa.total_allocated_bytes() < 64 * 2**20
        assert resident() - before < 64


@pytest.mark.slow
async def test_a_big_fetch_keeps_no_other_task_waiting(conn: Any) -> None:
    late = []

    async def tick() -> None:
        while True:
            due = trio.current_time() + 0.01
            await trio.sleep_until(due)
            late.append(trio.current_time() - due)

    query = "SELECT x, x::text t, x * 0.5::double precision d FROM generate_series(1, %s) s(x)"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        table = await fetch_arrow(conn, query, (3_000_000,))
        await insert_arrow(conn, "t", table, create=True)
        nursery.cancel_scope.cancel()
    assert table.num_rows == await count(conn, "t") == 3_000_000
    # Other processes may want the processors, too.
    assert sorted(late)[len(late) * 98 // 100] < 0.05
    assert max(late) < 0.25


# What fits


def column(values: Any, kind: Any = None) -> Any:
    return pa.table(
        {"x": values if isinstance(values, pa.Array) else pa.array(values, kind)}
    )


DICTIONARY = pa.array(["a", None, "b", "a"]).dictionary_encode()
VIEWS = pa.DictionaryArray.from_arrays(
    pa.array([0, 1, None], pa.uint32()), pa.array(["u", "v"], pa.string_view())
)
RUNS = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None]))


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (column(["a", None], pa.large_string()), "text"),
        (column(["a", None], pa.string_view()), "text"),
        (column([b"a", None], pa.large_binary()), "bytea"),
        (column([b"a", None], pa.binary_view()), "bytea"),
        (column([b"ab", None], pa.binary(2)), "bytea"),
        (column(DICTIONARY), "text"),
        (column(VIEWS), "text"),
        (column(RUNS), "text"),
        (column(["a", "abc", None]), "varchar(3)"),
        (column(['{"a": 1}', None]), "json"),
        (column([1, None], pa.int8()), "bigint"),
        (column([1, None], pa.int64()), "smallint"),
        (column([2**64 - 1], pa.uint64()), "numeric(20)"),
        (column([1000, None], pa.int64()), "numeric(5, 1)"),
        (column([1, None], pa.int32()), "numeric(38, 30)"),
        (column([1, 2**53], pa.int64()), "double precision"),
        (column([1.0, None]), "integer"),
        (column([0.5, math.inf, -math.inf, None]), "real"),
        (column([0.5, None], pa.float32()), "double precision"),
        (column([Decimal("1.50"), None], pa.decimal128(5, 2)), "numeric(30, 1)"),
        (column([Decimal("1.50")], pa.decimal256(50, 2)), "numeric(30, 10)"),
        (column([Decimal("7.00")], pa.decimal128(5, 2)), "integer"),
        (column([1000, None], pa.timestamp("ns")), "timestamp"),
        (column([1, None], pa.timestamp("s")), "timestamp"),
        (column([1, None], pa.timestamp("us", "Europe/Berlin")), "timestamptz"),
        (column([dt.date(2020, 2, 29), None], pa.date64()), "date"),
        (column([1, None], pa.time32("ms")), "time"),
        (column([1000, None], pa.time64("ns")), "time"),
        (column([1000, None, -5_000], pa.duration("ns")), "interval"),
        (column([90_061, None], pa.duration("s"))[1:], "interval"),
        (column([pa.MonthDayNano([1, 2, 3000]), None]), "interval"),
        (column([[1, None], None, []], pa.list_(pa.int64())), "array(integer)"),
        (column([[1, 2]], pa.large_list(pa.int32())), "array(integer not null)"),
        (column([[1, 2]], pa.list_(pa.int32(), 2)), "array(integer)"),
        (column([None, None], pa.null()), "date"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["x"].type),
)
async def test_what_can_be_said_without_a_loss_is_cast(
    conn: Any, table: Any, kind: str
) -> None:
    await conn.create_table("t", {"x": kind}, temporary=True)
    assert await insert_arrow(conn, "t", table) == table.num_rows
    came = (await fetch_arrow(conn, "SELECT * FROM t"))["x"].to_pylist()
    if "duration" in str(table["x"].type):
        came = [None if one is None else one.nanoseconds // 1000 for one in came]
        told = [
            None if one is None else one // dt.timedelta(microseconds=1)
            for one in table["x"].cast(pa.duration("us")).to_pylist()
        ]
    else:
        told = table["x"].to_pylist()
    assert came == told


@pytest.mark.parametrize(
    ("table", "kind", "told"),
    [
        (column([1], pa.timestamp("ns")), "timestamp", "would lose data"),
        (column([1], pa.time64("ns")), "time", "would lose data"),
        (column([1], pa.duration("ns")), "interval", "would lose data"),
        (column([2**62], pa.duration("us")), "interval", "overflow"),
        (column([pa.MonthDayNano([0, 0, 1])]), "interval", "would lose data"),
        (column([2**62], pa.timestamp("s")), "timestamp", "out of bounds"),
        (column([2**31], pa.int64()), "integer", "not in range"),
        (column([2**53 + 1], pa.int64()), "double precision", "not in range"),
        (column([1.5]), "integer", "truncated"),
        (column([math.nan]), "bigint", "truncated"),
        (column([0.1]), "real", "more digits"),
        (
            column([Decimal("1.55")], pa.decimal128(5, 2)),
            "numeric(5, 1)",
            "would cause data loss",
        ),
        (
            column([Decimal("1.5")], pa.decimal128(5, 1)),
            "integer",
            "would cause data loss",
        ),
        (column([1000], pa.int64()), "numeric(4, 1)", "precision"),
        (column([Decimal(1000)], pa.decimal128(9, 0)), "numeric(3, 0)", "precision"),
        (column(["abcd"]), "varchar(3)", "has 4 characters, and the column 3"),
        (column(["äöüß"]), "char(3)", "has 4 characters, and the column 3"),
        (column([[1, None]], pa.list_(pa.int32())), "array(integer not null)", "null"),
        (
            column([[[1]]], pa.list_(pa.list_(pa.int32()))),
            "array(integer)",
            "takes list",
        ),
        (column(["1"]), "integer", "takes int32, and string does not fit"),
        (column([1]), "text", "takes string, and int64 does not fit"),
        (column([True]), "integer", "takes int32, and bool does not fit"),
        (column([0.5]), "numeric(5, 2)", "takes decimal"),
        (column([1], pa.timestamp("us")), "timestamptz", "does not fit"),
        (column([{"a": 1}]), "text", "does not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["x"].type),
)
async def test_what_would_lose_is_refused_and_names_its_column(
    conn: Any, table: Any, kind: str, told: str
) -> None:
    await conn.create_table("t", {"x": kind}, temporary=True)
    with pytest.raises(DataError, match=r"column 'x'") as caught:
        await insert_arrow(conn, "t", table)
    assert told in str(caught.value)
    assert await count(conn, "t") == 0


async def test_an_extension_is_what_it_is_stored_as(conn: Any) -> None:
    one = uuid.uuid4()
    data = column(pa.array([one.bytes], pa.uuid()))
    await insert_arrow(conn, "t", data, create=True)
    assert await conn.fetch_all("SELECT * FROM t") == [(one.bytes,)]


async def test_a_null_for_a_column_that_takes_none_is_refused(conn: Any) -> None:
    await conn.create_table("t", [Column("x", "integer", nullable=False)])
    with pytest.raises(DataError, match=r"column 'x': there is a null"):
        await insert_arrow(conn, "t", column([1, None], pa.int32()))
    assert await insert_arrow(conn, "t", column([1], pa.int32())) == 1


async def test_columns_are_matched_by_name(conn: Any) -> None:
    await conn.create_table("t", {"a": "integer", "b": "text", "c": "date"})
    await insert_arrow(conn, "t", pa.table({"b": ["x"], "a": [1]}))
    assert await conn.fetch_all("SELECT * FROM t") == [(1, "x", None)]
    with pytest.raises(errors.UndefinedColumn, match="'d'"):
        await insert_arrow(conn, "t", pa.table({"d": ["x"]}))
    with pytest.raises(errors.UndefinedTable):
        await insert_arrow(conn, "u", pa.table({"d": ["x"]}))
    for names in (["a", "a"], ["", "a"], []):
        data = pa.table([[1]] * len(names), names=names)
        with pytest.raises(DataError, match="names of their own"):
            await insert_arrow(conn, "t", data)
    assert await count(conn, "t") == 1


async def test_what_is_no_arrow_is_refused(conn: Any) -> None:
    with pytest.raises(TypeError, match=r"__arrow_c_stream__ .* not list"):
        await insert_arrow(conn, "t", [1])  # type: ignore[arg-type]


# All or nothing


def failing(rows: int) -> Any:
    """A reader whose second batch is an error."""

    def batches() -> Iterator[Any]:
        yield pa.record_batch({"x": list(range(rows))})
        raise OSError("the disk is gone")

    return pa.RecordBatchReader.from_batches(pa.schema({"x": pa.int64()}), batches())


@pytest.mark.parametrize("create", [True, False])
async def test_a_source_that_fails_leaves_nothing(conn: Any, create: bool) -> None:
    if not create:
        await conn.create_table("t", {"x": "bigint"})
    with pytest.raises(OSError, match="the disk is gone"):
        await insert_arrow(conn, "t", failing(300_000), create=create)
    if create:
        assert await conn.tables() == []
    else:
        assert await count(conn, "t") == 0


@pytest.mark.parametrize("create", [True, False])
async def test_a_cancelled_insert_leaves_nothing(conn: Any, create: bool) -> None:
    schema = pa.schema({"x": pa.int64()})
    scope = trio.CancelScope()

    def batches() -> Iterator[Any]:
        for number in range(10**6):
            if number == 20:
                trio.from_thread.run_sync(scope.cancel)
            yield pa.record_batch({"x": [number] * 10_000})

    if not create:
        await conn.create_table("t", {"x": "bigint"})
    with scope:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        await insert_arrow(conn, "t", reader, create=create)
    assert scope.cancelled_caught
    assert await conn.fetch_value("SELECT 42") == 42
    if create:
        assert await conn.tables() == []
    else:
        assert await count(conn, "t") == 0


async def test_in_a_failed_transaction_a_created_table_may_stay_empty(
    conn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    table = column([[1, 2]])
    with pytest.raises(errors.FeatureNotSupported):
        await insert_arrow(conn, "t", table, create=True)
    assert await conn.tables() == []
    with pytest.raises(errors.CharacterNotInRepertoire):
        async with conn.transaction():
            broken = pa.Array.from_buffers(
                pa.string(),
                1,
                [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")],
            )
            await insert_arrow(conn, "t", column(broken), create=True)
    assert await count(conn, "t") == 0
    assert 'table "t" stays, without rows' in caplog.text


# A table for the data


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (pa.bool_(), "boolean"),
        (pa.int8(), "smallint"),
        (pa.uint8(), "smallint"),
        (pa.uint16(), "integer"),
        (pa.uint32(), "bigint"),
        (pa.uint64(), "numeric(20)"),
        (pa.float16(), "real"),
        (pa.float64(), "double precision"),
        (pa.decimal128(7, 2), "numeric(7, 2)"),
        (pa.large_string(), "text"),
        (pa.dictionary(pa.int8(), pa.string()), "text"),
        (pa.run_end_encoded(pa.int32(), pa.int32()), "integer"),
        (pa.uuid(), "bytea"),
        (pa.null(), "text"),
        (pa.date64(), "date"),
        (pa.timestamp("ns"), "timestamp"),
        (pa.timestamp("s", "Asia/Tokyo"), "timestamptz"),
        (pa.duration("ns"), "interval"),
        (pa.list_(pa.int8()), "array(smallint)"),
        (
            pa.list_(pa.field("x", pa.int8(), nullable=False)),
            "array(smallint not null)",
        ),
    ],
    ids=str,
)
def test_each_arrow_type_has_a_type_in_sql(kind: Any, made: str) -> None:
    assert sql_type(pa.field("x", kind)) == made


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct({"a": pa.int8()}),
        pa.decimal256(50, 2),
        pa.decimal128(5, -2),
        pa.map_(pa.int8(), pa.int8()),
    ],
    ids=str,
)
async def test_a_type_that_hyper_does_not_have_is_refused(conn: Any, kind: Any) -> None:
    with pytest.raises(DataError, match=r"column 'x': Hyper has no type"):
        await insert_arrow(conn, "t", column([], kind), create=True)
    assert await conn.tables() == []


async def test_a_created_table_has_the_columns_that_the_result_had(conn: Any) -> None:
    columns = [
        Column("a", "integer", nullable=False),
        *(Column("b", "character(3)"), Column("c", "character varying(7)")),
        *(Column("d", "json"), Column("e", "oid"), Column("f", "geography")),
        *(Column("g", "numeric(9,2)"), Column("h", "timestamptz")),
    ]
    await conn.create_table("t", columns)
    await conn.execute(
        "INSERT INTO t VALUES (1, 'x', 'y', '{}', 4, 'POINT(1 2)', 1.50, "
        "'2020-01-01 00:00:00Z')"
    )
    there = TableName("public", "The Copy")
    await insert_arrow(conn, there, await fetch_arrow(conn, "TABLE t"), create=True)
    assert await conn.columns(there) == columns
    same = "SELECT a, b, c, d::text, e, f::text, g, h FROM {}"
    rows = await conn.fetch_all(same.format("t"))
    assert await conn.fetch_all(same.format('"The Copy"')) == rows
    with pytest.raises(errors.DuplicateTable):
        await insert_arrow(conn, there, column([1]), create=True)
    assert await conn.fetch_value('SELECT count(*) FROM "The Copy"') == 1


# Whoever speaks Arrow


def from_polars() -> Any:
    return pytest.importorskip("polars").DataFrame({"n": [1, 2], "t": ["a", None]})


def from_pandas() -> Any:
    return pytest.importorskip("pandas").DataFrame({"n": [1, 2], "t": ["a", None]})


def from_duckdb() -> Any:
    duckdb = pytest.importorskip("duckdb")
    return duckdb.sql("SELECT * FROM (VALUES (1, 'a'), (2, NULL)) t(n, t)")


def from_pyarrow() -> Any:
    return pa.record_batch({"n": [1, 2], "t": ["a", None]})


@pytest.mark.parametrize("make", [from_polars, from_pandas, from_duckdb, from_pyarrow])
async def test_it_need_not_be_pyarrow(conn: Any, make: Callable[[], Any]) -> None:
    assert await insert_arrow(conn, "t", make(), create=True) == 2
    assert await conn.fetch_all("SELECT * FROM t ORDER BY n") == [(1, "a"), (2, None)]


async def test_polars_and_duckdb_read_what_was_fetched(conn: Any) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    table = await fetch_arrow(
        conn, "SELECT 1 AS n, DATE '2020-02-29' AS d, '1.50'::numeric(5, 2) AS p, "
        "TIMESTAMPTZ '2020-01-01 00:00:00Z' AS z"
    )  # fmt: skip
    then = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    row = (1, dt.date(2020, 2, 29), Decimal("1.50"), then)
    assert polars.from_arrow(table).row(0) == row
    duckdb.register("fetched", table)
    assert duckdb.sql("SELECT n, d, p FROM fetched").fetchall() == [row[:3]]


# Messages


@given(st.data())
def test_messages_are_found_however_the_stream_is_cut(data: st.DataObject) -> None:
    table = pa.table({"x": list(range(50)), "t": ["text"] * 50})
    whole = [table.schema.serialize(), *(b.serialize() for b in table.to_batches(7))]
    stream = b"".join(map(bytes, whole)) + END * data.draw(st.integers(0, 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    messages, found = Messages(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [bytes(message) for message in messages.feed(stream[begin:end])]
    assert found == [bytes(message) for message in whole]


def test_what_is_no_stream_is_told() -> None:
    with pytest.raises(ValueError, match="no Arrow IPC stream"):
        list(Messages().feed(b"PAR1 and so on"))


# Nobody pays who does not ask


def test_the_package_does_not_import_pyarrow() -> None:
    code = (
        "import sys, trio_hyperpool, trio_hyperpool.testing; "
        "print({'pyarrow', 'rich', 'polars'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
