# ruff: noqa: SIM117 - the reader is there before the process is, and reads so
"""Locks that are not to be had: nobody waits behind us for long, who blocks is named, and the whole is tried again."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND application_name LIKE 'orchestrator%'"
)


def write(folder: Path, *files: tuple[str, str]) -> str:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (tag, sql) in enumerate(files):
        (folder / f"{tag}.sql").write_text(sql)
        entries.append({"idx": number, "when": 1716000000000 + number, "tag": tag, "breakpoints": True})
    (folder / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return str(folder)


@pytest.fixture
def reading(admin, database_url):
    """An idle reader, in the middle of a transaction, who holds a table."""

    @asynccontextmanager
    async def hold(statement: str = "SELECT count(*) FROM t"):
        async with admin.connection(database_url) as connection:
            await connection.execute("SET application_name = 'the reader'")
            await connection.execute("BEGIN")
            await connection.execute(statement)  # not fetch, whose portal would keep a snapshot
            yield connection

    return hold


ADD_COLUMN = ("0001_column", f"CREATE TABLE other ();{BREAK}ALTER TABLE t ADD COLUMN x int;")


@pytest.fixture
async def env(admin, database_url, tmp_path):
    await admin.script(database_url, "CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    return {
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": write(tmp_path / "m", ADD_COLUMN, ("0002_after", "CREATE TABLE after ();")),
        "MIGRATION_DDL_LOCK_TIMEOUT": "1s",
    }


async def test_readers_behind_us_wait_no_longer_than_the_time_out_and_we_go_through_when_the_table_is_free(
    orchestrator, admin, database_url, env, reading, wait_until
):
    waits: list[float] = []

    async def read_on_and_on() -> None:
        async with admin.connection(database_url) as connection:
            while True:
                began = time.monotonic()
                await connection.fetchval("SELECT count(*) FROM t")
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.01)

    async with orchestrator.running("serve", env=env) as run, reading() as reader:
        others = asyncio.create_task(read_on_and_on())
        try:
            told = await run.event("migration.lock_refused")
            status, body = await run.health()
            assert (status, body["migrations"]["current"]) == (503, "0001_column")
            await run.event("migration.lock_refused", nth=2)
            await reader.execute("COMMIT")
            await run.phase("ready")
        finally:
            others.cancel()
    assert (told["sqlstate"], told["migration"], told["line"], told["attempt"]) == ("55P03", "0001_column", 3, 1)
    (blocker,) = told["blockers"]
    assert blocker["pid"] == reader.get_server_pid()
    assert (blocker["application_name"], blocker["state"]) == ("the reader", "idle in transaction")
    assert blocker["query"] == "SELECT count(*) FROM t"
    assert blocker["transaction_age_s"] > 0
    # They did wait (the ALTER stood before them), and no longer than the time-out and what the machine adds.
    assert 0.3 < max(waits) < 2.5
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 2
    assert [e["migration"] for e in run.events if e["event"] == "migration.applied" and e["source"] == "user"] == [
        "0001_column",
        "0002_after",
    ]


async def test_a_blocker_is_named_also_where_the_server_cut_its_query_in_mid_character(
    orchestrator, make_database, admin, env
):
    url = await make_database(raw=True)
    await admin.script(url, "CREATE TABLE t (id int)")
    async with admin.connection(url) as holder:
        await holder.execute("BEGIN")
        await holder.execute(f"SELECT 1 FROM t /* {'é' * 1000} */")  # cut behind an odd number of bytes
        result = await orchestrator("migrate", env={**env, "DATABASE_URL": url, "MIGRATION_DDL_RETRY_FOR": "1ms"})
    (blocker,) = result.events[-1]["blockers"]
    assert blocker["query"].startswith("SELECT … FROM t")


async def test_when_the_time_for_trying_again_is_over_the_blocker_and_the_way_out_are_named(
    orchestrator, admin, database_url, env, reading
):
    async with reading() as reader:
        result = await orchestrator("migrate", env={**env, "MIGRATION_DDL_RETRY_FOR": "1ms"})
    told = result.events[-1]
    assert (result.returncode, told["sqlstate"], told["statement"]) == (70, "55P03", 2)
    pid = reader.get_server_pid()
    assert [b["pid"] for b in told["blockers"]] == [pid]
    assert f"pid {pid}, 'the reader', idle in transaction" in told["error"]
    assert f"pg_terminate_backend({pid})" in told["remedy"]
    assert "MIGRATION_DDL_RETRY_FOR" in told["remedy"]
    assert "as it was before this file" in told["remedy"]
    assert await admin.value(database_url, "SELECT to_regclass('other') IS NULL")


async def test_all_in_one_transaction_is_tried_again_as_a_whole(
    orchestrator, admin, database_url, env, reading, tmp_path
):
    write(tmp_path / "m", ("0000_first", "CREATE TABLE first (); INSERT INTO t VALUES (2);"), ADD_COLUMN)
    async with reading() as reader:
        async with orchestrator.running("migrate", env={**env, "MIGRATION_TRANSACTION": "all"}) as run:
            await run.event("migration.lock_refused")
            assert await admin.value(database_url, "SELECT to_regclass('first') IS NULL")
            await reader.execute("COMMIT")
            assert await run.wait() == 0
    assert await admin.value(database_url, "SELECT count(*) FROM t WHERE id = 2") == 1
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 2


async def test_in_steps_the_piece_that_waited_is_tried_again_and_nothing_before_it(
    orchestrator, admin, database_url, env, reading, tmp_path
):
    steps = BREAK.join(
        [
            "INSERT INTO t VALUES (2)",
            "CREATE INDEX CONCURRENTLY t_id ON t (id)",
            "INSERT INTO t VALUES (3)",
            "ALTER TABLE u ADD COLUMN x int",
            "COMMIT",
            "INSERT INTO t VALUES (4)",
        ]
    )
    write(tmp_path / "m", ("0001_steps", steps))
    await admin.script(database_url, "CREATE TABLE u ()")
    async with reading("SELECT * FROM u") as reader:  # not t, whose readers CREATE INDEX CONCURRENTLY waits out
        async with orchestrator.running("migrate", env=env) as run:
            told = await run.event("migration.lock_refused")
            assert (told["statement"], told["line"]) == (4, 7)
            await run.event("migration.lock_refused", nth=2)
            await reader.execute("COMMIT")
            assert await run.wait() == 0, run.output
    assert [r["id"] for r in await admin(database_url, "SELECT id FROM t ORDER BY id")] == [1, 2, 3, 4]


async def test_a_statement_outside_transactions_that_stops_readers_waits_no_longer_either(
    orchestrator, admin, database_url, env, reading, tmp_path
):
    write(tmp_path / "m", ("0001_full", f"VACUUM FULL t;{BREAK}CREATE INDEX CONCURRENTLY i ON t (id);"))
    async with reading() as reader:
        async with orchestrator.running("migrate", env=env) as run:
            told = await run.event("migration.lock_refused")
            assert (told["statement_kind"], told["blockers"][0]["pid"]) == ("VACUUM", reader.get_server_pid())
            await reader.execute("COMMIT")
            assert await run.wait() == 0, run.output
    assert await admin.value(database_url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")


async def test_a_file_that_sets_lock_timeout_itself_is_obeyed(
    orchestrator, admin, database_url, env, reading, tmp_path
):
    own = f"SET LOCAL lock_timeout = '200ms';{BREAK}ALTER TABLE t ADD COLUMN x int;"
    in_steps = BREAK.join(["COMMIT", "SET lock_timeout = '200ms'", "ALTER TABLE t ADD COLUMN y int"])
    write(tmp_path / "m", ("0001_own", own), ("0002_steps", in_steps))
    patient = {**env, "MIGRATION_DDL_LOCK_TIMEOUT": "1h", "MIGRATION_DDL_RETRY_FOR": "1ms"}
    for done, file in enumerate(["0001_own", "0002_steps"]):
        async with reading():
            result = await orchestrator("migrate", env=patient)
        assert (result.returncode, result.events[-1]["migration"]) == (70, file)
        assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == done
        if done == 0:
            await admin.script(database_url, "DELETE FROM drizzle.__drizzle_migrations")
            (tmp_path / "m" / "0001_own.sql").write_text("SELECT 1;")
    assert (await orchestrator("migrate", env=patient)).returncode == 0


async def test_a_deadlock_is_tried_again(orchestrator, admin, database_url, env, tmp_path, wait_until):
    write(tmp_path / "m", ("0001_both", f"LOCK TABLE t;{BREAK}ALTER TABLE u ADD COLUMN x int;"))
    await admin.script(database_url, "CREATE TABLE u ()")
    async with admin.connection(database_url) as other:
        # The server breaks it from whoever waits for deadlock_timeout first: that is to be us.
        await other.execute("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE u")
        async with orchestrator.running("migrate", env={**env, "MIGRATION_DDL_LOCK_TIMEOUT": "30s"}) as run:
            await wait_until(lambda: admin.value(database_url, WAITING))
            await other.execute("LOCK TABLE t")  # granted when the server has broken the deadlock
            told = await run.event("migration.lock_refused")
            assert (told["sqlstate"], bool(told["detail"])) == ("40P01", True)
            await other.execute("COMMIT")
            assert await run.wait() == 0, run.output


async def test_0_waits_for_the_lock_for_ever(orchestrator, admin, database_url, env, reading, wait_until):
    async with reading() as reader:
        async with orchestrator.running("migrate", env={**env, "MIGRATION_DDL_LOCK_TIMEOUT": "0"}) as run:
            pid = await wait_until(
                lambda: admin.value(database_url, WAITING.replace("count(*)", "pid")), what="it waits for the table"
            )
            assert await admin.value(database_url, "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted", pid)
            await reader.execute("COMMIT")
            assert await run.wait() == 0
    assert not [e for e in run.events if e["event"] == "migration.lock_refused"]


async def test_what_waits_is_seen_on_health_with_its_blockers(
    orchestrator, database_url, admin, env, reading, tmp_path, wait_until
):
    write(tmp_path / "m", ("0001_secret", f"SELECT 'hide me';{BREAK}UPDATE t SET id = 5 WHERE id::text <> 'hide me';"))
    async with reading("SELECT * FROM t WHERE id::text <> 'hide me too' FOR UPDATE") as reader:
        async with orchestrator.running("serve", env={**env, "MIGRATION_DDL_LOCK_TIMEOUT": "60s"}) as run:

            async def blocked():
                body = (await run.health())[1]
                activity = body and body["migrations"]["activity"]
                return body if activity and activity["blockers"] else None

            body = await wait_until(blocked, timeout_s=20)
            migrations, activity = body["migrations"], body["migrations"]["activity"]
            assert (migrations["current"], migrations["statement"], migrations["statements"]) == ("0001_secret", 2, 2)
            assert activity["statement_kind"] == "UPDATE"
            assert activity["wait_event"] == "Lock: transactionid"
            assert activity["elapsed_s"] > 0
            assert activity["blockers"][0]["pid"] == reader.get_server_pid()
            assert "hide me" not in json.dumps(body)
            assert "FOR UPDATE" in activity["blockers"][0]["query"]
            status = json.loads((await orchestrator("status", "--json", env=env)).stdout)["running"]
            assert (status["application_name"], status["wait_event"]) == ("orchestrator serve", "Lock: transactionid")
            assert status["blockers"][0]["pid"] == reader.get_server_pid()
            assert "A migration runs now" in (await orchestrator("status", env=env)).stdout
            line = await run.event("migration.progressed", timeout_s=20)
            assert (line["statement"], line["statements"], line["wait_event"]) == (2, 2, "Lock: transactionid")
            assert line["statement_elapsed_s"] > 5
            assert line["blockers"][0]["pid"] == reader.get_server_pid()
            await reader.execute("COMMIT")
            await run.phase("ready")
            assert (await run.health())[1]["migrations"]["activity"] is None


async def test_a_service_that_serves_tells_what_another_process_migrates(
    orchestrator, env, reading, tmp_path, wait_until
):
    async with orchestrator.running("serve", env={**env, "MIGRATIONS_DIR": ""}) as serving:
        await serving.phase("ready")
        assert (await serving.get("/api/migrations")).body["running"] is None
        async with reading() as reader, orchestrator.running("migrate", env=env):

            async def told():
                running = (await serving.get("/api/migrations")).body["running"]
                # Query and blockers are asked for one after the other.
                is_there = running and running["blockers"]
                return running if is_there and running["query"].startswith(wanted) else None

            wanted = ("CREATE TABLE other ()", "ALTER TABLE t")
            running = await wait_until(told)
            assert running["application_name"] == "orchestrator migrate"
            assert running["blockers"][0]["pid"] == reader.get_server_pid()
            await reader.execute("COMMIT")


async def test_an_index_build_tells_its_percentage_and_the_watcher_does_not_stop_it(
    orchestrator, database_url, admin, env, tmp_path, wait_until
):
    await admin.script(
        database_url,
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.004); RETURN $1; END';"
        "INSERT INTO t SELECT generate_series(2, 700)",
    )
    index = "CREATE INDEX CONCURRENTLY slow_index ON t (slow(id));"
    write(tmp_path / "m", ("0001_index", index))
    async with orchestrator.running("serve", env=env) as run:

        async def percentage():
            body = (await run.health())[1]
            activity = body and body["migrations"]["activity"]
            return activity if activity and activity["percent"] is not None else None

        activity = await wait_until(percentage, timeout_s=20)
        assert activity["statement_kind"] == "CREATE INDEX CONCURRENTLY"
        assert activity["stage"].startswith("building index")
        assert 0 <= activity["percent"] <= 100
        assert not await admin(
            database_url,
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'orchestrator serve watch'"
            " AND (xact_start IS NOT NULL OR state <> 'idle') AND now() - xact_start > interval '1 s'",
        )
        await run.phase("ready", timeout_s=40)
    assert not await admin(database_url, "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%watch'")


async def test_short_migrations_log_in_once(orchestrator, env, database_url, tcp_proxy):
    result = await orchestrator("migrate", env={**env, "DATABASE_URL": tcp_proxy.dsn(database_url)})
    assert (result.returncode, tcp_proxy.accepted) == (0, 1)
