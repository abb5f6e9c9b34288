"""Why a lease waits: who has the connections, and whether that can ever end."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from typing import Protocol, TypeVar

import trio

from ._statistics import Holder, listed


class TakenLease(Protocol):
    """What a diagnosis has to know about a lease."""

    @property
    def task(self) -> trio.lowlevel.Task: ...

    granted_at: float

    @property
    def taken_at(self) -> str: ...


TakenLeaseT = TypeVar("TakenLeaseT", bound=TakenLease)


def holders(leases: Iterable[TakenLease], now: float) -> tuple[Holder, ...]:
    """Who has a connection, the longest first."""
    return tuple(_holder(lease, now) for lease in _by_age(leases))


def report(
    leases: Collection[TakenLease], waiter: trio.lowlevel.Task, now: float
) -> str:
    """The holders, a line each; first those that the waiter itself belongs to."""
    ancestors = set(_line_of_descent(waiter))
    kin: list[str] = []
    others: list[str] = []
    for lease in _by_age(leases):
        line = f"held by {_holder(lease, now)}"
        if lease.task is waiter:
            kin.append(f"{line} (the task that waits here)")
        elif lease.task in ancestors:
            kin.append(f"{line} (an ancestor of the task that waits here)")
        else:
            others.append(line)
    return "".join(f"\n  {line}" for line in listed(kin + others))


def innermost(
    task: trio.lowlevel.Task, leases: Iterable[TakenLeaseT]
) -> TakenLeaseT | None:
    """The last of the leases that a task holds, if any; they are in their order."""
    found = None
    for lease in leases:
        if lease.task is task:
            found = lease
    return found


def is_deadlock(
    borrowed: int,
    leases: Collection[TakenLease],
    endless: Container[trio.lowlevel.Task],
) -> bool:
    """Whether every token belongs to a lease whose task waits without an end.

    A token that was granted a moment ago, or that an opener or cleaner has, belongs
    to no lease, so that the numbers differ: somebody can still go on.
    """
    return borrowed == len(leases) and all(lease.task in endless for lease in leases)


def _by_age(leases: Iterable[TakenLease]) -> list[TakenLease]:
    return sorted(leases, key=lambda lease: lease.granted_at)


def _holder(lease: TakenLease, now: float) -> Holder:
    held = max(0.0, now - lease.granted_at)
    return Holder(lease.task.name, held, lease.taken_at)


def _line_of_descent(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    nursery = task.parent_nursery
    while nursery is not None:
        parent = nursery.parent_task
        yield parent
        nursery = parent.parent_nursery
