"""Transactions and pipelines that are left whatever becomes of the task."""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import trio
from psycopg import AsyncPipeline, AsyncTransaction, errors, pq
from psycopg.abc import PQGen
from trio.lowlevel import checkpoint_if_cancelled, enable_ki_protection

from ._draining import SYNC, drain_pipeline
from ._driving import DrivenConnection
from ._states import IN_TRANSACTION, OK, PIPELINE_OFF

COMMIT: Final[Any] = (None, "COMMIT")
"""What our pipelines have among the results still to come, in a COMMIT's place."""

LOST: Final = (
    "the transaction had failed before, and was rolled back: "
    "the server answered COMMIT with ROLLBACK"
)

_log: Final = logging.getLogger("trio_hyperpool")


class Transaction(AsyncTransaction):
    """A transaction that is rolled back whatever becomes of the task that leaves it."""

    _conn: DrivenConnection[Any]  # pyright: ignore[reportIncompatibleVariableOverride]  # never changed
    _was_entered = False
    _is_open = False

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        conn = self._conn
        if self._was_entered:
            raise TypeError("transaction blocks can be used only once")
        self._was_entered = True
        try:
            async with conn.lock:
                await conn.wait(self._opening())
        except BaseException as error:
            await self._undo(error)  # noqa: ASYNC102  shields itself
            raise
        return self

    def _opening(self) -> PQGen[None]:
        self._is_open = self._conn.pgconn.status == OK
        yield from self._enter_gen()

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        conn = self._conn
        if exc_val is not None or self.force_rollback:
            return await self._undo(exc_val)  # noqa: ASYNC102  shields itself
        if conn.broken and not conn.is_ended:
            raise errors.OperationalError(
                "the connection was lost: the transaction is not committed"
            )
        if conn.closed and not conn.is_ended:
            # Closed on purpose, as psycopg allows.
            return await super().__aexit__(exc_type, exc_val, exc_tb)  # noqa: ASYNC102  awaits nothing
        try:
            async with conn.lock:  # noqa: ASYNC102  undone if cancelled
                await conn.wait(self._closing())  # noqa: ASYNC102  undone if cancelled
        except BaseException as error:
            await self._undo(error)  # noqa: ASYNC102  shields itself
            raise
        return False

    def _closing(self) -> PQGen[bool]:
        self._is_open = False
        return (yield from self._exit_gen(None, None, None))

    def _rolling_back(self, error: BaseException | None) -> PQGen[bool]:
        is_handled = yield from self._exit_gen(
            None if error is None else type(error), error, None
        )
        if (pipeline := self._conn._pipeline) is not None:
            # Sent at once: a pipeline that is abandoned drops what it has not sent.
            yield from pipeline._sync_gen()
        return is_handled

    async def _undo(self, error: BaseException | None) -> bool:
        conn = self._conn
        if conn.is_ended:
            if error is None or isinstance(error, psycopg.Rollback):
                conn._check_connection_ok()
            return False
        if conn.closed:
            return await super().__aexit__(
                None if error is None else type(error), error, None
            )
        if self._is_open:
            self._is_open = False
            undoing: PQGen[Any] = self._rolling_back(error)
        elif (
            self._outer_transaction
            and not conn._pipeline
            and conn.pgconn.transaction_status in IN_TRANSACTION
        ):
            # COMMIT was stopped.
            undoing = conn._exec_command(b"ROLLBACK")
        else:
            return False
        try:
            return bool(await conn._turns.clean_up(undoing))
        except psycopg.ProgrammingError:
            # Blocks left in the wrong order: to be heard before anything else.
            raise
        except psycopg.Error as failure:
            if error is None:
                raise
            _log.warning("the transaction of %r was not rolled back: %s", conn, failure)
            return False


class Pipeline(AsyncPipeline):
    """A pipeline that is left whatever becomes of the task that leaves it."""

    _conn: DrivenConnection[Any]  # pyright: ignore[reportIncompatibleVariableOverride]  # never changed

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        async with self._lock:
            await self._conn.wait(self._enter_gen())
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        conn = self._conn
        is_interrupted = trio.current_effective_deadline() == -math.inf or (
            exc_val is not None and not isinstance(exc_val, Exception)
        )
        try:
            if is_interrupted and not conn.closed:
                await self._abandon()  # noqa: ASYNC102  shields itself
            else:
                async with self._lock:  # noqa: ASYNC102  undone if cancelled
                    await conn.wait(self._exit_gen())  # noqa: ASYNC102  undone if cancelled
        except Exception as error:
            if exc_val is None:
                raise
            _log.warning("ignored on leaving %r: %s", self, error)
        finally:
            self._leave(exc_val)
        if is_interrupted and exc_val is None:
            await checkpoint_if_cancelled()  # noqa: ASYNC102  is to raise

    async def _abandon(self) -> None:
        conn = self._conn
        emptying = drain_pipeline(conn.pgconn, self)
        if emptying is None:
            return
        try:
            await conn._turns.clean_up(emptying, lock=self._lock, patience=0.0)
        except psycopg.Error as error:
            _log.debug("%r: %s", self, error)
            conn.abort()

    def _leave(self, exc: BaseException | None) -> None:
        try:
            self._exit(exc)
        finally:
            conn = self._conn
            if self.level == 0 and conn.pgconn.pipeline_status != PIPELINE_OFF:
                _log.warning("%r could not be left: closing the connection", self)
                conn.abort()

    def _enqueue_sync(self) -> None:
        super()._enqueue_sync()
        self.result_queue[-1] = SYNC

    def _process_results(self, queued: Any, results: list[pq.abc.PGresult]) -> None:
        if queued is SYNC:
            queued = None
        elif queued is COMMIT:
            queued = None
            if results and results[0].command_status == b"ROLLBACK":
                raise errors.InFailedSqlTransaction(LOST)
        super()._process_results(queued, results)
