"""What OpenTelemetry is told of a pool, as its SDK sees it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Generator
from typing import Any

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import code_attributes, error_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._invariants import fake_pool, hold, settle
from trio_hyperpool import (
    ConnectError,
    CreateMode,
    HookError,
    Hyperd,
    PoolTimeoutError,
    open_pool,
    telemetry,
)
from trio_hyperpool.telemetry import LeaseRequested, OpenTelemetry, PoolWatched
from trio_hyperpool.testing import FakeConnector, Gate

IDLE = db_attributes.DbClientConnectionStateValues.IDLE.value
USED = db_attributes.DbClientConnectionStateValues.USED.value
LEVELS = {
    db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX,
    db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN,
    db_metrics.DB_CLIENT_CONNECTION_MAX,
    db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS,
}


class Backend:
    """Providers of metrics and traces, and what has come in there."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracers.get_tracer("test")

    def instrument(self) -> OpenTelemetry:
        return OpenTelemetry(self.meters, self.tracers)

    def metrics(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "trio_hyperpool"
        assert scope.schema_url in {schema.value for schema in Schemas}
        return {metric.name: metric for metric in scope.metrics}

    def point(
        self, name: str, pool: str = "p", state: str | None = None
    ) -> NumberDataPoint | HistogramDataPoint:
        """The point of this metric with these attributes, and no others."""
        wanted = {db_attributes.DB_CLIENT_CONNECTION_POOL_NAME: pool}
        if state is not None:
            wanted[db_attributes.DB_CLIENT_CONNECTION_STATE] = state
        points = self.metrics()[name].data.data_points
        (found,) = [point for point in points if point.attributes == wanted]
        assert isinstance(found, NumberDataPoint | HistogramDataPoint)
        return found

    def value(self, name: str, pool: str = "p", state: str | None = None) -> float:
        point = self.point(name, pool, state)
        assert isinstance(point, NumberDataPoint)
        return point.value

    def counted(self, pool: str = "p") -> tuple[float, float]:
        """How many connections are idle, and how many used."""
        name = db_metrics.DB_CLIENT_CONNECTION_COUNT
        return self.value(name, pool, IDLE), self.value(name, pool, USED)

    def pending(self) -> float:
        return self.value(db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS)

    def times(self, name: str) -> tuple[int, float, float]:
        """How many there were, their sum and the longest."""
        point = self.point(name)
        assert isinstance(point, HistogramDataPoint)
        return point.count, point.sum, point.max

    def assert_back_at_zero(self, pool: str = "p") -> None:
        assert self.counted(pool) == (0, 0)
        for name in LEVELS:
            assert self.value(name, pool) == 0, name

    def spans(self, name: str) -> list[ReadableSpan]:
        """Those that have ended, in the order of their beginnings."""
        spans = self._exporter.get_finished_spans()
        return sorted(
            (span for span in spans if span.name == name),
            key=lambda span: span.start_time or 0,
        )

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


@pytest.fixture
def backend() -> Generator[Backend]:
    backend = Backend()
    yield backend
    backend.meters.shutdown()
    backend.tracers.shutdown()


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: trace.Span) -> int:
    return span.get_span_context().span_id


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


# Metrics


