"""Opening a connection: what comes before the first one, attempts, ``after_connect``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from ._config import PoolConfig
from ._connector import Connector
from ._errors import ConnectError, HookError, PoolError, PoolTimeoutError
from ._events import Step
from ._policy import Reason, backoff
from ._record import Record, RecordedLease
from ._slots import Slot
from ._steps import Steps, ran_out_of_time

ConnectionT = TypeVar("ConnectionT")


class _Preparation:
    """One attempt at what comes before the first connection, shared by openers."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: PoolError | None = None


class Opening(Generic[ConnectionT]):
    """How this pool opens connections, several at a time.

    Args:
        name: of the pool, for messages.
        config: for deadlines, attempts and the hook.
        connector: the kind of connection.
        steps: what is done to a connection that is there.
        record: what is told of each attempt.
    """

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        connector: Connector[ConnectionT],
        steps: Steps[ConnectionT],
        record: Record,
    ) -> None:
        self._name = name
        self._config = config
        self._connector = connector
        self._steps = steps
        self._record = record
        self._is_prepared = False
        self._preparation: _Preparation | None = None

    async def connect(
        self,
        slot: Slot[ConnectionT],
        lease: RecordedLease | None,
        started_over: Callable[[Slot[ConnectionT]], None],
    ) -> None:
        """Open the slot's connection, in ``create_attempts`` attempts at most.

        A checkpoint. Cancelled or failing, it leaves nothing open.

        Args:
            slot: gets the connection.
            lease: who asked for it, if anybody did.
            started_over: called when an attempt begins.

        Raises:
            PoolError: what the seeker is to be told.
        """
        failures = 0
        while True:
            started_over(slot)
            try:
                await self._attempt(slot, lease)
            except ConnectError as error:
                failures += 1
                if not error.unreachable or failures >= self._config.create_attempts:
                    raise
            else:
                return
            await trio.sleep(backoff(self._config, failures, random.random()))

    async def _attempt(
        self, slot: Slot[ConnectionT], lease: RecordedLease | None
    ) -> None:
        # Not timed: this opener has done nothing yet that could take long.
        while (other := self._preparation) is not None:
            await other.done.wait()
            if other.error is not None:
                raise _twin(other.error)
        began_at = trio.current_time()
        self._record.opening(slot.number, lease, began_at)
        try:
            await self._open(slot, began_at + self._config.create_timeout)
        except BaseException as error:
            self._record.attempt_failed(slot.number, began_at, error)
            raise
        self._record.opened(slot.number, began_at)

    async def _open(self, slot: Slot[ConnectionT], deadline: float) -> None:
        is_done = False
        try:
            # Under one deadline, but not in one scope: of two that expire together,
            # the inner one would not know.
            if not self._is_prepared:
                await self._prepare(deadline)
            with trio.move_on_at(deadline):
                await self._connect(slot)
                await self._set_up(slot)
                is_done = True
        except HookError as failure:
            # With a deadline of its own: that of the attempt would be told of instead.
            await self._end(slot, failure)  # noqa: ASYNC120 - the pool is over then
            raise
        except PoolError:
            raise
        except Exception as error:
            raise self._not_opened(error) from error
        if not is_done:
            raise self._create_timed_out()

    async def _connect(self, slot: Slot[ConnectionT]) -> None:
        try:
            slot.connection = await self._connector.connect()
        except Exception:
            raise
        except BaseException:  # that of a cancelled nursery is a group
            # The server may have begun a session, and take a while to see its end.
            if self._record.counters.opened:
                self._steps.cut_off += 1
            raise
        slot.is_connected = True
        self._record.connected()

    async def _prepare(self, deadline: float) -> None:
        preparation = self._preparation = _Preparation()
        try:
            with trio.move_on_at(deadline):
                await self._connector.prepare()
                self._is_prepared = True
            if not self._is_prepared:
                raise self._create_timed_out()
        except PoolError as error:
            preparation.error = error
            raise
        except Exception as error:
            preparation.error = self._not_opened(error)
            raise preparation.error from error
        finally:
            self._preparation = None
            preparation.done.set()

    async def _set_up(self, slot: Slot[ConnectionT]) -> None:
        number, hook = slot.number, self._config.after_connect
        try:
            self._connector.watch(
                slot.connection, lambda: self._record.cancel_sent(number)
            )
            if hook is not None:
                await self._steps.run_hook(Step.AFTER_CONNECT, hook, slot)
        except HookError:
            raise
        except BaseException:
            self._steps.drop(slot, Reason.ABANDONED)
            raise

    async def _end(self, slot: Slot[ConnectionT], failure: HookError) -> None:
        if ran_out_of_time(failure):
            self._steps.drop(slot, Reason.HOOK)
        else:
            slot.reason = Reason.HOOK
            await self._steps.farewell(slot)

    def _not_opened(self, error: Exception) -> ConnectError:
        return ConnectError(f"{self._name}: no connection could be opened: {error}")

    def _create_timed_out(self) -> PoolTimeoutError:
        timeout = self._config.create_timeout
        return PoolTimeoutError(
            f"{self._name}: no connection could be opened within {timeout:g} s",
            step="create",
        )


def _twin(error: PoolError) -> PoolError:
    """An exception of its own for each task that shares a failure."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin
