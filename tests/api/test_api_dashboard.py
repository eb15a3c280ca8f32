"""What a dashboard needs of the API: failures in groups, searches, actions on all of a filter, pauses, details."""

import pytest

pytest_plugins = ["support.api_server"]

HANDLERS = """
import asyncio
import msgspec
from orchestrator.jobs import job


class Order(msgspec.Struct):
    id: int
    customer: str = "nobody"


@job("orders.bill", schedule="0 3 * * *")
async def bill(ctx, payload: dict):
    raise KeyError(f"customer of order {payload.get('id', 0)}")


@job("orders.retry", retries=5, queue="slow")
async def retried(ctx, payload: dict):
    raise OSError("the printer does not answer")


@job("orders.read")
async def read(ctx, payload: Order):
    return {"id": payload.id}


@job("waits", queue="slow")
async def waits(ctx, payload: dict):
    await asyncio.sleep(600)
"""


async def add(api, name, payload=None, **more):
    status, _, made = await api.call("POST", "/api/jobs", {"name": name, "payload": payload or {}, **more})
    assert status == 202, made
    return made["id"]


async def test_failures_are_grouped_by_name_and_error_and_acted_on_with_a_count_that_must_match(serving):
    async with serving() as api:
        ids = [await add(api, "orders.bill", {"id": n}) for n in range(5)]
        retrying = await add(api, "orders.retry")
        for one in ids:
            await api.until(one, "failed")
        await api.until(retrying, "scheduled")
        _, _, found = await api.call("GET", "/api/jobs/failures")
        groups = {group["name"]: group for group in found["groups"]}
        bill, printer = groups["orders.bill"], groups["orders.retry"]
        assert (bill["failed"], bill["retrying"], bill["error_type"]) == (5, 0, "KeyError")
        assert (printer["failed"], printer["retrying"]) == (0, 1)
        assert bill["job_id"] in ids

        _, _, page = await api.call("GET", f"/api/jobs?state=failed&failure={bill['key']}")
        assert {job["id"] for job in page["jobs"]} == set(ids)
        _, _, page = await api.call("GET", "/api/jobs?retrying=true")
        assert [job["id"] for job in page["jobs"]] == [retrying]
        assert page["jobs"][0]["error_message"] == "the printer does not answer"

        _, _, count = await api.call("GET", f"/api/jobs/count?failure={bill['key']}&action=discard")
        assert count == {"count": 5, "more": False}
        wish = {"action": "discard", "filter": {"failure": bill["key"]}}
        status, _, problem = await api.call("POST", "/api/jobs/bulk", {**wish, "expected": 4})
        assert (status, problem["count"]) == (409, 5)
        status, _, done = await api.call("POST", "/api/jobs/bulk", {**wish, "expected": 5})
        assert (status, done) == (200, {"changed": 5, "left_out": 0})
        assert (await api.call("GET", f"/api/jobs/{ids[0]}"))[0] == 404
        _, _, found = await api.call("GET", "/api/jobs/failures")
        assert [group["name"] for group in found["groups"]] == ["orders.retry"]


async def twice(api, job_id):
    job = await api.until(job_id, "failed")
    return job["attempt"] == 2


async def test_a_retry_of_many_leaves_out_what_has_an_unfinished_sibling(serving, wait_until):
    async with serving() as api:
        first = await add(api, "orders.bill", dedupe_key="one")
        await api.until(first, "failed")
        second = await add(api, "orders.bill", dedupe_key="one")
        await api.until(second, "failed")
        plain = await add(api, "orders.bill")
        await api.until(plain, "failed")
        wish = {"action": "retry", "filter": {"name": "orders.bill", "state": "failed"}, "expected": 3}
        status, _, done = await api.call("POST", "/api/jobs/bulk", wish)
        assert (status, done) == (200, {"changed": 2, "left_out": 1})
        for one in (second, plain):
            await wait_until(lambda one=one: twice(api, one))
        assert (await api.until(first, "failed"))["attempt"] == 1


