"""Schedules: cron rows in the database that make jobs. Touches the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import msgspec

from orchestrator.jobs.cron import next_after
from orchestrator.jobs.errors import PayloadError, ScheduleError, ScheduleNotFoundError
from orchestrator.jobs.queue import NewJob, enqueue_many
from orchestrator.jobs.registry import DECLARED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.jobs.queue import Enqueued
    from orchestrator.jobs.registry import Registry


@dataclass(frozen=True, slots=True)
class Schedule:
    """A row of `schedules`, as a caller gives it; `cron` is five fields, read in `timezone`."""

    name: str
    job: str
    cron: str
    timezone: str = "UTC"
    payload: Mapping[str, Any] | None = None
    enabled: bool = True


async def put_schedule(
    connection: Any, schedule: Schedule, *, registry: Registry | None = None, source: Literal["code", "api"] = "api"
) -> bool:
    """Write the row; from then on it is the caller's, and code does not overwrite it. True where it was not there.

    Raises:
        UnknownHandlerError, PayloadError, ScheduleError: nothing was written.
    """
    known = DECLARED if registry is None else registry
    payload = known.get(schedule.job).encode(schedule.payload)
    now = await connection.fetchval(_CLOCK)
    next_run_at = next_after(schedule.cron, schedule.timezone, now)
    # The time that is due next stays where neither its expression nor its zone has changed.
    inserted: bool = await connection.fetchval(
        """
        WITH written AS (
            INSERT INTO orchestrator.schedules AS s (name, job, cron, timezone, payload, enabled, source, next_run_at)
            VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7, $8)
            ON CONFLICT (name) DO UPDATE SET job = excluded.job, cron = excluded.cron, timezone = excluded.timezone,
                payload = excluded.payload, enabled = excluded.enabled, source = excluded.source, updated_at = now(),
                next_run_at = CASE WHEN s.cron = excluded.cron AND s.timezone = excluded.timezone AND s.enabled
                    THEN s.next_run_at ELSE excluded.next_run_at END
            RETURNING xmax = 0 AS inserted
        )
        SELECT inserted, pg_notify('orchestrator_schedules', '') FROM written
        """,
        schedule.name,
        schedule.job,
        schedule.cron,
        schedule.timezone,
        payload,
        schedule.enabled,
        source,
        next_run_at,
    )
    return inserted


_CLOCK = "SELECT orchestrator.clock()"


async def set_enabled(connection: Any, name: str, *, enabled: bool) -> None:
    """Pause the schedule, or let it go on from the next time that lies ahead; from then on it is the caller's.

    Raises:
        ScheduleNotFoundError: there is none of that name.
        ScheduleError: its expression, written by hand, is none; nothing was written.
    """
    row = await connection.fetchrow(
        "SELECT cron, timezone, enabled, next_run_at FROM orchestrator.schedules WHERE name = $1 FOR NO KEY UPDATE",
        name,
    )
    if row is None:
        raise ScheduleNotFoundError(name)
    next_run_at = row["next_run_at"]
    if enabled and not row["enabled"]:
        next_run_at = next_after(row["cron"], row["timezone"], await connection.fetchval(_CLOCK))
    await connection.execute(
        "UPDATE orchestrator.schedules SET enabled = $2, next_run_at = $3, source = 'api', updated_at = now()"
        " WHERE name = $1",
        name,
        enabled,
        next_run_at,
    )
    await connection.execute("SELECT pg_notify('orchestrator_schedules', '')")


async def delete_schedule(connection: Any, name: str) -> bool:
    """Remove the row; False where there is none. One that code declares comes back at the next start: disable that."""
    return await connection.fetchval("DELETE FROM orchestrator.schedules WHERE name = $1 RETURNING true", name) is True


async def trigger_schedule(connection: Any, name: str, *, registry: Registry | None = None) -> Enqueued:
    """Add the schedule's job now, whatever its time, and also where it is disabled; its next time stays.

    While its last job is unfinished it is that one. Call it in a transaction: the schedule's row is locked to its end.

    Raises:
        ScheduleNotFoundError: there is none of that name.
        UnknownHandlerError, PayloadError: its job is not, or no longer, what this process knows.
    """
    # The row first, and then the job's key, as where it fires: two orders would be a deadlock.
    row = await connection.fetchrow(
        "SELECT name, job, payload::text FROM orchestrator.schedules WHERE name = $1 FOR NO KEY UPDATE", name
    )
    if row is None:
        raise ScheduleNotFoundError(name)
    made = (await enqueue_many(connection, [_job_of(row)], registry=registry))[0]
    await connection.execute("UPDATE orchestrator.schedules SET last_job_id = $2 WHERE name = $1", name, made.id)
    return made


def _job_of(row: Mapping[str, Any]) -> NewJob:
    # The key keeps a schedule from piling up jobs while nobody works them off.
    return NewJob(
        row["job"], msgspec.Raw(row["payload"].encode()), schedule=row["name"], dedupe_key=f"schedule:{row['name']}"
    )


async def sync_schedules(connection: Any, registry: Registry) -> None:
    """Write what `@job(schedule=…)` says; rows that a person changed, and handlers without one, are left as they are.

    A handler that has lost its schedule loses the row that code made for it. Nothing is locked where nothing changes.
    """
    now = await connection.fetchval(_CLOCK)
    rows = await connection.fetch("SELECT name, job, cron, timezone, source FROM orchestrator.schedules")
    known = {row["name"]: row for row in rows}
    for handler in registry.handlers.values():
        row = known.get(handler.name)
        if handler.schedule is None:
            if row is not None and (row["job"], row["source"]) == (handler.name, "code"):
                await connection.execute(
                    "DELETE FROM orchestrator.schedules WHERE name = $1 AND job = $1 AND source = 'code'", handler.name
                )
            continue
        if row is not None and (
            row["source"] != "code" or (row["cron"], row["timezone"]) == (handler.schedule, handler.timezone)
        ):
            continue
        await connection.execute(
            """
            INSERT INTO orchestrator.schedules AS s (name, job, cron, timezone, source, next_run_at)
            VALUES ($1, $1, $2, $3, 'code', $4)
            ON CONFLICT (name) DO UPDATE SET cron = excluded.cron, timezone = excluded.timezone,
                next_run_at = excluded.next_run_at, updated_at = now()
            WHERE s.source = 'code' AND (s.cron, s.timezone) IS DISTINCT FROM (excluded.cron, excluded.timezone)
            """,
            handler.name,
            handler.schedule,
            handler.timezone,
            next_after(handler.schedule, handler.timezone, now),
        )


@dataclass(frozen=True, slots=True)
class Fired:
    """What one look at the schedules did: `unusable` are names with the reason why they could not fire.

    `is_put_off` where one is due that could not fire now, as its row or its key is locked by others, or since another
    process takes payloads of its handler that this one does not.
    """

    made: tuple[tuple[str, Enqueued], ...]
    unusable: tuple[tuple[str, str], ...]
    next_in_s: float | None
    is_put_off: bool = False


_BATCH_MAX = 100
# What somebody else's open transaction stands in the way of.
_IN_THE_WAY = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError)

_DUE = """
SELECT name, job, cron, timezone, payload::text AS payload, next_run_at, now, next_run_at <= now AS is_due
FROM orchestrator.schedules, orchestrator.clock() AS now
WHERE enabled AND job = ANY($1::text[]) AND name <> ALL ($2::text[])
    AND (next_run_at <= now OR last_run_at > now + interval '3 hours')
