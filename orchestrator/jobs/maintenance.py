"""Take over what workers that are gone had claimed, keep the counts of jobs, and say what slows the queue down.

Touches the database.

A worker is gone when its lease is over by the database's clock, and this process has watched that for a third of a
lease: at each look, a moment apart, the worker's row was there, not renewed, and not locked by anybody. What interrupts
the watching (the server was away, or this process was; the row is locked) begins it anew. So a living worker has had
the time to renew after every interruption, whoever looks first, and however new that process is.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.jobs.figures import count_jobs
from orchestrator.jobs.session import keep_session, limit_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.jobs.parameters import WorkerParameters
    from orchestrator.jobs.session import Session

_LOOKS_A_LEASE = 12
_LOOK_MOST_S, _LOOK_LEAST_S = 5.0, 0.05
_WATCH_SHARE = 3
_WATCHED_LOOK_S = 0.5
_FORGET_EVERY_S = 600.0
_COUNT_EVERY_S, _COUNTS_MOST = 2.0, 10
_NOT_COUNTED_EVERY_S = 300.0
_HORIZON_EVERY_S = 30.0
_HORIZON_OLD_S = 60.0
_GIVE_BACK_AGAIN_S = 0.05

# The lock that a renewal takes, and the row's own: where one is held by others, the worker may be waiting for it, too.
_LOCK_TABLE = "LOCK TABLE orchestrator.workers IN ROW EXCLUSIVE MODE NOWAIT"
_SILENT = """
SELECT w.id, w.seen_at, w.lease_s, w.seen_at < clock_timestamp() - make_interval(secs => w.lease_s) AS is_over
FROM orchestrator.workers w
WHERE w.seen_at < clock_timestamp() - make_interval(secs => w.lease_s * 2 / 3)
    AND EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'running' AND j.worker = w.id)
ORDER BY w.id FOR NO KEY UPDATE SKIP LOCKED
"""
# What no worker's row stands for: a row that was deleted by hand, or with a backup's restore.
_ORPHANS = """
SELECT DISTINCT j.worker AS id FROM orchestrator.jobs j
WHERE j.state = 'running' AND j.worker IS NOT NULL
    AND NOT EXISTS (SELECT FROM orchestrator.workers w WHERE w.id = j.worker)
"""

_TAKE_OVER = """
WITH gone AS (
    UPDATE orchestrator.workers w SET taken_over = taken_over + 1
    WHERE w.id IN (
        SELECT o.id FROM orchestrator.workers o WHERE o.id = $1 AND o.seen_at = $2
            AND o.seen_at < clock_timestamp() - make_interval(secs => o.lease_s)
        FOR NO KEY UPDATE SKIP LOCKED
    )
    RETURNING w.id
), expired AS (
    SELECT j.id FROM orchestrator.jobs j
    WHERE j.state = 'running' AND j.worker = $1 AND (
        EXISTS (SELECT FROM gone)
        OR $2::timestamptz IS NULL AND NOT EXISTS (SELECT FROM orchestrator.workers w WHERE w.id = $1)
    )
    ORDER BY j.id LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN cancel_requested THEN 'cancelled'
            WHEN attempt >= max_attempts THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested OR attempt >= max_attempts THEN now() END,
        run_at = CASE WHEN cancel_requested OR attempt >= max_attempts THEN run_at ELSE now() END,
        error = jsonb_build_object('type', 'WorkerLost', 'trace', NULL, 'message',
            'the worker ' || worker || ' fell silent for longer than its lease')
    FROM expired WHERE j.id = expired.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, j.worker, j.started_at, j.error
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome, error)
    SELECT id, attempt, worker, started_at, 'lost', error FROM changed
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, 'running', jsonb_build_object('lost', worker) FROM changed
)
SELECT id, attempt, name, state, worker, pg_notify('orchestrator_jobs', '') AS hint,
    pg_notify('orchestrator_events', '') AS hinted
