"""What a pool has done is counted, and its snapshots are frozen and readable."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_hyperpool._statistics import (
    Counters,
    Holder,
    PoolStatistics,
    Stopwatch,
    Timing,
    frozen,
)

SNAPSHOT = PoolStatistics(
    name="sales",
    max_size=16,
    size=10,
    idle=1,
    leased=2,
    opening=3,
    cleaning=4,
    waiting=5,
    leases=60,
    opened=70,
    open_failures=8,
    retired=frozen({"reset": 9, "max_lifetime": 11}),
    discarded=frozen({"found dead": 18}),
    health_check_failures=12,
    hook_failures=13,
    wait_timeouts=14,
    revoked=15,
    cancelled_queries=17,
    wait=Timing(60, 0.5994, 0.0999),
    use=Timing(0, 0.0, 0.0),
    create=Timing(2, 3.0, 2.0),
    holders=(Holder("a task", 1.23456, "app.py:7"), Holder("b", 0, "lib.py:1")),
)

REPORT = """\
sales: 10 of 16 connections: 1 idle, 2 leased, 3 opening, 4 cleaning; 5 tasks waiting
leases: 60; waited 9.99 ms on average, 99.9 ms at most; used 0 ms on average, 0 ms at most
opened: 70, in 1.5e+03 ms on average, 2e+03 ms at most; failed: 8
retired: 11 max_lifetime, 9 reset; discarded: 18 found dead
failed health checks: 12; failed hooks: 13; wait timeouts: 14; revoked: 15; cancelled queries: 17
held by a task for 1.23 s, taken at app.py:7
held by b for 0 s, taken at lib.py:1"""


@given(st.lists(st.floats(0, 1e6)))
def test_a_stopwatch_knows_how_often_how_long_and_how_long_at_most(
    durations: list[float],
) -> None:
    stopwatch = Stopwatch()
    for seconds in durations:
        stopwatch.add(seconds)
    timing = stopwatch.snapshot()
    assert timing.count == len(durations)
    assert timing.sum == pytest.approx(sum(durations))
    assert timing.max == max(durations, default=0)


def test_a_snapshot_stays_as_it_was_when_the_stopwatch_goes_on() -> None:
    stopwatch = Stopwatch()
    stopwatch.add(2)
    before = stopwatch.snapshot()
    stopwatch.add(4)
    assert before == Timing(1, 2, 2)
    assert stopwatch.snapshot() == Timing(2, 6, 4)


def test_the_mean_is_the_sum_by_the_count_and_zero_if_there_is_none() -> None:
    assert Timing(4, 2.0, 1.0).mean == 0.5
    assert Timing(0, 0.0, 0.0).mean == 0


def test_a_pool_has_done_nothing_at_first() -> None:
    counters = Counters()
    nothing = Timing(0, 0, 0)
    assert {name: getattr(counters, name) for name in Counters.__slots__} | {
        name: getattr(counters, name).snapshot() for name in ("wait", "use", "create")
    } == {
        "opened": 0,
        "open_failures": 0,
        "retired": Counter(),
        "discarded": Counter(),
        "health_check_failures": 0,
        "hook_failures": 0,
        "wait_timeouts": 0,
        "revoked": 0,
        "cancelled_queries": 0,
        "wait": nothing,
        "use": nothing,
        "create": nothing,
    }
    counters.retired["reset"] += 1
    assert not counters.discarded
    assert not Counters().retired


def test_frozen_counts_are_a_copy_that_nobody_can_change() -> None:
    counts = Counter({"reset": 1})
    copy: Any = frozen(counts)
    counts["reset"] += 1
    assert copy == {"reset": 1}
    with pytest.raises(TypeError):
        copy["reset"] = 2


@pytest.mark.parametrize("value", [SNAPSHOT, SNAPSHOT.wait, SNAPSHOT.holders[0]])
def test_a_snapshot_cannot_be_changed(value: Any) -> None:
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, 0)


def test_a_holder_is_told_with_its_time_and_place() -> None:
    assert str(Holder("a task", 1.23456, "app.py:7")) == (
        "a task for 1.23 s, taken at app.py:7"
    )


def test_statistics_are_a_report_in_words() -> None:
    assert str(SNAPSHOT) == REPORT


def test_nothing_retired_and_nothing_discarded_is_none() -> None:
    snapshot = dataclasses.replace(SNAPSHOT, retired={}, discarded={})
    assert "retired: none; discarded: none\n" in str(snapshot)


def test_a_pool_that_nobody_holds_is_reported_without_holders() -> None:
    report = str(dataclasses.replace(SNAPSHOT, holders=()))
    assert len(report.splitlines()) == 5
    assert "held by" not in report
