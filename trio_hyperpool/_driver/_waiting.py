"""Waiting in trio, for sockets and for one's turn; nothing here knows psycopg."""

from __future__ import annotations

import select
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, cast

import trio
from trio.lowlevel import (
    ParkingLot,
    enable_ki_protection,
    wait_readable,
    wait_writable,
)

from trio_hyperpool._errors import LeaseError

READABLE: Final = 1
WRITABLE: Final = 2
EITHER: Final = READABLE | WRITABLE

PROMPT: Final = 100e-6
"""Seconds: what an answer that is prompt takes, and what it is looked for."""
FEWEST_PROMPT: Final = 4
MOST_PROMPT: Final = 4096


class _Nothing:
    """What can be awaited, and takes no time."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return cast("Generator[Any, Any, None]", iter(()))


NOTHING: Final[Awaitable[None]] = _Nothing()


class Promptness:
    """Whether answers come so soon that it is not worth going to sleep for them.

    To fall asleep and to be woken up takes some 20 microseconds, and on a virtual machine
    more of the processor's time than to stay awake for as long. Who stays awake in vain,
    because the server needs the same processor, say, does so ever more rarely.
    """

    __slots__ = ("_in_a_row", "_wanted")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._wanted = FEWEST_PROMPT

    @property
    def is_expected(self) -> bool:
        """Whether enough answers in a row were prompt."""
        return self._in_a_row >= self._wanted

    def came(self, seconds: float) -> None:
        """An answer came after so long."""
        self._in_a_row = self._in_a_row + 1 if seconds < PROMPT else 0

    def kept(self) -> None:
        """It came while it was looked for."""
        self._wanted = FEWEST_PROMPT

    def missed(self) -> None:
        """It did not."""
        self._in_a_row = 0
        self._wanted = min(2 * self._wanted, MOST_PROMPT)


class Turns:
    """A lock whose owner is an operation: any task may release it.

    Those who wait get it in the order they came. Taking it while it is free is no
    checkpoint, so that clean-up in a cancelled scope is not stopped by it. Once
    `end` was called, nobody gets it any more. How a turn ends, a subclass knows.
    """

    __slots__ = ("_queue", "ended", "is_taken")

    ended: type[LeaseError] | None
    is_taken: bool
    _queue: ParkingLot | None

    @enable_ki_protection
    def __aenter__(self) -> Awaitable[None]:
        if self.ended is not None:
            raise self.ended
        if self.is_taken:
            return self._wait()
        self.is_taken = True
        return NOTHING

    @enable_ki_protection
    async def _wait(self) -> None:
        if self._queue is None:
            self._queue = ParkingLot()
        await self._queue.park()
        # Whoever woke us left the lock taken, for us; or it is worth nothing any more.
        if self.ended is not None:
            raise self.ended

    def release(self) -> None:
        """Let the next one in the queue have it, if there is one."""
        if self._queue:
            self._queue.unpark()
        else:
            self.is_taken = False

    def end(self, error: type[LeaseError]) -> None:
        """Whoever waits, or will ask for a turn, gets the error."""
        self.ended = error
        if self._queue:
            self._queue.unpark_all()


def _poll(fd: int, want: int) -> int:
    poller = select.poll()
    poller.register(
        fd,
        (select.POLLIN if want & READABLE else 0)
        | (select.POLLOUT if want & WRITABLE else 0),
    )
    ready = 0
    for _, events in poller.poll(0):
        # An error or a hang-up is for libpq to find, in whichever way it wants to.
        if events & ~(select.POLLIN | select.POLLOUT):
            return want
        ready = (READABLE if events & select.POLLIN else 0) | (
            WRITABLE if events & select.POLLOUT else 0
        )
    return ready


def _select(fd: int, want: int) -> int:
    # Where there is no poll(), select() does not mind how great the numbers are.
    readable, writable, failed = select.select(
        [fd] if want & READABLE else [], [fd] if want & WRITABLE else [], [fd], 0
    )
    if failed:
        return want
    return (READABLE if readable else 0) | (WRITABLE if writable else 0)


def ready_now(fd: int, want: int) -> int:
    """For which of the wanted directions the socket is ready at this moment."""
    return _select(fd, want) if sys.platform == "win32" else _poll(fd, want)


async def wait_ready(fd: int, want: int) -> int:
    """Wait until the socket is ready, and say for what. A checkpoint."""
    if want == READABLE:
        await wait_readable(fd)
        return READABLE
    if want == WRITABLE:
        await wait_writable(fd)
        return WRITABLE
    return await _wait_either(fd)


@enable_ki_protection
async def _wait_either(fd: int) -> int:
    ready = 0

    async def watch(wait: Callable[[int], Awaitable[None]], direction: int) -> None:
        nonlocal ready
        await wait(fd)
        ready |= direction
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, wait_readable, READABLE)
            await watch(wait_writable, WRITABLE)
    except BaseExceptionGroup as group:
        raise most_urgent(group) from None
    return ready


def most_urgent(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception of a group that has to be heard: a cancellation comes last."""
    leaves = [
        most_urgent(cast("BaseExceptionGroup[BaseException]", error))
        if isinstance(error, BaseExceptionGroup)
        else error
        for error in group.exceptions
    ]
    return min(
        leaves,
        key=lambda error: (
            isinstance(error, trio.Cancelled),
            isinstance(error, Exception),
        ),
    )
