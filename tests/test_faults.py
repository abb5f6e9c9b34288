"""What a server, a network or a hook may do to a pool, which recovers by itself."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from tests._wire import (
    MINUTES,
    MortalHyperd,
    Wire,
    gets_idle,
    open_files,
    open_mortal_hyperd,
    open_wire,
    sessions,
    settled,
    until,
)
from trio_hyperpool import (
    ConnectError,
    CreateMode,
    HealthCheck,
    HookError,
    HyperConnection,
    LeaseError,
    LeaseRevokedError,
    Pool,
    PoolError,
    PoolSaturatedError,
    PoolTimeoutError,
    open_hyperd,
    open_pool,
)
from trio_hyperpool._server import Hyperd

IF_NOT_EXISTS = CreateMode.CREATE_IF_NOT_EXISTS

pytestmark = pytest.mark.hyperd

SHORT: dict[str, Any] = {
    "create_timeout": 0.4,
    "recycle_timeout": 0.3,
    "hook_timeout": 0.3,
    "cancel_timeout": 0.3,
    "close_timeout": 0.3,
}
"""Deadlines that a test can wait for."""


@pytest.fixture
def directory() -> Generator[str]:
    """A directory with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="t") as path:
        yield path


@pytest.fixture(scope="module")
def hyperd(own_hyperd: Any) -> Any:
    """A server for this module: faults leave it with sessions that it ends slowly."""
    return own_hyperd


@pytest.fixture
async def brief_hyperd(hyperd_path: Path) -> AsyncGenerator[Hyperd]:
    """A server for one test, which may keep queries whose clients have vanished.

    It takes seconds to notice that.
    """
    async with open_hyperd() as hyperd:
        yield hyperd


@asynccontextmanager
async def mortal_pool(
    directory: str, db: str, **options: Any
) -> AsyncGenerator[tuple[MortalHyperd, Pool[HyperConnection]]]:
    """A pool on a server that may die, with a table that survives it."""
    async with open_mortal_hyperd(directory) as hyperd:
        async with open_pool(
            hyperd.endpoint, db, create_mode=CreateMode.CREATE
        ) as pool:
            await pool.execute("CREATE TABLE t (x int)")
        async with open_pool(hyperd.endpoint, db, **{**SHORT, **options}) as pool:
            yield hyperd, pool


