"""A pool without any connection for the length of a block, and on again after it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests._invariants import (
    FakePool,
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    hold,
    settle,
)
from trio_hyperpool import (
    PoolClosedError,
    PoolDeadlockError,
    PoolError,
    PoolTimeoutError,
)
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate


async def test_inside_the_block_there_is_no_connection_at_all(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, max_size=4, min_idle=2) as pool:
        await assert_all_places_work(pool)
        async with pool.quiesce():
            assert trio.current_time() == 1
            assert not connector.open_connections
            assert pool.statistics().size == 0
            await trio.sleep(100)
            assert not connector.open_connections
            assert pool.statistics().size == 0
        assert pool.statistics().retired == {"quiesce": 4}
        await settle(pool)
        # And the warm ones come back.
        assert pool.statistics().idle == 2
        await assert_all_places_work(pool)


async def test_it_waits_for_leases_openers_and_cleaning(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(clean=Gate.slow(3), connect=Gate(9, only_on=3))
    async with fake_pool(connector, max_size=3) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 5)
        async with pool.lease() as connection:
            connection.begin()
            with trio.move_on_after(1):
                await hold(pool, 0)
        async with pool.quiesce():
            assert trio.current_time() == 9
            assert not connector.open_connections


async def test_newcomers_and_waiters_are_held_and_served_in_order_afterwards(
    autojump_clock: MockClock,
) -> None:
    order: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.lease():
            order.append(number)
            await trio.sleep(1)

    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 5)
        nursery.start_soon(borrow, 0)
        await trio.sleep(1)
        async with trio.open_nursery() as inner:

            async def drain() -> None:
                async with pool.quiesce():
                    assert trio.current_time() == 5
                    assert order == []
                    await trio.sleep(5)

            inner.start_soon(drain)
            await trio.sleep(1)
            for number in (1, 2):
                nursery.start_soon(borrow, number)
                await trio.sleep(1)
        await trio.sleep(5)
        assert order == [0, 1, 2]


async def test_a_newcomer_does_not_take_over_an_opener_that_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []

    async def borrow() -> None:
        await trio.sleep(2)
        async with pool.lease():
            order.append("newcomer")
            await trio.sleep(10)

    connector = FakeConnector(connect=Gate.slow(5))
    async with fake_pool(connector) as pool, trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await hold(pool, 0)
        nursery.start_soon(borrow)
        async with pool.quiesce():
            assert trio.current_time() == 5
            order.append("drained")
    assert order == ["drained", "newcomer"]


async def test_a_wait_for_the_drained_pool_has_its_own_end(
    autojump_clock: MockClock,
) -> None:
    async def impatient() -> None:
        with pytest.raises(PoolTimeoutError):
            async with pool.lease(wait_timeout=2):
                pass
        with pytest.raises(PoolTimeoutError):
            async with pool.lease(wait_timeout=0):
                pass

    async with fake_pool() as pool, pool.quiesce(), trio.open_nursery() as nursery:
        nursery.start_soon(impatient)


async def test_entering_is_a_checkpoint(autojump_clock: MockClock) -> None:
    async with fake_pool() as pool:
        block = pool.quiesce()
        with assert_checkpoints():
            await block.__aenter__()
        await block.__aexit__(None, None, None)
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.flush()
        assert scope.cancelled_caught


async def test_two_of_them_come_one_after_the_other(autojump_clock: MockClock) -> None:
    spans: list[tuple[float, float]] = []

    async def quiesce() -> None:
        async with pool.quiesce():
            began_at = trio.current_time()
            await trio.sleep(2)
            spans.append((began_at, trio.current_time()))

    async with fake_pool() as pool:
        await hold(pool, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(quiesce)
        assert spans == [(0, 2), (2, 4), (4, 6)]


async def test_what_the_block_raises_comes_out_as_it_is(
    autojump_clock: MockClock,
) -> None:
    error = ValueError("mine")
    async with fake_pool() as pool:
        with pytest.raises(ValueError, match="mine") as caught:
            async with pool.quiesce():
                raise error
        assert caught.value is error
        await assert_all_places_work(pool)


@pytest.mark.parametrize("patience", [1, 3.5, 5])
async def test_cancelled_at_any_time_the_pool_goes_on_as_before(
    autojump_clock: MockClock, patience: float
) -> None:
    # While it drains, while it says farewell, and inside the block.
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, max_size=3) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 3)
        await hold(pool, 0)
        with trio.move_on_after(patience) as scope:
            async with pool.quiesce():
                await trio.sleep(100)
        assert scope.cancelled_caught
        assert trio.current_time() == patience
        await assert_all_places_work_beside(pool, 1 if patience < 3 else 0)


async def assert_all_places_work_beside(pool: FakePool, leased: int) -> None:
    await wait_all_tasks_blocked()
    assert pool.statistics().leased == leased
    async with pool.lease(wait_timeout=0), pool.lease(wait_timeout=0):
        pass


# Flushing


async def test_flush_ends_every_connection_in_good_order(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector) as pool:
        await hold(pool, 0)
        await pool.flush()
        assert connector.close_gate.passed == 1
        assert pool.statistics().size == 0
        await assert_all_places_work(pool)


@pytest.mark.parametrize("gate", [Gate.fails(on=1), Gate.never(on=1)])
async def test_flush_makes_good_a_farewell_that_did_not_go_well(
    autojump_clock: MockClock, gate: Gate
) -> None:
    connector = FakeConnector(close=gate)
    async with fake_pool(connector, max_size=3) as pool:
        await assert_all_places_work(pool)
        await pool.flush()
        assert connector.settle_gate.passed == 1
        # Once is enough.
        await assert_all_places_work(pool)
        await pool.flush()
        assert connector.settle_gate.calls == 1


@pytest.mark.parametrize("gate", [Gate.fails(on=1), Gate.never(on=1)])
async def test_flush_says_so_if_that_does_not_go_well_either(
    autojump_clock: MockClock, gate: Gate
) -> None:
    connector = FakeConnector(settle=gate)
    async with fake_pool(connector, max_size=3) as pool:
        async with pool.lease() as connection:
            connection.close()
        with pytest.raises(PoolError, match="may not be on disk"):
            await pool.flush()
        assert_nothing_is_lost(pool)
        await assert_all_places_work(pool)
        # It is still to be done.
        await pool.flush()
        assert connector.settle_gate.calls == 2


# What could never end


async def test_a_task_that_holds_a_lease_cannot_drain_the_pool(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool, pool.lease():
        for drain in (pool.flush, pool.quiesce().__aenter__):
            with pytest.raises(PoolDeadlockError, match="wait for itself"):
                await drain()
        assert pool.statistics().leased == 1


async def test_a_task_inside_the_block_cannot_drain_it_again_nor_lease(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        async with pool.quiesce():
            with pytest.raises(PoolDeadlockError, match="wait for itself"):
                await pool.flush()
            with pytest.raises(PoolDeadlockError, match="inside quiesce"):
                await hold(pool, 0)
            with pytest.raises(PoolDeadlockError, match="inside quiesce"):
                async with pool.lease(wait_timeout=0):
                    pass
        await assert_all_places_work(pool)


async def test_a_second_lease_while_the_pool_is_drained_is_told_at_once(
    autojump_clock: MockClock,
) -> None:
    async def flush() -> None:
        await trio.sleep(1)
        await pool.flush()
        flushed_at.append(trio.current_time())

    flushed_at: list[float] = []
    async with fake_pool() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        async with pool.lease():
            await trio.sleep(2)
            with pytest.raises(PoolDeadlockError):
                await hold(pool, 0)
        await trio.sleep(1)
        assert flushed_at == [2]


async def test_a_second_lease_that_waits_already_is_told_when_the_drain_begins(
    autojump_clock: MockClock,
) -> None:
    async def borrow() -> None:
        async with pool.lease():
            await wait_all_tasks_blocked()
            with pytest.raises(PoolDeadlockError):
                await hold(pool, 0)
            told_at.append(trio.current_time())

    told_at: list[float] = []
    async with fake_pool(max_size=3) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(hold, pool, 10)
        nursery.start_soon(borrow)
        nursery.start_soon(borrow)
        await trio.sleep(1)
        await pool.flush()
    assert told_at == [1, 1]


async def test_no_alarm_if_the_drain_has_a_deadline(autojump_clock: MockClock) -> None:
    async def flush() -> None:
        with trio.move_on_after(5) as scope:
            await pool.flush()
        assert scope.cancelled_caught

    async with fake_pool() as pool, trio.open_nursery() as nursery, pool.lease():
        nursery.start_soon(flush)
        await wait_all_tasks_blocked()
        async with pool.lease():
            assert trio.current_time() == 5


async def test_a_deadline_around_the_drain_and_the_wait_is_no_end_of_the_drain(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery, pool.lease():
                nursery.start_soon(pool.flush)
                await wait_all_tasks_blocked()
                with pytest.raises(PoolDeadlockError):
                    await hold(pool, 0)
        assert trio.current_time() == 0


async def test_of_two_second_leases_the_one_that_the_drain_outlasts_is_told(
    autojump_clock: MockClock,
) -> None:
    async def borrow(patience: float) -> None:
        with trio.move_on_after(patience):
            async with pool.lease():
                await trio.sleep(1)
                try:
                    await hold(pool, 0)
                except PoolDeadlockError:
                    told.append(patience)

    told: list[float] = []
    async with fake_pool() as pool, trio.open_nursery() as nursery:
        nursery.start_soon(borrow, 10)
        nursery.start_soon(borrow, 100)
        await wait_all_tasks_blocked()
        with trio.move_on_after(50):
            await pool.flush()
    # The other one is in the queue again as soon as the drain is given up.
    assert told == [10]


# Together with the rest


async def test_a_pool_that_closes_ends_a_drain_in_progress(
    autojump_clock: MockClock,
) -> None:
    async def flush() -> None:
        with pytest.raises(PoolClosedError):
            await pool.flush()
        # At once, and not when the last lease has ended.
        assert trio.current_time() == 1

    async with trio.open_nursery() as nursery, fake_pool(close_timeout=2) as pool:
        await nursery.start(hold, pool, 10)
        nursery.start_soon(flush)
        nursery.start_soon(flush)
        await trio.sleep(1)


async def test_a_pool_may_close_inside_anothers_block(
    autojump_clock: MockClock,
) -> None:
    async def quiesce() -> None:
        async with pool.quiesce():
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        async with fake_pool() as pool:
            await hold(pool, 0)
            nursery.start_soon(quiesce)
            await trio.sleep(1)
        assert trio.current_time() == 1


async def test_a_resize_inside_the_block_holds_afterwards(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool:
        await assert_all_places_work(pool)
        async with pool.quiesce():
            pool.resize(5)
            assert pool._supply.queue.take() is None
        await assert_all_places_work(pool)
        assert pool.statistics().size == 5


async def test_a_resize_before_the_block_that_is_given_up_holds_as_soon_as_it_can(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=4) as pool:
        await assert_all_places_work(pool)
        async with pool.lease():
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pool.flush)
                    await trio.sleep(1)
                    pool.resize(1)
            # There is still no token to retire anything.
            assert pool.statistics().idle == 3
        await settle(pool)
        assert pool.statistics().retired == {"resize": 3}
        assert pool._supply.on_move is None


async def test_what_was_to_expire_while_the_pool_was_drained_expires_if_it_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with (
        fake_pool(max_size=3, idle_timeout=2) as pool,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(hold, pool, 100)
        await hold(pool, 0)
        # There is no token to retire anything meanwhile.
        with trio.move_on_after(10):
            await pool.flush()
        assert pool.statistics().idle == 1
        await settle(pool)
        assert pool.statistics().retired == {"idle_timeout": 1}
        nursery.cancel_scope.cancel()


async def test_a_reset_without_tokens_retires_as_soon_as_there_are_some(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 100)
        await hold(pool, 0)
        with trio.move_on_after(10):
            async with trio.open_nursery() as inner:
                inner.start_soon(pool.flush)
                await trio.sleep(1)
                pool.reset()
                assert pool.statistics().idle == 1
        await settle(pool)
        assert pool.statistics().retired == {"reset": 1}
        # And the upkeep, which has no limits to look after, sleeps again.
        assert pool._supply.on_move is None
        nursery.cancel_scope.cancel()


async def test_what_is_no_error_comes_out_of_it_as_itself(
    autojump_clock: MockClock,
) -> None:
    class Exiting(FakeConnector):
        exits = True

        async def close(self, connection: FakeConnection, /) -> None:
            await super().close(connection)
            if self.exits:
                raise SystemExit(3)

    connector = Exiting()
    async with fake_pool(connector, max_size=2) as pool:
        await assert_all_places_work(pool)
        with pytest.raises(SystemExit):
            await pool.flush()
        assert_nothing_is_lost(pool)
        await assert_all_places_work(pool)
        connector.exits = False
    connector.assert_no_leak()
