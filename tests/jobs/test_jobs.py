"""The queue on a real database: what callers get, what handlers may do, what becomes of each job."""

import asyncio
import contextlib
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import dsn
from orchestrator.jobs import Backoff, job
from orchestrator.jobs.cron import next_after
from orchestrator.jobs.error_record import has_nul, redacted_json, without_nul
from orchestrator.jobs.errors import (
    HandlerError,
    IdempotencyError,
    JobError,
    JobNotFoundError,
    JobStateError,
    PayloadError,
    ScheduleError,
    UnknownHandlerError,
)
from orchestrator.jobs.lease import Lease
from orchestrator.jobs.parameters import WorkerParameters
from orchestrator.jobs.queue import NewJob, cancel, cancel_many, enqueue, enqueue_many, retry
from orchestrator.jobs.registry import DECLARED, Registry
from orchestrator.jobs.schedules import (
    Schedule,
    delete_schedule,
    fire_due,
    put_schedule,
    sync_schedules,
    trigger_schedule,
)
from orchestrator.jobs.worker import StopTimes, Worker
from orchestrator.redaction import redactor

ROOT = Path(__file__).parents[2]


class Mail(msgspec.Struct, forbid_unknown_fields=True):
    to: str
    copies: list[int] = []
    text: str = ""


def declared(function, name, **options) -> Registry:
    """A registry that holds this one handler, whatever the process has declared before."""
    before = dict(DECLARED._handlers)
    try:
        DECLARED._handlers.clear()
        job(name, **options)(function)
        return Registry(DECLARED.handlers.values())
    finally:
        DECLARED._handlers.clear()
        DECLARED._handlers.update(before)


def together(*registries: Registry) -> Registry:
    return Registry(handler for registry in registries for handler in registry.handlers.values())


async def nothing(ctx, payload):
    """Does nothing."""


async def mail(ctx, payload: Mail):
    """Sends a mail."""
    return {"to": payload.to}


NOOP = declared(nothing, "noop")
MAIL = declared(mail, "mail", retries=2)


async def prepare(url: str) -> None:
    """The service's own tables, from its own files."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE SCHEMA orchestrator")
        for file in sorted((ROOT / "migrations").glob("*.sql")):
            for statement in file.read_text().split("--> statement-breakpoint"):
                await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def queue_url(database_url):
    await prepare(database_url)
    return database_url


@pytest.fixture
async def db(queue_url):
    connection = await asyncpg.connect(queue_url)
    yield connection
    await connection.close()


@pytest.fixture
def work(queue_url):
    """`async with work(registry) as events:`: a worker on this loop, and what it tells."""

    @contextlib.asynccontextmanager
    async def working(
        registry, *, worker_id="w1", concurrency=20, lease_s=30.0, url=queue_url, drain_s=5.0, grace_s=1.0
    ):
        events: list[tuple[str, dict]] = []
        until = asyncio.Event()
        parameters = WorkerParameters(
            dsn.parse(url),
            registry,
            worker_id=worker_id,
            concurrency=concurrency,
            lease_s=lease_s,
            emit=lambda name, **facts: events.append((name, facts)),
            redact=lambda text: text.replace("s3cr3t", "***"),
        )
        worker, loop = Worker(parameters), asyncio.get_running_loop()
        lease = Lease(
            parameters,
            count=lambda: len(worker.runs),
            changed=lambda: loop.call_soon_threadsafe(worker.compare_soon),
        )
        lease.start()
        task = asyncio.create_task(worker.run(until, lambda: StopTimes(5.0, drain_s, grace_s, 5.0)))
        try:
            yield events
        finally:
            until.set()
            await task
            await asyncio.to_thread(lease.end)

    return working


@pytest.fixture
def finished(db, wait_until):
    """`await finished(id)` → the job's row, when it is over."""

    async def wait(job_id, *states, timeout_s=10.0):
        wanted = states or ("succeeded", "failed", "cancelled")

        async def row():
            found = await db.fetchrow("SELECT * FROM orchestrator.jobs WHERE id = $1", job_id)
            return found if found["state"] in wanted else None

        return await wait_until(row, timeout_s, f"job {job_id} is {wanted}")

    return wait


