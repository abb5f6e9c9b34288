"""How far something long has come, for who sits at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO, TypeAlias

Tell: TypeAlias = Callable[[int, float], object]
"""Takes the rows so far, and the bytes of the file so far."""


@contextmanager
def progress(out: TextIO, size: int) -> Generator[Tell]:
    """Show a bar for the block if this is a terminal, and rich is installed.

    Args:
        out: where to show it.
        size: bytes of the whole; 0 if nobody knows.
    """
    if not out.isatty():
        yield lambda _rows, _size: None
        return
    try:
        import rich.console  # noqa: PLC0415 - an extra
        import rich.progress as bars  # noqa: PLC0415
    except ImportError:
        print("no progress bar: it wants trio-hyperpool[cli]", file=out)
        yield lambda _rows, _size: None
        return
    with bars.Progress(
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TextColumn("{task.fields[rows]:,} rows"),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(compact=True),
        console=rich.console.Console(file=out),
    ) as bar:
        task = bar.add_task("", total=size or None, rows=0)
        yield lambda rows, done: bar.update(task, rows=rows, completed=done)
