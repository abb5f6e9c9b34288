"""A pool over an asyncio driver keeps the promises that all pools make."""

from __future__ import annotations

import secrets
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import trio

from tests._postgres_server import Postgres
from trio_hyperpool.testing import ConnectorConformance, Trace, Trial


class TestAsyncpg(ConnectorConformance):
    @pytest.fixture
    def trial(self, postgres: Postgres, aio: ModuleType) -> Trial[Any]:
        tag = secrets.token_hex(4)

        def connector() -> Any:
            return aio.AsyncioConnector(
                connect=lambda: asyncpg.connect(
                    postgres.url, server_settings={"application_name": tag}
                ),
                close=asyncpg.Connection.close,
                ping=lambda connection: connection.execute("SELECT 1"),
                is_alive=lambda connection: not connection.is_closed(),
                reset=asyncpg.Connection.reset,
                abort=asyncpg.Connection.terminate,
            )

        async def kill() -> None:
            await trio.to_thread.run_sync(
                postgres.ask,
                "SELECT count(pg_terminate_backend(pid, 1000)) FROM pg_stat_activity "
                f"WHERE application_name = '{tag}'",
            )

        async def change(connection: Any) -> None:
            await connection.execute("SET work_mem = '77MB'")

        async def is_changed(connection: Any) -> bool:
            return bool(await connection.fetchval("SHOW work_mem") == "77MB")

        async def begin(connection: Any) -> None:
            await connection.execute("BEGIN")

        async def is_in_transaction(connection: Any) -> bool:
            return bool(connection.is_in_transaction())

        return Trial(
            connector=connector,
            session=lambda connection: connection.fetchval("SELECT pg_backend_pid()"),
            linger=lambda connection: connection.execute("SELECT pg_sleep(60)"),
            kill=kill,
            traces=[
                Trace(leave=change, is_found=is_changed),
                Trace(leave=begin, is_found=is_in_transaction),
            ],
        )