async def attempts_of(db, job_id):
    return await db.fetch("SELECT * FROM orchestrator.attempts WHERE job_id = $1 ORDER BY attempt", job_id)


# ----------------------------------------------------------------------------------------------------------- handlers


def test_a_payload_that_is_wrong_names_the_field():
    handler = MAIL.get("mail")
    for payload, path in [
        ({"to": 3}, "$.to"),
        ({}, "$.to"),
        ({"to": "a", "copies": [1, "x"]}, "$.copies[1]"),
        ({"to": "a", "cc": "b"}, "$.cc"),
        (["a"], "$"),
        ({"to": "a\0b"}, "$"),
        ({"to": object()}, "$"),
    ]:
        with pytest.raises(PayloadError) as caught:
            handler.encode(payload)
        assert caught.value.path == path, payload
    assert handler.encode(Mail("a", [1])) == '{"to":"a","copies":[1],"text":""}'
    assert handler.encode({"to": "\\u0000"})
    schema = handler.payload_schema()
    assert schema["$defs"]["Mail"]["required"] == ["to"]
    assert NOOP.get("noop").payload_schema()["type"] == "object"
    with pytest.raises(UnknownHandlerError):
        NOOP.get("other")


@given(st.text(st.sampled_from("\\\0u0a"), max_size=12))
def test_nul_is_found_and_replaced_and_nothing_else_is_touched(text):
    encoded = msgspec.json.encode(text)
    assert has_nul(encoded) == ("\0" in text)
    assert msgspec.json.decode(without_nul(encoded)) == text.replace("\0", "\N{REPLACEMENT CHARACTER}")


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_a_backoff_grows_within_its_jitter_and_stays_below_its_most(attempt, chance):
    backoff = Backoff(1.0, 2.0, 60.0, 0.1)
    plain = min(60.0, 2.0 ** min(attempt - 1, 10))
    assert plain * 0.9 - 1e-9 <= backoff.wait_s(attempt, chance) <= plain * 1.1 + 1e-9


