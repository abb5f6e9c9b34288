"""What nobody asks for in time: lifetimes, rests, warmth, and leases that last."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._invariants import (
    FakePool,
    Steps,
    assert_all_places_work,
    assert_nothing_is_lost,
    fake_pool,
    hold,
    settle,
)
from trio_hyperpool import ConnectError, LeaseRevokedError
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate

# Lifetimes


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The numbers that chance will give, the last of them for ever."""
    numbers = [0.0]

    def draw() -> float:
        return numbers.pop(0) if len(numbers) > 1 else numbers[0]

    monkeypatch.setattr("random.random", draw)
    return numbers


async def test_a_connection_ends_in_the_background_at_its_age(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, max_lifetime=100) as pool:
        await trio.sleep(50)
        await hold(pool, 0)
        await trio.sleep(99)
        assert pool.statistics().idle == 1
        await trio.sleep(2)
        assert not connector.open_connections
        assert pool.statistics().retired == {"max_lifetime": 1}


async def test_connections_of_one_age_end_over_the_last_tenth_of_it(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    chance[:] = [0, 0.25, 0.5, 0.75, 0.999, 0]
    async with fake_pool(max_size=5, max_lifetime=100) as pool:
        await assert_all_places_work(pool)
        sizes = []
        for moment in (89.5, 91, 93, 96, 99, 101):
            await trio.sleep_until(moment)
            sizes.append(pool.statistics().size)
        assert sizes == [5, 4, 3, 2, 1, 0]


async def test_an_age_reached_during_a_lease_counts_at_its_return(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    async with fake_pool(max_lifetime=100) as pool:
        async with pool.lease() as connection:
            await trio.sleep(150)
            assert await connection.execute() == 1
        # Not in the background, either: the next lease would come before that.
        assert pool.statistics().idle == 0
        await settle(pool)
        assert pool.statistics().retired == {"max_lifetime": 1}


async def test_an_age_reached_during_cleaning_counts_after_it(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = FakeConnector(clean=Gate.slow(3))
    async with fake_pool(connector, max_lifetime=100) as pool:
        async with pool.lease() as connection:
            connection.begin()
            await trio.sleep(98)
        await settle(pool)
        assert pool.statistics().retired == {"max_lifetime": 1}


async def test_an_age_reached_at_this_very_moment_counts_at_checkout(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, max_size=1, max_lifetime=100) as pool:
        await hold(pool, 0)
        # The upkeep and this task wake up together, in either order.
        await trio.sleep(100)
        async with pool.lease() as connection:
            assert connection.number == 2
        assert connector.most_open == 1


async def test_expired_connections_are_replaced_and_not_opened_beside(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = FakeConnector(close=Gate.slow(1), connect=Gate.slow(1))
    async with fake_pool(connector, max_size=3, max_lifetime=100) as pool:
        await assert_all_places_work(pool)
        await trio.sleep_until(1 + 100)
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(hold, pool, 1)
        assert connector.most_open == 3


@pytest.mark.parametrize("at", [0, 1e6])
async def test_a_lifetime_however_short_is_enough_for_one_lease(
    autojump_clock: MockClock, at: float
) -> None:
    await trio.sleep(at)
    async with fake_pool(max_lifetime=1e-12) as pool:
        with trio.fail_after(10):
            await hold(pool, 0)


# Rests


async def test_the_rest_is_counted_from_the_return(autojump_clock: MockClock) -> None:
    async with fake_pool(idle_timeout=10) as pool:
        for _ in range(5):
            await hold(pool, 20)
            await trio.sleep(9)
        assert pool.statistics().opened == 1
        await trio.sleep(2)
        assert pool.statistics().retired == {"idle_timeout": 1}


async def test_of_several_each_has_its_own_rest(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=3, idle_timeout=10) as pool:
        async with trio.open_nursery() as nursery:
            for seconds in (1, 2, 3):
                nursery.start_soon(hold, pool, seconds)
        sizes = []
        for moment in (10.5, 11.5, 12.5, 13.5):
            await trio.sleep_until(moment)
            sizes.append(pool.statistics().size)
        assert sizes == [3, 2, 1, 0]


async def test_min_idle_of_them_may_rest_for_ever(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=5, idle_timeout=10, min_idle=2) as pool:
        await assert_all_places_work(pool)
        await trio.sleep(1000)
        now = pool.statistics()
        assert (now.idle, now.opened) == (2, 5)
        assert now.retired == {"idle_timeout": 3}


async def test_one_that_was_kept_warm_has_rested_all_the_while(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2, idle_timeout=10, min_idle=1) as pool:
        await settle(pool)
        await hold(pool, 8)
        # A second one was opened meanwhile, and has been idle since.
        assert pool.statistics().idle == 2
        await trio.sleep_until(10.5)
        assert pool.statistics().retired == {"idle_timeout": 1}
        assert pool.statistics().idle == 1


async def test_a_rest_over_at_this_very_moment_counts_at_checkout(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1, idle_timeout=10) as pool:
        await hold(pool, 0)
        await trio.sleep(10)
        async with pool.lease() as connection:
            assert connection.number == 2


# Warmth


async def test_min_idle_connections_are_opened_without_a_lease(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(1))
    async with fake_pool(connector, min_idle=3) as pool:
        await trio.sleep(2)
        assert pool.statistics().idle == 3
        # All at the same time.
        assert connector.most_open == 3


async def test_leased_ones_are_made_up_for(autojump_clock: MockClock) -> None:
    async with (
        fake_pool(max_size=5, min_idle=2) as pool,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(1)
        for leased in range(1, 6):
            nursery.start_soon(hold, pool, 100)
            await trio.sleep(1)
            now = pool.statistics()
            assert (now.leased, now.idle) == (leased, min(2, 5 - leased))


async def test_a_warm_connection_serves_the_first_lease_at_once(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(10))
    async with fake_pool(connector, min_idle=1) as pool:
        await trio.sleep(4)
        # This one takes over the connection that is being opened.
        async with pool.lease():
            assert trio.current_time() == 10
        await trio.sleep(20)
        async with pool.lease():
            assert trio.current_time() == 30


async def test_what_ended_is_made_up_for(autojump_clock: MockClock) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, min_idle=2, max_lifetime=50) as pool:
        await trio.sleep(1)
        pool.reset()
        await trio.sleep(1)
        assert pool.statistics().idle == 2
        pool.retire_idle()
        await trio.sleep(1)
        assert pool.statistics().idle == 2
        async with pool.lease() as connection:
            connection.close()
        await trio.sleep(1)
        assert pool.statistics().idle == 2
        await trio.sleep(60)
        assert pool.statistics().idle == 2
        assert pool.statistics().opened >= 7


async def test_warming_keeps_the_bound_when_all_come_back_at_once(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(0.5), close=Gate.slow(0.5))
    async with fake_pool(
        connector, max_size=4, min_idle=4, max_lifetime=7, idle_timeout=5
    ) as pool:
        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(hold, pool, number % 3)
            await trio.sleep(3)
        assert connector.most_open == 4


async def test_a_server_that_is_away_is_tried_again_with_one_and_with_patience(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.fails())
    async with fake_pool(connector, min_idle=4) as pool:
        await trio.sleep(0.01)
        assert connector.connect_gate.calls == 4
        await trio.sleep(600)
        assert 60 < connector.connect_gate.calls - 4 < 180
        connector.connect_gate.error = None
        await trio.sleep(20)
        assert pool.statistics().idle == 4
        assert (
            pool.statistics().open_failures
            == pool._supply.record.counters.open_failures
        )


async def test_what_wakes_the_upkeep_for_another_reason_does_not_hurry_it(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, max_size=20, min_idle=1, max_lease=60) as pool:  # noqa: SIM117
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                await nursery.start(hold, pool, 100)
                await trio.sleep(0.1)
            connector.connect_gate = Gate.fails()
            await nursery.start(hold, pool, 100)
            await trio.sleep_until(59.9)
            calls = connector.connect_gate.calls
            assert calls > 5
            # Ten leases are revoked, one after the other.
            await trio.sleep_until(60.95)
            assert pool.statistics().revoked == 10
            assert connector.connect_gate.calls - calls <= 2


async def test_failing_without_any_backoff_is_no_race(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.fails())
    async with fake_pool(connector, min_idle=1, create_backoff=0):
        await trio.sleep(10)
        assert connector.connect_gate.calls <= 201


async def test_warmth_takes_no_place_from_anybody(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def borrow(name: str, seconds: float) -> None:
        async with pool.lease():
            order.append(name)
            await trio.sleep(seconds)

    connector = FakeConnector(connect=Gate(0.5, only_on=2))
    async with fake_pool(connector, max_size=2, min_idle=2) as pool:
        async with trio.open_nursery() as nursery:
            for number, name in enumerate("abcdef"):
                nursery.start_soon(borrow, name, 1 + number / 10)
                await trio.sleep(0.01)
        assert order == list("abcdef")


# Attempts


class Unreachable(FakeConnector):
    """Fails a number of times, and notes when it was asked."""

    def __init__(self, failures: int, *, unreachable: bool = True) -> None:
        super().__init__()
        self.failures = failures
        self.unreachable = unreachable
        self.asked_at: list[float] = []

    async def connect(self) -> FakeConnection:
        self.asked_at.append(trio.current_time())
        if len(self.asked_at) <= self.failures:
            await trio.lowlevel.checkpoint()
            raise ConnectError("nobody there", unreachable=self.unreachable)
        return await super().connect()


async def test_a_server_that_cannot_be_reached_is_asked_again_with_backoff(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = Unreachable(4)
    async with fake_pool(connector, create_attempts=5, create_backoff=1) as pool:
        await hold(pool, 0)
        assert connector.asked_at == [0, 1, 3, 7, 15]
        # Attempts are no failed opens.
        assert pool.statistics().open_failures == 0


async def test_backoff_has_jitter(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    chance[:] = [0.5]
    connector = Unreachable(2)
    async with fake_pool(connector, create_attempts=3, create_backoff=1) as pool:
        await hold(pool, 0)
    assert connector.asked_at == [0, 0.75, 2.25]


async def test_the_last_failure_is_told(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = Unreachable(100)
    async with fake_pool(connector, create_attempts=3) as pool:
        with pytest.raises(ConnectError, match="nobody there"):
            await hold(pool, 0)
        assert len(connector.asked_at) == 3
        assert pool.statistics().open_failures == 1
        assert_nothing_is_lost(pool)


async def test_a_refusal_is_final(autojump_clock: MockClock) -> None:
    connector = Unreachable(1, unreachable=False)
    async with fake_pool(connector, create_attempts=5) as pool:
        with pytest.raises(ConnectError):
            await hold(pool, 0)
        assert connector.asked_at == [0]


async def test_each_attempt_has_its_own_deadline(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = Unreachable(3)
    connector.connect_gate = Gate.slow(2)
    async with fake_pool(
        connector, create_attempts=4, create_backoff=1, create_timeout=3
    ) as pool:
        await hold(pool, 0)
        assert trio.current_time() == 9


async def test_those_who_share_a_failed_preparation_try_again_together(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    error = ConnectError("nobody there", unreachable=True)
    connector = FakeConnector(prepare=Gate(1, error, only_on=1))
    async with fake_pool(connector, create_attempts=2, create_backoff=1) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold, pool, 0)
        assert connector.prepare_gate.calls == 2
        assert trio.current_time() == 2


async def test_a_connection_opened_at_a_later_attempt_survives_an_earlier_reset(
    autojump_clock: MockClock, chance: list[float]
) -> None:
    connector = Unreachable(1)
    async with fake_pool(connector, create_attempts=2, create_backoff=4) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 0)
            await trio.sleep(1)
            pool.reset()
        assert len(connector.asked_at) == 2
        assert not pool.statistics().retired


# Leases that last


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_lease_that_lasts_too_long_is_revoked(
    autojump_clock: MockClock, is_broken: bool
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, max_size=1, max_lease=5) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overstay, pool)
            await trio.sleep(4.5)
            if is_broken:
                connector.break_all()
            async with pool.lease() as connection:
                # It ends politely, unless it has ended already.
                assert trio.current_time() == (5 if is_broken else 6)
                assert connection.number == 2
                assert connector.most_open == 1
        now = pool.statistics()
        assert now.revoked == 1
        ended = now.discarded if is_broken else now.retired
        assert ended == {"revoked": 1}
        assert now.use.max == 5


async def overstay(pool: FakePool) -> None:
    with pytest.raises(LeaseRevokedError):
        async with pool.lease() as connection:
            await connection.execute(4)
            await trio.sleep(4)
            await connection.execute()


async def test_each_lease_has_its_own_end(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def borrow() -> None:
        async with pool.lease() as connection:
            while True:
                try:
                    await connection.execute()
                except LeaseRevokedError:
                    ended.append(trio.current_time())
                    return
                await trio.sleep(0.25)

    async with fake_pool(max_lease=5) as pool, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(borrow)
            await trio.sleep(1)
    assert ended == [5, 6, 7]


async def test_the_time_for_checks_and_waiting_is_no_part_of_the_lease(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(4))
    async with fake_pool(
        connector, max_lease=5, before_acquire=Gate.slow(4), max_size=1
    ) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                await connection.execute(4)
        assert pool.statistics().revoked == 0


async def test_what_was_left_of_a_revoked_lease_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1, max_lease=1) as pool:
        async with pool.lease():
            await trio.sleep(2)
            async with pool.lease() as second:
                assert second.number == 2
            assert pool.statistics().idle == 1
        # Its end neither gives back a token nor ends the other's connection.
        assert pool.statistics().idle == 1
        await assert_all_places_work(pool)


# Never awake for nothing


async def test_upkeep_without_limits_sleeps_for_ever(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        await wait_all_tasks_blocked()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(50):
            await assert_all_places_work(pool)
            pool.reset()
            await trio.sleep(100)
        trio.lowlevel.remove_instrument(steps)
        assert not [name for name in steps.counts if "Upkeep" in name]
        assert pool._supply.on_move is None


@pytest.mark.parametrize(
    "limit", ["max_lifetime", "idle_timeout", "max_lease", "min_idle"]
)
async def test_upkeep_with_limits_wakes_up_only_when_one_is_reached(
    autojump_clock: MockClock, limit: str
) -> None:
    value = 2 if limit == "min_idle" else 1000
    async with fake_pool(**{limit: value}) as pool:  # type: ignore[arg-type]
        await trio.sleep(1)
        await assert_all_places_work(pool)
        await trio.sleep(1)
        passes = 0
        swept = pool._upkeep._sweep

        def counted(now: float) -> float:
            nonlocal passes
            passes += 1
            return swept(now)

        pool._upkeep._sweep = counted  # type: ignore[method-assign]
        for _ in range(500):
            await hold(pool, 0.5)
            await trio.sleep(0.5)
        assert passes <= 1
        await trio.sleep(10_000)
        # Each of sixteen connections has an end of its own.
        assert passes <= 20


async def test_upkeep_does_not_wake_up_for_rests_that_may_last(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2, idle_timeout=1, min_idle=2) as pool:
        await trio.sleep(1)
        passes = 0
        swept = pool._upkeep._sweep

        def counted(now: float) -> float:
            nonlocal passes
            passes += 1
            return swept(now)

        pool._upkeep._sweep = counted  # type: ignore[method-assign]
        for _ in range(100):
            await hold(pool, 0)
            await trio.sleep(3)
        assert passes <= 1


async def test_upkeep_does_not_wake_up_for_what_there_is_no_place_for(
    autojump_clock: MockClock,
) -> None:
    async def borrow() -> None:
        for _ in range(100):
            await hold(pool, 1)

    async with fake_pool(max_size=2, min_idle=2) as pool:
        await trio.sleep(1)
        passes = 0
        swept = pool._upkeep._sweep

        def counted(now: float) -> float:
            nonlocal passes
            passes += 1
            return swept(now)

        pool._upkeep._sweep = counted  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(borrow)
        assert passes <= 3


async def test_upkeep_survives_every_failure_of_the_server(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(
        connect=Gate(0.1, OSError("down"), only_on=3),
        close=Gate.fails(),
        clean=Gate.fails(),
        probe=Gate.fails(),
    )
    async with fake_pool(
        connector, max_size=3, min_idle=2, max_lifetime=3, idle_timeout=2, max_lease=1
    ) as pool:
        for turn in range(50):
            async with pool.lease() as connection:
                if turn % 2:
                    connection.begin()
                await trio.sleep(turn % 7 / 3)
            if turn % 5 == 0:
                connector.break_all()
            await trio.sleep(turn % 4)
        await settle(pool)
        await trio.sleep(1)
        assert pool.statistics().idle == 2


async def test_what_has_to_go_goes_as_soon_as_there_is_a_token(
    autojump_clock: MockClock,
) -> None:
    # Promised to a waiter that has not run yet, the token is not to be had.
    async with fake_pool(max_size=1) as pool, trio.open_nursery() as nursery:
        async with pool.lease():
            nursery.start_soon(hold, pool, 1)
            await wait_all_tasks_blocked()
        pool.reset()
        assert pool.statistics().idle == 1
        await trio.sleep(5)
        assert pool.statistics().opened == 2
        assert pool.statistics().retired == {"reset": 1}
