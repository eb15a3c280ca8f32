"""Applying migrations: what is kept, what is rolled back, what is refused, and what the person is told."""

import hashlib
import json
import signal
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
WHEN = 1716000000000


@pytest.fixture
def migrate(orchestrator, database_url, tmp_path):
    async def run(folder: Path, *arguments: str, **env: str):
        return await orchestrator(
            "migrate", *arguments, env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), **env}
        )

    return run


def applied(result) -> list[str]:
    return [e["migration"] for e in result.events if e["event"] == "migration.applied" and e["source"] == "user"]


def failure(result) -> dict:
    (event,) = [e for e in result.events if e["event"] == "service.failed"]
    return event


async def ledger(admin, url: str) -> list[tuple[str, int]]:
    exists = await admin.value(url, "SELECT to_regclass('drizzle.__drizzle_migrations') IS NOT NULL")
    if not exists:
        return []
    return [tuple(r) for r in await admin(url, "SELECT hash, created_at FROM drizzle.__drizzle_migrations ORDER BY id")]


def sha256(folder: Path, tag: str) -> str:
    return hashlib.sha256((folder / f"{tag}.sql").read_bytes()).hexdigest()


async def test_pending_files_are_applied_once_and_running_again_is_a_no_op(
    migrate, admin, database_url, tmp_path, write
):
    folder = write(
        tmp_path / "m",
        ("0000_a", f"CREATE TABLE a (id int);{BREAK}INSERT INTO a VALUES (1);"),
        ("0001_b", "CREATE TABLE b ();"),
    )
    first = await migrate(folder)
    assert (first.returncode, applied(first)) == (0, ["0000_a", "0001_b"])
    rows = [(sha256(folder, "0000_a"), WHEN), (sha256(folder, "0001_b"), WHEN + 1)]
    assert await ledger(admin, database_url) == rows
    second = await migrate(folder)
    assert (second.returncode, applied(second)) == (0, [])
    assert await ledger(admin, database_url) == rows
    assert await admin.value(database_url, "SELECT count(*) FROM a") == 1


async def test_public_and_drizzle_hold_nothing_of_ours(migrate, admin, database_url, tmp_path, write):
    await migrate(write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();")))
    tables = await admin(
        database_url,
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'drizzle') ORDER BY 1, 2",
    )
    assert [tuple(t) for t in tables] == [("drizzle", "__drizzle_migrations"), ("public", "a")]


async def test_a_failing_statement_is_named_and_its_file_leaves_no_trace(migrate, admin, database_url, tmp_path, write):
    folder = write(
        tmp_path / "m",
        ("0000_a", "CREATE TABLE a (id int);"),
        (
            "0001_bad",
            f"CREATE TABLE half ();{BREAK}\n-- a comment\nALTER TABLE a ADD COLUMN ü int, ADD COLUMN x colour;",
        ),
        ("0002_c", "CREATE TABLE c ();"),
    )
    result = await migrate(folder)
    assert result.returncode == 70
    told = failure(result)
    assert (told["file"], told["statement"], told["sqlstate"]) == (str(folder / "0001_bad.sql"), 2, "42704")
    assert (told["line"], told["column"]) == (5, 46)
    assert told["excerpt"].splitlines()[1].index("^") == told["excerpt"].splitlines()[0].index("colour")
    assert told["restart_helps"] is False
    assert "as it was before this file" in told["remedy"]
    assert told["applied_before"][-1] == "0000_a"
    assert await admin.value(database_url, "SELECT to_regclass('half') IS NULL AND to_regclass('c') IS NULL")
    assert len(await ledger(admin, database_url)) == 1
    start = await admin(database_url, "SELECT outcome, error->>'sqlstate' AS sqlstate FROM orchestrator.starts")
    assert [tuple(s) for s in start] == [("failed", "42704")]


async def test_a_typo_in_the_last_file_is_found_before_the_first_one_runs(
    migrate, admin, database_url, tmp_path, write
):
    folder = write(
        tmp_path / "m",
        ("0000_a", "CREATE TABLE a ();"),
        ("0001_typo", "CREATE TABLE b (\n  id int,\n  oops\n  text int\n);"),
    )
    result = await migrate(folder)
    assert result.returncode == 70
    told = failure(result)
    assert (told["path"], told["line"], told["column"]) == (str(folder / "0001_typo.sql"), 4, 8)
    assert await admin.value(database_url, "SELECT to_regnamespace('drizzle') IS NULL AND to_regclass('a') IS NULL")


