"""Every knob of a pool, validated once, before anything is opened."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypedDict, cast

from ._endpoint import hide_passwords, is_postgres, parse_endpoint

Hook: TypeAlias = Callable[[Any], Awaitable[object]]
PasswordSource: TypeAlias = Callable[[], Awaitable[str]]


class CreateMode(enum.Enum):
    """What becomes of the database file when the pool opens its first connection."""

    DO_NOT_CREATE = "do not create"
    """The database has to exist."""

    CREATE = "create"
    """The database must not exist yet, and is created."""

    CREATE_IF_NOT_EXISTS = "create if not exists"
    """The database is created unless it exists."""

    CREATE_AND_REPLACE = "create and replace"
    """The database is created; one that exists is deleted first."""


class HealthCheck(enum.Enum):
    """How an idle connection proves that it is alive before it is leased again."""

    PING = "ping"
    """An empty query: one round trip, nothing to parse or plan."""

    SELECT_ONE = "select 1"
    """``SELECT 1``: the server's executor takes part, too."""

    PASSIVE = "passive"
    """A look at the socket, which shows a closed peer; no round trip."""


class PoolOptions(TypedDict, total=False):
    """The fields of `PoolConfig`, but for endpoint and database, as keywords."""

    create_mode: CreateMode
    user: str | None
    password: str | PasswordSource | None
    load_balance: bool
    max_size: int
    min_idle: int
    max_waiting: float
    health_check: HealthCheck | bool | Hook
    health_check_after: float
    wait_timeout: float
    create_timeout: float
    recycle_timeout: float
    hook_timeout: float
    cancel_timeout: float
    close_timeout: float
    max_lifetime: float
    idle_timeout: float
    max_lease: float
    create_attempts: int
    create_backoff: float
    log_wait_over: float
    log_lease_over: float
    after_connect: Hook | None
    before_acquire: Hook | None
    after_release: Hook | None
    name: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """All that a pool is made from; immutable, and checked when it is made.

    Durations are seconds, and `math.inf` means that there is no limit.

    Args:
        endpoint: ``"host:port"``, ``"host"`` (port 7483), ``"tab.tcp://host:port"`` or
            ``"tab.domain:///directory/domain/.s.PGSQL.n"``; several, separated by
            commas, are tried in order. None starts a private ``hyperd`` that lives
            as long as the pool. A libpq connection string, as in
            ``"postgresql://user@host/db"`` or ``"host=... dbname=..."``, is for
            PostgreSQL.
        database: path of the ``.hyper`` file, as the server sees it; of PostgreSQL
            the name, which may be left to the connection string.
        create_mode: carried out once, by the pool's first connection.
        user: Hyper's default user if None.
        password: a string, or an async callable that is awaited before each
            connection, so that it can change.
        load_balance: try several hosts in random order.
        max_size: most connections alive at once, those being opened, cleaned and
            closed included; at least 1.
        min_idle: connections kept idle and warm, opened in the background.
        max_waiting: most tasks that may wait for a place; one more gets a
            `PoolSaturatedError` at once.
        health_check: what an idle connection has to pass before it is leased again: a
            `HealthCheck`, or an async callable that takes the connection and
            raises if it is bad. True is ``SELECT_ONE``, False is ``PASSIVE``.
        health_check_after: a connection given back less than this many seconds ago
            gets only the passive check; 0 probes at every checkout.
        wait_timeout: seconds to wait for a place in the pool; 0 never queues.
        create_timeout: seconds for one attempt to open a connection, its
            ``after_connect`` and, for the first one, the create mode included.
        recycle_timeout: seconds for the probe at checkout, and for cleaning or
            closing a connection that came back. Giving up on a server that does not
            answer may take ``cancel_timeout`` more.
        hook_timeout: seconds for each hook.
        cancel_timeout: seconds for stopping a cancelled query on the server and
            draining its answer; past them the connection is closed.
        close_timeout: seconds that outstanding leases are given when the pool's block
            ends normally; none when it ends by an exception.
        max_lifetime: age in seconds at which a connection is retired, spread over the
            last tenth, so that connections of one age do not go all at once.
        idle_timeout: seconds since its return after which an idle connection above
            ``min_idle`` is retired.
        max_lease: seconds after which a lease is revoked.
        create_attempts: attempts for each new connection if the server can't be
            reached; at least 1.
        create_backoff: seconds before the second attempt, doubled for each further
            one, with jitter.
        log_wait_over: seconds; a lease that waited longer is logged, with its task and
            the line that took it.
        log_lease_over: seconds; a lease that is held longer is logged, while it is
            held and when it ends.
        after_connect: async callable, awaited with each new connection once.
        before_acquire: async callable, awaited with the connection at every checkout.
        after_release: async callable, awaited with each connection that came back
            and is to be kept, by a task of the pool.
        name: what the pool is called in statistics and logs; by default endpoint
            and database.

    Raises:
        TypeError: a value is of the wrong type; the message names field, value and
            what is allowed.
        ValueError: a value is out of range, or two of them do not fit together.
    """

    endpoint: str | None = dataclasses.field(default=None, kw_only=False)
    database: str | os.PathLike[str] = dataclasses.field(default="", kw_only=False)
    create_mode: CreateMode = CreateMode.DO_NOT_CREATE
    user: str | None = None
    password: str | PasswordSource | None = dataclasses.field(default=None, repr=False)
    load_balance: bool = False
    max_size: int = 16
    min_idle: int = 0
    max_waiting: float = math.inf
    health_check: HealthCheck | bool | Hook = HealthCheck.PING
    health_check_after: float = 0.5
    wait_timeout: float = math.inf
    create_timeout: float = 30.0
    recycle_timeout: float = 5.0
    hook_timeout: float = 30.0
    cancel_timeout: float = 5.0
    close_timeout: float = 5.0
    max_lifetime: float = math.inf
    idle_timeout: float = math.inf
    max_lease: float = math.inf
    create_attempts: int = 1
    create_backoff: float = 0.05
    log_wait_over: float = math.inf
    log_lease_over: float = math.inf
    after_connect: Hook | None = None
    before_acquire: Hook | None = None
    after_release: Hook | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if is_postgres(self.endpoint):
            if self.database != "":
                _require_text("database", self.database)
        else:
            if self.endpoint is not None:
                parse_endpoint(self.endpoint)
            self._normalise("database", _checked_path(self.database))
        self._check_create_mode()
        self._check_credentials()
        if not isinstance(self.load_balance, bool):
            _refuse_type("load_balance", self.load_balance, "True or False")
        self._check_sizes()
        self._check_durations()
        self._normalise("health_check", _checked_health_check(self.health_check))
        for hook in ("after_connect", "before_acquire", "after_release"):
            value = getattr(self, hook)
            if value is not None and not _is_async(value):
                _refuse_type(hook, value, "an async callable or None")
        if self.name is not None:
            _require_text("name", self.name)

    def _normalise(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def __repr__(self) -> str:
        shown = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.repr
        }
        if is_postgres(self.endpoint):
            shown["endpoint"] = hide_passwords(str(self.endpoint))
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"PoolConfig({fields})"

    def _check_create_mode(self) -> None:
        mode = self.create_mode
        if not isinstance(mode, CreateMode):
            _refuse_type("create_mode", mode, "a CreateMode")
        if is_postgres(self.endpoint) and mode is not CreateMode.DO_NOT_CREATE:
            raise ValueError(
                "create_mode: only CreateMode.DO_NOT_CREATE is allowed with "
                f"PostgreSQL, not {mode}"
            )

    def _check_credentials(self) -> None:
        if self.user is not None:
            _require_text("user", self.user)
        if self.password is None:
            return
        if not isinstance(self.password, str) and not _is_async(self.password):
            # The value stays out of the message: it may be a password all the same.
            msg = (
                "password: a str, an async callable without arguments or None is "
                f"allowed, not a {type(self.password).__name__}"
            )
            raise TypeError(msg)
        if isinstance(self.password, str) and "\0" in self.password:
            raise ValueError("password: a NUL character is not allowed")
        if self.user is None and not is_postgres(self.endpoint):
            raise ValueError(
                "password: allowed only together with a user, and user is None"
            )

    def _check_sizes(self) -> None:
        _require_count("max_size", self.max_size, least=1)
        _require_count("min_idle", self.min_idle, least=0)
        _require_count("create_attempts", self.create_attempts, least=1)
        if self.max_waiting != math.inf:
            _require_count("max_waiting", self.max_waiting, least=0, or_inf=True)
        if self.min_idle > self.max_size:
            raise ValueError(
                f"min_idle: at most max_size ({self.max_size}) is allowed, "
                f"not {self.min_idle!r}"
            )

    def _check_durations(self) -> None:
        for field in (
            "health_check_after",
            "wait_timeout",
            "close_timeout",
            "create_backoff",
        ):
            _require_seconds(field, getattr(self, field))
        for field in (
            "create_timeout",
            "recycle_timeout",
            "hook_timeout",
            "cancel_timeout",
            "max_lifetime",
            "idle_timeout",
            "max_lease",
            "log_wait_over",
            "log_lease_over",
        ):
            _require_seconds(field, getattr(self, field), zero=False)
        if self.create_backoff == math.inf:
            raise ValueError(
                "create_backoff: a finite number of seconds is allowed, not inf"
            )


