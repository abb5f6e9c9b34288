"""psycopg's generators driven by trio's readiness.

These names are not psycopg's public API. They are used here only, but for what
converts lists:

* `AsyncConnection`: ``_adapters``, ``_autocommit``, ``_check_connection_ok``,
  ``_closed``, ``_connect_gen``, ``_exec_command``, ``_notice_handler``,
  ``_notice_handlers``, ``_notifies_backlog``, ``_notify_handler``,
  ``_notify_handlers``, ``_num_transactions``, ``_pipeline``, ``_pipeline_nolock``,
  ``_prepared.clear``, ``_prepared.prepare_threshold``, ``_prepared.prepared_max``,
  ``_rollback_gen``, ``_should_cancel``, ``_try_cancel``; and,
  as everything that is sent goes through the one, holding the other: ``wait``, ``lock``
* `AsyncTransaction`: ``_conn``, ``_enter_gen``, ``_exit_gen``, ``_outer_transaction``
* `AsyncPipeline`: ``_conn``, ``_enqueue_sync``, ``_enter_gen``, ``_exit``,
  ``_exit_gen``, ``_lock``, ``_no_lock``, ``_process_results``, ``_sync_gen``,
  ``command_queue``, ``level``, ``result_queue``
* `AsyncCopy`: ``_finished``, ``formatter.parse_row``, ``writer``
* `AsyncCursor`: ``_conn``, ``_convert_query``, ``_execute_gen``, ``_execute_send``,
  ``_executemany_gen_no_pipeline``, ``_executemany_gen_pipeline``, ``_get_prepared``,
  ``_select_current_result``, ``_start_copy_gen``, ``_stream_fetchone_gen``,
  ``_stream_send_gen``, ``_tx``
* `AsyncServerCursor`: ``_close_gen``, ``_declare_gen``, ``_fetch_gen``,
  ``_scroll_gen``
* `PGconn`: ``_encoding``
* `_conninfo_utils`: ``get_param``, ``get_param_def``, ``is_ip_address``,
  ``split_attempts``
* `_preparing`: ``Prepare.NO``
* `_queries.PostgresQuery`: ``_tx``, ``convert``, ``dump``, ``formats``, ``params``,
  ``query``, ``types``
* `adapt.RecursiveDumper`: ``_tx``
* `adapt.RecursiveLoader`: ``_tx``
* `adapt.Transformer`: ``as_literal``, ``get_dumper``, ``get_loader``, ``set_pgresult``
* `conninfo`: ``_param_escape``, ``timeout_from_conninfo``
* `errors`: ``_WaitTimeout``, from psycopg 3.3
* `generators`: ``copy_to``, ``execute``, ``fetch``, ``send``
* `waiting`: ``Ready``, ``Wait``

``tests/test_driver_private_names.py`` fails by name when one of them goes, or when
one is used that is not among them.
"""

from ._connection import TrioConnection
from ._cursors import (
    GuardedCursor,
    GuardedNamedCursor,
    LiteralQuery,
    WatchedCursor,
    WatchedNamedCursor,
    Written,
)
from ._states import IN_TRANSACTION

__all__ = [
    "IN_TRANSACTION",
    "GuardedCursor",
    "GuardedNamedCursor",
    "LiteralQuery",
    "TrioConnection",
    "WatchedCursor",
    "WatchedNamedCursor",
    "Written",
]