async def test_a_deferred_constraint_that_fails_at_the_commit_is_the_files_failure(
    migrate, admin, database_url, tmp_path, write
):
    sql = (
        "CREATE TABLE p (id int PRIMARY KEY);"
        "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO c VALUES (7);"
    )
    result = await migrate(write(tmp_path / "m", ("0000_a", sql)))
    assert (result.returncode, failure(result)["sqlstate"]) == (70, "23503")
    assert "migration.applied" not in {e["event"] for e in result.events if e.get("source") == "user"}
    assert await ledger(admin, database_url) == []


async def test_one_of_many_small_inserts_is_named_when_it_fails(migrate, admin, database_url, tmp_path, write):
    inserts = "\n".join(f"INSERT INTO a VALUES ({i});" for i in [*range(300), 17, *range(300, 600)])
    result = await migrate(write(tmp_path / "m", ("0000_a", f"CREATE TABLE a (id int PRIMARY KEY);\n{inserts}")))
    told = failure(result)
    assert (told["sqlstate"], told["line"], told["statement"]) == ("23505", 302, 302)
    assert await admin.value(database_url, "SELECT to_regclass('a') IS NULL")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f, _: (f / "0001_b.sql").unlink(), "there is no file 0001_b.sql"),
        (lambda f, _: (f / "meta/_journal.json").write_text("{"), "not a Drizzle journal"),
        (lambda f, write: write(f, ("0000_a", ""), ("0000_a", "")), "twice"),
    ],
    ids=["a missing file", "a broken journal", "a duplicate entry"],
)
async def test_a_broken_folder_fails_before_it_waits_for_anything(orchestrator, tmp_path, break_it, words, write):
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"), ("0001_b", "CREATE TABLE b ();"))
    break_it(folder, write)
    nobody_listens = "postgresql://u:pw@127.0.0.1:1/db"
    result = await orchestrator("migrate", env={"DATABASE_URL": nobody_listens, "MIGRATIONS_DIR": str(folder)})
    assert result.returncode == 70
    assert words in failure(result)["error"]
    assert "database.connect_failed" not in {e["event"] for e in result.events}


async def test_an_empty_folder_is_refused_since_a_wrong_mount_looks_like_it(orchestrator, database_url, tmp_path):
    result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path)})
    assert (result.returncode, "is empty: of a folder that is missing" in failure(result)["error"]) == (70, True)


HISTORIES = {
    "edited": ([("0000_a", "CREATE TABLE a (x int);")], "migration.edited"),
    "out of order": (
        [("0000_a", "CREATE TABLE a ();"), ("0001_late", "CREATE TABLE late ();", WHEN - 5)],
        "migration.out_of_order",
    ),
    "redated": ([("0000_a", "CREATE TABLE IF NOT EXISTS a ();", WHEN + 50)], "migration.redated"),
    "orphaned": ([("0005_z", "CREATE TABLE z ();", WHEN + 90)], "migration.orphaned"),
}
STARTS_WITH = {"redated": [("0000_a", "CREATE TABLE IF NOT EXISTS a ();")]}


@pytest.mark.parametrize("case", HISTORIES)
async def test_a_history_that_is_not_straight_is_told_by_drizzle_and_refused_by_strict(
    migrate, orchestrator, admin, database_url, tmp_path, case, write
):
    files, event = HISTORIES[case]
    first = write(tmp_path / "first", *STARTS_WITH.get(case, [("0000_a", "CREATE TABLE a ();")]))
    assert (await migrate(first)).returncode == 0
    before = await ledger(admin, database_url)
    second = write(tmp_path / "second", *files)
    strict = await migrate(second, MIGRATION_POLICY="strict")
    assert strict.returncode == 70
    assert failure(strict)["refused"][0]["kind"] == event.partition(".")[2]
    assert await ledger(admin, database_url) == before
    loose = await migrate(second)
    assert loose.returncode == 0
    (told,) = [e for e in loose.events if e["event"] == event]
    assert told["decision"]
    assert told["remedy"]
    status = await orchestrator("status", "--json", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(second)})
    kinds = {f["kind"] for f in json.loads(status.stdout)["sources"][1]["findings"]}
    assert case.replace(" ", "_") in kinds or case == "redated"  # run again, its new row is in the ledger


async def test_a_ledger_that_is_ahead_is_refused_unless_it_is_to_be_a_warning(
    migrate, admin, database_url, tmp_path, write
):
    await migrate(write(tmp_path / "new", ("0000_a", "CREATE TABLE a ();"), ("0001_b", "CREATE TABLE b ();")))
    old = write(tmp_path / "old", ("0000_a", "CREATE TABLE a ();"))
    refused = await migrate(old)
    assert refused.returncode == 70
    assert failure(refused)["refused"][0]["migration"] == "0001_b"
    warned = await migrate(old, MIGRATION_AHEAD="warn")
    assert warned.returncode == 0
    assert [e["migration"] for e in warned.events if e["event"] == "migration.ahead"] == ["0001_b"]


