"""Asyncio on both ends of a pool: drivers written for it, and code that leases.

Importing this module imports trio-asyncio, which makes every `asyncio.run` of the process
use its loop; nothing else in the package does.
"""

from ._callers import (
    AsyncioLease as AsyncioLease,
    call as call,
    hook as hook,
    lease as lease,
)
from ._connector import AsyncioConnector as AsyncioConnector
from ._views import AsyncioConnection as AsyncioConnection
