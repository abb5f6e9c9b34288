"""The life of one ``hyperd``, from its directory to its exit status.

One task, `Life.attend`, owns everything that belongs to it. It is shielded from every
cancellation, and Ctrl-C only ever reaches trio's main task, so its ``finally`` clauses
always run to their end.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ._errors import HyperdError
from ._last_words import ended, last_words
from ._launch import Launch, temporary_parent

# How long a server may take after SIGTERM, which asks for the same flush as the
# closed callback did, before it is killed.
_TERM_GRACE: Final = 2.0
# How long to wait for a server to be seen dead after an error that it may have caused:
# 0 to 12 milliseconds went by between its clients' sockets and the callback's.
_DEATH_GRACE: Final = 0.05
# How long a server that hangs up before it has started may take to exit.
_HANG_UP_GRACE: Final = 0.5
# How long to wait for the rest of stderr when the process is gone: only a child of
# its own could still have the other end.
_LAST_WORDS_GRACE: Final = 0.2

_STDERR_KEPT: Final = 8192


@dataclass(frozen=True, slots=True)
class Hyperd:
    """A running ``hyperd``.

    Attributes:
        endpoint: where it listens, as `open_pool` takes it.
        user: the user to connect as: the owner of everything.
        pid: its process id.
        log_dir: the directory of its log files. Unless ``log_dir`` was given it is
            private, has warnings and errors only, and goes away with the server.
    """

    endpoint: str
    user: str
    pid: int
    log_dir: Path


class Life:
    """One process, from its directory to its exit status."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._asked = trio.CancelScope()
        self._patience = trio.CancelScope()
        self._suspect = False
        self.body = trio.CancelScope()
        self.started = trio.Event()
        self.over = trio.Event()
        self.hyperd: Hyperd | None = None
        self.failure: Exception | None = None

    def stop(self, *, after_error: bool = False) -> None:
        """Ask the process to end, or not to start.

        Args:
            after_error: look whether it is dying, and the error comes of that.
        """
        self._suspect = after_error
        self._asked.cancel()

    def kill(self) -> None:
        """Lose the patience that `stop` has."""
        self._patience.cancel()

    @trio.lowlevel.enable_ki_protection
    async def attend(self) -> None:
        """Start the process, watch it, end it, and tidy up."""
        try:
            with trio.CancelScope(shield=True):
                await self._attend()
        except Exception as error:  # noqa: BLE001  comes out of the block
            self.failure = error
        finally:
            # In this order: whoever wakes by one of these finds the rest done.
            self.body.cancel()
            self.started.set()
            self.over.set()

    async def _attend(self) -> None:
        launch = self._launch
        with contextlib.ExitStack() as stack:
            try:
                private = stack.enter_context(_private_directory())
                socket_dir = launch.socket_dir or private
                socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                log_dir = launch.log_dir or private / "log"
                log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                listener = stack.enter_context(
                    trio.socket.from_stdlib_socket(
                        socket.create_server(("127.0.0.1", 0), backlog=1)
                    )
                )
                # The server gets both ends of the pipe: were it to lose the other one,
                # as this process dies, the first word that it says about its own end
                # would kill it (SIGPIPE), before it has written what was committed.
                stderr_read, stderr_write = os.pipe()
                stderr = trio.lowlevel.FdStream(stderr_read)
                stack.callback(stderr.close)
                try:
                    process = await trio.lowlevel.open_process(
                        launch.command(listener.getsockname()[1], socket_dir, log_dir),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=stderr_write,
                        pass_fds=[stderr_read],
                        env=launch.environment(),
                        # Out of reach of the terminal's signals, and a process group
                        # that is killed as a whole should `executable` be a script.
                        start_new_session=True,
                    )
                finally:
                    os.close(stderr_write)
            except OSError as error:
                message = f"{launch.executable} could not be started: {error}"
                raise HyperdError(message) from error
            stack.callback(_remove_sockets, socket_dir, process.pid)
            stderr_kept = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_end, stderr, stderr_kept)
                try:
                    wrong = await self._watch(
                        process, listener, socket_dir, log_dir, stack
                    )
                finally:
                    _signal_group(process, signal.SIGKILL)
                    await process.wait()  # noqa: ASYNC102  shielded by attend
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS_GRACE
            if wrong is not None:
                quoted = last_words(stderr_kept, log_dir, process.pid)
                raise HyperdError(wrong + quoted)

    async def _watch(
        self,
        process: trio.Process,
        listener: trio.socket.SocketType,
        socket_dir: Path,
        log_dir: Path,
        stack: contextlib.ExitStack,
    ) -> str | None:
        """Start, run and end the process.

        Returns:
            What went wrong. The process may still run if something did, or if it was
            asked to end before it had started.
        """
        callback: trio.socket.SocketType | None = None
        with self._asked:
            heard = await self._hear(process, listener, stack)
            if process.returncode is not None:
                return f"hyperd did not start: it {ended(process.returncode)}"
            if heard is None:
                return (
                    "hyperd did not start: it did not say where it listens within "
                    f"start_timeout={self._launch.start_timeout:g} seconds"
                )
            callback, said = heard
            endpoint = self._launch.endpoint(said, socket_dir)
            if endpoint is None:
                return (
                    "hyperd did not start: instead of where it listens it said "
                    f"{said[:200]!r}; is {self._launch.executable} a hyperd?"
                )
            self.hyperd = Hyperd(
                endpoint=str(endpoint),
                user=self._launch.user,
                pid=process.pid,
                log_dir=log_dir,
            )
            self.started.set()
            await process.wait()
        return None if callback is None else await self._end(process, callback)

    async def _hear(
        self,
        process: trio.Process,
        listener: trio.socket.SocketType,
        stack: contextlib.ExitStack,
    ) -> tuple[trio.socket.SocketType, bytes] | None:
        """Wait for the callback and what it says; None if there is no such thing."""
        heard = None
        with trio.move_on_after(self._launch.start_timeout):
            async with trio.open_nursery() as nursery:

                async def stop_at_exit() -> None:
                    await process.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop_at_exit)
                callback, _ = await listener.accept()
                stack.enter_context(callback)
                heard = callback, await _receive_descriptor(callback)
                if not heard[1]:
                    # It hung up: what it died of says more than that.
                    await _wait(process, _HANG_UP_GRACE)
                nursery.cancel_scope.cancel()
        return heard

    async def _end(
        self, process: trio.Process, callback: trio.socket.SocketType
    ) -> str | None:
        """Have the process end; return what was wrong with that."""
        timeout = self._launch.stop_timeout
        with self._patience:
            if self._suspect:
                # A dying server lets go of its clients first, and can be seen to have
                # ended only when all of its memory is given back.
                await _wait(process, _DEATH_GRACE)
            if _hung_up(callback):
                await _wait(process, timeout)
            status = process.returncode
            if status is not None:
                return f"hyperd {ended(status)} before its block was over"
            callback.close()
            await _wait(process, timeout)
            if process.returncode is None:
                _signal_group(process, signal.SIGTERM)
                await _wait(process, _TERM_GRACE)
        status = process.returncode
        if status == 0:
            return None
        if status is not None:
            return f"hyperd did not end in good order: it {ended(status)}"
        why = (
            "of a second Ctrl-C"
            if self._patience.cancel_called
            else f"it did not end within stop_timeout={timeout:g} seconds"
        )
        return f"hyperd was killed, and what it had not written is lost, because {why}"


