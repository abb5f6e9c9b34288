"""A connection to PostgreSQL, and whether its statements changed the session."""

from __future__ import annotations

from typing import Any, Final, Self, cast

from psycopg import AsyncCursor, AsyncServerCursor, pq
from psycopg.abc import AdaptContext, ConnParam
from psycopg.rows import AsyncRowFactory, Row, tuple_row

from ._driver import TrioConnection, WatchedCursor, WatchedNamedCursor
from ._postgres_words import changes_session

PREPARE_THRESHOLD: Final = 5
"""Psycopg's own: how often a query is executed before it is prepared."""


class SessionMarks:
    """Whether a session is still as a new one would be; for all views of it."""

    __slots__ = ("is_changed", "is_stained", "is_tailored", "reported")

    def __init__(self) -> None:
        self.is_changed: bool = False
        """By the present view."""
        self.is_stained: bool = False
        """By a view that has ended: to be undone before anybody else has it."""
        self.is_tailored: bool = False
        """By ``after_connect``, to which there is no way back from a reset."""
        self.reported: tuple[bytes | None, ...] = ()
        """The settings that the server reports by itself, when the view began."""


class PostgresCursor(WatchedCursor[Row]):
    """A cursor that notes which statements change the session."""

    def note(self, text: bytes) -> None:
        """Take note of a statement that is about to be sent."""
        if changes_session(text) and (
            marks := getattr(self.connection, "session_marks", None)
        ):
            marks.is_changed = True


class PostgresNamedCursor(PostgresCursor[Row], WatchedNamedCursor[Row]):
    """A named cursor of that kind."""


class PostgresConnection(TrioConnection[Row]):
    """A connection to PostgreSQL: a `psycopg.AsyncConnection` that works in trio tasks.

    It is psycopg's own but for this:

    * Autocommit is on unless asked otherwise.
    * A statement that changes the session is noted, so that the next borrower finds a
      session as new. One that goes by a cursor of another class, which
      ``cursor_factory`` made, counts as one that does.
    """

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        row_factory: AsyncRowFactory[Any] = tuple_row,
    ) -> None:
        super().__init__(pgconn, row_factory)
        self.cursor_factory: type[AsyncCursor[Row]] = cast(
            "type[AsyncCursor[Row]]", PostgresCursor
        )
        self.server_cursor_factory: type[AsyncServerCursor[Row]] = cast(
            "type[AsyncServerCursor[Row]]", PostgresNamedCursor
        )
        # One object for the connection and all its views.
        self.session_marks: SessionMarks = SessionMarks()

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = True,
        prepare_threshold: int | None = PREPARE_THRESHOLD,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect to a server, as `psycopg.AsyncConnection.connect` does.

        A checkpoint. Either returns a connection, or raises, `trio.Cancelled` too,
        and leaves nothing open.

        Raises:
            psycopg.OperationalError: if no server could be reached, or all refused.
        """
        return await super().connect(
            conninfo,
            autocommit=autocommit,
            prepare_threshold=prepare_threshold,
            context=context,
            row_factory=row_factory,
            cursor_factory=cursor_factory,
            **kwargs,
        )

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Make a cursor, as `psycopg.AsyncConnection.cursor` does."""
        cursor = super().cursor(*args, **kwargs)
        if not isinstance(cursor, WatchedCursor):
            self.session_marks.is_changed = True
        return cursor
