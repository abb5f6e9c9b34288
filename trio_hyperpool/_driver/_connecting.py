"""Which servers are tried, in which order, and what is said if none can be reached."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import psycopg
import trio
from psycopg import errors
from psycopg._conninfo_utils import (
    get_param,
    get_param_def,
    is_ip_address,
    split_attempts,
)
from psycopg.abc import ConnDict, PQGenConn
from psycopg.conninfo import _param_escape, timeout_from_conninfo

from ._waiting import wait_ready

T = TypeVar("T")

_log: Final = logging.getLogger("trio_hyperpool")


async def first_to_connect(
    params: ConnDict, connecting: Callable[[str], PQGenConn[T]]
) -> T:
    """Connect to the first server that can be reached and does not refuse.

    Args:
        params: may name several servers.
        connecting: makes psycopg's generator for the connection string of one.

    Raises:
        psycopg.OperationalError: if no server could be reached, or all refused.
    """
    timeout = timeout_from_conninfo(params)
    failures: list[tuple[str, psycopg.Error]] = []
    for attempt in await attempts_of(params):
        try:
            return await _connected(connecting(_conninfo(attempt)), timeout)
        except psycopg.Error as error:
            where = ", ".join(
                f"{key}: {attempt.get(key)!r}" for key in ("host", "port", "hostaddr")
            )
            _log.debug("no connection to %s: %s", where, error)
            failures.append((where, error))
    raise _combined(failures)


def _conninfo(params: ConnDict) -> str:
    """Write down what is to be connected to.

    psycopg's own has libpq read it once more, which is a fifth of opening a connection.
    """
    for name in params:
        if get_param_def(name) is None:
            raise psycopg.ProgrammingError(f'invalid connection option "{name}"')
    return " ".join(
        f"{name}={_param_escape(str(value))}" for name, value in params.items()
    )


async def _connected(connecting: PQGenConn[T], seconds: float) -> T:
    try:
        with trio.move_on_after(seconds):
            try:
                fd, want = next(connecting)
                while True:
                    ready = await wait_ready(fd, want)
                    fd, want = connecting.send(cast("Any", ready))
            except StopIteration as done:
                return cast("T", done.value)
            except OSError as error:
                raise errors.OperationalError(f"connection failed: {error}") from error
    finally:
        # Ends the libpq connection, if it was not finished.
        connecting.close()
    raise errors.ConnectionTimeout("connection timeout expired")


async def attempts_of(params: ConnDict) -> list[ConnDict]:
    """What is to be tried, in order: each address of each host."""
    prefers_standby = get_param(params, "target_session_attrs") == "prefer-standby"
    if prefers_standby:
        params = {**params}
        params.pop("target_session_attrs", None)
    attempts: list[ConnDict] = []
    failure: psycopg.OperationalError | None = None
    for attempt in split_attempts(params):
        try:
            attempts += await _resolved(attempt)
        except (OSError, UnicodeError) as error:
            failure = errors.OperationalError(
                f"failed to resolve host {attempt.get('host')!r}: {error}"
            )
            failure.__cause__ = error
            _log.debug("%s", failure)
    if not attempts and failure is not None:
        raise failure
    if get_param(params, "load_balance_hosts") == "random":
        random.shuffle(attempts)
    if prefers_standby:
        attempts = [
            {**attempt, "target_session_attrs": "standby"} for attempt in attempts
        ] + attempts
    return attempts


async def _resolved(attempt: ConnDict) -> list[ConnDict]:
    host = get_param(attempt, "host")
    if (
        not host
        or host.startswith(("/", "@"))
        or host[1:2] == ":"
        or get_param(attempt, "hostaddr")
    ):
        return [attempt]
    if is_ip_address(host):
        return [{**attempt, "hostaddr": host}]
    port = get_param(attempt, "port")
    if not port:
        default = get_param_def("port")
        port = (default and default.compiled) or "5432"
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return [{**attempt, "hostaddr": str(address[0])} for *_, address in found]


def _combined(failures: list[tuple[str, psycopg.Error]]) -> psycopg.Error:
    last = failures[-1][1]
    if len(failures) == 1:
        return last
    lines = [
        str(last),
        "Multiple connection attempts failed. All failures were:",
        *(f"- {where}: {error}" for where, error in failures),
    ]
    return type(last)("\n".join(lines), pgconn=last.pgconn)