async def fill(pool: Pool[HyperConnection], count: int) -> None:
    """Leave so many idle connections."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(pool.lease())
    assert pool.statistics().idle == count


def is_at_rest(pool: Pool[HyperConnection]) -> bool:
    now = pool.statistics()
    return (
        now.size == now.idle
        and not now.waiting
        and not now.leased
        and pool._supply.queue.borrowed == 0
        and not pool._supply.table.seekers
        and pool._supply.table.openers == 0
    )


async def takes(seconds: float, awaitable: Awaitable[Any]) -> Any:
    """Await it, and complain if it took longer."""
    began = trio.current_time()
    try:
        return await awaitable
    finally:
        assert trio.current_time() - began < seconds


# The server dies


async def test_a_restart_costs_the_first_lease_one_connect_and_no_timeout(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db) as (hyperd, pool):
        await fill(pool, 16)
        await hyperd.restart()
        assert await takes(1, pool.fetch_value("SELECT 42")) == 42
        # It may have met the dead ones on its way, all of which show on their sockets.
        now = pool.statistics()
        assert now.opened == 17
        assert set(now.discarded) == {"found dead"}
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(pool.fetch_value, "SELECT 42")
        await settled(pool)
        assert pool.statistics().size <= 16
        assert is_at_rest(pool)
        assert await sessions(hyperd.endpoint, at_most=16) <= 16
    assert not pool.statistics().size


async def test_a_server_that_is_away_is_reported_and_found_again(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db) as (hyperd, pool):
        await fill(pool, 3)
        await hyperd.kill()
        for _ in range(3):
            with pytest.raises(ConnectError) as caught:
                await takes(1, pool.execute("SELECT 1"))
            assert caught.value.unreachable
            assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert pool.statistics().size == 0
        await hyperd.start()
        assert await pool.fetch_value("SELECT 42") == 42


async def test_attempts_bridge_the_time_that_a_restart_takes(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db, create_attempts=10, create_backoff=0.05) as (
        hyperd,
        pool,
    ):
        await fill(pool, 2)
        await hyperd.kill()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(pool.fetch_value, "SELECT 42")
            await trio.sleep(0.1)
            await hyperd.start()
        assert is_at_rest(await settled(pool))


async def test_min_idle_is_warm_again_after_a_restart(directory: str, db: str) -> None:
    async with mortal_pool(directory, db, min_idle=3, create_backoff=0.05) as (
        hyperd,
        pool,
    ):
        await until(lambda: pool.statistics().idle >= 3)
        await hyperd.restart()
        assert await pool.fetch_value("SELECT 42") == 42
        await until(lambda: pool.statistics().idle >= 3)
        assert is_at_rest(await settled(pool))


async def test_a_server_that_dies_in_queries_raises_psycopgs_error_in_each(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db, max_size=8) as (hyperd, pool):
        errors: list[psycopg.Error] = []

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError) as caught:
                await pool.execute(MINUTES)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)
            await trio.sleep(0.2)
            await takes(1, hyperd.restart())
        assert len(errors) == 8
        assert pool.statistics().discarded == {"returned broken": 8}
        assert await pool.fetch_value("SELECT 42") == 42
        assert is_at_rest(pool)


async def test_a_server_that_dies_in_transactions_loses_them_and_nothing_else(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db, max_size=4) as (hyperd, pool):

        async def write() -> None:
            with pytest.raises(psycopg.OperationalError):
                async with pool.lease() as connection, connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (1)")
                    await trio.sleep(0.2)
                    await connection.execute("INSERT INTO t VALUES (1)")

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(write)
            await trio.sleep(0.1)
            await hyperd.restart()
        assert await pool.fetch_value("SELECT count(*) FROM t") == 0


@pytest.mark.slow
async def test_a_server_that_dies_again_and_again_under_load_loses_no_place(
    directory: str, db: str
) -> None:
    async with mortal_pool(directory, db, max_size=6) as (hyperd, pool):
        answers = 0
        is_over = False

        async def work() -> None:
            nonlocal answers
            while not is_over:
                try:
                    with trio.move_on_after(0.3):
                        answers += await pool.fetch_value("SELECT 1")
                except (PoolError, psycopg.OperationalError):
                    await trio.sleep(0.01)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(work)
                for number in range(6):
                    await trio.sleep(0.02 * number)
                    await hyperd.restart()
                is_over = True
        assert answers
        assert is_at_rest(await settled(pool))
        assert await pool.fetch_value("SELECT 42") == 42
        assert await sessions(hyperd.endpoint, at_most=6) <= 6


# The queue and hooks


async def test_a_full_queue_turns_the_next_one_away_at_once(
    hyperd: Any, db: str
) -> None:
    async with open_pool(
        hyperd.endpoint, db, create_mode=IF_NOT_EXISTS, max_size=1, max_waiting=2
    ) as pool:
        async with trio.open_nursery() as nursery, pool.lease() as connection:
            for _ in range(2):
                nursery.start_soon(pool.execute, "SELECT 1")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PoolSaturatedError, match="max_waiting is 2"):
                await takes(0.1, pool.execute("SELECT 1"))
            with pytest.raises(PoolTimeoutError, match="test_faults") as caught:
                await pool.lease(wait_timeout=0).__aenter__()
            assert caught.value.step == "wait"
            assert await connection.fetch_value("SELECT 42") == 42
        assert is_at_rest(pool)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["after_connect", "before_acquire"])
@pytest.mark.parametrize("hangs_in", ["sleep", "query"])
async def test_a_hook_that_hangs_ends_within_its_deadline(
    hyperd: Any, db: str, hook: str, hangs_in: str
) -> None:
    async def hang(connection: HyperConnection[Any]) -> None:
        if hangs_in == "query":
            await connection.execute(MINUTES)
        await trio.sleep_forever()

    options: dict[str, Any] = {**SHORT, "create_timeout": 5, hook: hang}
    async with open_pool(
        hyperd.endpoint, db, create_mode=IF_NOT_EXISTS, max_size=2, **options
    ) as pool:
        for _ in range(3):
            with pytest.raises(HookError) as caught:
                await takes(1, pool.execute("SELECT 1"))
            assert caught.value.hook == hook
            assert isinstance(caught.value.__cause__, trio.TooSlowError)
        assert is_at_rest(await settled(pool))
        assert pool.statistics().hook_failures == 3
    assert await sessions(hyperd.endpoint) == 0
    assert await gets_idle(hyperd.pid)


@pytest.mark.parametrize("hangs_in", ["sleep", "query"])
async def test_an_after_release_that_hangs_costs_its_connection_only(
    hyperd: Any, db: str, hangs_in: str
) -> None:
    async def hang(connection: HyperConnection[Any]) -> None:
        if hangs_in == "query":
            await connection.execute(MINUTES)
        await trio.sleep_forever()

    async with open_pool(
        hyperd.endpoint,
        db,
        create_mode=IF_NOT_EXISTS,
        max_size=1,
        after_release=hang,
        **SHORT,
    ) as pool:
        for _ in range(3):
            assert await takes(1.2, pool.fetch_value("SELECT 42")) == 42
        await settled(pool)
        assert pool.statistics().opened == 3
        assert is_at_rest(pool)
    assert await sessions(hyperd.endpoint) == 0


async def test_a_lease_held_too_long_is_revoked_in_the_middle_of_its_query(
    brief_hyperd: Hyperd, db: str
) -> None:
    async with open_pool(
        brief_hyperd.endpoint,
        db,
        create_mode=IF_NOT_EXISTS,
        max_size=1,
        max_lease=0.2,
        **SHORT,
    ) as pool:
        async with pool.lease() as connection:
            with pytest.raises(LeaseRevokedError):
                await takes(0.5, connection.execute(MINUTES))
            with pytest.raises(LeaseRevokedError):
                await connection.execute("SELECT 1")
        with pytest.raises(LeaseRevokedError):
            async with pool.lease() as connection, connection.transaction():
                await connection.execute("SELECT 1")
                await trio.sleep(0.3)
        assert await pool.fetch_value("SELECT 42") == 42
        assert pool.statistics().revoked == 2
        assert is_at_rest(pool)


async def test_a_task_that_holds_on_does_not_keep_the_pool_from_closing(
    brief_hyperd: Hyperd, db: str
) -> None:
    async def hold(
        pool: Pool[HyperConnection], *, task_status: trio.TaskStatus[None]
    ) -> None:
        with pytest.raises(LeaseRevokedError):
            async with pool.lease() as connection:
                task_status.started()
                await connection.execute(MINUTES)

    async with trio.open_nursery() as nursery:
        async with open_pool(
            brief_hyperd.endpoint, db, create_mode=IF_NOT_EXISTS, **SHORT
        ) as pool:
            for _ in range(3):
                await nursery.start(hold, pool)
            began = trio.current_time()
        assert 0.25 < trio.current_time() - began < 1


# The network


@asynccontextmanager
async def wired_pool(
    hyperd: Any, db: str, **options: Any
) -> AsyncGenerator[tuple[Wire, Pool[HyperConnection]]]:
    """A pool that reaches its server over a wire that is about to fail."""
    async with open_pool(hyperd.endpoint, db, create_mode=CreateMode.CREATE) as pool:
        await pool.execute("CREATE TABLE t (x int)")
    async with (
        open_wire(hyperd.endpoint) as wire,
        open_pool(wire.endpoint, db, **{**SHORT, **options}) as pool,
    ):
        yield wire, pool


@pytest.mark.slow
async def test_a_server_that_accepts_and_says_nothing_costs_create_timeout(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db) as (wire, pool):
        wire.freeze()

        async def ask() -> None:
            with pytest.raises(PoolTimeoutError) as caught:
                await takes(0.8, pool.execute("SELECT 1"))
            assert caught.value.step == "create"

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(ask)
        assert pool.statistics().size == 0
        wire.thaw()
        assert await pool.fetch_value("SELECT 42") == 42


async def test_a_silent_server_does_not_keep_a_caller_past_its_own_deadline(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, create_timeout=30) as (wire, pool):
        wire.freeze()
        with trio.move_on_after(0.1) as scope:
            await takes(0.2, pool.execute("SELECT 1"))
        assert scope.cancelled_caught
        wire.thaw()
        # The opener went on: its connection serves the next one.
        assert await pool.fetch_value("SELECT 42") == 42
        assert pool.statistics().opened == 1
        wire.freeze()
        with trio.move_on_after(0.1):
            async with pool.lease(), pool.lease():
                pass
        began = trio.current_time()
    # The pool closed with an opener at work, and a farewell that nobody answers.
    assert trio.current_time() - began < 1


async def test_a_checkout_on_a_frozen_wire_is_over_within_its_deadlines(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, health_check_after=0) as (wire, pool):
        await fill(pool, 4)
        wire.freeze()
        # One probe and its end, then one connect, which fails: 0.3 + 0.3 + 0.4 s.
        # The other three are not tried.
        with pytest.raises(PoolTimeoutError):
            await takes(1.3, pool.execute("SELECT 1"))
        assert pool.statistics().health_check_failures == 1
        wire.thaw()
        assert await takes(0.5, pool.fetch_value("SELECT 42")) == 42
        assert is_at_rest(await settled(pool))


@pytest.mark.parametrize("check", [HealthCheck.PING, HealthCheck.SELECT_ONE])
async def test_connections_that_hang_are_found_out_at_the_cost_of_one_probe(
    hyperd: Any, db: str, check: HealthCheck
) -> None:
    async with wired_pool(hyperd, db, health_check=check) as (wire, pool):
        await fill(pool, 4)
        wire.freeze()
        with trio.move_on_after(0.2):
            await pool.execute("SELECT 1")
        wire.cut()
        wire.thaw()
        assert await takes(0.5, pool.fetch_value("SELECT 42")) == 42
        assert is_at_rest(await settled(pool))


async def test_a_cancelled_query_on_a_frozen_wire_ends_within_cancel_timeout(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, max_size=1) as (wire, pool):
        async with pool.lease() as connection:
            await connection.execute("SELECT 1")
            wire.freeze()
            with trio.move_on_after(0.1) as scope:
                await takes(0.8, connection.execute("SELECT 1"))
            assert scope.cancelled_caught
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
        wire.thaw()
        assert await takes(0.5, pool.fetch_value("SELECT 42")) == 42
        assert pool.statistics().discarded == {"returned broken": 1}
    assert await sessions(hyperd.endpoint) == 0


async def test_a_transaction_left_on_a_frozen_wire_ends_within_its_deadlines(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, max_size=1) as (wire, pool):
        async with pool.lease() as connection:
            with trio.move_on_after(0.1):
                async with connection.transaction():
                    await connection.execute("INSERT INTO t VALUES (1)")
                    wire.freeze()
                    began = trio.current_time()
                    await connection.execute("INSERT INTO t VALUES (1)")
            assert trio.current_time() - began < 1
            assert connection.closed
        async with trio.open_nursery() as nursery:

            async def heal() -> None:
                await trio.sleep(0.1)
                wire.thaw()

            nursery.start_soon(heal)
            assert await pool.fetch_value("SELECT count(*) FROM t") == 0


async def test_a_return_on_a_frozen_wire_is_no_wait_and_cleaning_has_its_deadline(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, max_size=1) as (wire, pool):
        lease = pool.lease()
        connection = await lease.__aenter__()
        await connection.execute("BEGIN")
        wire.freeze()
        await takes(0.05, lease.__aexit__(None, None, None))
        assert pool.statistics().cleaning == 1
        with trio.fail_after(0.8):
            await settled(pool)
        assert pool.statistics().discarded == {"failed cleaning": 1}
        wire.thaw()
        assert await pool.fetch_value("SELECT count(*) FROM t") == 0


async def test_closing_on_a_frozen_wire_has_its_deadline(hyperd: Any, db: str) -> None:
    files = open_files()
    async with wired_pool(hyperd, db) as (wire, pool):
        await fill(pool, 8)
        wire.freeze()
        began = trio.current_time()
    assert trio.current_time() - began < 1
    assert open_files() == files
    assert await sessions(hyperd.endpoint) == 0


async def test_quiesce_on_a_frozen_wire_says_that_it_is_not_certain(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db) as (wire, pool):
        await fill(pool, 3)
        wire.freeze()
        with pytest.raises(PoolError, match="may not be on disk"):
            await takes(1, pool.flush())
        wire.thaw()
        assert await pool.fetch_value("SELECT 42") == 42
        await pool.flush()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
async def test_a_reset_in_queries_is_an_error_in_each_and_the_pool_goes_on(
    brief_hyperd: Hyperd, db: str, count: int
) -> None:
    async with wired_pool(brief_hyperd, db, max_size=8) as (wire, pool):

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError):
                await pool.execute(MINUTES)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask)
            await trio.sleep(0.15)
            wire.cut()
        assert pool.statistics().discarded == {"returned broken": count}
        assert await pool.fetch_value("SELECT 42") == 42
        assert is_at_rest(await settled(pool))


async def test_a_reset_of_idle_connections_is_seen_before_they_are_leased(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, health_check=HealthCheck.PASSIVE) as (wire, pool):
        await fill(pool, 8)
        wire.cut()
        await trio.sleep(0.05)
        for _ in range(10):
            assert await pool.fetch_value("SELECT 42") == 42
        assert pool.statistics().discarded == {"found dead": 8}


@pytest.mark.slow
async def test_an_answer_cut_at_any_byte_is_an_error_and_the_pool_goes_on(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, max_size=2) as (wire, pool):
        for budget in range(0, 700, 13):
            wire.budget = budget
            with trio.fail_after(2):
                try:
                    # Several connections, an answer in parts, and one that fails.
                    async with pool.lease() as connection, pool.lease():
                        rows = await connection.fetch_all(
                            "SELECT x, 'text' FROM generate_series(1, 20) s(x)"
                        )
                        assert len(rows) == 20
                        with pytest.raises(psycopg.errors.UndefinedTable):
                            await connection.execute("SELECT * FROM nothing")
                except (ConnectError, psycopg.OperationalError, psycopg.DatabaseError):
                    pass
            wire.budget = None
            assert await pool.fetch_value("SELECT 42") == 42
            await settled(pool)
            pool.retire_idle()
            await settled(pool)
            assert is_at_rest(pool)
    assert await sessions(hyperd.endpoint) == 0


@pytest.mark.slow
async def test_a_slow_wire_slows_leases_down_and_breaks_none(
    hyperd: Any, db: str
) -> None:
    async with wired_pool(hyperd, db, max_size=4, create_timeout=5) as (wire, pool):
        wire.delay = 0.02

        async def work(number: int) -> None:
            with trio.move_on_after(0.05 * (number % 5) or 5):
                assert await pool.fetch_value("SELECT %s", (number,)) == number

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(work, number)
        wire.delay = 0
        assert await pool.fetch_value("SELECT 42") == 42
        await settled(pool)
        assert is_at_rest(pool)
        assert set(pool.statistics().discarded) <= {"failed health check"}
    assert await sessions(hyperd.endpoint) == 0


@pytest.mark.slow
async def test_a_wire_that_fails_at_random_leaves_nothing_behind(
    brief_hyperd: Hyperd, db: str
) -> None:
    files = open_files()
    async with wired_pool(brief_hyperd, db, max_size=4) as (wire, pool):
        is_over = False
        answers = 0

        async def work(number: int) -> None:
            nonlocal answers
            while not is_over:
                try:
                    with trio.move_on_after(0.2):
                        async with pool.lease() as connection:
                            async with connection.transaction():
                                await connection.execute("INSERT INTO t VALUES (1)")
                            if number % 3 == 0:
                                with trio.move_on_after(0.02):
                                    await connection.execute(MINUTES)
                            answers += await connection.fetch_value("SELECT 1")
                except (PoolError, psycopg.Error):
                    await trio.sleep(0.005)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(work, number)
                for number in range(20):
                    await trio.sleep(0.1)
                    if number % 4 == 0:
                        wire.cut()
                    elif number % 4 == 1:
                        wire.freeze()
                    elif number % 4 == 2:
                        wire.thaw()
                        wire.budget = 1000
                    else:
                        wire.budget = None
                is_over = True
        wire.thaw()
        assert answers
        await settled(pool)
        assert is_at_rest(pool)
        assert await pool.fetch_value("SELECT 42") == 42
    assert open_files() == files


# Cancelled at every step


class AtStep(trio.abc.Instrument):
    """Cancels a scope at the k-th step of any task."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.left = step
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._scope.cancel()


