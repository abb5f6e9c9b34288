"""Opens, checks, cleans and ends connections: carries out what the slot table decides.

Ownership of a slot is in one place at any moment: a lease, a task of the pool, or the
idle list. Each method that is not async changes hands in one step; each that is async
gives its slot away on every path, `Cancelled` included.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, Literal, Protocol, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._config import PoolConfig
from ._connector import Connector
from ._errors import (
    HookError,
    LeaseEndedError,
    LeaseRevokedError,
    PoolError,
)
from ._events import Step
from ._opening import Opening
from ._policy import Condition, Reason
from ._queue import QueueingLease, TokenQueue
from ._record import Record
from ._slots import KEEP, Fate, Slot, SlotTable, State
from ._steps import Steps, ran_out_of_time

ConnectionT = TypeVar("ConnectionT")


class Wait(enum.Enum):
    """Where a lease waits that could not be given a slot at once."""

    QUEUE = "queue"
    SEEKERS = "seekers"


QUEUE: Final = Wait.QUEUE
SEEKERS: Final = Wait.SEEKERS


class Borrower(QueueingLease, Protocol[ConnectionT]):
    """What the supply has to know about a lease."""

    is_revoked: bool
    is_logged: bool

    def serve(self, slot: Slot[ConnectionT], /) -> None:
        """Wake it up with a slot that is its own."""

    def fail(self, error: Exception, /) -> None:
        """Wake it up: no connection will come."""


class Spawn(Protocol):
    """Starts a task of the pool."""

    def __call__(
        self, async_fn: Callable[..., Awaitable[object]], /, *args: object
    ) -> None: ...


class Supply(Generic[ConnectionT]):
    """The connections of one pool, and all that is done to them.

    Args:
        connector: the kind of connection.
        config: the knobs.
        spawn: starts a task of the pool, which outlives the caller.
    """

    def __init__(
        self, connector: Connector[ConnectionT], config: PoolConfig, spawn: Spawn
    ) -> None:
        self.name: str = config.name or connector.name
        self.config = config
        self.connector = connector
        self.record: Record = Record(self.name, config)
        parts = self.name, config, connector
        self.steps: Steps[ConnectionT] = Steps(*parts, self.record)
        self._opening = Opening(*parts, self.steps, self.record)
        self.table: SlotTable[ConnectionT, Borrower[ConnectionT]] = SlotTable(
            config, random.random
        )
        self.queue: TokenQueue = TokenQueue(
            self.name, config, self.table.leased.values(), self.record
        )
        self.failures_in_a_row: int = 0
        """Attempts to open a connection that have failed since one succeeded."""
        self.on_move: Callable[[], None] | None = None
        """Called whenever a connection was leased, came free or ended."""
        self._settled = 0
        """How many of those that were cut off have been made good."""
        self._moves = trio.lowlevel.ParkingLot()
        self._spawn = spawn
        # `trio.current_time` looks for the clock anew each time, four times a lease.
        self.now: Callable[[], float] = trio.lowlevel.current_clock().current_time

    # For a lease, in its own task

    def claim(self, lease: Borrower[ConnectionT]) -> Slot[ConnectionT] | Wait:
        """Give the lease a slot, or say where it waits; a seeker is one already."""
        table, queue = self.table, self.queue
        if queue.is_closed:
            raise queue.closed()
        if (
            not table.idle
            and table.has_spare_opener
            and not queue.waiting
            and not queue.is_paused
        ):
            table.seekers.append(lease)
            return SEEKERS
        permit = queue.take()
        return QUEUE if permit is None else self.place(lease, permit)

    def place(
        self, lease: Borrower[ConnectionT], permit: object
    ) -> Slot[ConnectionT] | Literal[Wait.SEEKERS]:
        """Turn a token into a slot; if one has to be opened, the lease seeks it."""
        table = self.table
        while True:
            slot = table.granted(permit, lease, self.now())
            if slot not in table.leased:
                table.seekers.append(lease)
                self._spawn(self._open, slot, lease)
                return SEEKERS
            if self.steps.looks_alive(slot):
                return slot
            # The token stays with the lease, which looks on.
            slot.permit = None
            table.died()
            self._discard(slot, Reason.DEAD)

    async def check(
        self, lease: Borrower[ConnectionT], slot: Slot[ConnectionT]
    ) -> bool:
        """Probe the connection if that is due, and run ``before_acquire``.

        Cancelled, it sends the connection to be cleaned.

        Returns:
            True if the connection can be handed out. False if it is being replaced,
            and the lease is the first of the seekers.

        Raises:
            HookError: the hook failed on a connection that was never used before.
            PoolClosedError: the pool closed in the meantime.
        """
        failure: HookError | None = None
        is_sound = False
        try:
            is_sound = not slot.is_due or await self._is_sound(slot)
            hook = self.config.before_acquire
            if is_sound and hook is not None and not lease.is_revoked:
                await self.steps.run_hook(Step.BEFORE_ACQUIRE, hook, slot)
        except HookError as error:
            failure = error
        except BaseException:
            if not lease.is_revoked:
                self._abandon(slot)
            raise
        if lease.is_revoked:
            raise self.queue.closed() from failure
        if is_sound and failure is None:
            return True
        reason = Reason.CHECK if failure is None else Reason.HOOK
        if failure is None or ran_out_of_time(failure):
            # Who does not answer a question would not answer a farewell.
            self.steps.drop(slot, reason)
        if self.queue.is_closed or (failure is not None and slot.leases == 0):
            self.table.condemned(slot, reason)
            self._spawn(self._retire, slot)
            raise failure or self.queue.closed()
        self.table.replaced(slot, reason)
        self.table.seekers.appendleft(lease)
        self._spawn(self._open, slot, lease)
        return False

    def hand_out(
        self, lease: Borrower[ConnectionT], slot: Slot[ConnectionT], asked_at: float
    ) -> ConnectionT:
        """Begin the lease: a view of the connection, good until it is taken back."""
        try:
            view = self.steps.lend(slot)
        except BaseException:
            self._discard(slot, Reason.BROKEN)
            raise
        now = self.now()
        lease.granted_at = now
        self.record.granted(lease, slot.number, asked_at, now)
        slot.leases += 1
        if self.on_move is not None:
            self.on_move()
        return view

    def take_back(self, lease: Borrower[ConnectionT], slot: Slot[ConnectionT]) -> None:
        """End the lease: its connection goes to whoever is next."""
        now = self.now()
        self.record.ended(lease, slot.number, now)
        condition = self.steps.reclaim(slot, LeaseEndedError)
        self._route(slot, condition, self.table.returned(slot, condition, now), now)

    def revoke(self, slot: Slot[ConnectionT]) -> None:
        """Take the connection away from a lease that has not ended."""
        lease = self.table.leased[slot]
        lease.is_revoked = True
        if lease.granted_at < math.inf:  # else it is refused
            self.record.revoked(lease, slot.number, self.now())
        condition = self.steps.reclaim(slot, LeaseRevokedError)
        if condition is Condition.BROKEN:
            self._discard(slot, Reason.REVOKED)
        else:
            self.table.condemned(slot, Reason.REVOKED)
            self._spawn(self._retire, slot)

    # For the pool

    def open_spare(self, permit: object) -> None:
        """Open a connection that nobody waits for."""
        self._spawn(self._open, self.table.started(permit))

    @enable_ki_protection
    def retire_idle(
        self, chosen: Iterable[tuple[Slot[ConnectionT], Reason]]
    ) -> tuple[int, bool]:
        """End idle connections in the background, as far as there are tokens for it.

        Returns:
            How many, and whether that is all of them.
        """
        count = 0
        for slot, reason in chosen:
            if slot.state is not State.IDLE:
                continue  # whoever chose it has ended it, too
            permit = self.queue.take()
            if permit is None:
                return count, False
            self.table.taken_out(slot, permit, reason)
            self._spawn(self._retire, slot)
            count += 1
        return count, True

    async def end_idle(self, reason: Reason) -> None:
        """End all idle connections, at the same time, in the caller's task.

        Nobody else may be able to open one meanwhile: no token is needed.
        """
        slots = list(self.table.idle)
        for slot in slots:
            self.table.taken_out(slot, None, reason)
        try:
            async with trio.open_nursery() as nursery:
                for slot in slots:
                    nursery.start_soon(self._retire, slot)
        except BaseExceptionGroup as group:
            # An interrupt, or a connector's bug, is more than that we were cancelled.
            _, loud = group.split(trio.Cancelled)
            raise (loud or group).exceptions[0] from None

    async def settle(self) -> bool:
        """Make good, when no connection is left, what missing farewells left undone.

        Returns:
            Whether there is nothing left to be made good.
        """
        cut_off = self.steps.cut_off
        if cut_off == self._settled:
            return True
        is_settled = await self.steps.settle()
        if is_settled:
            self._settled = cut_off
        return is_settled

    def turn_away(self) -> None:
        """Close the queue, and wake up everybody who waits in it or is a seeker."""
        if not self.queue.is_closed:
            self.record.closing()
        self.queue.is_closed = True
        self.queue.resize()
        while self.table.seekers:
            self.table.seekers.popleft().fail(self.queue.closed())
        self._moved()

    async def close(self, grace: float) -> None:
        """Turn everybody away, take back what is leased, and end what is open.

        A checkpoint. Cancelled, or with a grace of 0, it revokes the leases at once;
        what follows is shielded, and bounded by ``recycle_timeout`` or
        ``close_timeout``, whichever is longer. It is for the caller to end the tasks
        of the pool, and to `settle` when they are gone.

        Args:
            grace: seconds that leases have to end by themselves.
        """
        self.turn_away()
        leased = self.table.leased
        try:
            with trio.move_on_after(grace):
                await self.until(lambda: not leased)
        finally:
            for slot in list(leased):
                self.revoke(slot)
            patience = max(self.config.recycle_timeout, self.config.close_timeout)
            with trio.move_on_after(patience, shield=True):
                await self.end_idle(Reason.CLOSED)
                await self.until(lambda: not self.table.count(State.CLEANING))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; asked again whenever a connection moves."""
        while not is_so():
            await self._moves.park()

    # Tasks of the pool

    async def _open(
        self, slot: Slot[ConnectionT], lease: Borrower[ConnectionT] | None = None
    ) -> None:
        table = self.table
        try:
            if slot.is_connected:
                await self.steps.farewell(slot)
            await self._opening.connect(slot, lease, table.started_over)
            while slot.generation != table.generation and not self.queue.is_closed:
                slot.reason = Reason.RESET
                await self.steps.farewell(slot)
                await self._opening.connect(slot, lease, table.started_over)
        except PoolError as error:
            self._open_failed(slot, error)
        except BaseException:
            seeker = table.open_failed(slot)
            self._end(slot)
            if seeker is not None:
                seeker.fail(self.queue.closed())
            raise
        else:
            self.failures_in_a_row = 0
            table.opened(slot, self.now())
            self._made_ready(slot)

    def _open_failed(self, slot: Slot[ConnectionT], error: PoolError) -> None:
        self.failures_in_a_row += 1
        seeker = self.table.open_failed(slot)
        self.record.open_failed(slot.number, error, is_told=seeker is not None)
        self._end(slot)
        if seeker is not None:
            seeker.fail(error)

    async def _clean(self, slot: Slot[ConnectionT]) -> None:
        try:
            is_cleaned = await self.steps.is_cleaned(slot)
        except BaseException:
            self._discard(slot, Reason.ABANDONED)
            raise
        if is_cleaned:
            await self._release(slot)
        else:
            self._discard(slot, Reason.CLEANING)

    async def _release(self, slot: Slot[ConnectionT]) -> None:
        try:
            if self.config.after_release is not None:
                await self.steps.run_hook(
                    Step.AFTER_RELEASE, self.config.after_release, slot
                )
        except HookError:
            slot.reason = Reason.HOOK
            await self._retire(slot)
        except BaseException:
            self._discard(slot, Reason.ABANDONED)
            raise
        else:
            self._made_ready(slot)

    @enable_ki_protection
    async def _retire(self, slot: Slot[ConnectionT]) -> None:
        try:
            if slot.is_connected:
                await self.steps.farewell(slot)
        finally:
            self._end(slot)

    async def _is_sound(self, slot: Slot[ConnectionT]) -> bool:
        deaths = self.table.deaths
        if await self.steps.is_sound(slot):
            self.table.proved(slot, deaths)
            return True
        self.table.died()
        return False

    def _abandon(self, slot: Slot[ConnectionT]) -> None:
        condition = self.steps.reclaim(slot, LeaseEndedError)
        if condition is Condition.CLEAN:
            # Half a check may have left more behind than can be seen.
            condition = Condition.DIRTY
        now = self.now()
        self._route(slot, condition, self.table.returned(slot, condition, now), now)

    def _route(
        self, slot: Slot[ConnectionT], condition: Condition, fate: Fate, now: float
    ) -> None:
        if fate is KEEP:
            self._arrived(slot, now)
        elif fate is Fate.DISCARD:
            self.table.died()
            self._discard(slot, Reason.BROKEN)
        else:
            if fate is Fate.CLEAN and not self.queue.is_closed:
                step = self._clean if condition.is_curable else self._release
            else:
                step = self._retire
                if self.queue.is_closed:
                    slot.reason = Reason.CLOSED
            self._spawn(step, slot)
            # Leased no more: who closes the pool waits for that only.
            self._moved()

    def _made_ready(self, slot: Slot[ConnectionT]) -> None:
        now = self.now()
        # Kept now, it would be closed without a farewell, which is what makes the
        # server write what all of them committed.
        fate = Fate.RETIRE if self.queue.is_closed else self.table.cleaned(slot, now)
        self._route(slot, Condition.CLEAN, fate, now)

    def _arrived(self, slot: Slot[ConnectionT], now: float) -> None:
        permit = slot.permit
        lease = self.table.arrived(slot, now)
        if lease is not None:
            lease.serve(slot)
        else:
            self.queue.give_back(permit)
            self._moved()

    def _discard(self, slot: Slot[ConnectionT], reason: Reason) -> None:
        self.steps.drop(slot, reason)
        self._end(slot)

    def _end(self, slot: Slot[ConnectionT]) -> None:
        self.table.ended(slot)
        permit, slot.permit = slot.permit, None
        if permit is not None:
            self.queue.give_back(permit)
        self._moved()

    def _moved(self) -> None:
        if self._moves:
            self._moves.unpark_all()
        if self.on_move is not None:
            self.on_move()
