"""Keep what runs here, take over what others let fall, fire schedules. Touches the database; lives on the loop of HTTP.

Apart from the loop of the handlers: one that blocks it does not lose its job to another replica.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.jobs.queue import SCHEDULES_CHANNEL
from orchestrator.jobs.schedules import fire_due, sync_schedules
from orchestrator.jobs.session import keep_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.dsn import Dsn
    from orchestrator.jobs.registry import Registry
    from orchestrator.jobs.session import Session
    from orchestrator.jobs.worker import Worker

_BEAT_MOST_S = 10.0
_SOON_S = 0.02
_REAP_LEAST_S = 0.05
_SCHEDULES_MOST_S = 15.0
_RENEWED_AFTER = 0.2  # of the lease: what is younger is renewed next time, and most jobs never are

_BEAT = """
WITH seen AS (
    INSERT INTO orchestrator.workers (id, host, pid, version, concurrency, running, lease_s, handlers)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), running = excluded.running
), forgotten AS (
    DELETE FROM orchestrator.workers WHERE seen_at < now() - interval '1 hour' AND id <> $1
), held AS (
    SELECT j.id FROM orchestrator.jobs j JOIN unnest($9::bigint[], $10::integer[]) AS g(id, attempt)
        ON j.id = g.id AND j.attempt = g.attempt
    WHERE CASE j.state WHEN 'running' THEN true ELSE false END AND j.worker = $1
    FOR UPDATE OF j SKIP LOCKED
)
UPDATE orchestrator.jobs j SET lease_until = now() + make_interval(secs => $7) FROM held WHERE j.id = held.id
RETURNING j.id, j.attempt, j.cancel_requested
"""

# Those that the beat passed over: locked by who finishes or cancels them, or not ours any more.
_STILL_HELD = """
SELECT j.id, j.attempt FROM orchestrator.jobs j JOIN unnest($2::bigint[], $3::integer[]) AS g(id, attempt)
    ON j.id = g.id AND j.attempt = g.attempt
WHERE CASE j.state WHEN 'running' THEN true ELSE false END AND j.worker = $1
"""

_REAP = """
WITH expired AS (
    SELECT id FROM orchestrator.jobs WHERE state = 'running' AND lease_until < now()
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN cancel_requested THEN 'cancelled'
            WHEN attempt >= max_attempts THEN 'failed' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested OR attempt >= max_attempts THEN now() END,
        run_at = CASE WHEN cancel_requested OR attempt >= max_attempts THEN run_at ELSE now() END,
        error = jsonb_build_object('type', 'WorkerLost', 'trace', NULL, 'message',
            'the worker ' || worker || ' fell silent for longer than its lease'),
        lease_until = NULL
    FROM expired WHERE j.id = expired.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, j.worker, j.started_at, j.error
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome, error)
    SELECT id, attempt, worker, started_at, 'lost', error FROM changed
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, facts)
    SELECT id, attempt, name, queue, state, jsonb_build_object('lost', worker) FROM changed
)
SELECT id, attempt, name, state, worker, pg_notify('orchestrator_jobs', '') AS hint,
    pg_notify('orchestrator_events', '') AS hinted
