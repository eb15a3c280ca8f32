"""The API behind the gate, on a real server: jobs, queues, schedules, starts, upstream's shapes, and the document."""

import asyncio
import re

pytest_plugins = ["support.api_server"]

HANDLERS = '''
import asyncio
import msgspec
from orchestrator.jobs import job


class Inner(msgspec.Struct):
    id: int


class Greeting(msgspec.Struct):
    """Whom to greet."""

    name: str
    times: int = 1
    user: Inner | None = None


@job("hello", retries=1)
async def hello(ctx, payload: Greeting):
    """Greet somebody."""
    await ctx.progress(1, 2, "half")
    ctx.log.info("greeting.said", name=payload.name)
    return {"greeting": payload.name * payload.times}


@job("anything")
async def anything(ctx, payload: dict):
    """Takes what it gets."""


@job("fails")
async def fails(ctx, payload: dict):
    raise ValueError("as asked")


@job("sleeps")
async def sleeps(ctx, payload: dict):
    await asyncio.sleep(600)


@job("add-server", schedule="0 3 * * *")
async def add_server(ctx, payload: dict):
    """Named as upstream names them."""
'''


async def test_a_job_is_added_run_and_shown_with_its_attempts_log_and_output(serving):
    async with serving() as api:
        status, headers, made = await api.call("POST", "/api/jobs", {"name": "hello", "payload": {"name": "Ada"}})
        assert (status, made["created"]) == (202, True)
        assert headers["Location"] == f"/api/jobs/{made['id']}"
        job = await api.until(made["id"], "succeeded")
        assert (job["output"], job["payload"]["name"]) == ({"greeting": "Ada"}, "Ada")
        _, _, none = await api.call("POST", "/api/jobs", {"name": "anything", "payload": {}, "delay_s": 600})
        assert (await api.call("GET", f"/api/jobs/{none['id']}"))[2]["output"] is None
        assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"]
        _, _, log = await api.call("GET", f"/api/jobs/{made['id']}/log")
        assert [(line["event"], line["facts"]["name"]) for line in log["lines"]] == [("greeting.said", "Ada")]
        _, _, page = await api.call("GET", "/api/jobs?state=succeeded&name=hello&since=2024-01-01T00:00:00%2B01:00")
        assert [row["id"] for row in page["jobs"]] == [made["id"]]


async def test_a_wrong_payload_is_a_422_that_names_the_field(serving):
    async with serving() as api:
        for body, field in [
            ({"name": "hello", "payload": {"name": 1}}, "payload.name"),
            ({"name": "hello", "payload": {}}, "payload.name"),
            ({"name": "hello", "payload": {"name": "x", "user": {"id": "y"}}}, "payload.user.id"),
            ({"name": "hello"}, "payload.name"),
            ({"name": "nobody"}, "name"),
            ({"name": "hello", "payload": {"name": "x"}, "priority": 2**40}, "priority"),
            ({"name": "hello", "payload": {"name": "x"}, "colour": "red"}, "colour"),
            ({"payload": {}}, "name"),
        ]:
            status, _, problem = await api.call("POST", "/api/jobs", body)
            assert (status, problem["field"]) == (422, field), problem
            assert problem["error"] == problem["detail"]
        batch = {"jobs": [{"name": "anything"}, {"name": "hello", "payload": {"name": 1}}]}
        status, _, problem = await api.call("POST", "/api/jobs/batch", batch)
        assert (status, problem["field"]) == (422, "jobs[1].payload.name")
        assert problem["errors"][0]["pointer"] == "#/jobs/1/payload/name"
        assert (await api.call("GET", "/api/jobs"))[2]["jobs"] == []


async def test_an_idempotency_key_makes_one_job_of_repeated_requests(serving):
    async with serving() as api:
        body = {"name": "anything", "payload": {"a": 1}}
        headers = {"Idempotency-Key": "order-7"}
        answers = await asyncio.gather(*(api.call("POST", "/api/jobs", body, headers=headers) for _ in range(8)))
        assert {status for status, _, _ in answers} == {202}
        assert len({made["id"] for _, _, made in answers}) == 1
        assert sum(made["created"] for _, _, made in answers) == 1
        assert sum(head.get("Idempotency-Replayed") == "true" for _, head, _ in answers) == 7
        status, _, problem = await api.call("POST", "/api/jobs", {"name": "anything", "payload": {}}, headers=headers)
        assert (status, problem["job_id"]) == (409, answers[0][2]["id"])
        status, _, _ = await api.call("POST", "/api/jobs", body, headers={"Idempotency-Key": "a b"})
        assert status == 400


