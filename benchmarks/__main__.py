"""``python benchmarks``: run every benchmark, and write what they print to its page.

Each prints a table of its own, which takes its place in docs/performance.md between
two marks; what stands around them is written by hand.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from shutil import which

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
NAMES = ("leases", "instructions", "bulk", "tpch", "telemetry")
PROGRAMS = {"instructions": "valgrind"}
"""What some of them need that pip does not install."""


def can_run(name: str) -> bool:
    """Whether what it needs is there; if not, that is printed."""
    program = PROGRAMS.get(name)
    if program is None or which(program):
        return True
    print(f"{name}: left out, as {program} is not installed")
    return False


def printed(name: str, arguments: list[str]) -> str:
    """Run one, show what it prints, and return it."""
    lines = []
    with subprocess.Popen(
        [sys.executable, str(HERE / f"{name}.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return "".join(lines).strip()


def written(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    day = datetime.now(UTC).date()
    found = re.compile(f"{begin}.*?{end}", re.DOTALL)
    new = f"{begin}\nMeasured on {day}. {text}\n{end}"
    changed, count = found.subn(lambda _: new, page)
    if count != 1:
        raise ValueError(f"{name}: marked {count} times on the page, and not once")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {NAMES}")
    parser.add_argument("--turns", type=int, help="of each who takes part")
    options = parser.parse_args()
    turns = [] if options.turns is None else [f"--turns={options.turns}"]
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(NAMES)}")
    for name in options.names or filter(can_run, NAMES):
        text = printed(name, turns)
        PAGE.write_text(written(PAGE.read_text(), name, text))


if __name__ == "__main__":
    main()
