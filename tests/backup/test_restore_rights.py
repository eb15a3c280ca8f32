"""What a database's users put into it runs with no right of ours: in no backup, test, rehearsal or restore."""

import asyncio
import hashlib
import json
import os
import re
import secrets
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator import dsn as dsns
from orchestrator.backup import pgtools
from orchestrator.embedded.server import embedded_postgres

KEY = "a-key-that-signs-the-backups"

# `climb` takes what it can get: from the user that runs it, and from the one that logged in. `quiet` is what an index
# or a generated column may call: it says that it is immutable, and calls `climb` all the same.
CLIMB = """
CREATE FUNCTION public.climb() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    BEGIN
        PERFORM set_config('role', session_user, false);
        EXECUTE 'ALTER ROLE {role} SUPERUSER';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN 1;
END $$;
CREATE FUNCTION public.quiet(v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    PERFORM public.climb();
    RETURN v;
END $$;
"""
ATTACKS = {
    "a check": "CREATE TABLE t (v int CHECK (public.climb() = 1)); INSERT INTO t VALUES (1)",
    "an index": "CREATE TABLE t (v int); INSERT INTO t VALUES (1); CREATE INDEX ON t (public.quiet(v))",
    "a constant in an index": "CREATE TABLE t (v int); CREATE INDEX ON t ((public.quiet(1) + v))",
    "a predicate of an index": "CREATE TABLE t (v int); CREATE INDEX ON t (v) WHERE public.quiet(1) = v",
    "statistics": "CREATE TABLE t (v int, w int); CREATE STATISTICS s ON (public.quiet(1) + v), w FROM t",
    "a generated column": (
        "CREATE TABLE t (v int, w int GENERATED ALWAYS AS (public.quiet(v)) STORED); INSERT INTO t VALUES (1)"
    ),
    "a partition": (
        "CREATE TABLE t (v int) PARTITION BY RANGE ((public.quiet(v)));"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9); INSERT INTO t VALUES (1)"
    ),
    "a materialised view": "CREATE MATERIALIZED VIEW t AS SELECT public.climb() AS v",
    "row security": (
        "CREATE TABLE t (v int); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        " CREATE POLICY p ON t USING (public.climb() = 1)"
    ),
    "a domain": ("CREATE DOMAIN d AS int CHECK (public.climb() = 1); CREATE TABLE t (v d); INSERT INTO t VALUES (1)"),
    "a view that inserts": (
        "CREATE TABLE t (v int); INSERT INTO t VALUES (1);"
        " CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION public.on_insert()"
    ),
}
TRIGGER = (
    "CREATE FUNCTION public.on_insert() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM public.climb(); RETURN NULL; END $$;"
)


def name_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


