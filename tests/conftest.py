"""A real hyperd for the session, and a fresh database path for each test."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests._aio import asyncio_on_trio
from tests._postgres_server import Postgres, private_folder, running
from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._errors import HyperdError
from trio_hyperpool._launch import find_executable
from trio_hyperpool._server import Hyperd

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As shells have it in the background; programs that tests interrupt inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["trio_hyperpool.testing", "pytester"]


@dataclass(frozen=True)
class Server(Hyperd):
    """A running hyperd, and how stock psycopg connects to it."""

    @property
    def conninfo(self) -> dict[str, str]:
        """Parameters for ``psycopg.connect``, without a database."""
        return {**parse_endpoint(self.endpoint).conninfo(), "user": self.user}


def with_conninfo(hyperd: Hyperd) -> Server:
    return Server(hyperd.endpoint, hyperd.user, hyperd.pid, hyperd.log_dir)


@pytest.fixture(scope="session")
def hyperd_path() -> Path:
    """The hyperd that `open_hyperd` finds by itself."""
    try:
        return find_executable(None)
    except HyperdError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def hyperd(hyperd: Hyperd) -> Server:
    """The fixture of the plug-in, for tests that do without a pool, too."""
    return with_conninfo(hyperd)


@pytest.fixture(scope="module")
def own_hyperd(hyperd_path: Path) -> Generator[Server]:
    """A hyperd for one module, whose tests leave it with more than it can bear.

    It may keep a session for ever whose client went away while it was being sent rows.
    """
    # Not before pytest has loaded the plug-in.
    from trio_hyperpool.testing import _hyperd_in_background

    yield from map(with_conninfo, _hyperd_in_background())


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The path of a database that does not exist yet."""
    return os.path.realpath(tmp_path / "test.hyper")


@pytest.fixture(scope="session")
def postgres() -> Generator[Postgres]:
    """A PostgreSQL for the session; skips where there is none."""
    with private_folder() as folder, running(folder) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_env(postgres: Postgres) -> dict[str, str]:
    """The PG* variables of the session's PostgreSQL."""
    return {
        "PGHOST": "127.0.0.1",
        "PGPORT": f"{postgres.port}",
        "PGUSER": "tester",
        "PGDATABASE": "postgres",
    }


@pytest.fixture(scope="module")
def aio() -> Generator[ModuleType]:
    """`trio_hyperpool.aio`, for a module of tests; the others have asyncio as it was."""
    with asyncio_on_trio():
        try:
            module = importlib.import_module("trio_hyperpool.aio")
        except ImportError as error:
            pytest.skip(str(error))
        yield module
