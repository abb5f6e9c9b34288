"""The tour that ``python -m trio_hyperpool demo`` gives."""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TextIO, TypeAlias

import trio

from ._config import CreateMode
from ._hyper import HyperConnection
from ._pool import Pool
from ._running import open_pool
from ._server import open_hyperd

Say: TypeAlias = Callable[[str], None]

WORDS: Final = (
    *("ARROW", "BEAR", "BIRD", "BLACK", "CAT", "CIRCLE", "CLOUD", "DOG", "DOTS"),
    *("DOUBLE", "DRAGON", "EGYPTIAN", "EYE", "FACE", "FISH", "FLOWER", "GREEK"),
    *("HAND", "HEART", "HOUSE", "LIGATURE", "MOON", "MUSICAL", "RAIN", "RUNIC"),
    *("SMALL", "SNOW", "SQUARE", "STAR", "SUN", "TREE", "WHITE"),
)

MINUTES: Final = """
    SELECT count(*) FROM generate_series(1::bigint, 3000000) a(x),
                         generate_series(1::bigint, 3000000) b(y)
    WHERE (x * y) % 7 = 3"""
"""A query that keeps the server busy for minutes."""


async def show(out: TextIO) -> None:
    """Give the tour; a few seconds.

    A checkpoint. Cancelled, it leaves neither a server nor a file behind.

    Args:
        out: where to say what happens.
    """

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    with tempfile.TemporaryDirectory(prefix="trio-hyperpool-") as folder:
        path = Path(folder) / "characters.hyper"
        started = trio.current_time()
        async with open_hyperd() as server:
            elapsed = trio.current_time() - started
            say(
                f"1. A private hyperd, process {server.pid}, started in {elapsed:.2f} s."
            )
            async with open_pool(
                server.endpoint,
                path,
                create_mode=CreateMode.CREATE,
                max_size=4,
                name="demo",
            ) as pool:
                await _load(pool, say)
                await _ask(pool, say)
                await _cancel(pool, server.pid, say)
                say("\n5. What the pool counted:\n")
                say(textwrap.indent(str(pool.statistics()), "   "))
            size = path.stat().st_size / 1e6
            say(f"\nThe pool is closed: {size:.1f} MB of {path.name} are on disk.")
        say("The server has ended. Both live exactly as long as their blocks.")


def _characters() -> Iterator[tuple[int, str, str, str]]:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if name := unicodedata.name(character, ""):
            yield code, character, name, unicodedata.category(character)


async def _load(pool: Pool[HyperConnection], say: Say) -> None:
    started = trio.current_time()
    async with pool.lease() as connection:
        await connection.execute(
            "CREATE TABLE characters (code int, sign text, name text, category text)"
        )
        async with connection.cursor().copy(
            "COPY characters FROM STDIN WITH (FORMAT text)"
        ) as copy:
            for row in _characters():
                await copy.write_row(row)
    count = await pool.fetch_value("SELECT count(*) FROM characters")
    elapsed = trio.current_time() - started
    say(f"2. {count:,} rows, the characters of Unicode, loaded in {elapsed:.2f} s.")


async def _ask(pool: Pool[HyperConnection], say: Say) -> None:
    answers: dict[str, tuple[int, str]] = {}

    async def ask(word: str) -> None:
        async with pool.lease() as connection:
            [(count, example)] = await connection.fetch_all(
                "SELECT count(*), min(sign || '  ' || name) FROM characters "
                "WHERE name LIKE '%%' || %s || '%%'",
                (word,),
            )
            answers[word] = count, example

    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for word in WORDS:
            nursery.start_soon(ask, word)
    elapsed = trio.current_time() - started
    say(
        f"3. {len(WORDS)} tasks asked at once, over {pool.statistics().size} "
        f"connections: answered in {elapsed:.2f} s.\n"
    )
    for word in sorted(answers, key=answers.__getitem__, reverse=True)[:6]:
        count, example = answers[word]
        say(f"   {count:>6,} names with {word:<8}  such as {example}")


async def _cancel(pool: Pool[HyperConnection], pid: int, say: Say) -> None:
    async with pool.lease() as connection:
        busy: float | None = None

        async def measure() -> None:
            nonlocal busy
            await trio.sleep(0.1)
            busy = await _load_of(pid)

        started = trio.current_time()
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(measure)
                await connection.execute(MINUTES)
        elapsed = trio.current_time() - started
        answer = await connection.fetch_value("SELECT 6 * 7")
        idle = await _load_of(pid)
    say(
        f"\n4. A query of minutes, cancelled after 0.5 s: it was over at {elapsed:.2f} s."
    )
    say(f"   The same connection, at once: SELECT 6 * 7 is {answer}.")
    if busy is not None and idle is not None:
        say(f"   The server used {busy:.0%} of a processor before, and {idle:.0%} now.")


async def _load_of(pid: int, seconds: float = 0.3) -> float | None:
    """What part of a processor a process uses; None where the system can't say."""
    try:
        before = _processor_seconds(pid)
        await trio.sleep(seconds)
        return (_processor_seconds(pid) - before) / seconds
    except OSError:
        return None


def _processor_seconds(pid: int) -> float:
    # The name, in parentheses, may have spaces in it: see proc_pid_stat(5).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
