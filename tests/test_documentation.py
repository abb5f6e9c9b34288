"""Every program in the README and in the documentation runs."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio
from _pytest.mark import ParameterSet
from sybil.document import PythonDocument
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from trio_hyperpool import open_hyperd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[ParameterSet]:
    """The code of each fenced block, under the name of its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        document = PythonDocument(text, str(page))
        for region in FencedCodeBlockLexer(language)(document):
            line = text.count("\n", 0, region.start) + 1
            code = str(region.lexemes["source"])
            found.append(pytest.param(code, id=f"{page.name}:{line}"))
    return found


@pytest.fixture
async def usual_server(hyperd_path: Path) -> AsyncGenerator[None]:
    """A server where examples expect one: ``localhost:7483``."""
    async with open_hyperd(hyperd_path, tcp=True, port=7483):
        yield


@pytest.mark.parametrize("code", blocks("python"))
async def test_python(
    code: str,
    usual_server: None,
    tmp_path: Path,
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
    done = await trio.run_process(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=env,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
