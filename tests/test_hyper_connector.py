"""How sessions of one database are opened, judged and ended, on a real server."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from psycopg import sql
from trio.testing import MockClock

from trio_hyperpool._config import CreateMode, HealthCheck, PoolConfig
from trio_hyperpool._connector import Connector
from trio_hyperpool._errors import ConnectError, LeaseEndedError
from trio_hyperpool._hyper import HyperConnection, HyperConnector
from trio_hyperpool._policy import Condition
from trio_hyperpool._server import open_hyperd

Make = Callable[..., HyperConnector]


@pytest.fixture
def make(hyperd: Any, db: str) -> Make:
    def make(
        mode: CreateMode = CreateMode.DO_NOT_CREATE, **options: Any
    ) -> HyperConnector:
        settings = {"endpoint": hyperd.endpoint, "database": db, **options}
        return HyperConnector(PoolConfig(create_mode=mode, **settings))

    return make


async def sessions(hyperd: Any, db: str) -> int:
    """Count the sessions that have the database attached, and forgive the last one.

    The server notices the end of a session some milliseconds after it.
    """
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        for _ in range(100):
            loaded = await conn.fetch_all("SELECT datname FROM pg_catalog.pg_database")
            if (db,) not in loaded:
                return 0
            await trio.sleep(0.02)
        return 1


async def use(connector: HyperConnector, sql: str) -> Any:
    connection = await connector.connect()
    try:
        cursor = await connection.execute(sql)
        return await cursor.fetchone() if cursor.description else None
    finally:
        await connector.close(connection)  # noqa: ASYNC102


def test_a_hyper_connector_is_a_connector(make: Make) -> None:
    connector: Connector[HyperConnection[Any]] = make()
    assert connector.name


def test_the_name_tells_database_and_endpoint(make: Make, hyperd: Any, db: str) -> None:
    assert db in make().name
    assert hyperd.endpoint in make().name


def test_a_connector_needs_an_endpoint_and_a_unicode_path(make: Make) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        make(endpoint=None)
    with pytest.raises(ValueError, match="Unicode"):
        make(database="/tmp/\udcff.hyper")


def test_every_spelling_of_a_local_path_is_one_database(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    spellings = [
        "a.hyper",
        "./a.hyper",
        f"{tmp_path}//a.hyper",
        tmp_path / "link" / "a.hyper",
        tmp_path / "link" / ".." / tmp_path.name / "a.hyper",
    ]
    paths = {make(database=path).path for path in spellings}
    assert paths == {os.path.realpath(tmp_path / "a.hyper")}
    assert make(database="a.hyper", endpoint="db.example.com").path == "a.hyper"


async def test_two_spellings_of_a_path_work_at_once(
    make: Make, tmp_path: Path, db: str
) -> None:
    await make(CreateMode.CREATE).prepare()
    (tmp_path / "link.hyper").symlink_to(db)
    one = await make().connect()
    other = await make(database=tmp_path / "link.hyper").connect()
    for connection in (one, other):
        assert await connection.fetch_value("SELECT current_database()") == db
        await make().close(connection)


@pytest.mark.parametrize("exists", [False, True])
async def test_do_not_create_opens_what_exists(make: Make, exists: bool) -> None:
    if exists:
        await make(CreateMode.CREATE).prepare()
    connector = make()
    await connector.prepare()
    if exists:
        assert await use(connector, "SELECT 1") == (1,)
    else:
        with pytest.raises(ConnectError, match="CREATE_IF_NOT_EXISTS") as caught:
            await connector.connect()
        assert not caught.value.unreachable
        assert isinstance(caught.value.__cause__, psycopg.Error)
        assert caught.value.__cause__.sqlstate == "58S01"
        assert connector.path in str(caught.value)


async def test_a_database_that_is_created_just_when_it_was_refused_is_opened(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = make()
    opening = connector._open

    async def open_late(dbname: str, password: str | None) -> HyperConnection[Any]:
        if not dbname:
            await make(CreateMode.CREATE).prepare()
        return await opening(dbname, password)

    monkeypatch.setattr(connector, "_open", open_late)
    connection = await connector.connect()
    assert await connection.fetch_value("SELECT current_database()") == connector.path
    # The ATTACH was ours: to the borrower the session is a new one.
    view = connector.lend(connection)
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.CLEAN
    assert connection.session_traces.aliases == []
    await connector.close(connection)


async def test_create_wants_nothing_to_be_there(make: Make) -> None:
    await make(CreateMode.CREATE).prepare()
    with pytest.raises(ConnectError, match="exists") as caught:
        await make(CreateMode.CREATE).prepare()
    assert isinstance(caught.value.__cause__, psycopg.errors.DuplicateDatabase)


async def test_create_is_sent_once_however_often_it_is_prepared(make: Make) -> None:
    connector = make(CreateMode.CREATE)
    for _ in range(3):
        await connector.prepare()
    assert await use(connector, "SELECT 1") == (1,)


async def test_create_if_not_exists_leaves_what_is_there(make: Make) -> None:
    for _ in range(2):
        connector = make(CreateMode.CREATE_IF_NOT_EXISTS)
        await connector.prepare()
        await use(connector, "CREATE TABLE IF NOT EXISTS t (a int)")
        await use(connector, "INSERT INTO t VALUES (1)")
    assert await use(connector, "SELECT count(*) FROM t") == (2,)


async def test_create_and_replace_starts_afresh(make: Make) -> None:
    for _ in range(2):
        connector = make(CreateMode.CREATE_AND_REPLACE)
        await connector.prepare()
        await use(connector, "CREATE TABLE t (a int)")
    await connector.prepare()
    assert await use(connector, "SELECT count(*) FROM t") == (0,)


async def test_create_and_replace_of_a_database_in_use_says_so(make: Make) -> None:
    await make(CreateMode.CREATE).prepare()
    connection = await make().connect()
    with pytest.raises(ConnectError, match="in use") as caught:
        await make(CreateMode.CREATE_AND_REPLACE).prepare()
    assert isinstance(caught.value.__cause__, psycopg.errors.ObjectInUse)
    await make().close(connection)
    await make(CreateMode.CREATE_AND_REPLACE).prepare()


@pytest.mark.parametrize(
    "mode", [CreateMode.CREATE_IF_NOT_EXISTS, CreateMode.CREATE_AND_REPLACE]
)
async def test_eight_pools_may_create_one_database_at_once(
    make: Make, mode: CreateMode
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(make(mode).prepare)
    assert await use(make(), "SELECT 1") == (1,)


async def test_of_eight_creates_at_once_one_wins(make: Make) -> None:
    outcomes: list[str | None] = []

    async def create() -> None:
        try:
            await make(CreateMode.CREATE).prepare()
            outcomes.append(None)
        except ConnectError as error:
            outcomes.append(getattr(error.__cause__, "sqlstate", "none"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(create)
    assert sorted(outcomes, key=str) == ["42P04"] * 7 + [None]


async def test_sixteen_connections_may_open_at_once(
    make: Make, hyperd: Any, db: str
) -> None:
    await make(CreateMode.CREATE).prepare()
    connector = make()
    opened: list[HyperConnection[Any]] = []

    async def open_one() -> None:
        opened.append(await connector.connect())

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(open_one)
    assert len({connection.session_id for connection in opened}) == 16
    async with trio.open_nursery() as nursery:
        for connection in opened:
            nursery.start_soon(connector.close, connection)
    assert await sessions(hyperd, db) == 0


@pytest.mark.parametrize(
    ("name", "content", "sqlstate"),
    [
        ("garbage.hyper", b"this is no database" * 1000, "42809"),
        ("empty.hyper", b"", "42809"),
        ("directory", None, "58S01"),
        ("missing/a.hyper", None, "58S01"),
    ],
)
async def test_a_path_that_is_no_database_is_refused_in_words(
    make: Make, tmp_path: Path, name: str, content: bytes | None, sqlstate: str
) -> None:
    path = tmp_path / name
    if name == "directory":
        path.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConnectError, match=name) as caught:
        await make(database=path).connect()
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert caught.value.__cause__.sqlstate == sqlstate
    with pytest.raises(ConnectError, match=name):
        await make(CreateMode.CREATE_AND_REPLACE, database=path).prepare()
    if content is not None:
        assert path.read_bytes() == content


async def test_odd_paths_work(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a \"b\" 'c' %s ü;\\.hyper"
    connector = make(CreateMode.CREATE, database=path)
    await connector.prepare()
    assert await use(connector, "SELECT current_database()") == (str(path),)
    assert path.exists()


async def test_nobody_listening_is_unreachable(make: Make, tmp_path: Path) -> None:
    for mode in CreateMode:
        connector = make(mode, endpoint=f"tab.domain://{tmp_path}/domain/.s.PGSQL.1")
        with pytest.raises(ConnectError) as caught:
            await connector.prepare()
            await connector.connect()
        assert caught.value.unreachable


async def test_a_wrong_user_is_refused_for_good(make: Make) -> None:
    with pytest.raises(ConnectError, match="nobody") as caught:
        await make(user="nobody").connect()
    assert not caught.value.unreachable


async def test_a_password_is_asked_for_at_every_connection(
    hyperd_path: Path, db: str
) -> None:
    asked: list[str] = []

    async def password() -> str:
        await trio.lowlevel.checkpoint()
        asked.append(passwords[0])
        return passwords[0]

    passwords = ["s3cret ü'"]
    async with open_hyperd(password=passwords[0]) as server:
        config = PoolConfig(
            server.endpoint,
            db,
            user=server.user,
            password=password,
            create_mode=CreateMode.CREATE,
        )
        connector = HyperConnector(config)
        await connector.prepare()
        assert await use(connector, "SELECT 1") == (1,)
        assert len(asked) == 2
        passwords[0] = "wrong"
        with pytest.raises(ConnectError) as caught:
            await connector.connect()
        assert not caught.value.unreachable
        assert "wrong" not in str(caught.value)


@pytest.fixture
def opened(
    make: Make,
) -> Callable[[], Awaitable[tuple[HyperConnector, HyperConnection[Any]]]]:
    async def opened() -> tuple[HyperConnector, HyperConnection[Any]]:
        connector = make(CreateMode.CREATE_IF_NOT_EXISTS)
        await connector.prepare()
        return connector, await connector.connect()

    return opened


CONDITIONS: list[tuple[str, list[str], Condition]] = [
    ("nothing", [], Condition.CLEAN),
    ("a query", ["SELECT 1"], Condition.CLEAN),
    ("an error", ["SELECT nope"], Condition.CLEAN),
    ("a table", ["CREATE TABLE a (b int)"], Condition.CLEAN),
    ("an ended transaction", ["BEGIN", "COMMIT"], Condition.CLEAN),
    ("an open transaction", ["BEGIN"], Condition.DIRTY),
    ("a failed transaction", ["BEGIN", "SELECT nope"], Condition.DIRTY),
    ("a setting", ["SET timezone = 'Asia/Tokyo'"], Condition.CHANGED),
    ("a reset", ["RESET timezone"], Condition.CHANGED),
    ("set_config", ["SELECT set_config('timezone', 'UTC', false)"], Condition.CHANGED),
    ("a temporary table", ["CREATE TEMP TABLE a AS SELECT 1 AS b"], Condition.CHANGED),
    ("a prepared statement", ["PREPARE p AS SELECT 1"], Condition.CHANGED),
    ("a held cursor", ["DECLARE c CURSOR WITH HOLD FOR SELECT 1"], Condition.CHANGED),
    ("both", ["SET timezone = 'UTC'", "BEGIN"], Condition.CHANGED),
]


@pytest.mark.parametrize(
    ("statements", "condition"),
    [case[1:] for case in CONDITIONS],
    ids=[case[0] for case in CONDITIONS],
)
async def test_reclaim_tells_what_the_borrower_left(
    opened: Any, statements: list[str], condition: Condition
) -> None:
    connector, connection = await opened()
    view = connector.lend(connection)
    for statement in statements:
        try:
            await view.execute(statement)
        except psycopg.errors.UndefinedColumn:
            assert "nope" in statement
    assert connector.reclaim(connection, view, LeaseEndedError) is condition
    with pytest.raises(LeaseEndedError):
        await view.execute("SELECT 1")
    if condition is Condition.DIRTY:
        await connector.clean(connection)
    view = connector.lend(connection)
    # What one borrower changed is not held against the next.
    condition = Condition.DIRTY if "BEGIN" in statements[1:] else Condition.CLEAN
    assert connector.reclaim(connection, view, LeaseEndedError) is condition
    await connector.close(connection)


async def test_reclaim_tells_what_is_cancelled_or_broken(opened: Any) -> None:
    connector, connection = await opened()
    view = connector.lend(connection)
    with trio.move_on_after(0.05):
        await view.execute(
            "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
            "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) %% 7 = %s",
            [3],
        )
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.CANCELLED
    connector.discard(connection)

    connector, connection = await opened()
    view = connector.lend(connection)
    await view.close()
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.BROKEN
    assert not connector.is_alive(connection)

    connector, connection = await opened()
    view = connector.lend(connection)
    copying = view.cursor().copy("COPY (SELECT 1) TO STDOUT WITH (FORMAT TEXT)")
    await copying.__aenter__()
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.BUSY
    await connector.close(connection)
    await copying.__aexit__(None, None, None)

    connector, connection = await opened()
    view = connector.lend(connection)
    piping = view.pipeline()
    await piping.__aenter__()
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.BROKEN
    connector.discard(connection)
    with pytest.raises(LeaseEndedError):
        await piping.__aexit__(None, None, None)


async def test_what_is_left_in_pipeline_mode_by_libpq_itself_is_not_cleaned(
    opened: Any,
) -> None:
    connector, connection = await opened()
    view = connector.lend(connection)
    view.pgconn.enter_pipeline_mode()
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.DIRTY
    with pytest.raises(psycopg.OperationalError, match="not idle"):
        await connector.clean(connection)
    connector.discard(connection)


async def test_a_probe_passes_on_a_live_connection_and_raises_on_a_dead_one(
    opened: Any,
) -> None:
    connector, connection = await opened()
    assert connector.is_alive(connection)
    for check in HealthCheck:
        await connector.probe(connection, check)
    connector.discard(connection)
    assert not connector.is_alive(connection)
    for check in HealthCheck:
        with pytest.raises(psycopg.OperationalError):
            await connector.probe(connection, check)


async def test_closing_detaches_every_database_that_was_attached(
    opened: Any, make: Make, hyperd: Any, db: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other.hyper")
    await make(CreateMode.CREATE, database=other).prepare()
    connector, connection = await opened()
    view = connector.lend(connection)
    await view.execute(f'ATTACH DATABASE "{other}" AS "an ""other"""')
    await view.execute("BEGIN")
    assert connector.reclaim(connection, view, LeaseEndedError) is Condition.CHANGED
    await connector.close(connection)
    assert connection.closed
    async with await HyperConnection.connect(**hyperd.conninfo, dbname="") as conn:
        # At once: there is nothing that the server still has to find out.
        await conn.execute(f'DROP DATABASE "{db}"')
        await conn.execute(f'DROP DATABASE "{other}"')


