"""Asyncio code that uses the connections of a pool, in a trio-asyncio program."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from trio.lowlevel import current_task

from trio_hyperpool._config import Hook, check_wait_timeout
from trio_hyperpool._lease import Lease
from trio_hyperpool._pool import Pool

from ._flavours import Adapted, Bridge
from ._loop import Loop, current_loop
from ._views import AsyncioConnection, lent

__all__ = ["AsyncioLease", "call", "hook", "lease"]

ConnectionT = TypeVar("ConnectionT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")

_frame_above = sys._getframe  # noqa: SLF001 - documented, and all there is


class _ForAsyncio(Bridge):
    """The way from asyncio code to a Trio-flavoured connection."""

    def check(self) -> None:
        """Nothing: what it leads to does so itself."""

    def here(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    async def run(self, start: Callable[[], Awaitable[Any]]) -> Any:
        task = _caller()
        cancellations = task.cancelling()
        result = await current_loop().trio_as_future(start)
        if task.cancelling() > cancellations:
            # It came too late to stop what is done, which is worth to be told. Trio
            # would cancel the next await, and so does this.
            task.uncancel()
            task.cancel()
        return result

    async def leave(
        self, target: Any, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        exc_type = None if exc is None else type(exc)
        told = exc_type, exc, traceback
        return cast("bool | None", await self.run(lambda: target.__aexit__(*told)))

    def assign(self, target: object, name: str, value: object) -> None:
        setattr(target, name, value)


class AsyncioLease(Generic[ConnectionT]):
    """A connection for the length of one ``async with`` block of asyncio code."""

    def __init__(self, lease: Lease[ConnectionT]) -> None:
        self._lease = lease

    async def __aenter__(self) -> ConnectionT:
        """Get a connection. Cancelled, it leaves the pool unchanged."""
        task = _caller()
        cancellations = task.cancelling()

        async def enter() -> ConnectionT:
            # The asyncio task is who has the lease; this one ends at once.
            current_task().name = f"asyncio task {task.get_name()!r}"
            return await self._lease.__aenter__()

        try:
            view = await current_loop().trio_as_future(enter)
            if task.cancelling() > cancellations:
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            # It may have come when the connection was on its way to this task.
            self._lease.give_back()
            raise
        return cast("ConnectionT", Adapted(view, _ForAsyncio()))

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the connection back; nothing is awaited."""
        self._lease.give_back()


def lease(
    pool: Pool[ConnectionT], *, wait_timeout: float | None = None
) -> AsyncioLease[ConnectionT]:
    """Lease a connection to asyncio code: ``async with aio.lease(pool) as connection``.

    The code runs in a trio-asyncio loop of the Trio program that opened the pool. The
    connection is that of ``Pool.lease``, with everything async about it made for asyncio;
    so are the promises. Cancelling the asyncio task while it waits leaves the pool
    unchanged; in a query it stops the query on the server; and in any case the
    connection goes back when the block ends, which awaits nothing.

    Args:
        pool: any pool.
        wait_timeout: seconds to wait for a place in the pool, in place of the
            config's; 0 never queues.

    Raises:
        RuntimeError: on entering: the caller is no task of a trio-asyncio loop.
        PoolError: on entering: see ``Pool.lease``.
    """
    if wait_timeout is None:
        wait_timeout = pool.config.wait_timeout
    else:
        check_wait_timeout(wait_timeout)
    frame = _frame_above(1)
    supply = pool._supply  # noqa: SLF001 - as Pool.lease, but for another caller's line
    return AsyncioLease(Lease(supply, wait_timeout, frame.f_code, frame.f_lasti))


async def call(
    connection: object,
    async_fn: Callable[Concatenate[Any, P], Awaitable[ResultT]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> ResultT:
    """Call an asyncio-flavoured function on a leased connection, from Trio code.

    One asyncio task runs all of it: many queries cost one crossing. On a connection of
    an `AsyncioConnector` it runs in the pool's loop, and gets the driver's own
    connection, which it must not keep. On any other one it runs in the caller's
    trio-asyncio loop, and gets what `lease` would give it.

    A checkpoint. Cancelled, it cancels the function, and waits until that has ended.

    Args:
        connection: as it was leased, or as a hook gets it.
        async_fn: the function; takes the connection, and the other arguments.
        args: its other positional arguments.
        kwargs: its keyword arguments.

    Raises:
        LeaseError: the connection is not this borrower's any more.
        RuntimeError: there is no trio-asyncio loop.
    """
    if isinstance(connection, AsyncioConnection):
        way = lent(connection)
        way.check()
        result = await way.run(lambda: async_fn(way.driver, *args, **kwargs))
        return cast("ResultT", way.adapted(result))
    adapted = Adapted(connection, _ForAsyncio())
    loop = Loop(current_loop())
    return await loop.run(lambda: async_fn(adapted, *args, **kwargs), math.inf)


def hook(async_fn: Callable[[Any], Awaitable[object]]) -> Hook:
    """Make a hook or a health check of an asyncio-flavoured function; see `call`."""

    async def run_hook(connection: object) -> object:
        return await call(connection, async_fn)

    return run_hook


def _caller() -> asyncio.Task[Any]:
    task = asyncio.current_task(current_loop())
    if task is None:
        raise RuntimeError(
            "aio.lease: allowed in asyncio tasks; Trio code uses Pool.lease()"
        )
    return task
