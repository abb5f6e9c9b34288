"""The tables of docs/moving-over.md, and which of their rows have been tried."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
TestT = TypeVar("TestT", bound=Callable[..., object])

PAGE = (Path(__file__).parents[1] / "docs" / "moving-over.md").read_text()
LIMIT = 30
"""Seconds that a peer's test may take; each needs less than one."""


class Name(NamedTuple):
    """A foreign name as the page has it: ``pool.acquire(timeout=...)``, say."""

    text: str
    default: int | None = None

    @property
    def path(self) -> str:
        return self.text.partition("(")[0].partition("=")[0]

    @property
    def parameters(self) -> set[str]:
        return set(re.findall(r"(\w+)(?=[,=)])", self.text.partition("(")[2]))


class Row(NamedTuple):
    theirs: str
    ours: str
    different: str

    @property
    def names(self) -> list[Name]:
        return [
            Name(text, int(default) if default else None)
            for text, default in re.findall(r"`([^`]+)`(?: \((\d+)\))?", self.theirs)
        ]


def rows(peer: str) -> list[Row]:
    """The table that has this word over its first column."""
    text = PAGE.partition(f"\n| {peer} | here | different |\n|---|---|---|\n")[2]
    lines = text.partition("\n\n")[0].splitlines()
    return [Row(*map(str.strip, line.split("|")[1:-1])) for line in lines]


@dataclass(frozen=True)
class Table:
    """A peer's table; a test says which of the rows it tries."""

    peer: str
    tried: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        return [row.theirs for row in rows(self.peer)]

    @property
    def names(self) -> list[Name]:
        return [name for row in rows(self.peer) for name in row.names]

    def tries(self, *cells: str) -> Callable[[TestT], TestT]:
        def noted(test: TestT) -> TestT:
            self.tried.extend(cells)
            return test

        return noted


def on_asyncio(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on asyncio as it is without trio-asyncio, and not for ever."""

    async def in_time(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(LIMIT):
            await test(*args, **kwargs)

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(in_time(*args, **kwargs))

    return run
