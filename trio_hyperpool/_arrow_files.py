"""Parquet and Arrow files, as readers of record batches that tell how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as typed  # noqa: ICN001 - the name is for what is not
import pyarrow.parquet as typed_parquet

from ._progress import Tell

# Neither is complete in the eyes of checkers of types.
pa: Final[Any] = typed
_parquet: Final[Any] = typed_parquet


def open_arrow_file(source: Path, tell: Tell) -> typed.RecordBatchReader:
    """Open a file, to be read a batch at a time.

    Raises:
        pyarrow.ArrowInvalid: if it is none of the kind that its name says.
    """
    if source.suffix.lower() == ".parquet":
        schema, batches, how_far = _open_parquet(source)
    else:
        schema, batches, how_far = _open_ipc(source)
    size = source.stat().st_size

    def counted() -> Iterator[Any]:
        rows = 0
        for number, batch in enumerate(batches, start=1):
            yield batch
            rows += batch.num_rows
            tell(rows, size * how_far(number, rows))

    reader: typed.RecordBatchReader = pa.RecordBatchReader.from_batches(
        schema, counted()
    )
    return reader


# The schema, the batches, and how much of all there is were so many of them and rows.
_Opened = tuple[Any, Iterable[Any], Callable[[int, int], float]]


def _open_parquet(source: Path) -> _Opened:
    file = _parquet.ParquetFile(source)
    total = file.metadata.num_rows
    return file.schema_arrow, file.iter_batches(), lambda _number, rows: rows / total


def _open_ipc(source: Path) -> _Opened:
    mapped = pa.memory_map(str(source))
    try:
        file = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        # There is a form for files, and one for streams, and both are kept in files.
        mapped.seek(0)
        stream = pa.ipc.open_stream(mapped)
        return (
            stream.schema,
            stream,
            lambda _number, _rows: mapped.tell() / mapped.size(),
        )
    total = file.num_record_batches
    batches = map(file.get_batch, range(total))
    return file.schema, batches, lambda number, _rows: number / total
