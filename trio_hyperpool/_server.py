"""``open_hyperd``: a ``hyperd`` that lives exactly as long as its block.

One task, `_Life.attend`, owns everything that belongs to the process, from its
directory to its exit status. It is shielded from every cancellation, and Ctrl-C only
ever reaches trio's main task, so its ``finally`` clauses always run to their end; the
block merely asks it to stop and waits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, cast

import trio

from ._endpoint import Address, Endpoint, parse_endpoint
from ._errors import HyperdError

_log = logging.getLogger("trio_hyperpool")

# What a sockaddr_un takes, less the NUL at its end.
_LONGEST_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103
_LONGEST_SOCKET_NAME: Final = len("/.s.PGSQL.65535")

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
_LOG_READ: Final = 65536
_LOG_FILES_READ: Final = 8
_LOG_LINES_SHOWN: Final = 20
_LOG_LINE_SHOWN: Final = 500

# Warnings and worse only: measured, it costs nothing per query, where the server's own
# default costs 40 to 60 microseconds, and it is all that a private log is read for.
_QUIET_LOG: Final = "file,json,warning,hyperd,0,cerr,string,fatal"

_DEFAULT_PARAMETERS: Final = {
    "language": "en_US",
    "date_style": "MDY",
    "date_style_lenient": "false",
    # With the server's own default, 0, doubles lose their last two digits.
    "extra_float_digits": "3",
    # The first version that has every type, `real` and 38-digit `numeric` included;
    # read by Tableau 2024.3 and newer.
    "default_database_version": "4",
}

_PARAMETER_NAME: Final = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", re.ASCII)
# Options of hyperd that are not settings: what to use in their place.
_RESERVED: Final = {
    "callback_connection": "nothing: it is how the server's life is tied to the block",
    "listen_connection": "socket_dir, port and tcp",
    "log_dir": "log_dir",
    "init_user": "user",
    "no_password": "password",
    "skip_license": "nothing: it is always set",
}


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


def open_hyperd(
    executable: str | os.PathLike[str] | None = None,
    *,
    log_dir: str | os.PathLike[str] | None = None,
    socket_dir: str | os.PathLike[str] | None = None,
    port: int | None = None,
    tcp: bool = False,
    user: str = "tableau_internal_user",
    password: str | None = None,
    parameters: Mapping[str, str | int | float | bool] | None = None,
    start_timeout: float = 30,
    stop_timeout: float = 30,
) -> AbstractAsyncContextManager[Hyperd]:
    """Run a ``hyperd`` for as long as a block lasts.

    ::

        async with open_hyperd() as hyperd:
            async with open_pool(hyperd.endpoint, "example.hyper") as pool:
                ...

    Entering is a checkpoint, and either starts a server that answers, or raises and
    leaves nothing behind. Leaving is a checkpoint that is not cancelled: it asks the
    server to write what was committed and to end, which takes some 30 milliseconds
    where there is little to write, and returns when the process is gone.

    The server also ends, in good order, when this process dies, however it dies (but
    only with the last of the children that it has forked, if there are any; and a
    killed process leaves an empty directory behind). It does not see the terminal's
    Ctrl-C. If it dies while the block runs, the block is
    cancelled and `HyperdError` comes out of it, also in place of an exception that the
    block ended with, which is then its ``__cause__``; otherwise the exceptions of the
    block come out as they are.

    No file is left in the current directory. The socket is in a private directory,
    removed at the end, that only the own user can enter.

    Args:
        executable: the program ``hyperd`` or the directory that it is in. If not
            given, the environment variable ``HYPERD_PATH`` says the same; if that is
            not set either, it is the one in the installed ``tableauhyperapi``.
        log_dir: where the server writes its full log, created if need be. Such a log
            costs about 60 microseconds a query. Without it there is a private log of
            warnings and errors, at no cost, which the text of `HyperdError` ends with.
        socket_dir: the directory of the socket, created if need be. With ``port`` it
            makes an endpoint that is known beforehand, so that a server can be started
            again under the same one; a dead server's socket is taken over.
        port: the number at the end of the socket's name, or the TCP port.
        tcp: listen on 127.0.0.1 instead of a socket. Any user of the machine can then
            connect, and read with the server's rights what files it can: set a
            ``password`` if there are others.
        user: the user to connect as. It is the only one.
        password: what clients must give (by SCRAM-SHA-256). Without it none is asked
            for. It is passed on in the server's environment, never in its arguments.
        parameters: settings of the server, as ``hyperd --settings`` lists them. They
            take precedence over this function's own: ``language`` "en_US",
            ``date_style`` "MDY", ``date_style_lenient`` false, ``extra_float_digits``
            3 (every double arrives to the last bit), and ``default_database_version``
            4, the first file format that has every type (Tableau 2024.3 and newer
            read it; 3, for Tableau 2022.4 and newer, has no ``real``; 2 has no
            ``numeric`` of more than 18 digits either).
        start_timeout: seconds until the server must answer.
        stop_timeout: seconds that the server has for writing what was committed. Past
            them it is killed, what it had not written is lost, and `HyperdError` says
            so.

    Raises:
        TypeError, ValueError: at once, if an argument cannot be meant.
        HyperdError: at once, if there is no ``hyperd``; on entering, if it did not
            start; on leaving, if it died or could not be ended in good order. The
            message has its exit status and the last lines of its log.
    """
    _check_seconds("start_timeout", start_timeout)
    _check_seconds("stop_timeout", stop_timeout)
    _check_flag("tcp", tcp)
    if tcp and socket_dir is not None:
        message = f"socket_dir={_shown(socket_dir)} has no meaning with tcp=True"
        raise ValueError(message)
    _check_port(port)
    _check_text("user", user)
    if password is not None:
        _check_text("password", password, secret=True)
    return _Block(
        _Plan(
            executable=_find_executable(executable),
            log_dir=None if log_dir is None else _check_directory("log_dir", log_dir),
            socket_dir=(None if socket_dir is None else _check_socket_dir(socket_dir)),
            port=port,
            tcp=tcp,
            user=user,
            password=password,
            parameters=_check_parameters(parameters, full_log=log_dir is not None),
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
        )
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to start: the arguments of `open_hyperd`, checked."""

    executable: Path
    log_dir: Path | None
    socket_dir: Path | None
    port: int | None
    tcp: bool
    user: str
    password: str | None
    parameters: Mapping[str, str]
    start_timeout: float
    stop_timeout: float

    def command(self, callback_port: int, socket_dir: Path, log_dir: Path) -> list[str]:
        """Make the command line."""
        if self.tcp:
            listen = f"tab.tcp://127.0.0.1:{self.port or 0}"
        elif self.port is None:
            listen = f"tab.domain://{socket_dir}/domain/auto"
        else:
            listen = str(Address(str(socket_dir), self.port))
        command = [
            str(self.executable),
            "run",
            f"--callback-connection=tab.tcp://127.0.0.1:{callback_port}",
            f"--listen-connection={listen}",
            f"--init-user={self.user}",
            f"--log-dir={log_dir}",
            "--skip-license",
        ]
        if self.password is None:
            command.append("--no-password")
        command += [
            f"--{name.replace('_', '-')}={value}"
            for name, value in self.parameters.items()
        ]
        return command

    def environment(self) -> dict[str, str]:
        """Make the environment: ours, but for the password."""
        environment = dict(os.environ)
        environment.pop("HYPER_INITIAL_USER_PASSWORD", None)
        if self.password is not None:
            environment["HYPER_INITIAL_USER_PASSWORD"] = self.password
        return environment


