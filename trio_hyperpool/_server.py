"""``open_hyperd``: a ``hyperd`` that lives exactly as long as its block.

The process belongs to a task of its own, `Life.attend`, which no cancellation and no
Ctrl-C reaches; the block merely asks it to stop and waits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import trio

from ._launch import Launch
from ._life import Hyperd, Life

__all__ = ["Hyperd", "open_hyperd"]

_log = logging.getLogger("trio_hyperpool")


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
    return _Block(
        Launch.checked(
            executable,
            log_dir=log_dir,
            socket_dir=socket_dir,
            port=port,
            tcp=tcp,
            user=user,
            password=password,
            parameters=parameters,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
        )
    )


class _Block(AbstractAsyncContextManager["Hyperd"]):
    """The ``async with`` of `open_hyperd`.

    A class, because an `@asynccontextmanager` leaks what it has when a Ctrl-C falls
    between it and its caller; and it keeps the body's exceptions away from the nursery,
    which would wrap them.
    """

    def __init__(self, launch: Launch) -> None:
        self._life = Life(launch)
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
        if self._life.failure is not None:
            await self._finish()
            raise self._life.failure
        hyperd = self._life.hyperd
        assert hyperd is not None  # noqa: S101  what was not asked to end has failed
        self._life.body.__enter__()
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
            if self._life.body.__exit__(kind, error, traceback):
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
