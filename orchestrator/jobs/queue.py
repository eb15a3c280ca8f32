"""Put jobs into the queue, and change what waits or runs: the half that callers use. Touches the database.

Everything runs on the caller's connection, inside its transaction where there is one: rolled back, it never happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from orchestrator.jobs.errors import IdempotencyError, JobError, JobNotFoundError, JobStateError
from orchestrator.jobs.registry import DECLARED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from orchestrator.jobs.registry import Registry

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
# What a client can wait for: hints, never the only way to learn of something.
JOBS_CHANNEL = "orchestrator_jobs"
CANCEL_CHANNEL = "orchestrator_cancel"
SCHEDULES_CHANNEL = "orchestrator_schedules"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What came of it. `created` is False where a key named a job that was there already: then `id` is that one."""

    id: int
    state: State
    created: bool


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be: `run_at` (with a time zone) or `delay_s` from now put it off; None: the handler's own value."""

    name: str
    payload: object = None
    queue: str | None = None
    run_at: datetime | None = None
    delay_s: float | None = None
    priority: int = 0
    dedupe_key: str | None = None
    idempotency_key: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    schedule: str | None = None


async def enqueue(
    connection: Any,
    name: str,
    payload: object = None,
    *,
    registry: Registry | None = None,
    queue: str | None = None,
    run_at: datetime | None = None,
    delay_s: float | None = None,
    priority: int = 0,
    dedupe_key: str | None = None,
    idempotency_key: str | None = None,
    max_attempts: int | None = None,
    timeout_s: float | None = None,
) -> Enqueued:
    """Add one job. While a job of that name with the same `dedupe_key` is unfinished, it is that job instead.

    `idempotency_key` stands for one request for as long as its job is kept, whatever became of it.

    Raises:
        UnknownHandlerError: this process knows no such handler.
        PayloadError: the payload is not what it takes.
        IdempotencyError: the key was used for another name or payload.
    """
    job = NewJob(
        name=name,
        payload=payload,
        queue=queue,
        run_at=run_at,
        delay_s=delay_s,
        priority=priority,
        dedupe_key=dedupe_key,
        idempotency_key=idempotency_key,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
    )
    return (await enqueue_many(connection, [job], registry=registry))[0]


async def enqueue_many(connection: Any, jobs: Sequence[NewJob], *, registry: Registry | None = None) -> list[Enqueued]:
    """Add all of them or none, in one statement; the answers stand in the order of `jobs`. Errors as in `enqueue`."""
    known = DECLARED if registry is None else registry
    rows = [_row(job, known) for job in jobs]
    held = sorted({job.idempotency_key for job in jobs if job.dedupe_key and job.idempotency_key})
    if not held:
        return await _add(connection, jobs, rows)
    # Such a key may come to stand for a job that has another key, or none, so the jobs' own index cannot keep two
    # requests apart that bring it at once: the second one waits until it is decided for the first.
    async with connection.transaction():
        await connection.execute(_HOLD_KEYS, held)
        answers = await _add(connection, jobs, rows)
        await connection.execute(_LET_GO, held)
        return answers


async def _add(connection: Any, jobs: Sequence[NewJob], rows: Sequence[tuple[Any, ...]]) -> list[Enqueued]:
    answers: list[Enqueued | None] = [None] * len(rows)
    left = list(range(len(rows)))
    statement = _INSERT_KEYED if any(job.dedupe_key or job.idempotency_key for job in jobs) else _INSERT
    for _ in range(_TRIES):
        if not left:
            break
        record = await connection.fetchrow(statement, *map(list, zip(*(rows[n] for n in left), strict=True)))
        made = dict(zip(record["made"] or (), record["states"] or (), strict=True))
        conflicts = []
        for n, job_id in zip(left, record["ids"], strict=True):
            if job_id in made:
                answers[n] = Enqueued(job_id, made[job_id], created=True)
            else:
                conflicts.append(n)
        # What stood in the way may be finished by now: then there is room for a new one.
        for n in conflicts:
            answers[n] = await _existing(connection, jobs[n], rows[n])
        left = [n for n in conflicts if answers[n] is None]
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(rows):
        raise JobError(
            "jobs with the same keys come and go too fast to tell which one this is", remedy="Send it once more."
        )
    return found