async def test_jobs_are_searched_by_id_by_name_and_by_the_text_of_their_error(serving, admin, database_url):
    async with serving() as api:
        ids = [await add(api, "orders.bill", {"id": 40 + n}) for n in range(3)]
        for one in ids:
            await api.until(one, "failed")
        read = await add(api, "orders.read", {"id": 1})
        for text, expected in (
            (str(read), [read]),
            ("ORDERS.rea", [read]),
            ("order 41", [ids[1]]),
            ("keyerror", ids[::-1]),
            ("no such thing", []),
            ("100%_", []),
        ):
            _, _, page = await api.call("GET", "/api/jobs", params={"q": text})
            assert [job["id"] for job in page["jobs"]] == expected, text
        seen, cursor = [], None
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            _, _, page = await api.call("GET", "/api/jobs", params={"q": "orders.bill", "limit": "2", **more})
            seen += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == ids[::-1]
        # A search reads a bounded number of jobs for each page, and goes on from there.
        await admin(
            database_url,
            "INSERT INTO orchestrator.jobs (name, state, finished_at)"
            " SELECT 'filler', 'succeeded', now() FROM generate_series(1, 12000)",
        )
        _, _, page = await api.call("GET", "/api/jobs", params={"q": "order 41"})
        assert (page["jobs"], page["next_cursor"] is None) == ([], False)
        _, _, page = await api.call("GET", "/api/jobs", params={"q": "order 41", "cursor": page["next_cursor"]})
        assert [job["id"] for job in page["jobs"]] == [ids[1]]


async def test_a_paused_queue_begins_nothing_until_it_is_resumed(serving):
    async with serving() as api:
        running = await add(api, "waits")
        await api.until(running, "running")
        status, _, paused = await api.call("POST", "/api/queues/slow/pause")
        assert (status, paused) == (200, {"name": "slow", "paused": True, "changed": True})
        held, other = await add(api, "waits"), await add(api, "orders.read", {"id": 2})
        await api.until(other, "succeeded")  # another queue goes on
        assert (await api.until(held, "queued"))["state"] == "queued"
        assert (await api.until(running, "running"))["state"] == "running"
        _, _, queues = await api.call("GET", "/api/queues")
        assert [q["name"] for q in queues["queues"] if q["paused_at"]] == ["slow"]
        status, _, resumed = await api.call("POST", "/api/queues/slow/resume")
        assert (status, resumed["changed"]) == (200, True)
        await api.until(held, "running")
        for one in (running, held):
            await api.call("POST", f"/api/jobs/{one}/cancel")


async def test_a_job_is_run_again_with_another_payload_and_tells_who_asked_for_it(serving, wait_until):
    token = "a-token-for-this-test"
    async with serving(API_TOKEN=token, headers={"Authorization": f"Bearer {token}"}) as api:
        first = await add(api, "orders.read", {"id": 3}, priority=7)
        await api.until(first, "succeeded")
        status, headers, made = await api.call("POST", f"/api/jobs/{first}/again", {"payload": {"id": 4}})
        assert (status, headers["Location"]) == (202, f"/api/jobs/{made['id']}")
        again = await api.until(made["id"], "succeeded")
        assert (again["payload"]["id"], again["priority"], again["output"]) == (4, 7, {"id": 4})
        status, _, problem = await api.call("POST", f"/api/jobs/{first}/again", {"payload": {"id": "x"}})
        assert (status, problem["field"]) == (422, "payload.id")
        status, _, same = await api.call("POST", f"/api/jobs/{first}/again", {})
        assert (await api.until(same["id"], "succeeded"))["payload"]["id"] == 3

        async def asked():
            _, _, job = await api.call("GET", f"/api/jobs/{made['id']}")
            return job["changes"]

        (change,) = await wait_until(asked)
        assert (change["method"], change["path"]) == ("POST", f"/api/jobs/{first}/again")
        assert "" not in {change["by"], change["address"]}


