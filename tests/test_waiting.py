"""Who waits for a place, in which order, for how long, and when that is for ever."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests._invariants import (
    FakePool,
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    hold,
)
from trio_hyperpool import (
    PoolClosedError,
    PoolDeadlockError,
    PoolSaturatedError,
    PoolTimeoutError,
)
from trio_hyperpool.testing import FakeConnector, Gate

# Fairness


async def test_places_are_given_first_come_first_served(
    autojump_clock: MockClock,
) -> None:
    order: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.lease():
            order.append(number)
            await trio.sleep(1)

    async with fake_pool(max_size=2) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(borrow, number)
                await trio.sleep(0.01)
        assert order == list(range(20))


async def test_a_newcomer_does_not_overtake_who_was_granted_a_place(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []

    async def borrow(name: str) -> None:
        async with pool.lease():
            order.append(name)

    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:
        async with pool.lease():
            nursery.start_soon(borrow, "waiter")
            await wait_all_tasks_blocked()
        # The waiter has the place and has not run yet.
        await borrow("newcomer")
        assert order == ["waiter", "newcomer"]


class _Turns(trio.abc.Instrument):
    """Counts how often each task had its turn."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count[task.name] += 1


async def test_whoever_has_to_wait_behind_others_is_parked_in_its_first_turn(
    autojump_clock: MockClock,
) -> None:
    turns = _Turns()
    trio.lowlevel.add_instrument(turns)
    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:
        async with pool.lease():
            for name in ("first", "second"):
                nursery.start_soon(hold, pool, 0, name=name)
                await wait_all_tasks_blocked()
            assert pool.statistics().waiting == 2
        assert turns.count["first"] == 2
        assert turns.count["second"] == 1
    trio.lowlevel.remove_instrument(turns)


@pytest.mark.parametrize("patience", [0, 1, math.inf])
async def test_entering_is_a_checkpoint_while_others_are_about_to_have_their_place(
    autojump_clock: MockClock, patience: float
) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        async with pool.lease(), pool.lease():
            nursery.start_soon(hold, pool, 0)
            await wait_all_tasks_blocked()
        # One place is promised to the waiter, who has not run yet, and one is free.
        assert pool.statistics().waiting == 1
        with assert_checkpoints():
            lease = pool.lease(wait_timeout=patience)
            await lease.__aenter__()
        await lease.__aexit__(None, None, None)


async def test_to_be_refused_in_a_crowd_is_a_checkpoint(
    autojump_clock: MockClock,
) -> None:
    async with (
        fake_pool(max_size=1, max_waiting=1) as pool,
        trio.open_nursery() as nursery,
        pool.lease(),
    ):
        nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        for timeout, error in ((0, PoolTimeoutError), (1, PoolSaturatedError)):
            with assert_checkpoints(), pytest.raises(error):
                await pool.lease(wait_timeout=timeout).__aenter__()
        assert pool.statistics().waiting == 1


