"""Cursors with rules of their own for how parameters are bound, and what may be sent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, cast

from psycopg import (
    AsyncServerCursor,
    DataError,
    NotSupportedError,
    pq,
    sql,
)
from psycopg._preparing import Prepare
from psycopg._queries import PostgresQuery
from psycopg.abc import Buffer, Params, PQGen, Query, Transformer as AnyTransformer
from psycopg.adapt import PyFormat, Transformer
from psycopg.rows import Row

from ._copying import BoundedCopy, LinewiseCopy, TrioCursor

_Bytes: TypeAlias = bytes | bytearray | memoryview


class Template(Protocol):
    """A query cut at its placeholders: there is one chunk more than there are those."""

    @property
    def chunks(self) -> Sequence[bytes]:
        """What stands before, between and after the placeholders."""
        ...

    def arrange(self, params: Params) -> Sequence[Any]:
        """Put the parameters in the order of their placeholders."""
        ...


class Written(NamedTuple):
    """A statement that is to go as it is, in place of a set of parameters."""

    text: bytes


class LiteralQuery(PostgresQuery):
    """A query whose parameters stand in its text, save those too long for a literal."""

    __slots__ = ("_template", "unbound")

    query: bytes
    params: Sequence[Buffer | None] | None
    types: tuple[int, ...]
    formats: Sequence[pq.Format] | None
    unbound: bytes
    """The text without the literals that were put in."""
    _template: Template

    longest_literal: ClassVar[int]
    """In bytes; a longer one goes beside the query, for the server to bind."""

    @staticmethod
    @abstractmethod
    def cut(text: bytes, /) -> Template:
        """Find the placeholders; a subclass knows how."""

    def convert(self, query: Query, vars: Params | None) -> None:  # noqa: A002
        """Read the query and put the parameters in."""
        # A parameter's text says nothing about the query, and may be long.
        self.unbound = text = _as_bytes(query, self._tx, with_params=vars is not None)
        if b"\0" in text:
            # libpq would send what is before it.
            raise DataError("a query cannot hold a NUL character")
        if vars is None:
            self._send_as_it_is(text)
            return
        self._template = self.cut(text)
        self.dump(vars)

    def dump(self, vars: Params | None) -> None:  # noqa: A002
        """Put other parameters into the query that was read last."""
        if isinstance(vars, Written):
            self._send_as_it_is(vars.text)
            return
        params: list[Buffer | None] = []
        types: list[int] = []
        formats: list[pq.Format] = []
        chunks = self._template.chunks
        pieces = [chunks[0]]
        values = self._template.arrange(vars or ())
        for value, chunk in zip(values, chunks[1:], strict=True):
            if (literal := self.literal(value)) is None:
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

    def _send_as_it_is(self, text: bytes) -> None:
        self.query = text
        self.params = self.formats = None
        self.types = ()

    @abstractmethod
    def batches(self, text: bytes, params_seq: Iterable[Params], /) -> Iterable[Params]:
        """Give what `executemany` is to send: `Written` in place of several sets."""

    def literal(self, value: Any) -> bytes | None:
        """Write a value as a literal; None if it is too long for that."""
        if value is None:
            return b"NULL"
        if (
            isinstance(value, _Bytes)
            and memoryview(cast("bytes", value)).nbytes > self.longest_literal
        ):
            return None
        literal = self._tx.as_literal(value)
        return literal if len(literal) <= self.longest_literal else None


def _as_bytes(
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
        return b"".join(_as_bytes(part, tx, with_params=with_params) for part in query)
    if isinstance(query, sql.Composable):
        text = query.as_bytes(tx)
        if with_params and not isinstance(query, (sql.SQL, sql.Placeholder)):
            text = text.replace(b"%", b"%%")
        return text
    raise NotSupportedError(
        f"a query is a str, bytes or psycopg.sql object, not {type(query).__name__}"
    )


class GuardedCursor(TrioCursor[Row]):
    """A cursor that looks at what it is about to send, and never prepares it.

    Results are read in the format that was asked for, whatever the server calls it.
    The methods whose names begin with ``before`` and ``after`` are for subclasses.
    """

    copy_class: ClassVar[type[BoundedCopy]] = LinewiseCopy

    literal_query: ClassVar[type[LiteralQuery]]
    """How parameters are put into a query."""

    binds_on_server: ClassVar[bool] = False
    """Whether they are not, but for those of a COPY."""

    _binary_result: bool = False

    @property
    def in_pipeline(self) -> bool:
        """Whether what is sent goes through a pipeline."""
        return self._conn._pipeline is not None

    def with_literals(self, query: Query, params: Params | None) -> bytes | None:
        """Put the parameters into a query; None if one is too long for a literal."""
        pgq = self.literal_query(Transformer(self))
        pgq.convert(query, params)
        return None if pgq.params else pgq.query

    def before_send(
        self, text: bytes, types: Sequence[int], *, is_extended: bool
    ) -> None:
        """Refuse a query, by raising.

        Args:
            text: the query, without the literals that were put in.
            types: the OIDs of the parameters that the server is to bind.
            is_extended: whether it would go by the extended protocol.
        """

    def after_execute(self) -> bytes | None:
        """Give a statement that has to follow the one that was executed, if any."""

    def before_copy(self, text: bytes) -> None:
        """Refuse a COPY, whose parameters are in its text, by raising."""

    def _convert_query(
        self, query: Query, params: Params | None = None
    ) -> PostgresQuery:
        if self.binds_on_server:
            return super()._convert_query(query, params)
        pgq = self.literal_query(self._tx)
        pgq.convert(query, params)
        return pgq

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
        if (statement := self.after_execute()) is not None:
            yield from self._conn._exec_command(statement)

    def _execute_send(
        self,
        query: PostgresQuery,
        *,
        force_extended: bool = False,
        binary: bool | None = None,
    ) -> None:
        self._binary_result = bool(self.format if binary is None else binary)
        self.before_send(
            query.unbound if isinstance(query, LiteralQuery) else query.query,
            query.types,
            is_extended=bool(
                force_extended
                or query.params
                or self._binary_result
                or self._conn._pipeline
            ),
        )
        super()._execute_send(query, force_extended=force_extended, binary=binary)

    def _start_copy_gen(
        self, statement: Query, params: Params | None = None
    ) -> PQGen[None]:
        if self.in_pipeline:
            raise NotSupportedError("COPY cannot be used in pipeline mode")
        text = self.with_literals(statement, params)
        if text is None:
            raise NotSupportedError(
                "a parameter of COPY is at most "
                f"{self.literal_query.longest_literal} bytes long"
            )
        self.before_copy(text)
        yield from super()._start_copy_gen(text)

    def _executemany_gen_pipeline(
        self,
        query: Query,
        params_seq: Iterable[Params],
        returning: bool,  # noqa: FBT001
    ) -> PQGen[None]:
        batches = self._batches(query, params_seq, returning)
        yield from super()._executemany_gen_pipeline(query, batches, returning)

    def _executemany_gen_no_pipeline(
        self,
        query: Query,
        params_seq: Iterable[Params],
        returning: bool,  # noqa: FBT001
    ) -> PQGen[None]:
        batches = self._batches(query, params_seq, returning)
        yield from super()._executemany_gen_no_pipeline(query, batches, returning)

    def _batches(
        self,
        query: Query,
        params_seq: Iterable[Params],
        returning: bool,  # noqa: FBT001
    ) -> Iterator[Params]:
        if returning or self.binds_on_server:
            yield from params_seq
            return
        # A generator: it begins when there is a transformer for this query.
        text = _as_bytes(query, self._tx, with_params=True)
        yield from self.literal_query(self._tx).batches(text, params_seq)

    # Hyper answers in the binary form it was asked for, and describes it as text.

    def _select_current_result(self, i: int, format: pq.Format | None = None) -> None:  # noqa: A002
        if self._binary_result:
            format = pq.Format.BINARY  # noqa: A001
        super()._select_current_result(i, format)

    def _stream_fetchone_gen(self, first: bool) -> PQGen[pq.abc.PGresult | None]:  # noqa: FBT001
        result = yield from super()._stream_fetchone_gen(first)
        if first and result is not None and self._binary_result:
            self._tx.set_pgresult(result, format=pq.Format.BINARY)
        return result


class GuardedNamedCursor(GuardedCursor[Row], AsyncServerCursor[Row]):
    """A named cursor of that kind, whose rows always come as text."""

    def before_fetch(self, verb: str) -> None:
        """Refuse to send a FETCH or MOVE, by raising."""

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
        super()._execute_send(query, force_extended=force_extended, binary=False)

    def _fetch_gen(self, num: int | None) -> PQGen[list[Row]]:
        self.before_fetch("FETCH")
        return (yield from super()._fetch_gen(num))

    def _scroll_gen(self, value: int, mode: str) -> PQGen[None]:
        self.before_fetch("MOVE")
        yield from super()._scroll_gen(value, mode)


class WatchedCursor(TrioCursor[Row]):
    """A cursor that shows what it is about to send, and is psycopg's own otherwise."""

    def note(self, text: bytes) -> None:
        """Take note of a statement; for subclasses."""

    def _get_prepared(
        self,
        pgq: PostgresQuery,
        prepare: bool | None = None,  # noqa: FBT001
    ) -> tuple[Prepare, bytes]:
        # What is prepared goes past _execute_send.
        self.note(pgq.query)
        return super()._get_prepared(pgq, prepare)

    def _execute_send(
        self,
        query: PostgresQuery,
        *,
        force_extended: bool = False,
        binary: bool | None = None,
    ) -> None:
        self.note(query.query)
        super()._execute_send(query, force_extended=force_extended, binary=binary)


class WatchedNamedCursor(WatchedCursor[Row], AsyncServerCursor[Row]):
    """A named cursor of that kind."""
