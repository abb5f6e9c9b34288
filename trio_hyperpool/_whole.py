"""Blocks that are entered and left as a whole."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from trio.lowlevel import enable_ki_protection

ResultT = TypeVar("ResultT")


class Whole(Generic[ResultT]):
    """An async context manager that a KeyboardInterrupt can't cut into halves.

    It comes at checkpoints only, so that both ends of the block are whole.
    """

    def __init__(self, running: AbstractAsyncContextManager[ResultT]) -> None:
        self._running = running

    @enable_ki_protection
    async def __aenter__(self) -> ResultT:
        return await self._running.__aenter__()

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        # Who is called shields what must not be cut short.
        return await self._running.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102
