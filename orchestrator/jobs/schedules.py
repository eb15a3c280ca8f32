"""Schedules: cron rows in the database that make jobs. Touches the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator.jobs.cron import next_after
from orchestrator.jobs.errors import JobError, ScheduleNotFoundError
from orchestrator.jobs.queue import NewJob, enqueue_many
from orchestrator.jobs.registry import DECLARED

if TYPE_CHECKING:
    from collections.abc import Mapping

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


async def delete_schedule(connection: Any, name: str) -> bool:
    """Remove the row; False where there is none. One that code declares comes back at the next start: disable that."""
    return await connection.fetchval("DELETE FROM orchestrator.schedules WHERE name = $1 RETURNING true", name) is True


async def trigger_schedule(connection: Any, name: str, *, registry: Registry | None = None) -> Enqueued:
    """Add the schedule's job now, whatever its time, and also where it is disabled; its next time stays.

    While its last job is unfinished it is that one.

    Raises:
        ScheduleNotFoundError: there is none of that name.
        UnknownHandlerError, PayloadError: its job is not, or no longer, what this process knows.
    """
    row = await connection.fetchrow("SELECT name, job, payload::text FROM orchestrator.schedules WHERE name = $1", name)
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

    A handler that has lost its schedule loses the row that code made for it.
    """
    now = await connection.fetchval(_CLOCK)
    for handler in registry.handlers.values():
        if handler.schedule is None:
            await connection.execute(
                "DELETE FROM orchestrator.schedules WHERE name = $1 AND job = $1 AND source = 'code'", handler.name
            )
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
    """What one look at the schedules did: `unusable` are names with the reason why they could not fire."""

    made: tuple[tuple[str, Enqueued], ...]
    unusable: tuple[tuple[str, str], ...]
    next_in_s: float | None


async def fire_due(connection: Any, registry: Registry) -> Fired:
    """Make the jobs whose time has come, once among all replicas; missed times are one job.

    The database's clock decides. A row is locked as it fires, and its next time lies after both the clock and the time
    that it fired for: a clock that is set back fires nothing again. Set back by more than three hours (as in Debian's
    cron, it was wrong before), times are planned anew, lest a schedule wait for a far future. Rows whose handler this
    process does not know are left to those that do.
    """
    made: list[tuple[str, Enqueued]] = []
    unusable: list[tuple[str, str]] = []
    async with connection.transaction():
        due = await connection.fetch(
            """
            SELECT name, job, cron, timezone, payload::text AS payload, next_run_at, now, next_run_at <= now AS is_due
            FROM orchestrator.schedules, orchestrator.clock() AS now
            WHERE enabled AND job = ANY($1::text[])
                AND (next_run_at <= now OR last_run_at > now + interval '3 hours')
            ORDER BY next_run_at FOR UPDATE OF schedules SKIP LOCKED
            """,
            list(registry.handlers),
        )
        for row in due:
            next_run_at, job = None, None
            try:
                planned_from = max(row["now"], row["next_run_at"]) if row["is_due"] else row["now"]
                next_run_at = next_after(row["cron"], row["timezone"], planned_from)
                if row["is_due"]:
                    job = (await enqueue_many(connection, [_job_of(row)], registry=registry))[0]
                    made.append((row["name"], job))
            except JobError as error:
                # Rows may be written by hand: the others fire all the same, and this one is said once a time.
                unusable.append((row["name"], error.message))
            await connection.execute(
                """
                UPDATE orchestrator.schedules SET next_run_at = $2, last_run_at = orchestrator.clock(),
                    last_job_id = coalesce($3, last_job_id) WHERE name = $1
                """,
                row["name"],
                next_run_at,
                None if job is None else job.id,
            )
    next_in_s = await connection.fetchval(
        """
        SELECT extract(epoch FROM min(next_run_at) - orchestrator.clock())::double precision
        FROM orchestrator.schedules WHERE enabled AND job = ANY($1::text[])
        """,
        list(registry.handlers),
    )
    return Fired(tuple(made), tuple(unusable), next_in_s)
