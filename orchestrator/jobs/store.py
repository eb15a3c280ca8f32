"""Read the queue: what the API and the metrics show of jobs, logs, queues, workers, schedules. Writes nothing.

The types are what goes over the wire. Times are in UTC; what is JSON in the database travels as its own text.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("scheduled", "queued", "running", "succeeded", "failed", "cancelled")
PAGE_MAX = 200
ID_MAX = 2**63 - 1

Id = Annotated[int, msgspec.Meta(ge=1, le=ID_MAX)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]

# An error's message in a list; GET /api/jobs/{id} has all of it.
_MESSAGE_MAX = 500
# Of one job: an answer stays bounded whatever a handler returns. What is above is told by name, not sent.
_OUTPUT_MAX_BYTES = 1 << 20
_ATTEMPTS_MAX = 100
# How far back the throughput of a queue is told.
_MINUTES = 30


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


class Counts(msgspec.Struct, frozen=True):
    """Jobs by state; finished ones as long as they are kept."""

    scheduled: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class QueueFigures(msgspec.Struct, frozen=True):
    """One queue; nobody claims its jobs where it has been paused since `paused_at`.

    `oldest_queued_s` is the age of the job that has been due for longest, null where none waits.

    `throughput_per_s` counts the jobs that ended in the last minute, `ended_per_minute` those of the last 30 minutes,
    oldest first.
    """

    name: str
    counts: Counts
    oldest_queued_s: float | None
    throughput_per_s: float
    ended_per_minute: list[int]
    paused_at: Moment | None = None


class Worker(msgspec.Struct, frozen=True):
    """One process that runs jobs; `is_alive` where it was heard of within its lease."""

    id: str
    host: str
    pid: int
    version: str
    started_at: Moment
    seen_at: Moment
    concurrency: int
    running: int
    handlers: list[str]
    is_alive: bool


class Queues(msgspec.Struct, frozen=True):
    """All queues and workers, as they were at `sampled_at`."""

    sampled_at: Moment
    queues: list[QueueFigures]
    workers: list[Worker]


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
    left(j.error->>'message', {_MESSAGE_MAX}) AS error_message
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
        SELECT * FROM orchestrator.job_attempts WHERE job_id = j.id ORDER BY attempt DESC LIMIT {_ATTEMPTS_MAX}
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


def _utc(moment: datetime) -> datetime:
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


_PARTS = ("j.finished_at IS NOT NULL", *(f"j.state = '{state}'" for state in ("scheduled", "queued", "running")))


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
        ("created_at", ">=", None if which.since is None else _utc(which.since)),
        ("id", "<", before),
    ):
        if value is not None:
            arguments.append(value)
            conditions.append(f"j.{column} {comparison} ${len(arguments)}")
    return conditions, arguments


async def read_jobs(connection: Any, which: JobFilter, *, before: int | None, limit: int) -> JobPage:
    """A page of `limit` jobs, the newest first; `before` is the last page's `next_cursor`."""
    conditions, arguments = conditions_of(which, before)
    # What has ended and what has not are found by indexes of their own, and merged: each is a page at most.
    is_narrow = which.state is None and any((which.name, which.queue, which.schedule))
    parts = _PARTS if is_narrow else ("true",)
    selects = [
        f"(SELECT {SUMMARY} FROM orchestrator.jobs j WHERE {' AND '.join([part, *conditions])}"  # noqa: S608 columns and operators are constants, values are parameters
        f" ORDER BY j.id DESC LIMIT ${len(arguments) + 1})"
        for part in parts
    ]
    rows = await connection.fetch(
        f"SELECT * FROM ({' UNION ALL '.join(selects)}) found ORDER BY id DESC LIMIT ${len(arguments) + 1}",  # noqa: S608 as above
        *arguments,
        limit + 1,
    )
    jobs = [JobSummary(**fields_of(row)) for row in rows[:limit]]
    return JobPage(jobs, str(jobs[-1].id) if len(rows) > limit else None)


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


class NameFigures(msgspec.Struct, frozen=True):
    """Jobs of one name in one queue and state; `oldest_s` is how long the first of them has been due."""

    name: str
    queue: str
    state: State
    count: int
    oldest_s: float | None


# The unfinished by their partial indexes, the finished by one pass: what is kept of them is what costs here.
_FIGURES = """
SELECT name, queue, state, count(*)::bigint AS count,
    CASE WHEN state = 'queued' THEN extract(epoch FROM clock_timestamp() - min(run_at))::float8 END AS oldest_s
FROM orchestrator.jobs GROUP BY name, queue, state ORDER BY name, queue, state
"""
# By now(), which is stable: with clock_timestamp() no index would serve.
_ENDED = f"""
SELECT queue, floor(extract(epoch FROM now() - finished_at) / 60)::int AS minutes_ago, count(*)::bigint AS count
FROM orchestrator.jobs WHERE finished_at > now() - interval '{_MINUTES} minutes' GROUP BY 1, 2
"""  # noqa: S608 constants of this file
_WORKERS = """
SELECT id, host, pid, version, started_at, seen_at, concurrency, running, handlers,
    seen_at > clock_timestamp() - make_interval(secs => lease_s) AS is_alive
FROM orchestrator.workers ORDER BY id
"""


