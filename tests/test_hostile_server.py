"""A server that sends anything at all costs errors and deadlines, and nothing more."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests._wire import open_files
from trio_hyperpool import (
    ConnectError,
    HyperConnection,
    Pool,
    PoolError,
    PoolTimeoutError,
    open_pool,
)

pytestmark = pytest.mark.slow

DEADLINES: Final[dict[str, Any]] = {
    "create_timeout": 0.3,
    "recycle_timeout": 0.2,
    "hook_timeout": 0.2,
    "cancel_timeout": 0.2,
    "close_timeout": 0.2,
    "wait_timeout": 1,
}
ENOUGH: Final = 8.0
"""Seconds in which everything is over on a busy machine, by those deadlines."""
MUCH_MEMORY: Final = 64_000_000

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102

PROPER: Final = (psycopg.Error, PoolError)
OF_VALUES: Final = (ValueError, ArithmeticError, LookupError)

AtTheEnd: TypeAlias = Literal["close", "silence"] | bytes
"""What comes when the script is over; bytes are sent again and again."""


def message(kind: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Frame a message; its length may be a lie."""
    return kind + struct.pack("!i", len(body) + 4 if length is None else length) + body


def described(*columns: tuple[bytes, int]) -> bytes:
    """A RowDescription: names and types."""
    return message(
        b"T",
        struct.pack("!h", len(columns))
        + b"".join(
            name + b"\0" + struct.pack("!ihihih", 0, 0, oid, -1, -1, 0)
            for name, oid in columns
        ),
    )


def row(*values: bytes | None) -> bytes:
    """A DataRow."""
    return message(
        b"D",
        struct.pack("!h", len(values))
        + b"".join(
            struct.pack("!i", -1)
            if value is None
            else struct.pack("!i", len(value)) + value
            for value in values
        ),
    )


def report(kind: bytes, **fields: bytes) -> bytes:
    """An ErrorResponse or a NoticeResponse."""
    body = b"".join(name.encode() + text + b"\0" for name, text in fields.items())
    return message(kind, body + b"\0")


def parameter(name: bytes, value: bytes) -> bytes:
    """A ParameterStatus."""
    return message(b"S", name + b"\0" + value + b"\0")


AUTH_OK = message(b"R", struct.pack("!i", 0))
KEY = message(b"K", struct.pack("!ii", 1, 1))
READY = message(b"Z", b"I")
GREETING = AUTH_OK + parameter(b"client_encoding", b"UTF8") + KEY + READY
ONE = described((b"a", 23)) + row(b"1") + message(b"C", b"SELECT 1\0") + READY
REFUSED = report(b"E", S=b"FATAL", C=b"42501", M=b"no")
CONTROL = b"\x1b[2J\x07\r\n\x00\xff\xfe %s {} \\"


class Server:
    """Follows a script: an answer to the greeting, and one to each of what comes next."""

    def __init__(
        self, greeting: bytes, answers: tuple[bytes, ...], at_the_end: AtTheEnd
    ) -> None:
        self.greeting = greeting
        self.answers = answers
        self.at_the_end = at_the_end

    async def serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await self._converse(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        asked = await stream.receive_some()
        if asked[4:8] == struct.pack("!i", SSL_REQUEST):
            await stream.send_all(b"N")
            asked = await stream.receive_some()
        if asked[4:8] == struct.pack("!i", CANCEL_REQUEST):
            return
        for answer in (self.greeting, *self.answers):
            await stream.send_all(answer)
            if not await stream.receive_some():
                return
        if self.at_the_end == "silence":
            while await stream.receive_some():
                pass
        elif self.at_the_end != "close":
            while True:
                await stream.send_all(self.at_the_end)


@asynccontextmanager
async def hostile_pool(
    greeting: bytes = GREETING,
    *answers: bytes,
    at_the_end: AtTheEnd = "close",
    **options: Any,
) -> AsyncGenerator[Pool[HyperConnection]]:
    """A pool on such a server."""
    server = Server(greeting, answers, at_the_end)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, host="127.0.0.1"), server.serve, 0
        )
        endpoint = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        try:
            async with open_pool(
                endpoint, "/a.hyper", **{**DEADLINES, **options}
            ) as pool:
                yield pool
        finally:
            nursery.cancel_scope.cancel()


async def execute(conn: HyperConnection) -> None:
    await (await conn.execute("SELECT %s", (1,))).fetchall()


async def execute_binary(conn: HyperConnection) -> None:
    cursor = await conn.execute("SELECT %s", (1,), binary=True)
    await cursor.fetchall()


async def stream(conn: HyperConnection) -> None:
    async for _ in conn.cursor().stream("SELECT 1"):
        pass


async def copy_out(conn: HyperConnection) -> None:
    async with conn.cursor().copy("COPY a TO STDOUT WITH (FORMAT text)") as copy:
        async for _ in copy:
            pass


async def copy_in(conn: HyperConnection) -> None:
    async with conn.cursor().copy("COPY a FROM STDIN WITH (FORMAT text)") as copy:
        await copy.write(b"1\n")


