"""One lease: what its block gets, what it leaves behind, and when its view dies."""

from __future__ import annotations

import contextvars
import signal
import sys
from types import CodeType, FrameType
from typing import Any, Self

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints

import trio_hyperpool
from tests._invariants import (
    assert_all_places_work,
    assert_nothing_is_lost,
    at_step,
    fake_pool,
    hold,
    interrupt,
    run,
    settle,
)
from trio_hyperpool import (
    ConnectError,
    LeaseEndedError,
    LeaseRevokedError,
    PoolClosedError,
    PoolTimeoutError,
)
from trio_hyperpool._lease import Lease
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate

# What a block gets


async def test_a_lease_reuses_the_connection_that_was_given_back_last(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=3) as pool:
        async with pool.lease() as one, pool.lease() as two, pool.lease() as three:
            numbers = [one.number, two.number, three.number]
        # The blocks ended from the inside outwards.
        async with pool.lease() as again:
            assert again.number == numbers[0]
        assert pool.statistics().opened == 3


async def test_connections_are_opened_only_when_they_are_needed(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector) as pool:
        await trio.sleep(1000)
        assert not connector.opened
        for _ in range(5):
            async with pool.lease():
                pass
        assert len(connector.opened) == 1


async def test_a_task_may_have_several_leases(autojump_clock: MockClock) -> None:
    async with (
        fake_pool(max_size=2) as pool,
        pool.lease() as one,
        pool.lease() as two,
    ):
        assert one.number != two.number
        assert await one.execute() + await two.execute() == 3


