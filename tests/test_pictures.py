"""The pictures of the documentation show what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_life_of_a_connection_is_drawn_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    moves = pictures.lived(400)
    assert pictures.drawn(moves) == (DOCS / "pictures" / "life.dot").read_text()
    assert "open_failed" in (DOCS / "pictures" / "life.svg").read_text()
