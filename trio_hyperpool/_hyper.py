"""What a Hyper session is: how it is opened, judged, put right and ended.

A Hyper session differs from a PostgreSQL one in ways that cost data if forgotten:

* What was committed is on disk when the last session detached the database, and not
  before: a session detaches before it ends.
* DDL is not undone by a rollback; there are no savepoints.
* The server takes two spellings of one path for two files.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import random
from typing import Any, Final

import psycopg
import trio
from psycopg import OperationalError, errors, sql

from ._config import CreateMode, PoolConfig
from ._driver import IN_TRANSACTION
from ._endpoint import parse_endpoint
from ._errors import ConnectError, LeaseError
from ._hyper_connection import HyperConnection
from ._policy import Condition
from ._sessions import Sessions

__all__ = ["DEFAULT_USER", "HyperConnection", "HyperConnector"]

DEFAULT_USER: Final = "tableau_internal_user"

PATIENCE: Final = 2.0
"""Seconds for which a database that is in use may come free."""

SHORTEST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.2

_ADVICE: Final = {
    "58S01": " (create_mode=CreateMode.CREATE_IF_NOT_EXISTS creates a missing file)",
    "42P04": " (CreateMode.CREATE_IF_NOT_EXISTS and CREATE_AND_REPLACE take that)",
    "55006": f" (after {PATIENCE} seconds; by another process, or another spelling)",
}

_SESSIONS: Final = (
    "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name = %s"
)


class HyperConnector(Sessions[HyperConnection[Any]]):
    """Opens, judges and ends sessions of one database on one server.

    Args:
        config: whose ``endpoint`` says where a server listens.

    Raises:
        ValueError: if there is no endpoint.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.endpoint is None:
            raise ValueError("endpoint: a HyperConnector needs one, not None")
        super().__init__(config)
        self._endpoint = parse_endpoint(config.endpoint)
        path = os.fspath(config.database)
        # To the server each spelling of a path is a file of its own, which it
        # then finds locked by itself.
        self._path = os.path.realpath(path) if self._endpoint.is_local else path
        self._tag = f"trio_hyperpool {secrets.token_hex(4)}"
        """By which the server's list of sessions tells ours from others'."""
        self._prepared = False
        self._create_sent = False

    @property
    def name(self) -> str:
        """Database and endpoint."""
        return f"{self._path} at {self._endpoint}"

    @property
    def system(self) -> str:
        """``tableau.hyper``: there is no well-known name for it."""
        return "tableau.hyper"

    @property
    def path(self) -> str:
        """The path of the database, as the server gets it."""
        return self._path

    async def prepare(self) -> None:
        """Carry out the create mode, once.

        A checkpoint. Either the mode has been carried out and further calls do
        nothing, or an exception says why not, `trio.Cancelled` too, and another call
        starts again; a CREATE that the server confirmed is never sent again. While
        the server creates or drops the file, cancellation waits for its answer, for
        ``cancel_timeout`` seconds at most.

        Raises:
            ConnectError: if the server cannot be reached, refuses, or says for more
                than two seconds that the database is in use.
        """
        await trio.lowlevel.checkpoint()
        mode = self._config.create_mode
        if self._prepared or mode is CreateMode.DO_NOT_CREATE:
            return
        connection = await self._open("", await self.password())
        try:
            async with _ddl_lock(str(self._endpoint)):
                # Another may create it between our DROP and our CREATE.
                busy = (errors.ObjectInUse, errors.DuplicateDatabase)
                replace = mode is CreateMode.CREATE_AND_REPLACE
                await self._patiently(
                    self._create, connection, busy if replace else busy[:1]
                )
        except psycopg.Error as error:
            raise self._explained(error) from error
        finally:
            # Nothing is attached here that would want to be detached.
            connection.abort()

    async def connect(self) -> HyperConnection[Any]:
        """Open a connection that has the database attached.

        A checkpoint. Either returns a connection, or raises, `trio.Cancelled` too,
        and leaves nothing open.

        Raises:
            ConnectError: if nobody answers (``unreachable``), or the server refuses
                the user or the database; the cause is psycopg's error, where the
                database is refused with its SQLSTATE.
        """
        password = await self.password()
        try:
            return await self._open(self._path, password)
        except ConnectError as error:
            if error.unreachable:
                raise
        # A refusal at the start of a session has no SQLSTATE, and may be about the
        # user as well as about the database: attach in a second step to know.
        connection = await self._open("", password)
        try:
            await self._patiently(self._attach, connection, (errors.ObjectInUse,))
        except psycopg.Error as error:
            connection.abort()
            raise self._explained(error) from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def reclaim(
        self,
        connection: HyperConnection[Any],
        view: HyperConnection[Any],
        error: type[LeaseError],
        /,
    ) -> Condition:
        """End a view: from now on using it raises ``error``. Say what it left.

        A changed session is told by the statements of the view, not by asking the
        server: see `SessionTraces`.
        """
        condition = self.end_view(connection, view, error)
        traces = connection.session_traces
        changed, traces.changed = traces.changed, False
        if changed and condition in (Condition.CLEAN, Condition.DIRTY):
            return Condition.CHANGED
        return condition

    async def close(self, connection: HyperConnection[Any], /) -> None:
        """Detach every database and end the session.

        The last session to detach makes the server write what was committed: only
        then is it on disk. A checkpoint. Cancelled or failing, it closes the connection
        all the same.

        Raises:
            psycopg.Error: if the server did not take the farewell.
        """
        try:
            if connection.is_busy:
                # Hyper may keep a session for ever whose client went away while it
                # was being sent rows.
                await connection.stop()
            if connection.pgconn.transaction_status in IN_TRANSACTION:
                await connection.rollback()
            for alias in (_quoted(self._path), *connection.session_traces.aliases):
                await self._detach(connection, alias)
        finally:
            connection.abort()

    async def settle(self) -> None:
        """Have the server write what was committed by sessions that did not detach.

        It does so when the last session detaches: one more does that, as soon as the
        server has noticed that the others are gone. A checkpoint. Cancelled, or with
        an exception, it leaves nothing open, and it is not certain what is on disk.

        Raises:
            ConnectError: if the server cannot be reached.
            psycopg.Error: if it did not take the farewell.
        """
        connection = await self.connect()
        try:
            # The server tells nobody when it notices.
            while (  # noqa: ASYNC110
                await connection.fetch_value(_SESSIONS, (self._tag,)) > 1
            ):
                await trio.sleep(SHORTEST_PAUSE)
        except BaseException:
            connection.abort()
            raise
        await self.close(connection)

    async def _open(self, dbname: str, password: str | None) -> HyperConnection[Any]:
        # User and database are settled here, so that no variable of the environment
        # settles them.
        parameters: dict[str, Any] = {
            **self._endpoint.conninfo(load_balance=self._config.load_balance),
            "user": self._config.user or DEFAULT_USER,
            "dbname": dbname,
            "gssencmode": "disable",
            "application_name": self._tag,
        }
        if password is not None:
            parameters["password"] = password
        try:
            connection = await HyperConnection.connect(**parameters)
        except OperationalError as error:
            text = str(error)
            # libpq does not tell the SQLSTATE of a refusal, only its severity.
            answered = "ERROR:" in text or "FATAL:" in text
            raise ConnectError(
                f"cannot connect to {self._endpoint}: {text}", unreachable=not answered
            ) from error
        connection.cancel_timeout = self._config.cancel_timeout
        return connection

    async def _create(self, connection: HyperConnection[Any]) -> None:
        mode, path = self._config.create_mode, sql.Identifier(self._path)
        if mode is CreateMode.CREATE_AND_REPLACE:
            await self._shielded(
                connection, sql.SQL("DROP DATABASE IF EXISTS {}").format(path)
            )
        unless_exists = (
            "IF NOT EXISTS " if mode is CreateMode.CREATE_IF_NOT_EXISTS else ""
        )
        statement = sql.SQL("CREATE DATABASE " + unless_exists + "{}").format(path)
        sent_before, self._create_sent = self._create_sent, True
        try:
            await self._shielded(connection, statement)
        except psycopg.Error as error:
            if error.sqlstate is not None:
                self._create_sent = sent_before
            # That it exists is no error if an earlier CREATE never had its answer:
            # then it is our own.
            ours = sent_before and mode is CreateMode.CREATE
            if not (ours and isinstance(error, errors.DuplicateDatabase)):
                raise
        self._prepared = True

    async def _shielded(
        self, connection: HyperConnection[Any], statement: sql.Composed
    ) -> None:
        # DDL cannot be undone, and takes milliseconds: its answer is worth waiting for.
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self._config.cancel_timeout
        ) as scope:
            await connection.execute(statement)
        if scope.cancelled_caught:
            raise OperationalError(
                f"no answer for {self._config.cancel_timeout} seconds"
            )

    async def _attach(self, connection: HyperConnection[Any]) -> None:
        # Under the alias that the server gives a database named at the start.
        path = sql.Identifier(self._path)
        await connection.execute(sql.SQL("ATTACH DATABASE {} AS {}").format(path, path))
        connection.session_traces.forget()

    async def _detach(self, connection: HyperConnection[Any], alias: str) -> None:
        with suppress(errors.InvalidCatalogName):  # the user has done it
            await connection.execute(b"DETACH DATABASE " + alias.encode())

    async def _patiently(
        self,
        step: Callable[[HyperConnection[Any]], Awaitable[None]],
        connection: HyperConnection[Any],
        busy: tuple[type[psycopg.Error], ...],
    ) -> None:
        """Repeat a step while the server says that the database is in use.

        It says so for some milliseconds when a session ends or others create the
        database at the same time. Pauses under 20 ms can crash it.
        """
        enough = trio.current_time() + PATIENCE
        pause = SHORTEST_PAUSE
        while True:
            try:
                return await step(connection)
            except busy:
                if trio.current_time() > enough:
                    raise
            await trio.sleep(pause * (1 + random()))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _explained(self, error: psycopg.Error) -> ConnectError:
        if error.sqlstate is None:
            return ConnectError(
                f"the connection to {self._endpoint} was lost: {error}",
                unreachable=True,
            )
        told = error.diag.message_primary or str(error)
        advice = _ADVICE.get(error.sqlstate, "")
        return ConnectError(f"database {self._path!r}: {told}{advice}")


# Dropping a database just when another session leaves it can crash the server, so
# the connectors of one trio run take turns.
_ddl_locks: Final[trio.lowlevel.RunVar[dict[str, trio.Lock]]] = trio.lowlevel.RunVar(
    "trio_hyperpool_ddl_locks"
)


def _ddl_lock(server: str) -> trio.Lock:
    try:
        locks = _ddl_locks.get()
    except LookupError:
        locks = dict[str, trio.Lock]()
        _ddl_locks.set(locks)
    return locks.setdefault(server, trio.Lock())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
