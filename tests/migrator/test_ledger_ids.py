"""The ledger's `id` may be of any type: drizzle never reads it."""

import json

import pytest

FILES = [("0000_a", "CREATE TABLE a ();"), ("0001_b", "CREATE TABLE b ();"), ("0002_c", "CREATE TABLE c ();")]
# What a person, or another tool, may have made of it.
IDS = {
    "uuid": "ALTER TABLE {0} ALTER id DROP DEFAULT, ALTER id TYPE uuid USING gen_random_uuid(),"
    " ALTER id SET DEFAULT gen_random_uuid()",
    "text": "ALTER TABLE {0} ALTER id DROP DEFAULT, ALTER id TYPE text USING 'row ' || (100 - id),"
    " ALTER id SET DEFAULT gen_random_uuid()::text",
    "numeric": "ALTER TABLE {0} ALTER id TYPE numeric",
    "bigint": "ALTER TABLE {0} ALTER id TYPE bigint",
    "none": "ALTER TABLE {0} DROP CONSTRAINT __drizzle_migrations_pkey, ALTER id DROP DEFAULT, ALTER id DROP NOT NULL;"
    " UPDATE {0} SET id = NULL",
    "all alike": "ALTER TABLE {0} DROP CONSTRAINT __drizzle_migrations_pkey; UPDATE {0} SET id = 1",
}
LEDGER = "drizzle.__drizzle_migrations"


@pytest.fixture(params=IDS)
async def env(request, orchestrator, admin, database_url, tmp_path, write):
    folder = write(tmp_path / "m", *FILES[:2])
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(tmp_path / "backups")}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    for one in IDS[request.param].format(LEDGER).split(";"):
        await admin(database_url, one)
    write(folder, *FILES)
    return {**env, "kind": request.param}


async def test_every_reader_of_the_ledger_takes_it(env, orchestrator, admin, database_url, tmp_path, write):
    kind = env.pop("kind")
    for command in (["status"], ["status", "--json"], ["plan"], ["lint"]):
        result = await orchestrator(*command, env=env)
        assert result.returncode in {0, 3}, (command, result.stdout, result.stderr)
    result = await orchestrator("migrate", env=env)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('c') IS NOT NULL")
    assert await admin.value(database_url, f"SELECT count(*) FROM {LEDGER}") == 3
    again = await orchestrator("migrate", env=env)
    assert again.returncode == 0, again.stderr
    assert "migration.applied" not in [event["event"] for event in again.events]
    for command in (["verify"], ["rehearse"], ["backup"]):
        result = await orchestrator(*command, env=env)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (x int);"), *FILES[1:])
    shown = await orchestrator("status", "--diff", env=env)
    assert "x int" in shown.stdout, shown
    if kind in {"none", "all alike"}:
        return
    for command in (["repair", "accept", "0000_a", "--yes"], ["repair", "unapplied", "0001_b", "--yes"]):
        result = await orchestrator(*command, env=env)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    rows = json.loads((await orchestrator("status", "--json", env=env)).stdout)
    assert "0001_b" in json.dumps(rows)
    assert await admin.value(database_url, f"SELECT count(*) FROM {LEDGER}") == 2


async def test_rows_that_are_ahead_lead_to_the_backup_from_before_them(
    env, orchestrator, admin, database_url, write, tmp_path
):
    kind = env.pop("kind")
    assert (await orchestrator("backup", env=env)).returncode == 0
    assert (await orchestrator("migrate", env=env)).returncode == 0
    folder = write(tmp_path / "older", *FILES[:2])
    result = await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(folder)})
    assert result.returncode == 70
    if kind not in {"none", "all alike"}:
        assert "orchestrator restore" in result.events[-1]["remedy"], result.stderr


async def test_a_server_that_serves_takes_it(env, orchestrator, tmp_path):
    env.pop("kind")
    async with orchestrator.running("serve", env={**env, "PORT": "0"}) as run:
        await run.event("phase.entered", phase="ready")
        assert not [e for e in run.events if e["event"] == "database.lost"]
