"""Poolers: through one in transaction mode nothing is touched; in session mode everything works."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
from urllib.parse import urlsplit

import pytest

from orchestrator import dsn as dsns
from orchestrator.database.connect import close, connect_once
from orchestrator.database.sessions import OUR_PATH

pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer") is None and not os.environ.get("CI"), reason="needs pgbouncer (Debian's package)"
)

NOTHING_OF_OURS = (
    "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname IN ('orchestrator', 'drizzle'))"
    " + (SELECT count(*) FROM pg_extension WHERE extname = 'hstore')"
    " + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    "    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)

HANDLERS = """
from orchestrator.jobs import job

@job("look")
async def look(ctx, payload):
    async with ctx.pool.acquire() as connection:
        assert await connection.fetchval("SELECT $1::integer", 7) == 7
"""


@pytest.fixture
async def pgbouncer(server, tmp_path, wait_until):
    """`await pgbouncer(mode, **settings)` → a function from a database's DSN to that by way of a new PgBouncer."""
    running = []

    async def start(mode: str, **settings: object):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        lines = [
            "[databases]",
            f"* = host={server.host} port={server.port} user={server.user} password={server.password}",
            "[pgbouncer]",
            *("listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any"),
            *(f"pool_mode = {mode}", "max_client_conn = 100"),
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        config = tmp_path / f"pgbouncer-{port}.ini"
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o644)
        arguments = ["-u", "nobody"] if os.geteuid() == 0 else []
        log = (tmp_path / f"pgbouncer-{port}.log").open("wb")
        process = await asyncio.create_subprocess_exec("pgbouncer", "-q", *arguments, config, stdout=log, stderr=log)
        running.append((process, log))

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            assert process.returncode is None, (tmp_path / f"pgbouncer-{port}.log").read_text()
            return False

        await wait_until(listens)
        return lambda dsn: f"postgresql://anybody@127.0.0.1:{port}{urlsplit(dsn).path}"

    yield start
    for process, log in running:
        process.terminate()
        await process.wait()
        log.close()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "m"
    (path / "meta").mkdir(parents=True)
    entries = []
    for number in range(4):
        (path / f"000{number}_t.sql").write_text(f"CREATE TABLE t{number} ();")
        entries.append({"idx": number, "when": 1716000000000 + number, "tag": f"000{number}_t", "breakpoints": True})
    (path / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
    return str(path)


@contextlib.asynccontextmanager
async def load(admin, url: str, clients: int):
    """Clients that use the pooler all the time, so that it hands its server connections round."""

    async def use() -> None:
        async with admin.connection(url) as connection:
            while True:
                await connection.execute("BEGIN; SELECT pg_sleep(0.002); COMMIT")

    tasks = [asyncio.create_task(use()) for _ in range(clients)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("settings", "clients"),
    [
        ({}, 0),
        ({"default_pool_size": 1}, 0),
        ({"default_pool_size": 3, "server_round_robin": 1}, 4),
        ({"server_reset_query_always": 1}, 0),
    ],
    ids=["quiet", "one server connection", "busy", "resets always"],
)
async def test_a_pooler_in_transaction_mode_is_refused_before_anything_is_touched(
    orchestrator, admin, database_url, folder, pgbouncer, settings, clients
):
    pooled = (await pgbouncer("transaction", **settings))(database_url)
    async with load(admin, pooled, clients):
        env = {"DATABASE_URL": pooled, "MIGRATIONS_DIR": folder, "EXTENSIONS": "hstore"}
        result = await orchestrator("migrate", env=env)
    assert result.returncode == 78, result.stderr
    assert "MIGRATION_DATABASE_URL" in result.events[-1]["remedy"]
    assert "transaction mode" in result.events[-1]["error"]
    assert result.events[-1]["restart_helps"] is False
    assert await admin.value(database_url, NOTHING_OF_OURS) == 0


async def test_a_service_behind_one_migrates_by_another_way(orchestrator, admin, database_url, folder, pgbouncer):
    pooled = (await pgbouncer("transaction"))(database_url)
    env = {"DATABASE_URL": pooled, "MIGRATION_DATABASE_URL": database_url, "MIGRATIONS_DIR": folder}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 4


@pytest.mark.parametrize("query", ["", "?pgbouncer=true"], ids=["found", "told"])
async def test_replicas_behind_one_in_transaction_mode_work_whether_or_not_it_is_told(
    orchestrator, admin, database_url, tmp_path, pgbouncer, wait_until, query
):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    pooled = (await pgbouncer("transaction", default_pool_size=5))(database_url)
    env = {"DATABASE_URL": pooled + query, "MIGRATION_DATABASE_URL": database_url, "JOBS": "handlers"}
    async with orchestrator.running("serve", env=env) as one, orchestrator.running("serve", env=env) as other:
        for run in (one, other):
            await run.phase("ready")
        add = "INSERT INTO orchestrator.jobs (name, state) SELECT 'look', 'queued' FROM generate_series(1, 200)"
        await admin(database_url, add)
        # The connections go round among both while the jobs run.
        for _ in range(30):
            for run in (one, other):
                for path in ("/api/jobs", "/api/queues", "/api/schedules", "/api/migrations"):
                    assert (await run.get(path)).status == 200
        done = "SELECT count(*) = 200 FROM orchestrator.jobs WHERE state = 'succeeded' AND attempt = 1"
        await wait_until(lambda: admin.value(database_url, done), timeout_s=20)
        for run in (one, other):
            assert len([e for e in run.events if e["event"] == "database.pooler_found"]) == (0 if query else 1)
            assert not [e for e in run.events if e["level"] == "error"]


@pytest.mark.parametrize("pool_size", [20, 1])
async def test_through_a_pooler_in_session_mode_it_works(
    orchestrator, admin, database_url, folder, pgbouncer, pool_size
):
    pooled = (await pgbouncer("session", default_pool_size=pool_size))(database_url)
    env = {"DATABASE_URL": pooled, "MIGRATIONS_DIR": folder}
    for applied in (4, 0):
        result = await orchestrator("migrate", env=env)
        assert result.returncode == 0, result.stderr
        assert len([e for e in result.named("migration.applied") if e["source"] == "user"]) == applied
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 4


async def test_our_settings_are_in_each_transaction_through_one_in_transaction_mode_and_leak_into_no_session(
    pgbouncer, database_url, admin
):
    """Everybody shares the one server connection, with those who know nothing of us."""
    through = (await pgbouncer("transaction", default_pool_size=1))(database_url)
    ours = await connect_once(dsns.parse(through), timeout_s=5, application_name="test")
    try:
        assert ours.is_shared
        for _ in range(2):
            assert await ours.fetchval("SELECT pg_catalog.current_setting('search_path')") == OUR_PATH
            assert await ours.execute("SELECT 1 WHERE pg_catalog.current_setting('search_path') = $1", OUR_PATH)
            assert await ours.execute(f"SELECT 1 WHERE current_setting('search_path') = '{OUR_PATH}'") == "SELECT 1"
            async with ours.transaction(readonly=True):
                assert await ours.fetchval("SHOW search_path") == OUR_PATH
                assert await ours.fetchval("SHOW statement_timeout") == "0"
            async with admin.connection(through) as other:
                for statement in ("SHOW search_path", "SHOW transform_null_equals", "SHOW tcp_keepalives_idle"):
                    assert await other.fetchval(statement) == await admin.value(database_url, statement)
        await ours.execute("CREATE DATABASE made_through_a_pooler")
        await ours.execute("DROP DATABASE made_through_a_pooler")
    finally:
        await close(ours)
