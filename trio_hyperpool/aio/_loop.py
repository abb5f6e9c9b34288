"""A trio-asyncio loop for the length of a block, and asyncio code run in it from Trio.

Importing trio-asyncio replaces some functions of asyncio, for the whole process. Whoever
took hold of one of them earlier (psycopg does) gets the new one here, so that the order
of imports makes no difference.
"""

from __future__ import annotations

import _asyncio  # has what trio-asyncio replaces, as it was
import asyncio
import contextlib
import errno
import logging
import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

import trio
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from trio_hyperpool._tasks import Tasks

try:
    with warnings.catch_warnings():
        # It subclasses what Python 3.12 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        import trio_asyncio as _untyped  # pyright: ignore[reportMissingTypeStubs]
except AttributeError as error:  # pragma: no cover - not where tests run
    raise ImportError(
        "trio_hyperpool.aio needs trio-asyncio, and the installed version of that does "
        f"not work on Python {sys.version_info.major}.{sys.version_info.minor}: {error}"
    ) from error

trio_asyncio: Any = _untyped

__all__ = ["Loop", "current_loop", "running_loop"]

ResultT = TypeVar("ResultT")

logger = logging.getLogger("trio_hyperpool")

_REPLACED = ("current_task", "get_event_loop", "get_running_loop")


def _replace_everywhere() -> None:
    """Give the functions that trio-asyncio replaced to those who imported them before."""
    for module in [*sys.modules.values()]:
        names = getattr(module, "__dict__", {})
        for name in _REPLACED:
            old = getattr(_asyncio, name, None)
            if old is not None and names.get(name) is old and module is not _asyncio:
                setattr(module, name, getattr(asyncio, name))


_replace_everywhere()

# A Ctrl-C in the midst of a callback would stop the loop for good, under those who wait
# for it: it is to come where the main task waits.
trio.lowlevel.enable_ki_protection(trio_asyncio.TrioEventLoop._main_loop)  # noqa: SLF001


class Loop:
    """A running trio-asyncio loop, as Trio tasks use it.

    Args:
        loop: the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started: set[asyncio.Task[None]] = set()

    @property
    def is_running(self) -> bool:
        """Whether asyncio code can still be run in it."""
        return not self._loop.is_closed()

    @contextlib.contextmanager
    def here(self) -> Generator[None]:
        """Let what is called in the block, and does not wait, find the loop running."""
        token = trio_asyncio.current_loop.set(self._loop)
        try:
            yield
        finally:
            trio_asyncio.current_loop.reset(token)

    def start(self, start: Callable[[], Awaitable[object]]) -> None:
        """Start asyncio-flavoured code that nobody waits for; a failure is logged."""

        async def in_loop() -> None:
            try:
                await start()
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                logger.warning("a connection could not be closed: %s", error)

        task = self._loop.create_task(in_loop())
        self._started.add(task)
        task.add_done_callback(self._started.discard)

    async def run(
        self,
        start: Callable[[], Awaitable[ResultT]],
        patience: float,
        *,
        on_cancel: Callable[[], object] | None = None,
        on_lost: Callable[[asyncio.Task[ResultT]], object] | None = None,
    ) -> ResultT:
        """Run asyncio-flavoured code in a task of its own, and wait for it.

        A checkpoint. Cancelled before it began, it has not run. Cancelled later, the
        asyncio task is cancelled, once, and has some seconds to end; if it ends with a
        result all the same, that is returned. Past them it is left to itself.

        Args:
            start: returns what is to be awaited.
            patience: seconds that a cancelled task has.
            on_cancel: called when the asyncio task is cancelled.
            on_lost: called with a task that is left to itself.

        Raises:
            RuntimeError: if the loop has ended, or the code was cancelled by other
                asyncio code: an `asyncio.CancelledError` means nothing to Trio.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.is_running:
            raise RuntimeError("the asyncio loop of the pool is not running")

        async def in_loop() -> ResultT:
            # In the task's own context: for the Trio code that it may call.
            trio_asyncio.current_loop.set(self._loop)
            return await start()

        task = self._loop.create_task(in_loop())
        wait = _Wait(self._loop, task, patience, on_cancel)
        await wait.until_done()
        if task.done() and not task.cancelled():
            return task.result()
        if not task.done():
            # Nobody will take what it raises, and that is no fault of the loop's.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            if on_lost is not None:
                on_lost(task)
        if wait.raise_cancel is not None:
            wait.raise_cancel()
        raise RuntimeError("the asyncio code was ended, and not by Trio's cancellation")


class _Wait:
    """A Trio task's wait for an asyncio task: its cancellation is passed on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[Any],
        patience: float,
        on_cancel: Callable[[], object] | None,
    ) -> None:
        self._loop = loop
        self._task = task
        self._patience = patience
        self._on_cancel = on_cancel
        self._waiter = current_task()
        self._timer: asyncio.TimerHandle | None = None
        self.raise_cancel: RaiseCancelT | None = None
        """Raises what the wait was cancelled with."""

    async def until_done(self) -> None:
        """Return when the asyncio task has ended, or its patience after a cancel."""
        self._task.add_done_callback(self._wake)
        await wait_task_rescheduled(self._abort)
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, _: object) -> None:
        reschedule(self._waiter)

    def give_up(self) -> None:
        """Return from the wait, unless that is on its way already."""
        if self._task.remove_done_callback(self._wake):
            reschedule(self._waiter)

    def _abort(self, raise_cancel: RaiseCancelT) -> Abort:
        self.raise_cancel = raise_cancel
        if self._task.cancel():
            if self._on_cancel is not None:
                self._on_cancel()
            self._timer = self._loop.call_later(self._patience, self.give_up)
        return Abort.FAILED


@contextlib.asynccontextmanager
async def running_loop() -> AsyncGenerator[Loop]:
    """Run a loop for the length of the block.

    It runs in a task of its own, so that the block's exceptions come out as they are,
    and the caller's own loop, if there is one, stays the current one. Leaving cancels
    the asyncio tasks that are left, and waits for them. What the loop raises, an
    exception that no asyncio code took, cancels the block, and comes out of it.
    """
    error: BaseException | None = None
    running: list[Loop] = []
    opened, enough = trio.Event(), trio.Event()
    tasks = Tasks()

    def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            # The socket was closed that somebody waits on: by `abort`, who ends the
            # wait, too.
            return
        asyncio.BaseEventLoop.default_exception_handler(cast("Any", loop), context)
        # Without an exception it is a remark, such as asyncpg makes on a reset.
        if error is not None:
            tasks.fail(error)

    async def serve() -> None:
        async with trio_asyncio.open_loop() as loop:
            # In place of trio-asyncio's own, which stops the loop: this one is
            # wanted until the block has ended.
            loop.set_exception_handler(fail)
            running.append(Loop(loop))
            opened.set()
            await enough.wait()

    try:
        async with trio.open_nursery() as tasks.nursery:
            tasks.spawn(serve)
            try:
                with tasks.body:
                    await opened.wait()
                    yield running[0]
            except BaseException as raised:  # noqa: BLE001, ASYNC103 - raised below
                error = raised
            enough.set()
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
    if tasks.bug is not None:
        raise tasks.bug
    if error is not None:
        raise error


def current_loop() -> Any:
    """The trio-asyncio loop of whoever calls.

    Raises:
        RuntimeError: if there is none.
    """
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if not isinstance(loop, trio_asyncio.TrioEventLoop):
        raise RuntimeError(  # noqa: TRY004 - it is the caller who is in the wrong place
            "a trio-asyncio loop is needed: run the program in "
            "'async with trio_asyncio.open_loop()'"
        )
    return loop
