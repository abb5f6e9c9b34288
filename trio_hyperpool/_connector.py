"""What a pool needs of a kind of connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from ._config import HealthCheck
from ._errors import LeaseError
from ._policy import Condition

ConnectionT = TypeVar("ConnectionT")


class Connector(Protocol[ConnectionT]):
    """What a pool needs of a kind of connection.

    The pool sets every deadline: a method that waits may wait for ever, and must
    only pass `trio.Cancelled` on. Methods that are not async must not block. What a
    connector needs around all of that, such as tasks of its own, it gets by being an
    async context manager, too: the pool's block is then inside of its own.

    Two kinds of object share the type ``ConnectionT``: the pooled connection, which
    only the pool sees, and views of it, each good for one block of a borrower or a
    hook (`lend`, `reclaim`).
    """

    @property
    def name(self) -> str:
        """What the pool is called in statistics and logs if nobody says otherwise."""
        ...

    @property
    def system(self) -> str:
        """The kind of server, as OpenTelemetry has it in ``db.system.name``."""
        ...

    async def prepare(self) -> None:
        """Do what comes before the first connection, such as creating a database.

        Awaited by one task at a time, until it has returned once. Cancelled or
        failing, it may be tried again, and must then not stumble over its own first
        half.
        """
        ...

    async def connect(self) -> ConnectionT:
        """Open a connection. Cancelled, it leaves nothing open.

        Raises:
            ConnectError: with ``unreachable`` set if nobody answered, so that
                another attempt makes sense. Any other exception is final, and
                reaches the borrower as the cause of a `ConnectError`.
        """
        ...

    def watch(
        self, connection: ConnectionT, cancel_sent: Callable[[], None], /
    ) -> None:
        """Call ``cancel_sent`` whenever the server is asked to stop a query of it.

        For those who watch the pool; a kind of connection that can't tell does nothing.
        """
        ...

    def is_alive(self, connection: ConnectionT, /) -> bool:
        """Whether an idle connection looks usable, as far as a look at it tells."""
        ...

    async def probe(self, connection: ConnectionT, check: HealthCheck, /) -> None:
        """Ask the server for a sign of life, and raise if there is none.

        Given a view. Cancelled, it may leave its question half answered: the connection
        is put right, or ended, before anybody has it.
        """
        ...

    def lend(self, connection: ConnectionT, /) -> ConnectionT:
        """Make a view of the connection for one block."""
        ...

    def adopt(self, connection: ConnectionT, view: ConnectionT, /) -> None:
        """Make what ``after_connect`` set on its view hold for every later view.

        That is what lives in the object and not on the server, such as a row factory.
        """
        ...

    def reclaim(
        self, connection: ConnectionT, view: ConnectionT, error: type[LeaseError], /
    ) -> Condition:
        """End a view: from now on using it raises ``error``. Say what it left."""
        ...

    async def clean(self, connection: ConnectionT, /) -> None:
        """Put a connection right that is not clean, but `Condition.is_curable`.

        It raises if that fails. Cancelled or failing, the connection is discarded.
        """
        ...

    async def close(self, connection: ConnectionT, /) -> None:
        """End the connection politely, in whatever condition it is.

        Cancelled or failing, it is closed all the same.
        """
        ...

    async def settle(self) -> None:
        """Make good what connections left undone that ended without a farewell.

        Awaited at the end of the pool, and in `Pool.quiesce`, if there are any such,
        when no connection is left: where a farewell does more than to end a
        connection, this is the place to do the same. Cancelled or failing, it leaves
        nothing open.
        """
        ...

    def discard(self, connection: ConnectionT, /) -> None:
        """Close the socket at once; who waits on it in another task wakes up."""
        ...
