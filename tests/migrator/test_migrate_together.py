"""Small migrations share a message to the server, and nobody can tell but by the clock."""

import json
from pathlib import Path

import pytest

from orchestrator.database.lock import LOCK_KEY

BREAK = "\n--> statement-breakpoint\n"


def write(folder: Path, files: list[str]) -> str:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, sql in enumerate(files):
        (folder / f"{number:04}_m.sql").write_text(sql)
        entries.append({"idx": number, "when": 1716000000000 + number, "tag": f"{number:04}_m", "breakpoints": True})
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return str(folder)


@pytest.fixture
def migrate(orchestrator, database_url, tmp_path):
    async def run(files: list[str], **env: str):
        folder = write(tmp_path / "m", files)
        return await orchestrator(
            "migrate", "--verbose", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder, **env}
        )

    return run


def applied(result) -> list[str]:
    return [e["migration"] for e in result.named("migration.applied") if e["source"] == "user"]


def tables(*numbers: int) -> list[str]:
    return [f"CREATE TABLE t{n} (id int); -- number {n}" for n in numbers]


def names(*numbers: int) -> list[str]:
    return [f"{n:04}_m" for n in numbers]


async def test_each_is_a_transaction_of_its_own_with_its_row_and_its_duration(migrate, admin, database_url):
    files = [f"CREATE TYPE e AS ENUM ('a');{BREAK}CREATE TABLE c (e e);", "ALTER TYPE e ADD VALUE 'b';"]
    # To use a new value needs the commit of the transaction that added it.
    result = await migrate([*files, "INSERT INTO c VALUES ('b'); -- the last", *tables(*range(3, 250))])
    assert result.returncode == 0, result.stderr
    assert applied(result) == names(*range(250))
    assert not result.named("migrations.taken_apart")
    rows = await admin(
        database_url,
        "SELECT l.xmin::text::bigint AS row, r.xmin::text::bigint AS record, r.duration_s, r.name, r.text"
        " FROM drizzle.__drizzle_migrations l JOIN orchestrator.migration_records r USING (hash)"
        " WHERE r.ledger LIKE 'drizzle%' ORDER BY l.id",
    )
    assert [row["name"] for row in rows] == names(*range(250))
    assert all(row["row"] == row["record"] for row in rows)
    assert len({row["row"] for row in rows}) == 250
    assert all(0 < row["duration_s"] < 5 for row in rows)
    assert rows[5]["text"] == tables(5)[0]


async def test_the_one_that_fails_is_named_and_those_before_it_stay(migrate, admin, database_url):
    files = [*tables(0, 1, 2), f"CREATE TABLE half ();{BREAK}ALTER TABLE t1 ADD COLUMN x colour;", *tables(4, 5)]
    result = await migrate(files)
    told = result.events[-1]
    assert (result.returncode, told["migration"], told["statement"], told["line"], told["sqlstate"]) == (
        70,
        "0003_m",
        2,
        3,
        "42704",
    )
    assert applied(result) == told["applied_before"][-3:] == names(0, 1, 2)
    assert await admin.value(database_url, "SELECT to_regclass('half') IS NULL AND to_regclass('t4') IS NULL")
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 3
    result = await migrate([*files[:3], "CREATE TABLE half ();", *files[4:]])
    assert (result.returncode, applied(result)) == (0, names(3, 4, 5))


async def test_without_the_lock_none_of_them_commits(migrate, admin, database_url):
    files = [*tables(0), f"CREATE TABLE gone (x bool); INSERT INTO gone SELECT pg_advisory_unlock({LOCK_KEY});"]
    result = await migrate([*files, *tables(2, 3)])
    assert result.returncode == 70
    assert "no longer holds the migration lock" in result.events[-1]["error"]
    assert applied(result) == names(0)
    assert await admin.value(database_url, "SELECT to_regclass('gone') IS NULL AND to_regclass('t2') IS NULL")
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 1


async def test_one_that_takes_long_is_taken_out_of_the_message_and_shown(
    orchestrator, admin, database_url, tmp_path, wait_until
):
    slow = f"CREATE TABLE slow (x int);{BREAK}INSERT INTO slow SELECT 1 FROM pg_sleep(4);"
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": write(tmp_path / "m", [*tables(0), slow, *tables(2)])}
    async with orchestrator.running("serve", env=env) as run:

        async def shown():
            body = (await run.health())[1]
            migrations = body and body["migrations"]
            is_there = migrations and (migrations["current"], migrations["statement"]) == ("0001_m", 2)
            return migrations if is_there else None

        migrations = await wait_until(shown)
        assert (migrations["statements"], migrations["total"] - migrations["applied"]) == (2, 2)
        await run.phase("ready")
    assert await admin.value(database_url, "SELECT count(*) FROM slow") == 1
    told = [e["migration"] for e in run.events if e["event"] == "migration.applied" and e["source"] == "user"]
    assert told == names(0, 1, 2)
