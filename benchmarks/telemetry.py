"""``python benchmarks/telemetry.py``: what a lease costs that is told to somebody.

One task leases a connection without a server and gives it back, in turns. All listeners
take part in each turn, so that what slows the machine down slows all of them; the
median counts.
"""

# ruff: noqa: D102 - the protocols that are met say it

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Sequence

import trio
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import NoOpTracerProvider

from trio_hyperpool import open_pool, telemetry
from trio_hyperpool._fakes import FakeConnector


class Nowhere(SpanExporter):
    """Takes spans, and forgets them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Idle:
    """An instrument that does nothing: what it costs to make the events."""

    def happened(self, event: telemetry.Event, /) -> None:
        pass


def listeners() -> dict[str, telemetry.Instrument | None]:
    meters = MeterProvider([InMemoryMetricReader()])
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    found: dict[str, telemetry.Instrument | None] = {
        "nobody": None,
        "an instrument that does nothing": Idle(),
        "OpenTelemetry without an SDK": telemetry.OpenTelemetry(
            NoOpMeterProvider(), NoOpTracerProvider()
        ),
        "OpenTelemetry, metrics": telemetry.OpenTelemetry(meters, NoOpTracerProvider()),
        "OpenTelemetry, metrics and spans": telemetry.OpenTelemetry(meters, tracers),
    }
    with contextlib.suppress(AttributeError):
        found["Timeline"] = telemetry.Timeline()
    return found


async def timed(instrument: telemetry.Instrument | None, leases: int) -> float:
    """Microseconds of one lease."""
    async with open_pool(connector=FakeConnector()) as pool:
        async with pool.lease():
            pass
        if instrument is not None:
            pool.add_instrument(instrument)
        began_at = time.perf_counter()
        for _ in range(leases):
            async with pool.lease():
                pass
        return (time.perf_counter() - began_at) / leases * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="of each listener")
    parser.add_argument("--leases", type=int, default=2_000, help="in each turn")
    options = parser.parse_args()
    everybody = listeners()
    times: dict[str, list[float]] = {who: [] for who in everybody}
    for _ in range(options.turns):
        for who, instrument in everybody.items():
            times[who].append(await timed(instrument, options.leases))
    nobody = statistics.median(times["nobody"])
    print(f"Python {sys.version.split()[0]}; {options.turns} turns.\n")
    print("| told to | µs a lease | more than nobody | from, to |")
    print("|---|---|---|---|")
    for who, turns in times.items():
        middle = statistics.median(turns)
        print(
            f"| {who} | {middle:.1f} | {middle - nobody:.1f} | "
            f"{min(turns):.1f} to {max(turns):.1f} |"
        )


trio.run(main)
