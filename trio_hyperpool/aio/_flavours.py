"""Objects of one flavour of async, asyncio or Trio, as code of the other uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextlib import AbstractContextManager
from functools import lru_cache
from inspect import (
    CORO_CREATED,
    getcoroutinestate,
    isasyncgenfunction,
    iscoroutine,
    iscoroutinefunction,
)
from types import MethodType, TracebackType
from typing import Any, cast

__all__ = ["Adapted", "Bridge"]

_PROTOCOLS = {"__aenter__", "__aiter__", "__anext__", "__await__"}


class Bridge(ABC):
    """How code of one flavour calls that of the other."""

    @abstractmethod
    def check(self) -> None:
        """Raise if what is on the other side must not be used any more."""

    @abstractmethod
    def here(self) -> AbstractContextManager[object]:
        """Surround a call that does not wait."""

    @abstractmethod
    async def run(self, start: Callable[[], Awaitable[Any]]) -> Any:
        """Await on the other side what ``start`` returns there."""

    @abstractmethod
    async def leave(
        self, target: Any, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave an async context manager of the other side."""

    @abstractmethod
    def assign(self, target: object, name: str, value: object) -> None:
        """Set an attribute of an object on the other side."""

    def adapted(self, value: Any) -> Any:
        """The value itself, or if it is async in any way, an adapter for this side."""
        return (
            Adapted(value, self) if _is_async(cast("Hashable", type(value))) else value
        )


class Adapted:
    """An object whose async methods, blocks and iterators are of the other flavour.

    Its attributes are those of the object; whatever async they give is adapted, too.
    """

    __slots__ = ("_bridge", "_target")

    _bridge: Bridge
    _target: Any

    def __init__(self, target: object, bridge: Bridge) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_bridge", bridge)

    def __repr__(self) -> str:
        return f"<adapted {self._target!r}>"

    def __dir__(self) -> list[str]:
        return dir(self._target)

    def __getattr__(self, name: str) -> Any:
        bridge, target = self._bridge, self._target
        bridge.check()
        with bridge.here():
            value = getattr(target, name)
        if value is target:
            return self
        if not callable(value) or getattr(value, "__self__", None) is not target:
            return bridge.adapted(value)

        def method(_: Adapted, *args: Any, **kwargs: Any) -> Any:
            bridge.check()
            with bridge.here():
                # An async one only says what is to be awaited.
                own = {key: _own(argument) for key, argument in kwargs.items()}
                result = value(*map(_own, args), **own)
            return self if result is target else bridge.adapted(result)

        # Bound, so that an adapter of this one knows it for a method.
        return MethodType(method, self)

    def __setattr__(self, name: str, value: object) -> None:
        self._bridge.check()
        with self._bridge.here():
            self._bridge.assign(self._target, name, value)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._awaited().__await__()

    async def __aenter__(self) -> Any:
        return await self._result_of(self._target.__aenter__)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._bridge.check()
        # Shielding is the bridge's business.
        return await self._bridge.leave(self._target, exc, traceback)  # noqa: ASYNC102

    def __aiter__(self) -> Adapted:
        self._bridge.check()
        with self._bridge.here():
            return Adapted(self._target.__aiter__(), self._bridge)

    async def __anext__(self) -> Any:
        return await self._result_of(self._target.__anext__)

    async def _awaited(self) -> Any:
        target = self._target
        try:
            return await self._result_of(lambda: target)
        finally:
            # One that was not begun would complain about that.
            if iscoroutine(target) and getcoroutinestate(target) == CORO_CREATED:
                target.close()

    async def _result_of(self, start: Callable[[], Awaitable[Any]]) -> Any:
        self._bridge.check()
        result = await self._bridge.run(start)
        return self if result is self._target else self._bridge.adapted(result)


def _own(argument: Any) -> Any:
    """What was adapted for the caller goes back as it was."""
    return argument._target if isinstance(argument, Adapted) else argument  # noqa: SLF001


@lru_cache(maxsize=1024)  # bounded: there are row factories that make a class a query
def _is_async(kind: type) -> bool:
    return any(
        name in _PROTOCOLS or iscoroutinefunction(member) or isasyncgenfunction(member)
        for base in kind.__mro__
        for name, member in vars(base).items()
    )
