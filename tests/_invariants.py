"""What has to be true of a pool after every step of any task, and ways to disturb it."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TypeVar, Unpack

import trio
from trio.lowlevel import Task
from trio.testing import MockClock, wait_all_tasks_blocked

from tests._ledger import Ledger
from trio_hyperpool import Pool, open_pool
from trio_hyperpool._config import PoolOptions
from trio_hyperpool._slots import State
from trio_hyperpool.testing import FakeConnection, FakeConnector

FakePool = Pool[FakeConnection]
ResultT = TypeVar("ResultT")


def run(main: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Run on a clock that jumps, and fail rather than hang."""

    async def bounded() -> ResultT:
        with trio.fail_after(20_000):
            return await main()

    return trio.run(bounded, clock=MockClock(autojump_threshold=0))


class Watch(trio.abc.Instrument):
    """Asserts the invariants of a pool after each step of any task."""

    def __init__(self, pool: FakePool, connector: FakeConnector) -> None:
        self._pool = pool
        self._connector = connector
        self._most = pool.config.max_size
        self.steps = 0
        self.failure: AssertionError | None = None

    def after_task_step(self, task: Task) -> None:
        self.steps += 1
        if self.failure is None:
            try:
                self._check()
            except AssertionError as failure:
                self.failure = failure

    def _check(self) -> None:
        table, queue = self._pool._supply.table, self._pool._supply.queue
        slots, idle = table.slots, table.idle
        permits = [slot.permit for slot in slots if slot.permit is not None]

        # The bound; a smaller one is approached, never receded from. Each task that was
        # granted a token and has not run yet takes an idle connection, or opens one.
        granted = 0 if queue.is_closed else queue.borrowed - len(permits)
        assert granted >= 0, "a slot with a permit that has no token"
        alive = len(slots) - len(idle) + max(len(idle), granted)
        assert alive <= max(table.max_size, self._most), f"{alive} alive"
        self._most = max(table.max_size, min(self._most, alive))
        real = len(self._connector.open_connections) + self._connector._connecting
        assert real <= len(slots), f"{real} connections in {len(slots)} slots"

        # One owner for each.
        assert len(set(permits)) == len(permits), "a token with two slots"
        assert len(set(idle)) == len(idle)
        assert set(idle) == {slot for slot in slots if slot.state is State.IDLE}
        assert set(table.leased) == {s for s in slots if s.state is State.LEASED}
        assert table.openers == table.count(State.OPENING)
        for slot in slots:
            if slot.state is State.IDLE:
                assert slot.permit is None, "an idle slot with a token"
                assert slot.view is None, "an idle slot that is lent"
            elif slot.state is not State.CLEANING:
                # Only a pool that can open nothing else ends them without a token.
                assert slot.permit is not None, f"{slot} without a token"

        # Nobody waits for what will not come.
        assert len(table.seekers) <= table.openers, "a seeker without an opener"
        assert len(set(table.seekers)) == len(table.seekers)
        parked = queue._limiter.statistics().tasks_waiting
        assert parked <= queue.waiting
        if parked and not queue.is_closed and not queue.is_paused:
            assert queue.borrowed >= queue.max_size, "a place is free, and a task waits"

        now = self._pool.statistics()
        assert now.size == now.idle + now.leased + now.opening + now.cleaning


def assert_nothing_is_lost(pool: FakePool) -> None:
    """Every token is back, every connection is idle, and nobody waits."""
    table, queue = pool._supply.table, pool._supply.queue
    assert not queue.borrowed
    assert not queue.waiting
    assert not queue._endless
    assert not queue._deadlocked
    assert not table.seekers
    assert not table.openers
    assert not table.leased
    assert table.slots == set(table.idle)


def assert_sums_are_right(pool: FakePool, connector: FakeConnector) -> None:
    """What was opened is what was ended and what is alive."""
    now = pool.statistics()
    ended = sum(now.retired.values()) + sum(now.discarded.values())
    assert now.opened == ended + now.size, now
    assert now.opened == len(connector.opened), now
    assert now.size == len(pool._supply.table.slots)
    for timing in (now.wait, now.use, now.create):
        assert 0 <= timing.max <= timing.sum < math.inf, now
    assert now.use.count == now.leases - now.leased, now


async def settle(pool: FakePool) -> None:
    """Wait until the tasks of the pool have done what they can do by now."""
    await wait_all_tasks_blocked()
    while pool.statistics().opening or pool.statistics().cleaning:  # noqa: ASYNC110
        await trio.sleep(0.1)


async def assert_all_places_work(pool: FakePool) -> None:
    """As many leases as the pool has places, all at once, and every one usable."""
    size = pool.statistics().max_size
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(size):
            connection = await stack.enter_async_context(pool.lease())
            await connection.execute()
        assert pool.statistics().leased == size


def assert_not_stray(error: BaseException) -> None:
    """What comes out has no cancellation in it, unless a scope here is cancelled."""
    if isinstance(error, BaseExceptionGroup):
        is_cancellation = error.subgroup(trio.Cancelled) is not None
    else:
        is_cancellation = isinstance(error, trio.Cancelled)
    is_cancelled = trio.current_effective_deadline() == -math.inf
    assert is_cancelled or not is_cancellation, "a stray cancellation"


@contextlib.asynccontextmanager
async def fake_pool(
    connector: FakeConnector | None = None, **options: Unpack[PoolOptions]
) -> AsyncGenerator[FakePool]:
    """A pool on a fake connector, watched from the first step to the last."""
    connector = connector or FakeConnector()
    watch: Watch | None = None
    ledger = Ledger()
    try:
        async with open_pool(connector=connector, **options) as pool:
            pool.add_instrument(ledger)
            watch = Watch(pool, connector)
            trio.lowlevel.add_instrument(watch)
            yield pool
    except BaseException as error:
        # pytest-trio lets it pass.
        assert_not_stray(error)
        raise
    finally:
        if watch is not None:
            trio.lowlevel.remove_instrument(watch)
            if watch.failure is not None:
                raise watch.failure
    connector.assert_no_leak()
    assert_nothing_is_lost(pool)
    assert not pool._supply.table.slots
    assert_sums_are_right(pool, connector)
    ledger.assert_agrees(pool)


class AtStep(trio.abc.Instrument):
    """Calls something after the k-th step, of one task or of all together."""

    def __init__(
        self, step: int, act: Callable[[], object], task: Task | None = None
    ) -> None:
        self._left = step
        self._act = act
        self._task = task
        self.has_acted = False

    def after_task_step(self, task: Task) -> None:
        if self._task is not None and task is not self._task:
            return
        self._left -= 1
        if self._left == 0:
            self.has_acted = True
            self._act()


@contextlib.contextmanager
def at_step(
    step: int, act: Callable[[], object], task: Task | None = None
) -> Generator[AtStep]:
    """Have something done after the k-th step from now on."""
    instrument = AtStep(step, act, task)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)


@trio.lowlevel.enable_ki_protection
def interrupt() -> None:
    """Do what Ctrl-C does while other code than the main task's runs."""
    signal.raise_signal(signal.SIGINT)


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks, by the name of the function that they run."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def after_task_step(self, task: Task) -> None:
        self.counts[task.name] = self.counts.get(task.name, 0) + 1


async def hold(
    pool: FakePool,
    until: trio.Event | float,
    *,
    task_status: trio.TaskStatus[FakeConnection] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Have a connection until an event is set, or for so many seconds."""
    async with pool.lease() as connection:
        task_status.started(connection)
        if isinstance(until, trio.Event):
            await until.wait()
        else:
            await trio.sleep(until)
