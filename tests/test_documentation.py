"""Every program in the README and in the documentation runs."""

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

pytestmark = pytest.mark.slow

USUAL_PORT = "7483"
ROOT = Path(__file__).parents[1]
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
    if "asyncpg" in code:
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
