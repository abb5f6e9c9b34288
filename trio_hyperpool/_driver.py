"""psycopg's generators driven by trio's readiness.

This is the only file that relies on names that psycopg does not document:

* ``AsyncConnection``: ``_connect_gen``, ``_get_connection_params``, ``_exec_command``,
  ``_check_connection_ok``, ``_rollback_gen``, ``_should_cancel``, ``_try_cancel``,
  ``_num_transactions``, ``_pipeline``, ``_pipeline_nolock``, ``_prepared``,
  ``_adapters``, ``_autocommit``, ``_closed``, ``_notice_handlers``,
  ``_notify_handlers``, ``_notifies_backlog``, and that everything it sends goes
  through ``wait``, holding ``lock``
* ``BaseConnection._notice_handler``, ``._notify_handler``
* ``AsyncTransaction``: ``_conn``, ``_enter_gen``, ``_exit_gen``, ``_outer_transaction``
* ``AsyncPipeline``: ``_conn``, ``level``, ``command_queue``, ``result_queue``,
  ``_enqueue_sync``, ``_enter_gen``, ``_exit_gen``, ``_sync_gen``, ``_exit``,
  ``_process_results``
* the names of the generators ``AsyncServerCursor._close_gen``,
  ``AsyncCursor._stream_send_gen`` and ``generators.copy_to``
* ``psycopg.generators``: ``execute``, ``fetch``, ``send``; what they yield and want
* ``psycopg.errors._WaitTimeout``, where it exists
* ``psycopg._conninfo_utils``: ``get_param``, ``get_param_def``, ``is_ip_address``,
  ``split_attempts``; ``psycopg.conninfo.timeout_from_conninfo``

``tests/test_driver_private_names.py`` fails by name when one of them goes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import select
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar, cast
from weakref import ReferenceType, ref

import psycopg
import trio
from psycopg import (
    AsyncConnection,
    AsyncCursor,
    AsyncPipeline,
    AsyncTransaction,
    BaseConnection,
    capabilities,
    errors,
    generators,
    pq,
)
from psycopg._conninfo_utils import (
    get_param,
    get_param_def,
    is_ip_address,
    split_attempts,
)
from psycopg.abc import AdaptContext, ConnDict, ConnParam, Params, PQGen, Query
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo, timeout_from_conninfo
from psycopg.rows import AsyncRowFactory, Row, scalar_row, tuple_row
from psycopg.waiting import Wait
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
    wait_readable,
)

from ._errors import LeaseError
from ._waiting import NOTHING, READABLE, Turns, ready_now, wait_ready

T = TypeVar("T")

_TurnsLike: TypeAlias = Turns | AbstractAsyncContextManager[None]

_log: Final = logging.getLogger("trio_hyperpool")

_OK: Final = pq.ConnStatus.OK
_BAD: Final = pq.ConnStatus.BAD
_IDLE: Final = pq.TransactionStatus.IDLE
_ACTIVE: Final = pq.TransactionStatus.ACTIVE
_INTRANS: Final = pq.TransactionStatus.INTRANS
_INERROR: Final = pq.TransactionStatus.INERROR
_PIPELINE_OFF: Final = pq.PipelineStatus.OFF
_POLL_OK: Final = pq.PollingStatus.OK

CANCEL_TIMEOUT: Final = 5.0
"""Seconds for what has to be done after a cancellation, unless a connection says else."""

_FIRST_RESEND: Final = 0.05
"""A cancel request may overtake the query it is meant for: seconds until the next."""

_MAX_BUSY: Final = 0.002
"""Seconds that operations that never block may go on before other tasks get a turn."""

_INTERRUPTIONS: Final = (trio.Cancelled, KeyboardInterrupt, SystemExit)

# psycopg 3.2 has no name for it: there, an operation that ran out of time just ends.
_WaitTimeout: Final[type[psycopg.Error]] = getattr(
    errors, "_WaitTimeout", errors.OperationalError
)


class _EndedConnection:
    """The libpq connection of a view that has ended: there is nothing there.

    What a ``repr`` or a ``closed`` asks for is answered; anything else raises.
    """

    status = _BAD
    transaction_status = pq.TransactionStatus.UNKNOWN
    pipeline_status = _PIPELINE_OFF
    error_message = b""
    _encoding = "utf-8"

    def __init__(self, error: type[LeaseError]) -> None:
        self._error = error

    def finish(self) -> None:
        """Do nothing, as for any libpq connection that is finished already."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error


