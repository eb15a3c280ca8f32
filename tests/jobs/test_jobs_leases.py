"""A living worker never loses its jobs, and no job runs twice at once: each interleaving is made to happen.

On real processes. A pause in a test is the outage itself, or the time that a lock is held; nothing else is slept for.
"""

import asyncio
import contextlib
import os
import signal
import time

import asyncpg
import pytest

from orchestrator.jobs.queue import NewJob, enqueue, enqueue_many
from orchestrator.jobs.schedules import Schedule, put_schedule, trigger_schedule

pytest_plugins = ["support.job_servers"]

HANDLERS = """
import asyncio, os, time
import msgspec
from orchestrator.jobs import job

class Nap(msgspec.Struct):
    seconds: float = 0.0

@job("nap")
async def nap(ctx, payload: Nap):
    await asyncio.sleep(payload.seconds)

@job("block")
async def block(ctx, payload: Nap):
    time.sleep(payload.seconds)

def told(what, ctx):
    with open("runs.txt", "a") as file:
        file.write(f"{time.time()} {what} {ctx.name} {ctx.job_id} {ctx.attempt} {os.getpid()}\\n")

async def recorded(ctx, payload: Nap):
    told("begin", ctx)
    try:
        await asyncio.sleep(payload.seconds)
    finally:
        await asyncio.sleep(0.2)  # as a handler that cleans up
        told("end", ctx)

job("recorded")(recorded)

@job("alone", concurrency=1)
async def alone(ctx, payload: Nap):
    await recorded(ctx, payload)

@job("tick")
async def tick(ctx, payload):
    pass
"""

LEASE_S = 3.0
LEASE = {"JOBS_LEASE": f"{LEASE_S:g}s"}


@pytest.fixture
async def holder(database_url):
    """A session of somebody else's, for locks; what it holds is let go at the end."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close(timeout=5)


@contextlib.asynccontextmanager
async def held(connection, *statements):
    """Statements whose locks are held while the block runs."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for statement, *arguments in statements:
            await connection.fetch(statement, *arguments)
        yield
    finally:
        await transaction.rollback()


async def test_what_has_ended_and_is_not_written_yet_is_still_its_worker_s(
    serve, database_url, look, registry, holder, wait_until
):
    async with serve(database_url, **LEASE), serve(database_url, **LEASE):
        await look.workers(2)
        made = await enqueue_many(look.connection, [NewJob("nap", {"seconds": 1.0})] * 30, registry=registry)
        for one in made:
            await look.until(one.id, "running")
        async with held(holder, ("LOCK TABLE orchestrator.job_attempts IN ACCESS EXCLUSIVE MODE",)):
            await asyncio.sleep(2.5 * LEASE_S)
            states = await look.connection.fetch(
                "SELECT DISTINCT state FROM orchestrator.jobs WHERE id = ANY($1)", [one.id for one in made]
            )
            assert [row[0] for row in states] == ["running"]
        for one in made:
            await look.until(one.id, "succeeded")
            assert await look.outcomes(one.id) == ["succeeded"]


async def test_handlers_that_block_their_loop_one_after_the_other_lose_nothing(serve, database_url, look, registry):
    async with serve(database_url, **LEASE) as a, serve(database_url, **LEASE) as b:
        await look.workers(2)
        made = await enqueue_many(look.connection, [NewJob("block", {"seconds": 1.0})] * 16, registry=registry)
        for one in made:
            await look.until(one.id, "succeeded", timeout_s=60)
            assert await look.outcomes(one.id) == ["succeeded"]
        assert not [e for run in (a, b) for e in run.events if e["event"] in {"job.taken_over", "job.lost"}]


async def test_locked_rows_are_passed_by_and_are_no_proof_of_anything(serve, database_url, look, registry, holder):
    async with serve(database_url, JOBS_CONCURRENCY="3", **LEASE), serve(database_url, JOBS_CONCURRENCY="3", **LEASE):
        await look.workers(2)
        locked = await enqueue(look.connection, "nap", {"seconds": 1.0}, registry=registry)
        worker = (await look.until(locked.id, "running"))["worker"]
        async with held(
            holder,
            ("SELECT FROM orchestrator.jobs WHERE id = $1 FOR UPDATE", locked.id),
            ("SELECT FROM orchestrator.workers WHERE id = $1 FOR UPDATE", worker),
        ):
            began = time.monotonic()
            while time.monotonic() - began < 3 * LEASE_S:
                # Whoever can renew goes on working; nobody takes anything from who cannot.
                other = await enqueue(look.connection, "nap", registry=registry)
                await look.until(other.id, "succeeded")
                assert (await look.job(locked.id))["worker"] == worker
                assert (await look.job(locked.id))["state"] == "running"
        await look.until(locked.id, "succeeded")
        assert await look.outcomes(locked.id) == ["succeeded"]


