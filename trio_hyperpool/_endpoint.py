"""Endpoint strings, as Hyper prints and people write them, to libpq parameters."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NoReturn

DEFAULT_PORT: Final = 7483

_ALLOWED: Final = (
    'allowed are "host:port", "host" (port 7483), "[IPv6 address]:port", '
    '"tab.tcp://host:port" and "tab.domain:///directory/domain/.s.PGSQL.port", '
    "or several of them separated by commas"
)

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.ASCII)
_BRACKETED: Final = re.compile(
    r"\[(?P<address>[0-9A-Fa-f:.]+)(%(?P<zone>[A-Za-z0-9._-]+))?\](?P<rest>.*)",
    re.ASCII | re.DOTALL,
)
_SOCKET: Final = ".s.PGSQL."


class _NotAllowedError(ValueError):
    """What is wrong with one part, before it is known what the whole was."""


@dataclass(frozen=True, slots=True)
class Address:
    """One place where a server listens.

    Attributes:
        host: a host name, an IP address, or the absolute directory of a socket: the
            three things that libpq tells apart in its own ``host``.
        port: the TCP port, or the number at the end of the socket's name.
    """

    host: str
    port: int

    @property
    def is_socket(self) -> bool:
        """Whether this is a unix socket."""
        return self.host.startswith("/")

    @property
    def is_local(self) -> bool:
        """Whether this is a unix socket or a loopback address."""
        if self.is_socket:
            return True
        host, _, _zone = self.host.partition("%")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            host = host.removesuffix(".")
            return host == "localhost" or host.endswith(".localhost")

    def __str__(self) -> str:
        if self.is_socket:
            return f"tab.domain://{self.host}/domain/{_SOCKET}{self.port}"
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server, or each of several that are as good, listens.

    ``str()`` is the canonical form, which `parse_endpoint` takes back.

    Attributes:
        addresses: at least one, in the order in which they are tried.
    """

    addresses: tuple[Address, ...]

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: it sees the same paths as we do.

        A forwarded port or a container's looks the same, so this is a guess for
        loopback addresses.
        """
        return all(address.is_local for address in self.addresses)

    def conninfo(self, *, load_balance: bool = False) -> dict[str, str]:
        """Make the libpq parameters that say where to connect.

        Args:
            load_balance: try several addresses in random order (libpq 16 and newer).

        Returns:
            ``host`` and ``port``, each a list separated by commas where there are
            several addresses; nothing in them needs escaping beyond what
            `psycopg.conninfo.make_conninfo` does.
        """
        parameters = {
            "host": ",".join(address.host for address in self.addresses),
            "port": ",".join(str(address.port) for address in self.addresses),
        }
        if load_balance:
            parameters["load_balance_hosts"] = "random"
        return parameters

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))


def parse_endpoint(endpoint: str) -> Endpoint:
    """Read an endpoint, as `open_pool` and `PoolConfig` take it.

    Args:
        endpoint: ``"host:port"``, ``"host"`` (port 7483), ``"[::1]:port"``,
            ``"tab.tcp://host:port"``, ``"tab.domain:///dir/domain/.s.PGSQL.n"`` (the
            socket ``.s.PGSQL.n`` in the directory ``/dir``, as hyperd prints it), or
            several of them separated by commas.

    Raises:
        TypeError: if it is not a string.
        ValueError: if it is none of these; the message says what is wrong.
    """
    parts = _split(endpoint)
    try:
        return Endpoint(tuple(map(_parse_address, parts)))
    except _NotAllowedError as error:
        reason = str(error)
    # Raised out here so that the traceback has one error, not two for one fact.
    shown = endpoint
    if "@" in endpoint:
        # What stands before an @ may be a password.
        shown = "..." + endpoint[endpoint.rindex("@") :]
    raise ValueError(f"endpoint={shown!r}: {reason}; {_ALLOWED}")


_URI: Final = ("postgresql://", "postgres://")
_IN_URI: Final = re.compile(r"(://[^:/@?\s]*):[^@/\s]*@")
_IN_KEYWORDS: Final = re.compile(
    r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)"
)


def is_postgres(endpoint: object) -> bool:
    """Whether this is a libpq connection string: a URI, or keywords and values."""
    return isinstance(endpoint, str) and (
        endpoint.startswith(_URI)
        or ("=" in endpoint and not endpoint.startswith("tab."))
    )


def hide_passwords(conninfo: str) -> str:
    """Put dots in place of the passwords in a connection string, or a report of one."""
    return _IN_KEYWORDS.sub(r"\1...", _IN_URI.sub(r"\1:...@", conninfo))


def _split(endpoint: object) -> list[str]:
    if not isinstance(endpoint, str):
        message = f"endpoint must be a str, not {endpoint!r}; {_ALLOWED}"
        raise TypeError(message)
    return endpoint.split(",")


def _parse_address(text: str) -> Address:
    if not text:
        _refuse("it is empty, or has an empty place in its list")
    if not text.isprintable() or text != text.strip():
        _refuse("it has white space or control characters")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse_tcp(text)
    if scheme == "tab.tcp":
        return _parse_tcp(rest)
    if scheme == "tab.domain":
        return _parse_socket(rest)
    if scheme == "tab.pipe":
        _refuse("libpq, and so psycopg, cannot connect to a Windows pipe")
    return _refuse(f"unknown scheme {scheme!r}")


def _parse_tcp(text: str) -> Address:
    if "@" in text:
        _refuse("user and password are options of their own")
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None:
            _refuse("the brackets do not hold an IPv6 address")
        address, zone, rest = match["address"], match["zone"], match["rest"]
        try:
            host = str(ipaddress.IPv6Address(address))
        except ValueError:
            _refuse(f"{address!r} is not an IPv6 address")
        if zone is not None:
            host = f"{host}%{zone}"
        if not rest:
            return Address(host, DEFAULT_PORT)
        if not rest.startswith(":"):
            _refuse("a colon and a port, or nothing, may follow the brackets")
        return Address(host, _parse_port(rest[1:]))
    if text.count(":") > 1:
        _refuse("an IPv6 address stands in brackets, as in '[::1]:7483'")
    host, colon, port = text.partition(":")
    host = host.lower()
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(
        _LABEL.fullmatch(label) and len(label) <= 63 for label in labels
    ):
        _refuse(f"{host!r} is not a host name")
    return Address(host, _parse_port(port) if colon else DEFAULT_PORT)


def _parse_socket(text: str) -> Address:
    # In Hyper's notation "/domain/" is a separator, not a directory: the socket is in
    # the directory before it, which therefore cannot have it in its path.
    directory, separator, name = text.rpartition("/domain/")
    if not separator:
        _refuse("a tab.domain endpoint has '/domain/' before the name of its socket")
    if "/domain/" in f"{directory}/":
        _refuse("'/domain/' ends the directory, and may be there once only")
    if not directory.startswith("/"):
        _refuse("libpq needs the absolute path of the socket's directory")
    if not name.startswith(_SOCKET):
        _refuse(
            f"libpq cannot connect to a socket called {name!r}, only to "
            "'.s.PGSQL.<port>': let hyperd listen on such a name, or on 'auto'"
        )
    return Address(directory, _parse_port(name.removeprefix(_SOCKET)))


def _parse_port(text: str) -> int:
    if not _PORT.fullmatch(text) or int(text) > 65535:
        _refuse(f"{text!r} is not a port, an integer from 1 to 65535")
    return int(text)


def _refuse(reason: str) -> NoReturn:
    raise _NotAllowedError(reason)
