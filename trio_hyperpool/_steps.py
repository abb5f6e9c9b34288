"""What is done to one connection: each step under its own deadline, and counted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import trio
from trio.lowlevel import disable_ki_protection

from ._config import HealthCheck, Hook, PoolConfig
from ._connector import Connector
from ._errors import HookError, LeaseEndedError, LeaseError
from ._policy import Condition, Reason
from ._slots import Slot
from ._statistics import Counters

ConnectionT = TypeVar("ConnectionT")

logger = logging.getLogger("trio_hyperpool")

_COMPLAINTS = {
    Condition.DIRTY: "it left a transaction open",
    Condition.CANCELLED: "a query of it was cancelled",
    Condition.BUSY: "it left a query unfinished",
    Condition.BROKEN: "it left the connection closed",
}


class Steps(Generic[ConnectionT]):
    """The connector's methods, as the pool wants them: bounded, logged, counted.

    Args:
        name: of the pool, for messages.
        config: for deadlines, checks and hooks.
        connector: the kind of connection.
        counters: what counts.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        connector: Connector[ConnectionT],
        counters: Counters,
    ) -> None:
        self._name = name
        self._config = config
        self._connector = connector
        self._counters = counters
        self.cut_off: int = 0
        """How many connections ended without a farewell that the server took."""

    async def is_sound(self, slot: Slot[ConnectionT]) -> bool:
        """Whether the connection passes the health check."""
        check = self._config.health_check
        failure: object = None
        view = self.lend(slot)
        scope = trio.CancelScope(
            deadline=trio.current_time() + self._config.recycle_timeout
        )
        try:
            with scope:
                if isinstance(check, HealthCheck):
                    await self._connector.probe(view, check)
                else:
                    await _call_user(cast("Hook", check), view)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises
            failure = error
        condition = self.reclaim(slot, LeaseEndedError)
        if failure is None and scope.cancelled_caught:
            failure = f"no answer within {self._config.recycle_timeout:g} s"
        elif failure is None and (
            # An answer that came although the caller was cancelled is one: the lease
            # is the caller's, and its connection retires when that ends.
            condition is not Condition.CANCELLED or scope.cancel_called
        ):
            failure = _COMPLAINTS.get(condition)
        if failure is None:
            return True
        self._counters.health_check_failures += 1
        logger.warning("%s: a connection failed its check: %s", self._name, failure)
        return False

    async def run_hook(self, name: str, hook: Hook, slot: Slot[ConnectionT]) -> None:
        """Run a hook on a view of its own.

        Raises:
            HookError: it failed, took too long, or left the connection in a state
                that no borrower should find.
        """
        timeout = self._config.hook_timeout
        view = self.lend(slot)
        try:
            with trio.move_on_after(timeout) as scope:
                await _call_user(hook, view)
            if scope.cancelled_caught:
                raise trio.TooSlowError(f"it did not end within {timeout:g} s")
        except Exception as error:
            self.reclaim(slot, LeaseEndedError)
            raise self._hook_failed(name, error) from error
        if hook is self._config.after_connect:
            self._connector.adopt(slot.connection, view)
        complaint = _COMPLAINTS.get(self.reclaim(slot, LeaseEndedError))
        if complaint is not None:
            raise self._hook_failed(name, complaint)

    def _hook_failed(self, name: str, why: object) -> HookError:
        self._counters.hook_failures += 1
        text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
        return HookError(f"{self._name}: the hook {name} failed: {text}", hook=name)

    async def is_cleaned(self, slot: Slot[ConnectionT]) -> bool:
        """Put the connection right; say whether that went well."""
        return await self._in_time("cleaning", self._connector.clean, slot.connection)

    async def farewell(self, slot: Slot[ConnectionT]) -> None:
        """End a connection politely."""
        # Closed it will be, however this ends.
        slot.is_connected = False
        self._counters.retired[slot.reason.value] += 1
        logger.debug("%s: a connection is retired: %s", self._name, slot.reason.value)
        self.cut_off += 1
        if await self._in_time("a farewell", self._connector.close, slot.connection):
            self.cut_off -= 1

    async def settle(self) -> bool:
        """Make good what missing farewells left undone; say whether that went well."""
        return await self._in_time("settling", self._connector.settle)

    async def _in_time(
        self, what: str, step: Callable[..., Awaitable[None]], *args: object
    ) -> bool:
        """Take a step within ``recycle_timeout``; say whether that went well."""
        timeout = self._config.recycle_timeout
        with trio.move_on_after(timeout):
            try:
                await step(*args)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises
                logger.warning("%s: %s failed: %s", self._name, what, error)
                return False
            return True
        logger.warning("%s: %s took more than %g s", self._name, what, timeout)
        return False

    def looks_alive(self, slot: Slot[ConnectionT]) -> bool:
        """Whether the idle connection looks usable."""
        try:
            return self._connector.is_alive(slot.connection)
        except Exception:
            logger.exception("%s: a connection could not be looked at", self._name)
            return False

    def lend(self, slot: Slot[ConnectionT]) -> ConnectionT:
        """Make a view, the slot's only one."""
        view = slot.view = self._connector.lend(slot.connection)
        return view

    def reclaim(self, slot: Slot[ConnectionT], error: type[LeaseError]) -> Condition:
        """End the slot's view, if it has one, and say what that left."""
        view, slot.view = slot.view, None
        if view is None:
            return Condition.CLEAN
        try:
            condition = self._connector.reclaim(slot.connection, view, error)
        except Exception:
            logger.exception("%s: a view could not be ended", self._name)
            return Condition.BROKEN
        if condition is Condition.CANCELLED:
            self._counters.cancelled_queries += 1
        return condition

    def drop(self, slot: Slot[ConnectionT], reason: Reason) -> None:
        """Close the socket at once; the slot is still to be ended or reused."""
        slot.is_connected = False
        self.cut_off += 1
        self.reclaim(slot, LeaseEndedError)
        self._counters.discarded[reason.value] += 1
        logger.debug("%s: a connection is discarded: %s", self._name, reason.value)
        try:
            self._connector.discard(slot.connection)
        except Exception:
            logger.exception("%s: a connection could not be discarded", self._name)


@disable_ki_protection
async def _call_user(hook: Hook, view: object) -> None:
    await hook(view)


def ran_out_of_time(error: HookError) -> bool:
    """Whether a hook was cancelled because it took too long."""
    return isinstance(error.__cause__, trio.TooSlowError)