async def test_entering_is_a_checkpoint_and_leaving_is_not(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        for _ in range(2):
            lease = pool.lease()
            with assert_checkpoints():
                await lease.__aenter__()
            with assert_no_checkpoints():
                await lease.__aexit__(None, None, None)


async def test_a_lease_in_a_cancelled_scope_takes_nothing(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector) as pool:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.lease():
                pytest.fail("it was not cancelled")
        assert scope.cancelled_caught
        assert not connector.opened
        assert_nothing_is_lost(pool)


async def test_a_lease_is_good_for_one_block(autojump_clock: MockClock) -> None:
    async with fake_pool() as pool:
        lease = pool.lease()
        async with lease:
            with pytest.raises(RuntimeError, match="one block"):
                async with lease:
                    pass
        with pytest.raises(RuntimeError, match="one block"):
            await lease.__aenter__()
        assert pool.statistics().leases == 1


@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_a_senseless_wait_timeout_is_refused_at_once(seconds: float) -> None:
    async with fake_pool() as pool:
        with pytest.raises(ValueError, match="wait_timeout"):
            pool.lease(wait_timeout=seconds)


async def test_what_the_block_raises_comes_out_as_it_is(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            async with pool.lease():
                raise error
        assert caught.value is error
        assert pool.statistics().idle == 1


# What a block leaves behind


async def test_a_clean_connection_is_idle_in_the_same_step(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        async with pool.lease():
            assert pool.statistics().leased == 1
        now = pool.statistics()
        assert (now.idle, now.leased, now.cleaning) == (1, 0, 0)
        assert not pool._supply.queue.borrowed


async def test_an_open_transaction_is_ended_before_the_next_lease(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(clean=Gate.slow(1))
    async with fake_pool(connector, max_size=1) as pool:
        async with pool.lease() as connection:
            connection.begin()
        assert pool.statistics().cleaning == 1
        async with pool.lease() as connection:
            assert trio.current_time() == 1
            assert connection.number == 1
            assert not connection.in_transaction


@pytest.mark.parametrize("gate", [Gate.fails(), Gate.never()])
async def test_what_cannot_be_cleaned_is_discarded(
    autojump_clock: MockClock, gate: Gate
) -> None:
    connector = FakeConnector(clean=gate)
    async with fake_pool(connector, max_size=1, recycle_timeout=2) as pool:
        async with pool.lease() as connection:
            connection.begin()
        async with pool.lease() as connection:
            assert connection.number == 2
        assert trio.current_time() == (2 if gate.delay else 0)
        assert pool.statistics().discarded == {"failed cleaning": 1}


async def test_a_connection_with_a_cancelled_query_is_retired(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool:
        async with pool.lease() as connection:
            with trio.move_on_after(1):
                await connection.execute(10)
        async with pool.lease() as connection:
            assert connection.number == 2
        now = pool.statistics()
        assert now.retired == {"cancelled query": 1}
        assert now.cancelled_queries == 1


async def test_a_connection_that_came_back_closed_is_discarded(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        async with pool.lease() as connection:
            connection.close()
        assert pool.statistics().discarded == {"returned broken": 1}
        assert pool.statistics().size == 0
        assert_nothing_is_lost(pool)


class Odd(FakeConnector):
    """Has one method that does what no method should."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def watch(self, *args: object) -> None:
        super().watch(*args)  # type: ignore[arg-type]
        if self.method == "watch":
            raise RuntimeError("no eyes")

    def lend(self, connection: FakeConnection, /) -> FakeConnection:
        if self.method == "lend":
            raise RuntimeError("no view")
        return super().lend(connection)

    def reclaim(self, *args: object) -> trio_hyperpool._policy.Condition:
        super().reclaim(*args)  # type: ignore[arg-type]
        if self.method == "reclaim":
            raise RuntimeError("no end")
        if self.method == "changed":
            return trio_hyperpool._policy.Condition.CHANGED
        return trio_hyperpool._policy.Condition.CLEAN

    def discard(self, connection: FakeConnection, /) -> None:
        super().discard(connection)
        if self.method == "discard":
            raise RuntimeError("no mercy")

    def is_alive(self, connection: FakeConnection, /) -> bool:
        if self.method == "is_alive":
            raise RuntimeError("no idea")
        return super().is_alive(connection)


async def test_a_changed_session_is_retired(autojump_clock: MockClock) -> None:
    async with fake_pool(Odd("changed")) as pool:
        async with pool.lease():
            pass
        await settle(pool)
        assert pool.statistics().retired == {"changed session": 1}


async def test_a_connection_that_cannot_be_watched_is_closed(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(Odd("watch")) as pool:
        with pytest.raises(ConnectError, match="no eyes"):
            async with pool.lease():
                pass
        assert pool.statistics().discarded == {"abandoned": 1}


async def test_a_view_that_cannot_be_made_loses_no_place(
    autojump_clock: MockClock,
) -> None:
    connector = Odd("lend")
    async with fake_pool(connector, max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="no view"):
                async with pool.lease():
                    pass
        connector.method = ""
        await assert_all_places_work(pool)


async def test_a_view_that_cannot_be_ended_makes_a_connection_broken(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(Odd("reclaim")) as pool:
        async with pool.lease():
            pass
        assert pool.statistics().discarded == {"returned broken": 1}
    assert "a view could not be ended" in caplog.text


async def test_a_socket_that_cannot_be_closed_loses_no_place(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(Odd("discard"), max_size=1) as pool:
        async with pool.lease() as connection:
            connection.close()
        await assert_all_places_work(pool)
    assert "could not be discarded" in caplog.text


async def test_a_look_at_a_connection_that_fails_finds_it_dead(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(Odd("is_alive"), max_size=1) as pool:
        async with pool.lease():
            pass
        async with pool.lease() as connection:
            assert connection.number == 2
        assert pool.statistics().discarded == {"found dead": 1}
    assert "could not be looked at" in caplog.text


# Views


async def test_a_view_dies_with_its_block(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool:
        async with pool.lease() as first:
            pass
        async with pool.lease() as second:
            for use in (first.begin, first.close):
                with pytest.raises(LeaseEndedError):
                    use()
            with pytest.raises(LeaseEndedError):
                await first.execute()
            assert await second.execute() == 1


async def test_a_revoked_view_says_so_even_after_its_block(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_lease=1) as pool:
        async with pool.lease() as connection:
            await trio.sleep(2)
            with pytest.raises(LeaseRevokedError):
                await connection.execute()
        with pytest.raises(LeaseRevokedError):
            await connection.execute()


# Connections on their way


async def test_a_returned_connection_serves_a_lease_that_waits_for_a_new_one(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(10, only_on=2))
    async with fake_pool(connector, max_size=2) as pool, trio.open_nursery() as nursery:
        await nursery.start(hold, pool, 1.0)
        async with pool.lease() as connection:
            assert trio.current_time() == 1
            assert connection.number == 1
        await trio.sleep(20)
        # And the one that was on its way is kept.
        assert pool.statistics().idle == 2


async def test_a_cancelled_caller_does_not_throw_away_a_connect_in_progress(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with fake_pool(connector) as pool:
        with trio.move_on_after(1) as scope:
            async with pool.lease():
                pass
        assert scope.cancelled_caught
        assert pool.statistics().opening == 1
        async with pool.lease() as connection:
            assert connection.number == 1
            assert trio.current_time() == 2
        assert len(connector.opened) == 1


async def test_a_newcomer_takes_over_an_opener_that_nobody_waits_for(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2))
    async with fake_pool(connector, max_size=1) as pool:
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        # Not in the queue: even a lease that must not queue gets it.
        async with pool.lease(wait_timeout=0):
            assert trio.current_time() == 2


async def test_a_newcomer_prefers_an_idle_connection_to_one_on_its_way(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate(5, only_on=2))
    async with fake_pool(connector, max_size=2) as pool:
        async with pool.lease():
            with trio.move_on_after(1):
                await hold(pool, 0)
        async with pool.lease() as connection:
            assert connection.number == 1
            assert trio.current_time() == 1


async def test_seekers_are_served_in_their_order(autojump_clock: MockClock) -> None:
    order: list[int] = []
    connector = FakeConnector(connect=Gate.slow(1))

    async def borrow(number: int) -> None:
        async with pool.lease():
            order.append(number)
            await trio.sleep(0.095)

    async with fake_pool(connector, max_size=20) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(borrow, number)
                await trio.sleep(0.01)  # tasks woken at one time run in any order
        assert order == list(range(20))


class Uneven(FakeConnector):
    """Has a gate for each connection."""

    def __init__(self, *gates: Gate) -> None:
        super().__init__()
        self.gates = iter(gates)

    async def connect(self) -> FakeConnection:
        self.connect_gate = next(self.gates)
        return await super().connect()


async def test_a_failed_open_reaches_a_lease_only_if_none_is_left_to_come(
    autojump_clock: MockClock,
) -> None:
    # Two leases ask, one is cancelled: two openers for one seeker. The first fails.
    connector = Uneven(Gate(1, OSError("first")), Gate(2))
    scope = trio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await hold(pool, 0)

    async with fake_pool(connector) as pool, trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hold, pool, 0.0)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert trio.current_time() == 2
    assert pool.statistics().open_failures == 1
    assert pool.statistics().leases == 1


async def test_the_first_seeker_hears_of_a_failed_open(
    autojump_clock: MockClock,
) -> None:
    connector = Uneven(Gate(5), Gate(1, OSError("down")), Gate(5))
    failed: list[int] = []

    async def borrow(number: int) -> None:
        try:
            await hold(pool, 0)
        except ConnectError:
            failed.append(number)

    async with fake_pool(connector, max_size=3) as pool:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(borrow, number)
                await trio.testing.wait_all_tasks_blocked()
        assert failed == [0]
        assert pool.statistics().leases == 2


async def test_the_drivers_error_is_the_cause_of_a_connect_error(
    autojump_clock: MockClock,
) -> None:
    cause = OSError("no route")
    connector = FakeConnector(connect=Gate.fails(cause))
    async with fake_pool(connector) as pool:
        with pytest.raises(ConnectError, match="no route") as caught:
            async with pool.lease():
                pass
        assert caught.value.__cause__ is cause
        assert not caught.value.unreachable


async def test_the_connectors_own_error_keeps_its_cause(
    autojump_clock: MockClock,
) -> None:
    cause = OSError("no route")
    error = ConnectError("no", unreachable=True)
    error.__cause__ = cause
    async with fake_pool(FakeConnector(connect=Gate.fails(error))) as pool:
        with pytest.raises(ConnectError) as caught:
            async with pool.lease():
                pass
        assert caught.value is error
        assert error.__cause__ is cause


async def test_connecting_has_its_own_deadline(autojump_clock: MockClock) -> None:
    connector = FakeConnector(connect=Gate.never(on=1))
    async with fake_pool(connector, create_timeout=3) as pool:
        with pytest.raises(PoolTimeoutError, match="within 3 s") as caught:
            async with pool.lease():
                pass
        assert caught.value.step == "create"
        assert trio.current_time() == 3
        await assert_all_places_work(pool)


# What comes before the first connection


async def test_sixteen_tasks_that_race_for_the_first_connection_prepare_once(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(prepare=Gate.slow(5))
    async with fake_pool(connector) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(hold, pool, 1)
        assert connector.prepare_gate.calls == 1
        assert trio.current_time() == 6


async def test_those_who_wait_for_a_preparation_share_its_error(
    autojump_clock: MockClock,
) -> None:
    cause = OSError("read-only file system")
    connector = FakeConnector(prepare=Gate(1, cause, only_on=1))
    errors: list[ConnectError] = []

    async def borrow() -> None:
        with pytest.raises(ConnectError) as caught:
            await hold(pool, 0)
        errors.append(caught.value)

    async with fake_pool(connector) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(borrow)
        assert connector.prepare_gate.calls == 1
        assert len({id(error) for error in errors}) == 16
        assert all(error.__cause__ is cause for error in errors)
        assert len({str(error) for error in errors}) == 1
        # The next newcomer tries again, and there is no third time.
        await assert_all_places_work(pool)
        assert connector.prepare_gate.calls == 2


async def test_a_preparation_that_takes_too_long_is_shared_too(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(prepare=Gate.never(on=1))
    errors: list[PoolTimeoutError] = []

    async def borrow() -> None:
        with pytest.raises(PoolTimeoutError) as caught:
            await hold(pool, 0)
        errors.append(caught.value)

    async with fake_pool(connector, create_timeout=2) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(borrow)
        assert trio.current_time() == 2
        assert connector.prepare_gate.calls == 1
        assert len({id(error) for error in errors}) == 16
        for error in errors:
            assert error.step == "create"
            assert error.__cause__ is None
        await assert_all_places_work(pool)


async def test_a_preparation_that_raises_a_pool_error_raises_that(
    autojump_clock: MockClock,
) -> None:
    error = ConnectError("refused")
    async with fake_pool(FakeConnector(prepare=Gate.fails(error))) as pool:
        with pytest.raises(ConnectError, match="refused") as caught:
            async with pool.lease():
                pass
        assert caught.value is error
        assert error.__cause__ is None


async def test_to_queue_for_anothers_preparation_is_not_timed(
    autojump_clock: MockClock,
) -> None:
    # Two seconds to prepare and two to connect, with three seconds for both.
    connector = FakeConnector(prepare=Gate.slow(2), connect=Gate(2, only_on=2))
    async with fake_pool(connector, create_timeout=3) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(hold, pool, 10)
        assert pool.statistics().create.max == 2


async def test_preparing_and_connecting_share_one_deadline(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(prepare=Gate.slow(2), connect=Gate(2, only_on=1))
    async with fake_pool(connector, create_timeout=3) as pool:
        with pytest.raises(PoolTimeoutError):
            async with pool.lease():
                pass
        assert trio.current_time() == 3
        # What was prepared stays so.
        await assert_all_places_work(pool)
        assert connector.prepare_gate.calls == 1


# Contexts


async def test_hooks_of_the_pool_run_in_the_context_of_open_pool(
    autojump_clock: MockClock,
) -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[tuple[str, str]] = []

    async def after_connect(_: object) -> None:
        seen.append(("after_connect", who.get()))
        who.set("the hook")
        await trio.lowlevel.checkpoint()

    async def before_acquire(_: object) -> None:
        seen.append(("before_acquire", who.get()))
        await trio.lowlevel.checkpoint()

    async def after_release(_: object) -> None:
        seen.append(("after_release", who.get()))
        await trio.lowlevel.checkpoint()

    who.set("the opener")
    async with fake_pool(
        after_connect=after_connect,
        before_acquire=before_acquire,
        after_release=after_release,
    ) as pool:
        who.set("the borrower")
        async with pool.lease():
            pass
        await settle(pool)
    assert seen == [
        ("after_connect", "the opener"),
        ("before_acquire", "the borrower"),
        ("after_release", "the opener"),
    ]
    assert who.get() == "the borrower"


# KeyboardInterrupt


def test_an_interrupt_at_any_step_of_a_lease_leaks_nothing() -> None:
    async def lease_twice(step: int) -> bool:
        connector = FakeConnector(clean=Gate.slow(1), probe=Gate.slow(1))
        acted = False

        async def before(_: object) -> None:
            await trio.lowlevel.checkpoint()

        async with fake_pool(
            connector, max_size=2, health_check_after=0, before_acquire=before
        ) as pool:
            try:
                with at_step(step, interrupt) as instrument:
                    for _ in range(2):
                        async with pool.lease() as one, pool.lease() as two:
                            await one.execute(1)
                            two.begin()
                    await trio.sleep(5)
            except KeyboardInterrupt:
                acted = True
            assert acted == instrument.has_acted
            await settle(pool)
            assert_nothing_is_lost(pool)
            await assert_all_places_work(pool)
        return acted

    step = 1
    while run(lambda: lease_twice(step)):  # noqa: B023 - it is run at once
        step += 1
    assert step > 30


def test_an_interrupt_at_any_step_comes_out_of_the_pool_as_it_is() -> None:
    async def lease_once(step: int) -> None:
        connector = FakeConnector(close=Gate.slow(1), clean=Gate.slow(1))
        with at_step(step, interrupt) as instrument:
            async with fake_pool(connector, max_size=2) as pool:  # noqa: SIM117
                async with pool.lease() as one, pool.lease() as two:
                    await one.execute(1)
                    two.begin()
            await trio.sleep(1)
        survived.append(not instrument.has_acted)

    survived: list[bool] = []
    step = 1
    while not survived:
        try:
            run(lambda: lease_once(step))  # noqa: B023 - it is run at once
        except KeyboardInterrupt:
            step += 1
    assert step > 20
    assert survived == [True]


class _AtLine:
    """Raises SIGINT before the k-th line of the pool that the caller's task runs."""

    def __init__(self, step: int) -> None:
        self.left = step
        self._codes: dict[CodeType, bool] = {}

    def __enter__(self) -> Self:
        self._previous = sys.gettrace()
        sys.settrace(self.trace)
        self._frame = sys._getframe(1)
        self._frame_trace = self._frame.f_trace
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code not in self._codes:
            name = frame.f_globals.get("__name__", "")
            self._codes[code] = name.startswith("trio_hyperpool.") or (
                name == "contextlib"
            )
        if not self._codes[code]:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self.trace


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["lease", "open", "quiesce", "retire", "resize", "reset"]
)
def test_an_interrupt_between_any_two_lines_of_the_pool_leaks_nothing(
    what: str,
) -> None:
    async def interrupted(step: int) -> bool:
        connector = FakeConnector()
        async with fake_pool(connector, max_size=2) as pool:
            if what != "open":
                await assert_all_places_work(pool)
            at_line = _AtLine(step)
            try:
                with at_line:
                    await scenario(pool)
                await trio.lowlevel.checkpoint()
            except KeyboardInterrupt:
                pass
            assert pool._supply.queue.max_size == pool._supply.table.max_size
            pool.resize(2)
            await settle(pool)
            assert_nothing_is_lost(pool)
            await assert_all_places_work(pool)
        return at_line.left <= 0

    async def scenario(pool: trio_hyperpool.Pool[FakeConnection]) -> None:
        if what in {"lease", "open"}:
            lease = pool.lease()
            try:
                await lease.__aenter__()
            finally:
                await lease.__aexit__(None, None, None)
        elif what == "quiesce":
            async with pool.quiesce():
                pass
        elif what == "retire":
            pool.retire_idle()
        elif what == "resize":
            pool.resize(1)
        else:
            pool.reset()

    step = 1
    while run(lambda: interrupted(step)):  # noqa: B023 - it is run at once
        step += 1
    assert step > 5


@pytest.mark.parametrize("hook", ["after_connect", "before_acquire", "after_release"])
def test_an_interrupt_reaches_a_hook_that_does_not_let_go(hook: str) -> None:
    async def busy(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            reached.append(hook)
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with fake_pool(**{hook: busy}) as pool:  # type: ignore[arg-type]
            await hold(pool, 0)
            await settle(pool)

    reached: list[str] = []
    run(main)
    assert reached == [hook]


@pytest.mark.parametrize("hook", ["after_connect", "before_acquire", "after_release"])
@pytest.mark.parametrize("seekers", [1, 3])
def test_an_interrupt_in_a_hook_comes_out_of_the_pool(hook: str, seekers: int) -> None:
    async def interrupted(_: object) -> None:
        await trio.sleep(1)
        interrupt_here()

    def interrupt_here() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with fake_pool(**{hook: interrupted}) as pool:  # type: ignore[arg-type]
            async with trio.open_nursery() as nursery:
                for _ in range(seekers):
                    nursery.start_soon(hold, pool, 0.0)
            await trio.sleep(10)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at below
        run(main)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    # From a hook of the pool's own as itself; from the borrower's in its nursery.
    assert isinstance(error, KeyboardInterrupt)
    assert (caught.value is error) == (hook != "before_acquire")


# Closing


async def test_a_lease_that_is_served_as_the_pool_closes_is_turned_away(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Lease.serve

    def serve_and_close(self: Lease[FakeConnection], slot: object) -> None:
        served(self, slot)  # type: ignore[arg-type]
        leave.set()
        # Of the tasks woken in one step, any may run first.
        supply = pool._supply
        supply.turn_away()
        for leased in list(supply.table.leased):
            supply.revoke(leased)

    monkeypatch.setattr(Lease, "serve", serve_and_close)
    leave = trio.Event()

    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)

    async with trio.open_nursery() as nursery, fake_pool(close_timeout=0) as pool:
        nursery.start_soon(borrow)
        await leave.wait()
    assert pool.statistics().leases == 0