async def test_pages_hold_every_job_once_however_many_come_meanwhile(serving):
    async with serving() as api:
        batch = {"jobs": [{"name": "anything", "payload": {"n": n}, "delay_s": 3600} for n in range(45)]}
        status, _, made = await api.call("POST", "/api/jobs/batch", batch)
        assert (status, len(made["jobs"])) == (202, 45)
        seen, cursor = [], ""
        while cursor is not None:
            _, _, page = await api.call("GET", f"/api/jobs?limit=20&state=scheduled{cursor and '&cursor=' + cursor}")
            seen += [row["id"] for row in page["jobs"]]
            cursor = page["next_cursor"]
            await api.call("POST", "/api/jobs", {"name": "anything", "delay_s": 3600})
        assert seen == sorted((one["id"] for one in made["jobs"]), reverse=True)


async def test_cancel_and_retry_tell_what_a_state_does_not_allow(serving):
    async with serving() as api:
        _, _, waits = await api.call("POST", "/api/jobs", {"name": "anything", "delay_s": 3600})
        _, _, runs = await api.call("POST", "/api/jobs", {"name": "sleeps"})
        _, _, broken = await api.call("POST", "/api/jobs", {"name": "fails"})
        status, _, changed = await api.call("POST", f"/api/jobs/{waits['id']}/cancel")
        assert (status, changed["state"]) == (202, "cancelled")
        status, _, problem = await api.call("POST", f"/api/jobs/{waits['id']}/cancel")
        assert (status, problem["state"]) == (409, "cancelled")
        await api.until(runs["id"], "running")
        assert (await api.call("POST", f"/api/jobs/{runs['id']}/retry"))[0] == 409
        assert (await api.call("POST", f"/api/jobs/{runs['id']}/cancel"))[2]["state"] == "running"
        assert (await api.until(runs["id"], "cancelled"))["attempts"][0]["outcome"] == "cancelled"
        failed = await api.until(broken["id"], "failed")
        assert (failed["error"]["type"], failed["error_message"]) == ("ValueError", "as asked")
        assert (await api.call("POST", f"/api/jobs/{broken['id']}/retry"))[0] == 202
        assert len((await api.until(broken["id"], "failed"))["attempts"]) in {1, 2}
        for path in ("/api/jobs/999999999", "/api/jobs/999999999/log"):
            assert (await api.call("GET", path))[0] == 404
        assert (await api.call("POST", "/api/jobs/999999999/cancel"))[0] == 404


async def test_schedules_are_written_read_triggered_and_removed(serving, wait_until):
    async with serving() as api:
        wanted = {"job": "hello", "cron": "*/5 * * * *", "timezone": "Europe/Berlin", "payload": {"name": "x"}}
        assert (await api.call("PUT", "/api/schedules/nightly", wanted))[0] == 201
        status, _, row = await api.call("PUT", "/api/schedules/nightly", {**wanted, "enabled": False})
        assert (status, row["enabled"], row["source"]) == (200, False, "api")
        assert (await api.call("GET", "/api/schedules/nightly"))[2] == row

        async def both() -> bool:
            rows = (await api.call("GET", "/api/schedules"))[2]["schedules"]
            return {("nightly", "api"), ("add-server", "code")} <= {(row["name"], row["source"]) for row in rows}

        await wait_until(both, what="the handler's own schedule stands beside it")
        status, headers, made = await api.call("POST", "/api/schedules/nightly/trigger")
        assert (status, headers["Location"]) == (202, f"/api/jobs/{made['id']}")
        assert (await api.until(made["id"], "succeeded"))["schedule"] == "nightly"
        for change, field in [
            ({"cron": "61 * * * *"}, "cron"),
            ({"timezone": "Nowhere/City"}, "cron"),
            ({"job": "nobody"}, "job"),
            ({"payload": {"name": 3}}, "payload.name"),
        ]:
            status, _, problem = await api.call("PUT", "/api/schedules/nightly", {**wanted, **change})
            assert (status, problem["field"]) == (422, field)
        status, _, problem = await api.call("PUT", "/api/schedules/no%20name", wanted)
        assert (status, problem["field"]) == (422, "name")
        large = {**wanted, "payload": {"name": "x" * 70_000}}
        assert (await api.call("PUT", "/api/schedules/nightly", large))[0] == 413
        assert [(await api.call("DELETE", "/api/schedules/nightly"))[0] for _ in range(2)] == [204, 404]
        assert (await api.call("POST", "/api/schedules/nightly/trigger"))[0] == 404