class _Block(AbstractAsyncContextManager["Hyperd"]):
    """The ``async with`` of `open_hyperd`.

    A class, because an `@asynccontextmanager` leaks what it has when a Ctrl-C falls
    between it and its caller; and it keeps the body's exceptions away from the nursery,
    which would wrap them.
    """

    def __init__(self, plan: _Plan) -> None:
        self._life = _Life(plan)
        self._body = self._life.body
        self._nursery: AbstractAsyncContextManager[trio.Nursery]
        self._entered = False

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Hyperd:
        if self._entered:
            message = "this open_hyperd() has been used: call it again for each block"
            raise RuntimeError(message)
        self._entered = True
        await trio.lowlevel.checkpoint()
        self._nursery = trio.open_nursery()
        nursery = await self._nursery.__aenter__()
        nursery.start_soon(self._life.attend, name="hyperd")
        try:
            await self._life.started.wait()
        except BaseException:
            # Cancelled or interrupted: nobody has used the server yet, so there is
            # nothing to wait for but its end.
            await self._finish()  # noqa: ASYNC102  shielded inside
            raise
        hyperd = self._life.hyperd
        if self._life.failure is not None:
            await self._finish()
            raise self._life.failure
        assert hyperd is not None  # noqa: S101  what was not asked to end has failed
        self._body.__enter__()
        return hyperd

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool:
        left: BaseException | None = error
        try:
            if self._body.__exit__(kind, error, traceback):
                left = None
        except BaseException as rest:  # noqa: ASYNC103, BLE001  raised again below
            # A group, and the scope took its own Cancelled out of it.
            left = rest
        await self._finish(after_error=isinstance(left, Exception))  # noqa: ASYNC102  shielded inside
        failure = self._life.failure
        if failure is not None:
            if left is None or isinstance(left, Exception):
                # None also for the Cancelled of the block, which explains nothing.
                raise failure from left
            # A caller's own Cancelled, or a Ctrl-C, has to get where it is going.
            _log.error("%s", failure)
        if left is not None and left is not error:
            raise left
        return left is None

    async def _finish(self, *, after_error: bool = False) -> None:
        """Have the server ended, and wait until it is, come what may.

        Ctrl-C is raised in the main task even where it is shielded. The first one
        waits until the server is gone, as it may be writing what was committed; one
        more has it killed.
        """
        self._life.stop(after_error=after_error)
        interrupt: KeyboardInterrupt | None = None
        while not self._life.over.is_set():
            try:
                with trio.CancelScope(shield=True):
                    await self._life.over.wait()
            except KeyboardInterrupt as error:
                if interrupt is not None:
                    self._life.kill()
                interrupt = error
        await self._nursery.__aexit__(None, None, None)
        if interrupt is not None:
            raise interrupt


