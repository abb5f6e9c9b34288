"""The command line: ``demo``, ``sql`` and ``top``."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Generator, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, Final, TextIO, TypeAlias, cast

import psycopg
import trio

from ._config import PoolConfig
from ._demo import show
from ._errors import HyperdError, PoolError
from ._pool import open_pool

_NUMBER_OR_NULL: Final = (int, float, Decimal, NoneType)

Rows: TypeAlias = Sequence[Sequence[Any]]
Write: TypeAlias = Callable[[Sequence[str], Rows, TextIO], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    0 if it did what was asked, 1 if the database said no, 2 for a wrong call.
    """
    options = _parser().parse_args(arguments)
    try:
        trio.run(options.run, options)
    except (PoolError, HyperdError, psycopg.Error) as error:
        print(f"{options.prog}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads us has seen enough. What is still in the buffer must not be
        # tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        "--csv", dest="write", action="store_const", const=_write_csv, help="as CSV"
    )
    form.add_argument(
        "--json",
        dest="write",
        action="store_const",
        const=_write_json,
        help="as a JSON array of objects",
    )
    sql.set_defaults(run=_run_sql, write=_write_table)
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
    async with (
        open_pool(database=options.file, max_size=1) as pool,
        pool.lease() as connection,
    ):
        cursor = await connection.execute(options.statement)
        if cursor.description is None:
            print(cursor.statusmessage or "nothing to execute", file=sys.stderr)
            return
        rows = await cursor.fetchall()
        write([column.name for column in cursor.description], rows, sys.stdout)


def _write_csv(names: Sequence[str], rows: Rows, out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if value is None else _shown(value) for value in row])


def _write_json(names: Sequence[str], rows: Rows, out: TextIO) -> None:
    keys = _distinct(names)
    records = (dict(zip(keys, map(_plain, row), strict=True)) for row in rows)
    lines = (json.dumps(one, default=_shown, ensure_ascii=False) for one in records)
    # Line by line: that the reader has gone is lost in the middle of one long write.
    before = "[\n"
    for line in lines:
        out.write(before + line)
        before = ",\n"
    out.write("\n]\n" if rows else "[]\n")


def _distinct(names: Sequence[str]) -> Sequence[str]:
    """Number columns of one name, or an object would keep but the last of them."""
    if len(set(names)) == len(names):
        return names
    return [f"{name}_{position}" for position, name in enumerate(names, start=1)]


def _shown(value: object) -> str:
    # As SQL writes it.
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """Say what JSON has no number for in the words of SQL."""
    if isinstance(value, list):
        return [_plain(one) for one in cast("list[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value


def _write_table(names: Sequence[str], rows: Rows, out: TextIO) -> None:
    cells = [list(names)]
    is_number = [True] * len(names)
    for row in rows:
        cells.append(["" if value is None else _shown(value) for value in row])
        for index, value in enumerate(row):
            if isinstance(value, bool) or not isinstance(value, _NUMBER_OR_NULL):
                is_number[index] = False
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        out.write("  ".join(padded).rstrip() + "\n")
    out.write(f"({len(rows)} row{'' if len(rows) == 1 else 's'})\n")
