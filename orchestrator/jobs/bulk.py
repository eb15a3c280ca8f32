"""Many jobs at once: failures in groups, and what is done to all that a filter lets through. Touches the database.

Whoever acts on a filter says how many jobs it is to be: a list changes while somebody looks at it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from orchestrator.jobs.errors import JobError
from orchestrator.jobs.queue import cancel_many
from orchestrator.jobs.store import FAILURE_KEY, RETRYING, STATES, JobFilter, Moment, State, conditions_of

Action = Literal["retry", "cancel", "discard"]
# What one request may change: a statement locks all that it changes.
BULK_MAX = 10_000
_GROUPED_MAX = 10_000
_GROUPS_MAX = 200

# In which states a job has to be for the action.
APPLIES_TO: dict[Action, tuple[State, ...]] = {
    "retry": ("scheduled", "failed", "cancelled"),
    "cancel": ("scheduled", "queued", "running"),
    "discard": ("succeeded", "failed", "cancelled"),
}


class CountError(JobError):
    """The filter lets through another number of jobs than the caller has seen; nothing was changed."""

    def __init__(self, expected: int, count: int) -> None:
        super().__init__(
            f"the filter now matches {count} jobs, and {expected} were expected",
            remedy="Look at the list again, then send its count.",
            facts={"count": count, "expected": expected},
        )
        self.count = count


class Failures(msgspec.Struct, frozen=True):
    """Failures of one kind: those of one handler whose errors differ in numbers alone.

    `key` is the filter's `failure`. `failed` are given up, `retrying` will be tried again; `message` and `job_id` are
    those of the newest one.
    """

    key: str
    name: str
    error_type: str | None
    message: str | None
    failed: int
    retrying: int
    first_at: Moment
    last_at: Moment
    job_id: Annotated[int, msgspec.Meta(ge=1)]


class FailureGroups(msgspec.Struct, frozen=True):
    """Groups of failures, the newest first, out of the newest `looked_at` jobs that failed or are tried again."""

    groups: list[Failures]
    looked_at: int


class Count(msgspec.Struct, frozen=True):
    """How many jobs the filter lets through; `more` where there are more than were counted."""

    count: int
    more: bool


_FAILURES = f"""
WITH looked_at AS MATERIALIZED (
    (SELECT j.id, j.name, j.state, j.error, j.finished_at AS at FROM orchestrator.jobs j
        WHERE j.state = 'failed' ORDER BY j.id DESC LIMIT {_GROUPED_MAX})
    UNION ALL
    (SELECT j.id, j.name, j.state, j.error, coalesce(j.started_at, j.run_at) FROM orchestrator.jobs j
        WHERE {RETRYING} ORDER BY j.id DESC LIMIT {_GROUPED_MAX})
), keyed AS (
    SELECT j.id, j.name, j.state, j.at, j.error->>'type' AS error_type, left(j.error->>'message', 500) AS message,
        {FAILURE_KEY} AS key
    FROM looked_at j
)
SELECT key, (array_agg(name ORDER BY at DESC, id DESC))[1] AS name,
    (array_agg(error_type ORDER BY at DESC, id DESC))[1] AS error_type,
    (array_agg(message ORDER BY at DESC, id DESC))[1] AS message,
    count(*) FILTER (WHERE state = 'failed') AS failed, count(*) FILTER (WHERE state <> 'failed') AS retrying,
    min(at) AS first_at, max(at) AS last_at, (array_agg(id ORDER BY at DESC, id DESC))[1] AS job_id,
    sum(count(*)) OVER ()::bigint AS looked_at