class _Life:
    """One process, from its directory to its exit status."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._asked = trio.CancelScope()
        self._patience = trio.CancelScope()
        self._suspect = False
        self._in_a_hurry = False
        self._stderr = bytearray()
        self._stderr_ended = trio.Event()
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
        self._in_a_hurry = True
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
        plan = self._plan
        with contextlib.ExitStack() as stack:
            try:
                private = stack.enter_context(_private_directory())
                socket_dir = plan.socket_dir or private
                socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                log_dir = plan.log_dir or private / "log"
                log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                listener = stack.enter_context(_listen_for_callback())
                # The server gets both ends of the pipe: were it to lose the other one,
                # as this process dies, the first word that it says about its own end
                # would kill it (SIGPIPE), before it has written what was committed.
                stderr_read, stderr_write = os.pipe()
                stderr = trio.lowlevel.FdStream(stderr_read)
                stack.callback(stderr.close)
                try:
                    process = await trio.lowlevel.open_process(
                        plan.command(listener.getsockname()[1], socket_dir, log_dir),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=stderr_write,
                        pass_fds=[stderr_read],
                        env=plan.environment(),
                        # Out of reach of the terminal's signals, and a process group
                        # that is killed as a whole should `executable` be a script.
                        start_new_session=True,
                    )
                finally:
                    os.close(stderr_write)
            except OSError as error:
                message = f"{plan.executable} could not be started: {error}"
                raise HyperdError(message) from error
            stack.callback(_remove_sockets, socket_dir, process.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._collect_stderr, stderr)
                try:
                    wrong = await self._watch(
                        process, listener, socket_dir, log_dir, stack
                    )
                finally:
                    _signal_group(process, signal.SIGKILL)
                    await process.wait()  # noqa: ASYNC102  shielded by attend
                with trio.move_on_after(_LAST_WORDS_GRACE):
                    await self._stderr_ended.wait()
                nursery.cancel_scope.cancel()
            if wrong is not None:
                last_words = _last_words(bytes(self._stderr), log_dir, process.pid)
                raise HyperdError(wrong + last_words)

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
            callback, said, late = await self._accept_callback(process, listener, stack)
            if process.returncode is not None:
                return f"hyperd did not start: it {_ended(process.returncode)}"
            if late:
                return (
                    "hyperd did not start: it did not say where it listens within "
                    f"start_timeout={self._plan.start_timeout:g} seconds"
                )
            endpoint = self._read_descriptor(said, socket_dir)
            if endpoint is None:
                return (
                    "hyperd did not start: instead of where it listens it said "
                    f"{said[:200]!r}; is {self._plan.executable} a hyperd?"
                )
            self.hyperd = Hyperd(
                endpoint=str(endpoint),
                user=self._plan.user,
                pid=process.pid,
                log_dir=log_dir,
            )
            self.started.set()
            await process.wait()
        if callback is None or not self.started.is_set():
            return None
        return await self._end(process, callback)

    async def _accept_callback(
        self,
        process: trio.Process,
        listener: trio.socket.SocketType,
        stack: contextlib.ExitStack,
    ) -> tuple[trio.socket.SocketType | None, bytes, bool]:
        """Wait until the server has called back, has exited, or is late."""
        callback: trio.socket.SocketType | None = None
        said = b""
        with trio.move_on_after(self._plan.start_timeout) as deadline:
            async with trio.open_nursery() as nursery:

                async def stop_at_exit() -> None:
                    await process.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(stop_at_exit)
                callback, _ = await listener.accept()
                stack.enter_context(callback)
                said = await _receive_descriptor(callback)
                if not said:
                    # It hung up: what it died of says more than that.
                    with trio.move_on_after(_HANG_UP_GRACE):
                        await process.wait()
                nursery.cancel_scope.cancel()
        return callback, said, deadline.cancelled_caught

    def _read_descriptor(self, said: bytes, socket_dir: Path) -> Endpoint | None:
        """Read where the server listens: where it was told to, or it is not ours."""
        try:
            endpoint = parse_endpoint(said.removesuffix(b"\0").decode())
        except ValueError:
            return None
        if len(endpoint.addresses) != 1:
            return None
        (address,) = endpoint.addresses
        if address.host != ("127.0.0.1" if self._plan.tcp else str(socket_dir)):
            return None
        if self._plan.port not in (None, address.port):
            return None
        return endpoint

    async def _end(
        self, process: trio.Process, callback: trio.socket.SocketType
    ) -> str | None:
        """Have the process end; return what was wrong with that."""
        patience = self._plan.stop_timeout
        if self._suspect:
            # A dying server lets go of its clients first, and can be seen to have ended
            # only when all of its memory is given back.
            with trio.move_on_after(_DEATH_GRACE):
                await process.wait()
        if _hung_up(callback):
            with trio.move_on_after(patience):
                await process.wait()
        if process.returncode is not None:
            return f"hyperd {_ended(process.returncode)} before its block was over"
        callback.close()
        for number in (None, signal.SIGTERM):
            if self._in_a_hurry:
                break
            if number is not None:
                _signal_group(process, number)
                patience = _TERM_GRACE
            status: int | None = None
            with trio.move_on_after(patience) as self._patience:
                status = await process.wait()
            if status == 0:
                return None
            if status is not None:
                return f"hyperd did not end in good order: it {_ended(status)}"
        why = (
            "of a second Ctrl-C"
            if self._in_a_hurry
            else f"it did not end within stop_timeout={self._plan.stop_timeout:g} seconds"
        )
        return f"hyperd was killed, and what it had not written is lost, because {why}"

    async def _collect_stderr(self, stream: trio.lowlevel.FdStream) -> None:
        """Read stderr, so that it never blocks the server, and keep its end."""
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                self._stderr += chunk
                del self._stderr[:-_STDERR_KEPT]
        self._stderr_ended.set()


@contextlib.contextmanager
def _private_directory() -> Generator[Path]:
    """Make a directory for us alone, with a path short enough for a socket."""
    parent = tempfile.gettempdir()
    try:
        _check_socket_dir(Path(parent) / "hyperd-xxxxxxxx", "the temporary directory")
    except ValueError:
        # TMPDIR may be anything, and this is there on every POSIX system.
        parent = "/tmp"  # noqa: S108  mkdtemp makes the name and the mode safe
    directory = tempfile.mkdtemp(prefix="hyperd-", dir=parent)
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _listen_for_callback() -> trio.socket.SocketType:
    return trio.socket.from_stdlib_socket(
        socket.create_server(("127.0.0.1", 0), backlog=1)
    )


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


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def _remove_sockets(socket_dir: Path, pid: int) -> None:
    """Remove what a server that was killed left, unless another has taken it over."""
    for pid_file in socket_dir.glob(".s.PGSQL.*.pid"):
        with contextlib.suppress(OSError, ValueError):
            if int(pid_file.read_text()) == pid:
                pid_file.with_suffix("").unlink(missing_ok=True)
                pid_file.unlink(missing_ok=True)


def _last_words(stderr: bytes, log_dir: Path, pid: int) -> str:
    """Quote the end of what the server has said, for the end of a message."""
    text = ""
    lines = stderr.decode(errors="replace").strip().splitlines()
    if lines:
        text += "\nThe last lines of its stderr:\n" + _shorten(lines)
    lines = _last_log_lines(log_dir, pid)
    if lines:
        text += "\nThe last lines of its log:\n" + _shorten(lines)
    return text


def _shorten(lines: list[str]) -> str:
    return "\n".join(
        f"  {line[:_LOG_LINE_SHOWN]}" for line in lines[-_LOG_LINES_SHOWN:]
    )


def _last_log_lines(log_dir: Path, pid: int) -> list[str]:
    """Read the end of the server's log; a directory may have logs of others, too."""
    files = sorted(log_dir.glob("*.log"), key=_changed_at, reverse=True)
    for path in files[:_LOG_FILES_READ]:
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_READ))
            text = file.read(_LOG_READ).decode(errors="replace")
            lines = [_log_line(line, pid) for line in text.splitlines()]
            if any(lines):
                return list(filter(None, lines))
    return []


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf


