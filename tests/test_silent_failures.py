"""What fails while nobody watches is seen: scheduled work that fails, backups that cannot be made or grow old."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from orchestrator.lifecycle import Lifecycle

HANDLERS = """
import os
from orchestrator.jobs import job

@job("fragile.work", schedule="0 4 * * *", retries=1, backoff=0.05)
async def fragile(ctx, payload: dict) -> None:
    if os.path.exists({flag!r}):
        raise ValueError("the flag is up")
"""


@contextmanager
def read_only(directory: Path):
    """The directory as a mount that cannot be written, also by root."""
    mounted = subprocess.run(["mount", "--bind", str(directory), str(directory)], capture_output=True, check=False)
    if mounted.returncode != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
        yield lambda: subprocess.run(["mount", "-o", "remount,bind,rw", str(directory)], check=True)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


async def post(service, path: str) -> None:
    async with aiohttp.ClientSession() as http, http.post(service.url + path) as answer:
        assert answer.status < 300, await answer.text()


async def until_scheduled(wait_until, admin, database_url: str, name: str) -> None:
    await wait_until(lambda: admin(database_url, "SELECT FROM orchestrator.schedules WHERE name = $1", name))


def standing(health: dict, event: str) -> dict | None:
    return next((one for one in health["warnings"] if one["event"] == event), None)


async def test_a_backup_that_fails_every_night_is_on_health_page_log_and_metrics(
    orchestrator, database_url, admin, tmp_path, wait_until
):
    backups = tmp_path / "backups"
    backups.mkdir()
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups)}
    with read_only(backups) as writable:
        async with orchestrator.running("serve", env=env) as service:
            # Told at the start, before any night.
            told = await service.event("backup.directory_unusable")
            assert str(backups) in told["error"]
            await service.phase("ready")
            _, health = await service.health()
            assert standing(health, "backup.directory_unusable")["subject"] == str(backups)
            await until_scheduled(wait_until, admin, database_url, "database.backup")
            await post(service, "/api/schedules/database.backup/trigger")
            failed = await service.event("job.failed", job="database.backup")
            assert failed["level"] == "warning"
            assert failed["retry_in_s"] > 100
            assert failed["error_type"].endswith("BackupError")
            assert "cannot be written" in failed["error"]
            failing = await service.event("schedule.failing", timeout_s=40)
            assert (failing["schedule"], failing["state"]) == ("database.backup", "retrying")
            assert "cannot be written" in failing["hint"]
            _, health = await service.health()
            assert standing(health, "schedule.failing")["job_id"] == failed["job_id"]
            writable()
            await post(service, f"/api/jobs/{failed['job_id']}/cancel")
            await post(service, "/api/schedules/database.backup/trigger")
            await service.event("backup.directory_usable", timeout_s=60)
            await service.event("schedule.recovered", timeout_s=60)

            async def figures() -> dict[str, float] | None:
                text = (await service.get("/metrics")).body
                found = {
                    line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                    for line in text.splitlines()
                    if line.startswith(("orchestrator_backup_", "orchestrator_schedule_"))
                }
                return found if "orchestrator_backup_last_success_timestamp_seconds" in found else None

            found = await wait_until(figures, 40)
            (archive,) = backups.glob("*.dump")
            assert found["orchestrator_backup_last_success_size_bytes"] == archive.stat().st_size
            age_s = time.time() - found["orchestrator_backup_last_success_timestamp_seconds"]
            assert 0 <= age_s < 120
            assert 'orchestrator_schedule_last_success_timestamp_seconds{schedule="database.backup"}' in found
            _, health = await service.health()
            assert [w for w in health["warnings"] if w["event"].startswith(("backup.", "schedule."))] == []


async def test_a_job_that_is_given_up_is_an_error_and_its_schedule_a_warning_until_a_run_succeeds(
    orchestrator, database_url, admin, tmp_path, wait_until
):
    flag = tmp_path / "flag"
    flag.touch()
    (tmp_path / "fragile_handlers.py").write_text(HANDLERS.format(flag=str(flag)))
    env = {"DATABASE_URL": database_url, "JOBS": "fragile_handlers", "PYTHONPATH": str(tmp_path)}
    async with orchestrator.running("serve", env=env, cwd=tmp_path) as service:
        await service.phase("ready")
        await until_scheduled(wait_until, admin, database_url, "fragile.work")
        await post(service, "/api/schedules/fragile.work/trigger")
        first = await service.event("job.failed", attempt=1)
        last = await service.event("job.failed", attempt=2)
        assert (first["level"], last["level"]) == ("warning", "error")
        assert (last["error_type"], last["error"], last["retry_in_s"]) == ("ValueError", "the flag is up", None)
        failing = await service.event("schedule.failing", timeout_s=40, state="failed")
        assert failing["error"] == "the flag is up"
        flag.unlink()
        await post(service, "/api/schedules/fragile.work/trigger")
        await service.event("schedule.recovered", timeout_s=60, subject="fragile.work")


async def test_a_backup_that_is_older_than_two_turns_is_stale(orchestrator, database_url, admin, tmp_path, wait_until):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(tmp_path)}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        await until_scheduled(wait_until, admin, database_url, "database.backup")
    await admin.script(
        database_url,
        "UPDATE orchestrator.schedules SET created_at = now() - interval '9 days';"
        "INSERT INTO orchestrator.backups (taken_at, file, sha256, manifest_hash, size_bytes, duration_s, reason)"
        " VALUES (now() - interval '49 hours', 'a.dump', 'a', 'a', 7, 1, 'job')",
    )
    async with orchestrator.running("serve", env=env) as service:
        stale = await service.event("backup.stale")
        assert stale["newest_backup_at"].startswith("20")
        await service.phase("ready")
        status, health = await service.health()
        assert (status, standing(health, "backup.stale")["schedule"]) == (200, "database.backup")
    await admin.script(database_url, "UPDATE orchestrator.backups SET taken_at = now() - interval '47 hours'")
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        await service.event("service.ready")
        assert not [e for e in service.events if e["event"] == "backup.stale"]


def test_a_warning_about_a_subject_stands_once_and_goes():
    life = Lifecycle(now=lambda: 0.0, monotonic=lambda: 0.0)
    events = []
    life.listen(lambda event: events.append(event.name))
    life.warn("other.thing")
    life.warn_about("work.failing", "a", n=1)
    life.warn_about("work.failing", "a", n=2)
    life.warn_about("work.failing", "b")
    assert json.loads(json.dumps(life.warnings))[1:] == [
        {"event": "work.failing", "subject": "a", "n": 2},
        {"event": "work.failing", "subject": "b"},
    ]
    assert events == ["other.thing", "work.failing", "work.failing"]
    assert (life.no_longer("work.failing", "a"), life.no_longer("work.failing", "a")) == (True, False)
    assert [one.get("subject") for one in life.warnings] == [None, "b"]
