"""The borrower's side of one slot: wait, check, use, give back."""

from __future__ import annotations

import math
from types import CodeType, TracebackType
from typing import Generic, TypeVar

import outcome
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from ._scopes import Scopes, scopes_of
from ._slots import Slot
from ._supply import QUEUE, SEEKERS, Supply

ConnectionT = TypeVar("ConnectionT")


class Lease(Generic[ConnectionT]):
    """A connection for the length of one ``async with`` block; see `Pool.lease`.

    It is a class because the clean-up of an ``@asynccontextmanager`` can be cut short
    by a KeyboardInterrupt between its frames; here both ends are protected from it.
    """

    task: Task
    scopes: Scopes
    """Those that the task was in when it asked for a connection."""
    granted_at: float = math.inf
    is_revoked: bool = False
    is_logged: bool = False
    """Whether it was logged that it is held for long."""
    number: int = 0
    _is_entered = False
    _slot: Slot[ConnectionT] | None = None

    def __init__(
        self,
        supply: Supply[ConnectionT],
        wait_timeout: float,
        code: CodeType,
        instruction: int,
    ) -> None:
        self._supply = supply
        self._wait_timeout = wait_timeout
        # Not the frame, which would keep the caller's variables alive, nor the line,
        # which takes time to find and is hardly ever asked for.
        self._code = code
        self._instruction = instruction

    @property
    def taken_at(self) -> str:
        """Where `Pool.lease` was called: ``file:line``."""
        lines = (
            line
            for start, end, line in self._code.co_lines()
            if start <= self._instruction < end
        )
        return f"{self._code.co_filename}:{next(lines, None)}"

    @enable_ki_protection
    async def __aenter__(self) -> ConnectionT:
        """Get a connection: a checkpoint. Cancelled, it leaves the pool unchanged."""
        if self._is_entered:
            raise RuntimeError("a lease is good for one block: call lease() for each")
        self._is_entered = True
        supply = self._supply
        self.task = task = current_task()
        self.scopes = scopes_of(task)
        asked_at = supply.now()
        record = supply.record
        if record.instruments:
            record.requested(self, asked_at)
        queue = supply.queue
        try:
            # To be parked in the queue is a checkpoint, and one is enough.
            if not (queue.waiting and queue.parks(self, self._wait_timeout)):
                await checkpoint()
            slot = supply.claim(self)
            if slot is QUEUE:
                permit = await queue.wait(self, self._wait_timeout)
                slot = supply.place(self, permit)
            if slot is SEEKERS:
                slot = await self._seek()
            while (
                slot.is_due or supply.config.before_acquire is not None
            ) and not await supply.check(self, slot):
                slot = await self._seek()
            view = supply.hand_out(self, slot, asked_at)
        except BaseException as error:
            record.refused(self, asked_at, error)
            raise
        self._slot = slot
        return view

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the connection back; not a checkpoint."""
        self.give_back()

    @enable_ki_protection
    def give_back(self) -> None:
        """End the lease, if it has begun and nobody has ended it yet."""
        slot, self._slot = self._slot, None
        if slot is not None and not self.is_revoked:
            self._supply.take_back(self, slot)

    async def _seek(self) -> Slot[ConnectionT]:
        """Park among the seekers: granted or cancelled, never both."""
        seekers = self._supply.table.seekers

        def abort(_: RaiseCancelT) -> Abort:
            seekers.remove(self)
            return Abort.SUCCEEDED

        slot: Slot[ConnectionT] = await wait_task_rescheduled(abort)
        if self.is_revoked:
            # The pool closed between the hand-over and this step.
            raise self._supply.queue.closed()
        return slot

    def serve(self, slot: Slot[ConnectionT], /) -> None:
        """Wake this seeker up: the slot is its own."""
        reschedule(self.task, outcome.Value(slot))

    def fail(self, error: Exception, /) -> None:
        """Wake this seeker up: no connection will come."""
        reschedule(self.task, outcome.Error(error))
