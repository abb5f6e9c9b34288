"""Which tables there are, which columns they have, and how one is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from psycopg import sql

_TYPES: Final = (
    *("bigint", "boolean", "bytea", "char", "character varying", "character"),
    *("date", "decimal", "double precision", "geography", "int", "integer"),
    *("interval", "json", "numeric", "oid", "real", "smallint", "text"),
    *("time", "timestamp", "timestamp with time zone", "timestamp without time zone"),
    *("timestamptz", "uuid", "varchar"),
)
_ONE_TYPE: Final = (
    rf"(?:{'|'.join(sorted(_TYPES, key=len, reverse=True))})"
    r"(?:\s*\(\s*\d+\s*(?:,\s*\d+\s*)?\))?"
)
_TYPE: Final = re.compile(
    rf"(?i){_ONE_TYPE}(?:\s*\[\])?|array\s*\(\s*{_ONE_TYPE}(?:\s+not\s+null)?\s*\)"
)

_TABLES: Final = "SELECT schemaname, tablename FROM pg_catalog.pg_tables"
_COLUMNS: Final = sql.SQL(
    "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull "
    "FROM pg_catalog.pg_attribute WHERE attrelid = {}::regclass ORDER BY attnum"
)


class TableName(sql.Identifier):
    """The name of a table, that of its schema before it: ``TableName("Extract", "Extract")``.

    A `psycopg.sql.Identifier`, which `psycopg.sql.SQL.format` quotes, so that every
    character stands for itself.

    Args:
        parts: the name, or schema and name, or database, schema and name.

    Raises:
        ValueError: if there are more, or one of them is empty.
    """

    def __init__(self, *parts: str) -> None:
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise ValueError(
                "a table's name is its own, or that of its schema and its own, or "
                f"those of its database, its schema and its own, not {parts!r}"
            )
        super().__init__(*parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """What it was made of."""
        return tuple(self._obj)

    @property
    def name(self) -> str:
        """The table's own name."""
        return self.parts[-1]

    @property
    def schema(self) -> str | None:
        """The name of its schema, if that was given."""
        return self.parts[-2] if len(self.parts) > 1 else None

    def __str__(self) -> str:
        return self.as_string(None)

    def __hash__(self) -> int:
        return hash(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableName) and self.parts == other.parts


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: every character stands for itself.
        type: as SQL writes it, such as ``numeric(18, 2)``.
        nullable: whether it may be NULL.
    """

    name: str
    type: str
    nullable: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a column's name cannot be empty")
        if not _TYPE.fullmatch(self.type):
            raise ValueError(
                f"the type of column {self.name!r} is none of Hyper's: {self.type!r}; "
                f"there are {', '.join(_TYPES)}, and arrays such as integer[]"
            )

    def definition(self) -> sql.Composed:
        """Give what stands for it in CREATE TABLE."""
        return sql.SQL("{} {}{}").format(
            sql.Identifier(self.name),
            # Nothing but what was checked.
            sql.SQL(cast("Any", self.type)),
            sql.SQL("" if self.nullable else " NOT NULL"),
        )


def identifier(table: str | sql.Identifier) -> sql.Identifier:
    """Take a string for the one name of a table, dots and all."""
    return TableName(table) if isinstance(table, str) else table


def query_for_tables(schema: str | None) -> tuple[Any, list[str]]:
    """Give the query for the tables of a schema, or of all, and its parameters."""
    if schema is None:
        return f"{_TABLES} ORDER BY 1, 2", []
    return f"{_TABLES} WHERE schemaname = %s ORDER BY 1, 2", [schema]


def query_for_columns(table: str | sql.Identifier) -> sql.Composed:
    """Give the query for the columns of a table."""
    return _COLUMNS.format(sql.Literal(identifier(table).as_string(None)))


def column_from_catalogue(name: str, type_: str, nullable: bool) -> Column:  # noqa: FBT001
    """Make a column of what the catalogue says of it."""
    # It has a name for geographies that no statement understands.
    return Column(name, type_.replace("tabgeography", "geography"), nullable)


def creation(
    table: str | sql.Identifier,
    columns: Iterable[Column] | Mapping[str, str],
    *,
    temporary: bool,
    if_not_exists: bool,
) -> sql.Composed:
    """Give the statement that creates a table.

    Raises:
        ValueError: if a column has no name, or no type that there is.
    """
    if isinstance(columns, Mapping):
        columns = [Column(*item) for item in cast("Mapping[str, str]", columns).items()]
    return sql.SQL("CREATE {}TABLE {}{} ({})").format(
        sql.SQL("TEMPORARY " if temporary else ""),
        sql.SQL("IF NOT EXISTS " if if_not_exists else ""),
        identifier(table),
        sql.SQL(", ").join(column.definition() for column in columns),
    )
