"""A CALL or DO that commits inside runs by itself, as in psql, and nothing before it is run twice."""

import json
import signal
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
TABLE = "CREATE TABLE t (id serial PRIMARY KEY, v int)"
PROCEDURE = (
    "CREATE PROCEDURE {name}(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP INSERT INTO t (v) VALUES (i);"
    " {end}; END LOOP; END $$"
)
COMMITS = PROCEDURE.format(name="fill", end="COMMIT")
DO = "DO $$ BEGIN FOR i IN 1..3 LOOP INSERT INTO t (v) VALUES (i); COMMIT; END LOOP; END $$"
IDS = "SELECT array_agg(id ORDER BY id) FROM t"


def write(folder: Path, *statements: str) -> str:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "0000_a.sql").write_text(BREAK.join(statements))
    entries = [{"idx": 0, "when": 1716000000000, "tag": "0000_a", "breakpoints": True}]
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return str(folder)


@pytest.fixture
def apply(orchestrator, database_url, tmp_path):
    async def run(*statements: str, **env: str):
        folder = write(tmp_path / "m", *statements)
        return await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder, **env})

    return run


@pytest.mark.parametrize(
    "statements",
    {
        "a call after the file's own COMMIT": (TABLE, COMMITS, "COMMIT", "CALL fill(3)"),
        "a block after the file's own COMMIT": (TABLE, "COMMIT", DO),
        "a call in the transaction around the file": (TABLE, COMMITS, "CALL fill(3)"),
        "a block in the transaction around the file": (TABLE, DO),
        "a named schema": (TABLE, COMMITS, "CALL public.fill(3)"),
        "a procedure that calls one": (
            TABLE,
            COMMITS,
            "CREATE PROCEDURE outer_one() LANGUAGE plpgsql AS $$ BEGIN CALL fill(3); END $$",
            "CALL outer_one()",
        ),
        "a rollback": (
            TABLE,
            "DO $$ BEGIN INSERT INTO t VALUES (1, 1), (2, 2), (3, 3); COMMIT; DELETE FROM t; ROLLBACK; END $$",
        ),
        "chained": (TABLE, DO.replace("COMMIT", "COMMIT AND CHAIN")),
    }.items(),
    ids=lambda named: named[0],
)
async def test_what_commits_inside_runs_once_and_by_itself(statements, apply, admin, database_url):
    result = await apply(*statements[1], "CREATE TABLE behind ()")
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, IDS) == [1, 2, 3]
    assert await admin.value(database_url, "SELECT to_regclass('behind') IS NOT NULL")
    assert await admin.value(database_url, "SELECT count(*) FROM orchestrator.unfinished_migrations") == 0
    again = await apply(*statements[1], "CREATE TABLE behind ()")
    assert again.returncode == 0
    assert "migration.applied" not in [event["event"] for event in again.events]


async def test_a_file_of_one_such_statement_runs(apply, admin, database_url):
    await admin.script(database_url, TABLE)
    result = await apply(DO)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, IDS) == [1, 2, 3]


@pytest.mark.parametrize(
    "statement",
    [
        "DO $$ BEGIN CALL fill(3); END $$",
        "DO $$ BEGIN CALL fill(3); END $$ -- $orchestrator$",
        "DO $$ BEGIN /* $orchestrator$ */ CALL fill(3); END $$",
    ],
    ids=["a call in a block", "a block and a comment", "a block that cannot be read"],
)
async def test_what_only_the_server_knows_to_commit_is_run_by_itself_once_it_has_refused(
    statement, apply, admin, database_url
):
    result = await apply(TABLE, COMMITS, statement, "SELECT 1")
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT array_agg(v ORDER BY id) FROM t") == [1, 2, 3]


async def test_a_call_that_does_not_commit_is_one_with_its_file(apply, admin, database_url):
    quiet = PROCEDURE.format(name="fill", end="NULL")
    result = await apply(TABLE, quiet, "CALL fill(3)", "SELECT 1/0")
    assert result.returncode == 70
    assert "the database is as it was before this file" in result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('t') IS NULL")