def _log_line(line: str, pid: int) -> str:
    """Shorten a line of the log; empty if it is another server's, or cut off."""
    try:
        entry = json.loads(line)
        if entry["pid"] != pid:
            return ""
        return f"{entry['ts']} {entry['sev']} {entry['k']}: {entry['v']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _find_executable(given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        path = _check_directory("executable", given)
        found = _executable_at(path)
        if found is None:
            message = (
                f"executable={_shown(given)} must be an executable file, or a "
                "directory with an executable hyperd in it"
            )
            raise ValueError(message)
        return found
    from_environment = os.environ.get("HYPERD_PATH")
    if from_environment:
        found = _executable_at(Path(from_environment).absolute())
        if found is None:
            message = (
                f"the environment variable HYPERD_PATH={from_environment!r} must be "
                "the path of an executable hyperd, or of the directory that it is in"
            )
            raise HyperdError(message)
        return found
    # Looked up and not imported: importing it loads a library of 40 MB.
    spec = importlib.util.find_spec("tableauhyperapi")
    for place in (spec and spec.submodule_search_locations) or ():
        found = _executable_at(Path(place).absolute() / "bin" / "hyper")
        if found is not None:
            return found
    message = (
        "there is no hyperd: pip install 'trio-hyperpool[hyperd]', or say where it is "
        "with executable=... or the environment variable HYPERD_PATH"
    )
    raise HyperdError(message)


