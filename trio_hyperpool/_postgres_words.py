"""Pure: what the words of a PostgreSQL statement say it does to its session."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# What begins a statement, wherever one may begin: a text may hold several, and what
# stands in a literal may look like one. Then a reset is done that nobody needed.
_BEGINS: Final = re.compile(
    rb"""(?ix)
    (?: \A | ; | \*/ | --[^\r\n]*[\r\n] ) [\s(]*
    (?: SET \b (?! \s+ (?: LOCAL | TRANSACTION | CONSTRAINTS ) \b )
      | (?: RESET | LISTEN | PREPARE | LOAD | DO | CALL | DISCARD ) \b )
    """
)

# What changes a session wherever it stands: temporary objects, cursors WITH HOLD, and
# the functions that do so.
_HAS: Final = re.compile(
    rb"""(?ix)
    \b (?: TEMP | TEMPORARY | HOLD | set_config | setseed | dblink_connect(?:_u)?
         | pg_(?:try_)?advisory_lock(?:_shared)? ) \b
    | \b pg_temp
    """
)

# Queries longer than this are mostly written by machines, and no two are alike.
_LONGEST_CACHED: Final = 4096


def changes_session(text: bytes) -> bool:
    """Whether a text may leave traces in the session that outlast a transaction.

    It errs on the side of yes. What a function does that it calls is not in its words.
    """
    return (_read_cached if len(text) <= _LONGEST_CACHED else _read)(text)


def _read(text: bytes) -> bool:
    return _BEGINS.search(text) is not None or _HAS.search(text) is not None


_read_cached = lru_cache(maxsize=1024)(_read)
