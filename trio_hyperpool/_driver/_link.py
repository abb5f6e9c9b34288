"""What all views of one libpq connection share, and what an ended view has instead."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Any, Final, cast
from weakref import ReferenceType, ref

import psycopg
import trio
from psycopg import BaseConnection, pq
from trio.lowlevel import enable_ki_protection

from trio_hyperpool._errors import LeaseError

from ._states import BAD, PIPELINE_OFF
from ._waiting import Promptness

CANCEL_TIMEOUT: Final = 5.0
"""Seconds for what has to be done after a cancellation, unless a connection says else."""


class Link:
    """What all views of one libpq connection have in common."""

    __slots__ = (
        "cancel_sent",
        "cancel_timeout",
        "cancelled_queries",
        "home",
        "is_doomed",
        "on_cancel",
        "poller",
        "promptness",
        "streamed",
        "target",
    )

    def __init__(self, connection: BaseConnection[Any]) -> None:
        self.cancel_sent: bool = False
        self.cancel_timeout: float = CANCEL_TIMEOUT
        self.cancelled_queries: int = 0
        self.is_doomed: bool = False
        self.on_cancel: Callable[[], None] | None = None
        self.poller: select.poll | None = None
        self.promptness: Promptness = Promptness()
        # Whether libpq is in single row mode, which only the next query ends.
        self.streamed: bool = False
        # Weak, or no connection would ever be collected but by the cycle collector.
        self.home: ReferenceType[BaseConnection[Any]] = ref(connection)
        self.target: ReferenceType[BaseConnection[Any]] = self.home

    def cancelling(self) -> None:
        """A cancel request is about to be sent."""
        self.cancel_sent = True
        if self.on_cancel is not None:
            self.on_cancel()

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


@enable_ki_protection
def abort(pgconn: pq.abc.PGconn) -> None:
    """Close the socket at once; tasks that wait on it wake up, with an error."""
    if pgconn.status != BAD and trio.lowlevel.in_trio_run():
        with contextlib.suppress(psycopg.Error):
            trio.lowlevel.notify_closing(pgconn.socket)
    pgconn.finish()


class _EndedConnection:
    """The libpq connection of a view that has ended: there is nothing there.

    What a ``repr`` or a ``closed`` asks for is answered; anything else raises.
    """

    status = BAD
    transaction_status = pq.TransactionStatus.UNKNOWN
    pipeline_status = PIPELINE_OFF
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


ended_connections: Final = _EndedConnections()