_TRIES = 20


def _row(job: NewJob, registry: Registry) -> tuple[Any, ...]:
    """The job's columns, checked, in the order of `_INSERT`."""
    handler = registry.get(job.name)
    if job.run_at is not None and job.run_at.tzinfo is None:
        raise JobError("run_at has no time zone", remedy="Give a time with one, as in datetime.now(UTC).")
    if job.delay_s is not None and not 0 <= job.delay_s <= _DELAY_MAX_S:
        raise JobError("delay_s is out of range", remedy="Give seconds from 0 to ten years.")
    if job.timeout_s is not None and not 0 < job.timeout_s <= _DELAY_MAX_S:
        raise JobError("timeout_s is out of range", remedy="Give seconds above 0, or None for the handler's own.")
    if job.max_attempts is not None and job.max_attempts < 1:
        raise JobError("max_attempts is below 1", remedy="Give 1 for no retry.")
    return (
        job.name,
        job.queue or handler.queue,
        job.priority,
        handler.encode(job.payload),
        job.run_at,
        job.delay_s,
        handler.max_attempts if job.max_attempts is None else job.max_attempts,
        job.timeout_s,
        job.dedupe_key,
        job.idempotency_key,
        job.schedule,
    )


_DELAY_MAX_S = 10 * 366 * 86400.0

# These run on a caller's connection, with the caller's search path: each function, operator and type is qualified.
#
# The ids are drawn first, so that those which met a conflict can be told from those which did not.
_INSERT = """
WITH given AS MATERIALIZED (
    SELECT pg_catalog.nextval('orchestrator.jobs_id_seq') AS id, g.*, coalesce(g.run_at,
        pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => g.delay_s)) AS due
    FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
        pg_catalog.unnest($3::integer[]), pg_catalog.unnest($4::pg_catalog.text[]),
        pg_catalog.unnest($5::pg_catalog.timestamptz[]), pg_catalog.unnest($6::double precision[]),
        pg_catalog.unnest($7::integer[]), pg_catalog.unnest($8::double precision[]),
        pg_catalog.unnest($9::pg_catalog.text[]), pg_catalog.unnest($10::pg_catalog.text[]),
        pg_catalog.unnest($11::pg_catalog.text[])) WITH ORDINALITY
        AS g(name, queue, priority, payload, run_at, delay_s, max_attempts, timeout_s, dedupe_key, idempotency_key,
            schedule, n)
), made AS (
    INSERT INTO orchestrator.jobs (id, name, queue, state, priority, payload, run_at, max_attempts, timeout_s,
        dedupe_key, idempotency_key, schedule)
    OVERRIDING SYSTEM VALUE
    SELECT id, name, queue,
        CASE WHEN due OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN 'scheduled' ELSE 'queued' END, priority,
        payload::pg_catalog.jsonb, coalesce(due, pg_catalog.now()), max_attempts, timeout_s, dedupe_key,
        idempotency_key, schedule
    FROM given
    /* keys */
    ON CONFLICT DO NOTHING
    RETURNING id, name, queue, state
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)
    SELECT id, 0, name, queue, state FROM made
)
SELECT (SELECT pg_catalog.array_agg(id ORDER BY n) FROM given) AS ids, pg_catalog.array_agg(id) AS made,
    pg_catalog.array_agg(state) AS states,
    (SELECT pg_catalog.count(pg_catalog.pg_notify('orchestrator_jobs', q.queue))
        FROM (SELECT DISTINCT queue FROM made) q) AS hints,
    CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 THEN pg_catalog.pg_notify('orchestrator_events', '') END
        AS hinted
FROM made
"""

# Where there are keys: one may have been answered by a job that has another; and whoever adds the same ones waits for
# them in the same order.
_INSERT_KEYED = _INSERT.replace(
    "/* keys */",
    """WHERE idempotency_key IS NULL OR NOT EXISTS (
        SELECT FROM orchestrator.idempotency_keys k WHERE k.key OPERATOR(pg_catalog.=) given.idempotency_key
            AND k.job_id OPERATOR(pg_catalog.<>) 0
    )
    ORDER BY name, dedupe_key, idempotency_key, n""",
)

