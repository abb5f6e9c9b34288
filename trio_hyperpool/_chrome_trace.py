"""A run as Chrome's trace events, the format that Perfetto and its kin open.

A pool is a process, and a lane a thread of it, on which slices hold one another. Waits
overlap as they like: they are asynchronous events, which need no thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

from ._lanes import Run
from ._slices import Details, Mark, Slice

TraceEvent: TypeAlias = dict[str, Any]

QUEUE: Final = 1
"""The thread of the queue; lanes come after it."""


def trace_events(runs: Iterable[Run], zero: float) -> list[TraceEvent]:
    """The names of all processes and threads, and then every event by its time.

    Args:
        runs: what each pool did.
        zero: the time to count from.
    """
    names: list[TraceEvent] = []
    events: list[TraceEvent] = []
    for pid, run in enumerate(runs, 1):
        names += _names(run, pid)
        events += _events(run, pid, zero)
    # At one time, what holds others comes before them, and an end after its beginning.
    events.sort(
        key=lambda event: (event["ts"], event["ph"] == "e", -event.get("dur", 0))
    )
    return [*names, *events]


def _names(run: Run, pid: int) -> Iterator[TraceEvent]:
    threads = ["queue", *(f"lane {number}" for number, _ in enumerate(run.lanes, 1))]
    yield _metadata("process_name", pid, {"name": run.pool})
    for tid, name in enumerate(threads, QUEUE):
        yield _metadata("thread_name", pid, {"name": name}, tid)
        yield _metadata("thread_sort_index", pid, {"sort_index": tid}, tid)


def _metadata(name: str, pid: int, args: Details, tid: int = 0) -> TraceEvent:
    return {"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _events(run: Run, pid: int, zero: float) -> Iterator[TraceEvent]:
    for at, tasks in run.waiting:
        counted = {"tasks": tasks}
        yield {**_event("waiting", "C", at - zero, pid), "tid": QUEUE, "args": counted}
    for number, wait in enumerate(run.queue, 1):
        known = {"cat": wait.kind, "id2": {"local": hex(number)}, "tid": QUEUE}
        yield {
            **_event("waits", "b", wait.began - zero, pid),
            **known,
            "args": _args(wait),
        }
        yield {**_event("waits", "e", wait.ended - zero, pid), **known, "args": {}}
    for tid, lane in enumerate(run.lanes, QUEUE + 1):
        for slice_ in lane.slices:
            yield {**_slice(slice_, pid, zero), "tid": tid}
        for mark in lane.marks:
            yield {**_mark(mark, pid, zero), "tid": tid, "s": "t"}
    for mark in run.marks:
        yield {**_mark(mark, pid, zero), "tid": QUEUE, "s": "p"}


def _slice(slice_: Slice, pid: int, zero: float) -> TraceEvent:
    began = _nanoseconds(slice_.began - zero)
    # Of the rounded ends, so that what holds others still does.
    lasted = (_nanoseconds(slice_.ended - zero) - began) / 1000
    event = _event(slice_.name, "X", slice_.began - zero, pid)
    return {**event, "cat": slice_.kind, "dur": lasted, "args": _args(slice_)}


def _mark(mark: Mark, pid: int, zero: float) -> TraceEvent:
    return {**_event(mark.name, "i", mark.at - zero, pid), "cat": mark.kind, "args": {}}


def _args(slice_: Slice) -> Details:
    args = dict(slice_.details)
    if slice_.error is not None:
        args["error"] = slice_.error
    if not slice_.is_over:
        args["unfinished"] = "yes"
    return args


def _event(name: str, phase: str, seconds: float, pid: int) -> TraceEvent:
    return {"name": name, "ph": phase, "ts": _nanoseconds(seconds) / 1000, "pid": pid}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
