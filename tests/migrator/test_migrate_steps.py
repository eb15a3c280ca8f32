"""Statements that refuse a transaction: each noted, looked at after a crash, never taken for done when it is not.

A crash between a statement and its note is made by the note alone: the process is killed while a later statement
waits, and the note is set back to where it would stand.
"""

import json
import signal
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
# The file waits here until `go` is there, so that the process can be killed between two statements.
GATE = (
    "DO $$ BEGIN WHILE to_regclass('go') IS NULL LOOP PERFORM pg_sleep(0.02); PERFORM pg_stat_clear_snapshot();"
    " END LOOP; END $$"
)
AT_GATE = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'DO $$ BEGIN WHILE%'"
    " AND state = 'active'"
)
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"


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


@pytest.fixture
def crash_after(orchestrator, admin, database_url, tmp_path, wait_until, apply):
    """Kill a run when `statement` (number `number`) has ended, set the note back to before its end, and start again.

    `damage` is SQL that makes of its work what a crash in the middle of it would have left.
    """

    async def run(number: int, *statements: str, damage: str = "", before: str = ""):
        if before:
            await admin.script(database_url, before)
        gated = [*statements[:number], "COMMIT", GATE, *statements[number:]]
        folder = write(tmp_path / "m", *gated)
        env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder}
        async with orchestrator.running("migrate", env=env) as process:
            await wait_until(lambda: admin.value(database_url, AT_GATE))
            noted = await admin(database_url, "SELECT * FROM orchestrator.unfinished_migrations")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await wait_until(lambda: admin.value(database_url, f"SELECT ({AT_GATE}) = 0"))
        assert noted[0]["statements_done"] == number + 1
        from orchestrator.migrator.records import steps_hash

        known = " ".join(str(oid) for oid in await known_before(admin, database_url))
        await admin(
            database_url,
            "UPDATE orchestrator.unfinished_migrations SET statements_done = $1, running = $2, done_hash = $3",
            number - 1,
            number,
            f"{steps_hash(gated[: number - 1])} {known}",
        )
        if damage:
            async with admin.connection(database_url) as connection:
                for one in damage.split(";"):
                    await connection.execute(one)
        await admin(database_url, "CREATE TABLE go ()")
        return await orchestrator("migrate", env=env)

    return run


async def known_before(admin, url):
    """The indexes of t that are older than what the file makes: those that the test made itself."""
    return [
        row["oid"]
        for row in await admin(
            url,
            "SELECT i.indexrelid AS oid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = to_regclass('t') AND c.relname LIKE 'old%'",
        )
    ]


TABLE = (
    "CREATE TABLE t (id int, v int); CREATE INDEX old_v ON t (v);"
    "INSERT INTO t SELECT g, g FROM generate_series(1, 50) g;"
)
INDEXES = (
    "SELECT c.relname::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE indisvalid AND indrelid = 't'::regclass ORDER BY 1"
)


async def names(admin, url) -> list[str]:
    return [row["name"] for row in await admin(url, INDEXES)]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (id)", "i"),
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (id)", "i"),
        ("CREATE INDEX CONCURRENTLY ON t (id)", "t_id_idx"),
    ],
    ids=["named", "if not exists", "without a name"],
)
@pytest.mark.parametrize("half", [False, True], ids=["it had ended", "half built"])
async def test_an_index_build_that_was_cut_off_is_there_once_and_valid(
    crash_after, admin, database_url, statement, index, half
):
    damage = f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass" if half else ""
    result = await crash_after(1, statement, before=TABLE, damage=damage)
    assert result.returncode == 0, result.stderr
    assert await names(admin, database_url) == sorted([index, "old_v"])
    assert await admin.value(database_url, INVALID) == 0


