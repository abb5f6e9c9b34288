"""``live_view``: a unix socket that tells those of one's own user about a pool."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import socket
import stat
import struct
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from ._pool import Pool
from ._recent import Recent
from ._snapshot import Snapshot, to_line
from ._whole import Whole

INTERVAL: Final = 0.5
"""Seconds between two lines."""

PATIENCE: Final = 2.0
"""Seconds that a viewer has for reading a line."""

LONGEST_PATH: Final = 103
"""Bytes; what every system has room for in a socket's address."""

_log = logging.getLogger("trio_hyperpool")

_numbers = itertools.count(1)


def live_view(
    pool: Pool[Any], path: str | os.PathLike[str] | None = None
) -> AbstractAsyncContextManager[Path]:
    """Let ``python -m trio_hyperpool top`` watch a pool, for the length of a block.

    ::

        async with open_pool(...) as pool, live_view(pool):
            ...

    Listens on a unix socket, which only processes of the same user can connect to. It
    tells whoever connects how the pool is doing, as a line of JSON at once and every
    half second, and takes nothing in. A viewer that does not read is sent away. No
    password, no statement and no text of an exception is told.

    Entering is a checkpoint, and gives the socket's path. Leaving is one, too; it
    sends the viewers away and removes the socket, also when it is cancelled. What the
    body raises comes out as it is.

    Args:
        pool: any pool; several may be watched, each on a socket of its own.
        path: where to make the socket. By default it is a new name in
            ``$XDG_RUNTIME_DIR/trio-hyperpool``, or else in a private directory among
            the temporary files, where ``top`` finds it by itself.

    Raises:
        TypeError: ``pool`` is none.
        ValueError: ``path`` is too long for a socket.
        RuntimeError: there are no unix sockets on this system.
        PermissionError: on entering: the default directory is not one's own, or open
            to others.
        OSError: on entering: the socket can't be made there, or somebody listens on it.
    """
    if not isinstance(pool, Pool):
        raise TypeError(f"pool: a Pool is allowed, not {pool!r}")
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "getuid"):
        raise RuntimeError("live_view: this system has no unix sockets")
    if path is not None:
        path = Path(path).absolute()
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise ValueError(
                f"path: {LONGEST_PATH} bytes are allowed, {os.fspath(path)!r} is longer"
            )
    return Whole(_viewed(pool, path))


def default_directory() -> Path:
    """Where sockets are made, and looked for, if nothing is said."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "trio-hyperpool"
    return Path(tempfile.gettempdir()) / f"trio-hyperpool-{os.getuid()}"


def check_is_private(directory: Path) -> None:
    """Make sure that nobody else can put something into a directory, or take it out.

    Raises:
        PermissionError: somebody can.
    """
    found = directory.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_own or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(
            f"{directory}: a directory is wanted that is one's own, "
            "with permissions 0700"
        )


class _Source:
    """What is told of a pool at this moment; told to many, it is made once."""

    def __init__(self, pool: Pool[Any], recent: Recent) -> None:
        self._pool = pool
        self._recent = recent
        self._began_at = trio.current_time()
        self._made_at = -math.inf
        self._line = b""

    def line(self) -> bytes:
        """A snapshot, as a line."""
        now = trio.current_time()
        if now - self._made_at >= INTERVAL / 5:
            self._made_at = now
            self._line = to_line(snapshot_of(self._pool, self._recent, self._began_at))
        return self._line


def snapshot_of(pool: Pool[Any], recent: Recent, began_at: float) -> Snapshot:
    """What a viewer is told now."""
    now = trio.current_time()
    return Snapshot(
        pid=os.getpid(),
        watched=now - began_at,
        statistics=pool.statistics(),
        minute=recent.minute(now),
        waiters=recent.waiters(now),
        notes=recent.notes(now),
    )


@contextlib.asynccontextmanager
async def _viewed(pool: Pool[Any], path: Path | None) -> AsyncGenerator[Path]:
    """Listen; what comes out of the block is what its body raised, as it was.

    The body's exception is carried around the nursery, which would wrap it in a group.
    The task in it raises nothing, so that only a KeyboardInterrupt that came while the
    nursery waited for its end can come out of it.
    """
    await trio.lowlevel.checkpoint()
    if path is None:
        path = _default_path()
    listener = _listening(path)
    recent = Recent(trio.current_time(), pool.statistics().leased)
    source = _Source(pool, recent)
    pool.add_instrument(recent)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, listener, source, pool.name, name="live view")
            try:
                yield path
            except BaseException as raised:  # noqa: BLE001, ASYNC103 - raised below
                error = raised
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
    finally:
        pool.remove_instrument(recent)
        listener.close()
        path.unlink(missing_ok=True)
    if error is not None:
        raise error


async def _serve(listener: socket.socket, source: _Source, name: str) -> None:
    """Tell whoever connects, until it is cancelled."""
    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    try:
        await trio.serve_listeners(partial(_tell, source), [listening])
    except Exception as error:  # noqa: BLE001 - the application goes on without it
        _log.error("%s: the live view has ended", name, exc_info=error)


async def _tell(source: _Source, viewer: trio.SocketStream) -> None:
    async with viewer:
        if not _is_own_user(viewer):
            return
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                with trio.move_on_after(PATIENCE) as scope:
                    await viewer.send_all(source.line())
                if scope.cancelled_caught:
                    return
                await trio.sleep(INTERVAL)


def _is_own_user(viewer: trio.SocketStream) -> bool:
    """Whether the other side is of our user; where that is unknown, the file's rights do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    form = struct.Struct("3i")
    told = viewer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    _pid, uid, _gid = form.unpack(told)
    return bool(uid == os.getuid())


def _default_path() -> Path:
    directory = default_directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    check_is_private(directory)
    return directory / f"{os.getpid()}-{next(_numbers)}.sock"


def _listening(path: Path) -> socket.socket:
    """A socket that none but its own user was ever able to connect to.

    Bound, it refuses everybody as long as it does not listen: so its rights are set in
    between.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            path.unlink()
        bound.bind(os.fspath(path))
        path.chmod(0o600)
        bound.listen()
    except OSError as error:
        bound.close()
        # The system's own message has no path in it.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return bound


def _is_abandoned(path: Path) -> bool:
    """Whether it is the socket of a process that did not live to remove it."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
