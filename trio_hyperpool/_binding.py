"""Where the placeholders of a query are, and what its words do to a session.

Client-side binding puts a value's literal into the text of the query. That is safe
only where a literal may stand, so the text is read with the server's own lexical
rules, and a placeholder anywhere else is refused:

* Within quotes, a quoted name, a dollar quote or a comment a literal is no literal.
* Touching a word, a digit or a quote it would become part of it (``E%s``, ``1%s``).
* Beside another literal the server may join the two into one.

The server's rules differ from PostgreSQL's in places: block comments do not nest,
and ``$`` is no part of a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from psycopg import ProgrammingError

_Params: TypeAlias = Sequence[Any] | Mapping[str, Any]

TOKEN: Final = re.compile(
    rb"""(?xs)
      (?P<blank>   \s+ | --[^\r\n]* | /\*.*?\*/ )
    | (?P<escaped> [eE]' (?: [^'\\] | '' | \\. )* ' )
    | (?P<string>  ' (?: [^'] | '' )* ' )
    | (?P<name>    " (?: [^"] | "" )* " )
    | (?P<dollar>  \$ (?P<tag> (?: [A-Za-z_\x80-\xff] [A-Za-z0-9_\x80-\xff]* )? ) \$
                   .*? \$ (?P=tag) \$ )
    | (?P<place>   %% | % \( (?P<key> [^)]* ) \) [a-z]? | % . | % )
    | (?P<word>    [A-Za-z_\x80-\xff] [A-Za-z0-9_\x80-\xff]* )
    | (?P<number>  [0-9]+ )
    | (?P<open>    /\* | ['"$] )
    | (?P<other>   . )
    """
)
_TOUCHING: Final = re.compile(rb"[A-Za-z0-9_$.'\"\x80-\xff]")
_UNICODE_PREFIX: Final = re.compile(rb"(?<![A-Za-z0-9_\x80-\xff])[uU]&\Z")
_QUOTED: Final = {
    "blank": "a comment",
    "escaped": "a string literal",
    "string": "a string literal",
    "name": "a quoted name",
    "dollar": "a dollar-quoted string",
}
_LITERALS: Final = frozenset({"escaped", "string", "dollar", "place"})

# Queries longer than this are mostly written by machines, and no two are alike.
_LONGEST_CACHED: Final = 4096


class Template(NamedTuple):
    """A query cut at its placeholders: there is one chunk more than there are keys."""

    chunks: tuple[bytes, ...]
    """What stands before, between and after the placeholders, ``%%`` undone."""

    keys: tuple[str, ...] | None
    """The names of the placeholders in order, or None if they have no names."""

    def arrange(self, params: _Params) -> Sequence[Any]:
        """Put the parameters in the order of their placeholders.

        Raises:
            ProgrammingError: if their number or names do not fit.
            TypeError: if a mapping is needed and a sequence given, or the reverse.
        """
        count = len(self.chunks) - 1
        if isinstance(params, Mapping):
            if self.keys is None:
                if not count:
                    return ()
                raise TypeError("the placeholders have no names: pass a sequence")
            missing = sorted({key for key in self.keys if key not in params})
            if missing:
                raise ProgrammingError(f"query parameter missing: {', '.join(missing)}")
            return [params[key] for key in self.keys]
        # A caller without type checks may pass anything, a string above all.
        if isinstance(params, (str, bytes)) or not isinstance(params, Sequence):
            raise TypeError(
                "query parameters are a sequence or a mapping, not "
                f"{type(params).__qualname__}"
            )
        if self.keys is not None:
            raise TypeError("the placeholders have names: pass a mapping")
        if len(params) != count:
            raise ProgrammingError(
                f"the query has {count} placeholders but {len(params)} "
                "parameters were passed"
            )
        return params


def parse(query: bytes) -> Template:
    """Find the placeholders of a query.

    Raises:
        ProgrammingError: if one is where no literal may stand, or is malformed.
    """
    return (_parse_cached if len(query) <= _LONGEST_CACHED else _parse)(query)


def _parse(query: bytes) -> Template:
    chunks: list[bytes] = []
    keys: list[str | None] = []
    text = bytearray()
    before = ""
    for match in TOKEN.finditer(query):
        kind, token = str(match.lastgroup), match.group()
        if kind == "key":  # pragma: no cover - lastgroup is the outer group
            kind = "place"
        if kind == "place" and token != b"%%":
            if before in _LITERALS:
                raise _refusal(query, match.start(), "stands beside a literal")
            keys.append(_key(query, match))
            chunks.append(bytes(text))
            text.clear()
            before = kind
            continue
        if kind == "open":
            raise ProgrammingError(
                "a query with parameters cannot hold this, which nothing ends or "
                f"which numbers a parameter: {_excerpt(query, match.start())}"
            )
        if kind in ("escaped", "string", "dollar") and before in ("escaped", "place"):
            # Two adjacent string literals are one to the server, in the escape
            # syntax of the first: what ends the second would be a guess here.
            raise ProgrammingError(
                f"a literal stands beside another: {_excerpt(query, match.start())}"
            )
        text += _undouble(query, match, kind) if b"%" in token else token
        if kind != "blank":
            before = kind if token != b"%%" else "other"
    chunks.append(bytes(text))
    named = [key for key in keys if key is not None]
    if named and len(named) != len(keys):
        raise ProgrammingError("placeholders with names and without cannot be mixed")
    return Template(tuple(chunks), tuple(named) if named else None)


_parse_cached = lru_cache(maxsize=256)(_parse)


def _undouble(query: bytes, match: re.Match[bytes], kind: str) -> bytes:
    token = match.group()
    single = token.replace(b"%%", b"")
    if b"%" in single:
        at = match.start() + token.index(b"%")
        raise _refusal(query, at, f"stands within {_QUOTED[kind]}")
    return token.replace(b"%%", b"%")


def _key(query: bytes, match: re.Match[bytes]) -> str | None:
    token, key = match.group("place"), match.group("key")
    if token[-1:] not in b"sbt" or token == b"%" or (key == b""):
        raise ProgrammingError(
            "placeholders are %s or %(name)s, and a percent sign is written %% in a "
            f"query with parameters: {_excerpt(query, match.start())}"
        )
    start, end = match.span("place")
    if (
        _TOUCHING.match(query, start - 1, start)
        or _TOUCHING.match(query, end)
        or _UNICODE_PREFIX.search(query, max(0, start - 3), start)
    ):
        raise _refusal(query, start, "touches a word, a number or a quote")
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ProgrammingError("the query is not valid UTF-8") from None


def _refusal(query: bytes, at: int, why: str) -> ProgrammingError:
    return ProgrammingError(
        f"a placeholder {why}, where its value could get out of its literal (and a "
        "percent sign is written %% in a query with parameters): "
        f"{_excerpt(query, at)}"
    )


def _excerpt(query: bytes, at: int) -> str:
    start = max(0, at - 10)
    return repr(query[start : at + 20].decode(errors="replace"))


# What a statement does is told by its first word, comments skipped. Hyper takes one
# statement at a time.
_BLANKS: Final = rb"(?:\s+|--[^\r\n]*|/\*.*?\*/)"
_FIRST_WORD: Final = re.compile(rb"(?s)(?:" + _BLANKS + rb"|[(;])*+([A-Za-z]+)")
_SECOND_PART: Final = re.compile(
    rb"(?is)(?:" + _BLANKS + rb"|LOCAL\b|GLOBAL\b)*+TEMP(?:ORARY)?\b"
)
_WITH_HOLD: Final = re.compile(rb"(?is)\bWITH" + _BLANKS + rb"++HOLD\b")
_SET_CONFIG: Final = re.compile(rb"(?i)\bset_config\b")
_COPY_STREAM: Final = re.compile(rb"(?i)\b(?:STDIN|STDOUT)\b")
_FORMAT: Final = re.compile(rb"(?i)\bFORMAT\b")

_ATTACHED_AS: Final = re.compile(
    rb"(?is)\bAS" + _BLANKS + rb'++("(?:[^"]|"")++"|[A-Za-z_\x80-\xff][\w\x80-\xff]*+)'
    rb"(?:" + _BLANKS + rb"|;)*+(?:\Z|WITH\b)"
)

_CHANGES_SESSION: Final = frozenset(
    {b"SET", b"RESET", b"ATTACH", b"DETACH", b"PREPARE"}
)
_CRASHES: Final = "crashes hyperd"
_SHORTENED: Final = "gives the first row only: write SELECT * FROM (VALUES …) AS t"
_IF_EXTENDED: Final = {
    "FETCH": _CRASHES,
    "MOVE": _CRASHES,
    "EXECUTE": _CRASHES,
    "VALUES": _SHORTENED,
}


class Statement(NamedTuple):
    """What the words of a statement tell about it."""

    verb: str
    """Its first word, in capitals; empty if there is none."""

    changes_session: bool
    """Whether it may leave traces in the session that outlast a transaction."""

    alias: str | None = None
    """The name, as it was written, that it attaches a database under."""

    @property
    def if_extended(self) -> str | None:
        """What is bad about sending it by the extended protocol, if anything is."""
        return _IF_EXTENDED.get(self.verb)

    @property
    def resets_settings(self) -> bool:
        """Whether it takes settings back to what the server started with."""
        return self.verb == "RESET"


def read_statement(query: bytes) -> Statement:
    """Read what a statement is, from its first words."""
    return (_read_cached if len(query) <= _LONGEST_CACHED else _read)(query)


def _read(query: bytes) -> Statement:
    if (match := _FIRST_WORD.match(query)) is None:
        return Statement("", changes_session=False)
    verb = match.group(1).upper()
    changes = (
        verb in _CHANGES_SESSION
        or (verb == b"CREATE" and _SECOND_PART.match(query, match.end()) is not None)
        or (verb == b"DECLARE" and _WITH_HOLD.search(query) is not None)
        or (_SET_CONFIG.search(query) is not None)
    )
    alias = _ATTACHED_AS.search(query) if verb == b"ATTACH" else None
    return Statement(
        verb.decode(),
        changes_session=changes,
        alias=alias.group(1).decode(errors="replace") if alias else None,
    )


_read_cached = lru_cache(maxsize=256)(_read)


def lacks_copy_format(statement: bytes) -> bool:
    """Whether this is a COPY from or to the client that names no format."""
    return (
        read_statement(statement).verb == "COPY"
        and _COPY_STREAM.search(statement) is not None
        and _FORMAT.search(statement) is None
    )
