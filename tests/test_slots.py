"""The slot table decides rightly: fact by fact, and in any order of facts.

The state machine at the end knows of tokens and tasks what the pool knows, and does
with the table what the pool does, only in every order that there is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TypeAlias, TypeVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_hyperpool._config import HealthCheck, PoolConfig
from trio_hyperpool._policy import Condition, Reason, is_probed, lifetime
from trio_hyperpool._slots import Fate, Slot, SlotTable, State

make: Callable[..., PoolConfig] = functools.partial(PoolConfig, database="d.hyper")


async def hook(_connection: object) -> None: ...


T = TypeVar("T")
Table: TypeAlias = SlotTable[str, str]


def table_of(chance: float = 0.0, **options: object) -> Table:
    return SlotTable(make(**options), lambda: chance)


def open_idle(table: Table, now: float) -> Slot[str]:
    """Open a connection for which nobody waits."""
    slot = table.started("permit")
    table.opened(slot, now)
    assert table.arrived(slot, now) is None
    return slot


def lend(table: Table, lease: str, now: float) -> Slot[str]:
    """Lease the idle connection that the table chooses."""
    slot = table.granted(f"permit of {lease}", lease, now)
    assert slot.state is State.LEASED
    slot.leases += 1
    return slot


def open_leased(table: Table, lease: str, now: float) -> Slot[str]:
    open_idle(table, now)
    return lend(table, lease, now)


def give_back(table: Table, slot: Slot[str], now: float) -> None:
    assert table.returned(slot, Condition.CLEAN, now) is Fate.KEEP
    assert table.arrived(slot, now) is None


# Which connection a lease gets


def test_the_first_lease_opens_a_connection() -> None:
    table = table_of()
    slot = table.granted("permit", "A", 0)
    assert slot.state is State.OPENING
    assert slot.permit == "permit"
    assert slot in table.slots
    assert table.openers == 1
    assert not table.leased


def test_the_connection_given_back_last_is_leased_first() -> None:
    table = table_of()
    first, second = open_idle(table, 0), open_idle(table, 0)
    slot = table.granted("permit", "A", 1)
    assert slot is second
    assert slot.permit == "permit"
    assert slot.state is State.LEASED
    assert table.leased == {second: "A"}
    assert table.idle == [first]


def test_an_expired_connection_is_passed_over() -> None:
    table = table_of(max_lifetime=10)
    older = open_idle(table, 0)
    younger = open_idle(table, 1)
    assert table.granted("permit", "A", 10) is younger
    assert table.granted("permit", "B", 10) not in {older, younger}
    assert table.idle == [older]


def test_of_two_the_one_given_back_first_is_leased_if_the_other_has_expired() -> None:
    chances = iter([0, 0.5])
    table: Table = SlotTable(make(max_lifetime=10), lambda: next(chances))
    lasting, _ = open_idle(table, 0), open_idle(table, 0)
    assert table.granted("permit", "A", 9.7) is lasting
    assert lasting.state is State.LEASED


def test_a_connection_from_before_a_reset_is_passed_over() -> None:
    table = table_of()
    old = open_idle(table, 0)
    table.was_reset()
    new = table.granted("permit", "A", 0)
    assert new.state is State.OPENING
    assert new.generation == table.generation != old.generation
    assert table.idle == [old]


def test_an_expired_connection_in_the_way_is_replaced() -> None:
    table = table_of(max_size=2, max_lifetime=10)
    oldest, newest = open_idle(table, 0), open_idle(table, 0)
    slot = table.granted("permit", "A", 10)
    assert slot is oldest
    assert slot.state is State.OPENING
    assert slot.reason is Reason.LIFETIME
    assert slot.permit == "permit"
    assert table.slots == {oldest, newest}
    assert table.idle == [newest]
    assert table.openers == 1


def test_one_that_rested_too_long_is_replaced_for_that_reason() -> None:
    table = table_of(max_size=1, idle_timeout=5)
    slot = open_idle(table, 0)
    assert table.granted("permit", "A", 5) is slot
    assert slot.state is State.OPENING
    assert slot.reason is Reason.IDLE


def test_a_connection_is_opened_beside_expired_ones_only_if_there_is_room() -> None:
    table = table_of(max_size=2)
    old = open_idle(table, 0)
    table.was_reset()
    assert table.granted("permit", "A", 0) is not old
    assert table.granted("permit", "B", 0) is old
    assert len(table.slots) == 2


def test_a_token_from_before_a_shrink_is_still_good_for_a_connection() -> None:
    table = table_of(max_size=2)
    open_leased(table, "A", 0)
    table.max_size = 1
    slot = table.granted("permit", "B", 0)
    assert slot.state is State.OPENING
    assert slot in table.slots


# Whether it is probed


def test_a_connection_is_probed_when_it_has_rested() -> None:
    table = table_of(health_check_after=2)
    slot = open_leased(table, "A", 0)
    give_back(table, slot, 10)
    assert not lend(table, "B", 11.9).is_due
    give_back(table, slot, 20)
    assert lend(table, "C", 22).is_due


def test_a_new_connection_is_not_probed() -> None:
    table = table_of(health_check_after=0)
    slot = table.started("permit")
    table.seekers.append("A")
    table.opened(slot, 0)
    assert table.arrived(slot, 0) == "A"
    assert not slot.is_due


def test_one_that_was_never_leased_is_probed_when_it_has_rested_or_is_suspect() -> None:
    table = table_of(health_check_after=2)
    open_idle(table, 0)
    assert not lend(table, "A", 1.9).is_due
    open_idle(table, 0)
    assert lend(table, "B", 2).is_due
    open_idle(table, 2)
    table.died()
    assert lend(table, "C", 2).is_due


def test_one_handed_over_without_a_rest_is_probed_only_if_every_checkout_is() -> None:
    for seconds, is_due in ((0, True), (0.001, False)):
        table = table_of(health_check_after=seconds)
        slot = open_leased(table, "A", 0)
        table.seekers.append("B")
        assert table.returned(slot, Condition.CLEAN, 5) is Fate.KEEP
        assert table.arrived(slot, 5) == "B"
        assert slot.is_due is is_due


def test_a_death_makes_those_opened_before_it_suspect_until_they_answer() -> None:
    table = table_of(health_check_after=math.inf)
    slot = open_leased(table, "A", 0)
    table.died()
    give_back(table, slot, 0)
    assert lend(table, "B", 0).is_due
    table.proved(slot, table.deaths)
    assert slot.is_due is False
    give_back(table, slot, 0)
    assert not lend(table, "C", 0).is_due


def test_a_death_during_the_check_leaves_the_one_that_answered_suspect() -> None:
    table = table_of(health_check_after=math.inf)
    slot = open_leased(table, "A", 0)
    table.died()
    asked_at = table.deaths
    table.died()
    table.proved(slot, asked_at)
    give_back(table, slot, 0)
    assert lend(table, "B", 0).is_due


def test_one_opened_after_a_death_is_no_suspect() -> None:
    table = table_of(health_check_after=math.inf)
    table.died()
    slot = open_leased(table, "A", 0)
    give_back(table, slot, 0)
    assert not lend(table, "B", 0).is_due


def test_an_attempt_that_starts_over_is_younger_than_all_before_it() -> None:
    table = table_of(health_check_after=math.inf)
    slot = open_leased(table, "A", 0)
    table.died()
    table.was_reset()
    table.replaced(slot, Reason.CHECK)
    table.started_over(slot)
    assert slot.leases == 0
    assert slot.generation == table.generation
    assert slot.proved == table.deaths


def test_attempts_are_numbered_from_one_and_zero_is_before_the_first() -> None:
    table = table_of()
    slots = [table.started(number) for number in range(2)]
    assert [slot.number for slot in slots] == [0, 0]
    for slot in slots:
        table.started_over(slot)
    assert [slot.number for slot in slots] == [1, 2]
    table.started_over(slots[0])
    assert [slot.number for slot in slots] == [3, 2]


# Seekers and openers


def test_a_connection_that_arrives_goes_to_the_first_seeker() -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    table.seekers.extend(["B", "C"])
    assert table.returned(slot, Condition.CLEAN, 5) is Fate.KEEP
    assert table.arrived(slot, 5) == "B"
    assert slot.state is State.LEASED
    assert slot.permit == "permit of A"
    assert slot.returned_at == 5
    assert table.leased == {slot: "B"}
    assert list(table.seekers) == ["C"]
    assert table.idle == []


def test_a_connection_that_nobody_seeks_goes_idle_without_a_token() -> None:
    table = table_of()
    other = open_idle(table, 0)
    slot = table.started("permit")
    table.opened(slot, 1)
    assert table.arrived(slot, 2) is None
    assert slot.state is State.IDLE
    assert slot.permit is None
    assert (slot.opened_at, slot.returned_at) == (1, 2)
    assert table.idle == [other, slot]


def test_an_opener_is_spare_if_fewer_seek_than_are_opened() -> None:
    table = table_of()
    assert not table.has_spare_opener
    table.started("permit")
    assert table.has_spare_opener
    table.seekers.append("A")
    assert not table.has_spare_opener


def test_a_connection_that_was_opened_counts_its_life_from_now() -> None:
    table = table_of(chance=0.5, max_lifetime=100)
    slot = table.started("permit")
    assert math.isnan(slot.opened_at)
    assert math.isnan(slot.returned_at)
    table.opened(slot, 7)
    assert table.openers == 0
    assert slot.state is State.CLEANING
    assert (slot.opened_at, slot.returned_at) == (7, 7)
    assert slot.expires_at == pytest.approx(7 + 95)


def test_a_new_connection_is_not_too_old_for_the_seeker_it_was_opened_for() -> None:
    table = table_of(max_lifetime=1e-12)
    slot = table.started("permit")
    table.seekers.append("A")
    table.opened(slot, 1e6)
    assert table.cleaned(slot, 1e6) is Fate.KEEP
    assert table.arrived(slot, 1e6) == "A"
    assert table.returned(slot, Condition.CLEAN, 1e6 + 1e-9) is Fate.RETIRE


def test_a_failed_open_reaches_a_seeker_only_if_no_opener_is_left_for_it() -> None:
    table = table_of()
    first, second = table.started("1"), table.started("2")
    table.seekers.append("A")
    assert table.open_failed(first) is None
    assert table.slots == {second}
    assert table.open_failed(second) == "A"
    assert table.openers == 0
    assert not table.slots
    assert not table.seekers


def test_of_two_seekers_the_first_is_told_of_a_failed_open() -> None:
    table = table_of()
    first, _ = table.started("1"), table.started("2")
    table.seekers.extend(["A", "B"])
    assert table.open_failed(first) == "A"
    assert list(table.seekers) == ["B"]


def test_a_failed_open_that_nobody_waits_for_is_told_to_nobody() -> None:
    table = table_of()
    assert table.open_failed(table.started("permit")) is None


# What becomes of one that came back


@pytest.mark.parametrize(
    ("condition", "fate", "reason"),
    [
        (Condition.CLEAN, Fate.KEEP, None),
        (Condition.DIRTY, Fate.CLEAN, None),
        (Condition.ALTERED, Fate.CLEAN, None),
        (Condition.CHANGED, Fate.RETIRE, Reason.CHANGED),
        (Condition.CANCELLED, Fate.RETIRE, Reason.CANCELLED),
        (Condition.BUSY, Fate.RETIRE, Reason.BUSY),
        (Condition.BROKEN, Fate.DISCARD, Reason.BROKEN),
    ],
)
def test_the_condition_decides_where_a_connection_goes(
    condition: Condition, fate: Fate, reason: Reason | None
) -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    assert table.returned(slot, condition, 1) is fate
    assert slot.state is State.CLEANING
    assert slot in table.slots
    assert not table.leased
    if reason is not None:
        assert slot.reason is reason


@pytest.mark.parametrize("condition", [Condition.CLEAN, Condition.DIRTY])
def test_a_hook_after_release_is_run_on_whatever_is_kept(condition: Condition) -> None:
    table = table_of(after_release=hook, max_lifetime=10)
    slot = open_leased(table, "A", 0)
    assert table.returned(slot, condition, 9) is Fate.CLEAN
    assert table.cleaned(slot, 9) is Fate.KEEP
    slot = open_leased(table, "B", 0)
    assert table.returned(slot, condition, 10) is Fate.RETIRE


@pytest.mark.parametrize("condition", [Condition.CLEAN, Condition.DIRTY])
def test_one_from_before_a_reset_is_retired_when_it_comes_back(
    condition: Condition,
) -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    table.was_reset()
    table.seekers.append("B")
    assert table.returned(slot, condition, 0) is Fate.RETIRE
    assert slot.reason is Reason.RESET


@pytest.mark.parametrize("condition", [Condition.CLEAN, Condition.DIRTY])
def test_one_that_is_too_old_is_retired_when_it_comes_back(
    condition: Condition,
) -> None:
    table = table_of(max_lifetime=10)
    slot = open_leased(table, "A", 0)
    assert table.returned(slot, condition, 10) is Fate.RETIRE
    assert slot.reason is Reason.LIFETIME


def test_one_that_a_smaller_pool_has_no_room_for_is_retired_when_it_comes_back() -> (
    None
):
    table = table_of(max_size=2)
    first, second = open_leased(table, "A", 0), open_leased(table, "B", 0)
    table.max_size = 1
    assert table.returned(first, Condition.CLEAN, 0) is Fate.RETIRE
    assert first.reason is Reason.RESIZED
    table.ended(first)
    assert table.returned(second, Condition.CLEAN, 0) is Fate.KEEP


def test_every_reset_is_one_more() -> None:
    table = table_of()
    for _ in range(3):
        slot = open_idle(table, 0)
        assert table.expired(0) == []
        table.was_reset()
        assert table.expired(0) == [(slot, Reason.RESET)]
        table.taken_out(slot, "permit", Reason.RESET)
        table.ended(slot)


def test_a_smaller_pool_keeps_one_that_somebody_seeks() -> None:
    table = table_of(max_size=2)
    slot, _ = open_leased(table, "A", 0), open_leased(table, "B", 0)
    table.max_size = 1
    table.seekers.append("C")
    assert table.returned(slot, Condition.CLEAN, 0) is Fate.KEEP


def test_what_ended_is_nowhere() -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    table.ended(slot)
    assert not table.slots
    assert not table.leased
    table.ended(slot)


def test_a_condemned_connection_is_no_lease_any_more_and_has_no_successor() -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    table.condemned(slot, Reason.HOOK)
    assert slot.state is State.CLEANING
    assert slot.reason is Reason.HOOK
    assert slot.permit == "permit of A"
    assert table.slots == {slot}
    assert not table.leased
    assert table.openers == 0


def test_a_leased_connection_is_replaced_in_its_own_slot() -> None:
    table = table_of()
    slot = open_leased(table, "A", 0)
    other = table.started("permit")
    table.replaced(slot, Reason.CHECK)
    assert slot.state is State.OPENING
    assert slot.reason is Reason.CHECK
    assert slot.permit == "permit of A"
    assert table.slots == {slot, other}
    assert not table.leased
    assert table.openers == 2


# What becomes of idle ones


def test_an_idle_connection_that_is_taken_out_has_a_token_and_a_reason() -> None:
    table = table_of()
    first, second = open_idle(table, 0), open_idle(table, 0)
    table.taken_out(first, "permit", Reason.REQUESTED)
    assert first.state is State.CLEANING
    assert first.permit == "permit"
    assert first.reason is Reason.REQUESTED
    assert table.idle == [second]
    assert table.slots == {first, second}


def test_idle_connections_expire_by_age_by_rest_and_by_reset() -> None:
    table = table_of(max_lifetime=10, idle_timeout=6)
    old = open_idle(table, 0)
    rested = open_idle(table, 3)
    fresh = open_idle(table, 5)
    assert table.expired(5.999) == []
    assert table.expired(6) == [(old, Reason.IDLE)]
    assert table.expired(9) == [(old, Reason.IDLE), (rested, Reason.IDLE)]
    assert table.expired(10) == [(old, Reason.LIFETIME), (rested, Reason.IDLE)]
    table.was_reset()
    assert table.expired(0) == [(slot, Reason.RESET) for slot in (old, rested, fresh)]


def test_min_idle_of_those_that_rest_stay_the_youngest() -> None:
    table = table_of(min_idle=2, idle_timeout=5)
    oldest = open_idle(table, 0)
    open_idle(table, 0)
    open_idle(table, 0)
    assert table.expired(100) == [(oldest, Reason.IDLE)]
    table.taken_out(oldest, "permit", Reason.IDLE)
    assert table.expired(100) == []
    assert table.next_expiry() == math.inf


def test_min_idle_does_not_save_one_that_is_too_old() -> None:
    table = table_of(min_idle=1, max_lifetime=5)
    slot = open_idle(table, 0)
    assert table.expired(5) == [(slot, Reason.LIFETIME)]
    assert table.next_expiry() == 5


def test_the_next_expiry_is_that_of_whichever_goes_first() -> None:
    table = table_of(max_lifetime=10, idle_timeout=6)
    assert table.next_expiry() == math.inf
    slot = open_leased(table, "A", 0)
    assert table.next_expiry() == math.inf
    open_idle(table, 2)
    assert table.next_expiry() == 8
    give_back(table, slot, 3)
    assert table.next_expiry() == 8
    table.taken_out(table.idle[0], "permit", Reason.REQUESTED)
    assert table.next_expiry() == 9
    lend(table, "B", 6)
    give_back(table, slot, 6)
    assert table.next_expiry() == 10


def test_connections_of_one_age_are_retired_one_after_the_other() -> None:
    chances = iter([0.75, 0.25])
    table: Table = SlotTable(make(max_lifetime=100), lambda: next(chances))
    first, second = open_idle(table, 0), open_idle(table, 0)
    assert first.expires_at == pytest.approx(92.5)
    assert second.expires_at == pytest.approx(97.5)


def test_the_surplus_is_what_rested_longest() -> None:
    table = table_of(max_size=4)
    leased = open_leased(table, "A", 0)
    idle = [open_idle(table, 0) for _ in range(3)]
    assert table.surplus() == []
    table.max_size = 3
    assert table.surplus() == idle[:1]
    table.max_size = 1
    assert table.surplus() == idle
    table.max_size = 9
    assert table.surplus() == []
    assert leased.state is State.LEASED


def test_what_is_missing_is_counted_up_to_min_idle() -> None:
    table = table_of(max_size=4, min_idle=3)
    assert table.missing_idle == 3
    open_idle(table, 0)
    assert table.missing_idle == 2
    table.started("permit")
    assert table.missing_idle == 1
    open_idle(table, 0)
    assert table.missing_idle == 0
    open_idle(table, 0)
    assert table.missing_idle == 0


def test_a_connection_that_is_opened_for_a_lease_will_not_be_idle() -> None:
    table = table_of(max_size=4, min_idle=2)
    table.started("permit")
    table.seekers.append("A")
    assert table.missing_idle == 2
    table.seekers.append("B")
    assert table.missing_idle == 2


def test_no_more_is_missing_than_there_is_room_for() -> None:
    table = table_of(max_size=4, min_idle=3)
    for lease in "ABC":
        open_leased(table, lease, 0)
    assert table.missing_idle == 1
    table.max_size = 2
    assert table.missing_idle == 0


def test_a_pool_smaller_than_min_idle_is_full_of_idle_connections() -> None:
    table = table_of(max_size=4, min_idle=4)
    table.max_size = 2
    open_idle(table, 0)
    assert table.missing_idle == 1


# What it looks like


def test_slots_are_counted_by_their_states() -> None:
    table = table_of()
    open_idle(table, 0)
    open_idle(table, 0)
    open_leased(table, "A", 0)
    table.started("permit")
    assert [table.count(state) for state in State] == [1, 2, 1, 0]
    assert table.count(State.IDLE, State.OPENING) == 3
    assert table.count() == 0


def test_a_slot_that_nobody_decided_on_yet_ends_when_the_pool_closes() -> None:
    slot = table_of().started("permit")
    assert slot.reason is Reason.CLOSED
    assert slot.view is None
    assert slot.expires_at == math.inf
    assert slot.is_due is False
    assert slot.is_connected is False
    assert not hasattr(slot, "connection")


def test_a_slot_takes_a_connection_and_a_view_and_nothing_else() -> None:
    slot = table_of().started("permit")
    slot.connection = "connection"
    slot.view = "view"
    with pytest.raises(AttributeError):
        slot.conexion = "connection"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "decisions"),
    [
        ("opening idle leased cleaning", State),
        ("keep clean retire discard", Fate),
    ],
)
def test_states_and_decisions_are_words(words: str, decisions: type[Enum]) -> None:
    assert " ".join(decision.value for decision in decisions) == words


def test_the_repr_of_a_slot_is_a_status_line() -> None:
    slot = open_leased(table_of(), "A", 0)
    assert repr(slot) == "<Slot leased, leased 1 times>"
    assert not hasattr(slot, "__dict__")


# In any order


@dataclasses.dataclass(eq=False)
class Lease:
    """One task's wish for a connection."""

    number: int
    deaths: int = 0
    """How many had been found dead when it got its connection."""
    is_handed_out: bool = False

    def __repr__(self) -> str:
        return f"lease {self.number}"


