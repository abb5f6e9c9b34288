"""What a pool promises whatever it is a pool of, as tests that any connector can take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest
import trio

from ._connector import Connector
from ._errors import LeaseEndedError, LeaseRevokedError
from ._running import open_pool

ConnectionT = TypeVar("ConnectionT")

SOON = 10.0
"""Seconds within which everything is over, on a slow machine, too."""


@dataclass(frozen=True, kw_only=True)
class Trace(Generic[ConnectionT]):
    """Something that a borrower can leave behind, and that no other may find."""

    leave: Callable[[ConnectionT], Awaitable[object]]
    """Leave it: an open transaction, a changed setting."""

    is_found: Callable[[ConnectionT], Awaitable[bool]]
    """Whether it is there."""


@dataclass(frozen=True, kw_only=True)
class Trial(Generic[ConnectionT]):
    """All that `ConnectorConformance` has to know of a kind of connection."""

    connector: Callable[[], Connector[ConnectionT]]
    """Makes a connector."""

    session: Callable[[ConnectionT], Awaitable[object]]
    """Asks the server for something that no other session of it has."""

    linger: Callable[[ConnectionT], Awaitable[object]]
    """Keeps the server busy for a minute, or until it is cancelled."""

    kill: Callable[[], Awaitable[object]]
    """Ends every session as a dying server does; new ones can be opened."""

    traces: Sequence[Trace[ConnectionT]] = ()
    """What is to be cleaned away."""


class ConnectorConformance:
    """Tests of a connector: inherit from it, and override the fixture ``trial``.

    Wants pytest-trio. Every test opens pools of its own.
    """

    @pytest.fixture
    def trial(self) -> Trial[Any]:
        """The kind of connection to be tested; a subclass has one."""
        # For who forgot to.
        pytest.fail("override the fixture 'trial'")  # pragma: no cover

    @pytest.mark.trio
    async def test_it_says_what_it_is(self, trial: Trial[Any]) -> None:
        """By what the pool is called, and the kind of server."""
        connector = trial.connector()
        for word in (connector.name, connector.system):
            assert isinstance(word, str)
            assert word

    @pytest.mark.trio
    async def test_a_connection_is_reused_and_there_are_never_too_many(
        self, trial: Trial[Any]
    ) -> None:
        """Sixteen tasks share two connections."""
        seen: set[object] = set()
        async with _pool(trial, max_size=2) as pool:

            async def work() -> None:
                for _ in range(3):
                    async with pool.lease() as connection:
                        seen.add(await trial.session(connection))
                        assert pool.statistics().size <= 2

            with trio.fail_after(SOON):
                async with trio.open_nursery() as nursery:
                    for _ in range(16):
                        nursery.start_soon(work)
            assert 1 <= len(seen) == pool.statistics().opened <= 2

    @pytest.mark.trio
    async def test_a_view_is_dead_after_its_block_and_its_successor_is_not(
        self, trial: Trial[Any]
    ) -> None:
        """The old object raises, whoever has the connection."""
        async with _pool(trial, max_size=1) as pool:
            async with pool.lease() as old:
                first = await trial.session(old)
            with pytest.raises(LeaseEndedError):
                await trial.session(old)
            async with pool.lease() as new:
                with pytest.raises(LeaseEndedError):
                    await trial.session(old)
                assert await trial.session(new) == first

    @pytest.mark.trio
    async def test_a_cancelled_query_leaves_a_usable_connection_that_retires(
        self, trial: Trial[Any]
    ) -> None:
        """In the same lease it works; the next has another."""
        async with _pool(trial, max_size=1) as pool:
            with trio.fail_after(SOON):
                async with pool.lease() as connection:
                    first = await trial.session(connection)
                    with trio.move_on_after(0.1) as scope:
                        await trial.linger(connection)
                    assert scope.cancelled_caught
                    assert await trial.session(connection) == first
                async with pool.lease() as connection:
                    assert await trial.session(connection) != first
            assert pool.statistics().cancelled_queries == 1

    @pytest.mark.trio
    async def test_nobody_finds_what_another_left(self, trial: Trial[Any]) -> None:
        """Each trace was there, and is not for the next."""
        async with _pool(trial, max_size=1) as pool:
            for trace in trial.traces:
                with trio.fail_after(SOON):
                    async with pool.lease() as connection:
                        await trace.leave(connection)
                        assert await trace.is_found(connection)
                    async with pool.lease() as connection:
                        assert not await trace.is_found(connection)

    @pytest.mark.trio
    async def test_a_revoked_lease_wakes_a_query_in_flight(
        self, trial: Trial[Any]
    ) -> None:
        """It raises `LeaseRevokedError`, and the place is free again."""
        async with _pool(trial, max_size=1, max_lease=0.2) as pool:
            with trio.fail_after(SOON):
                with pytest.raises(LeaseRevokedError):
                    async with pool.lease() as connection:
                        await trial.linger(connection)
                async with pool.lease() as connection:
                    await trial.session(connection)

    @pytest.mark.trio
    async def test_closing_has_its_deadline_whatever_a_borrower_does(
        self, trial: Trial[Any]
    ) -> None:
        """A lease that is still out is revoked after ``close_timeout``."""
        ended = trio.Event()
        with trio.fail_after(SOON):
            async with trio.open_nursery() as nursery:
                async with _pool(trial, max_size=1, close_timeout=0.1) as pool:
                    started = trio.Event()

                    async def hold_on() -> None:
                        with pytest.raises(LeaseRevokedError):
                            async with pool.lease() as connection:
                                started.set()
                                await trial.linger(connection)
                        ended.set()

                    nursery.start_soon(hold_on)
                    await started.wait()
                await ended.wait()
        assert pool.statistics().size == 0

    @pytest.mark.trio
    async def test_after_the_server_died_the_pool_recovers_by_itself(
        self, trial: Trial[Any]
    ) -> None:
        """Idle connections cost no failed lease."""
        async with _pool(trial, max_size=2) as pool:
            async with pool.lease() as one, pool.lease() as other:
                dead = {await trial.session(one), await trial.session(other)}
            await trial.kill()
            with trio.fail_after(SOON):
                async with pool.lease() as one, pool.lease() as other:
                    alive = {await trial.session(one), await trial.session(other)}
            assert len(alive) == 2
            assert not alive & dead

    @pytest.mark.trio
    async def test_hooks_see_working_connections(self, trial: Trial[Any]) -> None:
        """``after_connect`` once, ``before_acquire`` always, ``after_release`` after."""
        calls: list[str] = []

        def hook(name: str) -> Callable[[Any], Awaitable[None]]:
            async def call(connection: Any) -> None:
                await trial.session(connection)
                calls.append(name)

            return call

        names = ("after_connect", "before_acquire", "after_release")
        after_connect, before_acquire, after_release = map(hook, names)
        async with _pool(
            trial,
            max_size=1,
            after_connect=after_connect,
            before_acquire=before_acquire,
            after_release=after_release,
        ) as pool:
            with trio.fail_after(SOON):
                for _ in range(2):
                    async with pool.lease() as connection:
                        await trial.session(connection)
                async with pool.lease():
                    assert calls == [names[0], *names[1:], *names[1:], names[1]]

    @pytest.mark.trio
    async def test_a_cancelled_lease_costs_no_place(self, trial: Trial[Any]) -> None:
        """Nothing is lost, wherever on its way it was cancelled."""
        async with _pool(trial, max_size=1) as pool:
            for microseconds in (0, 100, 1_000, 5_000):
                with trio.move_on_after(microseconds / 1e6):
                    async with pool.lease() as connection:
                        await trial.session(connection)
            with trio.fail_after(SOON):
                async with pool.lease() as connection:
                    await trial.session(connection)
            assert pool.statistics().leased == 0


def _pool(trial: Trial[Any], **options: Any) -> Any:
    return open_pool(connector=trial.connector(), **options)
