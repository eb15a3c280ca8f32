"""Backups are whole or not there, restores are proven before they replace anything, and what was there is kept."""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator import dsn as dsns
from orchestrator.backup import pgtools
from orchestrator.backup.archive import Order, remove_superfluous, superfluous, take_backup
from orchestrator.backup.compare import statements_of
from orchestrator.backup.manifest import Backup, LedgerState, Manifest, read_backups
from orchestrator.backup.pgtools import PgToolMissingError, Tool
from orchestrator.backup.restore import test_backup as prove_backup
from orchestrator.database.connect import close, connect_once
from orchestrator.embedded.server import embedded_postgres

ROOT = Path(__file__).parents[2]
KEY = "a-key-that-signs-the-backups"
# What a schema can hold that a dump may lose, or a comparison stumble over.
RICH = """
CREATE TYPE mood AS ENUM ('fine', 'tired');
CREATE TABLE people (id serial PRIMARY KEY, name text NOT NULL, m mood DEFAULT 'fine');
INSERT INTO people (name) SELECT 'person ' || g FROM generate_series(1, 500) g;
CREATE TABLE "odd. ""name" ("a ""b" int CHECK ("a ""b" > 0));
INSERT INTO "odd. ""name" VALUES (1), (2);
CREATE TABLE parted (at date NOT NULL, v int) PARTITION BY RANGE (at);
CREATE TABLE parted_2025 PARTITION OF parted FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO parted VALUES ('2025-05-05', 1);
CREATE MATERIALIZED VIEW totals AS SELECT m, count(*) FROM people GROUP BY m;
CREATE VIEW fine AS SELECT * FROM people WHERE m = 'fine';
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
SELECT lo_from_bytea(0, 'a large object');
CREATE INDEX people_name ON people (lower(name));
"""


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def write_folder(folder: Path, files: dict[str, str], *, times: dict[str, int] | None = None) -> Path:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for idx, (tag, sql) in enumerate(files.items()):
        (folder / f"{tag}.sql").write_text(sql)
        when = (times or {}).get(tag, 1716000000000 + idx * 1000)
        entries.append({"idx": idx, "version": "7", "when": when, "tag": tag, "breakpoints": True})
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return folder


def write_v1_folder(folder: Path, files: dict[str, str]) -> Path:
    for name, sql in files.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "migration.sql").write_text(sql)
        (folder / name / "snapshot.json").write_text("{}")
    return folder


