"""`Timeline`: records what happens in pools, and writes it down to be looked at."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import deque
from pathlib import Path
from typing import TypeAlias

import trio

from ._chrome_trace import trace_events
from ._events import Event
from ._lanes import Run, lay_out
from ._statistics import PoolStatistics

StrPath: TypeAlias = str | os.PathLike[str]


class Timeline:
    """An `Instrument` that records a run, to be written as a trace or as a page.

    Add it to one or more pools, each with a name of its own. It may be written at any
    time, as often as one likes, in or after `trio.run`; what is not over yet is shown
    as such. Writing is no checkpoint: it keeps every task waiting for as long as it
    takes, a second or two for 100,000 events.

    Args:
        limit: how many events are kept; with one more, the oldest is forgotten. An
            event takes some 200 bytes.

    Raises:
        ValueError: ``limit`` is not at least 1.
        TypeError: it is no int.
    """

    def __init__(self, *, limit: int = 100_000) -> None:
        if not isinstance(limit, int):
            raise TypeError(f"limit: a number of events is allowed, not {limit!r}")
        if limit < 1:
            raise ValueError(f"limit: at least 1 event is allowed, not {limit!r}")
        self._events: deque[Event] = deque(maxlen=limit)
        self._first: tuple[float, dt.datetime] | None = None
        self._count: int = 0

    def __repr__(self) -> str:
        return f"<Timeline of {len(self._events)} events, {self.forgotten} forgotten>"

    @property
    def forgotten(self) -> int:
        """How many events there were before those that are kept."""
        return self._count - len(self._events)

    def happened(self, event: Event, /) -> None:
        """Keep an event; see `Instrument`."""
        self._count += 1
        self._events.append(event)
        if self._first is None:
            self._first = event.at, dt.datetime.now(dt.UTC)

    def write_chrome_trace(self, path: StrPath, /) -> None:
        """Write the run as Chrome trace events, for https://ui.perfetto.dev to open.

        A pool is a process, with a lane for each connection, another for the queue,
        and the number of tasks that wait as a counter. Times are counted from the
        first event that is kept.

        Args:
            path: of a JSON file; one that exists is replaced.

        Raises:
            OSError: it can't be written.
        """
        runs = self._runs()
        zero = min((run.began for run in runs), default=0.0)
        trace = {
            "displayTimeUnit": "ms",
            "otherData": {"began": self._date(zero), "forgotten": self.forgotten},
            "traceEvents": trace_events(runs, zero),
        }
        text = json.dumps(trace, separators=(",", ":"))
        Path(path).write_text(text, encoding="utf-8")

    def write_html(self, path: StrPath, /, *statistics: PoolStatistics) -> None:
        """Write the run as a page for a browser, which needs nothing but this file.

        It has the same lanes as the trace, to zoom and to hover over, and where leases
        were taken, with how long they waited and lasted. Wants the extra
        ``timeline``.

        Args:
            path: of an HTML file; one that exists is replaced.
            statistics: of the pools, to be shown with their holders.

        Raises:
            ImportError: Jinja is not installed.
            OSError: the file can't be written.
        """
        try:
            from ._page import render  # noqa: PLC0415 - wants Jinja, which is optional
        except ImportError as error:
            raise ImportError(
                "Timeline.write_html wants Jinja: "
                'pip install "trio-hyperpool[timeline]"'
            ) from error
        runs = self._runs()
        zero = min((run.began for run in runs), default=0.0)
        page = render(runs, zero, self._date(zero), self.forgotten, statistics)
        Path(path).write_text(page, encoding="utf-8")

    def _runs(self) -> tuple[Run, ...]:
        events = tuple(self._events)
        try:
            now = trio.current_time()
        except RuntimeError:  # the run is over
            now = events[-1].at if events else 0.0
        return lay_out(events, now)

    def _date(self, at: float) -> str:
        """When that was by the clock on the wall; empty if nothing has happened."""
        if self._first is None:
            return ""
        first, date = self._first
        date += dt.timedelta(seconds=at - first)
        return f"{date:%Y-%m-%d %H:%M:%S} UTC"
