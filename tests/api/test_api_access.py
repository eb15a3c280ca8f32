"""Who is told what, and who may do what: strangers, readers, and those who show a token; on loopback and beyond."""

import asyncio
import json
import os
import stat

import aiohttp
import pytest

from orchestrator import tokens
from orchestrator.api.security import Safety
from orchestrator.api.token_store import TokenStore
from orchestrator.healthcheck import kept_port
from orchestrator.settings import load
from orchestrator.tokens import Token, TokenError

TOKEN = "s3cr3t-token-of-the-callers"
READER = "s3cr3t-token-of-the-readers"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def _secrets(known):
    known.secrets |= {TOKEN, READER}


@pytest.fixture
def secret_jobs(tmp_path):
    (tmp_path / "handlers.py").write_text(
        'from orchestrator.jobs import job\n\n\n@job("anything")\nasync def anything(ctx, payload: dict):\n    pass\n'
    )
    return "handlers"


def assert_tells_little(body, *, names=()):
    text = json.dumps(body)
    for name in ("127.0.0.1", "tester_", "test_", 'version": "', *names):
        assert name not in text, (name, body)
    assert body["version"] is None
    assert {"status", "phase", "timestamp", "uptime_s", "started_at", "migrations", "checks", "history"} <= body.keys()
    assert all(set(check) == {"status", "checked_at"} for check in body["checks"].values())
    assert all(set(warning) == {"event"} for warning in body["warnings"])


async def watched(run, **headers):
    """The first frame of /health/events."""
    async with aiohttp.ClientSession(run.url) as session, session.get("/health/events", headers=headers) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                return json.loads(line[6:])
    raise AssertionError("the stream ended without a frame")


async def test_a_stranger_is_told_the_phase_and_the_counts_and_who_shows_the_token_all(orchestrator, database_url):
    env = {"DATABASE_URL": database_url, "API_TOKEN": TOKEN, "EXTENSIONS": "no_such_extension"}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {}):  # the third is answered from what is kept
                body = (await run.get(path, headers=headers)).body
                assert_tells_little(body, names=["no_such"])
                assert (body["phase"], body["status"]) == ("ready", "ok")
                assert body["migrations"]["applied"] == body["migrations"]["total"] > 0
                assert body["warnings"] == [{"event": "extension.missing"}]
            told = (await run.get(path, headers=SHOWN)).body
            assert told["version"]
            assert told["checks"]["database"]["server"]
            assert told["warnings"][0]["extension"] == "no_such_extension"
        for accept in ("application/json", "text/event-stream"):
            given = {"Accept": accept}
            little = (await run.get("/health/events", headers=given)).body if "json" in accept else await watched(run)
            assert_tells_little(little)
            assert (little["items"]["rows"], little["items"]["slowest"], little["tells_all"]) == ([], [], False)
            assert little["items"]["counts"] == {"applied": little["items"]["total"]}
        everything = await watched(run, **SHOWN)
        assert everything["items"]["rows"]
        assert everything["tells_all"]
        assert (await orchestrator("healthcheck", env={"PORT": str(run.port)})).stdout.strip() == "ready"


async def test_why_a_start_failed_is_for_those_who_show_the_token(orchestrator, database_url, tmp_path, write):
    folder = write(tmp_path / "folder", ("0000_waits", "SELECT pg_sleep(2)"), ("0001_bad", "SELECT 'row of Ada' / 0"))
    env = {"DATABASE_URL": database_url, "API_TOKEN": TOKEN, "MIGRATIONS_DIR": str(folder)}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("migrating")

        async def ends(**headers):
            last = None
            async with (
                aiohttp.ClientSession(run.url) as session,
                session.get("/health/events", headers=headers) as response,
            ):
                async for line in response.content:
                    if line.startswith(b"data: "):
                        last = json.loads(line[6:])
            return last

        little, everything = await asyncio.gather(ends(), ends(**SHOWN))
        assert await run.wait() == 70
    assert little["failure"] == {
        "error": "the start failed; the log says why, and so does /health to requests with the API's token",
        "exit_code": 70,
        "restart_helps": False,
    }
    assert "0001_bad" in json.dumps(everything["failure"])
    assert_tells_little(little, names=["0001_bad", "Ada", "pg_sleep"])


async def test_on_loopback_a_page_of_another_name_is_a_stranger(orchestrator, database_url):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as run:
        await run.phase("ready")
        assert (await run.get("/health")).body["version"]
        for _ in range(2):
            assert_tells_little((await run.get("/health", headers={"Host": "rebound.example.org"})).body)


