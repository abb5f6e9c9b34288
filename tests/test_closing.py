"""A pool ends when its block ends, whatever its borrowers do, and says what happened."""

from __future__ import annotations

import contextlib
import logging

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from tests._invariants import (
    FakePool,
    assert_all_places_work,
    at_step,
    fake_pool,
    hold,
    interrupt,
    run,
    settle,
)
from trio_hyperpool import LeaseRevokedError, Pool, PoolClosedError, open_pool
from trio_hyperpool._upkeep import Upkeep
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate

# In order, each step bounded


async def test_an_unused_pool_ends_at_once(autojump_clock: MockClock) -> None:
    connector = FakeConnector()
    async with fake_pool(connector):
        pass
    assert trio.current_time() == 0
    assert not connector.opened
    assert not connector.prepare_gate.calls


async def test_idle_connections_end_politely_and_all_at_the_same_time(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(2))
    async with fake_pool(connector, max_size=8) as pool:
        await assert_all_places_work(pool)
    assert trio.current_time() == 2
    assert connector.close_gate.passed == 8
    assert pool.statistics().retired == {"pool closed": 8}
    assert not pool.statistics().discarded


async def test_a_farewell_that_never_ends_takes_recycle_timeout(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(
        FakeConnector(close=Gate.never()), max_size=8, recycle_timeout=3
    ) as pool:
        await assert_all_places_work(pool)
    assert trio.current_time() == 3


async def test_a_farewell_that_fails_does_not_come_out_of_the_block(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(FakeConnector(close=Gate.fails()), max_size=2) as pool:
        await assert_all_places_work(pool)
    assert caplog.text.count("farewell failed") == 2


async def test_waiters_and_seekers_are_turned_away_at_once(
    autojump_clock: MockClock,
) -> None:
    turned_away: list[float] = []

    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)
        turned_away.append(trio.current_time())

    connector = FakeConnector(connect=Gate(100, only_on=2))
    async with trio.open_nursery() as nursery:
        async with fake_pool(connector, max_size=2, close_timeout=5) as pool:
            await nursery.start(hold, pool, 50)
            for _ in range(6):
                nursery.start_soon(borrow)
            await trio.sleep(1)
            now = pool.statistics()
            assert (now.waiting, now.opening) == (5, 1)
        assert turned_away == [1] * 6
        # The connect that was in progress delays nothing.
        assert trio.current_time() == 6


async def test_a_newcomer_is_turned_away(autojump_clock: MockClock) -> None:
    async with fake_pool() as pool:
        await hold(pool, 0)
    for wait_timeout in (None, 0):
        with assert_checkpoints(), pytest.raises(PoolClosedError):
            async with pool.lease(wait_timeout=wait_timeout):
                pass
    with pytest.raises(PoolClosedError):
        await pool.flush()
    with pytest.raises(trio.ClosedResourceError):
        await hold(pool, 0)
    # What is left can be looked at and told things.
    assert "(closed)" in repr(pool)
    pool.reset()
    pool.resize(3)
    assert pool.retire_idle() == 0
    assert pool.statistics().size == 0


async def test_leases_have_a_grace_to_end_by_themselves(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        async with fake_pool(close_timeout=5) as pool:
            for seconds in (1, 2, 3):
                await nursery.start(hold, pool, seconds)
        assert trio.current_time() == 3
        assert pool.statistics().revoked == 0
        assert pool.statistics().retired == {"pool closed": 3}


async def test_leases_that_outlast_the_grace_are_revoked(
    autojump_clock: MockClock,
) -> None:
    async def borrow() -> None:
        async with pool.lease() as connection:
            await trio.sleep(10)
            with pytest.raises(LeaseRevokedError):
                await connection.execute()

    async with trio.open_nursery() as nursery:
        async with fake_pool(close_timeout=5) as pool:
            nursery.start_soon(borrow)
            await trio.sleep(1)
        # Whether or not it ever touches the connection again.
        assert trio.current_time() == 6
        assert pool.statistics().revoked == 1
        assert pool.statistics().retired == {"revoked": 1}
        assert pool.statistics().use.sum == 6


async def test_a_pool_that_closes_warms_nothing_up(autojump_clock: MockClock) -> None:
    connector = FakeConnector()
    async with trio.open_nursery() as nursery:
        async with fake_pool(
            connector, min_idle=2, max_lifetime=2, close_timeout=20
        ) as pool:
            await nursery.start(hold, pool, 10)
            await settle(pool)
            opened = len(connector.opened)
        # The warm ones reached their age in the grace.
        assert trio.current_time() == 10
        assert pool.statistics().retired["max_lifetime"] >= 1
        assert len(connector.opened) == opened


async def test_a_lease_that_never_ends_does_not_delay_the_close(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        async with fake_pool(close_timeout=5) as pool:
            await nursery.start(hold, pool, trio.Event())
        assert trio.current_time() == 5
        nursery.cancel_scope.cancel()


async def borrow_and_leave_a_transaction(pool: Pool[FakeConnection]) -> None:
    async with pool.lease() as connection:
        connection.begin()
        await trio.sleep(2)


async def test_a_dirty_connection_that_comes_back_in_the_grace_ends_politely(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with trio.open_nursery() as nursery, fake_pool(connector) as pool:
        nursery.start_soon(borrow_and_leave_a_transaction, pool)
        await wait_all_tasks_blocked()
    assert pool.statistics().retired == {"pool closed": 1}
    assert not connector.clean_gate.calls
    assert trio.current_time() == 3


async def test_its_farewell_does_not_keep_the_idle_ones_waiting(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    async with trio.open_nursery() as nursery, fake_pool(connector) as pool:
        await assert_all_places_work(pool)
        nursery.start_soon(borrow_and_leave_a_transaction, pool)
        await wait_all_tasks_blocked()
    assert trio.current_time() == 3


@pytest.mark.parametrize("how", ["clean", "after_release", "opening"])
async def test_what_the_pool_is_busy_with_as_it_closes_ends_politely_too(
    autojump_clock: MockClock, how: str
) -> None:
    # The last to detach makes the server write: cut off, it would lose data.
    connector = FakeConnector(clean=Gate.slow(1), close=Gate.slow(1))
    hook = Gate.slow(1) if how == "after_release" else None
    async with fake_pool(connector, after_release=hook) as pool:  # noqa: SIM117
        async with pool.lease() as connection:
            if how == "clean":
                connection.begin()
            if how == "opening":
                connector.connect_gate = Gate.slow(0.5)
                with trio.move_on_after(0.1):
                    await hold(pool, 0)
    assert not pool.statistics().discarded
    assert pool.statistics().retired
    assert connector.close_gate.passed == connector.close_gate.calls
    assert trio.current_time() <= 2.5


async def test_cleaning_that_never_ends_is_cut_off(autojump_clock: MockClock) -> None:
    connector = FakeConnector(clean=Gate.never())
    async with fake_pool(connector, recycle_timeout=100, close_timeout=3) as pool:  # noqa: SIM117
        async with pool.lease() as connection:
            connection.begin()
    assert trio.current_time() == 100
    async with fake_pool(
        FakeConnector(), after_release=Gate.never(), recycle_timeout=2, close_timeout=3
    ) as pool:
        await hold(pool, 0)
    assert trio.current_time() == 103
    assert pool.statistics().discarded == {"abandoned": 1}


async def test_every_step_that_never_ends_at_once_is_still_bounded(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(clean=Gate.never(), close=Gate.never())
    async with trio.open_nursery() as nursery:
        async with fake_pool(
            connector,
            max_size=4,
            recycle_timeout=3,
            close_timeout=2,
            after_release=Gate.never(),
        ) as pool:
            await nursery.start(hold, pool, trio.Event())
            async with pool.lease() as connection:
                connection.begin()
            async with pool.lease():
                pass
            connector.connect_gate = Gate.never()
            with trio.move_on_after(0):
                await hold(pool, 0)
        assert trio.current_time() <= 2 + 3
        nursery.cancel_scope.cancel()


# Settling what missed its farewell


async def test_what_ended_in_good_order_needs_no_settling(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, max_size=3) as pool:
        await assert_all_places_work(pool)
        await pool.flush()
        await assert_all_places_work(pool)
    assert not connector.settle_gate.calls


@pytest.mark.parametrize("how", ["broken", "farewell fails", "farewell hangs"])
async def test_what_was_cut_off_is_made_good_when_no_connection_is_left(
    autojump_clock: MockClock, how: str
) -> None:
    seen: list[int] = []

    class Settling(FakeConnector):
        async def settle(self) -> None:
            seen.append(len(self.open_connections))
            await super().settle()

    gates = {"farewell fails": Gate.fails(on=1), "farewell hangs": Gate.never(on=1)}
    connector = Settling(close=gates.get(how))
    async with fake_pool(
        connector, max_size=3, recycle_timeout=2, close_timeout=0
    ) as pool:
        async with pool.lease() as connection, pool.lease():
            if how == "broken":
                connection.close()
        await wait_all_tasks_blocked()
    assert seen == [0]


class InNursery(Gate):
    """A step that, cancelled, ends by a group of cancellations."""

    async def __call__(self, *args: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().__call__, *args)


@pytest.mark.parametrize("kind", [Gate, InNursery])
@pytest.mark.parametrize("is_first", [True, False])
async def test_an_opener_that_the_end_cuts_off_is_made_good_if_anything_was_done(
    autojump_clock: MockClock, *, is_first: bool, kind: type[Gate]
) -> None:
    connecting: list[int] = []

    class Settling(FakeConnector):
        async def settle(self) -> None:
            connecting.append(self._connecting)

    connector = Settling(connect=kind.never(on=1 if is_first else 2))
    async with (
        fake_pool(connector, max_size=2) as pool,
        contextlib.AsyncExitStack() as stack,
    ):
        if not is_first:
            await stack.enter_async_context(pool.lease())
        with trio.move_on_after(1):
            await hold(pool, 0)
    assert connecting == ([] if is_first else [0])
    connector.assert_no_leak()


@pytest.mark.parametrize(
    "where", ["prepare", "connect", "after_connect", "after_release"]
)
async def test_a_step_in_a_nursery_that_the_end_cuts_off_is_no_bug(
    autojump_clock: MockClock, where: str
) -> None:
    gate = InNursery.never()
    is_hook = where.startswith("after")
    connector = FakeConnector(**({} if is_hook else {where: gate}))
    options = {where: gate} if is_hook else {}
    async with fake_pool(connector, **options) as pool:  # type: ignore[arg-type]
        with trio.move_on_after(1):
            await hold(pool, 0)


@pytest.mark.parametrize("gate", [Gate.fails(), Gate.never()])
async def test_settling_that_does_not_go_well_is_logged_and_bounded(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, gate: Gate
) -> None:
    connector = FakeConnector(settle=gate)
    async with fake_pool(connector, recycle_timeout=2) as pool:  # noqa: SIM117
        async with pool.lease() as connection:
            connection.close()
    assert trio.current_time() <= 2
    assert "settling" in caplog.text


async def test_an_interrupt_while_settling_comes_out_as_itself(
    autojump_clock: MockClock,
) -> None:
    class Interrupted(FakeConnector):
        async def settle(self) -> None:
            raise KeyboardInterrupt

    connector = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        async with fake_pool(connector) as pool, pool.lease() as connection:
            connection.close()
    connector.assert_no_leak()


# Bodies that raise, or are cancelled


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mine"),
        KeyboardInterrupt(),
        SystemExit(3),
        ExceptionGroup("mine", [ValueError()]),
        PoolClosedError("mine"),
    ],
    ids=repr,
)
async def test_what_the_body_raises_comes_out_at_once_and_as_it_is(
    autojump_clock: MockClock, error: BaseException
) -> None:
    async with trio.open_nursery() as nursery:
        with pytest.raises(type(error)) as caught:
            async with fake_pool(close_timeout=100) as pool:
                await nursery.start(hold, pool, trio.Event())
                raise error
        assert caught.value is error
        assert error.__cause__ is None
        assert trio.current_time() == 0
        assert pool.statistics().revoked == 1
        nursery.cancel_scope.cancel()


async def test_a_cancelled_body_closes_the_pool_at_once_and_reaches_its_scope(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    with trio.move_on_after(2) as scope:
        async with fake_pool(connector, close_timeout=100) as pool:
            await hold(pool, 0)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    # At once, and politely all the same.
    assert trio.current_time() == 3
    assert connector.close_gate.passed == 1


async def test_a_cancellation_cuts_the_grace_short(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(2) as scope:
            async with fake_pool(close_timeout=100) as pool:
                await nursery.start(hold, pool, trio.Event())
        assert scope.cancelled_caught
        assert trio.current_time() == 2
        assert pool.statistics().revoked == 1
        nursery.cancel_scope.cancel()


async def test_what_a_cancelled_body_raises_instead_comes_out(
    autojump_clock: MockClock,
) -> None:
    error = ValueError("in the clean-up")
    with trio.CancelScope() as scope:
        with pytest.raises(ValueError, match="clean-up") as caught:
            async with fake_pool() as pool:
                await hold(pool, 0)
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    raise error
        assert caught.value is error


async def test_finally_blocks_of_the_body_can_still_lease(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(1))

    async def last_words(pool: FakePool) -> None:
        with trio.CancelScope(shield=True):
            async with pool.lease() as one, pool.lease() as two:
                words.append(await one.execute() + await two.execute())

    words: list[int] = []
    with trio.CancelScope() as scope:
        async with fake_pool(connector, after_release=Gate.slow(1)) as pool:
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                await last_words(pool)
    with pytest.raises(ValueError, match="mine"):
        async with fake_pool(connector) as pool:
            try:
                raise ValueError("mine")
            finally:
                await last_words(pool)
    assert words == [3, 7]


async def test_a_pool_in_a_cancelled_scope_opens_and_closes_cleanly(
    autojump_clock: MockClock,
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with fake_pool(min_idle=2) as pool:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                assert pool.statistics().idle == 2
    # There was nothing to wait for.
    assert not scope.cancelled_caught


# Bugs in tasks of the pool


class Bug(BaseException):
    """What no connector may raise, and what nobody in the pool expects."""


def buggy(seconds: float, bug: BaseException) -> Gate:
    return Gate(seconds, bug)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "where", ["prepare", "connect", "after_connect", "clean", "after_release", "close"]
)
async def test_a_bug_in_a_task_of_the_pool_comes_out_as_itself(
    autojump_clock: MockClock, where: str
) -> None:
    bug = Bug("a bug")
    waiters: list[float] = []

    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)
        waiters.append(trio.current_time())

    is_hook = where.startswith("after")
    gate = buggy(1, bug)
    connector = FakeConnector(**({} if is_hook else {where: gate}))
    options = {where: gate} if is_hook else {}
    async with trio.open_nursery() as nursery:
        with pytest.raises(Bug) as caught:
            async with fake_pool(connector, max_size=1, **options) as pool:  # type: ignore[arg-type]
                if where in {"clean", "after_release", "close"}:
                    async with pool.lease() as connection:
                        if where == "clean":
                            connection.begin()
                    if where == "close":
                        pool.retire_idle()
                for _ in range(3):
                    nursery.start_soon(borrow)
                await trio.sleep_forever()
        assert caught.value is bug
        assert trio.current_time() == 1
    assert waiters == [1] * 3


async def test_a_bug_turns_waiters_away_however_long_the_body_takes(
    autojump_clock: MockClock,
) -> None:
    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)
        assert trio.current_time() == 1

    connector = FakeConnector(clean=buggy(1, Bug("a bug")))
    async with trio.open_nursery() as nursery:
        with pytest.raises(Bug):
            async with fake_pool(connector, max_size=1) as pool:
                async with pool.lease() as connection:
                    connection.begin()
                nursery.start_soon(borrow)
                with trio.CancelScope(shield=True):
                    await trio.sleep(10)
                await trio.sleep_forever()
        assert trio.current_time() == 10


async def test_a_bug_in_the_upkeep_comes_out_as_itself(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = Bug("a bug")

    def broken(*_: object) -> float:
        raise bug

    with pytest.raises(Bug) as caught:
        async with fake_pool(idle_timeout=3) as pool:
            await hold(pool, 0)
            monkeypatch.setattr(Upkeep, "_sweep", broken)
            await trio.sleep_forever()
    assert caught.value is bug
    assert trio.current_time() == 3


async def test_a_bug_reaches_a_task_that_waits_for_the_pool_to_drain(
    autojump_clock: MockClock,
) -> None:
    bug = Bug("a bug")

    async def flush() -> None:
        with pytest.raises(PoolClosedError):
            await pool.flush()

    connector = FakeConnector(clean=buggy(1, bug))
    async with trio.open_nursery() as nursery:
        with pytest.raises(Bug):
            async with fake_pool(connector) as pool:
                async with pool.lease() as connection:
                    connection.begin()
                nursery.start_soon(flush)
                await trio.sleep_forever()


async def test_a_bug_that_shows_while_the_pool_closes_comes_out_too(
    autojump_clock: MockClock,
) -> None:
    bug = Bug("a bug")
    with pytest.raises(Bug) as caught:
        async with fake_pool(FakeConnector(clean=buggy(1, bug))) as pool:  # noqa: SIM117
            async with pool.lease() as connection:
                connection.begin()
    assert caught.value is bug


async def test_of_two_bugs_the_first_comes_out(autojump_clock: MockClock) -> None:
    gate = buggy(1, Bug("first"))

    async def borrow_dirty() -> None:
        async with pool.lease() as connection:
            connection.begin()

    async def change() -> None:
        await trio.sleep(0.5)
        await borrow_dirty()
        await trio.sleep(0.7)
        gate.error = Bug("second")  # type: ignore[assignment]

    async with trio.open_nursery() as nursery:
        with pytest.raises(Bug, match="first"):
            async with fake_pool(FakeConnector(clean=gate), max_size=2) as pool:
                nursery.start_soon(change)
                await borrow_dirty()
                await trio.sleep_forever()
    assert (gate.calls, gate.passed) == (2, 0)
    assert trio.current_time() == 1.5


# KeyboardInterrupt


@pytest.mark.parametrize("idle", [0, 1, 3])
def test_an_interrupt_while_connections_say_farewell_comes_out_as_itself(
    idle: int,
) -> None:
    async def main() -> None:
        connector = FakeConnector(close=Gate.slow(5))
        async with trio.open_nursery() as nursery:

            async def ctrl_c() -> None:
                await trio.sleep(2)
                interrupt()

            nursery.start_soon(ctrl_c)
            try:
                async with fake_pool(connector, max_size=4) as pool:  # noqa: SIM117
                    async with pool.lease() as connection:
                        for _ in range(idle):
                            await hold(pool, 0)
                        connection.begin()
            except KeyboardInterrupt as error:
                caught.append(error)
            else:
                await trio.sleep(1)

    caught: list[KeyboardInterrupt] = []
    run(main)
    assert len(caught) == 1


def test_an_interrupt_at_any_step_of_closing_leaks_nothing() -> None:
    async def main(step: int) -> None:
        connector = FakeConnector(close=Gate.slow(1), clean=Gate.slow(1))
        async with trio.open_nursery() as nursery:
            with contextlib.ExitStack() as stack:
                async with fake_pool(
                    connector, max_size=4, close_timeout=2, after_release=Gate.slow(1)
                ) as pool:
                    await nursery.start(hold, pool, trio.Event())
                    async with pool.lease() as connection, pool.lease():
                        connection.begin()
                    instrument = stack.enter_context(at_step(step, interrupt))
            nursery.cancel_scope.cancel()
        acted.append(instrument.has_acted)

    acted: list[bool] = []
    step = 1
    while not acted or acted[-1]:
        with contextlib.suppress(KeyboardInterrupt, BaseExceptionGroup):
            run(lambda: main(step))  # noqa: B023 - it is run at once
        step += 1
    assert step > 10


# Logging


async def test_a_spare_connection_that_fails_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_hyperpool")
    connector = FakeConnector(connect=Gate(1, OSError("down")))
    async with fake_pool(connector) as pool:
        with trio.move_on_after(0.5):
            await hold(pool, 0)
        await settle(pool)
        assert pool.statistics().open_failures == 1
    assert "a connection could not be opened" in caplog.text


async def test_open_pool_gives_a_pool_that_can_be_opened_again_by_another_block(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    for number in (1, 2):
        async with open_pool(connector=connector) as pool, pool.lease() as connection:
            assert connection.number == number
