"""A migration that takes the server down, or whose connection is cut each time, stops; weather does not count."""

import asyncio
import contextlib
import os
import signal
from urllib.parse import urlsplit, urlunsplit

import pytest

from orchestrator.embedded.server import embedded_postgres

BREAK = "\n--> statement-breakpoint\n"
RUNS = "SELECT count(*) FROM orchestrator.migration_runs"
CRASH = "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'"


def failure(result) -> dict:
    (event,) = [e for e in result.events if e["event"] == "service.failed"]
    return event


def lost(result) -> int:
    return sum(e["event"] == "database.lost" for e in result.events)


@pytest.fixture
async def private(tmp_path, known):
    """A server that may die."""
    async with embedded_postgres(tmp_path / "server", lambda *_, **__: None) as server:
        known.secrets.add(server.dsn.split(":")[2].split("@")[0])
        yield server


async def test_what_crashes_the_server_runs_twice_and_a_restart_of_ours_does_not_try_it_again(
    orchestrator, admin, private, tmp_path, write
):
    await admin.script(private.dsn, "CREATE SEQUENCE tries")
    # setval, once it has reached the disk, outlives the crash.
    sql = f"CREATE TABLE a ();{BREAK}SELECT nextval('tries'); CHECKPOINT;{BREAK}{CRASH};"
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE first ();"), ("0001_crash", sql))
    env = {"DATABASE_URL": private.dsn, "MIGRATIONS_DIR": str(folder)}
    result = await orchestrator("migrate", env=env)
    told = failure(result)
    assert (result.returncode, lost(result)) == (70, 2), result.stderr
    assert (told["migration"], told["statement"], told["line"], told["losses"]) == ("0001_crash", 4, 5, 2)
    assert "the server went away each time this ran" in told["error"]
    again = await orchestrator("migrate", env=env)
    assert (again.returncode, lost(again)) == (70, 0), again.stderr
    assert (failure(again)["line"], failure(again)["migration"]) == (5, "0001_crash")
    assert await admin.value(private.dsn, "SELECT last_value FROM tries") == 2
    # Whoever has mended the cause says so, or edits the file.
    write(tmp_path / "m", ("0000_a", "CREATE TABLE first ();"), ("0001_crash", "CREATE TABLE a ();"))
    assert (await orchestrator("migrate", env=env)).returncode == 0
    assert await admin.value(private.dsn, RUNS) == 0


async def test_where_our_process_dies_with_the_server_each_time_it_stops_too(
    orchestrator, admin, private, tmp_path, write, wait_until
):
    """The first crash takes back the file before, whose commit did not wait for the disk: it is not to blame."""
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE first ();"), ("0001_slow", "SELECT pg_sleep(60);"))
    env = {"DATABASE_URL": private.dsn, "MIGRATIONS_DIR": str(folder)}
    asleep = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active'"
    asleep += " AND pid <> pg_backend_pid()"

    async def sleeping():
        with contextlib.suppress(Exception):
            return await admin.value(private.dsn, asleep)

    for _ in range(2):
        async with orchestrator.running("migrate", env=env) as run:
            pid = await wait_until(sleeping, timeout_s=30)
            run.send_signal(signal.SIGKILL)
            await run.wait()
            os.kill(pid, signal.SIGKILL)
    result = await orchestrator("migrate", env=env)
    assert result.returncode == 70, result.stderr
    assert failure(result)["migration"] == "0001_slow"
    assert "DELETE FROM orchestrator.migration_runs" in failure(result)["remedy"]


async def test_a_process_that_is_killed_by_itself_counts_for_nothing(
    orchestrator, admin, database_url, tmp_path, write, wait_until
):
    folder = write(tmp_path / "m", ("0000_slow", "CREATE TABLE a AS SELECT pg_sleep(2) IS NULL AS x;"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    for _ in range(3):
        async with orchestrator.running("migrate", env=env) as run:
            await wait_until(lambda: started(admin, database_url), timeout_s=30)
            run.send_signal(signal.SIGKILL)
            await run.wait()
    result = await orchestrator("migrate", env=env)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, RUNS) == 0


async def started(admin, url) -> bool:
    return bool(
        await admin.value(
            url,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2)%' AND state = 'active'"
            " AND datname = current_database() AND pid <> pg_backend_pid()",
        )
    )


@pytest.mark.parametrize("how", ["in a transaction", "in steps"])
async def test_a_file_that_terminates_its_own_session_stops_after_the_second_time(
    orchestrator, admin, database_url, tmp_path, write, how
):
    sql = "SELECT 1;" + BREAK + "SELECT pg_terminate_backend(pg_backend_pid());"
    folder = write(tmp_path / "m", ("0000_end", f"COMMIT;{BREAK}{sql}" if how == "in steps" else sql))
    result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)})
    told = failure(result)
    assert (result.returncode, lost(result), told["line"]) == (70, 2, 5 if how == "in steps" else 3), result.stderr
    assert "its session was terminated each time" in told["error"]
    assert await admin.value(database_url, "SELECT losses FROM orchestrator.migration_runs") == 2


async def test_a_connection_that_is_cut_each_time_is_told_with_its_silence_and_the_way_past(
    orchestrator, admin, database_url, tmp_path, write
):
    """A stand-in for an idle limit of HAProxy: both ends are cut after 1.5 s without a byte from the server."""
    host, port = urlsplit(database_url).hostname, urlsplit(database_url).port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, port)

        async def hand_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                while data := await asyncio.wait_for(source.read(65536), 1.5):
                    target.write(data)
                    await target.drain()
            for one in (writer, up_writer):
                one.close()

        await asyncio.gather(hand_on(reader, up_writer), hand_on(up_reader, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        through = urlsplit(database_url)
        netloc = f"{through.username}:{through.password}@127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        url = urlunsplit(through._replace(netloc=netloc))
        files = [
            ("0000_a", "CREATE TABLE a ();"),
            ("0001_slow", f"SELECT 1;{BREAK}CREATE TABLE s AS SELECT pg_sleep(4) IS NULL x;"),
        ]
        folder = write(tmp_path / "m", *files)
        result = await orchestrator("migrate", env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(folder)}, timeout_s=60)
    told = failure(result)
    assert (result.returncode, lost(result)) == (70, 3), result.stderr
    assert (told["migration"], told["line"], told["statement"]) == ("0001_slow", 3, 2)
    assert "s of silence each time" in told["error"]
    assert all(1 <= one <= 3 for one in told["silences_s"])
    assert "MIGRATION_DATABASE_URL" in told["remedy"]
    # Past the proxy it goes through, and nothing was kept against it.
    env = {"DATABASE_URL": url, "MIGRATION_DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    assert (await orchestrator("migrate", env=env)).returncode == 0


async def test_db_wait_timeout_bounds_rounds_that_lead_nowhere(orchestrator, database_url, tmp_path, write, tcp_proxy):
    folder = write(tmp_path / "m", ("0000_a", "SELECT pg_sleep(30);"))
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "MIGRATIONS_DIR": str(folder), "DB_WAIT_TIMEOUT": "1s"}
    async with orchestrator.running("migrate", env={**env, "LOG_LEVEL": "debug"}) as run:
        for number in (1, 2, 3):  # the first round has led somewhere: to our own tables
            await run.event("migration.started", nth=number, migration="0000_a")
            await tcp_proxy.cut()
        assert await run.wait() == 69, run.output
    assert "DB_WAIT_TIMEOUT is 1 s" in run.events[-1]["error"]