async def test_to_be_refused_by_the_queue_one_stopped_is_a_checkpoint(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool, trio.open_nursery() as nursery, pool.quiesce():
        nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        assert pool.statistics().waiting == 1
        with assert_checkpoints(), pytest.raises(PoolDeadlockError):
            await pool.lease().__aenter__()


async def test_a_newcomer_does_not_overtake_the_queue_for_an_opener_to_spare(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []

    async def borrow(name: str, patience: float) -> None:
        with trio.move_on_after(patience):
            async with pool.lease():
                order.append(name)

    connector = FakeConnector(connect=Gate.slow(5))
    async with fake_pool(connector, max_size=1) as pool, trio.open_nursery() as nursery:
        for name, patience in (("a", 2), ("b", 10), ("c", 10)):
            nursery.start_soon(borrow, name, patience)
            # The last one comes when the first one is gone.
            await trio.sleep(1.5)
    assert order == ["b", "c"]


async def test_nobody_starves(autojump_clock: MockClock) -> None:
    waits: list[float] = []

    async def borrow() -> None:
        for _ in range(10):
            asked_at = trio.current_time()
            async with pool.lease():
                waits.append(trio.current_time() - asked_at)
                await trio.sleep(1)

    async with fake_pool(max_size=10) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(borrow)
        assert max(waits) == 9
        assert trio.current_time() == 100


async def test_a_lease_whose_check_failed_is_the_first_of_the_seekers(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []
    connector = FakeConnector(probe=Gate(1, OSError("dead")))

    async def borrow(name: str) -> None:
        async with pool.lease():
            order.append(name)

    async with fake_pool(connector, max_size=2, health_check_after=0) as pool:
        async with pool.lease():
            pass
        connector.connect_gate = Gate.slow(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(borrow, "first")
            await wait_all_tasks_blocked()
            # This one seeks while the first is still being checked.
            nursery.start_soon(borrow, "second")
            await trio.sleep(2)
            assert pool.statistics().opening == 2
        assert order == ["first", "second"]


# Cancelled waits


async def test_a_cancelled_wait_leaves_the_queue_unchanged(
    autojump_clock: MockClock,
) -> None:
    order: list[int] = []

    async def borrow(number: int, patience: float) -> None:
        with trio.move_on_after(patience):
            async with pool.lease():
                order.append(number)

    async with fake_pool(max_size=1) as pool:
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, pool, 5)
            for number in range(9):
                patience = 1 if number % 3 else math.inf
                nursery.start_soon(borrow, number, patience)
                await trio.sleep(0.01)
            await trio.sleep(2)
            assert pool.statistics().waiting == 3
        assert order == [0, 3, 6]


def test_a_place_granted_just_before_the_deadline_is_not_lost() -> None:
    # The clock has to move between the grant and the task's next step, so that the
    # scope of the wait is cancelled, and yet nothing was cancelled by it.
    async def main() -> None:
        async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:

            async def borrow() -> None:
                async with pool.lease(wait_timeout=0.05) as connection:
                    served.append(connection.number)

            async with pool.lease():
                nursery.start_soon(borrow)
                await wait_all_tasks_blocked()
            # Granted now; and this task goes on until the deadline is over.
            time.sleep(0.1)  # noqa: ASYNC251 - the point
            await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            assert served == [1]
            assert pool.statistics().wait_timeouts == 0
            await assert_all_places_work(pool)

    served: list[int] = []
    trio.run(main)


# wait_timeout


async def test_a_wait_ends_after_wait_timeout(autojump_clock: MockClock) -> None:
    async with (
        fake_pool(max_size=1, wait_timeout=3) as pool,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(hold, pool, 10)
        with pytest.raises(PoolTimeoutError, match="within 3 s") as caught:
            async with pool.lease():
                pass
        assert trio.current_time() == 3
        assert caught.value.step == "wait"
        assert pool.statistics().wait_timeouts == 1
        with pytest.raises(PoolTimeoutError, match="within 2 s"):
            async with pool.lease(wait_timeout=2):
                pass
        assert trio.current_time() == 5
        async with pool.lease(wait_timeout=math.inf):
            assert trio.current_time() == 10


async def test_a_wait_timeout_of_zero_never_queues_but_may_open(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(5))
    async with fake_pool(connector, max_size=1) as pool:
        async with pool.lease(wait_timeout=0):
            assert trio.current_time() == 5
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self_denied, pool)
        async with pool.lease(wait_timeout=0):
            assert trio.current_time() == 5


async def self_denied(pool: FakePool) -> None:
    with pytest.raises(PoolTimeoutError, match="at once"):
        async with pool.lease(wait_timeout=0):
            pass


async def test_opening_does_not_count_against_the_wait(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(5))
    async with fake_pool(connector, wait_timeout=1) as pool, pool.lease():
        assert trio.current_time() == 5


async def test_a_callers_own_deadline_stays_its_own(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 10)
        with trio.move_on_after(2) as scope:
            async with pool.lease(wait_timeout=5):
                pass
        assert scope.cancelled_caught
        assert pool.statistics().wait_timeouts == 0


async def test_a_timeout_names_who_has_the_connections_and_since_when(
    autojump_clock: MockClock,
) -> None:
    async def thief() -> None:
        async with pool.lease():
            stolen.set()
            await trio.sleep(10)

    stolen = trio.Event()
    line = thief.__code__.co_firstlineno + 1
    async with (
        fake_pool(max_size=1, wait_timeout=2.5) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(thief, name="the thief")
        await stolen.wait()
        await trio.sleep(1)
        with pytest.raises(PoolTimeoutError) as caught:
            async with pool.lease():
                pass
    text = str(caught.value)
    assert text.startswith("fake: no connection came free within 2.5 s: ")
    assert "1 of 1 places leased; no other task waits" in text
    assert f"held by the thief for 3.5 s, taken at {__file__}:{line}" in text
    assert "ancestor" not in text


async def test_a_timeout_without_any_lease_says_so(autojump_clock: MockClock) -> None:
    connector = FakeConnector(connect=Gate.slow(10))
    async with fake_pool(connector, max_size=1) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        with pytest.raises(
            PoolTimeoutError, match="0 of 1 places leased, 1 busy opening"
        ):
            async with pool.lease(wait_timeout=1):
                pass


async def test_a_timeout_while_the_pool_is_quiesced_says_so(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 10)

        async def quiesce() -> None:
            async with pool.quiesce():
                pass

        nursery.start_soon(quiesce)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolTimeoutError) as caught:
            async with pool.lease(wait_timeout=1):
                pass
    assert "1 of 2 places leased, and quiesce() lets nobody in; no" in str(caught.value)


# max_waiting


async def test_one_task_too_many_is_turned_away_at_once(
    autojump_clock: MockClock,
) -> None:
    async with (
        fake_pool(max_size=1, max_waiting=2) as pool,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(hold, pool, 10)
        for _ in range(2):
            nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolSaturatedError, match="max_waiting is 2"):
            async with pool.lease():
                pass
        assert trio.current_time() == 0
        assert pool.statistics().waiting == 2
        await trio.sleep(11)
        await assert_all_places_work(pool)


async def test_who_would_not_wait_anyway_is_told_that_and_not_that_it_may_not(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1, max_waiting=0) as pool, pool.lease():
        with pytest.raises(PoolTimeoutError):
            async with pool.lease(wait_timeout=0):
                pass


async def test_with_no_waiting_free_places_are_still_given(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2, max_waiting=0) as pool:
        await assert_all_places_work(pool)
        async with pool.lease(), pool.lease():
            with pytest.raises(PoolSaturatedError):
                async with pool.lease():
                    pass


# Deadlock


async def nested(pool: FakePool, depth: int = 2) -> None:
    async with pool.lease():
        await trio.sleep(1)
        if depth > 1:
            await nested(pool, depth - 1)


async def test_a_task_that_waits_for_itself_is_told_at_once(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, pool.lease(), pool.lease():
        with pytest.raises(PoolDeadlockError, match="would never end") as caught:
            async with pool.lease():
                pass
        assert trio.current_time() == 0
        text = str(caught.value)
        assert text.count("(the task that waits here)") == 2
        assert text.count(f"taken at {__file__}:") == 2


async def test_the_wait_that_closes_the_ring_fails_and_the_others_go_on(
    autojump_clock: MockClock,
) -> None:
    ends: list[str] = []

    async def borrow(name: str, delay: float) -> None:
        try:
            async with pool.lease():
                await trio.sleep(delay)
                async with pool.lease():
                    pass
        except PoolDeadlockError:
            ends.append(f"{name} failed")
        else:
            ends.append(f"{name} went on")

    async with fake_pool(max_size=3) as pool:
        async with trio.open_nursery() as nursery:
            for name, delay in (("a", 1), ("b", 3), ("c", 2)):
                nursery.start_soon(borrow, name, delay)
        assert ends[0] == "b failed"
        assert sorted(ends[1:]) == ["a went on", "c went on"]
        assert trio.current_time() == 3


async def test_storms_of_nested_leases_end(autojump_clock: MockClock) -> None:
    failed: list[int] = []

    async def borrow(number: int) -> None:
        try:
            await nested(pool, 3)
        except PoolDeadlockError:
            failed.append(number)

    async with fake_pool(max_size=4) as pool:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for number in range(12):
                    nursery.start_soon(borrow, number)
        assert 0 < len(failed) < 12
        assert_nothing_is_lost(pool)


async def test_a_deadline_around_everything_frees_nobody_in_time(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool:
        with trio.fail_after(60):
            async with pool.lease():
                with pytest.raises(PoolDeadlockError):
                    async with pool.lease():
                        pass
        assert trio.current_time() == 0


async def test_a_deadline_around_a_task_that_was_started_frees_nobody_in_time(
    autojump_clock: MockClock,
) -> None:
    async def work(*, task_status: trio.TaskStatus[None]) -> None:
        async with pool.lease():
            task_status.started()
            await trio.sleep(1)
            with pytest.raises(PoolDeadlockError):
                await pool.lease().__aenter__()

    async with fake_pool(max_size=1) as pool:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(work)
        assert trio.current_time() == 1


async def test_no_alarm_if_the_task_has_a_deadline_of_its_own(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool, pool.lease():
        with trio.move_on_after(2) as scope:
            async with pool.lease():
                pass
        assert scope.cancelled_caught


async def test_no_alarm_if_that_comes_after_one_that_only_taking_the_lease_had(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool, contextlib.AsyncExitStack() as stack:
        with trio.fail_after(1):
            await stack.enter_async_context(pool.lease())
        with trio.move_on_after(2) as scope:
            await pool.lease().__aenter__()
        assert scope.cancelled_caught


async def test_no_alarm_if_that_is_behind_a_shield(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool:
        with trio.CancelScope() as outer:
            async with pool.lease():
                outer.cancel()
                with trio.move_on_after(2, shield=True) as scope:
                    await pool.lease().__aenter__()
        assert scope.cancelled_caught


async def test_no_alarm_if_the_wait_is_finite(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool, pool.lease():
        with pytest.raises(PoolTimeoutError, match="the task that waits here"):
            async with pool.lease(wait_timeout=2):
                pass
        assert trio.current_time() == 2


async def test_no_alarm_if_the_wait_is_finite_but_longer_than_a_deadline_around(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool:
        with trio.move_on_after(10) as scope:
            async with pool.lease(), pool.lease(wait_timeout=100):
                pass
        assert scope.cancelled_caught


async def test_what_counts_is_the_deadline_when_the_innermost_lease_was_taken(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2) as pool, pool.lease():
        with trio.fail_after(10):
            async with pool.lease():
                with pytest.raises(PoolDeadlockError):
                    async with pool.lease():
                        pass


async def test_no_alarm_if_one_of_many_has_a_deadline(
    autojump_clock: MockClock,
) -> None:
    async def impatient() -> None:
        async with pool.lease():
            await trio.sleep(0.5)
            with trio.move_on_after(5):
                async with pool.lease():
                    pytest.fail("there was none")

    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(impatient)
        await nested(pool)
        assert trio.current_time() == 6.5  # 5.5, and a second of use


async def test_no_alarm_if_somebody_works(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 5)
        await nested(pool)
        assert trio.current_time() == 6


async def test_no_alarm_while_a_connection_is_on_its_way(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(5, only_on=2))
    async with fake_pool(connector, max_size=2) as pool, pool.lease():
        # Somebody asked for the second one and went away.
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
            async with pool.lease():
                assert trio.current_time() == 6


async def test_no_alarm_while_a_connection_is_cleaned(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(clean=Gate.slow(5))
    async with fake_pool(connector, max_size=2) as pool, pool.lease():
        async with pool.lease() as connection:
            connection.begin()
        async with pool.lease():
            assert trio.current_time() == 5


@pytest.mark.parametrize("_", range(10))  # trio runs them in random order
async def test_no_alarm_while_a_grant_is_on_its_way(
    autojump_clock: MockClock, _: int
) -> None:
    async def borrow() -> None:
        async with pool.lease():
            pass

    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:  # noqa: SIM117
        async with pool.lease():
            async with pool.lease():
                nursery.start_soon(borrow)
                await wait_all_tasks_blocked()
            # The other task has the place now, but has not run yet.
            async with pool.lease():
                pass


@pytest.mark.parametrize("_", range(10))
async def test_no_alarm_while_a_cancellation_is_on_its_way(
    autojump_clock: MockClock, _: int
) -> None:
    scope = trio.CancelScope()

    async def cancelled() -> None:
        async with pool.lease():
            with scope:
                async with pool.lease():
                    pass

    async with fake_pool(max_size=2) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        async with pool.lease():
            await wait_all_tasks_blocked()
            scope.cancel()
            async with pool.lease():
                pass


async def test_no_alarm_if_leases_are_revoked_in_time(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1, max_lease=3) as pool, pool.lease():  # noqa: SIM117
        async with pool.lease():
            assert trio.current_time() == 3


async def test_no_alarm_while_the_pool_closes(autojump_clock: MockClock) -> None:
    async def borrow() -> None:
        async with pool.lease():
            await trio.sleep(1)
            with pytest.raises(PoolClosedError):
                async with pool.lease():
                    pass

    async with trio.open_nursery() as nursery, fake_pool(max_size=1) as pool:
        nursery.start_soon(borrow)
        await wait_all_tasks_blocked()


@pytest.mark.parametrize("attempt", range(10))
async def test_a_ring_is_seen_when_the_last_one_on_its_way_has_left(
    autojump_clock: MockClock, attempt: int
) -> None:
    # Tasks woken at one time run in any order: in some of the attempts the ring closes
    # while a cancellation is on its way, and can be seen only after it has arrived.
    async def cancelled() -> None:
        with scope:
            await hold(pool, 0)

    async def canceller() -> None:
        await trio.sleep(1)
        scope.cancel()

    async def endless() -> None:
        try:
            await nested(pool)
        except PoolDeadlockError:
            failed_at.append(trio.current_time())

    scope = trio.CancelScope()
    failed_at: list[float] = []
    async with fake_pool(max_size=2) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endless)
            nursery.start_soon(endless)
            await wait_all_tasks_blocked()
            nursery.start_soon(cancelled)
            nursery.start_soon(canceller)
        assert failed_at == [1]


async def test_a_return_to_a_pool_that_shrank_may_close_the_ring(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=3) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 3)
        await nursery.start(hold, pool, 5)
        async with pool.lease():
            pool.resize(1)
            # Neither of the two returns gives a place to this task.
            with pytest.raises(PoolDeadlockError):
                async with pool.lease():
                    pass
            assert trio.current_time() == 5


async def test_a_resize_may_open_the_ring(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:

        async def grow() -> None:
            await trio.sleep(1)
            pool.resize(2)

        nursery.start_soon(hold, pool, 5)
        await wait_all_tasks_blocked()
        nursery.start_soon(grow)
        await nested(pool)
        assert trio.current_time() == 6


# What is not seen: documented limits


async def test_a_parent_that_holds_while_its_child_waits_times_out_and_is_marked(
    autojump_clock: MockClock,
) -> None:
    async def child() -> None:
        with pytest.raises(PoolTimeoutError) as caught:
            async with pool.lease(wait_timeout=5):
                pass
        assert "(an ancestor of the task that waits here)" in str(caught.value)

    async with fake_pool(max_size=1) as pool, pool.lease():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        assert trio.current_time() == 5


async def test_a_lease_left_by_another_task_times_out(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool:
        lease = pool.lease()

        async def enter() -> None:
            await lease.__aenter__()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(enter, name="who entered")
        # Nobody is in the way of a deadlock: who entered it is gone.
        with pytest.raises(PoolTimeoutError, match="held by who entered"):
            async with pool.lease(wait_timeout=5):
                pass
        await lease.__aexit__(None, None, None)
        await assert_all_places_work(pool)


async def test_two_pools_that_wait_for_each_other_time_out(
    autojump_clock: MockClock,
) -> None:
    timeouts: list[PoolTimeoutError] = []

    async def borrow(first: FakePool, second: FakePool) -> None:
        async with first.lease():
            await trio.sleep(1)
            try:
                async with second.lease():
                    pass
            except PoolTimeoutError as error:
                timeouts.append(error)

    async with (
        fake_pool(max_size=1, wait_timeout=5, name="one") as one,
        fake_pool(max_size=1, wait_timeout=5, name="two") as two,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(borrow, one, two)
        nursery.start_soon(borrow, two, one)
    assert timeouts
