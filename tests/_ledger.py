"""An instrument that asserts that what it is told makes sense."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trio_hyperpool import Pool
from trio_hyperpool._events import (
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
    PoolResized,
    PoolUnwatched,
    PoolWatched,
    Step,
    StepBegun,
    StepEnded,
    WaitTimedOut,
)


class Ledger:
    """An instrument that asserts that what it is told makes sense."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.failure: AssertionError | None = None
        self.is_over = False
        self.leases: dict[int, str] = {}
        self.connections: dict[int, str] = {}
        self.holders: dict[int, int] = {}
        # A hook may outlast its connection: it is the user's.
        self.steps: dict[tuple[int, Step], StepBegun] = {}
        self.counts: Counter[type[Event]] = Counter()
        self.retired: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()

    def happened(self, event: Event, /) -> None:
        self.events.append(event)
        self.counts[type(event)] += 1
        if self.failure is None:
            try:
                self._check(event)
            except AssertionError as failure:
                failure.add_note(f"after {self.events[-12:]}")
                self.failure = failure

    def _check(self, event: Event) -> None:
        if len(self.events) > 1:
            assert event.at >= self.events[-2].at
        assert isinstance(event, PoolWatched) == (len(self.events) == 1)
        assert not self.is_over
        if isinstance(event, PoolWatched | PoolResized):
            assert event.max_size >= 1
        elif isinstance(event, PoolClosing):
            assert self.counts[PoolClosing] == 1
        elif isinstance(event, PoolUnwatched):
            self.is_over = True
        elif hasattr(event, "lease") and not isinstance(event, ConnectionOpening):
            self._check_lease(event)
        else:
            self._check_connection(event)

    def _check_lease(self, event: Event) -> None:
        match event:
            case LeaseRequested():
                assert event.lease not in self.leases
                self.leases[event.lease] = "requested"
            case LeaseGranted():
                assert self.leases[event.lease] == "requested"
                assert event.connection not in self.holders
                assert event.connection not in self._at_work()
                assert self.connections[event.connection] == "open"
                self.leases[event.lease] = "granted"
                self.holders[event.connection] = event.lease
            case LeaseRefused():
                assert self.leases[event.lease] == "requested"
                self.leases[event.lease] = "over"
            case LeaseEnded() | LeaseRevoked():
                assert self.leases[event.lease] == "granted"
                assert self.holders.pop(event.connection) == event.lease
                self.leases[event.lease] = "over"
            case _:
                assert isinstance(event, WaitTimedOut)
                assert self.leases[event.lease] == "requested"

    def _check_connection(self, event: Event) -> None:
        match event:
            case ConnectionOpening():
                assert event.connection not in self.connections
                assert event.lease is None or event.lease in self.leases
                self.connections[event.connection] = "opening"
            case ConnectionOpened():
                assert self.connections[event.connection] == "opening"
                self.connections[event.connection] = "open"
            case ConnectionFailed():
                assert self.connections[event.connection] in {"opening", "ended"}
                self.connections[event.connection] = "failed"
            case ConnectionRetired() | ConnectionDiscarded():
                assert self.connections[event.connection] in {"opening", "open"}
                assert event.connection not in self.holders
                self.connections[event.connection] = "ended"
                is_retired = isinstance(event, ConnectionRetired)
                ended = self.retired if is_retired else self.discarded
                ended[event.reason] += 1
            case StepBegun():
                assert (event.connection, event.step) not in self.steps
                assert event.connection not in self.holders
                assert event.connection in self.connections
                self.steps[event.connection, event.step] = event
            case StepEnded():
                begun = self.steps.pop((event.connection, event.step))
                assert event.took == event.at - begun.at
            case _:
                assert isinstance(event, CancelSent)
                assert event.connection in self.holders.keys() | self._at_work()

    def _at_work(self) -> set[int]:
        return {connection for connection, _ in self.steps}

    def assert_agrees(self, pool: Pool[Any]) -> None:
        """What was told of a pool that is over is what it has counted."""
        if self.failure is not None:
            raise self.failure
        assert self.is_over
        assert not self.holders
        # Who waited, or is in a hook, has perhaps not run since.
        assert set(self.leases.values()) <= {"over", "requested"}
        assert set(self.connections.values()) <= {"ended", "failed"}
        now = pool.statistics()
        assert self.counts[LeaseGranted] == now.leases
        assert self.counts[LeaseRevoked] == now.revoked
        assert self.counts[WaitTimedOut] == now.wait_timeouts
        assert self.counts[ConnectionOpened] == now.create.count
        assert self.retired == now.retired
        assert self.discarded == now.discarded
