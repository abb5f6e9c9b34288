"""What a pool has done so far, counted, and the frozen snapshot of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
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
        return f"{self.task} for {duration(self.held)}, taken at {self.taken_at}"


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
    """Connections opened so far."""
    open_failures: int
    """Connections that could not be opened, in all of their attempts."""
    retired: Mapping[str, int]
    """Connections ended by policy, by reason."""
    discarded: Mapping[str, int]
    """Connections ended by fault, by reason."""
    health_check_failures: int
    hook_failures: int
    wait_timeouts: int
    """Leases for which no place came free in time."""
    revoked: int
    """Leases whose connection was taken away."""
    cancelled_queries: int
    """Connections that came back, from a lease or a hook, after a cancel request."""
    wait: Timing
    """From asking for a lease to having its connection."""
    use: Timing
    """From having a connection to giving it back."""
    create: Timing
    """From the start of an attempt to the open connection, its hook included."""
    holders: tuple[Holder, ...]
    """Who has a connection, the longest first."""

    @property
    def situation(self) -> str:
        """What there is to know first, in a sentence or two."""
        if not self.size:
            places = "no connection is open"
        elif self.leased < self.max_size:
            verb = "is" if self.leased == 1 else "are"
            places = f"{self.leased} of {_count(self.size, 'connection')} {verb} leased"
        elif self.max_size == 1:
            places = "the only connection is leased"
        else:
            places = f"all {self.max_size} connections are leased"
        if self.holders:
            longest = self.holders[0]
            places += f", the longest for {duration(longest.held)} by {longest.task}"
        return f"{places}; {tasks_wait(self.waiting)}"

    def __str__(self) -> str:
        wrong = [
            f"{count} {what}"
            for what, count in {
                "failed attempts to connect": self.open_failures,
                "failed health checks": self.health_check_failures,
                "failed hooks": self.hook_failures,
                "waits timed out": self.wait_timeouts,
                "leases revoked": self.revoked,
            }.items()
            if count
        ]
        states = (
            f"{self.idle} idle, {self.leased} leased, "
            f"{self.opening} opening, {self.cleaning} cleaning"
        )
        lines = [
            f"{self.name}: {self.situation}",
            f"connections: {self.size} of {self.max_size}: {states}",
            f"leases: {self.leases}; cancelled queries: {self.cancelled_queries}",
            f"time waited: {_words(self.wait)}",
            f"time used: {_words(self.use)}",
            f"time to open: {_words(self.create)}",
            f"retired: {_reasons(self.retired)}; discarded: {_reasons(self.discarded)}",
            f"went wrong: {', '.join(wrong) or 'nothing'}",
        ]
        lines += listed([f"held by {holder}" for holder in self.holders])
        return "\n  ".join(lines)


def frozen(counts: Mapping[str, int]) -> Mapping[str, int]:
    """A copy of the counts that nobody can change."""
    return MappingProxyType(dict(counts))


def duration(seconds: float) -> str:
    """Seconds, in words: with a unit, and no more digits than one reads."""
    if not seconds:
        return "0 s"
    # What rounds to a thousand is one of the next unit.
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def listed(lines: Sequence[str], most: int = 10) -> list[str]:
    """The first few lines, and how many more there are."""
    rest = len(lines) - most
    # One that says so takes no less room than the one it would stand for.
    return [*lines] if rest <= 1 else [*lines[:most], f"and {rest} more"]


def tasks_wait(count: int, other: str = "") -> str:
    """How many tasks wait, as part of a sentence."""
    if not count:
        return f"no {other}task waits"
    return f"1 {other}task waits" if count == 1 else f"{count} {other}tasks wait"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _words(timing: Timing) -> str:
    if not timing.count:
        return "none yet"
    return f"{duration(timing.mean)} on average, {duration(timing.max)} at most"


def _reasons(counts: Mapping[str, int]) -> str:
    if not counts:
        return "none"
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason}" for reason, count in by_count)