async def test_closing_a_detached_connection_is_no_error(opened: Any) -> None:
    connector, connection = await opened()
    await connection.execute(f'DETACH DATABASE "{connector.path}"')
    await connector.close(connection)
    assert connection.closed
    with pytest.raises(psycopg.OperationalError):
        await connector.close(connection)


async def test_what_was_committed_survives_a_kill_after_the_last_close(
    hyperd_path: Path, db: str
) -> None:
    with pytest.raises(Exception, match="hyperd"):
        async with open_hyperd() as server:
            config = PoolConfig(server.endpoint, db, create_mode=CreateMode.CREATE)
            connector = HyperConnector(config)
            await connector.prepare()
            one, other = [await connector.connect() for _ in range(2)]
            await one.execute("CREATE TABLE t (a int)")
            await one.execute("INSERT INTO t VALUES (42)")
            await connector.close(one)
            await connector.close(other)
            os.kill(server.pid, signal.SIGKILL)
            await trio.sleep_forever()
    async with open_hyperd() as server:
        connector = HyperConnector(PoolConfig(server.endpoint, db))
        assert await use(connector, "SELECT a FROM t") == (42,)


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope once the task has taken so many steps."""

    def __init__(
        self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int
    ) -> None:
        self.task, self.scope, self.left = task, scope, step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def cancelled_at(step: int, scenario: Callable[[], Awaitable[None]]) -> bool:
    """Run a scenario, cancelled at its step; whether it has that many.

    That it is cancelled does not mean that `trio.Cancelled` comes out of it: what was
    done when the cancellation came returns.
    """
    with trio.CancelScope() as scope:
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await scenario()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


@pytest.mark.parametrize(
    "mode", [m for m in CreateMode if m is not CreateMode.DO_NOT_CREATE]
)
async def test_prepare_cancelled_at_any_point_can_be_tried_again(
    make: Make, tmp_path: Path, hyperd: Any, mode: CreateMode
) -> None:
    step = 0
    cancelled = True
    while cancelled:
        step += 1
        connector = make(mode, database=tmp_path / f"{step}.hyper")
        cancelled = await cancelled_at(step, connector.prepare)
        await connector.prepare()
        assert await use(connector, "SELECT 1") == (1,)
        assert await sessions(hyperd, connector.path) == 0
    assert step > 3


async def test_connect_cancelled_at_any_point_leaves_nothing_open(
    make: Make, hyperd: Any, db: str
) -> None:
    await make(CreateMode.CREATE).prepare()
    connector = make()
    step = 0
    cancelled = True
    while cancelled:
        step += 1
        opened: list[HyperConnection[Any]] = []

        async def connect(opened: list[HyperConnection[Any]] = opened) -> None:
            opened.append(await connector.connect())

        cancelled = await cancelled_at(step, connect)
        for connection in opened:
            await connector.close(connection)
        assert await sessions(hyperd, db) == 0
    assert step > 1


async def test_close_cancelled_at_any_point_closes_all_the_same(
    make: Make, hyperd: Any, db: str
) -> None:
    await make(CreateMode.CREATE).prepare()
    connector = make()
    step = 0
    cancelled = True
    while cancelled:
        step += 1
        connection = await connector.connect()
        await connection.execute("BEGIN")

        async def close(connection: HyperConnection[Any] = connection) -> None:
            await connector.close(connection)

        cancelled = await cancelled_at(step, close)
        assert connection.closed
        assert await sessions(hyperd, db) == 0
    assert step > 1


async def test_a_missing_database_cancelled_at_any_point_leaves_nothing_open(
    make: Make, hyperd: Any, db: str
) -> None:
    connector = make()
    step = 0
    while True:
        step += 1

        async def connect() -> None:
            with pytest.raises(ConnectError):
                await connector.connect()

        if not await cancelled_at(step, connect):
            break
    assert step > 1
    await make(CreateMode.CREATE).prepare()


async def test_a_create_whose_answer_was_lost_is_taken_for_our_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = make(CreateMode.CREATE)
    shielded = connector._shielded

    async def lose_the_answer(*args: Any) -> None:
        await shielded(*args)
        raise psycopg.OperationalError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(connector, "_shielded", lose_the_answer)
        with pytest.raises(ConnectError) as caught:
            await connector.prepare()
    assert caught.value.unreachable
    await connector.prepare()
    assert await use(connector, "SELECT 1") == (1,)


async def test_ddl_that_is_never_answered_is_given_up(
    autojump_clock: MockClock,
) -> None:
    class Silent:
        async def execute(self, statement: sql.Composed) -> None:
            await trio.sleep_forever()

    connector = HyperConnector(PoolConfig("localhost", "x.hyper", cancel_timeout=2))
    silent: Any = Silent()
    with pytest.raises(psycopg.OperationalError, match="no answer for 2 seconds"):
        await connector._shielded(silent, sql.SQL("DROP TABLE {}").format("t"))
    assert trio.current_time() == 2