LeaseSlot: TypeAlias = Slot[str]
some = st.integers(0, 11)
"""Which of those that there are, counted round and round."""
conditions = st.just(Condition.CLEAN) | st.sampled_from(Condition)


@st.composite
def configs(draw: st.DrawFn) -> PoolConfig:
    min_idle = draw(st.integers(0, 2))
    return make(
        min_idle=min_idle,
        max_size=draw(st.integers(max(1, min_idle), 4)),
        idle_timeout=draw(st.sampled_from([math.inf, 2.0])),
        max_lifetime=draw(st.sampled_from([math.inf, 5.3, 1e-12])),
        health_check=draw(st.sampled_from([HealthCheck.PING, HealthCheck.PASSIVE])),
        health_check_after=draw(st.sampled_from([0.0, 1.0, math.inf])),
        after_release=draw(st.sampled_from([None, hook])),
    )


class AnyPool(RuleBasedStateMachine):
    """A pool without time, tasks and connections of its own: all of it is chosen."""

    @initialize(config=configs())
    def begin(self, config: PoolConfig) -> None:
        self.config = config
        self.chance = 0.0
        self.table: SlotTable[str, Lease] = SlotTable(config, lambda: self.chance)
        self.now = 1e6 / 3
        self.limit = config.max_size
        self.most = config.max_size
        """As many slots, or tokens, as there may be after the next rule."""
        self.tokens: set[object] = set()
        self.count = 0
        self.queue: deque[Lease] = deque()
        self.granted: list[tuple[Lease, object]] = []
        """Those that have a token, and have not looked at the table yet."""
        self.seekers: deque[Lease] = deque()
        self.held: dict[LeaseSlot, Lease] = {}
        self.opening: list[LeaseSlot] = []
        self.cleaning: list[LeaseSlot] = []
        self.ending: list[LeaseSlot] = []
        self.idle: list[LeaseSlot] = []

    # Tokens

    def take(self) -> object | None:
        if self.queue or len(self.tokens) >= self.limit:
            return None
        permit = object()
        self.tokens.add(permit)
        return permit

    def give_back_token(self, permit: object) -> None:
        self.tokens.remove(permit)
        self.grant()

    def grant(self) -> None:
        while self.queue and len(self.tokens) < self.limit:
            permit = object()
            self.tokens.add(permit)
            self.granted.append((self.queue.popleft(), permit))

    # A lease

    @rule()
    def ask(self) -> None:
        self.count += 1
        lease = Lease(self.count)
        if self.table.has_spare_opener and not self.table.idle and not self.queue:
            self.table.seekers.append(lease)
            self.seekers.append(lease)
        elif permit := self.take():
            self.granted.append((lease, permit))
        else:
            self.queue.append(lease)

    @precondition(lambda self: self.granted)
    @rule(which=some, dead=st.integers(0, 2))
    def look(self, which: int, dead: int) -> None:
        """Tasks that are granted a token together run in any order."""
        lease, permit = self.granted.pop(which % len(self.granted))
        while True:
            good = [slot for slot in self.idle if self.verdict(slot) is None]
            first_reason = self.verdict(self.idle[0]) if self.idle else None
            size = len(self.table.slots)
            slot = self.table.granted(permit, lease, self.now)
            assert slot.permit is permit
            if slot.state is not State.LEASED:
                break
            assert slot is good[-1]
            self.idle.remove(slot)
            self.lent(slot, lease, self.now - slot.returned_at, is_new=False)
            if not dead:
                return
            dead -= 1
            self.table.died()
            del self.held[slot]
            self.table.ended(slot)
        assert not good
        assert slot.state is State.OPENING
        if slot in self.idle:
            assert size >= self.table.max_size
            assert slot is self.idle.pop(0)
            assert slot.reason is first_reason
        else:
            assert size < self.table.max_size or not self.idle
        self.opening.append(slot)
        self.table.seekers.append(lease)
        self.seekers.append(lease)

    def lent(
        self, slot: LeaseSlot, lease: Lease, idle_for: float, *, is_new: bool
    ) -> None:
        self.held[slot] = lease
        lease.deaths = self.table.deaths
        suspect = slot.proved != self.table.deaths
        is_due = is_probed(self.config, idle_for, suspect=suspect)
        assert slot.is_due == (is_due and not is_new)

    def unchecked(self) -> list[LeaseSlot]:
        return [slot for slot, lease in self.held.items() if not lease.is_handed_out]

    def handed_out(self) -> list[LeaseSlot]:
        return [slot for slot, lease in self.held.items() if lease.is_handed_out]

    @precondition(lambda self: self.unchecked())
    @rule(which=some)
    def check_succeeds(self, which: int) -> None:
        slot = one_of(self.unchecked(), which)
        if slot.is_due:
            self.table.proved(slot, self.held[slot].deaths)
        slot.leases += 1
        self.held[slot].is_handed_out = True

    @precondition(lambda self: self.unchecked())
    @rule(which=some)
    def check_fails(self, which: int) -> None:
        slot = one_of(self.unchecked(), which)
        lease = self.held.pop(slot)
        if slot.is_due:
            self.table.died()
        elif slot.leases == 0:
            # A hook that fails on a new connection.
            self.table.condemned(slot, Reason.HOOK)
            self.ending.append(slot)
            return
        self.table.replaced(slot, Reason.CHECK)
        self.table.seekers.appendleft(lease)
        self.seekers.appendleft(lease)
        self.opening.append(slot)

    @precondition(lambda self: self.unchecked())
    @rule(which=some)
    def check_is_cancelled(self, which: int) -> None:
        self.come_back(one_of(self.unchecked(), which), Condition.DIRTY)

    @precondition(lambda self: self.handed_out())
    @rule(which=some, condition=conditions)
    def return_it(self, which: int, condition: Condition) -> None:
        self.come_back(one_of(self.handed_out(), which), condition)

    def come_back(self, slot: LeaseSlot, condition: Condition) -> None:
        expected = self.fate(slot, condition)
        fate = self.table.returned(slot, condition, self.now)
        assert fate is expected
        del self.held[slot]
        self.route(slot, fate)

    @precondition(lambda self: self.held)
    @rule(which=some)
    def revoke(self, which: int) -> None:
        slot = one_of([*self.held], which)
        del self.held[slot]
        self.end(slot)

    @precondition(lambda self: self.queue or self.seekers or self.granted)
    @rule(which=some)
    def cancel_a_wait(self, which: int) -> None:
        waiting = [*self.queue, *self.seekers, *(lease for lease, _ in self.granted)]
        lease = one_of(waiting, which)
        if lease in self.queue:
            self.queue.remove(lease)
        elif lease in self.seekers:
            self.table.seekers.remove(lease)
            self.seekers.remove(lease)
        else:
            permit = next(permit for other, permit in self.granted if other is lease)
            self.granted.remove((lease, permit))
            self.give_back_token(permit)

    # A task of the pool

    @precondition(lambda self: self.opening)
    @rule(which=some)
    def open_starts_over(self, which: int) -> None:
        self.table.started_over(one_of(self.opening, which))

    @precondition(lambda self: self.opening)
    @rule(which=some, chance=st.sampled_from([0.0, 0.3, 0.999]))
    def open_succeeds(self, which: int, chance: float) -> None:
        self.chance = chance
        slot = one_of(self.opening, which)
        if slot.generation != self.table.generation:
            self.table.started_over(slot)
        self.opening.remove(slot)
        self.table.opened(slot, self.now)
        assert slot.opened_at == slot.returned_at == self.now
        expires_at = self.now + lifetime(self.config, self.chance)
        assert slot.expires_at == expires_at or self.now < slot.expires_at
        fate = self.table.cleaned(slot, self.now)
        # Nobody is left who waits for one, and has no opener.
        assert fate is Fate.KEEP or not self.seekers
        self.route(slot, fate)

    @precondition(lambda self: self.opening)
    @rule(which=some)
    def open_fails(self, which: int) -> None:
        slot = one_of(self.opening, which)
        self.opening.remove(slot)
        told = self.table.open_failed(slot)
        if len(self.seekers) > len(self.opening):
            assert told is self.seekers.popleft()
        else:
            assert told is None
        self.end(slot)

    @precondition(lambda self: self.cleaning)
    @rule(which=some)
    def cleaning_succeeds(self, which: int) -> None:
        slot = one_of(self.cleaning, which)
        self.cleaning.remove(slot)
        expected = self.kept_or_retired(slot)
        fate = self.table.cleaned(slot, self.now)
        assert fate is expected
        self.route(slot, fate)

    @precondition(lambda self: self.cleaning)
    @rule(which=some, is_polite=st.booleans())
    def cleaning_fails(self, which: int, is_polite: bool) -> None:
        slot = one_of(self.cleaning, which)
        self.cleaning.remove(slot)
        if is_polite:
            self.ending.append(slot)
        else:
            self.end(slot)

    @precondition(lambda self: self.ending)
    @rule(which=some)
    def farewell_is_over(self, which: int) -> None:
        slot = one_of(self.ending, which)
        self.ending.remove(slot)
        self.end(slot)

    def route(self, slot: LeaseSlot, fate: Fate) -> None:
        if fate is Fate.KEEP:
            permit = slot.permit
            lease = self.table.arrived(slot, self.now)
            assert slot.returned_at == self.now
            if self.seekers:
                assert lease is self.seekers.popleft()
                assert slot.permit is permit
                self.lent(slot, lease, 0.0, is_new=slot.leases == 0)
            else:
                assert lease is None
                self.idle.append(slot)
                self.give_back_token(permit)
        elif fate is Fate.DISCARD:
            self.table.died()
            self.end(slot)
        elif fate is Fate.CLEAN:
            self.cleaning.append(slot)
        else:
            self.ending.append(slot)

    def end(self, slot: LeaseSlot) -> None:
        self.table.ended(slot)
        self.give_back_token(slot.permit)

    # The pool

    @rule(seconds=st.sampled_from([0.5, 0.7, 1.0, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.table.next_expiry() < math.inf)
    @rule()
    def time_passes_until_one_expires(self) -> None:
        self.now = max(self.now, self.table.next_expiry())
        assert self.table.expired(self.now)

    @rule()
    def retire_expired(self) -> None:
        self.retire(self.table.expired(self.now))

    @rule()
    def reset(self) -> None:
        self.table.was_reset()
        self.retire_expired()

    @rule(max_size=st.integers(1, 5))
    def resize(self, max_size: int) -> None:
        # Whoever had a token before, or gets one now to end a connection, keeps it.
        self.most = max(self.most, self.limit)
        self.table.max_size = max_size
        surplus = self.table.surplus()
        kept = len(self.table.slots) - self.table.count(State.CLEANING) - len(surplus)
        assert kept >= max_size or surplus == []
        assert kept <= max_size or surplus == self.idle
        self.retire((slot, Reason.RESIZED) for slot in surplus)
        self.limit = max_size
        self.grant()

    @rule(chosen=st.sets(some))
    def retire_idle(self, chosen: set[int]) -> None:
        slots = [slot for index, slot in enumerate(self.idle) if index in chosen]
        self.retire((slot, Reason.REQUESTED) for slot in slots)

    def retire(self, chosen: Iterable[tuple[LeaseSlot, Reason]]) -> None:
        for slot, reason in [*chosen]:
            permit = self.take()
            if permit is None:
                return
            self.table.taken_out(slot, permit, reason)
            self.idle.remove(slot)
            self.ending.append(slot)

    @precondition(lambda self: self.table.missing_idle)
    @rule()
    def warm_up(self) -> None:
        for _ in range(self.table.missing_idle):
            permit = self.take()
            if permit is None:
                return
            self.opening.append(self.table.started(permit))

    @precondition(lambda self: not self.tokens)
    @rule()
    def quiesce(self) -> None:
        """Only when all is at rest, and no token is given to anybody meanwhile."""
        for slot in [*self.table.idle]:
            self.table.taken_out(slot, None, Reason.QUIESCED)
            self.table.ended(slot)
        self.idle.clear()
        assert not self.table.slots

    @rule(
        asking=st.integers(0, 3),
        steps=st.integers(0, 12),
        which=some,
        chance=st.sampled_from([0.0, 0.3, 0.999]),
        condition=conditions,
    )
    def all_goes_on_for_a_while(
        self, asking: int, steps: int, which: int, chance: float, condition: Condition
    ) -> None:
        """Rules by chance alone seldom get as far as a lease that ends."""
        for _ in range(asking):
            self.ask()
        for _ in range(steps):
            self.go_on(which, chance, condition)
            self.never_more_than_there_may_be()

    def go_on(self, which: int, chance: float, condition: Condition) -> bool:
        steps: list[tuple[Callable[[], object], Callable[[], None]]] = [
            (lambda: self.granted, lambda: self.look(which, 0)),
            (self.unchecked, lambda: self.check_succeeds(which)),
            (self.handed_out, lambda: self.return_it(which, condition)),
            (lambda: self.opening, lambda: self.open_succeeds(which, chance)),
            (lambda: self.cleaning, lambda: self.cleaning_succeeds(which)),
            (lambda: self.ending, lambda: self.farewell_is_over(which)),
        ]
        first = which % len(steps)
        in_turn = steps[first:] + steps[:first]
        step = next((do for is_due, do in in_turn if is_due()), None)
        if step is not None:
            step()
        return step is not None

    # What is expected

    def verdict(self, slot: LeaseSlot) -> Reason | None:
        """Why an idle connection may not be leased."""
        younger = len(self.idle) - 1 - self.idle.index(slot)
        if slot.generation != self.table.generation:
            return Reason.RESET
        if slot.expires_at <= self.now:
            return Reason.LIFETIME
        is_rested = slot.returned_at + self.config.idle_timeout <= self.now
        if is_rested and younger >= self.config.min_idle:
            return Reason.IDLE
        return None

    def fate(self, slot: LeaseSlot, condition: Condition) -> Fate:
        if condition is Condition.BROKEN:
            return Fate.DISCARD
        if condition in {Condition.BUSY, Condition.CANCELLED, Condition.CHANGED}:
            return Fate.RETIRE
        fate = self.kept_or_retired(slot)
        is_curable = condition in {Condition.DIRTY, Condition.ALTERED}
        is_cleaned = is_curable or self.config.after_release
        return Fate.CLEAN if is_cleaned and fate is Fate.KEEP else fate

    def kept_or_retired(self, slot: LeaseSlot) -> Fate:
        is_old = slot.generation != self.table.generation
        is_over = slot.expires_at <= self.now
        is_too_many = len(self.table.slots) > self.table.max_size
        if is_old or is_over or (is_too_many and not self.seekers):
            return Fate.RETIRE
        return Fate.KEEP

    @invariant()
    def never_more_than_there_may_be(self) -> None:
        # A shrink takes effect as connections come back: until then there are no more
        # of them than there were, or than tokens were given out before.
        most = max(len(self.table.slots), len(self.tokens))
        assert most <= max(self.table.max_size, self.most)
        self.most = most

    @invariant()
    def every_slot_is_in_one_place_and_in_the_state_that_goes_with_it(self) -> None:
        table = self.table
        places = {
            State.OPENING: self.opening,
            State.IDLE: self.idle,
            State.LEASED: [*self.held],
            State.CLEANING: self.cleaning + self.ending,
        }
        slots = [slot for place in places.values() for slot in place]
        assert len(slots) == len(set(slots)) == len(table.slots)
        assert set(slots) == table.slots
        for state, place in places.items():
            assert all(slot.state is state for slot in place)
            assert table.count(state) == len(place)
        assert table.idle == self.idle
        assert table.leased == self.held
        assert table.openers == len(self.opening)

    @invariant()
    def every_token_has_a_slot_or_a_lease_that_will_look(self) -> None:
        borrowed = [slot.permit for slot in self.table.slots if slot not in self.idle]
        borrowed += [permit for _, permit in self.granted]
        assert len(borrowed) == len(self.tokens)
        assert set(borrowed) == self.tokens
        assert all(slot.permit is None for slot in self.idle)

    @invariant()
    def seekers_are_in_order_and_each_has_an_opener(self) -> None:
        assert self.table.seekers == self.seekers
        assert len(self.seekers) <= len(self.opening)
        assert self.table.has_spare_opener == (len(self.seekers) < len(self.opening))

    @invariant()
    def nobody_queues_while_there_is_a_token(self) -> None:
        assert not self.queue or len(self.tokens) >= self.limit

    @invariant()
    def a_lease_is_in_one_place(self) -> None:
        leases = [*self.queue, *self.seekers, *self.held.values()]
        leases += [lease for lease, _ in self.granted]
        assert len(leases) == len(set(leases))

    @invariant()
    def those_that_rested_longest_come_first(self) -> None:
        rests = [slot.returned_at for slot in self.table.idle]
        assert rests == sorted(rests)

    @invariant()
    def idle_connections_expire_when_it_was_said_and_not_before(self) -> None:
        table = self.table
        verdicts = [(slot, self.verdict(slot)) for slot in self.idle]
        expired = [(slot, reason) for slot, reason in verdicts if reason]
        assert table.expired(self.now) == expired
        moment = table.next_expiry()
        assert moment == math.inf or table.expired(moment)
        before = min(math.nextafter(moment, -math.inf), 1e300)
        assert all(reason is Reason.RESET for _, reason in table.expired(before))

    @invariant()
    def what_is_missing_fits_in(self) -> None:
        missing = self.table.missing_idle
        assert missing >= 0
        assert missing + len(self.table.slots) <= self.most_or(self.table.max_size)
        spare = len(self.idle) + len(self.opening) - len(self.seekers)
        assert not missing or missing + spare <= self.config.min_idle

    def most_or(self, max_size: int) -> int:
        return max(max_size, len(self.table.slots))

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.all_are_served_and_all_comes_to_rest()

    def all_are_served_and_all_comes_to_rest(self) -> None:
        for _ in range(1000):
            if not self.go_on(0, 0.0, Condition.CLEAN):
                break
            self.never_more_than_there_may_be()
        assert not self.tokens
        assert not self.queue
        assert not self.seekers
        assert self.table.slots == set(self.idle)


def one_of(choices: Sequence[T], which: int) -> T:
    return choices[which % len(choices)]


TestAnyPool = AnyPool.TestCase
TestAnyPool.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
