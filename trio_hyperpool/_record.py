"""What a pool has done: each fact is counted, logged and told to instruments here."""

from __future__ import annotations

import itertools
import logging
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from . import _diagnosis
from ._config import PoolConfig
from ._events import (
    CancelSent,
    ConnectionDiscarded,
    ConnectionFailed,
    ConnectionOpened,
    ConnectionOpening,
    ConnectionRetired,
    Event,
    Instrument,
    LeaseEnded,
    LeaseGranted,
    LeaseRefused,
    LeaseRequested,
    LeaseRevoked,
    PoolClosing,
    PoolResized,
    PoolUnwatched,
    PoolWatched,
    Step,
    StepBegun,
    StepEnded,
    WaitTimedOut,
)
from ._policy import Reason
from ._statistics import Counters

logger = logging.getLogger("trio_hyperpool")


HOOKS: Final = (Step.AFTER_CONNECT, Step.BEFORE_ACQUIRE, Step.AFTER_RELEASE)


class RecordedLease(_diagnosis.TakenLease, Protocol):
    """What is told of a lease."""

    number: int
    """0 as long as nobody was told of it."""


class Record:
    """The facts of one pool.

    What is on the path of every lease is made into an event by the caller's asking
    for `instruments` first, so that it costs nothing when nobody listens.

    Args:
        pool: its name.
        config: for what is worth a line in the log.
    """

    def __init__(self, pool: str, config: PoolConfig) -> None:
        self._pool = pool
        self.counters: Counters = Counters()
        self.instruments: tuple[Instrument, ...] = ()
        self._numbers = itertools.count(1)
        self._log_wait_over = config.log_wait_over
        self._log_lease_over = config.log_lease_over

    # Leases

    def requested(self, lease: RecordedLease, now: float) -> None:
        """A task asks for a connection. Only if there are `instruments`."""
        lease.number = next(self._numbers)
        self._tell(
            LeaseRequested(
                self._pool, now, lease.number, lease.task.name, lease.taken_at
            )
        )

    def refused(
        self, lease: RecordedLease, asked_at: float, error: BaseException
    ) -> None:
        """It got none."""
        if self.instruments:
            now, name = trio.current_time(), type(error).__name__
            self._tell(
                LeaseRefused(self._pool, now, lease.number, now - asked_at, name)
            )

    def granted(
        self, lease: RecordedLease, connection: int, asked_at: float, now: float
    ) -> None:
        """It got one."""
        waited = now - asked_at
        self.counters.wait.add(waited)
        if waited > self._log_wait_over:
            self._log_lease(lease, waited, "a lease waited")
        if self.instruments:
            self._tell(LeaseGranted(self._pool, now, lease.number, connection, waited))

    def ended(self, lease: RecordedLease, connection: int, now: float) -> None:
        """It gave the connection back."""
        used = now - lease.granted_at
        self.counters.use.add(used)
        if used > self._log_lease_over:
            self._log_lease(lease, used, "a connection came back that was leased for")
        if self.instruments:
            self._tell(LeaseEnded(self._pool, now, lease.number, connection, used))

    def revoked(self, lease: RecordedLease, connection: int, now: float) -> None:
        """The connection was taken away from it."""
        used = now - lease.granted_at
        self.counters.revoked += 1
        self.counters.use.add(used)
        # Its borrower gets an exception.
        self._log_lease(lease, used, "a lease was revoked after", logging.INFO)
        if self.instruments:
            self._tell(LeaseRevoked(self._pool, now, lease.number, connection, used))

    def held_long(self, lease: RecordedLease, now: float) -> None:
        """It has had its connection for longer than is usual, and still has it."""
        self._log_lease(
            lease, now - lease.granted_at, "a connection has been leased for"
        )

    def wait_timed_out(self, lease: RecordedLease) -> None:
        """No place came free for it in time."""
        self.counters.wait_timeouts += 1
        if self.instruments:
            self._tell(WaitTimedOut(self._pool, trio.current_time(), lease.number))

    # Connections

    def opening(self, connection: int, lease: RecordedLease | None, now: float) -> None:
        """An attempt begins, for a lease or for nobody yet."""
        if self.instruments:
            number = lease.number if lease is not None else None
            self._tell(ConnectionOpening(self._pool, now, connection, number))

    def connected(self) -> None:
        """The server answered; ``after_connect`` is still to come."""
        self.counters.opened += 1

    def opened(self, connection: int, began_at: float) -> None:
        """The attempt succeeded."""
        now = trio.current_time()
        self.counters.create.add(now - began_at)
        if self.instruments:
            self._tell(ConnectionOpened(self._pool, now, connection, now - began_at))

    def attempt_failed(
        self, connection: int, began_at: float, error: BaseException
    ) -> None:
        """The attempt failed; another may follow."""
        if self.instruments:
            now = trio.current_time()
            self._tell(
                ConnectionFailed(
                    self._pool, now, connection, now - began_at, type(error).__name__
                )
            )

    def open_failed(self, connection: int, error: Exception, *, is_told: bool) -> None:
        """No attempt succeeded; ``is_told`` if a lease gets that as its exception."""
        self.counters.open_failures += 1
        self.log(
            logging.DEBUG if is_told else logging.WARNING,
            "a connection could not be opened: %s",
            error,
            connection=connection,
        )

    def retired(self, connection: int, reason: Reason) -> None:
        """It is being ended by policy."""
        self.counters.retired[reason.value] += 1
        self.log(
            logging.DEBUG,
            "a connection is retired: %s",
            reason.value,
            connection=connection,
            reason=reason.value,
        )
        if self.instruments:
            now = trio.current_time()
            self._tell(ConnectionRetired(self._pool, now, connection, reason.value))

    def discarded(self, connection: int, reason: Reason) -> None:
        """It was closed because of a fault."""
        self.counters.discarded[reason.value] += 1
        self.log(
            logging.INFO,
            "a connection is discarded: %s",
            reason.value,
            connection=connection,
            reason=reason.value,
        )
        if self.instruments:
            now = trio.current_time()
            self._tell(ConnectionDiscarded(self._pool, now, connection, reason.value))

    def cancel_sent(self, connection: int) -> None:
        """The server was asked to stop what it does on it."""
        if self.instruments:
            self._tell(CancelSent(self._pool, trio.current_time(), connection))

    def query_cancelled(self) -> None:
        """A connection came back to which a cancel request was sent."""
        self.counters.cancelled_queries += 1

    # Steps

    def step(self, connection: int, step: Step) -> StepRecord:
        """A step, for as long as a ``with`` block."""
        return StepRecord(self, connection, step)

    def step_begun(self, connection: int, step: Step) -> float:
        """A step begins; return the time."""
        now = trio.current_time()
        if self.instruments:
            self._tell(StepBegun(self._pool, now, connection, step))
        return now

    def step_failed(self, connection: int, step: Step, why: str) -> None:
        """It did not go well, for another reason than that it was cancelled."""
        if step is Step.HEALTH_CHECK:
            self.counters.health_check_failures += 1
        elif step in HOOKS:
            self.counters.hook_failures += 1
        self.log(
            logging.WARNING,
            "%s failed: %s",
            step.value,
            why,
            connection=connection,
            step=step.value,
        )

    def step_ended(
        self, connection: int, step: Step, began_at: float, error: str | None
    ) -> None:
        """It is over, however it went."""
        if self.instruments:
            now = trio.current_time()
            self._tell(
                StepEnded(self._pool, now, connection, step, now - began_at, error)
            )

    # The pool

    def closing(self) -> None:
        """The pool turns everybody away."""
        if self.instruments:
            self._tell(PoolClosing(self._pool, trio.current_time()))

    def resized(self, max_size: int) -> None:
        """It may have more connections, or fewer."""
        if self.instruments:
            self._tell(PoolResized(self._pool, trio.current_time(), max_size))

    def closed(self) -> None:
        """The pool is over: there is nothing more to tell."""
        for instrument in self.instruments:
            self.remove_instrument(instrument)

    # Telling

    def _tell(self, event: Event, *only: Instrument) -> None:
        for instrument in only or self.instruments:
            try:
                instrument.happened(event)
            except BaseException as error:  # noqa: BLE001, ASYNC103 - see below
                # Not even an exit: whoever leases next is not to be hurt by it.
                self._drop(instrument)
                self.log_error(error, "%r failed, and is removed", instrument)

    def add_instrument(self, instrument: Instrument, watched: PoolWatched) -> None:
        """Tell it how things are, and what happens from now on."""
        if all(each is not instrument for each in self.instruments):
            self.instruments = (*self.instruments, instrument)
            self._tell(watched, instrument)

    def remove_instrument(self, instrument: Instrument) -> None:
        """Tell it that this is all."""
        if self._drop(instrument):
            self._tell(PoolUnwatched(self._pool, trio.current_time()), instrument)

    def _drop(self, instrument: Instrument) -> bool:
        """Tell it no more; say whether it was told anything so far."""
        before = self.instruments
        self.instruments = tuple(each for each in before if each is not instrument)
        return self.instruments != before

    # Logging

    def log(self, level: int, message: str, *args: object, **fields: object) -> None:
        """Log something about this pool, with fields for machines to read."""
        logger.log(
            level,
            "%s: " + message,  # noqa: G003 - both parts are constants
            self._pool,
            *args,
            extra={"pool": self._pool, **fields},
        )

    def log_error(self, error: BaseException, message: str, *args: object) -> None:
        """Log what ought not to happen, with its traceback."""
        logger.error(
            "%s: " + message,  # noqa: G003 - both parts are constants
            self._pool,
            *args,
            exc_info=error,
            extra={"pool": self._pool},
        )

    def _log_lease(
        self,
        lease: RecordedLease,
        seconds: float,
        what: str,
        level: int = logging.WARNING,
    ) -> None:
        self.log(
            level,
            f"{what} %.3g s, by %s, taken at %s",
            seconds,
            lease.task.name,
            lease.taken_at,
            task=lease.task.name,
            seconds=seconds,
            taken_at=lease.taken_at,
        )


class StepRecord:
    """A check, a hook, cleaning or a farewell, from its beginning to its end."""

    def __init__(self, record: Record, connection: int, step: Step) -> None:
        self._record = record
        self._connection = connection
        self._step = step
        self._began_at = 0.0
        self._error: str | None = None

    def __enter__(self) -> Self:
        self._began_at = self._record.step_begun(self._connection, self._step)
        return self

    def failed(self, why: object) -> None:
        """It did not go well."""
        self._error = str(why)
        self._record.step_failed(self._connection, self._step, self._error)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        error = self._error
        if error is None and exc is not None:
            error = type(exc).__name__
        self._record.step_ended(self._connection, self._step, self._began_at, error)
