"""What goes in comes out equal, or is refused before anything is sent."""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import math
import struct
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Json, Jsonb

from trio_hyperpool._cursors import HyperServerBindingCursor
from trio_hyperpool._hyper import HyperConnection
from trio_hyperpool._hyper_types import hyper_adapters

exact = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
Connection = HyperConnection[tuple[Any, ...]]


@pytest.fixture
async def conn(hyperd: Any) -> AsyncGenerator[Connection]:
    connection = await HyperConnection.connect(**hyperd.conninfo, dbname="")
    yield connection
    await connection.close()


def connected(
    test: Callable[..., Awaitable[None]],
) -> Callable[..., Coroutine[Any, Any, None]]:
    """Give every example a connection: a fixture would serve the first one only."""

    async def run(hyperd: Any, **values: Any) -> None:
        async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
            await test(conn, **values)

    old = inspect.signature(test)
    new = [
        p.replace(name="hyperd") if p.name == "conn" else p
        for p in old.parameters.values()
    ]
    run.__signature__ = old.replace(parameters=new)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__qualname__, run.__module__ = test.__qualname__, test.__module__
    return run


async def echo(conn: Connection, value: Any, kind: str = "") -> Any:
    """Ask for a value in every way there is, and give the one answer."""
    query = f"SELECT %s{kind}"
    rows: list[Any] = []
    for binary in (False, True):
        cursor = await conn.execute(query, [value], binary=binary)
        rows += await cursor.fetchall()
        rows += [row async for row in conn.cursor(binary=binary).stream(query, [value])]
    first = rows[0]
    for row in rows[1:]:
        assert same(row[0], first[0])
        assert type(row[0]) is type(first[0])
    return first[0]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other) or (
            math.isnan(one) and math.isnan(other)
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
decimals = st.builds(
    lambda digits, scale, sign: Decimal((sign, digits, -scale)),
    st.lists(st.integers(0, 9), min_size=1, max_size=38),
    st.integers(0, 38),
    st.integers(0, 1),
)
integers = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.sampled_from(
        [s * 2**n + d for n in (15, 31, 63) for s in (1, -1) for d in (-1, 0, 1)]
    ),
)
aware = st.datetimes(
    min_value=dt.datetime(1, 1, 3),
    max_value=dt.datetime(9999, 12, 29),
    timezones=st.builds(
        lambda seconds: dt.timezone(dt.timedelta(seconds=seconds)),
        st.integers(-86399, 86399),
    ),
)
days = 10**9 - 1


def lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    some = st.lists(st.one_of(of, st.none()), max_size=5)
    return some.filter(lambda items: any(item is not None for item in items))


@exact
@given(integers)
@connected
async def test_integers_of_any_size_come_back(conn: Connection, value: int) -> None:
    assert await echo(conn, value) == value


@exact
@given(st.floats())
@example(-0.0)
@example(5e-324)
@example(1.7976931348623157e308)
@connected
async def test_doubles_come_back_to_the_last_bit(
    conn: Connection, value: float
) -> None:
    assert same(await echo(conn, value), value)


@exact
@given(decimals)
@example(Decimal("0E-38"))
@example(Decimal("0E+1000"))
@example(Decimal("1E+37"))
@example(Decimal("1." + "0" * 60))
@example(Decimal("10." + "0" * 45))
@example(Decimal("1" + "0" * 33 + "." + "0" * 6))
@example(Decimal("-0.00"))
@connected
async def test_decimals_come_back_with_every_digit(
    conn: Connection, value: Decimal
) -> None:
    assert await echo(conn, value) == value


@exact
@given(texts)
@example("\\'; DROP TABLE t; --")
@example("' OR ''='")
@example("%s %(a)s %% $1 $$")
@example("\\")
@example("\U0010ffff\u2028\r\n\x01")
@example("\U0001d800\U0010dfff")  # refused by versions of hyperd before 0.0.26225
@connected
async def test_texts_come_back_whatever_they_hold(conn: Connection, value: str) -> None:
    assert await echo(conn, value) == value
    assert await echo(conn, value, "::text") == value


