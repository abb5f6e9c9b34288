"""Each thing a task does with a pool, cancelled after its k-th step for every k.

An instrument cancels the scenario's scope after the k-th step that any task takes, for
k = 1, 2, … until the scenario survives: so every scheduling point is visited.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
import trio

from tests._invariants import (
    FakePool,
    assert_all_places_work,
    assert_nothing_is_lost,
    at_step,
    fake_pool,
    hold,
    interrupt,
    run,
    settle,
)
from trio_hyperpool import PoolError
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate


@dataclasses.dataclass
class Scenario:
    """What is done before, and what is cancelled."""

    act: Callable[[FakePool], Awaitable[None]]
    before: Callable[[FakePool], Awaitable[None]] | None = None
    gates: dict[str, Callable[[], Gate]] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    hooks: dict[str, Callable[[], Gate]] = dataclasses.field(default_factory=dict)
    beside: bool = False
    """Whether another task has one of the places for a while."""

    @contextlib.asynccontextmanager
    async def pool(self) -> AsyncGenerator[tuple[FakePool, list[Gate]]]:
        """Its pool, and all the gates of it that do not just work."""
        gates = {name: gate() for name, gate in self.gates.items()}
        hooks = {name: gate() for name, gate in self.hooks.items()}
        options: Any = {"max_size": 2, **self.options, **hooks}
        async with fake_pool(FakeConnector(**gates), **options) as pool:
            yield pool, [*gates.values(), *hooks.values()]


async def lease(pool: FakePool) -> None:
    async with pool.lease() as connection:
        await connection.execute()


async def lease_all(pool: FakePool) -> None:
    await assert_all_places_work(pool)


async def lease_dirty(pool: FakePool) -> None:
    async with pool.lease() as connection:
        connection.begin()
        await connection.execute()
    await trio.sleep(5)


async def query(pool: FakePool) -> None:
    async with pool.lease() as connection:
        await connection.execute(1)
    await lease(pool)


async def flush(pool: FakePool) -> None:
    await pool.flush()


async def quiesce(pool: FakePool) -> None:
    async with pool.quiesce():
        await trio.sleep(1)
    await lease(pool)


async def resize(pool: FakePool) -> None:
    async with pool.lease() as one, pool.lease() as two:
        pool.resize(1)
        await one.execute()
        await two.execute()
    await lease(pool)
    pool.resize(2)
    await lease_all(pool)


async def reset(pool: FakePool) -> None:
    pool.reset()
    await lease_all(pool)
    pool.retire_idle()
    await lease_all(pool)


async def many(pool: FakePool) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(hold, pool, number)


async def nested(pool: FakePool) -> None:
    async def twice() -> None:
        with contextlib.suppress(PoolError):
            async with pool.lease():
                await trio.sleep(1)
                async with pool.lease():
                    await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(twice)


async def break_all(pool: FakePool) -> None:
    await lease_all(pool)
    connector: Any = pool._supply.connector
    connector.break_all()


def slow() -> Gate:
    return Gate.slow(1)


def failing() -> Gate:
    return Gate(1, OSError("a gate of the test failed"))


def failing_once() -> Gate:
    return Gate(1, OSError("a gate of the test failed"), only_on=1)


def failing_later() -> Gate:
    return Gate(1, OSError("a gate of the test failed"), only_on=3)


PROBING = {"health_check_after": 0}
EVERY_HOOK = {"after_connect": slow, "before_acquire": slow, "after_release": slow}
SCENARIOS = {
    "a lease that opens": Scenario(lease),
    "a lease that opens slowly": Scenario(lease, gates={"connect": slow}),
    "a lease that prepares": Scenario(many, gates={"prepare": slow}),
    "a preparation that fails": Scenario(
        lambda pool: suppressed(many, pool), gates={"prepare": failing_once}
    ),
    "a lease that reuses": Scenario(lease, before=lease),
    "a lease that probes": Scenario(
        lease, before=lease, gates={"probe": slow}, options=PROBING
    ),
    "a lease whose probe fails": Scenario(
        lease_all, before=lease_all, gates={"probe": failing}, options=PROBING
    ),
    "a lease of the dead": Scenario(lease_all, before=break_all),
    "after_connect": Scenario(lease, hooks={"after_connect": slow}),
    "after_connect that fails": Scenario(
        lambda pool: suppressed(many, pool),
        hooks={"after_connect": failing_once},
        gates={"close": slow},
    ),
    "before_acquire": Scenario(lease_all, before=lease, hooks={"before_acquire": slow}),
    "before_acquire that fails": Scenario(
        lambda pool: suppressed(lease_all, pool),
        before=lease_all,
        hooks={"before_acquire": failing_later},
        gates={"close": slow},
    ),
    "after_release": Scenario(many, hooks={"after_release": slow}),
    "after_release that fails": Scenario(many, hooks={"after_release": failing_once}),
    "every hook": Scenario(many, gates={"probe": slow}, hooks=EVERY_HOOK),
    "a wait": Scenario(lease_all, beside=True),
    "many waits": Scenario(many, beside=True),
    "a wait that times out": Scenario(
        lambda pool: suppressed(many, pool), beside=True, options={"wait_timeout": 0.5}
    ),
    "a ring of waits": Scenario(nested),
    "returning dirty": Scenario(lease_dirty, gates={"clean": slow}),
    "returning what can't be cleaned": Scenario(lease_dirty, gates={"clean": failing}),
    "a query": Scenario(query),
    "a quiesce": Scenario(quiesce, before=lease_all, gates={"close": slow}),
    "a quiesce that drains": Scenario(
        quiesce, before=lease, gates={"close": slow}, beside=True
    ),
    "a flush": Scenario(flush, before=lease_all, gates={"close": slow}, beside=True),
    "a resize": Scenario(resize, gates={"close": slow}),
    "a reset": Scenario(
        reset, before=lease_all, gates={"close": slow, "connect": slow}
    ),
    "warming": Scenario(many, gates={"connect": slow}, options={"min_idle": 2}),
    "expiring": Scenario(
        many, options={"idle_timeout": 1, "max_lifetime": 2}, gates={"close": slow}
    ),
    "revoking": Scenario(many, options={"max_lease": 1}),
}


async def suppressed(
    act: Callable[[FakePool], Awaitable[None]], pool: FakePool
) -> None:
    with contextlib.suppress(PoolError):
        try:
            await act(pool)
        except BaseExceptionGroup as group:
            _, rest = group.split(PoolError)
            if rest is not None:
                raise rest from None


async def cancelled_after(scenario: Scenario, step: int, *, by_ctrl_c: bool) -> bool:
    """Run it; whether it was interrupted at all."""
    async with scenario.pool() as (pool, gates), trio.open_nursery() as nursery:
        if scenario.before is not None:
            await scenario.before(pool)
        if scenario.beside:
            await nursery.start(hold, pool, 2)
        with trio.CancelScope() as scope:
            act = interrupt if by_ctrl_c else scope.cancel
            with at_step(step, act) as instrument:
                try:
                    await scenario.act(pool)
                except* KeyboardInterrupt:
                    assert by_ctrl_c
        with contextlib.suppress(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()
        await trio.sleep(3)
        await settle(pool)
        assert_nothing_is_lost(pool)
        pool.resize(2)
        for gate in gates:
            gate.error = None
        await assert_all_places_work(pool)
    return instrument.has_acted


@pytest.mark.parametrize("by_ctrl_c", [False, True], ids=["cancelled", "interrupted"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_wherever_a_task_is_stopped(name: str, by_ctrl_c: bool) -> None:
    step = 1
    while run(
        lambda: cancelled_after(SCENARIOS[name], step, by_ctrl_c=by_ctrl_c)  # noqa: B023
    ):
        step += 1
    assert step > 2


async def closed_after(scenario: Scenario, step: int) -> bool:
    """Run the whole pool in the scope, another task having a lease from outside."""

    async def stubborn(
        pool: FakePool,
        *,
        task_status: trio.TaskStatus[FakeConnection],
    ) -> None:
        with contextlib.suppress(PoolError, OSError):
            async with pool.lease() as connection:
                task_status.started(connection)
                for _ in range(30):
                    await trio.sleep(0.1)
                    await connection.execute()
                connection.begin()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope, at_step(step, scope.cancel) as instrument:
            async with scenario.pool() as (pool, _):
                await nursery.start(stubborn, pool)
                await scenario.act(pool)
        nursery.cancel_scope.deadline = trio.current_time() + 10
    return instrument.has_acted


@pytest.mark.parametrize(
    "name",
    ["a lease that opens slowly", "every hook", "a quiesce that drains", "warming"],
)
def test_a_pool_closes_cleanly_wherever_it_is_cancelled(name: str) -> None:
    step = 1
    scenario = dataclasses.replace(SCENARIOS[name])
    scenario.gates = {**scenario.gates, "close": slow, "clean": slow}
    while run(lambda: closed_after(scenario, step)):  # noqa: B023
        step += 1
    assert step > 20
