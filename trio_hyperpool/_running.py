"""`open_pool`: runs a pool for the length of a block, and is the owner of its nursery."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, Unpack, overload

import trio

from ._config import PoolConfig, PoolOptions
from ._connector import Connector
from ._endpoint import is_postgres
from ._hyper import DEFAULT_USER, HyperConnection, HyperConnector
from ._pool import Pool
from ._postgres import PostgresConnector
from ._server import open_hyperd
from ._supply import Supply
from ._tasks import Tasks
from ._upkeep import Upkeep
from ._whole import Whole

ConnectionT = TypeVar("ConnectionT")


@contextlib.asynccontextmanager
async def _running(
    connector: Connector[ConnectionT], config: PoolConfig
) -> AsyncGenerator[Pool[ConnectionT]]:
    """Run a pool; what comes out of the block is what its body raised, as it was.

    The body's exception is carried around the nursery, which would wrap it in a group.
    Tasks of the pool raise nothing, so that only a KeyboardInterrupt that came while
    the nursery waited for them can come out of it.
    """
    error: BaseException | None = None
    tasks = Tasks()
    supply = Supply(connector, config, tasks.spawn)
    tasks.on_bug = supply.turn_away
    upkeep = Upkeep(supply)
    try:
        async with trio.open_nursery() as tasks.nursery:
            tasks.spawn(upkeep.run)
            try:
                with tasks.body:
                    yield Pool(supply, upkeep)
            except BaseException as raised:  # noqa: BLE001, ASYNC103 - raised below
                error = raised
            try:
                await supply.close(0 if error or tasks.bug else config.close_timeout)
            except BaseException as raised:  # noqa: BLE001, ASYNC103 - raised below
                error = error or raised
            tasks.end()
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
    try:
        # Now that no opener is left, whose session would not let the server finish.
        with trio.CancelScope(shield=True):
            await supply.settle()
    except BaseException as raised:  # noqa: BLE001, ASYNC103 - raised below
        error = error or raised
    supply.record.closed()
    if tasks.bug is not None:
        raise tasks.bug
    if error is not None:
        raise error


@contextlib.asynccontextmanager
async def _running_in(
    connector: AbstractAsyncContextManager[object],
    running: AbstractAsyncContextManager[Pool[ConnectionT]],
) -> AsyncGenerator[Pool[ConnectionT]]:
    async with connector, running as pool:
        yield pool


@contextlib.asynccontextmanager
async def _running_with_hyperd(
    config: PoolConfig,
) -> AsyncGenerator[Pool[HyperConnection]]:
    password = config.password
    if password is not None and not isinstance(password, str):
        password = await password()
    user = config.user or DEFAULT_USER
    async with open_hyperd(user=user, password=password) as hyperd:
        config = dataclasses.replace(config, endpoint=hyperd.endpoint)
        async with _running(HyperConnector(config), config) as pool:
            yield pool


@overload
def open_pool(
    endpoint: str | None = None,
    database: str | os.PathLike[str] | None = None,
    *,
    config: PoolConfig | None = None,
    connector: None = None,
    **options: Unpack[PoolOptions],
) -> AbstractAsyncContextManager[Pool[HyperConnection]]: ...


@overload
def open_pool(
    endpoint: str | None = None,
    database: str | os.PathLike[str] | None = None,
    *,
    config: PoolConfig | None = None,
    connector: Connector[ConnectionT],
    **options: Unpack[PoolOptions],
) -> AbstractAsyncContextManager[Pool[ConnectionT]]: ...


def open_pool(
    endpoint: str | None = None,
    database: str | os.PathLike[str] | None = None,
    *,
    config: PoolConfig | None = None,
    connector: Connector[Any] | None = None,
    **options: Unpack[PoolOptions],
) -> AbstractAsyncContextManager[Pool[Any]]:
    """Run a pool of connections for the length of an ``async with`` block.

    Everything is validated here, before anything is opened; connections open as they
    are needed, save ``min_idle`` of them. Entering is a checkpoint if a private
    ``hyperd`` is started. Leaving waits for the leases that are still out, for
    ``close_timeout`` seconds at most and not at all if the body raised or was
    cancelled, revokes what is left of them, and ends the connections. What the body
    raises comes out as it is, never in an `ExceptionGroup`.

    Do not ``yield`` out of the block in a generator of your own, unless that is itself
    an ``@asynccontextmanager``: a nursery is open in it (PEP 789).

    Args:
        endpoint: see `PoolConfig`; None starts a private ``hyperd``.
        database: path of the ``.hyper`` file, as the server sees it.
        config: all of it ready made, in place of every other argument but
            ``connector``.
        connector: another kind of connection, in place of Hyper's. What ``endpoint``
            and ``database`` mean is then up to it, and both may be left out. One
            that is an async context manager is entered before its first connection,
            and left after the last.
        options: the other fields of `PoolConfig`.

    Raises:
        TypeError: a config and options at once, an unknown option, or a value of the
            wrong type.
        ValueError: a value that is not allowed.
    """
    config = _configured(endpoint, database, config, connector, options)
    if connector is not None:
        running = _running(connector, config)
        if isinstance(connector, AbstractAsyncContextManager):
            running = _running_in(connector, running)
        return Whole(running)
    if config.endpoint is None:
        return Whole(_running_with_hyperd(config))
    if is_postgres(config.endpoint):
        return Whole(_running(PostgresConnector(config), config))
    return Whole(_running(HyperConnector(config), config))


def _configured(
    endpoint: str | None,
    database: str | os.PathLike[str] | None,
    config: PoolConfig | None,
    connector: Connector[Any] | None,
    options: PoolOptions,
) -> PoolConfig:
    if config is not None:
        if endpoint is not None or database is not None or options:
            raise TypeError(
                "config: allowed only without endpoint, database and options; "
                "use dataclasses.replace(config, ...) to change one"
            )
        if not isinstance(config, PoolConfig):
            raise TypeError(f"config: a PoolConfig is allowed, not {config!r}")
        return config
    known = {field.name for field in dataclasses.fields(PoolConfig)}
    for option in options:
        if option not in known:
            raise TypeError(
                f"{option}: not an option; allowed are {', '.join(sorted(known))}"
            )
    if database is None:
        # Left out, it is asked for by the config, but by no other connector.
        database = ""
        if connector is not None and not is_postgres(endpoint):
            database = connector.name
    return PoolConfig(endpoint, database, **options)
