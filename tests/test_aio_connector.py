"""The asyncio connector's decisions, on a driver that has no server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import signal
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.lowlevel

from tests._aio import Driver
from trio_hyperpool import (
    ConnectError,
    HealthCheck,
    HookError,
    LeaseEndedError,
    LeaseRevokedError,
    Pool,
    PoolTimeoutError,
    open_pool,
)
from trio_hyperpool.testing import assert_at_rest


class Connector:
    """Makes connectors, and has the drivers' connections that they opened."""

    def __init__(self, aio: ModuleType) -> None:
        self.aio = aio
        self.opened: list[Driver] = []

    async def connect(self) -> Driver:
        await asyncio.sleep(0)
        self.opened.append(Driver())
        return self.opened[-1]

    def __call__(self, **changed: Any) -> Any:
        parts: dict[str, Any] = {
            "connect": self.connect,
            "close": Driver.close,
            "ping": Driver.execute,
            "is_alive": lambda driver: driver.is_open,
            "is_clean": lambda driver: not driver.in_transaction,
            "reset": Driver.reset,
            "abort": Driver.abort,
        }
        return self.aio.AsyncioConnector(**(parts | changed))

    @property
    def last(self) -> Driver:
        return self.opened[-1]


@pytest.fixture
def connector(aio: ModuleType) -> Connector:
    return Connector(aio)


async def retired(pool: Pool[Any]) -> dict[str, int]:
    await assert_at_rest(pool)
    now = pool.statistics()
    return {why: n for why, n in {**now.retired, **now.discarded}.items() if n}


# What Trio code does with it


async def test_everything_async_about_it_is_for_trio(connector: Connector) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        assert await conn.execute() == "executed"
        assert conn.peek() == "peeked"
        assert conn.is_open
        assert [row async for row in conn.rows(3)] == [0, 1, 2]
        async with conn.transaction() as inner:
            assert inner is not None
            assert conn.in_transaction
        assert connector.last.log == ["begin", "commit"]
        assert repr(conn) == f"<adapted {connector.last!r}>"
        assert "transaction" in dir(conn)


async def test_the_connection_is_the_same_however_it_is_had(
    connector: Connector,
) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        assert conn.me is conn
        assert await conn.is_given(conn)
        assert await conn.is_given(other=conn)
        async with conn.transaction() as inner:
            assert await inner.is_given(conn)


async def test_errors_come_out_as_they_are(connector: Connector) -> None:
    async with open_pool(connector=connector()) as pool:
        with pytest.raises(OSError, match=r"^no$") as caught:
            async with pool.lease() as conn:
                await conn.execute(fail="no")
        assert not isinstance(caught.value, ExceptionGroup)
        with pytest.raises(KeyError):
            async with pool.lease() as conn, conn.transaction():
                raise KeyError
        assert connector.last.log[-1] == "rollback after KeyError"
    with pytest.raises(ZeroDivisionError):
        async with open_pool(connector=connector()) as pool:
            raise ZeroDivisionError


async def test_what_asyncio_code_cancels_itself_is_an_error(
    connector: Connector,
) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        with pytest.raises(RuntimeError, match="not by Trio's"):
            await conn.cancel_itself()


async def test_it_works_inside_another_loop(connector: Connector) -> None:
    import trio_asyncio

    async with (
        trio_asyncio.open_loop() as outer,
        open_pool(connector=connector()) as pool,
        pool.lease() as conn,
    ):
        assert await conn.execute() == "executed"
        assert connector.last.loop is not outer
        assert asyncio.get_running_loop() is outer
        await trio_asyncio.aio_as_trio(asyncio.sleep)(0)


# Cancellation


async def test_cancelling_the_scope_cancels_the_coroutine(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector()) as pool:
        async with pool.lease() as conn:
            with trio.move_on_after(1) as scope:
                await conn.execute(100)
            assert scope.cancelled_caught
            assert connector.last.log == ["cancelled"]
            assert await conn.execute() == "executed"
        assert await retired(pool) == {"cancelled query": 1}


async def test_a_call_in_a_cancelled_scope_has_not_begun(connector: Connector) -> None:
    async with open_pool(connector=connector()) as pool:
        async with pool.lease() as conn:
            with trio.CancelScope() as scope:
                scope.cancel()
                await conn.execute()
            assert not connector.last.log
        assert await retired(pool) == {}


