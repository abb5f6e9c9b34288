"""The tasks of a pool: they outlive whoever starts them, and end after the body."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable

import trio
from trio.lowlevel import enable_ki_protection


class Tasks:
    """Starts tasks in the pool's nursery, and ends all of them when the body has left.

    Each is shielded, so that the `finally` blocks of a cancelled body find the pool at
    work. A task that raises has a bug: it cancels the body, and is told of.
    """

    nursery: trio.Nursery
    """Where they run; set before the first of them."""

    def __init__(self) -> None:
        self.body = trio.CancelScope()
        """Around the block of the pool."""
        self.bug: BaseException | None = None
        """The first thing that one of them raised."""
        self.on_bug: Callable[[], None] = lambda: None
        """What else a bug brings about."""
        # They run in the context of `open_pool`, not in that of the borrower who
        # happens to need one.
        self._context = contextvars.copy_context()
        self._scopes: set[trio.CancelScope] = set()
        self._are_over = False

    def spawn(
        self, async_fn: Callable[..., Awaitable[object]], /, *args: object
    ) -> None:
        """Start a task."""
        self._context.run(self.nursery.start_soon, self._run, async_fn, args)

    def fail(self, bug: BaseException) -> None:
        """Cancel the body because of a bug; the first one is kept."""
        self.bug = self.bug or bug
        self.on_bug()
        self.body.cancel()

    def end(self) -> None:
        """Cancel all of them, those that have not begun yet included."""
        self._are_over = True
        for scope in self._scopes:
            scope.cancel()

    @enable_ki_protection
    async def _run(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        scope = trio.CancelScope(shield=True)
        if self._are_over:
            scope.cancel()
        self._scopes.add(scope)
        try:
            # What is left when the scope has taken out what it cancelled, also of the
            # group that a nursery in a hook or connector makes of it.
            with scope:
                await async_fn(*args)
        except BaseException as bug:  # noqa: BLE001, ASYNC103 - comes out of the pool's block
            self.fail(bug)
        finally:
            self._scopes.discard(scope)
