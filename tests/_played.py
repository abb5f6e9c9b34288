"""A server that is played: it says what a test wants it to say, and does nothing."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

CANCEL_REQUEST: Final = struct.pack("!i", 80877102)

STATUS_AFTER: Final = {"BEGIN": b"T", "COMMIT": b"I", "ROLLBACK": b"I"}


def message(kind: bytes, content: bytes = b"") -> bytes:
    """One message of PostgreSQL's protocol."""
    return kind + struct.pack("!i", len(content) + 4) + content


def report(kind: bytes, severity: str, code: str, text: str) -> bytes:
    """An error, of kind ``E``, or a notice, of kind ``N``."""
    fields = {"S": severity, "V": severity, "C": code, "M": text}
    told = "".join(f"{key}{value}\0" for key, value in fields.items())
    return message(kind, told.encode() + b"\0")


def notification(channel: str, payload: str) -> bytes:
    """What LISTEN asks for."""
    return message(b"A", struct.pack("!i", 1) + f"{channel}\0{payload}\0".encode())


def complete(tag: str) -> bytes:
    """The end of a statement."""
    return message(b"C", tag.encode() + b"\0")


EMPTY: Final = message(b"I")
CANCELED: Final = report(b"E", "ERROR", "57014", "canceled")
COPY_BOTH: Final = message(b"W", b"\0\0\0")


class PlayedServer:
    """Answers each query as if it were done, unless the script says otherwise."""

    def __init__(self) -> None:
        self.conninfo: dict[str, Any] = {}
        self.script: dict[str, tuple[bytes, bytes]] = {}
        """For queries: the answer, and the status of the transaction after it."""
        self.unanswered: set[str] = set()
        """Queries that get their answer once they are cancelled."""
        self.deaf: bool = False
        """Whether cancel requests come to nothing."""
        self.heard: list[str] = []
        self._cancelled = trio.Event()
        self._status = b"I"
        self._stream: trio.SocketStream
        self._talking = trio.Lock()

    async def say(self, data: bytes) -> None:
        """Say something that nobody asked for, and give it time to arrive."""
        await self._send(data)
        await trio.sleep(0.02)

    async def _send(self, data: bytes) -> None:
        async with self._talking:
            await self._stream.send_all(data)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Play for one client, or take one cancel request."""
        async with stream:
            if (await stream.receive_some())[4:8] == CANCEL_REQUEST:
                if not self.deaf:
                    self._cancelled.set()
                return
            self._stream = stream
            key = message(b"K", struct.pack("!ii", 1, 1))
            await self._send(message(b"R", b"\0\0\0\0") + key + self._ready())
            data = b""
            async for chunk in stream:
                data += chunk
                while len(data) > 4 and len(data) > (
                    size := int.from_bytes(data[1:5], "big")
                ):
                    kind, content, data = data[:1], data[5 : size + 1], data[size + 1 :]
                    await self._send(await self._reply(kind, content))

    def _ready(self) -> bytes:
        return message(b"Z", self._status)

    async def _reply(self, kind: bytes, content: bytes) -> bytes:
        match kind:
            case b"Q":
                return await self._answer(content[:-1].decode()) + self._ready()
            case b"P":
                self.heard.append(content.split(b"\0")[1].decode())
                return message(b"1")
            case b"E":
                return await self._answer(self.heard.pop())
            case b"S":
                return self._ready()
        return {b"B": message(b"2"), b"D": message(b"n")}.get(kind, b"")

    async def _answer(self, query: str) -> bytes:
        self.heard.append(query)
        if query in self.unanswered:
            await self._cancelled.wait()
        verb = query.partition(" ")[0].upper()
        default = complete(verb) if query else EMPTY
        unchanged = STATUS_AFTER.get(query, self._status)
        answer, self._status = self.script.get(query, (default, unchanged))
        return answer


@asynccontextmanager
async def played_server() -> AsyncGenerator[PlayedServer]:
    """Play a server for the length of a block."""
    server = PlayedServer()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, host="127.0.0.1"), server.serve, 0
        )
        server.conninfo = {
            "host": "127.0.0.1",
            "port": listeners[0].socket.getsockname()[1],
            "sslmode": "disable",
            "gssencmode": "disable",
        }
        yield server
        nursery.cancel_scope.cancel()
