"""What happened in a pool lately: the last minute by seconds, and what is of note."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Final, NamedTuple

from ._events import (
    ConnectionDiscarded,
    ConnectionFailed,
    Event,
    LeaseEnded,
    LeaseGranted,
    LeaseRefused,
    LeaseRequested,
    LeaseRevoked,
    PoolClosing,
    StepEnded,
)
from ._snapshot import Minute, Note, Waiters
from ._statistics import Stopwatch

SECONDS: Final = 60
"""How far back it looks."""

MOST_NOTES: Final = 12

MOST_PLACES: Final = 6


class Recent:
    """An instrument that remembers little, however much happens.

    What it keeps is bounded by a minute, by a number of notes, and by the leases that
    are out or asked for at this moment.

    Args:
        now: trio's clock, from which on it listens.
        leased: how many connections are leased then.
    """

    def __init__(self, now: float, leased: int) -> None:
        self._leased = leased
        self._second = math.floor(now)
        self._seconds: deque[_Second] = deque(maxlen=SECONDS)
        self._this = _Second()
        self._leases: dict[int, LeaseRequested] = {}
        """Those who wait or have a connection, by number."""
        self._waiting: dict[int, LeaseRequested] = {}
        self._notes: dict[str, _Noted] = {}
        """By what happened; what happened last comes last."""

    def happened(self, event: Event, /) -> None:
        """Take notice of an event."""
        if event.at >= self._second + 1:
            self._go_on(event.at)
        match event:
            case LeaseRequested():
                self._leases[event.lease] = self._waiting[event.lease] = event
            case LeaseGranted():
                self._waiting.pop(event.lease, None)
                self._leased += 1
                self._this.wait.add(event.waited)
            case LeaseEnded():
                self._leases.pop(event.lease, None)
                self._leased -= 1
                self._this.use.add(event.used)
            case _:
                self._take_note(event)

    def minute(self, now: float) -> Minute:
        """The last minute; the second that is not over yet is no part of it."""
        self._go_on(now)
        seconds = self._seconds
        return Minute(
            leases=tuple(second.wait.count for second in seconds),
            wait_sum=tuple(second.wait.sum for second in seconds),
            wait_max=tuple(second.wait.max for second in seconds),
            uses=tuple(second.use.count for second in seconds),
            use_sum=tuple(second.use.sum for second in seconds),
            use_max=tuple(second.use.max for second in seconds),
            leased=tuple(second.leased for second in seconds),
            waiting=tuple(second.waiting for second in seconds),
        )

    def waiters(self, now: float) -> tuple[Waiters, ...]:
        """Who waits, by place, the longest wait first."""
        places: dict[str, list[LeaseRequested]] = {}
        for request in self._waiting.values():
            places.setdefault(request.taken_at, []).append(request)
        # Requests are in the order of their times.
        return tuple(
            Waiters(len(requests), requests[0].task, now - requests[0].at, place)
            for place, requests in list(places.items())[:MOST_PLACES]
        )

    def notes(self, now: float) -> tuple[Note, ...]:
        """What was of note, the latest first."""
        return tuple(
            dataclasses.replace(noted.note, ago=now - noted.at)
            for noted in reversed(self._notes.values())
        )

    def _go_on(self, now: float) -> None:
        """End the seconds that are over."""
        until = math.floor(now)
        # What lies further back would be forgotten again.
        for _ in range(min(until - self._second, SECONDS + 1)):
            self._this.leased = self._leased
            self._this.waiting = len(self._waiting)
            self._seconds.append(self._this)
            self._this = _Second()
        self._second = until

    def _take_note(self, event: Event) -> None:
        match event:
            case LeaseRefused():
                self._waiting.pop(event.lease, None)
                request = self._leases.pop(event.lease, None)
                # A caller who gave up is no fault of the pool's.
                if event.error != "Cancelled":
                    self._note(
                        event, f"lease refused: {event.error}", request, event.waited
                    )
            case LeaseRevoked():
                request = self._leases.pop(event.lease, None)
                self._leased -= 1
                self._this.use.add(event.used)
                self._note(event, "lease revoked", request, event.used)
            case ConnectionFailed():
                what = f"connecting failed: {event.error}"
                self._note(event, what, event.connection, event.took)
            case ConnectionDiscarded():
                what = f"connection discarded: {event.reason}"
                self._note(event, what, event.connection)
            case StepEnded() if event.error not in {None, "Cancelled"}:
                # Its text stays in the log: nobody knows what is in it.
                what = f"{event.step.value} failed"
                self._note(event, what, event.connection, event.took)
            case PoolClosing():
                self._note(event, "the pool is closing")
            case _:
                pass

    def _note(
        self,
        event: Event,
        what: str,
        who: LeaseRequested | int | None = None,
        seconds: float | None = None,
    ) -> None:
        earlier = self._notes.pop(what, None)
        count = 1
        if earlier is not None and event.at - earlier.at < SECONDS:
            count += earlier.note.count
        name = taken_at = ""
        if isinstance(who, LeaseRequested):
            name, taken_at = who.task, who.taken_at
        elif who is not None:
            name = f"connection {who}"
        note = Note(0, count, what, name, taken_at, seconds)
        self._notes[what] = _Noted(event.at, note)
        if len(self._notes) > MOST_NOTES:
            del self._notes[next(iter(self._notes))]


class _Second:
    """What happened within a second, and how it stood at its end."""

    __slots__ = ("leased", "use", "wait", "waiting")

    leased: int
    """Set when it is over, and so is `waiting`."""
    waiting: int

    def __init__(self) -> None:
        self.wait: Stopwatch = Stopwatch()
        self.use: Stopwatch = Stopwatch()


class _Noted(NamedTuple):
    """The last of a kind."""

    at: float
    note: Note
