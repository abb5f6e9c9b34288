"""Cursors for Hyper: where parameters are bound, and how results are read.

This module touches psycopg's internals; these are the names that are not public:

* ``psycopg._queries.PostgresQuery``: ``convert``, ``dump``, ``_tx``, and the
  attributes ``query``, ``params``, ``types``, ``formats``
* ``BaseCursor._query_cls``, ``_conn``, ``_pgconn``, ``_tx``, ``_convert_query``,
  ``_execute_gen``, ``_execute_send``, ``_get_prepared``, ``_select_current_result``,
  ``_start_copy_gen``, ``_stream_fetchone_gen``
* ``ServerCursorMixin._declare_gen``, ``_fetch_gen``, ``_scroll_gen``
* ``BaseConnection._exec_command``, ``_pipeline``
* ``psycopg._preparing.Prepare``
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast

from psycopg import (
    AsyncCopy,
    AsyncCursor,
    AsyncServerCursor,
    DataError,
    NotSupportedError,
    ProgrammingError,
    pq,
    sql,
)
from psycopg._preparing import Prepare
from psycopg._queries import PostgresQuery
from psycopg.abc import Buffer, Params, PQGen, Query
from psycopg.adapt import PyFormat, Transformer
from psycopg.copy import AsyncWriter
from psycopg.rows import Row

from ._arrays import NUMERIC_ARRAY
from ._binding import Statement, lacks_copy_format, parse, read_statement
from ._dumpers import NUMERIC, ServerBoundBytesDumper

if TYPE_CHECKING:
    from psycopg.abc import Transformer as AnyTransformer
    from psycopg.pq.abc import PGresult

LONGEST_LITERAL: Final = 1_000_000
"""In bytes: the server refuses a little more, in the middle of parsing the query."""

EXACT_FLOATS: Final = b"SET extra_float_digits = 3"
"""Without it the server sends 15 digits of a double, and a third of them lie."""

# The server reads such a parameter as one of few digits and none after the point.
_ROUNDED: Final = frozenset({NUMERIC, NUMERIC_ARRAY})

_Bytes: TypeAlias = bytes | bytearray | memoryview


class HyperQuery(PostgresQuery):
    """A query whose parameters stand in its text, save those too long for a literal."""

    __slots__ = ("_template", "statement")

    def convert(self, query: Query, vars: Params | None) -> None:  # noqa: A002
        """Read the query and put the parameters in.

        Raises:
            ProgrammingError: if a placeholder is where no literal may stand.
            NotSupportedError: if a value is of a type that Hyper does not have.
            DataError: if a value is beyond what Hyper's type holds.
        """
        text = as_bytes(query, self._tx, with_params=vars is not None)
        if b"\0" in text:
            # libpq would send what is before it.
            raise DataError("a query cannot hold a NUL character")
        # Read before the parameters are in: their text says nothing, and may be long.
        self.statement = read_statement(text)
        if vars is None:
            self.query = text
            self.params = self.formats = None
            self.types = ()
            return
        self._template = parse(text)
        self.dump(vars)

    def dump(self, vars: Params | None) -> None:  # noqa: A002
        """Put other parameters into the query that was read last."""
        params: list[Buffer | None] = []
        types: list[int] = []
        formats: list[pq.Format] = []
        chunks = self._template.chunks
        pieces = [chunks[0]]
        values = self._template.arrange(vars or ())
        for value, chunk in zip(values, chunks[1:], strict=True):
            literal = b"NULL" if value is None else self._literal(value)
            if literal is None or len(literal) > LONGEST_LITERAL:
                bytes_like = isinstance(value, _Bytes)
                dumper = self._tx.get_dumper(
                    value, PyFormat.BINARY if bytes_like else PyFormat.TEXT
                )
                params.append(dumper.dump(value))
                types.append(dumper.oid)
                formats.append(dumper.format)
                literal = b"$%d" % len(params)
            pieces += (literal, chunk)
        self.query = b"".join(pieces)
        self.params = params or None
        self.types = tuple(types)
        self.formats = formats or None

    def _literal(self, value: Any) -> bytes | None:
        if (
            isinstance(value, _Bytes)
            and memoryview(cast("bytes", value)).nbytes > LONGEST_LITERAL
        ):
            return None
        return self._tx.as_literal(value)


def as_bytes(
    query: Query | sql.Composable, tx: AnyTransformer, *, with_params: bool
) -> bytes:
    """Encode a query; in composed ones, guard the percent signs that are no placeholders.

    A `psycopg.sql.Literal` or `psycopg.sql.Identifier` may hold any text, which must
    not be read as part of the query.
    """
    if isinstance(query, str):
        try:
            return query.encode()
        except UnicodeEncodeError:
            raise DataError("a query with lone surrogates is not Unicode") from None
    if isinstance(query, bytes):
        return query
    if isinstance(query, sql.Composed):
        return b"".join(as_bytes(part, tx, with_params=with_params) for part in query)
    if isinstance(query, sql.Composable):
        text = query.as_bytes(tx)
        if with_params and not isinstance(query, (sql.SQL, sql.Placeholder)):
            text = text.replace(b"%", b"%%")
        return text
    raise NotSupportedError(
        f"a query is a str, bytes or psycopg.sql object, not {type(query).__name__}"
    )


def refuse_prepare(prepare: bool | None) -> None:  # noqa: FBT001
    """Refuse to prepare a statement.

    A prepared statement fails for ever once its table was dropped and made again,
    and can pair the new table's data with the old one's columns without a word.
    """
    if prepare:
        raise NotSupportedError(
            "Hyper's prepared statements go stale when a table changes, and mislabel "
            "its data: leave prepare and prepare_threshold at None"
        )


def _statement_of(query: PostgresQuery) -> Statement:
    if isinstance(query, HyperQuery):
        return query.statement
    return read_statement(query.query)


class HyperCopy(AsyncCopy):
    """A COPY that reads its rows one by one.

    Hyper sends many rows in one message, where psycopg expects one, reads the first
    and drops the others without a word.
    """

    _lines: deque[bytes] | None = None
    _rest = b""

    async def read_row(self) -> tuple[Any, ...] | None:
        """Read a row of a ``COPY … TO STDOUT WITH (FORMAT TEXT)``; None at the end.

        A checkpoint whenever the next rows have to come from the server.
        """
        if self._lines is None:
            self._lines = deque()
        while not self._lines:
            data = await self.read()
            if not data:
                return None
            *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
            self._lines.extend(lines)
        return self.formatter.parse_row(self._lines.popleft() + b"\n")


class HyperCursorMixin(AsyncCursor[Row]):
    """What all cursors share: results, and the statements that must not be sent."""

    _binary_result = False

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        """Execute a statement, as `psycopg.AsyncCursor.execute` does.

        Raises:
            psycopg.NotSupportedError: if ``prepare`` is true: see `HyperConnection`.
        """
        refuse_prepare(prepare)
        await super().execute(query, params, binary=binary)  # type: ignore[arg-type]
        return self

    def _get_prepared(
        self,
        pgq: PostgresQuery,
        prepare: bool | None = None,  # noqa: FBT001
    ) -> tuple[Prepare, bytes]:
        return (Prepare.NO, b"")

    def _execute_gen(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> PQGen[None]:
        yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
        # RESET goes back to what the server started with, not to what the session
        # was opened with.
        if (pgq := self._query) and _statement_of(pgq).resets_settings:
            yield from self._conn._exec_command(EXACT_FLOATS)  # noqa: SLF001

    def _execute_send(
        self,
        query: PostgresQuery,
        *,
        force_extended: bool = False,
        binary: bool | None = None,
    ) -> None:
        statement = _statement_of(query)
        self._binary_result = bool(self.format if binary is None else binary)
        if (trouble := statement.if_extended) and (
            force_extended
            or query.params
            or self._binary_result
            or self._conn._pipeline  # noqa: SLF001
        ):
            raise NotSupportedError(
                f"{statement.verb} by the extended protocol, which binary results, "
                f"stream(), pipelines and server-bound parameters use, {trouble}"
            )
        if not _ROUNDED.isdisjoint(query.types):
            raise NotSupportedError(
                "bound by the server, a decimal or an integer beyond 64 bits would be "
                "rounded or overflow: bind it on the client, which is the default"
            )
        self._note(statement)
        super()._execute_send(query, force_extended=force_extended, binary=binary)

    def _note(self, statement: Statement) -> None:
        # Connections of other classes have nobody who asks for it.
        if statement.changes_session and (
            traces := getattr(self._conn, "session_traces", None)
        ):
            traces.note(statement)

    # The server answers in the binary form it was asked for, and describes it as
    # text: what was asked for decides how to read it.

    def _select_current_result(self, i: int, format: pq.Format | None = None) -> None:  # noqa: A002
        if self._binary_result:
            format = pq.Format.BINARY  # noqa: A001
        super()._select_current_result(i, format)

    def _stream_fetchone_gen(self, first: bool) -> PQGen[PGresult | None]:  # noqa: FBT001
        result = yield from super()._stream_fetchone_gen(first)
        if first and result is not None and self._binary_result:
            self._tx.set_pgresult(result, format=pq.Format.BINARY)
        return result

    @asynccontextmanager
    async def copy(
        self,
        statement: Query,
        params: Params | None = None,
        *,
        writer: AsyncWriter | None = None,
    ) -> AsyncGenerator[HyperCopy]:
        """Start a COPY, as `psycopg.AsyncCursor.copy` does."""
        async with super().copy(statement, params, writer=writer) as copy:
            # psycopg names the class where it makes the object.
            copy.__class__ = HyperCopy
            yield cast("HyperCopy", copy)

    def _start_copy_gen(
        self, statement: Query, params: Params | None = None
    ) -> PQGen[None]:
        if self._conn._pipeline:  # noqa: SLF001
            raise NotSupportedError("COPY cannot be used in pipeline mode")
        query = HyperQuery(Transformer(self))
        query.convert(statement, params)
        if query.params:
            raise NotSupportedError(
                f"a parameter of COPY is at most {LONGEST_LITERAL} bytes long"
            )
        if lacks_copy_format(query.query):
            raise ProgrammingError(
                "Hyper's COPY from or to the client names its format: for "
                "Copy.write_row() and rows() add WITH (FORMAT TEXT)"
            )
        yield from super()._start_copy_gen(query.query)


class HyperCursor(HyperCursorMixin[Row]):
    """A cursor that writes the parameters into the query, as literals: the default.

    It is more than twice as fast as letting the server bind them, and right where
    that is silently wrong: in ``VALUES`` of several rows, and for `decimal.Decimal`.
    """

    _query_cls = HyperQuery

    def mogrify(self, query: Query, params: Params | None = None) -> str:
        """Give the text that `execute` would send.

        Raises:
            psycopg.NotSupportedError: if a parameter is too long for a literal.
        """
        pgq = HyperQuery(Transformer(self))
        pgq.convert(query, params)
        if pgq.params:
            raise NotSupportedError("a parameter is too long for a literal")
        return pgq.query.decode()


class HyperServerBindingCursor(HyperCursorMixin[Row]):
    """A cursor that lets the server bind the parameters.

    ``conn.cursor_factory = HyperServerBindingCursor`` makes it a connection's
    default. ``LIMIT %s``, ``IN (%s, …)`` and ``%s IS NULL`` do not work with it, and
    a top-level ``VALUES`` of several rows gives the first one only: that is refused.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for cls in (bytes, bytearray, memoryview):
            self.adapters.register_dumper(cls, ServerBoundBytesDumper)