async def test_queues_handlers_migrations_and_starts_are_shown(serving, wait_until):
    async with serving() as api:
        await api.call("POST", "/api/jobs/batch", {"jobs": [{"name": "anything", "delay_s": 3600}] * 3})
        _, _, made = await api.call("POST", "/api/jobs", {"name": "hello", "payload": {"name": "x"}})
        await api.until(made["id"], "succeeded")

        async def counted():
            _, _, body = await api.call("GET", "/api/queues")
            queue = next((one for one in body["queues"] if one["name"] == "default"), None)
            return queue and queue["counts"]["scheduled"] == 3 and queue["throughput_per_s"] > 0 and body

        body = await wait_until(counted, what="queues count what is there")
        assert [worker["is_alive"] for worker in body["workers"]] == [True]
        _, _, known = await api.call("GET", "/api/handlers")
        hello = next(one for one in known["handlers"] if one["name"] == "hello")
        assert (hello["doc"], hello["max_attempts"]) == ("Greet somebody.", 2)
        assert hello["payload_schema"]["$defs"]["Greeting"]["required"] == ["name"]
        _, _, migrations = await api.call("GET", "/api/migrations")
        assert [source["source"] for source in migrations["sources"]] == ["service"]

        async def recorded():
            return (await api.call("GET", "/api/starts?limit=1"))[2]["starts"]

        (start,) = await wait_until(recorded)
        assert (start["outcome"], start["command"]) == ("ready", "serve")
        _, _, root = await api.call("GET", "/")
        for path in root["endpoints"].values():
            if path != "/api/events":
                assert (await api.call("GET", path, checked=False))[0] == 200, path


async def test_upstreams_clients_find_its_paths_and_shapes(serving, wait_until):
    async with serving() as api:
        _, _, made = await api.call("POST", "/api/jobs", {"name": "hello", "payload": {"name": "x"}})
        _, _, wrong = await api.call("POST", "/api/jobs", {"name": "fails"})
        for server in (1, 1, 2):
            await api.call("POST", "/api/jobs", {"name": "anything", "payload": {"serverId": server}, "delay_s": 99})
        await api.until(made["id"], "succeeded")
        await api.until(wrong["id"], "failed")

        async def waiting():
            _, _, stats = await api.call("GET", "/api/jobs/queue/stats")
            return stats["queueStats"]["anything"] == 3 and stats

        stats = await wait_until(waiting)
        assert (stats["success"], stats["queueStats"]["addServer"], stats["queueStats"]["total"]) == (True, 0, 3)
        _, _, results = await api.call("GET", "/api/jobs/results?status=failed")
        assert [(row["jobId"], row["jobName"], row["error"]) for row in results["results"]] == [
            (str(wrong["id"]), "fails", "as asked")
        ]
        assert (await api.call("GET", "/api/jobs/results?jobName=hello"))[2]["count"] == 1
        _, _, found = await api.call("GET", f"/api/jobs/queue/hello/{made['id']}/status")
        assert (found["job"]["state"], found["job"]["output"]) == ("completed", {"greeting": "x"})
        status, _, missing = await api.call("GET", f"/api/jobs/queue/other/{made['id']}/status")
        assert (status, missing["error"]) == (404, "Job not found")
        status, _, cancelled = await api.call(
            "POST", "/api/jobs/cancel-by-type", {"jobType": "anything", "serverId": 1}
        )
        assert (status, cancelled["cancelledCount"], cancelled["serverId"]) == (200, 2, 1)
        status, _, invalid = await api.call("POST", "/api/jobs/cancel-by-type", {"jobType": "nobody"})
        assert (status, invalid["error"], "hello" in invalid["validTypes"]) == (400, "Invalid job type", True)
        assert (await api.call("POST", "/api/jobs/cancel-by-type", {}))[0] == 400
        _, _, scheduler = await api.call("GET", "/api/jobs/scheduler/status")
        assert scheduler["scheduler"]["defaultIntervals"]["addServer"] == "0 3 * * *"
        status, _, triggered = await api.call("POST", "/api/jobs/scheduler/trigger", {"schedule": "add-server"})
        assert (status, triggered["success"]) == (200, True)
        assert (await api.call("POST", "/api/jobs/scheduler/trigger", {}))[0] == 400
        _, _, at_a_glance = await api.call("GET", "/api/jobs/server-status")
        assert at_a_glance["jobStatusMap"]["fails"] == "failed"
        assert at_a_glance["systemHealth"]["overall"] == "healthy"


