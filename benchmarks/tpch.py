"""``python benchmarks/tpch.py``: the 22 queries of TPC-H, by many tasks over one pool.

The data come from ``tpchgen-cli``, the queries from DuckDB's extension. Every answer is
compared with that of the same query on one connection, and those with DuckDB's.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_tpch
import trio
from psycopg import sql

from trio_hyperpool import CreateMode, HyperConnection, Pool, open_pool

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region")
TABLES += ("supplier",)

Answer = list[tuple[Any, ...]]
median = statistics.median


@dataclass(frozen=True)
class Outcome:
    """What was measured: queries a second, turn by turn."""

    one: list[float]
    many: list[float]
    answers: int

    @property
    def ratios(self) -> list[float]:
        """Many tasks over the pool, to one after another on one connection."""
        return [many / one for many, one in zip(self.many, self.one, strict=True)]


def generate(folder: Path, scale: float) -> None:
    program = Path(sys.executable).with_name("tpchgen-cli")
    subprocess.run(
        [program, "parquet", f"--scale-factor={scale}", f"--output-dir={folder}"],
        check=True,
        capture_output=True,
    )


def reference(folder: Path) -> tuple[list[str], list[Answer]]:
    """DuckDB's queries, and its answers to them."""
    package = Path(duckdb_extension_tpch.__file__).parent
    (extension,) = package.rglob("*.duckdb_extension")
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension}'")
        for table in TABLES:
            connection.execute(
                f"CREATE VIEW {table} AS FROM '{folder / table}.parquet'"
            )
        queries = connection.execute(
            "SELECT query FROM tpch_queries() ORDER BY query_nr"
        ).fetchall()
        texts = [text.rstrip().rstrip(";") for (text,) in queries]
        return texts, [connection.execute(text).fetchall() for text in texts]


async def load(connection: HyperConnection[Any], folder: Path) -> None:
    for table in TABLES:
        await connection.execute(
            sql.SQL("CREATE TABLE {} AS SELECT * FROM external({})").format(
                sql.Identifier(table), sql.Literal(f"{folder / table}.parquet")
            )
        )


def is_same(ours: Answer, theirs: Answer) -> bool:
    """Whether two servers agree: to six digits, which is where averages round."""
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(_agree, a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _agree(a: object, b: object) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a.rstrip() == b.rstrip()
    try:
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)  # type: ignore[arg-type]
    except TypeError:
        return a == b


async def one_after_another(
    connection: HyperConnection[Any], queries: Sequence[str]
) -> tuple[float, list[Answer]]:
    started = time.perf_counter()
    answers = [await connection.fetch_all(query) for query in queries]
    return len(queries) / (time.perf_counter() - started), answers


async def together(
    pool: Pool[HyperConnection],
    queries: Sequence[str],
    expected: Sequence[Answer],
    tasks: int,
) -> float:
    """Each task asks all of them, in an order of its own."""

    async def ask(seed: int) -> None:
        numbers = list(range(len(queries)))
        random.Random(seed).shuffle(numbers)
        for number in numbers:
            answer = await pool.fetch_all(queries[number])
            if answer != expected[number]:
                raise AssertionError(f"query {number + 1}: {answer!r}")

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for seed in range(tasks):
            nursery.start_soon(ask, seed)
    return tasks * len(queries) / (time.perf_counter() - started)


async def measure(scale: float, tasks: int, connections: int, turns: int) -> Outcome:
    """Load, ask and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await trio.to_thread.run_sync(generate, folder, scale)
        queries, theirs = await trio.to_thread.run_sync(reference, folder)
        async with open_pool(
            database=folder / "tpch.hyper",
            create_mode=CreateMode.CREATE,
            max_size=connections,
        ) as pool:
            async with pool.lease() as connection:
                await load(connection, folder)
                _, expected = await one_after_another(connection, queries)
            for number, (ours, other) in enumerate(zip(expected, theirs, strict=True)):
                if not is_same(ours, other):
                    raise AssertionError(f"query {number + 1}: {ours!r}, not {other!r}")
            one, many = [], []
            for _ in range(turns):
                async with pool.lease() as connection:
                    speed, answers = await one_after_another(connection, queries)
                if answers != expected:
                    raise AssertionError("the same queries had other answers")
                one.append(speed)
                many.append(await together(pool, queries, expected, tasks))
    return Outcome(one, many, turns * (tasks + 1) * len(queries))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=0.1, help="factor: 1 is 1 GB")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    outcome = await measure(
        options.scale, options.tasks, options.connections, options.turns
    )
    ratios = outcome.ratios
    print(
        f"Scale factor {options.scale:g}, {options.turns} turns: {outcome.answers:,} "
        "answers, all as in the sequential run, and that one's as DuckDB's.\n"
    )
    print("| | queries a second |")
    print("|---|---|")
    print(f"| one after another, on one connection | {median(outcome.one):.1f} |")
    print(
        f"| {options.tasks} tasks, on {options.connections} connections | "
        f"{median(outcome.many):.1f} |"
    )
    print(f"| ratio | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


if __name__ == "__main__":
    trio.run(main)
