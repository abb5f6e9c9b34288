"""What a pool does, for those who watch it: events, and instruments that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._events import (
    CancelSent,
    ConnectionDiscarded,
    ConnectionFailed,
    ConnectionOpened,
    ConnectionOpening,
    ConnectionRetired,
    Event,
    Instrument,
    LeaseEnded,
    LeaseGranted,
    LeaseRefused,
    LeaseRequested,
    LeaseRevoked,
    PoolClosing,
    PoolResized,
    PoolUnwatched,
    PoolWatched,
    Step,
    StepBegun,
    StepEnded,
    WaitTimedOut,
)
from ._live import live_view
from ._timeline import Timeline

if TYPE_CHECKING:
    from ._open_telemetry import OpenTelemetry

__all__ = [
    "CancelSent",
    "ConnectionDiscarded",
    "ConnectionFailed",
    "ConnectionOpened",
    "ConnectionOpening",
    "ConnectionRetired",
    "Event",
    "Instrument",
    "LeaseEnded",
    "LeaseGranted",
    "LeaseRefused",
    "LeaseRequested",
    "LeaseRevoked",
    "OpenTelemetry",
    "PoolClosing",
    "PoolResized",
    "PoolUnwatched",
    "PoolWatched",
    "Step",
    "StepBegun",
    "StepEnded",
    "Timeline",
    "WaitTimedOut",
    "live_view",
]

# Seen by a type checker, it would let any name whatever pass for one of ours.
if not TYPE_CHECKING:  # pragma: no branch

    def __getattr__(name: str) -> Any:
        """Import what needs more than the pool does when it is asked for."""
        if name != "OpenTelemetry":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from ._open_telemetry import OpenTelemetry  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{__name__}.OpenTelemetry needs opentelemetry-api: "
                'pip install "trio-hyperpool[otel]"'
            ) from error
        return OpenTelemetry