ORDER BY next_run_at LIMIT $3 FOR UPDATE OF schedules SKIP LOCKED
"""

_FIRED = """
UPDATE orchestrator.schedules s SET next_run_at = g.next_run_at, last_run_at = orchestrator.clock(),
    last_job_id = coalesce(g.job_id, s.last_job_id)
FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS g(name, next_run_at, job_id) WHERE s.name = g.name
"""

# Living workers whose handler of that name takes other payloads than this process's.
_READ_BY_OTHERS = """
SELECT EXISTS (
    SELECT FROM orchestrator.workers w, unnest(w.handlers, w.schemas) AS h(name, schema_hash)
    WHERE w.seen_at > clock_timestamp() - make_interval(secs => w.lease_s) AND h.name = $1 AND h.schema_hash <> $2
)
"""


async def fire_due(connection: Any, registry: Registry) -> Fired:
    """Make the jobs whose time has come, once among all replicas; missed times are one job.

    The database's clock decides. A row is locked as it fires, and its next time lies after both the clock and the time
    that it fired for: a clock that is set back fires nothing again. Set back by more than three hours (as in Debian's
    cron, it was wrong before), times are planned anew, lest a schedule wait for a far future. Rows whose handler this
    process does not know, or whose payload it refuses while another process may take it, are left to those that do.

    It commits after each hundred, and passes by what is locked.
    """
    made: list[tuple[str, Enqueued]] = []
    unusable: list[tuple[str, str]] = []
    left: set[str] = set()
    batch_size = _BATCH_MAX
    while True:
        names: list[str] = []
        try:
            async with connection.transaction():
                due = await connection.fetch(_DUE, list(registry.handlers), sorted(left), batch_size)
                names = [row["name"] for row in due]
                fired = await _fire(connection, registry, due, left)
        except _IN_THE_WAY:
            # One of them: found by going on one by one, and left for the next look.
            if batch_size == 1 or not names:
                if not names:
                    break
                left.update(names)
            batch_size = 1
            continue
        made += fired[0]
        unusable += fired[1]
        if len(names) < batch_size:
            break
    next_in_s = await connection.fetchval(
        """
        SELECT extract(epoch FROM min(next_run_at) - orchestrator.clock())::double precision
        FROM orchestrator.schedules WHERE enabled AND job = ANY($1::text[]) AND name <> ALL ($2::text[])
        """,
        list(registry.handlers),
        sorted(left),
    )
    return Fired(tuple(made), tuple(unusable), next_in_s, is_put_off=bool(left))


async def _fire(
    connection: Any, registry: Registry, due: Sequence[Mapping[str, Any]], left: set[str]
) -> tuple[list[tuple[str, Enqueued]], list[tuple[str, str]]]:
    """Fire the rows that are locked in this transaction; names that are left to other processes are added to `left`."""
    unusable: list[tuple[str, str]] = []
    planned: dict[str, Any] = {}
    jobs: dict[str, NewJob] = {}
    for row in due:
        name, handler, job = row["name"], registry.get(row["job"]), _job_of(row)
        # Rows may be written by hand: the others fire all the same, and one that cannot is said once a time.
        try:
            planned_from = max(row["now"], row["next_run_at"]) if row["is_due"] else row["now"]
            planned[name] = next_after(row["cron"], row["timezone"], planned_from)
        except ScheduleError as error:
            planned[name] = None
            unusable.append((name, error.message))
            continue
        if not row["is_due"]:
            continue
        try:
            handler.encode(job.payload)
        except PayloadError as error:
            if await connection.fetchval(_READ_BY_OTHERS, handler.name, handler.schema_hash):
                left.add(name)
                del planned[name]
            else:
                unusable.append((name, error.message))
            continue
        jobs[name] = job
    answers = await enqueue_many(connection, list(jobs.values()), registry=registry) if jobs else []
    made = dict(zip(jobs, answers, strict=True))
    ids = [made[name].id if name in made else None for name in planned]
    await connection.execute(_FIRED, list(planned), list(planned.values()), ids)
    return list(made.items()), unusable
