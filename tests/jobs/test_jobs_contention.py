"""Keys, batches, deployments and pools: who meets whom, and that nobody waits for a stranger."""

import asyncio
import time

import aiohttp
import asyncpg
import pytest

from orchestrator.jobs.queue import NewJob, enqueue, enqueue_many

pytest_plugins = ["support.job_servers"]

HANDLERS = """
import asyncio, time
import msgspec
from orchestrator.jobs import job

class Nap(msgspec.Struct):
    seconds: float = 0.0

@job("nap")
async def nap(ctx, payload: Nap):
    await asyncio.sleep(payload.seconds)

@job("hold_thread")
async def hold_thread(ctx, payload: Nap):
    await asyncio.to_thread(time.sleep, payload.seconds)

@job("nested", timeout_s=16)
async def nested(ctx, payload):
    async with ctx.pool.acquire():
        await asyncio.sleep(1)
        async with ctx.pool.acquire():
            pass
"""

# The same handlers in a later version of the project.
OLD = """
import msgspec
from orchestrator.jobs import job

class Old(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0

@job("evolves")
async def evolves(ctx, payload: Old):
    return "old"
"""
NEW = OLD.replace("a: int = 0", "a: int = 0\n    b: str = ''").replace('"old"', '"new"')


async def test_an_idempotency_key_that_a_dedupe_key_answered_is_kept(serve, database_url, look, registry):
    connection = look.connection
    async with serve(database_url):
        first = await enqueue(connection, "nap", dedupe_key="d", delay_s=60, registry=registry)
        again = {"dedupe_key": "d", "idempotency_key": "k", "registry": registry}
        assert await enqueue(connection, "nap", **again) == first.__class__(first.id, "scheduled", created=False)
        await connection.execute("UPDATE orchestrator.jobs SET run_at = now() WHERE id = $1", first.id)
        await connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
        await look.until(first.id, "succeeded")
        # The dedupe key is free by now; the request is still the one that was answered by that job.
        assert (await enqueue(connection, "nap", **again)).id == first.id
        with pytest.raises(Exception, match="idempotency key was used before"):
            await enqueue(connection, "nap", {"seconds": 1}, **again)
        await connection.execute("DELETE FROM orchestrator.jobs WHERE id = $1", first.id)
        assert (await enqueue(connection, "nap", **again)).created


async def test_batches_with_the_same_keys_in_another_order_do_not_block_each_other_for_good(
    serve, database_url, look, registry
):
    async with serve(database_url, JOBS_CONCURRENCY="1"):
        keys = [f"k{number}" for number in range(200)]
        connections = [await asyncpg.connect(database_url) for _ in range(4)]
        try:
            for round_ in range(5):
                jobs = [NewJob("nap", dedupe_key=f"{round_} {key}", delay_s=600) for key in keys]
                orders = [jobs, jobs[::-1], jobs[100:] + jobs[:100], jobs[::2] + jobs[1::2]]
                answers = await asyncio.gather(
                    *(
                        enqueue_many(connection, order, registry=registry)
                        for connection, order in zip(connections, orders, strict=True)
                    )
                )
                assert sum(one.created for answer in answers for one in answer) == len(keys)
        finally:
            for connection in connections:
                await connection.close()


async def test_requests_that_wait_for_a_held_key_leave_room_for_others_and_are_answered(
    serve, database_url, look, registry
):
    async with serve(database_url) as run, aiohttp.ClientSession(run.url) as session:
        holder = await asyncpg.connect(database_url)
        transaction = holder.transaction()
        await transaction.start()
        await enqueue(holder, "nap", idempotency_key="held", registry=registry)

        async def send():
            body = {"name": "nap", "idempotency_key": "held"}
            async with session.post("/api/jobs", json=body) as response:
                return response.status, response.headers.get("Retry-After")

        sending = [asyncio.create_task(send()) for _ in range(20)]
        await asyncio.sleep(0.5)
        slowest = 0.0
        while not all(task.done() for task in sending):
            began = time.monotonic()
            assert (await run.get("/api/schedules")).status == 200
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.1)
        assert slowest < 1.5
        assert {await task for task in sending} == {(503, "1")}
        await transaction.rollback()
        await holder.close()
        assert (await send())[0] == 202


