"""What a pool does, for those who watch it: events, and instruments that use them."""

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
    Step,
    StepBegun,
    StepEnded,
    WaitTimedOut,
)
from ._live import live_view
from ._timeline import Timeline

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
    "PoolClosing",
    "Step",
    "StepBegun",
    "StepEnded",
    "Timeline",
    "WaitTimedOut",
    "live_view",
]
