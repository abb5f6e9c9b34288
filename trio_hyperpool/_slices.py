"""What the events of a pool amount to: slices of time, and marks in it.

All of it may begin in the middle: an end says how long it was since the beginning, so
that a slice is whole although the event of its beginning was forgotten.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, TypeAlias

from ._events import (
    CancelSent,
    ConnectionDiscarded,
    ConnectionFailed,
    ConnectionOpened,
    ConnectionOpening,
    ConnectionRetired,
    Event,
    LeaseEnded,
    LeaseGranted,
    LeaseRefused,
    LeaseRequested,
    LeaseRevoked,
    PoolClosing,
    Step,
    StepBegun,
    StepEnded,
)
from ._statistics import duration

Details: TypeAlias = Mapping[str, str | int]


class Kind(enum.StrEnum):
    """What a slice or a mark shows."""

    WAIT = "wait"
    CONNECTION = "connection"
    CONNECT = "connect"
    LEASE = "lease"
    CHECK = "check"
    HOOK = "hook"
    CLEAN = "clean"
    FAREWELL = "farewell"
    CANCEL = "cancel"
    RETIRED = "retired"
    DISCARDED = "discarded"
    CLOSING = "closing"


STEPS: Final = {
    Step.HEALTH_CHECK: Kind.CHECK,
    Step.AFTER_CONNECT: Kind.HOOK,
    Step.BEFORE_ACQUIRE: Kind.HOOK,
    Step.AFTER_RELEASE: Kind.HOOK,
    Step.CLEAN: Kind.CLEAN,
    Step.FAREWELL: Kind.FAREWELL,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """Something that took time."""

    kind: Kind
    name: str
    began: float
    ended: float
    """For what is not over, the end of the recording."""
    details: Details
    error: str | None = None
    """Why it did not end well; None if it did, or goes on."""
    is_over: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened in a moment."""

    kind: Kind
    name: str
    at: float


def _short(task: str) -> str:
    """What tells tasks apart, of a name that is that of a function."""
    return re.sub(r"^(\w+\.|<locals>\.)+(?=\w)", "", task)


def beginning(slice_: Slice) -> tuple[float, float]:
    """Sorts what begins first, and what holds others, before the rest."""
    return slice_.began, -slice_.ended


@dataclasses.dataclass(slots=True)
class Known:
    """What is known of a connection so far."""

    parts: list[Slice] = dataclasses.field(default_factory=list[Slice])
    marks: list[Mark] = dataclasses.field(default_factory=list[Mark])
    is_over: bool = False


