"""Rows for people and programs: as a table, as CSV or as JSON, a thousand at a time."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from types import NoneType
from typing import Any, Final, Protocol, TextIO, TypeAlias, cast

from psycopg import AsyncCursor, Column, capabilities

from ._hyper_connection import HyperConnection

_NUMBER_OR_NULL: Final = (int, float, Decimal, NoneType)

_AT_ONCE: Final = 1_000
"""Rows; those of the first time decide how wide the columns of a table are."""


class Cursor(Protocol):
    """What a psycopg cursor has, and a stream of rows."""

    @property
    def description(self) -> list[Column] | None:
        """The columns."""
        ...

    async def fetchmany(self, size: int, /) -> list[Any]:
        """Give so many rows more, or those that are left."""
        ...


Write: TypeAlias = Callable[[Cursor, TextIO], Awaitable[None]]


class _Streamed:
    """The rows of a query, read from the server when they are wanted."""

    def __init__(self, cursor: AsyncCursor[Any], rows: AsyncIterator[Any]) -> None:
        self._cursor = cursor
        self._rows = rows
        self._first: list[Any] = []

    async def begin(self, query: bytes) -> None:
        """Wait for the first row."""
        async for row in self._rows:
            self._first.append(row)
            return
        # Without a row a stream does not tell of what columns.
        await self._cursor.execute(query)

    @property
    def description(self) -> list[Column] | None:
        return self._cursor.description

    async def fetchmany(self, size: int, /) -> list[Any]:
        rows, self._first = self._first, []
        async for row in self._rows:
            rows.append(row)
            if len(rows) == size:
                break
        return rows


@asynccontextmanager
async def streamed(
    connection: HyperConnection[Any], query: bytes
) -> AsyncGenerator[Cursor]:
    """Execute a query, and have its rows for the block, never all of them at once.

    Entering and leaving are checkpoints. Left early, the query is stopped.
    """
    cursor = connection.cursor()
    # libpq has it since 17.
    size = _AT_ONCE if capabilities.has_stream_chunked() else 1
    stream = cast("AsyncGenerator[Any]", cursor.stream(query, size=size))
    async with aclosing(stream) as rows:
        result = _Streamed(cursor, rows)
        await result.begin(query)
        yield result


async def write_csv(cursor: Cursor, out: TextIO) -> None:
    """Write the rows of a cursor as CSV, with the names of the columns."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_names(cursor))
    while rows := await cursor.fetchmany(_AT_ONCE):
        writer.writerows(map(_cells, rows))


async def write_json(cursor: Cursor, out: TextIO) -> None:
    """Write the rows of a cursor as a JSON array of objects."""
    keys = _distinct(_names(cursor))
    before = "[\n"
    while rows := await cursor.fetchmany(_AT_ONCE):
        for row in rows:
            record = dict(zip(keys, map(_plain, row), strict=True))
            # One by one: that the reader has gone is lost in one long write.
            out.write(before + json.dumps(record, default=_shown, ensure_ascii=False))
            before = ",\n"
    out.write("[]\n" if before == "[\n" else "\n]\n")


async def write_table(cursor: Cursor, out: TextIO) -> None:
    """Write the rows of a cursor in columns; numbers stand to the right."""
    names = _names(cursor)
    rows = await cursor.fetchmany(_AT_ONCE)
    cells = [names, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [
        all(_is_number_or_null(row[index]) for row in rows)
        for index in range(len(names))
    ]

    def write(line: Sequence[str]) -> None:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        out.write("  ".join(padded).rstrip() + "\n")

    write(names)
    write(["-" * width for width in widths])
    count = 0
    while rows:
        for row in rows:
            write(_cells(row))
        count += len(rows)
        rows = await cursor.fetchmany(_AT_ONCE)
    out.write(f"({count} row{'' if count == 1 else 's'})\n")


def _names(cursor: Cursor) -> list[str]:
    return [column.name for column in cursor.description or ()]


def _cells(row: Sequence[object]) -> list[str]:
    return ["" if value is None else _shown(value) for value in row]


def _is_number_or_null(value: object) -> bool:
    return isinstance(value, _NUMBER_OR_NULL) and not isinstance(value, bool)


def _distinct(names: Sequence[str]) -> Sequence[str]:
    """Number columns of one name, or an object would keep but the last of them."""
    if len(set(names)) == len(names):
        return names
    return [f"{name}_{position}" for position, name in enumerate(names, start=1)]


def _shown(value: object) -> str:
    # As SQL writes it.
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Say what JSON has no number for in the words of SQL."""
    if isinstance(value, list):
        return [_plain(one) for one in cast("list[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value
