"""Connections without a server, whose every step is a gate in a test's hand.

They take the place of Hyper where a test needs a clock, a race or a fault to come
exactly when it says so, `trio.testing.MockClock` included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import trio

from ._config import HealthCheck
from ._errors import LeaseError
from ._policy import Condition


class Gate:
    """One step that a test has in hand: it works, fails, is slow, or never ends.

    A gate is an async callable that takes whatever it is given, so that it can be a
    hook or a health check, too.

    Args:
        delay: seconds until it opens; `math.inf` if it never does.
        error: what it raises then, if anything.
        only_on: the number of the one call, counted from 1, that is delayed or
            fails; None for every call.
    """

    def __init__(
        self,
        delay: float = 0.0,
        error: Exception | None = None,
        *,
        only_on: int | None = None,
    ) -> None:
        self.delay = delay
        self.error = error
        self.only_on = only_on
        self.calls: int = 0
        """How often it was called."""
        self.passed: int = 0
        """How many of the calls came through."""

    @classmethod
    def works(cls) -> Gate:
        """A step that ends at its first checkpoint."""
        return cls()

    @classmethod
    def fails(cls, error: Exception | None = None, *, on: int | None = None) -> Gate:
        """A step that raises; with ``on``, at its n-th call only."""
        return cls(error=error or OSError("a gate of the test failed"), only_on=on)

    @classmethod
    def slow(cls, seconds: float) -> Gate:
        """A step that takes its time."""
        return cls(seconds)

    @classmethod
    def never(cls, *, on: int | None = None) -> Gate:
        """A step that does not end unless it is cancelled."""
        return cls(math.inf, only_on=on)

    async def __call__(self, *_args: object) -> None:
        """Take the step. A checkpoint; cancelled, it has not passed."""
        self.calls += 1
        # Others may call it before this call goes on.
        is_on = self.only_on is None or self.only_on == self.calls
        await trio.lowlevel.checkpoint()
        if is_on:
            if self.delay:
                await trio.sleep(self.delay)
            if self.error is not None:
                raise self.error
        self.passed += 1


@dataclasses.dataclass(eq=False)
class FakeSession:
    """What a connection and its views have in common."""

    number: int
    """Counted from 1, in the order of opening."""
    is_open: bool = True
    in_transaction: bool = False
    """It has to be cleaned before it is leased again."""
    was_cancelled: bool = False
    """It must not be leased again."""
    on_cancel: Callable[[], None] | None = None
    """Told when a statement is cancelled."""


class FakeConnection:
    """A connection to nothing, or a view of one.

    Attributes:
        session: what it shares with its views.
        row_factory: anything; what ``after_connect`` sets holds for all leases.
        ended: what its use raises, once its block is over.
    """

    def __init__(self, session: FakeSession, row_factory: object = None) -> None:
        self.session = session
        self.row_factory = row_factory
        self.ended: type[LeaseError] | None = None

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}>"

    @property
    def number(self) -> int:
        """Of its session."""
        return self.session.number

    @property
    def is_open(self) -> bool:
        """Whether its session is open."""
        return self.session.is_open

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self.session.in_transaction

    @property
    def was_cancelled(self) -> bool:
        """Whether a query on it was cancelled."""
        return self.session.was_cancelled

    async def execute(self, seconds: float = 0.0) -> int:
        """Be busy for a while, and return the session's number.

        A checkpoint; cancelled while it takes time, it counts as a cancelled query.

        Raises:
            LeaseEndedError: the block it was leased for is over.
            LeaseRevokedError: the pool took it back.
            OSError: it is closed.
        """
        self.check()
        await trio.lowlevel.checkpoint()
        if seconds:
            try:
                await trio.sleep(seconds)
            except trio.Cancelled:
                self.session.was_cancelled = True
                if self.ended is None and self.session.on_cancel is not None:
                    self.session.on_cancel()
                raise
        self.check()
        return self.number

    def begin(self) -> None:
        """Leave a transaction open."""
        self.check()
        self.session.in_transaction = True

    def close(self) -> None:
        """Close the session behind the pool's back."""
        self.check()
        self.session.is_open = False

    def check(self) -> None:
        """Raise what any use of it would raise now."""
        if self.ended is not None:
            raise self.ended
        if not self.is_open:
            raise OSError(f"{self!r} is closed")