Scenario = Callable[[Pool[HyperConnection]], Awaitable[None]]


async def opening(pool: Pool[HyperConnection]) -> None:
    async with pool.lease():
        pass


async def reusing(pool: Pool[HyperConnection]) -> None:
    await fill(pool, 1)
    async with pool.lease():
        pass
    async with pool.lease():
        pass


async def querying(pool: Pool[HyperConnection]) -> None:
    assert await pool.fetch_value("SELECT count(*) FROM t") == 0
    assert len(await pool.fetch_all("SELECT * FROM generate_series(1, 20000)")) == 20000


async def in_transaction(pool: Pool[HyperConnection]) -> None:
    async with pool.lease() as connection:
        async with connection.transaction(force_rollback=True):
            await connection.execute("INSERT INTO t VALUES (1)")
        # Usable in what is left of the lease.
        assert await connection.fetch_value("SELECT 42") == 42


async def returning_dirty(pool: Pool[HyperConnection]) -> None:
    async with pool.lease() as connection:
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO t VALUES (1)")
    async with pool.lease() as connection:
        await connection.execute("SET timezone = 'UTC'")
    assert await pool.fetch_value("SELECT count(*) FROM t") == 0


async def copying(pool: Pool[HyperConnection]) -> None:
    async with pool.lease() as connection:
        async with connection.cursor().copy(
            "COPY (SELECT * FROM generate_series(1, 200)) TO STDOUT WITH (FORMAT text)"
        ) as copy:
            text = b"".join([bytes(chunk) async for chunk in copy])
        assert len(text.splitlines()) == 200