@contextlib.contextmanager
def _private_directory() -> Generator[Path]:
    """Make a directory for us alone.

    Not a `TemporaryDirectory`: a forked child that exits would remove it.
    """
    directory = tempfile.mkdtemp(prefix="hyperd-", dir=temporary_parent())
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _keep_end(stream: trio.lowlevel.FdStream, kept: bytearray) -> None:
    """Read to the end, so that the server is never blocked, and keep the last of it."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for chunk in stream:
            kept += chunk
            del kept[:-_STDERR_KEPT]


async def _receive_descriptor(callback: trio.socket.SocketType) -> bytes:
    """Read one length byte and so many bytes, or what comes before the end."""
    said = b""
    with contextlib.suppress(OSError):
        while not said or len(said) <= said[0]:
            chunk = await callback.recv(256)
            if not chunk:
                break
            said += chunk
    return said[1:]


async def _wait(process: trio.Process, patience: float) -> None:
    """Give the process some time to end."""
    with trio.move_on_after(patience):
        await process.wait()


def _hung_up(callback: trio.socket.SocketType) -> bool:
    """Whether the server has closed its end, having nothing else to send."""
    poll = select.poll()
    poll.register(callback.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        # Not reaped yet, so that the number cannot be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _remove_sockets(socket_dir: Path, pid: int) -> None:
    """Remove what a server that was killed left, unless another has taken it over."""
    for pid_file in socket_dir.glob(".s.PGSQL.*.pid"):
        with contextlib.suppress(OSError, ValueError):
            if int(pid_file.read_text()) == pid:
                pid_file.with_suffix("").unlink(missing_ok=True)
                pid_file.unlink(missing_ok=True)