class FakeConnector:
    """A `~trio_hyperpool.Connector` without a server, each step of which is a `Gate`.

    Args:
        prepare: what comes before the first connection.
        connect: opening one.
        probe: the built-in health checks.
        clean: putting one right that came back in a transaction.
        close: the polite end.
        settle: making good what ended without one.

    Attributes:
        opened: all connections ever opened.
        most_open: how many were open at once, at most.
    """

    def __init__(
        self,
        *,
        prepare: Gate | None = None,
        connect: Gate | None = None,
        probe: Gate | None = None,
        clean: Gate | None = None,
        close: Gate | None = None,
        settle: Gate | None = None,
    ) -> None:
        self.prepare_gate: Gate = prepare or Gate.works()
        self.connect_gate: Gate = connect or Gate.works()
        self.probe_gate: Gate = probe or Gate.works()
        self.clean_gate: Gate = clean or Gate.works()
        self.close_gate: Gate = close or Gate.works()
        self.settle_gate: Gate = settle or Gate.works()
        self.opened: list[FakeConnection] = []
        self.most_open: int = 0
        self._connecting = 0

    @property
    def name(self) -> str:
        """``fake``."""
        return "fake"

    @property
    def system(self) -> str:
        """``other_sql``."""
        return "other_sql"

    @property
    def open_connections(self) -> list[FakeConnection]:
        """Those that nobody has closed."""
        return [connection for connection in self.opened if connection.is_open]

    def break_all(self) -> None:
        """Close every connection as a server does that dies."""
        for connection in self.opened:
            connection.session.is_open = False

    def assert_no_leak(self) -> None:
        """Raise `AssertionError` if a connection is still open, or being opened."""
        if self.open_connections or self._connecting:
            raise AssertionError(
                f"left open: {self.open_connections}, {self._connecting} half open"
            )

    async def prepare(self) -> None:
        """Pass the gate ``prepare``."""
        await self.prepare_gate()

    async def connect(self) -> FakeConnection:
        """Pass the gate ``connect``, and open a connection."""
        self._connecting += 1
        self._count()
        try:
            await self.connect_gate()
        finally:
            self._connecting -= 1
        connection = FakeConnection(FakeSession(len(self.opened) + 1))
        self.opened.append(connection)
        return connection

    def watch(
        self, connection: FakeConnection, cancel_sent: Callable[[], None], /
    ) -> None:
        """Call ``cancel_sent`` when a statement of it is cancelled."""
        connection.session.on_cancel = cancel_sent

    def is_alive(self, connection: FakeConnection, /) -> bool:
        """Whether it is open."""
        return connection.is_open

    async def probe(self, connection: FakeConnection, _check: HealthCheck, /) -> None:
        """Pass the gate ``probe`` on an open connection."""
        await self.probe_gate()
        connection.check()

    def lend(self, connection: FakeConnection, /) -> FakeConnection:
        """Make a view."""
        return FakeConnection(connection.session, connection.row_factory)

    def adopt(self, connection: FakeConnection, view: FakeConnection, /) -> None:
        """Keep the row factory."""
        connection.row_factory = view.row_factory

    def reclaim(
        self,
        connection: FakeConnection,
        view: FakeConnection,
        error: type[LeaseError],
        /,
    ) -> Condition:
        """End a view."""
        view.ended = error
        if not connection.is_open:
            return Condition.BROKEN
        if connection.was_cancelled:
            return Condition.CANCELLED
        if connection.in_transaction:
            return Condition.DIRTY
        return Condition.CLEAN

    async def clean(self, connection: FakeConnection, /) -> None:
        """Pass the gate ``clean``, and end the transaction."""
        await self.clean_gate()
        connection.check()
        connection.session.in_transaction = False

    async def close(self, connection: FakeConnection, /) -> None:
        """Pass the gate ``close``; the connection is closed in any case."""
        try:
            await self.close_gate()
        finally:
            connection.session.is_open = False

    async def settle(self) -> None:
        """Pass the gate ``settle``."""
        await self.settle_gate()

    def discard(self, connection: FakeConnection, /) -> None:
        """Close it at once."""
        connection.session.is_open = False

    def _count(self) -> None:
        now = self._connecting + len(self.open_connections)
        self.most_open = max(self.most_open, now)
