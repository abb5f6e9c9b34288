"""How Python values become literals, text for COPY, and server-bound parameters.

Every dumper keeps one promise: the value arrives exactly, or `psycopg.DataError`
(it has no counterpart in Hyper) or `psycopg.NotSupportedError` (it would arrive
changed) is raised before anything is sent.

* `quote` makes a literal with its type, so that nothing is left to guess: the
  server reads ``1.5`` as ``numeric(2,1)``, and an integer by its size.
* `dump` makes the server's text form: what COPY and a server-bound parameter take.
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from abc import abstractmethod
from decimal import Decimal
from typing import Any, ClassVar, Final

from psycopg import DataError, NotSupportedError, pq
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, PyFormat
from psycopg.types.json import JsonDumper

BOOL: Final = 16
BYTEA: Final = 17
INT8: Final = 20
INT4: Final = 23
JSON: Final = 114
FLOAT8: Final = 701
DATE: Final = 1082
TIME: Final = 1083
TIMESTAMP: Final = 1114
TIMESTAMPTZ: Final = 1184
INTERVAL: Final = 1186
NUMERIC: Final = 1700
UUID: Final = 2950

MOST_DIGITS: Final = 38
"""What ``numeric`` holds."""


def quote_text(data: bytes) -> bytes:
    """Quote a text of any content, with no type."""
    data = data.replace(b"'", b"''")
    if b"\\" in data:
        # The plain form takes a backslash as it is, as long as nobody changes the
        # server's mind about it; the escape form means the same either way.
        return b"E'" + data.replace(b"\\", b"\\\\") + b"'"
    return b"'" + data + b"'"


def encode(text: str, what: str = "text") -> bytes:
    """Encode a text for the server, which takes all of Unicode but NUL."""
    if "\0" in text:
        raise DataError(f"Hyper cannot hold a NUL character in {what}")
    try:
        return str.encode(text)
    except UnicodeEncodeError:
        raise DataError(f"{what} with lone surrogates is not valid Unicode") from None


class TypedDumper(Dumper):
    """A value that is written as its text form, quoted, and its type."""

    type_name: ClassVar[bytes]

    @abstractmethod
    def dump(self, obj: Any) -> bytes: ...

    def quote(self, obj: Any) -> bytes:
        """Write the value as a literal with its type."""
        return b"%b::%b" % (quote_text(self.dump(obj)), self.type_name)


class StrDumper(Dumper):
    """Text, with no type of its own: where a date is wanted it is read as a date."""

    def dump(self, obj: Any) -> bytes:
        """Encode the text."""
        return encode(obj)

    def quote(self, obj: Any) -> bytes:
        """Quote the text."""
        return quote_text(self.dump(obj))


class EnumDumper(StrDumper):
    """A plain enum goes by the names of its members, as in psycopg."""

    def dump(self, obj: Any) -> bytes:
        """Encode the member's name."""
        if obj.name is None:
            raise DataError(f"{obj!r} has no name to go by")
        return encode(obj.name)


class BoolDumper(Dumper):
    """A truth value."""

    oid = BOOL

    def dump(self, obj: Any) -> bytes:
        """Write ``t`` or ``f``."""
        return b"t" if obj else b"f"

    def quote(self, obj: Any) -> bytes:
        """Write the keyword."""
        return b"true" if obj else b"false"


class IntDumper(Dumper):
    """An integer; which of three types it becomes depends on its size."""

    oid = INT4

    def get_key(self, obj: Any, format: PyFormat) -> type:  # noqa: A002 - psycopg's
        """Choose the dumper by the integer's size."""
        value = int(obj)
        if -(2**31) <= value < 2**31:
            return self.cls
        return _Int8Dumper if -(2**63) <= value < 2**63 else _BigIntDumper

    def upgrade(self, obj: Any, format: PyFormat) -> Dumper:  # noqa: A002 - psycopg's
        """Give the dumper for the integer's size."""
        key = self.get_key(obj, format)
        return self if key is self.cls else key(key)

    def dump(self, obj: Any) -> bytes:
        """Write the digits."""
        return b"%d" % int(obj)

    def quote(self, obj: Any) -> bytes:
        """Write the digits, a negative number in brackets.

        Without them ``-%s`` would begin a comment, and in ``%s::text`` the cast
        would bind closer than the sign.
        """
        value = self.dump(obj)
        return b"(%b)" % value if value.startswith(b"-") else value


