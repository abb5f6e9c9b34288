"""What Ctrl-C and a killed process leave of a pool and its private server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests._wire import eventually, is_alive

pytestmark = [
    pytest.mark.hyperd,
    pytest.mark.slow,
    pytest.mark.usefixtures("hyperd_path"),
]

PRELUDE = """
import os, signal, sys, threading, time
import trio
from trio_hyperpool import *

path, delay = sys.argv[1], float(sys.argv[2])
MINUTES = (
    "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
    "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
)

def say(word):
    print(word, flush=True)

def interrupt():
    # Sent to the process as by a terminal, some time from now.
    def send():
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=send, daemon=True).start()

def pool_of(**options):
    return open_pool(
        database=path, create_mode=CreateMode.CREATE_IF_NOT_EXISTS, **options
    )
"""

EPILOGUE = """
try:
    trio.run(main)
except BaseException as error:
    # Only the program's own nursery may have wrapped it.
    word = "interrupted"
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
        word = "interrupted in a group"
    if type(error) is not KeyboardInterrupt or error.__cause__ is not None:
        raise
    say(word)
else:
    say("ended")
"""

BODIES = {
    "opening": """
    interrupt()
    async with pool_of(min_idle=2) as pool:
        async with pool.lease(), pool.lease(), pool.lease():
            await trio.sleep_forever()
""",
    "waiting": """
    async with pool_of(max_size=1) as pool:
        async with pool.lease(), trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(pool.execute, "SELECT 1")
            interrupt()
            await trio.sleep_forever()
""",
    "in a lease": """
    async with pool_of() as pool:
        async with pool.lease() as connection, connection.transaction():
            await connection.execute("CREATE TABLE t (x int)")
            interrupt()
            await trio.sleep_forever()
""",
    "in a query": """
    async with pool_of() as pool:
        await pool.execute("SELECT 1")
        interrupt()
        await pool.execute(MINUTES)
""",
    "in queries of tasks": """
    async with pool_of() as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(pool.execute, MINUTES)
            await trio.sleep(0.1)
            interrupt()
""",
    "busy": """
    async with pool_of(max_size=2) as pool:
        interrupt()
        while True:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(pool.execute, "SELECT 1")
                x = sum(range(1000))
""",
    "in no task of trio's": """
    async with pool_of() as pool:
        await pool.execute("SELECT 1")
        interrupt()
        while True:
            pass
""",
    "quiescing": """
    async with pool_of() as pool:
        await pool.execute("CREATE TABLE t (x int)")
        interrupt()
        while True:
            await pool.execute("INSERT INTO t VALUES (1)")
            await pool.flush()
""",
    "closing": """
    async with pool_of(max_size=8) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(pool.execute, "SELECT 1")
        interrupt()
""",
    "closing with a lease out": """
    async def hold(pool, task_status):
        try:
            async with pool.lease() as connection:
                task_status.started()
                await connection.execute(MINUTES)
        except LeaseRevokedError:
            pass
    async with trio.open_nursery() as nursery:
        async with pool_of(close_timeout=1) as pool:
            await nursery.start(hold, pool)
            interrupt()
""",
}


def program(body: str) -> str:
    return f"{PRELUDE}\nasync def main():\n{body}\n{EPILOGUE}"


def start(tmp_path: Path, body: str, delay: float) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(program(body))
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "test.hyper"), str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            # Where an interrupt meets coverage's own clean-up is no matter of ours.
            **{k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )


def hyperds_of(tmp_path: Path) -> set[int]:
    """Servers of the program: their arguments have a directory of its own."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if os.fsencode(tmp_path) in command and b"hyperd" in command:
                found.add(int(path.parent.name))
    return found


@pytest.fixture
def short_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a path short enough for a socket, which is told from others."""
    return tmp_path_factory.mktemp("i")


DELAYS = [0.0, 0.01, 0.03]
ENDS_OF_ITSELF = {"closing", "closing with a lease out"}


@pytest.mark.slow
@pytest.mark.parametrize("where", BODIES)
def test_an_interrupt_comes_out_as_itself_and_leaves_no_server(
    short_tmp_path: Path, where: str
) -> None:
    with contextlib.ExitStack() as stack:
        processes = []
        for delay in DELAYS:
            folder = short_tmp_path / f"{delay}"
            folder.mkdir()
            process = stack.enter_context(start(folder, BODIES[where], delay))
            stack.callback(process.kill)
            processes.append(process)
        results = [process.communicate(timeout=20) for process in processes]
    for out, err in results:
        allowed = {"interrupted"}
        if "open_nursery" in BODIES[where]:
            allowed.add("interrupted in a group")
        if where in ENDS_OF_ITSELF:
            allowed.add("ended")
        assert out.strip() in allowed, err
        # Whatever was going on in there, nothing else was said about it.
        assert err == ""
    assert eventually(lambda: not hyperds_of(short_tmp_path))
    assert not list(short_tmp_path.rglob("hyperd-*"))


@pytest.mark.slow
def test_a_second_interrupt_while_closing_does_not_break_it(
    short_tmp_path: Path,
) -> None:
    process = start(
        short_tmp_path,
        """
    async with pool_of(max_size=4) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(pool.execute, "SELECT 1")
        say("ready")
        await trio.sleep_forever()
""",
        0,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert "interrupted" in out, err
    assert eventually(lambda: not hyperds_of(short_tmp_path))


@pytest.mark.parametrize("where", ["in a lease", "in a query"])
def test_a_killed_process_leaves_no_server(short_tmp_path: Path, where: str) -> None:
    body = BODIES[where].replace("interrupt()", 'say("ready")')
    with start(short_tmp_path, body, 0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        servers = hyperds_of(short_tmp_path)
        assert servers
        process.kill()
        process.communicate()
    assert eventually(lambda: not any(map(is_alive, servers)))
    assert not hyperds_of(short_tmp_path)


def test_what_a_killed_process_had_committed_is_on_disk(short_tmp_path: Path) -> None:
    """Its server sees its end, and writes."""
    body = """
    async with pool_of() as pool:
        await pool.execute("CREATE TABLE t (x int)")
        await pool.execute("INSERT INTO t VALUES (1)")
        say("ready")
        await trio.sleep_forever()
"""
    with start(short_tmp_path, body, 0) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        process.communicate()
    assert eventually(lambda: not hyperds_of(short_tmp_path))
    body = """
    async with pool_of() as pool:
        say(await pool.fetch_value("SELECT count(*) FROM t"))
"""
    with start(short_tmp_path, body, 0) as process:
        out, err = process.communicate(timeout=20)
    assert out.splitlines()[0] == "1", err