FROM keyed GROUP BY key ORDER BY max(at) DESC, max(id) DESC LIMIT {_GROUPS_MAX}
"""  # noqa: S608 constants


async def read_failures(connection: Any) -> FailureGroups:
    """What fails now, grouped. It looks at a bounded number of jobs, the newest."""
    rows = [dict(row) for row in await connection.fetch(_FAILURES)]
    looked_at = max((row.pop("looked_at") for row in rows), default=0)
    return FailureGroups([Failures(**row) for row in rows], looked_at)


def _matching(which: JobFilter, action: Action | None) -> tuple[str, list[object]]:
    conditions, arguments = conditions_of(which)
    if action is not None:
        states = ", ".join(f"'{state}'" for state in STATES if state in APPLIES_TO[action])
        conditions.append(f"j.state IN ({states})")
    where = " AND ".join([*conditions, "true"])
    return f"SELECT j.id FROM orchestrator.jobs j WHERE {where} ORDER BY j.id LIMIT {BULK_MAX + 1}", arguments  # noqa: S608 values are parameters


async def count_jobs(connection: Any, which: JobFilter, action: Action | None = None) -> Count:
    """How many jobs the filter lets through, of those that the action applies to; counted up to `BULK_MAX`."""
    text, arguments = _matching(which, action)
    count = await connection.fetchval(f"SELECT count(*) FROM ({text}) found", *arguments)  # noqa: S608 as above
    return Count(min(count, BULK_MAX), count > BULK_MAX)


async def act_on(connection: Any, which: JobFilter, action: Action, expected: int) -> tuple[int, int]:
    """Do that to all that the filter lets through, in this transaction: how many were changed, how many left out.

    Left out of a retry is what has an unfinished sibling with the same dedupe key.

    Raises:
        CountError: it is about another number of jobs than `expected`.
    """
    text, arguments = _matching(which, action)
    ids = [row["id"] for row in await connection.fetch(f"{text} FOR NO KEY UPDATE OF j", *arguments)]
    if len(ids) != expected:
        raise CountError(expected, len(ids))
    if action == "cancel":
        changed = len(await cancel_many(connection, ids))
    else:
        changed = len(await connection.fetch(_RETRY if action == "retry" else _DISCARD, ids))
    return changed, len(ids) - changed


_RETRY = """
WITH held AS (
    SELECT j.id, j.name, j.dedupe_key, j.state,
        row_number() OVER (PARTITION BY j.name, j.dedupe_key ORDER BY j.id DESC) AS nth
    FROM orchestrator.jobs j WHERE j.id = ANY ($1::bigint[])
), chosen AS (
    SELECT h.id, h.state FROM held h
    WHERE h.dedupe_key IS NULL OR h.state = 'scheduled' OR h.nth = 1 AND NOT EXISTS (
        SELECT FROM orchestrator.jobs s WHERE s.name = h.name AND s.dedupe_key = h.dedupe_key
            AND s.state IN ('scheduled', 'queued', 'running')
    )
), changed AS (
    UPDATE orchestrator.jobs j
    SET state = 'queued', run_at = now(), finished_at = NULL, cancel_requested = false, progress = NULL,
        max_attempts = greatest(j.max_attempts, j.attempt + 1)
    FROM chosen c WHERE j.id = c.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, c.state AS was
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, was, '{"retried": true}'::jsonb FROM changed
)
SELECT id, pg_notify('orchestrator_jobs', '') AS hint, pg_notify('orchestrator_events', '') AS hinted FROM changed
"""
_DISCARD = "DELETE FROM orchestrator.jobs WHERE id = ANY ($1::bigint[]) RETURNING id"


async def pause_queue(connection: Any, queue: str) -> bool:
    """Let nobody claim jobs of the queue, whatever there is in it now or later; False where it is paused already."""
    made: bool | None = await connection.fetchval(
        "INSERT INTO orchestrator.paused_queues (queue) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true", queue
    )
    return made is True


async def resume_queue(connection: Any, queue: str) -> bool:
    """Claim its jobs again, at once; False where it is not paused."""
    gone: bool | None = await connection.fetchval(
        "WITH gone AS (DELETE FROM orchestrator.paused_queues WHERE queue = $1 RETURNING true)"
        " SELECT pg_notify('orchestrator_jobs', $1) IS NOT NULL FROM gone",
        queue,
    )
    return gone is True
