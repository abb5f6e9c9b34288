"""``open_hyperd``: a real server that lives exactly as long as its block."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from tests._wire import eventually, open_files
from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._errors import HyperdError
from trio_hyperpool._server import Hyperd, open_hyperd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hyperd_path")]


def connect(hyperd: Hyperd, **more: Any) -> psycopg.Connection[tuple[Any, ...]]:
    parameters = parse_endpoint(hyperd.endpoint).conninfo()
    return psycopg.connect(
        **{**parameters, "user": hyperd.user, **more}, autocommit=True
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> set[int]:
    """Our own child processes, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


@pytest.fixture
def temporary(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Generator[Path]:
    """A directory for temporary files of this test alone, with a short path."""
    tmp_path_factory.getbasetemp()  # which pytest would otherwise make in here
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.fixture(autouse=True)
def nothing_is_left(temporary: Path) -> Iterator[None]:
    """No process, no file descriptor and no temporary file outlives any test."""
    before = children(), open_files()
    yield
    assert (children(), open_files()) == before
    assert list(temporary.iterdir()) == []


def script(directory: Path, text: str) -> Path:
    """A pretended hyperd."""
    path = directory / "hyperd"
    path.write_text(text)
    path.chmod(0o755)
    return path


def calling_back(directory: Path, then: str) -> Path:
    """A pretended hyperd that connects the callback as ``c``, and then..."""
    return script(
        directory,
        f"#!{sys.executable} -IS\n"
        + textwrap.dedent(
            """\
            import signal, socket, sys, time
            where = [a for a in sys.argv if a.startswith("--callback")][0]
            listen = [a for a in sys.argv if a.startswith("--listen")][0]
            c = socket.create_connection(("127.0.0.1", int(where.rpartition(":")[2])))
            def say(b): c.sendall(bytes([len(b)]) + b)
            def say_ready():
                d = listen.partition("=")[2].removesuffix("auto")
                say(d.encode() + b".s.PGSQL.7\\0")
            """
        )
        + then,
    )


# A real server


async def test_a_server_lives_exactly_as_long_as_its_block() -> None:
    async with open_hyperd() as hyperd:
        assert is_alive(hyperd.pid)
        with connect(hyperd) as conn:
            assert conn.execute("SELECT 42").fetchall() == [(42,)]
    assert not is_alive(hyperd.pid)


async def test_two_servers_do_not_meet() -> None:
    async with open_hyperd() as one, open_hyperd() as two:
        assert one.endpoint != two.endpoint
        for hyperd in one, two:
            connect(hyperd).close()


async def test_nothing_is_left_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_hyperd() as hyperd:
        with connect(hyperd) as conn:
            conn.execute("CREATE TEMP TABLE t AS SELECT 1 AS a")
        (private,) = temporary.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
        assert hyperd.log_dir.is_relative_to(private)
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


async def test_every_type_arrives_exactly_and_can_be_stored(db: str) -> None:
    async with open_hyperd() as hyperd:
        with connect(hyperd) as conn:
            conn.execute(f'CREATE DATABASE "{db}"')
        with connect(hyperd, dbname=db) as conn:
            conn.execute("CREATE TABLE t (a real, b numeric(38,2), c double precision)")
            third = conn.execute("SELECT 1 / 3::double precision").fetchone()
    assert third == (1 / 3,)


async def test_what_was_committed_is_on_disk_after_the_block(db: str) -> None:
    async with open_hyperd() as hyperd:
        with connect(hyperd) as conn:
            conn.execute(f'CREATE DATABASE "{db}"')
        with connect(hyperd, dbname=db) as conn:
            conn.execute("CREATE TABLE t AS SELECT 42 AS a")
            left_open = connect(hyperd, dbname=db)
    left_open.close()
    async with open_hyperd() as hyperd:
        with connect(hyperd, dbname=db) as conn:
            assert conn.execute("SELECT a FROM t").fetchall() == [(42,)]


async def test_a_server_comes_back_under_the_same_endpoint(temporary: Path) -> None:
    endpoints: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="s") as parent:
        directory = Path(parent) / "new" / "with space"
        for _ in range(3):
            async with open_hyperd(socket_dir=directory, port=7777) as hyperd:
                endpoints.add(hyperd.endpoint)
                connect(hyperd).close()
            assert list(directory.iterdir()) == []
        assert directory.stat().st_mode & 0o777 == 0o700
        assert endpoints == {f"tab.domain://{directory}/domain/.s.PGSQL.7777"}


