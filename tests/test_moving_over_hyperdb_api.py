"""What the page for those who move over calls by the names of Hyper's Rust API."""

from __future__ import annotations

import pytest

from tests._moving_page import Table

TABLE = Table("hyperdb_api::pool")
# Read, and not run: there is no Rust here. Each of them is in the crate hyperdb-api
# 0.7.0 (tableau/hyper-api-rust 0d665f5; again src/pool.rs at 65a44eb, the same pool, and
# CreateMode in src/connection.rs at 10bb2b7), or in what its `Pool` is an alias of:
# deadpool 0.13.0 (deadpool-rs/deadpool f2728ab; again managed/pool.rs at 5a6d233 and
# managed/object.rs at 2fa6123). Of 1.0.0-rc.3 only the changelog was read, at 23af6f7.
READ = frozenset(
    {
        # hyperdb-api/src/pool.rs
        "PoolConfig::new(endpoint, database)",
        "create_pool(config)",
        ".create_mode(CreateMode::...)",
        ".auth(user, password)",
        ".max_size(16)",  # the default of PoolConfig::new
        ".min_idle(n)",
        ".wait_timeout",
        ".create_timeout",
        ".recycle_timeout",
        ".max_lifetime",
        ".idle_timeout",
        ".health_check(...)",
        "RecycleStrategy::SelectOne",  # the default
        "Ping",
        "None",
        "Custom",
        ".after_connect(hook)",
        ".before_acquire(hook)",
        # deadpool's managed/pool.rs, managed/object.rs and managed/errors.rs
        "pool.get()",
        "PoolError::Timeout",
        "Closed",
        "Backend",
        "Object::take",
        "pool.resize(n)",
        "pool.retain(...)",
        "pool.status()",
        "pool.close()",
    }
)
PROSE = {"dropping the object"}


def test_each_name_was_read_in_the_source() -> None:
    names = [name.text for name in TABLE.names]
    assert sorted(names) == sorted(READ)


@pytest.mark.parametrize("cell", TABLE.cells)
def test_every_row_has_a_name_that_was_read(cell: str) -> None:
    assert "`" in cell or cell in PROSE
