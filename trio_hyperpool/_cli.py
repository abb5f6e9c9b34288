"""The command line: ``demo``, ``sql``, ``load`` and ``top``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

import psycopg
import trio

from ._binding import read_statement
from ._catalogue import TableName
from ._config import CreateMode, PoolConfig
from ._demo import show
from ._errors import HyperdError, PoolError
from ._loading import Load, LoadError, check_load
from ._printing import Write, streamed, write_csv, write_json, write_table
from ._running import open_pool

# These may have more rows than there is room for.
_QUERIES: Final = frozenset({"SELECT", "WITH", "TABLE"})

_NAME: Final = r'"(?:[^"]|"")+"|[^".]+'
_TABLE: Final = re.compile(rf"(?:{_NAME})(?:\.(?:{_NAME})){{0,2}}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    0 if it did what was asked, 1 if the database said no, 2 for a wrong call.
    """
    options = _parser().parse_args(arguments)
    try:
        trio.run(options.run, options)
    except BrokenPipeError:
        # Whoever reads us has seen enough. What is still in the buffer must not be
        # tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (PoolError, HyperdError, LoadError, psycopg.Error, OSError) as error:
        print(f"{options.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trio_hyperpool",
        description="A connection pool for Tableau Hyper, and what it can show.",
    )
    parser.set_defaults(prog="trio_hyperpool")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="a tour: load rows, query them concurrently, cancel a query",
        description="Start a private hyperd, load a table, run many queries at once "
        "over a small pool, cancel one of them, and show what the pool counted.",
    )
    demo.add_argument(
        "--watch",
        action="store_true",
        help="show a pool in trouble instead, as `top` sees it, until Ctrl-C",
    )
    demo.set_defaults(run=_run_demo)

    top = commands.add_parser(
        "top",
        help="watch the pools of running applications",
        description="Show what pools do, in applications that use live_view(pool), "
        "until Ctrl-C.",
    )
    top.add_argument(
        "sockets", metavar="SOCKET", nargs="*", type=Path, help="default: all of yours"
    )
    top.add_argument("--once", action="store_true", help="show one snapshot, and end")
    form = top.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line for each snapshot")
    form.add_argument("--svg", type=Path, metavar="FILE", help="a picture, of one")
    top.set_defaults(run=_run_top)

    sql = commands.add_parser(
        "sql",
        help="execute a statement on a .hyper file",
        description="Execute one statement on a .hyper file, on a private hyperd, "
        "and print its result.",
    )
    sql.add_argument(
        "file", metavar="FILE.hyper", type=_path, help="an existing .hyper file"
    )
    sql.add_argument(
        "statement", metavar="STATEMENT", type=_encoded, help="one SQL statement"
    )
    form = sql.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", dest="write", action="store_const", const=write_csv, help="as CSV"
    )
    form.add_argument(
        "--json",
        dest="write",
        action="store_const",
        const=write_json,
        help="as a JSON array of objects",
    )
    sql.set_defaults(run=_run_sql, write=write_table)

    load = commands.add_parser(
        "load",
        help="load a CSV, Parquet or Arrow file into a table",
        description="Load a file into a table of a .hyper file, on a private hyperd. "
        "Columns are matched by name, those of a CSV by its first line. All rows are "
        "loaded or, if it fails or is interrupted, none.",
    )
    load.add_argument("file", metavar="FILE.hyper", type=_path, help="a .hyper file")
    load.add_argument(
        "table",
        metavar="TABLE",
        type=_table,
        help='a table; SCHEMA.TABLE, or with dots in it, as in SQL, "a.b"',
    )
    load.add_argument(
        "source",
        metavar="DATA",
        type=Path,
        help="a file that ends in .csv, .parquet, .arrow or .feather",
    )
    load.add_argument(
        "--create",
        action="store_true",
        help="create the table, and the .hyper file if there is none; not for CSV, "
        "which has no types",
    )
    load.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        default=",",
        type=_delimiter,
        help="what separates the values of a CSV, if not a comma; tab for a tabulator",
    )
    load.set_defaults(run=_run_load, fail=load.error)
    return parser


def _path(text: str) -> str:
    try:
        return os.fspath(PoolConfig(database=text).database)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not valid Unicode") from None


def _table(text: str) -> TableName:
    if not _TABLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"it is not the name of a table: {text}")
    parts = re.findall(_NAME, text)
    return TableName(
        *(p[1:-1].replace('""', '"') if p.startswith('"') else p for p in parts)
    )


def _delimiter(text: str) -> str:
    text = "\t" if text == "tab" else text
    if len(text) != 1 or not text.isascii() or text in '"\r\n':
        raise argparse.ArgumentTypeError(f"it is not one character: {text!r}")
    return text


async def _run_demo(options: argparse.Namespace) -> None:
    if options.watch:
        with _rich_at_hand(options):
            from ._scene import watch  # noqa: PLC0415 - optional

        await watch()
    else:
        await show(sys.stdout)


async def _run_top(options: argparse.Namespace) -> None:
    with _rich_at_hand(options):
        from . import _top  # noqa: PLC0415 - optional

    try:
        await _top.top(
            options.sockets, once=options.once, as_json=options.json, svg=options.svg
        )
    except BrokenPipeError:
        raise
    except (OSError, _top.NothingToSeeError) as error:
        raise SystemExit(f"{options.prog}: {error}") from None


@contextlib.contextmanager
def _rich_at_hand(options: argparse.Namespace) -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"{options.prog}: {error}; 'trio-hyperpool[cli]' brings it along"
        ) from None


async def _run_sql(options: argparse.Namespace) -> None:
    write: Write = options.write
    statement: bytes = options.statement
    async with (
        open_pool(database=options.file, max_size=1) as pool,
        pool.lease() as connection,
    ):
        if read_statement(statement).verb in _QUERIES:
            async with streamed(connection, statement) as result:
                await write(result, sys.stdout)
            return
        cursor = await connection.execute(statement)
        if cursor.description is None:
            print(cursor.statusmessage or "nothing to execute", file=sys.stderr)
        else:
            await write(cursor, sys.stdout)


async def _run_load(options: argparse.Namespace) -> None:
    load = Load(options.table, options.source, options.create, options.delimiter)
    if trouble := check_load(load):
        options.fail(trouble)
    mode = CreateMode.CREATE_IF_NOT_EXISTS if load.create else CreateMode.DO_NOT_CREATE
    async with (
        open_pool(database=options.file, create_mode=mode, max_size=1) as pool,
        pool.lease() as connection,
    ):
        started = trio.current_time()
        rows = await load.run(connection, sys.stderr)
        elapsed = trio.current_time() - started
    print(f"{rows:,} rows loaded in {elapsed:.1f} s", file=sys.stderr)
