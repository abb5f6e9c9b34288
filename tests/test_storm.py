"""Random concurrency, with the invariants asserted at every scheduling point."""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Generator
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck as Unhealthy, given, settings, strategies as st

from tests._invariants import (
    FakePool,
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    run,
    settle,
)
from trio_hyperpool import PoolError
from trio_hyperpool.testing import FakeConnector, Gate

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Generator[None]:
    """Thousands of failures on purpose are no news."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def gate(chance: random.Random) -> Gate:
    kind = chance.randrange(10)
    if kind < 5:
        return Gate.works()
    if kind < 7:
        return Gate.slow(chance.random())
    if kind == 7:
        return Gate.fails(on=chance.randint(1, 10))
    if kind == 8:
        return Gate.never(on=chance.randint(1, 10))
    return Gate(chance.random(), OSError("always"))


def knobs(chance: random.Random) -> dict[str, Any]:
    size = chance.randint(1, 5)
    options: dict[str, Any] = {
        "max_size": size,
        "min_idle": chance.choice([0, 0, chance.randint(0, size)]),
        "max_waiting": chance.choice([math.inf, math.inf, 2]),
        "health_check_after": chance.choice([0, 0.5]),
        "max_lifetime": chance.choice([math.inf, chance.random() * 3 + 0.1]),
        "idle_timeout": chance.choice([math.inf, chance.random() * 3 + 0.1]),
        "max_lease": chance.choice([math.inf, math.inf, chance.random() * 2 + 0.1]),
        "create_timeout": chance.choice([30, 0.5]),
        "recycle_timeout": chance.choice([5, 0.4]),
        "hook_timeout": chance.choice([1, 0.5]),
        "close_timeout": chance.choice([0, 1]),
        "create_attempts": chance.choice([1, 3]),
        "wait_timeout": chance.choice([math.inf, 1, 0.2]),
    }
    for hook in ("after_connect", "before_acquire", "after_release"):
        if chance.random() < 0.3:
            options[hook] = gate(chance)
    return options


async def borrow(
    pool: FakePool, connector: FakeConnector, chance: random.Random
) -> None:
    for _ in range(chance.randint(1, 4)):
        await trio.sleep(chance.random() * 2)
        patience = chance.choice([math.inf, chance.random() * 2, chance.random() * 0.1])
        with (
            contextlib.suppress(PoolError, OSError),
            trio.move_on_after(patience),
        ):
            wait_timeout = chance.choice([None, None, 0, 0.3])
            async with pool.lease(wait_timeout=wait_timeout) as connection:
                deed = chance.randrange(10)
                if deed == 0:
                    connection.begin()
                elif deed == 1:
                    connection.close()
                    continue
                elif deed == 2:
                    connector.break_all()
                await connection.execute(chance.choice([0, 0, chance.random()]))
                if chance.random() < 0.2:
                    async with pool.lease() as another:
                        await another.execute(chance.random() * 0.1)


async def meddle(
    pool: FakePool, connector: FakeConnector, chance: random.Random
) -> None:
    for _ in range(chance.randint(0, 4)):
        await trio.sleep(chance.random() * 3)
        deed = chance.randrange(4)
        if deed == 0:
            pool.reset()
        elif deed == 1:
            pool.retire_idle()
        elif deed == 2:
            pool.resize(chance.randint(1, 5))
        else:
            patience = chance.choice([math.inf, 0.5])
            with contextlib.suppress(PoolError), trio.move_on_after(patience):
                async with pool.quiesce():
                    assert not connector.open_connections
                    assert not connector._connecting
                    await trio.sleep(chance.random() * 0.3)
                    assert not connector.open_connections


async def storm(chance: random.Random, end: str) -> None:
    gates = {
        name: gate(chance) for name in ("prepare", "connect", "probe", "clean", "close")
    }
    connector = FakeConnector(**gates)
    options = knobs(chance)
    hooks = [option for option in options.values() if isinstance(option, Gate)]
    with trio.CancelScope() as scope:
        # Some borrowers are inside the block, and some outlive the pool.
        async with (
            trio.open_nursery() as outside,
            fake_pool(connector, **options) as pool,
        ):
            for _ in range(chance.randint(0, 2)):
                outside.start_soon(borrow, pool, connector, chance)
            if end == "early":
                await trio.sleep(chance.random() * 5)
                return
            if end == "cancelled":
                scope.deadline = trio.current_time() + chance.random() * 5
            async with trio.open_nursery() as inside:
                for _ in range(chance.randint(1, 8)):
                    inside.start_soon(borrow, pool, connector, chance)
                inside.start_soon(meddle, pool, connector, chance)
            while outside.child_tasks:  # noqa: ASYNC110
                await trio.sleep(1)
            for each in (*gates.values(), *hooks):
                each.delay, each.error = 0, None
            await settle(pool)
            assert_nothing_is_lost(pool)
            await assert_all_places_work(pool)


@pytest.mark.parametrize("end", ["late", "early", "cancelled"])
def test_no_storm_breaks_an_invariant_or_leaks(end: str) -> None:
    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=list(Unhealthy),
        print_blob=True,
    )
    @given(st.randoms(use_true_random=False))
    def one_storm(chance: random.Random) -> None:
        run(lambda: storm(chance, end))

    one_storm()


@pytest.mark.parametrize("seed", range(5))
def test_long_storms_with_true_chance_end_well(seed: int) -> None:
    for turn in range(100):
        chance = random.Random(1000 * seed + turn)
        run(lambda: storm(chance, "late"))  # noqa: B023 - it is run at once