async def test_beyond_loopback_nothing_but_health_and_the_page_answers_until_somebody_says_who_may(
    orchestrator, database_url, secret_jobs
):
    env = {"DATABASE_URL": database_url, "HOST": "0.0.0.0", "JOBS": secret_jobs}
    async with orchestrator.running("serve", env=env) as run:
        await run.event("api.closed")
        await run.phase("ready")
        assert_tells_little((await run.get("/health")).body)
        page = await run.get("/", headers={"Accept": "text/html"})
        assert page.status == 200
        told = (await run.get("/health/events", headers={"Accept": "application/json"})).body
        assert told["access"] == {"token": False, "reads": "refused", "actions": "refused"}
        for path in ("/", "/api/jobs", "/openapi.json", "/metrics", "/api/events", "/nothing"):
            refused = await run.get(path, headers={"Authorization": "Bearer anything"})
            assert refused.status == 403, path
            assert "API_TOKEN" in refused.body["detail"]
        async with (
            aiohttp.ClientSession(run.url) as session,
            session.post("/api/jobs", json={"name": "anything"}) as response,
        ):
            assert response.status == 403
    env |= {"API_ACCESS": "open", "ALLOWED_HOSTS": "stats.example.org"}
    async with orchestrator.running("serve", env=env) as run:
        await run.event("api.unprotected", access="open")
        await run.phase("ready")
        async with aiohttp.ClientSession(run.url) as session:
            for host, status in [
                ("job-server:3005", 202),
                ("stats.example.org", 202),
                (f"127.0.0.1:{run.port}", 202),
                ("10.1.2.3", 202),
                ("[::1]:3005", 202),
                ("rebound.example.org", 403),
                ("stats.example.org.evil.example", 403),
                ("", 403),
            ]:
                async with session.post("/api/jobs", json={"name": "anything"}, headers={"Host": host}) as response:
                    assert response.status == status, host
            body = (await run.get("/health", headers={"Host": "rebound.example.org"})).body
            assert_tells_little(body)


async def test_a_token_beside_open_reads_is_asked_of_changes_alone(orchestrator, database_url, secret_jobs):
    env = {"DATABASE_URL": database_url, "API_TOKEN": TOKEN, "API_ACCESS": "read", "JOBS": secret_jobs}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        assert (await run.get("/api/jobs")).status == 200
        assert (await run.get("/api/jobs", headers={"Authorization": "Bearer wrong"})).status == 401
        async with aiohttp.ClientSession(run.url) as session:
            for headers, status in (({}, 401), (SHOWN, 202)):
                async with session.post("/api/jobs", json={"name": "anything"}, headers=headers) as response:
                    assert response.status == status


async def test_tokens_have_names_and_rights_and_are_changed_without_a_restart(
    orchestrator, database_url, secret_jobs, tmp_path, wait_until
):
    file = tmp_path / "tokens"
    file.write_text(f"# who\nada {TOKEN}\n\ngrafana {READER} read\n")
    env = {"DATABASE_URL": database_url, "API_TOKENS_FILE": str(file), "JOBS": secret_jobs}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")

        async def status(token, method="GET"):
            async with (
                aiohttp.ClientSession(run.url, headers={"Authorization": f"Bearer {token}"}) as session,
                session.request(method, "/api/jobs", json={"name": "anything"} if method == "POST" else None) as got,
            ):
                return got.status

        assert [await status(TOKEN), await status(TOKEN, "POST")] == [200, 202]
        assert [await status(READER), await status(READER, "POST")] == [200, 403]
        beside = tmp_path / "beside"
        beside.write_text(f"grace {TOKEN[::-1]}\ngrafana {READER} read\n")
        beside.replace(file)
        read = await run.event("api.tokens_read")
        assert (read["added"], read["removed"]) == (["grace"], ["ada"])
        assert [await status(TOKEN), await status(TOKEN[::-1], "POST"), await status(READER)] == [401, 202, 200]
        file.write_text("what is this\n")
        kept = await run.event("api.tokens_not_read")
        assert "line 1" in kept["error"]
        assert [await status(TOKEN[::-1]), await status(READER)] == [200, 200]
        file.unlink()
        for _ in range(30):
            assert await status("not-one-of-the-tokens") == 401
        refused = [event for event in run.events if event["event"] == "api.token_refused"]
        assert len(refused) <= 2
        assert refused[0]["address"] == "127.0.0.1"
        assert "not-one-of-the" not in run.output


