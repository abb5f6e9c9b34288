"""An asyncio driver without a server, and asyncio as it was after trio-asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any

_Names = dict[tuple[Any, str], Any]

_changes: list[tuple[_Names, _Names]] = []


def _names() -> _Names:
    return {
        (module, name): value
        for module in (asyncio, asyncio.events, asyncio.tasks)
        for name, value in vars(module).items()
    }


@contextlib.contextmanager
def asyncio_on_trio() -> Generator[None]:
    """Confine to a block what importing trio-asyncio in it does to asyncio.

    A later block, in which it is not imported again, has the same done to it.
    """
    if _changes:
        _, new = _changes[0]
        for (module, name), value in new.items():
            setattr(module, name, value)
    before = _names()
    yield
    if not _changes:
        after = _names()
        changed = {key for key in before if before[key] is not after[key]}
        _changes.append(
            (
                {key: before[key] for key in changed},
                {key: after[key] for key in changed},
            )
        )
    old, _ = _changes[0]
    for (module, name), value in old.items():
        setattr(module, name, value)


class Driver:
    """A connection to nothing, for asyncio, such as any driver has it."""

    def __init__(self) -> None:
        self.is_open = True
        self.in_transaction = False
        self.row_factory: object = None
        self.loop = asyncio.get_running_loop()
        self.log: list[str] = []

    @property
    def me(self) -> Driver:
        return self

    def peek(self) -> str:
        assert asyncio.get_running_loop() is self.loop
        return "peeked"

    async def execute(self, seconds: float = 0.0, *, fail: str = "") -> str:
        assert asyncio.get_running_loop() is self.loop
        assert asyncio.current_task() is not None
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        if fail:
            raise OSError(fail)
        return "executed"

    async def ignore_cancellation(self, seconds: float) -> str:
        end = self.loop.time() + seconds
        while (left := end - self.loop.time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
        return "late"

    async def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    async def is_given(self, other: object) -> bool:
        return other is self

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Driver]:
        self.in_transaction = True
        self.log.append("begin")
        try:
            yield self
        except BaseException as error:
            await asyncio.sleep(0.01)
            self.log.append(f"rollback after {type(error).__name__}")
            raise
        else:
            await asyncio.sleep(0.01)
            self.log.append("commit")
        finally:
            self.in_transaction = False

    async def rows(self, count: int) -> AsyncGenerator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            yield number

    async def reset(self) -> None:
        await asyncio.sleep(0)
        self.log.append("reset")
        self.in_transaction = False

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.log.append("close")
        self.is_open = False

    def abort(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        self.log.append("abort")
        self.is_open = False