@pytest.fixture
def backups(tmp_path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    return directory


@pytest.fixture
async def mallory(database_url, admin, server, known):
    """A role that may make tables here and nothing else; its name and DSN."""
    role, password = f"mallory_{secrets.token_hex(4)}", f"s3cr3t-pw-{secrets.token_hex(6)}"
    known.secrets.add(password)
    await admin.script(
        database_url, f"CREATE ROLE {role} LOGIN PASSWORD '{password}'; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
    )
    yield role, f"postgresql://{role}:{password}@{server.host}:{server.port}/{name_of(database_url)}"
    for (name,) in await admin(
        server.dsn(),
        "SELECT datname FROM pg_database WHERE datname ~ '^test_.*_(before|restored)_|^orchestrator_restore_'"
        " OR datname = $1",
        name_of(database_url),
    ):
        await admin.script(server.dsn(), f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.script(server.dsn(), f"DROP ROLE {role}")


async def is_superuser(admin, server, role: str) -> bool:
    return await admin.value(server.dsn(), "SELECT rolsuper FROM pg_roles WHERE rolname = $1", role)


async def left(admin, server) -> list[str]:
    rows = await admin(
        server.dsn(),
        "SELECT rolname::text FROM pg_roles WHERE rolname ~ '^orchestrator_' UNION ALL"
        " SELECT datname::text FROM pg_database WHERE datname ~ '^orchestrator_(restore|scratch)_'",
    )
    return [row[0] for row in rows]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_a_user_put_into_a_table_gets_no_rights_from_a_superuser(
    orchestrator, server, database_url, admin, backups, mallory, attack, tmp_path, write
):
    role, url = mallory
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "MIGRATIONS_DIR": str(tmp_path / "m")}
    write(tmp_path / "m", ("0000_a", "SELECT 1;"))
    assert (await orchestrator("migrate", env=env)).returncode == 0
    await admin.script(url, CLIMB.format(role=role) + TRIGGER + ATTACKS[attack])
    before = await dumped(server, database_url)
    assert not await is_superuser(admin, server, role)

    made = await orchestrator("backup", "--json", env=env)
    assert made.returncode == 0, made.stderr
    assert not await is_superuser(admin, server, role), "a backup"

    tested = await orchestrator("backup", "--test", "--json", env=env)
    assert tested.returncode == 0, tested.stderr
    assert json.loads(tested.stdout)["test"]["isolated"] is True
    assert not await is_superuser(admin, server, role), "a test"

    write(tmp_path / "m", ("0000_a", "SELECT 1;"), ("0001_b", "CREATE TABLE b (); COMMENT ON TABLE b IS 'x';"))
    for arguments in (["--with-data"], []):
        rehearsed = await orchestrator("rehearse", *arguments, env=env)
        assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
        assert not await is_superuser(admin, server, role), "a rehearsal"

    restored = await orchestrator("restore", json.loads(made.stdout)["backup"]["path"], "--yes", env=env)
    assert restored.returncode == 0, restored.stderr
    assert restored.named("restore.started")[0]["isolated"] is True
    assert not await is_superuser(admin, server, role), "a restore"
    assert await dumped(server, database_url) == before
    assert await left(admin, server) == []


async def test_the_attacks_are_attacks(orchestrator, server, database_url, admin, backups, mallory):
    """Without the protection the role climbs: what the other test shows is not that `climb` cannot."""
    role, url = mallory
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups)}
    await admin.script(url, CLIMB.format(role=role) + ATTACKS["a check"])
    done = await orchestrator("backup", "--test", "--with-own-rights", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["isolated"] is False
    assert await is_superuser(admin, server, role)


@pytest.mark.parametrize("attack", ["a constant in an index", "a predicate of an index", "statistics"])
async def test_to_count_the_rows_of_a_table_is_to_run_its_owners_code(server, database_url, admin, mallory, attack):
    """Why the rows of others' tables are counted as COPY sends them."""
    role, url = mallory
    await admin.script(url, CLIMB.format(role=role) + ATTACKS[attack])
    await admin.value(database_url, "SELECT count(*) FROM ONLY t")
    assert await is_superuser(admin, server, role)


async def dumped(server, url: str) -> list[str]:
    """The schema with owners and rights, as pg_dump writes it."""
    dsn = dsns.parse(url)
    tool = await pgtools.find("pg_dump", at_least=server.major, purpose="a test")
    environment = pgtools.environment(dsn, application_name="test")
    run = pgtools.Run(tool, ["--schema-only", "--no-password"], environment, dsn.secrets, lambda *_, **__: None)
    text = (await pgtools.output(run)).decode()
    return [line for line in text.splitlines() if not line.startswith(("\\", "--"))]


# What a role without rights cannot make, and what it must give to others.
WITH_OWNERS = """
CREATE SCHEMA private AUTHORIZATION {role};
CREATE SCHEMA "ext end""ed"; COMMENT ON SCHEMA "ext end""ed" IS 'for extensions';
CREATE EXTENSION pg_trgm WITH SCHEMA "ext end""ed";
CREATE EXTENSION pageinspect;
COMMENT ON EXTENSION pageinspect IS 'looked into';
COMMENT ON SCHEMA public IS 'open to all';
CREATE TABLE private.people (id serial PRIMARY KEY, email text UNIQUE, at timestamptz DEFAULT now());
CREATE SEQUENCE private.a_first; ALTER SEQUENCE private.a_first OWNED BY private.people.id;
INSERT INTO private.people (email) SELECT g || '@example.org' FROM generate_series(1, 100) g;
ALTER TABLE private.people OWNER TO {role};
ALTER TABLE private.people ENABLE ROW LEVEL SECURITY; ALTER TABLE private.people FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON private.people TO {role} USING (email = current_user);
CREATE VIEW private.names AS SELECT email FROM private.people; ALTER VIEW private.names OWNER TO {role};
CREATE MATERIALIZED VIEW private.totals AS SELECT 1 AS n; ALTER MATERIALIZED VIEW private.totals OWNER TO {role};
CREATE TYPE private.mood AS ENUM ('fine'); ALTER TYPE private.mood OWNER TO {role};
CREATE DOMAIN private.small AS int CHECK (VALUE < 10);
CREATE FUNCTION private.twice(v int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT v * 2';
ALTER FUNCTION private.twice(int) OWNER TO {role};
CREATE FUNCTION private.atomic(v int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT v; SELECT v + 1; END;
CREATE FUNCTION public.told() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE FUNCTION public.words() RETURNS text LANGUAGE sql AS $x$ SELECT '
-- Name: x; Type: ACL; Schema: -; Owner: x
ALTER ROLE {role} SUPERUSER;
' $x$;
CREATE EVENT TRIGGER tells ON ddl_command_end EXECUTE FUNCTION public.told();
COMMENT ON EVENT TRIGGER tells IS 'an event trigger';
ALTER EVENT TRIGGER tells DISABLE;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION one FOR TABLE private.people;
GRANT SELECT (email) ON private.people TO PUBLIC;
GRANT USAGE ON SCHEMA private TO PUBLIC WITH GRANT OPTION;
REVOKE EXECUTE ON FUNCTION private.twice(int) FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA private GRANT SELECT ON TABLES TO PUBLIC;
GRANT SELECT ON private.people TO {role} WITH GRANT OPTION;
SELECT lo_from_bytea(4242, 'a large object'); ALTER LARGE OBJECT 4242 OWNER TO {role};
GRANT SELECT ON LARGE OBJECT 4242 TO PUBLIC;
CREATE EXTENSION postgres_fdw; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere');
CREATE USER MAPPING FOR {role} SERVER elsewhere OPTIONS (user 'x', password 'y');
CREATE FOREIGN TABLE public.far (v int) SERVER elsewhere;
""".replace("WITH GRANT OPTION;\nREVOKE", ";\nREVOKE")


async def test_a_restore_by_a_role_without_rights_gives_everything_its_owner_and_its_rights(
    orchestrator, server, database_url, admin, backups, mallory
):
    role, _ = mallory
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    await admin.script(database_url, WITH_OWNERS.format(role=role))
    before = await dumped(server, database_url)
    large = "SELECT lomowner::regrole::text, lomacl::text FROM pg_largeobject_metadata WHERE oid = 4242"
    large_before = await admin(database_url, large)

    done = await orchestrator("backup", "--test", "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["test"]["differences"] == []
    assert sorted(found["test"]["left_out"]) == [
        "EVENT TRIGGER - tells",
        "PUBLICATION - everything",
        "PUBLICATION - one",
        "PUBLICATION TABLE private one people",
        "USER MAPPING - USER MAPPING " + role + " SERVER elsewhere",
    ]
    restored = await orchestrator("restore", found["backup"]["path"], "--yes", "--json", env=env)
    assert restored.returncode == 0, restored.stderr
    assert await dumped(server, database_url) == before
    assert await admin(database_url, large) == large_before
    assert await admin.value(database_url, "SELECT count(*) FROM private.people") == 100
    assert not await is_superuser(admin, server, role)
    assert await left(admin, server) == []
    # Who may enter is as before, too.
    acl = "SELECT array_to_string(coalesce(datacl, acldefault('d', datdba)), ' ') FROM pg_database WHERE datname = $1"
    assert "=Tc/" in await admin.value(server.dsn(), acl, name_of(database_url))


# ----------------------------------------------------------------------------------------------- who vouches for a file


async def planted(orchestrator, make_database, admin, server, backups, marker: Path, env: dict[str, str]) -> Path:
    """A backup whose archive is another one, which would run a program, with a manifest that fits it."""
    one, other = await make_database(), await make_database()
    own = await orchestrator("backup", "--json", env={**env, "DATABASE_URL": one, "BACKUP_DIR": str(backups)})
    await admin.script(
        other,
        "CREATE FUNCTION public.runs() RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
        f" EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {marker}'''; RETURN 1;"
        " EXCEPTION WHEN OTHERS THEN RETURN 1; END $$;"
        " CREATE TABLE t (v int); INSERT INTO t VALUES (1);"
        " ALTER TABLE t ADD CHECK (public.runs() = 1) NOT VALID",
    )
    evil = await orchestrator("backup", "--json", "--to", str(backups.parent), env={**env, "DATABASE_URL": other})
    path = Path(json.loads(own.stdout)["backup"]["path"])
    content = read(Path(json.loads(evil.stdout)["backup"]["path"]))
    manifest = json.loads(read(path.with_name(f"{path.name}.json")))
    manifest.update(
        sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), tables={"public.t": 1}, ledgers=[]
    )
    write_bytes(path, content)
    write_bytes(path.with_name(f"{path.name}.json"), json.dumps(manifest).encode())
    return path


def read(path: Path) -> bytes:
    return path.read_bytes()


def write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("vouched", ["by a signature", "by the table", "by nobody"])
async def test_an_archive_that_was_altered_with_its_manifest_is_refused(
    orchestrator, server, make_database, admin, backups, tmp_path, vouched, mallory
):
    marker = tmp_path / "a program ran"
    env = {"BACKUP_KEY": KEY} if vouched == "by a signature" else {}
    path = await planted(orchestrator, make_database, admin, server, backups, marker, env)
    url = await make_database()
    if vouched == "by the table":
        assert (await orchestrator("migrate", env={"DATABASE_URL": url})).returncode == 0
        await admin.script(
            url,
            "INSERT INTO orchestrator.backups (taken_at, file, sha256, manifest_hash, size_bytes, duration_s, reason)"
            f" VALUES (now(), '{path.name}', 'x', 'x', 1, 1, 'job')",
        )
    for command in (["restore", str(path), "--yes"], ["backup", "--test", str(path)]):
        done = await orchestrator(*command, env={**env, "DATABASE_URL": url})
        assert done.returncode == 70
        (failed,) = done.named("service.failed")
        assert "nobody vouches for" in failed["error"]
        assert "--unverified" in failed["remedy"]
    assert not marker.exists()
    assert await left(admin, server) == []
    # Told to trust the file, a restore still gives its code no rights.
    done = await orchestrator("restore", str(path), "--yes", "--unverified", env={**env, "DATABASE_URL": url})
    assert done.returncode == 0, done.stderr
    assert await admin.value(url, "SELECT count(*) FROM t") == 1
    assert not marker.exists()


async def test_a_backup_is_vouched_for_by_its_key_on_any_server_and_by_the_table_on_its_own(
    orchestrator, make_database, admin, backups, mallory
):
    url, elsewhere = await make_database(), await make_database()
    env = {"DATABASE_URL": url, "BACKUP_DIR": str(backups)}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    plain = json.loads((await orchestrator("backup", "--json", env=env)).stdout)["backup"]
    signed = json.loads((await orchestrator("backup", "--json", env={**env, "BACKUP_KEY": KEY})).stdout)["backup"]
    assert plain["signature"] == ""
    assert re.fullmatch(r"[0-9a-f]{64}", signed["signature"])

    async def voucher(made: dict, **more: str) -> str | None:
        done = await orchestrator("restore", made["path"], "--yes", env={**env, **more})
        assert done.returncode in {0, 70}, done.stderr
        return done.named("restore.started")[0]["vouched_for_by"] if done.returncode == 0 else None

    assert await voucher(plain, DATABASE_URL=elsewhere) is None
    assert await voucher(signed, DATABASE_URL=elsewhere) is None
    assert await voucher(signed, DATABASE_URL=elsewhere, BACKUP_KEY="another-key-of-somebody") is None
    assert await voucher(signed, DATABASE_URL=elsewhere, BACKUP_KEY=KEY) == "signature"
    # The database that is put in place goes on to know what the old one knew: both, and again.
    assert [await voucher(plain), await voucher(signed), await voucher(plain)] == ["table"] * 3


async def test_the_backup_before_the_first_migrations_is_known_after_them(
    orchestrator, database_url, backups, tmp_path, write, mallory
):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"))
    env = {
        "DATABASE_URL": database_url,
        "BACKUP_DIR": str(backups),
        "MIGRATIONS_DIR": str(tmp_path / "m"),
        "BACKUP_BEFORE_MIGRATE": "pending",
    }
    done = await orchestrator("migrate", env=env)
    assert done.returncode == 0, done.stderr
    (path,) = backups.glob("*.dump")
    restored = await orchestrator("restore", str(path), "--yes", env=env)
    assert restored.returncode == 0, restored.stderr
    assert restored.named("restore.started")[0]["vouched_for_by"] == "table"


# ------------------------------------------------------------------------------------------------------------ the role


@pytest.mark.parametrize(("right", "isolated"), [("NOCREATEROLE", False), ("CREATEROLE", True)])
async def test_where_no_role_can_be_made_the_own_rights_have_to_do_and_that_is_said(
    orchestrator, server, database_url, admin, backups, known, right, isolated
):
    role, password = f"owner_{secrets.token_hex(4)}", f"s3cr3t-pw-{secrets.token_hex(6)}"
    known.secrets.add(password)
    name = name_of(database_url)
    await admin.script(
        server.dsn(),
        f"CREATE ROLE {role} LOGIN CREATEDB {right} PASSWORD '{password}'; ALTER DATABASE {name} OWNER TO {role}",
    )
    url = f"postgresql://{role}:{password}@{server.host}:{server.port}/{name}"
    try:
        await admin.script(
            url, "CREATE TABLE t (v int); ALTER TABLE t ENABLE ROW LEVEL SECURITY; INSERT INTO t VALUES (1), (2)"
        )
        done = await orchestrator("backup", "--test", "--json", env={"DATABASE_URL": url, "BACKUP_DIR": str(backups)})
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["test"]["isolated"] is isolated
        said = done.named("restore.not_isolated")
        assert [one["user"] for one in said] == ([] if isolated else [role])
        assert await left(admin, server) == []
    finally:
        await admin.script(server.dsn(), f"ALTER DATABASE {name} OWNER TO {server.user}")
        await admin.script(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


@asynccontextmanager
async def unfriendly_server(directory: Path, known):
    """A server that lets nobody in but its superuser."""
    async with embedded_postgres(directory / "cluster", lambda *_, **__: None, durable=False) as server:
        dsn = dsns.parse(server.dsn)
        known.secrets.add(dsn.password)
        yield server.dsn, dsn.user


async def test_a_superuser_whose_server_admits_no_role_is_refused_unless_it_is_told(
    orchestrator, admin, tmp_path, known, backups
):
    async with unfriendly_server(tmp_path, known) as (url, user):
        (file,) = await asyncio.to_thread(lambda: list(tmp_path.rglob("pg_hba.conf")))
        write_bytes(file, f"host all {user} all scram-sha-256\nlocal all {user} scram-sha-256\n".encode())
        await admin.script(url, "SELECT pg_reload_conf(); CREATE TABLE t (v int)")
        env = {"DATABASE_URL": url, "BACKUP_DIR": str(backups)}
        done = await orchestrator("backup", "--test", env=env)
        assert done.returncode == 78, done.stderr
        (failed,) = done.named("service.failed")
        assert "cannot log in" in failed["error"]
        assert "--with-own-rights" in failed["remedy"]
        found = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^orchestrator_'"
        assert await admin.value(url, found) == 0
        told = await orchestrator("backup", "--test", "--with-own-rights", "--json", env=env)
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["test"]["differences"] == []


async def test_the_role_of_a_killed_restore_is_swept_and_the_database_was_closed_to_others(
    orchestrator, server, database_url, admin, backups, wait_until, mallory
):
    _, url = mallory
    await admin.script(
        database_url,
        "CREATE FUNCTION public.slow() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1 FROM pg_sleep(60)';"
        "CREATE MATERIALIZED VIEW m AS SELECT public.slow() AS v WITH NO DATA; CREATE TABLE t (v int);"
        "ALTER TABLE t ADD CHECK (public.slow() = 1) NOT VALID",
    )
    await admin.script(
        database_url,
        "ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t DROP CONSTRAINT t_check; INSERT INTO t VALUES (1);"
        "ALTER TABLE t ADD CHECK (public.slow() = 1) NOT VALID",
    )
    # NOT VALID is restored after the rows: a domain is asked for each row.
    await admin.script(
        database_url,
        "CREATE DOMAIN d AS int; CREATE TABLE u (v d); INSERT INTO u VALUES (1);"
        "ALTER DOMAIN d ADD CHECK (public.slow() = 1) NOT VALID",
    )
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups)}
    async with orchestrator.running("backup", "--test", env=env) as run:
        started = await run.event("backup.test_started", timeout_s=60)
        scratch = started["database"]
        with pytest.raises(Exception, match="permission denied for database"):
            await admin.value(url.replace(name_of(database_url), scratch), "SELECT 1")
        (role,) = [
            row[0]
            for row in await admin(
                server.dsn(), "SELECT rolname::text FROM pg_roles WHERE rolname ~ '^orchestrator_restricted_'"
            )
        ]
        rights = (
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls OR EXISTS"
            " (SELECT 1 FROM pg_auth_members WHERE member = r.oid) FROM pg_roles r WHERE rolname = $1"
        )
        assert await admin.value(server.dsn(), rights, role) is False
        await wait_until(
            lambda: admin(server.dsn(), "SELECT FROM pg_stat_activity WHERE usename = $1", role), 30, "it restores"
        )
        run.send_signal(signal.SIGKILL)
        await run.wait()
    assert await left(admin, server) != []
    await admin.script(
        server.dsn(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ~ '^orchestrator_'"
    )
    await admin.script(database_url, "DROP TABLE t, u; DROP DOMAIN d; DROP MATERIALIZED VIEW m")

    async def is_swept() -> bool:
        done = await orchestrator("backup", "--test", env=env)
        assert done.returncode == 0, done.stderr
        return await left(admin, server) == []

    await wait_until(is_swept, 60)


# ------------------------------------------------------------------------------------------- what stands in a directory


@pytest.mark.parametrize("version", ["abc", "", "17devel", "-3"])
async def test_a_manifest_that_makes_no_sense_is_named(orchestrator, database_url, backups, version):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups)}
    made = json.loads((await orchestrator("backup", "--json", env=env)).stdout)["backup"]
    manifest = Path(f"{made['path']}.json")
    told = json.loads(read(manifest))
    told["pg_dump_version"] = version
    write_bytes(manifest, json.dumps(told).encode())
    done = await orchestrator("backup", "--test", made["path"], "--unverified", env=env)
    if version == "17devel":
        assert done.returncode == 0
        return
    assert done.returncode == 70
    assert "pg_dump_version" in done.named("service.failed")[0]["error"]
    assert (await orchestrator("backup", "--list", env=env)).returncode == 0


