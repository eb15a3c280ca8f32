"""Put jobs into the queue, and change what waits or runs: the half that callers use. Touches the database.

Everything runs on the caller's connection, inside its transaction where there is one: rolled back, it never happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    return await enqueue_rows(connection, [row_of(job, registry) for job in jobs])


async def enqueue_rows(connection: Any, rows: Sequence[Row]) -> list[Enqueued]:
    """As `enqueue_many`, of jobs that `row_of` has checked and encoded: that part can be done in a thread."""
    held = sorted({row.idempotency_key for row in rows if row.dedupe_key and row.idempotency_key})
    if not held:
        return await _add(connection, rows)
    # Such a key may come to stand for a job that has another key, or none, so the jobs' own index cannot keep two
    # requests apart that bring it at once: the second one waits until it is decided for the first.
    async with connection.transaction():
        await connection.execute(_HOLD_KEYS, held)
        answers = await _add(connection, rows)
        await connection.execute(_LET_GO, held)
        return answers


async def _add(connection: Any, rows: Sequence[Row]) -> list[Enqueued]:
    answers: list[Enqueued | None] = [None] * len(rows)
    left = list(range(len(rows)))
    for _ in range(_TRIES):
        if not left:
            break
        for n, answer in zip(left, await _insert(connection, [rows[n] for n in left]), strict=True):
            # What stood in the way may be finished by now: then there is room for a new one.
            answers[n] = answer or await _existing(connection, rows[n])
        left = [n for n in left if answers[n] is None]
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(rows):
        raise JobError(
            "jobs with the same keys come and go too fast to tell which one this is", remedy="Send it once more."
        )
    return found


async def _insert(connection: Any, rows: Sequence[Row]) -> list[Enqueued | None]:
    """What was made of each row; None where a key was in the way."""
    if len(rows) == 1:
        (row,) = rows
        statement = _INSERT_ONE if row.idempotency_key is None else _INSERT_ONE_KEYED
        record = await connection.fetchrow(statement, *row)
        return [None if record is None else Enqueued(record["id"], record["state"], created=True)]
    columns = [None if all(value is None for value in column) else column for column in zip(*rows, strict=True)]
    if columns[_KEYS] == [None, None]:
        record = await connection.fetchrow(_INSERT, *columns[: _KEYS.start])
        made = zip(record["made"], record["states"], strict=True)
        # By id is in the order of the rows, whatever the order in which they are told.
        return [Enqueued(job_id, state, created=True) for job_id, state in sorted(made)]
    record = await connection.fetchrow(_INSERT_KEYED, *columns)
    states = dict(zip(record["made"] or (), record["states"] or (), strict=True))
    return [Enqueued(one, states[one], created=True) if one in states else None for one in record["ids"]]


_TRIES = 20


class Row(NamedTuple):
    """A job's columns, checked, in the order of the statements' parameters. None: the column's own value."""

    name: str
    queue: str
    priority: int | None
    payload: str
    run_at: datetime | None
    delay_s: float | None
    max_attempts: int
    timeout_s: float | None
    schedule: str | None
    dedupe_key: str | None
    idempotency_key: str | None


_KEYS = slice(9, 11)


def row_of(job: NewJob, registry: Registry | None = None) -> Row:
    """The job, checked and encoded for `enqueue_rows`. Pure; errors as in `enqueue`."""
    handler = (DECLARED if registry is None else registry).get(job.name)
    if job.run_at is not None and job.run_at.tzinfo is None:
        raise JobError("run_at has no time zone", remedy="Give a time with one, as in datetime.now(UTC).")
    if job.delay_s is not None and not 0 <= job.delay_s <= _DELAY_MAX_S:
        raise JobError("delay_s is out of range", remedy="Give seconds from 0 to ten years.")
    if job.timeout_s is not None and not 0 < job.timeout_s <= _DELAY_MAX_S:
        raise JobError("timeout_s is out of range", remedy="Give seconds above 0, or None for the handler's own.")
    if job.max_attempts is not None and job.max_attempts < 1:
        raise JobError("max_attempts is below 1", remedy="Give 1 for no retry.")
    return Row(
        job.name,
        job.queue or handler.queue,
        job.priority or None,
        handler.encode(job.payload),
        job.run_at,
        job.delay_s,
        handler.max_attempts if job.max_attempts is None else job.max_attempts,
        job.timeout_s,
        job.schedule,
        job.dedupe_key,
        job.idempotency_key,
    )