_UNFINISHED = "state OPERATOR(pg_catalog.=) ANY (ARRAY['scheduled', 'queued', 'running'])"
_RUNNING = "state OPERATOR(pg_catalog.=) 'running'"

_EXISTING = f"""
SELECT id, state, same, rank FROM (
    SELECT id, state, name OPERATOR(pg_catalog.=) $1
        AND payload OPERATOR(pg_catalog.=) $4::pg_catalog.text::pg_catalog.jsonb AS same, 1 AS rank
    FROM orchestrator.jobs WHERE idempotency_key OPERATOR(pg_catalog.=) $3
    UNION ALL
    SELECT j.id, j.state, k.name OPERATOR(pg_catalog.=) $1
        AND k.payload OPERATOR(pg_catalog.=) $4::pg_catalog.text::pg_catalog.jsonb, 1
    FROM orchestrator.idempotency_keys k JOIN orchestrator.jobs j ON j.id OPERATOR(pg_catalog.=) k.job_id
    WHERE k.key OPERATOR(pg_catalog.=) $3
    UNION ALL
    SELECT id, state, true, 2
    FROM orchestrator.jobs
    WHERE name OPERATOR(pg_catalog.=) $1 AND dedupe_key OPERATOR(pg_catalog.=) $2 AND {_UNFINISHED}
) found ORDER BY rank LIMIT 1
"""  # noqa: S608 constants


_BY_DEDUPE_KEY = 2
_KEEP_KEY = """
INSERT INTO orchestrator.idempotency_keys AS k (key, job_id, name, payload)
VALUES ($1, $2, $3, $4::pg_catalog.text::pg_catalog.jsonb)
ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, name = excluded.name, payload = excluded.payload
    WHERE k.job_id OPERATOR(pg_catalog.=) 0
"""
# Job 0 is none: the row is a lock, and is gone when the transaction ends. A row, and no advisory lock, which every role
# of the database may take.
_HOLD_KEYS = """
INSERT INTO orchestrator.idempotency_keys AS k (key, job_id, name, payload)
SELECT key, 0, '', 'null' FROM pg_catalog.unnest($1::pg_catalog.text[]) AS key ORDER BY key
ON CONFLICT (key) DO UPDATE SET key = excluded.key
"""
_LET_GO = """
DELETE FROM orchestrator.idempotency_keys
WHERE key OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]) AND job_id OPERATOR(pg_catalog.=) 0
"""


async def _existing(connection: Any, job: NewJob, row: tuple[Any, ...]) -> Enqueued | None:
    record = await connection.fetchrow(_EXISTING, job.name, job.dedupe_key, job.idempotency_key, row[3])
    if record is None:
        return None
    if not record["same"]:
        raise IdempotencyError(record["id"], job.idempotency_key or "")
    if record["rank"] == _BY_DEDUPE_KEY and job.idempotency_key is not None:
        # The job has another key, or none; the request is answered by it from now on, also when it is finished.
        await connection.execute(_KEEP_KEY, job.idempotency_key, record["id"], job.name, row[3])
    return Enqueued(record["id"], record["state"], created=False)


_CANCEL = f"""
WITH changed AS (
    UPDATE orchestrator.jobs
    SET state = CASE WHEN {_RUNNING} THEN 'running' ELSE 'cancelled' END, cancel_requested = ({_RUNNING}),
        finished_at = CASE WHEN {_RUNNING} THEN NULL ELSE pg_catalog.now() END
    WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(
        SELECT id FROM orchestrator.jobs WHERE id OPERATOR(pg_catalog.=) ANY ($1::bigint[]) AND {_UNFINISHED}
        ORDER BY id FOR NO KEY UPDATE
    )) AND {_UNFINISHED}
    RETURNING id, attempt, name, queue, state
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, facts)
    SELECT id, attempt, name, queue, state,
        CASE WHEN {_RUNNING} THEN '{{"cancel_requested": true}}'::pg_catalog.jsonb END
    FROM changed
)
SELECT id, state,
    CASE WHEN {_RUNNING} THEN pg_catalog.pg_notify('orchestrator_cancel', id::pg_catalog.text) END AS hint,
    pg_catalog.pg_notify('orchestrator_events', '') AS hinted
FROM changed
"""  # noqa: S608 constants