class Story:
    """One pool's events, put together to slices and marks."""

    def __init__(self, now: float) -> None:
        self.waits: list[Slice] = []
        self.connections: dict[int, Known] = defaultdict(Known)
        self.marks: list[Mark] = []
        self._now = now
        self._requests: dict[int, LeaseRequested] = {}
        self._grants: dict[int, LeaseGranted] = {}
        self._attempts: dict[int, ConnectionOpening] = {}
        self._steps: dict[tuple[int, Step], StepBegun] = {}

    def add(self, event: Event) -> None:
        """Take in one more."""
        match event:
            case LeaseRequested():
                self._requests[event.lease] = event
            case LeaseGranted():
                self._grants[event.lease] = event
                self._add_wait(event, None)
            case LeaseRefused():
                self._add_wait(event, event.error)
                self._requests.pop(event.lease, None)
            case LeaseEnded():
                self._add_use(event, None)
            case LeaseRevoked():
                self._add_use(event, "revoked")
            case PoolClosing():
                self.marks.append(Mark(Kind.CLOSING, "closing", event.at))
            case _:
                self._add_of_connection(event)

    def _add_of_connection(self, event: Event) -> None:
        match event:
            case ConnectionOpening():
                self._attempts[event.connection] = event
            case ConnectionOpened():
                self._add_attempt(event, None)
            case ConnectionFailed():
                self._add_attempt(event, event.error)
                self.connections[event.connection].is_over = True
            case ConnectionRetired():
                self._add_end(event, Kind.RETIRED)
            case ConnectionDiscarded():
                self._add_end(event, Kind.DISCARDED)
            case CancelSent():
                mark = Mark(Kind.CANCEL, "cancel sent", event.at)
                self.connections[event.connection].marks.append(mark)
            case StepBegun():
                self._steps[event.connection, event.step] = event
            case StepEnded():
                self._add_step(event)
            case _:  # a timeout is told once more by the refusal that follows
                pass

    def end(self) -> None:
        """Let what is not over last until now."""
        for lease, request in self._requests.items():
            if lease not in self._grants:
                self.waits.append(self._of_lease(Kind.WAIT, lease, request.at))
        for lease, grant in self._grants.items():
            use = self._of_lease(Kind.LEASE, lease, grant.at)
            self.connections[grant.connection].parts.append(use)
        for (connection, step), begun in self._steps.items():
            self.connections[connection].parts.append(self._step(step, begun.at))
        for connection, attempt in self._attempts.items():
            connect = self._attempt(attempt, attempt.at)
            self.connections[connection].parts.append(connect)

    def life(self, connection: int) -> list[Slice]:
        """The whole of what a connection went through, and then each part."""
        known = self.connections[connection]
        # What holds others is not over before they are, and known after them.
        parts = [*reversed(known.parts)]
        parts.sort(key=beginning)
        times = [mark.at for mark in known.marks]
        times += [time for part in parts for time in (part.began, part.ended)]
        whole = self._slice(
            Kind.CONNECTION,
            f"connection {connection}",
            min(times),
            max(times) if known.is_over else None,
            {"connection": connection},
        )
        return [whole, *parts]

    def _add_wait(self, event: LeaseGranted | LeaseRefused, error: str | None) -> None:
        request = self._requests.get(event.lease)
        began = request.at if request else event.at - event.waited
        wait = self._of_lease(Kind.WAIT, event.lease, began, event.at, error)
        self.waits.append(wait)

    def _add_use(self, event: LeaseEnded | LeaseRevoked, error: str | None) -> None:
        grant = self._grants.get(event.lease)
        began = grant.at if grant else event.at - event.used
        use = self._of_lease(Kind.LEASE, event.lease, began, event.at, error)
        self.connections[event.connection].parts.append(use)
        self._grants.pop(event.lease, None)
        self._requests.pop(event.lease, None)

    def _add_attempt(
        self, event: ConnectionOpened | ConnectionFailed, error: str | None
    ) -> None:
        attempt = self._attempts.pop(event.connection, None)
        began = attempt.at if attempt else event.at - event.took
        connect = self._attempt(attempt, began, event.at, error)
        self.connections[event.connection].parts.append(connect)

    def _add_step(self, event: StepEnded) -> None:
        begun = self._steps.pop((event.connection, event.step), None)
        began = begun.at if begun else event.at - event.took
        connection = self.connections[event.connection]
        connection.parts.append(self._step(event.step, began, event.at, event.error))
        # Its retirement may have been forgotten.
        connection.is_over |= event.step is Step.FAREWELL

    def _add_end(
        self, event: ConnectionRetired | ConnectionDiscarded, kind: Kind
    ) -> None:
        connection = self.connections[event.connection]
        connection.is_over = True
        connection.marks.append(Mark(kind, f"{kind}: {event.reason}", event.at))

    def _of_lease(
        self,
        kind: Kind,
        lease: int,
        began: float,
        ended: float | None = None,
        error: str | None = None,
    ) -> Slice:
        details: dict[str, str | int] = {"lease": lease}
        request, grant = self._requests.get(lease), self._grants.get(lease)
        if request:
            details |= {"task": request.task, "taken at": request.taken_at}
        if grant and kind is Kind.LEASE:
            details["waited"] = duration(grant.waited)
        name = _short(request.task) if request else f"lease {lease}"
        return self._slice(kind, name, began, ended, details, error=error)

    def _attempt(
        self,
        attempt: ConnectionOpening | None,
        began: float,
        ended: float | None = None,
        error: str | None = None,
    ) -> Slice:
        asked_by = attempt.lease if attempt else None
        details = {} if asked_by is None else {"asked for by lease": asked_by}
        return self._slice(Kind.CONNECT, "connect", began, ended, details, error=error)

    def _step(
        self,
        step: Step,
        began: float,
        ended: float | None = None,
        error: str | None = None,
    ) -> Slice:
        return self._slice(STEPS[step], step.value, began, ended, {}, error=error)

    def _slice(
        self,
        kind: Kind,
        name: str,
        began: float,
        ended: float | None,
        details: Details,
        *,
        error: str | None = None,
    ) -> Slice:
        until = self._now if ended is None else ended
        return Slice(kind, name, began, until, details, error, ended is not None)
