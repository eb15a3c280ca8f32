"""Read the queue: what the API and the metrics show of jobs, logs, queues, workers, schedules. Writes nothing.

The types are what goes over the wire. Times are in UTC; what is JSON in the database travels as its own text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("scheduled", "queued", "running", "succeeded", "failed", "cancelled")
PAGE_MAX = 200
ID_MAX = 2**63 - 1

Id = Annotated[int, msgspec.Meta(ge=1, le=ID_MAX)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]

# An error's message in a list; GET /api/jobs/{id} has all of it.
MESSAGE_MAX = 500
# Of one job: an answer stays bounded whatever a handler returns. What is above is told by name, not sent.
_OUTPUT_MAX_BYTES = 1 << 20
_ATTEMPTS_MAX = 100


class JobSummary(msgspec.Struct, frozen=True):
    """A job in a list: everything but what can be large."""

    id: Id
    name: str
    queue: str
    state: State
    priority: int
    attempt: int
    max_attempts: int
    run_at: Moment
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    timeout_s: float | None
    cancel_requested: bool
    worker: str | None
    dedupe_key: str | None
    schedule: str | None
    progress: Any
    error_message: str | None


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that has ended. `outcome`: lost is a worker that fell silent, interrupted one that was stopped."""

    attempt: int
    outcome: Literal["succeeded", "failed", "timed_out", "cancelled", "lost", "interrupted"]
    worker: str | None
    started_at: Moment | None
    finished_at: Moment
    error: Any


class JobChange(msgspec.Struct, frozen=True):
    """A request through the API that made or changed a job: `by` is the name of the token that it showed."""

    at: Moment
    by: str
    address: str
    method: str
    path: str


class Job(JobSummary, frozen=True):
    """One job, whole. `error` is the last attempt's; the newest 100 attempts are in `attempts`, oldest first.

    `changes` are the requests that asked for it and changed it, of the last 90 days.
    """

    payload: Any
    output: Any
    error: Any
    lease_until: Moment | None
    attempts: list[Attempt]
    changes: list[JobChange]


class JobPage(msgspec.Struct, frozen=True):
    """Newest first; `next_cursor` asks for the page after this one, null at the end."""

    jobs: list[JobSummary]
    next_cursor: str | None


class LogLine(msgspec.Struct, frozen=True):
    """One line that a handler logged."""

    id: Id
    attempt: int
    at: Moment
    level: str
    event: str
    facts: Any


class LogPage(msgspec.Struct, frozen=True):
    """Oldest first; `next_cursor` asks for what comes after these lines, null where there is no more for now."""

    job_id: Id
    state: State
    lines: list[LogLine]
    next_cursor: str | None


class ScheduleRow(msgspec.Struct, frozen=True):
    """One schedule. `source`: code follows `@job(schedule=…)`, api is what a person changed.

    `last_run_at` is when its time came last; `last_job_*` are about its newest job, whoever asked for that: None where
    there is none, or it is no longer kept.
    """

    name: str
    job: str
    cron: str
    timezone: str
    payload: Any
    enabled: bool
    source: Literal["code", "api"]
    next_run_at: Moment | None
    last_run_at: Moment | None
    last_job_id: int | None
    last_job_state: State | None
    last_job_at: Moment | None
    created_at: Moment
    updated_at: Moment


# `$` of Python matches before a last line break, that of JSON Schema does not: the look-ahead makes them one.
# No handler, queue or schedule has another name; NUL, which Postgres refuses, is none of these.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,99}$(?!\n)"
Name = Annotated[str, msgspec.Meta(pattern=NAME)]


class JobFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs: every member that is given must hold.

    `since` is about when they were added. `retrying` are those that failed and wait for their next attempt. `failure`
    is the key of a group of failures.
    """

    state: State | None = None
    name: Name | None = None
    queue: Name | None = None
    schedule: Name | None = None
    since: Moment | None = None
    retrying: bool | None = None
    failure: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")] | None = None


SUMMARY = f"""
    j.id, j.name, j.queue, j.state, j.priority, j.attempt, j.max_attempts, j.run_at, j.created_at, j.started_at,
    j.finished_at, j.timeout_s, j.cancel_requested, j.worker, j.dedupe_key, j.schedule, j.progress::text AS progress,
    left(j.error->>'message', {MESSAGE_MAX}) AS error_message
