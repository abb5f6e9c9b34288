"""Each promise in writing names at least one test, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = [ROOT / "docs" / "guarantees.md", ROOT / "SECURITY.md"]
PROMISES = {
    page.name: [
        " ".join(item.split())
        for item in re.findall(
            r"^- (.+?)(?=\n\n|\n- |\Z)", page.read_text(), re.MULTILINE | re.DOTALL
        )
    ]
    for page in PAGES
}
TESTS = {
    node.name
    for path in HERE.glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


@pytest.mark.parametrize("promise", [one for page in PROMISES.values() for one in page])
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    named = re.findall(r"`(test_\w+)`", promise)
    assert named
    assert set(named) <= TESTS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_promises_are_read(page: Path) -> None:
    bullets = re.findall(r"^- ", page.read_text(), re.MULTILINE)
    assert len(PROMISES[page.name]) == len(bullets) > 10