async def test_a_dead_server_leaves_no_socket_and_a_stale_one_is_taken_over() -> None:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        with pytest.raises(HyperdError):
            async with open_hyperd(socket_dir=directory, port=7777) as hyperd:
                os.kill(hyperd.pid, signal.SIGKILL)
                await trio.sleep_forever()
        assert list(Path(directory).iterdir()) == []
        Path(directory, ".s.PGSQL.7777.pid").write_text("999999")
        Path(directory, ".s.PGSQL.7777").touch()
        async with open_hyperd(socket_dir=directory, port=7777) as hyperd:
            connect(hyperd).close()


async def test_a_socket_in_use_is_left_to_its_owner() -> None:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        async with open_hyperd(socket_dir=directory, port=7777) as hyperd:
            with pytest.raises(HyperdError, match="socket is in use"):
                async with open_hyperd(socket_dir=directory, port=7777):
                    pass
            connect(hyperd).close()


async def test_it_can_listen_on_tcp() -> None:
    async with open_hyperd(tcp=True) as hyperd:
        host, _, port = hyperd.endpoint.rpartition(":")
        assert host == "127.0.0.1"
        with connect(hyperd) as conn:
            assert conn.info.host == "127.0.0.1"
    async with open_hyperd(tcp=True, port=int(port)) as hyperd:
        assert hyperd.endpoint == f"127.0.0.1:{port}"
        with pytest.raises(HyperdError, match="unable to listen"):
            async with open_hyperd(tcp=True, port=int(port)):
                pass


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_password_is_asked_for_and_not_seen(*, tcp: bool) -> None:
    secret = "sésame, o'pén -"
    async with open_hyperd(user="me", password=secret, tcp=tcp) as hyperd:
        connect(hyperd, password=secret, require_auth="scram-sha-256").close()
        for wrong in {}, {"password": "other"}:
            with pytest.raises(psycopg.OperationalError):
                connect(hyperd, **wrong)
        assert secret not in repr(hyperd)
        command = Path(f"/proc/{hyperd.pid}/cmdline").read_bytes()
        assert secret.encode() not in command


async def test_a_password_in_our_environment_is_not_the_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYPER_INITIAL_USER_PASSWORD", "secret")
    async with open_hyperd() as hyperd:
        environment = Path(f"/proc/{hyperd.pid}/environ").read_bytes()
        assert b"HYPER_INITIAL_USER_PASSWORD" not in environment


async def test_parameters_are_passed_on_and_win() -> None:
    parameters = {"default-database-version": 3, "disable_fsync": True}
    async with open_hyperd(
        parameters={**parameters, "session_memory_limit": "100m"}
    ) as hyperd:
        command = Path(f"/proc/{hyperd.pid}/cmdline").read_text().split("\0")
        assert "--default-database-version=3" in command
        assert "--disable-fsync=1" in command
        assert "--session-memory-limit=100m" in command
        assert sum("default-database-version" in word for word in command) == 1


async def test_a_given_log_directory_has_the_full_log_and_stays(tmp_path: Path) -> None:
    async with open_hyperd(log_dir=tmp_path / "log") as hyperd:
        assert hyperd.log_dir == tmp_path / "log"
        connect(hyperd).close()
    (log,) = hyperd.log_dir.iterdir()
    assert log.stat().st_size > 10000


async def test_a_private_log_does_not_grow_with_queries() -> None:
    async with open_hyperd() as hyperd:
        with connect(hyperd) as conn:
            for _ in range(20):
                conn.execute("SELECT 1")
        assert sum(path.stat().st_size for path in hyperd.log_dir.iterdir()) < 10000


# Ends before their time


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (signal.SIGKILL, "was killed by SIGKILL"),
        (signal.SIGSEGV, "was killed by SIGSEGV"),
        (signal.SIGTERM, "ended with exit status 0"),
        (40, "was killed by signal 40"),
    ],
)
async def test_a_death_cancels_the_block_and_is_reported(
    number: int, text: str
) -> None:
    with (
        trio.fail_after(10),
        pytest.raises(HyperdError, match="before its block was over") as caught,
    ):
        async with open_hyperd() as hyperd:
            os.kill(hyperd.pid, number)
            await trio.sleep_forever()
    assert text in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_the_report_ends_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "broken.log").symlink_to("nowhere")
    (tmp_path / "other.log").write_text('{"pid": 1, "k": "not ours"}\nnor this\n')
    with pytest.raises(HyperdError) as caught:
        async with open_hyperd(log_dir=tmp_path) as hyperd:
            connect(hyperd).close()
            # The server writes it a little later, and SIGKILL leaves no time for that.
            log = tmp_path / "hyperd.log"
            assert eventually(lambda: log.read_bytes().count(b"\n") > 2)
            os.utime(tmp_path / "other.log", (2**40, 2**40))
            os.kill(hyperd.pid, signal.SIGKILL)
            await trio.sleep_forever()
    _, _, tail = str(caught.value).partition("The last lines of its log:\n")
    assert 1 < len(tail.splitlines()) <= 20
    assert all(len(line) <= 510 for line in tail.splitlines())
    assert " info " in tail
    assert "not ours" not in tail


