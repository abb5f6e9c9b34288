"""A pool's connections, of any asyncio driver."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Generic, TypeVar

import trio

from trio_hyperpool._config import HealthCheck
from trio_hyperpool._errors import ConnectError, LeaseError
from trio_hyperpool._policy import Condition

from ._loop import Loop, running_loop
from ._views import AsyncioConnection, Lent, lent

__all__ = ["AsyncioConnector"]

DriverT = TypeVar("DriverT")


class AsyncioConnector(Generic[DriverT]):
    """A `~trio_hyperpool.Connector` that runs the connections of an asyncio driver.

    It brings an asyncio loop of its own, by trio-asyncio, which runs for as long as
    the pool does; what goes wrong in it, and is taken by nobody, ends the pool and comes
    out of it. It is for one pool at a time.

    All callables but ``is_alive``, ``is_clean`` and ``abort`` are asyncio-flavoured
    and async; all but ``connect`` take the driver's own connection.

    Args:
        connect: opens a connection. An `OSError` means that nobody answered; a
            driver that says so in another way wants a function that raises
            `~trio_hyperpool.ConnectError` with ``unreachable=True``.
        close: ends a connection politely.
        ping: raises if the server does not answer. Without it, and with
            ``HealthCheck.PASSIVE``, ``is_alive`` is the whole check.
        is_alive: whether an idle connection looks usable.
        is_clean: whether the next borrower may have a connection as it is.
        reset: puts right a connection that is not clean; if there is no
            ``is_clean``, every one that a lease has used. Without ``reset`` such a
            connection is ended.
        abort: closes a connection at once. Without it ``close`` is started, and not
            waited for.
        cancel_timeout: seconds that asyncio code has to end after its cancellation.

    Raises:
        TypeError: if something is not callable, or ``cancel_timeout`` is no number.
        ValueError: if ``cancel_timeout`` is negative or NaN.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Awaitable[DriverT]],
        close: Callable[[DriverT], Awaitable[object]],
        ping: Callable[[DriverT], Awaitable[object]] | None = None,
        is_alive: Callable[[DriverT], bool] | None = None,
        is_clean: Callable[[DriverT], bool] | None = None,
        reset: Callable[[DriverT], Awaitable[object]] | None = None,
        abort: Callable[[DriverT], object] | None = None,
        cancel_timeout: float = 5.0,
    ) -> None:
        required = {"connect": connect, "close": close}
        optional = {
            "ping": ping,
            "is_alive": is_alive,
            "is_clean": is_clean,
            "reset": reset,
            "abort": abort,
        }
        for name, value in (required | optional).items():
            if not callable(value) and not (value is None and name in optional):
                also = " or None" if name in optional else ""
                raise TypeError(f"{name}: a callable{also} is allowed, not {value!r}")
        allowed = "cancel_timeout: a number of seconds from 0 up to math.inf is allowed"
        if isinstance(cancel_timeout, bool) or not isinstance(
            cancel_timeout, (int, float)
        ):
            raise TypeError(f"{allowed}, not {cancel_timeout!r}")
        if math.isnan(cancel_timeout) or cancel_timeout < 0:
            raise ValueError(f"{allowed}, not {cancel_timeout!r}")
        self._connect = connect
        self._close = close
        self._ping = ping
        self._is_alive = is_alive
        self._is_clean = is_clean
        self._reset = reset
        self._abort = abort
        self._patience = cancel_timeout
        self._loop: Loop | None = None
        self._around = AsyncExitStack()

    @property
    def name(self) -> str:
        """``asyncio``."""
        return "asyncio"

    @property
    def system(self) -> str:
        """``other_sql``: what server it is, the driver knows."""
        return "other_sql"

    async def __aenter__(self) -> AsyncioConnector[DriverT]:
        """Start the loop; `open_pool` does that."""
        if self._loop is not None:
            raise RuntimeError("an AsyncioConnector is for one pool at a time")
        self._loop = await self._around.enter_async_context(running_loop())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End the loop, with all that is still running in it."""
        try:
            # What is left of the loop's tasks is cancelled there.
            return await self._around.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102
        finally:
            self._loop = None

    async def prepare(self) -> None:
        """Do nothing. A checkpoint."""
        await trio.lowlevel.checkpoint()

    async def connect(self) -> AsyncioConnection:
        """Open a connection.

        A checkpoint. Cancelled, it leaves nothing open; a ``connect`` that ignores its
        cancellation has its connection closed when it comes.

        Raises:
            ConnectError: if nobody answers (an `OSError`).
        """
        loop = self._its_loop()
        try:
            driver = await loop.run(
                self._connect, self._patience, on_lost=self._discard_late
            )
        except OSError as error:
            raise ConnectError(f"nobody answers: {error}", unreachable=True) from error
        return self._lend(driver)

    def watch(
        self, connection: AsyncioConnection, cancel_sent: Callable[[], None], /
    ) -> None:
        """Do nothing: whether the server is told of a cancellation, the driver knows."""

    def is_alive(self, connection: AsyncioConnection, /) -> bool:
        """Whether it looks usable to ``is_alive``."""
        driver: DriverT = lent(connection).driver
        return self._is_alive is None or self._is_alive(driver)

    async def probe(self, view: AsyncioConnection, check: HealthCheck, /) -> None:
        """Await ``ping``.

        A checkpoint if there is one and the check is not passive. Cancelled, the
        connection is to be retired.

        Raises:
            ConnectionError: if it does not look usable.
        """
        ping, lease = self._ping, lent(view)
        if not self.is_alive(view):
            raise ConnectionError("the connection does not look usable")
        if ping is not None and check is not HealthCheck.PASSIVE:
            await lease.run(lambda: ping(lease.driver))

    def lend(self, connection: AsyncioConnection, /) -> AsyncioConnection:
        """Make a view of the connection for one block."""
        return self._lend(lent(connection).driver)

    def adopt(self, connection: AsyncioConnection, view: AsyncioConnection, /) -> None:
        """Keep what was assigned to the view's attributes."""
        lent(view).keep_attributes()

    def reclaim(
        self,
        connection: AsyncioConnection,
        view: AsyncioConnection,
        error: type[LeaseError],
        /,
    ) -> Condition:
        """End a view: from now on using it raises ``error``. Say what it left."""
        lease = lent(view)
        is_busy = lease.end(error)
        if not self.is_alive(connection):
            return Condition.BROKEN
        if is_busy:
            return Condition.BUSY
        if lease.was_cancelled:
            return Condition.CANCELLED
        if not lease.was_used:
            return Condition.CLEAN
        if self._is_clean is not None:
            is_clean = self._is_clean(lease.driver)
            return Condition.CLEAN if is_clean else Condition.DIRTY
        return Condition.CHANGED if self._reset is None else Condition.ALTERED

    async def clean(self, connection: AsyncioConnection, /) -> None:
        """Await ``reset``.

        A checkpoint. Cancelled, the connection is to be discarded.

        Raises:
            RuntimeError: if ``is_clean`` is not content with the result.
        """
        reset, driver = self._reset, lent(connection).driver
        if reset is None:
            raise RuntimeError("without a reset nothing can be put right")
        await self._its_loop().run(lambda: reset(driver), self._patience)
        if self._is_clean is not None and not self._is_clean(driver):
            raise RuntimeError("the connection is not clean after its reset")

    async def close(self, connection: AsyncioConnection, /) -> None:
        """Await ``close``. A checkpoint; cancelled or failing, it aborts."""
        driver = lent(connection).driver
        try:
            await self._its_loop().run(lambda: self._close(driver), self._patience)
        except BaseException:
            self.discard(connection)
            raise

    async def settle(self) -> None:
        """Do nothing. A checkpoint."""
        await trio.lowlevel.checkpoint()

    def discard(self, connection: AsyncioConnection, /) -> None:
        """Call ``abort``, or start ``close``."""
        self._discard(lent(connection).driver)

    def _its_loop(self) -> Loop:
        if self._loop is None:
            raise RuntimeError(
                "the loop of this AsyncioConnector is not running: "
                "give it to open_pool(connector=...)"
            )
        return self._loop

    def _lend(self, driver: DriverT) -> AsyncioConnection:
        return AsyncioConnection(
            driver,
            Lent(
                self._its_loop(),
                driver,
                self._patience,
                lambda: self._discard(driver),
            ),
        )

    def _discard(self, driver: DriverT) -> None:
        loop = self._its_loop()
        if self._abort is None:
            loop.start(lambda: self._close(driver))
        else:
            with loop.here():
                self._abort(driver)

    def _discard_late(self, connecting: asyncio.Task[DriverT]) -> None:
        def discard(_: object) -> None:
            if not connecting.cancelled() and connecting.exception() is None:
                self._discard(connecting.result())

        connecting.add_done_callback(discard)
