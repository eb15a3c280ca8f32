"""A role of the database with no rights can do nothing to the jobs: by a notification, or by a lock."""

import asyncpg
import pytest

from orchestrator.jobs.queue import NewJob, cancel, enqueue, enqueue_many

pytest_plugins = ["support.job_servers"]

HANDLERS = """
import asyncio
from orchestrator.jobs import job

@job("wait")
async def wait(ctx, payload):
    await asyncio.sleep(600)

@job("tick")
async def tick(ctx, payload):
    pass

@job("one_at_a_time", concurrency=1)
async def one_at_a_time(ctx, payload):
    pass
"""


@pytest.fixture
async def stranger(database_url, look, server):
    """A session of a role that may connect, and nothing else."""
    role = f"stranger_{database_url.rpartition('/')[2][:40]}".replace("?", "_")
    await look.connection.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'nothing-to-lose'")
    connection = await asyncpg.connect(database_url, user=role, password="nothing-to-lose")
    yield connection
    await connection.close()
    await look.connection.execute(f'DROP ROLE "{role}"')


async def test_a_hint_to_cancel_that_a_stranger_sends_cancels_nothing_and_ends_nothing(
    serve, database_url, look, registry, stranger
):
    async with serve(database_url) as run:
        running = await enqueue_many(look.connection, [NewJob("wait")] * 2, registry=registry)
        for one in running:
            await look.until(one.id, "running")
        for payload in (str(running[0].id), "9" * 7000, "x", ""):
            await stranger.execute("SELECT pg_notify('orchestrator_cancel', $1)", payload)
        # It still hears, and it has looked: what is cancelled by right ends, by a hint after those.
        await cancel(look.connection, running[1].id)
        await look.until(running[1].id, "cancelled", timeout_s=5)
        tick = await enqueue(look.connection, "tick", registry=registry)
        await look.until(tick.id, "succeeded", timeout_s=5)
        assert (await look.job(running[0].id))["state"] == "running"
        assert not [event for event in run.events if event["event"] == "jobs.worker_restarted"]


async def test_no_advisory_lock_holds_up_a_handler_with_a_limit(serve, database_url, look, registry, stranger):
    # Each advisory lock that the claims took at any time, and all that a stranger could guess.
    for name in ("orchestrator.jobs one_at_a_time", "one_at_a_time"):
        await stranger.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", name)
    async with serve(database_url):
        for _ in range(3):
            made = await enqueue(look.connection, "one_at_a_time", registry=registry)
            await look.until(made.id, "succeeded", timeout_s=5)
        advisory = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        assert await look.connection.fetchval(f"{advisory} AND pid <> $1", stranger.get_server_pid()) == 0
