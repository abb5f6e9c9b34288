"""A real hyperd for the session, and a fresh database path for each test."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._errors import HyperdError
from trio_hyperpool._server import Hyperd, _find_executable, open_hyperd


@dataclass(frozen=True)
class Server:
    """A running hyperd, for tests with and without trio."""

    endpoint: str
    pid: int
    user: str
    log_dir: Path

    @property
    def conninfo(self) -> dict[str, str]:
        """Parameters for ``psycopg.connect``, without a database."""
        return {**parse_endpoint(self.endpoint).conninfo(), "user": self.user}


class _Session(threading.Thread):
    """Runs ``open_hyperd`` in a trio of its own, as fixtures of pytest-trio live for
    one test only."""

    def __init__(self) -> None:
        super().__init__(name="hyperd for the session")
        self.ready = threading.Event()
        self.hyperd: Hyperd | None = None
        self.error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._enough: trio.Event | None = None

    def run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: ASYNC103, BLE001  raised by stop()
            self.error = error
        finally:
            self.ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._enough = trio.Event()
        async with open_hyperd() as self.hyperd:
            self.ready.set()
            await self._enough.wait()

    def stop(self) -> None:
        if self._token is not None and self._enough is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._enough.set)
        self.join()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="session")
def hyperd_path() -> Path:
    """The hyperd that `open_hyperd` finds by itself."""
    try:
        return _find_executable(None)
    except HyperdError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def hyperd(hyperd_path: Path) -> Generator[Server]:
    """A hyperd for the whole session."""
    session = _Session()
    session.start()
    session.ready.wait()
    if session.hyperd is not None:
        yield Server(
            endpoint=session.hyperd.endpoint,
            pid=session.hyperd.pid,
            user=session.hyperd.user,
            log_dir=session.hyperd.log_dir,
        )
    session.stop()


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The path of a database that does not exist yet."""
    return os.path.realpath(tmp_path / "test.hyper")