FROM changed
"""

_NEXT_EXPIRY = """
SELECT extract(epoch FROM min(lease_until) - clock_timestamp())::double precision AS in_s
FROM orchestrator.jobs WHERE state = 'running'
"""

_GIVE_BACK = """
WITH changed AS (
    UPDATE orchestrator.jobs SET
        state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested THEN now() END,
        max_attempts = max_attempts + 1, lease_until = NULL
    WHERE worker = $1 AND state = 'running'
    RETURNING id, attempt, name, queue, state, started_at
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome)
    SELECT id, attempt, $1, started_at, 'interrupted' FROM changed
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)
    SELECT id, attempt, name, queue, state FROM changed
), gone AS (
    DELETE FROM orchestrator.workers WHERE id = $1
)
SELECT id, pg_notify('orchestrator_jobs', '') AS hint, pg_notify('orchestrator_events', '') AS hinted FROM changed
"""


class Keeper:
    """Leases, the reaper and schedules of one worker. `tell` calls the worker in its own thread."""

    def __init__(
        self,
        dsn: Dsn,
        registry: Registry,
        worker: Worker,
        *,
        worker_id: str,
        concurrency: int,
        lease_s: float,
        connect_timeout_s: float,
        emit: Callable[..., None],
        tell: Callable[..., None],
    ) -> None:
        self._dsn, self._registry, self._worker, self._id = dsn, registry, worker, worker_id
        self._concurrency, self._lease_s, self._connect_timeout_s = concurrency, lease_s, connect_timeout_s
        self._emit, self._tell = emit, tell
        self._beat_s = min(lease_s / 3, _BEAT_MOST_S)
        self._wake = asyncio.Event()
        self._synced = False
        self._was_connected = False
        self._leaving = False

    async def run(self) -> None:
        """Keep until `leave`, whatever happens to the database."""
        await keep_session(
            self._dsn,
            self._keep,
            purpose="keeper",
            connect_timeout_s=self._connect_timeout_s,
            emit=self._emit,
            lost=self._wake.set,
        )

    def leave(self) -> None:
        """Give back whatever this worker still holds in the database, then end."""
        self._leaving = True
        self._wake.set()

    async def _keep(self, session: Session) -> None:
        await session.listen(SCHEDULES_CHANNEL, lambda _: self._wake.set())
        beat_at = fire_at = now = time.monotonic()
        # The server was away, and for the others as well: they renew first what they hold.
        reap_at = now + (self._beat_s + 1.0 if self._was_connected else 0.0)
        self._was_connected = True
        if not self._synced:
            await sync_schedules(session.connection, self._registry)
            self._synced = True
        while not self._leaving:
            if self._wake.is_set():
                fire_at = now
            self._wake.clear()
            now = time.monotonic()
            if now >= beat_at:
                await self._beat(session)
                beat_at = now + self._beat_s
            if now >= reap_at:
                reap_at = time.monotonic() + await self._reap(session)
            if now >= fire_at:
                fire_at = time.monotonic() + await self._fire(session)
            timer = asyncio.get_running_loop().call_later(
                max(0.0, min(beat_at, reap_at, fire_at) - time.monotonic()), self._wake_for_time
            )
            self._timed = False
            await self._wake.wait()
            timer.cancel()
            if self._timed:
                self._wake.clear()
        given_back = await session.fetch(_GIVE_BACK, self._id)
        if given_back:
            self._emit("jobs.requeued", level="warning", jobs=[row["id"] for row in given_back])

    def _wake_for_time(self) -> None:
        self._timed = True
        self._wake.set()

    async def _beat(self, session: Session) -> None:
        """Say that this worker lives; renew its leases; learn what was cancelled or lost."""
        now = time.monotonic()
        runs = list(self._worker.runs.values())
        old = [run for run in runs if now - run.since >= self._lease_s * _RENEWED_AFTER]
        ids, attempts = [run.id for run in old], [run.attempt for run in old]
        renewed = await session.fetch(
            _BEAT,
            self._id,
            socket.gethostname(),
            os.getpid(),
            __version__,
            self._concurrency,
            len(runs),
            self._lease_s,
            list(self._registry.handlers),
            ids,
            attempts,
        )
        for row in renewed:
            if row["cancel_requested"]:
                self._tell(self._worker.cancel, row["id"], row["attempt"])
        missing = {(run.id, run.attempt) for run in old} - {(row["id"], row["attempt"]) for row in renewed}
        if missing:
            held = await session.fetch(_STILL_HELD, self._id, *map(list, zip(*sorted(missing), strict=True)))
            for job_id, attempt in missing - {(row["id"], row["attempt"]) for row in held}:
                self._tell(self._worker.lose, job_id, attempt)

    async def _reap(self, session: Session) -> float:
        """Take back what expired, of any replica; seconds until the next lease can expire."""
        for row in await session.fetch(_REAP):
            self._emit(
                "job.taken_over",
                level="warning",
                job_id=row["id"],
                job=row["name"],
                attempt=row["attempt"],
                state=row["state"],
                worker=row["worker"],
            )
        (row,) = await session.fetch(_NEXT_EXPIRY)
        in_s: float = self._beat_s if row["in_s"] is None else row["in_s"] + _SOON_S
        return max(_REAP_LEAST_S, min(self._beat_s, in_s))

    async def _fire(self, session: Session) -> float:
        """Fire schedules that are due; seconds until the next one is, or may have been edited unheard."""
        fired = await fire_due(session.connection, self._registry)
        for name, job in fired.made:
            self._emit("schedule.fired", level="info", schedule=name, job_id=job.id, created=job.created)
        for name, reason in fired.unusable:
            self._emit("schedule.unusable", level="error", schedule=name, error=reason)
        if fired.next_in_s is None:
            return _SCHEDULES_MOST_S
        return max(0.0, min(_SCHEDULES_MOST_S, fired.next_in_s))
