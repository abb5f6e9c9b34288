"""What servers may say that Hyper does not say when it is asked to, played by one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from psycopg import errors, pq

from tests._played import (
    CANCELED,
    COPY_BOTH,
    PlayedServer,
    complete,
    notification,
    played_server,
    report,
)
from trio_hyperpool._driver import TrioConnection
from trio_hyperpool._errors import LeaseEndedError

Connection = TrioConnection[Any]

IDLE = pq.TransactionStatus.IDLE


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[PlayedServer, Connection]]:
    async with played_server() as server:
        conn: Connection = await TrioConnection.connect(
            **server.conninfo, autocommit=True, prepare_threshold=None
        )
        try:
            yield server, conn
        finally:
            await conn.close()  # noqa: ASYNC102  never a checkpoint


# Unasked


async def test_notifications_come_one_by_one_until_the_timeout() -> None:
    async with connected() as (server, conn):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                await server.say(notification("news", "one"))
                await server.say(notification("news", "two"))

            began = trio.current_time()
            seen = [note.payload async for note in conn.notifies(timeout=0.3)]
            assert 0.3 <= trio.current_time() - began < 3
        assert seen == ["one", "two"]
        await server.say(notification("news", "three"))
        seen = [note.payload async for note in conn.notifies(timeout=0)]
        assert seen == ["three"]
        await conn.ping()


async def test_notifications_go_to_the_view_whose_turn_it_is() -> None:
    async with connected() as (server, conn):
        seen: list[tuple[str, str]] = []
        for name in ("first", "second"):
            view = conn.lend()

            def note(notify: psycopg.Notify, name: str = name) -> None:
                seen.append((name, notify.payload))

            view.add_notify_handler(note)
            await server.say(notification("news", name))
            await view.ping()
            view.end(LeaseEndedError)
        assert seen == [("first", "first"), ("second", "second")]


async def test_a_look_at_the_socket_takes_in_what_was_sent_unasked() -> None:
    async with connected() as (server, conn):
        seen: list[str] = []
        conn.add_notify_handler(lambda notify: seen.append(notify.payload))
        await server.say(
            notification("news", "one")
            + report(b"N", "NOTICE", "00000", "by the way")
            + notification("news", "two")
        )
        assert conn.looks_alive()
        assert seen == ["one", "two"]
        assert conn.looks_alive()
        assert len(seen) == 2


async def test_the_last_words_of_a_server_show_that_the_connection_is_dead() -> None:
    async with connected() as (server, conn):
        # Some say them, and take their time to hang up.
        await server.say(report(b"E", "FATAL", "57P01", "terminated by an operator"))
        assert not conn.looks_alive()
        assert not conn.looks_alive()


async def test_a_ping_that_is_answered_by_an_error_raises_it() -> None:
    async with connected() as (server, conn):
        server.script[""] = report(b"E", "ERROR", "57P05", "too long idle"), b"I"
        with pytest.raises(psycopg.Error, match="too long idle"):
            await conn.ping()
        assert conn.pgconn.transaction_status == IDLE


async def test_a_replication_stream_leaves_the_connection_busy() -> None:
    async with connected() as (server, conn):
        server.script["START_REPLICATION"] = COPY_BOTH, b"I"
        # psycopg 3.2 takes it for a COPY.
        with pytest.raises(
            (errors.NotSupportedError, psycopg.ProgrammingError),
            match=r"replication stream|COPY",
        ):
            await conn.execute("START_REPLICATION")
        assert conn.is_busy


async def test_an_exception_is_not_replaced_by_what_cannot_be_drained_after_it() -> (
    None
):
    async with connected() as (server, conn):
        server.script["START_REPLICATION"] = COPY_BOTH, b"I"
        with pytest.raises(ValueError, match="mine"):
            async with conn.lock:
                conn.pgconn.send_query(b"START_REPLICATION")
                raise ValueError("mine")
        assert not conn.lock.is_taken


# Transactions


async def test_a_commit_that_was_stopped_is_rolled_back() -> None:
    async with connected() as (server, conn):
        server.unanswered.add("COMMIT")
        server.script["COMMIT"] = CANCELED, b"E"
        with trio.move_on_after(0.1) as scope:
            async with conn.transaction():
                await conn.execute("INSERT")
        assert scope.cancelled_caught
        assert server.heard == ["BEGIN", "INSERT", "COMMIT", "ROLLBACK"]
        assert conn.pgconn.transaction_status == IDLE


async def test_in_a_pipeline_too_commit_does_not_take_a_rollback_for_a_success() -> (
    None
):
    async with connected() as (server, conn):
        server.script["COMMIT"] = complete("ROLLBACK"), b"I"
        with pytest.raises(errors.InFailedSqlTransaction, match="rolled back"):
            async with conn.pipeline(), conn.transaction():
                await conn.execute("INSERT")
        assert conn.pgconn.transaction_status == IDLE
        assert conn.pgconn.pipeline_status == pq.PipelineStatus.OFF


async def test_transactions_left_in_the_wrong_order_are_heard_of_before_all_else() -> (
    None
):
    async with connected() as (_, conn):
        outer, inner = conn.transaction(), conn.transaction()
        await outer.__aenter__()
        await inner.__aenter__()
        reason = ValueError("mine")
        with pytest.raises(psycopg.ProgrammingError, match="wrong nesting level"):
            await outer.__aexit__(ValueError, reason, None)
        with suppress(psycopg.ProgrammingError):
            await inner.__aexit__(None, None, None)


# Clean-up that is disturbed


async def test_a_clean_up_gives_up_if_its_turn_does_not_come_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (server, conn), trio.open_nursery() as nursery:
        server.unanswered.add("SLOW")
        conn.cancel_timeout = 0.2

        async def wait() -> None:
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await conn.execute("SLOW")

        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            async with conn.transaction():
                nursery.start_soon(wait)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert 0.3 <= trio.current_time() - began < 3
        assert conn.closed
        assert "closing it" in caplog.text


async def test_of_two_clean_ups_that_run_out_of_time_one_closes_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (server, conn):
        server.unanswered.add("SLOW")
        server.deaf = True
        conn.cancel_timeout = 0.2
        with trio.move_on_after(0.1) as scope:
            async with trio.open_nursery() as nursery, conn.transaction():
                nursery.start_soon(conn.execute, "SLOW")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert conn.closed
        assert caplog.text.count("closing it") == 1


async def test_closing_wakes_a_task_that_waits_for_a_cancelled_query_to_end() -> None:
    async with connected() as (server, conn):
        server.unanswered.add("SLOW")
        server.deaf = True
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.execute, "SLOW")
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            await conn.close()
        assert trio.current_time() - began < 3


def test_a_second_ctrl_c_closes_the_connection_rather_than_wait() -> None:
    def press() -> None:
        for _ in range(2):
            time.sleep(0.15)
            signal.pthread_kill(main_thread, signal.SIGINT)

    async def main() -> None:
        async with connected() as (server, conn):
            server.unanswered.add("SLOW")
            server.deaf = True
            threading.Thread(target=press).start()
            began = trio.current_time()
            with pytest.raises(KeyboardInterrupt):
                await conn.execute("SLOW")
            assert 0.3 <= trio.current_time() - began < 3
            assert conn.closed

    main_thread = threading.get_ident()
    trio.run(main)
