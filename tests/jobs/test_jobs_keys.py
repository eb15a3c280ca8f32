"""An idempotency key stands for one job, also where a dedupe key has answered it and two requests come at once."""

import asyncio

import asyncpg
import pytest

from orchestrator.jobs.queue import enqueue

pytest_plugins = ["support.job_servers"]
HANDLERS = """
from orchestrator.jobs import job

@job("nobody")
async def nobody(ctx, payload: dict):
    pass
"""


@pytest.fixture
async def migrated(orchestrator, database_url):
    assert (await orchestrator("migrate", env={"DATABASE_URL": database_url})).returncode == 0
    connections = [await asyncpg.connect(database_url) for _ in range(2)]
    yield connections
    for one in connections:
        one.terminate()


async def test_two_requests_with_one_key_are_one_job_though_the_job_that_answered_the_first_has_ended(
    migrated, registry, wait_until
):
    one, other = migrated
    there = await enqueue(one, "nobody", registry=registry, dedupe_key="d")
    keys = {"registry": registry, "dedupe_key": "d", "idempotency_key": "k"}
    async with one.transaction():
        assert await enqueue(one, "nobody", **keys) == there.__class__(there.id, "queued", created=False)
        # The job ends before the other request, which comes again before the first one is answered.
        ended = "UPDATE orchestrator.jobs SET state = 'succeeded', finished_at = now() WHERE id = $1"
        await other.execute(ended, there.id)
        again = asyncio.create_task(enqueue(other, "nobody", **keys))
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = $1"
        await wait_until(lambda: _is_true(one, waits, other.get_server_pid(), again))
    assert (await again).id == there.id
    assert await one.fetchval("SELECT count(*) FROM orchestrator.jobs") == 1
    # What was only a lock is gone.
    new = await enqueue(one, "nobody", registry=registry, dedupe_key="e", idempotency_key="l")
    assert new.created
    assert await one.fetch("SELECT key, job_id FROM orchestrator.idempotency_keys") == [("k", there.id)]
    assert (await enqueue(other, "nobody", registry=registry, dedupe_key="e", idempotency_key="l")).id == new.id


async def _is_true(connection, text, pid, task):
    return task.done() or await connection.fetchval(text, pid)
