"""Makes the pictures of the timeline: ``nox -s pictures``.

Wants the dependency groups ``tests`` and ``docs``, the extras ``binary``, ``hyperd``
and ``timeline``, and Chromium.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio
from playwright.sync_api import sync_playwright

from trio_hyperpool import (
    CreateMode,
    HyperConnection,
    Hyperd,
    HyperdError,
    Pool,
    PoolError,
    PoolStatistics,
    open_hyperd,
    open_pool,
)
from trio_hyperpool.telemetry import Timeline

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from _browser import find_chromium  # noqa: E402 - the tests' way to find a browser

SLOW = "SELECT sum(x % 7) FROM generate_series(1::bigint, 60000000) a(x)"
ENDLESS = "SELECT count(*) FROM generate_series(1, 100000000000)"


async def serve(
    directory: str, task_status: trio.TaskStatus[Hyperd] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a server that may be killed."""
    with contextlib.suppress(HyperdError):
        async with open_hyperd(socket_dir=directory, port=7483) as hyperd:
            task_status.started(hyperd)
            await trio.sleep_forever()


async def read(pool: Pool[HyperConnection], seconds: float) -> None:
    """Work for a while on a lease, as a request does."""
    with contextlib.suppress(PoolError):
        async with pool.lease() as connection:
            await connection.execute("SELECT 1")
            await trio.sleep(seconds)


async def read_on(pool: Pool[HyperConnection]) -> None:
    """One request after the other."""
    while True:
        await read(pool, 0.07)
        await trio.sleep(0.09)


async def report(pool: Pool[HyperConnection]) -> None:
    """A slow query."""
    await pool.execute(SLOW)


async def give_up(pool: Pool[HyperConnection]) -> None:
    """A query that somebody does not wait for."""
    with trio.move_on_after(0.35):
        await pool.execute(ENDLESS)


async def forget(pool: Pool[HyperConnection]) -> None:
    """A lease that is never given back."""
    async with pool.lease():
        await trio.sleep_forever()


async def hard_day(timeline: Timeline, directory: str) -> PoolStatistics:
    """All that a pool should have to tell, in some seconds."""
    async with trio.open_nursery() as servers:
        hyperd: Hyperd = await servers.start(serve, directory)
        async with (
            open_pool(
                hyperd.endpoint,
                Path(directory) / "shop.hyper",
                create_mode=CreateMode.CREATE_IF_NOT_EXISTS,
                create_attempts=20,
                max_size=5,
                max_lease=1.2,
                health_check_after=0.05,
                name="shop",
            ) as pool,
            trio.open_nursery() as nursery,
        ):
            pool.add_instrument(timeline)

            def start(task: object, name: str) -> None:
                nursery.start_soon(task, pool, name=name)  # type: ignore[arg-type]

            for number in range(1, 4):
                start(read_on, f"reader {number}")
                await trio.sleep(0.03)
            await trio.sleep(0.4)
            start(report, "monthly report")
            start(give_up, "impatient")
            await trio.sleep(0.2)
            for number in range(1, 31):
                start(partial(read, seconds=0.12), f"order {number}")
            await trio.sleep(1.5)
            start(forget, "forgotten export")
            await trio.sleep(0.2)
            os.kill(hyperd.pid, signal.SIGKILL)
            await trio.sleep(0.25)
            await servers.start(serve, directory)
            await trio.sleep(0.5)
            start(forget, "another export")
            await trio.sleep(0.6)
            statistics = pool.statistics()
            nursery.cancel_scope.cancel()
        servers.cancel_scope.cancel()
    return statistics


def main() -> None:
    """Make them all."""
    with tempfile.TemporaryDirectory() as directory:
        timeline = Timeline()
        statistics = trio.run(hard_day, timeline, directory)
        page = Path(directory) / "timeline.html"
        timeline.write_html(page, statistics)
        # No picture shows where on this machine it was made.
        page.write_text(page.read_text().replace(f"{HERE.parents[1]}{os.sep}", ""))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium())
            for theme in ("light", "dark"):
                tab = browser.new_page(
                    color_scheme=theme,  # type: ignore[arg-type]
                    viewport={"width": 1280, "height": 900},
                )
                tab.goto(page.as_uri())
                longest = tab.locator("[data-kind=lease]").evaluate_all(
                    "all => all.map(one => one.getBoundingClientRect().width)"
                )
                tab.locator("[data-kind=lease]").nth(
                    max(range(len(longest)), key=longest.__getitem__)
                ).hover()
                tab.screenshot(path=HERE / f"timeline-{theme}.png")
            browser.close()


if __name__ == "__main__":
    main()