async def transaction(conn: HyperConnection) -> None:
    async with conn.transaction():
        await conn.execute("SELECT 1")


async def pipeline(conn: HyperConnection) -> None:
    async with conn.pipeline():
        await conn.execute("SELECT 1")
        await conn.execute("SELECT 2")


USES: Final = [
    execute,
    execute_binary,
    stream,
    copy_out,
    copy_in,
    transaction,
    pipeline,
    HyperConnection.ping,
]


async def attempt(
    pool: Pool[HyperConnection], use: Callable[[HyperConnection], Awaitable[None]]
) -> BaseException | None:
    """Use a lease for a moment; return what went wrong, if that has a proper name.

    What psycopg raises for a value that is not of its type is not always its own.
    """
    with trio.move_on_after(0.3):
        try:
            async with pool.lease() as conn:
                await use(conn)
        except (*PROPER, *OF_VALUES) as error:
            return error
    return None


def resident() -> int:
    """How much memory this process has at the moment."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@asynccontextmanager
async def little_memory() -> AsyncGenerator[None]:
    """Fail if the block takes much memory, be it for a moment."""
    before = most = resident()

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, resident())
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()
    assert max(most, resident()) - before < MUCH_MEMORY


# Messages as they should be, and everything else.

kinds = st.sampled_from([bytes([code]) for code in b"RSKZTDCIENAGHWdc123nstVvX\0\xff"])
TYPES: Final = [16, 17, 20, 21, 23, 25, 114, 700, 701, 1007, 1082, 1083, 1114, 1184, 1186, 1700, 2950, 5003]  # fmt: skip
oids = st.sampled_from([*TYPES, 0, -1])
words = st.sampled_from(
    [b"", b"1", b"-", b"\xff\xfe", b"2020-01-01", b"P1Y", b"[1,", b"n" * 300]
) | st.binary(max_size=20)
messages = st.one_of(
    st.sampled_from(
        [
            AUTH_OK, KEY, READY, ONE, REFUSED,
            message(b"Z", b"T"), message(b"Z", b"E"), message(b"Z", b"?"),
            message(b"I"), message(b"n"), message(b"1"), message(b"2"), message(b"3"),
            message(b"s"), message(b"c"), message(b"C", b"SELECT 1\0"),
            message(b"G", b"\0\0\0"), message(b"H", b"\0\0\0"), message(b"W", b"\0\0\0"),
            message(b"d", b"1\n"), message(b"R", struct.pack("!i", 3)),
            message(b"R", struct.pack("!i", 5) + b"salt"),
            message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"),
            message(b"R", struct.pack("!i", 12) + b"v=x"),
            report(b"E", S=b"ERROR", C=b"57014", M=CONTROL, D=CONTROL),
            report(b"N", S=b"FATAL", C=b"57P01", M=CONTROL),
            parameter(b"client_encoding", b"nonsense"),
            parameter(b"TimeZone", CONTROL),
        ]
    ),
    st.lists(st.tuples(words.map(lambda word: word.replace(b"\0", b"")), oids), max_size=4).map(lambda columns: described(*columns)),
    st.lists(st.none() | words, max_size=4).map(lambda values: row(*values)),
    st.builds(message, kinds, st.binary(max_size=40)),
)  # fmt: skip
lies = st.builds(
    message,
    kinds,
    st.binary(max_size=40),
    st.sampled_from([-(2**31), -1, 0, 3, 4, 5, 30_001, 2**24, 2**31 - 1]),
)


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """Some messages, with bytes changed, or their end lost."""
    data = bytearray(b"".join(draw(st.lists(messages | lies, min_size=1, max_size=5))))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


anything = st.one_of(
    st.lists(messages, max_size=5).map(b"".join), corrupted(), st.binary(max_size=60)
)


@pytest.mark.slow
@given(
    greeting=st.one_of(
        st.just(GREETING), st.just(GREETING), anything.map(AUTH_OK.__add__), anything
    ),
    answers=st.lists(
        st.just(ONE) | anything | anything.map(lambda data: data + READY), max_size=4
    ).map(tuple),
    at_the_end=st.sampled_from(["close", "close", "close", "silence"]),
    uses=st.lists(st.sampled_from(USES), min_size=1, max_size=3),
)
@example(GREETING, (ONE, ONE), "close", [execute, execute_binary])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_whatever_a_server_sends_every_step_ends_in_time_with_a_proper_error(
    greeting: bytes, answers: tuple[bytes, ...], at_the_end: AtTheEnd, uses: list[Any]
) -> None:
    files = open_files()
    with trio.fail_after(ENOUGH):
        async with hostile_pool(greeting, *answers, at_the_end=at_the_end) as pool:
            for use in uses:
                await attempt(pool, use)
    assert open_files() == files


FLOODS: Final = {
    "notices": report(b"N", S=b"WARNING", C=b"01000", M=b"\x1b[31m" + b"n" * 4000) * 4,
    "parameters": b"".join(parameter(b"p%d" % n, b"x" * 50) for n in range(200)),
    "zeros": b"\0" * 10_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_with_the_deadline_and_fills_no_memory(flood: bytes) -> None:
    async with little_memory():
        async with hostile_pool(AUTH_OK, at_the_end=flood) as pool:
            with pytest.raises((ConnectError, PoolTimeoutError)):
                async with pool.lease():
                    pass
        async with hostile_pool(at_the_end=flood) as pool:
            await attempt(pool, execute)
        # While nobody uses the connection.
        async with hostile_pool(GREETING, ONE, ONE + flood * 3) as pool:
            for _ in range(2):
                await attempt(pool, execute)


@pytest.mark.parametrize("kind", [bytes([kind]) for kind in b"TDEZ"])
@pytest.mark.parametrize("length", [-1, 3, 2**31 - 1])
async def test_a_length_that_is_a_lie_costs_a_connection_and_no_memory(
    kind: bytes, length: int
) -> None:
    lie = message(kind, b"\0" * 100, length)
    async with little_memory():
        async with hostile_pool(AUTH_OK + lie) as pool:
            assert isinstance(await attempt(pool, execute), PoolError)
        async with hostile_pool(GREETING, lie) as pool:
            await attempt(pool, execute)


async def test_a_great_many_columns_are_read_and_a_wrong_number_is_an_error() -> None:
    columns = described(*[(b"c%d" % n, 23) for n in range(20_000)])
    values = row(*[b"1"] * 20_000)
    done = message(b"C", b"SELECT 1\0") + READY
    with trio.fail_after(ENOUGH):
        async with hostile_pool(
            GREETING, columns + values + done, columns + row(b"1") + done
        ) as pool:
            assert await pool.fetch_one("SELECT 1") == (1,) * 20_000
            with pytest.raises(psycopg.Error):
                await pool.fetch_one("SELECT 1")


async def test_what_a_server_says_in_an_error_is_text_whatever_it_is() -> None:
    texts = {name: CONTROL.replace(b"\0", b"") for name in "SVCMDHPpqWstcdnFLR"}
    strange = report(b"E", **texts)
    with trio.fail_after(ENOUGH):
        async with hostile_pool(GREETING, strange + READY) as pool:
            error = await attempt(pool, execute)
            assert isinstance(error, psycopg.Error)
            assert str(error)
        async with hostile_pool(strange) as pool:
            error = await attempt(pool, execute)
            assert isinstance(error, ConnectError)
            assert str(error).startswith("cannot connect to 127.0.0.1:")


@pytest.mark.parametrize("value", [b"\xff\xfe", b"", b"9" * 400, b"-", b"[[1,", b"P"])
async def test_a_value_that_is_not_of_its_type_is_an_error_or_a_value(
    value: bytes,
) -> None:
    done = message(b"C", b"SELECT 1\0") + READY
    answers = [described((b"a", oid)) + row(value) + done for oid in TYPES]
    with trio.fail_after(ENOUGH):
        async with hostile_pool(GREETING, *answers, ONE) as pool:
            for _ in answers:
                await attempt(pool, execute)
            # The answers were in step, and the connection is none the worse.
            assert await pool.fetch_value("SELECT 1") == 1
            assert pool.statistics().opened == 1


async def test_notifications_that_nobody_asked_for_are_not_kept() -> None:
    notification = message(b"A", struct.pack("!i", 1) + b"channel\0text\0")
    async with (
        hostile_pool(GREETING, notification * 99 + ONE) as pool,
        pool.lease() as conn,
    ):
        assert await conn.fetch_value("SELECT 1") == 1
        assert [one async for one in conn.notifies(timeout=0)] == []


async def test_what_is_nearly_an_array_is_found_out_in_no_time() -> None:
    nearly = b"[" + b" " * 20_000 + b'"]'
    answer = (
        described((b"a", 1007)) + row(nearly) + message(b"C", b"SELECT 1\0") + READY
    )
    async with hostile_pool(GREETING, answer) as pool:
        started = trio.current_time()
        with pytest.raises(psycopg.DataError, match="not an array"):
            await pool.fetch_value("SELECT 1")
        assert trio.current_time() - started < 1


async def test_a_server_that_says_nothing_after_any_answer_costs_deadlines() -> None:
    for answers in ((), (ONE,), (described((b"a", 23)),)):
        with trio.fail_after(ENOUGH):
            async with hostile_pool(
                GREETING, *answers, at_the_end="silence", health_check_after=0
            ) as pool:
                await attempt(pool, transaction)


async def test_a_server_that_cannot_be_trusted_makes_way_for_one_that_can() -> None:
    """A pool whose server sent nonsense goes on as soon as the server makes sense."""
    server = Server(b"nonsense", (), "close")
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, host="127.0.0.1"), server.serve, 0
        )
        endpoint = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_pool(endpoint, "/a.hyper", **DEADLINES) as pool:
            for _ in range(5):
                assert isinstance(await attempt(pool, execute), PoolError)
            server.greeting, server.answers = GREETING, (ONE,)
            assert await pool.fetch_value("SELECT 1") == 1
        nursery.cancel_scope.cancel()
