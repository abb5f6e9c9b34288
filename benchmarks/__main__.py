"""``python benchmarks``: what a lease costs here, beside what others charge.

Each figure is a ratio to a rival in the same run: the two take turns, in processes of
their own, and the median of all rounds counts. Machines differ, ratios less so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio

from trio_hyperpool import CreateMode, open_hyperd, open_pool

OURS = "trio_hyperpool"
CONTENDERS = Path(__file__).with_name("contenders.py")


@dataclass(frozen=True)
class Case:
    what: str
    rival: str
    tasks: int
    leases: int
    query: str = ""


CASES = [
    Case("lease and return", "psycopg_pool", 1, 20_000),
    Case("lease and return", "capacity_limiter", 1, 20_000),
    Case("1,000 tasks on 16 connections", "psycopg_pool", 1_000, 20_000),
    Case("1,000 tasks on 16 connections", "capacity_limiter", 1_000, 20_000),
    Case("10,000 tasks on 16 connections", "psycopg_pool", 10_000, 20_000),
    Case("10,000 tasks on 16 connections", "capacity_limiter", 10_000, 20_000),
    Case("lease and SELECT 1", "psycopg_pool", 1, 2_000, "SELECT 1"),
    Case("the same, 64 tasks on 16", "psycopg_pool", 64, 3_200, "SELECT 1"),
]


def run_one(contender: str, host: str, port: str, path: str, case: Case) -> list[float]:
    """Run one contender, and give the microseconds of its rounds but the first."""
    done = subprocess.run(
        [
            *(sys.executable, str(CONTENDERS), contender, host, port, path),
            *(str(case.tasks), str(case.leases), case.query),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(line) for line in done.stdout.split()][1:]


def compare(host: str, port: str, path: str, case: Case, turns: int) -> str:
    """Let the two take turns; a row of the table."""
    times: dict[str, list[float]] = {OURS: [], case.rival: []}
    ratios = []
    for _ in range(turns):
        ours = run_one(OURS, host, port, path, case)
        theirs = run_one(case.rival, host, port, path, case)
        times[OURS] += ours
        times[case.rival] += theirs
        ratios.append(statistics.median(ours) / statistics.median(theirs))
    middle = {who: statistics.median(rounds) for who, rounds in times.items()}
    return (
        f"| {case.what} | {case.rival} | {middle[OURS]:.1f} | "
        f"{middle[case.rival]:.1f} | {statistics.median(ratios):.2f} | "
        f"{min(ratios):.2f} to {max(ratios):.2f} |"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="of each contender")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "benchmark.hyper")
        async with (
            open_hyperd() as server,
            # One session keeps the database loaded, for all contenders alike.
            open_pool(
                server.endpoint, path, create_mode=CreateMode.CREATE, min_idle=1
            ) as pool,
        ):
            await pool.execute("SELECT 1")
            host, _, port = server.endpoint.removeprefix("tab.domain://").partition(
                "/domain/.s.PGSQL."
            )
            print("| what | rival | ours, µs | rival, µs | ours / rival | from, to |")
            print("|---|---|---|---|---|---|")
            for case in CASES:
                if options.only in f"{case.what}, {case.rival}":
                    row = await trio.to_thread.run_sync(
                        compare, host, port, path, case, options.turns
                    )
                    print(row, flush=True)


trio.run(main)
