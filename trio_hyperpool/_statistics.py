"""What a pool has done so far, counted, and the frozen snapshot of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Timing:
    """How often something was timed, and how long it took, in seconds."""

    count: int
    sum: float
    max: float

    @property
    def mean(self) -> float:
        """Seconds on average; 0 if nothing was timed."""
        return self.sum / self.count if self.count else 0.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a connection."""

    task: str
    """Name of the task that entered the lease."""

    held: float
    """Seconds since it got the connection."""

    taken_at: str
    """Where `Pool.lease` was called: ``file:line``."""

    def __str__(self) -> str:
        return f"{self.task} for {self.held:.3g} s, taken at {self.taken_at}"


class Stopwatch:
    """The sum and the greatest of many durations."""

    __slots__ = ("count", "max", "sum")

    def __init__(self) -> None:
        self.count: int = 0
        self.sum: float = 0.0
        self.max: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self.sum += seconds
        if seconds > self.max:  # noqa: PLR1730 - on the path of every lease
            self.max = seconds

    def snapshot(self) -> Timing:
        """The durations so far."""
        return Timing(self.count, self.sum, self.max)


class Counters:
    """The counters behind `PoolStatistics`."""

    __slots__ = (
        "cancelled_queries",
        "create",
        "discarded",
        "health_check_failures",
        "hook_failures",
        "open_failures",
        "opened",
        "retired",
        "revoked",
        "use",
        "wait",
        "wait_timeouts",
    )

    def __init__(self) -> None:
        self.opened: int = 0
        self.open_failures: int = 0
        self.retired: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.health_check_failures: int = 0
        self.hook_failures: int = 0
        self.wait_timeouts: int = 0
        self.revoked: int = 0
        self.cancelled_queries: int = 0
        self.wait: Stopwatch = Stopwatch()
        self.use: Stopwatch = Stopwatch()
        self.create: Stopwatch = Stopwatch()


@dataclasses.dataclass(frozen=True)
class PoolStatistics:
    """A pool at one moment: its sizes, its counters, its times and who holds it.

    ``size == idle + leased + opening + cleaning`` at every moment, and
    ``opened`` is the sum of all that was retired, all that was discarded and all
    that is alive and open.
    """

    name: str
    max_size: int
    size: int
    """Connections alive, those being opened, cleaned and closed included."""
    idle: int
    leased: int
    opening: int
    cleaning: int
    """Connections being put right, or politely closed, by a task of the pool."""
    waiting: int
    """Tasks that queue for a place in the pool."""
    leases: int
    """Connections handed out so far."""
    opened: int
    open_failures: int
    retired: Mapping[str, int]
    """Connections ended by policy, by reason."""
    discarded: Mapping[str, int]
    """Connections ended by fault, by reason."""
    health_check_failures: int
    hook_failures: int
    wait_timeouts: int
    revoked: int
    cancelled_queries: int
    wait: Timing
    """From asking for a lease to having its connection."""
    use: Timing
    """From having a connection to giving it back."""
    create: Timing
    """From the start of an attempt to the open connection, its hook included."""
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        places = (
            f"{self.size} of {self.max_size} connections: {self.idle} idle, "
            f"{self.leased} leased, {self.opening} opening, {self.cleaning} cleaning"
        )
        counts = {
            "failed health checks": self.health_check_failures,
            "failed hooks": self.hook_failures,
            "wait timeouts": self.wait_timeouts,
            "revoked": self.revoked,
            "cancelled queries": self.cancelled_queries,
        }
        retired, discarded = _reasons(self.retired), _reasons(self.discarded)
        lines = [
            f"{self.name}: {places}; {self.waiting} tasks waiting",
            f"leases: {self.leases}; waited {_words(self.wait)}; used {_words(self.use)}",
            f"opened: {self.opened}, in {_words(self.create)}; failed: {self.open_failures}",
            f"retired: {retired}; discarded: {discarded}",
            "; ".join(f"{what}: {count}" for what, count in counts.items()),
        ]
        lines += [f"held by {holder}" for holder in self.holders]
        return "\n".join(lines)


def frozen(counts: Mapping[str, int]) -> Mapping[str, int]:
    """A copy of the counts that nobody can change."""
    return MappingProxyType(dict(counts))


def _words(timing: Timing) -> str:
    return f"{timing.mean * 1000:.3g} ms on average, {timing.max * 1000:.3g} ms at most"


def _reasons(counts: Mapping[str, int]) -> str:
    if not counts:
        return "none"
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