class _Int8Dumper(IntDumper):
    oid = INT8

    def quote(self, obj: Any) -> bytes:
        return b"'%b'::bigint" % self.dump(obj)


class _BigIntDumper(IntDumper):
    oid = NUMERIC

    def dump(self, obj: Any) -> bytes:
        # Python itself refuses to write integers of many thousands of digits.
        if abs(int(obj)) >= 10**MOST_DIGITS:
            raise DataError(f"Hyper's integers have at most {MOST_DIGITS} digits")
        return b"%d" % int(obj)

    def quote(self, obj: Any) -> bytes:
        return b"'%b'::numeric(38,0)" % self.dump(obj)


class FloatDumper(TypedDumper):
    """A double, to the last bit."""

    oid = FLOAT8
    type_name = b"double precision"

    def dump(self, obj: Any) -> bytes:
        """Write the shortest digits that give the same double."""
        value = float(obj)
        if math.isinf(value):
            return b"Infinity" if value > 0 else b"-Infinity"
        return b"NaN" if math.isnan(value) else repr(value).encode()


def plain_decimal(value: Decimal) -> tuple[bytes, int, int]:
    """Write a decimal without an exponent.

    Returns:
        The text, its precision (all digits) and its scale (those after the point).

    Raises:
        DataError: if it is not finite or has more digits than ``numeric`` holds.
    """
    if not value.is_finite():
        raise DataError(f"Hyper's numeric has no {value}")
    sign, numerals, power = value.as_tuple()
    exponent = int(power)
    digits = "".join(map(str, numerals))
    if not digits.strip("0"):
        digits = "0"
        exponent = max(-MOST_DIGITS, min(exponent, 0))
    if exponent > MOST_DIGITS:
        raise _too_many_digits()
    digits += "0" * exponent
    scale = max(-exponent, 0)
    whole, fraction = digits, ""
    if scale:
        if scale > MOST_DIGITS:
            # Zeros at the end do not count, however many they are.
            kept = max(len(digits.rstrip("0")), len(digits) - scale)
            scale -= len(digits) - kept
            digits = digits[:kept]
        if scale > MOST_DIGITS:
            raise _too_many_digits()
        digits = digits.rjust(scale, "0")
        cut = len(digits) - scale
        whole, fraction = digits[:cut], digits[cut:]
    whole = whole.lstrip("0")
    while len(whole) + len(fraction) > MOST_DIGITS and fraction.endswith("0"):
        fraction = fraction[:-1]
    precision = max(len(whole) + len(fraction), 1)
    if precision > MOST_DIGITS:
        raise _too_many_digits()
    text = ("-" if sign else "") + (whole or "0")
    if fraction:
        text += "." + fraction
    return text.encode(), precision, len(fraction)


def _too_many_digits() -> DataError:
    return DataError(f"Hyper's numeric holds at most {MOST_DIGITS} digits")


class DecimalDumper(Dumper):
    """A decimal, whose literal states precision and scale."""

    oid = NUMERIC

    def dump(self, obj: Any) -> bytes:
        """Write the decimal without an exponent."""
        return plain_decimal(obj)[0]

    def quote(self, obj: Any) -> bytes:
        """Write the decimal with the narrowest ``numeric`` that holds it."""
        return b"'%b'::numeric(%d,%d)" % plain_decimal(obj)


class BytesDumper(TypedDumper):
    """Bytes in hexadecimal."""

    oid = BYTEA
    type_name = b"bytea"

    def dump(self, obj: Any) -> bytes:
        r"""Write ``\x`` and two digits for each byte."""
        return b"\\x" + bytes(obj).hex().encode()

    def quote(self, obj: Any) -> bytes:
        """Write the bytes as a literal."""
        return b"E'\\%b'::bytea" % self.dump(obj)


class ServerBoundBytesDumper(Dumper):
    """Bytes as they are: half the size of the text form."""

    format = pq.Format.BINARY
    oid = BYTEA

    def dump(self, obj: Any) -> Buffer:
        """Give the bytes."""
        return bytes(obj)


def refuse_nanoseconds(value: object, attribute: str) -> None:
    """Refuse what pandas adds to the types of `datetime`, and Hyper does not hold."""
    if getattr(value, attribute, 0):
        raise DataError(f"Hyper holds no nanoseconds, as there are in {value!r}")