"""
_JOB = f"""
SELECT {SUMMARY}, j.payload::text AS payload, j.error::text AS error,
    CASE WHEN j.state = 'running' THEN (
        SELECT w.seen_at + make_interval(secs => w.lease_s) FROM orchestrator.workers w WHERE w.id = j.worker
    ) END AS lease_until,
    CASE WHEN octet_length(j.output::text) > {_OUTPUT_MAX_BYTES}
        THEN jsonb_build_object('left_out', 'the output is larger than 1 MiB')::text
        ELSE j.output::text END AS output,
    (SELECT coalesce(jsonb_agg(to_jsonb(a) - 'job_id' ORDER BY a.attempt), '[]'::jsonb)::text FROM (
        SELECT * FROM orchestrator.attempts WHERE job_id = j.id ORDER BY attempt DESC LIMIT {_ATTEMPTS_MAX}
    ) a) AS attempts,
    (SELECT coalesce(jsonb_agg(to_jsonb(c) ORDER BY c.at), '[]'::jsonb)::text FROM (
        SELECT changed_at AS at, token AS by, address, method, path FROM orchestrator.api_changes
        WHERE facts->>'job' = j.id::text ORDER BY id DESC LIMIT {_ATTEMPTS_MAX}
    ) c) AS changes
FROM orchestrator.jobs j WHERE j.id = $1
"""  # noqa: S608 constants of this file
_JSON = frozenset({"payload", "output", "error", "progress", "facts"})


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.Raw(text.encode())


def fields_of(row: Any) -> dict[str, Any]:
    """A row's columns by name, what is JSON in it as its own text."""
    return {name: _json(value) if name in _JSON else value for name, value in row.items()}


def in_utc(moment: datetime) -> datetime:
    """The moment in UTC; one that no year of ours holds in UTC is the nearest that does."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _FIRST if moment.year == 1 else _LAST


_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


async def read_job(connection: Any, job_id: int) -> Job | None:
    """The job of that id, or None."""
    row = await connection.fetchrow(_JOB, job_id)
    if row is None:
        return None
    fields = fields_of(row)
    fields["attempts"] = msgspec.json.decode(row["attempts"], type=list[Attempt])
    fields["changes"] = msgspec.json.decode(row["changes"], type=list[JobChange])
    return Job(**fields)


RETRYING = "j.attempt > 0 AND j.state IN ('scheduled', 'queued') AND j.error IS NOT NULL"
# Failures that differ in numbers alone are the same one.
FAILURE_KEY = """left(encode(sha256(convert_to(concat_ws(E'\\n', j.name, j.error->>'type',
    regexp_replace(left(j.error->>'message', 300), '[0-9]+', '#', 'g')), 'UTF8')), 'hex'), 16)"""


def conditions_of(which: JobFilter, before: int | None = None) -> tuple[list[str], list[object]]:
    """Conditions on `jobs j` for the filter, and their arguments from $1 on; `before` is an id that all lie below."""
    conditions: list[str] = []
    arguments: list[object] = []
    if which.state is not None:
        # A literal out of STATES, so that the partial indexes serve.
        conditions.append(f"j.state = '{STATES[STATES.index(which.state)]}'")
    if which.retrying is not None:
        conditions.append(RETRYING if which.retrying else f"({RETRYING}) IS NOT TRUE")
    if which.failure is not None:
        arguments.append(which.failure)
        conditions.append(f"j.error IS NOT NULL AND {FAILURE_KEY} = ${len(arguments)}")
    for column, comparison, value in (
        ("name", "=", which.name),
        ("queue", "=", which.queue),
        ("schedule", "=", which.schedule),
        ("created_at", ">=", None if which.since is None else in_utc(which.since)),
        ("id", "<", before),
    ):
        if value is not None:
            arguments.append(value)
            conditions.append(f"j.{column} {comparison} ${len(arguments)}")
    return conditions, arguments


async def read_log(connection: Any, job_id: int, *, after: int, limit: int) -> LogPage | None:
    """A page of the job's lines after the line `after`; None where there is no such job."""
    state = await connection.fetchval("SELECT state FROM orchestrator.jobs WHERE id = $1", job_id)
    if state is None:
        return None
    rows = await connection.fetch(
        "SELECT id, attempt, at, level, event, facts::text AS facts FROM orchestrator.job_logs"
        " WHERE job_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        job_id,
        after,
        limit + 1,
    )
    lines = [LogLine(**fields_of(row)) for row in rows[:limit]]
    return LogPage(job_id, state, lines, str(lines[-1].id) if len(rows) > limit else None)


_SCHEDULE = """
SELECT s.name, s.job, s.cron, s.timezone, s.payload::text AS payload, s.enabled, s.source, s.next_run_at,
    s.last_run_at, s.last_job_id, j.state AS last_job_state, coalesce(j.started_at, j.created_at) AS last_job_at,
    s.created_at, s.updated_at
FROM orchestrator.schedules s LEFT JOIN orchestrator.jobs j ON j.id = s.last_job_id
"""


