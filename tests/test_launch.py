"""What it takes to start a ``hyperd`` is made of checked arguments, or refused."""

from __future__ import annotations

import math
import os
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

from trio_hyperpool._endpoint import parse_endpoint
from trio_hyperpool._errors import HyperdError
from trio_hyperpool._launch import (
    _LONGEST_SOCKET_PATH,
    Launch,
    find_executable,
    temporary_parent,
)
from trio_hyperpool._server import open_hyperd

A_FILE_OR_DIRECTORY = (
    "must be an executable file, or a directory with an executable hyperd in it"
)
A_PATH = "must be a path, a str or os.PathLike, not"
A_PATH_THAT_IS_ONE = "must be a path: not empty, and without NUL"
NOT_IN_AN_ENDPOINT = (
    "must not have commas, control characters or '/domain/' in it: an endpoint cannot "
    "have them"
)
PRINTABLE = "must be a text of printable characters, not empty"
POSITIVE = "must be a positive number of seconds, or math.inf"
A_NAME = (
    "is not the name of a setting: lower-case letters and digits, in parts joined by "
    "'_' or '-'"
)
SETTINGS = {
    "language": "en_US",
    "date_style": "MDY",
    "date_style_lenient": "false",
    "extra_float_digits": "3",
    "default_database_version": "4",
}
QUIET = {"log_config": "file,json,warning,hyperd,0,cerr,string,fatal"}


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"d"

    def __repr__(self) -> str:
        return "BytesPath()"