async def test_an_error_that_the_death_caused_is_the_cause_of_the_report() -> None:
    for number in signal.SIGKILL, signal.SIGTERM:
        with pytest.raises(HyperdError) as caught:
            async with open_hyperd() as hyperd:
                with connect(hyperd) as conn:
                    os.kill(hyperd.pid, number)
                    while True:
                        conn.execute("SELECT 1")
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)


async def test_a_death_is_reported_when_the_block_does_not_notice() -> None:
    with pytest.raises(HyperdError, match="SIGKILL"):
        async with open_hyperd() as hyperd:
            os.kill(hyperd.pid, signal.SIGKILL)


async def test_a_death_in_a_cancelled_scope_leaves_the_cancellation_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with trio.CancelScope() as scope:
        async with open_hyperd() as hyperd:
            os.kill(hyperd.pid, signal.SIGKILL)
            assert eventually(lambda: "State:\tZ" in status_of(hyperd.pid))
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert "SIGKILL" in caplog.text


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        KeyboardInterrupt(),
        SystemExit(3),
        ExceptionGroup("mine", [ValueError(), KeyError()]),
        BaseExceptionGroup("mine", [KeyboardInterrupt()]),
    ],
)
async def test_exceptions_of_the_block_come_out_as_they_are(
    error: BaseException,
) -> None:
    with pytest.raises(type(error)) as caught:
        async with open_hyperd():
            raise error
    assert caught.value is error
    assert caught.value.__context__ is None


async def test_a_cancellation_reaches_its_own_scope_and_cleanup_may_use_the_server() -> (
    None
):
    with trio.CancelScope() as scope:
        async with open_hyperd() as hyperd:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with connect(hyperd) as conn:
                    assert conn.execute("SELECT 42").fetchall() == [(42,)]
    assert scope.cancelled_caught
    assert not is_alive(hyperd.pid)


async def test_a_group_of_the_block_keeps_what_is_not_the_servers_cancellation() -> (
    None
):
    with pytest.raises(HyperdError, match="SIGKILL") as caught:
        async with open_hyperd() as hyperd, trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                os.kill(hyperd.pid, signal.SIGKILL)
                await trio.sleep_forever()
            finally:
                raise KeyError
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(error) for error in cause.exceptions] == [KeyError]


async def test_a_ctrl_c_among_the_servers_cancellations_goes_on() -> None:
    with pytest.RaisesGroup(KeyboardInterrupt):
        async with open_hyperd() as hyperd, trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                os.kill(hyperd.pid, signal.SIGKILL)
                await trio.sleep_forever()
            finally:
                raise KeyboardInterrupt


async def test_a_block_is_entered_once() -> None:
    block = open_hyperd()
    async with block:
        pass
    with pytest.raises(RuntimeError, match="call it again"):
        await block.__aenter__()


async def test_a_cancelled_scope_starts_nothing(temporary: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_hyperd(socket_dir=temporary / "never"):
            raise AssertionError
    assert scope.cancelled_caught


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after the k-th step of any task."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.steps_left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self.scope.cancel()


async def test_a_cancellation_at_any_step_leaves_nothing_behind(
    temporary: Path,
) -> None:
    before = children(), open_files()
    for step in range(1, 500):
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with open_hyperd():
                    await trio.lowlevel.checkpoint()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert children() == before[0]
        assert open_files() == before[1]
        assert list(temporary.iterdir()) == []
        if instrument.steps_left > 0:
            break
    else:
        pytest.fail("it never survived")
    assert step > 15


# Starts that fail


async def test_a_bad_parameter_is_reported_in_the_servers_words() -> None:
    with pytest.raises(HyperdError, match=r"exit status 1(.|\n)*bogus"):
        async with open_hyperd(parameters={"bogus": 1}):
            raise AssertionError


async def test_a_server_that_exits_at_once_is_reported(tmp_path: Path) -> None:
    hyperd = script(tmp_path, "#!/bin/sh\necho some words >&2\nexit 3\n")
    with pytest.raises(HyperdError, match=r"exit status 3(.|\n)*some words"):
        async with open_hyperd(hyperd):
            raise AssertionError


async def test_what_is_no_program_is_reported(tmp_path: Path) -> None:
    hyperd = script(tmp_path, "nothing that a kernel knows")
    with pytest.raises(HyperdError, match="could not be started") as caught:
        async with open_hyperd(hyperd):
            raise AssertionError
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOEXEC


async def test_a_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HyperdError, match="could not be started"):
        async with open_hyperd(log_dir=tmp_path / "file" / "log"):
            raise AssertionError


