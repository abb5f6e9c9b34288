"""What a PostgreSQL session is: how it is opened, judged, put right and ended."""

from __future__ import annotations

from typing import Any, Final

import psycopg
import trio
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict

from ._config import PoolConfig
from ._endpoint import hide_passwords, is_postgres
from ._errors import ConnectError, LeaseError
from ._policy import Condition
from ._postgres_connection import PostgresConnection
from ._sessions import Sessions

__all__ = ["PostgresConnection", "PostgresConnector"]

# What the server, or a pgbouncer before it, says of itself and not of the user:
# another attempt may succeed. libpq does not tell the SQLSTATE of a refusal.
_PASSING: Final = (
    "starting up",
    "shutting down",
    "not accepting connections",
    "not yet accepting connections",
    "in recovery mode",
    "too many clients",
    "connection slots are reserved",
    "server_login_retry",
    "server login has been failing",
)

# Every one is reported by the server whenever it changes, by a function, too. Not
# in_hot_standby, which changes without anybody's doing.
_REPORTED: Final = (
    b"TimeZone",
    b"DateStyle",
    b"IntervalStyle",
    b"client_encoding",
    b"search_path",
    b"session_authorization",
    b"standard_conforming_strings",
    b"default_transaction_read_only",
    b"application_name",
)


class PostgresConnector(Sessions[PostgresConnection[Any]]):
    """Opens, judges and ends sessions of PostgreSQL, and of what speaks its protocol.

    Args:
        config: whose ``endpoint`` is a libpq connection string: a URI or keywords
            and values. ``database``, ``user`` and ``password`` go before what it
            says. What neither says, libpq looks for where it always does: service
            files, ``PG*`` variables, the password file.

    Raises:
        ValueError: if the endpoint is no connection string.
    """

    def __init__(self, config: PoolConfig) -> None:
        super().__init__(config)
        endpoint = config.endpoint
        if endpoint is None or not is_postgres(endpoint):
            raise ValueError(
                "endpoint: a PostgresConnector needs a connection string, as in "
                f"'postgresql://user@host/db', not {endpoint!r}"
            )
        try:
            self._parameters = conninfo_to_dict(endpoint)
        except psycopg.ProgrammingError as error:
            told = hide_passwords(str(error).strip())
            raise ValueError(f"endpoint: no connection string: {told}") from None
        if config.database:
            self._parameters["dbname"] = str(config.database)
        if config.user is not None:
            self._parameters["user"] = config.user
        if config.load_balance:
            self._parameters["load_balance_hosts"] = "random"
        self._parameters.setdefault("application_name", "trio_hyperpool")
        given = self._parameters
        where = ",".join(
            str(given[key]) for key in ("service", "host", "hostaddr") if key in given
        )
        self._name = f"{given.get('dbname', 'PostgreSQL')} at {where or 'localhost'}"

    @property
    def system(self) -> str:
        """``postgresql``."""
        return "postgresql"

    @property
    def name(self) -> str:
        """Database and host."""
        return self._name

    async def prepare(self) -> None:
        """Do nothing, but for a checkpoint: there is nothing to create."""
        await trio.lowlevel.checkpoint()

    async def connect(self) -> PostgresConnection[Any]:
        """Open a connection, to the first host that fits ``target_session_attrs``.

        A checkpoint. Either returns a connection, or raises, `trio.Cancelled` too,
        and leaves nothing open.

        Raises:
            ConnectError: if nobody answers (``unreachable``), or the server refuses
                the user or the database; the cause is psycopg's error.
        """
        parameters: dict[str, Any] = {**self._parameters}
        if (password := await self.password()) is not None:
            parameters["password"] = password
        try:
            connection = await PostgresConnection.connect(**parameters)
        except OperationalError as error:
            text = str(error)
            refused = "FATAL:" in text and not any(said in text for said in _PASSING)
            raise ConnectError(
                f"cannot connect to {self._name}: {text.partition(chr(10))[0]}",
                unreachable=not refused,
            ) from error
        connection.cancel_timeout = self._config.cancel_timeout
        connection.session_marks.reported = _reported(connection)
        return connection

    def adopt(
        self, connection: PostgresConnection[Any], view: PostgresConnection[Any], /
    ) -> None:
        """Make what ``after_connect`` set on its view hold for every later view."""
        super().adopt(connection, view)
        marks = connection.session_marks
        marks.is_tailored = marks.is_changed or marks.reported != _reported(connection)

    def reclaim(
        self,
        connection: PostgresConnection[Any],
        view: PostgresConnection[Any],
        error: type[LeaseError],
        /,
    ) -> Condition:
        """End a view: from now on using it raises ``error``. Say what it left.

        A changed session is told by the words of its statements, and by the settings
        that the server reports when they change. It is reset by `clean`, or replaced
        if ``after_connect`` had made changes, too, which a reset would undo.
        """
        condition = self.end_view(connection, view, error)
        marks = connection.session_marks
        if condition is not Condition.CLEAN and condition is not Condition.DIRTY:
            return condition
        now = _reported(connection)
        marks.is_stained = marks.is_changed or marks.reported != now
        marks.is_changed, marks.reported = False, now
        if not marks.is_stained:
            return condition
        if marks.is_tailored:
            return Condition.CHANGED
        return Condition.ALTERED if condition is Condition.CLEAN else condition

    async def clean(self, connection: PostgresConnection[Any], /) -> None:
        """Roll back what is open, and reset the session if it was changed.

        A checkpoint. Cancelled, the connection is to be discarded.

        Raises:
            psycopg.Error: if that fails, or the connection is not idle afterwards.
        """
        await super().clean(connection)
        marks = connection.session_marks
        if marks.is_stained:
            # Not allowed in a transaction, which without autocommit would begin here.
            autocommit = connection.autocommit
            await connection.set_autocommit(True)
            await connection.execute("DISCARD ALL", prepare=False)
            await connection.set_autocommit(autocommit)
            connection.forget_prepared()
            marks.is_stained = marks.is_changed = False
        marks.reported = _reported(connection)

    async def close(self, connection: PostgresConnection[Any], /) -> None:
        """End the session, and what it is busy with.

        A checkpoint. Cancelled or failing, it closes the connection all the same.

        Raises:
            psycopg.Error: if a query in progress could not be stopped.
        """
        try:
            await trio.lowlevel.checkpoint()
            if connection.is_busy:
                # The server would go on until it has something to send.
                await connection.stop()
        finally:
            connection.abort()

    async def settle(self) -> None:
        """Do nothing, but for a checkpoint: what was committed is on disk."""
        await trio.lowlevel.checkpoint()


def _reported(connection: PostgresConnection[Any]) -> tuple[bytes | None, ...]:
    # libpq's own words: psycopg's `info` decodes each of them, at the end of each lease.
    return tuple(map(connection.pgconn.parameter_status, _REPORTED))
