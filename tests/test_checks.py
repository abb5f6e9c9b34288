"""Health checks: who is asked for a sign of life, when, and what one death tells."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests._invariants import (
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    hold,
    settle,
)
from tests.test_hooks import mixed
from trio_hyperpool import HealthCheck, PoolClosedError
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate

# When


async def test_a_connection_is_probed_once_it_has_rested(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, health_check_after=2) as pool:
        for rest, probes in ((0, 0), (1, 0), (2, 1), (1, 1), (5, 2)):
            await hold(pool, 10)
            await trio.sleep(rest)
            await hold(pool, 0)
            assert connector.probe_gate.calls == probes
        assert len(connector.opened) == 1


async def test_a_new_connection_is_not_probed_by_the_lease_it_was_opened_for(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, health_check_after=0, max_size=1) as pool:
        await hold(pool, 0)
        assert connector.probe_gate.calls == 0
        await hold(pool, 0)
        assert connector.probe_gate.calls == 1


async def test_a_warm_connection_that_was_never_leased_is_probed_after_its_rest(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, min_idle=1) as pool:
        await trio.sleep(3600)
        await hold(pool, 0)
        assert connector.probe_gate.calls == 1


async def test_with_no_rest_allowed_every_checkout_is_probed_hand_over_included(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, health_check_after=0, max_size=1) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold, pool, 1)
        assert connector.probe_gate.calls == 4


@pytest.mark.parametrize("check", [HealthCheck.PASSIVE, False])
async def test_a_passive_check_makes_no_round_trip(
    autojump_clock: MockClock, check: HealthCheck | bool
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, health_check=check, health_check_after=0) as pool:
        await hold(pool, 0)
        connector.break_all()
        async with pool.lease() as connection:
            assert connection.number == 2
        assert connector.probe_gate.calls == 0
        assert pool.statistics().discarded == {"found dead": 1}


async def test_a_check_of_ones_own_gets_a_view_and_replaces_the_probe(
    autojump_clock: MockClock,
) -> None:
    seen: list[int] = []

    async def check(connection: FakeConnection) -> None:
        seen.append(await connection.execute())

    connector = FakeConnector()
    async with fake_pool(connector, health_check=check, health_check_after=0) as pool:
        await hold(pool, 0)
        await hold(pool, 0)
        assert seen == [1]
        assert connector.probe_gate.calls == 0


# Failing


async def begin(connection: FakeConnection) -> None:
    await connection.execute()
    connection.begin()


@pytest.mark.parametrize(
    "check",
    [Gate.fails(), Gate.never(), begin, mixed],
    ids=["fails", "hangs", "leaves a transaction", "raises in its clean-up"],
)
async def test_a_connection_that_fails_its_check_is_replaced_at_once(
    autojump_clock: MockClock, check: Gate
) -> None:
    connector = FakeConnector(close=Gate.never())
    async with fake_pool(
        connector, health_check=check, health_check_after=0, recycle_timeout=2
    ) as pool:
        await hold(pool, 0)
        async with pool.lease() as connection:
            assert connection.number == 2
            # No farewell to the dead.
            assert trio.current_time() in {0, 2}
        now = pool.statistics()
        assert now.health_check_failures == 1
        assert now.discarded == {"failed health check": 1}
        assert not now.retired


async def test_a_failed_probe_keeps_the_bound_of_one(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.fails(), connect=Gate.slow(1))
    async with fake_pool(connector, health_check_after=0, max_size=1) as pool:
        await hold(pool, 0)
        await hold(pool, 0)
        assert connector.most_open == 1


async def test_a_lease_whose_check_failed_tries_no_other_idle_connection(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.fails())
    async with fake_pool(connector, health_check_after=0, max_size=4) as pool:
        await assert_all_places_work(pool)
        async with pool.lease() as connection:
            assert connection.number == 5
        assert connector.probe_gate.calls == 1
        assert pool.statistics().idle == 4


async def test_a_failed_check_and_a_failed_replacement_reach_the_lease(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.fails())
    async with fake_pool(connector, health_check_after=0, max_size=1) as pool:
        await hold(pool, 0)
        connector.connect_gate = Gate.fails(OSError("gone"))
        with pytest.raises(Exception, match="gone"):
            await hold(pool, 0)
        assert_nothing_is_lost(pool)


async def test_a_lease_whose_check_failed_may_be_served_by_a_returned_one(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.fails(on=1))
    async with fake_pool(connector, health_check_after=0, max_size=2) as pool:
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, pool, 3)
            await hold(pool, 0)
            connector.connect_gate = Gate.slow(100)
            async with pool.lease() as connection:
                assert trio.current_time() == 3
                assert connection.number == 1
        assert connector.probe_gate.calls == 2


# Cancelled


async def test_a_cancelled_probe_sends_its_connection_to_be_cleaned(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.never(on=1))
    async with fake_pool(connector, health_check_after=0, max_size=1) as pool:
        await hold(pool, 0)
        with trio.move_on_after(1) as scope:
            await hold(pool, 0)
        assert scope.cancelled_caught
        assert pool.statistics().cleaning == 1
        await settle(pool)
        assert connector.clean_gate.calls == 1
        assert pool.statistics().idle == 1


async def test_a_probe_that_ends_after_the_pool_closed_reports_that(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    connector = FakeConnector()

    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)

    async with trio.open_nursery() as nursery:
        async with fake_pool(
            connector,
            health_check=Gate.slow(3),
            health_check_after=0,
            before_acquire=hook,
            close_timeout=1,
        ) as pool:
            await hold(pool, 0)
            nursery.start_soon(borrow)
            await trio.sleep(0.5)
        assert trio.current_time() == 1.5
    # And nobody was given the dead connection on the way.
    assert hook.calls == 1
    assert pool.statistics().use.max == 0
    assert pool.statistics().revoked == 0


async def test_a_probe_that_fails_in_the_grace_of_a_closing_pool_opens_nothing(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate(2, OSError("dead")))

    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)

    async with trio.open_nursery() as nursery:
        async with fake_pool(connector, health_check_after=0) as pool:
            await hold(pool, 0)
            nursery.start_soon(borrow)
            await trio.sleep(1)
        assert trio.current_time() == 2
    assert len(connector.opened) == 1
    assert pool.statistics().discarded == {"failed health check": 1}


# One death tells of others


async def test_after_a_restart_the_first_lease_costs_one_connect(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(1), probe=Gate.never())
    async with fake_pool(connector) as pool:
        await assert_all_places_work(pool)
        assert len(connector.opened) == 16
        began_at = trio.current_time()
        connector.break_all()
        async with pool.lease() as connection:
            assert connection.number == 17
            assert trio.current_time() == began_at + 1
        now = pool.statistics()
        assert now.discarded == {"found dead": 16}
        assert now.size == 1


async def test_behind_a_silent_peer_the_first_lease_costs_one_probe_and_one_connect(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.never(), connect=Gate.slow(1))
    async with fake_pool(connector, recycle_timeout=5) as pool:
        await assert_all_places_work(pool)
        await trio.sleep(10)
        began_at = trio.current_time()
        async with pool.lease():
            assert trio.current_time() == began_at + 6


@pytest.mark.parametrize("how", ["looked at", "probed", "returned broken"])
async def test_one_death_makes_those_opened_before_it_suspect(
    autojump_clock: MockClock, how: str
) -> None:
    connector = FakeConnector(probe=Gate.fails(on=1) if how == "probed" else None)
    async with fake_pool(connector, max_size=3, health_check_after=100) as pool:
        async with pool.lease(), pool.lease():
            async with pool.lease() as dying:
                if how == "returned broken":
                    dying.close()
            if how == "looked at":
                connector.opened[2].session.is_open = False
            if how == "probed":
                await trio.sleep(100)
            await hold(pool, 0)
            assert pool.statistics().opened == 4
        # The other two are asked however short their rest was, and once each.
        for _ in range(3):
            async with pool.lease(), pool.lease(), pool.lease():
                pass
        assert connector.probe_gate.passed == 2


async def test_a_warm_connection_becomes_suspect_too(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, min_idle=2, health_check_after=100) as pool:
        await settle(pool)
        async with pool.lease() as connection:
            connection.close()
        before = connector.probe_gate.calls
        await hold(pool, 0)
        assert connector.probe_gate.calls == before + 1


async def test_a_check_proves_nothing_about_deaths_after_it_began(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.slow(3))
    async with fake_pool(connector, max_size=2, health_check_after=100) as pool:
        async with trio.open_nursery() as nursery:
            async with pool.lease() as dying:
                await hold(pool, 0)
                await trio.sleep(100)
                nursery.start_soon(hold, pool, 0)
                await trio.sleep(1)
                dying.close()
            assert pool.statistics().discarded == {"returned broken": 1}
        assert connector.probe_gate.calls == 1
        await hold(pool, 0)
        assert connector.probe_gate.calls == 2


# Generations


async def test_a_reset_retires_every_connection_as_it_comes_free(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(1), close=Gate.slow(1))
    async with fake_pool(connector, max_size=4) as pool:
        await assert_all_places_work(pool)
        async with pool.lease() as kept:
            pool.reset()
            assert pool.statistics().idle == 0
            await settle(pool)
            assert pool.statistics().retired == {"reset": 3}
            assert await kept.execute() == kept.number
        await settle(pool)
        assert pool.statistics().retired == {"reset": 4}
        async with pool.lease() as connection:
            assert connection.number == 5


async def test_a_connection_on_its_way_at_a_reset_is_opened_anew(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with fake_pool(connector) as pool, trio.open_nursery() as nursery:

        async def reset() -> None:
            for _ in range(2):
                await trio.sleep(1.5)
                pool.reset()

        nursery.start_soon(reset)
        async with pool.lease() as connection:
            assert connection.number == 3
            assert trio.current_time() == 6
        assert pool.statistics().retired == {"reset": 2}


async def test_a_connection_on_its_way_at_a_reset_is_not_opened_for_a_closed_pool(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(2, only_on=2))
    async with trio.open_nursery() as nursery:
        async with fake_pool(connector) as pool:
            await nursery.start(hold, pool, 4)
            with trio.move_on_after(1):
                await hold(pool, 0)
            pool.reset()
        assert trio.current_time() == 4
    assert len(connector.opened) == 2


async def test_a_connection_that_was_opened_anew_tells_why_it_ends_in_the_end(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with trio.open_nursery() as nursery:
        async with fake_pool(connector) as pool:
            await nursery.start(hold, pool, 4.5)
            connector.connect_gate = Gate.slow(2)
            with trio.move_on_after(1):
                await hold(pool, 0)
            pool.reset()
            await trio.sleep(2)
        assert trio.current_time() == 4.5
    assert pool.statistics().retired == {"reset": 1, "pool closed": 2}


async def test_a_reset_keeps_the_bound_when_every_place_is_replaced(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(3), connect=Gate.slow(1))
    async with fake_pool(connector, max_size=4) as pool:
        await assert_all_places_work(pool)
        pool.reset()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(hold, pool, 1)
        assert connector.most_open == 4
        assert pool.statistics().opened == 8
