"""`TrioConnection`: what psycopg's connection does, made to hold under cancellation."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, cast

import psycopg
from psycopg import AsyncCursor, AsyncPipeline, AsyncTransaction, errors, pq
from psycopg.abc import AdaptContext, ConnDict, ConnParam, Params, PQGen, Query
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import AsyncRowFactory, Row, scalar_row, tuple_row
from trio.lowlevel import enable_ki_protection

from ._blocks import COMMIT, LOST, Pipeline, Transaction
from ._connecting import first_to_connect
from ._copying import TrioCursor
from ._draining import send_empty_query
from ._driving import DrivenConnection

_log: Final = logging.getLogger("trio_hyperpool")


class TrioConnection(DrivenConnection[Row]):
    """A `psycopg.AsyncConnection` that works in trio tasks.

    Several tasks may use it: they take turns, in the order they came.

    **Cancellation.** Cancelling a task stops its query on the server: a cancel request
    is sent, again and again if need be, and what the server answers is read, within
    `cancel_timeout`. Then the connection is usable as before; if time runs out it is
    closed. A statement outside of a transaction that was done when the request came
    is committed, and returns as if nothing had been cancelled.

    **Views.** `lend` makes an object of its own over the same libpq connection, good
    until its `end`.
    """

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        row_factory: AsyncRowFactory[Any] = tuple_row,
    ) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory: type[AsyncCursor[Row]] = cast("Any", TrioCursor)

    @classmethod
    @enable_ki_protection
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect to a server, as `psycopg.AsyncConnection.connect` does.

        A checkpoint. Either returns a connection, or raises, `trio.Cancelled` too,
        and leaves nothing open.

        Raises:
            psycopg.OperationalError: if no server could be reached, or all refused.
        """
        # Without a string there is nothing to read, which libpq takes its time for.
        params: ConnDict = {k: v for k, v in kwargs.items() if v is not None}
        if conninfo:
            params = conninfo_to_dict(conninfo, **params)
        connection: Self = await first_to_connect(params, cls._connect_gen)
        connection._autocommit = bool(autocommit)
        if row_factory is not None:
            connection.row_factory = row_factory
        if cursor_factory is not None:
            connection.cursor_factory = cursor_factory
        if context is not None:
            connection._adapters = AdaptersMap(context.adapters)
        connection._prepared.prepare_threshold = prepare_threshold
        connection._remember_settings()
        return connection

    @asynccontextmanager
    @enable_ki_protection
    async def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,  # noqa: FBT001, FBT002  psycopg's signature
    ) -> AsyncGenerator[AsyncTransaction]:
        """A transaction for the block, as `psycopg.AsyncConnection.transaction`.

        Entering and leaving are checkpoints. Left by an exception, `trio.Cancelled`
        too, it is rolled back, or the connection is closed.

        Raises:
            psycopg.errors.InFailedSqlTransaction: the block ended normally, but the
                server rolled back because of an earlier error.
        """
        tx = Transaction(self, savepoint_name, force_rollback)
        if self._pipeline is not None:
            async with self.pipeline(), tx, self.pipeline():
                yield tx
        else:
            async with tx:
                yield tx

    @asynccontextmanager
    @enable_ki_protection
    async def pipeline(self) -> AsyncGenerator[AsyncPipeline]:
        """Pipeline mode for the block, as `psycopg.AsyncConnection.pipeline`.

        Entering and leaving are checkpoints. Cancelled, what is in the pipeline is
        stopped, and pipeline mode is left, or the connection is closed.
        """
        async with self._turns:
            self._check_connection_ok()
            await self._leave_row_mode()
        if (pipeline := self._pipeline) is None:
            pipeline = self._pipeline = Pipeline(self)
        try:
            async with pipeline:
                yield pipeline
        finally:
            if pipeline.level == 0:
                self._pipeline = None

    @asynccontextmanager
    @enable_ki_protection
    async def _pipeline_nolock(self) -> AsyncGenerator[AsyncPipeline]:
        await self._leave_row_mode()
        pipeline = self._pipeline = Pipeline(self, _no_lock=True)
        try:
            async with pipeline:
                yield pipeline
        finally:
            self._pipeline = None  # pyright: ignore[reportIncompatibleVariableOverride]

    async def _leave_row_mode(self) -> None:
        # libpq takes the mode of a stream() along into the pipeline, where psycopg
        # does not expect single rows. Only a query outside of a pipeline ends it.
        if self._link.streamed and self._pipeline is None:
            await self.wait(send_empty_query(self.pgconn))
            self._link.streamed = False

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> PQGen[Any]:
        result = yield from super()._exec_command(command, *args, **kwargs)
        if command == b"COMMIT":
            if self._pipeline is not None:
                self._pipeline.result_queue[-1] = COMMIT
            elif result is not None and result.command_status == b"ROLLBACK":
                raise errors.InFailedSqlTransaction(LOST)
        return result

    async def close(self) -> None:
        """Close the connection; that of all its views. Never a checkpoint."""
        if not self.closed:
            self._closed = True
            self.abort()

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self.closed:
            return
        try:
            if exc_val is None:
                await self.commit()  # noqa: ASYNC102  closed if cancelled
            else:
                try:
                    await self._turns.clean_up(self._rollback_gen())  # noqa: ASYNC102  shields itself
                except psycopg.Error as error:
                    _log.warning("ignored in rolling back %r: %s", self, error)
        finally:
            await self.close()  # noqa: ASYNC102  awaits nothing

    # Conveniences

    async def execute_command(self, query: Query, params: Params | None = None) -> int:
        """Execute a statement, and return how many rows it affected; 0 for DDL.

        A checkpoint; cancelled, the statement is stopped.
        """
        cursor = await self.execute(cast("Any", query), params)
        if self._pipeline is not None:
            await self._pipeline.sync()
        return max(cursor.rowcount, 0)

    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Row]:
        """Execute a query, and return its rows.

        A checkpoint; cancelled, the query is stopped.
        """
        cursor = await self.execute(cast("Any", query), params)
        return await cursor.fetchall()

    async def fetch_one(self, query: Query, params: Params | None = None) -> Row | None:
        """Execute a query, and return its first row, or None if there is none.

        A checkpoint; cancelled, the query is stopped.
        """
        cursor = await self.execute(cast("Any", query), params)
        return await cursor.fetchone()

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Execute a query, and return the first column of its first row, or None.

        A checkpoint; cancelled, the query is stopped.
        """
        cursor = self.cursor(row_factory=scalar_row)
        await cursor.execute(cast("Any", query), params)
        return await cursor.fetchone()

    async def ping(self) -> None:
        """Ask the server for a sign of life: an empty query, one round trip.

        A checkpoint; cancelled, the connection is usable, or closed.

        Raises:
            psycopg.OperationalError: there is none.
        """
        async with self._turns:
            self._check_connection_ok()
            if self._pipeline is not None:
                await self.wait(self._pipeline._sync_gen())
            else:
                await self.wait(send_empty_query(self.pgconn))
