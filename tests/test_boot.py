"""A start from exec to exit, on real processes: health, the gate, signals, replicas, loss and return."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
OUR_MIGRATIONS = len(list((Path(__file__).parent.parent / "migrations").glob("*.sql")))


@pytest.fixture
def folder(tmp_path):
    """Write a v0 folder of (tag, SQL) files."""

    def write(*files: tuple[str, str]):
        path = tmp_path / "drizzle"
        (path / "meta").mkdir(parents=True, exist_ok=True)
        entries = []
        for number, (tag, sql) in enumerate(files):
            (path / f"{tag}.sql").write_text(sql)
            entries.append({"idx": number, "when": 1716000000000 + number, "tag": tag, "breakpoints": True})
        (path / "meta" / "_journal.json").write_text(json.dumps({"entries": entries}))
        return str(path)

    return write


SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep(60)%'"
    " AND pid <> pg_backend_pid() AND state = 'active'"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


async def test_health_is_503_until_ready_and_200_after_while_live_is_200_all_along(
    orchestrator, database_url, folder, tcp_proxy
):
    await tcp_proxy.refuse()
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "MIGRATIONS_DIR": folder(("0000_a", "CREATE TABLE a ();"))}
    async with orchestrator.running("serve", env=env) as run:
        await run.event("database.connect_failed", cause="refused")
        status, body = await run.health()
        assert (status, body["status"], body["phase"]) == (503, "starting", "connecting")
        assert body["checks"]["database"]["cause"] == "refused"
        assert (await run.health("/health/live"))[0] == 200
        assert (await run.health("/health/startup"))[0] == 503
        gated = await run.get("/api/migrations")
        assert (gated.status, gated.headers["Content-Type"]) == (503, "application/problem+json")
        assert gated.headers["Retry-After"] == "1"
        await tcp_proxy.accept()
        await run.phase("ready")
        answer = await run.get("/health")
        body = answer.body
        assert (answer.status, body["status"], body["phase"]) == (200, "ok", "ready")
        assert answer.headers["Cache-Control"] == "no-store"
        assert body["migrations"]["applied"] == body["migrations"]["total"] == OUR_MIGRATIONS + 1
        assert [h["phase"] for h in body["history"]] == [
            "starting", "connecting", "locking", "extensions", "migrating", "launching", "ready",
        ]  # fmt: skip
        assert (await run.health("/health/startup"))[0] == 200
        root = (await run.get("/")).body
        assert root["endpoints"]["health"] == "/health"
        sources = (await run.get("/api/migrations")).body["sources"]
        assert [row["name"] for row in sources[1]["applied"]] == ["0000_a"]
        missing = await run.get("/nothing")
        assert (missing.status, missing.body["title"]) == (404, "Not Found")


async def test_a_start_leaves_a_row_that_tells_it(orchestrator, database_url, admin, wait_until):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as run:
        await run.phase("ready")
        (row,) = await wait_until(lambda: admin(database_url, "SELECT * FROM orchestrator.starts"))
    assert (row["outcome"], row["command"], row["migrations_applied"]) == ("ready", "serve", OUR_MIGRATIONS)
    assert set(json.loads(row["phases"])) >= {"connecting", "locking", "extensions", "migrating", "launching"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_connecting_ends_serve_with_0_and_migrate_with_its_number(orchestrator, signum):
    env = {"DATABASE_URL": "postgresql://u:pw@127.0.0.1:1/db"}
    for command, code in (("serve", 0), ("migrate", 128 + signum)):
        async with orchestrator.running(command, env=env) as run:
            await run.event("database.connect_failed")
            run.send_signal(signum)
            assert await run.wait(timeout_s=5) == code
            assert run.events[-1]["event"] == "service.stopped"


async def test_a_signal_in_mid_migration_rolls_back_and_frees_the_lock(
    orchestrator, database_url, admin, folder, wait_until
):
    env = {
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": folder(("0000_a", f"CREATE TABLE a ();{BREAK}SELECT pg_sleep(60);")),
    }
    async with orchestrator.running("serve", env=env) as run:
        await wait_until(lambda: admin.value(database_url, SLEEPING))
        status, body = await run.health()
        assert (status, body["migrations"]["current"], body["migrations"]["statement"]) == (503, "0000_a", 2)
        run.send_signal(signal.SIGTERM)
        assert await run.wait(timeout_s=10) == 0
    assert await admin.value(database_url, "SELECT to_regclass('a') IS NULL")
    await wait_until(lambda: admin.value(database_url, f"SELECT ({LOCKS}) = 0"))


async def test_a_signal_while_another_holds_the_lock_ends_the_waiter(
    orchestrator, database_url, admin, folder, wait_until
):
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(("0000_a", "SELECT pg_sleep(60);"))}
    async with orchestrator.running("serve", env=env) as holder:
        await wait_until(lambda: admin.value(database_url, SLEEPING))
        async with orchestrator.running("serve", env=env) as waiter:
            told = await waiter.event("lock.waiting")
            assert told["holder"]["application_name"] == "orchestrator serve"
            assert (await waiter.health())[1]["checks"]["lock"]["holder"]["pid"] == told["holder"]["pid"]
            waiter.send_signal(signal.SIGTERM)
            assert await waiter.wait(timeout_s=5) == 0
        late = await orchestrator("migrate", env={**env, "MIGRATION_LOCK_TIMEOUT": "300ms"})
        assert late.returncode == 75
        assert "pg_terminate_backend" in late.events[-1]["remedy"]
        holder.send_signal(signal.SIGTERM)
        await holder.wait()


async def test_a_holder_that_is_killed_in_mid_statement_is_followed_within_three_seconds(
    orchestrator, database_url, admin, folder, wait_until
):
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(("0000_a", "SELECT pg_sleep(60);"))}
    async with orchestrator.running("serve", env=env) as holder:
        await wait_until(lambda: admin.value(database_url, SLEEPING))
        env["MIGRATIONS_DIR"] = folder(("0000_a", "CREATE TABLE a ();"))
        async with orchestrator.running("serve", env=env) as waiter:
            await waiter.event("lock.waiting")
            killed_at = asyncio.get_running_loop().time()
            holder.send_signal(signal.SIGKILL)
            await waiter.event("lock.acquired", timeout_s=10)
            assert asyncio.get_running_loop().time() - killed_at < 3
            await waiter.phase("ready")


async def test_a_second_signal_ends_it_at_once(orchestrator, database_url, folder, tcp_proxy, admin, wait_until):
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "MIGRATIONS_DIR": folder(("0000_a", "SELECT pg_sleep(60);"))}
    async with orchestrator.running("serve", env=env) as run:
        await wait_until(lambda: admin.value(database_url, SLEEPING))
        tcp_proxy.stall()  # what would be cancelled on the server gets no answer
        run.send_signal(signal.SIGTERM)
        await run.phase("stopping")
        await asyncio.sleep(1.1)  # what comes within a second of the first is the same wish
        run.send_signal(signal.SIGTERM)
        assert await run.wait(timeout_s=2) == 143
        tcp_proxy.resume()


async def test_a_connection_cut_in_mid_migration_is_made_again_and_the_file_applied_once(
    orchestrator, database_url, admin, folder, tcp_proxy, wait_until
):
    slow = f"CREATE TABLE a ();{BREAK}SELECT pg_sleep(60) WHERE to_regclass('go') IS NULL;"
    files = folder(("0000_a", slow), ("0001_b", "CREATE TABLE b ();"))
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "MIGRATIONS_DIR": files}
    async with orchestrator.running("serve", env=env) as run:
        await wait_until(lambda: admin.value(database_url, SLEEPING))
        await admin(database_url, "CREATE TABLE go ()")
        await tcp_proxy.cut()
        lost = await run.event("database.lost")
        assert (lost["during"], lost["migration"]) == ("migrating", "0000_a")
        await run.phase("ready")
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 2


async def test_a_database_lost_after_ready_is_503_and_200_again_in_the_same_process(
    orchestrator, database_url, tcp_proxy
):
    async with orchestrator.running("serve", env={"DATABASE_URL": tcp_proxy.dsn(database_url)}) as run:
        await run.phase("ready")
        await tcp_proxy.refuse()
        await tcp_proxy.cut()
        await run.until_health(503, timeout_s=20)
        assert (await run.health())[1]["status"] == "unavailable"
        assert (await run.health("/health/live"))[0] == 200
        assert (await run.health("/health/startup"))[0] == 200
        await tcp_proxy.accept()
        await run.until_health(200, timeout_s=10)
        assert {"database.lost", "database.restored"} <= {e["event"] for e in run.events}


async def test_five_replicas_at_once_migrate_once_and_all_get_ready(orchestrator, database_url, admin, folder):
    files = [(f"{i:04}_t", f"CREATE TABLE t{i} ();") for i in range(10)]
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(*files)}

    async def replica() -> int:
        async with orchestrator.running("serve", env=env) as run:
            await run.phase("ready", timeout_s=60)
            return sum(e["event"] == "migration.applied" for e in run.events)

    async with asyncio.TaskGroup() as group:
        replicas = [group.create_task(replica()) for _ in range(5)]
    assert sorted(r.result() for r in replicas) == [0, 0, 0, 0, OUR_MIGRATIONS + 10]
    assert await admin.value(database_url, "SELECT count(*) FROM drizzle.__drizzle_migrations") == 10


async def test_a_wrong_password_is_told_loudly_and_heals_without_a_restart(
    orchestrator, database_url, admin, server, known
):
    name = f"late_{database_url.rsplit('_', 1)[1][:8]}"
    known.secrets.add("s3cr3t-pw-right")
    await admin(database_url, f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 's3cr3t-pw-other'")
    try:
        url = f"postgresql://{name}:s3cr3t-pw-right@{server.host}:{server.port}/{database_url.rsplit('/', 1)[1]}"
        async with orchestrator.running("migrate", env={"DATABASE_URL": url}) as run:
            told = await run.event("database.connect_failed", cause="credentials")
            assert (told["level"], told["sqlstate"]) == ("error", "28P01")
            assert "volume" in told["hint"]
            await admin(database_url, f"ALTER ROLE {name} PASSWORD 's3cr3t-pw-right'")
            assert await run.wait(timeout_s=20) == 0
    finally:
        await admin.script(
            database_url, f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; DROP ROLE {name}"
        )


@pytest.mark.parametrize(
    ("change", "cause", "outlook"),
    [
        (lambda url: url.rsplit("/", 1)[0] + "/no_such_database", "no_database", 69),
        (lambda _: "postgresql://u:pw@no-such-host.invalid:5432/db", "name_not_resolved", 69),
        (lambda _: "postgresql://u:pw@127.0.0.1:1/db", "refused", 69),
        (lambda _: "postgresql://u:pw@%2Fno%2Fsuch%2Fdirectory/db", "no_socket", 69),
        (lambda url: url + "?sslmode=verify-full", "configuration", 78),
        (lambda url: url + "?options=-c%20no_such_setting%3D1", "parameter", 78),
        (lambda url: url + "?target_session_attrs=standby", "no_matching_host", 69),
    ],
)
async def test_each_failure_has_its_class_and_its_exit_code(orchestrator, database_url, change, cause, outlook):
    result = await orchestrator("wait", env={"DATABASE_URL": change(database_url), "DB_WAIT_TIMEOUT": "700ms"})
    assert (result.returncode, result.events[-1]["cause"]) == (outlook, cause), result.stderr
    assert result.events[-1]["remedy"]


async def test_several_hosts_are_tried_until_one_serves(orchestrator, database_url, server):
    hosts = f"127.0.0.1:1,{server.host}:{server.port}"
    url = database_url.replace(f"{server.host}:{server.port}", hosts) + "?target_session_attrs=read-write"
    assert (await orchestrator("wait", env={"DATABASE_URL": url})).returncode == 0


async def test_a_server_that_is_too_old_is_refused_by_name(orchestrator):
    """A few lines of the real protocol on a real socket: no PostgreSQL 13 is to be had here."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    async def old_server(reader, writer):
        while True:
            (size,) = (int.from_bytes(await reader.readexactly(4), "big"),)
            body = await reader.readexactly(size - 4)
            if body[:4] == (80877103).to_bytes(4, "big"):  # SSLRequest
                writer.write(b"N")
                continue
            break
        writer.write(message(b"R", (0).to_bytes(4, "big")) + message(b"S", b"server_version\x0013.22\x00"))
        writer.write(message(b"S", b"client_encoding\x00UTF8\x00") + message(b"K", bytes(8)) + message(b"Z", b"I"))
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(old_server, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        result = await orchestrator("wait", env={"DATABASE_URL": f"postgresql://u:pw@127.0.0.1:{port}/db"})
    assert result.returncode == 78
    assert "PostgreSQL 13.22; 14 or newer" in result.events[-1]["error"]


async def test_a_failed_start_is_held_with_its_reason_until_a_signal_or_the_time_ends_it(
    orchestrator, database_url, admin, folder, wait_until
):
    """FAILED_HOLD: /health and the page tell why, with nothing else of the process alive."""
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(("0000_a", "CREATE TABEL t ();"))}
    async with orchestrator.running("serve", env=env | {"FAILED_HOLD": "1h"}) as run:
        failed = await run.event("service.failed")
        assert (failed["exit_code"], failed["exits_in_s"]) == (70, 3600)
        status, body = await run.health()
        assert (status, body["phase"], body["failure"]["exit_code"]) == (503, "failed", 70)
        assert "TABEL" in body["failure"]["error"]
        page = await run.get("/", headers={"Accept": "text/html"})
        assert page.status == 200
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
        name = database_url.rpartition("/")[2].partition("?")[0]
        await wait_until(lambda: admin.value(database_url, f"SELECT ({others}) = 0", name))
        run.send_signal(signal.SIGTERM)
        assert await run.wait(timeout_s=5) == 70
        assert [event["event"] for event in run.events].count("service.failed") == 1
    async with orchestrator.running("serve", env=env | {"FAILED_HOLD": "200ms"}) as run:
        assert await run.wait(timeout_s=20) == 70


