"""The timeline's page, as a person sees it: in Chromium."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests._browser import find_chromium
from trio_hyperpool import open_pool
from trio_hyperpool.telemetry import Timeline
from trio_hyperpool.testing import FakeConnector, Gate

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow  # one page, whatever the Python

EVIL = "</script><b>order</b>"


def write_page(path: Path) -> None:
    """Of a pool with a burst of waiters, a revoked lease and a lease that goes on."""

    async def main() -> None:
        timeline = Timeline()
        async with open_pool(
            connector=FakeConnector(connect=Gate.slow(0.25)),
            max_size=2,
            max_lease=3,
            name="shop",
        ) as pool:
            pool.add_instrument(timeline)

            async def borrow(seconds: float) -> None:
                async with pool.lease():
                    await trio.sleep(seconds)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(borrow, 5, name="forgetful")
                await trio.sleep(0.1)
                for number in range(5):
                    nursery.start_soon(borrow, 0.5, name=f"{EVIL} {number}")
                    await trio.sleep(0.01)
                await trio.sleep(4.5)
                for _ in range(40):
                    await borrow(0.001)
                await trio.sleep(0.46)
                nursery.start_soon(borrow, 1.5, name="last")
                await trio.sleep(1)
                timeline.write_html(path, pool.statistics())

    trio.run(main, clock=MockClock(autojump_threshold=0))


class Seen:
    """The page in a tab, and all that the browser complained of or asked for."""

    def __init__(self, tab: Any, page: Path) -> None:
        self.tab = tab
        self.complaints: list[str] = []
        self.requests: list[str] = []
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.goto(page.as_uri())
        self.wait_until_drawn()

    def slices(self, kind: str) -> Any:
        return self.tab.locator(f"#lanes [data-kind={kind}]")

    def tip(self, slice_: Any) -> str:
        """What is said of a slice when the mouse is over its left end."""
        slice_.hover(position={"x": 4, "y": 4})
        text: str = self.tab.locator("#tip").inner_text()
        return " ".join(text.split())

    def wait_until_drawn(self) -> None:
        """The page draws once a frame."""
        self.tab.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    @property
    def span(self) -> float:
        """How many seconds are shown."""
        self.wait_until_drawn()
        text: str = self.tab.locator("#span").inner_text()
        number, unit, _ = text.split()
        return float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Generator[Seen]:
    path = tmp_path_factory.mktemp("page") / "run.html"
    write_page(path)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=find_chromium())
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {error.message.splitlines()[0]}")
        yield Seen(browser.new_page(viewport={"width": 1280, "height": 900}), path)
        browser.close()


def test_there_is_a_lane_for_each_connection_and_one_for_the_queue(seen: Seen) -> None:
    labels = seen.tab.locator("#lanes text.label").all_text_contents()
    assert labels == ["waiting", "queue", "lane 1", "lane 2"]
    assert seen.slices("lease").count() == 8
    assert seen.slices("connection").count() == 2
    assert seen.slices("connect").count() == 2
    assert seen.slices("retired").count() == 1
    lanes = seen.slices("lease").evaluate_all(
        "all => all.map(each => each.y.baseVal.value)"
    )
    assert len(set(lanes)) == 2


def test_over_a_lease_its_task_its_duration_and_its_place_are_told(seen: Seen) -> None:
    tip = seen.tip(seen.tab.locator("#lanes .bad[data-kind=lease]"))
    assert "forgetful revoked what lease duration 3 s" in tip
    assert "task forgetful" in tip
    assert "waited 250 ms" in tip
    assert f"{Path(__file__).name}:" in tip
    lit = seen.tab.locator("#lanes .lit").evaluate_all(
        "all => all.map(each => each.dataset.kind)"
    )
    assert lit == ["wait", "lease"]  # both of the same lease


def test_a_lease_that_goes_on_says_for_how_long_so_far(seen: Seen) -> None:
    tip = seen.tip(seen.tab.locator("#lanes .open[data-kind=lease]"))
    assert tip.startswith("last what lease so far 1 s")


def test_a_name_is_shown_as_it_is(seen: Seen) -> None:
    tip = seen.tip(seen.slices("wait").nth(1))
    assert f"{EVIL} 0" in tip
    assert seen.tab.locator("#tip b").all_inner_texts() == [f"{EVIL} 0"]


def test_the_statistics_and_the_holders_are_there(seen: Seen) -> None:
    text = " ".join(seen.tab.locator(".statistics").inner_text().split())
    assert "1 / 2 connections" in text
    assert "revoked leases 1" in text
    holders = seen.tab.locator(".holders tbody tr").all_inner_texts()
    assert [row.split("\t")[:2] for row in holders] == [["last", "1 s"]]


def test_wheel_buttons_keys_and_mouse_zoom_and_move(seen: Seen) -> None:
    tab = seen.tab
    box = tab.locator("#lanes").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + 60
    whole = seen.span

    tab.mouse.move(*middle)
    tab.mouse.wheel(0, -800)
    tab.wait_for_function(
        "before => document.getElementById('span').textContent !== before",
        arg=f"{whole:g} s shown",
    )
    assert seen.span < whole / 2
    first = tab.locator("#lanes .tick").first
    before = first.text_content()
    tab.mouse.down()
    tab.mouse.move(middle[0] - 400, middle[1])
    tab.mouse.up()
    seen.wait_until_drawn()
    assert float(first.text_content().split()[0]) > float(before.split()[0])

    tab.locator("#all").click()
    assert seen.span == whole
    tab.locator("#in").click()
    assert seen.span == pytest.approx(whole * 0.6, rel=0.01)
    tab.locator("#out").click()
    tab.locator("#lanes").focus()
    for key in ("+", "+", "ArrowRight", "ArrowLeft", "-"):
        tab.keyboard.press(key)
    assert seen.span == pytest.approx(whole * 0.6, rel=0.01)
    tab.keyboard.press("0")
    assert seen.span == whole


def test_what_is_too_short_to_be_seen_apart_is_told_together(seen: Seen) -> None:
    seen.tab.locator("#all").click()
    seen.wait_until_drawn()
    tip = seen.tip(seen.slices("lease").nth(6))
    assert tip.startswith("40 \u00d7 lease in all 40 ms")
    seen.tab.mouse.wheel(0, -3000)
    seen.tab.wait_for_function(
        "document.querySelectorAll('#lanes [data-kind=lease]').length === 40"
    )
    assert "duration 1 ms" in seen.tip(seen.slices("lease").nth(20))
    seen.tab.locator("#all").click()


def test_dark_and_light_differ_and_both_can_be_read(seen: Seen) -> None:
    colours = []
    for theme in ("light", "dark"):
        seen.tab.emulate_media(color_scheme=theme)
        page, ink = seen.tab.evaluate(
            "['backgroundColor', 'color']"
            ".map(key => getComputedStyle(document.body)[key].match(/\\d+/g).map(Number))"
        )
        colours.append(page)
        assert abs(sum(page) - sum(ink)) > 400
    assert sum(colours[0]) > 600
    assert sum(colours[1]) < 200


def test_the_browser_complains_of_nothing_and_asks_for_nothing_else(seen: Seen) -> None:
    assert not seen.complaints
    assert [url.partition(":")[0] for url in seen.requests] in (
        ["file"],
        ["file", "data"],
    )
