"""A pool that grows and shrinks under load."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._invariants import (
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    hold,
    settle,
)
from trio_hyperpool._pool import IdleConnection
from trio_hyperpool.testing import FakeConnector, Gate


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "3"])
async def test_a_senseless_size_is_refused(size: int) -> None:
    async with fake_pool() as pool:
        with pytest.raises((TypeError, ValueError), match="max_size"):
            pool.resize(size)
        assert pool.statistics().max_size == 16


async def test_growing_wakes_those_who_wait(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
            pool.resize(4)
            assert pool.config.max_size == 1
        assert trio.current_time() == 1
        assert pool.statistics().idle == 4


async def test_shrinking_ends_the_idle_that_rested_longest(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, max_size=4) as pool:
        await assert_all_places_work(pool)
        pool.resize(1)
        now = pool.statistics()
        assert (now.idle, now.cleaning) == (1, 3)
        await settle(pool)
        assert pool.statistics().retired == {"resize": 3}
        # The one given back last, which is the first that was opened.
        async with pool.lease() as connection:
            assert connection.number == 1


async def test_what_is_ending_already_makes_room_only_once(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(FakeConnector(close=Gate.slow(1)), max_size=3) as pool:
        await assert_all_places_work(pool)
        pool.resize(2)
        pool.resize(2)
        await settle(pool)
        assert pool.statistics().idle == 2


async def test_leased_connections_end_as_they_come_back(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=4) as pool:
        async with trio.open_nursery() as nursery:
            for seconds in (1, 2, 3, 4):
                await nursery.start(hold, pool, seconds)
            pool.resize(2)
            await trio.sleep(2.5)
            assert pool.statistics().size == 2
            assert pool.statistics().retired == {"resize": 2}
        assert pool.statistics().idle == 2


async def test_nobody_is_let_in_before_enough_have_left(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=4) as pool, trio.open_nursery() as nursery:
        for seconds in (1, 2, 3, 4):
            await nursery.start(hold, pool, seconds)
        pool.resize(2)
        async with pool.lease():
            assert trio.current_time() == 3


async def test_a_connection_that_a_seeker_waits_for_is_not_ended(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(100, only_on=2))
    async with fake_pool(connector, max_size=2, create_timeout=200) as pool:
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, pool, 1)
            nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
            pool.resize(1)
        # It got the first one; the second arrives in a pool that has no room for it,
        # or in place of the first.
        assert trio.current_time() == 2
        await trio.sleep(200)
        assert pool.statistics().size == 1
        assert pool.statistics().retired == {"resize": 1}
        assert_nothing_is_lost(pool)


async def test_shrinking_and_growing_at_once_is_no_change(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=3) as pool:
        async with pool.lease(), pool.lease(), pool.lease():
            pool.resize(1)
            pool.resize(3)
        assert pool.statistics().idle == 3
        assert not pool.statistics().retired


async def test_shrinking_while_a_place_is_on_its_way_keeps_the_bound(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 3)
        async with pool.lease() as connection:
            nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
            connection.close()
        pool.resize(1)
        await trio.sleep(10)
        assert pool.statistics().size == 1


async def test_shrinking_while_an_idle_one_is_promised_keeps_the_bound(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 3)
        async with pool.lease():
            nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
        # It is idle, and its place belongs to the waiter, who has not run yet.
        pool.resize(1)
        await trio.sleep(10)
        assert pool.statistics().size == 1


async def test_a_pool_that_grows_warms_up(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=4, min_idle=4) as pool:
        await settle(pool)
        assert pool.statistics().idle == 4
        pool.resize(1)
        await settle(pool)
        assert pool.statistics().idle == 1
        pool.resize(4)
        await trio.sleep(1)
        assert pool.statistics().idle == 4


async def test_sizes_that_change_all_the_time_lose_nothing(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(
        connect=Gate.slow(0.3), close=Gate.slow(0.2), clean=Gate.slow(0.1)
    )
    async with fake_pool(connector, max_size=4, health_check_after=0.1) as pool:

        async def borrow(number: int) -> None:
            for turn in range(10):
                await trio.sleep(number * 0.07)
                async with pool.lease() as connection:
                    await connection.execute(0.1)
                    if turn % 3 == 0:
                        connection.begin()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(borrow, number)
            for turn in range(60):
                pool.resize(1 + turn * 5 % 7)
                await trio.sleep(0.17)
        await settle(pool)
        assert_nothing_is_lost(pool)
        await assert_all_places_work(pool)
        assert pool.statistics().leases == 100 + pool.statistics().max_size


# Retiring on request


async def test_retire_idle_ends_what_is_idle_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=4) as pool:
        await assert_all_places_work(pool)
        async with pool.lease():
            assert pool.retire_idle() == 3
            assert pool.retire_idle() == 0
        await settle(pool)
        assert pool.statistics().retired == {"retire_idle": 3}
        assert pool.statistics().idle == 1


async def test_retire_idle_tells_its_predicate_age_rest_and_leases(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool:
        async with pool.lease():
            await trio.sleep(3)
            await hold(pool, 1)
        await hold(pool, 1)
        await trio.sleep(5)
        told: list[IdleConnection] = []

        def listen(idle: IdleConnection) -> bool:
            told.append(idle)
            return False

        assert pool.retire_idle(listen) == 0
        assert [(idle.age, idle.idle, idle.leases) for idle in told] == [
            (7, 6, 1),
            (10, 5, 2),
        ]
        assert pool.retire_idle(lambda idle: idle.leases == 1) == 1


async def test_a_predicate_may_retire_connections_itself(
    autojump_clock: MockClock,
) -> None:
    def is_chosen(_: IdleConnection) -> bool:
        pool.retire_idle()
        return True

    async with fake_pool(max_size=4) as pool:
        async with pool.lease(), pool.lease():
            pass
        assert pool.retire_idle(is_chosen) == 0
        await settle(pool)
        assert pool.statistics().retired == {"retire_idle": 2}
        assert_nothing_is_lost(pool)


async def test_a_predicate_that_raises_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool:
        await assert_all_places_work(pool)
        with pytest.raises(ZeroDivisionError):
            pool.retire_idle(lambda idle: bool(idle.leases / 0))
        assert pool.statistics().idle == 2
