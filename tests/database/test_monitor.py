"""READY means that work can be done: what comes back in place of the database is told, and migrated again."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env(database_url, tmp_path, write):
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"), ("0001_b", "CREATE TABLE b ();"))
    return {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}


async def test_a_database_that_is_made_anew_is_migrated_again_by_the_same_process(orchestrator, env, admin, server):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        name = env["DATABASE_URL"].rpartition("/")[2]
        await admin.script(server.dsn(), f"DROP DATABASE {name} WITH (FORCE)")
        await admin.script(server.dsn(), f"CREATE DATABASE {name} TEMPLATE template0")
        await run.event("database.changed")
        await run.phase("ready", nth=2, timeout_s=20)
        assert await admin.value(env["DATABASE_URL"], "SELECT to_regclass('b') IS NOT NULL")
        assert (await run.health())[0] == 200


SCHEDULED = """
from orchestrator.jobs import job

@job("swept", schedule="0 3 * * *")
async def swept(ctx, payload) -> None:
    pass
"""


async def test_workers_of_a_database_that_is_made_anew_say_once_that_it_is_back_and_put_their_schedules_there(
    orchestrator, env, admin, server, tmp_path, wait_until
):
    (tmp_path / "scheduled.py").write_text(SCHEDULED)
    env = {**env, "JOBS": "scheduled", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    scheduled = "SELECT count(*) FROM orchestrator.schedules WHERE name = 'swept'"
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        await wait_until(lambda: admin.value(env["DATABASE_URL"], scheduled), 20, "the schedule")
        name = env["DATABASE_URL"].rpartition("/")[2]
        await admin.script(server.dsn(), f"DROP DATABASE {name} WITH (FORCE)")
        await admin.script(server.dsn(), f"CREATE DATABASE {name} TEMPLATE template0")
        async with admin.connection(env["DATABASE_URL"]) as holder:
            await holder.execute(f"SELECT pg_advisory_lock({int.from_bytes(b'orchest1')})")
            await run.event("jobs.statement_failed", purpose="schedules")
            await run.event("lock.waiting")
            assert [e for e in run.events if e["event"] == "jobs.connection_restored"] == []
        await run.phase("ready", nth=2, timeout_s=20)
        await run.event("jobs.connection_restored", purpose="schedules")
        await wait_until(lambda: admin.value(env["DATABASE_URL"], scheduled), 20, "the schedule")
        restored = [event["purpose"] for event in run.events if event["event"] == "jobs.connection_restored"]
        assert len(restored) == len(set(restored))


async def test_an_older_copy_is_migrated_again(orchestrator, env, admin):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        undo = "DROP TABLE b; DELETE FROM drizzle.__drizzle_migrations WHERE id = 2"
        await admin.script(env["DATABASE_URL"], undo)
        await run.event("database.changed")
        await run.phase("ready", nth=2, timeout_s=20)
        assert await admin.value(env["DATABASE_URL"], "SELECT to_regclass('b') IS NOT NULL")


async def test_a_server_that_is_read_only_is_503_with_the_cause(orchestrator, env, admin, server):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        name = env["DATABASE_URL"].rpartition("/")[2]
        cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        await admin.script(server.dsn(), f"ALTER DATABASE {name} SET default_transaction_read_only = on; {cut}")
        lost = await run.event("database.lost")
        assert lost["cause"] in {"no_matching_host", "read_only"}
        assert (await run.health())[0] == 503
        await admin.script(server.dsn(), f"ALTER DATABASE {name} SET default_transaction_read_only = off; {cut}")
        await run.phase("ready", nth=2, timeout_s=20)
