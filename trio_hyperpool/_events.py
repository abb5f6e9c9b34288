"""What happens in a pool, as an instrument is told of it.

Numbers name leases and connections: each has one of its own in its pool, from 1 up.
Times are those of trio's clock, in seconds.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol


class Step(enum.Enum):
    """What a pool does with a connection that nobody has leased."""

    HEALTH_CHECK = "health_check"
    AFTER_CONNECT = "after_connect"
    BEFORE_ACQUIRE = "before_acquire"
    AFTER_RELEASE = "after_release"
    CLEAN = "clean"
    """Putting it right after a lease."""
    FAREWELL = "farewell"
    """Ending it politely."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a pool."""

    pool: str
    """The pool's name."""
    at: float
    """When: seconds of trio's clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class PoolWatched(Event):
    """The first that an instrument is told of a pool: how it is at this moment."""

    system: str
    """The kind of server; see `trio_hyperpool.Connector`."""
    max_size: int
    min_idle: int
    idle: tuple[int, ...]
    """The connections that are free."""
    used: tuple[int, ...]
    """Those that are leased, or being checked or put right."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseRequested(Event):
    """A task entered `trio_hyperpool.Pool.lease`, and may have to wait."""

    lease: int
    task: str
    """The task's name."""
    taken_at: str
    """Where the lease was taken: ``file:line``."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseGranted(Event):
    """It got a connection."""

    lease: int
    connection: int
    waited: float
    """Seconds since it was requested."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseRefused(Event):
    """It ended without a connection."""

    lease: int
    waited: float
    """Seconds since it was requested."""
    error: str
    """The exception's name, ``Cancelled`` for one."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseEnded(Event):
    """Its connection came back."""

    lease: int
    connection: int
    used: float
    """Seconds since it was granted."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseRevoked(Event):
    """The pool took its connection away."""

    lease: int
    connection: int
    used: float
    """Seconds since it was granted."""


@dataclasses.dataclass(frozen=True, slots=True)
class WaitTimedOut(Event):
    """No place came free in time; `LeaseRefused` follows."""

    lease: int


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionOpening(Event):
    """An attempt to open a connection begins."""

    connection: int
    lease: int | None
    """The lease that asked for it; another one may get it. None: nobody asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """It is open, and ``after_connect`` has run."""

    connection: int
    took: float
    """Seconds since the attempt began."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionFailed(Event):
    """The attempt failed."""

    connection: int
    took: float
    """Seconds since the attempt began."""
    error: str
    """The exception's name."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionRetired(Event):
    """It is being ended by policy, politely."""

    connection: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionDiscarded(Event):
    """It was closed at once, because of a fault."""

    connection: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class StepBegun(Event):
    """A check, a hook, cleaning or a farewell begins."""

    connection: int
    step: Step


@dataclasses.dataclass(frozen=True, slots=True)
class StepEnded(Event):
    """It is over."""

    connection: int
    step: Step
    took: float
    """Seconds since it began."""
    error: str | None
    """What went wrong, if anything did."""


@dataclasses.dataclass(frozen=True, slots=True)
class CancelSent(Event):
    """The server was asked to stop what it does on this connection."""

    connection: int


@dataclasses.dataclass(frozen=True, slots=True)
class PoolResized(Event):
    """`trio_hyperpool.Pool.resize` was called."""

    max_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class PoolClosing(Event):
    """The pool turns everybody away from now on."""


@dataclasses.dataclass(frozen=True, slots=True)
class PoolUnwatched(Event):
    """The last that an instrument is told of a pool: it is removed, or the pool over."""


class Instrument(Protocol):
    """Is told what happens in the pools that it was added to.

    See `trio_hyperpool.Pool.add_instrument`; `trio.abc.Instrument` is the model.
    """

    def happened(self, event: Event, /) -> None:
        """Take notice of an event.

        Called in the middle of what the pool does: it must not wait, nor call the
        pool. Raising, it is removed, and what it raised is logged.
        """
        ...