class _EndedConnections(dict[type[LeaseError], "pq.abc.PGconn"]):
    """One for each of the errors."""

    def __missing__(self, error: type[LeaseError]) -> pq.abc.PGconn:
        ended = self[error] = cast("pq.abc.PGconn", _EndedConnection(error))
        return ended


_ended_connections: Final = _EndedConnections()


class _Link:
    """What all views of one libpq connection have in common."""

    __slots__ = (
        "cancel_sent",
        "cancel_timeout",
        "cancelled_queries",
        "home",
        "is_doomed",
        "poller",
        "streamed",
        "target",
    )

    def __init__(self, connection: TrioConnection[Any]) -> None:
        self.cancel_sent = False
        self.cancel_timeout = CANCEL_TIMEOUT
        self.cancelled_queries = 0
        self.is_doomed = False
        self.poller: select.poll | None = None
        # Whether libpq is in single row mode, which only the next query ends.
        self.streamed = False
        # Weak, or no connection would ever be collected but by the cycle collector.
        self.home: ReferenceType[BaseConnection[Any]] = ref(connection)
        self.target: ReferenceType[BaseConnection[Any]] = self.home

    def notice(self, result: pq.abc.PGresult) -> None:
        """Pass a notice on to whose turn it is."""
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        if severity in (b"FATAL", b"PANIC"):
            # libpq takes the last words to an idle client for a notice.
            self.is_doomed = True
        BaseConnection._notice_handler(self.target, result)

    def notify(self, notification: pq.PGnotify) -> None:
        """Pass a notification on to whose turn it is."""
        BaseConnection._notify_handler(self.target, notification)


class _ConnectionTurns(Turns):
    """Whose turn it is on one connection, or one view of it.

    An operation ends with the server idle: one that was left in the middle of a
    result, such as a COPY that was not read to its end, is stopped and drained before
    the next one has its turn.
    """

    __slots__ = ("connection", "is_stopping", "last_pause", "pgconn")

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        # Not by way of the other __init__: one of these is made for every lease.
        self.ended = None
        self.is_taken = False
        self._queue = None
        self.pgconn = pgconn
        self.connection: ReferenceType[TrioConnection[Any]]
        # When other tasks last had a chance to run.
        self.last_pause = -math.inf
        # Whether the operation whose turn it is was cancelled on the server.
        self.is_stopping = False

    @enable_ki_protection
    def __aexit__(self, *exc: object) -> Awaitable[None]:
        pgconn = self.pgconn
        if (
            pgconn.transaction_status != _ACTIVE
            or pgconn.pipeline_status != _PIPELINE_OFF
        ):
            self.is_stopping = False
            self.release()
            return NOTHING
        return self._settle(exc[1])

    @enable_ki_protection
    async def _settle(self, reason: object) -> None:
        connection = self.connection()
        try:
            if connection is not None:
                # Little that is left unread is faster read than cancelled.
                at_once = reason is not None and not self.is_stopping
                patience = 0.0 if at_once else _FIRST_RESEND
                await connection._carry_through(_drain(self.pgconn), patience=patience)
        except psycopg.Error as error:
            if reason is None and not isinstance(error, errors.QueryCanceled):
                raise
            _log.debug("after %r: %s", reason, error)
        finally:
            self.is_stopping = False
            self.release()


