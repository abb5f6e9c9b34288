"""The table of Hyper's types: which dumper and which loader each of them has."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import psycopg
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.types import (
    array,
    bool as bools,
    datetime as times,
    json,
    none,
    numeric,
    string,
    uuid as uuids,
)

from . import _arrays, _dumpers, _loaders

_DUMPERS: Final[dict[type | str, type[Dumper]]] = {
    object: _dumpers.RefusingDumper,
    bool: _dumpers.BoolDumper,
    int: _dumpers.IntDumper,
    float: _dumpers.FloatDumper,
    decimal.Decimal: _dumpers.DecimalDumper,
    str: _dumpers.StrDumper,
    enum.Enum: _dumpers.EnumDumper,
    bytes: _dumpers.BytesDumper,
    bytearray: _dumpers.BytesDumper,
    memoryview: _dumpers.BytesDumper,
    dt.date: _dumpers.DateDumper,
    dt.datetime: _dumpers.DatetimeDumper,
    dt.time: _dumpers.TimeDumper,
    dt.timedelta: _dumpers.TimedeltaDumper,
    uuid.UUID: _dumpers.UUIDDumper,
    json.Json: _dumpers.HyperJsonDumper,
    json.Jsonb: _dumpers.HyperJsonDumper,
    list: _arrays.ListDumper,
    type(None): none.NoneDumper,
    # By name, so that numpy is not imported for the sake of those without it.
    "numpy.bool": _dumpers.BoolDumper,
    "numpy.bool_": _dumpers.BoolDumper,
    "numpy.float16": _dumpers.FloatDumper,
    "numpy.float32": _dumpers.FloatDumper,
    "numpy.float64": _dumpers.FloatDumper,
    **{
        f"numpy.{sign}int{bits}": _dumpers.IntDumper
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "numpy.longlong": _dumpers.IntDumper,
    "numpy.ulonglong": _dumpers.IntDumper,
}

# What COPY wants for the names that `Copy.set_types` takes.
_BY_OID_ALONE: Final = (
    numeric.Int2Dumper,
    numeric.Int4Dumper,
    numeric.Int8Dumper,
    numeric.NumericDumper,
    string.StrDumper,
    string.StrDumperVarchar,
)

_TEXT: Final[dict[int, type[Loader]]] = {
    0: string.TextLoader,
    16: bools.BoolLoader,
    17: string.ByteaLoader,
    18: string.TextLoader,
    19: string.TextLoader,
    20: numeric.IntLoader,
    21: numeric.IntLoader,
    23: numeric.IntLoader,
    25: string.TextLoader,
    26: numeric.IntLoader,
    114: json.JsonLoader,
    700: _loaders.RealLoader,
    701: numeric.FloatLoader,
    1042: string.TextLoader,
    1043: string.TextLoader,
    1082: times.DateLoader,
    1083: times.TimeLoader,
    1114: times.TimestampLoader,
    1184: _loaders.TimestamptzLoader,
    1186: _loaders.IntervalLoader,
    1700: numeric.NumericLoader,
    2950: uuids.UUIDLoader,
    5003: string.TextLoader,
}

_BINARY: Final[dict[int, type[Loader]]] = {
    0: _loaders.UnknownBinaryLoader,
    16: bools.BoolBinaryLoader,
    17: string.ByteaBinaryLoader,
    18: string.TextBinaryLoader,
    19: string.TextBinaryLoader,
    20: numeric.Int8BinaryLoader,
    21: numeric.Int2BinaryLoader,
    23: numeric.Int4BinaryLoader,
    25: string.TextBinaryLoader,
    26: numeric.OidBinaryLoader,
    114: json.JsonBinaryLoader,
    700: numeric.Float4BinaryLoader,
    701: numeric.Float8BinaryLoader,
    1042: string.TextBinaryLoader,
    1043: string.TextBinaryLoader,
    1082: times.DateBinaryLoader,
    1083: times.TimeBinaryLoader,
    1114: times.TimestampBinaryLoader,
    1184: _loaders.TimestamptzBinaryLoader,
    1186: _loaders.IntervalBinaryLoader,
    1700: numeric.NumericBinaryLoader,
    2950: uuids.UUIDBinaryLoader,
}

# The type of each array, and of its elements.
_ARRAYS: Final = {
    199: 114,
    1000: 16,
    1001: 17,
    1002: 18,
    1005: 21,
    1007: 23,
    1009: 25,
    1014: 1042,
    1015: 1043,
    1016: 20,
    1021: 700,
    1022: 701,
    1028: 26,
    1115: 1114,
    1182: 1082,
    1183: 1083,
    1185: 1184,
    1187: 1186,
    1231: 1700,
    2951: 2950,
    5004: 5003,
}


def _loaders_of_all_types() -> Iterator[tuple[int, type[Loader]]]:
    yield from _TEXT.items()
    yield from _BINARY.items()
    for oid, element in _ARRAYS.items():
        yield oid, _arrays.array_loader(element)
        yield oid, array.ArrayBinaryLoader


@cache
def hyper_adapters() -> AdaptersMap:
    """Give the map that every connection to Hyper starts with.

    Connections copy it, and the copy shares its tables until it is changed.
    """
    adapters = AdaptersMap(types=psycopg.adapters.types)
    binary: dict[Any, type[Dumper]] = {
        object: _dumpers.RefusingBinaryDumper,
        bytes: _dumpers.ServerBoundBytesDumper,
        bytearray: _dumpers.ServerBoundBytesDumper,
        memoryview: _dumpers.ServerBoundBytesDumper,
    }
    # The last dumper registered for a class is the one for %s: first the binary.
    for cls, dumper in (*binary.items(), *_DUMPERS.items()):
        adapters.register_dumper(cls, dumper)
    for dumper in _BY_OID_ALONE:
        adapters.register_dumper(None, dumper)
    for oid, loader in _loaders_of_all_types():
        adapters.register_loader(oid, loader)
    return adapters
