"""Which tables and columns there are, and that a name is a name whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from psycopg import errors, sql

from trio_hyperpool import Column, HyperConnection, Pool, TableName

HyperPool = Pool[HyperConnection[Any]]
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    min_size=1,
    max_size=12,
)


@pytest.fixture
async def conn(hyper_pool: HyperPool) -> Any:
    async with hyper_pool.lease() as connection:
        # Whatever the rows of a connection look like, the catalogue's are its own.
        connection.row_factory = lambda _cursor: lambda _values: None
        yield connection


async def test_tables_are_listed_by_schema_and_name(conn: Any) -> None:
    assert await conn.tables() == []
    await conn.execute('CREATE SCHEMA "Extract"')
    for table in (TableName("Extract", "b"), "b", TableName("public", "a.A")):
        await conn.create_table(table, {"x": "integer"})
    await conn.create_table("t", {"x": "integer"}, temporary=True)
    everything = await conn.tables()
    assert everything == [
        TableName("Extract", "b"),
        TableName("pg_temp", "t"),
        TableName("public", "a.A"),
        TableName("public", "b"),
    ]
    assert await conn.tables("public") == everything[2:]
    assert await conn.tables("no' OR 1=1") == []
    assert {(table.schema, table.name) for table in everything[:1]} == {
        ("Extract", "b")
    }


async def test_columns_are_listed_in_order_with_their_types(conn: Any) -> None:
    columns = [
        Column("z", "bigint", nullable=False),
        *(Column(kind.replace("(", " "), kind) for kind in STORED),
    ]
    await conn.create_table(TableName("public", "t"), columns)
    assert await conn.columns("t") == columns
    for missing in ("T", "no'", TableName("Extract", "t")):
        with pytest.raises(errors.UndefinedTable):
            await conn.columns(missing)


STORED = [
    *("boolean", "smallint", "integer", "real", "double precision", "numeric(9,2)"),
    *("text", "character(3)", "character varying(7)", "bytea", "json", "uuid", "date"),
    *("time", "timestamp", "timestamptz", "interval", "oid", "geography"),
]


@pytest.mark.parametrize(
    "kind",
    [
        *("INT", "Double Precision", "numeric( 38 , 10 )", "char", "varchar (3)"),
        *("decimal(5)", "timestamp with time zone", "timestamp without time zone"),
        *("integer[]", "numeric(5, 2)[]", "array(integer)", "ARRAY (text not null)"),
    ],
)
async def test_types_may_be_written_as_sql_does(conn: Any, kind: str) -> None:
    await conn.create_table("t", {"x": kind}, temporary=True)
    [column] = await conn.columns("t")
    # What the catalogue says can be used again.
    await conn.create_table("u", [column], temporary=True)
    assert await conn.columns("u") == [column]


@pytest.mark.parametrize(
    "kind",
    ["", "int4range", "integer)", "integer, y text", "integer DEFAULT 1", "text; DROP"],
)
async def test_what_is_no_type_is_refused(conn: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=r"type of column 'x' .* there are bigint"):
        await conn.create_table("t", {"x": kind})
    assert await conn.tables() == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=names, column=names)
async def test_a_name_is_a_name_whatever_is_in_it(
    hyperd: Any, table: str, column: str
) -> None:
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        made = [Column(column, "integer")]
        await conn.create_table(table, made, temporary=True)
        assert await conn.tables() == [TableName("pg_temp", table)]
        assert await conn.columns(table) == made
        insert = sql.SQL("INSERT INTO {} VALUES (%s)").format(TableName(table))
        assert await conn.execute_command(insert, (1,)) == 1


async def test_a_table_that_is_there_is_left_if_asked(conn: Any) -> None:
    await conn.create_table("t", {"x": "integer"})
    with pytest.raises(errors.DuplicateTable):
        await conn.create_table("t", {"y": "text"})
    await conn.create_table("t", {"y": "text"}, if_not_exists=True)
    assert await conn.columns("t") == [Column("x", "integer")]


def test_a_table_name_has_one_to_three_parts() -> None:
    name = TableName("db", "Extract", 'a"b')
    assert (name.parts, name.schema, name.name) == (
        ("db", "Extract", 'a"b'),
        "Extract",
        'a"b',
    )
    assert str(name) == '"db"."Extract"."a""b"'
    assert repr(name) == "TableName('db', 'Extract', 'a\"b')"
    assert TableName("t").schema is None
    assert len({TableName("t"), TableName("t"), TableName("s", "t")}) == 2
    assert TableName("t") != sql.Identifier("t")
    for parts in ((), ("",), ("a", ""), ("a", "b", "c", "d")):
        with pytest.raises(ValueError, match="a table's name is its own"):
            TableName(*parts)


def test_a_column_has_a_name() -> None:
    with pytest.raises(ValueError, match="cannot be empty"):
        Column("", "integer")
