"""The deadline of a place in a task can be asked for later, with and without trio's help."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio
from trio.lowlevel import Task, current_task
from trio.testing import MockClock

from trio_hyperpool import PoolDeadlockError, _lease, open_pool
from trio_hyperpool._scopes import Scopes, _best, scopes_of
from trio_hyperpool.testing import FakeConnector

WITH_TRIOS_HELP, WITHOUT = _best(Task), _best(object)


def test_this_trio_helps() -> None:
    assert type(scopes_of) is type(WITH_TRIOS_HELP) is not type(WITHOUT)


@pytest.mark.parametrize("find", [WITH_TRIOS_HELP, WITHOUT])
async def test_it_is_that_of_the_scopes_around_the_place(
    autojump_clock: MockClock, find: Callable[[Task], Scopes]
) -> None:
    task = current_task()
    assert find(task).effective_deadline() == math.inf
    with trio.move_on_at(20), trio.move_on_at(30):
        scopes = find(task)
        with trio.move_on_at(10):
            assert scopes.effective_deadline() == 20
            await trio.lowlevel.checkpoint()
    assert find(task).effective_deadline() == math.inf


@pytest.mark.parametrize("find", [WITH_TRIOS_HELP, WITHOUT])
async def test_a_deadlock_is_told_from_a_wait_that_ends_in_time(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    find: Callable[[Task], Scopes],
) -> None:
    monkeypatch.setattr(_lease, "scopes_of", find)
    async with open_pool(connector=FakeConnector(), max_size=1) as pool:
        with trio.fail_after(5):
            async with pool.lease():
                with pytest.raises(PoolDeadlockError):
                    await pool.lease().__aenter__()
                with trio.move_on_after(1) as scope:
                    await pool.lease().__aenter__()
    assert scope.cancelled_caught


async def test_a_task_that_is_cancelled_already_is_in_no_deadlock(
    autojump_clock: MockClock,
) -> None:
    async with open_pool(connector=FakeConnector(), max_size=1) as pool:
        with trio.CancelScope() as scope:
            async with pool.lease():
                with trio.CancelScope(shield=True):
                    scope.cancel()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(pool.quiesce().__aenter__)
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.cancel_scope.cancel()
                await pool.lease().__aenter__()
        assert scope.cancelled_caught
        assert pool.statistics().leased == 0
