"""What OpenTelemetry is told of a pool: metrics, and spans.

Names, units and kinds are those of its semantic conventions for database clients. Every
measurement is made when an event is told, in the thread of the pool, so that no exporter
ever looks into one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from ._errors import LeaseRevokedError, PoolTimeoutError
from ._events import (
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
    PoolResized,
    PoolUnwatched,
    PoolWatched,
    StepBegun,
    StepEnded,
)

SCOPE: Final = "trio_hyperpool"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

POOL_NAME: Final = "db.client.connection.pool.name"
STATE: Final = "db.client.connection.state"

Reactions = dict[type[Event], Callable[[Any], None]]
"""What to do with each kind of event; the others are of no interest."""

# The conventions advise these for how long an operation takes, and say nothing of
# pools. The SDK's own are made for milliseconds.
BOUNDARIES: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)


class OpenTelemetry:
    """Tells OpenTelemetry what happens in the pools that it is added to.

    That is the nine metrics ``db.client.connection.*``; a span for each lease, from the
    request to the end; and a span for each attempt to open a connection. Both are
    children of the span in which the lease was asked for. Pools of one instrument must
    have different names, which are an attribute of everything.

    Args:
        meter_provider: where metrics go; the global one if None.
        tracer_provider: where spans go; the global one if None.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self._metrics = _Metrics(
            metrics.get_meter(SCOPE, "", meter_provider, SCHEMA_URL)
        )
        self._tracer = trace.get_tracer(SCOPE, None, tracer_provider, SCHEMA_URL)
        self._pools: dict[str, tuple[Reactions, Reactions]] = {}

    def happened(self, event: Event, /) -> None:
        """Count and time it."""
        if isinstance(event, PoolWatched):
            if event.pool in self._pools:
                raise ValueError(
                    f"OpenTelemetry: a pool named {event.pool!r} is watched already: "
                    "give each a name of its own, or an instrument of its own"
                )
            self._pools[event.pool] = (
                _Counts(self._metrics, event.pool).reactions,
                _Spans(self._tracer, event).reactions,
            )
        for reactions in self._pools[event.pool]:
            if reaction := reactions.get(type(event)):
                reaction(event)
        if isinstance(event, PoolUnwatched):
            del self._pools[event.pool]


class _Metrics:
    """The nine of the conventions."""

    def __init__(self, meter: Meter) -> None:
        self.count = meter.create_up_down_counter(
            "db.client.connection.count",
            "{connection}",
            "Connections that are in the state that the attribute says.",
        )
        self.idle_max = meter.create_up_down_counter(
            "db.client.connection.idle.max",
            "{connection}",
            "Idle connections that there may be at most.",
        )
        self.idle_min = meter.create_up_down_counter(
            "db.client.connection.idle.min",
            "{connection}",
            "Idle connections that are kept.",
        )
        self.max = meter.create_up_down_counter(
            "db.client.connection.max",
            "{connection}",
            "Connections that there may be at most.",
        )
        self.pending_requests = meter.create_up_down_counter(
            "db.client.connection.pending_requests",
            "{request}",
            "Leases that have no connection yet.",
        )
        self.timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "Leases that got no connection in time.",
        )
        self.create_time = meter.create_histogram(
            "db.client.connection.create_time",
            "s",
            "The time it took to open a connection.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.wait_time = meter.create_histogram(
            "db.client.connection.wait_time",
            "s",
            "The time it took to get a connection.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self.use_time = meter.create_histogram(
            "db.client.connection.use_time",
            "s",
            "The time between getting a connection and giving it back.",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )


