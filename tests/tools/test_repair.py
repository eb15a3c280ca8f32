"""`repair`: the ledger is mended as it was shown, with a record of who did it, and real Drizzle agrees afterwards."""

import asyncio
import getpass
import hashlib
import json
import os
import pty
import signal
import socket
import sys
from pathlib import Path

import pytest
from drizzle.reference import Drizzle, NotInstallableError, install, ledger_bytes

WHEN = 1716000000000
A = ("0000_a", "CREATE TABLE a (id int);")
B = ("0001_b", "CREATE TABLE b (id int);")
C = ("0002_c", "CREATE TABLE c (id int);")


def write(folder: Path, *files: tuple[str, str], generation: str = "v0") -> Path:
    """A folder of either generation; a v1 folder has v0's names as drizzle-kit up makes them."""
    if generation == "v1":
        for n, (tag, sql) in enumerate(files):
            path = folder / f"2024051802400{n}_{tag.partition('_')[2]}"
            path.mkdir(parents=True, exist_ok=True)
            (path / "migration.sql").write_text(sql)
        return folder
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    for tag, sql in files:
        (folder / f"{tag}.sql").write_text(sql)
    entries = [
        {"idx": n, "version": "7", "when": WHEN + 1000 * n, "tag": tag, "breakpoints": True}
        for n, (tag, _) in enumerate(files)
    ]
    (folder / "meta" / "_journal.json").write_text(
        json.dumps({"version": "7", "dialect": "postgresql", "entries": entries})
    )
    return folder


@pytest.fixture(scope="session")
def drizzle() -> Drizzle:
    try:
        return install()
    except NotInstallableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def run(orchestrator, database_url, tmp_path):
    async def run(command: str, *arguments: str, folder: str = "m", **env: str):
        return await orchestrator(
            command,
            *arguments,
            env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / folder), **env},
        )

    return run


async def ledger(admin, url: str) -> list[tuple]:
    rows = await admin(url, "SELECT hash, created_at FROM drizzle.__drizzle_migrations ORDER BY id")
    return [tuple(row) for row in rows]


async def repairs(admin, url: str) -> list[dict]:
    return [dict(row) for row in await admin(url, "SELECT * FROM orchestrator.repairs ORDER BY id")]


def sha256(sql: str) -> str:
    return hashlib.sha256(sql.encode()).hexdigest()


async def test_an_edited_file_is_accepted_with_its_difference_shown_and_who_did_it_kept(
    run, admin, database_url, tmp_path, server
):
    write(tmp_path / "m", A, B)
    assert (await run("migrate")).returncode == 0
    edited = (B[0], "CREATE TABLE b (id bigint);")
    write(tmp_path / "m", A, edited)
    assert (await run("migrate", MIGRATION_POLICY="strict")).returncode == 70
    before = await ledger(admin, database_url)
    unasked = await run("repair", "accept", "0001_b")
    assert (unasked.returncode, await ledger(admin, database_url)) == (78, before)
    assert "+CREATE TABLE b (id bigint);" in unasked.stdout
    assert "--yes" in unasked.named("service.failed")[0]["remedy"]
    done = await run("repair", "accept", "0001_b", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["before"][0]["hash"], told["after"][0]["hash"]) == (
        True,
        sha256(B[1]),
        sha256(edited[1]),
    )
    assert await ledger(admin, database_url) == [before[0], (sha256(edited[1]), WHEN + 1000)]
    (record,) = await repairs(admin, database_url)
    assert (record["action"], record["names"], record["forced"]) == ("accept", ["0001_b"], False)
    assert (record["role"], record["os_user"], record["host"]) == (server.user, getpass.getuser(), socket.gethostname())
    assert json.loads(record["before"])[0]["hash"] == sha256(B[1])
    assert json.loads(record["after"])[0]["hash"] == sha256(edited[1])
    assert (await run("migrate", MIGRATION_POLICY="strict")).returncode == 0
    again = await run("repair", "accept", "0001_b", "--yes")
    assert (again.returncode, "There is nothing to change." in again.stdout) == (0, True)
    # The new text is what the next edit is compared with.
    write(tmp_path / "m", A, (B[0], "CREATE TABLE b (id bigint); -- more"))
    assert (await run("migrate", MIGRATION_POLICY="strict")).returncode == 0
    shown = await run("status", "--diff")
    assert "+CREATE TABLE b (id bigint); -- more" in shown.stdout