async def test_all_of_a_handler_s_jobs_are_cancelled_in_batches(serve, database_url, look, registry):
    count = 20_000
    async with serve(database_url) as run, aiohttp.ClientSession(run.url) as session:
        await look.connection.execute(
            "INSERT INTO orchestrator.jobs (name, state, run_at)"
            f" SELECT 'nap', 'scheduled', now() + interval '1 day' FROM generate_series(1, {count})"
        )
        async with session.post("/api/jobs/cancel-by-type", json={"jobType": "nap"}) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["cancelledCount"] == count


async def test_a_payload_that_an_old_replica_cannot_read_is_left_to_a_newer_one(
    orchestrator, database_url, look, tmp_path, wait_until
):
    (tmp_path / "old_jobs.py").write_text(OLD)
    (tmp_path / "new_jobs.py").write_text(NEW)
    env = {"DATABASE_URL": database_url, "JOBS_LEASE": "4s", "SHUTDOWN_TIMEOUT": "4s"}
    add = (
        "INSERT INTO orchestrator.jobs (name, state, payload) VALUES ('evolves', 'queued', '{\"b\": \"x\"}')"
        " RETURNING id"
    )
    async with orchestrator.running("serve", env={**env, "JOBS": "old_jobs"}) as old:
        await old.phase("ready")
        await look.workers(1)
        # Nobody could: it has failed, and says why.
        alone = await look.connection.fetchval(add)
        await look.connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
        await look.until(alone, "failed")
        async with orchestrator.running("serve", env={**env, "JOBS": "new_jobs", "JOBS_CONCURRENCY": "1"}) as new:
            await new.phase("ready")
            await look.workers(2)
            made = [await look.connection.fetchval(add) for _ in range(20)]
            await look.connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
            for job_id in made:
                row = await look.until(job_id, "succeeded", "failed")
                assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, '"new"')
            await old.event("job.left_to_others")
            # And the slot of a schedule whose payload only the newer one takes.
            await look.connection.execute(
                "INSERT INTO orchestrator.schedules (name, job, cron, payload, source, next_run_at)"
                " SELECT 's' || n, 'evolves', '0 0 1 1 *', '{\"b\": \"x\"}', 'api', now() FROM generate_series(1, 20) n"
            )
            await look.connection.execute("SELECT pg_notify('orchestrator_schedules', '')")
            fired = "SELECT count(*) = 20 FROM orchestrator.jobs WHERE schedule LIKE 's%' AND state = 'succeeded'"
            await wait_until(lambda: look.connection.fetchval(fired), 20, "all have fired")
            assert not [event for event in old.events if event["event"] == "schedule.unusable"]


async def test_threads_and_connections_that_run_out_are_told(serve, database_url, look, registry):
    async with serve(database_url, JOBS_CONCURRENCY="60") as run:
        made = await enqueue_many(look.connection, [NewJob("hold_thread", {"seconds": 2})] * 40, registry=registry)
        await run.event("jobs.threads_exhausted")
        for one in made:
            await look.until(one.id, "succeeded")
        await enqueue_many(look.connection, [NewJob("nested")] * 12, registry=registry)
        event = await run.event("jobs.pool_exhausted", timeout_s=30)
        assert event["jobs"] == ["nested"]


async def test_a_delay_counts_from_the_call(database_url, look, registry, serve):
    async with serve(database_url), look.connection.transaction():
        await look.connection.execute("SELECT pg_sleep(2)")
        made = await enqueue(look.connection, "nap", delay_s=60, registry=registry)
        left = "SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM orchestrator.jobs WHERE id = $1"
        assert await look.connection.fetchval(left, made.id) > 59.5


@pytest.mark.parametrize("backoff", ["5", float("inf"), float("nan"), -1.0, True])
def test_a_back_off_that_cannot_work_is_refused_when_it_is_declared(backoff):
    from orchestrator.jobs import Backoff, job
    from orchestrator.jobs.errors import HandlerError

    async def handler(ctx, payload):
        """Does nothing."""

    for given in (backoff, Backoff(first_s=backoff), Backoff(most_s=backoff), Backoff(factor=backoff)):
        with pytest.raises(HandlerError, match="back-off"):
            job("never_declared", backoff=given)(handler)