def check_wait_timeout(seconds: float) -> None:
    """Check the ``wait_timeout`` of a single lease as that of a config is checked."""
    _require_seconds("wait_timeout", seconds)


def check_max_size(max_size: int) -> None:
    """Check a new ``max_size`` as that of a config is checked."""
    _require_count("max_size", max_size, least=1)


def check_attempts(attempts: int) -> None:
    """Check the ``attempts`` of a transaction."""
    _require_count("attempts", attempts, least=1)


def _refuse_type(field: str, value: object, allowed: str) -> NoReturn:
    raise TypeError(f"{field}: {allowed} is allowed, not {value!r}")


def _require_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        _refuse_type(field, value, "a str or None")
    if not value:
        raise ValueError(f"{field}: a str that is not empty is allowed, not ''")
    _refuse_nul(field, value)


def _refuse_nul(field: str, value: str) -> None:
    if "\0" in value:
        raise ValueError(f"{field}: a NUL character is not allowed, as in {value!r}")


def _checked_path(value: object) -> str:
    allowed = "database: required: the path of a .hyper file, a str or os.PathLike"
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{allowed}; not {value!r}")
    path: object = os.fspath(cast("str | os.PathLike[str]", value))
    if not isinstance(path, str):
        raise TypeError(f"{allowed}[str]; not {value!r}")
    if not path:
        raise ValueError(f"{allowed}; not ''")
    _refuse_nul("database", path)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"database: a path that is valid Unicode is allowed, not {path!r}"
        ) from None
    return path


