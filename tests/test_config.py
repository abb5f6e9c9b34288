"""A config is right when it is made, or is refused in words."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

import pytest
from hypothesis import given, strategies as st

from trio_hyperpool import _config
from trio_hyperpool._config import (
    CreateMode,
    HealthCheck,
    PoolConfig,
    PoolOptions,
    check_attempts,
    check_max_size,
    check_wait_timeout,
)

Make: TypeAlias = Callable[..., PoolConfig]

ZERO_ALLOWED = ["health_check_after", "wait_timeout", "close_timeout", "create_backoff"]
ABOVE_ZERO = [
    "create_timeout",
    "recycle_timeout",
    "hook_timeout",
    "cancel_timeout",
    "max_lifetime",
    "idle_timeout",
    "max_lease",
    "log_wait_over",
    "log_lease_over",
]
DURATIONS = ZERO_ALLOWED + ABOVE_ZERO
COUNTS = {"max_size": 1, "min_idle": 0, "create_attempts": 1, "max_waiting": 0}
HOOKS = ["after_connect", "before_acquire", "after_release"]

PATH_REQUIRED = "database: required: the path of a .hyper file, a str or os.PathLike"
SECONDS = "a number of seconds from 0 up to math.inf"

make: Make = functools.partial(PoolConfig, database="d.hyper")


async def hook(_connection: object) -> None: ...


async def hook_of_two(_option: str, _connection: object) -> None: ...


async def password_source() -> str:
    return "secret"


class Callback:
    async def __call__(self, _connection: object) -> None: ...

    async def method(self, _connection: object) -> None: ...


class SyncCallback:
    def __call__(self, _connection: object) -> None: ...


class ShadowedCallback(SyncCallback):
    """A call looks for ``__call__`` in the class, and never sees this one."""

    def __init__(self) -> None:
        self.__dict__["__call__"] = hook


ASYNC = [
    hook,
    functools.partial(hook),
    functools.partial(functools.partial(hook_of_two, "option")),
    Callback(),
    functools.partial(Callback()),
    Callback().method,
]


def sync_hook(_connection: object) -> None: ...


async def generator(_connection: object) -> Any:
    yield


NOT_ASYNC = [
    sync_hook,
    lambda connection: hook_of_two("option", connection),
    functools.partial(sync_hook),
    SyncCallback(),
    ShadowedCallback(),
    Callback,
    functools.partial(Callback),
    generator,
    "hook",
    3,
]


def refusal(error: type[Exception], **options: Any) -> str:
    with pytest.raises(error) as caught:
        make(**options)
    assert type(caught.value) is error
    return str(caught.value)


# What is allowed


def test_every_field_but_the_database_has_the_default_of_the_documentation() -> None:
    assert dataclasses.asdict(make()) == {
        "endpoint": None,
        "database": "d.hyper",
        "create_mode": CreateMode.DO_NOT_CREATE,
        "user": None,
        "password": None,
        "load_balance": False,
        "max_size": 16,
        "min_idle": 0,
        "max_waiting": math.inf,
        "health_check": HealthCheck.PING,
        "health_check_after": 0.5,
        "wait_timeout": math.inf,
        "create_timeout": 30,
        "recycle_timeout": 5,
        "hook_timeout": 30,
        "cancel_timeout": 5,
        "close_timeout": 5,
        "max_lifetime": math.inf,
        "idle_timeout": math.inf,
        "max_lease": math.inf,
        "create_attempts": 1,
        "create_backoff": 0.05,
        "log_wait_over": math.inf,
        "log_lease_over": math.inf,
        "after_connect": None,
        "before_acquire": None,
        "after_release": None,
        "name": None,
    }


def test_endpoint_and_database_come_first_and_all_else_by_keyword() -> None:
    config = PoolConfig("host:1", "d.hyper")
    assert (config.endpoint, config.database) == ("host:1", "d.hyper")
    with pytest.raises(TypeError, match="positional"):
        PoolConfig("host:1", "d.hyper", CreateMode.CREATE)  # type: ignore[call-arg]


def test_an_unknown_option_is_a_type_error_that_names_it() -> None:
    assert "max_sise" in refusal(TypeError, max_sise=3)


def test_the_options_of_open_pool_are_the_fields_of_the_config() -> None:
    names = vars(_config)
    options = get_type_hints(PoolOptions, names)
    fields = get_type_hints(PoolConfig, names)
    positional = {field: fields[field] for field in ("endpoint", "database")}
    assert positional | options == fields
    assert list(positional | options) == [
        field.name for field in dataclasses.fields(PoolConfig)
    ]
    assert not PoolOptions.__required_keys__


@pytest.mark.parametrize(
    "endpoint",
    [None, "localhost", "h:1,[::1]:2", "tab.domain:///d/domain/.s.PGSQL.7"],
)
def test_an_endpoint_is_kept_as_it_was_written(endpoint: str | None) -> None:
    assert make(endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize("path", ["d.hyper", Path("d.hyper"), Path("/a b/ü.hyper")])
def test_a_database_is_a_str_or_a_path_and_becomes_a_str(
    path: str | os.PathLike[str],
) -> None:
    config = PoolConfig(database=path)
    assert config.database == os.fspath(path)
    assert type(config.database) is str


@pytest.mark.parametrize("mode", CreateMode)
def test_every_create_mode_is_allowed(mode: CreateMode) -> None:
    assert make(create_mode=mode).create_mode is mode


@pytest.mark.parametrize("password", [None, "", "secret", password_source])
def test_a_password_is_a_str_or_an_async_callable_beside_a_user(password: Any) -> None:
    config = make(user="me", password=password)
    assert config.user == "me"
    assert config.password == password


@pytest.mark.parametrize("value", [True, False])
def test_load_balancing_is_a_bool(value: bool) -> None:
    assert make(load_balance=value).load_balance is value


@pytest.mark.parametrize(("field", "least"), COUNTS.items())
def test_a_count_goes_from_its_least_value_upward(field: str, least: int) -> None:
    for value in (least, least + 1, least + 10):
        assert getattr(make(**{field: value}), field) == value


def test_as_many_idle_connections_as_there_may_be_are_allowed() -> None:
    assert make(min_idle=2, max_size=2).min_idle == 2


@pytest.mark.parametrize("field", DURATIONS)
def test_a_duration_is_an_int_or_a_float(field: str) -> None:
    for value in (1, 0.001, 1e9, sys.float_info.max):
        assert getattr(make(**{field: value}), field) == value


@pytest.mark.parametrize("field", ZERO_ALLOWED)
def test_no_time_at_all_is_allowed_where_it_says_something(field: str) -> None:
    assert getattr(make(**{field: 0}), field) == 0


@pytest.mark.parametrize("field", sorted({*DURATIONS, "max_waiting"}))
def test_infinity_is_no_limit(field: str) -> None:
    if field != "create_backoff":
        assert getattr(make(**{field: math.inf}), field) == math.inf


@pytest.mark.parametrize(
    ("given_check", "kept"),
    [
        (True, HealthCheck.SELECT_ONE),
        (False, HealthCheck.PASSIVE),
        *zip(HealthCheck, HealthCheck, strict=True),
        *zip(ASYNC, ASYNC, strict=True),
    ],
)
def test_a_health_check_is_one_of_three_or_a_bool_or_async(
    given_check: Any, kept: object
) -> None:
    assert make(health_check=given_check).health_check is kept


@pytest.mark.parametrize("field", HOOKS)
@pytest.mark.parametrize("value", [None, *ASYNC])
def test_a_hook_is_whatever_a_call_of_gives_a_coroutine(field: str, value: Any) -> None:
    assert getattr(make(**{field: value}), field) is value


def test_a_pool_has_the_name_it_is_given() -> None:
    assert make(name="sales").name == "sales"


def test_modes_and_checks_can_be_looked_up_by_their_words() -> None:
    assert {mode.value: mode.name for mode in CreateMode} == {
        "do not create": "DO_NOT_CREATE",
        "create": "CREATE",
        "create if not exists": "CREATE_IF_NOT_EXISTS",
        "create and replace": "CREATE_AND_REPLACE",
    }
    assert {check.value: check.name for check in HealthCheck} == {
        "ping": "PING",
        "select 1": "SELECT_ONE",
        "passive": "PASSIVE",
    }


# What is not


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("create_mode", "create", "a CreateMode"),
        ("create_mode", None, "a CreateMode"),
        ("user", b"me", "a str or None"),
        ("user", 3, "a str or None"),
        ("load_balance", 1, "True or False"),
        ("load_balance", None, "True or False"),
        ("name", 3, "a str or None"),
        ("name", b"sales", "a str or None"),
        ("health_check", None, "a HealthCheck, a bool or an async callable"),
        ("health_check", 1, "a HealthCheck, a bool or an async callable"),
        ("health_check", 0, "a HealthCheck, a bool or an async callable"),
        ("health_check", "ping", "a HealthCheck, a bool or an async callable"),
        ("health_check", HealthCheck, "a HealthCheck, a bool or an async callable"),
        ("max_waiting", None, "an int of at least 0 or math.inf"),
        ("max_waiting", 2.0, "an int of at least 0 or math.inf"),
        ("max_waiting", math.nan, "an int of at least 0 or math.inf"),
        ("max_waiting", -math.inf, "an int of at least 0 or math.inf"),
        ("max_waiting", True, "an int of at least 0 or math.inf"),
    ],
)
def test_a_wrong_type_is_refused_with_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    message = refusal(TypeError, **{field: value})
    assert message == f"{field}: {allowed} is allowed, not {value!r}"


@pytest.mark.parametrize("field", ["max_size", "min_idle", "create_attempts"])
@pytest.mark.parametrize("value", [True, False, 2.0, math.inf, math.nan, "2", None])
def test_a_count_is_an_int_and_no_bool(field: str, value: Any) -> None:
    message = refusal(TypeError, **{field: value})
    assert message == (
        f"{field}: an int of at least {COUNTS[field]} is allowed, not {value!r}"
    )


@pytest.mark.parametrize(("field", "least"), COUNTS.items())
def test_a_count_below_its_least_value_is_refused(field: str, least: int) -> None:
    or_inf = " or math.inf" if field == "max_waiting" else ""
    for value in (least - 1, least - 10):
        message = refusal(ValueError, **{field: value})
        assert message == (
            f"{field}: an int of at least {least}{or_inf} is allowed, not {value}"
        )


def test_more_idle_connections_than_connections_are_refused() -> None:
    message = refusal(ValueError, min_idle=3, max_size=2)
    assert message == "min_idle: at most max_size (2) is allowed, not 3"


@pytest.mark.parametrize("field", DURATIONS)
@pytest.mark.parametrize("value", [True, False, "1", None, 1j, Decimal(1), Fraction(1)])
def test_a_duration_is_a_number_and_no_bool(field: str, value: Any) -> None:
    message = refusal(TypeError, **{field: value})
    least = "from" if field in ZERO_ALLOWED else "above"
    assert message == (
        f"{field}: a number of seconds {least} 0 up to math.inf is allowed, "
        f"not {value!r}"
    )


@pytest.mark.parametrize("field", DURATIONS)
@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan])
def test_a_negative_duration_and_nan_are_refused(field: str, value: float) -> None:
    message = refusal(ValueError, **{field: value})
    least = "from" if field in ZERO_ALLOWED else "above"
    assert message == (
        f"{field}: a number of seconds {least} 0 up to math.inf is allowed, "
        f"not {value!r}"
    )


@pytest.mark.parametrize("field", ABOVE_ZERO)
@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_no_time_at_all_is_refused_where_nothing_could_be_done_in_it(
    field: str, value: float
) -> None:
    message = refusal(ValueError, **{field: value})
    assert message == (
        f"{field}: a number of seconds above 0 up to math.inf is allowed, not {value!r}"
    )


def test_a_backoff_without_an_end_is_refused() -> None:
    message = refusal(ValueError, create_backoff=math.inf)
    assert message == "create_backoff: a finite number of seconds is allowed, not inf"


@pytest.mark.parametrize("field", HOOKS)
@pytest.mark.parametrize("value", NOT_ASYNC)
def test_a_hook_that_is_not_async_is_refused(field: str, value: Any) -> None:
    message = refusal(TypeError, **{field: value})
    assert message == f"{field}: an async callable or None is allowed, not {value!r}"


@pytest.mark.parametrize("value", NOT_ASYNC)
def test_a_health_check_that_is_not_async_is_refused(value: Any) -> None:
    message = refusal(TypeError, health_check=value)
    assert message.startswith("health_check: ")
    assert message.endswith(f" is allowed, not {value!r}")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            "",
            ValueError,
            f"{PATH_REQUIRED}; not ''",
        ),
        (None, TypeError, f"{PATH_REQUIRED}; not None"),
        (3, TypeError, f"{PATH_REQUIRED}; not 3"),
        (b"d.hyper", TypeError, f"{PATH_REQUIRED}; not b'd.hyper'"),
        (
            "\udc80.hyper",
            ValueError,
            "database: a path that is valid Unicode is allowed, not '\\udc80.hyper'",
        ),
        (
            "a\0b",
            ValueError,
            "database: a NUL character is not allowed, as in 'a\\x00b'",
        ),
    ],
)
def test_a_database_is_required(
    value: Any, error: type[Exception], message: str
) -> None:
    assert refusal(error, database=value) == message


def test_a_database_that_is_left_out_is_asked_for() -> None:
    with pytest.raises(ValueError, match="database: required"):
        PoolConfig("localhost")


def test_a_path_of_bytes_is_refused() -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return b"d.hyper"

        def __repr__(self) -> str:
            return "BytesPath()"

    assert refusal(TypeError, database=BytesPath()) == (
        f"{PATH_REQUIRED}[str]; not BytesPath()"
    )


@pytest.mark.parametrize("field", ["user", "name"])
def test_a_text_that_is_empty_or_has_a_nul_is_refused(field: str) -> None:
    assert refusal(ValueError, **{field: ""}) == (
        f"{field}: a str that is not empty is allowed, not ''"
    )
    assert refusal(ValueError, **{field: "a\0b"}) == (
        f"{field}: a NUL character is not allowed, as in 'a\\x00b'"
    )


@pytest.mark.parametrize(
    ("endpoint", "shown", "reason"),
    [
        ("", "", "it is empty, or has an empty place in its list"),
        ("a\0b", "a\0b", "it has white space or control characters"),
        ("host:0", "host:0", "'0' is not a port, an integer from 1 to 65535"),
        ("tab.tcp://a://b", "tab.tcp://a://b", "'//b' is not a port, an integer f"),
        ("http://a", "http://a", "unknown scheme 'http'"),
        (
            "tab.pipe://a",
            "tab.pipe://a",
            "libpq, and so psycopg, cannot connect to a Windows pipe",
        ),
        ("me:a@b@host", "...@host", "user and password are options of their own"),
        ("[a", "[a", "the brackets do not hold an IPv6 address"),
        ("[::1]2", "[::1]2", "a colon and a port, or nothing, may follow the brackets"),
        ("::1", "::1", "an IPv6 address stands in brackets, as in '[::1]:7483'"),
        (
            "tab.domain:///d/.s.PGSQL.1",
            "tab.domain:///d/.s.PGSQL.1",
            "a tab.domain endpoint has '/domain/' before the name of its socket",
        ),
        (
            "tab.domain:///domain/domain/.s.PGSQL.1",
            "tab.domain:///domain/domain/.s.PGSQL.1",
            "'/domain/' ends the directory, and may be there once only",
        ),
        (
            "tab.domain://d/domain/.s.PGSQL.1",
            "tab.domain://d/domain/.s.PGSQL.1",
            "libpq needs the absolute path of the socket's directory",
        ),
        (
            "tab.domain:///d/domain/auto",
            "tab.domain:///d/domain/auto",
            (
                "libpq cannot connect to a socket called 'auto', only to "
                "'.s.PGSQL.<port>': let hyperd listen on such a name, or on 'auto'"
            ),
        ),
    ],
)
def test_an_endpoint_that_cannot_be_read_is_refused_with_the_reason(
    endpoint: str, shown: str, reason: str
) -> None:
    message = refusal(ValueError, endpoint=endpoint)
    assert message.startswith(f"endpoint={shown!r}: {reason}")
    assert "; allowed are " in message


@pytest.mark.parametrize("endpoint", [7483, b"localhost", ["localhost"]])
def test_an_endpoint_is_a_str(endpoint: object) -> None:
    message = refusal(TypeError, endpoint=endpoint)
    assert message.startswith(f"endpoint must be a str, not {endpoint!r}; allowed are ")


def test_a_host_may_be_as_long_as_the_domain_name_system_has_it() -> None:
    label = "a" * 63
    longest = f"{label}.{label}.{label}.{'a' * 61}"
    assert len(longest) == 253
    make(endpoint=longest)
    for host in (f"a{label}", f"{longest}a"):
        message = refusal(ValueError, endpoint=host)
        assert message.startswith(f"endpoint={host!r}: {host!r} is not a host name")


# PostgreSQL


def test_a_database_of_postgresql_is_a_name_or_left_to_the_connection_string() -> None:
    assert PoolConfig("postgresql://h/db").database == ""
    assert PoolConfig("postgresql://h/db", "other").database == "other"
    with pytest.raises(TypeError) as caught:
        PoolConfig("postgresql://h/db", Path("other"))
    assert str(caught.value) == (
        f"database: a str or None is allowed, not {Path('other')!r}"
    )
    with pytest.raises(ValueError, match="NUL") as refused:
        PoolConfig("postgresql://h/db", "a\0b")
    assert str(refused.value) == (
        "database: a NUL character is not allowed, as in 'a\\x00b'"
    )


def test_a_database_of_postgresql_is_not_created() -> None:
    make(endpoint="host=h", create_mode=CreateMode.DO_NOT_CREATE)
    assert refusal(ValueError, endpoint="host=h", create_mode=CreateMode.CREATE) == (
        "create_mode: only CreateMode.DO_NOT_CREATE is allowed with PostgreSQL, "
        "not CreateMode.CREATE"
    )


def test_the_user_of_a_password_may_be_in_the_connection_string() -> None:
    assert make(endpoint="postgresql://me@h/db", password="secret").user is None


# Passwords


@pytest.mark.parametrize("password", ["secret", "", password_source])
def test_a_password_without_a_user_is_refused(password: Any) -> None:
    assert refusal(ValueError, password=password) == (
        "password: allowed only together with a user, and user is None"
    )


@pytest.mark.parametrize("user", ["me", None])
@pytest.mark.parametrize(
    "password", [b"secret", ["secret"], lambda: "secret", 3, True, SyncCallback()]
)
def test_a_password_of_a_wrong_type_is_refused_and_not_shown(
    user: str | None, password: Any
) -> None:
    assert refusal(TypeError, user=user, password=password) == (
        "password: a str, an async callable without arguments or None is allowed, "
        f"not a {type(password).__name__}"
    )


@pytest.mark.parametrize("user", ["me", None])
def test_a_password_with_a_nul_is_refused_and_not_shown(user: str | None) -> None:
    assert refusal(ValueError, user=user, password="sec\0ret") == (
        "password: a NUL character is not allowed"
    )


def test_no_message_shows_a_password() -> None:
    for misuse in (
        {"endpoint": "me:secret@host"},
        {"endpoint": "me:secret@ho\0st"},
        {"max_size": 0},
        {"user": None},
        {"name": ""},
    ):
        options = {"user": "me", "password": "secret", **misuse}
        assert "secret" not in refusal(ValueError, **options)


def test_the_repr_shows_every_field_but_the_password() -> None:
    config = make(user="me", password="secret", max_size=3)
    assert "secret" not in repr(config)
    assert "secret" not in str(config)
    assert "password" not in repr(config)
    for field in dataclasses.fields(config):
        if field.name != "password":
            assert f"{field.name}={getattr(config, field.name)!r}" in repr(config)
    assert repr(config).startswith("PoolConfig(endpoint=None, database='d.hyper', ")


def test_the_repr_shows_a_connection_string_but_for_its_password() -> None:
    shown = repr(PoolConfig("postgresql://me:secret@h/db"))
    assert shown.startswith(
        "PoolConfig(endpoint='postgresql://me:...@h/db', database='', create_mode="
    )
    assert shown.count("endpoint") == 1


# As an object


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PoolConfig)])
def test_a_config_does_not_change(field: str) -> None:
    config = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(config, field)


def test_a_config_can_be_replaced_in_part_and_is_checked_again() -> None:
    config = make(max_size=3, health_check=True, user="me", password="secret")
    other = dataclasses.replace(config, max_size=4)
    assert (other.max_size, other.health_check, other.password) == (
        4,
        HealthCheck.SELECT_ONE,
        "secret",
    )
    assert dataclasses.replace(other, max_size=3) == config
    with pytest.raises(ValueError, match="max_size"):
        dataclasses.replace(config, max_size=0)
    with pytest.raises(ValueError, match="password"):
        dataclasses.replace(config, user=None)


def test_equal_configs_are_equal_and_hash_alike() -> None:
    assert make(health_check=False, database="d") == make(
        health_check=HealthCheck.PASSIVE, database=Path("d")
    )
    assert hash(make()) == hash(make())
    assert make() != make(max_size=3)


@given(st.sampled_from(DURATIONS), st.floats() | st.integers())
def test_any_number_is_either_kept_or_a_value_error(field: str, value: float) -> None:
    is_allowed = value >= 0 if field in ZERO_ALLOWED else value > 0
    if is_allowed and not (field == "create_backoff" and value == math.inf):
        assert getattr(make(**{field: value}), field) == value
    else:
        refusal(ValueError, **{field: value})


@given(st.integers(), st.integers())
def test_any_two_sizes_fit_together_or_are_a_value_error(
    max_size: int, min_idle: int
) -> None:
    if max_size >= 1 and 0 <= min_idle <= max_size:
        make(max_size=max_size, min_idle=min_idle)
    else:
        refusal(ValueError, max_size=max_size, min_idle=min_idle)


# What is checked where it is used


@pytest.mark.parametrize("value", [0, 0.5, 3, math.inf])
def test_the_wait_of_one_lease_may_be_what_that_of_a_config_may_be(
    value: float,
) -> None:
    check_wait_timeout(value)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (
            check_wait_timeout,
            -1,
            ValueError,
            f"wait_timeout: {SECONDS} is allowed, not -1",
        ),
        (
            check_wait_timeout,
            None,
            TypeError,
            f"wait_timeout: {SECONDS} is allowed, not None",
        ),
        (
            check_max_size,
            0,
            ValueError,
            "max_size: an int of at least 1 is allowed, not 0",
        ),
        (
            check_max_size,
            math.inf,
            TypeError,
            "max_size: an int of at least 1 is allowed, not inf",
        ),
        (
            check_attempts,
            0,
            ValueError,
            "attempts: an int of at least 1 is allowed, not 0",
        ),
        (
            check_attempts,
            True,
            TypeError,
            "attempts: an int of at least 1 is allowed, not True",
        ),
    ],
)
def test_what_is_given_later_is_refused_in_the_same_words(
    check: Callable[[Any], None], value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        check(value)
    assert str(caught.value) == message


def test_the_least_that_is_given_later_is_allowed() -> None:
    check_max_size(1)
    check_attempts(1)


@pytest.mark.parametrize("field", ["wait_timeout", "max_lifetime"])
def test_a_duration_that_no_float_can_hold_is_refused(field: str) -> None:
    options: dict[str, Any] = {field: 10**400}
    with pytest.raises(ValueError, match=f"{field}: a number of seconds"):
        PoolConfig("localhost", "x.hyper", **options)
