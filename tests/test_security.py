"""What others of the machine can reach, and where a path can lead."""

from __future__ import annotations

import socket
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from tests._wire import children
from trio_hyperpool import ConnectError, open_hyperd, open_pool
from trio_hyperpool._endpoint import parse_endpoint


def listening_ports(pid: int) -> set[str]:
    """The TCP ports that a process listens on."""
    sockets = {
        path.readlink().name.removeprefix("socket:[").removesuffix("]")
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if path.readlink().name.startswith("socket:")
    }
    found: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            is_listening = fields[3] == "0A"
            if is_listening and fields[9] in sockets:
                found.add(fields[1])
    return found


@pytest.mark.hyperd
async def test_a_private_server_is_out_of_reach_for_other_users(
    hyperd_path: Path,
) -> None:
    async with open_hyperd(hyperd_path) as hyperd:
        (address,) = parse_endpoint(hyperd.endpoint).addresses
        private = Path(address.host)
        while private.parent.parent != private.parent and (
            private.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        ):
            private = private.parent
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert private in Path(hyperd.log_dir).parents
        assert hyperd.pid in children()
        assert listening_ports(hyperd.pid) == set()


@pytest.mark.parametrize(
    "name",
    [
        "a.hyper' host=192.0.2.1 user='root",
        "host=192.0.2.1 password=x",
        "postgresql:root@192.0.2.1",
        'a"; DROP DATABASE "b',
        "\\' user=root",
    ],
)
async def test_a_path_is_no_way_to_another_server_or_user(
    tmp_path: Path, name: str
) -> None:
    asked: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        async with stream:
            if len(packet := await stream.receive_some()) == 8:  # it asks for TLS
                await stream.send_all(b"N")
                packet = await stream.receive_some()
            asked.append(packet)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, host="127.0.0.1", backlog=socket.SOMAXCONN),
            listen,
            0,
        )
        endpoint = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_pool(endpoint, tmp_path / name) as pool:
            with pytest.raises(ConnectError):
                await pool.execute("SELECT 1")
        nursery.cancel_scope.cancel()
    assert asked
    for packet in asked:
        fields = packet[8:].rstrip(b"\0").split(b"\0")
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        assert values[b"database"].decode() == str(tmp_path / name)
        assert values[b"user"] == b"tableau_internal_user"