def executable(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "hyperd"
    path.touch(0o755)
    return path


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable that is never started, and is found unless another one is given."""
    path = executable(tmp_path / "program")
    monkeypatch.setenv("HYPERD_PATH", str(path))
    return path


def checked(**options: Any) -> Launch:
    return Launch.checked(
        **{
            "executable": None,
            "log_dir": None,
            "socket_dir": None,
            "port": None,
            "tcp": False,
            "user": "me",
            "password": None,
            "parameters": None,
            "start_timeout": 20,
            "stop_timeout": math.inf,
            **options,
        }
    )


# What is allowed


def test_without_arguments_there_is_a_quiet_server_of_our_settings(
    program: Path,
) -> None:
    assert checked() == Launch(
        executable=program,
        log_dir=None,
        socket_dir=None,
        port=None,
        tcp=False,
        user="me",
        password=None,
        parameters=SETTINGS | QUIET,
        start_timeout=20,
        stop_timeout=math.inf,
    )


def test_what_is_given_is_kept_and_paths_are_absolute(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launch = checked(
        executable="program",
        log_dir=Path("log"),
        socket_dir="/s/../t",
        port=65535,
        password="secret",
        parameters={"log-config": "full", "language": "de_DE"},
        stop_timeout=0.5,
    )
    assert launch == Launch(
        executable=program,
        log_dir=tmp_path / "log",
        socket_dir=Path("/t"),
        port=65535,
        tcp=False,
        user="me",
        password="secret",
        parameters=SETTINGS | {"log_config": "full", "language": "de_DE"},
        start_timeout=20,
        stop_timeout=0.5,
    )
    assert "secret" not in repr(launch)
    assert checked(tcp=True, port=1).tcp is True


def test_settings_are_passed_on_as_the_server_reads_them(program: Path) -> None:
    given = {"a": True, "b": False, "c1-d": 3, "e_f": 1.5, "g": "a b", "h": ""}
    parameters = checked(parameters=given, log_dir="log").parameters
    assert parameters == SETTINGS | {
        "a": "1",
        "b": "0",
        "c1_d": "3",
        "e_f": "1.5",
        "g": "a b",
        "h": "",
    }


def test_a_socket_may_have_the_longest_path_that_the_system_allows(
    program: Path,
) -> None:
    longest = _LONGEST_SOCKET_PATH - len("/.s.PGSQL.65535")
    path = "/" + "x" * (longest - 1)
    assert checked(socket_dir=path).socket_dir == Path(path)
    for too_long in f"{path}x", f"{path[:-1]}é":
        with pytest.raises(ValueError, match="is too long") as caught:
            checked(socket_dir=too_long)
        assert str(caught.value) == (
            f"socket_dir={too_long!r} is too long: with the name of the socket it "
            f"comes to {_LONGEST_SOCKET_PATH + 1} bytes, and {_LONGEST_SOCKET_PATH} "
            "are allowed"
        )


# What is not


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"executable": "/nonexistent/x"},
            ValueError,
            f"executable='/nonexistent/x' {A_FILE_OR_DIRECTORY}",
        ),
        (
            {"executable": Path("/etc/passwd")},
            ValueError,
            f"executable='/etc/passwd' {A_FILE_OR_DIRECTORY}",
        ),
        (
            {"executable": "/etc"},
            ValueError,
            f"executable='/etc' {A_FILE_OR_DIRECTORY}",
        ),
        ({"executable": 3}, TypeError, f"executable {A_PATH} 3"),
        ({"executable": ""}, ValueError, f"executable='' {A_PATH_THAT_IS_ONE}"),
        ({"log_dir": 3}, TypeError, f"log_dir {A_PATH} 3"),
        ({"log_dir": b"x"}, TypeError, f"log_dir {A_PATH} b'x'"),
        ({"log_dir": BytesPath()}, TypeError, f"log_dir {A_PATH} BytesPath()"),
        ({"log_dir": ""}, ValueError, f"log_dir='' {A_PATH_THAT_IS_ONE}"),
        ({"log_dir": "a\0"}, ValueError, rf"log_dir='a\x00' {A_PATH_THAT_IS_ONE}"),
        ({"socket_dir": 3}, TypeError, f"socket_dir {A_PATH} 3"),
        (
            {"socket_dir": "/a,b"},
            ValueError,
            f"socket_dir='/a,b' {NOT_IN_AN_ENDPOINT}",
        ),
        (
            {"socket_dir": Path("/a/domain/b")},
            ValueError,
            f"socket_dir='/a/domain/b' {NOT_IN_AN_ENDPOINT}",
        ),
        (
            {"socket_dir": "/a/domain"},
            ValueError,
            f"socket_dir='/a/domain' {NOT_IN_AN_ENDPOINT}",
        ),
        (
            # Each of the two halves is an endpoint.
            {"socket_dir": "/a/domain/.s.PGSQL.1,tab.domain:///b"},
            ValueError,
            "socket_dir='/a/domain/.s.PGSQL.1,tab.domain:///b' " + NOT_IN_AN_ENDPOINT,
        ),
        (
            {"socket_dir": "/a\n"},
            ValueError,
            rf"socket_dir='/a\n' {NOT_IN_AN_ENDPOINT}",
        ),
        (
            {"socket_dir": Path("/a"), "tcp": True},
            ValueError,
            "socket_dir='/a' has no meaning with tcp=True",
        ),
        (
            {"port": 0},
            ValueError,
            "port=0 must be from 1 to 65535, or None for any free one",
        ),
        (
            {"port": 65536},
            ValueError,
            "port=65536 must be from 1 to 65535, or None for any free one",
        ),
        ({"port": "7483"}, TypeError, "port must be an int or None, not '7483'"),
        ({"port": True}, TypeError, "port must be an int or None, not True"),
        ({"tcp": 1}, TypeError, "tcp must be True or False, not 1"),
        ({"user": ""}, ValueError, f"user='' {PRINTABLE}"),
        ({"user": None}, TypeError, "user must be a str, not None"),
        ({"user": b"me"}, TypeError, "user must be a str, not b'me'"),
        ({"user": "a\nb"}, ValueError, rf"user='a\nb' {PRINTABLE}"),
        ({"password": ""}, ValueError, f"password {PRINTABLE}"),
        ({"password": "sec\0ret"}, ValueError, f"password {PRINTABLE}"),
        ({"password": b"secret"}, TypeError, "password must be a str, not bytes"),
        ({"start_timeout": 0}, ValueError, f"start_timeout=0 {POSITIVE}"),
        ({"start_timeout": math.nan}, ValueError, f"start_timeout=nan {POSITIVE}"),
        (
            {"start_timeout": "1"},
            TypeError,
            "start_timeout must be a number of seconds, not '1'",
        ),
        ({"stop_timeout": -1}, ValueError, f"stop_timeout=-1 {POSITIVE}"),
        (
            {"stop_timeout": True},
            TypeError,
            "stop_timeout must be a number of seconds, not True",
        ),
        (
            {"parameters": "a=1"},
            TypeError,
            "parameters must be a mapping of names to values, not 'a=1'",
        ),
        (
            {"parameters": {1: 1}},
            TypeError,
            "parameters: the name 1 must be a str",
        ),
        ({"parameters": {"": 1}}, ValueError, f"parameters: '' {A_NAME}"),
        ({"parameters": {"A": 1}}, ValueError, f"parameters: 'A' {A_NAME}"),
        ({"parameters": {"a b": 1}}, ValueError, f"parameters: 'a b' {A_NAME}"),
        ({"parameters": {"--a": 1}}, ValueError, f"parameters: '--a' {A_NAME}"),
        (
            {"parameters": {"a-b": None}},
            TypeError,
            "parameters: a-b must be a str, an int, a float or a bool, not None",
        ),
        (
            {"parameters": {"a": math.inf}},
            ValueError,
            "parameters: a=inf must be finite",
        ),
        (
            {"parameters": {"a-b": "\0"}},
            ValueError,
            r"parameters: a-b='\x00' must not have a NUL",
        ),
        (
            {"parameters": {"a_b": 1, "a-b": 2}},
            ValueError,
            "parameters: 'a-b' is given twice",
        ),
        (
            {"parameters": {"log_dir": "x"}},
            ValueError,
            "parameters: 'log_dir' is not a setting: use log_dir",
        ),
        (
            {"parameters": {"init-user": "x"}},
            ValueError,
            "parameters: 'init-user' is not a setting: use user",
        ),
    ],
)
def test_misuse_is_reported_before_anything_starts(
    program: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        open_hyperd(**arguments)
    assert str(caught.value) == message


# Where the program is


def test_the_program_is_given_as_a_file_or_as_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = executable(tmp_path)
    monkeypatch.chdir(tmp_path)
    for given in path, str(path), "hyperd", tmp_path, ".":
        assert find_executable(given) == path
    path.chmod(0o644)
    with pytest.raises(ValueError, match="must be an executable file"):
        find_executable(path)


def test_the_environment_says_where_the_program_is_if_no_argument_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = executable(tmp_path / "one")
    for said in path, path.parent:
        monkeypatch.setenv("HYPERD_PATH", str(said))
        assert find_executable(None) == path
    given = executable(tmp_path / "other")
    assert find_executable(given) == given
    monkeypatch.setenv("HYPERD_PATH", str(tmp_path))
    with pytest.raises(HyperdError) as caught:
        find_executable(None)
    assert str(caught.value) == (
        f"the environment variable HYPERD_PATH={str(tmp_path)!r} must be the path of "
        "an executable hyperd, or of the directory that it is in"
    )


def test_the_program_of_the_installed_package_is_found_if_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = executable(tmp_path / "second" / "bin" / "hyper")
    places = [str(tmp_path / "first"), str(tmp_path / "second")]
    specs: dict[str, Any] = {
        "tableauhyperapi": types.SimpleNamespace(submodule_search_locations=places)
    }
    monkeypatch.setattr("importlib.util.find_spec", specs.get)
    monkeypatch.setenv("HYPERD_PATH", "")
    assert find_executable(None) == path
    monkeypatch.delenv("HYPERD_PATH")
    assert find_executable(None) == path
    no_package = types.SimpleNamespace(submodule_search_locations=None)
    path.unlink()
    for spec in specs["tableauhyperapi"], no_package, None:
        specs["tableauhyperapi"] = spec
        with pytest.raises(HyperdError) as caught:
            find_executable(None)
        assert str(caught.value) == (
            "there is no hyperd: pip install 'trio-hyperpool[hyperd]', or say where "
            "it is with executable=... or the environment variable HYPERD_PATH"
        )


# Where its socket is


def test_the_socket_goes_among_the_temporary_files_unless_its_path_is_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = _LONGEST_SOCKET_PATH - len("/hyperd-12345678/.s.PGSQL.65535")
    parent = "/" + "x" * (longest - 1)
    monkeypatch.setattr(tempfile, "tempdir", parent)
    assert temporary_parent() == parent
    monkeypatch.setattr(tempfile, "tempdir", f"{parent}x")
    assert temporary_parent() == "/tmp"


# What is started


@pytest.mark.parametrize(
    ("options", "listen"),
    [
        ({}, "tab.domain:///s/domain/auto"),
        ({"port": 7}, "tab.domain:///s/domain/.s.PGSQL.7"),
        ({"tcp": True}, "tab.tcp://127.0.0.1:0"),
        ({"tcp": True, "port": 7}, "tab.tcp://127.0.0.1:7"),
    ],
)
def test_the_command_line_says_where_to_listen(
    program: Path, options: dict[str, Any], listen: str
) -> None:
    assert checked(**options).command(99, Path("/s"), Path("/l"))[2:4] == [
        "--callback-connection=tab.tcp://127.0.0.1:99",
        f"--listen-connection={listen}",
    ]


def test_the_command_line_has_user_log_and_settings_and_never_the_password(
    program: Path,
) -> None:
    def command(**options: Any) -> list[str]:
        return checked(**options).command(99, Path("/s"), Path("/l"))

    start = [
        str(program),
        "run",
        "--callback-connection=tab.tcp://127.0.0.1:99",
        "--listen-connection=tab.domain:///s/domain/auto",
        "--init-user=me",
        "--log-dir=/l",
        "--skip-license",
    ]
    settings = [
        "--language=en_US",
        "--date-style=MDY",
        "--date-style-lenient=false",
        "--extra-float-digits=3",
        "--default-database-version=4",
        "--log-config=file,json,warning,hyperd,0,cerr,string,fatal",
    ]
    assert command() == [*start, "--no-password", *settings]
    assert command(password="secret") == [*start, *settings]


def test_the_password_is_in_the_environment_and_none_of_ours_is(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYPER_INITIAL_USER_PASSWORD", raising=False)
    ours = dict(os.environ)
    assert checked().environment() == ours
    with_password = {**ours, "HYPER_INITIAL_USER_PASSWORD": "secret"}
    assert checked(password="secret").environment() == with_password
    monkeypatch.setenv("HYPER_INITIAL_USER_PASSWORD", "ours")
    assert checked().environment() == ours
    assert checked(password="secret").environment() == with_password
    assert os.environ["HYPER_INITIAL_USER_PASSWORD"] == "ours"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "tab.domain:///s/domain/.s.PGSQL.7"),
        ({"port": 7}, "tab.domain:///s/domain/.s.PGSQL.7"),
        ({"tcp": True}, "tab.tcp://127.0.0.1:7"),
        ({"tcp": True, "port": 7}, "tab.tcp://127.0.0.1:7"),
    ],
)
def test_the_server_is_heard_if_it_listens_where_it_was_told_to(
    program: Path, options: dict[str, Any], said: str
) -> None:
    launch = checked(**options)
    for end in b"\0", b"":
        heard = launch.endpoint(said.encode() + end, Path("/s"))
        assert heard == parse_endpoint(said)
    assert launch.endpoint(said.encode(), Path("/t")) == (
        parse_endpoint(said) if launch.tcp else None
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, b""),
        ({}, b"nonsense!"),
        ({}, b"tab.domain:///s/domain/.s.PGSQL.7\xff"),
        ({}, b"tab.domain:///s/domain/.s.PGSQL.7\0\0"),
        ({}, b"tab.tcp://127.0.0.1:7"),
        ({}, b"tab.domain:///s/domain/.s.PGSQL.7,tab.domain:///s/domain/.s.PGSQL.8"),
        ({"port": 8}, b"tab.domain:///s/domain/.s.PGSQL.7"),
        ({"tcp": True}, b"tab.tcp://127.0.0.2:7"),
        ({"tcp": True}, b"tab.domain:///s/domain/.s.PGSQL.7"),
        ({"tcp": True, "port": 8}, b"tab.tcp://127.0.0.1:7"),
    ],
)
def test_a_server_that_listens_elsewhere_is_not_ours(
    program: Path, options: dict[str, Any], said: bytes
) -> None:
    assert checked(**options).endpoint(said, Path("/s")) is None
