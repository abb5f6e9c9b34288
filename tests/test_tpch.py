"""The 22 queries of TPC-H, by many tasks at once, are answered as by another engine."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio

from tests._scripts import load
from trio_hyperpool import CreateMode, open_pool

SCALE = 0.01
PLACES = Decimal("0.000001")
"""Of a quotient: Hyper's has so many, DuckDB's is a double."""


@pytest.fixture(scope="module")
def tpch() -> Any:
    return load("benchmarks/tpch.py")


@pytest.fixture(scope="module")
def tpchgen(tpch: Any) -> None:
    if tpch.generator() is None:
        pytest.skip("needs tpchgen-cli, of the dependency group `tests`")


def as_exact(value: Any, other: Any) -> Any:
    """A double as the decimal that it stands for, if it does for that one."""
    if isinstance(value, float) and isinstance(other, Decimal):
        exact = Decimal(value)
        return other if abs(exact - other) <= PLACES else exact
    return value


@pytest.mark.hyperd
@pytest.mark.slow
@pytest.mark.usefixtures("hyperd_path", "tpchgen")
async def test_hyper_answers_tpc_h_through_the_pool_as_duckdb_does(
    tpch: Any, db: str, tmp_path: Path
) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs the dependency group `tests`")
    files = await tpch.generate(tmp_path, SCALE)
    texts = tpch.queries(SCALE)
    assert [file.stem for file in files] == [
        *("customer", "lineitem", "nation", "orders"),
        *("part", "partsupp", "region", "supplier"),
    ]
    assert list(texts) == [f"q{number:02}" for number in range(1, 23)]
    answers: dict[str, list[Any]] = {}

    async def ask(name: str) -> None:
        answers[name] = await pool.fetch_all(texts[name])

    async with open_pool(
        database=db, create_mode=CreateMode.CREATE, max_size=4
    ) as pool:
        await tpch.load(pool, files)
        async with trio.open_nursery() as nursery:
            for name in texts:
                nursery.start_soon(ask, name)

    with duckdb.connect() as connection:
        for file in files:
            view = f"CREATE VIEW {file.stem} AS FROM read_parquet('{file}')"
            connection.execute(view)
        for name, text in texts.items():
            ours = answers[name]
            theirs = connection.execute(text.decode()).fetchall()
            assert len(ours) == len(theirs), name
            expected = [
                tuple(map(as_exact, row, own))
                for row, own in zip(theirs, ours, strict=True)
            ]
            tpch.compare(name, ours, expected)
            # No tolerance is needed between answers of Hyper itself.
            assert not any(isinstance(value, float) for row in ours for value in row)


@pytest.mark.hyperd
@pytest.mark.slow
@pytest.mark.usefixtures("hyperd_path", "tpchgen")
async def test_answers_over_a_pool_are_those_of_one_connection(tpch: Any) -> None:
    result = await tpch.measure(scale=SCALE, tasks=6, connections=2, turns=2)
    assert result.answers == 2 * 6 * 22
    assert len(result.alone) == len(result.together) == len(result.ratios) == 2
    for _, middle, low, high in result.rows():
        assert 0 < low <= middle <= high
    assert result.table().count("\n") == 4


def test_another_answer_is_told_with_the_query_that_gave_it(tpch: Any) -> None:
    with pytest.raises(
        AssertionError, match=r"q06: 1 rows .* \[\(2,\)\], .* \[\(1,\)\]"
    ):
        tpch.compare("q06", [(2,)], [(1,)])
    with pytest.raises(AssertionError, match="q06: 0 rows where there should be 1"):
        tpch.compare("q06", [], [(1,)])


def test_only_ties_may_come_in_another_order(tpch: Any) -> None:
    one, two, tie = ("A", 1), ("B", 2), ("C", 2)
    tpch.compare("q05", [two, tie, one], [tie, two, one])
    with pytest.raises(AssertionError, match="q05"):
        tpch.compare("q05", [two, one, tie], [tie, two, one])
    with pytest.raises(AssertionError, match="q05"):
        tpch.compare("q05", [two, two, one], [tie, two, one])
    with pytest.raises(AssertionError, match="q09"):
        tpch.compare("q09", [two, tie, one], [tie, two, one])
