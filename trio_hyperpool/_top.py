"""``top``: watches pools through the sockets that `live_view` makes."""

from __future__ import annotations

import io
import math
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ._live import check_is_private, default_directory
from ._picture import picture
from ._snapshot import Snapshot, from_line

REDRAW: Final = 0.25
"""Seconds between two pictures."""

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks for sockets."""

SILENCE: Final = 5.0
"""Seconds after which a pool that says nothing is given up."""

LONGEST_LINE: Final = 1 << 20

WIDTH: Final = 110
"""Of a picture in a file."""

HINT: Final = "live_view(pool), of trio_hyperpool.telemetry, lets a pool be seen"


Tell: TypeAlias = Callable[[bytes], None]


class NothingToSeeError(Exception):
    """There is no pool that could be shown; the message says where it was looked for."""


class View:
    """One socket, and what came from it.

    Attributes:
        snapshot: the last that it told; None if there was none yet.
        gone_at: when it ended; `math.inf` as long as it goes on.
        trouble: why it can't be read, if it can't.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshot: Snapshot | None = None
        self.gone_at: float = -math.inf
        self.trouble: str = "nobody listens"

    @property
    def name(self) -> str:
        """The pool's, if it is known."""
        return self.snapshot.statistics.name if self.snapshot is not None else ""

    @property
    def is_over(self) -> bool:
        """Whether nobody reads it any more."""
        return self.gone_at < math.inf

    async def read(self, tell: Tell) -> None:
        """Take in what the pool says, until it says no more. A checkpoint.

        Args:
            tell: is given each line, as it came.
        """
        self.gone_at = math.inf
        try:
            async with await trio.open_unix_socket(self.path) as stream:
                lines = _Lines(stream)
                while line := await lines.next():
                    self.snapshot = from_line(line)
                    tell(line)
            self.trouble = "it has ended"
        except BrokenPipeError:
            # Ours: nothing is sent to the pool.
            raise
        except (OSError, ValueError, trio.BrokenResourceError) as error:
            self.trouble = str(error)
        finally:
            self.gone_at = trio.current_time()

    def drawn(self) -> RenderableType:
        """The picture of what it told last; only if there is a `snapshot`."""
        assert self.snapshot is not None  # noqa: S101
        gone = max(0.0, trio.current_time() - self.gone_at) if self.is_over else None
        return picture(self.snapshot, gone)


class _Lines:
    """Lines out of a stream, none of which may be too long, or late."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._rest = bytearray()

    async def next(self) -> bytes:
        """The next line; empty at the end. What is no whole line is dropped."""
        with trio.move_on_after(SILENCE):
            while (end := self._rest.find(b"\n") + 1) == 0:
                chunk = await self._stream.receive_some()
                if not chunk:
                    return b""
                self._rest += chunk
                if len(self._rest) > LONGEST_LINE:
                    raise ValueError("not a live view: its lines have no end")
            line = bytes(self._rest[:end])
            del self._rest[:end]
            return line
        raise ValueError(f"it has said nothing for {SILENCE:g} s")


def found() -> list[Path]:
    """The sockets in the place where `live_view` makes them, if that is one's own."""
    directory = default_directory()
    try:
        check_is_private(directory)
    except FileNotFoundError:
        return []
    return sorted(path for path in directory.iterdir() if path.is_socket())


async def look_once(paths: Sequence[Path], tell: Tell) -> list[View]:
    """Read one snapshot of each pool. A checkpoint.

    Args:
        paths: the sockets; none given, those that are found.
        tell: is given each line, as it came.

    Raises:
        NothingToSeeError: one that was given can't be read; or none was found.
    """
    views = [View(path) for path in paths or found()]

    async def look(view: View) -> None:
        with trio.CancelScope() as scope:

            def enough(line: bytes) -> None:
                tell(line)
                scope.cancel()

            await view.read(enough)

    async with trio.open_nursery() as nursery:
        for view in views:
            nursery.start_soon(look, view)
    seen = _seen(views, paths)
    for view in seen:
        view.gone_at = math.inf
    return seen


async def follow(paths: Sequence[Path], tell: Tell) -> None:
    """Tell every line of each pool, until all have ended. A checkpoint.

    Args:
        paths: the sockets; none given, those that are found.
        tell: is given each line, as it came.

    Raises:
        NothingToSeeError: one that was given can't be read; or none was found.
    """
    views = [View(path) for path in paths or found()]
    async with trio.open_nursery() as nursery:
        for view in views:
            nursery.start_soon(view.read, tell)
    _seen(views, paths)