async def quiescing(pool: Pool[HyperConnection]) -> None:
    await fill(pool, 2)
    async with pool.quiesce():
        assert pool.statistics().size == 0
    async with pool.lease():
        pass


SCENARIOS = [
    opening,
    reusing,
    querying,
    in_transaction,
    returning_dirty,
    copying,
    quiescing,
]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_a_cancellation_at_any_step_leaves_the_pool_usable(
    hyperd: Any, db: str, scenario: Scenario
) -> None:
    async with open_pool(hyperd.endpoint, db, create_mode=CreateMode.CREATE) as pool:
        await pool.execute("CREATE TABLE t (x int)")
    async with open_pool(hyperd.endpoint, db, max_size=2, health_check_after=0) as pool:
        files = open_files()
        for step in range(1, 2000):
            with trio.fail_after(5), trio.CancelScope() as scope:
                instrument = AtStep(step, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await scenario(pool)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            with trio.fail_after(5):
                async with pool.lease() as one, pool.lease() as two:
                    assert await one.fetch_value("SELECT count(*) FROM t") == 0
                    assert await two.fetch_value("SELECT 42") == 42
                await settled(pool)
                pool.retire_idle()
                await settled(pool)
            assert pool.statistics().size == 0
            assert is_at_rest(pool)
            assert open_files() == files
            if instrument.left > 0:
                break
        assert step > 2
        assert step < 1999
        now = pool.statistics()
        assert set(now.discarded) <= {"failed health check"}
        assert now.health_check_failures == 0
    assert await sessions(hyperd.endpoint) == 0


@pytest.mark.slow
async def test_a_cancellation_at_any_step_of_a_whole_pool_leaves_nothing(
    hyperd: Any, db: str
) -> None:
    async with open_pool(hyperd.endpoint, db, create_mode=CreateMode.CREATE) as pool:
        await pool.execute("CREATE TABLE t (x int)")
    files = open_files()
    for step in range(1, 2000):
        with trio.fail_after(5), trio.CancelScope() as scope:
            instrument = AtStep(step, scope)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with open_pool(
                    hyperd.endpoint, db, create_mode=IF_NOT_EXISTS, min_idle=1
                ) as pool:
                    await querying(pool)
                    await returning_dirty(pool)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert open_files() == files
        if instrument.left > 0:
            break
    assert 20 < step < 1999
    assert await sessions(hyperd.endpoint) == 0


async def test_a_view_that_was_revoked_raises_lease_errors_only(
    hyperd_path: Any, db: str
) -> None:
    """Whatever a borrower waits for when its lease is taken away.

    On a server of its own, which may keep a session that can't send its rows.
    """
    uses: dict[str, Callable[[HyperConnection[Any]], Awaitable[object]]] = {
        "query": lambda view: view.execute(MINUTES),
        "stream": _stream,
        "copy": _copy,
        "transaction": _transaction,
        "pipeline": _pipeline,
    }
    async with open_pool(
        database=db,
        create_mode=IF_NOT_EXISTS,
        max_size=1,
        max_lease=0.1,
        **SHORT,
    ) as pool:
        for use in uses.values():
            with pytest.raises(LeaseError):
                async with pool.lease() as connection:
                    await takes(0.5, use(connection))
        await settled(pool)
        assert pool.statistics().revoked == len(uses)
        # From within a pipeline there is no way back to a farewell.
        assert pool.statistics().discarded == {"revoked": 1}
        assert pool.statistics().retired == {"revoked": len(uses) - 1}
        assert is_at_rest(pool)


async def _stream(view: HyperConnection[Any]) -> None:
    async for _ in view.cursor().stream("SELECT * FROM generate_series(1, 1000000000)"):
        await trio.sleep(0.01)


async def _copy(view: HyperConnection[Any]) -> None:
    async with view.cursor().copy(
        "COPY (SELECT * FROM generate_series(1, 1000000000)) TO STDOUT "
        "WITH (FORMAT text)"
    ) as copy:
        async for _ in copy:
            await trio.sleep(0.01)


async def _transaction(view: HyperConnection[Any]) -> None:
    async with view.transaction():
        await view.execute(MINUTES)


async def _pipeline(view: HyperConnection[Any]) -> None:
    async with view.pipeline() as pipeline:
        await view.execute(MINUTES)
        await pipeline.sync()
