"""Connections whose generators are driven by trio's readiness, and can be cancelled."""

from __future__ import annotations

import contextlib
import logging
import math
from time import monotonic
from typing import Any, Final, TypeVar, cast

import psycopg
import trio
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.rows import Row
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    enable_ki_protection,
    wait_readable,
)

from ._draining import drain, drain_pipeline
from ._states import ACTIVE, BAD, IDLE, PIPELINE_OFF
from ._turns import FIRST_RESEND
from ._views import LendableConnection
from ._waiting import PROMPT, READABLE, ready_now, wait_ready

T = TypeVar("T")

_MAX_BUSY: Final = 0.002
"""Seconds that operations that never block may go on before other tasks get a turn."""

_ALONE: Final = 15e-6
"""Seconds that a turn takes in which nobody else runs, and a bit more."""

_INTERRUPTIONS: Final = (trio.Cancelled, KeyboardInterrupt, SystemExit)

# psycopg 3.2 has no name for it: there, an operation that ran out of time just ends.
_WaitTimeout: Final[type[psycopg.Error]] = getattr(
    errors, "_WaitTimeout", errors.OperationalError
)

_log: Final = logging.getLogger("trio_hyperpool")


class DrivenConnection(LendableConnection[Row]):
    """A connection whose every operation leaves the server with nothing to do."""

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
        if name == "_end_copy_out_gen":
            # What is left to read of a COPY that was stopped.
            return await self._turns.carry_through(gen)
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
                            await self._answer(fd)
                            ready = READABLE
                        else:
                            ready = await self._pause(fd, want)
                    except (trio.ClosedResourceError, OSError) as error:
                        raise turns.lost() from error
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

    async def _answer(self, fd: int) -> None:
        """Wait until there is something to read: awake, if that is worth it."""
        promptness = self._link.promptness
        began_at = now = monotonic()
        if promptness.is_expected:
            while now - began_at < PROMPT:
                await self._let_others_run()
                if ready_now(fd, READABLE):
                    promptness.kept()
                    return
                before, now = now, monotonic()
                if now - before > _ALONE:
                    break
            else:
                promptness.missed()
        await wait_readable(fd)
        promptness.came(monotonic() - began_at)

    async def _pause(self, fd: int, want: int) -> int:
        """Let others run, and see what the socket is ready for then."""
        if ready := ready_now(fd, want):
            await self._let_others_run()
            return ready
        return await wait_ready(fd, want)

    async def _let_others_run(self) -> None:
        await checkpoint()
        # One of them may have taken the connection away, of which trio tells only who
        # waits for the socket.
        if self._turns.ended is not None or self.pgconn.status == BAD:
            raise trio.ClosedResourceError

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
                            raise self._turns.lost() from error
                want = gen.send(cast("Any", ready))
                if trio.current_time() >= deadline:
                    raise _WaitTimeout("wait timeout expired")
        except StopIteration as done:
            await cancel_shielded_checkpoint()
            return cast("T", done.value)
        except _INTERRUPTIONS as interruption:
            return await self._interrupted(gen, interruption)

    async def _interrupted(self, gen: PQGen[T], interruption: BaseException) -> T:
        """Leave the server with nothing to do, and raise: unless all was done."""
        pgconn = self.pgconn
        is_active = pgconn.transaction_status == ACTIVE
        try:
            if pgconn.pipeline_status != PIPELINE_OFF and self._pipeline is not None:
                await self._leave_pipeline(gen, self._pipeline)
            elif is_active:
                result = await self._turns.carry_through(
                    gen, patience=0.0, is_waiting=True
                )
                if pgconn.transaction_status == IDLE and isinstance(
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

    async def _leave_pipeline(
        self, gen: PQGen[Any], pipeline: psycopg.AsyncPipeline
    ) -> None:
        # Expecting no more results comes first, or it would go on in a finally. It is
        # not to be resumed, as it may still have much to send.
        emptying = drain_pipeline(self.pgconn, pipeline)
        gen.close()
        if emptying is None:
            return
        try:
            await self._turns.carry_through(emptying, patience=0.0)
        except psycopg.Error as error:
            _log.debug("the pipeline of %r: %s", self, error)
            self.abort()

    async def _finish_off(self, gen: PQGen[Any]) -> None:
        # psycopg ends a COPY that it sends by itself.
        name: str = gen.__name__  # type: ignore[attr-defined]  # a generator has one
        if self.pgconn.transaction_status == ACTIVE and name != "copy_to":
            with contextlib.suppress(psycopg.Error):
                await self._turns.carry_through(
                    drain(self.pgconn), patience=FIRST_RESEND
                )

    async def _close_cursor(self, gen: PQGen[T]) -> T:
        # One that is held stays on the server for the whole session otherwise.
        try:
            return await self._turns.carry_through(gen)
        except psycopg.Error as error:
            if trio.current_effective_deadline() > -math.inf:
                raise
            _log.debug("ignored in closing a cursor of %r: %s", self, error)
            return cast("T", None)

    # Cancelling

    async def stop(self) -> None:
        """Stop what the server is at work on, and read its answer to the end.

        A checkpoint. Afterwards the connection is usable, or closed; that takes no
        longer than ``cancel_timeout``, even if it is cancelled.

        Raises:
            psycopg.OperationalError: the connection is closed.
        """
        await self._turns.clean_up(drain(self.pgconn), patience=0.0)

    async def give_up_copy(self) -> None:
        """End a COPY whose block is left by an exception, within ``cancel_timeout``."""
        await self._turns.carry_through(drain(self.pgconn), patience=FIRST_RESEND)

    def cancel(self) -> None:
        """Ask the server to stop what it does on this connection. Blocks."""
        if self._should_cancel():
            self._link.cancelling()
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
                await self._turns.request_cancel()
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
            await self._turns.stop()