def _require_count(
    field: str, value: object, *, least: int, or_inf: bool = False
) -> None:
    allowed = f"an int of at least {least}" + (" or math.inf" if or_inf else "")
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse_type(field, value, allowed)
    if value < least:
        raise ValueError(f"{field}: {allowed} is allowed, not {value!r}")


def _require_seconds(field: str, value: object, *, zero: bool = True) -> None:
    allowed = f"a number of seconds {'from' if zero else 'above'} 0 up to math.inf"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse_type(field, value, allowed)
    # Written so that NaN, of which every comparison is false, is refused, and so is
    # an int that no float can hold.
    in_range = (value >= 0 if zero else value > 0) and (
        value <= sys.float_info.max or value == math.inf
    )
    if not in_range:
        raise ValueError(f"{field}: {allowed} is allowed, not {value!r}")


def _checked_health_check(value: object) -> object:
    if value is True:
        return HealthCheck.SELECT_ONE
    if value is False:
        return HealthCheck.PASSIVE
    if not isinstance(value, HealthCheck) and not _is_async(value):
        allowed = "a HealthCheck, a bool or an async callable"
        _refuse_type("health_check", value, allowed)
    return value


def _is_async(value: object) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    # Where a call looks for it: the class itself is not async, its objects are.
    called = type(value).__call__
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(called)
