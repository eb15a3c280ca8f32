"""`plan` and `migrate --dry-run`: what they tell, whom they ask for, and that they change nothing."""

import json
import secrets
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

FIRST = """CREATE TABLE users (id serial PRIMARY KEY, email varchar(50), score int);
--> statement-breakpoint
CREATE TABLE posts (id serial PRIMARY KEY, user_id int REFERENCES users (id));
--> statement-breakpoint
INSERT INTO users (email, score) SELECT 'e' || i, i FROM generate_series(1, 20000) AS i;
--> statement-breakpoint
ANALYZE users;"""
SECOND = """ALTER TABLE users ALTER COLUMN email SET DATA TYPE text;
--> statement-breakpoint
ALTER TABLE users ADD COLUMN token uuid DEFAULT gen_random_uuid() NOT NULL;
--> statement-breakpoint
CREATE TABLE fresh (id int PRIMARY KEY, user_id int);
--> statement-breakpoint
ALTER TABLE fresh ADD CONSTRAINT fresh_fk FOREIGN KEY (user_id) REFERENCES users (id);
--> statement-breakpoint
INSERT INTO fresh (id) VALUES (1);
--> statement-breakpoint
INSERT INTO fresh (id) VALUES (2);
--> statement-breakpoint
UPDATE posts SET user_id = NULL;
--> statement-breakpoint
DO $$ BEGIN
 ALTER TABLE posts ADD CONSTRAINT posts_check CHECK (id > 0);
EXCEPTION WHEN duplicate_object THEN null;
END $$;"""
THIRD = "CREATE INDEX CONCURRENTLY users_score ON users (score);"


