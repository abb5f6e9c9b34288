"""What tests of an application need: fixtures, fakes, and a look for leaks.

Put ``pytest_plugins = ["trio_hyperpool.testing"]`` into the topmost ``conftest.py``,
and pytest-trio's tests have the fixtures ``hyperd`` and ``hyper_pool``. Wants pytest and
pytest-trio.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
import trio

from ._config import CreateMode, PoolOptions
from ._conformance import ConnectorConformance, Trace, Trial
from ._errors import HyperdError
from ._fakes import FakeConnection, FakeConnector, FakeSession, Gate
from ._hyper_connection import HyperConnection
from ._launch import find_executable
from ._pool import Pool
from ._running import open_pool
from ._server import Hyperd, open_hyperd

__all__ = [
    "ConnectorConformance",
    "FakeConnection",
    "FakeConnector",
    "FakeSession",
    "Gate",
    "Trace",
    "Trial",
    "assert_at_rest",
    "hyper_pool",
    "hyper_pool_options",
    "hyperd",
]


async def assert_at_rest(pool: Pool[Any], *, within: float = 5.0) -> None:
    """Raise `AssertionError` if anybody still has a connection, or waits for one.

    A checkpoint. What the pool itself is busy with (opening, cleaning and closing
    connections) may take a while; leases may not.

    Args:
        pool: any pool.
        within: seconds for the pool's own tasks.
    """
    await trio.lowlevel.checkpoint()
    before = pool.statistics()
    if before.leased or before.waiting:
        raise AssertionError(f"the pool is not at rest:\n{before}")
    with trio.move_on_after(within):
        # A pool tells nobody that it is at rest, and a test has the time to ask.
        while (now := pool.statistics()).size != now.idle:  # noqa: ASYNC110
            await trio.sleep(0.001)
        return
    raise AssertionError(f"the pool is busy after {within:g} s:\n{pool.statistics()}")


class _Background(threading.Thread):
    """A `hyperd` in a trio of its own: fixtures of pytest-trio live for one test."""

    def __init__(self) -> None:
        super().__init__(name="hyperd for the session")
        self.is_decided = threading.Event()
        self.hyperd: Hyperd | None = None
        self.error: BaseException | None = None
        self._wake: Any = None

    def run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised in the fixture
            self.error = error
        finally:
            self.is_decided.set()

    async def _serve(self) -> None:
        token, enough = trio.lowlevel.current_trio_token(), trio.Event()
        self._wake = lambda: token.run_sync_soon(enough.set)
        async with open_hyperd() as self.hyperd:
            self.is_decided.set()
            await enough.wait()

    def stop(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._wake()
        self.join()
        if self.error is not None:
            raise self.error


def _hyperd_in_background() -> Generator[Hyperd]:
    background = _Background()
    background.start()
    background.is_decided.wait()
    if background.hyperd is not None:
        yield background.hyperd
    background.stop()


@pytest.fixture(scope="session")
def hyperd() -> Generator[Hyperd]:
    """A running ``hyperd`` for the whole session; skips where there is none."""
    try:
        find_executable(None)
    except HyperdError as error:
        pytest.skip(str(error))
    yield from _hyperd_in_background()


@pytest.fixture
def hyper_pool_options() -> PoolOptions:
    """Options of ``hyper_pool``; override it to have others."""
    return {}


@pytest.fixture
async def hyper_pool(
    hyperd: Hyperd, tmp_path: Path, hyper_pool_options: PoolOptions
) -> AsyncGenerator[Pool[HyperConnection]]:
    """A pool over a new, empty database; fails a test that leaves a lease behind."""
    options: PoolOptions = {
        "create_mode": CreateMode.CREATE,
        "user": hyperd.user,
        **hyper_pool_options,
    }
    async with open_pool(hyperd.endpoint, tmp_path / "test.hyper", **options) as pool:
        yield pool
        await assert_at_rest(pool)
