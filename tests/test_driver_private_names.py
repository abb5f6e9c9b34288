"""What the driver takes from psycopg without being promised it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import _conninfo_utils, conninfo, errors, generators, pq, waiting

from trio_hyperpool import _waiting

CONNECTION = psycopg.AsyncConnection
CURSOR = psycopg.AsyncCursor
PIPELINE = psycopg.AsyncPipeline
TRANSACTION = psycopg.AsyncTransaction


def takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether it can be called like this."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def is_generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    return inspect.isgeneratorfunction(function) and takes(function, *args, **kwargs)


class _FakeConnection:
    """As much of a libpq connection as psycopg's objects look at when they are made."""

    status = pq.ConnStatus.OK
    transaction_status = pq.TransactionStatus.IDLE
    pipeline_status = pq.PipelineStatus.OFF
    notice_handler: Any = None
    notify_handler: Any = None

    def pipeline_sync(self) -> None:
        """Stand for the method that a pipeline puts into its queue."""


@pytest.fixture
def connection() -> Any:
    connection: Any = CONNECTION(_FakeConnection())  # type: ignore[arg-type]
    connection._pool = None  # or it would warn of being left open
    return connection


SHAPES: dict[str, Callable[[], bool]] = {
    "AsyncConnection._connect_gen": lambda: is_generator(
        CONNECTION._connect_gen, "dbname=x"
    ),
    "AsyncConnection._get_connection_params": lambda: (
        inspect.iscoroutinefunction(CONNECTION._get_connection_params)
        and takes(CONNECTION._get_connection_params, "dbname=x", user="y")
    ),
    "AsyncConnection._exec_command": lambda: is_generator(
        CONNECTION._exec_command, None, b"COMMIT"
    ),
    "AsyncConnection._check_connection_ok": lambda: takes(
        CONNECTION._check_connection_ok, None
    ),
    "AsyncConnection._should_cancel": lambda: takes(CONNECTION._should_cancel, None),
    "AsyncConnection._rollback_gen": lambda: is_generator(
        CONNECTION._rollback_gen, None
    ),
    "AsyncConnection._try_cancel": lambda: (
        inspect.iscoroutinefunction(CONNECTION._try_cancel)
        and takes(CONNECTION._try_cancel, None, timeout=5.0)
    ),
    "AsyncConnection._pipeline_nolock": lambda: takes(
        CONNECTION._pipeline_nolock, None
    ),
    "AsyncConnection.wait": lambda: (
        inspect.iscoroutinefunction(CONNECTION.wait)
        and takes(CONNECTION.wait, None, (), interval=0.1)
    ),
    "BaseConnection._notice_handler": lambda: takes(
        psycopg.BaseConnection._notice_handler, lambda: None, None
    ),
    "BaseConnection._notify_handler": lambda: takes(
        psycopg.BaseConnection._notify_handler, lambda: None, None
    ),
    "AsyncTransaction._enter_gen": lambda: is_generator(TRANSACTION._enter_gen, None),
    "AsyncTransaction._exit_gen": lambda: is_generator(
        TRANSACTION._exit_gen, None, None, None, None
    ),
    "AsyncPipeline._enter_gen": lambda: is_generator(PIPELINE._enter_gen, None),
    "AsyncPipeline._exit_gen": lambda: is_generator(PIPELINE._exit_gen, None),
    "AsyncPipeline._sync_gen": lambda: is_generator(PIPELINE._sync_gen, None),
    "AsyncPipeline._exit": lambda: takes(PIPELINE._exit, None, None),
    "AsyncPipeline._enqueue_sync": lambda: takes(PIPELINE._enqueue_sync, None),
    "AsyncPipeline._process_results": lambda: takes(
        PIPELINE._process_results, None, None, []
    ),
    "AsyncServerCursor._close_gen": lambda: is_generator(
        psycopg.AsyncServerCursor._close_gen, None
    ),
    "AsyncCursor._stream_send_gen": lambda: is_generator(
        CURSOR._stream_send_gen, None, "select 1", None, binary=None, size=1
    ),
    "generators.copy_to": lambda: is_generator(
        generators.copy_to, None, b"", flush=False
    ),
    "generators.execute": lambda: callable(generators.execute),
    "generators.fetch": lambda: callable(generators.fetch),
    "generators.send": lambda: callable(generators.send),
    "waiting.Wait": lambda: (
        (waiting.Wait.R, waiting.Wait.W, waiting.Wait.RW)
        == (_waiting.READABLE, _waiting.WRITABLE, _waiting.EITHER)
    ),
    "waiting.Ready": lambda: (
        (waiting.Ready.NONE, waiting.Ready.R, waiting.Ready.W, waiting.Ready.RW)
        == (0, _waiting.READABLE, _waiting.WRITABLE, _waiting.EITHER)
    ),
    "errors._WaitTimeout": lambda: (
        # Where wait() takes a timeout, it is how it says that time ran out.
        "timeout" not in inspect.signature(CONNECTION.wait).parameters
        or issubclass(errors._WaitTimeout, psycopg.Error)
    ),
    "_conninfo_utils.get_param": lambda: (
        _conninfo_utils.get_param({"host": "a"}, "host") == "a"
    ),
    "_conninfo_utils.get_param_def": lambda: (
        (found := _conninfo_utils.get_param_def("port")) is not None
        and hasattr(found, "compiled")
    ),
    "_conninfo_utils.is_ip_address": lambda: (
        _conninfo_utils.is_ip_address("::1") and not _conninfo_utils.is_ip_address("a")
    ),
    "_conninfo_utils.split_attempts": lambda: (
        _conninfo_utils.split_attempts({"host": "a,b", "port": "1,2"})
        == [{"host": "a", "port": "1"}, {"host": "b", "port": "2"}]
    ),
    "conninfo.timeout_from_conninfo": lambda: (
        conninfo.timeout_from_conninfo({"connect_timeout": "7"}) == 7
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_psycopg_has_what_it_does_not_promise(name: str) -> None:
    assert SHAPES[name](), f"psycopg has changed: {name}"


@pytest.mark.parametrize(
    "name",
    [
        "_adapters",
        "_autocommit",
        "_closed",
        "_notice_handlers",
        "_notify_handlers",
        "_num_transactions",
        "_pipeline",
        "_prepared",
        "lock",
        "pgconn",
    ],
)
def test_a_connection_of_psycopg_has_the_attribute(connection: Any, name: str) -> None:
    assert name in vars(connection), f"psycopg has changed: AsyncConnection.{name}"


def test_a_connection_of_psycopg_keeps_these_two_for_its_statements(
    connection: Any,
) -> None:
    assert connection._prepared.prepare_threshold == 5
    assert connection._prepared.prepared_max == 100


@pytest.mark.parametrize("name", ["_conn", "level", "command_queue", "result_queue"])
def test_a_pipeline_of_psycopg_has_the_attribute(connection: Any, name: str) -> None:
    assert name in vars(PIPELINE(connection)), f"psycopg has changed: {name}"


def test_a_pipeline_of_psycopg_notes_each_sync_in_both_its_queues(
    connection: Any,
) -> None:
    pipeline = PIPELINE(connection)
    pipeline._enqueue_sync()
    assert list(pipeline.command_queue) == [connection.pgconn.pipeline_sync]
    assert list(pipeline.result_queue) == [None]


@pytest.mark.parametrize("name", ["_conn", "_outer_transaction"])
def test_a_transaction_of_psycopg_has_the_attribute(connection: Any, name: str) -> None:
    assert name in vars(TRANSACTION(connection)), f"psycopg has changed: {name}"


@pytest.mark.parametrize("method", ["execute", "executemany", "stream", "copy"])
def test_psycopg_holds_the_lock_for_as_long_as_an_operation_lasts(method: str) -> None:
    source = inspect.getsource(getattr(CURSOR, method))
    lines = source.splitlines()
    (locked,) = (line for line in lines if "async with self._conn.lock" in line)
    depth = len(locked) - len(locked.lstrip())
    inside = lines[lines.index(locked) + 1 :]
    for line in inside:
        if "yield" in line or "self._conn.wait" in line:
            assert len(line) - len(line.lstrip()) > depth, (
                f"psycopg has changed: AsyncCursor.{method} and its lock"
            )
