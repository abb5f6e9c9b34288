"""Lists as Hyper's arrays: ``[1,NULL,3]``, of one dimension and one element type."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from psycopg import DataError, NotSupportedError, pq
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, PyFormat, RecursiveDumper, RecursiveLoader

from ._dumpers import (
    BOOL,
    BYTEA,
    DATE,
    FLOAT8,
    INT4,
    INT8,
    INTERVAL,
    JSON,
    MOST_DIGITS,
    NUMERIC,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    RefusingDumper,
    plain_decimal,
    quote_text,
)

TEXT: Final = 25

# By the type of the elements: that of the array, and what it is called.
_ARRAYS: Final[dict[int, tuple[int, bytes]]] = {
    BOOL: (1000, b"bool"),
    BYTEA: (1001, b"bytea"),
    INT4: (1007, b"int"),
    TEXT: (1009, b"text"),
    INT8: (1016, b"bigint"),
    FLOAT8: (1022, b"double precision"),
    TIMESTAMP: (1115, b"timestamp"),
    DATE: (1182, b"date"),
    TIME: (1183, b"time"),
    TIMESTAMPTZ: (1185, b"timestamptz"),
    INTERVAL: (1187, b"interval"),
    NUMERIC: (1231, b"numeric"),
    JSON: (199, b"json"),
    UUID: (2951, b"uuid"),
}
_NUMBERS: Final = (INT4, INT8, NUMERIC)

NUMERIC_ARRAY: Final = _ARRAYS[NUMERIC][0]


class ListDumper(RecursiveDumper):
    """A list; its elements decide which array it becomes.

    An empty list, and one of nothing but None, has no element type: it is written as
    text, and becomes what the query wants it to be.
    """

    element_oid = 0

    def get_key(self, obj: Any, format: PyFormat) -> Any:  # noqa: A002 - psycopg's
        """Choose the dumper by the elements."""
        oid = self._find_element_oid(obj)
        return (self.cls, oid) if oid else self.cls

    def upgrade(self, obj: Any, format: PyFormat) -> Dumper:  # noqa: A002 - psycopg's
        """Give the dumper for lists of such elements."""
        oid = self._find_element_oid(obj)
        dumper = _TypedListDumper(self.cls, self._tx)
        dumper.element_oid = oid
        dumper.oid = _ARRAYS[oid][0]
        return dumper

    def dump(self, obj: list[Any]) -> bytes:
        """Write the elements in brackets."""
        return b"[%b]" % b",".join(map(self._write, obj))

    def quote(self, obj: list[Any]) -> bytes:
        """Write the elements as one literal."""
        return quote_text(self.dump(obj))

    def _write(self, item: Any) -> bytes:
        if item is None:
            return b"NULL"
        data = self._tx.get_dumper(item, PyFormat.TEXT).dump(item)
        text = b"" if data is None else bytes(data)
        if self.element_oid in _NUMBERS or self.element_oid == FLOAT8:
            return text
        return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')

    def _find_element_oid(self, items: list[Any]) -> int:
        oids: set[int] = set()
        for item in items:
            if item is None:
                continue
            if isinstance(item, (list, tuple)):
                raise NotSupportedError("Hyper's arrays have one dimension")
            dumper = self._tx.get_dumper(item, PyFormat.TEXT)
            if isinstance(dumper, RefusingDumper):
                dumper.dump(item)
            oids.add(dumper.oid or TEXT)  # what has no type of its own is text
        if not oids:
            return 0
        if len(oids) > 1:
            if not oids.issubset(_NUMBERS):
                raise DataError("a list mixes types: an array has one for all elements")
            oids = {NUMERIC if NUMERIC in oids else INT8}
        oid = oids.pop()
        if oid not in _ARRAYS:
            raise NotSupportedError("Hyper has no array of such elements")
        return oid


class _TypedListDumper(ListDumper):
    def quote(self, obj: list[Any]) -> bytes:
        name = _ARRAYS[self.element_oid][1]
        if self.element_oid == NUMERIC:
            name = b"numeric(%d,%d)" % _shape(obj)
        return b"%b::%b[]" % (quote_text(self.dump(obj)), name)


def _shape(items: list[Any]) -> tuple[int, int]:
    """Find precision and scale that hold all elements."""
    whole = scale = 0
    for item in items:
        if item is not None:
            decimal = item if isinstance(item, Decimal) else Decimal(int(item))
            _, digits, after = plain_decimal(decimal)
            whole, scale = max(whole, digits - after), max(scale, after)
    if whole + scale > MOST_DIGITS:
        raise DataError(f"no numeric of {MOST_DIGITS} digits holds all of the list")
    return max(whole + scale, 1), scale


# Possessive throughout: what no array is must not take long to find out.
_ELEMENT: Final = re.compile(
    rb'(?s)\s*+(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"\s*+|(?P<plain>[^,"\[\]]++))(?P<end>,|\Z)'
)
_ESCAPE: Final = re.compile(rb"(?s)\\(.)")


class ArrayLoader(RecursiveLoader):
    """Reads the text form of an array; each array type has a class of its own."""

    element_oid: int

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        loader = self._tx.get_loader(self.element_oid, pq.Format.TEXT)
        self._load_element: Callable[[Buffer], Any] = loader.load

    def load(self, data: Buffer) -> list[Any]:
        """Make a list of the elements."""
        text = bytes(data)
        if text[:1] != b"[" or text[-1:] != b"]":
            raise DataError(f"not an array: {text[:40]!r}")
        text = text[1:-1]
        items: list[Any] = []
        at, end = 0, b"," if text.strip() else b""
        while end:
            if (match := _ELEMENT.match(text, at)) is None:
                raise DataError(f"not an array: {text[:40]!r}")
            quoted, plain, end = match.group("quoted", "plain", "end")
            at = match.end()
            if quoted is not None:
                items.append(self._load_element(_ESCAPE.sub(rb"\1", quoted)))
            elif (plain := plain.rstrip()) == b"NULL":
                items.append(None)
            else:
                items.append(self._load_element(plain))
        return items


def array_loader(element: int) -> type[ArrayLoader]:
    """Make the loader for arrays of a type."""
    return type("ArrayLoader", (ArrayLoader,), {"element_oid": element})
