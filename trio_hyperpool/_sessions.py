"""What sessions of every server have in common that the driver talks to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from psycopg import OperationalError, pq

from ._config import HealthCheck, PoolConfig
from ._driver import IN_TRANSACTION, TrioConnection
from ._errors import LeaseError
from ._policy import CLEAN, Condition

SessionT = TypeVar("SessionT", bound=TrioConnection[Any])

_IDLE: Final = pq.TransactionStatus.IDLE


class Sessions(Generic[SessionT]):
    """The part of a `Connector` that needs to know the driver, but not the server."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config

    def watch(self, connection: SessionT, cancel_sent: Callable[[], None], /) -> None:
        """Call ``cancel_sent`` whenever a cancel request is sent for it."""
        connection.watch(cancel_sent)

    def is_alive(self, connection: SessionT, /) -> bool:
        """Whether the socket looks as that of an idle connection does."""
        return connection.looks_alive()

    async def probe(self, connection: SessionT, check: HealthCheck, /) -> None:
        """Ask the server for a sign of life.

        A checkpoint unless the check is passive. Cancelled, the connection is to be
        cleaned.

        Raises:
            psycopg.OperationalError: if there is none.
        """
        if check is HealthCheck.PING:
            await connection.ping()
        elif check is HealthCheck.SELECT_ONE:
            await connection.execute("SELECT 1")
        elif not connection.looks_alive():
            raise OperationalError("the connection is closed, or has unread data")

    def lend(self, connection: SessionT, /) -> SessionT:
        """Make a view of the connection for one block."""
        return connection.lend()

    def adopt(self, connection: SessionT, view: SessionT, /) -> None:
        """Make what ``after_connect`` set on its view hold for every later view."""
        connection.adopt(view)

    def end_view(
        self, connection: SessionT, view: SessionT, error: type[LeaseError]
    ) -> Condition:
        """End a view, and say what that left, as far as libpq can tell."""
        is_free = view.end(error)
        pgconn = connection.pgconn
        status = pgconn.transaction_status
        is_idle = status == _IDLE
        if not is_idle and connection.is_busy:
            connection.wake()
            return Condition.BUSY
        if not is_free or not (is_idle or status in IN_TRANSACTION):
            return Condition.BROKEN
        if connection.cancel_sent:
            return Condition.CANCELLED
        if not is_idle or pgconn.pipeline_status:
            return Condition.DIRTY
        return CLEAN

    async def clean(self, connection: SessionT, /) -> None:
        """Roll back what is open.

        A checkpoint. Cancelled, the connection is to be discarded.

        Raises:
            psycopg.OperationalError: if the connection is not idle afterwards.
        """
        await connection.rollback()
        pgconn = connection.pgconn
        if pgconn.transaction_status != _IDLE or pgconn.pipeline_status:
            raise OperationalError("the connection is not idle after a rollback")

    def discard(self, connection: SessionT, /) -> None:
        """Close the socket at once; who waits on it in another task wakes up."""
        connection.abort()

    async def password(self) -> str | None:
        """Get the password, if there is one; a checkpoint if it is asked for."""
        password = self._config.password
        return password if isinstance(password, str | None) else await password()
