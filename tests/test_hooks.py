"""Each hook: when it runs, in which order, and what becomes of its connection if it
fails, hangs, is cancelled, or leaves something behind."""

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
from trio_hyperpool import HookError, LeaseEndedError, PoolClosedError, PoolTimeoutError
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate


async def mixed(_: object) -> None:
    """Have a task that raises while it is being cancelled."""

    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubborn)
        nursery.start_soon(trio.sleep_forever)


# When, and in which order


async def test_the_order_of_hooks_checks_and_cleaning(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []

    def gate(name: str) -> Gate:
        class Told(Gate):
            async def __call__(self, *_args: object) -> None:
                order.append(name)
                await super().__call__()

        return Told()

    connector = FakeConnector(
        prepare=gate("prepare"),
        connect=gate("connect"),
        probe=gate("probe"),
        clean=gate("clean"),
        close=gate("close"),
    )
    async with fake_pool(
        connector,
        health_check_after=0,
        after_connect=gate("after_connect"),
        before_acquire=gate("before_acquire"),
        after_release=gate("after_release"),
    ) as pool:
        async with pool.lease():
            order.append("block")
        await settle(pool)
        async with pool.lease() as connection:
            order.append("block")
            connection.begin()
        await settle(pool)
    opening = ["prepare", "connect", "after_connect", "before_acquire", "block"]
    again = ["after_release", "probe", "before_acquire", "block"]
    assert order == [*opening, *again, "clean", "after_release", "close"]


async def test_after_connect_runs_once_for_each_connection(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    async with fake_pool(max_size=3, after_connect=hook) as pool:
        for _ in range(5):
            await assert_all_places_work(pool)
        assert hook.calls == 3


async def test_before_acquire_runs_at_every_checkout_new_connections_included(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    async with fake_pool(before_acquire=hook) as pool:
        for number in range(1, 4):
            async with pool.lease():
                assert hook.calls == number
        assert pool.statistics().opened == 1


async def test_before_acquire_runs_when_a_connection_goes_from_hand_to_hand(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    async with fake_pool(max_size=1, before_acquire=hook) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold, pool, 1)
        assert hook.calls == 5


async def test_after_release_runs_for_what_is_kept_only(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    async with fake_pool(max_size=1, after_release=hook) as pool:
        async with pool.lease() as connection:
            connection.close()
        await settle(pool)
        async with pool.lease() as connection:
            with trio.move_on_after(1):
                await connection.execute(10)
        await settle(pool)
        async with pool.lease():
            pool.reset()
        await settle(pool)
        assert hook.calls == 0
        async with pool.lease():
            pass
        await settle(pool)
        assert hook.calls == 1


async def test_the_place_is_taken_until_after_release_has_ended(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1, after_release=Gate.slow(3)) as pool:
        async with pool.lease():
            pass
        assert pool.statistics().cleaning == 1
        async with pool.lease():
            assert trio.current_time() == 3


async def test_a_borrower_does_not_wait_for_after_release(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=2, after_release=Gate.slow(3)) as pool:
        async with pool.lease():
            pass
        async with pool.lease() as connection:
            assert connection.number == 2
            assert trio.current_time() == 0


async def test_before_acquire_runs_in_the_borrowers_task(
    autojump_clock: MockClock,
) -> None:
    tasks: list[object] = []

    async def hook(_: object) -> None:
        tasks.append(trio.lowlevel.current_task())
        await trio.lowlevel.checkpoint()

    async with fake_pool(before_acquire=hook, after_connect=hook) as pool:  # noqa: SIM117
        async with pool.lease():
            pass
    assert tasks[0] is not tasks[1]
    assert tasks[1] is trio.lowlevel.current_task()


# Views of hooks


async def test_what_after_connect_sets_on_the_connection_holds_for_every_lease(
    autojump_clock: MockClock,
) -> None:
    async def after_connect(connection: FakeConnection) -> None:
        await connection.execute()
        connection.row_factory = "dict_row"

    async def before_acquire(connection: FakeConnection) -> None:
        await connection.execute()
        assert connection.row_factory == "dict_row"
        connection.row_factory = "mine alone"

    async with fake_pool(
        after_connect=after_connect, before_acquire=before_acquire
    ) as pool:
        for _ in range(3):
            async with pool.lease() as connection:
                assert connection.row_factory == "dict_row"
                connection.row_factory = "changed"


@pytest.mark.parametrize("hook", ["after_connect", "before_acquire", "after_release"])
@pytest.mark.parametrize("end", ["well", "badly", "late", "cancelled"])
async def test_the_view_of_a_hook_dies_with_it(
    autojump_clock: MockClock, hook: str, end: str
) -> None:
    views: list[FakeConnection] = []

    async def stolen(connection: FakeConnection) -> None:
        views.append(connection)
        await connection.execute()
        if end == "badly":
            raise OSError("no")
        if end in {"late", "cancelled"}:
            await trio.sleep_forever()

    options = {hook: stolen, "hook_timeout": 2 if end == "late" else 1000}
    async with fake_pool(create_timeout=10, **options) as pool:  # type: ignore[arg-type]
        with trio.move_on_after(20):
            try:
                async with pool.lease():
                    pass
            except (HookError, PoolTimeoutError):
                pass
    for view in views:
        with pytest.raises(LeaseEndedError):
            await view.execute()
    assert views


# Failing


@pytest.mark.parametrize("leases", [1, 3])
async def test_after_connect_that_fails_reaches_the_lease_that_waits(
    autojump_clock: MockClock, leases: int
) -> None:
    cause = OSError("no such function")
    connector = FakeConnector(close=Gate.slow(1))
    async with fake_pool(connector, after_connect=Gate.fails(cause)) as pool:
        for _ in range(leases):
            with pytest.raises(
                HookError, match="after_connect failed: OSErr"
            ) as caught:
                async with pool.lease():
                    pass
            assert caught.value.hook == "after_connect"
            assert caught.value.__cause__ is cause
        now = pool.statistics()
        assert now.hook_failures == now.open_failures == leases
        # Closed in good order, before the lease is told.
        assert now.retired == {"failed hook": leases}
        assert trio.current_time() == leases
        assert_nothing_is_lost(pool)


async def test_after_connect_that_fails_is_not_tried_again(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.fails()
    async with fake_pool(after_connect=hook, create_attempts=5) as pool:
        with pytest.raises(HookError):
            async with pool.lease():
                pass
    assert hook.calls == 1


async def test_before_acquire_that_fails_on_a_new_connection_reaches_the_lease(
    autojump_clock: MockClock,
) -> None:
    cause = OSError("not today")
    hook = Gate.fails(cause)
    async with fake_pool(before_acquire=hook, max_size=1) as pool:
        with pytest.raises(HookError, match="not today") as caught:
            async with pool.lease():
                pass
        assert caught.value.hook == "before_acquire"
        assert caught.value.__cause__ is cause
        await settle(pool)
        assert pool.statistics().retired == {"failed hook": 1}
        assert_nothing_is_lost(pool)
        hook.error = None
        await assert_all_places_work(pool)


async def test_before_acquire_that_fails_on_a_used_connection_replaces_it(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(1))
    hook = Gate.fails(on=2)
    async with fake_pool(connector, before_acquire=hook, max_size=2) as pool:
        async with pool.lease():
            pass
        async with pool.lease() as connection:
            assert connection.number == 2
            # The old one was closed in good order before the new one was opened.
            assert trio.current_time() == 1
            assert connector.most_open == 1
        assert hook.calls == 3
        assert pool.statistics().retired == {"failed hook": 1}


async def test_before_acquire_that_fails_on_the_replacement_too_is_an_error(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.works()
    async with fake_pool(before_acquire=hook) as pool:
        async with pool.lease():
            pass
        hook.error = OSError("never again")
        with pytest.raises(HookError, match="never again"):
            async with pool.lease():
                pass
        assert hook.calls == 3


async def test_after_release_that_fails_retires_the_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_pool(after_release=Gate.fails(), max_size=1) as pool:
        async with pool.lease():
            pass
        async with pool.lease() as connection:
            assert connection.number == 2
        await settle(pool)
        assert pool.statistics().retired == {"failed hook": 2}
    assert "after_release failed" in caplog.text


# Hanging


async def test_after_connect_that_hangs_is_dropped(autojump_clock: MockClock) -> None:
    connector = FakeConnector(close=Gate.never())
    hook = Gate.never()
    async with fake_pool(connector, after_connect=hook, hook_timeout=2) as pool:
        with pytest.raises(HookError, match="within 2 s") as caught:
            async with pool.lease():
                pass
        assert isinstance(caught.value.__cause__, trio.TooSlowError)
        # Without a farewell: who does not answer would not answer that, either.
        assert trio.current_time() == 2
        assert pool.statistics().discarded == {"failed hook": 1}


async def test_after_connect_that_fails_is_told_though_its_farewell_takes_long(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(close=Gate.slow(3))
    hook = Gate(1, OSError())
    async with fake_pool(connector, after_connect=hook, create_timeout=2) as pool:
        with pytest.raises(HookError):
            async with pool.lease():
                pass
        assert trio.current_time() == 4
        assert connector.close_gate.passed == 1


async def test_after_connect_counts_against_create_timeout(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(after_connect=Gate.never(), create_timeout=3) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            async with pool.lease():
                pass
        assert caught.value.step == "create"
        assert trio.current_time() == 3
        assert pool.statistics().discarded == {"abandoned": 1}


async def test_after_connect_that_raises_as_it_is_cut_off_is_no_bug_of_the_pool(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(after_connect=mixed, create_timeout=1) as pool:
        with pytest.raises(Exception, match="no connection could be opened"):
            async with pool.lease():
                pass
        assert_nothing_is_lost(pool)
    async with fake_pool(after_connect=mixed, hook_timeout=1) as pool:
        with pytest.raises(HookError):
            async with pool.lease():
                pass
        assert_nothing_is_lost(pool)


@pytest.mark.parametrize("is_new", [True, False])
async def test_before_acquire_that_hangs_is_dropped(
    autojump_clock: MockClock, is_new: bool
) -> None:
    hook = Gate.never(on=1 if is_new else 2)
    connector = FakeConnector(close=Gate.never())
    async with fake_pool(connector, before_acquire=hook, hook_timeout=2) as pool:
        if is_new:
            with pytest.raises(HookError) as caught:
                async with pool.lease():
                    pass
            assert isinstance(caught.value.__cause__, trio.TooSlowError)
        else:
            async with pool.lease():
                pass
            async with pool.lease() as connection:
                assert connection.number == 2
        assert trio.current_time() == 2
        assert pool.statistics().discarded == {"failed hook": 1}


async def test_after_release_that_hangs_ends_with_its_time(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(after_release=Gate.never(on=1), hook_timeout=2) as pool:
        async with pool.lease():
            pass
        await trio.sleep(3)
        assert pool.statistics().retired == {"failed hook": 1}
        assert_nothing_is_lost(pool)


# Cancelled


async def test_a_cancelled_before_acquire_sends_its_connection_to_be_cleaned(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector, before_acquire=Gate.slow(5)) as pool:
        with trio.move_on_after(1) as scope:
            async with pool.lease():
                pass
        assert scope.cancelled_caught
        await settle(pool)
        assert connector.clean_gate.calls == 1
        assert pool.statistics().idle == 1
        assert_nothing_is_lost(pool)


async def test_a_cancelled_query_in_before_acquire_retires_its_connection(
    autojump_clock: MockClock,
) -> None:
    async def hook(connection: FakeConnection) -> None:
        await connection.execute(5)

    async with fake_pool(before_acquire=hook) as pool:
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        await settle(pool)
        assert pool.statistics().retired == {"cancelled query": 1}


async def test_hooks_of_the_pool_are_not_cancelled_with_a_borrower(
    autojump_clock: MockClock,
) -> None:
    hook = Gate.slow(5)
    async with fake_pool(after_connect=hook, after_release=hook) as pool:
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        await trio.sleep(10)
        assert (hook.calls, hook.passed) == (1, 1)
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        await trio.sleep(10)
        assert (hook.calls, hook.passed) == (2, 2)


# Leaving something behind


async def begin(connection: FakeConnection) -> None:
    await connection.execute()
    connection.begin()


async def close(connection: FakeConnection) -> None:
    await connection.execute()
    connection.close()


async def cancel(connection: FakeConnection) -> None:
    with trio.move_on_after(0.1):
        await connection.execute(1)


@pytest.mark.parametrize(
    ("misbehave", "complaint"),
    [
        (begin, "left a transaction open"),
        (close, "left the connection closed"),
        (cancel, "a query of it was cancelled"),
    ],
)
@pytest.mark.parametrize("hook", ["after_connect", "before_acquire", "after_release"])
async def test_a_hook_has_to_leave_its_connection_as_it_was(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    hook: str,
    misbehave: object,
    complaint: str,
) -> None:
    async with fake_pool(**{hook: misbehave}) as pool:  # type: ignore[arg-type]
        if hook == "after_release":
            async with pool.lease():
                pass
        else:
            with pytest.raises(HookError, match=complaint) as caught:
                async with pool.lease():
                    pass
            assert caught.value.hook == hook
            assert caught.value.__cause__ is None
        await settle(pool)
        assert pool.statistics().hook_failures == 1
        assert pool.statistics().retired == {"failed hook": 1}
        assert_nothing_is_lost(pool)
    if hook == "after_release":
        assert complaint in caplog.text


# Hooks that use the pool


async def test_a_hook_may_lease_within_its_time(autojump_clock: MockClock) -> None:
    async def before_acquire(_: object) -> None:
        if pool.statistics().leased == 1:
            async with pool.lease() as other:
                await other.execute()

    async with fake_pool(max_size=2, before_acquire=before_acquire) as pool:
        async with pool.lease():
            pass
        pool.resize(1)
        # No deadlock: the hook's own deadline ends the wait.
        with pytest.raises(HookError):
            async with pool.lease(wait_timeout=100):
                pass
        assert trio.current_time() == 60


# While the pool closes


@pytest.mark.parametrize("error", [None, OSError("no")])
async def test_a_hook_that_ends_after_its_lease_was_revoked_reports_the_close(
    autojump_clock: MockClock, error: OSError | None
) -> None:
    async def borrow() -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, 0)

    async with trio.open_nursery() as nursery:
        async with fake_pool(before_acquire=Gate(5, error), close_timeout=1) as pool:
            nursery.start_soon(borrow)
            await trio.sleep(0.5)
        assert trio.current_time() == 1.5


async def test_a_hook_that_is_cancelled_after_its_lease_was_revoked_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async def borrow() -> None:
        with trio.move_on_after(3):
            await hold(pool, 0)

    async with (
        trio.open_nursery() as nursery,
        fake_pool(before_acquire=Gate.never(), close_timeout=1) as pool,
    ):
        nursery.start_soon(borrow)
        await trio.sleep(0.5)
    assert trio.current_time() == 3
    assert pool.statistics().revoked == 0


@pytest.mark.parametrize("leases", [0, 1])
async def test_a_hook_that_fails_while_the_pool_closes_opens_nothing_new(
    autojump_clock: MockClock, leases: int
) -> None:
    hook = Gate(2, OSError("no"), only_on=leases + 1)
    connector = FakeConnector()

    async def borrow() -> None:
        with pytest.raises(HookError if hook.error else PoolClosedError):
            await hold(pool, 0)

    async with trio.open_nursery() as nursery:
        async with fake_pool(connector, before_acquire=hook) as pool:
            for _ in range(leases):
                await hold(pool, 0)
            nursery.start_soon(borrow)
            await trio.sleep(1)
        assert len(connector.opened) == 1
        assert pool.statistics().retired == {"failed hook": 1}