class DateDumper(TypedDumper):
    """A date."""

    oid = DATE
    type_name = b"date"

    def dump(self, obj: dt.date) -> bytes:
        """Write year, month and day."""
        return obj.isoformat().encode()


class TimeDumper(TypedDumper):
    """A time of day without a zone."""

    oid = TIME
    type_name = b"time"

    def dump(self, obj: dt.time) -> bytes:
        """Write the time; refuse one with a zone."""
        if obj.tzinfo is not None:
            raise NotSupportedError("Hyper has no time of day with a time zone")
        return obj.isoformat().encode()


class DatetimeDumper(TypedDumper):
    """A point in time: with a zone it is another type than without."""

    oid = TIMESTAMP
    type_name = b"timestamp"

    def get_key(self, obj: Any, format: PyFormat) -> Any:  # noqa: A002 - psycopg's
        """Choose the dumper by whether there is a zone."""
        return self.cls if obj.utcoffset() is None else _AwareDatetimeDumper

    def upgrade(self, obj: Any, format: PyFormat) -> Dumper:  # noqa: A002 - psycopg's
        """Give the dumper for a datetime with or without a zone."""
        return self if obj.utcoffset() is None else _AwareDatetimeDumper(self.cls)

    def dump(self, obj: dt.datetime) -> bytes:
        """Write date and time."""
        refuse_nanoseconds(obj, "nanosecond")
        return obj.replace(tzinfo=None).isoformat(" ").encode()


class _AwareDatetimeDumper(TypedDumper):
    oid = TIMESTAMPTZ
    type_name = b"timestamptz"

    def dump(self, obj: dt.datetime) -> bytes:
        # The server refuses offsets with seconds and most above 12 hours; UTC is
        # the same point in time.
        refuse_nanoseconds(obj, "nanosecond")
        try:
            utc = obj.astimezone(dt.UTC)
        except OverflowError:
            raise DataError(f"in UTC {obj} is beyond the years 1 to 9999") from None
        return utc.isoformat(" ").encode()


class TimedeltaDumper(TypedDumper):
    """A duration: days, seconds and microseconds, each kept apart."""

    oid = INTERVAL
    type_name = b"interval"

    def dump(self, obj: dt.timedelta) -> bytes:
        """Write days, seconds and microseconds."""
        refuse_nanoseconds(obj, "nanoseconds")
        return b"%d days %d seconds %d microseconds" % (
            obj.days,
            obj.seconds,
            obj.microseconds,
        )


class UUIDDumper(TypedDumper):
    """A UUID."""

    oid = UUID
    type_name = b"uuid"

    def dump(self, obj: uuid.UUID) -> bytes:
        """Write the 36 characters."""
        return str(obj).encode()


class HyperJsonDumper(JsonDumper):
    """A JSON document; ``Jsonb`` too, as Hyper has one type for both."""

    def dump(self, obj: Any) -> bytes:
        """Write the document with psycopg's (or the wrapper's) own ``dumps``."""
        try:
            data = super().dump(obj)
        except UnicodeEncodeError:
            raise DataError("a JSON document with lone surrogates") from None
        document = b"null" if data is None else bytes(data)
        if b"\0" in document:
            raise DataError("Hyper cannot hold a NUL character in a JSON document")
        return document

    def quote(self, obj: Any) -> bytes:
        """Quote the document, with its type."""
        return quote_text(self.dump(obj)) + b"::json"


class RefusingDumper(Dumper):
    """What Hyper has no type for."""

    def dump(self, obj: Any) -> bytes:
        """Refuse, and say what may be done instead."""
        kind = type(obj).__name__
        advice = "pass it as a str, or as something that Hyper has a type for"
        if isinstance(obj, tuple):
            advice = "pass a list, as in = ANY(%s), or each element by itself"
        elif isinstance(obj, (dict, set, frozenset)):
            advice = "wrap it in psycopg.types.json.Json, or pass a list"
        raise NotSupportedError(f"Hyper has no type for a Python {kind}: {advice}")

    def quote(self, obj: Any) -> bytes:
        """Refuse."""
        return self.dump(obj)


class RefusingBinaryDumper(Dumper):
    """What is asked for with ``%b``."""

    format = pq.Format.BINARY

    def dump(self, obj: Any) -> bytes:
        """Refuse."""
        raise NotSupportedError(
            f"a {type(obj).__name__} is not sent in binary here: write %s, not %b"
        )
