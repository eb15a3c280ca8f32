"""Who may ask for what, and what hostile input meets: the token, other origins, limits, and a fuzzer's word on it."""

import asyncio
import io
import json
import os

import aiohttp
import pytest

TOKEN = "s3cr3t-token-of-the-tests"


@pytest.fixture
def jobs_module(tmp_path):
    (tmp_path / "some_jobs.py").write_text(
        "from orchestrator.jobs import job\n"
        '@job("anything")\n'
        "async def anything(ctx, payload: dict):\n"
        '    """Takes what it gets."""\n'
    )
    return "some_jobs"


async def raw(port: int, request: bytes, *, read_s: float = 10.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(read_s):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()


async def test_with_a_token_everything_asks_for_it_but_the_probes_and_the_page(
    orchestrator, database_url, jobs_module, known
):
    known.secrets.add(TOKEN)
    env = {"DATABASE_URL": database_url, "JOBS": jobs_module, "API_TOKEN": TOKEN}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        for path in ("/health", "/health/live", "/health/ready", "/page/page.css"):
            assert (await run.get(path)).status == 200, path
        assert (await run.get("/", headers={"Accept": "text/html"})).headers["Content-Type"].startswith("text/html")
        wrong = ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xe9"]
        for path in (
            *("/", "/api/jobs", "/openapi.json", "/metrics", "/api/events", "/no/such/route", "/with%0Aa/line"),
        ):
            for given in wrong:
                refused = await run.get(path, headers={"Authorization": given})
                assert (refused.status, refused.body["title"]) == (401, "Unauthorized"), (path, given)
                assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        right = {"Authorization": f"bearer {TOKEN}"}
        for path in ("/api/jobs", "/openapi.json", "/metrics"):
            assert (await run.get(path, headers=right)).status == 200
        # With a token it may be reached by any name.
        assert (await run.get("/api/jobs", headers={**right, "Host": "stats.example.org"})).status == 200
        async with (
            aiohttp.ClientSession(run.url, headers=right) as session,
            session.post("/api/jobs", json={"name": "anything"}) as response,
        ):
            assert response.status == 202
    assert not [event for event in run.events if event["event"] == "api.unprotected"]


async def test_where_the_network_may_look_reads_are_answered_and_changes_refused(
    orchestrator, database_url, jobs_module
):
    env = {"DATABASE_URL": database_url, "JOBS": jobs_module, "HOST": "0.0.0.0", "API_ACCESS": "read"}
    async with orchestrator.running("serve", env=env) as run:
        await run.event("api.unprotected", access="read")
        await run.phase("ready")
        assert (await run.get("/api/jobs", headers={"Host": "job-server:3005"})).status == 200
        async with aiohttp.ClientSession(run.url) as session:
            for method, path in [
                ("POST", "/api/jobs"),
                ("PUT", "/api/schedules/x"),
                ("DELETE", "/api/schedules/x"),
                ("POST", "/api/jobs/1/cancel"),
                ("POST", "/api/jobs/cancel-by-type"),
            ]:
                async with session.request(method, path, json={"name": "anything"}) as response:
                    problem = await response.json(content_type=None)
                    assert (response.status, "Set API_TOKEN" in problem["detail"]) == (403, True)
        assert len([event for event in run.events if event["event"] == "api.unprotected"]) == 1


async def test_a_page_of_another_origin_cannot_use_a_browser_on_this_machine(orchestrator, database_url, jobs_module):
    env = {"DATABASE_URL": database_url, "JOBS": jobs_module, "CORS_ORIGINS": "https://stats.example.org"}
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        own = f"127.0.0.1:{run.port}"
        body = json.dumps({"name": "anything"})
        json_type = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(run.url) as session:

            async def post(**headers):
                async with session.post("/api/jobs", data=body, headers=json_type | headers) as response:
                    return response.status

            assert await post() == 202
            assert await post(Origin=f"http://{own}") == 202
            assert await post(Origin="https://stats.example.org") == 202
            assert await post(**{"Sec-Fetch-Site": "same-origin"}) == 202
            for origin in ("https://evil.example", "null", f"http://{own}.evil.example", "http://127.0.0.1:1"):
                assert await post(Origin=origin) == 403, origin
            assert await post(**{"Sec-Fetch-Site": "cross-site"}) == 403
            # DNS rebinding: the name is an attacker's, the address ours, and the origin the same.
            for host in ("evil.example", f"evil.example:{run.port}", "127.0.0.1.evil.example", "127.evil.example", ""):
                assert await post(Host=host, Origin=f"http://{host}") == 403, host
                assert (await run.get("/api/jobs", headers={"Host": host})).status == 403
            assert await post(Host=f"localhost:{run.port}") == 202
            assert (await run.get("/health", headers={"Host": "probe"})).status == 200
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
                assert await post(**{"Content-Type": kind}) == 415
                async with session.post("/api/jobs/1/cancel", headers={"Content-Type": kind}) as response:
                    assert response.status == 415
            assert await post(**{"Content-Encoding": "deflate"}) == 415

            preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
            listed = {"Origin": "https://stats.example.org"}
            async with session.options("/api/jobs", headers=preflight | listed) as response:
                assert response.status == 204
                assert response.headers["Access-Control-Allow-Origin"] == "https://stats.example.org"
                assert "POST" in response.headers["Access-Control-Allow-Methods"]
                assert "Origin" in response.headers["Vary"]
            async with session.options("/api/jobs", headers=preflight | {"Origin": "https://evil.example"}) as response:
                assert (response.status, "Access-Control-Allow-Origin" in response.headers) == (403, False)
            seen = await run.get("/api/jobs", headers=listed)
            assert seen.headers["Access-Control-Allow-Origin"] == "https://stats.example.org"
            unseen = await run.get("/api/jobs", headers={"Origin": "https://evil.example"})
            assert "Access-Control-Allow-Origin" not in unseen.headers
            assert unseen.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            for name in ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Content-Security-Policy"):
                assert name in unseen.headers
            assert unseen.headers["Cache-Control"] == "no-store"


async def test_hostile_input_is_refused_with_a_reason_and_never_a_500(orchestrator, database_url, jobs_module):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url, "JOBS": jobs_module}) as run:
        await run.phase("ready")
        headers = {"Content-Type": "application/json"}

        async def post(data, path="/api/jobs", **more):
            async with session.post(path, data=data, headers=headers | more) as response:
                return response.status, json.loads(await response.read())

        def job(payload: bytes) -> bytes:
            return b'{"name": "anything", "payload": {"x": ' + payload + b"}}"

        async with aiohttp.ClientSession(run.url) as session:
            for data, status in [
                (b"", 400),
                (b"{", 400),
                (b"\xff\xfe", 400),
                (b"null", 422),
                (b"[" * 200_000, 400),
                (job(b"[" * 5000 + b"]" * 5000), 400),
                (job(b'{"a":' * 100 + b"1" + b"}" * 100), 400),
                (job(b"[" * 60 + b"]" * 60), 202),
                (job(b'"' + b"[" * 1000 + b'"'), 202),
                (job(b'"\\u0000"'), 422),
                (job(b'{"\\u0000": 1}'), 422),
                (job(b'"\\\\u0000"'), 202),
                (job(b'"\\ud800"'), 400),
                (job(b'"\xff"'), 400),
                (job(b"1e400"), 422),
                (job(b"1" + b"0" * 400), 202),
                (job(b"1" + b"0" * 6000), 422),
                (job(b"NaN"), 400),
                (b'{"name": "anything", "priority": 9223372036854775808}', 422),
                (b'{"name": "anything", "delay_s": 1e300}', 422),
                (b'{"name": "anything", "dedupe_key": "a\\u0000b"}', 422),
                (b'{"name": "anything", "dedupe_key": "a\\n"}', 422),
                (b'{"name": "any\\u0000thing"}', 422),
                (b'{"name": "anything", "run_at": "0001-01-01T00:00:00+14:00"}', 202),
                (b'{"name": "anything", "run_at": "9999-12-31T23:59:59-14:00"}', 202),
                (b'{"name": "anything", "run_at": "2026-01-01T00:00:00"}', 422),
                (b'{"name": "anything", "run_at": "2026-01-01T00:00:00Z", "delay_s": 1}', 422),
                (io.BytesIO(job(b'"' + b"y" * (1 << 20) + b'"')), 413),
            ]:
                got, problem = await post(data)
                assert got == status, (str(data)[:80], got, problem)
                if status >= 400:
                    assert problem["error"], problem
            assert (await post(b'{"jobs": []}', "/api/jobs/batch"))[0] == 422
            assert (await post(b"{}", "/api/jobs", **{"Idempotency-Key": "x" * 300}))[0] == 400

            async def chunks():
                for _ in range(40):
                    yield b" " * 65536

            assert (await post(chunks()))[0] == 413
            huge = "9" * 19
            for path, status in [
                (f"/api/jobs/{huge}", 404),
                (f"/api/jobs/{'9' * 5000}", 404),
                ("/api/jobs/0", 404),
                ("/api/jobs/-1", 404),
                ("/api/jobs/9223372036854775807", 404),
                ("/api/jobs/%00", 404),
                ("/api/schedules/%00", 404),
                ("/api/schedules/%ff", 404),
                ("/api/jobs/queue/%00/1/status", 404),
                ("/api/jobs?cursor=x", 422),
                (f"/api/jobs?cursor={huge}", 422),
                ("/api/jobs?cursor=-1", 422),
                ("/api/jobs?cursor=1&cursor=2", 422),
                ("/api/jobs?limit=201", 422),
                ("/api/jobs?limit=0", 422),
                ("/api/jobs?limit=1e3", 422),
                ("/api/jobs?name=%00", 422),
                ("/api/jobs?name=%ff", 422),
                ("/api/jobs?state=lost", 422),
                ("/api/jobs?colour=red", 422),
                ("/api/jobs?since=yesterday", 422),
                ("/api/jobs?since=0001-01-01T00:00:00%2B14:00", 200),
                ("/api/jobs?since=9999-12-31T23:59:59-14:00", 200),
                ("/api/jobs?since=2026-01-01T00:00:00+01:00", 200),
                ("/api/events?since=soon", 422),
                ("/api/events?since=99999999999999999999", 422),
                ("/api/jobs/results?limit=x", 400),
                (f"/api/jobs?name={'x' * 5000}", 414),
            ]:
                answer = await run.get(path)
                assert answer.status == status, (path, answer.status, answer.body)
        assert await raw(run.port, b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n")
        many = b"".join(b"X-%d: y\r\n" % number for number in range(500))
        assert b" 400 " in await raw(run.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n")
        large = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert b" 413 " in await raw(run.port, large + b"Content-Length: 9999999\r\n\r\n")
        no_http = b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer not\x00for-the-log\r\n\r\n"
        assert b" 400 " in await raw(run.port, no_http)
        assert (await run.health())[0] == 200
    assert not [event for event in run.events if event["event"] == "http.request_failed"]
    assert not [event for event in run.events if event["level"] == "error"]
    assert "for-the-log" not in run.output


async def test_a_fuzzer_finds_nothing_in_the_whole_document(orchestrator, database_url, jobs_module, tmp_path):
    """schemathesis, with all its default checks, on every operation but the two endless streams.

    FUZZ_EXAMPLES=300 searches longer.
    """
    import sys
    from pathlib import Path

    env = {"DATABASE_URL": database_url, "JOBS": jobs_module}
    (tmp_path / "schemathesis.toml").write_text(FUZZ_CONFIG.format(examples=int(os.environ.get("FUZZ_EXAMPLES", "2"))))
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "schemathesis"),
            *("--config-file", str(tmp_path / "schemathesis.toml")),
            *("run", f"{run.url}/openapi.json", "--seed", "1", "--no-color"),
            *("--exclude-path-regex", "/events$", "--request-timeout", "10"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()[-12000:]
        assert (await run.health())[0] == 200
    assert not [event for event in run.events if event["event"] == "http.request_failed"]


FUZZ_CONFIG = """
[generation]
# Postgres has no NUL in a text; a schema can say so of a string that it names, not of all that lies in a payload. What
# becomes of it, the test above says.
allow-x00 = false
max-examples = {examples}

# A rule that no schema can say: a cron line names a time (not 31 February), and each range in it goes upwards.
[[operations]]
include-path-regex = "^/api/schedules/[^/]+$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]

# Nor this: the payload follows the schema of the handler of the job that the path names.
[[operations]]
include-path-regex = "^/api/jobs/[^/]+/again$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]
"""
