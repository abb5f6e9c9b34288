"""COPY from servers that send many rows in one message."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import psycopg
from psycopg import AsyncCopy, AsyncCursor
from psycopg.abc import Params, Query
from psycopg.copy import AsyncLibpqWriter, AsyncWriter
from psycopg.rows import Row


class BoundedCopy(AsyncCopy):
    """A COPY that ends in time when its block is left by an exception."""

    async def finish(self, exc: BaseException | None) -> None:
        """End the COPY; one that is given up ends within ``cancel_timeout``."""
        if exc is None or not isinstance(self.writer, AsyncLibpqWriter):
            await super().finish(exc)
            return
        self._finished = True
        # Hyper often has no answer to this, and hangs up after ten seconds.
        with contextlib.suppress(psycopg.Error):
            await cast("Any", self.connection).give_up_copy()


class LinewiseCopy(BoundedCopy):
    """A COPY that reads its rows one by one.

    Hyper sends many rows in one message, where psycopg expects one, reads the first
    and drops the others without a word.
    """

    _lines: deque[bytes] | None = None
    _rest = b""

    async def read_row(self) -> tuple[Any, ...] | None:
        """Read a row of a ``COPY … TO STDOUT WITH (FORMAT TEXT)``; None at the end.

        A checkpoint whenever the next rows have to come from the server.
        """
        if self._lines is None:
            self._lines = deque()
        while not self._lines:
            data = await self.read()
            if not data:
                return None
            *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
            self._lines.extend(lines)
        return self.formatter.parse_row(self._lines.popleft() + b"\n")


class TrioCursor(AsyncCursor[Row]):
    """psycopg's own, but for what it uses for a COPY."""

    copy_class: ClassVar[type[BoundedCopy]] = BoundedCopy

    @asynccontextmanager
    async def copy(
        self,
        statement: Query,
        params: Params | None = None,
        *,
        writer: AsyncWriter | None = None,
    ) -> AsyncGenerator[BoundedCopy]:
        """Start a COPY, as `psycopg.AsyncCursor.copy` does."""
        async with super().copy(statement, params, writer=writer) as copy:
            # psycopg names the class where it makes the object.
            copy.__class__ = self.copy_class
            yield cast("BoundedCopy", copy)
