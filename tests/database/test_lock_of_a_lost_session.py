"""A session of ours that was lost on our side alone is ended before its lock is waited for."""

import asyncpg
import pytest

from orchestrator import dsn as dsns
from orchestrator.database.connect import connect_once
from orchestrator.database.lock import migration_lock
from orchestrator.lifecycle import Lifecycle


async def test_the_lock_of_an_earlier_session_of_this_start_is_not_waited_for(database_url):
    dsn, held = dsns.parse(database_url), []
    life = Lifecycle(now=lambda: 0.0, monotonic=lambda: 0.0)
    first, second = [await connect_once(dsn, timeout_s=5, application_name="test", kind="migration") for _ in range(2)]
    lost = migration_lock(first, life, timeout_s=5, held=held)
    await lost.__aenter__()
    assert len(held) == 1
    async with migration_lock(second, life, timeout_s=5, held=held):
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await first.execute("SELECT 1")
    await lost.__aexit__(None, None, None)
    first.terminate()
    await second.close()
