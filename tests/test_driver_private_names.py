"""What the driver takes from psycopg without being promised it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import _conninfo_utils, conninfo, errors, generators, pq, waiting
from psycopg._preparing import Prepare
from psycopg._queries import PostgresQuery
from psycopg.adapt import RecursiveDumper, RecursiveLoader, Transformer

from trio_hyperpool import _driver
from trio_hyperpool._driver import _waiting

CONNECTION = psycopg.AsyncConnection
CURSOR = psycopg.AsyncCursor
NAMED_CURSOR = psycopg.AsyncServerCursor
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
    _encoding = "utf-8"

    def pipeline_sync(self) -> None:
        """Stand for the method that a pipeline puts into its queue."""


class _ListDumper(RecursiveDumper):
    def dump(self, obj: object) -> None:
        """Be no abstract method."""


class _ListLoader(RecursiveLoader):
    def load(self, data: object) -> None:
        """Be no abstract method."""


def a_connection() -> Any:
    connection: Any = CONNECTION(_FakeConnection())  # type: ignore[arg-type]
    connection._pool = None  # or it would warn of being left open
    return connection


def a_query() -> PostgresQuery:
    query = PostgresQuery(Transformer())
    query.convert("SELECT %s", [1])
    return query


CHECKS: dict[str, Callable[[], bool]] = {
    "AsyncConnection._adapters": lambda: hasattr(a_connection(), "_adapters"),
    "AsyncConnection._autocommit": lambda: hasattr(a_connection(), "_autocommit"),
    "AsyncConnection._closed": lambda: hasattr(a_connection(), "_closed"),
    "AsyncConnection._notice_handlers": lambda: hasattr(
        a_connection(), "_notice_handlers"
    ),
    "AsyncConnection._notifies_backlog": lambda: hasattr(
        a_connection(), "_notifies_backlog"
    ),
    "AsyncConnection._notify_handlers": lambda: hasattr(
        a_connection(), "_notify_handlers"
    ),
    "AsyncConnection._num_transactions": lambda: hasattr(
        a_connection(), "_num_transactions"
    ),
    "AsyncConnection._pipeline": lambda: hasattr(a_connection(), "_pipeline"),
    "AsyncConnection.lock": lambda: hasattr(a_connection(), "lock"),
    "AsyncConnection._prepared.clear": lambda: takes(a_connection()._prepared.clear),
    "AsyncConnection._prepared.prepare_threshold": lambda: (
        a_connection()._prepared.prepare_threshold == 5
    ),
    "AsyncConnection._prepared.prepared_max": lambda: (
        a_connection()._prepared.prepared_max == 100
    ),
    "AsyncConnection._connect_gen": lambda: is_generator(
        CONNECTION._connect_gen, "dbname=x"
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
    "AsyncConnection._notice_handler": lambda: takes(
        psycopg.BaseConnection._notice_handler, lambda: None, None
    ),
    "AsyncConnection._notify_handler": lambda: takes(
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
    "conninfo._param_escape": lambda: (
        conninfo._param_escape("it's a \\") == r"'it\'s a \\'"
    ),
    "conninfo.timeout_from_conninfo": lambda: (
        conninfo.timeout_from_conninfo({"connect_timeout": "7"}) == 7
    ),
    "AsyncTransaction._conn": lambda: hasattr(TRANSACTION(a_connection()), "_conn"),
    "AsyncTransaction._outer_transaction": lambda: hasattr(
        TRANSACTION(a_connection()), "_outer_transaction"
    ),
    "AsyncPipeline._conn": lambda: hasattr(PIPELINE(a_connection()), "_conn"),
    "AsyncPipeline._lock": lambda: hasattr(PIPELINE(a_connection()), "_lock"),
    "AsyncPipeline.command_queue": lambda: hasattr(
        PIPELINE(a_connection()), "command_queue"
    ),
    "AsyncPipeline.level": lambda: hasattr(PIPELINE(a_connection()), "level"),
    "AsyncPipeline.result_queue": lambda: hasattr(
        PIPELINE(a_connection()), "result_queue"
    ),
    "AsyncPipeline._no_lock": lambda: takes(PIPELINE, None, _no_lock=True),
    "AsyncCopy._finished": lambda: hasattr(
        psycopg.AsyncCopy(CURSOR(a_connection())), "_finished"
    ),
    "AsyncCopy.writer": lambda: hasattr(
        psycopg.AsyncCopy(CURSOR(a_connection())), "writer"
    ),
    "AsyncCopy.formatter.parse_row": lambda: takes(
        psycopg.AsyncCopy(CURSOR(a_connection())).formatter.parse_row, b"1\n"
    ),
    "AsyncCursor._conn": lambda: hasattr(CURSOR(a_connection()), "_conn"),
    "AsyncCursor._convert_query": lambda: takes(
        CURSOR._convert_query, None, "select %s", (1,)
    ),
    "AsyncCursor._execute_gen": lambda: is_generator(
        CURSOR._execute_gen, None, "select 1", None, prepare=None, binary=None
    ),
    "AsyncCursor._execute_send": lambda: takes(
        CURSOR._execute_send, None, None, force_extended=True, binary=None
    ),
    "AsyncCursor._executemany_gen_no_pipeline": lambda: is_generator(
        CURSOR._executemany_gen_no_pipeline, None, "select 1", [], False
    ),
    "AsyncCursor._executemany_gen_pipeline": lambda: is_generator(
        CURSOR._executemany_gen_pipeline, None, "select 1", [], False
    ),
    "AsyncCursor._get_prepared": lambda: takes(CURSOR._get_prepared, None, None, None),
    "AsyncCursor._select_current_result": lambda: takes(
        CURSOR._select_current_result, None, 0, format=pq.Format.BINARY
    ),
    "AsyncCursor._start_copy_gen": lambda: is_generator(
        CURSOR._start_copy_gen, None, b"copy t from stdin", None
    ),
    "AsyncCursor._stream_fetchone_gen": lambda: is_generator(
        CURSOR._stream_fetchone_gen, None, True
    ),
    "AsyncCursor._tx": lambda: hasattr(CURSOR, "_tx"),
    "AsyncServerCursor._declare_gen": lambda: is_generator(
        NAMED_CURSOR._declare_gen, None, "select 1", None, binary=False
    ),
    "AsyncServerCursor._fetch_gen": lambda: is_generator(
        NAMED_CURSOR._fetch_gen, None, 1
    ),
    "AsyncServerCursor._scroll_gen": lambda: is_generator(
        NAMED_CURSOR._scroll_gen, None, 1, "relative"
    ),
    "PGconn._encoding": lambda: hasattr(pq.PGconn, "_encoding"),
    "_preparing.Prepare.NO": lambda: hasattr(Prepare, "NO"),
    "_queries.PostgresQuery._tx": lambda: hasattr(a_query(), "_tx"),
    "_queries.PostgresQuery.formats": lambda: hasattr(a_query(), "formats"),
    "_queries.PostgresQuery.params": lambda: hasattr(a_query(), "params"),
    "_queries.PostgresQuery.query": lambda: hasattr(a_query(), "query"),
    "_queries.PostgresQuery.types": lambda: hasattr(a_query(), "types"),
    "_queries.PostgresQuery.convert": lambda: takes(
        PostgresQuery.convert, None, "select %s", (1,)
    ),
    "_queries.PostgresQuery.dump": lambda: takes(PostgresQuery.dump, None, (1,)),
    "adapt.RecursiveDumper._tx": lambda: hasattr(_ListDumper(list), "_tx"),
    "adapt.RecursiveLoader._tx": lambda: hasattr(_ListLoader(0), "_tx"),
    "adapt.Transformer.as_literal": lambda: Transformer().as_literal(1) == b"1",
    "adapt.Transformer.get_dumper": lambda: callable(Transformer().get_dumper),
    "adapt.Transformer.get_loader": lambda: callable(Transformer().get_loader),
    "adapt.Transformer.set_pgresult": lambda: callable(Transformer().set_pgresult),
}


@pytest.mark.parametrize("name", CHECKS)
def test_psycopg_has_what_it_does_not_promise(name: str) -> None:
    assert CHECKS[name](), f"psycopg has changed: {name}"


def listed() -> Iterator[str]:
    for owner, names in re.findall(
        r"(?ms)^\* `([\w.]+)`: (.*?)(?=^\*|^$)", str(_driver.__doc__)
    ):
        for name in re.findall(r"``([\w.]+)``", names):
            yield f"{owner}.{name}"


def test_the_list_in_the_drivers_docstring_is_what_is_tested() -> None:
    names = list(listed())
    assert len(names) == len(set(names))
    assert set(names) == set(CHECKS)


def private_names_of_psycopg() -> set[str]:
    connection = a_connection()
    objects = [
        connection,
        CURSOR(connection),
        PIPELINE(connection),
        TRANSACTION(connection),
        a_query(),
    ]
    of_modules = [vars(module) for module in (_conninfo_utils, errors, generators)]
    return {
        name
        for names in (dir(NAMED_CURSOR), *map(dir, objects), *of_modules)
        for name in names
        if re.match("_[a-z]", name)
    }


def private_names_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) | ast.alias(name=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                yield name


def test_every_private_name_of_psycopg_in_the_driver_is_listed() -> None:
    known = {part for name in listed() for part in name.split(".")}
    used = {
        name
        for path in Path(str(_driver.__file__)).parent.glob("*.py")
        for name in private_names_in(path.read_text(encoding="utf-8"))
    }
    assert used & private_names_of_psycopg() <= known


def test_a_pipeline_of_psycopg_notes_each_sync_in_both_its_queues() -> None:
    connection = a_connection()
    pipeline = PIPELINE(connection)
    pipeline._enqueue_sync()
    assert list(pipeline.command_queue) == [connection.pgconn.pipeline_sync]
    assert list(pipeline.result_queue) == [None]


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
