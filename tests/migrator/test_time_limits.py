"""What role and database say about time (statement_timeout, transaction_timeout …) ends nothing of ours."""

import asyncio
import secrets

import pytest

from orchestrator.backup.archive import read_backups

# Shorter than the work below, and longer than a login takes.
LIMITS = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")
SLOW = "SELECT pg_sleep(0.5);\n--> statement-breakpoint\nSELECT pg_sleep(0.5);"


@pytest.fixture
async def hurried(server, admin, database_url):
    """The DSN of the database for a superuser whose role ends whatever takes longer than 300 ms."""
    role = f"hurried_{secrets.token_hex(4)}"
    limits = (*LIMITS, *(("transaction_timeout",) if server.major >= 17 else ()))
    await admin.script(
        database_url,
        f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{server.password}';"
        + "".join(f"ALTER ROLE {role} SET {limit} = '300ms';" for limit in limits),
    )
    yield database_url.replace(f"//{server.user}:", f"//{role}:")
    await admin.script(
        database_url, f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
    )


async def test_long_migrations_are_applied_rehearsed_and_verified(orchestrator, hurried, tmp_path, write):
    env = {"DATABASE_URL": hurried, "MIGRATIONS_DIR": str(write(tmp_path / "m", ("0000_a", SLOW)))}
    rehearsed = await orchestrator("rehearse", env=env)
    assert rehearsed.returncode == 0, rehearsed.stderr
    migrated = await orchestrator("migrate", env=env)
    assert migrated.returncode == 0, migrated.stderr
    assert not migrated.named("database.lost")
    verified = await orchestrator("verify", env=env)
    assert verified.returncode == 0, verified.stdout + verified.stderr


async def test_the_lock_is_held_for_as_long_as_a_backup_takes_and_a_restore_ends(
    orchestrator, hurried, admin, database_url, tmp_path, write, wait_until
):
    await admin.script(database_url, "CREATE TABLE held ()")
    backups = tmp_path / "backups"
    env = {
        "DATABASE_URL": hurried,
        "MIGRATIONS_DIR": str(write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"))),
        "BACKUP_DIR": str(backups),
        "BACKUP_BEFORE_MIGRATE": "pending",
    }
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with admin.connection(database_url) as other, orchestrator.running("migrate", env=env) as process:
        async with other.transaction():
            await other.execute("LOCK TABLE held IN ACCESS EXCLUSIVE MODE")
            await process.event("backup.started")
            await wait_until(lambda: admin.value(database_url, waits))
            await asyncio.sleep(0.7)  # the idle time itself: longer than the role's limit
        assert await process.wait() == 0, process.output
        assert not [event for event in process.events if event["event"] == "database.lost"]
    (backup,) = read_backups(backups)
    restored = await orchestrator("restore", str(backup.path), "--yes", env=env)
    assert restored.returncode == 0, restored.stderr
    kept = restored.named("restore.completed")[0]["kept_as"]
    await admin.script(database_url, f'DROP DATABASE "{kept}"')