@exact
@given(
    st.lists(
        st.sampled_from(
            ["'", "\\", '"', "$$", "--", "/*", "*/", "%s", "%", ";", "\n", "E'", "a"]
        ),
        max_size=12,
    ).map("".join)
)
@connected
async def test_no_text_breaks_out_of_its_literal(conn: Connection, value: str) -> None:
    query = (
        "SELECT %s, /* it's */ %s || '''' || %s, $$'$$ -- '\n, %s IN (%s), "
        r"E'\'' || %s, '\' || %s"
    )
    row = await (await conn.execute(query, [value] * 7)).fetchone()
    assert row == (
        value,
        value + "'" + value,
        "'",
        True,
        "'" + value,
        "\\" + value,
    )
    named = await conn.execute("SELECT %(a)s, %(b)s, %(a)s", {"a": value, "b": 1})
    assert await named.fetchone() == (value, 1, value)
    composed = psycopg.sql.SQL("SELECT {}, %s, {} AS {}").format(
        value, value, psycopg.sql.Identifier("a" + value)
    )
    cursor = await conn.execute(composed, [value])
    assert await cursor.fetchone() == (value, value, value)
    assert cursor.description is not None
    assert cursor.description[2].name == "a" + value


@exact
@given(st.binary())
@connected
async def test_bytes_come_back(conn: Connection, value: bytes) -> None:
    assert await echo(conn, value) == value
    assert await echo(conn, bytearray(value)) == value
    assert await echo(conn, memoryview(value)) == value


@exact
@given(st.dates())
@connected
async def test_dates_come_back(conn: Connection, value: dt.date) -> None:
    assert await echo(conn, value) == value


@exact
@given(st.times())
@connected
async def test_times_come_back(conn: Connection, value: dt.time) -> None:
    assert await echo(conn, value) == value


@exact
@given(st.datetimes())
@connected
async def test_datetimes_come_back(conn: Connection, value: dt.datetime) -> None:
    assert await echo(conn, value) == value


@exact
@given(aware)
@example(dt.datetime.max.replace(tzinfo=dt.UTC))
@example(dt.datetime.min.replace(tzinfo=dt.UTC))
@connected
async def test_points_in_time_come_back_in_utc(
    conn: Connection, value: dt.datetime
) -> None:
    got = await echo(conn, value)
    assert got == value
    assert got.tzinfo is dt.UTC


@pytest.mark.parametrize("zone", ["Europe/Paris", "Asia/Kathmandu", "America/St_Johns"])
async def test_points_in_time_come_back_in_any_session_zone(
    conn: Connection, zone: str
) -> None:
    await conn.execute(f"SET timezone = '{zone}'")
    for value in (
        dt.datetime(1850, 1, 1, 0, 0, 0, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 7, 1, 12, 30, 0, 120000, tzinfo=dt.UTC),
    ):
        assert await echo(conn, value) == value
        assert await echo(conn, [value]) == [value]


@exact
@given(
    st.timedeltas(min_value=dt.timedelta(days=-days), max_value=dt.timedelta(days=days))
)
@example(dt.timedelta.max)
@example(dt.timedelta.min)
@example(dt.timedelta(microseconds=-1))
@connected
async def test_durations_come_back(conn: Connection, value: dt.timedelta) -> None:
    assert await echo(conn, value) == value


@exact
@given(st.uuids())
@connected
async def test_uuids_come_back(conn: Connection, value: uuid.UUID) -> None:
    assert await echo(conn, value) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)


@exact
@given(json_values)
@connected
async def test_json_documents_come_back(conn: Connection, value: Any) -> None:
    assert await echo(conn, Json(value)) == value
    assert await echo(conn, Jsonb(value)) == value


@exact
@given(
    st.one_of(
        lists(integers),
        lists(st.floats()),
        lists(texts),
        lists(st.booleans()),
        lists(st.binary()),
        lists(st.dates()),
        lists(st.times()),
        lists(st.datetimes()),
        lists(aware),
        lists(st.uuids()),
        lists(st.timedeltas()),
        lists(st.decimals(-(10**18), 10**18, places=9)),
    )
)
@example(["NULL", None, "null", "", " a ", '"', "\\", "[1],{2}"])
@example([1, None, 2**70, Decimal("0.5")])
@connected
async def test_lists_come_back(conn: Connection, value: list[Any]) -> None:
    assert same(await echo(conn, value), value)