async def test_a_server_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    hyperd = script(
        tmp_path, f"#!/bin/sh\nsleep 1000 &\necho $! > {pid_file}\nsleep 1000\n"
    )
    with (
        trio.fail_after(5),
        pytest.raises(HyperdError, match=r"within start_timeout=0\.5 seconds"),
    ):
        async with open_hyperd(hyperd, start_timeout=0.5):
            raise AssertionError
    assert eventually(lambda: not is_running(int(pid_file.read_text())))


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in status_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("time.sleep(1000)", "did not say where it listens"),
        ("c.sendall(b'\\x20tab.'); time.sleep(1000)", "did not say where it listens"),
        ("say(b'garbage\\0'); time.sleep(1000)", "it said b'garbage"),
        ("say(b'\\xff\\xfe\\0'); time.sleep(1000)", "it said b'"),
        ("say(b'tab.tcp://6.6.6.6:66\\0'); time.sleep(1000)", "it said b'tab.tcp"),
        ("say(b'a,b\\0'); time.sleep(1000)", "it said b'a,b"),
        ("c.close(); time.sleep(1000)", "it said b''"),
        ("c.close(); sys.exit('oops')", r"exit status 1(.|\n)*oops"),
    ],
)
async def test_a_callback_that_makes_no_sense_is_reported(
    tmp_path: Path, then: str, expected: str
) -> None:
    hyperd = calling_back(tmp_path, then)
    with trio.fail_after(5), pytest.raises(HyperdError, match=expected):
        async with open_hyperd(hyperd, start_timeout=1):
            raise AssertionError


async def test_another_port_than_the_one_asked_for_makes_no_sense(
    tmp_path: Path,
) -> None:
    hyperd = calling_back(
        tmp_path, "say(b'tab.tcp://127.0.0.1:8\\0'); time.sleep(1000)"
    )
    with pytest.raises(HyperdError, match="it said"):
        async with open_hyperd(hyperd, tcp=True, port=9):
            raise AssertionError


# Ends that fail


async def test_a_server_that_does_not_end_is_terminated(tmp_path: Path) -> None:
    hyperd = calling_back(tmp_path, "say_ready(); time.sleep(1000)")
    with (
        trio.fail_after(5),
        pytest.raises(HyperdError, match="killed by SIGTERM"),
    ):
        async with open_hyperd(hyperd, stop_timeout=0.1):
            pass


async def test_a_server_that_does_not_even_terminate_is_killed(tmp_path: Path) -> None:
    hyperd = calling_back(
        tmp_path,
        "signal.signal(15, signal.SIG_IGN); say_ready(); time.sleep(1000)",
    )
    with (
        trio.fail_after(10),
        pytest.raises(HyperdError, match="what it had not written is lost"),
    ):
        async with open_hyperd(hyperd, stop_timeout=0.1):
            pass


async def test_a_bad_end_is_reported_but_not_in_place_of_a_cancellation(
    tmp_path: Path,
) -> None:
    hyperd = calling_back(tmp_path, "say_ready(); c.recv(1); sys.exit('disk full')")
    with pytest.raises(HyperdError, match=r"exit status 1(.|\n)*disk full"):
        async with open_hyperd(hyperd):
            pass
    with trio.CancelScope() as scope:
        async with open_hyperd(hyperd):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_stderr_never_blocks_the_server_and_only_its_end_is_kept(
    tmp_path: Path,
) -> None:
    hyperd = calling_back(
        tmp_path,
        "for i in range(20000): print('line', i, file=sys.stderr)\n"
        "say_ready(); sys.exit(1)",
    )
    with pytest.raises(HyperdError) as caught:
        async with open_hyperd(hyperd):
            await trio.sleep_forever()
    assert "line 19999" in str(caught.value)
    assert len(str(caught.value)) < 1000


# The life of our own process

