"""The slot table: facts about connections go in, decisions come out.

Pure: no method waits, opens or closes anything, and none leaves the table in a state
that another method does not expect. Facts are told by methods in the past participle.

Two numbers bound a pool. A *token* is the right to have a connection in use, opened,
cleaned or closed; whoever works on a slot holds its token, and an idle slot has none.
A *slot* is a connection that is alive in any of these states. What keeps the slots
from being more than ``max_size``: of the tokens, S belong to slots and G to tasks that
have been granted one and have not looked at the table yet, and S + G <= max_size. So
for each such task there is either an idle slot to reuse or replace, or room for a new
one, whatever order they come in, as long as nobody opens beside idle slots without
looking for room.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ._config import PoolConfig
from ._policy import CLEAN, Condition, Reason, is_probed, lifetime

ConnectionT = TypeVar("ConnectionT")
LeaseT = TypeVar("LeaseT")


class State(enum.Enum):
    """What a slot is busy with."""

    OPENING = "opening"
    IDLE = "idle"
    LEASED = "leased"
    CLEANING = "cleaning"
    """Being put right, or politely ended, by a task of the pool."""


# Looked up once, as they are on the path of every lease: see `CLEAN`.
_IDLE: Final = State.IDLE
_LEASED: Final = State.LEASED
_CLEANING: Final = State.CLEANING


class Fate(enum.Enum):
    """What to do with a connection that came back."""

    KEEP = "keep"
    CLEAN = "clean"
    RETIRE = "retire"
    DISCARD = "discard"


KEEP: Final = Fate.KEEP


class Slot(Generic[ConnectionT]):
    """One connection, from the decision to open it to its end."""

    __slots__ = (
        "connection",
        "expires_at",
        "generation",
        "is_connected",
        "is_due",
        "leases",
        "number",
        "opened_at",
        "permit",
        "proved",
        "reason",
        "returned_at",
        "state",
        "view",
    )

    connection: ConnectionT
    """Set as soon as there is one."""

    def __init__(self, permit: object, generation: int, proved: int) -> None:
        self.number: int = 0
        """The connection's, by which instruments know it."""
        self.state: State = State.OPENING
        self.permit: object | None = permit
        self.view: ConnectionT | None = None
        self.generation: int = generation
        self.proved: int = proved
        """How many had been found dead when this one last proved to be alive."""
        self.is_connected: bool = False
        """Whether `connection` is there, and nobody has begun to close it."""
        self.is_due: bool = False
        """Whether it has to pass the health check before it is handed out."""
        self.opened_at: float = math.nan
        self.expires_at: float = math.inf
        self.returned_at: float = math.nan
        self.leases: int = 0
        self.reason: Reason = Reason.CLOSED
        """Why it is to end, once that is decided."""

    def __repr__(self) -> str:
        return f"<Slot {self.state.value}, leased {self.leases} times>"


