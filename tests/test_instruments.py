"""What instruments are told of a pool, and what the log says."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._invariants import fake_pool, hold, settle
from trio_hyperpool import HookError, Hyperd, Pool, PoolTimeoutError, open_pool
from trio_hyperpool._config import CreateMode
from trio_hyperpool.telemetry import (
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
from trio_hyperpool.testing import FakeConnector, Gate


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def happened(self, event: Event, /) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events


def noting(pool: Pool[Any]) -> Notes:
    notes = Notes()
    pool.add_instrument(notes)
    (watched,) = notes.take()
    assert isinstance(watched, PoolWatched)
    return notes


# What is told


async def test_a_lease_is_told_from_the_request_to_the_end(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2), close=Gate.slow(1))
    async with fake_pool(connector, name="p") as pool:
        notes = noting(pool)
        await hold(pool, 3)
    task = trio.lowlevel.current_task().name
    requested = notes.events[0]
    assert isinstance(requested, LeaseRequested)
    assert requested.taken_at.rpartition(":")[0].endswith("_invariants.py")
    assert notes.events == [
        LeaseRequested("p", 0, 1, task, requested.taken_at),
        ConnectionOpening("p", 0, 1, 1),
        ConnectionOpened("p", 2, 1, 2),
        LeaseGranted("p", 2, 1, 1, 2),
        LeaseEnded("p", 5, 1, 1, 3),
        PoolClosing("p", 5),
        ConnectionRetired("p", 5, 1, "pool closed"),
        StepBegun("p", 5, 1, Step.FAREWELL),
        StepEnded("p", 6, 1, Step.FAREWELL, 1, None),
        PoolUnwatched("p", 6),
    ]


async def test_every_step_on_a_connection_is_told_with_what_it_took(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.slow(1), clean=Gate.slow(2))
    async with fake_pool(
        connector,
        name="p",
        health_check_after=0,
        after_connect=Gate.slow(3),
        before_acquire=Gate.slow(4),
        after_release=Gate.slow(5),
    ) as pool:
        notes = noting(pool)
        for _ in range(2):
            async with pool.lease() as connection:
                connection.begin()
            await settle(pool)
        steps = [
            (event.step, round(event.took, 6), event.error)
            for event in notes.events
            if isinstance(event, StepEnded)
        ]
        begun = [e.step for e in notes.events if isinstance(e, StepBegun)]
    after = [(Step.CLEAN, 2, None), (Step.AFTER_RELEASE, 5, None)]
    assert steps == [
        (Step.AFTER_CONNECT, 3, None),
        (Step.BEFORE_ACQUIRE, 4, None),
        *after,
        (Step.HEALTH_CHECK, 1, None),
        (Step.BEFORE_ACQUIRE, 4, None),
        *after,
    ]
    assert begun == [step for step, _, _ in steps]


async def test_each_attempt_to_open_is_told_with_its_error(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.never(on=1))
    async with fake_pool(connector, name="p", create_timeout=2) as pool:
        notes = noting(pool)
        with pytest.raises(PoolTimeoutError):
            await hold(pool, 0)
    assert notes.events[1:] == [
        ConnectionOpening("p", 0, 1, 1),
        ConnectionFailed("p", 2, 1, 2, "PoolTimeoutError"),
        LeaseRefused("p", 2, 1, 2, "PoolTimeoutError"),
        PoolClosing("p", 2),
        PoolUnwatched("p", 2),
    ]


async def test_a_failing_hook_is_told_with_its_connection(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(name="p", after_connect=Gate.fails(ValueError("no"))) as pool:
        notes = noting(pool)
        with pytest.raises(HookError):
            await hold(pool, 0)
    assert StepEnded("p", 0, 1, Step.AFTER_CONNECT, 0, "ValueError: no") in notes.events
    assert ConnectionRetired("p", 0, 1, "failed hook") in notes.events
    assert ConnectionFailed("p", 0, 1, 0, "HookError") in notes.events


async def test_a_connection_opened_for_nobody_says_so(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(name="p", min_idle=1) as pool:
        notes = noting(pool)
        await settle(pool)
        assert notes.events == [
            ConnectionOpening("p", 0, 1, None),
            ConnectionOpened("p", 0, 1, 0),
        ]


async def test_who_ran_out_of_time_and_who_was_cancelled_are_told_apart(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(name="p", max_size=1) as pool, pool.lease():
        notes = noting(pool)
        with pytest.raises(PoolTimeoutError):
            async with pool.lease(wait_timeout=2):
                pass
        with trio.move_on_after(1):
            async with pool.lease(wait_timeout=5):
                pass
        requested = [e for e in notes.events if isinstance(e, LeaseRequested)]
        assert notes.events == [
            requested[0],
            WaitTimedOut("p", 2, 2),
            LeaseRefused("p", 2, 2, 2, "PoolTimeoutError"),
            requested[1],
            LeaseRefused("p", 3, 3, 1, "Cancelled"),
        ]


async def test_a_cancelled_query_and_what_follows_is_told(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(name="p") as pool:
        async with pool.lease() as connection:
            notes = noting(pool)
            with trio.move_on_after(1):
                await connection.execute(10)
        await settle(pool)
        assert notes.events[:3] == [
            CancelSent("p", 1, 1),
            LeaseEnded("p", 1, 1, 1, 1),
            ConnectionRetired("p", 1, 1, "cancelled query"),
        ]


async def test_a_revoked_lease_is_told_once(autojump_clock: MockClock) -> None:
    async with fake_pool(name="p", max_lease=2) as pool:
        notes = noting(pool)
        await hold(pool, 5)
    ends = [e for e in notes.events if isinstance(e, LeaseRevoked | LeaseEnded)]
    assert ends == [LeaseRevoked("p", 2, 1, 1, 2)]
    assert ConnectionRetired("p", 2, 1, "revoked") in notes.events


async def test_a_lost_connection_is_told_as_discarded_and_its_successor_has_a_new_number(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, name="p") as pool:
        await hold(pool, 0)
        notes = noting(pool)
        connector.break_all()
        await hold(pool, 0)
        assert notes.kinds[1:4] == [
            "ConnectionDiscarded",
            "ConnectionOpening",
            "ConnectionOpened",
        ]
        assert notes.events[1] == ConnectionDiscarded("p", 0, 1, "found dead")
        assert notes.events[2] == ConnectionOpening("p", 0, 2, 2)


# Instruments come and go


async def test_one_that_raises_is_removed_and_logged_and_hurts_nobody(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        calls = 0

        def happened(self, event: Event, /) -> None:
            self.calls += 1
            raise self.error

        def __init__(self, error: BaseException) -> None:
            self.error = error

    async with fake_pool() as pool:
        broken = [Broken(ValueError("bug")), Broken(SystemExit(3))]
        for each in broken:
            pool.add_instrument(each)
        notes = noting(pool)
        await hold(pool, 0)
        await hold(pool, 0)
        assert [each.calls for each in broken] == [1, 1]
        assert notes.kinds.count("LeaseEnded") == 2
    assert caplog.text.count("failed, and is removed") == 2
    assert "ValueError: bug" in caplog.text


async def test_one_added_in_the_middle_is_told_the_rest_and_a_removed_one_nothing(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        async with pool.lease():
            notes = noting(pool)
        assert notes.kinds == ["LeaseEnded"]
        pool.remove_instrument(notes)
        pool.remove_instrument(notes)
        await hold(pool, 0)
        assert notes.kinds == ["LeaseEnded", "PoolUnwatched"]


async def test_one_that_is_added_is_told_how_the_pool_is(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(
        connect=Gate.slow(1), clean=Gate.slow(4), close=Gate.slow(4)
    )
    async with (
        fake_pool(connector, name="p", max_size=9, min_idle=1) as pool,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(0.5)
        early, late = Notes(), Notes()
        pool.add_instrument(early)
        assert pool.statistics().opening == 1
        await nursery.start(hold, pool, 9)
        async with pool.lease() as cleaned, pool.lease() as ended:
            cleaned.begin()
            with trio.move_on_after(1):
                await ended.execute(5)
        await trio.sleep(0.5)
        pool.add_instrument(late)
        now = pool.statistics()
        assert (now.idle, now.leased, now.cleaning) == (1, 1, 2)
    first = early.events[0]
    assert first == PoolWatched("p", 0.5, "other_sql", 9, 1, idle=(), used=())
    watched = late.events[0]
    assert isinstance(watched, PoolWatched)
    assert len(watched.idle) == 1
    assert set(watched.used) == {1, cleaned.number}  # and not the one being ended


async def test_a_new_size_is_told(autojump_clock: MockClock) -> None:
    async with fake_pool(name="p", max_size=1) as pool:
        pool.resize(2)
        notes = Notes()
        pool.add_instrument(notes)
        pool.resize(3)
        watched, resized = notes.events
        assert isinstance(watched, PoolWatched)
        assert watched.max_size == 2
        assert resized == PoolResized("p", 0, 3)


async def test_one_added_twice_is_told_once(autojump_clock: MockClock) -> None:
    async with fake_pool() as pool:
        notes = noting(pool)
        pool.add_instrument(notes)
        await hold(pool, 0)
        assert notes.kinds.count("LeaseGranted") == 1


async def test_two_that_are_equal_are_both_told_and_removed_one_by_one(
    autojump_clock: MockClock,
) -> None:
    class Equal(Notes):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    first, second = Equal(), Equal()
    async with fake_pool() as pool:
        pool.add_instrument(first)
        pool.add_instrument(second)
        pool.remove_instrument(first)
        await hold(pool, 0)
    assert first.kinds == ["PoolWatched", "PoolUnwatched"]
    assert second.kinds.count("LeaseGranted") == 1


@pytest.mark.parametrize("bad", [None, print, object()])
async def test_what_is_no_instrument_is_refused(
    bad: Any, autojump_clock: MockClock
) -> None:
    async with fake_pool() as pool:
        with pytest.raises(TypeError, match=r"^instrument: an object with a method"):
            pool.add_instrument(bad)


async def test_events_are_frozen() -> None:
    event = PoolClosing("p", 1.0)
    with pytest.raises(AttributeError):
        event.at = 2.0  # type: ignore[misc]


async def test_a_real_pool_tells_of_a_cancelled_query(hyperd: Hyperd, db: str) -> None:
    async with open_pool(
        hyperd.endpoint, db, user=hyperd.user, create_mode=CreateMode.CREATE
    ) as pool:
        notes = noting(pool)
        async with pool.lease() as connection:
            with trio.move_on_after(0.1):
                await connection.execute(
                    "SELECT count(*) FROM generate_series(1, 100000000000)"
                )
            await connection.execute("SELECT 1")
        with trio.fail_after(5):
            while "StepEnded" not in notes.kinds:  # noqa: ASYNC110
                await trio.sleep(0.01)
    kinds = notes.kinds
    assert kinds[:4] == [
        "LeaseRequested",
        "ConnectionOpening",
        "ConnectionOpened",
        "LeaseGranted",
    ]
    assert kinds.index("CancelSent") < kinds.index("LeaseEnded")
    retired = next(e for e in notes.events if isinstance(e, ConnectionRetired))
    assert retired.reason == "cancelled query"


# The log


def fields(caplog: pytest.LogCaptureFixture, *names: str) -> list[tuple[Any, ...]]:
    return [
        tuple(record.__dict__.get(name) for name in names)
        for record in caplog.records
        if record.name == "trio_hyperpool"
    ]


async def test_a_slow_wait_is_logged_with_who_and_where(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        fake_pool(max_size=1, log_wait_over=1, name="p") as pool,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(hold, pool, 1)
        await hold(pool, 0)  # waits for a second, and no longer
        await nursery.start(hold, pool, 2)
        await hold(pool, 0)
    (record,) = [r for r in caplog.records if "waited" in r.message]
    assert record.levelno == logging.WARNING
    assert record.message.startswith("p: a lease waited 2 s, by ")
    assert vars(record)["seconds"] == 2
    assert vars(record)["pool"] == "p"
    assert vars(record)["task"] == trio.lowlevel.current_task().name
    assert "_invariants.py:" in vars(record)["taken_at"]


async def test_a_long_lease_is_logged_while_it_lasts_and_when_it_ends(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(log_lease_over=2, name="p") as pool:
        await hold(pool, 1)
        async with pool.lease():
            await trio.sleep(1.5)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, pool, 1)
            assert fields(caplog, "seconds") == [(2,)]
            await trio.sleep(10)
        seconds = fields(caplog, "seconds")
    assert seconds == [(2,), (12.5,)]
    assert "has been leased for 2 s" in caplog.messages[0]
    assert "came back that was leased for 12.5 s" in caplog.messages[1]


async def test_a_revoked_lease_is_logged_with_who_and_where(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(max_lease=2, name="p") as pool:
        await hold(pool, 5)
    (record,) = [r for r in caplog.records if "was revoked" in r.message]
    assert record.levelno == logging.INFO
    assert record.message.startswith("p: a lease was revoked after 2 s, by ")
    assert vars(record)["seconds"] == 2
    assert vars(record)["task"] == trio.lowlevel.current_task().name
    assert "_invariants.py:" in vars(record)["taken_at"]


async def test_the_end_of_a_connection_is_logged_with_its_reason(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_hyperpool")
    connector = FakeConnector()
    async with fake_pool(connector, name="p") as pool:
        await hold(pool, 0)
        connector.break_all()
        await hold(pool, 0)
    assert fields(caplog, "pool", "connection", "reason", "levelname") == [
        ("p", 1, "found dead", "INFO"),
        ("p", 2, "pool closed", "DEBUG"),
    ]


@pytest.mark.parametrize(
    ("options", "gates", "step"),
    [
        ({"after_connect": Gate.fails(on=1)}, {}, "after_connect"),
        ({"before_acquire": Gate.fails(on=1)}, {}, "before_acquire"),
        ({"after_release": Gate.fails(on=1)}, {}, "after_release"),
        ({"health_check_after": 0}, {"probe": Gate.fails(on=1)}, "health_check"),
        ({}, {"clean": Gate.fails(on=1)}, "clean"),
        ({}, {"close": Gate.fails(on=1)}, "farewell"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_step_that_fails_is_logged(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    options: Any,
    gates: dict[str, Gate],
    step: str,
) -> None:
    async with fake_pool(FakeConnector(**gates), **options) as pool:
        for _ in range(2):
            with contextlib.suppress(HookError):
                async with pool.lease() as connection:
                    connection.begin()
            await settle(pool)
    assert (1, step, "WARNING") in fields(caplog, "connection", "step", "levelname")


async def test_no_secret_is_ever_logged_or_told(
    hyperd: Hyperd, db: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hidden-one"
    async with open_pool(
        hyperd.endpoint,
        db,
        user=hyperd.user,
        password=secret,
        create_mode=CreateMode.CREATE,
        log_lease_over=0.001,
    ) as pool:
        notes = noting(pool)
        async with pool.lease() as connection:
            await connection.execute("SELECT %s", ("private-value",))
            await trio.sleep(0.01)
            with trio.move_on_after(0.01):
                await connection.execute(
                    "SELECT count(*) FROM generate_series(1, 100000000000) "
                    "WHERE %s <> ''",
                    ("private-value",),
                )
    for told in (caplog.text, str(notes.events), str(pool.statistics()), repr(pool)):
        assert secret not in told
        assert "private-value" not in told
    assert "has been leased" in caplog.text


async def test_with_no_listener_no_event_is_made(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_args: made.append(name)

    for name in ("LeaseRequested", "LeaseGranted", "LeaseEnded", "ConnectionOpening"):
        monkeypatch.setattr(f"trio_hyperpool._record.{name}", note(name))
    async with open_pool(connector=FakeConnector()) as pool:
        await hold(pool, 0)
        assert not made
        pool.add_instrument(Notes())
        await hold(pool, 0)
        assert made == ["LeaseRequested", "LeaseGranted", "LeaseEnded"]
        await wait_all_tasks_blocked()