def test_what_cannot_be_a_handler_is_refused_by_name():
    def plain(ctx, payload): ...

    async def one(ctx): ...

    async def number(ctx, payload: int): ...

    async def unknown(ctx, payload: "Nowhere"): ...  # noqa: F821

    for function, options, word in [
        (plain, {}, "async def"),
        (one, {}, "(ctx, payload)"),
        (unknown, {}, "annotation"),
        (nothing, {"schedule": "61 * * * *"}, "61 * * * *"),
        (nothing, {"schedule": "* * * * *", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        (mail, {"schedule": "* * * * *"}, "cannot be empty"),
        (nothing, {"retries": -1}, "retries=-1"),
        (nothing, {"concurrency": 0}, "concurrency=0"),
        (nothing, {"timeout_s": 0}, "timeout_s=0"),
    ]:
        with pytest.raises(HandlerError) as caught:
            declared(function, "x", **options)
        assert word in caught.value.message
        assert "'x'" in caught.value.message
        assert __name__ in caught.value.message
        assert caught.value.exit_code == 78
    with pytest.raises(HandlerError, match="two handlers are named 'noop'"):
        together(NOOP, declared(mail, "noop"))
    with pytest.raises(HandlerError):
        declared(nothing, "a b")


# ------------------------------------------------------------------------------------------------------------ enqueue


async def test_enqueue_rolls_back_with_its_transaction(db):
    with contextlib.suppress(ZeroDivisionError):
        async with db.transaction():
            assert (await enqueue(db, "noop", registry=NOOP)).created
            raise ZeroDivisionError
    assert await db.fetchval("SELECT count(*) FROM orchestrator.jobs") == 0
    assert await db.fetchval("SELECT count(*) FROM orchestrator.job_events") == 0


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
async def test_a_time_out_that_is_none_is_refused(db, timeout_s):
    async def known(ctx, payload):
        pass

    with pytest.raises(JobError, match="timeout_s"):
        await enqueue(db, "known", registry=declared(known, "known"), timeout_s=timeout_s)


async def test_a_dedupe_key_stands_for_one_unfinished_job(db, work, finished):
    first = await enqueue(db, "noop", dedupe_key="k", delay_s=60, registry=NOOP)
    again = await enqueue(db, "noop", {"other": 1}, dedupe_key="k", registry=NOOP)
    assert (first.created, first.state) == (True, "scheduled")
    assert (again.created, again.id, again.state) == (False, first.id, "scheduled")
    assert await retry(db, first.id) == "queued"
    async with work(NOOP):
        await finished(first.id, "succeeded")
    assert (await enqueue(db, "noop", dedupe_key="k", registry=NOOP)).created


async def test_an_idempotency_key_makes_one_job_of_requests_that_come_at_once(db, queue_url):
    async def request():
        connection = await asyncpg.connect(queue_url)
        try:
            return await enqueue(connection, "mail", {"to": "a"}, idempotency_key="key", registry=MAIL)
        finally:
            await connection.close()

    answers = await asyncio.gather(*(request() for _ in range(12)))
    assert len({answer.id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    with pytest.raises(IdempotencyError):
        await enqueue(db, "mail", {"to": "b"}, idempotency_key="key", registry=MAIL)
    with pytest.raises(IdempotencyError):
        await enqueue(db, "noop", idempotency_key="key", registry=NOOP)


async def test_a_batch_answers_in_its_own_order_and_is_all_or_nothing(db):
    jobs = [NewJob("noop", {"n": n}, dedupe_key="same" if n % 2 else None) for n in range(50)]
    answers = await enqueue_many(db, jobs, registry=NOOP)
    payloads = dict(await db.fetch("SELECT id, payload ->> 'n' FROM orchestrator.jobs"))
    assert len(payloads) == 26
    assert [payloads[a.id] for a in answers] == [str(1 if n % 2 else n) for n in range(50)]
    assert [a.created for a in answers] == [n % 2 == 0 or n == 1 for n in range(50)]
    with pytest.raises(PayloadError):
        await enqueue_many(db, [NewJob("mail", {"to": "a"}), NewJob("mail", {"to": 1})], registry=MAIL)
    assert await db.fetchval("SELECT count(*) FROM orchestrator.jobs") == 26
    assert await enqueue_many(db, [], registry=NOOP) == []


# ----------------------------------------------------------------------------------------------------- cancel and retry


async def test_cancelling_what_is_finished_is_refused_and_what_waits_is_cancelled_at_once(db, work, finished):
    done = await enqueue(db, "noop", registry=NOOP)
    async with work(NOOP):
        await finished(done.id)
    with pytest.raises(JobStateError) as caught:
        await cancel(db, done.id)
    assert caught.value.state == "succeeded"
    with pytest.raises(JobStateError):
        await retry(db, done.id)
    with pytest.raises(JobNotFoundError):
        await cancel(db, 10**15)
    with pytest.raises(JobNotFoundError):
        await retry(db, 10**15)
    waiting = [await enqueue(db, "noop", delay_s=delay_s, registry=NOOP) for delay_s in (0, 60)]
    assert await cancel(db, waiting[0].id) == "cancelled"
    assert await cancel_many(db, [waiting[1].id]) == {waiting[1].id: "cancelled"}
    with pytest.raises(JobStateError):
        await cancel(db, waiting[0].id)


async def test_cancelling_what_runs_stops_it_and_it_is_cancelled_only_when_its_task_has_ended(
    db, work, finished, wait_until
):
    cleaned = asyncio.Event()
    asked = asyncio.Event()

    async def slow(ctx, payload):
        try:
            await asyncio.sleep(60)
        finally:
            asked.set()
            await cleaned.wait()

    registry = declared(slow, "slow", retries=5)
    made = await enqueue(db, "slow", registry=registry)
    async with work(registry):
        await finished(made.id, "running")
        assert await cancel(db, made.id) == "running"
        await asyncio.wait_for(asked.wait(), 5)
        assert (await finished(made.id, "running"))["cancel_requested"]
        cleaned.set()
        row = await finished(made.id)
    assert (row["state"], row["attempt"]) == ("cancelled", 1)
    assert [a["outcome"] for a in await attempts_of(db, made.id)] == ["cancelled"]


async def test_a_retry_while_a_sibling_with_the_same_dedupe_key_is_queued_leaves_nothing_stuck(db, work, finished):
    async def broken(ctx, payload):
        raise ValueError("no")

    registry = together(declared(broken, "k"), NOOP)
    failed = await enqueue(db, "k", dedupe_key="k", registry=registry)
    async with work(registry):
        await finished(failed.id, "failed")
    sibling = await enqueue(db, "k", dedupe_key="k", registry=registry)
    assert sibling.created
    async with db.transaction():
        with pytest.raises(JobStateError) as caught:
            await retry(db, failed.id)
        assert caught.value.sibling_id == sibling.id
        assert await db.fetchval("SELECT 1") == 1  # the caller's transaction lives on
    async with work(registry):
        await finished(sibling.id, "failed")
        assert await retry(db, failed.id) == "queued"
        row = await finished(failed.id, "failed")
    assert (row["attempt"], row["max_attempts"]) == (2, 2)


# ------------------------------------------------------------------------------------------------ what becomes of a job


async def test_every_attempt_is_recorded_with_its_error_and_no_local_variable(db, work, finished):
    async def broken(ctx, payload):
        password = "hidden-local"  # noqa: F841
        ctx.log.info("trying", attempt=ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt} of s3cr3t\0")
        return {"nul": "\0", "n": 1}

    registry = declared(broken, "broken", retries=2, backoff=Backoff(0.05, jitter=0))
    made = await enqueue(db, "broken", registry=registry)
    async with work(registry) as events:
        row = await finished(made.id)
    assert (row["state"], row["attempt"], row["error"]) == ("succeeded", 3, None)
    assert msgspec.json.decode(row["output"]) == {"nul": "\N{REPLACEMENT CHARACTER}", "n": 1}
    attempts = await attempts_of(db, made.id)
    assert [(a["attempt"], a["outcome"]) for a in attempts] == [(1, "failed"), (2, "failed"), (3, "succeeded")]
    assert all(a["started_at"] <= a["finished_at"] for a in attempts)
    error = msgspec.json.decode(attempts[0]["error"])
    assert error["type"] == "ValueError"
    assert error["message"].startswith("attempt 1 of ***")
    assert "in broken" in error["trace"]
    assert "hidden-local" not in str(error) or "password = " in str(error)  # its source line at most
    states = [
        r[0] for r in await db.fetch("SELECT state FROM orchestrator.job_events WHERE job_id = $1 ORDER BY id", made.id)
    ]
    assert states == [
        *("queued", "running", "scheduled", "queued", "running", "scheduled", "queued", "running", "succeeded"),
    ]
    lines = await db.fetch(
        "SELECT attempt, event, facts FROM orchestrator.job_logs WHERE job_id = $1 ORDER BY id", made.id
    )
    assert [(r["attempt"], r["event"]) for r in lines] == [(1, "trying"), (2, "trying"), (3, "trying")]
    assert [name for name, _ in events] == ["job.failed", "job.failed"]


async def test_a_secret_is_hidden_wherever_a_job_tells_it_also_where_it_would_be_cut(db, work, finished):
    async def telling(ctx, payload):
        event = "a" * 497 + "s3cr3t"
        ctx.log.warning(event, near_the_end="b" * 2020 + "s3cr3t", then="c" * 4096)
        ctx.log.info("two facts", url="http://host:80/", mail="me@s3cr3t.org", s3cr3t=1)
        await ctx.progress(1, note="d" * 497 + "s3cr3t")
        raise ValueError("e" * 3997 + "s3cr3t")

    registry = declared(telling, "telling")
    made = await enqueue(db, "telling", registry=registry)
    async with work(registry):
        row = await finished(made.id)
    assert row["state"] == "failed"
    told = []
    for table in ("jobs", "job_attempts", "job_logs", "job_events"):
        told += await db.fetch(f"SELECT row_to_json(t)::text AS text FROM orchestrator.{table} t")
    assert not [row["text"] for row in told if "s3c" in row["text"]]
    facts = await db.fetchval("SELECT facts FROM orchestrator.job_logs WHERE event = 'two facts'")
    assert msgspec.json.decode(facts) == {"url": "http://host:80/", "mail": "me@***.org", "***": 1}


@pytest.mark.parametrize(
    "text", ['{"url":"http://a:80/x","mail":"me@b.org"}', '{"a":["postgres://u:p@h/d",1,null,{"b":"x=\\"y"}]}', "{}"]
)
def test_json_stays_json_and_keeps_its_facts_when_secrets_are_taken_out(text):
    before, after = (msgspec.json.decode(one) for one in (text, redacted_json(text.encode(), redactor(["hidden"]))))
    assert str(after) == str(before).replace("u:p@", "u:***@")


async def test_what_a_handler_raises_or_returns_never_harms_the_worker(db, work, finished):
    class Odd(BaseException):
        def __str__(self):
            raise SystemExit(3)

    async def harm(ctx, payload):
        match payload["how"]:
            case "exit":
                sys.exit(1)
            case "interrupt":
                raise KeyboardInterrupt
            case "generator":
                raise GeneratorExit
            case "odd":
                raise Odd
            case "cancel":
                raise asyncio.CancelledError
            case "recurse":
                return [await harm(ctx, payload)]
            case "set":
                return {1, object()}
            case "big":
                return "x" * (2 << 20)
            case "huge number":
                return msgspec.Raw(b"1e999999")
            case "surrogate":
                return "\ud800"

    registry = declared(harm, "harm")
    expected = {
        "exit": "SystemExit",
        "interrupt": "KeyboardInterrupt",
        "generator": "GeneratorExit",
        "odd": "Odd",
        "cancel": "CancelledError",
        "recurse": "RecursionError",
        "set": "TypeError",
        "big": "OutputTooLargeError",
        "huge number": "OutputError",
        "surrogate": "UnicodeEncodeError",
        "nothing": None,
    }
    made = await enqueue_many(db, [NewJob("harm", {"how": how}) for how in expected], registry=registry)
    async with work(registry):
        rows = [await finished(one.id) for one in made]
    for (how, kind), row in zip(expected.items(), rows, strict=True):
        assert row["state"] == ("succeeded" if kind is None else "failed"), how
        if kind is not None:
            assert msgspec.json.decode(row["error"])["type"].endswith(kind), how


async def test_an_attempt_is_ended_at_its_time_out_and_told_where_it_stood(db, work, finished):
    async def endless(ctx, payload):
        await asyncio.Event().wait()

    registry = declared(endless, "endless", timeout_s=0.1, retries=1, backoff=0.01)
    made = await enqueue(db, "endless", registry=registry)
    async with work(registry):
        row = await finished(made.id)
    error = msgspec.json.decode(row["error"])
    assert (row["state"], error["type"], error["message"]) == ("failed", "TimeoutError", "not done within 0.1 s")
    assert "in endless" in error["trace"]
    assert [a["outcome"] for a in await attempts_of(db, made.id)] == ["timed_out", "timed_out"]


async def test_a_retry_after_one_second_runs_at_one_second_on_an_idle_worker(db, work, finished):
    async def flaky(ctx, payload):
        if ctx.attempt == 1:
            raise ValueError("once")

    registry = declared(flaky, "flaky", retries=1, backoff=Backoff(1.0, jitter=0))
    made = await enqueue(db, "flaky", registry=registry)
    async with work(registry):
        await finished(made.id, "succeeded")
    first, second = await attempts_of(db, made.id)
    assert 1.0 <= (second["started_at"] - first["finished_at"]).total_seconds() < 1.4


async def test_a_delay_and_a_time_are_kept_and_a_higher_priority_goes_first(db, work, finished):
    order = []

    async def note(ctx, payload):
        order.append(payload["n"])

    registry = declared(note, "note")
    jobs = [NewJob("note", {"n": n}, priority=n % 3) for n in range(9)]
    await enqueue_many(db, jobs, registry=registry)
    late = await enqueue(db, "note", {"n": 100}, delay_s=0.5, registry=registry)
    at = await enqueue(db, "note", {"n": 101}, run_at=datetime.now(UTC) + timedelta(seconds=0.7), registry=registry)
    async with work(registry, concurrency=1):
        rows = [await finished(one.id) for one in (late, at)]
    assert order == [2, 5, 8, 1, 4, 7, 0, 3, 6, 100, 101]
    assert all(0 <= (row["started_at"] - row["run_at"]).total_seconds() < 0.4 for row in rows)


async def test_no_more_than_a_name_s_concurrency_runs_at_a_time_over_all_workers(db, work, wait_until):
    running, most = 0, 0

    async def few(ctx, payload):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    registry = together(declared(few, "few", concurrency=3), NOOP)
    await enqueue_many(db, [NewJob("few")] * 60 + [NewJob("noop")] * 200, registry=registry)
    async with work(registry, worker_id="a"), work(registry, worker_id="b"), work(registry, worker_id="c"):
        await wait_until(
            lambda: db.fetchval("SELECT count(*) = 260 FROM orchestrator.jobs WHERE state = 'succeeded'"), 20
        )
    assert 2 <= most <= 3
    assert await db.fetchval("SELECT count(*) FROM orchestrator.attempts") == 260


async def test_a_stale_worker_s_finish_is_rejected(db, work, finished, wait_until):
    go = asyncio.Event()

    async def wait(ctx, payload):
        await go.wait()
        return "mine"

    registry = declared(wait, "wait", retries=3)
    made = await enqueue(db, "wait", registry=registry)
    async with work(registry) as events:
        await finished(made.id, "running")
        # What a reaper and another worker's claim do to the row.
        await db.execute("UPDATE orchestrator.jobs SET attempt = 2, worker = 'other' WHERE id = $1", made.id)
        go.set()
        await wait_until(lambda: any(name == "job.finish_refused" for name, _ in events))
    row = await finished(made.id, "running")
    assert (row["attempt"], row["worker"], row["output"]) == (2, "other", None)
    assert await attempts_of(db, made.id) == []


async def test_a_stop_requeues_what_does_not_end_in_time_and_costs_no_attempt(db, work, finished):
    async def stubborn(ctx, payload):
        while ctx.attempt == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def polite(ctx, payload):
        if ctx.attempt == 1:
            await asyncio.sleep(60)

    registry = together(declared(stubborn, "stubborn"), declared(polite, "polite"))
    made = await enqueue_many(db, [NewJob("stubborn"), NewJob("polite")] * 3, registry=registry)
    async with work(registry, drain_s=0.1, grace_s=0.1):
        for one in made:
            await finished(one.id, "running")
    rows = [await finished(one.id, "queued") for one in made]
    assert {(row["attempt"], row["max_attempts"]) for row in rows} == {(1, 2)}
    async with work(registry):
        for one in made:
            await finished(one.id, "succeeded")
            assert [a["outcome"] for a in await attempts_of(db, one.id)] == ["interrupted", "succeeded"]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "_perform" in repr(task):
            task.get_coro().close()
            task._log_destroy_pending = False


async def test_progress_is_throttled_and_its_last_word_is_kept(db, work, finished):
    async def steps(ctx, payload):
        for n in range(1, 2001):
            await ctx.progress(n, 2000, f"step {n}")

    registry = declared(steps, "steps")
    made = await enqueue(db, "steps", registry=registry)
    async with work(registry):
        row = await finished(made.id)
    progress = msgspec.json.decode(row["progress"])
    assert (progress["done"], progress["total"], progress["note"]) == (2000, 2000, "step 2000")
    written = await db.fetchval("SELECT count(*) FROM orchestrator.job_events WHERE kind = 'progress'")
    assert 1 <= written <= 20


async def test_a_flood_of_lines_is_cut_and_says_so(db, work, finished, caplog):
    async def flood(ctx, payload):
        log = ctx.log.bind(tenant=7)
        for n in range(50_000):
            log.warning("water", n=n, text="x" * 10_000)

    registry = declared(flood, "flood")
    made = await enqueue(db, "flood", registry=registry)
    with caplog.at_level(logging.CRITICAL, "orchestrator.jobs"):
        async with work(registry):
            await finished(made.id, "succeeded")
    lines = await db.fetch("SELECT event, facts FROM orchestrator.job_logs WHERE job_id = $1 ORDER BY id", made.id)
    assert len(lines) == 1001
    assert (lines[-1]["event"], msgspec.json.decode(lines[-1]["facts"])) == ("log.cut", {"dropped": 49_000})
    assert max(len(line["facts"]) for line in lines) < 4096


async def test_it_works_without_listening_as_behind_a_pooler(db, queue_url, work, finished):
    async with work(NOOP, url=f"{queue_url}?pgbouncer=true"):
        assert (
            await db.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
            == 0
        )
        for _ in range(2):
            made = await enqueue(db, "noop", registry=NOOP)
            await finished(made.id, timeout_s=3)


async def test_what_belongs_to_a_job_goes_with_it(db, work, finished):
    async def line(ctx, payload):
        ctx.log.info("here")

    registry = declared(line, "line")
    made = await enqueue(db, "line", registry=registry)
    async with work(registry):
        await finished(made.id)
    await db.execute("DELETE FROM orchestrator.jobs")
    assert await db.fetchval("SELECT count(*) FROM orchestrator.attempts") == 0
    assert await db.fetchval("SELECT count(*) FROM orchestrator.job_logs") == 0


async def test_a_claim_reads_few_pages_of_a_large_backlog_without_any_statistics(db, work, finished):
    await db.execute("ALTER TABLE orchestrator.jobs SET (autovacuum_enabled = off)")
    async with work(NOOP):  # whose plans are made while the table is empty
        for _ in range(8):
            await finished((await enqueue(db, "noop", registry=NOOP)).id)
        await db.execute(
            "INSERT INTO orchestrator.jobs (name, state) SELECT 'other', 'queued' FROM generate_series(1, 30000);"
            "INSERT INTO orchestrator.jobs (name, state, run_at, finished_at)"
            " SELECT 'noop', 'succeeded', now(), now() FROM generate_series(1, 30000)"
        )
        before = await db.fetchval("SELECT pg_stat_force_next_flush()")
        began = time.monotonic()
        for _ in range(10):
            await finished((await enqueue(db, "noop", registry=NOOP)).id)
        assert time.monotonic() - began < 2, before
    scanned = await db.fetchval("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'jobs'")
    assert scanned < 30_000


# ----------------------------------------------------------------------------------------------------------- schedules


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("cron", "after", "times"),
    [
        # Clocks go from 02:00 to 03:00 on 2026-03-29 in Berlin: what falls into the gap runs right after it, once.
        ("30 2 * * *", "2026-03-28T12:00+00:00", ["2026-03-29T01:00+00:00", "2026-03-30T00:30+00:00"]),
        ("0 * * * *", "2026-03-29T00:30+00:00", ["2026-03-29T01:00+00:00", "2026-03-29T02:00+00:00"]),
        # And from 03:00 back to 02:00 on 2026-10-25: a fixed hour runs once, every hour goes on.
        ("30 2 * * *", "2026-10-24T12:00+00:00", ["2026-10-25T00:30+00:00", "2026-10-26T01:30+00:00"]),
        ("0 * * * *", "2026-10-24T23:30+00:00", ["2026-10-25T00:00+00:00", "2026-10-25T01:00+00:00"]),
    ],
)
def test_where_clocks_change_a_schedule_neither_doubles_nor_skips(cron, after, times):
    moment = at(after)
    for expected in times:
        moment = next_after(cron, "Europe/Berlin", moment)
        assert moment == at(expected)


def test_what_is_no_schedule_is_refused():
    for cron, zone in [("* * * *", "UTC"), ("0 0 31 2 *", "UTC"), ("* * * * *", "../etc"), ("* * * * *", "")]:
        with pytest.raises(ScheduleError):
            next_after(cron, zone, datetime.now(UTC))


async def set_clock(db, moment: datetime | None) -> None:
    body = "clock_timestamp()" if moment is None else f"timestamptz '{moment.isoformat()}'"
    await db.execute(
        f"CREATE OR REPLACE FUNCTION orchestrator.clock() RETURNS timestamptz LANGUAGE sql VOLATILE RETURN {body}"
    )


async def test_a_schedule_fires_once_over_three_replicas_also_where_the_clock_is_set(db, queue_url, admin):
    start = at("2026-10-24T23:59:30+00:00")
    await set_clock(db, start)
    assert await put_schedule(db, Schedule("minutely", "noop", "* * * * *", "Europe/Berlin"), registry=NOOP)
    fired = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(admin.connection(queue_url)) for _ in range(3)]

        async def everybody_looks():
            looks = await asyncio.gather(*(fire_due(replica, NOOP) for replica in replicas))
            made = [(name, one.created) for look in looks for name, one in look.made]
            # So that the next one is not the same job.
            await db.execute("UPDATE orchestrator.jobs SET state = 'succeeded', finished_at = now()")
            return made

        for minutes, expected in [
            (0, 0),  # not due yet
            (1, 1),
            (1, 0),
            (2, 1),
            (-60, 0),  # an hour back: what fired does not fire again
            (1, 0),
            (2, 0),
            (3, 1),
            (180, 1),  # three hours forward: what was missed is one job
            (181, 1),
            (-600, 0),  # ten hours back: it was wrong before, times are planned anew
            (-599, 1),
            (-598, 1),
        ]:
            await set_clock(db, start + timedelta(minutes=minutes))
            fired.append((minutes, len(await everybody_looks()), expected))
    assert [(m, n) for m, n, _ in fired] == [(m, expected) for m, _, expected in fired]


async def test_code_does_not_overwrite_what_a_person_changed(db):
    registry = declared(nothing, "nightly", schedule="0 3 * * *")
    moved = declared(nothing, "nightly", schedule="0 4 * * *")
    without = declared(nothing, "nightly")

    async def row():
        return await db.fetchrow("SELECT cron, source, next_run_at, enabled FROM orchestrator.schedules")

    await sync_schedules(db, registry)
    first = await row()
    assert (first["cron"], first["source"], first["next_run_at"].hour) == ("0 3 * * *", "code", 3)
    await sync_schedules(db, moved)
    assert ((await row())["cron"], (await row())["next_run_at"].hour) == ("0 4 * * *", 4)
    await sync_schedules(db, without)
    assert await row() is None
    await sync_schedules(db, registry)
    assert not await put_schedule(db, Schedule("nightly", "nightly", "5 5 * * *", enabled=False), registry=registry)
    for again in (moved, without):
        await sync_schedules(db, again)
        changed = await row()
        assert (changed["cron"], changed["source"], changed["enabled"]) == ("5 5 * * *", "api", False)
    assert (await fire_due(db, registry)).next_in_s is None
    triggered = await trigger_schedule(db, "nightly", registry=registry)
    assert triggered.created
    assert not (await trigger_schedule(db, "nightly", registry=registry)).created
    assert await db.fetchval("SELECT schedule FROM orchestrator.jobs") == "nightly"
    assert await delete_schedule(db, "nightly")
    assert not await delete_schedule(db, "nightly")


async def test_a_row_that_was_broken_by_hand_keeps_no_other_from_firing(db):
    await put_schedule(db, Schedule("good", "noop", "* * * * *"), registry=NOOP)
    await put_schedule(db, Schedule("bad", "noop", "* * * * *"), registry=NOOP)
    await db.execute("UPDATE orchestrator.schedules SET next_run_at = now() - interval '1 minute'")
    await db.execute("UPDATE orchestrator.schedules SET cron = 'never' WHERE name = 'bad'")
    fired = await fire_due(db, NOOP)
    assert [name for name, _ in fired.made] == ["good"]
    assert [name for name, _ in fired.unusable] == ["bad"]
    assert (await fire_due(db, NOOP)).unusable == ()
