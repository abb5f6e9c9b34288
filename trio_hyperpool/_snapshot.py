"""What a viewer is told of a pool: one line of JSON, made here and read here."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final

from ._statistics import Holder, PoolStatistics, Timing, frozen

VERSION: Final = 1
"""Of the line. Greater if a reader of today could not make sense of it."""


@dataclasses.dataclass(frozen=True)
class Minute:
    """The last minute of a pool: a number for each second, the latest last."""

    leases: tuple[int, ...]
    """Connections handed out."""
    wait_sum: tuple[float, ...]
    """Seconds that they had been waited for, in all."""
    wait_max: tuple[float, ...]
    uses: tuple[int, ...]
    """Connections that came back."""
    use_sum: tuple[float, ...]
    use_max: tuple[float, ...]
    leased: tuple[int, ...]
    """Connections leased, at the end of the second."""
    waiting: tuple[int, ...]
    """Tasks that waited, at the end of the second."""

    def rate(self, seconds: int) -> float:
        """Leases each second, over the last few."""
        latest = self.leases[-seconds:]
        return sum(latest) / len(latest) if latest else 0.0

    def wait(self, seconds: int) -> Timing:
        """The waits that ended in the last few seconds."""
        return _timing(self.leases, self.wait_sum, self.wait_max, seconds)

    def use(self, seconds: int) -> Timing:
        """The leases that ended in the last few seconds."""
        return _timing(self.uses, self.use_sum, self.use_max, seconds)


@dataclasses.dataclass(frozen=True)
class Waiters:
    """Tasks that wait for a connection, and all ask for it in one place."""

    tasks: int
    longest: str
    """Name of the one that has waited longest."""
    waited: float
    """Seconds that it has waited."""
    taken_at: str
    """Where they called `Pool.lease`: ``file:line``."""


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that happened, and not just as it should."""

    ago: float
    """Seconds since it happened last."""
    count: int
    """How often, with less than a minute between them."""
    what: str
    who: str
    """The task or the connection, the last time; empty if it was the pool."""
    taken_at: str
    """Where the lease was taken, if it was about one: ``file:line``."""
    after: float | None
    """Seconds that it had taken, if that was measured."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A pool at one moment, with what led to it."""

    pid: int
    """Process that the pool is in."""
    watched: float
    """Seconds since its live view began."""
    statistics: PoolStatistics
    minute: Minute
    waiters: tuple[Waiters, ...]
    """Those who wait longest, first."""
    notes: tuple[Note, ...]
    """The latest first."""


def to_line(snapshot: Snapshot) -> bytes:
    """One line of JSON, the line break included."""
    fields = {"version": VERSION, **vars(snapshot)}
    return json.dumps(fields, default=_plain, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes | bytearray) -> Snapshot:
    """Read what `to_line` has written.

    Raises:
        ValueError: it is not such a line, or one of another version.
    """
    try:
        fields: dict[str, Any] = json.loads(line)
        version = fields.pop("version")
        if version != VERSION:
            raise ValueError(
                f"version {version!r} of the live view, and {VERSION} is understood"
            )
        return Snapshot(
            pid=int(fields["pid"]),
            watched=float(fields["watched"]),
            statistics=_statistics(fields["statistics"]),
            minute=Minute(**{k: tuple(v) for k, v in fields["minute"].items()}),
            waiters=tuple(Waiters(**one) for one in fields["waiters"]),
            notes=tuple(Note(**one) for one in fields["notes"]),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a line of a live view: {error!r}") from None


def _statistics(fields: dict[str, Any]) -> PoolStatistics:
    for name in "wait", "use", "create":
        fields[name] = Timing(**fields[name])
    for name in "retired", "discarded":
        fields[name] = frozen(fields[name])
    fields["holders"] = tuple(Holder(**one) for one in fields["holders"])
    return PoolStatistics(**fields)


def _plain(value: object) -> object:
    """What JSON has no form for: records, and counts that nobody can change."""
    return vars(value) if dataclasses.is_dataclass(value) else dict(value)  # type: ignore[call-overload]


def _timing(
    counts: tuple[int, ...],
    sums: tuple[float, ...],
    greatest: tuple[float, ...],
    seconds: int,
) -> Timing:
    return Timing(
        sum(counts[-seconds:]),
        sum(sums[-seconds:]),
        max(greatest[-seconds:], default=0.0),
    )
