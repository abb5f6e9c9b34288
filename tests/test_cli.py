"""``python -m trio_hyperpool``: what it prints, returns and leaves behind."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from trio_hyperpool import CreateMode, HyperConnection, Pool, _demo, open_pool

pytestmark = [
    pytest.mark.hyperd,
    pytest.mark.slow,
    pytest.mark.usefixtures("hyperd_path"),
]


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


def test_importing_it_runs_nothing() -> None:
    assert importlib.import_module("trio_hyperpool.__main__").main is not None


# demo


async def test_where_the_system_does_not_tell_the_load_the_demo_does_not_either(
    hyper_pool: Pool[HyperConnection],
) -> None:
    said: list[str] = []
    await _demo._cancel(hyper_pool, -1, said.append)
    assert len(said) == 2
    assert "SELECT 6 * 7 is 42." in said[1]


@pytest.mark.slow
def test_the_demo_shows_what_it_promises_and_leaves_nothing(shell: Shell) -> None:
    before = shell.files()
    began = time.monotonic()
    status, out, err = shell.run("demo")
    assert (status, err) == (0, "")
    assert time.monotonic() - began < 30  # three on a machine that has time
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


@pytest.mark.slow
@pytest.mark.parametrize("form", ["--csv", "--json", ""])
def test_a_big_result_is_streamed(shell: Shell, file: str, form: str) -> None:
    rows = "SELECT x, repeat('x', 500) FROM generate_series(1::bigint, 100000000) s(x)"
    arguments = [argument for argument in (form, file, rows) if argument]
    with shell.start("sql", *arguments) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(50_000_000)) == 50_000_000
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            peak = int(status.read_text().partition("VmHWM:")[2].split()[0])
            assert peak < 200_000
        process.stdout.close()
        assert process.wait(20) == 1


def test_a_late_wide_value_widens_its_own_line_only(shell: Shell, file: str) -> None:
    query = (
        "SELECT CASE WHEN x = 2500 THEN 'wide' ELSE 'x' END AS a, 1 AS b "
        "FROM generate_series(1, 2500) s(x) ORDER BY x"
    )
    lines = shell.sql(file, query).splitlines()
    assert lines[:3] == ["a  b", "-  -", "x  1"]
    assert lines[-2:] == ["wide  1", "(2500 rows)"]


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("-- one\nSELECT 1;", "1"),
        ("VALUES (2)", "2"),
        ("WITH t AS (SELECT 3) SELECT * FROM t", "3"),
        ("(SELECT 4)", "4"),
        ("INSERT INTO t VALUES (5, NULL, NULL) RETURNING number", "5"),
        ("SHOW extra_float_digits", "3"),
    ],
)
def test_whatever_has_rows_prints_them(
    shell: Shell, file: str, statement: str, value: str
) -> None:
    assert shell.sql(file, "--csv", statement).splitlines()[1:] == [value]


# load


def write_parquet(path: Path, rows: int) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    numbers = pa.array(range(rows), pa.int64())
    pq.write_table(pa.table({"text": ["p"] * rows, "number": numbers}), path)


def write_arrow(path: Path, rows: int) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["p"] * rows, "number": range(rows)})
    new = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1 + rows // 3)


def write_csv(path: Path, rows: int) -> None:
    lines = "".join(f'"p",{number}\r\n' for number in range(rows))
    path.write_bytes(b"\xef\xbb\xbftext,number\r\n" + lines.encode())


WRITERS = {
    "d.csv": write_csv,
    "d.parquet": write_parquet,
    "d.arrow": write_arrow,
    "d.feather": write_arrow,
}
SUM = "SELECT count(*), sum(number), max(text), count(price) FROM {} WHERE text = 'p'"


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_loaded_by_the_names_of_its_columns(
    shell: Shell, file: str, name: str
) -> None:
    WRITERS[name](shell.directory / name, 1000)
    status, out, err = shell.run("load", file, "t", name)
    assert (status, out) == (0, "")
    assert re.fullmatch(r"1,000 rows loaded in \d+\.\d s\n", err)
    assert (
        shell.sql(file, "--csv", SUM.format("t")).splitlines()[1] == "1000,499500,p,0"
    )


def test_a_table_and_its_file_are_created_for_typed_data(shell: Shell) -> None:
    write_parquet(shell.directory / "d.parquet", 10)
    table = 'public."a.b"'
    status, _, err = shell.run("load", "new.hyper", table, "d.parquet", "--create")
    assert status == 0, err
    assert (
        shell.sql("new.hyper", "--csv", f"SELECT sum(number) FROM {table}")
        == "sum\n45\n"
    )
    status, _, err = shell.run("load", "new.hyper", table, "d.parquet", "--create")
    assert status == 1
    assert "already exists" in err


def test_a_csv_may_be_separated_by_anything(shell: Shell, file: str) -> None:
    (shell.directory / "d.CSV").write_text("number\ttext\n1\tp\n2\tp")
    assert shell.run("load", file, "t", "d.CSV", "--delimiter", "tab")[0] == 0
    assert shell.sql(file, "--csv", SUM.format("t")).splitlines()[1] == "2,3,p,0"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.csv", "text,nothing\np,1\n", "nothing"),
        ("d.csv", "text,number\np,one\n", "line:2 column:2"),
        ("d.csv", "text,number\np,1\np\n", "too few columns"),
        ("d.csv", "", "its first line does not name the columns"),
        ("d.parquet", "text", "d.parquet: Parquet"),
        ("d.arrow", "text", "d.arrow: "),
        ("no.csv", None, "No such file"),
        ("no.parquet", None, "no.parquet"),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_table_as_it_was(
    shell: Shell, file: str, name: str, content: str | None, told: str
) -> None:
    if not name.endswith("csv"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (shell.directory / name).write_text(content)
    status, out, err = shell.run("load", file, "t", name)
    assert (status, out) == (1, "")
    assert told in err
    assert err.startswith("trio_hyperpool: ")
    assert "Traceback" not in err
    assert shell.sql(file, "--csv", "SELECT count(*) FROM t") == "count\n2\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="wants a file that never ends")
def test_an_interrupted_load_leaves_the_table_as_it_was(
    shell: Shell, file: str
) -> None:
    source = shell.directory / "d.csv"
    os.mkfifo(source)
    with shell.start("load", file, "t", "d.csv") as process:
        with source.open("w") as rows:
            rows.write("text,number\n" + "p,1\n" * 100_000)
            rows.flush()
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert shell.sql(file, "--csv", "SELECT count(*) FROM t") == "count\n2\n"


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_has_a_progress_bar(shell: Shell, file: str, rich: bool) -> None:
    pty = pytest.importorskip("pty")
    pytest.importorskip("rich")
    write_csv(shell.directory / "d.csv", 200_000)
    if not rich:
        (shell.directory / "rich.py").write_text("raise ImportError")
        shell.environment["PYTHONPATH"] = os.pathsep.join(
            (str(shell.directory), shell.environment["PYTHONPATH"])
        )
    shell.environment |= {"TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trio_hyperpool", "load", file, "t", "d.csv"],
        cwd=shell.directory,
        env=shell.environment,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    # Linux says with an error that the terminal has gone.
    with contextlib.suppress(OSError):
        while more := os.read(ours, 10_000):
            shown += more
    os.close(ours)
    assert process.wait(20) == 0
    text = shown.decode()
    assert "200,000 rows loaded in" in text
    assert ("100%" in text and "MB/s" in text) == rich
    assert ("trio-hyperpool[cli]" in text) != rich


def test_parquet_without_pyarrow_says_what_to_install(shell: Shell, file: str) -> None:
    (shell.directory / "pyarrow.py").write_text("raise ImportError")
    shell.environment["PYTHONPATH"] = os.pathsep.join(
        (str(shell.directory), shell.environment["PYTHONPATH"])
    )
    (shell.directory / "d.parquet").touch()
    status, _, err = shell.run("load", file, "t", "d.parquet")
    assert (status, err) == (
        1,
        "trio_hyperpool: Parquet and Arrow want trio-hyperpool[arrow]\n",
    )


# What is told about a call


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
        ["load", "x.hyper", "t"],
        ["load", "x.hyper", "t", "d.txt"],
        ["load", "x.hyper", "t", "d.csv", "--create"],
        ["load", "x.hyper", "a..b", "d.csv"],
        ["load", "x.hyper", "t", "d.csv", "--delimiter", "::"],
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
    for arguments in (["--help"], ["sql", "--help"], ["load", "--help"]):
        status, out, err = shell.run(*arguments)
        assert (status, err) == (0, "")
        assert "usage: python -m trio_hyperpool" in out


def test_a_missing_server_is_named(shell: Shell, file: str) -> None:
    shell.environment["HYPERD_PATH"] = str(shell.directory)
    status, out, err = shell.run("sql", file, "SELECT 1")
    assert (status, out) == (1, "")
    assert "HYPERD_PATH" in err
    assert "Traceback" not in err


async def test_a_header_longer_than_a_piece_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = importlib.import_module("trio_hyperpool._loading")
    monkeypatch.setattr(loading, "_AT_ONCE", 4)
    (tmp_path / "wide.csv").write_bytes(b"\xef\xbb\xbfone,two,three\n1,2,3\n")
    with io.FileIO(tmp_path / "wide.csv") as file:
        header = await loading._read_header(file)
    assert header.startswith(b"one,two,three\n")


def test_numbers_that_json_has_not_are_words_in_a_list_too() -> None:
    printing = importlib.import_module("trio_hyperpool._printing")
    assert printing._plain([1, float("inf"), [float("nan")]]) == [
        1,
        "Infinity",
        ["NaN"],
    ]


def test_a_reader_of_top_that_has_gone_ends_it_quietly() -> None:
    program = (
        "import sys\n"
        "from trio_hyperpool import _cli, _top\n"
        "async def top(*_, **__): raise BrokenPipeError\n"
        "_top.top = top\n"
        "sys.exit(_cli.main(['top']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
