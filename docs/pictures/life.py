"""Draws the life of a connection as the code lives it.

Needs Graphviz's ``dot`` for the drawing; the text that it draws is checked by a test.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Generator
from functools import wraps
from pathlib import Path
from typing import Any

from trio_hyperpool._slots import Slot, SlotTable

PICTURES = Path(__file__).parent
FACTS = (
    *("granted", "started", "replaced", "condemned", "opened", "open_failed"),
    *("arrived", "returned", "ended", "taken_out"),
)
GONE = "gone"

Moves = set[tuple[str, str, str]]


@contextlib.contextmanager
def recording(moves: Moves) -> Generator[None]:
    """Note what each fact does to the slots of any table: before, fact, after."""
    originals = {fact: getattr(SlotTable, fact) for fact in FACTS}
    depth = 0

    def noting(fact: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def told(table: SlotTable[Any, Any], *args: Any) -> Any:
            nonlocal depth
            before = {slot: slot.state.value for slot in table.slots}
            depth += 1
            try:
                return original(table, *args)
            finally:
                depth -= 1
                if depth == 0:
                    note(table, fact, before)

        return told

    def note(
        table: SlotTable[Any, Any], fact: str, before: dict[Slot[Any], str]
    ) -> None:
        after = {slot: slot.state.value for slot in table.slots}
        for slot in before.keys() | after.keys():
            was, is_now = before.get(slot, GONE), after.get(slot, GONE)
            if was != is_now:
                moves.add((was, fact, is_now))

    for fact, original in originals.items():
        setattr(SlotTable, fact, noting(fact, original))
    try:
        yield
    finally:
        for fact, original in originals.items():
            setattr(SlotTable, fact, original)


def drawn(moves: Moves) -> str:
    """The moves as a graph in Graphviz's language."""
    edges: dict[tuple[str, str], list[str]] = {}
    for was, fact, is_now in sorted(moves):
        start = "start" if was == GONE else was
        edges.setdefault((start, is_now), []).append(fact)
    lines = [
        "digraph life {",
        '  bgcolor="transparent"; rankdir=LR; nodesep=0.5; ranksep=0.9;',
        '  node [shape=box, style="rounded,filled", fillcolor="#eef3fb",',
        '        color="#5b7db1", fontname="sans-serif", fontsize=13];',
        '  edge [color="#7a869a", fontcolor="#54627a", fontname="sans-serif",',
        "        fontsize=10];",
        '  start [shape=point, width=0.15, color="#5b7db1"];',
        f'  {GONE} [shape=doublecircle, label="", width=0.12, fillcolor="#5b7db1"];',
    ]
    for (start, end), facts in sorted(edges.items()):
        label = r"\n".join(facts)
        lines.append(f'  {start} -> {end} [label="{label}"];')
    return "\n".join([*lines, "}", ""])


def lived(storms: int) -> Moves:
    """What happened in so many pools with random tasks and faults."""
    import logging

    from tests._invariants import run
    from tests.test_storm import storm

    moves: Moves = set()
    logging.disable(logging.CRITICAL)
    try:
        with recording(moves):
            for seed in range(storms):
                chance = random.Random(seed)
                end = chance.choice(["late", "early", "cancelled"])
                run(lambda: storm(chance, end))  # noqa: B023 - it is run at once
    finally:
        logging.disable(logging.NOTSET)
    return moves


def main() -> None:
    text = drawn(lived(2000))
    (PICTURES / "life.dot").write_text(text)
    svg = subprocess.run(
        ["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True
    ).stdout
    (PICTURES / "life.svg").write_text(svg)


if __name__ == "__main__":
    main()
