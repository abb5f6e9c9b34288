"""``python benchmarks/leases.py``: what a lease costs here, beside what others charge.

Each figure is a ratio to a rival in the same run: all who take part in a case take turns,
in processes of their own. Machines differ, ratios less so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import trio
from contenders import Job

from trio_hyperpool import CreateMode, Hyperd, HyperdError, open_hyperd, open_pool
from trio_hyperpool._endpoint import parse_endpoint

HERE = Path(__file__).parent
OURS = "trio_hyperpool"
VERSIONS = (
    f"Python {platform.python_version()}, psycopg {psycopg.__version__}, "
    f"trio {trio.__version__}"
)
WORDS = {
    "psycopg_pool": "psycopg_pool on asyncio",
    "psycopg_pool_checked": "the same with `SELECT 1` at every checkout",
    "capacity_limiter": "a bare `CapacityLimiter`",
    "checkpoint": "a bare checkpoint",
    "asyncio_connector": "the same pool, over `AsyncioConnector`",
    "by_hand": "psycopg by trio-asyncio, behind a limiter",
    "asyncpg": "asyncpg's pool on asyncio",
    "stock_psycopg": "a psycopg connection on asyncio",
    "one_connect": "one connect",
    "pgbench": "`pgbench`, in C: no pool, one thread",
}


@dataclass(frozen=True)
class Case:
    """One thing that is measured, and what ours is to be at most, beside each rival."""

    what: str
    goals: dict[str, float | None]
    """Of the ratio; None: it is measured to know."""
    measure: str = "lease"
    unit: str = "µs"
    server: str = "Hyper"
    tasks: int = 1
    leases: int = 1
    query: str = ""
    params: list[Any] = field(default_factory=list)
    slack: dict[str, float] = field(default_factory=dict)
    """What ours may take beyond that."""

    def on(self, servers: dict[str, Job]) -> Job:
        """What each contender is to do."""
        names = ("measure", "tasks", "leases", "query", "params")
        parts = {name: getattr(self, name) for name in names}
        return dataclasses.replace(servers[self.server], **parts)


SIXTEEN = "on 16 connections"
SELECT = "lease and `SELECT 1`"
CASES = [
    Case(
        "lease and return",
        {"psycopg_pool": 1.0, "psycopg_pool_checked": 0.05, "capacity_limiter": 1.8},
        leases=10_000,
    ),
    *(
        Case(
            f"{tasks:,} tasks {SIXTEEN}",
            {"psycopg_pool": goal, "capacity_limiter": 1.8},
            tasks=tasks,
            leases=20_000,
        )
        for tasks, goal in ((1_000, 0.55), (10_000, 0.65))
    ),
    Case(
        f"{SELECT}, Hyper",
        {
            "by_hand": 0.65,
            "psycopg_pool": 0.9,
            "asyncio_connector": None,
            "pgbench": None,
        },
        leases=1_500,
        query="SELECT 1",
    ),
    Case(
        f"the same, 64 tasks {SIXTEEN}",
        {"by_hand": 0.28, "psycopg_pool": 0.6, "pgbench": None},
        tasks=64,
        leases=3_200,
        query="SELECT 1",
    ),
    Case(
        f"{SELECT}, PostgreSQL",
        {
            "by_hand": 0.65,
            "psycopg_pool": 0.9,
            "asyncpg": 0.6,
            "asyncio_connector": None,
            "pgbench": None,
        },
        server="PostgreSQL",
        leases=1_500,
        query="SELECT 1",
    ),
    Case(
        f"the same, 64 tasks {SIXTEEN}",
        {"by_hand": 0.28, "psycopg_pool": 0.6, "asyncpg": 0.65, "pgbench": None},
        server="PostgreSQL",
        tasks=64,
        leases=3_200,
        query="SELECT 1",
    ),
    Case(
        "a query with parameters, Hyper, its lease included",
        {"stock_psycopg": 0.5},
        leases=1_000,
        query="SELECT %s + 1, %s",
        params=[41, "text"],
    ),
    Case("opening 16 connections", {"psycopg_pool": 1.0}, "opening", "ms"),
    Case(
        "first good lease after a restart, with 16 dead connections",
        {"one_connect": 1.0, "psycopg_pool": 1.0},
        "restart",
        "ms",
        slack={"one_connect": 50},
    ),
    Case(
        "from cancelling a long query to the answer to the next",
        {"stock_psycopg": 1.0},
        "cancel",
        "ms",
    ),
    Case("memory of an idle connection", {"psycopg_pool": 1.0}, "idle_memory", "KiB"),
    Case("memory of a waiting task", {"psycopg_pool": 1.0}, "waiting_memory", "KiB"),
]


def command(contender: str, job: Job) -> list[str]:
    text = json.dumps(dataclasses.asdict(job))
    return [sys.executable, str(HERE / "contenders.py"), contender, text]


def numbers(output: str) -> list[float]:
    """What a contender said, without its first round, which is for warming up."""
    found = [float(line) for line in output.split()]
    return found[1:] or found


async def run_one(contender: str, job: Job) -> list[float]:
    done = await trio.run_process(command(contender, job), capture_stdout=True)
    return numbers(done.stdout.decode())


def conninfo(server: Hyperd, database: str) -> dict[str, str]:
    where = parse_endpoint(server.endpoint).conninfo()
    return {**where, "dbname": database, "user": server.user}


async def run_with_restart(contender: str, job: Job) -> list[float]:
    """Kill the contender's server under it, and start it again."""
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "restarted.hyper")
        place = {"socket_dir": Path(folder) / "socket", "port": 7483}
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(HyperdError):
                async with open_hyperd(**place) as hyperd:
                    async with open_pool(
                        hyperd.endpoint, database, create_mode=CreateMode.CREATE
                    ) as pool:
                        await pool.execute("SELECT 1")
                    job = dataclasses.replace(
                        job,
                        endpoint=hyperd.endpoint,
                        conninfo=conninfo(hyperd, database),
                    )
                    process = stack.enter_context(
                        subprocess.Popen(  # noqa: ASYNC220 - takes no time
                            command(contender, job),
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE,
                            text=True,
                        )
                    )
                    assert process.stdin is not None
                    assert process.stdout is not None
                    await trio.to_thread.run_sync(process.stdout.readline)
                    os.kill(hyperd.pid, signal.SIGKILL)
                    await trio.sleep_forever()
            async with open_hyperd(**place):
                process.stdin.write("go\n")
                process.stdin.flush()
                output = await trio.to_thread.run_sync(process.stdout.read)
    return numbers(output)