async def test_a_port_in_use_ends_it_with_78(orchestrator, database_url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = await orchestrator("serve", env={"DATABASE_URL": database_url, "PORT": str(taken.getsockname()[1])})
    assert (result.returncode, "cannot listen" in result.events[-1]["error"]) == (78, True)


async def test_every_problem_of_the_settings_is_told_at_once(orchestrator):
    result = await orchestrator("serve", env={"PORT": "x", "LOG_LEVEL": "loud"})
    assert result.returncode == 78
    assert {p["variable"] for p in result.events[-1]["problems"]} >= {"DATABASE_URL", "PORT", "LOG_LEVEL"}


async def test_extensions_that_cannot_be_made_are_warnings_with_the_sql_for_the_owner(
    orchestrator, database_url, admin, server
):
    name = f"plain_{database_url.rsplit('_', 1)[1][:8]}"
    database = database_url.rsplit("/", 1)[1]
    await admin.script(
        database_url,
        f"CREATE ROLE {name} LOGIN PASSWORD 's3cr3t-pw-plain'; GRANT CREATE ON DATABASE {database} TO {name};"
        "CREATE EXTENSION hstore",
    )
    try:
        url = f"postgresql://{name}:s3cr3t-pw-plain@{server.host}:{server.port}/{database}"
        env = {"DATABASE_URL": url, "EXTENSIONS": "hstore,dblink,no_such_thing"}
        async with orchestrator.running("serve", env=env) as run:
            await run.phase("ready")
            missing = {e["extension"]: e for e in run.events if e["event"] == "extension.missing"}
            assert {n: e["reason"] for n, e in missing.items()} == {
                "dblink": "not_permitted",
                "no_such_thing": "not_available",
            }
            assert missing["dblink"]["sql"] == 'CREATE EXTENSION IF NOT EXISTS "dblink";'
            assert "sql" not in missing["no_such_thing"]
            check = (await run.health())[1]["checks"]["extensions"]
            assert (check["status"], list(check["installed"])) == ("warning", ["hstore"])
    finally:
        await admin.script(database_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_status_has_an_exit_code_for_scripts(orchestrator, database_url, folder):
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(("0000_a", "CREATE TABLE a ();"))}
    assert (await orchestrator("status", "--exit-code", env=env)).returncode == 1
    assert (await orchestrator("migrate", env=env)).returncode == 0
    status = await orchestrator("status", "--exit-code", env=env)
    assert status.returncode == 0
    assert "0000_a" in status.stdout


async def test_healthcheck_prints_the_phase_and_exits_by_it(orchestrator, database_url):
    env = {"DATABASE_URL": database_url}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        healthy = await orchestrator("healthcheck", env={"PORT": str(run.port)})
        assert (healthy.returncode, healthy.stdout.strip()) == (0, "ready")
    nobody = await orchestrator("healthcheck", env={"PORT": str(run.port)})
    assert (nobody.returncode, "no answer" in nobody.stdout) == (1, True)


async def test_config_shows_where_values_come_from_and_no_password(orchestrator, database_url):
    result = await orchestrator("config", "--json", env={"DATABASE_URL": database_url, "MIGRATION_DIR": "/x"})
    found = json.loads(result.stdout)
    rows = {row["variable"]: row for row in found["settings"]}
    assert rows["DATABASE_URL"]["source"] == "environment"
    assert "s3cr3t" not in result.stdout
    assert ["MIGRATION_DIR", "MIGRATIONS_DIR"] in found["suspects"]


async def test_a_request_in_flight_is_finished_before_the_process_ends(
    orchestrator, database_url, admin, folder, wait_until
):
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": folder(("0000_a", "CREATE TABLE a ();"))}
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with admin.connection(database_url) as connection:
            async with connection.transaction():
                await connection.execute("LOCK TABLE drizzle.__drizzle_migrations")
                request = asyncio.create_task(run.get("/api/migrations"))
                await wait_until(lambda: admin.value(database_url, waiting))
                run.send_signal(signal.SIGTERM)
                await run.phase("stopping")
            assert (await request).status == 200
        assert await run.wait(timeout_s=10) == 0


@pytest.mark.parametrize("jobs", [None, "my_jobs"])
async def test_no_file_of_the_working_directory_runs_for_a_library_of_its_name(
    orchestrator, database_url, tmp_path, jobs
):
    for name in ("prometheus_client", "msgspec", "asyncpg", "json", "rich", "cronsim"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close(); raise SystemExit(3)")
    (tmp_path / "my_jobs.py").write_text("from orchestrator.jobs import job\n@job('a')\nasync def a(ctx, payload): ...")
    env = {"DATABASE_URL": database_url} | ({"JOBS": jobs} if jobs else {})
    async with orchestrator.running("serve", env=env, cwd=tmp_path) as run:
        await run.phase("ready")
        assert (await run.get("/metrics")).status in {200, 401}
    assert not (tmp_path / "ran").exists()