_DELAY_MAX_S = 10 * 366 * 86400.0

# These run on a caller's connection, with the caller's search path: each function, operator and type is qualified.
_TOLD = """
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)
    SELECT id, 0, name, queue, state FROM made
"""
_COLUMNS = "name, queue, state, priority, payload, run_at, max_attempts, timeout_s, schedule"
_DUE = """coalesce(run_at, pg_catalog.clock_timestamp()
        OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => delay_s)) AS due"""
_VALUES = """name, queue,
        CASE WHEN due OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN 'scheduled' ELSE 'queued' END,
        coalesce(priority, 0), payload::pg_catalog.jsonb, coalesce(due, pg_catalog.now()), max_attempts, timeout_s,
        schedule"""
_HINTS = """
    (SELECT pg_catalog.count(pg_catalog.pg_notify('orchestrator_jobs', q.queue))
        FROM (SELECT DISTINCT queue FROM made) q) AS hints,
    CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 THEN pg_catalog.pg_notify('orchestrator_events', '') END
        AS hinted
FROM made
"""

# One job, which is what most requests add: no row is made where a key was in the way.
_INSERT_ONE = f"""
WITH made AS (
    INSERT INTO orchestrator.jobs ({_COLUMNS}, dedupe_key, idempotency_key)
    SELECT {_VALUES}, dedupe_key, idempotency_key
    FROM (
        SELECT name, queue, priority, payload, {_DUE}, max_attempts, timeout_s, schedule, dedupe_key, idempotency_key
        FROM (VALUES ($1::pg_catalog.text, $2::pg_catalog.text, $3::integer, $4::pg_catalog.text,
            $5::pg_catalog.timestamptz, $6::double precision, $7::integer, $8::double precision, $9::pg_catalog.text,
            $10::pg_catalog.text, $11::pg_catalog.text))
            AS g(name, queue, priority, payload, run_at, delay_s, max_attempts, timeout_s, schedule, dedupe_key,
            idempotency_key)
    ) one
    /* keys */
    ON CONFLICT DO NOTHING
    RETURNING id, name, queue, state
), told AS ({_TOLD})
SELECT id, state, pg_catalog.pg_notify('orchestrator_jobs', queue) AS hint,
    pg_catalog.pg_notify('orchestrator_events', '') AS hinted
FROM made
"""  # noqa: S608 constants
# A key may have been answered by a job that has another.
_INSERT_ONE_KEYED = _INSERT_ONE.replace(
    "/* keys */",
    """WHERE idempotency_key IS NULL OR NOT EXISTS (
        SELECT FROM orchestrator.idempotency_keys k WHERE k.key OPERATOR(pg_catalog.=) one.idempotency_key
            AND k.job_id OPERATOR(pg_catalog.<>) 0
    )""",
)

# Many jobs: where a column is the same for all of them because none was given, NULL stands for the whole array.
_GIVEN = """ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[]),
        pg_catalog.unnest($3::integer[]), pg_catalog.unnest($4::pg_catalog.text[]),
        pg_catalog.unnest($5::pg_catalog.timestamptz[]), pg_catalog.unnest($6::double precision[]),
        pg_catalog.unnest($7::integer[]), pg_catalog.unnest($8::double precision[]),
        pg_catalog.unnest($9::pg_catalog.text[])"""
