"""Every program in the documentation runs, and its lists leave nothing out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from _pytest.mark import ParameterSet
from sybil.document import PythonDocument
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from trio_hyperpool import open_hyperd

USUAL_PORT = "7483"
HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PRINTED = re.compile(r"\s*It prints:\s*```text\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[ParameterSet]:
    """Each fenced block, and what it prints if that is told right after it."""
    found = []
    for page in PAGES:
        text = page.read_text()
        document = PythonDocument(text, str(page))
        for region in FencedCodeBlockLexer(language)(document):
            line = text.count("\n", 0, region.start) + 1
            code = str(region.lexemes["source"])
            printed = PRINTED.match(text, region.end)
            told = printed[1] if printed else None
            found.append(pytest.param(code, told, id=f"{page.name}:{line}"))
    return found


@contextlib.asynccontextmanager
async def with_server(code: str) -> AsyncGenerator[str]:
    """The code, with the port of a server in place of the usual one."""
    if USUAL_PORT not in code:
        yield code
        return
    async with open_hyperd(tcp=True) as hyperd:
        yield code.replace(USUAL_PORT, hyperd.endpoint.rpartition(":")[2])


@pytest.mark.slow
@pytest.mark.parametrize(("code", "told"), blocks("python"))
async def test_python(
    code: str,
    told: str | None,
    hyperd_path: Path,
    tmp_path: Path,
    *,
    pytester: pytest.Pytester,
    request: pytest.FixtureRequest,
) -> None:
    if "aio" in code and sys.version_info >= (3, 14):
        pytest.skip("trio-asyncio does not work on this Python")
    env = dict(os.environ)
    if "asyncpg" in code or "postgresql://" in code:
        env |= request.getfixturevalue("postgres_env")
    if "def test_" in code:
        pytester.makepyfile(code)
        pytester.runpytest_subprocess().assert_outcomes(passed=code.count("def test_"))
        return
    async with with_server(code) as program:
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env=env,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    if told is not None:
        lines = done.stdout.decode().splitlines()
        assert [line.rstrip() for line in lines] == told.splitlines()


def test_the_design_has_a_sentence_for_every_module() -> None:
    package = ROOT / "trio_hyperpool"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        for path in package.rglob("*.py")
    }
    page = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    assert sorted(named) == sorted(modules)


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE))
    module, missing = "", []
    for line in (HERE / "public_api.txt").read_text().splitlines():
        if line.startswith("["):
            module = line.strip("[]").removeprefix("trio_hyperpool")
        elif line and not line.startswith(" "):
            name = re.sub(r"^(class|async def|def) ", "", line).partition("(")[0]
            full = f"trio_hyperpool{module}.{name}" if module else name
            if full not in shown:
                missing.append(full)
    assert not missing