class SlotTable(Generic[ConnectionT, LeaseT]):
    """Which connections there are, and what each of them is busy with.

    Args:
        config: limits and periods.
        chance: gives numbers from 0 up to 1, to spread the lifetimes.
    """

    def __init__(self, config: PoolConfig, chance: Callable[[], float]) -> None:
        self._config = config
        self._chance = chance
        self.max_size: int = config.max_size
        self.slots: set[Slot[ConnectionT]] = set()
        self.idle: list[Slot[ConnectionT]] = []
        """The one given back last is at the end, and is leased first."""
        self.leased: dict[Slot[ConnectionT], LeaseT] = {}
        self.seekers: deque[LeaseT] = deque()
        """Leases that wait for a connection, and hold no token, in their order."""
        self.openers: int = 0
        self.attempts: int = 0
        self.generation: int = 0
        self.deaths: int = 0
        self._has_limits = min(config.max_lifetime, config.idle_timeout) < math.inf
        self._is_released = config.after_release is not None

    @property
    def has_spare_opener(self) -> bool:
        """Whether a connection is being opened that nobody has asked for."""
        return self.openers > len(self.seekers)

    @property
    def missing_idle(self) -> int:
        """How many connections to open so that ``min_idle`` of them are idle."""
        spare = len(self.idle) + max(0, self.openers - len(self.seekers))
        wanted = min(self._config.min_idle, self.max_size) - spare
        return max(0, min(wanted, self.max_size - len(self.slots)))

    def granted(self, permit: object, lease: LeaseT, now: float) -> Slot[ConnectionT]:
        """A lease has a token: decide which connection it gets.

        Returns:
            An idle connection, which is ``LEASED`` to it from now on; or a slot that
            is ``OPENING``: a new one, or one that has been `replaced`, because there
            is no room beside it.
        """
        idle = self.idle
        reason = None
        index = len(idle)
        while index:
            index -= 1
            slot = idle[index]
            reason = self._expiry(slot, index, now)
            if reason is None:
                del idle[index]
                slot.permit = permit
                self._lend(slot, lease, now - slot.returned_at, is_new=False)
                return slot
        if reason is None or len(self.slots) < self.max_size:
            return self.started(permit)
        slot = idle.pop(0)
        slot.permit = permit
        self.replaced(slot, reason)
        return slot

    def started(self, permit: object) -> Slot[ConnectionT]:
        """A connection is about to be opened by the bearer of this token."""
        slot: Slot[ConnectionT] = Slot(permit, self.generation, self.deaths)
        self.slots.add(slot)
        self.openers += 1
        return slot

    def replaced(self, slot: Slot[ConnectionT], reason: Reason) -> None:
        """Its connection is to be ended, and a new one opened in its place.

        The end and the opening share the slot and its token, so that there is never
        a moment with both connections alive.
        """
        self.leased.pop(slot, None)
        slot.state = State.OPENING
        slot.reason = reason
        self.openers += 1

    def condemned(self, slot: Slot[ConnectionT], reason: Reason) -> None:
        """A leased connection is going to be ended, and has no successor."""
        del self.leased[slot]
        slot.state = State.CLEANING
        slot.reason = reason

    def started_over(self, slot: Slot[ConnectionT]) -> None:
        """An attempt to open it begins: it is younger than all that came before."""
        self.attempts += 1
        slot.number = self.attempts
        slot.leases = 0
        slot.generation = self.generation
        slot.proved = self.deaths

    def opened(self, slot: Slot[ConnectionT], now: float) -> None:
        """The connection is there; `cleaned` and `arrived` decide who gets it."""
        self.openers -= 1
        slot.state = State.CLEANING
        slot.opened_at = slot.returned_at = now
        # Later than now, however short: the seeker that it was opened for gets it.
        expires_at = now + lifetime(self._config, self._chance())
        slot.expires_at = max(expires_at, math.nextafter(now, math.inf))

    def open_failed(self, slot: Slot[ConnectionT]) -> LeaseT | None:
        """It could not be opened: the seeker returned is to be told, if any.

        As long as no seeker is left without an opener, none has to know.
        """
        self.openers -= 1
        self.slots.discard(slot)
        if len(self.seekers) > self.openers:
            return self.seekers.popleft()
        return None

    def arrived(self, slot: Slot[ConnectionT], now: float) -> LeaseT | None:
        """A usable connection is free: it is the returned seeker's now, or idle.

        An idle slot's token is not the slot's any more, but the caller's to release.
        """
        slot.returned_at = now
        if self.seekers:
            seeker = self.seekers.popleft()
            self._lend(slot, seeker, 0.0, is_new=slot.leases == 0)
            return seeker
        slot.state = _IDLE
        slot.permit = None
        self.idle.append(slot)
        return None

    def returned(
        self, slot: Slot[ConnectionT], condition: Condition, now: float
    ) -> Fate:
        """A lease has ended: decide where its connection goes."""
        del self.leased[slot]
        slot.state = _CLEANING
        if condition is CLEAN or condition.is_curable:
            fate = self.cleaned(slot, now)
            if fate is KEEP and (self._is_released or condition is not CLEAN):
                return Fate.CLEAN
            return fate
        if condition is Condition.BROKEN:
            return self._fate(slot, Fate.DISCARD, Reason.BROKEN)
        if condition is Condition.CANCELLED:
            return self._fate(slot, Fate.RETIRE, Reason.CANCELLED)
        if condition is Condition.BUSY:
            return self._fate(slot, Fate.RETIRE, Reason.BUSY)
        return self._fate(slot, Fate.RETIRE, Reason.CHANGED)

    def cleaned(self, slot: Slot[ConnectionT], now: float) -> Fate:
        """A connection could be used again: decide whether it is kept."""
        if slot.generation != self.generation:
            return self._fate(slot, Fate.RETIRE, Reason.RESET)
        if now >= slot.expires_at:
            return self._fate(slot, Fate.RETIRE, Reason.LIFETIME)
        if len(self.slots) > self.max_size and not self.seekers:
            return self._fate(slot, Fate.RETIRE, Reason.RESIZED)
        return KEEP

    def died(self) -> None:
        """A connection was found dead: those opened before it are suspect."""
        self.deaths += 1

    def proved(self, slot: Slot[ConnectionT], deaths: int) -> None:
        """It answered a check that began when so many had been found dead."""
        slot.proved = deaths
        slot.is_due = False

    def ended(self, slot: Slot[ConnectionT]) -> None:
        """The connection is closed."""
        self.slots.discard(slot)
        self.leased.pop(slot, None)

    def was_reset(self) -> None:
        """Every connection of today is to be retired as it comes free."""
        self.generation += 1

    def taken_out(
        self, slot: Slot[ConnectionT], permit: object | None, reason: Reason
    ) -> None:
        """An idle connection is going to be ended."""
        self.idle.remove(slot)
        slot.permit = permit
        slot.state = State.CLEANING
        slot.reason = reason

    def expired(self, now: float) -> list[tuple[Slot[ConnectionT], Reason]]:
        """Idle connections that are to be retired, and why."""
        verdicts = (
            (slot, self._expiry(slot, index, now))
            for index, slot in enumerate(self.idle)
        )
        return [(slot, reason) for slot, reason in verdicts if reason is not None]

    def surplus(self) -> list[Slot[ConnectionT]]:
        """Idle connections that a smaller ``max_size`` leaves no room for."""
        # Of those that come out of cleaning, `cleaned` retires what is too many.
        kept = len(self.slots) - self.count(_CLEANING)
        return self.idle[: max(0, kept - self.max_size)]

    def next_expiry(self) -> float:
        """When the first of the idle connections is to be retired."""
        unused_from = self._config.idle_timeout
        subject = len(self.idle) - self._config.min_idle
        return min(
            (
                min(
                    slot.expires_at,
                    slot.returned_at + unused_from if index < subject else math.inf,
                )
                for index, slot in enumerate(self.idle)
            ),
            default=math.inf,
        )

    def count(self, *states: State) -> int:
        """How many slots are in one of these states."""
        return sum(slot.state in states for slot in self.slots)

    def _lend(
        self, slot: Slot[ConnectionT], lease: LeaseT, idle_for: float, *, is_new: bool
    ) -> None:
        slot.state = _LEASED
        self.leased[slot] = lease
        slot.is_due = not is_new and is_probed(
            self._config, idle_for, suspect=slot.proved != self.deaths
        )

    def _expiry(self, slot: Slot[ConnectionT], index: int, now: float) -> Reason | None:
        if slot.generation != self.generation:
            return Reason.RESET
        if not self._has_limits:
            return None
        if now >= slot.expires_at:
            return Reason.LIFETIME
        # Those that rested longest come first, and min_idle of the others stay.
        if (
            # The very sum that `next_expiry` gives: floats round.
            now >= slot.returned_at + self._config.idle_timeout
            and index < len(self.idle) - self._config.min_idle
        ):
            return Reason.IDLE
        return None

    def _fate(self, slot: Slot[ConnectionT], fate: Fate, reason: Reason) -> Fate:
        slot.reason = reason
        return fate