def _executable_at(path: Path) -> Path | None:
    if path.is_dir():
        path /= "hyperd"
    return path if path.is_file() and os.access(path, os.X_OK) else None


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        message = f"{name} must be True or False, not {value!r}"
        raise TypeError(message)


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{name} must be a number of seconds, not {value!r}"
        raise TypeError(message)
    if not value > 0:
        message = f"{name}={value!r} must be a positive number of seconds, or math.inf"
        raise ValueError(message)


def _check_port(port: object) -> None:
    if port is None:
        return
    if isinstance(port, bool) or not isinstance(port, int):
        message = f"port must be an int or None, not {port!r}"
        raise TypeError(message)
    if not 1 <= port <= 65535:
        message = f"port={port!r} must be from 1 to 65535, or None for any free one"
        raise ValueError(message)


def _check_text(name: str, value: object, *, secret: bool = False) -> None:
    if not isinstance(value, str):
        # Not even the wrong type of a secret is shown.
        shown = type(value).__name__ if secret else repr(value)
        message = f"{name} must be a str, not {shown}"
        raise TypeError(message)
    if not value or not value.isprintable():
        shown = "" if secret else f"={value!r}"
        message = f"{name}{shown} must be a text of printable characters, not empty"
        raise ValueError(message)


def _check_directory(name: str, value: object) -> Path:
    text: object = value
    if isinstance(value, os.PathLike):
        text = cast("os.PathLike[str]", value).__fspath__()
    if not isinstance(text, str):
        message = f"{name} must be a path, a str or os.PathLike, not {value!r}"
        raise TypeError(message)
    if not text or "\0" in text:
        message = f"{name}={text!r} must be a path: not empty, and without NUL"
        raise ValueError(message)
    return Path(os.path.abspath(text))  # noqa: PTH100  drops "..", too