async def test_an_edit_of_white_space_alone_passes_strict(migrate, tmp_path, write):
    await migrate(write(tmp_path / "a", ("0000_a", "CREATE TABLE a (id int);")))
    result = await migrate(
        write(tmp_path / "b", ("0000_a", "-- said better\nCREATE TABLE a (\n  id int\n);\n")), MIGRATION_POLICY="strict"
    )
    assert result.returncode == 0, result.stderr


async def test_one_transaction_for_all_is_all_or_nothing(migrate, admin, database_url, tmp_path, write):
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"), ("0001_b", "SELECT 1 / 0;"))
    result = await migrate(folder, MIGRATION_TRANSACTION="all")
    assert (result.returncode, applied(result)) == (70, [])
    assert "as it was before the first of the pending files" in failure(result)["remedy"]
    assert await admin.value(database_url, "SELECT to_regclass('a') IS NULL")
    assert await ledger(admin, database_url) == []
    write(folder, ("0000_a", "CREATE TABLE a ();"), ("0001_b", "CREATE TABLE b ();"))
    result = await migrate(folder, MIGRATION_TRANSACTION="all")
    assert (result.returncode, applied(result)) == (0, ["0000_a", "0001_b"])


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
async def test_concurrently_in_one_transaction_for_all_is_refused_by_name(
    migrate, admin, database_url, tmp_path, arguments, write
):
    """Of the file's two that say something about transactions, SAVEPOINT may stay."""
    sql = f"CREATE TABLE a (id int);{BREAK}SAVEPOINT s;{BREAK}CREATE INDEX CONCURRENTLY i ON a (id);"
    result = await migrate(write(tmp_path / "m", ("0000_a", sql)), *arguments, MIGRATION_TRANSACTION="all")
    assert (result.returncode, failure(result)["line"]) == (70, 5)
    assert await admin.value(database_url, "SELECT to_regclass('a') IS NULL")


async def test_what_only_the_server_refuses_in_one_transaction_for_all_has_the_remedy(migrate, tmp_path, write):
    parted = "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE INDEX ON p (i);"
    folder = write(tmp_path / "m", ("0000_p", parted), ("0001_r", "REINDEX TABLE p;"))
    result = await migrate(folder, MIGRATION_TRANSACTION="all")
    assert (result.returncode, failure(result)["sqlstate"]) == (70, "25001")
    assert "MIGRATION_TRANSACTION=each" in failure(result)["remedy"]


SELF_MANAGED = f"""CREATE TABLE a (id int);
INSERT INTO a SELECT generate_series(1, 1000);{BREAK}COMMIT;{BREAK}SET lock_timeout = '3s';{BREAK}
CREATE INDEX CONCURRENTLY IF NOT EXISTS a_id ON a (id);{BREAK}ALTER TABLE a ADD COLUMN b int;{BREAK}
CREATE UNIQUE INDEX CONCURRENTLY a_b ON a (b);"""


async def test_a_file_that_commits_and_builds_indexes_concurrently_is_applied(
    migrate, admin, database_url, tmp_path, write
):
    result = await migrate(write(tmp_path / "m", ("0000_a", SELF_MANAGED), ("0001_b", "CREATE TABLE b ();")))
    assert (result.returncode, applied(result)) == (0, ["0000_a", "0001_b"]), result.stderr
    assert (
        await admin.value(database_url, "SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass AND indisvalid")
        == 2
    )
    assert await admin.value(database_url, "SELECT count(*) FROM orchestrator.unfinished_migrations") == 0