async def test_the_document_and_the_routes_are_the_same(serving, orchestrator, database_url):
    from orchestrator.api.app import build_app
    from orchestrator.api.backend import Backend
    from orchestrator.api.routing import DISPATCHER
    from orchestrator.lifecycle import Lifecycle

    backend = Backend()
    app = build_app(Lifecycle(lambda: 0.0, lambda: 0.0), backend)
    served = {
        (route.method, route.resource.canonical)
        for router in (app.router, app[DISPATCHER].load())
        for route in router.routes()
        # The page's own files are no API; the last route of the application leads to the other router.
        if route.method not in {"HEAD", "*"} and not route.resource.canonical.startswith("/page/")
    }
    async with serving() as api:
        described = {
            (method.upper(), template) for template, methods in api.document["paths"].items() for method in methods
        }
        assert described == {(method, re.sub(r":[^{}]*\}", "}", path)) for method, path in served}
        assert api.document["openapi"].startswith("3.1")
        names = [one["$ref"].rpartition("/")[2] for one in api.document["components"]["schemas"]["NewJob"]["oneOf"]]
        assert {"NewJob.hello", "NewJob.anything"} <= set(names)
        assert "payload" in api.document["components"]["schemas"]["NewJob.hello"]["required"]
        # Every method that a path does not have is a 405 that says which it has.
        for template, methods in api.document["paths"].items():
            path = re.sub(r"\{\w+\}", "1", template)
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {one.upper() for one in methods}:
                status, headers, _ = await api.call(method, path)
                assert status == 405, (method, path)
                assert {one.upper() for one in methods} <= set(re.split(r",\s*", headers["Allow"]))


async def test_the_gate_is_shut_before_ready_but_metrics_tell_the_phase(orchestrator, database_url, tcp_proxy):
    await tcp_proxy.refuse()
    async with orchestrator.running("serve", env={"DATABASE_URL": tcp_proxy.dsn(database_url)}) as run:
        await run.event("database.connect_failed")
        for path in ("/api/jobs", "/openapi.json", "/api/events", "/nothing"):
            gated = await run.get(path)
            assert (gated.status, gated.headers["Retry-After"], gated.body["phase"]) == (503, "1", "connecting")
        metrics = await run.get("/metrics")
        assert metrics.status == 200
        assert 'orchestrator_phase{phase="connecting"} 1.0' in metrics.body
        assert "orchestrator_database_up 0.0" in metrics.body
        await tcp_proxy.accept()
        await run.phase("ready")
        assert (await run.get("/api/jobs")).status == 200


async def test_metrics_tell_the_start_the_queue_and_the_requests(serving, admin, database_url, wait_until):
    async with serving() as api:
        _, _, made = await api.call("POST", "/api/jobs", {"name": "hello", "payload": {"name": "x"}})
        await api.call("POST", "/api/jobs", {"name": "anything", "delay_s": 3600})
        await api.until(made["id"], "succeeded")
        await api.call("GET", "/api/nothing")
        await api.call("GET", "/api/nothing/either")

        async def scraped():
            await api.call("GET", "/api/queues")  # takes a sample where the last is old
            text = (await api.call("GET", "/metrics", checked=False))[2].decode()
            ready = 'orchestrator_jobs{name="hello",state="succeeded"} 1.0' in text and "job_run_seconds_count" in text
            return ready and text

        text = await wait_until(scraped, timeout_s=15, what="metrics hold the job")
        for line in (
            'orchestrator_build_info{version="',
            'orchestrator_phase{phase="ready"} 1.0',
            'orchestrator_phase_seconds_total{phase="migrating"}',
            "orchestrator_database_connect_attempts_total 1.0",
            "orchestrator_database_up 1.0",
            "orchestrator_migrations_pending 0.0",
            'orchestrator_migration_duration_seconds_count{source="service"}',
            "orchestrator_lock_wait_seconds_total",
            'orchestrator_jobs{name="anything",state="scheduled"} 1.0',
            'orchestrator_jobs_oldest_queued_seconds{name="anything"} 0.0',
            'orchestrator_job_run_seconds_count{name="hello",state="succeeded"} 1.0',
            'orchestrator_http_requests_total{method="POST",route="/api/jobs",status="202"} 2.0',
            'orchestrator_http_requests_total{method="GET",route="/api/jobs/{id}",status="200"}',
            'orchestrator_http_requests_total{method="GET",route="none",status="404"} 2.0',
            "orchestrator_workers 1.0",
        ):
            assert line in text, line
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        _, headers, body = await api.call("GET", "/metrics", checked=False, headers=accept)
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        # A scrape reads memory: it answers while no query could.
        async with admin.connection(database_url) as connection, connection.transaction():
            await connection.execute("LOCK TABLE orchestrator.jobs IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(2):
                assert (await api.call("GET", "/metrics", checked=False))[0] == 200
