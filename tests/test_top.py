"""``python -m trio_hyperpool top``: its picture, its ways to look, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import trio
from rich.console import Console

from tests._invariants import fake_pool
from trio_hyperpool import _cli, _live, _scene, _top
from trio_hyperpool._picture import picture
from trio_hyperpool._snapshot import Minute, Note, Snapshot, Waiters, from_line, to_line
from trio_hyperpool._statistics import Holder, PoolStatistics, Timing, frozen
from trio_hyperpool.telemetry import live_view

pytestmark = pytest.mark.slow

NOTHING = Timing(0, 0.0, 0.0)

QUIET = Snapshot(
    pid=7,
    watched=3,
    statistics=PoolStatistics(
        name="shop",
        max_size=4,
        size=2,
        idle=2,
        leased=0,
        opening=0,
        cleaning=0,
        waiting=0,
        leases=0,
        opened=2,
        open_failures=0,
        retired=frozen({}),
        discarded=frozen({}),
        health_check_failures=0,
        hook_failures=0,
        wait_timeouts=0,
        revoked=0,
        cancelled_queries=0,
        wait=NOTHING,
        use=NOTHING,
        create=NOTHING,
        holders=(),
    ),
    minute=Minute((), (), (), (), (), (), (), ()),
    waiters=(),
    notes=(),
)

BUSY = dataclasses.replace(
    QUIET,
    watched=125,
    statistics=dataclasses.replace(
        QUIET.statistics,
        size=4,
        idle=0,
        leased=3,
        cleaning=1,
        waiting=5,
        opened=70,
        open_failures=2,
        create=Timing(70, 7, 1),
        retired=frozen({"reset": 1, "max_lifetime": 60}),
        discarded=frozen({"found dead": 5}),
        holders=(
            Holder("analyst", 12.34, "/srv/shop/app/report.py:12"),
            Holder("clerk \x1b[2J", 0.5, "app.py:7"),
        ),
    ),
    minute=Minute(
        leases=(0, 10, 20),
        wait_sum=(0, 0.1, 0.2),
        wait_max=(0, 0.05, 2),
        uses=(0, 10, 20),
        use_sum=(0, 1, 2),
        use_max=(0, 0.5, 0.5),
        leased=(0, 1, 3),
        waiting=(0, 0, 5),
    ),
    waiters=(
        Waiters(4, "visitor 1", 2.5, "/srv/shop/app/web.py:3"),
        Waiters(1, "boss", 0.25, "C:\\shop\\boss.py:9"),
    ),
    notes=(
        Note(
            2, 31, "lease refused: PoolTimeoutError", "visitor 9", "/srv/web.py:3", 3.0
        ),
        Note(4, 5, "connection discarded: found dead", "connection 6", "", None),
        Note(40, 1, "lease revoked", "analyst", "/srv/shop/app/report.py:12", None),
    ),
)

BUSY_PICTURE = """\
╭─ shop ───────────────────────────────────────────────────────────────────────────────────────────╮
│ 3 of 4 connections are leased, the longest for 12.3 s by analyst; 5 tasks wait. Connection       │
│ discarded: found dead, 5 times.                                                                  │
│                                                                                                  │
│ connections    ■■■■                                                                              │
│                ■ 3 leased  ■ 0 idle  ■ 0 opening  ■ 1 cleaning   of at most 4                    │
│                                                                                                  │
│                last 10 s                                                             last minute │
│ leases         10 each second                                                                 ▅█ │
│ waited         10 ms on average, 2 s at most                                                  ▂█ │
│ used           100 ms on average, 500 ms at most                                              ██ │
│ leased         3 now                                                                          ▄█ │
│ waiting        5 now                                                                           █ │
│                                                                                                  │
│ held by        12.3 s  analyst               …/app/report.py:12                                  │
│                500 ms  clerk \\x1b[2J         app.py:7                                            │
│ wanted by       2.5 s  visitor 1 and 3 more  …/app/web.py:3                                      │
│                250 ms  boss                  …/shop/boss.py:9                                    │
│                                                                                                  │
│ opened         70, in 100 ms on average; 2 could not be                                          │
│ retired        60 max_lifetime   1 reset                                                         │
│ discarded      5 found dead                                                                      │
│                                                                                                  │
│ lately         2 s ago   31 times  lease refused: PoolTimeoutError   visitor 9  web.py:3  3 s    │
│                4 s ago   5 times   connection discarded: found dead  connection 6                │
│                40 s ago            lease revoked                     analyst  report.py:12       │
╰─────────────────────────────────────────────────────────────── process 7, watched for 2 min 5 s ─╯
"""

GONE_PICTURE = """\
╭─ shop ───────────────────────────────────────────────────╮
│ 0 of 2 connections are leased; no task waits.            │
│                                                          │
│ connections    ■■··                                      │
│                ■ 0 leased  ■ 2 idle  ■ 0 opening  ■ 0    │
│                cleaning   of at most 4                   │
│                                                          │
│                last 10 s                     last minute │
│ leases         0 each second                             │
│ waited         none ended                                │
│ used           none ended                                │
│ leased         0 now                                     │
│ waiting        0 now                                     │
│                                                          │
│ opened         2                                         │
│ retired        none                                      │
│ discarded      none                                      │
╰──────────────────────────────── process 7, gone for 5 s ─╯
"""


def drawn(snapshot: Snapshot, gone: float | None = None, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(picture(snapshot, gone))
    return console.export_text()


# The picture


def test_a_pool_in_trouble_says_what_to_look_at_first() -> None:
    assert drawn(BUSY) == BUSY_PICTURE


def test_a_quiet_pool_that_went_away_is_drawn_in_a_narrow_terminal() -> None:
    assert drawn(QUIET, gone=5, width=60) == GONE_PICTURE


def test_no_name_is_obeyed_by_the_terminal() -> None:
    evil = "\x1b]0;x\x07\x9b[bold]"
    text = drawn(
        dataclasses.replace(
            BUSY,
            statistics=dataclasses.replace(
                BUSY.statistics, name=evil, holders=(Holder(evil, 1, evil),)
            ),
            notes=(Note(1, 1, evil, evil, evil, 1), Note(1, 1, evil, "", "", None)),
        )
    )
    assert text.count("\\x1b]0;x\\x07\\x9b[bold]") > 4
    assert all(one.isprintable() or one == "\n" for one in text)


def test_large_pools_are_drawn_to_scale() -> None:
    many = tuple(Holder(f"task {number}", 1, "a.py:1") for number in range(300))
    statistics = dataclasses.replace(
        BUSY.statistics, max_size=1000, size=310, leased=300, idle=10, holders=many
    )
    text = drawn(dataclasses.replace(BUSY, statistics=statistics))
    assert f" {'■' * 19}{'·' * 41} " in text
    assert "and 290 more" in text


def test_bars_show_as_many_seconds_as_there_is_room_for() -> None:
    minute = dataclasses.replace(QUIET.minute, leases=(*range(59), 1000))
    text = drawn(dataclasses.replace(QUIET, minute=minute), width=60)
    assert "▂▂▂▂▂█ │" in text


# The ways to look


@pytest.fixture
def runtime_dir(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    # A path short enough for a socket.
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(_live, "INTERVAL", 0.05)
    return path


async def run(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "trio_hyperpool", "top", *arguments]
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_every_pool_that_is_found_is_shown_once(runtime_dir: Path) -> None:
    async with (
        fake_pool(name="one") as one,
        fake_pool(name="two") as two,
        live_view(one),
        live_view(two),
    ):
        (runtime_dir / "trio-hyperpool" / "0.sock").touch()
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(runtime_dir / "trio-hyperpool" / "1.sock"))
        status, out, err = await run("--once")
    assert (status, err) == (0, "")
    assert out.index("╭─ one ─") < out.index("╭─ two ─")
    assert out.count("No connection is open; no task waits.") == 2


async def test_output_that_is_no_terminal_is_one_snapshot(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_pool() as pool, live_view(pool) as path:
        await _top.top([path])
    assert capsys.readouterr().out.startswith("╭─ fake ─")


async def test_json_is_one_line_or_one_for_each_snapshot_until_the_pool_ends(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_pool() as pool, trio.open_nursery() as nursery:  # noqa: SIM117
        async with live_view(pool) as path:
            await _top.top([path], once=True, as_json=True)
            assert json.loads(capsys.readouterr().out)["statistics"]["name"] == "fake"
            nursery.start_soon(lambda: _top.top([path], as_json=True))
            await trio.sleep(0.3)
        # It ends by itself.
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert all(json.loads(line)["version"] == 1 for line in lines)


async def test_a_picture_is_written_into_a_file_that_wants_nothing_else(
    runtime_dir: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "top.svg"
    async with fake_pool() as pool, live_view(pool):
        await _top.top([], svg=picture)
    text = picture.read_text("utf-8")
    assert text.startswith("<svg")
    assert "fake" in text
    assert "url(http" not in text


def test_nothing_to_see_is_said_and_where(
    runtime_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=f"no pool is seen in {runtime_dir}") as ended:
        _cli.main(["top", "--once"])
    assert "live_view(pool)" in str(ended.value)
    with pytest.raises(SystemExit, match=r"missing: .*No such file"):
        _cli.main(["top", "--json", str(tmp_path / "missing")])
    (runtime_dir / "trio-hyperpool").mkdir(mode=0o755)
    with pytest.raises(SystemExit, match="permissions 0700"):
        _cli.main(["top", "--svg", str(tmp_path / "x.svg")])


async def test_a_picture_that_cannot_be_written_is_no_trouble_of_the_pool(
    runtime_dir: Path, tmp_path: Path
) -> None:
    async with fake_pool() as pool, live_view(pool):
        status, out, err = await run("--svg", str(tmp_path))
    assert (status, out) == (1, "")
    assert err.startswith("trio_hyperpool: [Errno 21] Is a directory")


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        (b"nonsense\n", "Expecting value"),
        (b"{}\n", "not a line of a live view"),
        (b"x" * (_top.LONGEST_LINE + 2), "lines have no end"),
        (b"", "it has ended"),
        (None, "it has said nothing for 0.1 s"),
    ],
)
async def test_what_is_no_live_view_is_told_apart(
    runtime_dir: Path, said: bytes | None, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_top, "SILENCE", 0.1)
    path = runtime_dir / "s"

    async def talk(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            if said is None:
                await trio.sleep_forever()
            else:
                await stream.send_all(said)
        await stream.aclose()

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(listening)
        nursery.start_soon(trio.serve_listeners, talk, [listener])
        with pytest.raises(_top.NothingToSeeError, match=trouble):
            await _top.look_once([path], lambda _line: None)
        nursery.cancel_scope.cancel()


def test_without_rich_it_is_said_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "trio_hyperpool._top", raising=False)
    monkeypatch.delattr("trio_hyperpool._top", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(SystemExit, match=r"'trio-hyperpool\[cli\]' brings it along"):
        _cli.main(["top"])


async def test_a_reader_that_has_gone_is_no_trouble_of_the_pool(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_line: bytes) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(_top, "_write", write)
    async with fake_pool() as pool, live_view(pool):
        with pytest.raises(BrokenPipeError):
            await _top.top([], as_json=True)


# In a terminal


class Terminal:
    """A command in a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "LINES": "60"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trio_hyperpool", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    async def sees(self, text: str, within: float = 20) -> None:
        """Read until a text is there that was not there before."""
        until = time.monotonic() + within
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            await self._read()
        self.seen = self.seen.partition(text)[2]

    async def _read(self) -> None:
        await trio.sleep(0.02)
        if select.select([self._master], [], [], 0)[0]:
            # The other side has closed it.
            with contextlib.suppress(OSError):
                self.seen += os.read(self._master, 100_000).decode(errors="replace")

    async def interrupt(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return await self.end()

    async def end(self) -> int:
        with trio.fail_after(20):
            while self._process.poll() is None:
                await self._read()
        return self._process.returncode

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.fixture
def terminal() -> Generator[list[Terminal]]:
    terminals: list[Terminal] = []
    yield terminals
    for one in terminals:
        one.close()


async def test_it_waits_for_a_pool_shows_it_marks_its_end_and_its_return(
    runtime_dir: Path, terminal: list[Terminal]
) -> None:
    top = Terminal("top")
    terminal.append(top)
    await top.sees("Waiting for a pool to be seen at")
    async with fake_pool(name="shop") as pool:
        async with live_view(pool):
            await top.sees(" shop ")
            async with pool.lease():
                await top.sees("1 of 1 connection is leased, the longest for")
        await top.sees("gone for")
        async with live_view(pool):
            await top.sees("watched for 1 s")
            assert await top.interrupt() == 0
    assert "Traceback" not in top.seen
    # The last picture stays, after the screen that it was drawn on has gone.
    assert " shop " in top.seen.partition("\x1b[?1049l")[2]


async def test_once_in_a_terminal_has_colours_and_ends(
    runtime_dir: Path, terminal: list[Terminal]
) -> None:
    async with fake_pool(name="shop") as pool, live_view(pool) as path:
        top = Terminal("top", "--once", str(path))
        terminal.append(top)
        await top.sees("\x1b[1;32m shop \x1b[0m")
        await top.sees("╯")
        assert await top.end() == 0


async def test_a_socket_that_is_waited_for_is_named(
    runtime_dir: Path, terminal: list[Terminal]
) -> None:
    top = Terminal("top", "/nowhere/shop")
    terminal.append(top)
    await top.sees("Waiting for a pool to be seen at /nowhere/shop")
    assert await top.interrupt() == 0


async def test_pools_come_and_go_and_come_back_in_the_picture(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_top, "REDRAW", 0.02)
    monkeypatch.setattr(_top, "LOOK_AGAIN", 0.02)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=80)

    async def sees(text: str) -> None:
        out.seek(0)
        out.truncate()
        with trio.fail_after(5):
            while text not in out.getvalue():  # noqa: ASYNC110
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_top.watch, [], console)
        await sees("Waiting for a pool to be seen at")
        async with fake_pool(name="shop") as shop, fake_pool(name="bank") as bank:
            async with live_view(bank), live_view(shop):
                await sees(" shop ")
                await sees(" bank ")
            await sees("gone for")
            async with live_view(shop):
                await sees("watched for")
                # The one that is back has taken the place of the one that had gone.
                await sees(" bank ")
                out.seek(0)
                out.truncate()
                nursery.cancel_scope.cancel()
    last = out.getvalue().partition("\x1b[?1049l")[2]
    assert last.count(" shop ") == last.count(" bank ") == 1
    assert last.count("gone for") == 1


