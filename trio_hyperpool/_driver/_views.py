"""Connections that views can be made of: objects of their own, good until they end."""

from __future__ import annotations

import select
import sys
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, Self
from weakref import ref

import psycopg
import trio
from psycopg import AsyncConnection, Notify, pq
from psycopg.adapt import AdaptersMap
from psycopg.rows import AsyncRowFactory, Row, tuple_row
from trio.lowlevel import enable_ki_protection

from trio_hyperpool._errors import LeaseError

from ._link import Link, abort, ended_connections
from ._states import ACTIVE, IDLE, OK, PIPELINE_OFF
from ._turns import ViewTurns
from ._waiting import READABLE, ready_now

_OF_ONE_VIEW: Final = (
    "lock",
    "pgconn",
    "_turns",
    "_template",
    "_own_adapters",
    "_closed",
    "_pipeline",
    "_num_transactions",
)


class LendableConnection(AsyncConnection[Row]):
    """A connection, or a view of one; and what both can tell a pool."""

    _own_adapters: AdaptersMap | None

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        row_factory: AsyncRowFactory[Any] = tuple_row,
    ) -> None:
        self._template: AdaptersMap | None = None
        super().__init__(pgconn, row_factory)
        del self._notifies_backlog  # until it is needed
        self._link = link = Link(self)
        self._turns = ViewTurns(pgconn, link)
        self.lock: ViewTurns = self._turns  # type: ignore[assignment]  # all that psycopg wants of one
        pgconn.notice_handler = link.notice
        pgconn.notify_handler = link.notify
        self._remember_settings()

    def __del__(self, *_: Any) -> None:
        # psycopg's own, which looks for connections left open, takes its time.
        turns: ViewTurns | None = self.__dict__.get("_turns")
        if turns is not None and turns.ended is None:
            super().__del__()

    @enable_ki_protection
    def lend(self) -> Self:
        """Make a view of this connection: an object of its own, good until its `end`.

        It is as this connection is now, row and cursor factories, adapters and
        handlers included, and none of its changes comes back; only the prepared
        statements are shared. Notices and notifications go to the latest view.
        Not async, and takes about a microsecond.
        """
        view = object.__new__(type(self))
        # A copy and its changes take a third of the time of one display.
        attributes = self.__dict__.copy()
        link = self._link
        attributes["lock"] = attributes["_turns"] = ViewTurns(self.pgconn, link)
        attributes["_template"] = (
            attributes["_own_adapters"] or attributes["_template"] or self.adapters
        )
        attributes["_own_adapters"] = None
        attributes["_notice_handlers"] = self._notice_handlers[:]
        attributes["_notify_handlers"] = self._notify_handlers[:]
        attributes.pop("_notifies_backlog", None)
        view.__dict__ = attributes
        link.target = ref(view)
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
        self.pgconn: pq.abc.PGconn
        self.pgconn = turns.pgconn = ended_connections[error]
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
        self.__dict__.pop("_notifies_backlog", None)
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

    @cached_property
    def _notifies_backlog(self) -> deque[Notify]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]  # both can be set
        # Most connections are never notified of anything; empty, it takes 760 bytes.
        return deque()

    def _check_connection_ok(self) -> None:
        if (ended := self._turns.ended) is not None:
            raise ended
        super()._check_connection_ok()

    # For a pool

    def forget_prepared(self) -> None:
        """Take note that the server has dropped all prepared statements."""
        self._prepared.clear()

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

    def watch(self, cancel_sent: Callable[[], None]) -> None:
        """Call ``cancel_sent`` whenever a cancel request is sent, by any view."""
        self._link.on_cancel = cancel_sent

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
        # That of a connection that is closed is not idle either.
        if pgconn.transaction_status != IDLE or link.is_doomed:
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
        return self.pgconn.status == OK and not self._link.is_doomed

    def _is_readable(self) -> bool:
        if sys.platform == "win32":
            return bool(ready_now(self.pgconn.socket, READABLE))
        poller = self._link.poller
        if poller is None:
            poller = self._link.poller = select.poll()
            poller.register(self.pgconn.socket, select.POLLIN)
        return bool(poller.poll(0))

    def abort(self) -> None:
        """Close the socket at once. Tasks that wait on it wake up, with an error.

        Not async, and does not tell the server more than libpq does on its own.
        """
        abort(self.pgconn)

    @property
    def is_busy(self) -> bool:
        """Whether the server is at work on a query, or in the middle of its answer."""
        pgconn = self.pgconn
        return (
            pgconn.transaction_status == ACTIVE
            and pgconn.pipeline_status == PIPELINE_OFF
        )

    def wake(self) -> None:
        """Wake a task up that waits for the server on a view that has ended."""
        trio.lowlevel.notify_closing(self.pgconn.socket)
