"""What is measured can be run, and its page has a place for each table."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests._scripts import ROOT, load

FOLDER = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "performance.md").read_text()


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may import those beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))


def test_everybody_who_is_to_be_measured_can_be() -> None:
    contenders, leases = load("benchmarks/contenders.py"), load("benchmarks/leases.py")
    instructions = load("benchmarks/instructions.py")
    for case in leases.CASES + instructions.CASES:
        for who in (leases.OURS, *case.goals):
            assert f"{case.measure}_{who}" in contenders.RUNS
            assert who == leases.OURS or who in leases.WORDS


def test_a_table_takes_its_place_on_the_page() -> None:
    benchmarks = load("benchmarks/__main__.py")
    for name in benchmarks.NAMES:
        assert (FOLDER / f"{name}.py").exists()
        changed = benchmarks.written(PAGE, name, "| a new table |")
        assert "| a new table |" in changed
        assert changed.count("<!-- end of") == PAGE.count("<!-- end of")
        assert benchmarks.written(changed, name, "| a newer one |").count(
            "table |"
        ) == (changed.count("table |") - 1)
    with pytest.raises(ValueError, match="marked 0 times"):
        benchmarks.written(PAGE, "nothing", "")


def test_what_is_not_installed_keeps_nobody_else_from_being_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks = load("benchmarks/__main__.py")
    monkeypatch.setenv("PATH", "")
    assert [*filter(benchmarks.can_run, benchmarks.NAMES)] == [
        name for name in benchmarks.NAMES if name != "instructions"
    ]
    assert "valgrind is not installed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.hyperd
@pytest.mark.parametrize("case", ["opening", "from cancelling"])
def test_a_comparison_ends_in_a_row_with_a_verdict(case: str) -> None:
    # A script finds its neighbours where nobody forbids it.
    env = {
        name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"
    }
    done = subprocess.run(
        [sys.executable, str(FOLDER / "leases.py"), "--turns=1", f"--only={case}"],
        check=True,
        env=env,
        capture_output=True,
        text=True,
    )
    (row,) = done.stdout.splitlines()[4:]
    assert row.startswith(f"| {case}")
    assert row.count("|") == 7
    assert row.endswith(("met |", "missed** |"))
