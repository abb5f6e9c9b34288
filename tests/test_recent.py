"""What is remembered of a pool's last minute is exact, and bounded."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from trio_hyperpool._events import (
    CancelSent,
    ConnectionDiscarded,
    ConnectionFailed,
    LeaseEnded,
    LeaseGranted,
    LeaseRefused,
    LeaseRequested,
    LeaseRevoked,
    PoolClosing,
    Step,
    StepEnded,
)
from trio_hyperpool._recent import MOST_NOTES, MOST_PLACES, SECONDS, Recent
from trio_hyperpool._snapshot import Minute, Note, Waiters


def requested(recent: Recent, lease: int, at: float, taken_at: str = "a.py:1") -> None:
    recent.happened(LeaseRequested("p", at, lease, f"task {lease}", taken_at))


def granted(recent: Recent, lease: int, at: float, waited: float = 0) -> None:
    requested(recent, lease, at - waited)
    recent.happened(LeaseGranted("p", at, lease, 1, waited))


def failed(recent: Recent, moments: Iterable[float], error: str = "Error") -> None:
    for at in moments:
        recent.happened(ConnectionFailed("p", at, 3, 0.5, error))


# By seconds


def test_a_minute_is_counted_by_seconds_and_no_longer() -> None:
    recent = Recent(10, 0)
    granted(recent, 1, 10.5)
    granted(recent, 2, 10.9, waited=0.25)
    recent.happened(LeaseEnded("p", 12.5, 1, 1, 2.0))
    requested(recent, 3, 12.75)
    minute = recent.minute(13.99)
    assert minute == Minute(
        leases=(2, 0, 0),
        wait_sum=(0.25, 0, 0),
        wait_max=(0.25, 0, 0),
        uses=(0, 0, 1),
        use_sum=(0, 0, 2.0),
        use_max=(0, 0, 2.0),
        leased=(2, 2, 1),
        waiting=(0, 0, 1),
    )
    assert minute.rate(2) == 0
    assert minute.rate(10) == pytest.approx(2 / 3)
    assert minute.wait(10).mean == 0.125
    assert minute.use(1).max == 2.0
    later = recent.minute(1_000_000)
    assert later.leases == later.uses == (0,) * 60
    assert later.waiting == (1,) * 60
    assert Recent(1, 3).minute(1).rate(10) == 0


def test_what_happens_on_the_stroke_of_a_second_is_part_of_the_one_that_begins() -> (
    None
):
    recent = Recent(10.25, 0)
    granted(recent, 1, 11)
    assert recent.minute(12).leases == (0, 1)


def test_what_is_a_minute_old_is_still_told_and_then_no_more() -> None:
    recent = Recent(0, 0)
    granted(recent, 1, 0.5)
    assert recent.minute(SECONDS).leases == (1,) + (0,) * (SECONDS - 1)
    assert recent.minute(SECONDS + 1).leases == (0,) * SECONDS


def test_a_pool_that_was_at_work_before_is_counted_on() -> None:
    recent = Recent(0, 4)
    recent.happened(LeaseEnded("p", 0.5, 0, 1, 2.0))
    recent.happened(LeaseRevoked("p", 0.6, 0, 2, 3.0))
    recent.happened(LeaseGranted("p", 1.5, 5, 1, 2.0))
    recent.happened(LeaseRefused("p", 1.6, 6, 2.0, "PoolTimeoutError"))
    minute = recent.minute(2)
    assert minute.leased == (2, 3)
    assert (minute.uses, minute.use_sum) == ((2, 0), (5.0, 0))
    assert [note.who for note in recent.notes(1)] == ["", ""]


# Who waits


def test_those_who_wait_are_told_by_place_the_longest_wait_first() -> None:
    recent = Recent(0, 0)
    for lease, place in enumerate(["a.py:1", "b.py:2", "a.py:1", "c.py:3"]):
        requested(recent, lease, lease, place)
    recent.happened(LeaseGranted("p", 5, 3, 1, 2.0))
    assert recent.waiters(10) == (
        Waiters(2, "task 0", 10, "a.py:1"),
        Waiters(1, "task 1", 9, "b.py:2"),
    )


@pytest.mark.parametrize("error", ["PoolTimeoutError", "Cancelled"])
def test_who_is_refused_waits_no_more_and_is_forgotten(error: str) -> None:
    recent = Recent(0, 0)
    requested(recent, 1, 0)
    recent.happened(LeaseRefused("p", 2, 1, 2.0, error))
    assert recent.waiters(3) == ()
    assert not recent._leases


# Notes


def test_notes_say_what_to_whom_how_often_and_when() -> None:
    recent = Recent(0, 0)
    granted(recent, 1, 1)
    recent.happened(LeaseRevoked("p", 6, 1, 1, 5.0))
    requested(recent, 2, 6, "a.py:2")
    recent.happened(LeaseRefused("p", 7, 2, 1.0, "Cancelled"))
    requested(recent, 3, 7, "a.py:3")
    recent.happened(LeaseRefused("p", 7.5, 3, 0.5, "PoolTimeoutError"))
    recent.happened(CancelSent("p", 7, 1))
    failed(recent, [8, 9], "ConnectError")
    recent.happened(ConnectionDiscarded("p", 9, 4, "found dead"))
    recent.happened(StepEnded("p", 9, 4, Step.CLEAN, 0.1, None))
    recent.happened(StepEnded("p", 9, 4, Step.CLEAN, 0.1, "Cancelled"))
    recent.happened(StepEnded("p", 9.5, 4, Step.CLEAN, 0.1, "secret"))
    recent.happened(PoolClosing("p", 10))
    assert recent.notes(10) == (
        Note(0, 1, "the pool is closing", "", "", None),
        Note(0.5, 1, "clean failed", "connection 4", "", 0.1),
        Note(1, 1, "connection discarded: found dead", "connection 4", "", None),
        Note(1, 2, "connecting failed: ConnectError", "connection 3", "", 0.5),
        Note(2.5, 1, "lease refused: PoolTimeoutError", "task 3", "a.py:3", 0.5),
        Note(4, 1, "lease revoked", "task 1", "a.py:1", 5.0),
    )
    assert not recent._leases


def test_what_happens_again_within_a_minute_is_one_note_and_is_moved_to_the_front() -> (
    None
):
    recent = Recent(0, 0)
    failed(recent, [0, 59.9], "A")
    failed(recent, [60], "B")
    failed(recent, [119.8], "A")
    assert [(note.what[-1], note.count) for note in recent.notes(120)] == [
        ("A", 3),
        ("B", 1),
    ]
    failed(recent, [120], "B")
    assert recent.notes(120)[0].count == 1


def test_what_is_remembered_is_bounded() -> None:
    recent = Recent(0, 0)
    for number in range(1000):
        failed(recent, [number], f"Error{number}")
        granted(recent, number, number)
        recent.happened(LeaseEnded("p", number, number, 1, 0))
    notes = recent.notes(1000)
    assert len(notes) == MOST_NOTES
    assert notes[-1].what == f"connecting failed: Error{1000 - MOST_NOTES}"
    assert not recent._leases
    for number in range(20):
        requested(recent, number, 1000 + number, f"a:{number}")
    assert recent.waiters(1020)[0] == Waiters(1, "task 0", 20, "a:0")
    assert len(recent.waiters(1020)) == MOST_PLACES
