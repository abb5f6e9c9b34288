"""Everything that CI runs, runnable anywhere."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
from ctypes.util import find_library
from pathlib import Path

import nox
import nox.command

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


def run_tests(
    session: nox.Session, *command: str, env: dict[str, str] = INSTALLED
) -> None:
    """Run tests at the same time, as many wait, and those that failed once more.

    Much here is about time, and machines are shared: what fails for want of a
    processor gets a second, quieter chance; what fails twice has failed. A run that
    hung has noted no failures, so that all of it is run again.
    """
    spread = ("-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal")
    try:
        session.run(*command, *spread, "--cache-clear", *session.posargs, env=env)
    except nox.command.CommandFailed:
        session.run(*command, "--last-failed", *session.posargs, env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run every test on the Python that runs nox, all but the slow ones on others."""
    session.install(".[binary,hyperd,timeline]", "--group", "tests")
    if session.python == HERE:
        session.install("--group", "browser")
        run_tests(session, "coverage", "run", "-m", "pytest")
    else:
        run_tests(session, "pytest", "-m", "not slow")


@nox.session
@nox.parametrize("psycopg", ["lowest", "pure"])
def drivers(session: nox.Session, psycopg: str) -> None:
    """Test the driver on the lowest psycopg and trio, and without C.

    `tests` has the newest of everything. The lowest version of whatever else is required
    has its turn with the lowest psycopg.
    """
    requirements = PYPROJECT["project"]["dependencies"]
    optional = PYPROJECT["project"]["optional-dependencies"]
    extras = "binary,hyperd"
    env = INSTALLED
    patterns = ["test_driver*.py", "test_hyper_*.py"]
    if psycopg == "lowest":
        requirements = lowest(
            requirements, *(optional[extra] for extra in ("arrow", "cli", "hyperd"))
        )
        patterns += [f"test_{name}.py" for name in ("arrow", "cli", "timeline", "top")]
    elif psycopg == "pure":
        if find_library("pq") is None:
            session.skip("psycopg in pure Python needs a libpq of the system")
        extras = "hyperd"
        env = {**INSTALLED, "PSYCOPG_IMPL": "python"}
    session.install(f".[{extras}]", *requirements, "--group", "tests")
    if psycopg == "lowest":
        # Not low enough for what the example's tests require.
        session.install("--no-deps", *lowest(optional["timeline"]))
    found = {path for pattern in patterns for path in Path("tests").glob(pattern)}
    run_tests(
        session, "coverage", "run", "-m", "pytest", *sorted(map(str, found)), env=env
    )
    if psycopg == "lowest":
        # Its tests compare with newer conventions: enough that it can be counted with.
        (api,) = lowest(optional["otel"])
        session.install(api, api.replace("-api", "-sdk"))
        session.run(
            "python", "benchmarks/telemetry.py", "--turns=1", "--leases=10", env=env
        )


def lowest(*required: list[str]) -> list[str]:
    """The lower bounds of what is required."""
    return [
        re.split("[,;]", each)[0].replace(">=", "==")
        for requirements in required
        for each in requirements
    ]


@nox.session
def coverage(session: nox.Session) -> None:
    """Report what the tests have covered, with all the drivers."""
    session.install("coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, the direction of imports, spelling and packaging."""
    session.install(".", "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # ruff lacks the rules on cancellation in clean-up, ASYNC102 for one.
    sources = sorted(map(str, Path("trio_hyperpool").rglob("*.py")))
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
def package(session: nox.Session) -> None:
    """Build wheel and sdist, check both, and try the wheel where nothing else is."""
    session.install("--group", "package")
    dist = Path(session.create_tmp(), "dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("check-wheel-contents", str(wheel))
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    if missing := sorted(in_an_sdist() - packed):
        session.error(f"not in the sdist: {', '.join(missing)}")
    python = dist / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    session.run("python", "-m", "venv", str(python.parents[1]))
    installed = (str(python), "-P", "-W", "error")
    session.run(
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        f"{wheel}[binary,hyperd]",
        external=True,
    )
    session.run(*installed, "-c", WHOLE, external=True)
    session.run(
        *installed, "-m", "trio_hyperpool", "--help", external=True, silent=True
    )
    session.run(*installed, "-m", "trio_hyperpool", "demo", external=True, silent=True)


WHOLE = """
from importlib.metadata import files, version
import trio_hyperpool
assert any(file.name == "py.typed" for file in files("trio-hyperpool"))
assert any(file.name == "LICENSE" for file in files("trio-hyperpool"))
print("installed:", version("trio-hyperpool"))
"""


def in_an_sdist() -> set[str]:
    """Every file that makes up the project: what the sdist has to have."""
    kept = ("benchmarks", "docs", "examples", "tests", "trio_hyperpool")
    kinds = (".md", ".py", ".sql", ".svg", ".txt", ".typed")
    found = {"CHANGELOG.md", "LICENSE", "README.md", "noxfile.py", "pyproject.toml"}
    for folder in kept:
        for path in Path(folder).rglob("*"):
            if path.suffix in kinds and "_build" not in path.parts:
                found.add(path.as_posix())
    return found


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a broken reference is an error."""
    session.install(".[arrow,binary,cli,otel,timeline]", "--group", "docs")
    session.run("sphinx-build", "-EnW", "--keep-going", "docs", "docs/_build/html")


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Change the pure modules in every way, and see whether a test notices."""
    session.install(".[binary]", "--group", "tests", "mutmut>=3.8")
    session.run("mutmut", "run", *session.posargs)
    session.run("mutmut", "results")


@nox.session(default=False)
def pictures(session: nox.Session) -> None:
    """Make the pictures of the documentation anew."""
    session.install(
        ".[binary,cli,hyperd,timeline]", "--group", "tests", "--group", "browser"
    )
    for picture in ("life", "timeline", "top"):
        session.run("python", f"docs/pictures/{picture}.py", env={"PYTHONPATH": "."})


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure, and write what was measured to docs/performance.md."""
    session.install(".[binary,hyperd]", "--group", "benchmarks")
    session.run("python", "benchmarks", *session.posargs)
