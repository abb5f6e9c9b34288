"""A server that answers what nobody asked, as Hyper may, to a cancelled pipeline."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import pytest
import trio

from trio_hyperpool._driver import TrioConnection

READY = b"Z\0\0\0\5I"
CANCELED = b"E\0\0\0\x1dSERROR\0C57014\0Mcanceled\0\0"
DONE = b"C\0\0\0\rSELECT 1\0"
ANSWERS = {b"P": b"1\0\0\0\4", b"B": b"2\0\0\0\4", b"D": b"n\0\0\0\4", b"S": READY}
EMPTY = b"I\0\0\0\4"

CANCEL_REQUEST = 80877102


class Server:
    """Gives its first query no answer before it is cancelled, and others an empty one."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.cancelled = trio.Event()
        self.syncs = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = await stream.receive_some()
            if struct.unpack("!i", data[4:8]) == (CANCEL_REQUEST,):
                self.cancelled.set()
                return
            key = struct.pack("!ciii", b"K", 12, 1, 1)
            await stream.send_all(b"R\0\0\0\x08\0\0\0\0" + key + READY)
            data = b""
            while chunk := await stream.receive_some():
                data += chunk
                while len(data) > 4 and len(data) > (
                    size := int.from_bytes(data[1:5], "big")
                ):
                    kind, data = data[:1], data[size + 1 :]
                    await stream.send_all(await self.reply(kind))

    async def reply(self, kind: bytes) -> bytes:
        if kind == b"E" and self.answer:
            await self.cancelled.wait()
            answer, self.answer = self.answer, b""
            return answer
        if kind == b"S":
            self.syncs += 1
            if self.syncs == 2:
                # So late that the answer before it is all that there seems to be.
                await trio.sleep(0.05)
        if kind == b"Q":
            return EMPTY + READY
        return EMPTY if kind == b"E" else ANSWERS.get(kind, b"")


@pytest.mark.parametrize(
    ("answer", "is_usable"),
    [
        pytest.param(DONE, True, id="done"),
        pytest.param(DONE + CANCELED + READY, False, id="done_and_canceled"),
    ],
)
async def test_a_cancelled_pipeline_is_left_in_step_or_with_the_connection_closed(
    nursery: trio.Nursery, answer: bytes, is_usable: bool
) -> None:
    server = Server(answer)
    listeners = await nursery.start(
        partial(trio.serve_tcp, host="127.0.0.1"), server.serve, 0
    )
    conn: TrioConnection[Any] = await TrioConnection.connect(
        host="127.0.0.1",
        port=listeners[0].socket.getsockname()[1],
        sslmode="disable",
        gssencmode="disable",
        autocommit=True,
    )
    with trio.move_on_after(0.1) as scope:
        async with conn.pipeline() as pipeline:
            await conn.execute("anything")
            await pipeline.sync()
    assert scope.cancelled_caught
    assert conn.closed is not is_usable
    if is_usable:
        await conn.ping()
        await conn.close()