async def test_a_file_that_failed_half_way_goes_on_behind_the_last_finished_statement(
    migrate, admin, database_url, tmp_path, write
):
    broken = SELF_MANAGED + f"{BREAK}CREATE UNIQUE INDEX CONCURRENTLY dup ON a ((1));"
    folder = write(tmp_path / "m", ("0000_a", broken))
    result = await migrate(folder)
    told = failure(result)
    assert (result.returncode, told["sqlstate"], told["statements_done"]) == (70, "23505", 7)
    assert await ledger(admin, database_url) == []
    assert not await admin.value(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'dup'::regclass")
    await admin(database_url, "DELETE FROM a WHERE id > 1")
    result = await migrate(folder)
    assert (result.returncode, applied(result)) == (0, ["0000_a"]), result.stderr
    assert await admin.value(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'dup'::regclass")


async def test_a_half_applied_file_that_changed_in_the_applied_half_is_refused(
    migrate, admin, database_url, tmp_path, write
):
    folder = write(tmp_path / "m", ("0000_a", SELF_MANAGED + f"{BREAK}SELECT 1 / 0;"))
    assert (await migrate(folder)).returncode == 70
    write(folder, ("0000_a", SELF_MANAGED.replace("1000", "999")))
    result = await migrate(folder)
    assert (result.returncode, "have changed since" in failure(result)["error"].replace("they have\n", "")) == (
        70,
        True,
    )
    write(folder, ("0000_a", SELF_MANAGED))
    assert (await migrate(folder)).returncode == 0
    assert await admin.value(database_url, "SELECT count(*) FROM a") == 1000


async def test_a_killed_run_leaves_ledger_and_schema_in_agreement(
    orchestrator, migrate, admin, database_url, tmp_path, wait_until, write
):
    slow = ("0001_slow", f"CREATE TABLE slow ();{BREAK}SELECT pg_sleep(30);")
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE a ();"), slow)
    async with orchestrator.running(
        "migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    ) as run:
        await wait_until(
            lambda: admin.value(
                database_url,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'SELECT pg_sleep%' AND state = 'active'",
            )
        )
        run.send_signal(signal.SIGKILL)
        await run.wait()
    assert len(await ledger(admin, database_url)) == 1
    write(folder, ("0000_a", "CREATE TABLE a ();"), ("0001_slow", "CREATE TABLE slow ();"))
    result = await migrate(folder)
    assert (result.returncode, applied(result)) == (0, ["0001_slow"])


async def test_without_the_right_to_make_a_schema_the_owner_is_told_the_sql(
    orchestrator, admin, database_url, make_database, server, tmp_path
):
    name = f"weak_{database_url.rsplit('_', 1)[1][:8]}"
    await admin(database_url, f"CREATE ROLE {name} LOGIN PASSWORD 's3cr3t-pw-weak'")
    try:
        url = f"postgresql://{name}:s3cr3t-pw-weak@{server.host}:{server.port}/{database_url.rsplit('/', 1)[1]}"
        result = await orchestrator("migrate", env={"DATABASE_URL": url})
        assert result.returncode == 70
        assert 'CREATE SCHEMA IF NOT EXISTS "orchestrator"' in failure(result)["remedy"]
    finally:
        await admin(database_url, f"DROP ROLE {name}")


async def test_a_run_with_times_that_go_backwards_goes_on_where_it_stopped(
    migrate, admin, database_url, tmp_path, write
):
    files = [
        ("0000_a", "CREATE TABLE a ();"),
        ("0001_new", "CREATE TABLE n ();", WHEN + 90),
        ("0002_old", "SELECT 1 / 0;", WHEN + 5),
    ]
    folder = write(tmp_path / "m", *files)
    assert (await migrate(folder)).returncode == 70
    assert await admin.value(database_url, "SELECT count(*) FROM orchestrator.unfinished_migrations") == 1
    write(folder, *files[:2], ("0002_old", "CREATE TABLE o ();", WHEN + 5))
    result = await migrate(folder)
    assert (result.returncode, applied(result)) == (0, ["0002_old"])
    assert await admin.value(database_url, "SELECT count(*) FROM orchestrator.unfinished_migrations") == 0
    assert applied(await migrate(folder)) == []


async def test_a_role_of_our_schemas_name_makes_its_tables_where_drizzle_would(
    orchestrator, make_database, admin, server, tmp_path, known, write
):
    url = await make_database()
    made = await admin.value(url, "SELECT count(*) FROM pg_roles WHERE rolname = 'orchestrator'") == 0
    password = "s3cr3t-pw-orchestrator"
    known.secrets.add(password)
    if made:
        await admin.script(url, f"CREATE ROLE orchestrator LOGIN SUPERUSER PASSWORD '{password}'")
    else:
        await admin.script(url, f"ALTER ROLE orchestrator LOGIN PASSWORD '{password}'")
    try:
        database = url.rpartition("/")[2].partition("?")[0]
        env = {
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGUSER": "orchestrator",
            "PGPASSWORD": password,
            "PGDATABASE": database,
            "MIGRATIONS_DIR": str(write(tmp_path / "drizzle", ("0000_jobs", "CREATE TABLE jobs (id int);"))),
        }
        done = await orchestrator("migrate", env=env)
        assert done.returncode == 0, done.stderr
        assert await admin.value(url, "SELECT to_regclass('public.jobs') IS NOT NULL")
    finally:
        if made:
            await admin.script(url, "DROP OWNED BY orchestrator CASCADE; DROP ROLE orchestrator")
