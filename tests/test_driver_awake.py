"""Prompt answers are waited for awake, and nothing is lost by that."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
import pytest
import trio

from tests._wire import MINUTES
from trio_hyperpool import LeaseEndedError
from trio_hyperpool._driver import TrioConnection, _driving
from trio_hyperpool._driver._waiting import (
    FEWEST_PROMPT,
    MOST_PROMPT,
    PROMPT,
    Promptness,
)


def test_a_prompt_answer_is_expected_after_some_in_a_row() -> None:
    promptness = Promptness()
    for _ in range(FEWEST_PROMPT):
        assert not promptness.is_expected
        promptness.came(PROMPT / 2)
    assert promptness.is_expected
    promptness.came(PROMPT)
    assert not promptness.is_expected


def test_who_stayed_awake_in_vain_does_so_ever_more_rarely() -> None:
    promptness, wanted = Promptness(), FEWEST_PROMPT
    for _ in range(20):
        promptness.missed()
        wanted = min(2 * wanted, MOST_PROMPT)
        for _ in range(wanted):
            assert not promptness.is_expected
            promptness.came(0)
        assert promptness.is_expected
    assert wanted == MOST_PROMPT
    promptness.kept()
    promptness.missed()
    for _ in range(2 * FEWEST_PROMPT):
        assert not promptness.is_expected
        promptness.came(0)
    assert promptness.is_expected


@pytest.fixture
async def conn(hyperd: Any) -> AsyncGenerator[TrioConnection[Any]]:
    """One that stays awake for as long as it takes."""
    connection = await TrioConnection.connect(
        **hyperd.conninfo, dbname="", autocommit=True, prepare_threshold=None
    )
    for _ in range(FEWEST_PROMPT):
        connection._link.promptness.came(0)
    yield connection
    await connection.close()


@pytest.fixture
def _ever_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_driving, "PROMPT", math.inf)
    monkeypatch.setattr(_driving, "_ALONE", math.inf)


@pytest.mark.usefixtures("_ever_awake")
async def test_an_answer_is_read_as_soon_as_it_is_there(
    conn: TrioConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asleep(_: int) -> None:
        pytest.fail("it went to sleep")

    monkeypatch.setattr(_driving, "wait_readable", asleep)
    for number in range(3):
        assert await conn.fetch_value("SELECT %s::int", [number]) == number
    assert conn._link.promptness.is_expected


async def test_one_that_does_not_come_is_waited_for_asleep(
    conn: TrioConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driving, "_ALONE", math.inf)
    with trio.move_on_after(0.5) as scope:
        await conn.execute(MINUTES)
    assert scope.cancelled_caught
    assert not conn._link.promptness.is_expected
    assert await conn.fetch_value("SELECT 42") == 42


async def test_nobody_stays_awake_where_others_have_work(
    conn: TrioConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driving, "PROMPT", math.inf)
    monkeypatch.setattr(_driving, "_ALONE", -math.inf)
    with trio.move_on_after(0.1) as scope:
        await conn.execute(MINUTES)
    assert scope.cancelled_caught
    assert await conn.fetch_value("SELECT 42") == 42


@pytest.mark.usefixtures("_ever_awake")
async def test_a_query_that_is_waited_for_awake_can_be_cancelled(
    conn: TrioConnection[Any],
) -> None:
    with trio.move_on_after(0.1) as scope:
        await conn.execute(MINUTES)
    assert scope.cancelled_caught
    assert conn.cancelled_queries == 1
    assert await conn.fetch_value("SELECT 42") == 42


@pytest.mark.usefixtures("_ever_awake")
async def test_a_view_that_ends_meanwhile_raises_and_reads_no_more(
    conn: TrioConnection[Any],
) -> None:
    view = conn.lend()

    async def use() -> None:
        with pytest.raises(LeaseEndedError):
            await view.execute(MINUTES)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.sleep(0.05)
        assert not view.end(LeaseEndedError)
    await conn.stop()
    assert await conn.fetch_value("SELECT 42") == 42


@pytest.mark.usefixtures("_ever_awake")
async def test_a_connection_that_is_closed_meanwhile_says_so(
    conn: TrioConnection[Any],
) -> None:
    async def use() -> None:
        with pytest.raises(psycopg.OperationalError, match="is closed"):
            await conn.execute(MINUTES)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.sleep(0.05)
        await conn.close()