async def test_a_block_left_by_a_cancellation_is_left_in_order(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        with trio.move_on_after(1) as scope:
            async with conn.transaction():
                await trio.sleep(10)
        assert scope.cancelled_caught
        assert connector.last.log == ["begin", "rollback after CancelledError"]
        assert not conn.in_transaction


class Block:
    """An asyncio block that swallows what it is left by, is cancelled, or hangs."""

    def __init__(self, seconds: float, *, cancelled: bool = False) -> None:
        self.seconds = seconds
        self.cancelled = cancelled
        self.passes_on = False

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, exc_type: object, exc: object, _: object) -> bool:
        await asyncio.sleep(self.seconds)
        if self.passes_on and isinstance(exc, asyncio.CancelledError):
            raise exc
        if self.cancelled:
            raise asyncio.CancelledError
        return True


async def test_a_block_may_swallow_an_error_but_no_cancellation(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:

        async def block(*args: Any, **kwargs: Any) -> Any:
            return await connector.aio.call(conn, as_it_is, Block(*args, **kwargs))

        async def as_it_is(_: Driver, block: Block) -> Block:
            return block

        swallowing = await block(100)
        swallowing.seconds = 0
        async with swallowing:
            raise KeyError
        with trio.move_on_after(1) as scope:
            async with await block(0):
                await trio.sleep(10)
        assert scope.cancelled_caught
        swallowing.passes_on = True
        with trio.move_on_after(1) as scope:
            async with swallowing:
                await trio.sleep(10)
        assert scope.cancelled_caught
        with pytest.raises(RuntimeError, match="not by Trio's"):
            async with await block(0, cancelled=True):
                raise KeyError
        began_at = trio.current_time()
        with trio.move_on_after(1):
            async with await block(100):
                await trio.sleep(10)
        assert trio.current_time() - began_at == pytest.approx(6)


async def test_code_that_ignores_its_cancellation_is_given_up(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector(cancel_timeout=3)) as pool:
        async with pool.lease() as conn:
            with trio.move_on_after(1) as scope:
                await conn.ignore_cancellation(100)
            assert scope.cancelled_caught
            assert trio.current_time() == pytest.approx(4, abs=0.1)
            assert connector.last.log == ["abort"]
        assert await retired(pool) == {"returned broken": 1}


async def test_what_is_done_in_spite_of_a_cancellation_is_told(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector()) as pool:
        async with pool.lease() as conn:
            with trio.move_on_after(1):
                assert await conn.ignore_cancellation(2) == "late"
        assert await retired(pool) == {"cancelled query": 1}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_connect_that_comes_too_late_is_closed(
    connector: Connector, autojump_clock: trio.testing.MockClock, *, fails: bool
) -> None:
    async def connect() -> Driver:
        driver = await connector.connect()
        await driver.ignore_cancellation(20)
        if fails:
            raise OSError("late, and to nobody")
        return driver

    late = connector(connect=connect, cancel_timeout=2)
    async with open_pool(connector=late, create_timeout=1) as pool:
        with pytest.raises(PoolTimeoutError):
            async with pool.lease():
                pass
        assert connector.last.is_open
        await trio.sleep(20)
        assert connector.last.log == ([] if fails else ["abort"])


@pytest.mark.parametrize("patience", [0, 1])
async def test_a_reset_that_does_not_end_is_given_up(
    connector: Connector, autojump_clock: trio.testing.MockClock, patience: float
) -> None:
    stuck = connector(
        reset=lambda driver: driver.ignore_cancellation(100),
        is_clean=None,
        cancel_timeout=patience,
    )
    async with open_pool(connector=stuck, recycle_timeout=1) as pool:
        async with pool.lease() as conn:
            await conn.execute()
        assert await retired(pool) == {"failed cleaning": 1}
        assert connector.last.log == ["abort"]


async def test_without_patience_a_cancelled_call_ends_at_once(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pool(connector=connector(cancel_timeout=0)) as pool:
        for _ in range(20):
            async with pool.lease() as conn:
                with trio.move_on_after(1) as scope:
                    await conn.execute(100)
                assert scope.cancelled_caught
            await assert_at_rest(pool)


# What a lease left


@pytest.mark.parametrize(
    ("changed", "use", "why"),
    [
        ({}, "execute", {}),
        ({"is_clean": None, "reset": None}, "peek", {"changed session": 1}),
        ({"is_clean": None, "reset": None}, None, {}),
        ({"reset": None}, "execute", {}),
        ({}, "close", {"returned broken": 1}),
    ],
)
async def test_it_is_kept_only_if_it_is_known_to_be_clean(
    connector: Connector, changed: Any, use: str | None, why: dict[str, int]
) -> None:
    async with open_pool(connector=connector(**changed)) as pool:
        async with pool.lease() as conn:
            if use is not None:
                done = getattr(conn, use)()
                if use != "peek":
                    await done
        assert await retired(pool) == why


async def test_a_transaction_that_was_left_open_is_put_right(
    connector: Connector,
) -> None:
    async with open_pool(connector=connector()) as pool:
        async with pool.lease() as conn:
            await conn.transaction().__aenter__()
        await assert_at_rest(pool)
        assert connector.last.log == ["begin", "reset"]
        assert pool.statistics().idle == 1


@pytest.mark.parametrize("reset", [None, Driver.execute])
async def test_what_can_not_be_put_right_is_ended(
    connector: Connector, reset: Any
) -> None:
    async with open_pool(connector=connector(reset=reset)) as pool:
        async with pool.lease() as conn:
            await conn.transaction().__aenter__()
        assert await retired(pool) == {"failed cleaning": 1}
        assert not connector.last.is_open


async def test_without_a_reset_a_check_that_was_cancelled_ends_it(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async def before_acquire(_: object) -> None:
        await trio.sleep(slow)

    slow = 0
    options = {"reset": None, "is_clean": None}
    async with open_pool(
        connector=connector(**options), before_acquire=before_acquire
    ) as pool:
        async with pool.lease():
            pass
        slow = 10
        with trio.move_on_after(1):
            async with pool.lease():
                pass
        assert await retired(pool) == {"failed cleaning": 1}


async def test_what_is_assigned_ends_with_the_lease_unless_a_hook_did_it(
    connector: Connector,
) -> None:
    async def after_connect(conn: Any) -> None:
        conn.row_factory = "for all"

    async with open_pool(connector=connector(), after_connect=after_connect) as pool:
        async with pool.lease() as conn:
            conn.row_factory = "for one"
            conn.row_factory = "for this one"
            assert connector.last.row_factory == "for this one"
        async with pool.lease() as conn:
            assert conn.row_factory == "for all"
            with pytest.raises(AttributeError):
                conn.no_such_thing = 1


# The end of a lease


async def test_whatever_is_left_of_a_lease_raises(connector: Connector) -> None:
    async with open_pool(connector=connector()) as pool:
        async with pool.lease() as conn:
            execute, rows = conn.execute, conn.rows(3)
            block, begun = conn.transaction(), conn.execute()
            iterator = conn.rows(3).__aiter__()
        for use in (
            lambda: conn.is_open,
            execute,
            rows.__aiter__,
            lambda: setattr(conn, "row_factory", 1),
        ):
            with pytest.raises(LeaseEndedError):
                use()
        for awaited in (
            begun,
            block.__aenter__(),
            block.__aexit__(None, None, None),
            iterator.__anext__(),
            connector.aio.call(conn, Driver.execute),
        ):
            with pytest.raises(LeaseEndedError):
                await awaited
        begun._target.close()


@pytest.mark.parametrize("seconds", [100, -1])
async def test_a_revoked_lease_wakes_up_who_waits_on_it(
    connector: Connector, autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    async def fails_when_closed(driver: Driver) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise OSError("closed") from None

    async with open_pool(connector=connector(), max_lease=1) as pool:
        with pytest.raises(LeaseRevokedError):
            async with pool.lease() as conn:
                if seconds > 0:
                    await conn.execute(seconds)
                else:
                    await connector.aio.call(conn, fails_when_closed)
        assert await retired(pool) == {"revoked": 1}
        assert not connector.last.is_open


async def test_one_that_is_returned_busy_is_not_leased_again(
    connector: Connector, autojump_clock: trio.testing.MockClock
) -> None:
    async def use(conn: Any) -> None:
        with pytest.raises(LeaseEndedError):
            await conn.execute(100)

    async with open_pool(connector=connector()) as pool:
        async with trio.open_nursery() as nursery, pool.lease() as conn:
            nursery.start_soon(use, conn)
            await trio.sleep(1)
        assert await retired(pool) == {"returned busy": 1}


# Checks and hooks


async def test_ping_is_the_health_check(connector: Connector) -> None:
    async def fail(_: Driver) -> None:
        raise OSError("no answer")

    checked = connector(ping=fail)
    async with open_pool(connector=checked, health_check_after=0) as pool:
        async with pool.lease():
            first = connector.last
        async with pool.lease():
            assert connector.last is not first
        assert await retired(pool) == {"failed health check": 1}


@pytest.mark.parametrize("check", [HealthCheck.PING, HealthCheck.PASSIVE])
async def test_without_a_ping_a_look_is_the_check(
    connector: Connector, check: HealthCheck
) -> None:
    unpinged = connector(ping=None)
    async with unpinged as entered:
        conn = await entered.connect()
        await entered.probe(conn, check)
        connector.last.is_open = False
        with pytest.raises(ConnectionError):
            await entered.probe(conn, check)
    async with open_pool(
        connector=connector(is_alive=None, is_clean=None), health_check_after=0
    ) as pool:
        for _ in range(2):
            async with pool.lease():
                pass
        assert pool.statistics().opened == 1


async def test_hooks_may_be_of_either_flavour(connector: Connector) -> None:
    async def for_trio(conn: Any) -> None:
        await trio.lowlevel.checkpoint()
        assert await conn.execute() == "executed"

    async def for_asyncio(driver: Driver) -> None:
        assert driver is connector.last
        await asyncio.sleep(0)
        assert await driver.execute() == "executed"

    for hook in (for_trio, connector.aio.hook(for_asyncio)):
        async with open_pool(
            connector=connector(),
            after_connect=hook,
            before_acquire=hook,
            after_release=hook,
            health_check=hook,
            health_check_after=0,
        ) as pool:
            for _ in range(2):
                async with pool.lease() as conn:
                    await conn.execute()
                await assert_at_rest(pool)
            assert pool.statistics().opened == 1
            assert not pool.statistics().hook_failures


async def test_what_a_hook_left_is_nothing_wrong_where_all_is_reset(
    connector: Connector,
) -> None:
    async def use(conn: Any) -> None:
        await conn.execute()

    async with open_pool(
        connector=connector(is_clean=None), after_connect=use, before_acquire=use
    ) as pool:
        for _ in range(2):
            async with pool.lease() as conn:
                await conn.execute()
            await assert_at_rest(pool)
        assert pool.statistics().opened == 1
        assert connector.last.log == ["reset", "reset"]


async def test_a_hook_that_leaves_a_transaction_fails(connector: Connector) -> None:
    async def begin(conn: Any) -> None:
        await conn.transaction().__aenter__()

    async with open_pool(connector=connector(reset=None), after_connect=begin) as pool:
        with pytest.raises(HookError, match="transaction"):
            async with pool.lease():
                pass


async def test_a_hook_that_fails_is_a_hook_error(connector: Connector) -> None:
    async def fail(_: Driver) -> None:
        raise KeyError("mine")

    async with open_pool(
        connector=connector(), after_connect=connector.aio.hook(fail)
    ) as pool:
        with pytest.raises(HookError) as caught:
            async with pool.lease():
                pass
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_function_runs_in_one_asyncio_task(connector: Connector) -> None:
    async def several(driver: Driver, first: str, *, last: str) -> list[str]:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            return [first, await driver.execute(), last]

    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        got = await connector.aio.call(conn, several, "first", last="last")
        assert got == ["first", "executed", "last"]


async def test_trio_code_called_from_a_hook_finds_the_loop(
    connector: Connector,
) -> None:
    import trio_asyncio

    async def back_and_forth(driver: Driver) -> str:
        await trio_asyncio.trio_as_aio(trio.sleep)(0)
        return await driver.execute()

    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        assert await connector.aio.call(conn, back_and_forth) == "executed"


# Opening and ending


async def test_that_nobody_answers_is_tried_again(connector: Connector) -> None:
    attempts = 0

    async def connect() -> Driver:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionRefusedError("closed")
        if attempts == 4:
            raise KeyError("final")
        return await connector.connect()

    async with (
        open_pool(
            connector=connector(connect=connect),
            create_attempts=3,
            create_backoff=0.001,
        ) as pool,
        pool.lease(),
    ):
        assert attempts == 3
        with pytest.raises(ConnectError) as caught:
            async with pool.lease():
                pass
    assert isinstance(caught.value.__cause__, KeyError)


async def test_all_are_closed_politely_at_the_end(connector: Connector) -> None:
    async with open_pool(connector=connector(), min_idle=2) as pool:
        while pool.statistics().idle < 2:
            await trio.lowlevel.checkpoint()
        assert pool.name == "asyncio"
    assert [driver.log for driver in connector.opened] == [["close"], ["close"]]
    assert connector.last.loop.is_closed()


async def test_a_farewell_that_fails_closes_it_all_the_same(
    connector: Connector, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Driver) -> None:
        raise OSError("no farewell")

    async with open_pool(connector=connector(close=fail)) as pool, pool.lease():
        pass
    assert connector.last.log == ["abort"]
    assert "no farewell" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
async def test_without_an_abort_a_close_is_started(
    connector: Connector, caplog: pytest.LogCaptureFixture, *, fails: bool
) -> None:
    async def close(driver: Driver) -> None:
        await driver.close()
        if fails:
            raise OSError("no farewell")

    async with open_pool(connector=connector(abort=None, close=close)) as pool:
        async with pool.lease() as conn:
            connector.last.is_open = False
            del conn
        await trio.sleep(0.01)
        assert connector.last.log == ["close"]
    assert ("no farewell" in caplog.text) is fails


async def test_what_nobody_takes_in_the_loop_comes_out_of_the_pool(
    connector: Connector, caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> None:
        raise KeyError("a bug")

    caplog.set_level(logging.CRITICAL, "asyncio")
    with trio.fail_after(5), pytest.raises(KeyError, match="a bug"):
        async with open_pool(connector=connector()) as pool, pool.lease() as conn:
            connector.last.loop.call_soon(bug)
            with contextlib.suppress(RuntimeError):
                await conn.execute(math.inf)
            await trio.sleep_forever()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_ctrl_c_in_the_midst_of_asyncio_code_comes_out_as_itself(
    connector: Connector, *, at_the_end: bool
) -> None:
    async def interrupted(driver: Driver) -> None:
        if at_the_end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.01 if at_the_end else 100)

    async def start(driver: Driver) -> None:
        tasks.append(asyncio.ensure_future(interrupted(driver)))
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[None]] = []

    async def main() -> None:
        async with open_pool(connector=connector()) as pool, pool.lease() as conn:
            await connector.aio.call(conn, start if at_the_end else interrupted)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert not connector.last.is_open


async def test_a_socket_closed_under_a_wait_is_no_bug(connector: Connector) -> None:
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        closed = OSError(errno.EBADF, "closed")
        context = {"message": "a wait ended", "exception": closed}
        connector.last.loop.call_exception_handler(context)
        assert await conn.execute() == "executed"


async def test_asyncio_tasks_that_are_left_are_cancelled_at_the_end(
    connector: Connector,
) -> None:
    async def start(driver: Driver) -> None:
        tasks.append(asyncio.ensure_future(driver.execute(100)))
        await asyncio.sleep(0)

    tasks: list[asyncio.Future[str]] = []
    async with open_pool(connector=connector()) as pool, pool.lease() as conn:
        await connector.aio.call(conn, start)
    assert tasks[0].cancelled()


async def test_it_is_for_one_pool_at_a_time(connector: Connector) -> None:
    one = connector()
    for _ in range(2):
        async with open_pool(connector=one) as pool, pool.lease() as conn:
            with pytest.raises(RuntimeError, match="one pool at a time"):
                async with open_pool(connector=one):
                    pass
            await conn.execute()
    with pytest.raises(RuntimeError, match="open_pool"):
        await one.connect()


async def test_a_loop_that_has_ended_is_said_so(connector: Connector) -> None:
    one = connector()
    async with one:
        conn = await one.connect()
    with pytest.raises(RuntimeError, match="not running"):
        await conn.execute()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"connect": None}, TypeError, "connect: a callable is allowed, not None"),
        ({"close": 1}, TypeError, "close: a callable is allowed, not 1"),
        ({"ping": 1}, TypeError, "ping: a callable or None is allowed, not 1"),
        ({"cancel_timeout": "1"}, TypeError, "cancel_timeout: .*, not '1'"),
        ({"cancel_timeout": True}, TypeError, "cancel_timeout: .*, not True"),
        ({"cancel_timeout": -1}, ValueError, "cancel_timeout: .*, not -1"),
        ({"cancel_timeout": math.nan}, ValueError, "cancel_timeout: .*, not nan"),
    ],
)
async def test_what_is_wrong_is_named(
    connector: Connector, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        connector(**wrong)
