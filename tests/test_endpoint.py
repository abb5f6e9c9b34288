"""Endpoint strings: every form that is allowed, and why others are not."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given, strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from trio_hyperpool._endpoint import (
    Address,
    Endpoint,
    hide_passwords,
    is_postgres,
    parse_endpoint,
)

labels = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\Z")
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(lambda address: str(address).split("%")[0])
zoned = st.tuples(ipv6, st.sampled_from(["eth0", "1", "en-0.5"])).map("%".join)
directories = st.lists(
    st.text(
        st.characters(exclude_characters="/,", exclude_categories=["C", "Z"])
        | st.just(" "),
        min_size=1,
        max_size=12,
    ).filter(lambda part: part != "domain"),
    min_size=1,
    max_size=3,
).map(lambda parts: "/" + "/".join(parts))
ports = st.integers(1, 65535)
addresses = st.builds(Address, names | ipv4 | ipv6 | zoned | directories, ports)
endpoints = st.builds(Endpoint, st.lists(addresses, min_size=1, max_size=4).map(tuple))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:7483", "localhost", "7483"),
        ("localhost", "localhost", "7483"),
        ("LocalHost", "localhost", "7483"),
        ("db.example.com.:1", "db.example.com.", "1"),
        ("my_host:65535", "my_host", "65535"),
        ("127.0.0.1:80", "127.0.0.1", "80"),
        ("[::1]:7483", "::1", "7483"),
        ("[0:0:0:0:0:0:0:1]", "::1", "7483"),
        ("[fe80::1%eth0]:5", "fe80::1%eth0", "5"),
        ("tab.tcp://127.0.0.1:39927", "127.0.0.1", "39927"),
        ("tab.tcp://[::1]:9", "::1", "9"),
        ("tab.domain:///run/hyper/domain/.s.PGSQL.7777", "/run/hyper", "7777"),
        ("tab.domain:///a b/ü/domain/.s.PGSQL.1", "/a b/ü", "1"),
        ("a:1,b,[::1]:2", "a,b,::1", "1,7483,2"),
        ("a,tab.domain:///d/domain/.s.PGSQL.2", "a,/d", "7483,2"),
    ],
)
def test_an_endpoint_becomes_host_and_port(text: str, host: str, port: str) -> None:
    assert parse_endpoint(text).conninfo() == {"host": host, "port": port}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (",", "empty"),
        ("a,,b", "empty"),
        ("a,", "empty"),
        ("a:", "'' is not a port"),
        ("a:0", "'0' is not a port"),
        ("a:65536", "'65536' is not a port"),
        ("a:99999999999999999999", "is not a port"),
        ("a:-1", "'-1' is not a port"),
        ("a:+1", "'+1' is not a port"),
        ("a:01", "'01' is not a port"),
        ("a:1_0", "'1_0' is not a port"),
        ("a:٣", "'٣' is not a port"),
        ("a:http", "'http' is not a port"),
        (" a", "white space"),
        ("a\n", "white space"),
        ("a\tb:1", "white space"),
        ("a b:1", "'a b' is not a host name"),
        ("a\0", "control characters"),
        ("a, b", "white space"),
        ("a:1 host=evil", "'1 host=evil' is not a port"),
        ("a'b", "is not a host name"),
        ("a\\b", "is not a host name"),
        ("-a", "is not a host name"),
        ("a..b", "is not a host name"),
        (".", "is not a host name"),
        ("a" * 64, "is not a host name"),
        (".".join(["abcdefgh"] * 29), "is not a host name"),
        ("bücher.example", "is not a host name"),
        (":7483", "'' is not a host name"),
        ("::1", "brackets"),
        ("::1:7483", "brackets"),
        ("[::1", "brackets"),
        ("[localhost]:1", "brackets"),
        ("[127.0.0.1]:1", "not an IPv6 address"),
        ("[::1]7483", "may follow the brackets"),
        ("[::1%]:1", "brackets"),
        ("/run/hyper", "is not a host name"),
        ("http://a:1", "unknown scheme 'http'"),
        ("TAB.TCP://a:1", "unknown scheme"),
        ("tab.tcp://", "'' is not a host name"),
        ("tab.tcp://a:1/", "'1/' is not a port"),
        ("tab.pipe://./pipe/hyper", "Windows pipe"),
        ("tab.domain:///run/hyper/.s.PGSQL.1", "'/domain/'"),
        ("tab.domain:///run/domain/hyper", "cannot connect to a socket called 'hyper'"),
        ("tab.domain:///run/domain/auto", "called 'auto'"),
        ("tab.domain:///run/domain/.s.PGSQL.", "is not a port"),
        ("tab.domain:///run/domain/.s.PGSQL.0", "is not a port"),
        ("tab.domain:///run/domain/.s.PGSQL.01", "is not a port"),
        ("tab.domain://run/domain/.s.PGSQL.1", "absolute"),
        ("tab.domain:///domain/.s.PGSQL.1", "absolute"),
        ("tab.domain:///a/domain/domain/.s.PGSQL.1", "once only"),
        ("tab.domain:///a/domain/b/domain/.s.PGSQL.1", "once only"),
        ("tab.domain:///a\0/domain/.s.PGSQL.1", "control"),
        ("tab.domain:///a\udc80/domain/.s.PGSQL.1", "control"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_name_value_and_what_is_allowed(
    text: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=r"endpoint=.*allowed are") as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("text", ["me:secret@host:1", "tab.tcp://me:secret@host", "a@"])
def test_credentials_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="options of their own") as caught:
        parse_endpoint(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 7483, b"localhost", ["localhost"], object()])
def test_what_is_not_a_string_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="endpoint must be a str, not"):
        parse_endpoint(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("localhost", True),
        ("localhost.:1", True),
        ("db.localhost", True),
        ("127.8.9.1:1", True),
        ("[::1]", True),
        ("tab.domain:///d/domain/.s.PGSQL.2", True),
        ("localhost,127.0.0.1", True),
        ("localhost,example.com", False),
        ("notlocalhost", False),
        ("128.0.0.1", False),
        ("[fe80::1%lo]", False),
    ],
)
def test_sockets_and_loopback_addresses_are_local(text: str, *, local: bool) -> None:
    assert parse_endpoint(text).is_local is local


def test_load_balancing_is_left_to_libpq() -> None:
    parameters = parse_endpoint("a,b").conninfo(load_balance=True)
    assert parameters["load_balance_hosts"] == "random"
    assert "load_balance_hosts" not in parse_endpoint("a,b").conninfo()


@given(endpoints)
def test_the_canonical_string_is_read_back_as_the_same_endpoint(
    endpoint: Endpoint,
) -> None:
    assert parse_endpoint(str(endpoint)) == endpoint
    assert str(parse_endpoint(str(endpoint))) == str(endpoint)


@given(endpoints, st.booleans())
def test_libpq_reads_the_parameters_as_they_were_meant(
    endpoint: Endpoint,
    load_balance: bool,
) -> None:
    parameters = endpoint.conninfo(load_balance=load_balance)
    assert conninfo_to_dict(make_conninfo("", **parameters)) == parameters
    assert len(parameters["host"].split(",")) == len(endpoint.addresses)
    assert len(parameters["port"].split(",")) == len(endpoint.addresses)


pieces = st.sampled_from(
    ["tab.tcp://", "tab.domain://", "/domain/", ".s.PGSQL.", "::1", "7483", "a"]
) | st.sampled_from("/:[]%,@' \\=\0")


@given(
    st.text() | st.lists(pieces | st.text(string.printable, max_size=3)).map("".join)
)
@example("[::%]")
@example("[:]")
@example("tab.domain:////domain/.s.PGSQL.1")
def test_any_string_is_either_read_or_a_value_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError as error:
        assert str(error).startswith("endpoint=")  # noqa: PT017  most are refused
    else:
        assert parse_endpoint(str(endpoint)) == endpoint
        parameters = endpoint.conninfo()
        assert conninfo_to_dict(make_conninfo("", **parameters)) == parameters
        assert not set("'\" \\=") & set(parameters["port"])


@given(st.integers() | st.binary() | st.none() | st.lists(st.text()))
def test_anything_else_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        parse_endpoint(value)  # type: ignore[arg-type]


# Connection strings of PostgreSQL


@pytest.mark.parametrize(
    ("endpoint", "is_one"),
    [
        ("postgresql://h/db", True),
        ("postgres://", True),
        ("postgresql://h/db?sslmode=require", True),
        ("host=h", True),
        ("service=tab.", True),
        ("h", False),
        ("h:5432", False),
        ("https://postgresql://", False),
        ("tab.domain:///a=b/domain/.s.PGSQL.1", False),
        (None, False),
        (b"host=h", False),
    ],
)
def test_a_uri_and_keywords_are_for_postgresql_and_all_else_is_for_hyper(
    endpoint: object, *, is_one: bool
) -> None:
    assert is_postgres(endpoint) is is_one


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        ("postgresql://me:se:cret@h/db", "postgresql://me:...@h/db"),
        (
            "postgresql://me@h/db?password=secret&port=1",
            "postgresql://me@h/db?password=...&port=1",
        ),
        ("host=h password = 'se\\'cr et' dbname=d", "host=h password = ... dbname=d"),
        ("sslpassword=secret user=me", "sslpassword=... user=me"),
        ("host=h user=me", "host=h user=me"),
    ],
)
def test_dots_take_the_place_of_a_password_and_all_else_is_shown(
    conninfo: str, shown: str
) -> None:
    assert hide_passwords(conninfo) == shown
