"""What a pool does, for those who watch it: events, and instruments that use them."""

from ._events import (
    CancelSent as CancelSent,
    ConnectionDiscarded as ConnectionDiscarded,
    ConnectionFailed as ConnectionFailed,
    ConnectionOpened as ConnectionOpened,
    ConnectionOpening as ConnectionOpening,
    ConnectionRetired as ConnectionRetired,
    Event as Event,
    Instrument as Instrument,
    LeaseEnded as LeaseEnded,
    LeaseGranted as LeaseGranted,
    LeaseRefused as LeaseRefused,
    LeaseRequested as LeaseRequested,
    LeaseRevoked as LeaseRevoked,
    PoolClosing as PoolClosing,
    Step as Step,
    StepBegun as StepBegun,
    StepEnded as StepEnded,
    WaitTimedOut as WaitTimedOut,
)
