"""What lies between a pool and its server, to be disturbed and looked at by tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from trio_hyperpool import HyperConnection, Pool
from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._errors import HyperdError
from trio_hyperpool._server import Hyperd, open_hyperd

MINUTES: Final = (
    "SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x), "
    "generate_series(1::bigint, 3000000) b(y) WHERE (x * y) % 7 = 3"
)
"""A query that keeps the server busy for minutes."""

RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Wire:
    """A proxy before one server that forwards, until it is told to do worse."""

    def __init__(self, target: str) -> None:
        (self._target,) = parse_endpoint(target).addresses
        self.endpoint = ""
        self.accepted = 0
        self.delay = 0.0
        """Seconds before each chunk goes on."""
        self.budget: int | None = None
        """How many bytes clients still get, all together, before all is cut."""
        self._flowing = trio.Event()
        self._flowing.set()
        self._sockets: set[trio.socket.SocketType] = set()

    def freeze(self) -> None:
        """Go on accepting, and forward nothing."""
        self._flowing = trio.Event()

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        for sock in list(self._sockets):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
            sock.close()

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Accept and forward until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await listener.accept()
                self.accepted += 1
                nursery.start_soon(self._forward, client)

    async def _forward(self, client: trio.socket.SocketType) -> None:
        target = self._target
        server = trio.socket.socket(
            socket.AF_UNIX if target.is_socket else socket.AF_INET
        )
        with client, server:
            self._sockets |= {client, server}
            # Whatever end of a connection there is, is the end of both of its halves.
            with contextlib.suppress(OSError, trio.ClosedResourceError):
                await server.connect(
                    f"{target.host}/.s.PGSQL.{target.port}"
                    if target.is_socket
                    else (target.host, target.port)
                )
                async with trio.open_nursery() as nursery:

                    async def pump(
                        source: trio.socket.SocketType, sink: trio.socket.SocketType
                    ) -> None:
                        with contextlib.suppress(OSError, trio.ClosedResourceError):
                            while data := await source.recv(65536):
                                await self._flowing.wait()
                                await trio.sleep(self.delay)
                                await self._send(sink, data, to_client=sink is client)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(pump, client, server)
                    nursery.start_soon(pump, server, client)
            self._sockets -= {client, server}

    async def _send(
        self, sink: trio.socket.SocketType, data: bytes, *, to_client: bool
    ) -> None:
        is_cut = False
        if to_client and self.budget is not None:
            is_cut = len(data) > self.budget
            data = data[: self.budget]
            self.budget -= len(data)
        while data:
            data = data[await sink.send(data) :]
        if is_cut:
            raise BrokenPipeError


@asynccontextmanager
async def open_wire(target: str) -> AsyncGenerator[Wire]:
    """Run a `Wire` on a TCP port of its own."""
    wire = Wire(target)
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        wire.endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.run, listener)
            yield wire
            nursery.cancel_scope.cancel()


class MortalHyperd:
    """A hyperd that can be killed, and started again under the same endpoint."""

    def __init__(self, nursery: trio.Nursery, directory: str) -> None:
        self._nursery = nursery
        self._directory = directory
        self._ended = trio.Event()
        self._is_killed = False
        self.endpoint = ""
        self.pid = 0

    async def start(self) -> None:
        """Start it, and return when it answers."""
        self._is_killed = False
        self._ended = trio.Event()
        hyperd: Hyperd = await self._nursery.start(self._run)
        self.endpoint, self.pid = hyperd.endpoint, hyperd.pid

    async def kill(self) -> None:
        """End it without a chance to write anything, and return when it is gone."""
        self._is_killed = True
        os.kill(self.pid, signal.SIGKILL)
        await self._ended.wait()

    async def restart(self) -> None:
        """Kill it, and start it again."""
        await self.kill()
        await self.start()

    async def _run(self, task_status: trio.TaskStatus[Hyperd]) -> None:
        try:
            async with open_hyperd(socket_dir=self._directory, port=7483) as hyperd:
                task_status.started(hyperd)
                await trio.sleep_forever()
        except HyperdError:
            if not self._is_killed:
                raise
        finally:
            self._ended.set()


@asynccontextmanager
async def open_mortal_hyperd(directory: str) -> AsyncGenerator[MortalHyperd]:
    """Run a `MortalHyperd` for the length of a block."""
    async with trio.open_nursery() as nursery:
        hyperd = MortalHyperd(nursery, directory)
        await hyperd.start()
        yield hyperd
        nursery.cancel_scope.cancel()


async def sessions(endpoint: str, at_most: int = 0, **options: str) -> int:
    """Count the sessions that pools have on a server.

    It notices some milliseconds later that one has ended: wait for that a while.
    """
    query = (
        "SELECT count(*) FROM pg_catalog.pg_stat_activity "
        "WHERE application_name LIKE 'trio_hyperpool %'"
    )
    parameters: dict[str, Any] = {
        **parse_endpoint(endpoint).conninfo(),
        "user": "tableau_internal_user",
        "dbname": "",
        **options,
    }
    async with await HyperConnection.connect(**parameters) as connection:
        deadline = trio.current_time() + 2
        while (count := int(await connection.fetch_value(query))) > at_most:
            if trio.current_time() > deadline:
                break
            await trio.sleep(0.01)
        return count


def processor_seconds(pid: int) -> float:
    """How much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(pid: int, seconds: float = 0.3) -> float:
    """What part of a processor a process uses."""
    before, start = processor_seconds(pid), time.monotonic()
    await trio.sleep(seconds)
    return (processor_seconds(pid) - before) / (time.monotonic() - start)


async def gets_idle(pid: int, within: float = 5) -> bool:
    """Whether a process soon has next to nothing to do.

    What others left it to do may keep it busy for a moment.
    """
    deadline = time.monotonic() + within
    while await load(pid) >= 0.3:
        if time.monotonic() > deadline:
            return False
    return True


def open_files() -> set[str]:
    """What file descriptors of this process lead to."""
    found: set[str] = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{path.name} {path.readlink()}")
    return found


def children() -> set[int]:
    """Our own child processes, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether something becomes so in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until something is so that nobody tells."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


async def settled(
    pool: Pool[HyperConnection], seconds: float = 5
) -> Pool[HyperConnection]:
    """Wait until no task of the pool has anything to do any more."""

    def is_settled() -> bool:
        now = pool.statistics()
        return not now.opening + now.cleaning

    await until(is_settled, seconds)
    return pool