@pytest.fixture
def backups(tmp_path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    return directory


@pytest.fixture
async def drop_kept(server, admin):
    """Drops what restores kept."""
    yield
    for (name,) in await admin(
        server.dsn(),
        "SELECT datname FROM pg_database WHERE datname ~ '^test_.*_(before|restored)_|^orchestrator_restore_'",
    ):
        await admin.script(server.dsn(), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def scratch_left(server, admin) -> list[str]:
    rows = await admin(
        server.dsn(), "SELECT datname FROM pg_database WHERE datname ~ '^orchestrator_(restore|scratch)_' ORDER BY 1"
    )
    return [row[0] for row in rows]


async def taken(orchestrator, env, *arguments) -> dict:
    done = await orchestrator("backup", "--json", *arguments, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------------- taking


async def test_a_backup_is_a_file_and_its_manifest_listed_and_proven_by_a_restore(
    orchestrator, server, database_url, admin, backups, tmp_path
):
    await admin.script(database_url, RICH)
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a ();"})
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY, "MIGRATIONS_DIR": str(folder)}
    assert (await orchestrator("migrate", env=env)).returncode == 0

    result = await taken(orchestrator, env, "--test")

    made = result["backup"]
    path = Path(made["path"])
    assert sorted(p.name for p in backups.iterdir()) == [path.name, f"{path.name}.json"]
    assert {p.stat().st_mode & 0o777 for p in backups.iterdir()} == {0o600}
    assert result["test"]["differences"] == []
    content = read(path)
    assert (made["size_bytes"], made["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert made["tables"]["public.people"] == 500
    assert made["tables"]['public.odd. "name'] == 2
    assert made["tables"]["public.parted_2025"] == 1
    assert made["large_objects"] == 1
    assert made["server_major"] == server.major
    assert int(made["pg_dump_version"].split(".")[0]) >= server.major
    (user,) = [state for state in made["ledgers"] if state["schema"] == "drizzle"]
    assert (user["rows"], user["newest_created_at"]) == (1, 1716000000000)
    listed = await orchestrator("backup", "--list", "--json", env={"BACKUP_DIR": str(backups), "BACKUP_KEY": KEY})
    assert [one["path"] for one in json.loads(listed.stdout)["backups"]] == [str(path)]
    shown = await orchestrator("backup", "--list", env={"BACKUP_DIR": str(backups), "BACKUP_KEY": KEY})
    assert path.name in shown.stdout
    assert await scratch_left(server, admin) == []


async def test_names_with_dots_are_not_taken_apart_again(
    orchestrator, database_url, admin, backups, tmp_path, drop_kept
):
    await admin.script(
        database_url,
        'CREATE SCHEMA "a.b"; CREATE TABLE "a.b".c (); INSERT INTO "a.b".c DEFAULT VALUES;'
        ' CREATE SCHEMA a; CREATE TABLE a."b.c" ()',
    )
    env = {
        "DATABASE_URL": database_url,
        "BACKUP_DIR": str(backups),
        "MIGRATIONS_DIR": str(write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE x ();"})),
        "MIGRATIONS_SCHEMA": "my.own",
        "MIGRATIONS_TABLE": "led.ger",
    }
    assert (await orchestrator("migrate", env=env)).returncode == 0
    found = await taken(orchestrator, env, "--test")
    assert found["test"]["differences"] == []
    tables = found["backup"]["tables"]
    assert (tables['"a.b".c'], tables["a.b.c"]) == (1, 0)
    assert [(s["schema"], s["table"], s["rows"]) for s in found["backup"]["ledgers"]][-1] == ("my.own", "led.ger", 1)
    restored = await orchestrator("restore", found["backup"]["path"], "--yes", env=env)
    assert restored.returncode == 0, restored.stderr


async def test_a_backup_is_of_one_moment_while_rows_come_in(database_url, admin, backups, wait_until):
    await admin.script(database_url, "CREATE TABLE t AS SELECT g FROM generate_series(1, 20000) g")
    stop = asyncio.Event()

    async def write() -> None:
        async with admin.connection(database_url) as connection:
            while not stop.is_set():
                await connection.execute("INSERT INTO t SELECT g FROM generate_series(1, 100) g")

    dsn = dsns.parse(database_url)
    writing = asyncio.create_task(write())
    connection = await connect_once(dsn, timeout_s=5, application_name="test")
    try:
        backup = await take_backup(connection, dsn, order(backups), lambda *_, **__: None)
    finally:
        await close(connection)
        stop.set()
        await writing
    tested = await prove_backup(backup, dsn, read_ledgers=no_ledgers, emit=lambda *_, **__: None, with_own_rights=False)
    assert tested.differences == ()


async def no_ledgers(_connection) -> list[LedgerState]:
    return []


def order(directory: Path) -> Order:
    return Order(directory, "command", no_ledgers)


async def test_the_password_is_in_no_argument_while_pg_dump_runs_and_sigterm_leaves_nothing(
    orchestrator, server, database_url, admin, backups, wait_until
):
    await admin.script(database_url, "CREATE TABLE t (v int)")
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    async with admin.connection(database_url) as holder, holder.transaction():
        await holder.execute("LOCK t")  # pg_dump waits behind it
        async with orchestrator.running("backup", env=env) as run:
            await run.event("backup.started")
            dump = await wait_until(lambda: pg_dump_of(database_url))
            assert server.password.encode() not in every_command_line()
            environ = read(Path(f"/proc/{dump}/environ")).split(b"\0")
            assert f"PGPASSWORD={server.password}".encode() in environ
            assert {name.split(b"=")[0] for name in environ if name} <= {
                *(b"PATH", b"LC_ALL", b"HOME", b"PGHOST", b"PGPORT", b"PGUSER", b"PGDATABASE", b"PGPASSWORD"),
                *(b"PGAPPNAME", b"PGCONNECT_TIMEOUT"),
            }
            run.send_signal(signal.SIGTERM)
            assert await run.wait() == 143
            assert not runs(dump)
    assert list(backups.iterdir()) == []


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def every_command_line() -> bytes:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes())
    return b"\n".join(found)


def pg_dump_of(url: str) -> int | None:
    """The pid of the pg_dump on this database."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("comm").read_text().strip() != "pg_dump":
                continue
            if f"PGDATABASE={name_of(url)}".encode() in path.joinpath("environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:
            continue
    return None


async def test_a_backup_that_is_killed_half_way_is_none_and_the_next_one_removes_its_remains(
    orchestrator, server, database_url, admin, tcp_proxy, backups, wait_until
):
    await admin.script(database_url, "CREATE TABLE t AS SELECT md5(g::text) AS v FROM generate_series(1, 150000) g")
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    async with orchestrator.running("backup", env=env) as run:
        await wait_until(lambda: any(p.stat().st_size > 100_000 for p in backups.glob(".*.partial")), 20)
        tcp_proxy.stall()
        dump = pg_dump_of(database_url)
        assert dump is not None
        run.send_signal(signal.SIGKILL)
        await run.wait()
        await wait_until(lambda: not runs(dump), what="pg_dump ends with its parent")
    tcp_proxy.resume()
    (left,) = backups.iterdir()
    assert left.name.endswith(".partial")
    listed = await orchestrator("backup", "--list", "--json", env=env)
    assert json.loads(listed.stdout) == {"backups": []}
    refused = await orchestrator("restore", str(left), "--yes", env=env)
    assert refused.returncode == 70
    assert "no manifest" in refused.stderr
    await taken(orchestrator, env)
    assert not left.exists()
    assert len(list(backups.iterdir())) == 2


@contextmanager
def small_disk(directory: Path):
    """A file system of one megabyte."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        told = f"no small file system can be mounted here: {mounted.stderr}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(told)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


async def test_a_full_disk_is_named_and_nothing_is_left_on_it(orchestrator, database_url, admin, backups):
    await admin.script(
        database_url, "CREATE TABLE t AS SELECT md5(g::text) || md5((-g)::text) AS v FROM generate_series(1, 100000) g"
    )
    with small_disk(backups):
        done = await orchestrator(
            "backup", env={"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
        )
        assert list(backups.iterdir()) == []
    assert done.returncode == 70
    (failed,) = done.named("service.failed")
    assert f"the disk of {backups} is full" in failed["error"]
    assert failed["written_bytes"] > 500_000
    assert "BACKUP_KEEP" in failed["remedy"]


@pytest.mark.parametrize(
    ("directory", "told"), [("/proc/nothing/backups", "cannot be written"), ("a_file", "cannot be written")]
)
async def test_a_directory_that_cannot_be_written_is_named(orchestrator, database_url, tmp_path, directory, told):
    (tmp_path / "a_file").write_text("")
    done = await orchestrator("backup", "--to", directory, env={"DATABASE_URL": database_url}, cwd=tmp_path)
    assert done.returncode == 70
    assert told in done.named("service.failed")[0]["error"]


async def test_without_a_directory_the_command_says_what_to_set(orchestrator, database_url):
    done = await orchestrator("backup", env={"DATABASE_URL": database_url})
    assert done.returncode == 78
    assert "BACKUP_DIR" in done.named("service.failed")[0]["error"]


async def test_what_pg_dump_is_refused_is_the_error(orchestrator, server, database_url, admin, backups, known):
    role, password = f"limited_{os.urandom(4).hex()}", f"s3cr3t-pw-{os.urandom(6).hex()}"
    known.secrets.add(password)
    await admin.script(
        database_url, f"CREATE TABLE secret_table (v int); CREATE ROLE {role} LOGIN PASSWORD '{password}'"
    )
    try:
        url = f"postgresql://{role}:{password}@{server.host}:{server.port}/{name_of(database_url)}"
        done = await orchestrator("backup", "--to", str(backups), env={"DATABASE_URL": url})
    finally:
        await admin.script(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert done.returncode == 70
    assert "secret_table" in done.named("service.failed")[0]["error"]
    assert list(backups.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- tools


def tool(version: str) -> Tool:
    return Tool("pg_dump", Path(f"/{version}"), version)


@pytest.mark.parametrize(
    ("installed", "server_major", "chosen"),
    [
        (["15.4", "17.2"], 17, "17.2"),
        (["17.2", "15.4", "18.1"], 15, "15.4"),  # the server's own: what 18 writes, 15 cannot take back
        (["16.1", "18.1"], 15, "16.1"),
        (["15.4", "15.10", "15.9"], 15, "15.10"),
        (["18beta1"], 18, "18beta1"),
        (["14.1", "13"], 15, None),
        ([], 15, None),
    ],
)
def test_of_several_pg_dumps_the_servers_own_major_or_the_nearest_above_is_chosen(installed, server_major, chosen):
    found = pgtools.choose([tool(version) for version in installed], server_major)
    assert (found and found.version) == chosen


def stand_in(directory: Path, version: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "pg_dump"
    script.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}'\n")
    script.chmod(0o755)


async def test_a_pg_dump_that_is_missing_or_too_old_is_an_error_that_names_the_version(
    tmp_path, monkeypatch, server, database_url, orchestrator, backups
):
    old, new = tmp_path / "old", tmp_path / "new"
    stand_in(old, "97.3 (Debian 97.3-1)")
    stand_in(new, "98.1")
    monkeypatch.setenv("PATH", f"{old}:{os.environ['PATH']}")
    with pytest.raises(PgToolMissingError) as caught:
        await pgtools.find("pg_dump", at_least=98, purpose="a backup of PostgreSQL 98")
    assert "needs pg_dump 98 or newer" in caught.value.message
    assert f"97.3 ({old}/pg_dump)" in caught.value.message
    assert "postgresql-client-98" in caught.value.remedy
    assert caught.value.exit_code == 78
    monkeypatch.setenv("PATH", f"{old}:{new}:{os.environ['PATH']}")
    assert (await pgtools.find("pg_dump", at_least=98, purpose="")).path == new / "pg_dump"


def server_before_17() -> Path | None:
    return next((p for p in sorted(Path("/usr/lib/postgresql").glob("1[456]/bin")) if (p / "initdb").exists()), None)


async def test_a_server_older_than_every_pg_restore_is_restored_by_way_of_psql(tmp_path, monkeypatch, admin, known):
    """pg_restore 17 and newer send a setting that older servers refuse."""
    old = server_before_17()
    if old is None:
        pytest.skip("no server older than 17 is installed (Debian: postgresql-15)")
    monkeypatch.setattr(pgtools, "_PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    async with embedded_postgres(tmp_path / "cluster", lambda *_, **__: None, durable=False, bin_dir=old) as server:
        known.secrets.add(dsns.parse(server.dsn).password)
        await admin.script(server.dsn, RICH)
        dsn = dsns.parse(server.dsn)
        connection = await connect_once(dsn, timeout_s=5, application_name="test")
        events = []
        try:
            backup = await take_backup(connection, dsn, order(tmp_path), lambda *e, **f: events.append((e, f)))
        finally:
            await close(connection)
        assert int(backup.manifest.pg_dump_version.split(".")[0]) >= 17
        tested = await prove_backup(
            backup,
            dsn,
            read_ledgers=no_ledgers,
            emit=lambda *e, **f: events.append((e, f)),
            with_own_rights=False,
        )
    assert tested.differences == ()


# ----------------------------------------------------------------------------------------------------------- restoring


async def test_a_restore_puts_the_backup_in_place_and_keeps_what_was_there(
    orchestrator, server, database_url, admin, backups, drop_kept
):
    name = name_of(database_url)
    await admin.script(database_url, RICH)
    await admin.script(
        server.dsn(),
        f"ALTER DATABASE {name} SET search_path TO '$user', public; ALTER DATABASE {name} SET work_mem = '5MB';"
        f" ALTER DATABASE {name} CONNECTION LIMIT 77; COMMENT ON DATABASE {name} IS 'it''s ours';"
        f" REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO pg_monitor",
    )
    properties = (
        "SELECT datdba, datconnlimit, datacl::text, encoding, datcollate, datctype,"
        " shobj_description(d.oid, 'pg_database'), (SELECT array_agg(setconfig) FROM pg_db_role_setting"
        " WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = $1"
    )
    before = await admin(server.dsn(), properties, name)
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    made = (await taken(orchestrator, env))["backup"]
    await admin.script(database_url, "DROP TABLE people CASCADE; CREATE TABLE later (v int)")

    done = await orchestrator("restore", Path(made["path"]).name, "--yes", "--json", env=env)

    assert done.returncode == 0, done.stderr
    restored = json.loads(done.stdout)
    assert restored["database"] == name
    assert await admin.value(database_url, "SELECT count(*) FROM people") == 500
    assert await admin.value(database_url, "SELECT to_regclass('later')") is None
    assert await admin(server.dsn(), properties, name) == before
    kept = server.dsn(restored["kept_as"])
    assert await admin.value(kept, "SELECT to_regclass('later')") is not None
    (completed,) = done.named("restore.completed")
    assert completed["kept_as"] == restored["kept_as"]
    for statement in restored["go_back"]:
        await admin.script(server.dsn(), statement)
    assert await admin.value(database_url, "SELECT to_regclass('later')") is not None
    assert await scratch_left(server, admin) == []


@pytest.mark.parametrize(
    ("line", "is_same"),
    [
        ('ALTER TABLE ONLY public.t ALTER COLUMN "a b" SET (pg_attver=542312256);', True),
        ("ALTER TABLE ONLY public.t ALTER COLUMN v SET (n_distinct=5);", False),
        ("SET default_tablespace = '';", True),
        ("-- a word", True),
        ("ALTER TABLE public.t OWNER TO other;", False),
    ],
)
def test_what_no_restore_can_keep_is_no_difference_of_two_schemas(line, is_same):
    """pg_attver: when the column was made, which some builds of the server write into its options."""
    script = "--\n-- Name: t; Type: TABLE; Schema: public; Owner: me\n--\n\nCREATE TABLE public.t (v int);\n{}\n"
    plain, other = (statements_of(script.format(text).encode()) for text in ("", line))
    assert list(plain) == ["TABLE public.t"]
    assert (plain == other) is is_same


async def test_sessions_on_the_database_refuse_a_restore_unless_they_are_to_be_terminated(
    orchestrator, server, database_url, admin, backups, drop_kept, wait_until
):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    async with orchestrator.running("serve", env=env) as service:
        await service.phase("ready")
        made = (await taken(orchestrator, env))["backup"]
        refused = await orchestrator("restore", made["path"], "--yes", env=env)
        assert refused.returncode == 70
        (failed,) = refused.named("service.failed")
        assert "sessions are on the database" in failed["error"]
        assert any(s["application_name"].startswith("orchestrator") for s in failed["sessions"])
        assert "--force" in failed["remedy"]
        assert await scratch_left(server, admin) == []
        forced = await orchestrator("restore", made["path"], "--yes", "--force", "--json", env=env)
        assert forced.returncode == 0, forced.stderr
        assert json.loads(forced.stdout)["terminated"] >= 1
        # The service goes on, on the database that has the name now.
        await service.event("jobs.connection_restored")
        await service.until_health(200)
        assert service.returncode is None


async def test_a_restore_asks_and_without_a_terminal_wants_yes(
    orchestrator, server, database_url, admin, backups, known
):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    made = (await taken(orchestrator, env))["backup"]
    done = await orchestrator("restore", made["path"], env=env)
    assert done.returncode == 78
    assert "--yes" in done.named("service.failed")[0]["error"]
    ours, theirs = os.openpty()
    try:
        asked = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", "restore", made["path"]),
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=theirs,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
        )
        os.write(ours, b"n\n")
        await asked.communicate()
        printed = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert asked.returncode == 1
    assert name_of(database_url).encode() in printed
    assert b"Nothing was changed" in printed
    assert server.password.encode() not in printed
    kept = "SELECT count(*) FROM pg_database WHERE datname LIKE $1"
    assert await admin.value(server.dsn(), kept, f"{name_of(database_url)}_before%") == 0


async def test_a_restore_that_is_stopped_leaves_nothing_and_changes_nothing(
    orchestrator, server, database_url, admin, tcp_proxy, backups
):
    await admin.script(database_url, "CREATE TABLE t AS SELECT md5(g::text) AS v FROM generate_series(1, 150000) g")
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    made = (await taken(orchestrator, env))["backup"]
    async with orchestrator.running("restore", made["path"], "--yes", env=env) as run:
        await run.event("restore.started")
        tcp_proxy.stall()
        run.send_signal(signal.SIGTERM)
        tcp_proxy.resume()
        assert await run.wait() == 143
    assert await scratch_left(server, admin) == []
    assert await admin.value(database_url, "SELECT count(*) FROM t") == 150000


async def test_a_restore_that_loses_its_session_says_so_and_what_another_left_is_named(
    orchestrator, server, database_url, admin, backups
):
    await admin.script(database_url, "CREATE TABLE t AS SELECT md5(g::text) AS v FROM generate_series(1, 150000) g")
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    made = (await taken(orchestrator, env))["backup"]
    left = f"orchestrator_restore_{secrets.token_hex(4)}"
    await admin.script(server.dsn(), f"CREATE DATABASE {left}")
    try:
        async with orchestrator.running("restore", made["path"], "--yes", env=env) as run:
            await run.event("restore.started")
            end = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'postgres'"
                " AND application_name = 'orchestrator restore'"
            )
            assert await admin.value(server.dsn(), end) >= 1
            assert await run.wait() == 69
        assert "the restore: the connection to" in run.events[-1]["error"]
        named = next(event for event in run.events if event["event"] == "restore.left_behind")
        assert left in named["databases"]
        assert f'DROP DATABASE "{left}";' in named["hint"]
    finally:
        await admin.script(server.dsn(), f"DROP DATABASE {left}")
    assert await scratch_left(server, admin) == []


async def test_the_owner_of_a_database_needs_no_more_than_createdb(
    orchestrator, server, database_url, admin, backups, known, drop_kept
):
    role, password = f"owner_{os.urandom(4).hex()}", f"s3cr3t-pw-{os.urandom(6).hex()}"
    known.secrets.add(password)
    name = name_of(database_url)
    await admin.script(
        server.dsn(), f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{password}'; ALTER DATABASE {name} OWNER TO {role}"
    )
    # What DSNs hold for other clients goes to pg_dump as well.
    url = f"postgresql://{role}:{password}@{server.host}:{server.port}/{name}?options=-c%20work_mem%3D5MB&timezone=UTC"
    env = {"DATABASE_URL": url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    try:
        assert (await orchestrator("migrate", env=env)).returncode == 0
        made = (await taken(orchestrator, env, "--test"))["backup"]
        async with admin.connection(database_url):
            refused = await orchestrator("restore", made["path"], "--yes", "--force", env=env)
        assert refused.returncode == 70
        (failed,) = refused.named("service.failed")
        assert failed["sqlstate"] == "42501"  # a superuser's session is not theirs to end
        await admin.script(server.dsn(), f'DROP DATABASE "{failed["restored_as"]}"')
        done = await orchestrator("restore", made["path"], "--yes", "--json", env=env)
        assert done.returncode == 0, done.stderr
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1"
        assert await admin.value(server.dsn(), owner, name) == role
        assert done.named("restore.property_not_copied") == []
    finally:
        for (one,) in await admin(
            server.dsn(), "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = $1", role
        ):
            await admin.script(server.dsn(), f'ALTER DATABASE "{one}" OWNER TO {server.user}')
            await admin.script(server.dsn(one), f"REASSIGN OWNED BY {role} TO {server.user}; DROP OWNED BY {role}")
        await admin.script(server.dsn(), f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("right", "told"), [("NOCREATEDB", "may not create databases"), ("CREATEDB", "does not own the database")]
)
async def test_a_right_that_is_missing_is_named_before_anything_is_done(
    orchestrator, server, database_url, admin, backups, known, right, told
):
    made = (await taken(orchestrator, {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}))[
        "backup"
    ]
    role, password = f"limited_{os.urandom(4).hex()}", f"s3cr3t-pw-{os.urandom(6).hex()}"
    known.secrets.add(password)
    await admin.script(server.dsn(), f"CREATE ROLE {role} LOGIN {right} PASSWORD '{password}'")
    try:
        url = f"postgresql://{role}:{password}@{server.host}:{server.port}/{name_of(database_url)}"
        done = await orchestrator("restore", made["path"], "--yes", env={"DATABASE_URL": url})
    finally:
        await admin.script(server.dsn(), f"DROP ROLE {role}")
    assert done.returncode == 70
    (failed,) = done.named("service.failed")
    assert told in failed["error"]
    assert failed["sqlstate"] == "42501"
    assert role in failed["remedy"]


async def test_a_damaged_backup_is_refused_and_nothing_changes(orchestrator, server, database_url, admin, backups):
    await admin.script(database_url, RICH)
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    path = Path((await taken(orchestrator, env))["backup"]["path"])
    whole = read(path)
    middle = len(whole) // 2

    write(path, whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    flipped = await orchestrator("restore", str(path), "--yes", env=env)
    write(path, whole[:-1])
    shortened = await orchestrator("restore", str(path), "--yes", env=env)
    listed = await orchestrator("backup", "--list", "--json", env=env)

    assert (flipped.returncode, shortened.returncode) == (70, 70)
    assert "SHA-256" in flipped.named("service.failed")[0]["error"]
    assert "bytes" in shortened.named("service.failed")[0]["error"]
    assert json.loads(listed.stdout) == {"backups": []}
    assert await admin.value(database_url, "SELECT count(*) FROM people") == 500
    assert await scratch_left(server, admin) == []


async def test_a_restore_that_is_not_what_the_manifest_says_never_gets_the_name(
    orchestrator, server, database_url, admin, backups
):
    await admin.script(database_url, RICH)
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    path = Path((await taken(orchestrator, env))["backup"]["path"])
    manifest = path.with_name(f"{path.name}.json")
    manifest.write_text(manifest.read_text().replace('"public.people": 500', '"public.people": 501'))

    tested = await orchestrator("backup", "--test", str(path), "--unverified", "--json", env=env)
    done = await orchestrator("restore", str(path), "--yes", "--unverified", env=env)

    assert tested.returncode == 1
    assert json.loads(tested.stdout)["test"]["differences"] == [
        "table public.people: 500 rows, the backup has 501 rows"
    ]
    assert done.returncode == 70
    assert "public.people" in done.named("service.failed")[0]["error"]
    assert await scratch_left(server, admin) == []


# --------------------------------------------------------------------------------------------------- before migrations


async def test_a_backup_is_made_under_the_lock_before_pending_migrations_and_only_then(
    orchestrator, database_url, admin, backups, tmp_path
):
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a (v int); INSERT INTO a VALUES (1);"})
    env = {
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": str(folder),
        "BACKUP_DIR": str(backups),
        "BACKUP_KEY": KEY,
        "BACKUP_BEFORE_MIGRATE": "pending",
    }
    first = await orchestrator("migrate", env=env)
    assert first.returncode == 0, first.stderr
    write_folder(folder, {"0000_a": "CREATE TABLE a (v int); INSERT INTO a VALUES (1);", "0001_b": "DROP TABLE a;"})
    async with orchestrator.running("serve", env=env) as service:
        await service.event("service.ready")
        events = [e["event"] for e in service.events]
        told = ["lock.acquired", "backup.started", "backup.completed", "migration.applied", "service.ready"]
        assert [events.index(name) for name in told] == sorted(events.index(name) for name in told)
        _, health = await service.health()
        assert health["checks"]["backup"]["status"] == "ok"
    third = await orchestrator("migrate", env=env)
    assert third.named("backup.started") == []
    always = await orchestrator("migrate", env={**env, "BACKUP_BEFORE_MIGRATE": "always"})
    assert len(always.named("backup.completed")) == 1

    made = await asyncio.to_thread(read_backups, backups)
    assert [(b.manifest.reason, b.manifest.pending) for b in made[:2]] == [("before_migrate", 0), ("before_migrate", 1)]
    assert made[1].manifest.tables["public.a"] == 1


@pytest.mark.parametrize("directory", ["", "/proc/nothing"])
async def test_no_backup_no_migration(orchestrator, database_url, admin, tmp_path, directory):
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a ();"})
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": directory}
    done = await orchestrator("serve", env={**env, "BACKUP_BEFORE_MIGRATE": "pending"})
    assert done.returncode == 70
    (failed,) = done.named("service.failed")
    assert "backup" in failed["error"]
    assert "BACKUP_DIR" in failed["error"] + failed["remedy"]
    tables = await admin.value(
        database_url, "SELECT count(*) FROM pg_namespace WHERE nspname IN ('orchestrator', 'drizzle')"
    )
    assert tables == 0


async def test_a_pg_dump_that_fails_stops_the_migration_and_a_server_that_goes_away_only_delays_it(
    orchestrator, server, database_url, admin, backups, tmp_path, wait_until
):
    await admin.script(database_url, "CREATE TABLE t (v int)")
    folder = write_folder(tmp_path / "drizzle", {"0000_a": "CREATE TABLE a ();"})
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    env["BACKUP_BEFORE_MIGRATE"] = "pending"
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = 'orchestrator backup'"
        " AND wait_event_type = 'Lock'"
    )
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name ~ $2"
    async with admin.connection(database_url) as holder, holder.transaction():
        await holder.execute("LOCK t")
        async with orchestrator.running("migrate", env=env) as run:
            await wait_until(lambda: admin(server.dsn(), waiting, name_of(database_url)))
            await admin(server.dsn(), end, name_of(database_url), "^orchestrator backup$")
            assert await run.wait() == 70
            (failed,) = [e for e in run.events if e["event"] == "service.failed"]
            assert failed["error"].startswith("no backup, and so no migration")
            assert "BACKUP_BEFORE_MIGRATE=never" in failed["remedy"]
        async with orchestrator.running("migrate", env=env) as run:
            await wait_until(lambda: admin(server.dsn(), waiting, name_of(database_url)))
            await admin(server.dsn(), end, name_of(database_url), "^orchestrator (backup|migrate)$")
            await run.event("database.lost")
            await holder.execute("ROLLBACK; BEGIN")
            assert await run.wait() == 0
    assert len(await asyncio.to_thread(read_backups, backups)) == 1


# ---------------------------------------------------------------------------------------------------------- retention

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def backup(
    days_ago: float, *, ledger: int = 1, reason: str = "job", pending: int = 0, path: Path | None = None
) -> Backup:
    name = f"{days_ago:07.3f}.dump"
    manifest = Manifest(
        format="orchestrator.backup/1",
        file=name,
        size_bytes=1,
        sha256="",
        taken_at=NOW - timedelta(days=days_ago),
        duration_s=1.0,
        reason=reason,
        database="app",
        system_identifier="1",
        server_version="18.1",
        server_major=18,
        pg_dump_version="18.1",
        orchestrator_version="0",
        ledgers=[LedgerState("drizzle", "l", ledger, ledger)],
        tables={},
        pending=pending,
    )
    return Backup((path or Path("/b")) / name, manifest)


def ages(found: list[Backup]) -> list[float]:
    return [round((NOW - b.manifest.taken_at).total_seconds() / 86400, 3) for b in found]


@pytest.mark.parametrize(
    ("given", "keep", "max_age_days", "gone"),
    [
        ([], 2, 0, []),
        ([backup(d) for d in (0, 1, 2, 3)], 2, 0, [2, 3]),
        ([backup(d) for d in (0, 1, 2, 3)], 0, 0, []),
        ([backup(d) for d in (0, 1, 2, 3)], 0, 1.5, [2, 3]),
        ([backup(d) for d in (5, 6)], 0, 1, [6]),  # never the newest
        # Never the newest from before the newest migrations, however old.
        ([*(backup(d, ledger=2) for d in (0, 1, 2)), backup(8), backup(9)], 2, 3, [2, 9]),
        # A migration that fails at every restart: the first and the last try stay, and push nothing else out.
        (
            [*(backup(d / 1000, reason="before_migrate", pending=1) for d in range(9)), backup(1), backup(2)],
            4,
            0,
            [d / 1000 for d in range(1, 8)],
        ),
        # `always` with nothing pending is a backup like others.
        ([backup(d, reason="before_migrate") for d in (0, 1, 2)], 2, 0, [2]),
    ],
)
def test_what_retention_removes(given, keep, max_age_days, gone):
    assert ages(superfluous(given, keep=keep, max_age_s=max_age_days * 86400, now=NOW)) == gone


async def test_retention_never_touches_what_is_not_ours(orchestrator, make_database, backups):
    one, other = await make_database(), await make_database()
    env = {"BACKUP_DIR": str(backups), "BACKUP_KEY": KEY, "BACKUP_KEEP": "1"}
    of_other = (await taken(orchestrator, {**env, "DATABASE_URL": other}))["backup"]
    (backups / "old.dump").write_bytes(b"PGDMP")
    (backups / "old.dump.json").write_text('{"format": "another"}')
    (backups / "notes.txt").write_text("x")
    paths = [(await taken(orchestrator, {**env, "DATABASE_URL": one})) for _ in range(2)]

    assert [one["path"] for one in paths[1]["removed"]] == [paths[0]["backup"]["path"]]
    left = {Path(of_other["path"]).name, Path(paths[1]["backup"]["path"]).name}
    assert {p.name for p in backups.iterdir()} == {
        *("old.dump", "old.dump.json", "notes.txt"),
        *left,
        *(f"{name}.json" for name in left),
    }
    elsewhere = backups / "elsewhere"
    elsewhere.mkdir()
    for _ in range(2):
        assert (await taken(orchestrator, {**env, "DATABASE_URL": one}, "--to", str(elsewhere)))["removed"] == []


# --------------------------------------------------------------------------------------------------------- going back


@pytest.mark.parametrize("generation", ["v0", "v1"])
async def test_code_that_is_rolled_back_is_told_the_way_back_and_the_way_leads_there(
    orchestrator, database_url, admin, backups, tmp_path, drop_kept, generation
):
    write = write_folder if generation == "v0" else write_v1_folder
    names = ("0000_a", "0001_b", "0002_c") if generation == "v0" else tuple(f"2024010100000{i}_{i}" for i in range(3))
    texts = ["CREATE TABLE a (v int);", "INSERT INTO a VALUES (1);", "DROP TABLE a;"]
    old = write(tmp_path / "old", dict(zip(names[:1], texts, strict=False)))
    new = write(tmp_path / "new", dict(zip(names, texts, strict=False)))
    env = {
        "DATABASE_URL": database_url,
        "BACKUP_DIR": str(backups),
        "BACKUP_KEY": KEY,
        "BACKUP_BEFORE_MIGRATE": "pending",
    }
    assert (await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(old)})).returncode == 0
    assert (await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(new)})).returncode == 0
    before = (await asyncio.to_thread(read_backups, backups))[0]
    await taken(orchestrator, {**env, "MIGRATIONS_DIR": str(new)})  # a later one is no way back

    refused = await orchestrator("serve", env={**env, "MIGRATIONS_DIR": str(old)})

    assert refused.returncode == 70
    (failed,) = refused.named("service.failed")
    today = f"{datetime.now(UTC):%Y-}"
    assert f"ahead: {names[1]}, applied {today}" in failed["error"]
    assert f"ahead: {names[2]}, applied {today}" in failed["error"]
    assert f"`orchestrator restore {before.path}`" in failed["remedy"]
    assert failed["backup"]["file"] == str(before.path)
    if generation == "v1":
        return
    async with orchestrator.running("serve", env={**env, "MIGRATIONS_DIR": str(old), "MIGRATION_AHEAD": "warn"}) as run:
        await run.phase("ready")
        assert (await run.event("migration.ahead"))["applied_at"].startswith(today)
    back = await orchestrator(
        *failed["backup"]["command"].split()[1:], "--yes", env={**env, "MIGRATIONS_DIR": str(old)}
    )
    assert back.returncode == 0, back.stderr
    again = await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(old)})
    assert again.returncode == 0
    assert await admin.value(database_url, "SELECT count(*) FROM a") == 0


async def test_a_database_that_is_ahead_without_a_backup_from_before_says_so(
    orchestrator, database_url, backups, tmp_path
):
    files = {"0000_a": "CREATE TABLE a (v int);", "0001_b": "DROP TABLE a;"}
    new = write_folder(tmp_path / "new", files)
    old = write_folder(tmp_path / "old", {"0000_a": files["0000_a"]})
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    assert (await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(new)})).returncode == 0
    await taken(orchestrator, {**env, "MIGRATIONS_DIR": str(new)})
    refused = await orchestrator("migrate", env={**env, "MIGRATIONS_DIR": str(old)})
    assert refused.returncode == 70
    assert "no backup from before" in refused.named("service.failed")[0]["remedy"]


async def test_remove_superfluous_says_what_it_removed(tmp_path):
    import msgspec

    events = []
    for days in (0, 1):
        one = backup(days, path=tmp_path)
        one.path.write_bytes(b"x")
        one.path.with_name(f"{one.path.name}.json").write_bytes(msgspec.json.encode(one.manifest))
    gone = await remove_superfluous(
        tmp_path, backup(0).manifest, lambda name, **facts: events.append((name, facts["file"])), keep=1, max_age_s=0
    )
    assert events == [("backup.removed", str(gone[0].path))]
    assert len(list(tmp_path.iterdir())) == 2
