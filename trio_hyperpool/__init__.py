"""A structured-concurrency connection pool for Tableau Hyper, over psycopg 3 and Trio."""

from ._config import (
    CreateMode as CreateMode,
    HealthCheck as HealthCheck,
    PoolConfig as PoolConfig,
)
from ._connector import Connector as Connector
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
from ._policy import Condition as Condition
from ._pool import Pool as Pool, open_pool as open_pool
from ._server import open_hyperd as open_hyperd
from ._statistics import PoolStatistics as PoolStatistics
