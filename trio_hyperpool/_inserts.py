"""Pure: which INSERTs can be joined, and which of their rows may share a statement.

The rows of a VALUES list share the types of their columns, so a row can be stored as
another value than by itself: beside ``1.5`` an integer becomes a double, and beside
``1.125`` the text of ``1.50`` is that of ``1.500``. What two rows may differ in:

* Literals that are a whole column: in value, and in width, if that is all that tells
  their types apart. In front of a cast (``%s::date``) in value alone.
* Literals within an expression: in nothing, as the server folds constants first, and
  the type is that of what is left.
* NULL goes with all of them, and is written with their type: Hyper takes a bare one
  for a text beside a text, and refuses it beside a number in a column of text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from ._binding import TOKEN, Template, parse

MOST_LITERALS: Final = 1_000
MOST_BYTES: Final = 1 << 17
"""What a statement of several rows holds: with more the server is hardly any faster,
and other tasks would wait longer until it is written."""

_NULL: Final = b"NULL"

_Token: TypeAlias = tuple[str, bytes]

_KEYWORDS: Final = {b"INSERT": "I", b"INTO": "O", b"VALUES": "V"}
_HEAD: Final = re.compile(r"IOn(?:\.n)*+(?:\(n(?:,n)*+\))?V")
_IN_HEAD: Final = frozenset({b".", b",", b"(", b")"})
# What follows them would see the rows before it, if not in the same statement.
_OF_SUBQUERIES: Final = frozenset({b"SELECT", b"VALUES", b"TABLE", b"WITH"})
_IN_TYPE: Final = frozenset({b":", b"(", b")", b"[", b"]", b","})


class Place(Enum):
    """Where in its row a placeholder stands."""

    COLUMN = auto()
    CAST = auto()
    EXPRESSION = auto()


class Insert(NamedTuple):
    """An INSERT of one row, cut into that and what is around it."""

    head: bytes
    row: Template
    tail: bytes
    places: tuple[Place, ...]
    """Of the placeholders, in their order."""

    pattern: bytes
    """The row as what `%` puts literals into."""


class Kind(NamedTuple):
    """What literals of a column have in common if their rows may share a statement."""

    name: bytes
    null: bytes | None = None
    """What NULL is written as beside them; None if it may not be there at all."""


def read_insert(query: bytes) -> Insert | None:
    """Cut an INSERT of one row, which holds all the placeholders; None for all else.

    Raises:
        ProgrammingError: if a placeholder is where no literal may stand.
    """
    if (found := _find_row(query)) is None:
        return None
    start, end, items = found
    (head,), (tail,) = parse(query[:start]).chunks, parse(query[end:]).chunks
    places = [
        _place(item)
        for item in items
        for kind, token in item
        if kind == "place" and token != b"%%"
    ]
    row = parse(query[start:end])
    pattern = b"%b".join(chunk.replace(b"%", b"%%") for chunk in row.chunks)
    return Insert(head, row, tail, tuple(places), pattern)


def _find_row(query: bytes) -> tuple[int, int, list[list[_Token]]] | None:
    matches = (m for m in TOKEN.finditer(query) if m.lastgroup != "blank")
    head = ""
    start = -1
    for match in matches:
        token = match.group()
        if token == b"(" and _HEAD.fullmatch(head):
            start = match.start()
            break
        if match.lastgroup in ("word", "name"):
            head += _KEYWORDS.get(token.upper(), "n")
        elif token in _IN_HEAD:
            head += token.decode()
        else:
            return None
    items: list[list[_Token]] = [[]]
    depth = 1
    for match in matches:
        kind, token = str(match.lastgroup), match.group()
        depth += (token in (b"(", b"[")) - (token in (b")", b"]"))
        if depth == 0:
            break
        if token.upper() in _OF_SUBQUERIES:
            return None
        if depth == 1 and token == b",":
            items.append([])
        else:
            items[-1].append((kind, token))
    else:
        return None
    # RETURNING, ON CONFLICT and a second row come after it.
    if any(rest.group() != b";" for rest in matches):
        return None
    return start, match.end(), items


def _place(item: Sequence[_Token]) -> Place:
    kinds = [kind for kind, _ in item]
    tokens = [token for _, token in item]
    if kinds == ["place"]:
        return Place.COLUMN
    is_cast = (
        kinds[0] == "place"
        and tokens[1:3] == [b":", b":"]
        and all(
            kind in ("word", "number") or token in _IN_TYPE for kind, token in item[1:]
        )
    )
    return Place.CAST if is_cast else Place.EXPRESSION


_LITERAL: Final = re.compile(
    rb"""(?x)
      NULL
    | (?P<bool> true | false )
    | (?P<int>  [0-9]{1,10} | \( -[0-9]{1,10} \) )
    | (?: ' (?: [^']++ | '' )*+ ' | E' (?: [^'\\]++ | '' | \\\\ )*+ ' )
      (?: ::
        (?P<type> numeric \( (?P<digits>[0-9]++) , (?P<scale>[0-9]++) \)
                  (?P<array>(?:\[\])?)
                | [\w ".,()\[\]]++ ) )?
    """
)
# What may become an array; no NULL that has a type goes with it, and elsewhere none that
# has not.
_TEXT_OF_ARRAY: Final = re.compile(rb"(?s)E?'\s*+\[.*'")
_SMALL_NUMERIC: Final = 18
"""The most digits of a ``numeric`` that is held in 64 bits."""


def kind_of(literal: bytes, place: Place) -> Kind:
    """Tell what the literals of its column have to have in common with this one."""
    match = _LITERAL.fullmatch(literal)
    if match is None or place is Place.EXPRESSION:
        return Kind(b"=" + literal)
    if literal == _NULL:
        return Kind(_NULL, _NULL)
    if _TEXT_OF_ARRAY.fullmatch(literal):
        return Kind(b"[")
    name: bytes = match["type"] or (match.lastgroup or "text").encode()
    null = b"NULL::" + name
    if place is Place.COLUMN:
        if name == b"bigint":
            name = b"int"
        elif match["digits"]:
            size = b"small" if int(match["digits"]) <= _SMALL_NUMERIC else b"big"
            name = b"%b numeric %b%b" % (size, match["scale"], match["array"])
    return Kind(name, null)


def _common(one: Kind, other: Kind) -> Kind | None:
    if one.name == other.name:
        return one
    if one.name == _NULL and other.null is not None:
        return other
    if other.name == _NULL and one.null is not None:
        return one
    return None


class Batch:
    """Rows of an INSERT that share a statement."""

    __slots__ = ("_columns", "_insert", "_rows", "_size")

    def __init__(self, insert: Insert) -> None:
        self._insert = insert
        self._rows: list[Sequence[bytes]] = []
        self._columns: list[Kind] = []
        self._size = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._rows)

    def add(self, literals: Sequence[bytes]) -> bool:
        """Add a row, unless it has to begin the next statement; the first fits always.

        Args:
            literals: those of the row, in the order of their placeholders.

        Returns:
            Whether it was added.
        """
        kinds = list(map(kind_of, literals, self._insert.places))
        size = len(self._insert.pattern) + sum(map(len, literals))
        if self._rows:
            literal_count = (len(self._rows) + 1) * max(len(literals), 1)
            if literal_count > MOST_LITERALS or self._size + size > MOST_BYTES:
                return False
            kinds = [
                common
                for column, kind in zip(self._columns, kinds, strict=True)
                if (common := _common(column, kind)) is not None
            ]
            if len(kinds) < len(self._columns):
                return False
        self._columns = kinds
        self._rows.append(literals)
        self._size += size
        return True

    def text(self) -> bytes:
        """Write the statement."""
        insert = self._insert
        nulls = [kind.null or _NULL for kind in self._columns]
        rows = (
            insert.pattern
            % tuple(
                null if literal == _NULL else literal
                for literal, null in zip(row, nulls, strict=True)
            )
            for row in self._rows
        )
        return b"%b%b%b" % (insert.head, b", ".join(rows), insert.tail)
