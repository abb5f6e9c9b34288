"""The example service, run as a process and asked over HTTP, loses nothing at its end."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import trio_hyperpool
from tests._wire import is_alive, until
from trio_hyperpool import CreateMode, open_pool

httpx = pytest.importorskip("httpx", reason="needs the dependency group `examples`")
pytest.importorskip("quart_trio", reason="needs the dependency group `examples`")

pytestmark = pytest.mark.slow

APP: Final = Path(__file__).parents[1] / "examples" / "service" / "app.py"
POPULATE: Final = (
    "INSERT INTO places SELECT 'p' || n, n % 100, n / 100 "
    "FROM generate_series(1, 6000) g(n)"
)
READERS: Final = 6  # with four connections, some of them wait for one
WRITERS: Final = 30


@dataclass
class Service:
    """The running example."""

    process: trio.Process
    url: str
    log: Path

    @property
    def servers(self) -> set[int]:
        """The child processes: its private hyperd."""
        found: set[int] = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            found.update(map(int, (task / "children").read_text().split()))
        return found


@asynccontextmanager
async def serving(database: str, log: Path) -> AsyncGenerator[Service]:
    """Run the example on a free port; it has to end by itself."""
    package = Path(trio_hyperpool.__file__).parents[1]
    async with trio.open_nursery() as nursery:
        with log.open("w") as out:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, APP, database, "--bind", "127.0.0.1:0"],
                    env={**os.environ, "PYTHONPATH": str(package)},
                    stdout=out,
                    stderr=out,
                    check=False,
                )
            )
        running = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
        await until(
            lambda: (
                running.search(log.read_text()) is not None
                or process.poll() is not None
            ),
            seconds=30,
        )
        url = running.search(log.read_text())
        assert url is not None, log.read_text()
        yield Service(process, url[1], log)
        with trio.move_on_after(30):
            await process.wait()
        nursery.cancel_scope.cancel()


async def is_refused(client: Any) -> bool:
    """Whether nobody listens any more."""
    try:
        await client.get("/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass  # of a connection that was being closed
    return False


async def at_least(number: int, count: Callable[[], Awaitable[int]]) -> bool:
    """Whether there are so many."""
    return await count() >= number


async def becomes(asked: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes."""
    with trio.fail_after(30):
        while not await asked():  # noqa: ASYNC110  it is another process that is asked
            await trio.sleep(0.01)


@pytest.mark.hyperd
async def test_a_service_that_is_told_to_end_answers_what_it_was_asked(
    hyperd_path: Path, db: str, tmp_path: Path
) -> None:
    async with open_pool(database=db, create_mode=CreateMode.CREATE) as pool:
        await pool.execute(
            "CREATE TABLE places (place text NOT NULL, "
            "x double precision NOT NULL, y double precision NOT NULL)"
        )
        await pool.execute(POPULATE)

    answers: dict[str, Any] = {}

    async with (
        serving(db, tmp_path / "service.log") as service,
        httpx.AsyncClient(
            base_url=service.url,
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        ) as client,
        trio.open_nursery() as nursery,
    ):

        async def ask(method: str, path: str, **options: Any) -> None:
            answers[path] = await client.request(method, path, **options)

        async def waiting() -> int:
            now: dict[str, int] = (await client.get("/health")).json()
            assert now["leased"] <= now["max_size"] == 4
            return now["waiting"]

        answer = await client.get("/places/p7")
        assert answer.json() == {"place": "p7", "x": 7.0, "y": 0.0}
        assert (await client.get("/places/nowhere")).status_code == 404

        # Long queries on every connection, and the rest of the requests behind them.
        for n in range(READERS):
            nursery.start_soon(ask, "GET", f"/pairs?nearer_than=1.{n}")
        await becomes(lambda: at_least(READERS - 4, waiting))
        for n in range(WRITERS):
            put = partial(ask, "PUT", f"/places/w{n}", json={"x": n, "y": n})
            nursery.start_soon(put)
        await becomes(lambda: at_least(WRITERS, waiting))

        servers = service.servers
        assert len(servers) == 1
        service.process.send_signal(signal.SIGTERM)
        await becomes(partial(is_refused, client))
        assert len(answers) < READERS  # it is in the middle of them

    assert len(answers) == READERS + WRITERS
    assert {answer.status_code for answer in answers.values()} == {200}
    assert service.process.returncode == 0, service.log.read_text()
    assert "Traceback" not in service.log.read_text()
    assert not any(map(is_alive, servers))

    # What was answered is on disk, too.
    async with open_pool(database=db) as pool:
        stored = await pool.fetch_all("SELECT place FROM places WHERE place LIKE 'w%%'")
        assert {place for (place,) in stored} == {f"w{n}" for n in range(WRITERS)}
