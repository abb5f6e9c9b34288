"""A structured-concurrency connection pool for Tableau Hyper, over psycopg 3 and Trio."""

from dataclasses import is_dataclass as _is_dataclass

from ._catalogue import Column as Column, TableName as TableName
from ._config import (
    CreateMode as CreateMode,
    HealthCheck as HealthCheck,
    PoolConfig as PoolConfig,
)
from ._connector import Connector as Connector
from ._cursors import HyperServerBindingCursor as HyperServerBindingCursor
from ._errors import (
    ConnectError as ConnectError,
    HookError as HookError,
    HyperdError as HyperdError,
    LeaseEndedError as LeaseEndedError,
    LeaseError as LeaseError,
    LeaseRevokedError as LeaseRevokedError,
    PoolClosedError as PoolClosedError,
    PoolDeadlockError as PoolDeadlockError,
    PoolError as PoolError,
    PoolSaturatedError as PoolSaturatedError,
    PoolTimeoutError as PoolTimeoutError,
)
from ._hyper_connection import HyperConnection as HyperConnection
from ._lease import Lease as Lease
from ._policy import Condition as Condition
from ._pool import IdleConnection as IdleConnection, Pool as Pool
from ._postgres import (
    PostgresConnection as PostgresConnection,
    PostgresConnector as PostgresConnector,
)
from ._running import open_pool as open_pool
from ._server import Hyperd as Hyperd, open_hyperd as open_hyperd
from ._statistics import (
    Holder as Holder,
    PoolStatistics as PoolStatistics,
    Timing as Timing,
)

# What is public is known by its public name, in a repr as in a traceback; but for
# dataclasses, whose annotations are looked up in their module.
_public = None
for _public in [*globals().values()]:
    if getattr(_public, "__module__", "").startswith(f"{__name__}.") and (
        not _is_dataclass(_public)
    ):
        _public.__module__ = __name__
del _public
