"""What nobody asks for in time: retires, revokes and warms up, each when it is due."""

from __future__ import annotations

import math
import random
from typing import Generic, TypeVar

import trio

from ._policy import Reason, backoff
from ._supply import Supply

ConnectionT = TypeVar("ConnectionT")

LEAST_PAUSE = 0.05
"""Seconds: even with no ``create_backoff``, failing in the background is no race."""


class Upkeep(Generic[ConnectionT]):
    """A task that sleeps until the first deadline of any connection or lease.

    With nothing to wait for it sleeps without a deadline, and a pool without limits
    never wakes it up: `Supply.on_move` stays unset.
    """

    def __init__(self, supply: Supply[ConnectionT]) -> None:
        self._supply = supply
        config = supply.config
        limits = (
            config.max_lifetime,
            config.idle_timeout,
            config.max_lease,
            config.log_lease_over,
        )
        self._is_needed = config.min_idle > 0 or min(limits) < math.inf
        self._is_behind = False
        """Whether an idle connection has to go and there was no token to end it."""
        self._nap = trio.CancelScope()
        self._not_before = -math.inf
        """When a spare connection may be opened again, after one that failed."""
        if self._is_needed:
            supply.on_move = self.noticed

    async def run(self) -> None:
        """Look after the pool until cancelled."""
        while True:
            self._nap = trio.CancelScope()
            self._nap.deadline = self._sweep(trio.current_time())
            with self._nap:
                await trio.sleep_forever()

    def retire_expired(self) -> None:
        """End what was reset, has expired or has no room; what can't be yet, later."""
        supply = self._supply
        _, is_all = supply.retire_idle(supply.table.expired(trio.current_time()))
        if is_all:
            surplus = supply.table.surplus()
            _, is_all = supply.retire_idle((slot, Reason.RESIZED) for slot in surplus)
        self._is_behind = not is_all
        if not self._is_needed:
            supply.on_move = None if is_all else self.noticed

    def noticed(self) -> None:
        """A connection moved: wake up no later than its limits ask for."""
        table, config = self._supply.table, self._supply.config
        now = trio.current_time()
        deadline = math.inf
        if (self._is_behind or table.missing_idle) and self._supply.queue.has_token:
            deadline = max(now, -math.inf if self._is_behind else self._not_before)
        if table.leased:
            deadline = min(
                deadline, now + config.max_lease, now + config.log_lease_over
            )
        if table.idle:
            newest, oldest = table.idle[-1], table.idle[0]
            deadline = min(deadline, newest.expires_at)
            if len(table.idle) > config.min_idle:
                deadline = min(deadline, oldest.returned_at + config.idle_timeout)
        self._nap.deadline = min(self._nap.deadline, deadline)

    def _sweep(self, now: float) -> float:
        """Do what is due, and say when there is something to do again."""
        self.retire_expired()
        overdue = [
            slot
            for slot, lease in self._supply.table.leased.items()
            # The very sum that `_next_revocation` gives: floats round.
            if now >= lease.granted_at + self._supply.config.max_lease
        ]
        for slot in overdue:
            self._supply.revoke(slot)
        return min(
            self._next_retirement(),
            self._next_revocation(),
            self._log_long_leases(now),
            self._warm(now),
        )

    def _next_retirement(self) -> float:
        # One that is behind waits for a token, not for the clock.
        return math.inf if self._is_behind else self._supply.table.next_expiry()

    def _next_revocation(self) -> float:
        leases = self._supply.table.leased.values()
        oldest = min((lease.granted_at for lease in leases), default=math.inf)
        return oldest + self._supply.config.max_lease

    def _log_long_leases(self, now: float) -> float:
        """Log those that are due, and say when the next one is."""
        limit = self._supply.config.log_lease_over
        next_at = math.inf
        for lease in self._supply.table.leased.values():
            if lease.is_logged:
                continue
            if now >= lease.granted_at + limit:
                lease.is_logged = True
                self._supply.record.held_long(lease, now)
            else:
                next_at = min(next_at, lease.granted_at + limit)
        return next_at

    def _warm(self, now: float) -> float:
        supply = self._supply
        if supply.queue.is_closed or not supply.table.missing_idle:
            return math.inf
        failures = supply.failures_in_a_row
        if failures and now < self._not_before:
            return self._not_before
        delay = backoff(supply.config, failures + 1, random.random())
        self._not_before = now + max(delay, LEAST_PAUSE)
        # A server that did not answer is tried with one connection, not with all.
        for _ in range(1 if failures else supply.table.missing_idle):
            permit = supply.queue.take()
            if permit is None:
                break
            supply.open_spare(permit)
        return math.inf
