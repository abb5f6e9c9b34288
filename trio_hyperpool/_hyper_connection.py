"""A connection to Hyper, and what its statements did to the session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, cast

from psycopg import (
    AsyncCursor,
    AsyncServerCursor,
    AsyncTransaction,
    NotSupportedError,
    errors,
    pq,
    sql,
)
from psycopg.abc import AdaptContext, ConnParam
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import AsyncRowFactory, Row, tuple_row

from ._binding import Statement
from ._catalogue import (
    Column,
    TableName,
    column_from_catalogue,
    creation,
    query_for_columns,
    query_for_tables,
)
from ._cursors import HyperCursor, HyperNamedCursor, refuse_prepare
from ._driver import IN_TRANSACTION, TrioConnection
from ._hyper_types import hyper_adapters


class SessionTraces:
    """What the statements of a session did to it, as far as their words tell.

    Seen are SET, RESET, ATTACH, DETACH, PREPARE, CREATE TEMPORARY TABLE, cursors WITH
    HOLD and ``set_config``. Not seen is what goes past the cursors, such as a COPY
    into a temporary table: but that was created by a statement.
    """

    __slots__ = ("aliases", "changed")

    def __init__(self) -> None:
        self.changed: bool = False
        self.aliases: list[str] = []

    def note(self, statement: Statement) -> None:
        """Keep in mind what a statement that is about to be sent will do."""
        self.changed = True
        if statement.alias is not None:
            self.aliases.append(statement.alias)

    def forget(self) -> None:
        """Take the session as it is for unchanged."""
        self.changed = False
        self.aliases.clear()


class HyperConnection(TrioConnection[Row]):
    """A connection to Hyper: a `psycopg.AsyncConnection` that works in trio tasks.

    What differs from psycopg's own:

    * Autocommit is on unless asked otherwise.
    * Parameters become literals in the query (``HyperCursor``), each with its type. Set
      ``cursor_factory = HyperServerBindingCursor`` to let the server bind them.
    * Statements are never prepared: Hyper's go stale when a table is dropped, and
      can pair one table's data with another's columns. ``prepare=True`` raises
      `psycopg.NotSupportedError`.
    * ``transaction()`` within another, or with a savepoint's name, raises
      `psycopg.NotSupportedError` before anything is sent: Hyper has no savepoints.
    * Values come back exactly, as text and with ``binary=True``, or raise: an interval
      of months is no `datetime.timedelta`, an infinite date no `datetime.date`.
    """

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        row_factory: AsyncRowFactory[Any] = tuple_row,
    ) -> None:
        super().__init__(pgconn, row_factory)
        # Hyper has no LISTEN: what came all the same would pile up, unread.
        pgconn.notify_handler = None
        self.cursor_factory: type[AsyncCursor[Row]] = cast(
            "type[AsyncCursor[Row]]", HyperCursor
        )
        self.server_cursor_factory: type[AsyncServerCursor[Row]] = cast(
            "type[AsyncServerCursor[Row]]", HyperNamedCursor
        )
        self._template = hyper_adapters()
        self._is_in_block = False
        # One object for the connection and all its views.
        self.session_traces: SessionTraces = SessionTraces()

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = None,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect to a server, as `psycopg.AsyncConnection.connect` does.

        A checkpoint. Either returns a connection, or raises, `trio.Cancelled` too,
        and leaves nothing open.

        Raises:
            psycopg.NotSupportedError: if ``prepare_threshold`` is not None.
        """
        refuse_prepare(prepare_threshold is not None)
        given = kwargs.get("options")
        if given is None and conninfo:
            given = conninfo_to_dict(conninfo).get("options")
        # First, so that what the caller asks for wins.
        kwargs["options"] = f"-c extra_float_digits=3 {given or ''}".rstrip()
        return await super().connect(
            conninfo,
            autocommit=autocommit,
            prepare_threshold=prepare_threshold,
            context=context,
            row_factory=row_factory,
            cursor_factory=cursor_factory,
            **kwargs,
        )

    @property
    def session_id(self) -> str:
        """What the server calls this session, in its log for instance."""
        return self.info.parameter_status("session_identifier") or ""

    @property
    def prepare_threshold(self) -> int | None:
        """Always None: statements are never prepared."""
        return super().prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        refuse_prepare(value is not None)

    @asynccontextmanager
    async def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,  # noqa: FBT001, FBT002 - psycopg's signature
    ) -> AsyncGenerator[AsyncTransaction]:
        """A transaction for the block.

        Entering and leaving are checkpoints. Left by an exception, `trio.Cancelled`
        too, it is rolled back, or the connection is closed. A rollback takes back
        what was done to rows; what was done to tables and databases stays.

        Raises:
            psycopg.NotSupportedError: within another transaction, or with the name
                of a savepoint; nothing was sent.
            psycopg.errors.InFailedSqlTransaction: the block ended normally, but the
                server rolled back because of an earlier error.
        """
        if savepoint_name is not None or self._is_in_block:
            raise _no_savepoints()
        if self.pgconn.pipeline_status:
            # A BEGIN that somebody wrote may be on its way.
            async with self.pipeline() as pipeline:
                await pipeline.sync()
        if self.pgconn.transaction_status in IN_TRANSACTION:
            raise _no_savepoints()
        self._is_in_block = True
        try:
            async with super().transaction(
                force_rollback=force_rollback
            ) as transaction:
                yield transaction
        finally:
            self._is_in_block = False

    async def set_read_only(self, value: bool | None) -> None:  # noqa: FBT001
        """Refuse ``True``: Hyper takes a read-only transaction and lets it write.

        A checkpoint as in psycopg; cancelled, nothing is changed.
        """
        if value:
            raise NotSupportedError("Hyper does not enforce read-only transactions")
        await super().set_read_only(value)

    # The catalogue

    async def tables(self, schema: str | None = None) -> list[TableName]:
        """List the tables of the database, ordered by schema and name.

        A checkpoint; cancelled, the query is stopped. The session's temporary tables
        are in the schema ``pg_temp``.

        Args:
            schema: list the tables of this schema only.
        """
        query, params = query_for_tables(schema)
        return [TableName(*row) for row in await self._ask(query, params)]

    async def columns(self, table: str | sql.Identifier) -> list[Column]:
        """List the columns of a table, in order.

        A checkpoint; cancelled, the query is stopped.

        Args:
            table: a `TableName`, or a string, which is one name, dots and all.

        Raises:
            psycopg.errors.UndefinedTable: there is no such table.
        """
        try:
            rows = await self._ask(query_for_columns(table), None)
        except errors.InvalidTextRepresentation as error:
            # Its words for a schema that does not exist, in the name of a table.
            raise errors.UndefinedTable(str(error)) from None
        return [column_from_catalogue(*row) for row in rows]

    async def create_table(
        self,
        table: str | sql.Identifier,
        columns: Iterable[Column] | Mapping[str, str],
        *,
        temporary: bool = False,
        if_not_exists: bool = False,
    ) -> None:
        """Create a table.

        A checkpoint; cancelled, the table is there, or not. It is, even if a
        transaction around this is rolled back.

        Args:
            table: a `TableName`, or a string, which is one name, dots and all.
            columns: each a `Column`; or a mapping of their names to their types.
            temporary: whether it is this session's only, and ends with it. Only
                temporary tables have columns of arrays.
            if_not_exists: whether a table of that name is left as it is.

        Raises:
            ValueError: if a column has no name, or no type that there is.
            psycopg.errors.DuplicateTable: there is a table of that name.
        """
        await self.execute(
            creation(table, columns, temporary=temporary, if_not_exists=if_not_exists)
        )

    async def _ask(self, query: Any, params: Any) -> list[tuple[Any, ...]]:
        cursor = self.cursor(row_factory=tuple_row)
        await cursor.execute(query, params)
        return await cursor.fetchall()


def _no_savepoints() -> NotSupportedError:
    return NotSupportedError(
        "a transaction within a transaction needs savepoints, which Hyper does not "
        "have: use the outer transaction, or end it first (without autocommit, every "
        "statement begins one)"
    )