def write(path: Path, *texts: str, when: list[int] | None = None) -> Path:
    (path / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, text in enumerate(texts):
        tag = f"{number:04}_m{number}"
        (path / f"{tag}.sql").write_text(text)
        moment = when[number] if when else 1000 * (number + 1)
        entries.append({"idx": number, "version": "7", "when": moment, "tag": tag, "breakpoints": True})
    journal = {"version": "7", "dialect": "postgresql", "entries": entries}
    (path / "meta" / "_journal.json").write_text(json.dumps(journal))
    return path


@pytest.fixture
async def half(tmp_path, orchestrator, database_url):
    """A database with the first of three migrations applied."""
    folder = write(tmp_path / "m", FIRST)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    write(folder, FIRST, SECOND, THIRD)
    return env


def user_source(told: dict) -> dict:
    return told["sources"][-1]


def touched(statement: dict) -> dict[str, dict]:
    return {touch["table"]: touch for touch in statement["touches"]}


async def test_it_tells_what_each_statement_does_to_whom_and_writes_nothing(half, orchestrator, admin):
    before = await admin(half["DATABASE_URL"], "SELECT * FROM drizzle.__drizzle_migrations")
    done = await orchestrator("plan", "--json", env=half)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["would_run"]
    assert told["pending"] == 2
    second, third = user_source(told)["pending"]
    statements = second["statements"]
    assert [s["kind"] for s in statements] == [
        *("ALTER TABLE", "ALTER TABLE", "CREATE TABLE", "ALTER TABLE", "INSERT", "UPDATE", "DO"),
    ]
    assert statements[0]["notes"] == ["varchar(50) → text keeps the stored values: no rewrite"]
    rewritten = touched(statements[1])["users"]
    assert rewritten["lock"] == "AccessExclusiveLock"
    assert rewritten["blocks"] == "reads and writes"
    assert rewritten["rewrites"].startswith("the default calls gen_random_uuid(), which is volatile")
    assert rewritten["rows"] == 20000
    assert rewritten["size_bytes"] > 500_000
    assert rewritten["hurts"]
    assert touched(statements[3])["users"]["lock"] == "ShareRowExclusiveLock"
    assert not statements[3]["hurts"]
    assert touched(statements[3])["fresh"]["new"]
    assert statements[4]["count"] == 2
    assert touched(statements[6])["posts"]["scans"] == "the CHECK is tested on each row"
    assert {(h["table"], h["taken_by"], h["until"]) for h in second["held"]} == {("users", 1, 8)}
    assert second["transaction"] == "one"
    assert third["transaction"] == "steps"
    (index,) = third["statements"]
    assert index["outside_transaction"]
    assert touched(index)["users"]["lock"] == "ShareUpdateExclusiveLock"
    assert touched(index)["users"]["builds_index"]
    assert not index["hurts"]
    after = await admin(half["DATABASE_URL"], "SELECT * FROM drizzle.__drizzle_migrations")
    assert before == after
    # An interrupted run's progress is told.
    await admin(
        half["DATABASE_URL"],
        "INSERT INTO orchestrator.unfinished_migrations (ledger, name, statements_done, done_hash)"
        " VALUES ('drizzle.__drizzle_migrations', '0001_m1', 3, '')",
    )
    again = json.loads((await orchestrator("plan", "--json", env=half)).stdout)
    assert [p["statements_done"] for p in user_source(again)["pending"]] == [3, 0]
    await admin(half["DATABASE_URL"], "DELETE FROM orchestrator.unfinished_migrations")
    assert (await orchestrator("migrate", env=half)).returncode == 0, "and it runs as it was told"


async def test_people_get_a_table_that_is_loud_where_it_hurts(half, orchestrator):
    text = (await orchestrator("plan", env={**half, "COLUMNS": "140"})).stdout
    assert "REWRITES: the default calls gen_random_uuid()" in " ".join(text.split())
    assert "20,000" in text
    assert "INSERT (2 times)" in text
    assert "Running code would wait in: 0001_m1" in text
    loud = (await orchestrator("plan", env={**half, "COLUMNS": "140", "FORCE_COLOR": "1"})).stdout
    assert "\x1b[1;31m" in loud


async def test_a_dry_run_prints_the_plan_and_exit_codes_are_those_of_status(half, orchestrator, tmp_path):
    assert (await orchestrator("migrate", "--dry-run", env=half)).stdout == (
        await orchestrator("plan", env=half)
    ).stdout
    assert (await orchestrator("migrate", "--dry-run", "--exit-code", env=half)).returncode == 1
    first = Path(half["MIGRATIONS_DIR"]) / "0000_m0.sql"
    first.write_text(f"{FIRST}\nSELECT 1;")
    strict = {**half, "MIGRATION_POLICY": "strict"}
    refused = await orchestrator("plan", "--json", "--exit-code", env=strict)
    assert refused.returncode == 70
    told = json.loads(refused.stdout)
    assert told["refused"]
    assert not told["would_run"]
    assert [(f["kind"], f["refused"]) for f in user_source(told)["findings"]] == [("edited", True)]
    first.write_text(FIRST)
    assert (await orchestrator("migrate", env=half)).returncode == 0
    assert (await orchestrator("plan", "--exit-code", env=half)).returncode == 0


async def test_it_works_on_an_empty_database_and_leaves_it_empty(tmp_path, orchestrator, database_url, admin):
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", FIRST, SECOND))}
    told = json.loads((await orchestrator("plan", "--json", env=env)).stdout)
    assert [len(source["pending"]) > 0 for source in told["sources"]] == [True, True]
    assert not any(source["ledger_exists"] for source in told["sources"])
    assert not any(p["hurts"] for source in told["sources"] for p in source["pending"])
    made = await admin.value(database_url, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    assert made == 0
    assert await admin.value(database_url, "SELECT to_regnamespace('drizzle')") is None


async def test_it_waits_for_no_lock(half, orchestrator):
    connection = await asyncpg.connect(half["DATABASE_URL"])
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        await connection.execute("SELECT pg_advisory_xact_lock(1)")
        done = await orchestrator("plan", "--json", env=half, timeout_s=20)
        assert done.returncode == 0
        users = touched(user_source(json.loads(done.stdout))["pending"][0]["statements"][1])["users"]
        assert users["rows"] == 20000
        assert users["size_bytes"] > 500_000, "pg_class's estimate, since the table cannot be opened"
        await transaction.rollback()
    finally:
        await connection.close()


async def reader(server, admin, database_url: str) -> tuple[str, str]:
    """A role that may log in and nothing else, and the database's DSN as that role."""
    name, password = f"reader_{secrets.token_hex(4)}", f"s3cr3t-{secrets.token_hex(8)}"
    await admin.script(database_url, f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    parts = urlsplit(database_url)
    netloc = f"{name}:{password}@{parts.netloc.rpartition('@')[2]}"
    return name, urlunsplit(parts._replace(netloc=netloc))


async def test_a_role_that_can_only_read_is_enough_and_one_that_cannot_is_told_the_grants(
    half, orchestrator, server, admin, known
):
    role, dsn = await reader(server, admin, half["DATABASE_URL"])
    known.secrets.add(urlsplit(dsn).password)
    env = {**half, "DATABASE_URL": dsn}
    try:
        for command in ("plan", "status", "lint", "verify", "rehearse"):
            denied = await orchestrator(command, env=env)
            assert denied.returncode == 70, (command, denied.stderr)
            last = denied.events[-1]
            assert f"{role} may not read orchestrator." in last["error"]
            assert "drizzle.__drizzle_migrations" in last["error"]
        for command in (("repair", "applied", "0000_m0", "--yes"), ("migrate",)):
            denied = await orchestrator(*command, env=env)
            assert (denied.returncode, denied.events[-1]["sqlstate"]) == (70, "42501"), (command, denied.stderr)
            assert "a user that has it" in denied.events[-1]["remedy"]
        await admin.script(half["DATABASE_URL"], last["remedy"].partition(": ")[2])
        told = await orchestrator("plan", "--json", env=env)
        assert told.returncode == 0, told.stderr
        as_owner = json.loads((await orchestrator("plan", "--json", env=half)).stdout)
        assert json.loads(told.stdout)["sources"] == as_owner["sources"]
    finally:
        await admin.script(half["DATABASE_URL"], f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_pending_file_that_is_no_sql_is_told_as_migrate_would(half, orchestrator):
    (Path(half["MIGRATIONS_DIR"]) / "0002_m2.sql").write_text("CREATE TABEL x ();")
    done = await orchestrator("plan", env=half)
    assert done.returncode == 70
    assert "0002_m2.sql:1:8" in done.events[-1]["error"]