async def test_a_schedule_is_changed_in_part_paused_and_tells_of_its_newest_job(serving, wait_until):
    async with serving() as api:
        path = "/api/schedules/orders.bill"

        async def declared():
            status, _, row = await api.call("GET", path)
            return row if status == 200 else None

        before = await wait_until(declared)
        assert (before["last_job_id"], before["last_job_at"], before["enabled"]) == (None, None, True)
        status, _, paused = await api.call("PATCH", path, {"enabled": False})
        assert (status, paused["enabled"], paused["cron"], paused["source"]) == (200, False, "0 3 * * *", "api")
        status, _, changed = await api.call("PATCH", path, {"cron": "*/10 * * * *", "timezone": "Europe/Berlin"})
        assert (changed["cron"], changed["timezone"], changed["enabled"]) == ("*/10 * * * *", "Europe/Berlin", False)
        _, _, back = await api.call("PATCH", path, {"enabled": True})
        assert (back["enabled"], back["next_run_at"] is None) == (True, False)
        _, _, made = await api.call("POST", f"{path}/trigger")
        await api.until(made["id"], "failed")
        _, _, after = await api.call("GET", path)
        assert (after["last_job_id"], after["last_job_state"]) == (made["id"], "failed")
        assert after["last_job_at"] is not None
        assert (await api.call("PATCH", "/api/schedules/none", {"enabled": False}))[0] == 404
        status, _, problem = await api.call("PATCH", path, {"job": "unheard.of"})
        assert (status, problem["field"]) == (422, "job")
        assert "orders.read" in problem["allowed"]


async def test_a_migration_and_a_start_are_shown_with_what_they_did(serving, tmp_path):
    folder = tmp_path / "drizzle" / "20260101000000_first"
    folder.mkdir(parents=True)
    text = "CREATE TABLE a (id int);\n--> statement-breakpoint\nCREATE INDEX a_id ON a (id);\n"
    (folder / "migration.sql").write_text(text)
    async with serving(MIGRATIONS_DIR=str(folder.parent)) as api:
        status, _, one = await api.call("GET", "/api/migrations/user/20260101000000_first")
        assert (status, one["state"], one["text"], one["is_cut"]) == (200, "applied", text, False)
        assert [(s["line"], s["kind"]) for s in one["statements"]] == [(1, "CREATE TABLE"), (3, "CREATE INDEX")]
        assert one["duration_s"] > 0
        assert (await api.call("GET", "/api/migrations/user/nothing"))[0] == 404
        _, _, starts = await api.call("GET", "/api/starts")
        status, _, start = await api.call("GET", f"/api/starts/{starts['starts'][0]['id']}")
        assert status == 200
        assert [m["name"] for m in start["migrations"]][-1] == "20260101000000_first"
        assert start["host"]
        assert (await api.call("GET", "/api/starts/99999"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("GET", "/api/jobs?state=broken", None, "succeeded"),
        ("POST", "/api/jobs/bulk", {"action": "mend", "filter": {}, "expected": 0}, "discard"),
        ("POST", "/api/jobs/bulk", {"action": "retry", "filter": {"state": "x"}, "expected": 0}, "queued"),
        ("POST", "/api/jobs", {"name": "unheard.of"}, "orders.read"),
        ("POST", "/api/jobs/1/retry", None, "failed"),
    ],
)
async def test_a_refusal_lists_the_values_that_are_allowed(serving, method, path, body, allowed):
    async with serving() as api:
        if path.startswith("/api/jobs/1/"):
            await api.until(await add(api, "orders.read", {"id": 1}), "succeeded")
        status, _, problem = await api.call(method, path, body, checked=False)
        assert status in {409, 422}
        assert allowed in problem["allowed"]
