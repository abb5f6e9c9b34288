"""The figures add up at every moment, and name who has the connections."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._invariants import (
    assert_sums_are_right,
    fake_pool,
    hold,
    settle,
)
from trio_hyperpool import ConnectError
from trio_hyperpool.testing import FakeConnector, Gate


async def test_every_connection_is_in_one_of_four_states(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(5, only_on=4), clean=Gate.slow(5))
    async with fake_pool(connector, max_size=4) as pool, trio.open_nursery() as nursery:
        async with pool.lease() as dirty:
            async with pool.lease(), pool.lease():
                pass
            nursery.start_soon(hold, pool, 5)
            await wait_all_tasks_blocked()
            dirty.begin()
            async with pool.lease():
                with trio.move_on_after(0.1):
                    await hold(pool, 0)
        nursery.start_soon(hold, pool, 9)
        await wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        now = pool.statistics()
        assert (now.size, now.idle, now.leased) == (4, 0, 2)
        assert (now.opening, now.cleaning, now.waiting) == (1, 1, 1)
        assert "connections: 4 of 4: 0 idle, 2 leased, 1 opening, 1 cleaning" in str(
            now
        )
        assert repr(pool) == (
            "<Pool 'fake': 4 of 4 connections, 0 idle, 2 leased, 1 tasks waiting>"
        )


async def test_times_are_counted_from_asking_to_having_to_giving_back(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with fake_pool(connector, max_size=1) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 3)
            await wait_all_tasks_blocked()
            nursery.start_soon(hold, pool, 4)
        now = pool.statistics()
        assert (now.wait.count, now.wait.sum, now.wait.max) == (2, 2 + 5, 5)
        assert (now.use.count, now.use.sum, now.use.max) == (2, 7, 4)
        assert (now.create.count, now.create.sum) == (1, 2)
        assert now.wait.mean == 3.5
        assert now.leases == 2


async def test_what_was_opened_is_what_was_ended_and_what_is_alive(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.fails(on=3), clean=Gate.fails(on=2))
    async with fake_pool(connector, max_size=3, max_lease=50) as pool:
        failures = 0
        for turn in range(30):
            try:
                async with pool.lease() as connection:
                    if turn % 3 == 0:
                        connection.begin()
                    if turn % 7 == 0:
                        connection.close()
                    if turn == 11:
                        await trio.sleep(60)
            except (OSError, ConnectError):
                failures += 1
            if turn % 10 == 9:
                pool.reset()
            await settle(pool)
            assert_sums_are_right(pool, connector)
        assert failures == pool.statistics().open_failures == 1


async def test_holders_are_named_the_longest_first(autojump_clock: MockClock) -> None:
    async with fake_pool(name="the pool") as pool, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(hold, pool, 10, name=f"task {number}")
            await trio.sleep(1)
        now = pool.statistics()
        assert [holder.task for holder in now.holders] == ["task 0", "task 1", "task 2"]
        assert [holder.held for holder in now.holders] == [3, 2, 1]
        line = hold.__code__.co_firstlineno + 7
        for holder in now.holders:
            assert holder.taken_at == f"{hold.__code__.co_filename}:{line}"
        assert f"held by task 0 for 3 s, taken at {hold.__code__.co_filename}" in str(
            now
        )
        assert now.name == pool.name == "the pool"


async def test_a_lease_that_is_still_checked_has_been_held_for_no_time(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(before_acquire=Gate.slow(5)) as pool:  # noqa: SIM117
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 0)
            await trio.sleep(1)
            (holder,) = pool.statistics().holders
            assert holder.held == 0


async def test_a_snapshot_is_frozen(autojump_clock: MockClock) -> None:
    async with fake_pool() as pool:
        before = pool.statistics()
        await hold(pool, 0)
        pool.retire_idle()
        await settle(pool)
        assert before.leases == 0
        assert not before.retired
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.leases = 1  # type: ignore[misc]
        with pytest.raises(TypeError):
            before.retired["reset"] = 1  # type: ignore[index]


async def test_failed_checks_and_hooks_timeouts_and_revocations_are_counted(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.fails(on=1))
    async with fake_pool(
        connector, health_check_after=0, max_lease=3, max_size=1, wait_timeout=1
    ) as pool:
        await hold(pool, 0)
        await hold(pool, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 5)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.TooSlowError):
                await hold(pool, 0)
        now = pool.statistics()
        assert now.health_check_failures == 1
        assert now.wait_timeouts == 1
        assert now.revoked == 1
        assert now.hook_failures == 0
