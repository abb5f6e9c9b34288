"""What `trio_hyperpool.testing` offers to the suites of others."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_hyperpool import Pool, open_pool
from trio_hyperpool._config import PoolOptions
from trio_hyperpool.testing import FakeConnector, Gate, assert_at_rest


async def test_the_fixture_hyper_pool_is_a_pool_over_a_new_database(
    hyper_pool: Pool[Any],
) -> None:
    await hyper_pool.execute("CREATE TABLE t (i int)")
    assert await hyper_pool.execute_command("INSERT INTO t VALUES (1), (2)") == 2
    assert await hyper_pool.fetch_value("SELECT sum(i) FROM t") == 3


class TestWithOptions:
    """The options of the fixture can be overridden."""

    @pytest.fixture
    def hyper_pool_options(self) -> PoolOptions:
        return {"max_size": 2}

    async def test_the_pool_has_them(self, hyper_pool: Pool[Any]) -> None:
        assert hyper_pool.config.max_size == 2


async def test_a_pool_with_nothing_out_is_at_rest() -> None:
    async with open_pool(connector=FakeConnector()) as pool:
        await assert_at_rest(pool)
        async with pool.lease():
            pass
        await assert_at_rest(pool)


async def test_a_pool_with_a_lease_out_is_not_at_rest(autojump_clock: object) -> None:
    async with open_pool(connector=FakeConnector()) as pool, pool.lease():
        with pytest.raises(AssertionError, match=r"held by .* taken at .*test_testing"):
            await assert_at_rest(pool)


async def test_a_pool_that_does_not_finish_cleaning_is_not_at_rest(
    autojump_clock: object,
) -> None:
    connector = FakeConnector(clean=Gate.never())
    async with open_pool(connector=connector, recycle_timeout=60) as pool:
        async with pool.lease() as connection:
            connection.begin()
        with pytest.raises(AssertionError, match="busy after 5 s"):
            await assert_at_rest(pool)
        await trio.sleep(60)
        await assert_at_rest(pool)


USES_HYPERD = """
    def test_it(hyperd):
        assert hyperd.endpoint
"""


def test_without_a_hyperd_its_fixture_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERD_PATH", str(pytester.path / "nowhere"))
    pytester.makeconftest('pytest_plugins = ["trio_hyperpool.testing"]')
    pytester.makepyfile(USES_HYPERD)
    outcome = pytester.runpytest_subprocess("-rs", "-p", "no:cacheprovider")
    outcome.assert_outcomes(skipped=1)
    outcome.stdout.fnmatch_lines(["SKIPPED*HYPERD_PATH=*nowhere*"])


def test_a_hyperd_that_does_not_start_is_an_error_of_its_fixture(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = pytester.path / "hyperd"
    program.write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setenv("HYPERD_PATH", str(program))
    pytester.makeconftest('pytest_plugins = ["trio_hyperpool.testing"]')
    pytester.makepyfile(USES_HYPERD)
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(
        ["*HyperdError: hyperd did not start*", "*no licence*"]
    )


@pytest.mark.slow
def test_an_application_uses_the_plug_in_by_its_name(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["trio_hyperpool.testing"]')
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.trio
        async def test_rows(hyper_pool):
            assert await hyper_pool.fetch_value("SELECT 1") == 1

        @pytest.mark.trio
        async def test_a_lease_left_behind(hyper_pool):
            await hyper_pool.lease().__aenter__()
        """
    )
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=1, failed=1)
    outcome.stdout.fnmatch_lines(["*AssertionError: the pool is not at rest*"])
