"""``python -m trio_hyperpool``: what it prints, returns and leaves behind."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from trio_hyperpool import CreateMode, open_pool

pytestmark = [pytest.mark.hyperd, pytest.mark.usefixtures("hyperd_path")]


class Shell:
    """Runs the command line in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONIOENCODING": "utf-8",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trio_hyperpool", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err

    def sql(self, *arguments: str) -> str:
        status, out, err = self.run("sql", *arguments)
        assert (status, err) == (0, "")
        return out

    def files(self) -> set[str]:
        return {str(path) for path in self.directory.rglob("*")}


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    # A path short enough for a socket.
    return Shell(tmp_path_factory.mktemp("c"))


@pytest.fixture
def file(shell: Shell) -> str:
    """A database with one table."""

    async def main() -> None:
        path = shell.directory / "x.hyper"
        async with open_pool(database=path, create_mode=CreateMode.CREATE) as pool:
            await pool.execute(
                "CREATE TABLE t (number int, text text, price double precision)"
            )
            await pool.execute("INSERT INTO t VALUES (%s, %s, %s)", (1, 'ä, "b"', 0.1))
            await pool.execute("INSERT INTO t VALUES (%s, %s, %s)", (20, None, 2.5))

    trio.run(main)
    return "x.hyper"


# demo


@pytest.mark.slow
def test_the_demo_shows_what_it_promises_and_leaves_nothing(shell: Shell) -> None:
    before = shell.files()
    began = time.monotonic()
    status, out, err = shell.run("demo")
    assert (status, err) == (0, "")
    assert time.monotonic() - began < 10
    assert re.search(r"1\. A private hyperd, process \d+, started in 0\.\d\d s", out)
    assert re.search(r"2\. [\d,]{6,} rows, .* loaded in", out)
    assert re.search(r"3\. \d+ tasks asked at once, over 4 connections", out)
    cancelled = re.search(r"cancelled after 0.5 s: it was over at (\d\.\d+) s", out)
    assert cancelled is not None
    assert float(cancelled[1]) < 0.8
    assert "SELECT 6 * 7 is 42." in out
    assert "What the pool counted" in out
    assert "; cancelled queries: 1\n" in out
    assert out.endswith(
        "The server has ended. Both live exactly as long as their blocks.\n"
    )
    assert shell.files() == before


# sql


def test_a_result_is_a_table_with_numbers_to_the_right(shell: Shell, file: str) -> None:
    assert shell.sql(file, "SELECT * FROM t ORDER BY number") == (
        "number  text    price\n"
        "------  ------  -----\n"
        '     1  ä, "b"    0.1\n'
        "    20            2.5\n"
        "(2 rows)\n"
    )
    assert shell.sql(file, "SELECT 1 AS x").endswith("(1 row)\n")


def test_a_result_without_rows_still_has_its_columns(shell: Shell, file: str) -> None:
    nothing = "SELECT number, text FROM t WHERE number < 0"
    assert shell.sql(file, nothing) == "number  text\n------  ----\n(0 rows)\n"
    assert shell.sql("--csv", file, nothing) == "number,text\n"
    assert shell.sql("--json", file, nothing) == "[]\n"


def test_csv_can_be_read_back(shell: Shell, file: str) -> None:
    out = shell.sql(file, "--csv", "SELECT * FROM t ORDER BY number")
    assert list(csv.reader(io.StringIO(out))) == [
        ["number", "text", "price"],
        ["1", 'ä, "b"', "0.1"],
        ["20", "", "2.5"],
    ]


def test_json_can_be_read_back(shell: Shell, file: str) -> None:
    out = shell.sql(file, "SELECT * FROM t ORDER BY number", "--json")
    assert json.loads(out) == [
        {"number": 1, "text": 'ä, "b"', "price": 0.1},
        {"number": 20, "text": None, "price": 2.5},
    ]
    assert "ä" in out


def test_json_keeps_columns_of_one_name_apart(shell: Shell, file: str) -> None:
    out = shell.sql(file, "SELECT 1 AS a, 2 AS a, 3 AS b", "--json")
    assert json.loads(out) == [{"a_1": 1, "a_2": 2, "b_3": 3}]


def test_values_that_json_has_no_word_for_are_still_json(
    shell: Shell, file: str
) -> None:
    out = shell.sql(
        file,
        "SELECT '1.50'::numeric(5,2) AS a, DATE '2020-02-29' AS b, "
        "'NaN'::double precision AS c, 'infinity'::double precision AS d, "
        "'\\x00ff'::bytea AS e",
        "--json",
    )

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    (record,) = json.loads(out, parse_constant=refuse)
    assert record == {
        "a": "1.50",
        "b": "2020-02-29",
        "c": "NaN",
        "d": "Infinity",
        "e": "\\x00ff",
    }