PROGRAM = """
import psycopg, signal, sys, trio
from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._server import open_hyperd

# A run under nohup ignores it, and so would its children.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

async def main():
    async with open_hyperd() as hyperd:
        address = dict(parse_endpoint(hyperd.endpoint).conninfo(), user=hyperd.user)
        with psycopg.connect(**address, autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{sys.argv[1]}"')
        conn = psycopg.connect(**address, dbname=sys.argv[1], autocommit=True)
        conn.execute("CREATE TABLE t AS SELECT 42 AS a")
        print(hyperd.pid, hyperd.log_dir, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def run_program(db: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, db],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
async def test_the_server_ends_in_good_order_when_our_process_is_killed(
    number: signal.Signals, db: str
) -> None:
    with run_program(db) as process:
        assert process.stdout is not None
        pid, log_dir = process.stdout.readline().split(maxsplit=1)
        process.send_signal(number)
        process.wait(10)
    assert eventually(lambda: not is_running(int(pid)))
    # The dead cannot remove their directory, but the server takes its socket away.
    private = Path(log_dir.strip()).parent
    assert [path.name for path in private.iterdir()] == ["log"]
    shutil.rmtree(private)
    async with open_hyperd() as hyperd:
        with connect(hyperd, dbname=db) as conn:
            assert conn.execute("SELECT a FROM t").fetchall() == [(42,)]


def test_ctrl_c_ends_the_server_and_comes_out(db: str) -> None:
    with run_program(db) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pid, log_dir = process.stdout.readline().split(maxsplit=1)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        last_line = process.stderr.read().splitlines()[-1]
    assert last_line == "KeyboardInterrupt"
    assert not is_running(int(pid))
    assert not Path(log_dir.strip()).exists()


def test_ctrl_c_at_any_moment_of_start_and_stop_leaves_nothing_behind(
    temporary: Path,
) -> None:
    """In this process: the signal is raised after the k-th step."""

    class InterruptAtStep(trio.abc.Instrument):
        def __init__(self, step: int) -> None:
            self.steps_left = step

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps_left -= 1
            if self.steps_left == 0:
                signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with open_hyperd():
            await trio.lowlevel.checkpoint()

    before = children()
    for step in range(1, 500):
        instrument = InterruptAtStep(step)
        with contextlib.suppress(KeyboardInterrupt):
            trio.run(main, instruments=[instrument])
        assert children() == before
        assert list(temporary.iterdir()) == []
        if instrument.steps_left > 0:
            break
    else:
        pytest.fail("it never survived")
    assert step > 15


@pytest.mark.parametrize(
    "then",
    [
        "signal.signal(15, signal.SIG_IGN); say_ready(); time.sleep(1000)",
        "say_ready(); c.close(); time.sleep(1000)",
    ],
)
def test_a_second_ctrl_c_while_stopping_kills(tmp_path: Path, then: str) -> None:
    hyperd = calling_back(tmp_path, then)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt_twice)
            async with open_hyperd(hyperd, stop_timeout=math.inf):
                await trio.sleep(0.1)  # until it has hung up, if it does

    @trio.lowlevel.enable_ki_protection  # so that it is raised in the main task
    async def interrupt_twice() -> None:
        await trio.sleep(0.5)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep(0.2)
        signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    with pytest.RaisesGroup(KeyboardInterrupt):
        trio.run(main)
    assert time.monotonic() - started < 3


# Arguments


def test_the_binary_is_found_by_argument_environment_and_package(
    hyperd_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HYPERD_PATH", raising=False)
    open_hyperd(hyperd_path)
    open_hyperd(str(hyperd_path.parent))
    empty = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    for spec in None, empty:
        monkeypatch.setattr("importlib.util.find_spec", lambda _, spec=spec: spec)
        with pytest.raises(HyperdError, match=r"pip install 'trio-hyperpool\[hyperd\]"):
            open_hyperd()
    monkeypatch.setenv("HYPERD_PATH", str(hyperd_path))
    open_hyperd()
    monkeypatch.setenv("HYPERD_PATH", str(hyperd_path.parent))
    open_hyperd()
    monkeypatch.setenv("HYPERD_PATH", str(tmp_path))
    with pytest.raises(HyperdError, match="HYPERD_PATH="):
        open_hyperd()


def test_looking_for_the_binary_does_not_import_its_package() -> None:
    code = (
        "import sys; from trio_hyperpool._server import open_hyperd; open_hyperd();"
        "assert 'tableauhyperapi' not in sys.modules"
    )
    path = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


async def test_a_long_tmpdir_is_not_used_for_the_socket(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    async with open_hyperd() as hyperd:
        assert hyperd.endpoint.startswith("tab.domain:///tmp/hyperd-")
        connect(hyperd).close()
    long.rmdir()


async def test_relative_directories_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="r") as directory:
        monkeypatch.chdir(directory)
        async with open_hyperd(socket_dir="s/../t", log_dir="log") as hyperd:
            assert hyperd.log_dir == Path(directory, "log")
            connect(hyperd).close()
        monkeypatch.chdir(tmp_path)
