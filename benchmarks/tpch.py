"""``python benchmarks/tpch.py``: TPC-H by many tasks over one pool, answer for answer.

The same queries run one after another on one connection, and as tasks that share a pool,
in turns; the first run of all is the reference. Every figure in an answer is a whole or
a decimal number, so that it is the same in whatever order the server adds up, and
nothing needs a tolerance.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import trio

from trio_hyperpool import CreateMode, HyperConnection, Pool, open_pool

QUERIES = Path(__file__).with_suffix("")
SORTED_BY = {"q03": (1, 2), "q05": (1,), "q10": (2,), "q11": (1,), "q18": (4, 3)}
"""Queries that leave the order of ties open: the columns that they do sort by."""

Rows = list[tuple[Any, ...]]
Answers = list[tuple[str, Rows]]
Orders = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Result:
    scale: float
    tasks: int
    connections: int
    answers: int
    """How many of the pool's were compared."""
    alone: tuple[float, ...]
    """Queries a second on one connection, in each turn."""
    together: tuple[float, ...]
    """And over the pool."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Pool / one connection, in each turn."""
        turns = zip(self.together, self.alone, strict=True)
        return tuple(pool / one for pool, one in turns)

    def rows(self) -> list[tuple[str, float, float, float]]:
        """What was measured, its median, and from where to where it went."""
        pool = f"{self.tasks} tasks, a pool of {self.connections}"
        measured = {
            "one connection, queries a second": self.alone,
            f"{pool}, queries a second": self.together,
            "pool / one connection": self.ratios,
        }
        return [
            (what, statistics.median(turns), min(turns), max(turns))
            for what, turns in measured.items()
        ]

    def table(self) -> str:
        """The rows, in Markdown."""
        lines = [
            f"| {what} | {middle:.2f} | {low:.2f} to {high:.2f} |"
            for what, middle, low, high in self.rows()
        ]
        return "\n".join(("| what | median | from, to |", "|---|---|---|", *lines))


def generator() -> str | None:
    """Where `tpchgen-cli` is: beside this Python, or elsewhere on the path."""
    beside = sysconfig.get_path("scripts")
    found = (shutil.which("tpchgen-cli", path=path) for path in (beside, None))
    return next(filter(None, found), None)


async def generate(folder: Path, scale: float) -> list[Path]:
    """Write the tables as Parquet files."""
    command = generator()
    if command is None:
        raise FileNotFoundError("no tpchgen-cli: `pip install --group benchmarks`")
    await trio.run_process(
        [
            *(command, "parquet", "--quiet"),
            *("--scale-factor", f"{scale:f}", "--output-dir", str(folder)),
        ]
    )
    return sorted(map(Path, await trio.Path(folder).glob("*.parquet")))


async def load(pool: Pool[HyperConnection], files: Iterable[Path]) -> None:
    for file in files:
        await pool.execute(
            f"CREATE TABLE {file.stem} AS SELECT * FROM external(%s)".encode(),
            (str(file),),
        )


def queries(scale: float) -> dict[str, bytes]:
    """The 22 queries, with the parameters that answers are validated with."""
    fraction = f"{0.0001 / scale:.10f}"
    return {
        path.stem: path.read_text().replace("{fraction}", fraction).encode()
        for path in sorted(QUERIES.glob("q*.sql"))
    }


def compare(name: str, rows: Rows, reference: Rows) -> None:
    """Compare two answers, in the order that the query asks for.

    Raises:
        AssertionError: if they differ, with the query's name.
    """
    same = rows == reference
    if not same and name in SORTED_BY:
        keys = itemgetter(*SORTED_BY[name])
        same = [*map(keys, rows)] == [*map(keys, reference)]
        same = same and Counter(rows) == Counter(reference)
    if not same:
        ours, theirs = Counter(rows), Counter(reference)
        raise AssertionError(
            f"{name}: {len(rows)} rows where there should be {len(reference)}; "
            f"too many: {[*(ours - theirs)][:3]}, missing: {[*(theirs - ours)][:3]}"
        )


async def run_alone(
    pool: Pool[HyperConnection], texts: Mapping[str, bytes], orders: Orders
) -> Answers:
    async with pool.lease() as connection:
        return [
            (name, await connection.fetch_all(texts[name]))
            for order in orders
            for name in order
        ]


async def run_together(
    pool: Pool[HyperConnection], texts: Mapping[str, bytes], orders: Orders
) -> Answers:
    answers: Answers = []

    async def run(order: list[str]) -> None:
        for name in order:
            rows = await pool.fetch_all(texts[name])
            answers.append((name, rows))

    async with trio.open_nursery() as nursery:
        for order in orders:
            nursery.start_soon(run, order)
    return answers


async def timed(
    run: Callable[..., Awaitable[Answers]],
    pool: Pool[HyperConnection],
    texts: Mapping[str, bytes],
    orders: Orders,
    reference: Mapping[str, Rows],
) -> float:
    """Queries a second; what they answered is compared when the clock has stopped."""
    began_at = time.perf_counter()
    answers = await run(pool, texts, orders)
    elapsed = time.perf_counter() - began_at
    if Counter(name for name, _ in answers) != Counter(
        name for order in orders for name in order
    ):
        raise AssertionError(f"{len(answers)} answers, not one to each query")
    for name, rows in answers:
        compare(name, rows, reference[name])
    return len(answers) / elapsed


async def measure(scale: float, tasks: int, connections: int, turns: int) -> Result:
    """Generate, load, and let one connection and the pool take turns.

    Raises:
        AssertionError: if an answer is not the one of the first, sequential run.
    """
    texts = queries(scale)
    alone, together = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = await generate(Path(folder), scale)
        async with open_pool(
            database=Path(folder) / "tpch.hyper",
            create_mode=CreateMode.CREATE,
            max_size=connections,
        ) as pool:
            await load(pool, files)
            reference = dict(await run_alone(pool, texts, [list(texts)]))
            for turn in range(turns):
                chance = random.Random(turn)
                orders = [chance.sample(list(texts), len(texts)) for _ in range(tasks)]
                one = await timed(run_alone, pool, texts, orders, reference)
                many = await timed(run_together, pool, texts, orders, reference)
                alone.append(one)
                together.append(many)
    return Result(
        scale=scale,
        tasks=tasks,
        connections=connections,
        answers=turns * tasks * len(texts),
        alone=tuple(alone),
        together=tuple(together),
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=0.1, help="1 is a gigabyte")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    options = parser.parse_args()
    result = await measure(**vars(options))
    print(
        f"Scale factor {result.scale:g}, {options.turns} turns: {result.answers:,} "
        "answers, all as in the sequential run.\n"
    )
    print(result.table())


if __name__ == "__main__":
    trio.run(main)
