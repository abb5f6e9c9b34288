"""``python benchmarks/instructions.py``: what the processor is told to do for a lease.

Valgrind counts the instructions of one process, the server's not among them, nor what
the kernel does for it. Unlike seconds they are nearly the same whatever else the machine
is doing; but not all of them take equally long. Many rounds less a few, so that what is
done once, such as imports, drops out.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import statistics

import trio
from contenders import Job
from leases import (
    OURS,
    SELECT,
    SIXTEEN,
    VERSIONS,
    WORDS,
    Case,
    asked_for,
    command,
    servers,
)

FEW, MANY = 1, 3
CASES = [
    Case(
        "lease and return",
        dict.fromkeys(("psycopg_pool", "capacity_limiter", "checkpoint")),
        leases=1_000,
    ),
    Case(
        f"{SELECT}, Hyper",
        dict.fromkeys(("by_hand", "psycopg_pool")),
        leases=500,
        query="SELECT 1",
    ),
    Case(
        f"the same, 64 tasks {SIXTEEN}",
        dict.fromkeys(("by_hand", "psycopg_pool")),
        tasks=64,
        leases=640,
        query="SELECT 1",
    ),
]


async def counted(contender: str, job: Job, rounds: int) -> int:
    """Instructions of a whole process."""
    job = dataclasses.replace(job, rounds=rounds)
    done = await trio.run_process(
        [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            *command(contender, job),
        ],
        capture_stdout=True,
        capture_stderr=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    found = re.search(rb"Collected : (\d+)", done.stderr)
    assert found is not None
    return int(found[1])


async def each(contender: str, job: Job) -> float:
    """Thousands of instructions of one lease."""
    more = await counted(contender, job, MANY) - await counted(contender, job, FEW)
    return more / (MANY - FEW) / job.leases / 1e3


async def main() -> None:
    cases, turns = asked_for(__doc__, CASES, 1)
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind counts the instructions, and is not installed")
    async with servers({case.server for case in cases}) as where:
        print(f"{VERSIONS}; {turns} turns.\n")
        print("| what | who | thousands of instructions | ours / theirs |")
        print("|---|---|---|---|", flush=True)
        for case in cases:
            job = case.on(where)
            ours = 0.0
            for who in (OURS, *case.goals):
                middle = statistics.median([await each(who, job) for _ in range(turns)])
                ours = ours or middle
                ratio = "" if who == OURS else f"{ours / middle:.2f}"
                name = WORDS.get(who, "ours")
                print(f"| {case.what} | {name} | {middle:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    trio.run(main)
