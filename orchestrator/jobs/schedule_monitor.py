"""Whether scheduled work is done: runs that fail, and backups that grow old, stand on `/health` until they are mended.

Nobody waits for a scheduled job, so nobody would notice that it fails. Reads the database and BACKUP_DIR, on a timer
and soon after a job has failed here; a scrape and a probe read memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.backup.archive import try_directory
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.jobs.cron import next_after
from orchestrator.jobs.errors import JobError
from orchestrator.threads import DaemonThreads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from orchestrator.lifecycle import Event, Lifecycle

_EVERY_S = 30.0
_TIMEOUT_S = 10.0
# What failed here is written to the database a moment after the event.
_SOON_S = 2.0
_DIRECTORY_TIMEOUT_S = 3.0
_BACKUP = "database.backup"
_MESSAGE_MAX = 500
# A backup may be late by one turn before it is called stale.
_TURNS = 2

_SCHEDULES = f"""
SELECT s.name, s.job, s.cron, s.timezone, s.created_at, orchestrator.clock() AS now, good.finished_at AS succeeded_at,
    bad.finished_at AS failed_at, bad.id AS failed_id, bad.error ->> 'type' AS error_type,
    pg_catalog.left(bad.error ->> 'message', {_MESSAGE_MAX}) AS error, retried.id AS retried_id, retried.run_at,
    retried.error_type AS retried_type, retried.error AS retried_error