def _drain(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Read, and throw away, all that the server has still to say."""
    yield from generators.send(pgconn)
    while pgconn.transaction_status == _ACTIVE:
        result = yield from generators.fetch(pgconn)
        if result is None:
            continue
        if result.status == pq.ExecStatus.COPY_IN:
            while not pgconn.put_copy_end(b"cancelled by the client"):
                yield from generators.send(pgconn)
            yield from generators.send(pgconn)
        elif result.status == pq.ExecStatus.COPY_OUT:
            yield from _drain_copy(pgconn)
        elif result.status == pq.ExecStatus.COPY_BOTH:
            raise errors.NotSupportedError("a replication stream can't be drained")


def _empty(pgconn: pq.abc.PGconn, syncs: int) -> PQGen[None]:
    """Drain a pipeline in which so many Syncs are still to be answered."""
    pgconn.pipeline_sync()
    syncs += 1
    yield from generators.send(pgconn)
    while pgconn.transaction_status == _ACTIVE:
        result = yield from generators.fetch(pgconn)
        if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
            syncs -= 1
            if syncs == 0 and pgconn.transaction_status == _ACTIVE:
                # Hyper may forget the error of a query whose rows it was sending.
                # Which answer belongs to which question is lost then.
                raise errors.OperationalError("the server owes an answer")


def _drain_copy(pgconn: pq.abc.PGconn) -> PQGen[None]:
    while (size := pgconn.get_copy_data(1)[0]) >= 0:
        if size == 0:
            while not (yield Wait.R):
                pass
            pgconn.consume_input()


def _empty_query(pgconn: pq.abc.PGconn) -> PQGen[None]:
    pgconn.send_query(b"")
    for result in (yield from generators.execute(pgconn)):
        if result.status != pq.ExecStatus.EMPTY_QUERY:
            raise errors.error_from_result(result)


class _Transaction(AsyncTransaction):
    """A transaction that is rolled back whatever becomes of the task that leaves it."""

    _conn: TrioConnection[Any]  # pyright: ignore[reportIncompatibleVariableOverride]  # never changed
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
        self._is_open = self._conn.pgconn.status == _OK
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
            and conn.pgconn.transaction_status in (_INTRANS, _INERROR)
        ):
            # COMMIT was stopped.
            undoing = conn._exec_command(b"ROLLBACK")
        else:
            return False
        try:
            return bool(await conn._clean_up(undoing, conn._turns))
        except psycopg.ProgrammingError:
            # Blocks left in the wrong order: to be heard before anything else.
            raise
        except psycopg.Error as failure:
            if error is None:
                raise
            _log.warning("the transaction of %r was not rolled back: %s", conn, failure)
            return False


_COMMIT: Final[Any] = (None, "COMMIT")
_SYNC: Final[Any] = (None, "Sync")
"""What a pipeline has among the results still to come, in their places."""

_LOST: Final = (
    "the transaction had failed before, and was rolled back: "
    "the server answered COMMIT with ROLLBACK"
)


class _Pipeline(AsyncPipeline):
    """A pipeline that is left whatever becomes of the task that leaves it."""

    _conn: TrioConnection[Any]  # pyright: ignore[reportIncompatibleVariableOverride]  # never changed

    def __init__(
        self,
        conn: TrioConnection[Any],
        turns: _TurnsLike,
    ) -> None:
        super().__init__(conn)
        self._lock = cast("Any", turns)

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
        emptying = self.emptying()
        if emptying is None:
            return
        conn = self._conn
        try:
            await conn._clean_up(emptying, self._lock, patience=0.0)
        except psycopg.Error as error:
            _log.debug("%r: %s", self, error)
            conn.abort()

    def emptying(self) -> PQGen[None] | None:
        """Expect no more results; read, and throw away, those that will still come."""
        pgconn = self._conn.pgconn
        # A Sync that was not sent yet will not be.
        syncs = self.result_queue.count(_SYNC) - self.command_queue.count(
            pgconn.pipeline_sync
        )
        self.command_queue.clear()
        self.result_queue.clear()
        return _empty(pgconn, syncs) if pgconn.transaction_status == _ACTIVE else None

    def _leave(self, exc: BaseException | None) -> None:
        try:
            self._exit(exc)
        finally:
            conn = self._conn
            if self.level == 0 and conn.pgconn.pipeline_status != _PIPELINE_OFF:
                _log.warning("%r could not be left: closing the connection", self)
                conn.abort()

    def _enqueue_sync(self) -> None:
        super()._enqueue_sync()
        self.result_queue[-1] = _SYNC

    def _process_results(self, queued: Any, results: list[pq.abc.PGresult]) -> None:
        if queued is _SYNC:
            queued = None
        elif queued is _COMMIT:
            queued = None
            if results and results[0].command_status == b"ROLLBACK":
                raise errors.InFailedSqlTransaction(_LOST)
        super()._process_results(queued, results)


class TrioConnection(AsyncConnection[Row]):
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

    _pipeline: _Pipeline | None  # pyright: ignore[reportIncompatibleVariableOverride]  # psycopg's, made stronger

    _own_adapters: AdaptersMap | None

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        row_factory: AsyncRowFactory[Any] = tuple_row,
    ) -> None:
        self._template: AdaptersMap | None = None
        super().__init__(pgconn, row_factory)
        self._link = link = _Link(self)
        self._turns = turns = _ConnectionTurns(pgconn)
        turns.connection = cast("ReferenceType[TrioConnection[Any]]", link.home)
        self.lock = turns  # type: ignore[assignment]  # all that psycopg wants of one
        pgconn.notice_handler = link.notice
        pgconn.notify_handler = link.notify
        self._notifies_backlog = deque()  # which psycopg 3.2 has not
        self._remember_settings()

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
        params = await cls._get_connection_params(conninfo, **kwargs)
        timeout = timeout_from_conninfo(params)
        failures: list[tuple[str, psycopg.Error]] = []
        for attempt in await _attempts(params):
            where = ", ".join(
                f"{key}: {attempt.get(key)!r}" for key in ("host", "port", "hostaddr")
            )
            try:
                connection = await cls._open(make_conninfo("", **attempt), timeout)
                break
            except psycopg.Error as error:
                _log.debug("no connection to %s: %s", where, error)
                failures.append((where, error))
        else:
            raise _combined(failures)
        connection._autocommit = bool(autocommit)
        if row_factory is not None:
            connection.row_factory = row_factory
        if cursor_factory is not None:
            connection.cursor_factory = cursor_factory
        if context is not None:
            connection._adapters = AdaptersMap(context.adapters)
        connection.prepare_threshold = prepare_threshold
        connection._remember_settings()
        return connection

    @classmethod
    async def _open(cls, conninfo: str, seconds: float) -> Self:
        connecting = cls._connect_gen(conninfo)
        try:
            with trio.move_on_after(seconds):
                try:
                    fd, want = next(connecting)
                    while True:
                        ready = await wait_ready(fd, want)
                        fd, want = connecting.send(cast("Any", ready))
                except StopIteration as done:
                    return cast("Self", done.value)
                except OSError as error:
                    raise errors.OperationalError(
                        f"connection failed: {error}"
                    ) from error
        finally:
            # Ends the libpq connection, if it was not finished.
            connecting.close()
        raise errors.ConnectionTimeout("connection timeout expired")

    def __del__(self, *_: Any) -> None:
        # psycopg's own, which looks for connections left open, takes its time.
        turns: _ConnectionTurns | None = self.__dict__.get("_turns")
        if turns is not None and turns.ended is None:
            super().__del__()

    # Views

    @enable_ki_protection
    def lend(self) -> Self:
        """Make a view of this connection: an object of its own, good until its `end`.

        It is as this connection is now, row and cursor factories, adapters and
        handlers included, and none of its changes comes back; only the prepared
        statements are shared. Notices and notifications go to the latest view.
        Not async, and takes about a microsecond.
        """
        view = object.__new__(type(self))
        turns = _ConnectionTurns(self.pgconn)
        # A copy and eight changes take a third of the time of one display.
        attributes = self.__dict__.copy()
        attributes["lock"] = attributes["_turns"] = turns
        attributes["_template"] = attributes["_own_adapters"] or self.adapters
        attributes["_own_adapters"] = None
        attributes["_notice_handlers"] = self._notice_handlers[:]
        attributes["_notify_handlers"] = self._notify_handlers[:]
        attributes["_notifies_backlog"] = deque()
        view.__dict__ = attributes
        target: ReferenceType[TrioConnection[Any]] = ref(view)
        turns.connection = target
        self._link.target = cast("ReferenceType[BaseConnection[Any]]", target)
        return view

    @enable_ki_protection
    def end(self, error: type[LeaseError]) -> bool:
        """End this view: from now on all that needs the server raises the error.

        That holds for whatever was made from it, and for tasks that wait for their
        turn. Rows that a cursor has fetched stay readable. `close` and `cancel` do
        nothing any more. Not async, and takes about a microsecond.

        Returns:
            Whether no operation of this view is still in progress, in another task or
            left unfinished. If one is, the connection is of no use to anybody else:
            `abort` it, so that its task wakes up and gets the error.
        """
        turns = self._turns
        is_free = not turns.is_taken and self._pipeline is None
        turns.pgconn = self.pgconn = _ended_connections[error]
        self._closed = True
        turns.end(error)
        link = self._link
        link.target = link.home
        prepared = self._prepared
        if (prepared.prepare_threshold, prepared.prepared_max) != self._settled:
            prepared.prepare_threshold, prepared.prepared_max = self._settled
        return is_free

    def adopt(self, view: Self) -> None:
        """Make a view's settings those of this connection, and of the views to come.

        For what a hook sets up: factories, adapters, handlers, autocommit and so on.
        """
        kept = {name: self.__dict__[name] for name in _OF_ONE_VIEW}
        adapters = view._adapters
        handlers = [*view._notice_handlers], [*view._notify_handlers]
        self.__dict__.update(view.__dict__)
        self.__dict__.update(kept)
        self._adapters = AdaptersMap(adapters) if adapters else None  # pyright: ignore[reportIncompatibleVariableOverride]
        self._notice_handlers, self._notify_handlers = handlers
        self._remember_settings()

    def _remember_settings(self) -> None:
        prepared = self._prepared
        self._settled = prepared.prepare_threshold, prepared.prepared_max

    @property
    def is_ended(self) -> bool:
        """Whether this is a view whose block is over."""
        return self._turns.ended is not None

    @property
    def _adapters(self) -> AdaptersMap | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        # Copied when a view first needs it: most of the cost of a view otherwise.
        own = self._own_adapters
        if own is None and self._template is not None:
            own = self._own_adapters = AdaptersMap(self._template)
        return own

    @_adapters.setter
    def _adapters(self, value: AdaptersMap | None) -> None:
        self._own_adapters = value

    def _check_connection_ok(self) -> None:
        if (ended := self._turns.ended) is not None:
            raise ended
        super()._check_connection_ok()

    # State, for a pool

    @property
    def cancel_timeout(self) -> float:
        """Seconds for what has to be done after a cancellation; for all views."""
        return self._link.cancel_timeout

    @cancel_timeout.setter
    def cancel_timeout(self, seconds: float) -> None:
        self._link.cancel_timeout = seconds

    @property
    def cancel_sent(self) -> bool:
        """Whether a cancel request was ever sent, by any view.

        One that arrives late would hit a query it was not meant for.
        """
        return self._link.cancel_sent

    @property
    def cancelled_queries(self) -> int:
        """How many operations were stopped by cancel requests, in all views."""
        return self._link.cancelled_queries

    def looks_alive(self) -> bool:
        """Whether this idle connection looks usable: a look at the socket.

        Not async; about a microsecond. What the server sent unasked (notices,
        notifications) is taken in.
        """
        pgconn = self.pgconn
        link = self._link
        if pgconn.status != _OK or pgconn.transaction_status != _IDLE or link.is_doomed:
            return False
        try:
            if not self._is_readable():
                return True
            pgconn.consume_input()
            pgconn.is_busy()
            while notification := pgconn.notifies():
                link.notify(notification)
            return self._is_sound() and not self._is_readable()
        except (psycopg.Error, OSError, ValueError):
            return False

    def _is_sound(self) -> bool:
        return self.pgconn.status == _OK and not self._link.is_doomed

    def _is_readable(self) -> bool:
        if sys.platform == "win32":
            return bool(ready_now(self.pgconn.socket, READABLE))
        poller = self._link.poller
        if poller is None:
            poller = self._link.poller = select.poll()
            poller.register(self.pgconn.socket, select.POLLIN)
        return bool(poller.poll(0))

    @enable_ki_protection
    def abort(self) -> None:
        """Close the socket at once. Tasks that wait on it wake up, with an error.

        Not async, and does not tell the server more than libpq does on its own.
        """
        pgconn = self.pgconn
        if pgconn.status != _BAD and trio.lowlevel.in_trio_run():
            with contextlib.suppress(psycopg.Error):
                trio.lowlevel.notify_closing(pgconn.socket)
        pgconn.finish()

    @property
    def is_busy(self) -> bool:
        """Whether the server is at work on a query, or in the middle of its answer."""
        pgconn = self.pgconn
        return (
            pgconn.transaction_status == _ACTIVE
            and pgconn.pipeline_status == _PIPELINE_OFF
        )

    def wake(self) -> None:
        """Wake a task up that waits for the server on a view that has ended."""
        trio.lowlevel.notify_closing(self.pgconn.socket)

    async def stop(self) -> None:
        """Stop what the server is at work on, and read its answer to the end.

        A checkpoint. Afterwards the connection is usable, or closed; that takes no
        longer than ``cancel_timeout``, even if it is cancelled.

        Raises:
            psycopg.OperationalError: the connection is closed.
        """
        with contextlib.suppress(errors.QueryCanceled):
            await self._clean_up(_drain(self.pgconn), self._turns, patience=0.0)

    # Waiting

    @enable_ki_protection
    async def wait(  # noqa: C901, PLR0912  the path of every query: no calls to save lines
        self,
        gen: PQGen[T],
        interval: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  psycopg's signature
    ) -> T:
        """Drive one of psycopg's generators to its end.

        A checkpoint. Cancelled before it started, nothing was sent; later, the server
        is made to stop, and the connection is usable or closed.
        """
        turns = self._turns
        name: str = gen.__name__  # type: ignore[attr-defined]  # a generator has one
        if name == "_close_gen":
            return await self._close_cursor(gen)
        await checkpoint_if_cancelled()
        if name == "_stream_send_gen":
            self._link.streamed = True
        fd = self.pgconn.socket
        if interval is not None or timeout is not None:
            return await self._wait_timed(gen, fd, interval, timeout)
        has_paused = False
        try:
            want = next(gen)
            while True:
                # After the first answer the next is often there, and there is nearly
                # always room to write: a look at the socket is cheaper than a pause.
                if (want != READABLE or has_paused) and (
                    monotonic() - turns.last_pause < _MAX_BUSY
                ):
                    ready = ready_now(fd, want)
                else:
                    ready = 0
                if not ready:
                    try:
                        if want == READABLE:
                            await wait_readable(fd)
                            ready = READABLE
                        else:
                            ready = await self._pause(fd, want)
                    except (trio.ClosedResourceError, OSError) as error:
                        raise self._lost() from error
                    has_paused = True
                    turns.last_pause = monotonic()
                want = gen.send(cast("Any", ready))
        except StopIteration as done:
            if not has_paused and monotonic() - turns.last_pause >= _MAX_BUSY:
                await cancel_shielded_checkpoint()
                turns.last_pause = monotonic()
            return cast("T", done.value)
        except _INTERRUPTIONS as interruption:
            return await self._interrupted(gen, interruption)

    async def _pause(self, fd: int, want: int) -> int:
        """Let others run, and see what the socket is ready for then."""
        if ready := ready_now(fd, want):
            await checkpoint()
            return ready
        return await wait_ready(fd, want)

    async def _wait_timed(
        self, gen: PQGen[T], fd: int, interval: float | None, limit: float | None
    ) -> T:
        deadline = trio.current_time() + (math.inf if limit is None else limit)
        try:
            want = next(gen)
            while True:
                # A first look, so that a timeout of 0 is one.
                if not (ready := ready_now(fd, want)):
                    tick = trio.current_time() + (
                        math.inf if interval is None else interval
                    )
                    with trio.move_on_at(min(deadline, tick)):
                        try:
                            ready = await wait_ready(fd, want)
                        except (trio.ClosedResourceError, OSError) as error:
                            raise self._lost() from error
                want = gen.send(cast("Any", ready))
                if trio.current_time() >= deadline:
                    raise _WaitTimeout("wait timeout expired")
        except StopIteration as done:
            await cancel_shielded_checkpoint()
            return cast("T", done.value)
        except _INTERRUPTIONS as interruption:
            return await self._interrupted(gen, interruption)

    def _lost(self) -> Exception:
        if (ended := self._turns.ended) is not None:
            return ended()
        return errors.OperationalError("the connection is closed")

    async def _interrupted(self, gen: PQGen[T], interruption: BaseException) -> T:
        """Leave the server with nothing to do, and raise: unless all was done."""
        pgconn = self.pgconn
        is_active = pgconn.transaction_status == _ACTIVE
        try:
            if pgconn.pipeline_status != _PIPELINE_OFF:
                await self._leave_pipeline(gen)
            elif is_active:
                result = await self._carry_through(gen, patience=0.0, is_waiting=True)
                if pgconn.transaction_status == _IDLE and isinstance(
                    interruption, trio.Cancelled
                ):
                    return result
                await self._finish_off(gen)
            else:
                gen.close()
        except psycopg.Error as error:
            _log.debug("after %r: %s", interruption, error)
            await self._finish_off(gen)
        raise interruption

    async def _leave_pipeline(self, gen: PQGen[Any]) -> None:
        # Expecting no more results comes first, or it would go on in a finally. It is
        # not to be resumed, as it may still have much to send.
        emptying = None if self._pipeline is None else self._pipeline.emptying()
        gen.close()
        if emptying is None:
            return
        try:
            await self._carry_through(emptying, patience=0.0)
        except psycopg.Error as error:
            _log.debug("the pipeline of %r: %s", self, error)
            self.abort()

    async def _finish_off(self, gen: PQGen[Any]) -> None:
        # psycopg ends a COPY that it sends by itself.
        name: str = gen.__name__  # type: ignore[attr-defined]  # a generator has one
        if self.pgconn.transaction_status == _ACTIVE and name != "copy_to":
            with contextlib.suppress(psycopg.Error):
                await self._carry_through(_drain(self.pgconn), patience=_FIRST_RESEND)

    async def _close_cursor(self, gen: PQGen[T]) -> T:
        # One that is held stays on the server for the whole session otherwise.
        try:
            return await self._carry_through(gen)
        except psycopg.Error as error:
            if trio.current_effective_deadline() > -math.inf:
                raise
            _log.debug("ignored in closing a cursor of %r: %s", self, error)
            return cast("T", None)

    @enable_ki_protection
    async def _clean_up(
        self,
        gen: PQGen[T],
        turns: _TurnsLike,
        *,
        patience: float = math.inf,
    ) -> T:
        """Do what is still to be done after an exception, when it is our turn."""
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self.cancel_timeout
        ):
            async with turns:
                return await self._carry_through(gen, patience=patience)
        raise self._give_up()

    @enable_ki_protection
    async def _carry_through(
        self, gen: PQGen[T], *, patience: float = math.inf, is_waiting: bool = False
    ) -> T:
        """Drive a generator to its end, shielded, within ``cancel_timeout``.

        Args:
            gen: what to drive.
            is_waiting: whether it was interrupted while it waited, and not fresh.
            patience: seconds until the first cancel request is sent; the others
                follow ever more slowly, as long as there is no end.

        Raises:
            psycopg.OperationalError: time ran out, and the connection is closed.
        """
        link = self._link
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + link.cancel_timeout
        ):
            try:
                driving = _Drive(gen, self.pgconn.socket, is_waiting=is_waiting)
                while True:
                    if patience > 0:
                        with trio.move_on_after(patience):
                            return await driving.run()
                    await self._stop()
                    patience = max(2 * patience, _FIRST_RESEND)
            except (trio.ClosedResourceError, OSError) as error:
                raise self._lost() from error
            except (KeyboardInterrupt, SystemExit):
                self._give_up()
                raise
        raise self._give_up()

    def _give_up(self) -> psycopg.OperationalError:
        """Close a connection that can't be put right."""
        if self.pgconn.status != _BAD:
            _log.warning("%r did not get idle in time: closing it", self)
            self.abort()
        return errors.OperationalError(
            f"the server did not end what was cancelled within {self.cancel_timeout:g} "
            "seconds: the connection is closed"
        )

    # Cancelling

    async def _stop(self) -> None:
        if not self._turns.is_stopping:
            self._turns.is_stopping = True
            self._link.cancelled_queries += 1
        try:
            await self._request_cancel()
        except (psycopg.Error, OSError) as error:
            # Over TLS, a server hangs up less politely than libpq expects.
            _log.debug("cancel request: %s", error)

    async def _request_cancel(self) -> None:
        self._link.cancel_sent = True
        if not capabilities.has_cancel_safe():
            await trio.to_thread.run_sync(
                self.pgconn.get_cancel().cancel, abandon_on_cancel=True
            )
            return
        request = self.pgconn.cancel_conn()
        try:
            request.start()
            while (status := request.poll()) != _POLL_OK:
                if status == pq.PollingStatus.READING:
                    await wait_ready(request.socket, READABLE)
                elif status == pq.PollingStatus.WRITING:
                    await trio.lowlevel.wait_writable(request.socket)
                else:
                    raise errors.OperationalError(
                        f"cancellation failed: {request.get_error_message()}"
                    )
        finally:
            request.finish()

    def cancel(self) -> None:
        """Ask the server to stop what it does on this connection. Blocks."""
        if self._should_cancel():
            self._link.cancel_sent = True
            super().cancel()

    @enable_ki_protection
    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109  psycopg's signature
        """Ask the server to stop what it does on this connection.

        Can be called while another task waits for a query, which then raises
        `psycopg.errors.QueryCanceled`. A checkpoint. Cancelled, the request may have
        been sent, or not.

        Raises:
            psycopg.errors.CancellationTimeout: the request was not taken in time.
        """
        if not self._should_cancel():
            await checkpoint()
            return
        with trio.move_on_after(timeout or math.inf) as scope:
            try:
                await self._request_cancel()
            except psycopg.OperationalError as error:
                if "unexpected eof" not in str(error):
                    raise
                # Over TLS, the server hangs up once it has the request.
                _log.debug("cancel request: %s", error)
        if scope.cancelled_caught:
            raise errors.CancellationTimeout("cancellation timeout expired")

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:  # noqa: ASYNC109  psycopg's signature
        # Part of psycopg's clean-up of a stream and of a COPY.
        if self.closed:
            return
        with trio.CancelScope(
            shield=True,
            deadline=trio.current_time() + min(timeout, self.cancel_timeout),
        ):
            await self._stop()

    # What psycopg does, made to hold under cancellation

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
        tx = _Transaction(self, savepoint_name, force_rollback)
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
                pipeline = self._pipeline = _Pipeline(self, self._turns)
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
        pipeline = self._pipeline = _Pipeline(self, contextlib.nullcontext())
        try:
            async with pipeline:
                yield pipeline
        finally:
            self._pipeline = None  # pyright: ignore[reportIncompatibleVariableOverride]

    async def _leave_row_mode(self) -> None:
        # libpq takes the mode of a stream() along into the pipeline, where psycopg
        # does not expect single rows. Only a query outside of a pipeline ends it.
        if self._link.streamed and self._pipeline is None:
            await self.wait(_empty_query(self.pgconn))
            self._link.streamed = False

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> PQGen[Any]:
        result = yield from super()._exec_command(command, *args, **kwargs)
        if command == b"COMMIT":
            if self._pipeline is not None:
                self._pipeline.result_queue[-1] = _COMMIT
            elif result is not None and result.command_status == b"ROLLBACK":
                raise errors.InFailedSqlTransaction(_LOST)
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
                    await self._clean_up(self._rollback_gen(), self._turns)  # noqa: ASYNC102  shields itself
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
                await self.wait(_empty_query(self.pgconn))


_OF_ONE_VIEW: Final = (
    "lock",
    "pgconn",
    "_turns",
    "_template",
    "_own_adapters",
    "_closed",
    "_pipeline",
    "_num_transactions",
    "_notifies_backlog",
)


class _Drive(Generic[T]):
    """A generator that is driven bit by bit, as time allows."""

    def __init__(self, gen: PQGen[T], fd: int, *, is_waiting: bool) -> None:
        self._gen = gen
        self._fd = fd
        # Nothing came: that makes one that waits say again for what.
        self._nudge: Any = 0 if is_waiting else None

    async def run(self) -> T:
        """Go on until the end. Cancelled, it can go on from where it was."""
        try:
            want = self._gen.send(self._nudge)
            self._nudge = 0
            while True:
                want = self._gen.send(cast("Any", await wait_ready(self._fd, want)))
        except StopIteration as done:
            return cast("T", done.value)


async def _attempts(params: ConnDict) -> list[ConnDict]:
    """What is to be tried, in order: each address of each host."""
    prefers_standby = get_param(params, "target_session_attrs") == "prefer-standby"
    if prefers_standby:
        params = {**params}
        params.pop("target_session_attrs", None)
    attempts: list[ConnDict] = []
    failure: psycopg.OperationalError | None = None
    for attempt in split_attempts(params):
        try:
            attempts += await _resolved(attempt)
        except (OSError, UnicodeError) as error:
            failure = errors.OperationalError(
                f"failed to resolve host {attempt.get('host')!r}: {error}"
            )
            failure.__cause__ = error
            _log.debug("%s", failure)
    if not attempts and failure is not None:
        raise failure
    if get_param(params, "load_balance_hosts") == "random":
        random.shuffle(attempts)
    if prefers_standby:
        attempts = [
            {**attempt, "target_session_attrs": "standby"} for attempt in attempts
        ] + attempts
    return attempts


async def _resolved(attempt: ConnDict) -> list[ConnDict]:
    host = get_param(attempt, "host")
    if (
        not host
        or host.startswith(("/", "@"))
        or host[1:2] == ":"
        or get_param(attempt, "hostaddr")
    ):
        return [attempt]
    if is_ip_address(host):
        return [{**attempt, "hostaddr": host}]
    port = get_param(attempt, "port")
    if not port:
        default = get_param_def("port")
        port = (default and default.compiled) or "5432"
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return [{**attempt, "hostaddr": str(address[0])} for *_, address in found]


def _combined(failures: list[tuple[str, psycopg.Error]]) -> psycopg.Error:
    last = failures[-1][1]
    if len(failures) == 1:
        return last
    lines = [
        str(last),
        "Multiple connection attempts failed. All failures were:",
        *(f"- {where}: {error}" for where, error in failures),
    ]
    return type(last)("\n".join(lines), pgconn=last.pgconn)
