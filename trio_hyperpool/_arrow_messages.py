"""Pure: where the messages of an Arrow IPC stream end, however they are cut in transit.

A message is a prefix of eight bytes, its metadata, and a body, whose length stands in
the metadata: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, TypeAlias, cast

Buffer: TypeAlias = bytes | bytearray | memoryview

END: Final = b"\xff\xff\xff\xff\0\0\0\0"
"""What stands where the next message would begin."""

_PREFIX: Final = struct.Struct("<II")
_BODY_LENGTH: Final = 3
"""The place of this field in the metadata, which is a FlatBuffers table."""


class Messages:
    """Takes pieces of a stream, and gives the messages that are complete.

    A message that came in one piece is not copied.
    """

    def __init__(self) -> None:
        self._pieces: list[Buffer] = []
        self._size = 0
        self._wanted = _PREFIX.size

    def feed(self, piece: Buffer) -> Iterator[memoryview]:
        """Take the next piece; give the messages that it completes, but for the end."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size < self._wanted:
            return
        rest = memoryview(
            b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        )
        while len(rest) >= (wanted := _length(rest)):
            if bytes(rest[: len(END)]) != END:
                yield rest[:wanted]
            rest = rest[wanted:]
        self._pieces = [rest]
        self._size = len(rest)
        self._wanted = wanted


def _length(stream: memoryview) -> int:
    """How long the next message is, or more than there is if that is not known yet."""
    if len(stream) < _PREFIX.size:
        return _PREFIX.size
    continuation, size = _PREFIX.unpack_from(stream)
    if continuation != 0xFFFFFFFF:
        raise ValueError("this is no Arrow IPC stream")
    end = _PREFIX.size + cast("int", size)
    if not size or len(stream) < end:
        return end
    return end + _body_length(stream[_PREFIX.size : end])


def _body_length(metadata: memoryview) -> int:
    table = _read("<I", metadata, 0)
    fields = table - _read("<i", metadata, table)
    entry = 4 + 2 * _BODY_LENGTH
    # A field that has its default, or a table that ends before it, is not there.
    is_there = entry < _read("<H", metadata, fields)
    offset = _read("<H", metadata, fields + entry) if is_there else 0
    return _read("<q", metadata, table + offset) if offset else 0


def _read(form: str, data: memoryview, at: int) -> int:
    return cast("int", struct.unpack_from(form, data, at)[0])
