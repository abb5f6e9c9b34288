"""The cancel scopes that a task is in at one moment, to ask for their deadline later."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Final, Protocol

import trio
from trio.lowlevel import Task


class Scopes(Protocol):
    """The scopes around one place in a task."""

    def effective_deadline(self) -> float:
        """The earliest deadline that holds there; minus infinity if it is cancelled."""
        ...


class _Fixed:
    """The deadline that held when the current task was asked about."""

    __slots__ = ("_deadline",)

    def __init__(self, _: Task) -> None:
        self._deadline = trio.current_effective_deadline()

    def effective_deadline(self) -> float:
        return self._deadline


# trio has no public name for them, only for their deadline, which takes it half a
# microsecond and more, as it asks each of them: too much for every lease, while one in a
# thousand wants to know.
_PRIVATE: Final = "_cancel_status"


def _best(of: type[object]) -> Callable[[Task], Scopes]:
    return attrgetter(_PRIVATE) if hasattr(of, _PRIVATE) else _Fixed


scopes_of: Final[Callable[[Task], Scopes]] = _best(Task)
"""Find the scopes that the current task is in."""


def deadline_around(task: Task) -> float:
    """Find the effective deadline of a task that is in no scope of its own."""
    around: Scopes | None = getattr(task.parent_nursery, _PRIVATE, None)
    return math.inf if around is None else around.effective_deadline()