async def compare(case: Case, job: Job, turns: int) -> Iterator[str]:
    """Let all who take part take turns; the rows of the table."""
    run = run_with_restart if case.measure == "restart" else run_one
    times: dict[str, list[float]] = {who: [] for who in (OURS, *case.goals)}
    for _ in range(turns):
        for who, each in times.items():
            each.append(statistics.median(await run(who, job)))
    return rows(case, times)


def rows(case: Case, times: dict[str, list[float]]) -> Iterator[str]:
    ours = times[OURS]
    for rival, goal in case.goals.items():
        theirs = times[rival]
        slack = case.slack.get(rival, 0)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        held = [(a - slack) / b for a, b in zip(ours, theirs, strict=True)]
        if goal is None:
            verdict = "none: -"
        else:
            more = f" and {slack:g} {case.unit}" if slack else ""
            is_met = statistics.median(held) <= goal
            verdict = f"{goal:.2f}{more}: {'met' if is_met else '**missed**'}"
        middle = statistics.median(theirs)
        figure = f"{middle:.4g}" if middle < math.inf else "none within 20,000"
        yield (
            f"| {case.what} | {WORDS[rival]} | {statistics.median(ours):.4g} "
            f"{case.unit} | {figure} {case.unit} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {verdict} |"
        )


@contextlib.asynccontextmanager
async def servers(wanted: set[str]) -> AsyncGenerator[dict[str, Job]]:
    """Where each kind of server is."""
    found = {}
    async with contextlib.AsyncExitStack() as stack:
        if "PostgreSQL" in wanted:
            sys.path.append(str(HERE.parent / "tests"))
            from _postgres_server import private_folder, running

            folder = stack.enter_context(private_folder())
            url = stack.enter_context(running(folder)).url
            found["PostgreSQL"] = Job("", psycopg.conninfo.conninfo_to_dict(url), url)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = str(folder / "benchmark.hyper")
        server = await stack.enter_async_context(open_hyperd())
        pool = await stack.enter_async_context(
            # One session keeps the database loaded, for all alike.
            open_pool(server.endpoint, database, create_mode=CreateMode.CREATE)
        )
        await pool.execute("SELECT 1")
        found["Hyper"] = Job("", conninfo(server, database), server.endpoint)
        yield found


def asked_for(
    description: str | None, cases: list[Case], turns: int
) -> tuple[list[Case], int]:
    """What the command line asks for: which of the cases, in how many turns."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--turns", type=int, default=turns, help="of each contender")
    parser.add_argument("--only", default="", help="cases with this in their name")
    options = parser.parse_args()
    return [case for case in cases if options.only in case.what], options.turns


async def main() -> None:
    cases, turns = asked_for(__doc__, CASES, 5)
    async with servers({case.server for case in cases}) as where:
        print(f"{VERSIONS}, {os.cpu_count()} processors; {turns} turns.\n")
        print("| what | rival | ours | rival's | ours / rival's (spread) | goal |")
        print("|---|---|---|---|---|---|", flush=True)
        for case in cases:
            job = case.on(where)
            # Who never comes back takes its 20 seconds each time.
            most = 3 if case.measure == "restart" else turns
            for row in await compare(case, job, min(turns, most)):
                print(row, flush=True)


if __name__ == "__main__":
    trio.run(main)