async def test_an_invalid_index_is_built_again_where_the_file_says_if_not_exists(apply, admin, database_url):
    await admin.script(database_url, TABLE + "CREATE INDEX i ON t (id)")
    await admin(database_url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i'::regclass")
    result = await apply("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (id)")
    assert result.returncode == 0, result.stderr
    assert await names(admin, database_url) == ["i", "old_v"]


async def test_an_index_of_that_name_that_was_there_before_is_not_taken_for_ours(apply, admin, database_url):
    await admin.script(database_url, TABLE)
    result = await apply("CREATE INDEX CONCURRENTLY old_v ON t (id)")
    assert (result.returncode, result.events[-1]["sqlstate"]) == (70, "42P07")
    assert (await apply("CREATE INDEX CONCURRENTLY old_v ON t (id)")).returncode == 70


async def test_what_is_not_ours_is_not_dropped(apply, admin, database_url):
    await admin.script(database_url, TABLE)
    await admin(database_url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'old_v'::regclass")
    assert (await apply("CREATE INDEX CONCURRENTLY ON t (id)", "REINDEX INDEX CONCURRENTLY t_id_idx")).returncode == 0
    assert await admin.value(database_url, "SELECT to_regclass('old_v') IS NOT NULL")


@pytest.mark.parametrize("statement", ["REINDEX INDEX CONCURRENTLY i", "REINDEX TABLE CONCURRENTLY t"])
async def test_what_a_reindex_left_half_way_is_cleared(crash_after, admin, database_url, statement):
    damage = (
        "CREATE INDEX i_ccnew ON t (id); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i_ccnew'::regclass;"
        "CREATE INDEX i_ccold ON t (id); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i_ccold'::regclass"
    )
    result = await crash_after(1, statement, before=TABLE + "CREATE INDEX i ON t (id)", damage=damage)
    assert result.returncode == 0, result.stderr
    assert await names(admin, database_url) == ["i", "old_v"]
    assert await admin.value(database_url, INVALID) == 0


async def test_dropping_an_index_concurrently_twice_is_once(crash_after, admin, database_url):
    result = await crash_after(1, "DROP INDEX CONCURRENTLY i", before=TABLE + "CREATE INDEX i ON t (id)")
    assert result.returncode == 0, result.stderr
    assert await names(admin, database_url) == ["old_v"]


PARTITIONED = (
    "CREATE TABLE p (id int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
    "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);"
)


async def test_a_partition_that_was_detached_before_the_crash_is_not_detached_again(crash_after, admin, database_url):
    result = await crash_after(1, "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY", before=PARTITIONED)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'p'::regclass") == 1


async def test_a_detach_that_was_cut_off_between_its_transactions_is_finalized(apply, admin, database_url):
    await admin.script(database_url, PARTITIONED)
    async with admin.connection(database_url) as reader, admin.connection(database_url) as detacher:
        await reader.execute("BEGIN; SELECT * FROM p")
        await detacher.execute("SET lock_timeout = '100ms'")
        with pytest.raises(Exception, match="lock timeout"):
            await detacher.execute("ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY")
    assert await admin.value(database_url, "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = 'p1'::regclass")
    result = await apply("ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY")
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'p'::regclass") == 1


async def test_an_index_of_a_partitioned_table_whose_partitions_lack_it_is_no_failure(apply, admin, database_url):
    result = await apply(
        PARTITIONED,
        "CREATE INDEX parent ON ONLY p (id)",
        "CREATE INDEX CONCURRENTLY i1 ON p1 (id)",
        "ALTER INDEX parent ATTACH PARTITION i1",
        "REINDEX TABLE CONCURRENTLY p",
    )
    assert result.returncode == 0, result.stderr
    assert not await admin.value(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'parent'::regclass")


async def test_what_only_the_catalogue_knows_to_refuse_a_transaction_is_run_outside_of_one(apply, admin, database_url):
    """The grammar sees REINDEX TABLE of any table; that of a partitioned one commits after each partition."""
    result = await apply(PARTITIONED, "CREATE INDEX i ON p (id)", "REINDEX TABLE p", "CREATE TABLE after ()")
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT to_regclass('after') IS NOT NULL")
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 1


async def test_databases_are_made_and_dropped_once_and_the_rest_runs_as_it_must(
    crash_after, admin, database_url, server
):
    name = database_url.rsplit("/", 1)[1]
    try:
        result = await crash_after(1, f"CREATE DATABASE {name}_more")
        assert result.returncode == 0, result.stderr
        await admin.script(database_url, "DROP TABLE go; TRUNCATE drizzle.__drizzle_migrations")
        result = await crash_after(
            1, f"DROP DATABASE {name}_more", "VACUUM", "ALTER SYSTEM RESET work_mem", "DISCARD ALL"
        )
        assert result.returncode == 0, result.stderr
        assert not await admin.value(
            database_url, "SELECT count(*) FROM pg_database WHERE datname = $1", f"{name}_more"
        )
    finally:
        await admin(database_url, f"DROP DATABASE IF EXISTS {name}_more")


async def test_transactions_of_the_files_own_are_obeyed(apply, admin, database_url):
    await admin.script(database_url, "CREATE TABLE t (id int)")
    result = await apply(
        "INSERT INTO t VALUES (1)",
        "COMMIT AND CHAIN",
        "INSERT INTO t VALUES (2)",
        "ROLLBACK AND CHAIN",
        "INSERT INTO t VALUES (3)",
        "COMMIT",
        "BEGIN",
        "INSERT INTO t VALUES (4)",
        "ROLLBACK",
        "INSERT INTO t VALUES (5)",
        "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "INSERT INTO t VALUES (6)",
    )
    assert result.returncode == 0, result.stderr
    assert [row["id"] for row in await admin(database_url, "SELECT id FROM t ORDER BY id")] == [1, 3, 5, 6]


async def test_a_role_that_a_file_sets_in_steps_does_not_reach_our_notes(apply, admin, database_url):
    name = f"maker_{database_url.rsplit('_', 1)[1][:8]}"
    await admin.script(database_url, f"CREATE ROLE {name}; GRANT CREATE ON SCHEMA public TO {name}")
    try:
        result = await apply(
            "COMMIT", f"SET ROLE {name}", "CREATE TABLE t (id int)", "CREATE INDEX CONCURRENTLY i ON t (id)"
        )
        assert result.returncode == 0, result.stderr
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'i'"
        assert await admin.value(database_url, owner) == name
    finally:
        await admin.script(database_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_deferred_constraint_that_fails_at_the_files_own_commit_is_its_failure(apply, database_url):
    result = await apply(
        "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        "COMMIT",
        "INSERT INTO c VALUES (7)",
    )
    told = result.events[-1]
    assert (result.returncode, told["sqlstate"], told["statements_done"]) == (70, "23503", 3)


async def test_no_look_of_ours_finds_a_type_that_stands_on_the_files_path(apply, admin, database_url):
    await admin.script(database_url, f'{TABLE} CREATE DOMAIN public."char" AS int;')
    result = await apply("SET search_path = public, pg_catalog", "REINDEX SCHEMA CONCURRENTLY public")
    assert result.returncode == 0, result.stderr
