"""libpq's states, looked up once: an attribute of an enum takes its time."""

from __future__ import annotations

from typing import Final

from psycopg import pq

OK: Final = pq.ConnStatus.OK
BAD: Final = pq.ConnStatus.BAD

IDLE: Final = pq.TransactionStatus.IDLE
ACTIVE: Final = pq.TransactionStatus.ACTIVE
IN_TRANSACTION: Final = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

PIPELINE_OFF: Final = pq.PipelineStatus.OFF
