"""Scratch databases and what is replayed into them: they live as long as the work, whatever ends it."""

import asyncio
import secrets
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from orchestrator import dsn as dsns
from orchestrator.database.scratch import PREFIX, ScratchError, scratch_database
from orchestrator.errors import MigrationError
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.tools.replay import replay

BREAK = "\n--> statement-breakpoint\n"
WHEN = 1716000000000


def sources(folder: Path) -> list[Source]:
    return [
        Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations")),
        Source("user", read_folder(folder), LedgerTable("drizzle", "__drizzle_migrations")),
    ]


async def test_a_replay_applies_every_source_and_says_how_long_each_file_took(database_url, admin, tmp_path, write):
    folder = write(tmp_path / "m", ("0000_a", "CREATE TABLE a (id int);"), ("0001_b", "SELECT pg_sleep(0.05);"))
    events = []
    applied = await replay(dsns.parse(database_url), sources(folder), on_event=events.append)
    assert [m.name for m in applied if m.source == "user"] == ["0000_a", "0001_b"]
    assert next(m for m in applied if m.name == "0001_b").duration_s >= 0.05
    assert any(m.source == "service" for m in applied)
    assert [e.facts["migration"] for e in events if e.name == "migration.applied"] == [m.name for m in applied]
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 2
    assert await replay(dsns.parse(database_url), sources(folder)) == []


async def test_a_replay_fails_with_the_words_of_a_start(database_url, tmp_path, write):
    folder = write(tmp_path / "m", ("0000_bad", f"CREATE TABLE a (id int);{BREAK}SELECT 1 / 0;"))
    with pytest.raises(MigrationError, match=r"0000_bad\.sql:3:1: division by zero \(SQLSTATE 22012\)"):
        await replay(dsns.parse(database_url), sources(folder))


# ------------------------------------------------------------------------------------------------- the scratch database


def server_url(url: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@asynccontextmanager
async def reader(admin, url: str, server):
    """A role that may log in and no more; its name and DSN."""
    role = f"reader_{secrets.token_hex(4)}"
    await admin.script(url, f"CREATE ROLE {role} LOGIN PASSWORD '{server.password}'")
    try:
        yield role, url.replace(f"//{server.user}:", f"//{role}:")
    finally:
        await admin.script(url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def scratches(admin, url: str) -> list[str]:
    return [
        row[0] for row in await admin(url, "SELECT datname FROM pg_database WHERE datname ~ '^orchestrator_scratch_'")
    ]


@pytest.mark.parametrize("raw", [False, True])
async def test_a_scratch_database_is_like_its_model_and_gone_after_the_block(make_database, admin, raw):
    properties = (
        "SELECT encoding, datcollate, datctype, to_jsonb(d) ->> 'datlocprovider' AS provider FROM pg_database d"
        " WHERE datname = current_database()"
    )
    database_url = await make_database(raw=raw)
    async with scratch_database(dsns.parse(database_url), purpose="test") as scratch:
        url = server_url(database_url, scratch.database)
        assert await admin(url, properties) == await admin(database_url, properties)
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        assert await admin.value(url, comment) == "orchestrator test: may be dropped"
        await admin.script(url, "CREATE TABLE a ()")
    assert scratch.database not in await scratches(admin, database_url)


async def test_a_scratch_database_is_dropped_after_an_error_also_with_sessions_in_it(database_url, admin):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 the error comes out of a block
        async with scratch_database(dsns.parse(database_url), purpose="test") as scratch:
            session = await asyncpg.connect(server_url(database_url, scratch.database))
            raise ZeroDivisionError
    assert scratch.database not in await scratches(admin, database_url)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await session.fetch("SELECT 1")


async def test_a_scratch_database_is_dropped_by_a_cancellation_at_any_moment(database_url, admin):
    before = set(await scratches(admin, database_url))

    async def work(entered: asyncio.Event) -> None:
        async with scratch_database(dsns.parse(database_url), purpose="test"):
            entered.set()
            await asyncio.Event().wait()

    for ticks in [*range(0, 120, 8), None]:
        entered = asyncio.Event()
        task = asyncio.create_task(work(entered))
        if ticks is None:
            await entered.wait()
        else:
            for _ in range(ticks):  # some way into connecting, locking, sweeping, creating
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert set(await scratches(admin, database_url)) <= before


async def test_what_a_dead_maker_left_behind_is_swept_and_what_is_in_use_is_not(database_url, admin):
    dead, connected_to = f"{PREFIX}0badcafe", f"{PREFIX}ffffffff"
    foreign = f"{PREFIX}of_a_person"
    for name in (dead, connected_to, foreign):
        await admin.script(database_url, f"CREATE DATABASE {name}")
    try:
        async with (
            admin.connection(server_url(database_url, connected_to)),
            scratch_database(dsns.parse(database_url), purpose="test") as alive,
            scratch_database(dsns.parse(database_url), purpose="test") as own,
        ):
            found = await scratches(admin, database_url)
            assert dead not in found
            assert {alive.database, own.database, connected_to, foreign} <= set(found)
        async with scratch_database(dsns.parse(database_url), purpose="test"):
            assert connected_to not in await scratches(admin, database_url)
    finally:
        for name in (dead, connected_to, foreign):
            await admin.script(database_url, f"DROP DATABASE IF EXISTS {name}")


async def test_a_role_that_may_not_make_a_database_is_told_the_sql(database_url, admin, server):
    async with reader(admin, database_url, server) as (role, url):
        with pytest.raises(ScratchError) as raised:
            async with scratch_database(dsns.parse(url), purpose="test"):
                pass
        assert f'ALTER ROLE "{role}" CREATEDB' in raised.value.remedy
        assert raised.value.exit_code == 78
        await admin.script(database_url, f"ALTER ROLE {role} CREATEDB")
        async with scratch_database(dsns.parse(url), purpose="test"):
            pass
