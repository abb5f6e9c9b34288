"""Which Arrow type stands for which of Hyper's, and what fits without a loss.

What a column takes is what the server calls its Arrow type, to the letter: another
integer's width, a nullable field for a column that is NOT NULL, or a list of another
element is refused. What it does not look at is refused here: a string longer than the
column's, a decimal of too many digits, or a part of an interval below a microsecond.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import pyarrow as typed  # noqa: ICN001 - the name is for what is not
import pyarrow.compute as typed_compute
from psycopg import DataError

# Most of it is made when it is imported, and unknown to checkers of types.
pa: Final[Any] = typed
_compute: Final[Any] = typed_compute

Field: TypeAlias = Any
DataType: TypeAlias = Any
Array: TypeAlias = Any
Schema: TypeAlias = Any

_MAX_LENGTH: Final = b"hyper:max_string_length"
_HYPER_TYPE: Final = b"hyper:type"
_NAMED_TYPES: Final = {b"JSON": "json", b"Oid": "oid", b"Geography": "geography"}
_MAX_DIGITS: Final = 38

_KINDS: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (pa.types.is_null, "null"),
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_integer, "integer"),
    (pa.types.is_floating, "float"),
    (pa.types.is_decimal, "decimal"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (pa.types.is_interval, "interval"),
    (pa.types.is_duration, "interval"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None, "timestamp"),
    (pa.types.is_timestamp, "timestamp with a zone"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_string_view, "text"),
    (pa.types.is_binary, "bytes"),
    (pa.types.is_large_binary, "bytes"),
    (pa.types.is_binary_view, "bytes"),
    (pa.types.is_fixed_size_binary, "bytes"),
    (pa.types.is_list, "list"),
    (pa.types.is_large_list, "list"),
    (pa.types.is_fixed_size_list, "list"),
    (pa.types.is_list_view, "list"),
    (pa.types.is_large_list_view, "list"),
)
# Where one kind can be another without a loss, each value is looked at.
_TAKES: Final = {
    "integer": {"integer", "float", "decimal"},
    "float": {"float", "integer"},
    "decimal": {"decimal", "integer"},
}
_SQL_TYPES: Final = {
    "null": "text",
    "boolean": "boolean",
    "date": "date",
    "time": "time",
    "interval": "interval",
    "timestamp": "timestamp",
    "timestamp with a zone": "timestamptz",
    "text": "text",
    "bytes": "bytea",
}


# Reading


def readable(schema: Schema) -> Schema:
    """Say how to read what the server sends: its zone "Utc" is known as "UTC"."""
    return _each_type(schema, _utc)


def returned(schema: Schema) -> Schema:
    """Say what to give for it: a date as days, and not as a midnight."""
    return _each_type(schema, _days)


def _each_type(schema: Schema, change: Callable[[DataType], DataType]) -> Schema:
    fields = [field.with_type(_within_lists(field.type, change)) for field in schema]
    return pa.schema(fields, schema.metadata)


def _within_lists(of: DataType, change: Callable[[DataType], DataType]) -> DataType:
    if pa.types.is_list(of):
        field = of.value_field
        return pa.list_(field.with_type(_within_lists(field.type, change)))
    return change(of)


def _utc(of: DataType) -> DataType:
    return pa.timestamp(of.unit, "UTC") if pa.types.is_timestamp(of) and of.tz else of


def _days(of: DataType) -> DataType:
    return pa.date32() if pa.types.is_date64(of) else of


# Creating


def sql_type(field: Field) -> str:
    """Give the type of the column that holds a field's values.

    Raises:
        DataError: if there is none.
    """
    of, metadata = _plain_type(field.type), _metadata(field)
    kind, named = _kind(of), metadata.get(_HYPER_TYPE)
    if named is not None and named in _NAMED_TYPES:
        found: str | None = _NAMED_TYPES[named]
    elif kind == "text" and _MAX_LENGTH in metadata:
        name = "char" if named == b"Char" else "varchar"
        found = f"{name}({int(metadata[_MAX_LENGTH])})"
    elif kind == "list":
        element = of.value_field
        null = "" if element.nullable else " not null"
        found = f"array({sql_type(element)}{null})"
    elif kind in _NUMBERS:
        found = _NUMBERS[kind](of)
    else:
        found = _SQL_TYPES.get(kind)
    if found is None:
        raise DataError(f"column {field.name!r}: Hyper has no type for {field.type}")
    return found


def _integer(of: DataType) -> str:
    bits = of.bit_width + pa.types.is_unsigned_integer(of)
    if bits > 64:
        return "numeric(20)"
    return "smallint" if bits <= 16 else "integer" if bits <= 32 else "bigint"


def _decimal(of: DataType) -> str | None:
    if not 0 <= of.scale <= of.precision <= _MAX_DIGITS:
        return None
    return f"numeric({of.precision}, {of.scale})"


_NUMBERS: Final[dict[str, Callable[[DataType], str | None]]] = {
    "integer": _integer,
    "float": lambda of: "double precision" if of.bit_width == 64 else "real",
    "decimal": _decimal,
}


# Fitting


def check(source: Schema, wanted: Schema) -> None:
    """Compare the columns' types, before anything is sent.

    Raises:
        DataError: if a column's values cannot fit, whatever they are.
    """
    for field, target in zip(source, wanted, strict=True):
        if not _can_fit(field.type, target.type):
            raise DataError(
                f"column {target.name!r} takes {target.type}, and {field.type} does "
                "not fit without a change of its meaning, or a loss: cast it"
            )


def _can_fit(source: DataType, target: DataType) -> bool:
    source = _plain_type(source)
    kind, wanted = _kind(source), _kind(target)
    if kind == "list" == wanted:
        return _can_fit(source.value_type, target.value_type)
    return kind == "null" or kind in _TAKES.get(wanted, {wanted})


def fit(batch: Any, wanted: Schema) -> Any:
    """Give a record batch of the very types that the table's columns take.

    Raises:
        DataError: if a value does not fit without a loss.
    """
    columns: list[Array] = []
    for column, field in zip(batch.columns, wanted, strict=True):
        try:
            fitting = _cast(_plain(column), field.type)
            _look_at(fitting, field)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"column {field.name!r}: {error}") from error
        columns.append(fitting)
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


def _cast(values: Array, to: DataType) -> Array:
    if pa.types.is_duration(values.type) and pa.types.is_interval(to):
        return _as_intervals(values)
    if values.type == to:
        return values
    if pa.types.is_integer(values.type) and pa.types.is_decimal(to):
        # Room for any integer is asked for otherwise, whatever the values are.
        values = values.cast(pa.decimal128(20))
    cast = values.cast(to)
    if pa.types.is_float32(to) and pa.types.is_float64(values.type):
        # Of all casts, this alone is not checked.
        back = cast.cast(values.type)
        same = _compute.or_(_compute.equal(back, values), _compute.is_nan(values))
        if not _compute.all(same, min_count=0).as_py():
            raise pa.ArrowInvalid("a double has more digits than a real can hold")
    return cast


def _look_at(values: Array, field: Field) -> None:
    """Refuse what the server would take, and not keep."""
    if values.null_count and not field.nullable:
        raise pa.ArrowInvalid("there is a null, and the column is NOT NULL")
    if pa.types.is_list(field.type):
        _look_at(values.flatten(), field.type.value_field)
    elif pa.types.is_decimal(field.type):
        values.validate(full=True)
    elif pa.types.is_interval(field.type):
        pairs = pa.Array.from_buffers(
            pa.int64(),
            2 * len(values),
            [None, values.buffers()[1]],
            offset=2 * values.offset,
        )
        nanos = _compute.list_element(pa.FixedSizeListArray.from_arrays(pairs, 2), 1)
        nanos = _compute.if_else(values.is_valid(), nanos, None)
        nanos.cast(pa.duration("ns")).cast(pa.duration("us"))
    elif limit := _metadata(field).get(_MAX_LENGTH):
        longest = _compute.max(_compute.utf8_length(values)).as_py()
        if longest is not None and longest > int(limit):
            raise pa.ArrowInvalid(
                f"a string has {longest} characters, and the column {int(limit)}"
            )


def _as_intervals(durations: Array) -> Array:
    nanos = _compute.multiply_checked(
        durations.cast(pa.duration("us")).cast(pa.int64()), 1000
    )
    nanos = _compute.fill_null(nanos, 0)
    # Months and days are 32 bits each, and 0.
    pairs = array("q", bytes(16 * len(nanos)))
    sent = memoryview(nanos.buffers()[1]).cast("q")
    memoryview(pairs)[1::2] = sent[nanos.offset : nanos.offset + len(nanos)]
    valid = durations.is_valid()
    return pa.Array.from_buffers(
        pa.month_day_nano_interval(),
        len(durations),
        [valid.buffers()[1], pa.py_buffer(pairs)],
    )


def _metadata(field: Field) -> dict[bytes, bytes]:
    return cast("dict[bytes, bytes]", field.metadata or {})


def _kind(of: DataType) -> str:
    return next((kind for is_it, kind in _KINDS if is_it(of)), str(of))


def _plain_type(of: DataType) -> DataType:
    """See what is behind an encoding."""
    if isinstance(of, pa.BaseExtensionType):
        return _plain_type(of.storage_type)
    if pa.types.is_dictionary(of) or pa.types.is_run_end_encoded(of):
        return _plain_type(of.value_type)
    return of


def _plain(values: Array) -> Array:
    of = values.type
    if isinstance(of, pa.BaseExtensionType):
        return _plain(values.storage)
    if pa.types.is_dictionary(of):
        plain = _plain(values.dictionary)
        decoded = pa.DictionaryArray.from_arrays(values.indices, plain)
        return decoded.dictionary_decode()
    if pa.types.is_run_end_encoded(of):
        return _plain(_compute.run_end_decode(values))
    # Not every kernel knows views.
    if pa.types.is_string_view(of):
        return values.cast(pa.string())
    if pa.types.is_binary_view(of):
        return values.cast(pa.binary())
    return values