async def read_schedules(connection: Any) -> list[ScheduleRow]:
    """All schedules, by name."""
    return [ScheduleRow(**fields_of(row)) for row in await connection.fetch(f"{_SCHEDULE} ORDER BY s.name")]


async def read_schedule(connection: Any, name: str) -> ScheduleRow | None:
    """The schedule of that name, or None."""
    row = await connection.fetchrow(f"{_SCHEDULE} WHERE s.name = $1", name)
    return None if row is None else ScheduleRow(**fields_of(row))


class EventRow(msgspec.Struct, frozen=True):
    """One row of `job_events`; `facts` decoded, None where there are none or they are above 16 KiB."""

    id: int
    at: datetime
    job_id: int
    attempt: int
    name: str
    queue: str
    kind: str
    state: str | None
    facts: Any


# In one statement, and so in one snapshot: an event that was late is never told after one that it caused. Gap by gap
# (LATERAL), since as a join the planner reads all that is older than the newest gap.
_EVENTS = """
SELECT id, at, job_id, attempt, name, queue, kind, state,
    CASE WHEN octet_length(facts::text) <= 16384 THEN facts::text END AS facts
FROM (
    (SELECT e.* FROM unnest($1::bigint[], $2::bigint[]) AS g(low, high) CROSS JOIN LATERAL (
        SELECT * FROM orchestrator.job_events WHERE id >= g.low AND id <= g.high ORDER BY id LIMIT $4
    ) e)
    UNION ALL
    (SELECT * FROM orchestrator.job_events WHERE id > $3 AND id <= $5 ORDER BY id LIMIT $4)
) found ORDER BY id LIMIT $4
"""


async def read_events(
    connection: Any, *, after: int, gaps: Sequence[tuple[int, int]], limit: int, until: int = ID_MAX
) -> list[EventRow]:
    """The first `limit` events, by id, that lie in a gap, or after `after` and not after `until`."""
    lows, highs = [low for low, _ in gaps], [high for _, high in gaps]
    rows = await connection.fetch(_EVENTS, lows, highs, after, limit, until)
    return [
        EventRow(**{**row, "facts": None if row["facts"] is None else msgspec.json.decode(row["facts"])})
        for row in rows
    ]


# What runs now may have drawn numbers that are not to be seen yet. Of the newest ids, so that a long history costs
# nothing; where there are more holes than can be told, the newest: an older one is of a transaction that has been open
# for that long.
_HOLES = """
SELECT low, high FROM (
    SELECT lag(id, 1, $1::bigint) OVER (ORDER BY id) + 1 AS low, id - 1 AS high
    FROM (SELECT id FROM orchestrator.job_events WHERE id > $1 ORDER BY id) newest
) holes WHERE low <= high ORDER BY low DESC LIMIT $2
"""
_NEWEST_IDS = 100_000


async def read_newest_position(connection: Any, *, gaps_max: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The highest id that is visible, and the ranges below it that running transactions may still fill."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            "SELECT coalesce((SELECT max(id) FROM orchestrator.job_events), 0) AS last,"
            " pg_snapshot_xmin(s) = pg_snapshot_xmax(s) AS is_quiet FROM pg_current_snapshot() s"
        )
        if row["is_quiet"]:
            return row["last"], ()
        holes = await connection.fetch(_HOLES, max(0, row["last"] - _NEWEST_IDS), gaps_max // 2)
    return row["last"], tuple((hole["low"], hole["high"]) for hole in reversed(holes))


async def read_first_event_since(connection: Any, moment: datetime) -> int | None:
    """The lowest id of an event at or after that moment, None where there is none; by the index over `at`."""
    # Materialized, since min() over the primary key would read all that is older.
    found: int | None = await connection.fetchval(
        "WITH recent AS MATERIALIZED (SELECT id FROM orchestrator.job_events WHERE at >= $1)"
        " SELECT min(id) FROM recent",
        in_utc(moment),
    )
    return found


async def read_unfinished_ids(
    connection: Any, name: str, *, server_id: int | None, after: int, limit: int
) -> list[int]:
    """Ids above `after` of the unfinished jobs of one handler, those of one `serverId` in the payload where given."""
    rows = await connection.fetch(
        "SELECT id FROM orchestrator.jobs WHERE name = $1 AND state IN ('scheduled', 'queued', 'running') AND id > $3"
        " AND ($2::text IS NULL OR payload->>'serverId' = $2) ORDER BY id LIMIT $4",
        name,
        None if server_id is None else str(server_id),
        after,
        limit,
    )
    return [row["id"] for row in rows]
