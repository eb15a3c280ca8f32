"""A connection that was dropped in silence holds up nobody who gives it back."""

import asyncio
import time

from support.silent_proxy import SilentProxy

from orchestrator import dsn as dsns
from orchestrator.database.connect import open_pool


async def test_a_task_that_is_cancelled_on_a_silent_connection_ends_at_once(database_url, server):
    proxy = SilentProxy(lambda: asyncio.open_connection(server.host, server.port))
    await proxy.start()
    dsn = dsns.parse(proxy.dsn(database_url))
    pool = await open_pool(dsn, kind="ours", max_size=1, application_name="test")
    started = asyncio.Event()

    async def work():
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 1")
            proxy.drop()
            started.set()
            await connection.fetchval("SELECT 2")

    task = asyncio.create_task(work())
    await started.wait()
    await asyncio.sleep(0)
    began = time.monotonic()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=8)
    assert done
    assert task.cancelled()
    assert time.monotonic() - began < 4
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT 3") == 3
    pool.terminate()
    await proxy.close()
