"""What can go wrong, and whose fault it was."""

from __future__ import annotations

from typing import Literal

import trio


class PoolError(Exception):
    """Something that a pool, and not the database, has to report."""


class PoolClosedError(PoolError, trio.ClosedResourceError):
    """The pool is closing or closed."""


class PoolTimeoutError(PoolError, trio.TooSlowError):
    """A deadline of the pool ran out before a connection could be leased.

    Attributes:
        step: ``"wait"`` if no place in the pool came free in time, ``"create"`` if
            a connection could not be opened in time.
    """

    def __init__(self, message: str, *, step: Literal["wait", "create"]) -> None:
        super().__init__(message)
        self.step: Literal["wait", "create"] = step


class PoolSaturatedError(PoolError):
    """As many tasks as ``max_waiting`` allows wait for a connection already."""


class PoolDeadlockError(PoolError):
    """Every lease is held by a task that itself waits for one, without an end."""


class ConnectError(PoolError):
    """The server could not be reached, or refused; ``__cause__`` is the driver's error.

    Attributes:
        unreachable: whether nobody answered, so that another attempt may succeed. A
            refusal (wrong credentials, no such database) is final.
    """

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class HookError(PoolError):
    """A hook failed; ``__cause__`` is what it raised.

    The cause is a `trio.TooSlowError` if the hook did not end within
    ``hook_timeout``.

    Attributes:
        hook: the name of the hook, as in `PoolConfig`.
    """

    def __init__(self, message: str, *, hook: str) -> None:
        super().__init__(message)
        self.hook = hook


class LeaseError(PoolError, trio.ClosedResourceError):
    """The connection is not this borrower's any more."""


class LeaseEndedError(LeaseError):
    """A connection was used after the block that it was leased for."""

    def __init__(
        self,
        message: str = "the lease of this connection has ended: it was good "
        "for the block of its 'async with' only",
    ) -> None:
        super().__init__(message)


class LeaseRevokedError(LeaseError):
    """The pool took the connection back: it closed, or ``max_lease`` was over."""

    def __init__(
        self,
        message: str = "the pool took this connection back: the pool closed, "
        "or the lease lasted longer than max_lease",
    ) -> None:
        super().__init__(message)


class HyperdError(Exception):
    """A private ``hyperd`` did not start, or ended before its block did."""
