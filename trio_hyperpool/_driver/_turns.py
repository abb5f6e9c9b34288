"""Whose turn it is on a connection, and how every turn ends: with the server idle."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Generic, TypeVar, cast

import psycopg
import trio
from psycopg import capabilities, errors, pq
from psycopg.abc import PQGen
from trio.lowlevel import enable_ki_protection

from trio_hyperpool._errors import LeaseError

from ._draining import drain
from ._link import Link, abort
from ._states import ACTIVE, BAD, PIPELINE_OFF
from ._waiting import NOTHING, READABLE, WRITABLE, Turns, wait_ready

T = TypeVar("T")

FIRST_RESEND: Final = 0.05
"""A cancel request may overtake the query it is meant for: seconds until the next."""

_POLL_OK: Final = pq.PollingStatus.OK

_log: Final = logging.getLogger("trio_hyperpool")


class ViewTurns(Turns):
    """Whose turn it is on one connection, or one view of it.

    An operation that was left in the middle of a result, such as a COPY that was not
    read to its end, is stopped and drained before the next one has its turn.
    """

    __slots__ = ("is_stopping", "last_pause", "link", "pgconn")

    def __init__(self, pgconn: pq.abc.PGconn, link: Link) -> None:
        self.ended: type[LeaseError] | None = None
        self.is_taken = False
        self._queue = None
        self.pgconn: pq.abc.PGconn = pgconn
        self.link: Link = link
        # When other tasks last had a chance to run.
        self.last_pause: float = -math.inf
        # Whether the operation whose turn it is was cancelled on the server.
        self.is_stopping: bool = False

    @enable_ki_protection
    def __aexit__(self, *exc: object) -> Awaitable[None]:
        pgconn = self.pgconn
        if (
            pgconn.transaction_status != ACTIVE
            or pgconn.pipeline_status != PIPELINE_OFF
        ):
            self.is_stopping = False
            self.release()
            return NOTHING
        return self._settle(exc[1])

    @enable_ki_protection
    async def _settle(self, reason: object) -> None:
        try:
            # Little that is left unread is faster read than cancelled.
            at_once = reason is not None and not self.is_stopping
            patience = 0.0 if at_once else FIRST_RESEND
            await self.carry_through(drain(self.pgconn), patience=patience)
        except psycopg.Error as error:
            if reason is None:
                raise
            _log.debug("after %r: %s", reason, error)
        finally:
            self.is_stopping = False
            self.release()

    @enable_ki_protection
    async def clean_up(
        self,
        gen: PQGen[T],
        *,
        lock: AbstractAsyncContextManager[object] | None = None,
        patience: float = math.inf,
    ) -> T:
        """Do what is still to be done after an exception, when it is our turn."""
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self.link.cancel_timeout
        ):
            async with self if lock is None else lock:
                return await self.carry_through(gen, patience=patience)
        raise self._give_up()

    @enable_ki_protection
    async def carry_through(
        self, gen: PQGen[T], *, patience: float = math.inf, is_waiting: bool = False
    ) -> T:
        """Drive a generator to its end, shielded, within ``cancel_timeout``.

        Args:
            gen: what to drive.
            patience: seconds until the first cancel request is sent; the others
                follow ever more slowly, as long as there is no end.
            is_waiting: whether it was interrupted while it waited, and not fresh.

        Raises:
            psycopg.OperationalError: time ran out, and the connection is closed.
        """
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self.link.cancel_timeout
        ):
            try:
                driving = _Drive(gen, self.pgconn.socket, is_waiting=is_waiting)
                while True:
                    if patience > 0:
                        with trio.move_on_after(patience):
                            return await driving.run()
                    await self.stop()
                    patience = max(2 * patience, FIRST_RESEND)
            except (trio.ClosedResourceError, OSError) as error:
                raise self.lost() from error
            except (KeyboardInterrupt, SystemExit):
                self._give_up()
                raise
        raise self._give_up()

    def _give_up(self) -> psycopg.OperationalError:
        """Close a connection that can't be put right."""
        if self.pgconn.status != BAD:
            _log.warning("%r did not get idle in time: closing it", self.link.target())
            abort(self.pgconn)
        return errors.OperationalError(
            "the server did not end what was cancelled within "
            f"{self.link.cancel_timeout:g} seconds: the connection is closed"
        )

    def lost(self) -> Exception:
        """The error for an operation whose socket was closed."""
        if self.ended is not None:
            return self.ended()
        return errors.OperationalError("the connection is closed")

    async def stop(self) -> None:
        """Ask the server to stop the operation whose turn it is; again, if need be."""
        if not self.is_stopping:
            self.is_stopping = True
            self.link.cancelled_queries += 1
        try:
            await self.request_cancel()
        except (psycopg.Error, OSError) as error:
            # Over TLS, a server hangs up less politely than libpq expects.
            _log.debug("cancel request: %s", error)

    async def request_cancel(self) -> None:
        """Send the server a cancel request."""
        self.link.cancelling()
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
                    await wait_ready(request.socket, WRITABLE)
                else:
                    raise errors.OperationalError(
                        f"cancellation failed: {request.get_error_message()}"
                    )
        finally:
            request.finish()


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
