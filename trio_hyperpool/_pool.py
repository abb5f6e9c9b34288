"""`Pool`: what its user asks of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any, Generic, TypeVar, cast

import trio
from psycopg import AsyncCursor
from psycopg.abc import Params, Query
from trio.lowlevel import current_task, enable_ki_protection

from . import _diagnosis
from ._config import (
    PoolConfig,
    check_attempts,
    check_max_size,
    check_wait_timeout,
)
from ._driver import TrioConnection
from ._errors import PoolDeadlockError, PoolError
from ._events import Instrument, PoolWatched
from ._lease import Lease
from ._policy import Reason, backoff
from ._slots import Slot, State
from ._statistics import PoolStatistics, frozen
from ._supply import Supply
from ._upkeep import Upkeep
from ._whole import Whole

ConnectionT = TypeVar("ConnectionT")
ResultT = TypeVar("ResultT")
SessionT = TypeVar("SessionT", bound=TrioConnection[Any])

SERIALIZATION_FAILURE = "40001"

_frame_above = sys._getframe  # noqa: SLF001 - documented, and all there is


@dataclasses.dataclass(frozen=True)
class IdleConnection:
    """What `Pool.retire_idle` tells its predicate about a connection."""

    age: float
    """Seconds since it was opened."""
    idle: float
    """Seconds since it was given back, or opened."""
    leases: int
    """How often it was leased."""


class Pool(Generic[ConnectionT]):
    """Connections that are opened as they are needed, and leased one block at a time.

    Made by `open_pool`, and good for the length of its block.
    """

    def __init__(
        self, supply: Supply[ConnectionT], upkeep: Upkeep[ConnectionT]
    ) -> None:
        self._supply = supply
        self._upkeep = upkeep
        self._quiescing = trio.Lock()

    @property
    def name(self) -> str:
        """What the pool is called in messages, statistics and logs."""
        return self._supply.name

    @property
    def config(self) -> PoolConfig:
        """What the pool was made from; `resize` does not change it."""
        return self._supply.config

    def __repr__(self) -> str:
        now = self.statistics()
        state = " (closed)" if self._supply.queue.is_closed else ""
        return (
            f"<Pool {self.name!r}{state}: {now.size} of {now.max_size} connections, "
            f"{now.idle} idle, {now.leased} leased, {now.waiting} tasks waiting>"
        )

    # Leases

    def lease(self, *, wait_timeout: float | None = None) -> Lease[ConnectionT]:
        """Lease a connection: ``async with pool.lease() as connection``.

        Entering the block is a checkpoint; it either gives a connection, or raises
        and leaves the pool unchanged. Places are given first come, first served.
        Leaving it is not a checkpoint: the connection goes to whoever is next, or is
        put right by a task of the pool first. The connection is good for the block
        only.

        Args:
            wait_timeout: seconds to wait for a place in the pool, in place of the
                config's; 0 never queues.

        Raises:
            PoolTimeoutError: on entering: no place came free within
                ``wait_timeout``, or no connection was opened within
                ``create_timeout``.
            PoolSaturatedError: on entering: ``max_waiting`` tasks wait already.
            PoolDeadlockError: on entering: the wait would never end.
            PoolClosedError: on entering: the pool is closing or closed.
            ConnectError: on entering: no connection could be opened.
            HookError: on entering: a hook failed on a new connection.
        """
        frame = _frame_above(1)
        if wait_timeout is None:
            wait_timeout = self._supply.config.wait_timeout
        else:
            check_wait_timeout(wait_timeout)
        return Lease(self._supply, wait_timeout, frame.f_code, frame.f_lasti)

    async def execute(
        self: Pool[SessionT], query: Query, params: Params | None = None
    ) -> AsyncCursor[Any]:
        """Execute one statement on a lease of its own, and return its cursor.

        The cursor has fetched its rows already, so that they outlive the lease. A
        checkpoint; cancelled, it stops the statement on the server.

        Raises:
            psycopg.Error: the server, or psycopg, refused the statement.
            PoolError: there was no connection for it; see `lease`.
        """
        async with self._one_off(_frame_above(1)) as connection:
            return await connection.execute(cast("Any", query), params)

    async def fetch_all(
        self: Pool[SessionT], query: Query, params: Params | None = None
    ) -> list[Any]:
        """Return all rows of a query, on a lease of its own.

        A checkpoint, with the errors of `execute`; cancelled, it stops the query.
        """
        async with self._one_off(_frame_above(1)) as connection:
            return await connection.fetch_all(query, params)

    async def fetch_one(
        self: Pool[SessionT], query: Query, params: Params | None = None
    ) -> Any:
        """Return the first row of a query, or None, on a lease of its own.

        A checkpoint, with the errors of `execute`; cancelled, it stops the query.
        """
        async with self._one_off(_frame_above(1)) as connection:
            return await connection.fetch_one(query, params)

    async def fetch_value(
        self: Pool[SessionT], query: Query, params: Params | None = None
    ) -> Any:
        """Return the first value of the first row, or None, on a lease of its own.

        A checkpoint, with the errors of `execute`; cancelled, it stops the query.
        """
        async with self._one_off(_frame_above(1)) as connection:
            return await connection.fetch_value(query, params)

    async def execute_command(
        self: Pool[SessionT], query: Query, params: Params | None = None
    ) -> int:
        """Execute one statement on a lease of its own; return the rows affected.

        A checkpoint, with the errors of `execute`; cancelled, it stops the query.
        """
        async with self._one_off(_frame_above(1)) as connection:
            return await connection.execute_command(query, params)

    async def run_transaction(
        self: Pool[SessionT],
        fn: Callable[[SessionT], Awaitable[ResultT]],
        *,
        attempts: int = 5,
    ) -> ResultT:
        """Run ``await fn(connection)`` in a transaction, again if it lost a race.

        Hyper lets the first of two writers of a row win and fails the other at once,
        with SQLSTATE 40001: that one is tried again, from its start and on a new
        lease, after a short pause. A checkpoint; cancelled, it has rolled back.

        Args:
            fn: what to do; it may be called several times.
            attempts: how often to try, at least 1.

        Raises:
            psycopg.errors.SerializationFailure: the last attempt lost, too.
            TypeError, ValueError: ``attempts`` is no positive integer; at once.
        """
        check_attempts(attempts)
        frame = _frame_above(1)
        failures = 0
        while True:
            try:
                async with (
                    self._one_off(frame) as connection,
                    connection.transaction(),
                ):
                    return await fn(connection)
            except Exception as error:
                failures += 1
                lost = getattr(error, "sqlstate", None) == SERIALIZATION_FAILURE
                if not lost or failures >= attempts:
                    raise
            await trio.sleep(backoff(self.config, failures, random.random()))

    def _one_off(self, frame: FrameType) -> Lease[ConnectionT]:
        """A lease for one statement, on behalf of whoever awaits it."""
        timeout = self.config.wait_timeout
        return Lease(self._supply, timeout, frame.f_code, frame.f_lasti)

    # Control

    def statistics(self) -> PoolStatistics:
        """Take a snapshot of the pool."""
        supply, table, counters = (
            self._supply,
            self._supply.table,
            self._supply.record.counters,
        )
        return PoolStatistics(
            name=self.name,
            max_size=table.max_size,
            size=len(table.slots),
            idle=len(table.idle),
            leased=len(table.leased),
            opening=table.count(State.OPENING),
            cleaning=table.count(State.CLEANING),
            waiting=supply.queue.waiting,
            leases=counters.wait.count,
            opened=counters.opened,
            open_failures=counters.open_failures,
            retired=frozen(counters.retired),
            discarded=frozen(counters.discarded),
            health_check_failures=counters.health_check_failures,
            hook_failures=counters.hook_failures,
            wait_timeouts=counters.wait_timeouts,
            revoked=counters.revoked,
            cancelled_queries=counters.cancelled_queries,
            wait=counters.wait.snapshot(),
            use=counters.use.snapshot(),
            create=counters.create.snapshot(),
            holders=_diagnosis.holders(table.leased.values(), trio.current_time()),
        )

    def add_instrument(self, instrument: Instrument) -> None:
        """Have an instrument told what happens from now on; not a checkpoint.

        First it is told how the pool is (`~trio_hyperpool.telemetry.PoolWatched`), and
        last, when it is removed or the pool is over, that this was all
        (`~trio_hyperpool.telemetry.PoolUnwatched`). Added twice, it is told once. One
        that raises is removed, and what it raised is logged. While there is none,
        telling costs nothing.

        Args:
            instrument: has a method ``happened``, which takes a
                `~trio_hyperpool.telemetry.Event`.

        Raises:
            TypeError: it has not.
        """
        if not callable(getattr(instrument, "happened", None)):
            raise TypeError(
                "instrument: an object with a method `happened` is allowed, "
                f"not {instrument!r}"
            )
        supply, table = self._supply, self._supply.table
        supply.record.add_instrument(
            instrument,
            PoolWatched(
                self.name,
                trio.current_time(),
                supply.connector.system,
                table.max_size,
                self.config.min_idle,
                idle=tuple(slot.number for slot in table.idle),
                used=tuple(
                    slot.number
                    for slot in table.slots
                    if slot.is_connected
                    and slot.state in {State.LEASED, State.CLEANING}
                ),
            ),
        )

    def remove_instrument(self, instrument: Instrument) -> None:
        """Tell an instrument no more; not a checkpoint. One never added is ignored."""
        self._supply.record.remove_instrument(instrument)

    @enable_ki_protection
    def resize(self, max_size: int) -> None:
        """Change ``max_size``; not a checkpoint.

        A smaller pool ends idle connections that it has no room for, in the
        background, and leased ones as they come back.

        Args:
            max_size: connections, at least 1.

        Raises:
            TypeError, ValueError: it is no such number; nothing is changed.
        """
        check_max_size(max_size)
        supply = self._supply
        supply.table.max_size = max_size
        # Before the tokens go: whoever ends a connection holds one.
        self._upkeep.retire_expired()
        supply.queue.max_size = max_size
        supply.queue.resize()
        supply.record.resized(max_size)
        if supply.on_move is not None:
            supply.on_move()

    def reset(self) -> None:
        """Have every connection of today retired as it comes free; not a checkpoint."""
        self._supply.table.was_reset()
        self._upkeep.retire_expired()

    def retire_idle(
        self, predicate: Callable[[IdleConnection], bool] | None = None
    ) -> int:
        """Retire idle connections in the background; not a checkpoint.

        Args:
            predicate: which of them; all if None.

        Returns:
            How many.
        """
        now = trio.current_time()

        def is_chosen(slot: Slot[ConnectionT]) -> bool:
            return predicate is None or predicate(
                IdleConnection(
                    now - slot.opened_at, now - slot.returned_at, slot.leases
                )
            )

        idle = list(self._supply.table.idle)
        chosen = [(slot, Reason.REQUESTED) for slot in idle if is_chosen(slot)]
        count, _ = self._supply.retire_idle(chosen)
        return count

    def quiesce(self) -> AbstractAsyncContextManager[None]:
        """Have no connection at all for the length of a block.

        Entering waits until every lease is back, then ends every connection, so that
        the server has written what was committed and has let go of the file. Who
        asks for a lease meanwhile waits in the queue, and is served when the block
        ends. Entering is a checkpoint; cancelled, the pool goes on as before.

        Raises:
            PoolDeadlockError: the task holds a lease, or is inside ``quiesce``. A
                task that holds a lease and asks for another gets the same from
                `lease` while the pool is being drained.
            PoolClosedError: the pool is closing or closed.
            PoolError: a connection did not end in good order, so that it is not
                certain that everything is on disk.
        """
        return Whole(self._quiesced())

    @contextlib.asynccontextmanager
    async def _quiesced(self) -> AsyncGenerator[None]:
        supply, queue, task = self._supply, self._supply.queue, current_task()
        leases = supply.table.leased.values()
        if queue.paused_by is task or _diagnosis.innermost(task, leases) is not None:
            raise PoolDeadlockError(
                f"{self.name}: the task that calls quiesce() or flush() holds a "
                "lease, or is inside quiesce(): it would wait for itself"
            )
        async with self._quiescing:
            if queue.is_closed:
                raise queue.closed()
            queue.is_paused = True
            queue.paused_by = task
            queue.paused_until = trio.current_effective_deadline()
            queue.resize()
            try:
                await supply.until(lambda: queue.is_closed or not queue.borrowed)
                if queue.is_closed:
                    raise queue.closed()
                await supply.end_idle(Reason.QUIESCED)
                if not await supply.settle():
                    raise PoolError(
                        f"{self.name}: a connection did not end in good order, and "
                        "what was committed last may not be on disk yet"
                    )
                yield
            finally:
                queue.is_paused = False
                queue.paused_by = None
                queue.paused_until = math.inf
                queue.resize()
                if supply.on_move is not None:
                    supply.on_move()

    async def flush(self) -> None:
        """Return when everything that was committed so far is on disk.

        Hyper writes a database when its last session lets go of it, so this is a
        short `quiesce`, with its checkpoints and errors.
        """
        async with self.quiesce():
            pass
