"""Data to and from Hyper in Arrow's form, which is exact, and many times faster than rows.

Whatever speaks the Arrow C stream interface can be inserted: pyarrow, polars, pandas,
DuckDB. Results are pyarrow's, which all of these read. Wants pyarrow.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any, Final, Protocol, Self, cast

import psycopg
import pyarrow as pa
import trio
from psycopg import AsyncCopy, DataError, sql
from psycopg.abc import Params, Query

from ._arrow_messages import END, Messages
from ._arrow_types import check, fit, readable, returned, sql_type
from ._catalogue import Column, identifier
from ._errors import LeaseError
from ._hyper_connection import HyperConnection

__all__ = [
    "ArrowStream",
    "RecordBatches",
    "fetch_arrow",
    "insert_arrow",
    "stream_arrow",
]

_COPY_OUT: Final = sql.SQL("COPY ({}\n) TO STDOUT WITH (FORMAT ARROWSTREAM)")
_COPY_IN: Final = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT ARROWSTREAM)")
_NO_ROWS: Final = sql.SQL("SELECT {} FROM {} LIMIT 0")

_PIECE: Final = 1_000_000
"""Bytes that are made ready and sent at once: a compromise of speed and memory."""

_log: Final = logging.getLogger("trio_hyperpool")


class ArrowStream(Protocol):
    """What speaks the Arrow C stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None, /) -> object:
        """Export the data as a PyCapsule."""
        ...


class _Received:
    """The messages of a stream that comes by a COPY."""

    def __init__(self, copy: AsyncCopy) -> None:
        self._copy = copy
        self._messages = Messages()
        self._complete: Iterator[memoryview] = iter(())

    async def schema(self) -> pa.Schema:
        """Wait for the schema, which comes first."""
        # A stream without one is cut off, and the server's error comes here.
        message = cast("pa.Buffer", await self.next())
        return cast("pa.Schema", readable(pa.ipc.read_schema(message)))

    async def next(self) -> pa.Buffer | None:
        """Wait for the next message; None at the end. A checkpoint, or not."""
        while (message := next(self._complete, None)) is None:
            piece = await self._copy.read()
            if not piece:
                return None
            self._complete = self._messages.feed(piece)
        return pa.py_buffer(message)


class RecordBatches:
    """An asynchronous iterator of the record batches of a result, as they come.

    Attributes:
        schema: the names and types of the columns.
    """

    def __init__(self, received: _Received, sent: pa.Schema) -> None:
        self._received = received
        self._sent = sent
        self.schema: pa.Schema = returned(sent)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        """Wait for the next record batch.

        A checkpoint unless it is there already. Cancelled, the query is stopped.
        """
        message = await self._received.next()
        if message is None:
            raise StopAsyncIteration
        return pa.ipc.read_record_batch(message, self._sent).cast(self.schema)


@asynccontextmanager
async def stream_arrow(
    connection: HyperConnection[Any], query: Query, params: Params | None = None
) -> AsyncGenerator[RecordBatches]:
    """Execute a query, and have its result as record batches for the block.

    Entering and leaving are checkpoints. Left early, or cancelled, the query is stopped.
    Batches are of 10,240 rows, or of a megabyte if that is less, and the server waits
    until they are wanted, so that memory does not grow with the result.

    Args:
        connection: the connection, which does nothing else meanwhile.
        query: a SELECT, WITH, VALUES or TABLE.
        params: what stands for its placeholders.

    Raises:
        psycopg.errors.FeatureNotSupported: if a column is a UUID, for which Hyper has
            no Arrow type: cast it to text.
    """
    async with connection.cursor().copy(_copy_out(query), params) as copy:
        received = _Received(copy)
        yield RecordBatches(received, await received.schema())


async def fetch_arrow(
    connection: HyperConnection[Any], query: Query, params: Params | None = None
) -> pa.Table:
    """Execute a query, and return its result as a table.

    A checkpoint; cancelled, the query is stopped. Values are not converted, so that
    other tasks are not kept waiting. A ``timestamptz`` is in UTC; a ``geography`` is
    bytes of Hyper's own, unless it is cast to text.

    Args:
        connection: the connection.
        query: a SELECT, WITH, VALUES or TABLE.
        params: what stands for its placeholders.

    Raises:
        psycopg.errors.FeatureNotSupported: if a column is a UUID, for which Hyper has
            no Arrow type: cast it to text.
    """
    async with stream_arrow(connection, query, params) as batches:
        return pa.Table.from_batches([batch async for batch in batches], batches.schema)


