"""One lease's view of an asyncio driver's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, cast

import trio

from trio_hyperpool._errors import LeaseError

from ._flavours import Adapted, Bridge
from ._loop import Loop

__all__ = ["AsyncioConnection", "Lent", "lent"]


class Lent(Bridge):
    """The way from one lease's Trio code to a driver's connection.

    Args:
        loop: the pool's.
        driver: the driver's connection.
        patience: seconds for asyncio code that was cancelled, or leaves a block.
        abort: closes the connection at once.
    """

    def __init__(
        self, loop: Loop, driver: Any, patience: float, abort: Callable[[], object]
    ) -> None:
        self.loop = loop
        self.driver = driver
        self.was_used: bool = False
        self.was_cancelled: bool = False
        self._ended: type[LeaseError] | None = None
        self._patience = patience
        self._abort = abort
        self._calls: set[trio.CancelScope] = set()
        self._before: dict[str, object] = {}

    def check(self) -> None:
        if self._ended is not None:
            raise self._ended

    def here(self) -> AbstractContextManager[object]:
        self.was_used = True
        return self.loop.here()

    async def run(self, start: Callable[[], Awaitable[Any]]) -> Any:
        self.was_used = True
        with trio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                return await self.loop.run(
                    start,
                    self._patience,
                    on_cancel=self._cancelled,
                    on_lost=lambda _: self._abort(),
                )
            except Exception as error:
                if self._ended is not None:
                    raise self._ended from error
                raise
            finally:
                self._calls.discard(scope)
        # Nobody but `end` cancels the scope, and so this raises.
        return self.check()

    async def leave(
        self, target: Any, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave an asyncio block, and if that is because of an error, shielded.

        Asyncio cancels once, so that what it cancels can still await what it has to
        put right; Trio's `Cancelled` would come again at the first await.
        """
        if exc is None:
            await self.run(lambda: target.__aexit__(None, None, None))
            return None
        is_cancelled = isinstance(exc, trio.Cancelled)
        told = asyncio.CancelledError() if is_cancelled else exc

        async def leave() -> bool:
            try:
                return bool(await target.__aexit__(type(told), told, traceback))
            except asyncio.CancelledError as raised:  # noqa: ASYNC103 - if it was told
                if raised is not told:
                    raise
                return False  # noqa: ASYNC104

        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self._patience
        ):
            # A cancellation is not for asyncio code to swallow.
            return await self.run(leave) and not is_cancelled
        return False

    def assign(self, target: object, name: str, value: object) -> None:
        before = getattr(target, name)
        setattr(target, name, value)
        if target is self.driver:
            self._before.setdefault(name, before)

    def keep_attributes(self) -> None:
        """Let what was assigned to the connection outlive the lease."""
        self._before.clear()

    def end(self, error: type[LeaseError]) -> bool:
        """Make every use raise ``error``, and say whether one is still going on."""
        is_busy = bool(self._calls)
        self._ended = error
        for scope in self._calls:
            scope.cancel()
        while self._before:
            setattr(self.driver, *self._before.popitem())
        return is_busy

    def _cancelled(self) -> None:
        self.was_cancelled = True


class AsyncioConnection(Adapted):
    """An asyncio driver's connection that Trio code can use as it is.

    It has the attributes and methods of the driver's own. What they give that is async
    (coroutines, async context managers and iterators, objects with async methods) is
    for Trio: each await runs in an asyncio task of the pool's loop, and is a
    checkpoint. Cancelling the Trio scope cancels that task, and waits until it has
    ended; past ``cancel_timeout`` the connection is closed. An ``async with`` block of
    the driver that is left by an exception is left shielded, for ``cancel_timeout``
    seconds at most, so that a transaction is rolled back.

    Each await is an asyncio task of its own: what has to be entered and left in one,
    such as `asyncio.timeout`, goes into a function that `call` runs.

    After the block of its lease any use of it, and of what was made from it, raises
    `~trio_hyperpool.LeaseEndedError`, and `~trio_hyperpool.LeaseRevokedError` if the
    pool took it back. What was assigned to its attributes is undone then.
    """

    __slots__ = ()


def lent(connection: AsyncioConnection) -> Lent:
    """The way from a connection, or a view of one, to the driver's."""
    # Its public attributes are the driver's.
    return cast("Lent", connection._bridge)  # noqa: SLF001
