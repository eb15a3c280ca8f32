"""A commit that waits for a lost standby is given up here, and ends at the server too."""

import asyncio

import asyncpg
import pytest

from orchestrator import dsn as dsns
from orchestrator.database.connect import connect_once
from orchestrator.embedded.server import embedded_postgres

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def test_no_session_stays_at_the_server_for_a_commit_that_was_given_up(tmp_path, wait_until):
    async with embedded_postgres(tmp_path / "pg", lambda *_, **__: None, durable=False) as server:
        watching = await asyncpg.connect(server.dsn)
        await watching.execute("CREATE TABLE public.t ()")
        await watching.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await watching.execute("SELECT pg_reload_conf()")
        await wait_until(lambda: watching.fetchval("SHOW synchronous_standby_names"))
        for _ in range(3):
            connection = await connect_once(dsns.parse(server.dsn), application_name="test")
            await connection.execute("SET synchronous_commit = on")
            task = asyncio.create_task(connection.execute("INSERT INTO public.t DEFAULT VALUES"))
            await wait_until(lambda: watching.fetchval(WAITING))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            connection.terminate()
        await wait_until(lambda: watching.fetchval(f"SELECT ({WAITING}) = 0"))
        await watching.close()
