"""Figures of the queue: jobs by name, queue and state, what ended lately, the workers. Reads the database.

None of them reads the jobs: `job_figures` in the database is kept by the events (`count_jobs`), and is exact.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 msgspec reads the annotations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.jobs.store import Moment, State  # noqa: TC001 as above

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

# How far back the throughput of a queue is told, and by how many seconds what ended is counted (`job_endings`).
_MINUTES = 30
_SLOT_S, _SLOTS_A_MINUTE = 10, 6


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


class NameFigures(msgspec.Struct, frozen=True):
    """Jobs of one name in one queue and state; `oldest_s` is how long the first of them has been due."""

    name: str
    queue: str
    state: State
    count: int
    oldest_s: float | None


# How long the first have been due: of the ids that were drawn first, which is who waits for longest, but for what was
# put off or run again; a look at all that waits would cost as much as there is of it.
_FIRST = 20
_FIGURES = f"""
SELECT f.name, f.queue, f.state, f.count,
    CASE WHEN f.state = 'queued' THEN (
        SELECT extract(epoch FROM clock_timestamp() - min(first.run_at))::float8 FROM (
            SELECT j.run_at FROM orchestrator.jobs j
            WHERE j.name = f.name AND j.state = 'queued' AND j.queue = f.queue AND j.state <> 'running'
            ORDER BY j.id LIMIT {_FIRST}
        ) first
    ) END AS oldest_s
FROM orchestrator.job_figures f WHERE f.count > 0 ORDER BY f.name, f.queue, f.state
"""  # noqa: S608 constants of this file
_ENDED = f"""
SELECT e.queue, ((n.slot - e.slot) / {_SLOTS_A_MINUTE})::int AS minutes_ago, sum(e.count)::bigint AS count
FROM (SELECT floor(extract(epoch FROM clock_timestamp()) / {_SLOT_S})::bigint AS slot) n CROSS JOIN (
    SELECT queue, slot, count FROM orchestrator.job_endings
    UNION ALL
    SELECT queue, floor(extract(epoch FROM at) / {_SLOT_S})::bigint, 1 FROM orchestrator.uncounted_events
    WHERE state IN ('succeeded', 'failed', 'cancelled')
) e
WHERE e.slot > n.slot - {_MINUTES * _SLOTS_A_MINUTE} GROUP BY 1, 2
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
    """Jobs by name, queue and state; and the same by queue."""
    figures = [NameFigures(**row) for row in await connection.fetch(_FIGURES)]
    ended: dict[str, list[int]] = {}
    for row in await connection.fetch(_ENDED):
        minutes_ago = max(row["minutes_ago"], 0)
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
    # The newest slot has just begun.
    newest_s = 60 - _SLOT_S + sampled_at.timestamp() % _SLOT_S
    queues = [
        QueueFigures(name, Counts(**of), oldest.get(name), round(minutes[-1] / newest_s, 3), minutes, paused.get(name))
        for name, of in sorted(counts.items())
        for minutes in [ended.get(name, [0] * _MINUTES)]
    ]
    return Queues(sampled_at, queues, workers)


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


_COUNTED_AT_ONCE = 20_000


async def count_jobs(fetch: Callable[..., Awaitable[Sequence[Any]]], *, recount: bool = False) -> tuple[bool, int]:
    """Count what is told by events and not counted yet; with `recount` by the jobs themselves, however many they are.

    Returns whether there may be more to count, and how many counts were wrong. One process does at a time, the others
    go on; where somebody else has locked the tables, LockNotAvailableError (55P03) after a tenth of a second.
    """
    (row,) = await fetch("SELECT counted, wrong FROM orchestrator.count_jobs($1, $2)", recount, _COUNTED_AT_ONCE)
    return row["counted"] >= _COUNTED_AT_ONCE, row["wrong"]
