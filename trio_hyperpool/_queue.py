"""Tokens, and the queue for them: the `trio.CapacityLimiter` behind a pool.

Whoever has a connection in use, opens, cleans or ends one bears a permit, an opaque
object that has borrowed a token. A permit and not a task is the borrower, so that a
task may have several leases, and so that a token can travel from a lease to the task
that cleans up after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Protocol, TypeAlias

import trio
from trio.lowlevel import Task

from . import _diagnosis
from ._config import PoolConfig
from ._errors import (
    PoolClosedError,
    PoolDeadlockError,
    PoolError,
    PoolSaturatedError,
    PoolTimeoutError,
)
from ._record import Record, RecordedLease
from ._scopes import Scopes, deadline_around
from ._statistics import tasks_wait


class QueueingLease(RecordedLease, Protocol):
    """What the queue has to know about a lease."""

    @property
    def scopes(self) -> Scopes: ...


_Failure: TypeAlias = Callable[[QueueingLease, float], PoolError]
"""Makes the error for a lease that was to wait so many seconds."""


class TokenQueue:
    """Who may have a connection, and who is next.

    Args:
        name: of the pool, for messages.
        config: for ``max_size``, ``max_waiting`` and ``max_lease``.
        leases: a live view of the leases that have a connection.
        record: what counts.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        leases: Collection[QueueingLease],
        record: Record,
    ) -> None:
        self._name = name
        self._config = config
        self._leases = leases
        self._record = record
        self._limiter = trio.CapacityLimiter(config.max_size)
        self._endless: dict[Task, tuple[trio.CancelScope, float]] = {}
        """Tasks that wait without an end while they hold a lease.

        That is without an end of their own: the number is their effective deadline.
        """
        self._deadlocked: set[Task] = set()
        self.waiting: int = 0
        self.max_size: int = config.max_size
        self.is_closed = False
        self.is_paused = False
        self.paused_by: Task | None = None
        self.paused_until: float = math.inf
        """The effective deadline of the task that waits for the pool to drain."""

    @property
    def borrowed(self) -> int:
        """Tokens that are borrowed at this moment."""
        return self._limiter.borrowed_tokens

    @property
    def has_token(self) -> bool:
        """Whether `take` would give one."""
        return self._limiter.available_tokens > 0 and not self.waiting

    def closed(self) -> PoolClosedError:
        """The error for whoever comes too late."""
        return PoolClosedError(f"{self._name}: the pool is closing or closed")

    def take(self) -> object | None:
        """Borrow a token at once, or return None if there is none to be had."""
        permit = object()
        try:
            self._limiter.acquire_on_behalf_of_nowait(permit)
        except trio.WouldBlock:
            return None
        return permit

    def give_back(self, permit: object) -> None:
        """Return a token; the first in the queue gets it."""
        self._limiter.release_on_behalf_of(permit)
        if self._endless:
            self.look_for_deadlock()

    def resize(self) -> None:
        """Follow a change of ``max_size``, ``is_paused`` or ``is_closed``."""
        if self.is_closed:
            # Wakes everybody in the queue up, who then see that it is closed.
            self._limiter.total_tokens = math.inf
        else:
            self._limiter.total_tokens = 0 if self.is_paused else self.max_size
        self.look_for_deadlock()

    def parks(self, lease: QueueingLease, timeout: float) -> bool:
        """Whether a lease that asks now is neither served nor refused at once."""
        return (
            self._limiter.available_tokens <= 0
            and self._refusal(lease, timeout) is None
        )

    async def wait(
        self,
        lease: QueueingLease,
        timeout: float,  # noqa: ASYNC109 - the end of it is an error of ours
    ) -> object:
        """Borrow a token as soon as it is one's turn.

        A checkpoint; cancelled, it leaves the queue as if it had never been called.

        Args:
            lease: who asks, for the messages.
            timeout: seconds.

        Raises:
            PoolTimeoutError: the time is over.
            PoolSaturatedError: too many tasks wait already.
            PoolDeadlockError: nobody is left who could give a token back.
            PoolClosedError: the pool was closed.
        """
        failed = self._refusal(lease, timeout)
        if failed is not None:
            raise failed(lease, timeout)
        permit = object()
        self.waiting += 1
        try:
            held = _diagnosis.innermost(lease.task, self._leases)
            if timeout < math.inf or held is not None:
                failed = await self._acquire(permit, lease.task, timeout, held)
            else:
                # Nobody will end this wait: a scope around it would be a third of it.
                await self._limiter.acquire_on_behalf_of(permit)
        finally:
            self.waiting -= 1
            if self._endless:
                self.look_for_deadlock()
        if failed is not None:
            raise failed(lease, timeout)
        if self.is_closed:
            self._limiter.release_on_behalf_of(permit)
            raise self.closed()
        return permit

    def _refusal(self, lease: QueueingLease, timeout: float) -> _Failure | None:
        """What makes the error for a lease that must not wait, if it must not."""
        if self.paused_by is lease.task:
            return self._inside_quiesce
        if timeout == 0:
            return self._timed_out
        if self.waiting >= self._config.max_waiting:
            return self._saturated
        return None

    async def _acquire(
        self,
        permit: object,
        task: Task,
        timeout: float,  # noqa: ASYNC109 - the end of it is an error of ours
        held: QueueingLease | None,
    ) -> _Failure | None:
        """Borrow a token, or return what makes the error that ends the wait."""
        is_deadlocked = False
        with trio.CancelScope(deadline=trio.current_time() + timeout) as scope:
            try:
                if held is not None and timeout == math.inf:
                    self._look_out(scope, task, held)
                await self._limiter.acquire_on_behalf_of(permit)
            finally:
                self._endless.pop(task, None)
                is_deadlocked = task in self._deadlocked
                self._deadlocked.discard(task)
        # Not `cancel_called`: a token granted just before the deadline is ours.
        if not scope.cancelled_caught:
            return None
        return self._deadlock if is_deadlocked else self._timed_out

    def look_for_deadlock(self, *, arriving: int = 0) -> None:
        """End the wait that came last if nobody can go on any more.

        Args:
            arriving: how many tasks are counted as waiting and not parked yet.
        """
        if not self._endless or self._config.max_lease != math.inf or self.is_closed:
            return
        # Those who were granted a token or cancelled a moment ago have left the
        # limiter and are still counted here: somebody is about to go on.
        if self._limiter.statistics().tasks_waiting + arriving != self.waiting:
            return
        is_deadlock = self.is_paused or _diagnosis.is_deadlock(
            self.borrowed, self._leases, self._endless
        )
        for task, (scope, until) in reversed(self._endless.items()):
            # Whoever waits for a token while it holds a lease keeps the pool from
            # draining, and no token is given before it has drained: unless the drain
            # is given up in time, when this is asked again.
            if is_deadlock and until <= self.paused_until:
                self._deadlocked.add(task)
                scope.cancel()
                break

    def _look_out(
        self, scope: trio.CancelScope, task: Task, held: QueueingLease
    ) -> None:
        """Take note if this wait holds up a lease of its own task, and for ever.

        A deadline that stood before the task took the lease it holds ends both, so
        that it does not free the connection for anybody in time. Any other is of this
        wait, even a later one: it stands behind a shield, or the scopes that the lease
        was taken in are over.
        """
        deadline = trio.current_effective_deadline()
        # A task that is cancelled already goes on.
        if deadline > -math.inf and deadline in (
            math.inf,
            held.scopes.effective_deadline(),
            # What is left when those scopes are over, as for a task that was started.
            deadline_around(task),
        ):
            self._endless[task] = scope, deadline
            self.look_for_deadlock(arriving=1)

    def _inside_quiesce(self, _lease: QueueingLease, _timeout: float) -> PoolError:
        return PoolDeadlockError(
            f"{self._name}: a lease inside quiesce(), by the task that is to end "
            "it, would wait for ever"
        )

    def _saturated(self, _lease: QueueingLease, _timeout: float) -> PoolError:
        return PoolSaturatedError(
            f"{self._name}: {self.waiting} tasks wait for a connection already, "
            f"and max_waiting is {self._config.max_waiting}"
        )

    def _timed_out(self, lease: QueueingLease, timeout: float) -> PoolError:
        self._record.wait_timed_out(lease)
        what = f"within {timeout:g} s" if timeout else "at once (wait_timeout is 0)"
        return PoolTimeoutError(
            f"{self._name}: no connection came free {what}: {self._situation(lease)}",
            step="wait",
        )

    def _deadlock(self, lease: QueueingLease, _timeout: float) -> PoolError:
        return PoolDeadlockError(
            f"{self._name}: this wait would never end, because every connection is "
            "held by a task that waits for one itself: "
            f"{self._situation(lease)}"
            "\n  pass a connection on instead of leasing a second one, or set wait_timeout"
        )

    def _situation(self, lease: QueueingLease) -> str:
        people = _diagnosis.report(self._leases, lease.task, trio.current_time())
        leased, waiting = len(self._leases), tasks_wait(self.waiting, "other ")
        places = f"{leased} of {self.max_size} places leased"
        if busy := self.borrowed - leased:
            # What a slow or dead server looks like.
            places += f", {busy} busy opening, cleaning or closing a connection"
        if self.is_paused:
            places += ", and quiesce() lets nobody in"
        return f"{places}; {waiting}{people}"
