"""Everything that CI runs, runnable anywhere."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.8"
nox.options.download_python = "never"
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted(
    {HERE, *nox.project.python_versions(PYPROJECT)},
    key=lambda version: int(version.partition(".")[2]),
)
INSTALLED = {"PYTHONSAFEPATH": "1"}  # tests import the wheel, never the checkout


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run every test on the Python that runs nox, all but the slow ones on others."""
    session.install(".[binary,hyperd]", "--group", "tests")
    selection = () if session.python == HERE else ("-m", "not slow")
    session.run(
        *("coverage", "run", "-m", "pytest", *selection, *session.posargs),
        env=INSTALLED,
    )


@nox.session
def coverage(session: nox.Session) -> None:
    """Report what the tests have covered, on all Pythons together."""
    session.install("coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
@nox.parametrize("versions", ["lowest", "newest"])
def drivers(session: nox.Session, versions: str) -> None:
    """Test the driver on the lowest and on the newest psycopg and trio."""
    requirements = PYPROJECT["project"]["dependencies"]
    if versions == "lowest":
        if sys.version_info >= (3, 14):
            session.skip("the lowest psycopg has no wheels for this Python")
        requirements = [
            requirement.partition(",")[0].replace(">=", "==")
            for requirement in requirements
        ]
    session.install(".[binary,hyperd]", *requirements, "--group", "tests")
    tests = sorted(map(str, Path("tests").glob("test_driver*.py")))
    session.run("pytest", *tests, *session.posargs, env=INSTALLED)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, the direction of imports, spelling and packaging."""
    session.install(".", "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # ruff lacks the rules on cancellation in clean-up, ASYNC102 for one.
    sources = sorted(map(str, Path("trio_hyperpool").glob("*.py")))
    session.run("flake8-async", "--enable=ASYNC", *sources)
    session.run("lint-imports")
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, and that every public name has one."""
    session.install(".", "--group", "types")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_hyperpool")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken reference is an error."""
    session.install(".[binary]", "--group", "docs")
    session.run("sphinx-build", "-EnW", "--keep-going", "docs", "docs/_build/html")


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Change the pure modules in every way, and see whether a test notices."""
    session.install(".[binary]", "--group", "tests", "mutmut>=3.8")
    session.run("mutmut", "run")
    session.run("mutmut", "results")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure."""
    session.install(".[binary,hyperd]", "--group", "benchmarks")
    session.run("python", "benchmarks", *session.posargs)