async def test_who_changed_what_stands_in_the_log_and_in_a_table(
    orchestrator, database_url, secret_jobs, tmp_path, admin, wait_until
):
    file = tmp_path / "tokens"
    file.write_text(f"ada {TOKEN}\ngrafana {READER} read\n")
    env = {"DATABASE_URL": database_url, "API_TOKENS_FILE": str(file), "JOBS": secret_jobs}
    rows = "SELECT token, address, method, path, status, facts::text AS facts FROM orchestrator.api_changes ORDER BY id"
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        schedule = {"job": "anything", "cron": "0 3 * * *", "payload": {"secret": "of-the-payload"}}
        asked = [
            ("POST", "/api/jobs", {"name": "anything", "delay_s": 600, "payload": {"secret": "of-the-payload"}}),
            ("POST", "/api/jobs/batch", {"jobs": [{"name": "anything", "delay_s": 600}] * 3}),
            ("POST", "/api/jobs/1/cancel", None),
            ("POST", "/api/jobs/1/retry", None),
            ("PUT", "/api/schedules/nightly", schedule),
            ("POST", "/api/schedules/nightly/trigger", None),
            ("POST", "/api/jobs/scheduler/trigger", {"schedule": "nightly"}),
            ("DELETE", "/api/schedules/nightly", None),
            ("POST", "/api/jobs/cancel-by-type", {"jobType": "anything"}),
        ]
        async with aiohttp.ClientSession(run.url) as session:
            for method, path, body in asked:
                async with session.request(method, path, json=body, headers=SHOWN) as response:
                    assert response.status < 300, (path, await response.text())
            # What changes nothing is no change.
            async with session.post("/api/jobs", json={"name": "nobody"}, headers=SHOWN) as response:
                assert response.status == 422
            reader = {"Authorization": f"Bearer {READER}"}
            async with session.post("/api/jobs", json={"name": "anything"}, headers=reader) as response:
                assert response.status == 403
            async with session.get("/api/jobs", headers=reader) as response:
                assert response.status == 200

        async def written():
            return len(await admin(database_url, rows)) >= len(asked)

        await wait_until(written)
        found = await admin(database_url, rows)
        assert [(row["method"], row["path"]) for row in found] == [(method, path) for method, path, _ in asked]
        assert {(row["token"], row["address"]) for row in found} == {("ada", "127.0.0.1")}
        facts = [json.loads(row["facts"]) for row in found]
        assert facts[0] == {"job": 1, "name": "anything", "created": True}
        assert (facts[1]["jobs"], facts[4]["cron"], facts[8]["name"]) == (3, "0 3 * * *", "anything")
        assert "of-the-payload" not in str(facts)
        # What is noted as the server stops is written as well.
        async with (
            aiohttp.ClientSession(run.url) as session,
            session.post("/api/jobs", json={"name": "anything"}, headers=SHOWN) as response,
        ):
            assert response.status == 202
    assert len(await admin(database_url, rows)) == len(asked) + 1
    told = [event for event in run.events if event["event"] == "api.changed"]
    assert [event["path"] for event in told] == [*(path for _, path, _ in asked), "/api/jobs"]
    assert (told[0]["token"], told[0]["what"]["job"]) == ("ada", 1)


async def test_the_trail_waits_for_a_database_that_is_away_and_nobody_waits_for_the_trail(
    orchestrator, database_url, secret_jobs, admin, wait_until
):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url, "JOBS": secret_jobs}) as run:
        await run.phase("ready")
        async with aiohttp.ClientSession(run.url) as session, admin.connection(database_url) as connection:
            await connection.execute("ALTER TABLE orchestrator.api_changes RENAME TO hidden")
            for _ in range(3):
                async with session.post("/api/jobs", json={"name": "anything"}) as response:
                    assert response.status == 202
            await run.event("api.changes_not_written")
            await connection.execute("ALTER TABLE orchestrator.hidden RENAME TO api_changes")

        async def written():
            return await admin.value(database_url, "SELECT count(*) FROM orchestrator.api_changes") == 3

        await wait_until(written, timeout_s=20)
        token = await admin.value(database_url, "SELECT token FROM orchestrator.api_changes LIMIT 1")
        assert token == "(no token)"