_PAUSED = "SELECT queue, paused_at FROM orchestrator.paused_queues"


async def read_workers(connection: Any) -> list[Worker]:
    """Every worker that is known."""
    return [Worker(**row) for row in await connection.fetch(_WORKERS)]


async def read_sample(connection: Any) -> tuple[list[NameFigures], Queues]:
    """Jobs by name, queue and state; and the same by queue. One pass over all jobs kept: not for each request."""
    figures = [NameFigures(**row) for row in await connection.fetch(_FIGURES)]
    ended: dict[str, list[int]] = {}
    for row in await connection.fetch(_ENDED):
        # What ended between the statement's begin and its snapshot is of now.
        minutes_ago = min(max(row["minutes_ago"], 0), _MINUTES - 1)
        ended.setdefault(row["queue"], [0] * _MINUTES)[_MINUTES - 1 - minutes_ago] += row["count"]
    workers = await read_workers(connection)
    paused = {row["queue"]: row["paused_at"] for row in await connection.fetch(_PAUSED)}
    return figures, queues_of(figures, ended, workers, await connection.fetchval("SELECT clock_timestamp()"), paused)


_NOTHING_PAUSED: Mapping[str, datetime] = MappingProxyType({})


def queues_of(
    figures: Sequence[NameFigures],
    ended: Mapping[str, list[int]],
    workers: list[Worker],
    sampled_at: datetime,
    paused: Mapping[str, datetime] = _NOTHING_PAUSED,
) -> Queues:
    """Figures by name as figures by queue; `ended` are the jobs that ended in each minute, oldest first."""
    counts: dict[str, dict[str, int]] = {name: {} for name in paused}
    oldest: dict[str, float] = {}
    for figure in figures:
        of = counts.setdefault(figure.queue, {})
        of[figure.state] = of.get(figure.state, 0) + figure.count
        if figure.oldest_s is not None:
            oldest[figure.queue] = max(0.0, figure.oldest_s, oldest.get(figure.queue, 0.0))
    queues = [
        QueueFigures(name, Counts(**of), oldest.get(name), round(minutes[-1] / 60, 3), minutes, paused.get(name))
        for name, of in sorted(counts.items())
        for minutes in [ended.get(name, [0] * _MINUTES)]
    ]
    return Queues(sampled_at, queues, workers)


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
        _utc(moment),
    )
    return found


class ResultRow(msgspec.Struct, frozen=True):
    """A job that runs or has ended, in short. `at` is when it ended, else when it began; `error` is the message."""

    id: int
    name: str
    state: State
    output: Any
    error: str | None
    processing_ms: int | None
    at: datetime


_RESULT_STATES = {"processing": "'running'", "completed": "'succeeded'", "failed": "'failed', 'cancelled'"}


async def read_results(
    connection: Any, *, status: Literal["processing", "completed", "failed"] | None, name: str | None, limit: int
) -> list[ResultRow]:
    """Jobs that run or have ended, the newest first; outputs above 64 KiB are left out."""
    states = _RESULT_STATES[status] if status else ", ".join(_RESULT_STATES.values())
    rows = await connection.fetch(
        f"""
        SELECT id, name, state,
            CASE WHEN octet_length(output::text) <= 65536 THEN output::text END AS output,
            left(error->>'message', {_MESSAGE_MAX}) AS error,
            least(extract(epoch FROM finished_at - started_at) * 1000, 3600000)::bigint AS processing_ms,
            coalesce(finished_at, started_at, created_at) AS at
        FROM orchestrator.jobs WHERE state IN ({states}) {"AND name = $2" if name else ""} ORDER BY id DESC LIMIT $1
        """,  # noqa: S608 the states are constants of this file
        limit,
        *([name] if name else []),
    )
    return [ResultRow(**fields_of({**row, "error": None}) | {"error": row["error"]}) for row in rows]


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


# Two seconds behind the clock: what ends stands in its row a moment before its transaction can be seen.
_RUNS = """
SELECT name, state, width_bucket(seconds, $4::float8[])::integer AS bucket, count(*)::bigint AS count,
    sum(seconds)::float8 AS total_s
FROM (
    SELECT name, state, greatest(extract(epoch FROM finished_at - started_at), 0)::float8 AS seconds
    FROM orchestrator.jobs
    WHERE finished_at > $2 AND finished_at <= $3 AND worker = $1 AND started_at IS NOT NULL
) ended GROUP BY 1, 2, 3
"""


async def read_runs(
    connection: Any, worker_id: str, *, since: datetime | None, bounds: Sequence[float]
) -> tuple[datetime, list[tuple[str, str, int, int, float]]]:
    """Rows (name, state, bucket, count, seconds) of what ended in one worker after `since`, and until when they count.

    The first time (None) there is nothing to count: a worker's id is as old as its process.
    """
    until = await connection.fetchval("SELECT clock_timestamp() - interval '2 seconds'")
    rows = [] if since is None else await connection.fetch(_RUNS, worker_id, since, until, list(bounds))
    return until, [tuple(row) for row in rows]