async def test_bools_none_and_enums_come_back(conn: Connection) -> None:
    class Colour(enum.Enum):
        RED = 1

    class Size(enum.IntEnum):
        BIG = 7

    class Name(enum.StrEnum):
        ANN = "ann"

    assert await echo(conn, True) is True
    assert await echo(conn, False) is False
    assert await echo(conn, None) is None
    assert await echo(conn, Colour.RED) == "RED"
    assert await echo(conn, [Colour.RED]) == ["RED"]
    assert await echo(conn, Size.BIG) == 7
    assert await echo(conn, Name.ANN) == "ann"


async def test_a_list_without_elements_becomes_what_the_query_wants(
    conn: Connection,
) -> None:
    assert await echo(conn, [], "::int[]") == []
    assert await echo(conn, [None], "::text[]") == [None]
    cursor = await conn.execute("SELECT 1 = ANY(%s)", [[]])
    assert await cursor.fetchone() == (False,)


class Flags(enum.Flag):
    A = 1


class Stamp(dt.datetime):
    nanosecond = 5


class Delta(dt.timedelta):
    nanoseconds = 5


REFUSED: list[tuple[Any, type[Exception]]] = [
    ("\0", psycopg.DataError),
    ("\ud800", psycopg.DataError),
    (["a\0"], psycopg.DataError),
    (Json("\ud800", str), psycopg.DataError),
    (Json("\0", str), psycopg.DataError),
    (10**38, psycopg.DataError),
    (-(10**38), psycopg.DataError),
    (10**5000, psycopg.DataError),
    (Decimal("NaN"), psycopg.DataError),
    (Decimal("sNaN"), psycopg.DataError),
    (Decimal("-Infinity"), psycopg.DataError),
    (Decimal(10) ** 38, psycopg.DataError),
    (Decimal("1E+999999"), psycopg.DataError),
    (Decimal("1E-39"), psycopg.DataError),
    (Decimal("1" * 38 + ".1"), psycopg.DataError),
    ([Decimal("0.1"), 10**37, Decimal("0.01")], psycopg.DataError),
    ([1, "a"], psycopg.DataError),
    ([1, 1.5], psycopg.DataError),
    ([True, 1], psycopg.DataError),
    (
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
        psycopg.DataError,
    ),
    (dt.time(1, tzinfo=dt.UTC), psycopg.NotSupportedError),
    ([[1]], psycopg.NotSupportedError),
    ([(1,)], psycopg.NotSupportedError),
    ((1, 2), psycopg.NotSupportedError),
    ({}, psycopg.NotSupportedError),
    ([{}], psycopg.NotSupportedError),
    ({1}, psycopg.NotSupportedError),
    (object(), psycopg.NotSupportedError),
    (Flags(0), psycopg.DataError),
    (Stamp(2024, 1, 1), psycopg.DataError),
    (Stamp(2024, 1, 1, tzinfo=dt.UTC), psycopg.DataError),
    (Delta(1), psycopg.DataError),
]


@pytest.mark.parametrize(("value", "error"), REFUSED, ids=map(str, range(len(REFUSED))))
async def test_what_hyper_cannot_hold_is_refused_before_it_is_sent(
    conn: Connection, value: Any, error: type[Exception]
) -> None:
    for factory, expected in (
        (conn.cursor_factory, (error,)),
        (HyperServerBindingCursor, (error, psycopg.NotSupportedError)),
    ):
        before = conn.pgconn.transaction_status
        with pytest.raises(expected):
            await factory(conn).execute("SELECT %s", [value])
        assert conn.pgconn.transaction_status == before
        assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


class Padded(str):
    __slots__ = ()


class PaddedDumper(psycopg.types.string.StrDumper):
    oid = 1042


async def test_a_list_of_a_type_that_has_no_array_is_refused_before_it_is_sent(
    conn: Connection,
) -> None:
    conn.adapters.register_dumper(Padded, PaddedDumper)
    assert await conn.fetch_value("SELECT %s", [Padded("a")]) == "a"
    with pytest.raises(psycopg.NotSupportedError, match="no array"):
        await conn.fetch_value("SELECT %s", [[Padded("a")]])


@pytest.mark.parametrize("kind", ["text", "bytes", "list", "json"])
async def test_a_value_too_long_for_a_literal_is_bound_by_the_server(
    conn: Connection, kind: str
) -> None:
    value: Any = {
        "text": "x'\\é" * 400_000,
        "bytes": b"\0\xff\\'" * 300_000,
        "list": ["x" * 1_200_000, None, "'"],
        "json": Json({"a": "b" * 1_200_000}),
    }[kind]
    expected = value.obj if kind == "json" else value
    cursor = await conn.execute(
        "SELECT %(a)s, %(v)s, %(a)s, %(v)s, %(d)s",
        {"a": "'", "v": value, "d": Decimal("1.50")},
    )
    row = await cursor.fetchone()
    assert row == ("'", expected, "'", expected, Decimal("1.50"))


