"""In whatever order psycopg and trio-asyncio are imported, asyncio drivers work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow
needs_trio_asyncio = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="trio-asyncio does not work on this Python"
)

PROGRAM = """
import sys, trio
from trio_hyperpool import open_pool, aio

def connector():
    return aio.AsyncioConnector(
        connect=lambda: psycopg.AsyncConnection.connect(sys.argv[1], autocommit=True),
        close=lambda driver: driver.close(),
    )

async def main():
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        cursor = await conn.execute({query!r})
        print(*await cursor.fetchone(), flush=True)

trio.run(main)
"""

BUSY = """
import psycopg, trio, trio.testing

async def tell():
    await trio.testing.wait_all_tasks_blocked(0.05)
    print("now", flush=True)
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def conninfo(hyperd: Any) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo("", **hyperd.conninfo)


@pytest.mark.hyperd
@needs_trio_asyncio
@pytest.mark.parametrize("first", ["psycopg", "trio_asyncio", "trio_hyperpool.aio"])
def test_the_order_of_imports_makes_no_difference(hyperd: Any, first: str) -> None:
    order = f"import {first}, psycopg\n"
    if first == "trio_asyncio":
        order = f"import warnings\nwarnings.simplefilter('ignore')\n{order}"
    program = order + PROGRAM.format(query="SELECT 1")
    done = run_python(program, conninfo(hyperd))
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_nothing_imports_trio_asyncio_before_it_is_asked_for() -> None:
    done = run_python(
        "import sys, pkgutil, asyncio, trio_hyperpool\n"
        "policy = asyncio.get_event_loop_policy\n"
        "import trio_hyperpool.testing, trio_hyperpool._cli\n"
        "assert 'trio_asyncio' not in sys.modules\n"
        "assert asyncio.get_event_loop_policy is policy"
    )
    assert done.returncode == 0, done.stderr


def test_other_tests_have_asyncio_as_it_was() -> None:
    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    import asyncio

    assert asyncio.run(name()).startswith("asyncio.")


@pytest.mark.hyperd
@needs_trio_asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_ends_a_query_and_the_program(hyperd: Any) -> None:
    query = (
        "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
        "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
    )
    # trio-asyncio is not proof against one in the middle of its own steps.
    program = BUSY + PROGRAM.format(query=query).replace(
        "        cursor =",
        "        trio.lowlevel.spawn_system_task(tell)\n        cursor =",
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, conninfo(hyperd)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGINT)
        try:
            process.wait(10)
        finally:
            process.kill()
        assert process.stderr.read().splitlines()[-1] == "KeyboardInterrupt"
