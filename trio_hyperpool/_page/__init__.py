"""A run as one HTML page, which carries all it needs.

What is on the page is decided here and by Jinja, which escapes every name; the script
knows lanes, slices and marks, and nothing of pools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, Final, TypeAlias

import jinja2
from markupsafe import Markup

from trio_hyperpool._lanes import Lane, Run, by_place, in_rows
from trio_hyperpool._slices import Mark, Slice
from trio_hyperpool._statistics import PoolStatistics, duration

Json: TypeAlias = dict[str, Any]

LEGEND: Final = {
    "wait": "waiting for a connection",
    "lease": "lease",
    "connect": "connecting",
    "hook": "hook",
    "check": "health check",
    "clean": "cleaning",
    "farewell": "farewell",
    "connection": "open, and idle",
    "bad": "ended badly",
}


def render(
    runs: Sequence[Run],
    zero: float,
    began: str,
    forgotten: int,
    statistics: Iterable[PoolStatistics],
) -> str:
    """The page.

    Args:
        runs: what each pool did.
        zero: the time to count from.
        began: when that was by the clock on the wall.
        forgotten: how many earlier events there were.
        statistics: of the pools.
    """
    files = resources.files(__name__)
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["duration"] = duration
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    ended = max((run.ended for run in runs), default=zero)
    return environment.from_string((files / "page.html").read_text("utf-8")).render(
        runs=runs,
        began=began,
        lasted=ended - zero,
        forgotten=forgotten,
        statistics=tuple(statistics),
        places=[(run.pool, by_place(run)) for run in runs],
        legend=LEGEND,
        style=Markup((files / "page.css").read_text("utf-8")),  # noqa: S704 - our own
        script=Markup((files / "page.js").read_text("utf-8")),  # noqa: S704 - our own
        record={"lasts": ended - zero, "pools": [_pool(run, zero) for run in runs]},
    )


def _pool(run: Run, zero: float) -> Json:
    rows = in_rows(run.queue)
    queue = [
        {**_slice(wait, zero), "row": row}
        for wait, row in zip(run.queue, rows, strict=True)
    ]
    return {
        "name": run.pool,
        "waiting": [[at - zero, tasks] for at, tasks in run.waiting],
        "rows": max(rows, default=-1) + 1,
        "queue": queue,
        "lanes": [_lane(lane, zero) for lane in run.lanes],
        "marks": [_mark(mark, zero) for mark in run.marks],
    }


def _lane(lane: Lane, zero: float) -> Json:
    return {
        "slices": [_slice(slice_, zero) for slice_ in lane.slices],
        "marks": [_mark(mark, zero) for mark in lane.marks],
    }


def _slice(slice_: Slice, zero: float) -> Json:
    return {
        "kind": slice_.kind,
        "name": slice_.name,
        "from": slice_.began - zero,
        "to": slice_.ended - zero,
        "details": dict[str, str | int](slice_.details),
        "error": slice_.error,
        "over": slice_.is_over,
    }


def _mark(mark: Mark, zero: float) -> Mapping[str, Any]:
    return {"kind": mark.kind, "name": mark.name, "at": mark.at - zero}
