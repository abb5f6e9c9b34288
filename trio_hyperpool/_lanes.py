"""The slices of a run, laid out in lanes."""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ._events import Event
from ._slices import Kind, Mark, Slice, Story, beginning
from ._statistics import Stopwatch, Timing


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """One connection after the other: each is a slice, and holds what it went through.

    The slices are in the order of their beginnings, what holds others before them.
    """

    slices: tuple[Slice, ...]
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What one pool did."""

    pool: str
    began: float
    """The beginning of the first thing known."""
    ended: float
    queue: tuple[Slice, ...]
    """The wait of each lease, in the order of their beginnings."""
    waiting: tuple[tuple[float, int], ...]
    """How many wait, and since when."""
    lanes: tuple[Lane, ...]
    marks: tuple[Mark, ...]


def lay_out(events: Iterable[Event], now: float) -> tuple[Run, ...]:
    """What each pool did, the pools in the order of their first event.

    Args:
        events: in the order they happened in.
        now: the end of the recording: what is not over lasts until then.
    """
    pools: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        pools[event.pool].append(event)
    return tuple(_run(pool, told, now) for pool, told in pools.items())


def by_place(run: Run) -> list[tuple[str, Timing, Timing]]:
    """Where leases were taken, with their waits and uses, the most used first."""
    waits: dict[str, Stopwatch] = defaultdict(Stopwatch)
    uses: dict[str, Stopwatch] = defaultdict(Stopwatch)
    slices = (slice_ for lane in run.lanes for slice_ in lane.slices)
    for slice_ in (*run.queue, *slices):
        place = slice_.details.get("taken at")
        if place is not None:
            stopwatches = waits if slice_.kind is Kind.WAIT else uses
            stopwatches[str(place)].add(slice_.ended - slice_.began)
    table = [
        (place, waits[place].snapshot(), uses[place].snapshot()) for place in waits
    ]
    return sorted(table, key=lambda row: (-row[2].sum, row[0]))


def in_rows(spans: Iterable[Slice]) -> list[int]:
    """A row for each span, the lowest where nothing else is at that time.

    Args:
        spans: in the order of their beginnings.
    """
    rows: list[int] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for span in spans:
        while busy and busy[0][0] <= span.began:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (span.ended, row))
        rows.append(row)
    return rows


def _run(pool: str, events: Sequence[Event], now: float) -> Run:
    story = Story(now)
    for event in events:
        story.add(event)
    story.end()
    queue = sorted(story.waits, key=beginning)
    lives = [story.life(connection) for connection in sorted(story.connections)]
    lives.sort(key=lambda life: life[0].began)
    lanes: list[tuple[list[Slice], list[Mark]]] = []
    rows = in_rows(life[0] for life in lives)
    for row, life in zip(rows, lives, strict=True):
        if row == len(lanes):
            lanes.append(([], []))
        slices, marks = lanes[row]
        slices += life
        marks += story.connections[int(life[0].details["connection"])].marks
    whole = (*queue, *(life[0] for life in lives))
    return Run(
        pool,
        min([events[0].at, *(slice_.began for slice_ in whole)]),
        max([events[-1].at, *(slice_.ended for slice_ in whole)]),
        tuple(queue),
        tuple(_levels(queue)),
        tuple(Lane(tuple(slices), tuple(marks)) for slices, marks in lanes),
        tuple(story.marks),
    )


def _levels(waits: Iterable[Slice]) -> Iterator[tuple[float, int]]:
    changes: Counter[float] = Counter()
    for wait in waits:
        changes[wait.began] += 1
        if wait.is_over:
            changes[wait.ended] -= 1
    level = 0
    for at in sorted(changes):
        if changes[at]:
            level += changes[at]
            yield at, level