@pytest.mark.parametrize("suffix", [".dump", ".dump.json", "both"])
async def test_a_pipe_among_the_backups_stops_nobody(orchestrator, database_url, backups, suffix):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups)}
    for end in [".dump", ".dump.json"] if suffix == "both" else [suffix]:
        os.mkfifo(backups / f"pipe{end}")
    os.mkfifo(backups / ".pipe.dump.partial")
    (backups / ("pipe.dump" if suffix == ".dump.json" else "other.dump")).write_text("x")
    listed = await asyncio.wait_for(orchestrator("backup", "--list", "--json", env=env), 20)
    assert json.loads(listed.stdout) == {"backups": []}
    made = await asyncio.wait_for(orchestrator("backup", "--json", env=env), 20)
    assert made.returncode == 0, made.stderr
    refused = await asyncio.wait_for(orchestrator("restore", str(backups / "pipe.dump"), "--yes", env=env), 20)
    assert refused.returncode == 70
    assert "no regular file" in refused.named("service.failed")[0]["error"]


async def test_an_empty_database_is_backed_up_tested_and_restored(orchestrator, database_url, backups, mallory):
    env = {"DATABASE_URL": database_url, "BACKUP_DIR": str(backups), "BACKUP_KEY": KEY}
    done = await orchestrator("backup", "--test", "--json", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["test"]["differences"], found["test"]["tables"]) == ([], 0)
    restored = await orchestrator("restore", found["backup"]["path"], "--yes", env=env)
    assert restored.returncode == 0, restored.stderr


