"""What a timeline records, and the trace and the page that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests._invariants import fake_pool, hold, settle
from trio_hyperpool import HookError, Pool, PoolTimeoutError, open_pool
from trio_hyperpool._chrome_trace import QUEUE, trace_events
from trio_hyperpool._events import ConnectionDiscarded
from trio_hyperpool._lanes import Lane, Run, by_place, lay_out
from trio_hyperpool._slices import Kind, Mark, Slice
from trio_hyperpool._statistics import Timing
from trio_hyperpool.telemetry import Timeline
from trio_hyperpool.testing import FakeConnector, Gate


def timing(pool: Pool[Any], **options: Any) -> Timeline:
    timeline = Timeline(**options)
    pool.add_instrument(timeline)
    return timeline


def only_run(timeline: Timeline) -> Run:
    (run,) = timeline._runs()
    return run


def told(slices: Sequence[Slice]) -> list[tuple[str, float, float, str | None]]:
    return [(each.name, each.began, each.ended, each.error) for each in slices]


def written_trace(timeline: Timeline, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "run.json"
    timeline.write_chrome_trace(path)
    trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace


# Lanes


async def test_a_lease_is_a_wait_in_the_queue_and_a_slice_of_its_connection(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(2), close=Gate.slow(1))
    async with fake_pool(connector, name="p") as pool:
        timeline = timing(pool)
        await hold(pool, 3)
        place = str(only_run(timeline).queue[0].details["taken at"])
    task = trio.lowlevel.current_task().name
    who: dict[str, str | int] = {"lease": 1, "task": task, "taken at": place}
    name = task.rpartition(".")[2]
    assert place.rpartition(":")[0].endswith("_invariants.py")
    assert only_run(timeline) == Run(
        pool="p",
        began=0,
        ended=6,
        queue=(Slice(Kind.WAIT, name, 0, 2, who),),
        waiting=((0, 1), (2, 0)),
        lanes=(
            Lane(
                slices=(
                    Slice(Kind.CONNECTION, "connection 1", 0, 6, {"connection": 1}),
                    Slice(Kind.CONNECT, "connect", 0, 2, {"asked for by lease": 1}),
                    Slice(Kind.LEASE, name, 2, 5, {**who, "waited": "2 s"}),
                    Slice(Kind.FAREWELL, "farewell", 5, 6, {}),
                ),
                marks=(Mark(Kind.RETIRED, "retired: pool closed", 5),),
            ),
        ),
        marks=(Mark(Kind.CLOSING, "closing", 5),),
    )


async def test_hooks_checks_and_cleaning_are_slices_of_their_connection(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(probe=Gate.slow(1), clean=Gate.slow(2))
    async with fake_pool(
        connector,
        health_check_after=0,
        after_connect=Gate.slow(3),
        before_acquire=Gate.slow(4),
        after_release=Gate.slow(5),
    ) as pool:
        timeline = timing(pool)
        for _ in range(2):
            async with pool.lease() as connection:
                connection.begin()
                await trio.sleep(6)
            await settle(pool)
        (lane,) = only_run(timeline).lanes
    kinds = [slice_.kind for slice_ in lane.slices]
    assert kinds[:4] == [Kind.CONNECTION, Kind.CONNECT, Kind.HOOK, Kind.HOOK]
    name = trio.lowlevel.current_task().name.rpartition(".")[2]
    lasted = [(s.name, round(s.ended - s.began, 6)) for s in lane.slices[1:]]
    assert lasted == [
        ("connect", 3),
        ("after_connect", 3),
        ("before_acquire", 4),
        (name, 6),
        ("clean", 2),
        ("after_release", 5),
        ("health_check", 1),
        ("before_acquire", 4),
        (name, 6),
        ("clean", 2),
        ("after_release", 5),
    ]


async def test_what_did_not_go_well_says_why(autojump_clock: MockClock) -> None:
    connector = FakeConnector(connect=Gate.never(on=1))
    async with fake_pool(
        connector,
        create_timeout=2,
        max_lease=3,
        before_acquire=Gate.fails(ValueError("no"), on=2),
    ) as pool:
        timeline = timing(pool)
        with pytest.raises(PoolTimeoutError):
            await hold(pool, 0)
        await hold(pool, 5)
        with pytest.raises(HookError):
            await hold(pool, 0)
        await settle(pool)
        run = only_run(timeline)
    assert [(w.began, w.ended, w.error) for w in run.queue] == [
        (0, 2, "PoolTimeoutError"),
        (2, 2, None),
        (7, 7, "HookError"),
    ]
    (lane,) = run.lanes
    errors = [(s.kind, s.began, s.ended, s.error) for s in lane.slices if s.error]
    assert errors == [
        (Kind.CONNECT, 0, 2, "PoolTimeoutError"),
        (Kind.LEASE, 2, 5, "revoked"),
        (Kind.HOOK, 7, 7, "ValueError: no"),
    ]
    assert [mark.name for mark in lane.marks] == [
        "retired: revoked",
        "retired: failed hook",
    ]


async def test_a_wait_that_timed_out_is_told_once(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool, pool.lease():
        timeline = timing(pool)
        with pytest.raises(PoolTimeoutError):
            async with pool.lease(wait_timeout=2):
                pass
        run = only_run(timeline)
    assert [(w.began, w.ended, w.error) for w in run.queue] == [
        (0, 2, "PoolTimeoutError")
    ]
    assert run.lanes == ()


async def test_a_cancel_request_and_a_lost_connection_are_marks(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector()
    async with fake_pool(connector) as pool:
        timeline = timing(pool)
        async with pool.lease() as connection:
            with trio.move_on_after(1):
                await connection.execute(10)
        await hold(pool, 0)
        connector.break_all()
        await hold(pool, 0)
        (lane,) = only_run(timeline).lanes
    assert lane.marks == (
        Mark(Kind.CANCEL, "cancel sent", 1),
        Mark(Kind.RETIRED, "retired: cancelled query", 1),
        Mark(Kind.DISCARDED, "discarded: found dead", 1),
    )


async def test_a_new_connection_has_the_lowest_lane_that_is_free(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(FakeConnector(close=Gate.slow(1)), max_size=3) as pool:
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            for seconds in (1, 2, 3):
                await nursery.start(hold, pool, seconds)
            await trio.sleep(1.5)
            pool.retire_idle()
            await trio.sleep(1)  # its farewell is over
            await nursery.start(hold, pool, 5)  # the second is idle
            await nursery.start(hold, pool, 5)
        run = only_run(timeline)
    assert [
        [each.name for each in lane.slices if each.kind is Kind.CONNECTION]
        for lane in run.lanes
    ] == [["connection 1", "connection 4"], ["connection 2"], ["connection 3"]]


async def test_the_counter_says_how_many_wait(autojump_clock: MockClock) -> None:
    async with fake_pool(max_size=1) as pool:
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, pool, 2)
            for _ in range(3):
                nursery.start_soon(hold, pool, 1)
            await trio.sleep(1)
            with trio.move_on_after(0.5):
                await hold(pool, 0)
        assert only_run(timeline).waiting == (
            (0, 3),
            (1, 4),
            (1.5, 3),
            (2, 2),
            (3, 1),
            (4, 0),
        )


async def test_what_goes_on_lasts_until_now(autojump_clock: MockClock) -> None:
    connector = FakeConnector(connect=Gate.slow(1), probe=Gate.slow(10))
    async with fake_pool(
        connector, max_size=2, health_check_after=0, recycle_timeout=60
    ) as pool:
        timeline = timing(pool)
        await hold(pool, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 0)  # is probed
            await trio.sleep(0.25)
            nursery.start_soon(hold, pool, 0)  # is connecting
            await trio.sleep(0.25)
            nursery.start_soon(hold, pool, 0)  # queues
            await trio.sleep(0.25)
            unfinished = only_run(timeline)
            await trio.sleep(0.75)  # the second has come, and is leased and given back
            nursery.cancel_scope.cancel()
        async with pool.lease():
            await trio.sleep(3)
            held = only_run(timeline)
    assert unfinished.ended == 1.75
    assert [(w.began, w.ended, w.is_over) for w in unfinished.queue] == [
        (0, 1, True),
        (1, 1.75, False),
        (1.25, 1.75, False),
        (1.5, 1.75, False),
    ]
    assert unfinished.waiting[-1] == (1.5, 3)
    going_on = [
        (slice_.kind, slice_.began, slice_.ended)
        for lane in unfinished.lanes
        for slice_ in lane.slices
        if not slice_.is_over
    ]
    assert going_on == [
        (Kind.CONNECTION, 0, 1.75),
        (Kind.CHECK, 1, 1.75),
        (Kind.CONNECTION, 1.25, 1.75),
        (Kind.CONNECT, 1.25, 1.75),
    ]
    assert [
        (slice_.kind, slice_.ended - slice_.began)
        for lane in held.lanes
        for slice_ in lane.slices[1:]
        if not slice_.is_over
    ] == [(Kind.LEASE, 3)]


async def test_a_name_of_a_function_is_short_and_another_stays_whole(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool() as pool:
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 1)
            await trio.sleep(0.5)
            nursery.start_soon(hold, pool, 1, name="order 7.5 of a.b")
        first, second = only_run(timeline).queue
    assert (first.name, first.details["task"]) == ("hold", "tests._invariants.hold")
    assert second.name == second.details["task"] == "order 7.5 of a.b"


async def test_places_are_told_with_their_waits_and_uses(
    autojump_clock: MockClock,
) -> None:
    async with fake_pool(max_size=1) as pool:
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            await nursery.start(hold, pool, 2)
            nursery.start_soon(hold, pool, 4)
        async with pool.lease():
            await trio.sleep(1)
        (first, wait, use), (second, _, shorter) = by_place(only_run(timeline))
    assert "_invariants.py:" in first
    assert "test_timeline.py:" in second
    assert wait == Timing(2, 2, 2)
    assert (use.sum, use.max, shorter) == (6, 4, Timing(1, 1, 1))


# Memory


async def test_the_oldest_events_are_forgotten_and_the_rest_is_whole(
    autojump_clock: MockClock,
) -> None:
    connector = FakeConnector(connect=Gate.slow(1), close=Gate.slow(2))
    async with fake_pool(connector, name="p", before_acquire=Gate.slow(3)) as pool:
        timelines = [timing(pool, limit=limit) for limit in range(2, 14)]
        await hold(pool, 4)
    whole = only_run(timelines[-1])
    assert timelines[-1].forgotten == 0
    known = {(s.kind, s.began, s.ended) for s in (*whole.queue, *whole.lanes[0].slices)}
    for limit, timeline in enumerate(timelines, 2):
        assert timeline.forgotten == 13 - limit
        assert repr(timeline) == f"<Timeline of {limit} events, {13 - limit} forgotten>"
        run = only_run(timeline)
        (lane,) = run.lanes
        for slice_ in (*run.queue, *lane.slices[1:]):
            assert (slice_.kind, slice_.began, slice_.ended) in known
            assert slice_.is_over
        assert lane.slices[0].is_over
        assert lane.slices[0].ended == 10
    # Of the lease no more than its end is known.
    (lease,) = [s for s in only_run(timelines[4]).lanes[0].slices if s.kind == "lease"]
    assert lease == Slice(Kind.LEASE, "lease 1", 4, 8, {"lease": 1})


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (2.5, TypeError), (None, TypeError)],
)
def test_a_bad_limit_is_refused(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^limit: .* allowed, not {limit}$"):
        Timeline(limit=limit)


# The trace


def assert_is_a_trace(trace: dict[str, Any]) -> None:
    """The rules of the format, as far as they are used."""
    events = trace["traceEvents"]
    named = {e["pid"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    metadata = [event["ph"] == "M" for event in events]
    assert metadata == sorted(metadata, reverse=True)
    timed = events[sum(metadata) :]
    times = [event["ts"] for event in timed]
    assert times == sorted(times)
    assert not times or times[0] == 0
    open_slices: dict[tuple[int, int], list[float]] = defaultdict(list)
    waits: dict[tuple[int, str], str] = {}
    for event in timed:
        key = event["pid"], event["tid"]
        assert event["pid"] in named
        assert key in threads
        assert isinstance(event["name"], str)
        match event["ph"]:
            case "X":
                assert event["tid"] > QUEUE
                ends = open_slices[key]
                ended = round(event["ts"] + event["dur"], 3)
                while ends and ends[-1] <= event["ts"]:
                    ends.pop()
                assert event["dur"] >= 0
                assert not ends or ended <= ends[-1], event
                ends.append(ended)
            case "b" | "e" as phase:
                wait = event["pid"], event["id2"]["local"]
                assert waits.get(wait) == {"b": None, "e": "b"}[phase]
                assert event["cat"] == "wait"
                waits[wait] = phase
            case "C":
                assert list(event["args"]) == ["tasks"]
                assert event["args"]["tasks"] >= 0
            case phase:
                assert phase == "i"
                assert event["s"] in {"t", "p"}
    assert set(waits.values()) <= {"e"}


async def test_a_trace_has_each_slice_mark_and_count_in_microseconds(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with fake_pool(FakeConnector(connect=Gate.slow(0.5)), name="p") as pool:
        await trio.sleep(7)  # times are counted from the first event
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 0.25, name="t")
            await trio.sleep(0.625)
            trace = written_trace(timeline, tmp_path)
    assert_is_a_trace(trace)
    assert trace["otherData"]["forgotten"] == 0
    assert trace["otherData"]["began"].endswith(" UTC")
    who = {
        "lease": 1,
        "task": "t",
        "taken at": only_run(timeline).queue[0].details["taken at"],
    }
    queue = {"pid": 1, "tid": 1}
    lane = {"pid": 1, "tid": 2}
    wait = {**queue, "name": "waits", "cat": "wait", "id2": {"local": "0x1"}}
    asked = {"asked for by lease": 1}
    still = {"unfinished": "yes"}
    assert trace["traceEvents"] == [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "p"}},
        {"name": "thread_name", "ph": "M", **queue, "args": {"name": "queue"}},
        {"name": "thread_sort_index", "ph": "M", **queue, "args": {"sort_index": 1}},
        {"name": "thread_name", "ph": "M", **lane, "args": {"name": "lane 1"}},
        {"name": "thread_sort_index", "ph": "M", **lane, "args": {"sort_index": 2}},
        {"name": "connection 1", "ph": "X", **lane, "cat": "connection", "ts": 0, "dur": 625e3, "args": {"connection": 1, **still}},
        {"name": "connect", "ph": "X", **lane, "cat": "connect", "ts": 0, "dur": 5e5, "args": asked},
        {"name": "waiting", "ph": "C", **queue, "ts": 0, "args": {"tasks": 1}},
        {"ph": "b", **wait, "ts": 0, "args": who},
        {"name": "t", "ph": "X", **lane, "cat": "lease", "ts": 5e5, "dur": 125e3, "args": {**who, "waited": "500 ms", **still}},
        {"name": "waiting", "ph": "C", **queue, "ts": 5e5, "args": {"tasks": 0}},
        {"ph": "e", **wait, "ts": 5e5, "args": {}},
    ]  # fmt: skip


async def test_pools_are_processes_of_one_trace(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    timeline = Timeline()
    for name in ("first", "second"):
        async with fake_pool(name=name, max_lease=2) as pool:
            pool.add_instrument(timeline)
            await hold(pool, 3)
    trace = written_trace(timeline, tmp_path)
    assert_is_a_trace(trace)
    marks = [
        (e["pid"], e["name"], e["ts"]) for e in trace["traceEvents"] if e["ph"] == "i"
    ]
    assert marks == [
        (1, "retired: revoked", 2e6),
        (1, "closing", 3e6),
        (2, "retired: revoked", 5e6),
        (2, "closing", 6e6),
    ]
    revoked = [
        e["args"]["error"] for e in trace["traceEvents"] if e.get("cat") == "lease"
    ]
    assert revoked == ["revoked", "revoked"]


def test_a_storm_makes_a_trace_by_the_rules(tmp_path: Path) -> None:
    timeline = Timeline()

    async def storm() -> None:
        connector = FakeConnector(
            connect=Gate.slow(0.0011), close=Gate.slow(0.0007), clean=Gate.slow(0.0003)
        )
        async with (
            open_pool(
                connector=connector,
                max_size=4,
                health_check_after=0,
                max_lifetime=0.05,
                max_lease=0.02,
                before_acquire=Gate.slow(0.0001),
                after_release=Gate.slow(0.0002),
            ) as pool,
            trio.open_nursery() as nursery,
        ):
            pool.add_instrument(timeline)

            async def borrow(number: int) -> None:
                for turn in range(10):
                    patience = 0.001 * ((number * turn) % 7 + 1)
                    with suppress(OSError, HookError), trio.move_on_after(patience):
                        async with pool.lease() as connection:
                            connection.begin()
                            await connection.execute(0.0005 * (number % 5))
                    if (number, turn) == (5, 5):
                        connector.break_all()

            for number in range(20):
                nursery.start_soon(borrow, number)

    trio.run(storm, clock=MockClock(autojump_threshold=0))
    trace = written_trace(timeline, tmp_path)
    assert_is_a_trace(trace)
    kinds = {event.get("cat") for event in trace["traceEvents"]}
    assert kinds >= {*Kind} - {Kind.CLOSING}
    for limit in range(1, len(timeline._events), 37):
        runs = lay_out(list(timeline._events)[-limit:], 10)
        events = trace_events(runs, min(run.began for run in runs))
        assert_is_a_trace({"traceEvents": events})


def test_a_timeline_to_which_nothing_happened_is_written_too(tmp_path: Path) -> None:
    timeline = Timeline()
    assert written_trace(timeline, tmp_path)["traceEvents"] == []
    timeline.write_html(tmp_path / "run.html")
    assert "Nothing has happened" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_a_fact_of_a_connection_that_is_otherwise_forgotten_has_a_lane() -> None:
    (run,) = lay_out([ConnectionDiscarded("p", 3, 9, "found dead")], 5)
    assert (run.began, run.ended) == (3, 3)
    assert told(run.lanes[0].slices) == [("connection 9", 3, 3, None)]


# The page


async def test_the_page_has_the_statistics_the_holders_and_the_places(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with fake_pool(name="shop", max_lease=2, max_size=7) as pool:
        timeline = timing(pool)
        await hold(pool, 3)
        async with pool.lease():
            await trio.sleep(1.5)
            timeline.write_html(tmp_path / "run.html", pool.statistics())
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    words = " ".join(page.split())
    place = Path(__file__).name
    assert "<title>shop · timeline</title>" in page
    assert '<th scope="row">revoked leases</th><td class="bad">1</td>' in page
    assert '<th scope="row">retired</th><td>1 revoked</td>' in page
    assert "<b>1<small> / 7</small></b>connections" in page
    holders = words[words.index("Who has a connection") :]
    assert holders.index("<td>1.5 s</td>") < holders.index(place)
    assert "Where leases were taken" in words


async def test_names_are_escaped_in_both_forms(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    evil = "</script><b>&\"'<!--\u2028 ünï"
    connector = FakeConnector(connect=Gate.slow(0.5))
    async with fake_pool(connector, name=f"pool {evil}") as pool:
        timeline = timing(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 2, name=f"task {evil}")
            await trio.sleep(1)
            timeline.write_html(tmp_path / "run.html", pool.statistics())
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert evil not in page
    assert "<b>&" not in page
    assert page.count("</script>") == 2
    start = page.index('id="record">') + len('id="record">')
    record = json.loads(page[start : page.index("</script>", start)])
    assert record["pools"][0]["name"] == f"pool {evil}"
    names = [s["name"] for s in record["pools"][0]["lanes"][0]["slices"]]
    assert names == ["connection 1", "connect", f"task {evil}"]
    events = written_trace(timeline, tmp_path)["traceEvents"]
    assert {"pool " + evil, "task " + evil} <= {
        *(event["name"] for event in events),
        *(event["args"].get("name") for event in events),
    }


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    Timeline().write_html(tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policy in page
    assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 1  # -equiv
    assert " src=" not in page


def test_without_jinja_the_page_is_refused_and_the_trace_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "trio_hyperpool._page", raising=False)
    timeline = Timeline()
    with pytest.raises(ImportError, match=r'pip install "trio-hyperpool\[timeline\]"'):
        timeline.write_html(tmp_path / "run.html")
    assert not list(tmp_path.iterdir())
    timeline.write_chrome_trace(tmp_path / "run.json")


def test_importing_telemetry_does_not_import_jinja() -> None:
    code = "import sys, trio_hyperpool.telemetry; assert 'jinja2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_a_path_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    for write in (Timeline().write_html, Timeline().write_chrome_trace):
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "nowhere" / "run")
