"""What a pool has done is counted, and its snapshots are frozen and readable."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from trio_hyperpool._statistics import (
    Counters,
    Holder,
    PoolStatistics,
    Stopwatch,
    Timing,
    duration,
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
sales: 2 of 10 connections are leased, the longest for 1.23 s by a task; 5 tasks wait
  connections: 10 of 16: 1 idle, 2 leased, 3 opening, 4 cleaning
  leases: 60; cancelled queries: 17
  time waited: 9.99 ms on average, 99.9 ms at most
  time used: none yet
  time to open: 1.5 s on average, 2 s at most
  retired: 11 max_lifetime, 9 reset; discarded: 18 found dead
  went wrong: 8 failed attempts to connect, 12 failed health checks, 13 failed hooks, \
14 waits timed out, 15 leases revoked
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


def test_reasons_are_told_by_their_counts_and_those_of_one_count_by_name() -> None:
    snapshot = dataclasses.replace(
        SNAPSHOT,
        retired={"reset": 1, "max_lifetime": 1, "idle_timeout": 1, "resize": 2},
    )
    told = "retired: 2 resize, 1 idle_timeout, 1 max_lifetime, 1 reset; discarded"
    assert told in str(snapshot)


def test_nothing_retired_and_nothing_discarded_is_none() -> None:
    snapshot = dataclasses.replace(SNAPSHOT, retired={}, discarded={})
    assert "retired: none; discarded: none\n" in str(snapshot)


def test_a_pool_that_nobody_holds_is_reported_without_holders() -> None:
    report = str(dataclasses.replace(SNAPSHOT, holders=()))
    assert report.startswith("sales: 2 of 10 connections are leased; 5 tasks wait\n")
    assert len(report.splitlines()) == 8
    assert "held by" not in report


def test_a_report_names_ten_holders_and_says_how_many_more_there_are() -> None:
    def report(count: int) -> list[str]:
        holders = tuple(Holder(f"task {number}", 1, "a:1") for number in range(count))
        lines = str(dataclasses.replace(SNAPSHOT, holders=holders)).splitlines()
        return lines[8:]

    assert len(report(10)) == 10
    assert len(report(11)) == 11
    assert report(11)[-1] == "  held by task 10 for 1 s, taken at a:1"
    assert report(12)[-2:] == ["  held by task 9 for 1 s, taken at a:1", "  and 2 more"]


def test_a_report_of_a_pool_without_trouble_says_so() -> None:
    nothing = dataclasses.replace(
        SNAPSHOT,
        open_failures=0,
        health_check_failures=0,
        hook_failures=0,
        wait_timeouts=0,
        revoked=0,
    )
    assert "\n  went wrong: nothing\n" in str(nothing)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0, 0, 4, 0), "no connection is open; no task waits"),
        ((1, 1, 4, 1), "1 of 1 connection is leased; 1 task waits"),
        ((3, 2, 4, 2), "2 of 3 connections are leased; 2 tasks wait"),
        ((4, 4, 4, 3), "all 4 connections are leased; 3 tasks wait"),
        ((1, 1, 1, 0), "the only connection is leased; no task waits"),
    ],
)
def test_what_there_is_to_know_first_comes_first(
    sizes: tuple[int, int, int, int], said: str
) -> None:
    size, leased, max_size, waiting = sizes
    snapshot = dataclasses.replace(
        SNAPSHOT,
        size=size,
        leased=leased,
        max_size=max_size,
        waiting=waiting,
        holders=(),
    )
    assert snapshot.situation == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.00001234999, "12.3 µs"),
        (0.0009994, "999 µs"),
        (0.0009996, "1 ms"),
        (0.001, "1 ms"),
        (0.012345, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.2345, "1.23 s"),
        (99.4, "99.4 s"),
        (100, "1 min 40 s"),
        (5999, "99 min 59 s"),
        (6000, "1 h 40 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_a_duration_has_a_unit_and_no_more_digits_than_one_reads(
    seconds: float, said: str
) -> None:
    assert duration(seconds) == said


@given(st.floats(1e-9, 1e9))
@example(0.9995e-3)
@example(0.9995)
def test_no_duration_is_told_with_an_exponent(seconds: float) -> None:
    assert "e" not in duration(seconds)
