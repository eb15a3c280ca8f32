"""The job server's promises, on real processes: killed, stopped, cut off, blocked, flooded.

JOBS_TEST_OUTAGE_S is how long the database is away in the test of an outage (default 3; the promise is made for 40).
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from orchestrator.jobs.queue import NewJob, cancel, enqueue, enqueue_many
from orchestrator.jobs.schedules import Schedule, put_schedule

pytest_plugins = ["support.job_servers"]

OUTAGE_S = float(os.environ.get("JOBS_TEST_OUTAGE_S", "3"))

# What the processes run; the test enqueues by the same declarations.
HANDLERS = """
import asyncio, sys, time
import msgspec
from orchestrator.jobs import Backoff, Context, job

class Nap(msgspec.Struct):
    seconds: float = 0.0

@job("nap")
async def nap(ctx: Context, payload: Nap):
    await asyncio.sleep(payload.seconds)

@job("hang_first", retries=1)
async def hang_first(ctx, payload):
    if ctx.attempt == 1:
        await asyncio.sleep(600)

@job("hang", retries=1)
async def hang(ctx, payload):
    await asyncio.sleep(600)

@job("ignore")
async def ignore(ctx, payload):
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@job("block", retries=1)
async def block(ctx, payload: Nap):
    time.sleep(payload.seconds)

@job("block_thread")
async def block_thread(ctx, payload: Nap):
    await asyncio.to_thread(time.sleep, payload.seconds)

@job("stray")
async def stray(ctx, payload):
    async def leave():
        sys.exit(3)
    asyncio.create_task(leave())
    await asyncio.sleep(0.05)
    raise SystemExit(4)

@job("flood")
async def flood(ctx, payload):
    for n in range(100_000):
        ctx.log.warning("water", n=n)

@job("cancel_all")
async def cancel_all(ctx, payload):
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)

@job("tick")
async def tick(ctx, payload):
    pass
