"""The page for those who move over names only what exists here."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from pathlib import Path

import pytest

import trio_hyperpool
from tests._moving_page import PAGE
from trio_hyperpool import Pool, PoolConfig

CELLS = [
    line.split("|")[2].strip()
    for line in PAGE.splitlines()
    if line.startswith("| ") and line.split("|")[2].strip() != "here"
]
TABLE = re.compile(r'^TABLE = Table\("(\S+)"\)$', re.MULTILINE)
OPTIONS = {field.name for field in dataclasses.fields(PoolConfig)}
# Words of others, and of Python's library.
FOREIGN = {"conn.add_listener", "contextlib.AsyncExitStack"}


def test_all_tables_are_tried() -> None:
    tests = Path(__file__).parent.glob("test_moving_over_*.py")
    tried = {found for test in tests for found in TABLE.findall(test.read_text())}
    assert tried == set(re.findall(r"^\| (\S+) \| here \|", PAGE, re.MULTILINE))
    assert len(tried) == 4


def test_all_rows_are_read() -> None:
    assert len(CELLS) == PAGE.count("\n| ") - PAGE.count("| here |") > 50


@pytest.mark.parametrize("cell", sorted(set(CELLS)))
def test_each_name_of_ours_exists(cell: str) -> None:
    for named in re.findall(r"`([^`]+)`", cell):
        name, _, arguments = named.partition("(")
        option, _, value = name.partition("=")
        if named in FOREIGN or (option in OPTIONS and (not value or float(value) >= 0)):
            continue
        name = name.removeprefix("aio.")
        if name in {"AsyncioConnector", "hook"}:
            # Read and not imported, for that would change asyncio.
            source = Path(trio_hyperpool.__file__).parent / "aio"
            text = "".join(path.read_text() for path in source.glob("*.py"))
            assert f" {name}" in text
            assert f"{arguments.partition('=')[0]}:" in text
            continue
        found: object = trio_hyperpool
        for part in name.split("."):
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part)
        assert found is not None


@pytest.mark.parametrize(
    ("option", "default"),
    sorted(set(re.findall(r"`(\w+)` \((\d+|no limit)\)", "".join(CELLS)))),
)
def test_each_default_is_what_it_says(option: str, default: str) -> None:
    told = math.inf if default == "no limit" else int(default)
    assert inspect.signature(PoolConfig).parameters[option].default == told


def test_what_pools_have_is_on_the_page() -> None:
    methods = {"lease", "execute", "reset", "resize", "retire_idle", "statistics"}
    assert methods <= set(dir(Pool))
    assert {m for m in methods if f"`Pool.{m}`" in PAGE} == methods
