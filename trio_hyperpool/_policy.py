"""Verdicts on a connection, and delays, as functions of record, config and time."""

from __future__ import annotations

import enum
from typing import Final

from ._config import HealthCheck, PoolConfig

SPREAD = 0.1
"""The part of ``max_lifetime`` over which connections of one age are retired."""

JITTER = 0.5
"""The part of a delay that is left to chance, so that retries do not fall together."""

LONGEST_BACKOFF = 10.0
"""Seconds: a server that is away for long is still tried now and then."""


class Condition(enum.Enum):
    """What a borrower left behind: decides where the connection goes next."""

    CLEAN = "clean"
    """As ``after_connect`` left it: the next borrower may have it at once."""

    DIRTY = "dirty"
    """To be put right by `Connector.clean` before anybody else has it."""

    ALTERED = "altered"
    """To be put right, too: its session is changed, or may be. A hook may leave it."""

    CHANGED = "changed"
    """Its session was changed in ways that only a new connection undoes: retired."""

    CANCELLED = "cancelled"
    """A cancel request was sent, and may yet arrive late: retired."""

    BUSY = "busy"
    """The server is still at work on something of the borrower's: retired."""

    BROKEN = "broken"
    """No use any more: discarded."""

    @property
    def is_curable(self) -> bool:
        """Whether `Connector.clean` is what it needs."""
        return self is Condition.DIRTY or self is Condition.ALTERED


CLEAN: Final = Condition.CLEAN
"""Looked up once for every lease: on Python 3.11, in an enum takes as long as a call."""


class Reason(enum.Enum):
    """Why a connection was ended."""

    LIFETIME = "max_lifetime"
    IDLE = "idle_timeout"
    RESET = "reset"
    RESIZED = "resize"
    REQUESTED = "retire_idle"
    QUIESCED = "quiesce"
    CLOSED = "pool closed"
    CANCELLED = "cancelled query"
    CHANGED = "changed session"
    BUSY = "returned busy"
    REVOKED = "revoked"
    HOOK = "failed hook"
    DEAD = "found dead"
    CHECK = "failed health check"
    BROKEN = "returned broken"
    CLEANING = "failed cleaning"
    ABANDONED = "abandoned"


def lifetime(config: PoolConfig, chance: float) -> float:
    """Seconds that a new connection may live; ``chance`` is from 0 up to 1."""
    return config.max_lifetime * (1 - SPREAD * chance)


def is_probed(config: PoolConfig, idle_for: float, *, suspect: bool) -> bool:
    """Whether a connection is asked for a sign of life before it is used again.

    One opened before another was found dead is suspect, however short its rest was.
    """
    if config.health_check is HealthCheck.PASSIVE:
        return False
    return suspect or idle_for >= config.health_check_after


def backoff(config: PoolConfig, failures: int, chance: float) -> float:
    """Seconds before the next attempt after so many failures, one at least."""
    # The exponent is bounded: 2.0 ** 1024 raises, where a product would be infinite.
    doubled = config.create_backoff * 2.0 ** min(failures - 1, 64)
    return min(doubled, LONGEST_BACKOFF) * (1 - JITTER * chance)
