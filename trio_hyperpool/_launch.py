"""What it takes to start a ``hyperd``, checked before anything starts."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from ._endpoint import Address, Endpoint, parse_endpoint
from ._errors import HyperdError

# What a sockaddr_un takes, less the NUL at its end.
_LONGEST_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103
_LONGEST_SOCKET_NAME: Final = len("/.s.PGSQL.65535")

# Warnings and worse only: measured, it costs nothing per query, where the server's own
# default costs 40 to 60 microseconds, and it is all that a private log is read for.
_QUIET_LOG: Final = {"log_config": "file,json,warning,hyperd,0,cerr,string,fatal"}

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
class Launch:
    """What to start: the arguments of `open_hyperd`, as `checked` makes them."""

    executable: Path
    log_dir: Path | None
    socket_dir: Path | None
    port: int | None
    tcp: bool
    user: str
    password: str | None = field(repr=False)
    parameters: Mapping[str, str]
    start_timeout: float
    stop_timeout: float

    @classmethod
    def checked(
        cls,
        executable: str | os.PathLike[str] | None,
        *,
        log_dir: str | os.PathLike[str] | None,
        socket_dir: str | os.PathLike[str] | None,
        port: int | None,
        tcp: bool,
        user: str,
        password: str | None,
        parameters: Mapping[str, str | int | float | bool] | None,
        start_timeout: float,
        stop_timeout: float,
    ) -> Self:
        """Check each argument, and that they fit together."""
        _check_seconds("start_timeout", start_timeout)
        _check_seconds("stop_timeout", stop_timeout)
        if not isinstance(tcp, bool):
            message = f"tcp must be True or False, not {tcp!r}"
            raise TypeError(message)
        if tcp and socket_dir is not None:
            shown = repr(os.fspath(socket_dir))
            message = f"socket_dir={shown} has no meaning with tcp=True"
            raise ValueError(message)
        _check_port(port)
        _check_text("user", user)
        if password is not None:
            _check_text("password", password, secret=True)
        return cls(
            executable=find_executable(executable),
            log_dir=None if log_dir is None else _check_path("log_dir", log_dir),
            socket_dir=None if socket_dir is None else _check_socket_dir(socket_dir),
            port=port,
            tcp=tcp,
            user=user,
            password=password,
            parameters={
                **_DEFAULT_PARAMETERS,
                **(_QUIET_LOG if log_dir is None else {}),
                **_check_parameters({} if parameters is None else parameters),
            },
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
        )

    def command(self, callback_port: int, socket_dir: Path, log_dir: Path) -> list[str]:
        """Make the command line."""
        if self.tcp:
            listen = f"tab.tcp://127.0.0.1:{self.port or 0}"
        elif self.port is None:
            listen = f"tab.domain://{socket_dir}/domain/auto"
        else:
            listen = str(Address(str(socket_dir), self.port))
        return [
            str(self.executable),
            "run",
            f"--callback-connection=tab.tcp://127.0.0.1:{callback_port}",
            f"--listen-connection={listen}",
            f"--init-user={self.user}",
            f"--log-dir={log_dir}",
            "--skip-license",
            *(["--no-password"] if self.password is None else []),
            *(
                f"--{name.replace('_', '-')}={value}"
                for name, value in self.parameters.items()
            ),
        ]

    def environment(self) -> dict[str, str]:
        """Make the environment: ours, but for the password."""
        environment = dict(os.environ)
        environment.pop("HYPER_INITIAL_USER_PASSWORD", None)
        if self.password is not None:
            environment["HYPER_INITIAL_USER_PASSWORD"] = self.password
        return environment

    def endpoint(self, said: bytes, socket_dir: Path) -> Endpoint | None:
        """Read where the server listens: where it was told to, or it is not ours."""
        try:
            endpoint = parse_endpoint(said.removesuffix(b"\0").decode())
        except ValueError:
            return None
        host = "127.0.0.1" if self.tcp else str(socket_dir)
        told = Address(host, self.port or endpoint.addresses[0].port)
        return endpoint if endpoint.addresses == (told,) else None


def find_executable(given: str | os.PathLike[str] | None) -> Path:
    """Find the program: where it is said to be, or in the package that brings it."""
    if given is not None:
        found = _executable_at(_check_path("executable", given))
        if found is None:
            message = (
                f"executable={os.fspath(given)!r} must be an executable file, or a "
                "directory with an executable hyperd in it"
            )
            raise ValueError(message)
        return found
    from_environment = os.environ.get("HYPERD_PATH")
    if from_environment:
        found = _executable_at(Path(from_environment))
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
        found = _executable_at(Path(place, "bin", "hyper"))
        if found is not None:
            return found
    message = (
        "there is no hyperd: pip install 'trio-hyperpool[hyperd]', or say where it is "
        "with executable=... or the environment variable HYPERD_PATH"
    )
    raise HyperdError(message)


def temporary_parent() -> str:
    """Choose where to make a private directory: its path has to do for a socket."""
    parent = tempfile.gettempdir()
    try:
        _check_socket_dir(Path(parent, "hyperd-xxxxxxxx"))
    except ValueError:
        # TMPDIR may be anything, and this is there on every POSIX system.
        return "/tmp"  # noqa: S108  mkdtemp makes the name and the mode safe
    return parent


def _executable_at(path: Path) -> Path | None:
    if path.is_dir():
        path /= "hyperd"
    return path.absolute() if path.is_file() and os.access(path, os.X_OK) else None


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


def _check_path(name: str, value: str | os.PathLike[str]) -> Path:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        message = f"{name} must be a path, a str or os.PathLike, not {value!r}"
        raise TypeError(message)
    if not text or "\0" in text:
        message = f"{name}={text!r} must be a path: not empty, and without NUL"
        raise ValueError(message)
    return Path(os.path.abspath(text))  # noqa: PTH100  drops "..", too


def _check_socket_dir(value: str | os.PathLike[str]) -> Path:
    path = _check_path("socket_dir", value)
    length = len(os.fsencode(path)) + _LONGEST_SOCKET_NAME
    if length > _LONGEST_SOCKET_PATH:
        message = (
            f"socket_dir={os.fspath(value)!r} is too long: with the name of the socket "
            f"it comes to {length} bytes, and {_LONGEST_SOCKET_PATH} are allowed"
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
            f"socket_dir={os.fspath(value)!r} must not have commas, control characters "
            "or '/domain/' in it: an endpoint cannot have them"
        )
        raise ValueError(message)
    return path


def _check_parameters(
    given: Mapping[str, str | int | float | bool],
) -> dict[str, str]:
    if not isinstance(given, Mapping):
        message = f"parameters must be a mapping of names to values, not {given!r}"
        raise TypeError(message)
    parameters: dict[str, str] = {}
    for name, value in given.items():
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
        if key in parameters:
            message = f"parameters: {name!r} is given twice"
            raise ValueError(message)
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
