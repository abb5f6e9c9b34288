"""The page of guarantees names tests that exist, and at least one for each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "guarantees.md").read_text()
PROMISES = [
    " ".join(item.split())
    for item in re.findall(r"^- (.+?)(?=\n\n|\n- |\Z)", PAGE, re.MULTILINE | re.DOTALL)
]
TESTS = {
    node.name
    for path in HERE.glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    named = re.findall(r"`(test_\w+)`", promise)
    assert named
    assert set(named) <= TESTS


def test_all_promises_are_read() -> None:
    assert len(PROMISES) == len(re.findall(r"^- ", PAGE, re.MULTILINE)) > 30
