"""The built-in handlers, run by a real service: backup, analyze, prune, verify."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import dsn as dsns
from orchestrator.backup.archive import read_backups
from orchestrator.jobs.builtin import without_idle_schedules
from orchestrator.jobs.registry import load
from orchestrator.settings import Settings

BUILTIN = {"database.backup", "database.analyze", "jobs.prune", "migrations.verify"}


def write_folder(folder: Path, files: dict[str, str]) -> Path:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for idx, (tag, sql) in enumerate(files.items()):
        (folder / f"{tag}.sql").write_text(sql)
        entries.append({"idx": idx, "version": "7", "when": 1716000000000 + idx, "tag": tag, "breakpoints": True})
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return folder


@pytest.fixture
def run_job(admin, wait_until):
    """`await run_job(url, name, payload)`: add the job as any client may, and return its row when it is finished."""

    async def run(url: str, name: str, payload: dict | None = None) -> dict:
        from orchestrator.jobs import enqueue

        async with admin.connection(url) as connection:
            made = await enqueue(connection, name, payload, registry=load(()), max_attempts=1)

        async def finished():
            rows = await admin(
                url, "SELECT * FROM orchestrator.jobs WHERE id = $1 AND finished_at IS NOT NULL", made.id
            )
            return rows and rows[0]

        row = dict(await wait_until(finished, 40, f"{name} is finished"))
        return row | {key: row[key] and json.loads(row[key]) for key in ("output", "error", "progress")}

    return run


async def test_backup_analyze_prune_and_verify_do_what_they_say(orchestrator, database_url, admin, tmp_path, run_job):
    backups = tmp_path / "backups"
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a (v int); INSERT INTO a VALUES (1);"})
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(backups)}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")

        made = await run_job(database_url, "database.backup", {"test": True})
        assert made["state"] == "succeeded", made["error"]
        (on_disk,) = await asyncio.to_thread(read_backups, backups)
        assert made["output"]["file"] == str(on_disk.path)
        assert made["output"]["size_bytes"] == on_disk.path.stat().st_size == made["progress"]["done"]
        assert made["output"]["duration_s"] > 0
        assert made["output"]["differences"] == []
        assert on_disk.manifest.reason == "job"
        logged = await admin(database_url, "SELECT event FROM orchestrator.job_logs WHERE job_id = $1", made["id"])
        assert {"backup.started", "backup.completed", "backup.tested"} <= {row["event"] for row in logged}

        analyzed = await run_job(database_url, "database.analyze", {"tables": ["public.a", "public.none"]})
        assert analyzed["output"]["tables"] == 1
        assert analyzed["output"]["missing"] == ["public.none"]
        assert await admin.value(database_url, "SELECT reltuples FROM pg_class WHERE oid = 'a'::regclass") == 1
        everything = await run_job(database_url, "database.analyze")
        assert everything["output"]["tables"] > 5

        verified = await run_job(database_url, "migrations.verify")
        assert verified["state"] == "succeeded", verified["error"]
        by_source = {one["source"]: one for one in verified["output"]["sources"]}
        assert (by_source["user"]["applied"], by_source["user"]["findings"]) == (1, [])
        (folder / "0000_a.sql").write_text("CREATE TABLE a (v int); INSERT INTO a VALUES (2);")
        edited = await run_job(database_url, "migrations.verify")
        assert edited["state"] == "succeeded", edited["error"]
        (finding,) = {one["source"]: one for one in edited["output"]["sources"]}["user"]["findings"]
        assert (finding["kind"], finding["migration"], finding["refused"]) == ("edited", "0000_a", False)

        await admin(
            database_url,
            "INSERT INTO orchestrator.jobs (name, state, finished_at, payload)"
            " SELECT 'old', 'succeeded', now() - make_interval(days => g % 10), '{}' FROM generate_series(0, 2499) g",
        )
        await admin(
            database_url,
            "INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, at) OVERRIDING SYSTEM VALUE"
            " SELECT g, 1, 'old', 'default', now() - interval '8 days' FROM generate_series(1, 1500) g",
        )
        await admin(
            database_url,
            "INSERT INTO orchestrator.job_attempts (job_id, attempt, outcome)"
            " SELECT id, 1, 'failed' FROM orchestrator.jobs WHERE name = 'old'",
        )
        pruned = await run_job(database_url, "jobs.prune")
        assert pruned["state"] == "succeeded", pruned["error"]
        # JOBS_RETENTION is 7 days: of ten days' jobs those of the last seven stay.
        assert pruned["output"]["jobs"] == 750
        left = "SELECT count(*), min(finished_at) FROM orchestrator.jobs WHERE name = 'old'"
        ((count, oldest),) = await admin(database_url, left)
        assert count == 1750
        assert oldest > datetime.now(UTC) - timedelta(days=7)
        attempts = (
            "SELECT count(*) FROM orchestrator.job_attempts a WHERE NOT EXISTS"
            " (SELECT FROM orchestrator.jobs j WHERE j.id = a.job_id)"
        )
        assert await admin.value(database_url, attempts) == 0

        names = await admin(database_url, "SELECT name FROM orchestrator.schedules WHERE enabled AND source = 'code'")
        assert {row["name"] for row in names} == BUILTIN


async def test_without_backup_dir_the_job_fails_clearly_and_has_no_schedule(orchestrator, database_url, admin, run_job):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as service:
        await service.phase("ready")
        failed = await run_job(database_url, "database.backup")
        assert failed["state"] == "failed"
        assert "BACKUP_DIR" in failed["error"]["message"]
        names = await admin(database_url, "SELECT name FROM orchestrator.schedules")
        assert {row["name"] for row in names} == BUILTIN - {"database.backup"}


async def test_verify_fails_where_the_next_start_would_be_refused(orchestrator, database_url, tmp_path, run_job):
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a ();", "0001_b": "CREATE TABLE b ();"})
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "MIGRATION_POLICY": "strict"}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        (folder / "0000_a.sql").write_text("CREATE TABLE other ();")
        failed = await run_job(database_url, "migrations.verify")
        assert failed["state"] == "failed"
        assert "edited: 0000_a" in failed["error"]["message"]


def test_every_builtin_has_a_doc_a_payload_type_and_a_schedule():
    registry = load(())
    assert set(registry.handlers) >= BUILTIN
    for name in BUILTIN:
        handler = registry.handlers[name]
        assert handler.doc
        assert handler.schedule
        assert handler.payload_schema()["$ref"].startswith("#/$defs/")
    idle = without_idle_schedules(registry, Settings(database=dsns.parse("postgresql://u@h/d")))
    assert idle.handlers["database.backup"].schedule is None
    assert idle.handlers["jobs.prune"].schedule
