"""How what the server sends becomes Python values: exactly, or not at all.

Only what psycopg's own loaders get wrong on Hyper, or refuse, is here.
"""

from __future__ import annotations

import datetime as dt
import re
import struct
from typing import Any, Final

from psycopg import DataError, NotSupportedError, pq
from psycopg.abc import Buffer
from psycopg.adapt import Loader

_EPOCH: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_FLOAT4: Final = struct.Struct("!f")
_INT8: Final = struct.Struct("!q")
_INTERVAL_PARTS: Final = struct.Struct("!qii")


class RealLoader(Loader):
    """A four-byte float, which its shortest digits name but do not equal."""

    def load(self, data: Buffer) -> float:
        """Give the double that equals the float."""
        value: float = _FLOAT4.unpack(_FLOAT4.pack(float(bytes(data))))[0]
        return value


class TimestamptzLoader(Loader):
    """A point in time, in UTC.

    psycopg takes the session's zone from the server's reports, and Hyper reports
    ``localtime``, whatever the zone is.
    """

    def load(self, data: Buffer) -> dt.datetime:
        """Read the text form."""
        text = str(data, "ascii")
        try:
            return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            raise DataError(f"beyond the years 1 to 9999: {text!r}") from None


class TimestamptzBinaryLoader(Loader):
    """A point in time, in UTC."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> dt.datetime:
        """Read microseconds since the year 2000."""
        micros: int = _INT8.unpack(data)[0]
        try:
            return _EPOCH + dt.timedelta(microseconds=micros)
        except OverflowError:
            raise DataError(
                f"beyond the years 1 to 9999: {micros} microseconds from 2000 on"
            ) from None


_ISO_INTERVAL: Final = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?"
    r"(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d{1,6}))?S)?)?",
    re.ASCII,
)


class IntervalLoader(Loader):
    """A duration. One of months or years has no `datetime.timedelta` that equals it."""

    def load(self, data: Buffer) -> dt.timedelta:
        """Read the form of ISO 8601."""
        text = str(data, "ascii")
        if (match := _ISO_INTERVAL.fullmatch(text)) is None:
            raise NotSupportedError(
                f"an interval is read in the form of ISO 8601 alone, not {text!r}: "
                "leave intervalstyle at iso_8601"
            )
        years, months, days, hours, minutes, sign, seconds, fraction = match.groups()
        micros = int(seconds or 0) * 1_000_000 + int((fraction or "").ljust(6, "0"))
        if sign:
            micros = -micros
        micros += (int(hours or 0) * 60 + int(minutes or 0)) * 60_000_000
        return _duration(
            int(years or 0) * 12 + int(months or 0), int(days or 0), micros
        )


class IntervalBinaryLoader(Loader):
    """A duration. One of months or years has no `datetime.timedelta` that equals it."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> dt.timedelta:
        """Read microseconds, days and months."""
        micros, days, months = _INTERVAL_PARTS.unpack(data)
        return _duration(months, days, micros)


def _duration(months: int, days: int, micros: int) -> dt.timedelta:
    if months:
        raise DataError(
            f"an interval of {months} months has no fixed length, and a timedelta has "
            "one: cast it to text, or extract its parts in the query"
        )
    try:
        return dt.timedelta(days, 0, micros)
    except OverflowError:
        raise DataError(f"beyond a timedelta: {days} days") from None


class UnknownBinaryLoader(Loader):
    """A binary value of a type that nobody registered."""

    format = pq.Format.BINARY

    def load(self, data: Buffer) -> Any:
        """Refuse."""
        raise NotSupportedError(
            f"the binary form of type {self.oid} is unknown: ask for the result as "
            f"text (binary=False), {len(data)} bytes"
        )