class _Counts:
    """What one pool has added to the metrics, so that it can be taken off again.

    Args:
        metrics: of all pools.
        pool: the name of this one.
    """

    def __init__(self, metrics: _Metrics, pool: str) -> None:
        self._metrics = metrics
        self._attributes = {POOL_NAME: pool}
        self._idle = {POOL_NAME: pool, STATE: "idle"}
        self._used = {POOL_NAME: pool, STATE: "used"}
        self._connections: dict[int, dict[str, str]] = {}
        """Each open one, with the attributes under which it counts."""
        self._pending: set[int] = set()
        self._max = 0
        self._min_idle = 0
        self.reactions: Reactions = {
            LeaseRequested: self._requested,
            LeaseGranted: self._granted,
            LeaseRefused: self._refused,
            LeaseEnded: self._ended,
            LeaseRevoked: self._used_for,
            ConnectionOpened: self._opened,
            ConnectionRetired: self._gone,
            ConnectionDiscarded: self._gone,
            StepBegun: self._step_begun,
            StepEnded: self._step_ended,
            PoolWatched: self._watched,
            PoolResized: self._resized,
            PoolUnwatched: self._unwatched,
        }

    def _requested(self, event: LeaseRequested) -> None:
        self._pending.add(event.lease)
        self._metrics.pending_requests.add(1, self._attributes)

    def _granted(self, event: LeaseGranted) -> None:
        self._no_longer_pending(event.lease)
        self._move(event.connection, self._used)
        self._metrics.wait_time.record(event.waited, self._attributes)

    def _refused(self, event: LeaseRefused) -> None:
        self._no_longer_pending(event.lease)
        if event.error == PoolTimeoutError.__name__:
            self._metrics.timeouts.add(1, self._attributes)

    def _ended(self, event: LeaseEnded) -> None:
        self._move(event.connection, self._idle)
        self._used_for(event)

    def _used_for(self, event: LeaseEnded | LeaseRevoked) -> None:
        # What was revoked is never idle again.
        self._metrics.use_time.record(event.used, self._attributes)

    def _opened(self, event: ConnectionOpened) -> None:
        self._move(event.connection, self._idle)
        self._metrics.create_time.record(event.took, self._attributes)

    def _gone(self, event: ConnectionRetired | ConnectionDiscarded) -> None:
        self._move(event.connection, None)

    def _step_begun(self, event: StepBegun) -> None:
        # Not one that is not open yet, or not any more.
        if event.connection in self._connections:
            self._move(event.connection, self._used)

    def _step_ended(self, event: StepEnded) -> None:
        if event.connection in self._connections:
            self._move(event.connection, self._idle)

    def _watched(self, event: PoolWatched) -> None:
        # That something has not happened yet is to be seen, too.
        for attributes in (self._idle, self._used):
            self._metrics.count.add(0, attributes)
        self._metrics.pending_requests.add(0, self._attributes)
        self._metrics.timeouts.add(0, self._attributes)
        for number in event.idle:
            self._move(number, self._idle)
        for number in event.used:
            self._move(number, self._used)
        self._resize(event.max_size, event.min_idle)

    def _resized(self, event: PoolResized) -> None:
        self._resize(event.max_size, self._min_idle)

    def _unwatched(self, _event: PoolUnwatched) -> None:
        for number in list(self._connections):
            self._move(number, None)
        for lease in list(self._pending):
            self._no_longer_pending(lease)
        self._resize(0, 0)

    def _move(self, connection: int, to: dict[str, str] | None) -> None:
        """Count a connection under other attributes than before, or no more."""
        before = self._connections.pop(connection, None)
        if before is not None:
            self._metrics.count.add(-1, before)
        if to is not None:
            self._connections[connection] = to
            self._metrics.count.add(1, to)

    def _no_longer_pending(self, lease: int) -> None:
        # One that asked before anybody watched was not counted.
        if lease in self._pending:
            self._pending.remove(lease)
            self._metrics.pending_requests.add(-1, self._attributes)

    def _resize(self, max_size: int, min_idle: int) -> None:
        more = max_size - self._max
        self._metrics.max.add(more, self._attributes)
        self._metrics.idle_max.add(more, self._attributes)
        self._metrics.idle_min.add(min_idle - self._min_idle, self._attributes)
        self._max, self._min_idle = max_size, min_idle


class _Spans:
    """The spans of one pool that have not ended.

    Args:
        tracer: makes them.
        pool: what all of them are told of it.
    """

    def __init__(self, tracer: Tracer, pool: PoolWatched) -> None:
        self._tracer = tracer
        self._attributes: dict[str, AttributeValue] = {
            POOL_NAME: pool.pool,
            "db.system.name": pool.system,
        }
        self._leases: dict[int, tuple[Span, Context]] = {}
        """Each with the context of the task that asked for it."""
        self._connects: dict[int, Span] = {}
        self.reactions: Reactions = {
            LeaseRequested: self._requested,
            LeaseGranted: self._granted,
            LeaseRefused: self._refused,
            LeaseEnded: self._ended,
            LeaseRevoked: self._revoked,
            ConnectionOpening: self._opening,
            ConnectionOpened: self._opened,
            ConnectionFailed: self._failed,
            PoolUnwatched: self._unwatched,
        }

    def _requested(self, event: LeaseRequested) -> None:
        file, _, line = event.taken_at.rpartition(":")
        attributes = {
            **self._attributes,
            f"{SCOPE}.task": event.task,
            "code.file.path": file,
        }
        if line.isdecimal():  # compiled code may not know
            attributes["code.line.number"] = int(line)
        asked_in = context.get_current()
        span = self._tracer.start_span("pool.lease", asked_in, attributes=attributes)
        self._leases[event.lease] = span, asked_in

    def _granted(self, event: LeaseGranted) -> None:
        if event.lease in self._leases:
            span, _ = self._leases[event.lease]
            span.set_attribute(f"{SCOPE}.wait_time", event.waited)
            span.set_attribute(f"{SCOPE}.connection", event.connection)

    def _refused(self, event: LeaseRefused) -> None:
        self._end_lease(event.lease, event.error)

    def _ended(self, event: LeaseEnded) -> None:
        self._end_lease(event.lease)

    def _revoked(self, event: LeaseRevoked) -> None:
        self._end_lease(event.lease, LeaseRevokedError.__name__)

    def _opening(self, event: ConnectionOpening) -> None:
        # This is told in a task of the pool. If nobody asked for the connection, or who
        # did is gone, the span belongs where the pool was opened.
        _, asked_in = self._leases.get(event.lease or 0, (None, None))
        self._connects[event.connection] = self._tracer.start_span(
            "pool.connect",
            asked_in,
            SpanKind.CLIENT,
            {**self._attributes, f"{SCOPE}.connection": event.connection},
        )

    def _opened(self, event: ConnectionOpened) -> None:
        _end(self._connects.pop(event.connection, None))

    def _failed(self, event: ConnectionFailed) -> None:
        _end(self._connects.pop(event.connection, None), event.error)

    def _unwatched(self, _event: PoolUnwatched) -> None:
        for lease in list(self._leases):
            self._end_lease(lease)
        while self._connects:
            _end(self._connects.popitem()[1])

    def _end_lease(self, lease: int, error: str | None = None) -> None:
        span, _ = self._leases.pop(lease, (None, None))
        _end(span, error)


def _end(span: Span | None, error: str | None = None) -> None:
    """End a span, unless it began before anybody watched."""
    if span is None:
        return
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR, error)
    span.end()
