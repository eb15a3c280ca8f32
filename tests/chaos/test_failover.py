"""Fail-over: the primary dies or falls silent, its standby takes over, and the same process goes on.

FAILOVER_ROUNDS=5 runs every case that often; the short form, for CI, has each pair of what varies once.
"""

import asyncio
import contextlib
import itertools
import os
import time

import aiohttp
import pytest
from support.cluster import cluster

from chaos.load import LOST

HANDLERS = """
from orchestrator.jobs import job

@job("work")
async def work(ctx, payload: dict):
    with open("ran", "a") as file:
        file.write(f"{ctx.job_id}\\n")
"""
SILENT_WITHIN_S, READY_WITHIN_S = 5.0, 10.0
SHORT = [
    ("ready", "kill", "synchronous"),
    ("ready", "freeze", "asynchronous"),
    ("migrating", "kill", "asynchronous"),
    ("migrating", "freeze", "synchronous"),
]
ROUNDS = int(os.environ.get("FAILOVER_ROUNDS") or 0)
CASES = SHORT
if ROUNDS:
    CASES = ROUNDS * list(
        itertools.product(("ready", "migrating"), ("kill", "freeze"), ("synchronous", "asynchronous"))
    )


class Clients:
    """Add jobs all the time, and keep what was acknowledged."""

    def __init__(self, url):
        self.url, self.acknowledged, self.refused = url, set(), 0

    async def add(self):
        timeout = aiohttp.ClientTimeout(total=8)
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with session.post("/api/jobs", json={"name": "work"}) as answer:
                        if answer.status == 202:
                            self.acknowledged.add(int((await answer.json())["id"]))
                        else:
                            self.refused += 1
                            await asyncio.sleep(0.05)
                await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def adding(self, count=4):
        tasks = [asyncio.create_task(self.add()) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def strike(pair, how):
    """What happens to the primary; the moment of it."""
    if how == "kill":
        await pair.primary.kill()
    else:
        pair.primary.freeze()
    return time.monotonic()


async def ended(node, ids):
    """Wait until all of these jobs have ended; how many there are, and how many that succeeded more than once."""
    connection = await node.connect()
    try:
        async with asyncio.timeout(30):
            while await connection.fetchval(  # noqa: ASYNC110 the database is asked
                "SELECT count(*) FROM orchestrator.jobs WHERE finished_at IS NULL AND name = 'work'"
            ):
                await asyncio.sleep(0.05)
        there = await connection.fetchval("SELECT count(*) FROM orchestrator.jobs WHERE id = ANY($1)", list(ids))
        twice = await connection.fetch(
            "SELECT job_id FROM orchestrator.job_events WHERE state = 'succeeded' GROUP BY 1 HAVING count(*) > 1"
        )
        return there, len(twice)
    finally:
        connection.terminate()


@pytest.mark.parametrize(("when", "how", "standby"), CASES)
async def test_a_fail_over(orchestrator, wait_until, write, tmp_path, when, how, standby):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    first = ("0000_first", "CREATE TABLE first (a int);")
    async with cluster(synchronous=standby == "synchronous") as pair:
        env = {"DATABASE_URL": pair.dsn, "JOBS": "handlers", "JOBS_LEASE": "6s", "SHUTDOWN_TIMEOUT": "4s"}
        if when == "ready":
            env["MIGRATIONS_DIR"] = str(write(tmp_path / "m", first))
            await fails_over_when_ready(
                orchestrator, wait_until, env, pair, how, is_synchronous=standby == "synchronous"
            )
        else:
            # Three files, the second of which is held up by somebody else's lock.
            second = ("0001_second", "INSERT INTO held VALUES (1); CREATE TABLE second (a int);")
            third = ("0002_third", "CREATE TABLE third (a int);")
            env["MIGRATIONS_DIR"] = str(write(tmp_path / "m", first, second, third))
            await fails_over_in_mid_migration(orchestrator, wait_until, env, pair, how)


async def fails_over_when_ready(orchestrator, wait_until, env, pair, how, *, is_synchronous):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        clients = Clients(run.url)
        async with clients.adding():
            await wait_until(lambda: len(clients.acknowledged) > 200, 20)
            struck_at = await strike(pair, how)
            await run.until_health(503, timeout_s=SILENT_WITHIN_S - (time.monotonic() - struck_at))
            before = set(clients.acknowledged)
            await pair.fail_over()
            promoted_at = time.monotonic()
            await run.until_health(200, timeout_s=READY_WITHIN_S)
            print(f"503 and then 200, {time.monotonic() - promoted_at:.1f} s after the promotion")
            count = len(clients.acknowledged)
            await wait_until(lambda: len(clients.acknowledged) > count + 50, 20)
        there, twice = await ended(pair.primary, clients.acknowledged)
        lost = len(clients.acknowledged) - there
        assert twice == 0
        if is_synchronous:
            assert lost == 0, f"{lost} of {len(clients.acknowledged)} acknowledged jobs are lost"
        else:
            # What the standby had not received is gone, with what was acknowledged; never what was added afterwards.
            assert lost <= len(before)
        assert len([event for event in run.events if event["event"] == "database.restored"]) == 1
        assert run.returncode is None


async def fails_over_in_mid_migration(orchestrator, wait_until, env, pair, how):
    blocker = await pair.primary.connect()
    await blocker.execute("CREATE TABLE held (a int)")
    await blocker.execute("BEGIN; LOCK TABLE held")
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("migrating")
        await wait_until(
            lambda: pair.primary.value("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"),
            20,
        )
        assert (await run.health())[0] == 503
        with contextlib.suppress(*LOST):
            await strike(pair, how)
        await pair.fail_over()
        promoted_at = time.monotonic()
        await run.until_health(200, timeout_s=READY_WITHIN_S)
        print(f"ready {time.monotonic() - promoted_at:.1f} s after the promotion")
        rows = await pair.primary.value("SELECT array_agg(id ORDER BY id) FROM drizzle.__drizzle_migrations")
        tables = await pair.primary.value(
            "SELECT to_regclass('first') IS NOT NULL AND to_regclass('third') IS NOT NULL"
        )
        assert (len(rows), tables) == (3, True)
        assert await pair.primary.value("SELECT count(*) FROM held") == 1
        assert run.returncode is None
    blocker.terminate()