async def test_a_migration_is_marked_applied_and_unapplied(run, admin, database_url, tmp_path):
    write(tmp_path / "m", A, B, C)
    await admin.script(database_url, A[1])
    done = await run("repair", "applied", "0000_a", "--yes")
    assert done.returncode == 0, done.stderr
    assert await ledger(admin, database_url) == [(sha256(A[1]), WHEN)]
    assert (await run("migrate")).returncode == 0
    warned = await run("repair", "unapplied", "0001_b")
    assert (warned.returncode, "would not run 0001_b again" in warned.stdout) == (78, True)
    await admin.script(database_url, "DROP TABLE c")
    assert (await run("repair", "unapplied", "0002_c", "--yes")).returncode == 0
    assert len(await ledger(admin, database_url)) == 2
    assert (await run("migrate")).returncode == 0
    assert await admin.value(database_url, "SELECT to_regclass('c') IS NOT NULL")
    assert [(r["action"], r["names"]) for r in await repairs(admin, database_url)] == [
        ("applied", ["0000_a"]),
        ("unapplied", ["0002_c"]),
    ]
    idempotent = await run("repair", "applied", "0000_a", "--yes", "--json")
    assert (idempotent.returncode, json.loads(idempotent.stdout)["done"]) == (0, False)


async def test_a_name_that_is_none_is_refused_with_the_nearest(run, tmp_path):
    write(tmp_path / "m", A, ("0001_better", "SELECT 1;"))
    done = await run("repair", "applied", "0001_bettr", "--yes")
    assert done.returncode == 78
    assert "0001_better" in done.named("service.failed")[0]["remedy"]


async def test_a_row_that_no_file_has_goes_by_its_id(run, admin, database_url, tmp_path):
    write(tmp_path / "m", A)
    assert (await run("migrate")).returncode == 0
    await admin.script(
        database_url, "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ('dead', 1000)"
    )
    done = await run("repair", "unapplied", "#2", "--yes")
    assert done.returncode == 0, done.stderr
    assert await ledger(admin, database_url) == [(sha256(A[1]), WHEN)]


@pytest.mark.drizzle
@pytest.mark.parametrize("generation", ["v0", "v1"])
async def test_a_database_without_a_ledger_is_adopted_and_real_drizzle_finds_nothing_to_do(
    run, admin, database_url, tmp_path, drizzle, generation
):
    write(tmp_path / "m", A, B, generation=generation)
    await admin.script(database_url, A[1] + B[1])  # as drizzle-kit push leaves it
    done = await run("repair", "baseline", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["after"]) == 2
    rows = await ledger_bytes(database_url)
    assert drizzle.migrate(generation, database_url, tmp_path / "m").ok
    assert await ledger_bytes(database_url) == rows
    assert (await run("migrate")).returncode == 0
    assert await ledger_bytes(database_url) == rows
    again = await run("repair", "baseline", "--yes")
    assert again.returncode == 70


async def test_a_database_that_is_not_what_the_files_make_is_refused_unless_forced(run, admin, database_url, tmp_path):
    write(tmp_path / "m", A, B)
    await admin.script(database_url, "CREATE TABLE a (id bigint)")
    done = await run("repair", "baseline", "--yes")
    assert done.returncode == 1
    assert "table public.b" in done.stdout
    assert "type: files integer    database bigint" in done.stdout
    assert await admin.value(database_url, "SELECT to_regnamespace('drizzle') IS NULL")
    assert (await run("repair", "baseline", "--to", "0000_a", "--yes")).returncode == 1
    forced = await run("repair", "baseline", "--to", "0000_a", "--force", "--yes")
    assert forced.returncode == 0, forced.stderr
    assert await ledger(admin, database_url) == [(sha256(A[1]), WHEN)]
    (record,) = await repairs(admin, database_url)
    assert (record["forced"], record["names"]) == (True, ["0000_a"])
    assert (await run("migrate")).returncode == 0
    assert len(await ledger(admin, database_url)) == 2


