"""The stream tells what stays, and waits for nobody who has nothing to do with it."""

import contextlib
import os
import signal

import asyncpg
import pytest
from support.streams import ADD, TELL, streaming

HANDLERS = """
import asyncio
from orchestrator.jobs import job

@job("wait")
async def wait(ctx, payload):
    await asyncio.sleep(600)
"""


@pytest.fixture
def env(tmp_path, database_url):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return {"DATABASE_URL": database_url, "JOBS": "handlers", "SHUTDOWN_TIMEOUT": "4s"}


async def add(connection, number):
    await connection.execute(ADD, number)
    await connection.execute(TELL)


async def roll_back(connection, count):
    """So many numbers that are drawn and never used, with one that is used between each two."""
    for number in range(count):
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(ADD, 9999)
        await transaction.rollback()
        await connection.execute(ADD, number)


async def test_a_stranger_s_open_transaction_delays_nothing_however_many_gaps_there_are(
    orchestrator, env, database_url, make_database, admin
):
    other_database = await make_database()
    async with (
        orchestrator.running("serve", env=env) as run,
        admin.connection(database_url) as connection,
        admin.connection(database_url) as stranger,
        admin.connection(other_database) as farther,
    ):
        await run.phase("ready")
        for one in (stranger, farther):
            await one.execute("CREATE TABLE public.theirs (n integer)")
            await one.transaction().start()
            await one.execute("INSERT INTO public.theirs VALUES (1)")  # it has a number, and keeps the horizon
        async with streaming(run) as stream:
            await roll_back(connection, 400)
            await connection.execute(TELL)
            assert await stream.jobs(400) == list(range(400))
            async with streaming(run) as later:
                await add(connection, 7)
                assert await later.jobs(1) == [7]


async def test_a_transaction_that_keeps_a_gap_open_keeps_nobody_waiting_for_long_and_is_said(
    orchestrator, env, database_url, admin
):
    async with (
        orchestrator.running("serve", env=env) as run,
        admin.connection(database_url) as connection,
        admin.connection(database_url) as slow,
    ):
        await run.phase("ready")
        async with streaming(run) as stream:
            transaction = slow.transaction()
            await transaction.start()
            await slow.execute(ADD, 5000)
            await roll_back(connection, 400)
            await connection.execute(TELL)
            assert await stream.jobs(400, timeout_s=60) == list(range(400))
            await run.event("events.gaps_given_up")
            await transaction.rollback()


async def test_a_gap_is_filled_by_who_was_slow(orchestrator, env, database_url, admin):
    async with (
        orchestrator.running("serve", env=env) as run,
        admin.connection(database_url) as connection,
        admin.connection(database_url) as slow,
    ):
        await run.phase("ready")
        async with streaming(run) as stream:
            for round_ in range(20):
                async with slow.transaction():
                    await slow.execute(ADD, 5000 + round_)
                    await roll_back(connection, 3)
                    await connection.execute(TELL)
                    assert await stream.jobs(3) == [0, 1, 2]
                await connection.execute(TELL)
                assert await stream.jobs(1) == [5000 + round_]


async def test_what_was_told_is_there_after_a_crash_of_the_server(orchestrator, env, tmp_path, wait_until):
    from orchestrator.embedded.server import embedded_postgres

    # Nothing but a commit that waits writes the log: a claim does not.
    settings = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    async with (
        embedded_postgres(tmp_path / "pg", lambda *_, **__: None, settings=settings) as server,
        orchestrator.running("serve", env={**env, "DATABASE_URL": server.dsn}) as run,
    ):
        await run.phase("ready")
        connection = await asyncpg.connect(server.dsn)
        async with streaming(run) as stream:
            await connection.execute("INSERT INTO orchestrator.jobs (name, state) VALUES ('wait', 'queued')")
            await connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
            while (await stream.next("job"))[1]["state"] != "running":
                pass
            os.kill(connection.get_server_pid(), signal.SIGKILL)
            await wait_until(connection.is_closed)

            async def again():
                with contextlib.suppress(asyncpg.PostgresError, OSError):
                    return await asyncpg.connect(server.dsn, timeout=2)

            connection = await wait_until(again, 20)
            told = [int(stream.last_id.partition("~")[0])]
            assert await connection.fetchval("SELECT state FROM orchestrator.job_events WHERE id = $1", told[0]) == (
                "running"
            )
            await connection.close()
