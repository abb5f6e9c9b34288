"""A web service that answers from a ``.hyper`` file, and loses no request when it ends.

The block of the pool is around the server, and so outlives every request. At SIGTERM or
Ctrl-C the server takes no more connections, but answers what it was asked; when it has
returned, the block of the pool ends: every row is on disk, and a private ``hyperd`` gone.
"""

from __future__ import annotations

import argparse
import signal
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart.typing import ResponseReturnValue
from quart_trio import QuartTrio

from trio_hyperpool import (
    CreateMode,
    HyperConnection,
    Pool,
    PoolSaturatedError,
    open_pool,
)

PATIENCE = 30.0
"""Seconds that a request may take, its wait for a connection included."""

PLACES = (
    "CREATE TABLE IF NOT EXISTS places (place text NOT NULL, "
    "x double precision NOT NULL, y double precision NOT NULL)"
)
PAIRS = (
    "SELECT count(*) FROM places a, places b WHERE a.place < b.place "
    "AND (a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y) < %s"
)


def create_app(pool: Pool[HyperConnection]) -> QuartTrio:
    """Make the application: a few routes over one pool."""
    app = QuartTrio(__name__)

    @app.get("/places/<place>")
    async def where(place: str) -> ResponseReturnValue:
        with trio.fail_after(PATIENCE):
            row = await pool.fetch_one(
                "SELECT x, y FROM places WHERE place = %s", (place,)
            )
        if row is None:
            return {"error": f"no place named {place!r}"}, 404
        return {"place": place, "x": row[0], "y": row[1]}

    @app.put("/places/<place>")
    async def put(place: str) -> ResponseReturnValue:
        told = await request.get_json()

        async def replace(conn: HyperConnection) -> None:
            await conn.execute("DELETE FROM places WHERE place = %s", (place,))
            await conn.execute(
                "INSERT INTO places VALUES (%s, %s, %s)",
                (place, float(told["x"]), float(told["y"])),
            )

        with trio.fail_after(PATIENCE):
            await pool.run_transaction(replace)
        return {"place": place}

    @app.get("/pairs")
    async def pairs() -> ResponseReturnValue:
        """How many pairs of places are nearer to each other than that: a long query."""
        distance = request.args.get("nearer_than", default=1.0, type=float)
        with trio.fail_after(PATIENCE):
            return {"pairs": await pool.fetch_value(PAIRS, (distance**2,))}

    @app.get("/health")
    async def health() -> ResponseReturnValue:
        """What the pool is at; takes no connection."""
        now = pool.statistics()
        return {"leased": now.leased, "waiting": now.waiting, "max_size": now.max_size}

    @app.errorhandler(PoolSaturatedError)
    @app.errorhandler(trio.TooSlowError)
    async def busy(_error: Exception) -> ResponseReturnValue:
        return {"error": "busy, try again later"}, 503

    return app


async def asked_to_end() -> None:
    """Return at the first SIGTERM or Ctrl-C; a second one ends the process at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def main(database: str, endpoint: str | None, bind: str) -> None:
    """Serve until asked to end."""
    config = Config()
    config.bind = [bind]
    # A request that runs ends by its own deadline.
    config.graceful_timeout = PATIENCE + 1
    # A connection that is kept for the next request may be closed just as it comes.
    config.keep_alive_max_requests = 1
    async with open_pool(
        endpoint,
        database,
        create_mode=CreateMode.CREATE_IF_NOT_EXISTS,
        max_size=4,
        max_waiting=100,
    ) as pool:
        await pool.execute(PLACES)
        await serve(create_app(pool), config, shutdown_trigger=asked_to_end)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", help="path of the .hyper file, made if missing")
    parser.add_argument("--endpoint", help="of a hyperd; a private one if left out")
    parser.add_argument("--bind", default="127.0.0.1:8000", help="where to listen")
    options = parser.parse_args()
    trio.run(partial(main, **vars(options)))
