"""What is done to one connection: each step under its own deadline, and recorded."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import trio
from trio.lowlevel import disable_ki_protection

from ._config import HealthCheck, Hook, PoolConfig
from ._connector import Connector
from ._errors import HookError, LeaseEndedError, LeaseError
from ._events import Step
from ._policy import CLEAN, Condition, Reason
from ._record import Record
from ._slots import Slot

ConnectionT = TypeVar("ConnectionT")

_COMPLAINTS = {
    Condition.DIRTY: "it left a transaction open",
    Condition.CANCELLED: "a query of it was cancelled",
    Condition.BUSY: "it left a query unfinished",
    Condition.BROKEN: "it left the connection closed",
}


class Steps(Generic[ConnectionT]):
    """The connector's methods, as the pool wants them: bounded and recorded.

    Args:
        name: of the pool, for messages.
        config: for deadlines, checks and hooks.
        connector: the kind of connection.
        record: what is told of each step.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        connector: Connector[ConnectionT],
        record: Record,
    ) -> None:
        self._name = name
        self._config = config
        self._connector = connector
        self._record = record
        self.cut_off: int = 0
        """How many connections ended without a farewell that the server took."""

    async def is_sound(self, slot: Slot[ConnectionT]) -> bool:
        """Whether the connection passes the health check."""
        with self._record.step(slot.number, Step.HEALTH_CHECK) as step:
            complaint = await self._checked(slot)
            if complaint is not None:
                step.failed(complaint)
        return complaint is None

    async def _checked(self, slot: Slot[ConnectionT]) -> object:
        """Say what is wrong with the connection; None if it is sound."""
        check = self._config.health_check
        view = self.lend(slot)
        scope = trio.CancelScope(
            deadline=trio.current_time() + self._config.recycle_timeout
        )
        failure: object = None
        try:
            with scope:
                if isinstance(check, HealthCheck):
                    await self._connector.probe(view, check)
                else:
                    await _call_user(cast("Hook", check), view)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises
            failure = error
        condition = self.reclaim(slot, LeaseEndedError)
        if failure is not None:
            return failure
        if scope.cancelled_caught:
            return f"no answer within {self._config.recycle_timeout:g} s"
        if condition is Condition.CANCELLED and not scope.cancel_called:
            # An answer that came although the caller was cancelled is one: the lease
            # is the caller's, and its connection retires when that ends.
            return None
        return _COMPLAINTS.get(condition)

    async def run_hook(self, step: Step, hook: Hook, slot: Slot[ConnectionT]) -> None:
        """Run a hook on a view of its own.

        Raises:
            HookError: it failed, took too long, or left the connection in a state
                that no borrower should find.
        """
        with self._record.step(slot.number, step) as recorded:
            failure = await self._hooked(hook, slot)
            if failure is None:
                return
            cause = failure if isinstance(failure, Exception) else None
            text = f"{type(cause).__name__}: {cause}" if cause else str(failure)
            recorded.failed(text)
            raise HookError(
                f"{self._name}: the hook {step.value} failed: {text}", hook=step.value
            ) from cause

    async def _hooked(
        self, hook: Hook, slot: Slot[ConnectionT]
    ) -> Exception | str | None:
        """Run a hook, and say what went wrong; None if nothing did."""
        timeout = self._config.hook_timeout
        view = self.lend(slot)
        try:
            with trio.move_on_after(timeout) as scope:
                await _call_user(hook, view)
        except Exception as error:  # noqa: BLE001 - becomes a HookError
            self.reclaim(slot, LeaseEndedError)
            return error
        if scope.cancelled_caught:
            self.reclaim(slot, LeaseEndedError)
            return trio.TooSlowError(f"it did not end within {timeout:g} s")
        if hook is self._config.after_connect:
            self._connector.adopt(slot.connection, view)
        return _COMPLAINTS.get(self.reclaim(slot, LeaseEndedError))

    async def is_cleaned(self, slot: Slot[ConnectionT]) -> bool:
        """Put the connection right; say whether that went well."""
        return await self._is_done(slot, Step.CLEAN, self._connector.clean)

    async def farewell(self, slot: Slot[ConnectionT]) -> None:
        """End a connection politely."""
        # Closed it will be, however this ends.
        slot.is_connected = False
        self._record.retired(slot.number, slot.reason)
        self.cut_off += 1
        if await self._is_done(slot, Step.FAREWELL, self._connector.close):
            self.cut_off -= 1

    async def settle(self) -> bool:
        """Make good what missing farewells left undone; say whether that went well."""
        complaint = await self._in_time(self._connector.settle)
        if complaint is not None:
            self._record.log(logging.WARNING, "settling failed: %s", complaint)
        return complaint is None

    async def _is_done(
        self,
        slot: Slot[ConnectionT],
        step: Step,
        async_fn: Callable[[ConnectionT], Awaitable[None]],
    ) -> bool:
        with self._record.step(slot.number, step) as recorded:
            complaint = await self._in_time(async_fn, slot.connection)
            if complaint is not None:
                recorded.failed(complaint)
        return complaint is None

    async def _in_time(
        self, async_fn: Callable[..., Awaitable[None]], *args: object
    ) -> object:
        """Take a step within ``recycle_timeout``; say what went wrong, or None."""
        timeout = self._config.recycle_timeout
        with trio.move_on_after(timeout):
            try:
                await async_fn(*args)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                return error
            return None
        return f"it took more than {timeout:g} s"

    def looks_alive(self, slot: Slot[ConnectionT]) -> bool:
        """Whether the idle connection looks usable."""
        try:
            return self._connector.is_alive(slot.connection)
        except Exception as error:  # noqa: BLE001 - logged
            self._record.log_error(error, "a connection could not be looked at")
            return False

    def lend(self, slot: Slot[ConnectionT]) -> ConnectionT:
        """Make a view, the slot's only one."""
        view = slot.view = self._connector.lend(slot.connection)
        return view

    def reclaim(self, slot: Slot[ConnectionT], ends: type[LeaseError]) -> Condition:
        """End the slot's view, if it has one, and say what that left."""
        view, slot.view = slot.view, None
        if view is None:
            return CLEAN
        try:
            condition = self._connector.reclaim(slot.connection, view, ends)
        except Exception as error:  # noqa: BLE001 - logged
            self._record.log_error(error, "a view could not be ended")
            return Condition.BROKEN
        if condition is Condition.CANCELLED:
            self._record.query_cancelled()
        return condition

    def drop(self, slot: Slot[ConnectionT], reason: Reason) -> None:
        """Close the socket at once; the slot is still to be ended or reused."""
        slot.is_connected = False
        self.cut_off += 1
        self.reclaim(slot, LeaseEndedError)
        self._record.discarded(slot.number, reason)
        try:
            self._connector.discard(slot.connection)
        except Exception as error:  # noqa: BLE001 - logged
            self._record.log_error(error, "a connection could not be discarded")


@disable_ki_protection
async def _call_user(hook: Hook, view: object) -> None:
    await hook(view)


def ran_out_of_time(error: HookError) -> bool:
    """Whether a hook was cancelled because it took too long."""
    return isinstance(error.__cause__, trio.TooSlowError)
