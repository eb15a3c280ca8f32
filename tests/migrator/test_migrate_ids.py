"""Nothing runs twice to be fast: a first run gives the ids that Drizzle gives, and what failed has run once."""

from pathlib import Path

import pytest

from orchestrator.migrator.sql.statements import statements

BREAK = "\n--> statement-breakpoint\n"


@pytest.fixture
def migrate(orchestrator, database_url, tmp_path, write):
    async def run(*files: str, **env: str):
        folder = write(tmp_path / "m", *((f"{number:04}_m", sql) for number, sql in enumerate(files)))
        env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), **env}
        return await orchestrator("migrate", "--verbose", env=env)

    return run


SERIAL = "CREATE TABLE t (id serial PRIMARY KEY, v text);"
INSERTS = [f"INSERT INTO t (v) VALUES ('{n}');" for n in range(3)]
POINTS = f"CREATE TABLE p (t int REFERENCES t);{BREAK}INSERT INTO p VALUES (1), (2), (3);"


async def test_a_small_file_that_is_slow_does_not_move_the_ids(migrate, admin, database_url):
    slow = "CREATE TABLE s AS SELECT nextval('t_id_seq'), pg_sleep(1.5) IS NULL AS slept;"
    column = "ALTER TABLE s ADD COLUMN id serial;"
    result = await migrate(SERIAL, *INSERTS, POINTS, "CREATE TABLE a ();", slow, column, "CREATE TABLE b ();")
    assert result.returncode == 0, result.stderr
    assert [tuple(r) for r in await admin(database_url, "SELECT id, v FROM t ORDER BY id")] == [
        (1, "0"),
        (2, "1"),
        (3, "2"),
    ]
    assert await admin.value(database_url, "SELECT nextval FROM s") == 4
    assert await admin.value(database_url, "SELECT id FROM s") == 1


async def test_the_statements_of_a_batch_run_once_also_where_one_of_them_fails(migrate, admin, database_url):
    await admin.script(database_url, "CREATE SEQUENCE q; CREATE TABLE t (id int DEFAULT nextval('q'), u int UNIQUE)")
    inserts = BREAK.join(f"INSERT INTO t (u) VALUES ({n}); -- row {n}" for n in [*range(40), 7, *range(40, 60)])
    result = await migrate(inserts)
    told = result.events[-1]
    assert (result.returncode, told["sqlstate"], told["statement"], told["line"]) == (70, "23505", 41, 81)
    assert "VALUES (7)" in told["excerpt"]
    # Forty rows, and the one that failed.
    assert await admin.value(database_url, "SELECT last_value FROM q") == 41


async def test_an_error_with_a_position_names_its_statement_in_a_batch(migrate):
    result = await migrate(
        "CREATE TABLE t (id int);", BREAK.join(["INSERT INTO t VALUES (1)"] * 3 + ["INSERT INTO tt VALUES (1)"])
    )
    told = result.events[-1]
    assert (told["sqlstate"], told["statement"], told["line"], told["column"]) == ("42P01", 4, 7, 13)


async def test_a_batch_that_waits_for_a_lock_is_tried_again_as_a_whole_and_says_what_that_costs(
    orchestrator, admin, database_url, tmp_path, write
):
    await admin.script(database_url, "CREATE TABLE t (id serial, v int)")
    folder = write(tmp_path / "m", ("0000_m", BREAK.join(f"INSERT INTO t (v) VALUES ({n});" for n in range(3))))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "MIGRATION_DDL_LOCK_TIMEOUT": "300ms"}
    async with admin.connection(database_url) as other:
        await other.execute("BEGIN")
        await other.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        async with orchestrator.running("migrate", env=env) as run:
            told = await run.event("migration.lock_refused")
            assert "sequences" in told["sequences"]
            assert told["statement"] == 1
            await other.execute("COMMIT")
            assert await run.wait() == 0, run.output
    assert [r["v"] for r in await admin(database_url, "SELECT v FROM t ORDER BY id")] == [0, 1, 2]


async def test_with_event_triggers_nothing_that_they_do_is_done_twice(migrate, admin, database_url):
    await admin.script(
        database_url,
        "CREATE SEQUENCE seen; CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM nextval('public.seen'); END $$;"
        " CREATE EVENT TRIGGER look ON ddl_command_end WHEN TAG IN ('CREATE DOMAIN') EXECUTE FUNCTION look()",
    )
    files = [f"CREATE DOMAIN d{n} AS int;" for n in range(4)]
    result = await migrate(*files[:2], files[2] + BREAK + "DROP TABLE missing;", files[3])
    assert result.returncode == 70
    assert await admin.value(database_url, "SELECT last_value FROM seen") == 3


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ('CREATE TABLE "a" ("id" serial PRIMARY KEY, "at" timestamptz DEFAULT now() NOT NULL)', True),
        ("CREATE TEMP TABLE a (id int)", False),
        ("CREATE TABLE a AS SELECT 1", False),
        ("CREATE INDEX ON a (lower(b)) WHERE c IS NOT NULL", True),
        ("CREATE INDEX ON a (mine(b))", False),
        ("CREATE INDEX CONCURRENTLY ON a (b)", False),
        ("ALTER TABLE a ADD COLUMN b integer", True),
        ("ALTER TABLE a ADD COLUMN b text DEFAULT 'x' NOT NULL", True),
        ("ALTER TABLE a ADD COLUMN b colour DEFAULT 'red' NOT NULL", True),
        ("ALTER TABLE a ADD COLUMN b colour", False),  # a domain may have a default that counts
        ("ALTER TABLE a ADD COLUMN b serial", False),
        ("ALTER TABLE a ADD COLUMN b bigserial NOT NULL", False),
        ("ALTER TABLE a ADD COLUMN b int GENERATED ALWAYS AS IDENTITY", False),
        ("ALTER TABLE a ADD COLUMN b int DEFAULT nextval('s')", False),
        ("ALTER TABLE a ADD COLUMN b int DEFAULT public.now()", False),
        ("ALTER TABLE a ADD COLUMN b uuid DEFAULT gen_random_uuid()", True),
        ("ALTER TABLE a ADD CONSTRAINT f FOREIGN KEY (b) REFERENCES c(id)", True),
        ("ALTER TABLE a ADD CONSTRAINT k CHECK (b > 0 AND c IN ('x', 'y'))", True),
        ("ALTER TABLE a ADD CONSTRAINT k CHECK (mine(b))", False),
        ("ALTER TABLE a VALIDATE CONSTRAINT k", False),
        ("ALTER TABLE a ALTER COLUMN b SET DATA TYPE bigint USING b::bigint", True),
        ("ALTER TABLE a ALTER COLUMN b TYPE int USING nextval('s')", False),
        ("INSERT INTO a VALUES (1)", False),
        ("UPDATE a SET b = 1", False),
        ("SELECT setval('s', 1)", False),
        ("DO $$ BEGIN END $$", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'", True),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE plperl AS ''", False),
        ("CREATE SCHEMA s CREATE TABLE t ()", False),
        ("CREATE EXTENSION citext", False),
        ("ALTER SEQUENCE s RESTART", False),
        ("TRUNCATE a RESTART IDENTITY", False),
        ("REFRESH MATERIALIZED VIEW m", False),
        ("DROP TABLE a", True),
        ("GRANT SELECT ON a TO b", True),
        ("GRANT a TO b", False),
        ("SET search_path = a", False),
    ],
)
def test_what_leaves_nothing_when_it_is_rolled_back(sql: str, tmp_path: Path, *, expected: bool):
    (one,) = statements(sql.encode(), path=str(tmp_path))
    assert one.leaves_nothing is expected