async def insert_arrow(
    connection: HyperConnection[Any],
    table: str | sql.Identifier,
    data: ArrowStream,
    *,
    create: bool = False,
) -> int:
    """Insert data into a table, and return how many rows there were.

    A checkpoint. All rows are inserted, or, if it raises, `trio.Cancelled` too, none.
    The data is read in a thread, a piece at a time, and a cancellation waits until the
    piece is read.

    Columns are matched by name; those of the table that the data has not are NULL.
    What Hyper does not know is sent as something that it does, if nothing is lost: a
    dictionary as its values, nanoseconds as microseconds, a wide integer in a narrow
    column.

    Args:
        connection: the connection.
        table: a `trio_hyperpool.TableName`, or a string, which is one name.
        data: a table, a record batch or a reader of them from pyarrow; a data frame of
            polars or pandas; a result of DuckDB; or what else has
            ``__arrow_c_stream__``.
        create: whether to create the table, for the types of the data. If this raises,
            it is dropped again; within a transaction it may stay, empty.

    Raises:
        TypeError: if data has no ``__arrow_c_stream__``.
        psycopg.DataError: if a column does not fit, or one of its values does not
            without a loss; the message names the column.
        psycopg.errors.UndefinedColumn: if the data has a column that the table has not.
    """
    if not hasattr(data, "__arrow_c_stream__"):
        raise TypeError(
            "data is what has the method __arrow_c_stream__ (of pyarrow, polars, "
            f"pandas, DuckDB and others), not {type(data).__qualname__}"
        )
    name = identifier(table)
    # This may be where a lazy result is computed.
    reader = await trio.to_thread.run_sync(_reader, data)
    with reader:
        names = reader.schema.names
        if not names or not all(names) or len(set(names)) != len(names):
            raise DataError(f"the columns of data need names of their own, not {names}")
        if not create:
            return await _insert(connection, name, reader)
        await connection.create_table(name, _columns(reader.schema))
        try:
            return await _insert(connection, name, reader)
        except BaseException:
            await _drop(connection, name)  # noqa: ASYNC102  shields itself
            raise


async def _insert(
    connection: HyperConnection[Any],
    table: sql.Identifier,
    reader: pa.RecordBatchReader,
) -> int:
    columns = sql.SQL(", ").join(map(sql.Identifier, reader.schema.names))
    # The server itself knows best what it takes.
    no_rows = _copy_out(_NO_ROWS.format(columns, table))
    async with connection.cursor().copy(no_rows) as copy:
        received = _Received(copy)
        wanted = await received.schema()
        await received.next()
    check(reader.schema, wanted)
    cursor = connection.cursor()
    with closing(_pieces(reader, wanted)) as pieces:
        async with cursor.copy(_COPY_IN.format(table, columns)) as copy:
            while True:
                piece = await trio.to_thread.run_sync(next, pieces, None)
                if piece is None:
                    break
                await copy.write(memoryview(piece))
    return cursor.rowcount


def _pieces(reader: pa.RecordBatchReader, wanted: pa.Schema) -> Generator[pa.Buffer]:
    yield wanted.serialize()
    for batch in reader:
        rows = max(1, batch.num_rows * _PIECE // max(_PIECE, batch.nbytes))
        for start in range(0, batch.num_rows, rows):
            yield fit(batch.slice(start, rows), wanted).serialize()
    yield pa.py_buffer(END)


def _reader(data: Any) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_stream(data)


def _columns(schema: Any) -> list[Column]:
    return [Column(field.name, sql_type(field), field.nullable) for field in schema]


async def _drop(connection: HyperConnection[Any], table: sql.Identifier) -> None:
    try:
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + connection.cancel_timeout
        ):
            await connection.execute(sql.SQL("DROP TABLE {}").format(table))
    except (psycopg.Error, LeaseError) as error:
        _log.warning("table %s stays, without rows: %s", table.as_string(None), error)


def _copy_out(query: Query) -> sql.Composed:
    if isinstance(query, bytes):
        query = cast("Any", query.decode())
    if isinstance(query, str):
        query = sql.SQL(query)
    if not isinstance(query, sql.Composable):
        raise TypeError(
            "query is a str, bytes or psycopg.sql object, not "
            f"{type(query).__qualname__}"
        )
    return _COPY_OUT.format(query)
