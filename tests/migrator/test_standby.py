"""A read-only standby is waited out: nothing can be served from it, and nothing migrated."""

import json
import os
import shutil

from orchestrator.embedded.server import embedded_postgres


def ignore(*_, **__):
    """Events of the server are not this test's subject."""


def make_standby(data_dir) -> None:
    """Let the next start of the cluster be a standby: of nobody, and so for ever until it is promoted."""
    (data,) = data_dir.glob("postgres-*/data")
    signal_file = data / "standby.signal"
    signal_file.touch()
    owner = data.stat()
    os.chown(signal_file, owner.st_uid, owner.st_gid)


async def test_a_standby_is_waited_out_by_a_server_and_by_a_migration_only_while_something_is_pending(
    orchestrator, admin, known, tmp_path
):
    folder = tmp_path / "drizzle"
    (folder / "meta").mkdir(parents=True)
    (folder / "0000_a.sql").write_text("CREATE TABLE a ();")
    entry = {"idx": 0, "when": 1716000000000, "tag": "0000_a", "breakpoints": True}
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": [entry]}))
    data_dir = tmp_path / "cluster"
    async with embedded_postgres(data_dir, ignore):
        pass
    make_standby(data_dir)
    async with embedded_postgres(data_dir, ignore) as server:
        known.secrets.add(server.dsn.split(":")[2].split("@")[0])
        env = {"DATABASE_URL": server.dsn, "MIGRATIONS_DIR": str(folder)}
        async with orchestrator.running("serve", env=env) as run:
            await run.event("database.connect_failed", cause="no_matching_host")
            status, body = await run.health()
            assert (status, body["phase"]) == (503, "connecting")
            assert await admin.value(server.dsn, "SELECT pg_promote()")
            await run.phase("ready", timeout_s=20)
            assert await admin.value(server.dsn, "SELECT to_regclass('a') IS NOT NULL")
    make_standby(data_dir)
    async with embedded_postgres(data_dir, ignore) as server:
        assert await admin.value(server.dsn, "SELECT pg_is_in_recovery()")
        migrated = await orchestrator("migrate", env={**env, "DATABASE_URL": server.dsn})
        assert migrated.returncode == 0, migrated.stderr  # nothing is pending
        async with orchestrator.running("serve", env={**env, "DATABASE_URL": server.dsn}) as run:
            await run.event("database.connect_failed", cause="no_matching_host")
            assert (await run.health())[0] == 503
            assert await admin.value(server.dsn, "SELECT pg_promote()")
            await run.phase("ready", timeout_s=20)
    shutil.rmtree(data_dir)
