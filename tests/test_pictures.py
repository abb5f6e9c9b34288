"""The pictures of the documentation show what the code does."""

from __future__ import annotations

import re

import pytest

from tests._scripts import ROOT, load

DOCS = ROOT / "docs"


@pytest.mark.slow
def test_the_life_of_a_connection_is_drawn_as_it_is() -> None:
    life = load("docs/pictures/life.py")
    source = (DOCS / "pictures" / "life.dot").read_text()
    drawn = {
        (life.GONE if was == "start" else was, fact, is_now)
        for was, is_now, facts in re.findall(r'(\w+) -> (\w+) \[label="(.*?)"', source)
        for fact in facts.split(r"\n")
    }
    # The rarest move, an expired connection that is replaced, may not be seen here.
    seen = life.lived(300)
    assert seen <= drawn
    assert len(seen) >= len(drawn) - 1
    assert life.drawn(drawn) == source
    assert "open_failed" in (DOCS / "pictures" / "life.svg").read_text()