class Creations:
    """Stands in for a meter, and notes what is asked of it."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, str]] = {}

    def __getattr__(self, method: str) -> Callable[..., None]:
        def create(
            name: str, unit: str = "", description: str = "", **_advice: object
        ) -> None:
            self.made[name] = method, unit

        return create


async def test_all_nine_metrics_have_the_names_kinds_and_units_of_the_conventions(
    backend: Backend, autojump_clock: MockClock
) -> None:
    expected = Creations()
    for name in dir(db_metrics):
        if name.startswith("create_db_client_connection_"):
            getattr(db_metrics, name)(expected)
    assert len(expected.made) == 9
    async with fake_pool(name="p") as pool:
        pool.add_instrument(backend.instrument())
        await hold(pool, 1)
        metrics = backend.metrics()
    assert metrics.keys() == expected.made.keys()
    for name, (method, unit) in expected.made.items():
        data = metrics[name].data
        assert metrics[name].unit == unit
        assert str(metrics[name].description).endswith(".")
        if method == "create_histogram":
            assert isinstance(data, Histogram)
            assert data.data_points[0].explicit_bounds[0] == 0.001  # they are seconds
        else:
            assert isinstance(data, Sum)
            assert data.is_monotonic == (method == "create_counter")


async def test_connections_are_counted_as_idle_or_used(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(
        connect=Gate.slow(1),
        probe=Gate.slow(1),
        clean=Gate.slow(1),
        close=Gate.slow(1),
    )
    seen: dict[float, tuple[float, float]] = {}

    async def look() -> None:
        for _ in range(9):
            await trio.sleep(0.5)
            seen[trio.current_time()] = backend.counted()
            await trio.sleep(0.5)

    async with (
        fake_pool(connector, name="p", health_check_after=0) as pool,
        trio.open_nursery() as nursery,
    ):
        pool.add_instrument(backend.instrument())
        nursery.start_soon(look)
        await hold(pool, 1)  # opened until 1, leased until 2
        await trio.sleep(1)
        async with pool.lease() as connection:  # checked from 3, leased until 5
            connection.begin()
            await trio.sleep(1)
        await trio.sleep(2)  # cleaned until 6
        pool.retire_idle()  # ended from 7
    assert seen == {
        0.5: (0, 0),
        1.5: (0, 1),
        2.5: (1, 0),
        3.5: (0, 1),
        4.5: (0, 1),
        5.5: (0, 1),
        6.5: (1, 0),
        7.5: (0, 0),
        8.5: (0, 0),
    }
    backend.assert_back_at_zero()


async def test_requests_are_pending_until_they_have_a_connection(
    backend: Backend, autojump_clock: MockClock
) -> None:
    async with fake_pool(name="p", max_size=1) as pool:
        pool.add_instrument(backend.instrument())
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold, pool, 2)
            await trio.sleep(1)
            assert backend.pending() == 2
            with trio.move_on_after(0.5):
                await hold(pool, 0)
            assert backend.pending() == 2
            await trio.sleep(1)
            assert backend.pending() == 1
        assert backend.pending() == 0


async def test_waits_uses_and_openings_are_timed(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.slow(3))
    async with (
        fake_pool(connector, name="p", max_size=1) as pool,
        trio.open_nursery() as nursery,
    ):
        pool.add_instrument(backend.instrument())
        await nursery.start(hold, pool, 2)
        await hold(pool, 4)
    assert backend.times(db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME) == (1, 3, 3)
    assert backend.times(db_metrics.DB_CLIENT_CONNECTION_WAIT_TIME) == (2, 5, 3)
    assert backend.times(db_metrics.DB_CLIENT_CONNECTION_USE_TIME) == (2, 6, 4)


async def test_every_lease_that_ran_out_of_time_is_a_timeout_and_no_other(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.never(on=1))
    async with fake_pool(connector, name="p", max_size=1, create_timeout=2) as pool:
        pool.add_instrument(backend.instrument())
        timeouts = db_metrics.DB_CLIENT_CONNECTION_TIMEOUTS
        assert backend.value(timeouts) == 0
        with pytest.raises(PoolTimeoutError):
            await hold(pool, 0)
        assert backend.value(timeouts) == 1
        async with pool.lease():
            with pytest.raises(PoolTimeoutError):
                async with pool.lease(wait_timeout=1):
                    pass
            with trio.move_on_after(1):
                async with pool.lease(wait_timeout=2):
                    pass
        assert backend.value(timeouts) == 2


async def test_sizes_follow_the_pool(
    backend: Backend, autojump_clock: MockClock
) -> None:
    def sizes() -> list[float]:
        return [
            backend.value(name)
            for name in (
                db_metrics.DB_CLIENT_CONNECTION_MAX,
                db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX,
                db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN,
            )
        ]

    async with fake_pool(name="p", max_size=4, min_idle=2) as pool:
        pool.add_instrument(backend.instrument())
        assert sizes() == [4, 4, 2]
        pool.resize(9)
        assert sizes() == [9, 9, 2]
        pool.resize(3)
        assert sizes() == [3, 3, 2]
    backend.assert_back_at_zero()


async def test_added_in_the_middle_it_counts_what_is_there_and_removed_it_takes_it_off(
    backend: Backend, autojump_clock: MockClock
) -> None:
    async with fake_pool(name="p", max_size=2) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold, pool, 2)
            await trio.sleep(1)
            instrument = backend.instrument()
            pool.add_instrument(instrument)
            assert backend.counted() == (0, 2)
            assert backend.pending() == 0  # who waits already was never seen to come
            await trio.sleep(1.5)
            assert backend.counted() == (1, 1)
            assert backend.pending() == 0
        assert backend.counted() == (2, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold, pool, 2)
            await trio.sleep(1)
            assert (backend.counted(), backend.pending()) == ((0, 2), 1)
            pool.remove_instrument(instrument)
            backend.assert_back_at_zero()
        backend.assert_back_at_zero()
        pool.add_instrument(instrument)
        assert backend.counted() == (2, 0)
    backend.assert_back_at_zero()


@pytest.mark.parametrize("is_clean", [True, False])
async def test_a_revoked_connection_is_used_until_it_is_gone(
    backend: Backend, autojump_clock: MockClock, is_clean: bool
) -> None:
    async with (
        fake_pool(name="p", max_lease=2) as pool,
        trio.open_nursery() as nursery,
    ):
        pool.add_instrument(backend.instrument())
        connection = await nursery.start(hold, pool, 5)
        await trio.sleep(1)
        if not is_clean:
            connection.close()
        assert backend.counted() == (0, 1)
        await trio.sleep(2)
        assert backend.counted() == (0, 0)
    assert backend.times(db_metrics.DB_CLIENT_CONNECTION_USE_TIME) == (1, 2, 2)


async def test_a_pool_whose_everything_fails_is_counted_right_to_the_end(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(
        connect=Gate.fails(on=3), clean=Gate.fails(on=2), close=Gate.fails(on=1)
    )
    async with fake_pool(
        connector,
        name="p",
        health_check_after=0,
        after_connect=Gate.fails(on=2),
        before_acquire=Gate.fails(on=4),
        after_release=Gate.fails(on=3),
    ) as pool:
        pool.add_instrument(backend.instrument())
        for turn in range(12):
            with contextlib.suppress(HookError, ConnectError):
                async with pool.lease() as connection:
                    connection.begin()
            await settle(pool)
            now = pool.statistics()
            assert backend.counted() == (now.idle, now.leased)
            if turn % 3 == 2:
                connector.break_all()
    now = pool.statistics()
    assert now.hook_failures == 3
    assert now.discarded["failed cleaning"] == 1
    assert now.discarded["found dead"]
    assert now.open_failures
    backend.assert_back_at_zero()


async def test_two_pools_are_told_apart_by_their_names(
    backend: Backend, autojump_clock: MockClock
) -> None:
    instrument = backend.instrument()
    async with fake_pool(name="p") as one, fake_pool(name="q") as other:
        one.add_instrument(instrument)
        other.add_instrument(instrument)
        await hold(one, 0)
        async with other.lease():
            assert backend.counted("p") == (1, 0)
            assert backend.counted("q") == (0, 1)
    backend.assert_back_at_zero("p")
    backend.assert_back_at_zero("q")


async def test_two_pools_of_one_name_need_two_instruments(
    backend: Backend, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    instrument = backend.instrument()
    async with fake_pool(name="p") as one, fake_pool(name="p") as other:
        one.add_instrument(instrument)
        other.add_instrument(instrument)
        assert "OpenTelemetry: a pool named 'p' is watched already" in caplog.text
        async with one.lease(), other.lease():
            assert backend.counted() == (0, 1)
            other.add_instrument(backend.instrument())
            assert backend.counted() == (0, 2)
    backend.assert_back_at_zero()


# Spans


async def test_a_lease_is_a_span_from_its_request_to_its_end(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with fake_pool(connector, name="p") as pool:
        pool.add_instrument(backend.instrument())
        with backend.tracer.start_as_current_span("caller") as caller:
            async with pool.lease():
                assert not backend.spans("pool.lease")
                line = sys._getframe().f_lineno - 2
    span = backend.span("pool.lease")
    assert parent_of(span) == id_of(caller)
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(span) == {
        db_attributes.DB_CLIENT_CONNECTION_POOL_NAME: "p",
        "db.system.name": "other_sql",
        code_attributes.CODE_FILE_PATH: __file__,
        code_attributes.CODE_LINE_NUMBER: line,
        "trio_hyperpool.task": trio.lowlevel.current_task().name,
        "trio_hyperpool.wait_time": 2,
        "trio_hyperpool.connection": 1,
    }


async def test_opening_a_connection_is_a_child_of_the_span_that_asked_for_it(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.slow(1))
    with backend.tracer.start_as_current_span("opens the pool") as opens:
        async with fake_pool(connector, name="p") as pool:
            pool.add_instrument(backend.instrument())
            callers = []

            async def call(name: str) -> None:
                with backend.tracer.start_as_current_span(name) as caller:
                    callers.append(caller)
                    await hold(pool, 1)

            async with trio.open_nursery() as nursery:
                for name in ("a", "b"):
                    nursery.start_soon(call, name)
    connects = backend.spans("pool.connect")
    assert {parent_of(span) for span in connects} == {id_of(each) for each in callers}
    assert id_of(opens) not in {parent_of(span) for span in connects}
    for span in connects:
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
    assert attributes_of(connects[0]) == {
        db_attributes.DB_CLIENT_CONNECTION_POOL_NAME: "p",
        "db.system.name": "other_sql",
        "trio_hyperpool.connection": 1,
    }


async def test_a_connection_that_nobody_asked_for_belongs_where_the_pool_was_opened(
    backend: Backend, autojump_clock: MockClock
) -> None:
    with backend.tracer.start_as_current_span("opens the pool") as opens:
        async with fake_pool(name="p", min_idle=1) as pool:
            pool.add_instrument(backend.instrument())
            await settle(pool)
    assert parent_of(backend.span("pool.connect")) == id_of(opens)


async def test_an_attempt_that_failed_and_a_lease_that_got_nothing_are_errors(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.never(on=1))
    async with fake_pool(connector, name="p", create_timeout=2) as pool:
        pool.add_instrument(backend.instrument())
        with pytest.raises(PoolTimeoutError):
            await hold(pool, 0)
    for name in ("pool.lease", "pool.connect"):
        span = backend.span(name)
        assert span.status.status_code is StatusCode.ERROR
        attributes = attributes_of(span)
        assert attributes[error_attributes.ERROR_TYPE] == "PoolTimeoutError"
        assert "trio_hyperpool.wait_time" not in attributes


async def test_a_cancelled_wait_and_a_revoked_lease_are_errors_that_say_so(
    backend: Backend, autojump_clock: MockClock
) -> None:
    async with fake_pool(name="p", max_size=1, max_lease=5) as pool:
        pool.add_instrument(backend.instrument())
        async with pool.lease():
            with trio.move_on_after(1):
                await hold(pool, 0)
            await trio.sleep(5)
    revoked, cancelled = backend.spans("pool.lease")
    for span, error in ((revoked, "LeaseRevokedError"), (cancelled, "Cancelled")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == error
        assert attributes_of(span)[error_attributes.ERROR_TYPE] == error


async def test_removed_in_the_middle_it_leaves_no_span_open(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with (
        fake_pool(connector, name="p", max_size=2) as pool,
        trio.open_nursery() as nursery,
    ):
        instrument = backend.instrument()
        pool.add_instrument(instrument)
        await nursery.start(hold, pool, 5)
        nursery.start_soon(hold, pool, 0)
        await trio.sleep(1)
        assert len(backend.spans("pool.connect")) == 1
        pool.remove_instrument(instrument)
        assert len(backend.spans("pool.lease")) == 2
        assert len(backend.spans("pool.connect")) == 2


async def test_what_began_before_it_was_added_has_no_span(
    backend: Backend, autojump_clock: MockClock
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with (
        fake_pool(connector, name="p", max_size=2) as pool,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(hold, pool, 5)
        nursery.start_soon(hold, pool, 0)
        await trio.sleep(1)
        pool.add_instrument(backend.instrument())
        await trio.sleep(6)
        assert not backend.spans("pool.lease")
        assert not backend.spans("pool.connect")


async def test_a_line_that_is_not_known_is_left_out(backend: Backend) -> None:
    instrument = backend.instrument()
    watched = PoolWatched("p", 0, "other_sql", 1, 0, idle=(), used=())
    instrument.happened(watched)
    instrument.happened(LeaseRequested("p", 0, 1, "task", "file.py:None"))
    with pytest.raises(ValueError, match="watched already"):
        instrument.happened(watched)
    await trio.lowlevel.checkpoint()


async def test_without_providers_it_goes_to_the_global_ones(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(name="p") as pool:
        pool.add_instrument(OpenTelemetry())
        await hold(pool, 0)
        await wait_all_tasks_blocked()
    assert not caplog.records


# With a server, and without the package


async def test_a_real_pool_is_counted_timed_and_traced_and_no_secret_is_told(
    backend: Backend, hyperd: Hyperd, db: str
) -> None:
    async with open_pool(
        hyperd.endpoint,
        db,
        user=hyperd.user,
        password="hidden-one",
        name="p",
        create_mode=CreateMode.CREATE,
    ) as pool:
        pool.add_instrument(backend.instrument())
        with backend.tracer.start_as_current_span("caller") as caller:
            async with pool.lease() as connection:
                await connection.execute("SELECT %s", ("private-value",))
                assert backend.counted() == (0, 1)
        assert backend.counted() == (1, 0)
    backend.assert_back_at_zero()
    took = backend.times(db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME)[1]
    assert took == pool.statistics().create.sum > 0
    told = str(backend.metrics())
    for name in ("pool.lease", "pool.connect"):
        span = backend.span(name)
        assert parent_of(span) == id_of(caller)
        assert attributes_of(span)["db.system.name"] == "tableau.hyper"
        told += span.to_json()
    assert "hidden-one" not in told
    assert "private-value" not in told


WITH = """
import sys
import trio_hyperpool.telemetry
print("opentelemetry" in sys.modules)
from trio_hyperpool.telemetry import OpenTelemetry
print("opentelemetry" in sys.modules)
"""


def test_the_package_is_imported_only_if_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "trio_hyperpool._open_telemetry")
    with pytest.raises(ImportError, match=r'pip install "trio-hyperpool\[otel\]"$'):
        _ = telemetry.OpenTelemetry
    with pytest.raises(AttributeError, match=r"has no attribute 'Missing'"):
        _ = telemetry.Missing  # type: ignore[attr-defined]