async def test_the_outcome_of_a_locked_job_does_not_hold_up_the_others(serve, database_url, look, registry, holder):
    async with serve(database_url, **LEASE):
        first, *others = await enqueue_many(look.connection, [NewJob("nap", {"seconds": 0.5})] * 10, registry=registry)
        await look.until(first.id, "running")
        async with held(holder, ("SELECT FROM orchestrator.jobs WHERE id = $1 FOR UPDATE", first.id)):
            for one in others:
                await look.until(one.id, "succeeded", timeout_s=5)
        await look.until(first.id, "succeeded", timeout_s=5)


async def test_a_new_replica_takes_nothing_from_a_worker_that_was_cut_off_together_with_all_others(
    serve, database_url, look, registry, tcp_proxy
):
    lease = {"JOBS_LEASE": "6s"}
    async with serve(tcp_proxy.dsn(database_url), **lease):
        await look.workers(1)
        made = await enqueue_many(look.connection, [NewJob("nap", {"seconds": 25})] * 5, registry=registry)
        for one in made:
            await look.until(one.id, "running")
        await tcp_proxy.refuse()
        await tcp_proxy.cut()
        await asyncio.sleep(7)
        async with serve(database_url, **lease) as fresh:
            await tcp_proxy.accept()
            for one in made:
                await look.until(one.id, "succeeded", "failed", "queued", timeout_s=40)
                assert await look.outcomes(one.id) == ["succeeded"]
            assert not [event for event in fresh.events if event["event"] == "job.taken_over"]


async def test_a_connection_that_is_dropped_in_silence_is_replaced_before_the_lease_is_over(
    serve, database_url, look, registry, silent_proxy, wait_until
):
    lease = {"JOBS_LEASE": "6s"}
    async with serve(silent_proxy.dsn(database_url), **lease) as dropped:
        await look.workers(1)
        running = await enqueue(look.connection, "nap", {"seconds": 15}, registry=registry)
        worker = (await look.until(running.id, "running"))["worker"]
        async with serve(database_url, JOBS_CONCURRENCY="1", **lease) as other:
            await look.workers(2)
            busy = await enqueue(look.connection, "nap", {"seconds": 15}, priority=9, registry=registry)
            await look.until(busy.id, "running")
            silent_proxy.drop()
            since = await look.connection.fetchval("SELECT clock_timestamp()")

            async def renewed():
                return await look.connection.fetchval(
                    "SELECT seen_at > $2 FROM orchestrator.workers WHERE id = $1", worker, since
                )

            await wait_until(renewed, 5, "the lease is renewed on a new connection")
            made = await enqueue_many(look.connection, [NewJob("nap", {"seconds": 0.1})] * 5, registry=registry)
            for one in (*made, running, busy):
                await look.until(one.id, "succeeded", timeout_s=30)
                assert await look.outcomes(one.id) == ["succeeded"]
            taken = [e for run in (dropped, other) for e in run.events if e["event"] in {"job.taken_over", "job.lost"}]
            assert not taken


async def test_a_claim_whose_answer_is_lost_is_given_back_without_an_attempt(
    serve, database_url, look, registry, holder, silent_proxy, wait_until
):
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orchestrator worker'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with serve(silent_proxy.dsn(database_url), JOBS_LEASE="60s") as run:
        before = await enqueue(look.connection, "tick", registry=registry)
        await look.until(before.id, "succeeded")
        async with held(holder, ("LOCK TABLE orchestrator.server_runs IN ACCESS EXCLUSIVE MODE",)):
            made = await enqueue(look.connection, "nap", {"seconds": 0.1}, registry=registry)
            await wait_until(lambda: look.connection.fetchval(waiting), what="the claim has arrived, and waits")
            await wait_until(lambda: look.connection.fetchval(waiting), what="the claim has arrived, and waits")
            silent_proxy.hold_replies()
        await look.until(made.id, "running", timeout_s=5)
        silent_proxy.cut()
        row = await look.until(made.id, "succeeded", timeout_s=20)
        assert (row["attempt"], await look.outcomes(made.id)) == (1, ["succeeded"])
        await run.event("jobs.claims_given_back", jobs=[made.id])


