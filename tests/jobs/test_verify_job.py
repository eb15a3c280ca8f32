"""`migrations.verify`, the nightly job: it does what the command `verify` does, as a child process."""

import json
import secrets

import pytest

from orchestrator.jobs import enqueue
from orchestrator.jobs.registry import load


@pytest.fixture
def run_job(admin, wait_until):
    """`await run_job(url)`: add the job, and return its row when it is finished."""

    async def run(url: str) -> dict:
        async with admin.connection(url) as connection:
            made = await enqueue(connection, "migrations.verify", registry=load(()), max_attempts=1)

        async def finished():
            text = "SELECT * FROM orchestrator.jobs WHERE id = $1 AND finished_at IS NOT NULL"
            rows = await admin(url, text, made.id)
            return rows and rows[0]

        row = dict(await wait_until(finished, 90, "the job is finished"))
        return row | {key: row[key] and json.loads(row[key]) for key in ("output", "error")}

    return run


async def test_it_fails_on_a_database_that_lost_an_index(orchestrator, database_url, admin, tmp_path, write, run_job):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (v int); CREATE INDEX a_v ON a (v);"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "m")}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        whole = await run_job(database_url)
        assert whole["state"] == "succeeded", whole["error"]
        assert whole["output"]["database"]["compared"] is True
        assert whole["output"]["database"]["objects"] > 3
        await admin(database_url, "DROP INDEX a_v")
        differs = await run_job(database_url)
        assert differs["state"] == "failed"
        assert "missing: index public.a_v" in differs["error"]["message"]
    assert not await admin(database_url, "SELECT FROM pg_database WHERE datname ~ '^orchestrator_scratch_'")


async def test_without_the_right_to_make_a_database_it_says_that_it_compared_nothing(
    orchestrator, database_url, admin, server, tmp_path, write, run_job
):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (v int);"))
    role = f"nocreatedb_{secrets.token_hex(4)}"
    await admin.script(
        database_url,
        f"CREATE ROLE {role} LOGIN NOCREATEDB PASSWORD '{server.password}';"
        f" DO $$ BEGIN EXECUTE format('GRANT ALL ON DATABASE %I TO {role}', current_database()); END $$;"
        f" GRANT ALL ON SCHEMA public TO {role}",
    )
    try:
        url = database_url.replace(f"//{server.user}:", f"//{role}:")
        env = {"DATABASE_URL": url, "MIGRATIONS_DIR": str(tmp_path / "m")}
        async with orchestrator.running("serve", env=env) as service:
            await service.phase("ready")
            done = await run_job(database_url)
        assert done["state"] == "succeeded", done["error"]
        assert done["output"]["database"]["compared"] is False
        assert "may not create a scratch database" in done["output"]["database"]["reason"]
        assert "CREATEDB" in done["output"]["database"]["remedy"]
    finally:
        await admin.script(database_url, f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
