"""The fakes keep the promises that tests rely on."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints

from trio_hyperpool import Connector, HealthCheck, LeaseEndedError, LeaseRevokedError
from trio_hyperpool._policy import Condition
from trio_hyperpool.testing import FakeConnection, FakeConnector, Gate


async def test_a_gate_works_fails_is_slow_or_never_ends(
    autojump_clock: MockClock,
) -> None:
    error = ValueError("mine")
    with assert_checkpoints():
        await Gate.works()()
    with pytest.raises(OSError, match="gate"):
        await Gate.fails()()
    with pytest.raises(ValueError, match="mine"):
        await Gate.fails(error)("whatever", "it", "is given")
    await Gate.slow(3)()
    assert trio.current_time() == 3
    with trio.move_on_after(1000) as scope:
        await Gate.never()()
    assert scope.cancelled_caught


async def test_a_gate_can_have_one_call_that_differs() -> None:
    gate = Gate.fails(on=2)
    await gate()
    with pytest.raises(OSError, match="gate"):
        await gate()
    await gate()
    assert (gate.calls, gate.passed) == (3, 2)


async def test_calls_of_a_gate_are_told_apart_even_when_they_overlap(
    autojump_clock: MockClock,
) -> None:
    gate = Gate(5, only_on=2)
    ended: list[float] = []

    async def call() -> None:
        await gate()
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
    assert ended == [0, 0, 5]


async def test_it_is_a_connector() -> None:
    connector: Connector[FakeConnection] = FakeConnector()
    assert connector.name == "fake"
    await connector.prepare()
    connection = await connector.connect()
    assert connection.number == 1
    assert repr(connection) == "<FakeConnection 1>"
    assert connector.is_alive(connection)
    await connector.probe(connection, HealthCheck.PING)


async def test_a_view_shares_the_connection_and_ends_by_itself() -> None:
    connector = FakeConnector()
    connection = await connector.connect()
    view = connector.lend(connection)
    view.begin()
    assert connection.in_transaction
    assert connector.reclaim(connection, view, LeaseRevokedError) is Condition.DIRTY
    with pytest.raises(LeaseRevokedError):
        await view.execute()
    other = connector.lend(connection)
    assert await other.execute() == 1
    await connector.clean(connection)
    assert connector.reclaim(connection, other, LeaseEndedError) is Condition.CLEAN
    with pytest.raises(LeaseRevokedError):
        view.begin()


async def test_a_cancelled_query_and_a_closed_connection_are_told(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    connection = await connector.connect()
    view = connector.lend(connection)
    with trio.move_on_after(1):
        await view.execute(5)
    assert view.was_cancelled
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.CANCELLED
    view = connector.lend(connection)
    view.close()
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.BROKEN
    with pytest.raises(OSError, match="closed"):
        await connection.execute()


async def test_what_is_left_open_is_found() -> None:
    connector = FakeConnector(close=Gate.fails())
    connector.assert_no_leak()
    one, two, three = [await connector.connect() for _ in range(3)]
    with pytest.raises(AssertionError, match="left open"):
        connector.assert_no_leak()
    connector.discard(one)
    with pytest.raises(OSError, match="gate"):
        await connector.close(two)
    assert connector.open_connections == [three]
    connector.break_all()
    connector.assert_no_leak()
    assert connector.most_open == 3


async def test_a_connection_half_open_is_found_too(autojump_clock: MockClock) -> None:
    connector = FakeConnector(connect=Gate.never())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connector.connect)
        await trio.sleep(1)
        with pytest.raises(AssertionError, match="1 half open"):
            connector.assert_no_leak()
        nursery.cancel_scope.cancel()
    connector.assert_no_leak()