FROM orchestrator.schedules s
LEFT JOIN LATERAL (
    SELECT j.finished_at FROM orchestrator.jobs j WHERE j.schedule = s.name AND j.state = 'succeeded'
    ORDER BY j.id DESC LIMIT 1
) good ON true
LEFT JOIN LATERAL (
    SELECT j.id, j.finished_at, j.error FROM orchestrator.jobs j WHERE j.schedule = s.name AND j.state = 'failed'
    ORDER BY j.id DESC LIMIT 1
) bad ON true
LEFT JOIN LATERAL (
    SELECT j.id, j.run_at, a.error ->> 'type' AS error_type,
        pg_catalog.left(a.error ->> 'message', {_MESSAGE_MAX}) AS error
    FROM orchestrator.jobs j CROSS JOIN LATERAL (
        SELECT a.error, a.outcome FROM orchestrator.job_attempts a WHERE a.job_id = j.id ORDER BY a.attempt DESC LIMIT 1
    ) a
    WHERE j.id = s.last_job_id AND j.state IN ('scheduled', 'queued', 'running')
    AND a.outcome IN ('failed', 'timed_out', 'lost')
) retried ON true
WHERE s.enabled ORDER BY s.name
"""  # noqa: S608 a number
_NEWEST = "SELECT taken_at, size_bytes FROM orchestrator.backups ORDER BY taken_at DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class Scheduled:
    """How the runs of one schedule have gone; None where there was none of the kind, or none is kept."""

    name: str
    succeeded_at: datetime | None
    failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Monitored:
    """What the newest look found."""

    schedules: tuple[Scheduled, ...] = ()
    backup_at: datetime | None = None
    backup_size_bytes: int = 0


async def try_backup_directory(directory: Path, life: Lifecycle) -> None:
    """Write a file there and remove it again; a warning stands on `/health` while that is not possible. Bounded."""
    trying = asyncio.get_running_loop().run_in_executor(DaemonThreads(), try_directory, directory)
    try:
        async with asyncio.timeout(_DIRECTORY_TIMEOUT_S):
            problem = await trying
    except TimeoutError:
        problem = f"{directory} does not answer within {_DIRECTORY_TIMEOUT_S:g} s"
    if problem is None:
        if life.no_longer("backup.directory_unusable", str(directory)):
            life.emit("backup.directory_usable", directory=str(directory))
        return
    life.warn_about(
        "backup.directory_unusable",
        str(directory),
        error=problem,
        hint="No backup can be made. Make BACKUP_DIR a directory that this user may write (in a container, a volume).",
    )


class ScheduleMonitor:
    """Looks on a timer, and keeps what it found."""

    def __init__(self, pool: Any, life: Lifecycle, backup_dir: Path | None) -> None:
        self.found = Monitored()
        self._pool, self._life, self._backup_dir = pool, life, backup_dir
        self._failed_here = asyncio.Event()
        self._standing: dict[tuple[str, str], dict[str, object]] = {}

    async def run(self) -> None:
        """Look, for ever. Ends only by cancellation."""
        stop_listening = self._life.listen(self._listen)
        try:
            while True:
                # The monitor of the database tells of one that is lost.
                with contextlib.suppress(*CONNECTION_ERRORS, TimeoutError):
                    async with asyncio.timeout(_TIMEOUT_S):
                        await self._look()
                if self._backup_dir is not None:
                    await try_backup_directory(self._backup_dir, self._life)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY_S):
                        await self._failed_here.wait()
                    await asyncio.sleep(_SOON_S)
                self._failed_here.clear()
        finally:
            stop_listening()

    def _listen(self, event: Event) -> None:
        if event.name in {"job.failed", "job.taken_over"}:
            self._failed_here.set()

    async def _look(self) -> None:
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(_SCHEDULES)
            newest = await connection.fetchrow(_NEWEST)
        self.found = Monitored(
            tuple(Scheduled(row["name"], row["succeeded_at"], row["failed_at"]) for row in rows),
            newest and newest["taken_at"],
            newest["size_bytes"] if newest else 0,
        )
        standing = {**_failing(rows), **_stale(rows, self.found.backup_at)}
        for event, subject in self._standing.keys() - standing.keys():
            self._life.no_longer(event, subject)
            self._life.emit("backup.caught_up" if event == "backup.stale" else "schedule.recovered", subject=subject)
        for (event, subject), facts in standing.items():
            self._life.warn_about(event, subject, **facts)
        self._standing = standing


def _failing(rows: Sequence[Any]) -> dict[tuple[str, str], dict[str, object]]:
    """The schedules whose newest run failed, or is about to be tried again."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        facts: dict[str, object] = {"schedule": row["name"], "job": row["job"]}
        if row["retried_id"] is not None:
            facts |= {
                "state": "retrying",
                "job_id": row["retried_id"],
                "error_type": row["retried_type"],
                "error": row["retried_error"],
                "next_try_at": row["run_at"].isoformat(timespec="seconds"),
            }
        elif row["failed_at"] is not None and (row["succeeded_at"] is None or row["succeeded_at"] < row["failed_at"]):
            facts |= {
                "state": "failed",
                "job_id": row["failed_id"],
                "error_type": row["error_type"],
                "error": row["error"],
                "failed_at": row["failed_at"].isoformat(timespec="seconds"),
            }
        else:
            continue
        facts["hint"] = f"{row['error_type'] or facts['error_type']}: {facts['error']}"
        found["schedule.failing", row["name"]] = facts
    return found


def _stale(rows: Sequence[Any], newest: datetime | None) -> dict[tuple[str, str], dict[str, object]]:
    """The schedule of backups, where the newest good one is older than two of its turns."""
    for row in rows:
        if row["job"] != _BACKUP:
            continue
        since = max(row["created_at"], newest) if newest else row["created_at"]
        with contextlib.suppress(JobError):  # a row that a person wrote by hand: firing it says so
            first = next_after(row["cron"], row["timezone"], row["now"])
            turn_s = (next_after(row["cron"], row["timezone"], first) - first).total_seconds()
            if (row["now"] - since).total_seconds() > _TURNS * turn_s:
                facts: dict[str, object] = {
                    "schedule": row["name"],
                    "newest_backup_at": newest and newest.isoformat(timespec="seconds"),
                    "hint": "The newest good backup is older than two turns of its schedule. The job's log says why.",
                }
                return {("backup.stale", row["name"]): facts}
    return {}