async def test_an_interrupt_is_the_usual_end(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_top.top, [])
        await trio.sleep(0.3)
        signal.raise_signal(signal.SIGINT)


# The scene


@pytest.mark.hyperd
async def test_the_scene_has_clerks_and_an_analyst_and_leaves_nothing(
    hyperd_path: Path, runtime_dir: Path
) -> None:
    with trio.fail_after(30):
        async with _scene.scene() as path:
            while True:
                (view,) = await _top.look_once([path], lambda _line: None)
                assert view.snapshot is not None
                now = view.snapshot.statistics
                if any(holder.task == "analyst" for holder in now.holders):
                    break
                await trio.sleep(0.2)
    assert now.name == "shop"
    assert now.leases > 10
    assert list((runtime_dir / "trio-hyperpool").iterdir()) == []


@pytest.mark.hyperd
async def test_in_the_scene_crowds_come_and_the_server_dies_and_is_back(
    hyperd_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scene, "QUIET", 0.5)
    monkeypatch.setattr(_scene, "LIFE", 1.5)
    seen: set[str] = set()
    with trio.fail_after(30):
        async with _scene.scene() as path:
            opened = -1
            while True:
                (view,) = await _top.look_once([path], lambda _line: None)
                assert view.snapshot is not None
                now = view.snapshot.statistics
                seen |= {holder.task.partition(" ")[0] for holder in now.holders}
                if now.open_failures and opened < 0:
                    opened = now.opened
                elif 0 <= opened < now.opened:
                    break
                await trio.sleep(0.02)
    assert "visitor" in seen


@pytest.mark.hyperd
def test_a_watched_demo_without_a_terminal_is_one_snapshot(
    hyperd_path: Path, runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _cli.main(["demo", "--watch"]) == 0
    assert capsys.readouterr().out.startswith("╭─ shop ─")


@pytest.mark.hyperd
@pytest.mark.slow
async def test_the_demo_can_be_watched_until_it_is_interrupted(
    hyperd_path: Path, runtime_dir: Path, terminal: list[Terminal]
) -> None:
    demo = Terminal("demo", "--watch")
    terminal.append(demo)
    await demo.sees("analyst")
    await demo.sees("visitor")
    assert await demo.interrupt() == 0
    assert "Traceback" not in demo.seen
    assert list((runtime_dir / "trio-hyperpool").iterdir()) == []


def test_a_line_is_what_was_drawn() -> None:
    assert drawn(from_line(to_line(BUSY))) == BUSY_PICTURE