async def cancel(connection: Any, job_id: int) -> State:
    """Cancel it: what waits is `cancelled` at once; what runs is told to stop, and `running` until its task has ended.

    Raises:
        JobNotFoundError: there is no such job.
        JobStateError: it is finished.
    """
    record = await connection.fetchrow(_CANCEL, [job_id])
    if record is None:
        raise JobStateError(job_id, await _state(connection, job_id), "cancelled")
    state: State = record["state"]
    return state


CANCEL_BATCH = 1000


async def cancel_many(connection: Any, job_ids: Sequence[int]) -> dict[int, State]:
    """Cancel those that are unfinished, as `cancel` does, in one statement; the ids with the state that each is in now.

    For up to about `CANCEL_BATCH` of them: a statement locks all that it changes.
    """
    return {record["id"]: record["state"] for record in await connection.fetch(_CANCEL, list(job_ids))}


_RETRY = """
WITH changed AS (
    UPDATE orchestrator.jobs
    SET state = 'queued', run_at = pg_catalog.now(), finished_at = NULL, cancel_requested = false, progress = NULL,
        max_attempts = greatest(max_attempts, attempt OPERATOR(pg_catalog.+) 1)
    WHERE id OPERATOR(pg_catalog.=) $1
    AND state OPERATOR(pg_catalog.=) ANY (ARRAY['failed', 'cancelled', 'scheduled'])
    RETURNING id, attempt, name, queue, state
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, facts)
    SELECT id, attempt, name, queue, state, '{"retried": true}'::pg_catalog.jsonb FROM changed
)
SELECT state, pg_catalog.pg_notify('orchestrator_jobs', queue) AS hint,
    pg_catalog.pg_notify('orchestrator_events', '') AS hinted
FROM changed
"""


async def retry(connection: Any, job_id: int) -> State:
    """Run it again now: what failed or was cancelled gets one more attempt, what waits for its time stops waiting.

    Raises:
        JobNotFoundError: there is no such job.
        JobStateError: it is queued, runs or has succeeded; or `sibling_id` holds its dedupe key.
    """
    try:
        async with connection.transaction():  # a savepoint: the caller's own transaction outlives the conflict
            record = await connection.fetchrow(_RETRY, job_id)
    except asyncpg.UniqueViolationError:
        sibling_id = await connection.fetchval(_SIBLING, job_id)
        raise JobStateError(job_id, await _state(connection, job_id), "retried", sibling_id=sibling_id) from None
    if record is None:
        raise JobStateError(job_id, await _state(connection, job_id), "retried")
    state: State = record["state"]
    return state


async def discard(connection: Any, job_id: int) -> None:
    """Remove it for good, with its attempts and its log.

    Raises:
        JobNotFoundError: there is no such job.
        JobStateError: it is not finished.
    """
    gone = await connection.fetchval(
        "DELETE FROM orchestrator.jobs WHERE id OPERATOR(pg_catalog.=) $1"
        " AND state OPERATOR(pg_catalog.=) ANY (ARRAY['succeeded', 'failed', 'cancelled']) RETURNING id",
        job_id,
    )
    if gone is None:
        raise JobStateError(job_id, await _state(connection, job_id), "discarded")


_SIBLING = """
SELECT s.id FROM orchestrator.jobs j JOIN orchestrator.jobs s
    ON s.name OPERATOR(pg_catalog.=) j.name AND s.dedupe_key OPERATOR(pg_catalog.=) j.dedupe_key
WHERE j.id OPERATOR(pg_catalog.=) $1 AND s.id OPERATOR(pg_catalog.<>) j.id
    AND s.state OPERATOR(pg_catalog.=) ANY (ARRAY['scheduled', 'queued', 'running'])
"""


async def _state(connection: Any, job_id: int) -> str:
    state = await connection.fetchval("SELECT state FROM orchestrator.jobs WHERE id OPERATOR(pg_catalog.=) $1", job_id)
    if state is None:
        raise JobNotFoundError(job_id)
    return str(state)
