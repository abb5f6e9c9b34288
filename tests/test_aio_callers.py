"""Asyncio code leases from a Trio pool, and what it is cancelled in gives back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest
import trio

from tests._aio import Driver
from tests._invariants import at_step
from trio_hyperpool import CreateMode, LeaseEndedError, Pool, open_pool
from trio_hyperpool.testing import (
    FakeConnection,
    FakeConnector,
    Gate,
    assert_at_rest,
)

Asyncio = Callable[[], Awaitable[Any]]

MINUTES = (
    "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
    "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
)


@contextlib.asynccontextmanager
async def asyncio_in_trio(aio: ModuleType) -> AsyncGenerator[Callable[..., Any]]:
    """A loop of the program's, and how its Trio code calls asyncio code."""
    import trio_asyncio

    async with trio_asyncio.open_loop():
        yield trio_asyncio.aio_as_trio


@pytest.fixture
async def hyper(hyperd: Any, db: str) -> AsyncGenerator[Pool[Any]]:
    async with open_pool(
        hyperd.endpoint, db, user=hyperd.user, create_mode=CreateMode.CREATE, max_size=2
    ) as pool:
        yield pool
        await assert_at_rest(pool)


async def test_everything_async_about_it_is_for_asyncio(
    aio: ModuleType, hyper: Pool[Any]
) -> None:
    async def main() -> None:
        async with aio.lease(hyper) as conn:
            await conn.execute("CREATE TABLE t (n int)")
            async with conn.transaction():
                await asyncio.sleep(0)
                await conn.execute("INSERT INTO t VALUES (1), (2)")
            with pytest.raises(KeyError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (3)")
                    raise KeyError
            async with conn.cursor() as cursor:
                await cursor.execute("SELECT n FROM t ORDER BY n")
                assert [row async for row in cursor] == [(1,), (2,)]
                assert cursor.description[0].name == "n"
            assert [row async for row in conn.cursor().stream("SELECT 1")] == [(1,)]
            assert await conn.fetch_value("SELECT count(*) FROM t") == 2
            conn.row_factory = lambda _cursor: list
        with pytest.raises(LeaseEndedError):
            await conn.execute("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with aio.lease(hyper, wait_timeout=1) as conn:
                assert await conn.fetch_one("SELECT 1") == (1,)
                raise ZeroDivisionError

    async with asyncio_in_trio(aio) as run:
        await run(main)()


async def test_a_cancelled_task_stops_its_query_and_gives_the_connection_back(
    aio: ModuleType, hyper: Pool[Any]
) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(0.2),
                aio.lease(hyper) as conn,
                conn.transaction(),
            ):
                await conn.execute(MINUTES)
        assert not hyper.statistics().leased
        with pytest.raises(TimeoutError):
            async with (
                aio.lease(hyper) as conn,
                asyncio.timeout(0.2),
                conn.transaction(),
            ):
                await conn.execute(MINUTES)
        async with aio.lease(hyper) as conn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await conn.execute(MINUTES)
            assert await conn.fetch_value("SELECT 42") == 42

    async with asyncio_in_trio(aio) as run:
        with trio.fail_after(10):
            await run(main)()
    await assert_at_rest(hyper)
    assert hyper.statistics().retired["cancelled query"] == 3


async def test_a_hook_of_a_hyper_pool_may_be_asyncio_code(
    aio: ModuleType, hyperd: Any, db: str
) -> None:
    async def hook(conn: Any) -> None:
        async with asyncio.timeout(10):
            assert await conn.fetch_value("SELECT 1") == 1

    options: Any = {"user": hyperd.user, "create_mode": CreateMode.CREATE}
    async with (
        asyncio_in_trio(aio),
        open_pool(
            hyperd.endpoint, db, before_acquire=aio.hook(hook), **options
        ) as pool,
        pool.lease() as conn,
    ):
        assert await aio.call(conn, hook) is None
    assert not pool.statistics().hook_failures


async def test_a_pool_over_an_asyncio_driver_leases_to_asyncio_code(
    aio: ModuleType,
) -> None:
    async def connect() -> Driver:
        return Driver()

    async def main() -> None:
        async with aio.lease(pool) as conn:
            assert await conn.execute() == "executed"
            async with conn.transaction():
                assert [row async for row in conn.rows(2)] == [0, 1]

    connector = aio.AsyncioConnector(connect=connect, close=Driver.close)
    async with asyncio_in_trio(aio) as run, open_pool(connector=connector) as pool:
        await run(main)()


async def test_the_holder_is_the_asyncio_task_and_its_line(aio: ModuleType) -> None:
    async def main() -> None:
        async with aio.lease(pool):
            (holder,) = pool.statistics().holders
            name = asyncio.current_task().get_name()  # type: ignore[union-attr]
            assert holder.task == f"asyncio task {name!r}"
            assert __file__ in holder.taken_at

    async with (
        asyncio_in_trio(aio) as run,
        open_pool(connector=FakeConnector()) as pool,
    ):
        await run(main)()


async def test_a_connection_that_came_in_spite_of_a_cancellation_is_given_back(
    aio: ModuleType,
) -> None:
    async def hold_on(_: FakeConnection) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await aio.lease(pool).__aenter__()
        assert (pool.statistics().leases, pool.statistics().leased) == (1, 0)

    async with (
        asyncio_in_trio(aio) as run,
        open_pool(connector=FakeConnector(), before_acquire=hold_on) as pool,
    ):
        await run(main)()


async def test_a_result_that_came_in_spite_of_a_cancellation_is_told_first(
    aio: ModuleType,
) -> None:
    class Late(FakeConnection):
        async def finish(self) -> str:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            return "done"

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with aio.lease(pool) as conn:
            late = Late(conn._target.session)
            got = []
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    got.append(await aio._callers.Adapted(late, conn._bridge).finish())
                    await asyncio.sleep(10)
            assert got == ["done"]
            assert not task.cancelling()

    async with (
        asyncio_in_trio(aio) as run,
        open_pool(connector=FakeConnector()) as pool,
    ):
        await run(main)()


async def test_it_is_for_asyncio_tasks_only(aio: ModuleType) -> None:
    async with open_pool(connector=FakeConnector()) as pool:
        with pytest.raises(RuntimeError, match="open_loop"):
            async with aio.lease(pool):
                pass
        async with pool.lease() as conn:
            with pytest.raises(RuntimeError, match="open_loop"):
                await aio.call(conn, asyncio.sleep)
        async with asyncio_in_trio(aio):
            with pytest.raises(RuntimeError, match=r"Pool\.lease"):
                async with aio.lease(pool):
                    pass
        with pytest.raises(ValueError, match="wait_timeout"):
            aio.lease(pool, wait_timeout=-1)


@pytest.mark.parametrize("busy", [False, True], ids=["opens", "queues"])
async def test_nothing_is_lost_wherever_an_asyncio_task_is_cancelled(
    aio: ModuleType, *, busy: bool
) -> None:
    async def use(pool: Pool[FakeConnection]) -> None:
        async with aio.lease(pool) as conn:
            await conn.execute(0.001)
            await asyncio.sleep(0)

    async def main(pool: Pool[FakeConnection], step: int) -> bool:
        task = asyncio.ensure_future(use(pool))
        accepted: list[bool] = []
        with (
            at_step(step, lambda: accepted.append(task.cancel())) as instrument,
            contextlib.suppress(asyncio.CancelledError),
        ):
            await task
        assert task.cancelled() is any(accepted)
        return instrument.has_acted

    async def hold(pool: Pool[FakeConnection]) -> None:
        async with pool.lease():
            await trio.sleep(0.002)

    step, goes_on = 1, True
    while goes_on:
        connector = FakeConnector(connect=Gate.slow(0.0005))
        async with (
            asyncio_in_trio(aio) as run,
            open_pool(connector=connector, max_size=1) as pool,
        ):
            async with trio.open_nursery() as nursery:
                if busy:
                    nursery.start_soon(hold, pool)
                    await trio.sleep(0.001)
                goes_on = await run(main)(pool, step)
            await assert_at_rest(pool)
        connector.assert_no_leak()
        step += 1
    assert step > 10