class HyperNamedCursor(HyperCursorMixin[Row], AsyncServerCursor[Row]):
    """A named cursor, whose rows stay on the server until they are fetched.

    Rows always come as text, as fetching them in the binary form crashes the server.
    """

    _query_cls = HyperQuery

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        binary: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Declare the cursor, as `psycopg.AsyncServerCursor.execute` does."""
        declaring = cast("Any", super(HyperCursorMixin, self))
        await declaring.execute(query, params, binary=binary, **kwargs)
        return self

    def _declare_gen(
        self,
        query: Query,
        params: Params | None = None,
        binary: bool | None = None,  # noqa: FBT001
    ) -> PQGen[None]:
        yield from super()._declare_gen(query, params, binary=False)

    def _execute_send(
        self,
        query: PostgresQuery,
        *,
        force_extended: bool = False,
        binary: bool | None = None,
    ) -> None:
        if query.params:
            raise NotSupportedError(
                f"a parameter of a named cursor is at most {LONGEST_LITERAL} bytes long"
            )
        super()._execute_send(query, force_extended=force_extended, binary=False)

    def _fetch_gen(self, num: int | None) -> PQGen[list[Row]]:
        self._refuse_pipeline("FETCH")
        return (yield from super()._fetch_gen(num))

    def _scroll_gen(self, value: int, mode: str) -> PQGen[None]:
        self._refuse_pipeline("MOVE")
        yield from super()._scroll_gen(value, mode)

    def _refuse_pipeline(self, verb: str) -> None:
        if self._conn._pipeline:  # noqa: SLF001
            raise NotSupportedError(f"{verb} in a pipeline crashes hyperd")