FROM changed
"""

_FORGET = """
DELETE FROM orchestrator.workers WHERE id IN (
    SELECT w.id FROM orchestrator.workers w WHERE w.seen_at < clock_timestamp() - interval '1 hour'
        AND NOT EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'running' AND j.worker = w.id)
    FOR UPDATE SKIP LOCKED
)
"""

_GIVE_BACK = """
WITH held AS (
    SELECT id FROM orchestrator.jobs WHERE worker = $1 AND state = 'running' ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested THEN now() END,
        max_attempts = max_attempts + 1
    FROM held WHERE j.id = held.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, j.started_at
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome)
    SELECT id, attempt, $1, started_at, 'interrupted' FROM changed
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was)
    SELECT id, attempt, name, queue, state, 'running' FROM changed
)
SELECT id, pg_notify('orchestrator_jobs', '') AS hint, pg_notify('orchestrator_events', '') AS hinted FROM changed
"""
_GONE = """
DELETE FROM orchestrator.workers w
WHERE w.id = $1 AND NOT EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'running' AND j.worker = $1)
RETURNING w.id
"""

# What keeps dead rows from being removed, so that every claim reads past them: a snapshot, or a transaction that has
# written, in this database; a prepared one has no session any more.
_HORIZON = """
SELECT pid, application, username, database, state,
    extract(epoch FROM clock_timestamp() - since)::double precision AS age_s
