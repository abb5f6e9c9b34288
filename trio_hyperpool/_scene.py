"""A pool with something to tell: what ``demo --watch`` plays."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import psycopg
import trio

from ._config import CreateMode
from ._demo import MINUTES
from ._errors import HyperdError, PoolError
from ._hyper import HyperConnection
from ._pool import Pool
from ._running import open_pool
from ._server import open_hyperd
from ._top import top
from .telemetry import live_view

MOMENT: Final = "SELECT sum(x) FROM generate_series(1, %s) s(x)"

QUIET = 7.0
"""Seconds between two crowds."""

LIFE = 24.0
"""Seconds until the server is killed."""

PORT: Final = 7483

_TROUBLE: Final = (PoolError, psycopg.Error)


async def watch() -> None:
    """Play the scene, and show it in the terminal until Ctrl-C. A checkpoint."""
    # Its troubles are meant, and would be logged all over the picture.
    logging.getLogger("trio_hyperpool").addHandler(logging.NullHandler())
    async with scene() as path:
        await top([path])


@contextlib.asynccontextmanager
async def scene() -> AsyncGenerator[Path]:
    """A shop's day in half a minute, over and over; gives the socket to watch it at.

    Clerks ask for little, all the time. Now and then an analyst's query takes minutes
    and its lease is revoked, a crowd wants a connection at once, and the server is
    killed and comes back.
    """
    with tempfile.TemporaryDirectory(prefix="trio-hyperpool-") as folder:
        place = Path(folder)
        async with trio.open_nursery() as nursery:
            endpoint = await nursery.start(_server, place)
            async with (
                open_pool(
                    endpoint,
                    place / "shop.hyper",
                    create_mode=CreateMode.CREATE_IF_NOT_EXISTS,
                    name="shop",
                    max_size=8,
                    wait_timeout=3,
                    max_lease=9,
                    create_timeout=3,
                ) as pool,
                live_view(pool) as path,
                trio.open_nursery() as people,
            ):
                for number in range(3):
                    people.start_soon(_clerk, pool, name=f"clerk {number + 1}")
                people.start_soon(_analyst, pool, name="analyst")
                people.start_soon(_crowds, pool)
                yield path
                people.cancel_scope.cancel()
            nursery.cancel_scope.cancel()


async def _server(  # noqa: ASYNC114 - started in a context manager only
    place: Path, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """A server that is killed every now and then, and comes back under its old name."""
    is_first = True
    while True:
        with contextlib.suppress(HyperdError):
            async with open_hyperd(socket_dir=place / "s", port=PORT) as hyperd:
                if is_first:
                    task_status.started(hyperd.endpoint)
                    is_first = False
                await trio.sleep(LIFE)
                os.kill(hyperd.pid, signal.SIGKILL)
                await trio.sleep_forever()
        await trio.sleep(1.5)


async def _clerk(pool: Pool[HyperConnection]) -> None:
    while True:
        with contextlib.suppress(*_TROUBLE):
            async with pool.lease() as connection:
                await connection.execute(MOMENT, (200_000,))
        await trio.sleep(0.02)


async def _analyst(pool: Pool[HyperConnection]) -> None:
    while True:
        await trio.sleep(3)
        with contextlib.suppress(*_TROUBLE):
            async with pool.lease() as connection:
                await connection.execute(MINUTES)


async def _crowds(pool: Pool[HyperConnection]) -> None:
    async def visitor() -> None:
        with contextlib.suppress(*_TROUBLE):
            async with pool.lease() as connection:
                await connection.execute(MOMENT, (100_000,))
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        while True:
            await trio.sleep(QUIET)
            for number in range(30):
                nursery.start_soon(visitor, name=f"visitor {number + 1}")
