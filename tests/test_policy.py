"""Verdicts and delays are what the documentation of the knobs says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from trio_hyperpool._config import HealthCheck, PoolConfig
from trio_hyperpool._policy import (
    Condition,
    Reason,
    backoff,
    is_probed,
    lifetime,
)

make: Callable[..., PoolConfig] = functools.partial(PoolConfig, database="d.hyper")
chances = st.floats(0, 1, exclude_max=True)


async def check(_connection: object) -> None: ...


def test_lifetimes_are_spread_over_the_last_tenth() -> None:
    config = make(max_lifetime=100)
    assert lifetime(config, 0) == 100
    assert lifetime(config, 0.5) == pytest.approx(95)
    assert lifetime(config, 0.999999) == pytest.approx(90, rel=1e-6)


@given(st.floats(min_value=1e-9, max_value=1e308), chances)
def test_no_lifetime_is_longer_than_the_longest_or_shorter_by_more_than_a_tenth(
    max_lifetime: float, chance: float
) -> None:
    seconds = lifetime(make(max_lifetime=max_lifetime), chance)
    assert 0.9 * max_lifetime * (1 - 1e-15) <= seconds <= max_lifetime


@given(chances)
def test_without_a_longest_lifetime_a_connection_lives_for_ever(chance: float) -> None:
    assert lifetime(make(), chance) == math.inf


@pytest.mark.parametrize(
    ("idle_for", "probed"), [(0, False), (0.4999, False), (0.5, True), (60, True)]
)
def test_a_connection_is_probed_once_it_has_rested_for_long_enough(
    idle_for: float, probed: bool
) -> None:
    assert is_probed(make(), idle_for, suspect=False) is probed


def test_zero_probes_every_checkout_and_infinity_none() -> None:
    assert is_probed(make(health_check_after=0), 0, suspect=False)
    assert not is_probed(make(health_check_after=math.inf), 1e9, suspect=False)


def test_a_suspect_is_probed_however_short_its_rest_was() -> None:
    assert is_probed(make(health_check_after=math.inf), 0, suspect=True)


@pytest.mark.parametrize("suspect", [True, False])
def test_a_passive_check_is_a_look_and_never_a_probe(suspect: bool) -> None:
    config = make(health_check=HealthCheck.PASSIVE, health_check_after=0)
    assert not is_probed(config, 1e9, suspect=suspect)


@pytest.mark.parametrize("health_check", [HealthCheck.PING, HealthCheck.SELECT_ONE])
def test_every_other_check_is_a_probe(health_check: HealthCheck) -> None:
    assert is_probed(make(health_check=health_check), 1, suspect=False)


def test_a_check_of_ones_own_is_a_probe() -> None:
    assert is_probed(make(health_check=check), 1, suspect=False)


def test_delays_double_up_to_ten_seconds() -> None:
    config = make(create_backoff=0.5)
    delays = [backoff(config, failures, 0) for failures in range(1, 8)]
    assert delays == [0.5, 1, 2, 4, 8, 10, 10]


def test_chance_takes_up_to_half_of_a_delay() -> None:
    config = make(create_backoff=4)
    assert backoff(config, 1, 0.5) == 3
    assert backoff(config, 2, 0.25) == 7
    assert backoff(config, 3, 0.999999) == pytest.approx(5, rel=1e-5)


@given(st.floats(min_value=0, allow_infinity=False), st.integers(1, 10**9), chances)
def test_a_delay_is_bounded_whatever_the_first_one_and_the_failures_are(
    create_backoff: float, failures: int, chance: float
) -> None:
    config = make(create_backoff=create_backoff)
    longest = backoff(config, failures, 0)
    assert min(create_backoff, 10) <= longest <= 10
    assert longest / 2 <= backoff(config, failures, chance) <= longest
    assert backoff(config, failures + 1, 0) >= longest


def test_even_a_delay_of_next_to_nothing_becomes_a_long_one() -> None:
    assert backoff(make(create_backoff=1e-18), 64, 0) == pytest.approx(9.223372)
    assert backoff(make(create_backoff=1e-19), 10**6, 0) == pytest.approx(1.8446744)


def test_no_backoff_is_no_delay() -> None:
    assert backoff(make(create_backoff=0), 100, 0.5) == 0


def test_reasons_are_the_words_that_statistics_and_logs_show() -> None:
    assert {reason.name: reason.value for reason in Reason} == {
        "LIFETIME": "max_lifetime",
        "IDLE": "idle_timeout",
        "RESET": "reset",
        "RESIZED": "resize",
        "REQUESTED": "retire_idle",
        "QUIESCED": "quiesce",
        "CLOSED": "pool closed",
        "CANCELLED": "cancelled query",
        "CHANGED": "changed session",
        "BUSY": "returned busy",
        "HOOK": "failed hook",
        "DEAD": "found dead",
        "CHECK": "failed health check",
        "BROKEN": "returned broken",
        "CLEANING": "failed cleaning",
        "REVOKED": "revoked",
        "ABANDONED": "abandoned",
    }


def test_a_condition_has_a_word_of_its_own() -> None:
    assert [condition.value for condition in Condition] == [
        "clean",
        "dirty",
        "used",
        "changed",
        "cancelled",
        "busy",
        "broken",
    ]