FROM (
    SELECT a.pid, a.application_name AS application, a.usename::text AS username, a.datname::text AS database, a.state,
        a.xact_start AS since
    FROM pg_catalog.pg_stat_activity a
    WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.backend_type = 'client backend'
    UNION ALL
    SELECT NULL, p.gid, p.owner::text, p.database::text, 'prepared', p.prepared FROM pg_catalog.pg_prepared_xacts p
) holding
WHERE since < clock_timestamp() - make_interval(secs => $1) AND database = current_database()
ORDER BY since LIMIT 1
"""


@dataclass(slots=True)
class _Watch:
    """A worker that is silent: what was seen of it, since when without a break, and when last."""

    seen_at: Any
    since: float
    looked_at: float


class Maintenance:
    """The part of a worker that looks after the others. Lives on the loop of HTTP."""

    def __init__(self, parameters: WorkerParameters, *, emit: Callable[..., None]) -> None:
        self._given, self._emit = parameters, emit
        self._look_s = max(_LOOK_LEAST_S, min(_LOOK_MOST_S, parameters.lease_s / _LOOKS_A_LEASE))
        self._wake = asyncio.Event()
        self._leaving = False
        self._watched: dict[str, _Watch] = {}
        self._orphans: set[str] = set()
        self._horizon_said: tuple[int | None, float] | None = None
        self._not_counted_at = float("-inf")

    async def run(self) -> None:
        """Look after the others until `leave`, whatever happens to the database."""
        await keep_session(
            self._given.dsn,
            self._look_after,
            purpose="maintenance",
            limit_s=limit_of(self._given.lease_s),
            emit=self._emit,
            lost=self._wake.set,
        )

    def leave(self) -> None:
        """Give back whatever this worker still holds in the database, then end."""
        self._leaving = True
        self._wake.set()

    async def _look_after(self, session: Session) -> None:
        self._watched = {}  # the server was away, or this process: nothing was seen meanwhile
        self._orphans = set()
        forget_at = horizon_at = orphans_at = count_at = 0.0
        while not self._leaving:
            self._wake.clear()
            await self._reap(session)
            now = time.monotonic()
            if now >= orphans_at:
                orphans_at = now + self._given.lease_s / _WATCH_SHARE
                await self._reap_orphans(session)
            if now >= forget_at:
                forget_at = now + _FORGET_EVERY_S
                await session.fetch(_FORGET)
            if now >= count_at:
                count_at = now + _COUNT_EVERY_S
                await self._count(session)
            if now >= horizon_at:
                horizon_at = now + _HORIZON_EVERY_S
                await self._look_at_horizon(session)
            # Whoever is silent is looked at often: what it holds is taken over within a second of its lease's end.
            look_s = min(self._look_s, _WATCHED_LOOK_S) if self._watched else self._look_s
            timer = asyncio.get_running_loop().call_later(look_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
        await self._give_back(session)

    async def _reap(self, session: Session) -> None:
        """One look; take over from whoever was watched for long enough."""
        began = time.monotonic()
        try:
            async with session.connection.transaction():
                await session.fetch(_LOCK_TABLE)
                rows = await session.fetch(_SILENT)
        except asyncpg.LockNotAvailableError:
            self._watched = {}
            return
        looked_at = time.monotonic()
        before, self._watched = self._watched, {}
        for worker_id, seen_at, lease_s, is_over in [tuple(row) for row in rows]:
            watch = before.get(worker_id)
            gap_most_s = max(lease_s / 6, 2.5 * self._look_s)
            if watch is None or watch.seen_at != seen_at or looked_at - watch.looked_at > gap_most_s:
                watch = _Watch(seen_at, began, began)
            watch.looked_at = looked_at
            self._watched[worker_id] = watch
            if is_over and began - watch.since >= lease_s / _WATCH_SHARE:
                await self._take_over(session, worker_id, seen_at)

    async def _reap_orphans(self, session: Session) -> None:
        """Take over what is nobody's at two looks: a living worker would have made its row again between them."""
        found = {row["id"] for row in await session.fetch(_ORPHANS)}
        for worker_id in sorted(found & self._orphans):
            await self._take_over(session, worker_id, None)
        self._orphans = found

    async def _take_over(self, session: Session, worker_id: str, seen_at: Any) -> None:
        for row in await session.fetch(_TAKE_OVER, worker_id, seen_at):
            self._emit(
                "job.taken_over",
                level="error" if row["state"] == "failed" else "warning",
                job_id=row["id"],
                job=row["name"],
                attempt=row["attempt"],
                state=row["state"],
                worker=row["worker"],
            )

    async def _count(self, session: Session) -> None:
        """Count the jobs' newest events; where somebody has locked what that takes, at the next time."""
        try:
            for _ in range(_COUNTS_MOST):
                if not (await count_jobs(session.fetch))[0]:
                    return
        except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
            now = time.monotonic()
            if now >= self._not_counted_at + _NOT_COUNTED_EVERY_S:
                self._not_counted_at = now
                self._emit(
                    "jobs.not_counted",
                    level="warning",
                    sqlstate=error.sqlstate,
                    hint="The figures of the queue stay exact, and take longer to read, until this succeeds.",
                )

    async def _look_at_horizon(self, session: Session) -> None:
        """Name the session whose old snapshot keeps dead rows from being removed, once for each."""
        for row in await session.fetch(_HORIZON, _HORIZON_OLD_S):
            now = time.monotonic()
            # Within a second, the same transaction: its beginning is what tells it from the session's next one.
            began = now - row["age_s"]
            if self._horizon_said and self._horizon_said[0] == row["pid"] and abs(self._horizon_said[1] - began) < 1.0:
                continue
            self._horizon_said = (row["pid"], began)
            self._emit(
                "jobs.old_snapshot_held",
                level="warning",
                **{name: row[name] for name in ("pid", "application", "username", "database", "state")},
                age_s=round(row["age_s"]),
                hint="Its open transaction keeps dead rows from being removed, which slows the queue: end it.",
            )

    async def _give_back(self, session: Session) -> None:
        """Give back what this worker holds, and take its row away; what is locked is come back to."""
        while True:
            rows = await session.fetch(_GIVE_BACK, self._given.worker_id)
            if rows:
                self._emit("jobs.requeued", level="warning", jobs=[row["id"] for row in rows])
            if await session.fetch(_GONE, self._given.worker_id):
                return
            left = await session.fetch(
                "SELECT FROM orchestrator.jobs WHERE state = 'running' AND worker = $1 LIMIT 1", self._given.worker_id
            )
            if not left:
                return
            await asyncio.sleep(_GIVE_BACK_AGAIN_S)
