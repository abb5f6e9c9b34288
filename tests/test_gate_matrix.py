"""Every combination of what can go wrong at each gate that a connection passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import trio

from tests._invariants import assert_nothing_is_lost, fake_pool, run, settle
from trio_hyperpool import PoolError
from trio_hyperpool.testing import FakeConnector, Gate

GATES: dict[str, Callable[[], Gate]] = {
    "works": Gate.works,
    "fails": Gate.fails,
    "slow": lambda: Gate.slow(0.5),
    "never": Gate.never,
}
TASKS = 8
SIZE = 3
WAIT, CREATE, RECYCLE, HOOK = 20.0, 3.0, 2.0, 1.0
LONGEST = WAIT + 2 * CREATE + 2 * RECYCLE + 2 * HOOK + 1
"""Seconds: a wait, a check that fails and its replacement, and the block itself."""


async def storm(
    connect: str,
    probe: str,
    after_connect: str,
    before_acquire: str,
    after_release: str,
) -> None:
    connector = FakeConnector(connect=GATES[connect](), probe=GATES[probe]())

    async def borrow(number: int) -> None:
        for turn in range(2):
            began_at = trio.current_time()
            try:
                async with pool.lease() as connection:
                    await connection.execute(0.25)
                    if (number + turn) % 3 == 0:
                        connection.begin()
            except PoolError:
                assert set(gates) != {"works"}
            assert trio.current_time() - began_at <= LONGEST
            await trio.sleep(0.5)

    gates = (connect, probe, after_connect, before_acquire, after_release)
    async with fake_pool(
        connector,
        max_size=SIZE,
        health_check_after=0.1,
        wait_timeout=WAIT,
        create_timeout=CREATE,
        recycle_timeout=RECYCLE,
        hook_timeout=HOOK,
        after_connect=GATES[after_connect](),
        before_acquire=GATES[before_acquire](),
        after_release=GATES[after_release](),
    ) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                nursery.start_soon(borrow, number)
        await settle(pool)
        assert_nothing_is_lost(pool)
        assert connector.most_open <= SIZE
        if "fails" not in gates and "never" not in gates:
            assert pool.statistics().leases == 2 * TASKS


@pytest.mark.parametrize("probe", GATES)
@pytest.mark.parametrize("connect", GATES)
def test_every_task_ends_in_time_and_nothing_leaks(connect: str, probe: str) -> None:
    for hooks in itertools.product(GATES, repeat=3):
        run(lambda: storm(connect, probe, *hooks))  # noqa: B023 - it is run at once
