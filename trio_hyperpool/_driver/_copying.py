"""COPY from servers that send many rows in one message."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, cast

import psycopg
from psycopg import AsyncCopy
from psycopg.copy import AsyncLibpqWriter


class LinewiseCopy(AsyncCopy):
    """A COPY that reads its rows one by one.

    Hyper sends many rows in one message, where psycopg expects one, reads the first
    and drops the others without a word.
    """

    _lines: deque[bytes] | None = None
    _rest = b""

    async def finish(self, exc: BaseException | None) -> None:
        """End the COPY; one that is given up ends within ``cancel_timeout``."""
        if exc is None or not isinstance(self.writer, AsyncLibpqWriter):
            await super().finish(exc)
            return
        self._finished = True
        # Hyper often has no answer to this, and hangs up after ten seconds.
        with contextlib.suppress(psycopg.Error):
            await cast("Any", self.connection).give_up_copy()

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
