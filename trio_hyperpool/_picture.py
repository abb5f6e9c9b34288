"""A snapshot of a pool, as a picture for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ._snapshot import Minute, Snapshot
from ._statistics import PoolStatistics, Timing, duration

LATELY: Final = 10
"""Seconds that rates and times are told for."""

LONG: Final = 1.0
"""Seconds: a lease or a wait of this length is worth a look."""

_BARS: Final = "▁▂▃▄▅▆▇█"

SECONDS: Final = 60

_COLOURS: Final = {
    "leased": "green",
    "idle": "cyan",
    "opening": "yellow",
    "cleaning": "magenta",
}

_MOST_HOLDERS: Final = 10


def picture(snapshot: Snapshot, gone: float | None = None) -> RenderableType:
    """Draw one pool.

    Args:
        snapshot: the pool.
        gone: seconds since it was last heard of, if that is not just now.
    """
    now = snapshot.statistics
    parts: list[RenderableType] = [
        _headline(snapshot),
        Text(),
        _places(now),
        Text(),
        _minute(snapshot.minute, now),
    ]
    if now.holders or snapshot.waiters:
        parts += [Text(), _people(snapshot)]
    parts += [Text(), _ended(now)]
    if snapshot.notes:
        parts += [Text(), _notes(snapshot)]
    about = f"process {snapshot.pid}, watched for {duration(round(snapshot.watched))}"
    if gone is not None:
        about = f"process {snapshot.pid}, gone for {duration(round(gone))}"
    return Panel(
        Group(*parts),
        box=box.ROUNDED,
        title=Text(_clean(now.name), "bold"),
        title_align="left",
        subtitle=Text(about, "bold red" if gone is not None else "dim"),
        subtitle_align="right",
        border_style="red" if gone is not None else _mood(snapshot),
        padding=(0, 1),
    )


def _mood(snapshot: Snapshot) -> str:
    if any(note.ago < LATELY for note in snapshot.notes):
        return "red"
    return "yellow" if snapshot.statistics.waiting else "green"


def _headline(snapshot: Snapshot) -> Text:
    said = [snapshot.statistics.situation]
    for note in snapshot.notes:
        # Of a refused lease there is a reason, too.
        if note.ago < LATELY and not note.what.startswith("lease refused"):
            times = f", {note.count} times" if note.count > 1 else ""
            said.append(f"{note.what}{times}")
            break
    sentences = " ".join(f"{one[0].upper()}{one[1:]}." for one in said)
    return Text(_clean(sentences), f"bold {_mood(snapshot)}")


def _places(now: PoolStatistics, width: int = 60) -> Table:
    """A bar with a cell for each place, or for as many as there is room for."""
    table = _table()
    bar = Text()
    words = Text()
    drawn = 0
    shown = max(now.max_size, now.size)
    seen = 0
    for state, colour in _COLOURS.items():
        count: int = getattr(now, state)
        seen += count
        end = round(seen * min(width, shown) / shown)
        bar.append("■" * (end - drawn), colour)
        drawn = end
        words.append("  ■ " if words else "■ ", colour)
        words.append(f"{count} {state}")
    bar.append("·" * (min(width, shown) - drawn), "dim")
    table.add_row(_label("connections"), bar)
    words.append(f"   of at most {now.max_size}", "dim")
    table.add_row("", words)
    return table


def _minute(minute: Minute, now: PoolStatistics) -> Table:
    table = _table()
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.expand = True
    means = [
        total / count if count else 0.0
        for total, count in zip(minute.use_sum, minute.uses, strict=True)
    ]
    waiting = Text(f"{now.waiting} now", "bold yellow" if now.waiting else "")
    rate = f"{minute.rate(LATELY):.3g} each second"
    wait, use = _timing(minute.wait(LATELY)), _timing(minute.use(LATELY))
    table.add_row(
        "", Text(f"last {LATELY} s", "dim"), Text("last minute", "dim", justify="right")
    )
    table.add_row(_label("leases"), rate, _Bars(minute.leases, "blue"))
    table.add_row(_label("waited"), wait, _Bars(minute.wait_max, "yellow"))
    table.add_row(_label("used"), use, _Bars(means, "green"))
    table.add_row(_label("leased"), f"{now.leased} now", _Bars(minute.leased, "green"))
    table.add_row(_label("waiting"), waiting, _Bars(minute.waiting, "yellow"))
    return table


class _Bars:
    """Numbers as a row of bars, the latest to the right, as many as there is room for.

    The highest bar is for the greatest of all that are there.
    """

    def __init__(self, numbers: Sequence[float], colour: str) -> None:
        self._numbers = numbers
        self._colour = colour

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        shown = self._numbers[-options.max_width :]
        greatest = max(shown, default=0)
        top = len(_BARS) - 1
        bars = [
            _BARS[math.ceil(number / greatest * top)] if number else " "
            for number in shown
        ]
        yield Text("".join(bars).rjust(min(SECONDS, options.max_width)), self._colour)


def _timing(timing: Timing) -> Text:
    if not timing.count:
        return Text("none ended", "dim")
    text = Text(f"{duration(timing.mean)} on average, ")
    style = "bold yellow" if timing.max >= LONG else ""
    return text.append(f"{duration(timing.max)} at most", style)


def _people(snapshot: Snapshot) -> Table:
    table = _table()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    holders = snapshot.statistics.holders
    for number, holder in enumerate(holders[:_MOST_HOLDERS]):
        table.add_row(
            _label("held by" if not number else ""),
            *_person(holder.held, holder.task, holder.taken_at),
        )
    if len(holders) > _MOST_HOLDERS:
        table.add_row("", "", Text(f"and {len(holders) - _MOST_HOLDERS} more", "dim"))
    for number, waiters in enumerate(snapshot.waiters):
        who = waiters.longest
        if waiters.tasks > 1:
            who += f" and {waiters.tasks - 1} more"
        table.add_row(
            _label("wanted by" if not number else ""),
            *_person(waiters.waited, who, waiters.taken_at),
        )
    return table


def _person(seconds: float, task: str, place: str) -> tuple[Text, Text, Text]:
    style = "bold yellow" if seconds >= LONG else ""
    return (
        Text(duration(seconds), style),
        Text(_clean(task)),
        _place(place),
    )


def _ended(now: PoolStatistics) -> Table:
    table = _table()
    table.add_column(overflow="fold")
    opened = f"{now.opened}"
    if now.create.count:
        opened += f", in {duration(now.create.mean)} on average"
    if now.open_failures:
        opened += f"; {now.open_failures} could not be"
    table.add_row(_label("opened"), opened)
    for name, counts in ("retired", now.retired), ("discarded", now.discarded):
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = "   ".join(f"{count} {_clean(reason)}" for reason, count in most)
        table.add_row(_label(name), reasons or Text("none", "dim"))
    return table


def _notes(snapshot: Snapshot) -> Table:
    table = _table()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, ratio=1)
    table.expand = True
    for number, note in enumerate(snapshot.notes):
        is_fresh = note.ago < LATELY
        who = Text(_clean(note.who))
        if note.taken_at:
            who.append(f"  {_clean(_parts(note.taken_at)[1])}", "dim")
            if note.after is not None:
                who.append(f"  {duration(note.after)}")
        if not is_fresh:
            who.stylize("dim")
        table.add_row(
            _label("lately" if not number else ""),
            Text(f"{duration(round(note.ago))} ago", "" if is_fresh else "dim"),
            Text(f"{note.count} times" if note.count > 1 else "", "bold"),
            Text(_clean(note.what), "red" if is_fresh else "dim"),
            who,
        )
    return table


def _table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=13)
    return table


def _label(text: str) -> Text:
    return Text(text, "bold dim")


def _place(taken_at: str) -> Text:
    """File and line, with as much of the path as it takes to know it again."""
    folder, file = _parts(taken_at)
    return Text(_clean(f"…/{folder}/{file}" if folder else file), "dim")


def _parts(taken_at: str) -> tuple[str, str]:
    *_, folder, file = ("", *taken_at.replace("\\", "/").split("/"))
    return folder, file


def _clean(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
