"""Cursors for Hyper: where parameters are bound, and what is not to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, Self, cast

from psycopg import NotSupportedError, ProgrammingError
from psycopg.abc import Params, Query
from psycopg.rows import Row

from ._arrays import NUMERIC_ARRAY
from ._binding import Statement, lacks_copy_format, parse, read_statement
from ._driver import GuardedCursor, GuardedNamedCursor, LiteralQuery, Written
from ._dumpers import NUMERIC, ServerBoundBytesDumper
from ._inserts import Batch, Insert, read_insert

LONGEST_LITERAL: Final = 1_000_000
"""In bytes: the server refuses a little more, in the middle of parsing the query."""

EXACT_FLOATS: Final = b"SET extra_float_digits = 3"
"""Without it the server sends 15 digits of a double, and a third of them lie."""

# The server reads such a parameter as one of few digits and none after the point.
_ROUNDED: Final = frozenset({NUMERIC, NUMERIC_ARRAY})


class HyperQuery(LiteralQuery):
    """A query whose literals stand where Hyper reads them as such."""

    __slots__ = ()

    longest_literal = LONGEST_LITERAL
    cut = staticmethod(parse)

    def batches(self, text: bytes, params_seq: Iterable[Params]) -> Iterable[Params]:
        """Join the rows of an INSERT, as far as they are stored the same like that."""
        insert = read_insert(text)
        return params_seq if insert is None else self._joined(insert, params_seq)

    def _joined(self, insert: Insert, rows: Iterable[Params]) -> Iterator[Params]:
        batch = Batch(insert)
        for row in rows:
            literals = [self.literal(v) for v in insert.row.arrange(row or ())]
            written = [literal for literal in literals if literal is not None]
            is_whole = len(written) == len(literals)
            if is_whole and batch.add(written):
                continue
            if batch:
                yield Written(batch.text())
                batch = Batch(insert)
            if is_whole:
                batch.add(written)
            else:
                yield row  # the server binds what is too long for a literal
        if batch:
            yield Written(batch.text())


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


class HyperCursorMixin(GuardedCursor[Row]):
    """What all cursors share: the statements that must not be sent, or not like that."""

    literal_query: ClassVar[type[LiteralQuery]] = HyperQuery

    _statement: Statement

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

    def before_send(
        self, text: bytes, types: Sequence[int], *, is_extended: bool
    ) -> None:
        """Refuse what the server would get wrong, or would crash of."""
        self._statement = statement = read_statement(text)
        if is_extended and (trouble := statement.if_extended):
            raise NotSupportedError(
                f"{statement.verb} by the extended protocol, which binary results, "
                f"stream(), pipelines and server-bound parameters use, {trouble}"
            )
        if not _ROUNDED.isdisjoint(types):
            raise NotSupportedError(
                "bound by the server, a decimal or an integer beyond 64 bits would be "
                "rounded or overflow: bind it on the client, which is the default"
            )
        # Connections of other classes have nobody who asks for it.
        if statement.changes_session and (
            traces := getattr(self.connection, "session_traces", None)
        ):
            traces.note(statement)

    def after_execute(self) -> bytes | None:
        """Set what RESET took back to what the server, not the session, began with."""
        return EXACT_FLOATS if self._statement.resets_settings else None

    def before_copy(self, text: bytes) -> None:
        """Refuse a COPY that names no format."""
        if lacks_copy_format(text):
            raise ProgrammingError(
                "Hyper's COPY from or to the client names its format: for "
                "Copy.write_row() and rows() add WITH (FORMAT TEXT)"
            )


class HyperCursor(HyperCursorMixin[Row]):
    """A cursor that writes the parameters into the query, as literals: the default.

    It is more than twice as fast as letting the server bind them, and right where
    that is silently wrong: in ``VALUES`` of several rows, and for `decimal.Decimal`.
    `executemany` of an INSERT joins rows that are stored the same in one statement.
    """

    def mogrify(self, query: Query, params: Params | None = None) -> str:
        """Give the text that `execute` would send.

        Raises:
            psycopg.NotSupportedError: if a parameter is too long for a literal.
        """
        text = self.with_literals(query, params)
        if text is None:
            raise NotSupportedError("a parameter is too long for a literal")
        return text.decode()


class HyperServerBindingCursor(HyperCursorMixin[Row]):
    """A cursor that lets the server bind the parameters.

    ``conn.cursor_factory = HyperServerBindingCursor`` makes it a connection's
    default. ``LIMIT %s``, ``IN (%s, …)`` and ``%s IS NULL`` do not work with it, and
    a top-level ``VALUES`` of several rows gives the first one only: that is refused.
    """

    binds_on_server: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for cls in (bytes, bytearray, memoryview):
            self.adapters.register_dumper(cls, ServerBoundBytesDumper)


class HyperNamedCursor(HyperCursorMixin[Row], GuardedNamedCursor[Row]):
    """A named cursor, whose rows stay on the server until they are fetched.

    Rows always come as text, as fetching them in the binary form crashes the server.
    """

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

    def before_send(
        self, text: bytes, types: Sequence[int], *, is_extended: bool
    ) -> None:
        """Refuse a parameter that is too long for a literal, too."""
        if types:
            raise NotSupportedError(
                f"a parameter of a named cursor is at most {LONGEST_LITERAL} bytes long"
            )
        super().before_send(text, types, is_extended=is_extended)

    def before_fetch(self, verb: str) -> None:
        """Refuse to fetch in a pipeline."""
        if self.in_pipeline:
            raise NotSupportedError(f"{verb} in a pipeline crashes hyperd")
