"""``python benchmarks/bulk.py``: many rows out and in, beside what others take.

Rows of (int, text, double, timestamp) go out of and into one hyperd. Each way runs in
turn, all of them several times, and the median counts. A ratio is ours / theirs.
"""

# ruff: noqa: D102 - what a way does is said by its name

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import tableauhyperapi as hyper
import trio

from trio_hyperpool import CreateMode, HyperConnection, open_hyperd, open_pool
from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool.arrow import fetch_arrow, insert_arrow

SCHEMA = {
    "number": "integer",
    "text": "text",
    "price": "double precision",
    "time": "timestamp",
}
QUERY = "SELECT * FROM source"
INSERT = "INSERT INTO sink VALUES (%s, %s, %s, %s)"
COPY = "COPY sink FROM STDIN WITH (FORMAT csv)"
EXECUTEMANY_ROWS = 5_000

Way = Callable[[], Awaitable[float]]


async def timed(work: Awaitable[int], rows: int) -> float:
    """Time what says how many rows it moved: a way that moves none is fast."""
    started = time.perf_counter()
    moved = await work
    elapsed = time.perf_counter() - started
    if moved != rows:
        raise AssertionError(f"moved {moved} rows, not {rows}")
    return elapsed


async def fetch_rows(
    connection: psycopg.AsyncConnection[Any], *, binary: bool = False
) -> int:
    cursor = await connection.execute(QUERY, binary=binary)
    return len(await cursor.fetchall())


async def fetch_table(connection: HyperConnection[Any]) -> int:
    return int((await fetch_arrow(connection, QUERY)).num_rows)


async def copy_csv(connection: psycopg.AsyncConnection[Any], data: bytes) -> int:
    cursor = connection.cursor()
    async with cursor.copy(COPY) as copy:
        for start in range(0, len(data), 1 << 18):
            await copy.write(data[start : start + (1 << 18)])
    return cursor.rowcount


async def insert_many(
    connection: psycopg.AsyncConnection[Any], rows: list[tuple[Any, ...]]
) -> int:
    cursor = connection.cursor()
    async with connection.transaction():
        await cursor.executemany(INSERT, rows)
    return cursor.rowcount