# ----------------------------------------------------------------------------------------------------------------- psql


def server_before_17() -> Path | None:
    return next((p for p in sorted(Path("/usr/lib/postgresql").glob("1[456]/bin")) if (p / "initdb").exists()), None)


async def test_names_in_an_archive_do_not_command_psql(tmp_path, admin, known, monkeypatch):
    """CVE-2025-8714 and 8715: a name with a line break, in the comments of a script."""
    from orchestrator.backup.archive_fill import Archive, fill
    from orchestrator.backup.restricted_role import Place

    old = server_before_17()
    if old is None:
        pytest.skip("no server older than 17 is installed (Debian: postgresql-15)")
    marker = tmp_path / "a program ran"
    monkeypatch.setattr(pgtools, "_PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    async with embedded_postgres(tmp_path / "cluster", lambda *_, **__: None, durable=False, bin_dir=old) as server:
        known.secrets.add(dsns.parse(server.dsn).password)
        await admin.script(server.dsn, f'CREATE TABLE "x\n\\! touch {marker}\n" (v int)')
        await admin.script(server.dsn, "CREATE DATABASE copy")
        dsn = dsns.parse(server.dsn)
        tool = await pgtools.find("pg_dump", at_least=15, purpose="a test")
        environment = pgtools.environment(dsn, application_name="test")
        run = pgtools.Run(tool, ["--format=custom"], environment, dsn.secrets, lambda *_, **__: None)
        fd = os.memfd_create("archive")
        os.write(fd, await pgtools.output(run))
        try:
            copy = dsn.with_database("copy")
            place = Place(copy, copy, isolated=False)
            await fill(
                Archive(fd, "x", tool.major),
                place,
                lambda *_, **__: None,
                application_name="test",
            )
        finally:
            os.close(fd)
        found = "SELECT count(*) FROM pg_class WHERE relname ~ '^x'"
        assert await admin.value(f"{server.dsn.rpartition('/')[0]}/copy", found) == 1
    assert not marker.exists()
