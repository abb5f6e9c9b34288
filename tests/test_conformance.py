"""Every kind of connection keeps the promises that all of them make."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio

from tests._postgres_server import Postgres
from tests._wire import MINUTES, open_wire
from trio_hyperpool import CreateMode, HyperConnection, PoolConfig, PostgresConnector
from trio_hyperpool._hyper import HyperConnector
from trio_hyperpool.testing import (
    ConnectorConformance,
    FakeConnection,
    FakeConnector,
    Trace,
    Trial,
)


class TestFake(ConnectorConformance):
    @pytest.fixture
    def trial(self) -> Trial[Any]:
        connector = FakeConnector()

        async def linger(connection: FakeConnection) -> None:
            while True:
                await connection.execute(0.01)

        async def kill() -> None:
            connector.break_all()

        async def begin(connection: FakeConnection) -> None:
            connection.begin()

        async def is_open(connection: FakeConnection) -> bool:
            return connection.in_transaction

        return Trial(
            connector=lambda: connector,
            session=FakeConnection.execute,
            linger=linger,
            kill=kill,
            traces=[Trace(leave=begin, is_found=is_open)],
        )


async def begin(connection: Any) -> None:
    await connection.execute("BEGIN")


async def is_in_transaction(connection: Any) -> bool:
    return bool(connection.info.transaction_status)


class TestHyper(ConnectorConformance):
    pytestmark = pytest.mark.hyperd

    @pytest.fixture
    async def trial(self, hyperd: Any, db: str) -> AsyncGenerator[Trial[Any]]:
        async def session(connection: HyperConnection) -> str:
            await connection.execute("SELECT 1")
            return connection.session_id

        async def kill() -> None:
            wire.cut()

        async def change(connection: HyperConnection) -> None:
            await connection.execute("CREATE TEMPORARY TABLE scratch (x int)")

        async def is_changed(connection: HyperConnection) -> bool:
            count = "SELECT count(*) FROM pg_class WHERE relname = 'scratch'"
            return bool(await connection.fetch_value(count))

        async with open_wire(hyperd.endpoint) as wire:
            config = PoolConfig(
                wire.endpoint,
                db,
                user=hyperd.user,
                create_mode=CreateMode.CREATE_IF_NOT_EXISTS,
            )
            yield Trial(
                connector=lambda: HyperConnector(config),
                session=session,
                linger=lambda connection: connection.execute(MINUTES),
                kill=kill,
                traces=[
                    Trace(leave=begin, is_found=is_in_transaction),
                    Trace(leave=change, is_found=is_changed),
                ],
            )


class TestPostgres(ConnectorConformance):
    @pytest.fixture
    def trial(self, postgres: Postgres) -> Trial[Any]:
        tag = secrets.token_hex(4)
        config = PoolConfig(f"{postgres.url}?application_name={tag}")

        async def kill() -> None:
            await trio.to_thread.run_sync(
                postgres.ask,
                "SELECT count(pg_terminate_backend(pid, 1000)) FROM pg_stat_activity "
                f"WHERE application_name = '{tag}'",
            )

        async def change(connection: Any) -> None:
            await connection.execute("SET work_mem = '77MB'")

        async def is_changed(connection: Any) -> bool:
            return bool(await connection.fetch_value("SHOW work_mem") == "77MB")

        return Trial(
            connector=lambda: PostgresConnector(config),
            session=lambda connection: connection.fetch_value(
                "SELECT pg_backend_pid()"
            ),
            linger=lambda connection: connection.execute("SELECT pg_sleep(60)"),
            kill=kill,
            traces=[
                Trace(leave=begin, is_found=is_in_transaction),
                Trace(leave=change, is_found=is_changed),
            ],
        )