@pytest.mark.drizzle
@pytest.mark.parametrize("folder", ["v0", "v1"])
async def test_a_v0_ledger_is_upgraded_and_real_drizzle_v1_finds_nothing_to_do(
    run, admin, make_database, database_url, tmp_path, drizzle, folder
):
    write(tmp_path / "v0", A, B)
    write(tmp_path / "v1", A, B, generation="v1")
    assert drizzle.migrate("v0", database_url, tmp_path / "v0").ok
    other = await make_database()
    assert drizzle.migrate("v0", other, tmp_path / "v0").ok
    assert drizzle.migrate("v1", other, tmp_path / "v1").ok
    done = await run("repair", "upgrade", "--yes", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    query = "SELECT id, hash, created_at, name, applied_at FROM drizzle.__drizzle_migrations ORDER BY id"
    assert await admin(database_url, query) == await admin(other, query)
    before = await ledger_bytes(database_url)
    assert drizzle.migrate("v1", database_url, tmp_path / "v1").ok
    assert await ledger_bytes(database_url) == before
    again = await run("repair", "upgrade", "--yes", folder=folder)
    assert (again.returncode, "There is nothing to change." in again.stdout) == (0, True)


async def test_an_upgrade_with_a_row_that_matches_no_file_is_refused(run, admin, database_url, tmp_path):
    write(tmp_path / "m", A, B)
    assert (await run("migrate")).returncode == 0
    write(tmp_path / "v1", A, generation="v1")
    done = await run("repair", "upgrade", "--yes", folder="v1")
    assert done.returncode == 70
    assert "row 2" in done.named("service.failed")[0]["error"]


async def test_the_services_own_ledger_is_mended_where_its_tables_are_there(run, admin, database_url, tmp_path):
    write(tmp_path / "m", A)
    assert (await run("migrate")).returncode == 0
    newest = "SELECT max(id) FROM orchestrator.__drizzle_migrations"
    await admin(database_url, f"DELETE FROM orchestrator.__drizzle_migrations WHERE id = ({newest})")
    failed = await run("migrate")
    assert (failed.returncode, failed.events[-1]["sqlstate"]) == (70, "42P07")
    done = await run("repair", "applied", failed.events[-1]["migration"], "--service", "--yes")
    assert done.returncode == 0, done.stderr
    assert [repair["ledger"] for repair in await repairs(admin, database_url)] == ["orchestrator.__drizzle_migrations"]
    assert (await run("migrate")).returncode == 0


@pytest.mark.parametrize(
    "command", [("repair", "upgrade", "--yes"), ("verify",), ("rehearse",), ("status",), ("plan",), ("backup",)]
)
async def test_a_database_that_comes_late_is_waited_for_as_long_as_is_set_and_that_is_said(
    orchestrator, tcp_proxy, database_url, tmp_path, command
):
    write(tmp_path / "m", A)
    env = {
        "DATABASE_URL": tcp_proxy.dsn(database_url),
        "MIGRATIONS_DIR": str(tmp_path / "m"),
        "BACKUP_DIR": str(tmp_path / "backups"),
    }
    await tcp_proxy.refuse()
    refused = await orchestrator(*command, env={**env, "DB_WAIT_TIMEOUT": "1s"})
    assert refused.returncode == 69
    assert "DB_WAIT_TIMEOUT" in refused.events[-1]["remedy"]
    async with orchestrator.running(*command, "-v", env=env) as process:
        await process.event("database.connect_failed", cause="refused")
        await tcp_proxy.accept()
        assert await process.wait() in {0, 1}, process.output


async def test_another_migrator_is_waited_for(orchestrator, run, admin, database_url, tmp_path):
    write(tmp_path / "m", A)
    async with admin.connection(database_url) as holder:
        await holder.execute(f"SELECT pg_advisory_lock({int.from_bytes(b'orchest1')})")
        done = await run("repair", "applied", "0000_a", "--yes", MIGRATION_LOCK_TIMEOUT="0.5")
        assert done.returncode == 75, done.stderr


@pytest.mark.parametrize(("answer", "code", "rows"), [("y\n", 0, 1), ("\n", 1, 0), (None, 130, 0)])
async def test_on_a_terminal_it_asks(database_url, admin, tmp_path, known, answer, code, rows):
    """None: Ctrl-C at the question."""
    write(tmp_path / "m", A)
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", "repair", "applied", "0000_a"),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "MIGRATIONS_DIR": str(tmp_path / "m"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        start_new_session=True,
    )
    os.close(follower)
    shown = ""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        while "[y/N]" not in shown:
            shown += (await loop.run_in_executor(None, os.read, leader, 4096)).decode()
    if answer is None:
        process.send_signal(signal.SIGINT)
    else:
        os.write(leader, answer.encode())
    assert await asyncio.wait_for(process.wait(), 30) == code
    os.close(leader)
    known.printed.append(("repair on a terminal", shown))
    exists = await admin.value(database_url, "SELECT to_regclass('drizzle.__drizzle_migrations') IS NOT NULL")
    assert (len(await ledger(admin, database_url)) if exists else 0) == rows
