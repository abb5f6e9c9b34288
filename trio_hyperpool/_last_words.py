"""What there is to say of a ``hyperd`` that came to a bad end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Final

_LOG_READ: Final = 65536
_LOG_FILES_READ: Final = 8
_LINES_SHOWN: Final = 20
_LINE_SHOWN: Final = 500


def ended(status: int) -> str:
    """Put an exit status, as `subprocess` has it, into words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def last_words(stderr: bytes | bytearray, log_dir: Path, pid: int) -> str:
    """Quote the end of what the server has said, for the end of a message."""
    text = ""
    for source, lines in (
        ("stderr", stderr.decode(errors="replace").strip().splitlines()),
        ("log", _last_log_lines(log_dir, pid)),
    ):
        if lines:
            text += f"\nThe last lines of its {source}:"
        for line in lines[-_LINES_SHOWN:]:
            text += f"\n  {line[:_LINE_SHOWN]}"
    return text


def _last_log_lines(log_dir: Path, pid: int) -> list[str]:
    """Read the end of the server's log; a directory may have logs of others, too."""
    files = sorted(log_dir.glob("*.log"), key=_changed_at, reverse=True)
    for path in files[:_LOG_FILES_READ]:
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_READ))
            text = file.read(_LOG_READ).decode(errors="replace")
            lines = [_log_line(line, pid) for line in text.splitlines()]
            if any(lines):
                return list(filter(None, lines))
    return []


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return -math.inf


def _log_line(line: str, pid: int) -> str:
    """Shorten a line of the log; empty if it is another server's, or cut off."""
    try:
        entry = json.loads(line)
        if entry["pid"] != pid:
            return ""
        return f"{entry['ts']} {entry['sev']} {entry['k']}: {entry['v']}"
    except (ValueError, KeyError, TypeError):
        return ""