def _check_socket_dir(value: str | os.PathLike[str], name: str = "socket_dir") -> Path:
    path = _check_directory(name, value)
    length = len(os.fsencode(path)) + _LONGEST_SOCKET_NAME
    if length > _LONGEST_SOCKET_PATH:
        message = (
            f"{name}={_shown(value)} is too long: with the name of the socket it "
            f"comes to {length} bytes, and {_LONGEST_SOCKET_PATH} are allowed"
        )
        raise ValueError(message)
    # hyperd takes the first "/domain/" for the end of the directory, libpq a comma for
    # the end of a host: then they do not mean the same socket.
    address = Address(str(path), 1)
    try:
        usable = parse_endpoint(str(address)).addresses == (address,)
    except ValueError:
        usable = False
    if not usable:
        message = (
            f"{name}={_shown(value)} must not have commas, control characters or "
            "'/domain/' in it: an endpoint cannot have them"
        )
        raise ValueError(message)
    return path


def _check_parameters(given: object, *, full_log: bool) -> dict[str, str]:
    parameters = dict(_DEFAULT_PARAMETERS)
    if not full_log:
        parameters["log_config"] = _QUIET_LOG
    if given is None:
        return parameters
    if not isinstance(given, Mapping):
        message = f"parameters must be a mapping of names to values, not {given!r}"
        raise TypeError(message)
    seen: set[str] = set()
    for name, value in cast("Mapping[object, object]", given).items():
        if not isinstance(name, str):
            message = f"parameters: the name {name!r} must be a str"
            raise TypeError(message)
        if not _PARAMETER_NAME.fullmatch(name):
            message = (
                f"parameters: {name!r} is not the name of a setting: lower-case "
                "letters and digits, in parts joined by '_' or '-'"
            )
            raise ValueError(message)
        key = name.replace("-", "_")
        if key in _RESERVED:
            message = f"parameters: {name!r} is not a setting: use {_RESERVED[key]}"
            raise ValueError(message)
        if key in seen:
            message = f"parameters: {name!r} is given twice"
            raise ValueError(message)
        seen.add(key)
        parameters[key] = _format_parameter(name, value)
    return parameters


def _format_parameter(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and not math.isfinite(value):
        message = f"parameters: {name}={value!r} must be finite"
        raise ValueError(message)
    if isinstance(value, int | float):
        return repr(value)
    if not isinstance(value, str):
        message = (
            f"parameters: {name} must be a str, an int, a float or a bool, "
            f"not {value!r}"
        )
        raise TypeError(message)
    if "\0" in value:
        message = f"parameters: {name}={value!r} must not have a NUL"
        raise ValueError(message)
    return value


def _shown(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