@pytest.mark.parametrize("length", [999_990, 999_997, 999_998, 999_999, 1_000_001])
async def test_there_is_no_length_at_which_a_value_is_refused(
    conn: Connection, length: int
) -> None:
    for value in ("x" * length, "'" * (length // 2), "\\" * (length // 2)):
        cursor = await conn.execute("SELECT %s", [value])
        assert await cursor.fetchone() == (value,)
    raw = b"\xff" * (length // 2)
    assert await (await conn.execute("SELECT %s", [raw])).fetchone() == (raw,)


ODD_RESULTS: list[tuple[str, Any]] = [
    ("0.1::real", struct.unpack("f", struct.pack("f", 0.1))[0]),
    ("'3.4028235e38'::real", 3.4028234663852886e38),
    ("ARRAY['0.1'::real]", [struct.unpack("f", struct.pack("f", 0.1))[0]]),
    ("'a'::char(1)", "a"),
    ("'a'::char(3)", "a  "),
    ("ARRAY['a'::char(3)]", ["a  "]),
    ("5::oid", 5),
    ("5::smallint", 5),
    ("ARRAY[5::smallint]", [5]),
    ("INTERVAL 'P1DT-2H-3M-0.5S'", dt.timedelta(days=1, seconds=-7380.5)),
    ("INTERVAL '0'", dt.timedelta()),
    ("'1.50'::numeric(5,2)", Decimal("1.50")),
    ("ARRAY[]::text[]", []),
]


@pytest.mark.parametrize(("sql", "expected"), ODD_RESULTS, ids=str)
async def test_results_that_have_no_parameter_of_their_type_are_exact(
    conn: Connection, sql: str, expected: Any
) -> None:
    for binary in (False, True):
        cursor = await conn.execute(f"SELECT {sql}", binary=binary)
        assert await cursor.fetchone() == (expected,)


@pytest.mark.parametrize(
    "sql",
    [
        "'infinity'::date",
        "'-infinity'::timestamp",
        "'infinity'::timestamptz",
        "DATE '0001-01-01' - 500",
        "'10000-01-01'::date",
        "'10000-01-01'::timestamp",
        "TIMESTAMPTZ '0001-01-01 00:00:00+00' - INTERVAL '500 days'",
        "'24:00:00'::time",
        "INTERVAL '1 month'",
        "INTERVAL '1 year -1 day'",
    ],
)
async def test_what_python_cannot_hold_is_a_data_error(
    conn: Connection, sql: str
) -> None:
    for binary in (False, True):
        cursor = await conn.execute(f"SELECT {sql}", binary=binary)
        with pytest.raises(psycopg.DataError):
            await cursor.fetchone()


async def test_intervals_in_another_style_are_refused_as_text(conn: Connection) -> None:
    await conn.execute("SET intervalstyle = 'postgres'")
    cursor = await conn.execute("SELECT INTERVAL '1 day 2 hours'")
    with pytest.raises(psycopg.NotSupportedError, match="iso_8601"):
        await cursor.fetchone()
    cursor = await conn.execute("SELECT INTERVAL '1 day 2 hours'", binary=True)
    assert await cursor.fetchone() == (dt.timedelta(days=1, hours=2),)


async def test_geography_is_its_well_known_text(conn: Connection) -> None:
    query = "SELECT 'POINT(1 2)'::geography, ARRAY['POINT(1 2)'::geography]"
    row = await (await conn.execute(query)).fetchone()
    point = "POINT(1.0000000 2.0000000)"
    assert row == (point, [point])
    with pytest.raises(psycopg.Error):
        await conn.execute(query, binary=True)


@pytest.mark.parametrize("is_string", [True, False])
async def test_the_caller_settles_how_doubles_are_sent(
    hyperd: Any, is_string: bool
) -> None:
    told = {**hyperd.conninfo, "dbname": "", "options": "-c extra_float_digits=0"}
    connecting = (
        # An option of None is one that was not given.
        HyperConnection.connect(make_conninfo("", **told), options=None)
        if is_string
        else HyperConnection.connect(**told)
    )
    async with await connecting as conn:
        assert await conn.fetch_value("SHOW extra_float_digits") == "0"


async def test_doubles_stay_exact_after_a_reset(conn: Connection) -> None:
    for reset in ("RESET ALL", "reset extra_float_digits"):
        await conn.execute(reset)
        cursor = await conn.execute(
            "SELECT '0.1'::double precision + 0.2::double precision"
        )
        assert await cursor.fetchone() == (0.1 + 0.2,)
    async with conn.pipeline():
        await conn.execute("RESET ALL")
        cursor = await conn.execute(
            "SELECT 0.1::double precision + 0.2::double precision"
        )
        assert await cursor.fetchone() == (0.1 + 0.2,)


async def test_server_bound_parameters_come_back_or_are_refused(
    conn: Connection,
) -> None:
    conn.cursor_factory = HyperServerBindingCursor
    for value in (
        5,
        -(2**40),
        0.1,
        float("inf"),
        "a'\\b",
        b"\0\xff",
        True,
        dt.date(1, 1, 1),
        dt.time(1, 2, 3, 4),
        dt.datetime.max,
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, seconds=1))),
        dt.timedelta(days=-1, microseconds=1),
        uuid.UUID(int=1),
        [1, None],
        [1.5, None],
        ["a", '"', None],
        [dt.date(1, 1, 1)],
    ):
        assert await echo(conn, value) == value
    assert await echo(conn, Json({"a": 1})) == {"a": 1}
    for rounded in (Decimal(5), Decimal("1.5"), [Decimal("1.5")], 2**64, [2**64]):
        with pytest.raises(psycopg.NotSupportedError):
            await conn.execute("SELECT %s", [rounded])
    with pytest.raises(psycopg.NotSupportedError, match="VALUES"):
        await conn.execute("VALUES (%s), (%s)", [1, 2])
    with pytest.raises(psycopg.NotSupportedError):
        await conn.cursor().executemany("SELECT %s", [[1], [Decimal("1.5")]])
    with pytest.raises(psycopg.NotSupportedError, match="%b"):
        await conn.execute("SELECT %b", [1])