def _seen(views: Sequence[View], paths: Sequence[Path]) -> list[View]:
    """Those that had something to show; all of them, if they were asked for."""
    seen = [view for view in views if view.snapshot is not None]
    if paths and len(seen) < len(views):
        silent = next(view for view in views if view.snapshot is None)
        raise NothingToSeeError(f"{silent.path}: {silent.trouble}")
    if not seen:
        raise NothingToSeeError(f"no pool is seen in {default_directory()}: {HINT}")
    return seen


async def watch(paths: Sequence[Path], console: Console) -> None:
    """Draw pools in a terminal, until this is cancelled. A checkpoint.

    A pool that goes away stays in sight, marked; one that comes (back) appears. The
    last picture stays in the terminal.

    Args:
        paths: the sockets; none given, those that are found, looked for all the time.
        console: the terminal.
    """
    views: dict[Path, View] = {}
    look_at = -math.inf
    last: RenderableType | None = None
    try:
        async with trio.open_nursery() as nursery:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    now = trio.current_time()
                    if now >= look_at:
                        look_at = now + LOOK_AGAIN
                        for path in paths or found():
                            view = views.setdefault(path, View(path))
                            if view.is_over:
                                nursery.start_soon(view.read, _ignore)
                    seen = [view for view in views.values() if view.snapshot]
                    last = _screen(seen) if seen else None
                    live.update(last or _nothing_yet(paths), refresh=True)
                    await trio.sleep(REDRAW)
    finally:
        # As it was: whoever is not read any more has not gone.
        if last is not None:
            console.print(last)


def _nothing_yet(paths: Sequence[Path]) -> Text:
    where = ", ".join(map(str, paths)) or str(default_directory())
    return Text(
        f"Waiting for a pool to be seen at {where}.\n\n"
        f"{HINT[0].upper()}{HINT[1:]}. Ctrl-C ends this."
    )


def _screen(seen: Collection[View]) -> RenderableType:
    here = [view for view in seen if not view.is_over]
    # One that is back under its old name has taken the place of the one that went.
    names = {view.name for view in here}
    gone = [view for view in seen if view.is_over and view.name not in names]
    return Group(*(view.drawn() for view in [*here, *gone]))


async def top(
    paths: Sequence[Path],
    *,
    once: bool = False,
    as_json: bool = False,
    svg: Path | None = None,
) -> None:
    """Show pools on standard output, until they end or Ctrl-C does. A checkpoint.

    Args:
        paths: the sockets; none given, those that are found.
        once: one snapshot is enough. It is, too, if nobody sees the output come.
        as_json: as it comes, a line of JSON for each snapshot.
        svg: write a picture into this file, of one snapshot.

    Raises:
        NothingToSeeError: one that was given can't be read; or none was found.
        BrokenPipeError: nobody reads any more.
    """
    error: Exception | None = None

    async def show() -> None:
        nonlocal error
        try:
            await _shown(paths, once=once, as_json=as_json, svg=svg)
        except Exception as raised:  # noqa: BLE001 - raised below, outside of any group
            error = raised
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            async for _ in signals:
                nursery.cancel_scope.cancel()
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


async def _shown(
    paths: Sequence[Path], *, once: bool, as_json: bool, svg: Path | None
) -> None:
    console = Console()
    if as_json:
        await (look_once if once else follow)(paths, _write)
    elif svg is not None:
        save(await look_once(paths, _ignore), svg)
    elif once or not console.is_terminal:
        for view in await look_once(paths, _ignore):
            console.print(view.drawn())
    else:
        await watch(paths, console)


def save(views: Iterable[View], svg: Path) -> None:
    """Write the picture of some pools into a file."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for view in views:
        console.print(view.drawn())
    drawn = console.export_svg(title="python -m trio_hyperpool top")
    # Whoever looks at it need not fetch a font for it.
    svg.write_text(re.sub(r"@font-face {.*?}", "", drawn, flags=re.DOTALL), "utf-8")


def _write(line: bytes) -> None:
    sys.stdout.write(line.decode())
    sys.stdout.flush()


def _ignore(line: bytes) -> None:
    """Nobody wants the line itself."""
