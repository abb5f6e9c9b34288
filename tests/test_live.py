"""``live_view``: who may watch, what they are told, and that none of them matters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests._invariants import FakePool, fake_pool, hold
from trio_hyperpool import HyperConnection, Pool, PoolTimeoutError, _live
from trio_hyperpool._snapshot import Snapshot, from_line
from trio_hyperpool.telemetry import live_view
from trio_hyperpool.testing import FakeConnector, Gate

INTERVAL = 0.02


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "INTERVAL", INTERVAL)
    monkeypatch.setattr(_live, "PATIENCE", 0.2)


@pytest.fixture
def runtime_dir(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    # A path short enough for a socket.
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@contextlib.asynccontextmanager
async def viewed(**options: Any) -> AsyncGenerator[tuple[FakePool, Path]]:
    async with fake_pool(**options) as pool, live_view(pool) as path:
        yield pool, path


async def look(path: Path) -> Snapshot:
    with trio.fail_after(5):
        async with await trio.open_unix_socket(path) as stream:
            return from_line(await line_of(stream))


async def line_of(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        chunk = await stream.receive_some(100_000)
        assert chunk, "the pool has hung up"
        line += chunk
    # Several, perhaps.
    return line.splitlines(keepends=True)[0]


# What is told


async def test_a_viewer_is_told_at_once_and_then_again(runtime_dir: Path) -> None:
    async with viewed(max_size=2, name="sales") as (pool, path), pool.lease():
        async with await trio.open_unix_socket(path) as stream:
            first = from_line(await line_of(stream))
            await trio.sleep(2 * INTERVAL)
            second = from_line(await line_of(stream))
        assert first.pid == os.getpid()
        now = dataclasses.replace(pool.statistics(), holders=())
        assert dataclasses.replace(first.statistics, holders=()) == now
        assert first.statistics.holders[0].taken_at.startswith(__file__)
        assert second.watched > first.watched >= 0


async def test_who_waits_is_told_with_place_and_time(runtime_dir: Path) -> None:
    async with viewed(max_size=1) as (pool, path), trio.open_nursery() as nursery:
        async with pool.lease():
            for number in range(3):
                nursery.start_soon(hold, pool, 0, name=f"task {number}")
            await wait_all_tasks_blocked()
            (waiters,) = (await look(path)).waiters
            assert waiters.tasks == 3
            assert waiters.longest in {"task 0", "task 1", "task 2"}
            assert hold.__code__.co_filename in waiters.taken_at
            assert waiters.waited >= 0
        await trio.sleep(2 * INTERVAL)
        assert (await look(path)).waiters == ()


async def test_what_went_wrong_before_the_viewer_came_is_told(
    runtime_dir: Path,
) -> None:
    connector = FakeConnector(probe=Gate.fails(RuntimeError("secret"), on=1))
    async with viewed(connector=connector, max_size=1, health_check_after=0) as (
        pool,
        path,
    ):
        await hold(pool, 0)
        async with pool.lease():
            with pytest.raises(PoolTimeoutError):
                async with pool.lease(wait_timeout=0):
                    pass
        notes = {note.what: note for note in (await look(path)).notes}
    assert set(notes) == {
        "health_check failed",
        "connection discarded: failed health check",
        "lease refused: PoolTimeoutError",
    }
    assert notes["lease refused: PoolTimeoutError"].taken_at.startswith(__file__)
    assert "secret" not in str(notes)


@pytest.mark.hyperd
async def test_a_pool_of_hyper_tells_what_it_does_and_nothing_secret(
    runtime_dir: Path, hyper_pool: Pool[HyperConnection]
) -> None:
    async with live_view(hyper_pool) as path:  # noqa: SIM117
        async with hyper_pool.lease() as connection:
            value = await connection.fetch_value("SELECT 'hidden' || %s", ("hidden",))
            assert value == "hiddenhidden"
            async with await trio.open_unix_socket(path) as stream:
                line = await line_of(stream)
    snapshot = from_line(line)
    assert snapshot.statistics.leased == 1
    assert snapshot.statistics.name == hyper_pool.name
    assert b"hidden" not in line


async def test_a_line_is_json_with_a_version_and_another_version_is_refused(
    runtime_dir: Path,
) -> None:
    async with (
        viewed() as (_, path),
        await trio.open_unix_socket(path) as stream,
    ):
        line = await line_of(stream)
    fields = json.loads(line)
    assert fields["version"] == 1
    with pytest.raises(ValueError, match="version 2 of the live view"):
        from_line(json.dumps({**fields, "version": 2}).encode())
    for wrong in b"[]", b"{}", b"nonsense", b'{"version": 1}', b"\xff":
        with pytest.raises(ValueError):  # noqa: PT011 - of json, or ours
            from_line(wrong)


# Who may watch


async def test_nobody_but_its_user_can_connect_at_any_moment(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def listening(self: socket.socket) -> None:
        # Nobody can connect before this.
        modes.append(stat.S_IMODE(Path(self.getsockname()).stat().st_mode))
        listen(self)

    monkeypatch.setattr(socket.socket, "listen", listening)
    before = os.umask(0)
    try:
        async with viewed() as (_, path):
            assert path.parent == runtime_dir / "trio-hyperpool"
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert modes == [0o600]


async def test_another_user_is_sent_away(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with viewed() as (_, path):
        me = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
        async with await trio.open_unix_socket(path) as stream:
            assert await stream.receive_some() == b""
        # Where the system does not say who it is, the file's rights have said it.
        monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
        await look(path)


async def test_a_directory_open_to_others_is_refused(runtime_dir: Path) -> None:
    directory = runtime_dir / "trio-hyperpool"
    directory.mkdir()
    directory.chmod(0o755)
    async with fake_pool() as pool:
        with pytest.raises(PermissionError, match="permissions 0700"):
            async with live_view(pool):
                pass
    assert list(directory.iterdir()) == []


async def test_a_link_in_place_of_the_directory_is_refused(runtime_dir: Path) -> None:
    elsewhere = runtime_dir / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (runtime_dir / "trio-hyperpool").symlink_to(elsewhere)
    async with fake_pool() as pool:
        with pytest.raises(PermissionError):
            async with live_view(pool):
                pass


async def test_without_a_runtime_directory_it_is_among_the_temporary_files(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(runtime_dir))
    async with viewed() as (_, path):
        assert path.parent == runtime_dir / f"trio-hyperpool-{os.getuid()}"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# Viewers do not matter


async def test_a_viewer_that_never_reads_is_sent_away_and_holds_nothing_up(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than the system keeps for it.
    monkeypatch.setattr(_live._Source, "line", lambda _self: b"x" * 10_000_000)
    async with viewed() as (pool, path), await trio.open_unix_socket(path) as silent:
        began_at = trio.current_time()
        turns = 0
        while trio.current_time() < began_at + 3 * _live.PATIENCE:
            await hold(pool, 0)
            turns += 1
        received = 0
        with trio.fail_after(5):
            while chunk := await silent.receive_some():
                received += len(chunk)
        assert received < 10_000_000
        assert turns > 100


async def test_garbage_from_viewers_is_not_even_read(runtime_dir: Path) -> None:
    async with viewed() as (_, path):
        async with await trio.open_unix_socket(path) as stream:
            with trio.move_on_after(0.3):
                await stream.send_all(b"\0GET / HTTP/1.1\r\n" * 100_000)
            from_line(await line_of(stream))
        await look(path)


async def test_a_hundred_viewers_come_and_go_in_the_middle(runtime_dir: Path) -> None:
    told = 0

    async def viewer(number: int) -> None:
        nonlocal told
        async with await trio.open_unix_socket(path) as stream:
            if number % 2:
                await stream.receive_some(10)
            else:
                from_line(await line_of(stream))
                told += 1

    async with viewed() as (pool, path), trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(viewer, number)
        for _ in range(20):
            await hold(pool, 0)
        await trio.sleep(2 * INTERVAL)
    assert told == 50


async def test_a_snapshot_is_made_once_for_all_who_look_at_it(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "INTERVAL", 60)
    made = 0
    snapshot_of = _live.snapshot_of

    def counted(*args: Any) -> Snapshot:
        nonlocal made
        made += 1
        return snapshot_of(*args)

    monkeypatch.setattr(_live, "snapshot_of", counted)
    async with viewed() as (_, path):
        for _ in range(10):
            await look(path)
    assert made == 1


async def test_a_live_view_that_fails_is_logged_and_the_application_goes_on(
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_args: object) -> None:
        raise OSError("no more files")

    monkeypatch.setattr(trio, "serve_listeners", fail)
    async with viewed() as (pool, _):
        await wait_all_tasks_blocked()
        await hold(pool, 0)
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "fake: the live view has ended"


# Its life


async def test_it_leaves_neither_a_socket_nor_an_instrument_nor_a_viewer(
    runtime_dir: Path,
) -> None:
    async with fake_pool() as pool:
        before = pool._supply.record.instruments
        async with live_view(pool) as path:
            assert path.is_socket()
            viewer = await trio.open_unix_socket(path)
            await line_of(viewer)
            assert pool._supply.record.instruments != before
        assert not path.exists()
        assert pool._supply.record.instruments == before
        async with viewer:
            while await viewer.receive_some():
                pass


async def test_cancelled_it_leaves_nothing_either(runtime_dir: Path) -> None:
    async with fake_pool() as pool:
        with trio.move_on_after(0.1) as scope:
            async with live_view(pool) as path:
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert not path.exists()
        with trio.CancelScope() as scope:
            scope.cancel()
            async with live_view(pool):
                raise AssertionError
        assert list((runtime_dir / "trio-hyperpool").iterdir()) == []


async def test_what_the_body_raises_comes_out_as_it_is(runtime_dir: Path) -> None:
    async with fake_pool() as pool:
        error = ValueError("of the body")
        with pytest.raises(ValueError, match="of the body") as caught:
            async with live_view(pool):
                raise error
        assert caught.value is error


def test_a_keyboard_interrupt_comes_out_as_it_is(runtime_dir: Path) -> None:
    async def main() -> None:
        async with viewed():
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert list((runtime_dir / "trio-hyperpool").iterdir()) == []


def test_an_interrupt_that_comes_while_it_ends_comes_out_as_it_is(
    runtime_dir: Path,
) -> None:
    @trio.lowlevel.enable_ki_protection
    async def main() -> None:
        async with viewed():
            await trio.sleep(0.05)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert list((runtime_dir / "trio-hyperpool").iterdir()) == []


async def test_several_pools_have_sockets_of_their_own(runtime_dir: Path) -> None:
    async with viewed(name="one") as (_, one), viewed(name="two") as (_, two):
        assert (await look(one)).statistics.name == "one"
        assert (await look(two)).statistics.name == "two"


async def test_a_path_of_ones_own_is_taken_unless_somebody_listens_on_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "pool"
    async with fake_pool() as pool:
        async with live_view(pool, path) as told:
            assert told == path
            with pytest.raises(OSError, match="Address already in use") as caught:
                async with live_view(pool, str(path)):
                    pass
            assert caught.value.filename == str(path)
            await look(path)
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(path))
        async with live_view(pool, path):
            await look(path)
        path.write_text("something else")
        with pytest.raises(OSError, match="in use"):
            async with live_view(pool, path):
                pass
        assert path.read_text() == "something else"


async def test_a_socket_whose_queue_is_full_is_not_abandoned(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "pool"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        async with fake_pool() as pool:
            with pytest.raises(OSError, match="in use"):
                async with live_view(pool, path):
                    pass


async def test_what_cannot_be_meant_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TypeError, match="pool: a Pool is allowed, not 'shop'"):
        live_view("shop")  # type: ignore[arg-type]
    async with fake_pool() as pool:
        with pytest.raises(ValueError, match="path: 103 bytes are allowed"):
            live_view(pool, "/" + "x" * 103)
        monkeypatch.delattr(socket, "AF_UNIX")
        with pytest.raises(RuntimeError, match="no unix sockets"):
            live_view(pool)