async def test_what_a_crash_of_the_server_undoes_never_runs_beside_itself(
    orchestrator, tmp_path, registry, look_by, wait_until
):
    from orchestrator.embedded.server import embedded_postgres

    # Nothing but a commit that waits writes the log: claims do not, so a crash undoes them.
    settings = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    env = {"JOBS": "handlers", "JOBS_LEASE": "4s", "SHUTDOWN_TIMEOUT": "4s"}
    async with (
        embedded_postgres(tmp_path / "pg", lambda *_, **__: None, settings=settings) as server,
        orchestrator.running("serve", env={**env, "DATABASE_URL": server.dsn}) as a,
        orchestrator.running("serve", env={**env, "DATABASE_URL": server.dsn}) as b,
    ):
        await a.phase("ready")
        await b.phase("ready")
        connection = await asyncpg.connect(server.dsn)
        await look_by(connection).workers(2)
        jobs = [NewJob("recorded", {"seconds": 6})] * 6 + [NewJob("alone", {"seconds": 1})] * 3
        made = await enqueue_many(connection, jobs, registry=registry)
        running = "SELECT count(*) FROM orchestrator.jobs WHERE state = 'running' AND id = ANY($1)"
        await wait_until(lambda: connection.fetchval(f"{running} HAVING count(*) = 7", [one.id for one in made]))
        os.kill(connection.get_server_pid(), signal.SIGKILL)

        async def again():
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                return await asyncpg.connect(server.dsn, timeout=2)

        await wait_until(connection.is_closed, what="the session has ended")
        connection = await wait_until(again, 20)
        for one in made:
            await look_by(connection).until(one.id, "succeeded", "failed", timeout_s=60)
            assert await look_by(connection).outcomes(one.id) == ["succeeded"]
        await connection.close()
    lines = [line.split() for line in (tmp_path / "runs.txt").read_text().splitlines()]
    lines.sort(key=lambda line: float(line[0]))
    begun = [line[3] for line in lines if line[1] == "begin"]
    assert len(begun) > len(set(begun)), "the crash has undone a claim: some job began twice"
    open_runs: dict[str, int] = {}
    alone = 0
    for _, what, name, job_id, *_ in lines:
        step = 1 if what == "begin" else -1
        open_runs[job_id] = open_runs.get(job_id, 0) + step
        assert open_runs[job_id] <= 1, lines
        if name == "alone":
            alone += step
            assert alone <= 1, lines


async def test_a_locked_schedule_holds_up_neither_others_nor_a_lease(
    serve, database_url, look, registry, holder, wait_until
):
    connection = look.connection
    async with serve(database_url, **LEASE) as a, serve(database_url, **LEASE) as b:
        await look.workers(2)
        running = await enqueue(connection, "nap", {"seconds": 2.5 * LEASE_S}, registry=registry)
        for number in range(400):
            await put_schedule(connection, Schedule(f"s{number}", "tick", "0 0 1 1 *"), registry=registry)
        async with held(holder, ("SELECT FROM orchestrator.schedules WHERE name = 's0' FOR UPDATE",)):
            await connection.execute(
                "UPDATE orchestrator.schedules SET next_run_at = now() WHERE source = 'api' AND name <> 's0'"
            )
            await connection.execute("SELECT pg_notify('orchestrator_schedules', '')")
            fired = "SELECT count(*) = 399 FROM orchestrator.jobs WHERE schedule LIKE 's%' AND state = 'succeeded'"
            await wait_until(lambda: connection.fetchval(fired), 30, "all but the locked one have fired")
            await look.until(running.id, "succeeded", timeout_s=30)
        assert await look.outcomes(running.id) == ["succeeded"]
        assert not [e for run in (a, b) for e in run.events if e["event"] in {"job.taken_over", "job.lost"}]


async def test_triggers_and_firing_lock_in_one_order(serve, database_url, look, registry, holder, wait_until):
    connection = look.connection
    async with serve(database_url, **LEASE):
        await look.workers(1)
        await put_schedule(connection, Schedule("often", "tick", "0 0 1 1 *"), registry=registry)
        for _ in range(10):
            async with holder.transaction():
                # In the middle of a trigger it falls due: whoever fires it passes it by.
                made = await trigger_schedule(holder, "often", registry=registry)
                await connection.execute("SELECT pg_notify('orchestrator_schedules', '')")
                second = await asyncpg.connect(database_url)
                try:
                    await second.execute("SET lock_timeout = '50ms'")
                    with pytest.raises(asyncpg.LockNotAvailableError):
                        await trigger_schedule(second, "often", registry=registry)
                finally:
                    await second.close()
            await look.until(made.id, "succeeded")
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.fetchval(deadlocks) == 0


async def test_a_due_row_that_is_locked_makes_nobody_spin(serve, database_url, look, registry, holder, wait_until):
    async with serve(database_url, **LEASE):
        await look.workers(1)
        made = await enqueue(look.connection, "tick", delay_s=1.0, registry=registry)
        async with held(holder, ("SELECT FROM orchestrator.jobs WHERE id = $1 FOR UPDATE", made.id)):
            due = "SELECT run_at < clock_timestamp() - interval '2 seconds' FROM orchestrator.jobs WHERE id = $1"
            await wait_until(lambda: look.connection.fetchval(due, made.id))
            count = (
                "SELECT xact_commit + xact_rollback FROM pg_stat_database, pg_stat_clear_snapshot()"
                " WHERE datname = current_database()"
            )
            before = await look.connection.fetchval(count)
            await asyncio.sleep(5)
            assert await look.connection.fetchval(count) - before < 250
        await look.until(made.id, "succeeded", timeout_s=5)


async def test_every_connection_of_the_jobs_notices_a_peer_that_vanished_within_a_third_of_the_lease(database_url):
    import socket

    from orchestrator import dsn
    from orchestrator.database.connect import open_pool

    pool = await open_pool(
        dsn.parse(database_url),
        kind="handlers",
        max_size=1,
        application_name="test",
        silence_s=9.0,
    )
    async with pool.acquire() as connection:
        raw = connection._con._transport.get_extra_info("socket")
        if raw.family == socket.AF_UNIX:
            pytest.skip("a Unix socket has no silence")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
        idle, every, count = (
            raw.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * count <= 9
    await pool.close()
