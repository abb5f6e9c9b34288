"""Where a headless Chromium may be."""

from __future__ import annotations

import shutil

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)


def find_chromium() -> str | None:
    """One that the system has; None leaves it to Playwright to find its own."""
    return next(filter(None, map(shutil.which, NAMES)), None)
