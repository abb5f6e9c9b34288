"""What the command ``load`` does: a file into a table, all of it or nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import trio
from psycopg import sql

from ._catalogue import TableName
from ._hyper_connection import HyperConnection
from ._progress import Tell, progress

_AT_ONCE: Final = 1 << 18
"""Bytes of a CSV that are read and sent at once."""

_BOM: Final = b"\xef\xbb\xbf"
_COPY: Final = sql.SQL(
    "COPY {} ({}) FROM STDIN WITH (FORMAT csv, HEADER true, DELIMITER {})"
)
_ARROW: Final = (".parquet", ".arrow", ".feather")


class LoadError(Exception):
    """The file is not what it should be, or what reads it is not installed."""


class Load(NamedTuple):
    """What is to be loaded, and how."""

    table: TableName
    source: Path
    create: bool = False
    delimiter: str = ","

    async def run(self, connection: HyperConnection[Any], out: TextIO) -> int:
        """Load the file, and return how many rows it had.

        A checkpoint. Cancelled, or interrupted, it leaves the table as it was.

        Args:
            connection: where to.
            out: where to show the progress, if that is a terminal.

        Raises:
            LoadError: the file is not what its name says, or pyarrow is not there.
        """
        with progress(out, self.source.stat().st_size) as tell:
            if self.source.suffix.lower() in _ARROW:
                return await self._load_arrow(connection, tell)
            return await self._load_csv(connection, tell)

    async def _load_csv(self, connection: HyperConnection[Any], tell: Tell) -> int:
        # Without a buffer, closing it does not wait for a read that was given up.
        with self.source.open("rb", buffering=0) as file:
            data = await _read_header(file)
            columns = sql.SQL(", ").join(
                map(sql.Identifier, _names(data, self.delimiter, self.source))
            )
            cursor = connection.cursor()
            statement = _COPY.format(self.table, columns, sql.Literal(self.delimiter))
            rows, size = -1, 0
            interruption: KeyboardInterrupt | None = None
            # hyperd may not answer a COPY that is only given up; it is cancelled.
            with trio.CancelScope() as scope:
                async with cursor.copy(statement) as copy:
                    try:
                        while data:
                            await copy.write(data)
                            rows += data.count(b"\n")
                            size += len(data)
                            tell(max(rows, 0), size)
                            data = await _read(file)
                    except KeyboardInterrupt as error:
                        interruption = error
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            if interruption is not None:
                raise interruption
        return cursor.rowcount

    async def _load_arrow(self, connection: HyperConnection[Any], tell: Tell) -> int:
        try:
            from ._arrow_files import open_arrow_file  # noqa: PLC0415 - an extra
            from .arrow import insert_arrow  # noqa: PLC0415
        except ImportError:
            raise LoadError("Parquet and Arrow want trio-hyperpool[arrow]") from None
        try:
            data = open_arrow_file(self.source, tell)
            return await insert_arrow(connection, self.table, data, create=self.create)
        except ValueError as error:  # ArrowInvalid is one
            raise LoadError(f"{self.source}: {error}") from error


def check_load(load: Load) -> str | None:
    """Say what is wrong with a load, before anything is opened."""
    suffix = load.source.suffix.lower()
    if suffix not in (".csv", *_ARROW):
        return f"{load.source} is none of .csv, {', '.join(_ARROW)}"
    if load.create and suffix == ".csv":
        return "--create needs the types of the columns, which a CSV does not have"
    return None


async def _read(file: io.FileIO) -> bytes:
    return (
        await trio.to_thread.run_sync(file.read, _AT_ONCE, abandon_on_cancel=True)
        or b""
    )


async def _read_header(file: io.FileIO) -> bytes:
    """Read until there is a whole line, at least."""
    data = await _read(file)
    while b"\n" not in data and (more := await _read(file)):
        data += more
    return data.removeprefix(_BOM)


def _names(data: bytes, delimiter: str, source: Path) -> list[str]:
    text = io.StringIO(data.decode(errors="replace"), newline="")
    names = next(csv.reader(text, delimiter=delimiter), None)
    if not names:
        raise LoadError(f"{source}: its first line does not name the columns")
    return names