"""


async def test_a_killed_worker_s_job_is_taken_over_within_the_lease_and_its_attempts_are_counted(
    serve, database_url, look, registry
):
    async with serve(database_url) as a, serve(database_url) as b, serve(database_url) as c:
        servers = {run.pid: run for run in (a, b, c)}
        await look.workers(3)
        # Where it runs beside the other one and its end is not written yet, it is killed twice, too: a third attempt.
        once = await enqueue(look.connection, "hang_first", max_attempts=3, registry=registry)
        twice = await enqueue(look.connection, "hang", registry=registry)
        await look.until(once.id, "running")
        for attempt in (1, 2):
            await look.until(twice.id, "running", attempt=attempt)
            pid = await look.pid_of_runner(twice.id)
            killed_at = datetime.now(UTC)
            servers[pid].send_signal(signal.SIGKILL)
            await servers[pid].wait()
            row = await look.until(twice.id, *(("running",) if attempt == 1 else ("failed",)), attempt=2)
            moved_at = row["started_at"] if attempt == 1 else row["finished_at"]
            assert moved_at - killed_at < timedelta(seconds=3)  # a lease of 2 s, and 1 s
        assert json.loads(row["error"])["type"] == "WorkerLost"
        assert await look.outcomes(twice.id) == ["lost", "lost"]
        if (await look.job(once.id))["attempt"] == 1:  # nobody killed the one that runs it
            await cancel(look.connection, once.id)
        row = await look.until(once.id, "succeeded", "cancelled")
        assert row["attempt"] in {"succeeded": (2, 3), "cancelled": (1,)}[row["state"]]
        assert [(await run.health())[0] for run in servers.values() if run.returncode is None] == [200]


async def test_a_job_longer_than_its_lease_is_not_run_twice(serve, database_url, look, registry):
    async with serve(database_url, JOBS_LEASE="700ms"), serve(database_url, JOBS_LEASE="700ms"):
        await look.workers(2)
        made = await enqueue(look.connection, "nap", {"seconds": 3}, registry=registry)
        row = await look.until(made.id, "succeeded")
        assert (row["attempt"], await look.outcomes(made.id)) == (1, ["succeeded"])


async def test_a_handler_that_blocks_harms_neither_health_nor_its_lease(serve, database_url, look, registry):
    async with serve(database_url, JOBS_LEASE="900ms") as a, serve(database_url, JOBS_LEASE="900ms") as b:
        await look.workers(2)
        made = await enqueue(look.connection, "block", {"seconds": 4}, registry=registry)
        await look.until(made.id, "running")
        pid = await look.pid_of_runner(made.id)
        blocked = a if a.pid == pid else b
        slowest = 0.0
        while (await look.job(made.id))["state"] == "running":
            began = time.monotonic()
            assert (await blocked.health())[0] == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1.5
        event = await blocked.event("jobs.loop_blocked")
        assert any("handlers.py" in line and "in block" in line for line in event["stack"])
        await blocked.event("jobs.loop_freed")
        assert await look.outcomes(made.id) == ["succeeded"]


async def test_base_exceptions_and_floods_leave_the_server_serving(serve, database_url, look, registry):
    async with serve(database_url) as run:
        jobs = [NewJob("stray"), NewJob("flood"), NewJob("nap")]
        stray, flood, nap = await enqueue_many(look.connection, jobs, registry=registry)
        assert (await look.until(stray.id, "failed"))["error"] is not None
        await look.until(flood.id, "succeeded")
        await look.until(nap.id, "succeeded")
        await run.event("jobs.stray_exit_ignored")
        later = await enqueue(look.connection, "nap", registry=registry)
        await look.until(later.id, "succeeded", timeout_s=3)
        assert (await run.health())[0] == 200
        assert await look.connection.fetchval("SELECT count(*) FROM orchestrator.job_logs") == 1001
    assert run.returncode == 0


async def test_a_handler_that_cancels_every_task_of_its_loop_stops_no_other_job(serve, database_url, look, registry):
    async with serve(database_url) as run:
        sleeping = await enqueue(look.connection, "hang_first", registry=registry)
        await look.until(sleeping.id, "running")
        made = await enqueue(look.connection, "cancel_all", registry=registry)
        await look.until(made.id, "failed")
        assert json.loads((await look.job(made.id))["error"])["type"].endswith("CancelledError")
        await run.event("jobs.worker_restarted")
        # Told by the workers that live, not by one that takes over what a silent one held.
        await look.until((await enqueue(look.connection, "tick", registry=registry)).id, "succeeded")
        await look.until(sleeping.id, "succeeded")
    assert run.returncode == 0


async def test_a_stop_loses_nothing_though_handlers_hang_block_and_hold_threads(serve, database_url, look, registry):
    async with serve(database_url, JOBS_CONCURRENCY="10", SHUTDOWN_TIMEOUT="3s") as run:
        thread = NewJob("block_thread", {"seconds": 60}, max_attempts=1, priority=1)
        jobs = [NewJob("hang_first", max_attempts=1)] * 12 + [thread]
        made = await enqueue_many(look.connection, jobs, registry=registry)
        await look.until(made[8].id, "running")
        await look.until(made[12].id, "running")
        blocks = await enqueue(look.connection, "block", {"seconds": 60}, priority=9, registry=registry)
        await cancel(look.connection, made[0].id)
        await look.until(blocks.id, "running")
        began = time.monotonic()
    assert run.returncode == 0
    assert time.monotonic() - began < 8
    ids = [one.id for one in (*made, blocks)]
    states = await look.connection.fetch(
        "SELECT state, count(*) FROM orchestrator.jobs WHERE id = ANY($1) GROUP BY 1 ORDER BY 1", ids
    )
    assert dict(states) == {"cancelled": 1, "queued": 13}
    # What never began would hang at its first attempt, and what blocks would block again.
    await look.connection.execute(
        "UPDATE orchestrator.jobs SET attempt = 1, max_attempts = 2 WHERE attempt = 0;"
        "UPDATE orchestrator.jobs SET payload = '{}' WHERE name LIKE 'block%'"
    )
    async with serve(database_url):
        for job_id in ids:
            await look.until(job_id, "succeeded", "cancelled")


@pytest.mark.parametrize("is_stalled", [False, True], ids=["database there", "database stalls"])
async def test_a_stop_is_in_time_whatever_is_in_flight(
    serve, database_url, look, registry, tcp_proxy, wait_until, is_stalled
):
    """A job that does not end, a body that does not come, a query that waits for a lock, open streams: exit 0."""
    heads = [
        b"POST /api/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n",
        b"GET /api/schedules HTTP/1.1\r\n",
        b"GET /api/events HTTP/1.1\r\n",
        b"GET /health/events HTTP/1.1\r\n",
    ]
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with serve(tcp_proxy.dsn(database_url), SHUTDOWN_TIMEOUT="6s") as run, contextlib.AsyncExitStack() as clients:
        job = await enqueue(look.connection, "ignore", registry=registry)
        await look.until(job.id, "running")
        async with look.connection.transaction():
            await look.connection.execute("LOCK TABLE orchestrator.schedules")
            for head in heads:
                _, writer = await asyncio.open_connection("127.0.0.1", run.port)
                clients.push_async_callback(writer.wait_closed)
                clients.callback(writer.close)
                writer.write(head + b"Host: localhost\r\n\r\n")
            await wait_until(lambda: look.connection.fetchval(waiting))
            if is_stalled:
                tcp_proxy.stall()
            began = time.monotonic()
            run.send_signal(signal.SIGTERM)
            assert await run.wait(timeout_s=10) == 0, run.output
            assert time.monotonic() - began < 6.5
    if not is_stalled:
        assert (await look.job(job.id))["state"] == "queued"


async def test_work_goes_on_by_itself_when_the_listener_is_terminated_or_the_database_was_away(
    serve, database_url, look, registry, tcp_proxy, admin, wait_until
):
    async with serve(tcp_proxy.dsn(database_url), JOBS_LEASE="2s") as run:
        await look.workers(1)
        listening = "SELECT pid FROM pg_stat_activity WHERE application_name = 'orchestrator worker'"
        (listener,) = await look.connection.fetch(listening)
        await look.connection.execute("SELECT pg_terminate_backend($1)", listener[0])

        async def listens_again():
            found = await look.connection.fetch(f"{listening} AND datname = current_database() AND state = 'idle'")
            return found and found[0] != listener

        await wait_until(listens_again)
        for _ in range(2):  # far below the 5 s of its polling: it hears again
            made = await enqueue(look.connection, "nap", registry=registry)
            await look.until(made.id, "succeeded", timeout_s=2)

        during = await enqueue(look.connection, "nap", {"seconds": OUTAGE_S / 2}, registry=registry)
        await look.until(during.id, "running")
        await tcp_proxy.refuse()
        await tcp_proxy.cut()
        waiting = await enqueue_many(look.connection, [NewJob("nap")] * 30, registry=registry)
        await asyncio.sleep(OUTAGE_S)  # the outage itself, not a wait for something
        await tcp_proxy.accept()
        for one in (during, *waiting):
            await look.until(one.id, "succeeded", timeout_s=10)
        assert await look.outcomes(during.id) == ["succeeded"]
        await run.event("jobs.connection_restored", purpose="maintenance")
        after = await enqueue(look.connection, "nap", registry=registry)
        await look.until(after.id, "succeeded", timeout_s=2)


async def test_work_goes_on_by_itself_when_the_server_crashes_and_restarts(
    serve, tmp_path, registry, look_by, wait_until
):
    from orchestrator.embedded.server import embedded_postgres

    async with (
        embedded_postgres(tmp_path / "pg", lambda *_, **__: None, durable=False) as server,
        serve(server.dsn) as run,
    ):
        connection = await asyncpg.connect(server.dsn)
        made = await enqueue(connection, "nap", {"seconds": 2}, registry=registry)
        await look_by(connection).until(made.id, "running")
        waits = await enqueue(connection, "nap", delay_s=1, registry=registry)
        await connection.fetch("CHECKPOINT")
        witness = await asyncpg.connect(server.dsn)
        # One backend that dies takes them all with it: the server recovers and starts again.
        os.kill(connection.get_server_pid(), signal.SIGKILL)
        await wait_until(witness.is_closed, what="the server has noticed, and ended every session")

        async def again():
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                return await asyncpg.connect(server.dsn, timeout=2)

        connection = await wait_until(again, 20)
        look = look_by(connection)
        for one in (made, waits):
            await look.until(one.id, "succeeded")
        after = await enqueue(connection, "nap", registry=registry)
        await look.until(after.id, "succeeded", timeout_s=5)
        assert await look.outcomes(made.id) == ["succeeded"]
        await connection.close()
        await run.until_health(200)


async def test_a_schedule_fires_once_over_three_servers(serve, database_url, look, registry):
    async with serve(database_url), serve(database_url), serve(database_url):
        await look.workers(3)
        connection = look.connection
        await put_schedule(connection, Schedule("often", "tick", "* * * * *"), registry=registry)
        for minute in range(1, 6):
            # The clock of the schedules, for all three: at the next minute, and heard at once.
            await connection.execute(
                "CREATE OR REPLACE FUNCTION orchestrator.clock() RETURNS timestamptz LANGUAGE sql VOLATILE RETURN"
                f" clock_timestamp() + interval '{minute} minutes'"
            )
            await connection.execute("SELECT pg_notify('orchestrator_schedules', '')")

            async def fired(minute=minute):
                done = await connection.fetchval(
                    "SELECT count(*) FROM orchestrator.jobs WHERE schedule = 'often' AND state = 'succeeded'"
                )
                return done >= minute

            await look._wait_until(fired)
        rows = await connection.fetch("SELECT worker FROM orchestrator.jobs WHERE schedule = 'often'")
        # One more only if a real minute turned meanwhile.
        assert len(rows) in {5, 6}


async def test_a_stop_while_a_module_of_handlers_hangs_at_import_is_a_clean_one(orchestrator, database_url, tmp_path):
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    env = {"DATABASE_URL": database_url, "JOBS": "hangs", "SHUTDOWN_TIMEOUT": "3s"}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("launching")
        assert (await run.health("/health/live"))[0] == 200
        began = time.monotonic()
        run.send_signal(signal.SIGTERM)
        assert await run.wait(timeout_s=10) == 0
        assert time.monotonic() - began < 2.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not declare a handler"),
        ("import asyncio\nimport nowhere_to_be_found\n", "line 2"),
        ("\n\n1 / 0\n", "line 3"),
        ("def x(:\n", "line 1"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("from orchestrator.jobs import job\n@job('a')\ndef f(ctx, payload): ...\n", "broken:2"),
        (None, "broken, which cannot be imported"),
    ],
)
async def test_a_module_of_handlers_that_is_broken_ends_the_start_and_is_named(
    orchestrator, database_url, tmp_path, text, said
):
    if text is not None:
        (tmp_path / "broken.py").write_text(text)
    result = await orchestrator("serve", env={"DATABASE_URL": database_url, "JOBS": "broken"})
    assert result.returncode == 78
    (failed,) = result.named("service.failed")
    assert said in failed["error"]
    assert "broken" in failed["error"]
    assert failed["remedy"]