async def test_numpy_scalars_come_back_as_what_they_equal(conn: Connection) -> None:
    numpy = pytest.importorskip("numpy")
    for value in (
        numpy.int8(-5),
        numpy.uint64(2**64 - 1),
        numpy.int64(-(2**63)),
        numpy.float16(0.1),
        numpy.float32(0.1),
        numpy.float64(0.1),
        numpy.bool_(True),
        numpy.str_("a'\\"),
        numpy.bytes_(b"\0\\"),
    ):
        assert await echo(conn, value) == value.item()
        assert await echo(conn, [value, None]) == [value.item(), None]
    for value in (
        numpy.longdouble(1) / 3,
        numpy.datetime64("2024-01-01"),
        numpy.timedelta64(1, "s"),
        numpy.complex64(1),
        numpy.array([1, 2]),
    ):
        with pytest.raises(psycopg.NotSupportedError):
            await conn.execute("SELECT %s", [value])


@pytest.mark.parametrize("text", [b"", b"{1}", b"[1", b"[1,]", b"[[1]]", b'["a]'])
def test_what_is_no_array_is_a_data_error(text: bytes) -> None:
    loader = hyper_adapters().get_loader(1007, psycopg.pq.Format.TEXT)
    assert loader is not None
    with pytest.raises(psycopg.DataError):
        loader(1007).load(text)


async def test_a_duration_beyond_a_timedelta_is_a_data_error(conn: Connection) -> None:
    for binary in (False, True):
        cursor = await conn.execute("SELECT INTERVAL '2000000000 days'", binary=binary)
        with pytest.raises(psycopg.DataError):
            await cursor.fetchone()


def test_a_binary_value_of_an_unknown_type_is_refused() -> None:
    loader = hyper_adapters().get_loader(0, psycopg.pq.Format.BINARY)
    assert loader is not None
    with pytest.raises(psycopg.NotSupportedError):
        loader(4711).load(b"abc")


async def test_a_query_that_is_no_text_is_refused(conn: Connection) -> None:
    with pytest.raises(psycopg.DataError):
        await conn.execute("SELECT '\ud800'")
    with pytest.raises(psycopg.NotSupportedError):
        await conn.execute(5)  # type: ignore[call-overload]
