"""What is said to the server, or read from it, so that it ends what it is at."""

from __future__ import annotations

from typing import Any, Final

from psycopg import AsyncPipeline, errors, generators, pq
from psycopg.abc import PQGen
from psycopg.waiting import Wait

from ._states import ACTIVE

SYNC: Final[Any] = (None, "Sync")
"""What our pipelines have among the results still to come, in a Sync's place."""


def drain(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Read, and throw away, all that the server has still to say."""
    yield from generators.send(pgconn)
    while pgconn.transaction_status == ACTIVE:
        result = yield from generators.fetch(pgconn)
        if result is None:
            continue
        if result.status == pq.ExecStatus.COPY_IN:
            is_queued = 0
            while not is_queued:
                is_queued = pgconn.put_copy_end(b"cancelled by the client")
                yield from generators.send(pgconn)
        elif result.status == pq.ExecStatus.COPY_OUT:
            yield from _drain_copy(pgconn)
        elif result.status == pq.ExecStatus.COPY_BOTH:
            raise errors.NotSupportedError("a replication stream can't be drained")


def _drain_copy(pgconn: pq.abc.PGconn) -> PQGen[None]:
    while (size := pgconn.get_copy_data(1)[0]) >= 0:
        if size == 0:
            while not (yield Wait.R):
                pass
            pgconn.consume_input()


def drain_pipeline(
    pgconn: pq.abc.PGconn, pipeline: AsyncPipeline
) -> PQGen[None] | None:
    """Make it expect no more results, at once, and drain those that will still come."""
    # A Sync that was not sent yet will not be.
    syncs = pipeline.result_queue.count(SYNC) - pipeline.command_queue.count(
        pgconn.pipeline_sync
    )
    pipeline.command_queue.clear()
    pipeline.result_queue.clear()
    if pgconn.transaction_status != ACTIVE:
        return None
    return _drain_until_synced(pgconn, syncs)


def _drain_until_synced(pgconn: pq.abc.PGconn, syncs: int) -> PQGen[None]:
    # There are so many Syncs still to be answered. After them comes a query whose
    # answer can be told from theirs: Hyper may forget the error of a query whose rows
    # it was sending, and may send one, with an answer to no Sync, after the end of a
    # query. Which answer belongs to which question is lost then.
    pgconn.pipeline_sync()
    pgconn.send_query_params(b"", None)
    pgconn.pipeline_sync()
    syncs += 2
    before = None
    yield from generators.send(pgconn)
    while pgconn.transaction_status == ACTIVE:
        result = yield from generators.fetch(pgconn)
        if result is None:
            continue
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            syncs -= 1
            if syncs == 0 and (
                before != pq.ExecStatus.EMPTY_QUERY
                or pgconn.transaction_status == ACTIVE
            ):
                raise errors.OperationalError("the server's answers are out of step")
        before = result.status


def send_empty_query(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Ask for nothing, and get an answer."""
    pgconn.send_query(b"")
    for result in (yield from generators.execute(pgconn)):
        if result.status != pq.ExecStatus.EMPTY_QUERY:
            raise errors.error_from_result(result)