def test_a_file_of_tokens_is_read_whole_or_told_by_line_and_never_shown():
    long = "x" * 20
    assert tokens.parse(f"# a\n a {long} \n\tb@c.d {long}y read\n") == (
        Token("a", long),
        Token("b@c.d", f"{long}y", may_change=False),
    )
    for text, told in [
        ("", "no token"),
        ("# nothing", "no token"),
        (f"a {long}\nb short", "line 2"),
        (f"a {long} write", "line 1"),
        (f"a {long}\na {long}y", "line 2"),
        (f"a {long}\nb {long}", "line 2"),
        (long, "line 1"),
        (f"a/b {long}", "line 1"),
        (f"a {long}é", "line 1"),
    ]:
        with pytest.raises(TokenError, match=told) as error:
            tokens.parse(text)
        assert long not in str(error.value)
    assert long not in repr(Token("a", long))
    assert len({tokens.new() for _ in range(100)}) == 100
    assert len(tokens.usable(tokens.new())) >= 43


@pytest.mark.parametrize(
    ("has_token", "host", "given", "access"),
    [
        (True, "0.0.0.0", "", ("token", "token")),
        (True, "127.0.0.1", "", ("token", "token")),
        (True, "0.0.0.0", "read", ("open", "token")),
        (True, "0.0.0.0", "open", ("open", "open")),
        (False, "127.0.0.1", "", ("open", "open")),
        (False, "::1", "", ("open", "open")),
        (False, "127.0.0.1", "none", ("refused", "refused")),
        (False, "0.0.0.0", "", ("refused", "refused")),
        (False, "::", "read", ("open", "refused")),
        (False, "0.0.0.0", "open", ("open", "open")),
    ],
)
def test_the_page_is_told_what_the_api_asks_for(has_token, host, given, access):
    store = TokenStore({"API_TOKEN": [Token("API_TOKEN", TOKEN if has_token else "")]})
    told = Safety(store, host=host, given_access=given).access
    assert (told["reads"], told["actions"]) == access
    assert told["token"] is has_token


def test_nobody_listens_to_the_network_unless_told():
    assert load({}, needs_database=False).host == "127.0.0.1"
    assert load({"HOST": "0.0.0.0"}, needs_database=False).host == "0.0.0.0"


async def test_a_token_is_made_by_a_command(orchestrator):
    made = await orchestrator("token")
    assert tokens.usable(made.stdout.strip())
    line = await orchestrator("token", "--name", "grafana", "--read-only")
    assert [(one.name, one.may_change) for one in tokens.parse(line.stdout)] == [("grafana", False)]
    for wrong in (["--read-only"], ["--name", "a b"]):
        assert (await orchestrator("token", *wrong)).returncode == 2


async def test_a_port_that_was_chosen_is_found_by_healthcheck(orchestrator, database_url, tmp_path):
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    env = {"DATABASE_URL": database_url, "PORT": "0", "XDG_RUNTIME_DIR": str(runtime)}
    asked = {"PORT": "0", "XDG_RUNTIME_DIR": str(runtime)}
    assert (await orchestrator("healthcheck", env=asked)).returncode == 1
    async with orchestrator.running("serve", env=env) as run:
        bound = (await run.event("http.listening"))["port"]
        await run.phase("ready")
        file = runtime / "orchestrator" / "port"
        assert kept_port(str(file)) == bound
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        found = await orchestrator("healthcheck", env=asked)
        assert (found.returncode, found.stdout.strip()) == (0, "ready")
        assert (await orchestrator("healthcheck", "--port", str(bound))).returncode == 0
        assert (await orchestrator("healthcheck", f"--port={bound}", "--live", "--host=localhost")).returncode == 0
        # What somebody else could have put there is not believed.
        link = tmp_path / "link"
        link.symlink_to(file)
        assert (await orchestrator("healthcheck", env={"PORT": "0", "PORT_FILE": str(link)})).returncode == 1
    assert not file.exists()
    os.mkfifo(tmp_path / "fifo")
    assert kept_port(str(tmp_path / "fifo")) is None
    for wrong in (["--colour"], ["--port"], ["--port", "x"], ["--live=1"], ["--port", "70000"]):
        assert (await orchestrator("healthcheck", *wrong)).returncode == 2, wrong
    assert (await orchestrator("healthcheck", "--help")).returncode == 0


async def test_healthcheck_ends_in_time_whatever_the_peer_does(orchestrator):
    async def trickle(reader, writer):
        try:
            while True:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.2)
        except ConnectionError:
            writer.close()

    async def flood(reader, writer):
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async def silent(reader, writer):
        await reader.read()
        writer.close()

    for peer in (trickle, flood, silent):
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        result = await orchestrator("healthcheck", "--port", str(port))
        assert result.returncode == 1
        assert result.duration_s < 7
        server.close()