class Bulk:
    """Every way out and in, over one server and one database."""

    def __init__(
        self, connection: HyperConnection[Any], conninfo: dict[str, Any], rows: int
    ) -> None:
        self.connection = connection
        self.conninfo = conninfo
        self.count = rows
        start = datetime(2020, 1, 1)  # noqa: DTZ001 - a timestamp without a zone
        self.rows = [
            (number, f"text {number}", number * 0.5, start + timedelta(seconds=number))
            for number in range(rows)
        ]
        csv = io.StringIO()
        for row in self.rows:
            csv.write(f"{row[0]},{row[1]},{row[2]},{row[3]}\n")
        self.csv = csv.getvalue().encode()
        self.data: Any = None

    async def prepare(self) -> None:
        await self.connection.create_table("source", SCHEMA)
        await self.connection.create_table("sink", SCHEMA)
        async with self.connection.cursor().copy(
            "COPY source FROM STDIN WITH (FORMAT csv)"
        ) as copy:
            await copy.write(self.csv)
        self.data = await fetch_arrow(self.connection, QUERY)

    async def stock(
        self, work: Callable[..., Awaitable[int]], *args: Any, rows: int
    ) -> float:
        async def run() -> float:
            async with await psycopg.AsyncConnection.connect(
                **self.conninfo, autocommit=True, prepare_threshold=None
            ) as connection:
                return await timed(work(connection, *args), rows)

        return await trio.to_thread.run_sync(asyncio.run, run())

    async def api(self, work: Callable[[Any], int]) -> float:
        """Run something of tableauhyperapi, on a server and a file of its own."""

        def run() -> float:
            nothing = hyper.Telemetry.DO_NOT_SEND_USAGE_DATA_TO_TABLEAU
            with (
                tempfile.TemporaryDirectory() as folder,
                hyper.HyperProcess(nothing, parameters={"log_config": ""}) as server,
                hyper.Connection(
                    server.endpoint,
                    str(Path(folder) / "api.hyper"),
                    hyper.CreateMode.CREATE_AND_REPLACE,
                ) as connection,
            ):
                for table in ("source", "sink"):
                    columns = ", ".join(map(" ".join, SCHEMA.items()))
                    connection.execute_command(f"CREATE TABLE {table} ({columns})")
                if work == self.read:
                    self.insert(connection, "source")
                started = time.perf_counter()
                moved = work(connection)
                elapsed = time.perf_counter() - started
                if moved != self.count:
                    raise AssertionError(f"moved {moved} rows, not {self.count}")
                return elapsed

        return await trio.to_thread.run_sync(run)

    def read(self, connection: Any) -> int:
        return len(connection.execute_list_query(QUERY))

    def insert(self, connection: Any, table: str = "sink") -> int:
        with hyper.Inserter(connection, table) as inserter:
            inserter.add_rows(self.rows)
            inserter.execute()
        return int(connection.execute_scalar_query(f"SELECT count(*) FROM {table}"))

    def ways(self) -> dict[str, dict[str, Way]]:
        ours, few = self.connection, self.rows[:EXECUTEMANY_ROWS]
        rows, many = self.count, len(few)
        return {
            "out": {
                "fetchall": lambda: timed(fetch_rows(ours), rows),
                "binary=True": lambda: timed(fetch_rows(ours, binary=True), rows),
                "fetch_arrow": lambda: timed(fetch_table(ours), rows),
                "stock psycopg": lambda: self.stock(fetch_rows, rows=rows),
                "tableauhyperapi": lambda: self.api(self.read),
            },
            "in": {
                "insert_arrow": lambda: timed(
                    insert_arrow(ours, "sink", self.data), rows
                ),
                "copy, CSV": lambda: timed(copy_csv(ours, self.csv), rows),
                "stock psycopg": lambda: self.stock(copy_csv, self.csv, rows=rows),
                "tableauhyperapi": lambda: self.api(self.insert),
            },
            "in, row by row": {
                "executemany": lambda: timed(insert_many(ours, few), many),
                "stock psycopg": lambda: self.stock(insert_many, few, rows=many),
            },
        }


RIVALS = ("fetchall", "stock psycopg", "tableauhyperapi")


def report(direction: str, times: dict[str, list[float]]) -> None:
    """Print a row for each way: its ratio to each rival, turn by turn."""
    for way, seconds in times.items():
        cells = [f"{statistics.median(seconds):.2f}"]
        for rival in RIVALS:
            if way == rival or rival not in times:
                cells.append("")
                continue
            ratios = [
                ours / other for ours, other in zip(seconds, times[rival], strict=True)
            ]
            cells.append(
                f"{statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )
        print(f"| {direction} | {way} | {' | '.join(cells)} |", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "bulk.hyper")
        async with (
            open_hyperd() as server,
            open_pool(server.endpoint, path, create_mode=CreateMode.CREATE) as pool,
            pool.lease() as connection,
        ):
            where = parse_endpoint(server.endpoint).conninfo()
            conninfo = {**where, "dbname": path, "user": server.user}
            bulk = Bulk(connection, conninfo, options.rows)
            await bulk.prepare()
            print(
                f"{options.rows:,} rows of (int, text, double, timestamp), "
                f"{options.turns} turns. `executemany` sent {EXECUTEMANY_ROWS:,} of "
                "them; its times stand for all.\n"
            )
            heads = " | ".join(f"way / {rival}" for rival in RIVALS)
            print(f"| | way | seconds | {heads} |")
            print("|---|---|---|---|---|---|")
            inserter: list[float] = []
            for direction, ways in bulk.ways().items():
                times: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(options.turns):
                    for way, run in ways.items():
                        times[way].append(await run())
                        await connection.execute("DELETE FROM sink")
                if direction == "in, row by row":
                    scale = options.rows / EXECUTEMANY_ROWS
                    times = {
                        way: [scale * turn for turn in some]
                        for way, some in times.items()
                    }
                    # The inserter is the rival of everything that goes in.
                    times["tableauhyperapi"] = inserter
                inserter = times.get("tableauhyperapi", inserter)
                report(direction, times)


if __name__ == "__main__":
    trio.run(main)