_NAMES = "name, queue, priority, payload, run_at, delay_s, max_attempts, timeout_s, schedule"
# Nothing can be in their way, and ids are drawn in the order of the rows.
_INSERT = f"""
WITH made AS (
    INSERT INTO orchestrator.jobs ({_COLUMNS})
    SELECT {_VALUES}
    FROM (SELECT g.*, {_DUE} FROM {_GIVEN}) AS g({_NAMES})) given
    RETURNING id, name, queue, state
), told AS ({_TOLD})
SELECT pg_catalog.array_agg(id) AS made, pg_catalog.array_agg(state) AS states,{_HINTS}
"""  # noqa: S608 constants
# Where there are keys: the ids are drawn first, so that those which met a conflict can be told from those which did
# not; and whoever adds the same keys waits for them in the same order.
_INSERT_KEYED = f"""
WITH given AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS created_at, pg_catalog.nextval('orchestrator.jobs_id_seq') AS id, g.*,
        {_DUE}
    FROM {_GIVEN},
        pg_catalog.unnest($10::pg_catalog.text[]), pg_catalog.unnest($11::pg_catalog.text[])) WITH ORDINALITY
        AS g({_NAMES}, dedupe_key, idempotency_key, n)
), made AS (
    INSERT INTO orchestrator.jobs (id, created_at, {_COLUMNS}, dedupe_key, idempotency_key)
    OVERRIDING SYSTEM VALUE
    SELECT id, created_at, {_VALUES}, dedupe_key, idempotency_key
    FROM given
    WHERE idempotency_key IS NULL OR NOT EXISTS (
        SELECT FROM orchestrator.idempotency_keys k WHERE k.key OPERATOR(pg_catalog.=) given.idempotency_key
            AND k.job_id OPERATOR(pg_catalog.<>) 0
    )
    ORDER BY name, dedupe_key, idempotency_key, n
    ON CONFLICT DO NOTHING
    RETURNING id, name, queue, state
), told AS ({_TOLD})
SELECT (SELECT pg_catalog.array_agg(id ORDER BY n) FROM given) AS ids, pg_catalog.array_agg(id) AS made,
    pg_catalog.array_agg(state) AS states,{_HINTS}
"""  # noqa: S608 constants

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


async def _existing(connection: Any, row: Row) -> Enqueued | None:
    record = await connection.fetchrow(_EXISTING, row.name, row.dedupe_key, row.idempotency_key, row.payload)
    if record is None:
        return None
    if not record["same"]:
        raise IdempotencyError(record["id"], row.idempotency_key or "")
    if record["rank"] == _BY_DEDUPE_KEY and row.idempotency_key is not None:
        # The job has another key, or none; the request is answered by it from now on, also when it is finished.
        await connection.execute(_KEEP_KEY, row.idempotency_key, record["id"], row.name, row.payload)
    return Enqueued(record["id"], record["state"], created=False)


_CANCEL = f"""
WITH before AS MATERIALIZED (
    SELECT id, state FROM orchestrator.jobs WHERE id OPERATOR(pg_catalog.=) ANY ($1::bigint[]) AND {_UNFINISHED}
    ORDER BY id FOR NO KEY UPDATE
), changed AS (
    UPDATE orchestrator.jobs j
    SET state = CASE WHEN j.{_RUNNING} THEN 'running' ELSE 'cancelled' END, cancel_requested = (j.{_RUNNING}),
        finished_at = CASE WHEN j.{_RUNNING} THEN NULL ELSE pg_catalog.now() END
    FROM before b WHERE j.id OPERATOR(pg_catalog.=) b.id AND j.{_UNFINISHED}
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, b.state AS was
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, was,
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
WITH before AS MATERIALIZED (
    SELECT id, state FROM orchestrator.jobs WHERE id OPERATOR(pg_catalog.=) $1
    AND state OPERATOR(pg_catalog.=) ANY (ARRAY['failed', 'cancelled', 'scheduled']) FOR NO KEY UPDATE
), changed AS (
    UPDATE orchestrator.jobs j
    SET state = 'queued', run_at = pg_catalog.now(), finished_at = NULL, cancel_requested = false, progress = NULL,
        max_attempts = greatest(j.max_attempts, j.attempt OPERATOR(pg_catalog.+) 1)
    FROM before b WHERE j.id OPERATOR(pg_catalog.=) b.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, b.state AS was
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, was, '{"retried": true}'::pg_catalog.jsonb FROM changed
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