def test_a_percent_sign_is_nothing_special(shell: Shell, file: str) -> None:
    out = shell.sql(file, "--csv", "SELECT text LIKE '%b%' FROM t WHERE number % 2 = 1")
    assert out.splitlines()[1] == "True"


def test_a_statement_without_a_result_says_its_status_and_prints_no_table(
    shell: Shell, file: str
) -> None:
    for statement, told in (
        ("INSERT INTO t VALUES (3, 'x', 1)", "INSERT 0 1"),
        ("CREATE TABLE u (x int)", "CREATE TABLE"),
        ("UPDATE t SET number = 5", "UPDATE 3"),
    ):
        assert shell.run("sql", file, statement) == (0, "", f"{told}\n")
    # It is on disk.
    assert shell.sql(file, "--csv", "SELECT sum(number) FROM t") == "sum\n15\n"


def test_an_error_of_the_server_is_told_on_stderr(shell: Shell, file: str) -> None:
    status, out, err = shell.run("sql", file, "SELECT * FROM nothing")
    assert (status, out) == (1, "")
    assert err.startswith("trio_hyperpool: ")
    assert 'table "nothing" does not exist' in err
    assert "Traceback" not in err


def test_a_missing_file_is_an_error_and_is_not_created(shell: Shell) -> None:
    before = shell.files()
    status, out, err = shell.run("sql", "no.hyper", "SELECT 1")
    assert (status, out) == (1, "")
    assert "no.hyper" in err
    assert "does not exist" in err
    assert "Traceback" not in err
    assert shell.files() == before


def test_a_file_that_is_no_database_is_an_error(shell: Shell) -> None:
    (shell.directory / "text.hyper").write_text("Hello")
    status, out, err = shell.run("sql", "text.hyper", "SELECT 1")
    assert (status, out) == (1, "")
    assert "text.hyper" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("form", ["", "--csv", "--json"])
def test_a_closed_pipe_ends_it_quietly(shell: Shell, file: str, form: str) -> None:
    rows = "SELECT x, 'some text' FROM generate_series(1, 100000) s(x)"
    arguments = [argument for argument in (form, file, rows) if argument]
    with shell.start("sql", *arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 1


def test_a_pipe_that_was_closed_before_ends_it_quietly(shell: Shell, file: str) -> None:
    with shell.start("sql", file, "SELECT 1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["sql"],
        ["sql", "x.hyper"],
        ["sql", "x.hyper", "SELECT 1", "SELECT 2"],
        ["sql", "x.hyper", "SELECT 1", "--csv", "--json"],
        ["demo", "--fast"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_answered_with_the_usage(
    shell: Shell, arguments: list[str]
) -> None:
    before = shell.files()
    status, out, err = shell.run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: python -m trio_hyperpool")
    assert shell.files() == before


@pytest.mark.parametrize(
    "arguments",
    [("", "SELECT 1"), ("\udcff.hyper", "SELECT 1"), ("x.hyper", "SELECT '\udcff'")],
    ids=["empty path", "path", "statement"],
)
def test_what_cannot_be_meant_is_a_wrong_call(
    shell: Shell, arguments: tuple[str, str]
) -> None:
    status, out, err = shell.run("sql", *arguments)
    assert (status, out) == (2, "")
    assert "Traceback" not in err


@pytest.mark.parametrize("statement", ["", ";", "-- nothing"])
def test_a_statement_that_says_nothing_does_nothing(
    shell: Shell, file: str, statement: str
) -> None:
    status, out, err = shell.run("sql", file, statement)
    assert status in (0, 1)
    assert out == ""
    assert "Traceback" not in err


def test_help_is_no_error(shell: Shell) -> None:
    for arguments in (["--help"], ["sql", "--help"], ["demo", "--help"]):
        status, out, err = shell.run(*arguments)
        assert (status, err) == (0, "")
        assert "usage: python -m trio_hyperpool" in out


def test_a_missing_server_is_named(shell: Shell, file: str) -> None:
    shell.environment["HYPERD_PATH"] = str(shell.directory)
    status, out, err = shell.run("sql", file, "SELECT 1")
    assert (status, out) == (1, "")
    assert "HYPERD_PATH" in err
    assert "Traceback" not in err