async def test_in_a_block_that_the_file_began_it_fails_as_in_psql_and_is_not_tried_again(apply, admin, database_url):
    await admin.script(database_url, f"{TABLE}; {COMMITS}")
    result = await apply("COMMIT", "BEGIN", "INSERT INTO t (v) VALUES (0)", "CALL fill(3)", "COMMIT")
    assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "2D000"), result.stderr
    assert await admin.value(database_url, "SELECT last_value FROM t_id_seq") <= 2  # the block has run once
    fixed = await apply("COMMIT", "INSERT INTO t (v) VALUES (0)", "CALL fill(3)")
    assert fixed.returncode == 0, fixed.stderr


async def test_what_can_never_commit_there_is_the_files_error(apply, admin, database_url):
    caught = "DO $$ BEGIN BEGIN COMMIT; EXCEPTION WHEN division_by_zero THEN NULL; END; END $$"
    for statements in ([TABLE, caught], ["COMMIT", caught]):
        result = await apply(*statements)
        assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "2D000"), result.stderr
        await admin.script(database_url, "DROP TABLE IF EXISTS t; DELETE FROM orchestrator.unfinished_migrations")


async def test_what_it_had_committed_when_it_failed_is_told(apply, admin, database_url):
    breaks = DO.replace("COMMIT;", "COMMIT; IF i = 2 THEN RAISE division_by_zero; END IF;")
    result = await apply(TABLE, breaks)
    assert (result.returncode, result.events[-1]["statements_done"]) == (70, 1), result.stderr
    assert "What the statement has committed itself stays" in result.stderr
    assert await admin.value(database_url, IDS) == [1, 2]


@pytest.mark.parametrize("inner", ["VACUUM t", "CREATE INDEX CONCURRENTLY i ON t (v)", "REINDEX SCHEMA public"])
async def test_what_no_block_can_run_takes_its_file_back(inner, apply, admin, database_url):
    result = await apply(TABLE, f"DO $$ BEGIN EXECUTE '{inner}'; END $$")
    assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "25001"), result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('t') IS NULL")


async def test_a_set_transaction_that_comes_too_late_takes_its_file_back(apply, admin, database_url):
    result = await apply(TABLE, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "25001"), result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('t') IS NULL")


async def test_one_transaction_for_all_is_refused_by_the_server_and_only_if_it_comes_to_a_commit(apply):
    never = "DO $$ BEGIN IF false THEN COMMIT; END IF; END $$"
    assert (await apply(TABLE, never, MIGRATION_TRANSACTION="all")).returncode == 0


async def test_one_transaction_for_all_tells_the_remedy(apply, admin, database_url):
    result = await apply(TABLE, DO, MIGRATION_TRANSACTION="all")
    assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "2D000"), result.stderr
    assert "MIGRATION_TRANSACTION=each" in result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('t') IS NULL")


async def test_a_run_that_is_killed_inside_goes_on_with_it(orchestrator, admin, database_url, tmp_path, wait_until):
    batches = (
        "DO $$ DECLARE n int; BEGIN LOOP UPDATE t SET v = 1 WHERE id IN (SELECT id FROM t WHERE v = 0 LIMIT 1);"
        " GET DIAGNOSTICS n = ROW_COUNT; EXIT WHEN n = 0; COMMIT;"
        " WHILE to_regclass('go') IS NULL LOOP PERFORM pg_sleep(0.02); COMMIT; END LOOP; END LOOP; END $$"
    )
    folder = write(tmp_path / "m", TABLE, "INSERT INTO t (v) VALUES (0), (0), (0)", batches, "CREATE TABLE behind ()")
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder}
    async with orchestrator.running("migrate", env=env) as process:
        await wait_until(lambda: admin.value(database_url, "SELECT to_regclass('t') IS NOT NULL"))
        await wait_until(lambda: admin.value(database_url, "SELECT count(*) = 1 FROM t WHERE v = 1"))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await admin(database_url, "CREATE TABLE go ()")
    result = await orchestrator("migrate", env=env)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT array_agg(v) FROM t") == [1, 1, 1]
    assert await admin.value(database_url, "SELECT to_regclass('behind') IS NOT NULL")
