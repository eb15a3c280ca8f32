"""Claim jobs for one worker, and keep what it runs and what it has claimed in agreement. Touches the database.

A claim has a number, counted here: with the worker's id it is the fence of all that is written about the job, and no
crash of the server can give it twice. Claims commit asynchronously, and a claim's answer can be lost with its
connection. So on each new connection, and now and then, the rows of this worker are compared with what runs here: a run
whose claim is gone is cancelled, and a claim that nobody here knows is given back without an attempt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.queue import CANCEL_CHANNEL, JOBS_CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.jobs.completer import Completer
    from orchestrator.jobs.context import Reason, Run
    from orchestrator.jobs.parameters import WorkerParameters
    from orchestrator.jobs.session import Session

_POLL_S = 5.0
_POLL_DEAF_S = 0.5  # where nothing can be heard
_PAUSE_LEAST_S, _PAUSE_MOST_S = (
    0.02,
    0.5,
)  # where something is due that is locked, or others' by now
_LOOK_GAP_S = 0.02  # between two looks for what was cancelled: whoever may connect may send hints
_EMPTY_GAP_S = 0.003  # the same, between a claim that found nothing and the next
_FRONT_LEAST_S = 0.02
_FRONT_SHARE = 10.0  # of the time at most a tenth goes into reading the queue from its front
_SHAPE_EVERY_S = 1.0
_SHAPE_ROWS = 200
_LOST_END_S = 1.0

_CLAIM = (
    "SELECT id, name, attempt, max_attempts, timeout_s, payload, priority"
    " FROM orchestrator.claim_jobs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
)

# Asked when a claim brought less than there was room for: when to look again, and whether others were just faster.
_IDLE = """
SELECT (
    SELECT extract(epoch FROM min(run_at) - clock_timestamp())::double precision
    FROM orchestrator.jobs WHERE state = 'scheduled'
) AS next_in_s, EXISTS (
    SELECT FROM unnest($1::text[]) AS w(name)
    WHERE EXISTS (
        SELECT FROM orchestrator.jobs j
        WHERE j.state = 'queued' AND j.name = w.name AND (j.unreadable IS NULL OR NOT j.unreadable && $4::text[])
            AND NOT EXISTS (SELECT FROM orchestrator.paused_queues p WHERE p.queue = j.queue)
    )
) OR EXISTS (
    SELECT FROM unnest($2::text[], $3::integer[]) AS l(name, most)
    WHERE EXISTS (
        SELECT FROM orchestrator.jobs j
        WHERE j.state = 'queued' AND j.name = l.name AND (j.unreadable IS NULL OR NOT j.unreadable && $4::text[])
            AND NOT EXISTS (SELECT FROM orchestrator.paused_queues p WHERE p.queue = j.queue)
    ) AND (SELECT count(*) FROM orchestrator.jobs j WHERE j.state = 'running' AND j.name = l.name) < l.most
) AS has_more
"""

# How much of the queue's front this worker cannot claim in the order of the queue.
_SHAPE = f"""
SELECT count(*) FILTER (WHERE NOT name = ANY($1::text[])) AS foreign_rows
FROM (SELECT name FROM orchestrator.jobs WHERE state = 'queued' ORDER BY priority DESC, id LIMIT {_SHAPE_ROWS}) front
"""  # noqa: S608 a constant of this file

_CANCELLED_MEANWHILE = """
SELECT id, claim FROM orchestrator.jobs
WHERE id = ANY($1::bigint[]) AND worker = $2 AND CASE state WHEN 'running' THEN cancel_requested ELSE false END
"""

_LIMITS = "INSERT INTO orchestrator.job_limits (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"

_MINE = "SELECT id, claim FROM orchestrator.jobs WHERE state = 'running' AND worker = $1"

_GIVE_BACK = """
WITH held AS (
    SELECT j.id FROM unnest($2::bigint[], $3::bigint[]) AS g(id, claim)
    JOIN orchestrator.jobs j ON j.id = g.id AND j.claim = g.claim AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    FOR NO KEY UPDATE OF j SKIP LOCKED
), changed AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested THEN now() END,
        attempt = attempt - 1, worker = NULL, started_at = NULL
    FROM held WHERE j.id = held.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was)
    SELECT id, attempt, name, queue, state, 'running' FROM changed
)
SELECT id, pg_notify('orchestrator_jobs', '') AS hint, pg_notify('orchestrator_events', '') AS hinted FROM changed
"""

_SERVER_RUNS = "INSERT INTO orchestrator.server_runs DEFAULT VALUES ON CONFLICT DO NOTHING"
_SETTLED = """
UPDATE orchestrator.workers SET settled_at = clock_timestamp()
WHERE id IN (SELECT id FROM orchestrator.workers WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED)
"""


class Claimer:
    """The claims of one worker. Lives on the loop of the handlers; `runs` and what it calls are the worker's."""

    def __init__(
        self,
        parameters: WorkerParameters,
        completer: Completer,
        *,
        runs: Mapping[tuple[int, int], Run],
        begin: Callable[[Any, int], None],
        stop: Callable[[Run, Reason], None],
    ) -> None:
        self._given, self._completer, self._runs = parameters, completer, runs
        self._begin, self._stop = begin, stop
        handlers = parameters.registry.handlers.values()
        self._names = [handler.name for handler in handlers if handler.concurrency is None]
        self._limited = [handler.name for handler in handlers if handler.concurrency is not None]
        self._limits = [handler.concurrency for handler in handlers if handler.concurrency is not None]
        self._schemas = [handler.schema_hash for handler in handlers]
        self._number = 0
        self._is_over = False
        self._cancel_heard = self._cancel_hinted = False
        self._compare_at = 0.0
        self._wake = asyncio.Event()
        self._room_made = asyncio.Event()
        # Where the last claim ended, and when the queue is read from its front again.
        self._place: tuple[int, int] | None = None
        self._front_at = 0.0
        self._by_name = False
        self._shape_at = 0.0
        self._pause_s = _PAUSE_LEAST_S

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def room_made(self) -> None:
        """There may be room for more."""
        self._room_made.set()

    def compare_soon(self) -> None:
        """Jobs may have been taken from this worker, or the lease was over: compare at once."""
        self._compare_at = 0.0
        self._wake.set()
        self._room_made.set()

    def finish(self) -> None:
        """Claim no more; `run` ends."""
        self._is_over = True
        self._wake.set()
        self._room_made.set()

    async def run(self, session: Session) -> None:
        """Claim until `finish`. On a new session what runs here is compared with the table first."""
        await session.listen(JOBS_CHANNEL, lambda _: self._wake.set())
        await session.listen(CANCEL_CHANNEL, lambda _: self._look_for_cancelled())
        if self._limited:
            await session.fetch(_LIMITS, self._limited)
        self._cancel_hinted = True  # what was said while nobody listened
        self._compare_at, self._place = 0.0, None
        loop = asyncio.get_running_loop()
        while not self._is_over:
            if self._cancel_hinted:
                self._cancel_hinted = False
                await self._cancel(session)
                continue
            if loop.time() >= self._compare_at:
                self._compare_at = loop.time() + self._given.lease_s / 3
                await self._compare(session)
                continue
            room = self._given.concurrency - len(self._runs)
            if room <= 0 or self._completer.is_full:
                self._room_made.clear()
                await self._wait(self._room_made, self._compare_at - loop.time())
                continue
            self._wake.clear()
            wait_s = await self._claim(session, room)
            if wait_s > 0:
                await asyncio.sleep(min(_EMPTY_GAP_S, wait_s))
                await self._wait(self._wake, min(wait_s, self._compare_at - loop.time()))
            else:
                await asyncio.sleep(0)

    @staticmethod
    async def _wait(event: asyncio.Event, most_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(max(0.0, most_s), event.set)
        await event.wait()
        timer.cancel()

    async def _claim(self, session: Session, room: int) -> float:
        """One claim; returns how long nothing more is to be expected."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        from_front = self._place is None or self._by_name or began >= self._front_at
        after_priority, after_id = (None, None) if from_front or self._place is None else self._place
        self._number += 1
        records = await session.fetch(
            _CLAIM,
            self._given.worker_id,
            self._number,
            room,
            self._names,
            self._limited,
            self._limits,
            self._schemas,
            after_priority,
            after_id,
            self._by_name,
        )
        for record in records:
            self._begin(record, self._number)
        now = loop.time()
        if from_front:
            self._front_at = now + max(_FRONT_LEAST_S, _FRONT_SHARE * (now - began))
        if records:
            self._pause_s = _PAUSE_LEAST_S
            self._completer.hint()
            last = next((one for one in reversed(records) if one["name"] not in self._limited), None)
            if last is not None:
                self._place = (last["priority"], last["id"])
        if from_front and now >= self._shape_at:
            await self._look_at_shape(session)
        if len(records) >= room:
            return 0.0
        if not from_front:
            return max(0.001, self._front_at - now)
        (idle,) = await session.fetch(_IDLE, self._names, self._limited, self._limits, self._schemas)
        poll_s = _POLL_S if session.direct else _POLL_DEAF_S
        next_in_s = poll_s if idle["next_in_s"] is None else min(poll_s, idle["next_in_s"])
        if not idle["has_more"] and next_in_s > 0:
            self._pause_s = _PAUSE_LEAST_S
            return float(next_in_s)
        pause_s, self._pause_s = self._pause_s, min(_PAUSE_MOST_S, self._pause_s * 2)
        return pause_s if next_in_s <= 0 else float(min(pause_s, next_in_s))

    async def _look_at_shape(self, session: Session) -> None:
        """See whether the front of the queue is full of what cannot be claimed in its order."""
        (row,) = await session.fetch(_SHAPE, self._names)
        self._by_name = row["foreign_rows"] > _SHAPE_ROWS // 2
        self._shape_at = asyncio.get_running_loop().time() + _SHAPE_EVERY_S

    # ---------------------------------------------------------------------------------------------- what others decided

    async def _compare(self, session: Session) -> None:
        """Cancel runs whose claim is gone; give back claims that nobody here knows; then say that this is done."""
        runs_before, known_before = set(self._runs), self._completer.unwritten()
        rows = await session.fetch(_MINE, self._given.worker_id)
        there = {(row["id"], row["claim"]) for row in rows}
        lost = [run for key, run in list(self._runs.items()) if key in runs_before and key not in there]
        for run in lost:
            self._stop(run, "lost")
        unknown = there - runs_before - known_before - set(self._runs) - self._completer.unwritten()
        if unknown:
            returned = await self._give_back(session, sorted(unknown))
            self._given.emit("jobs.claims_given_back", level="warning", jobs=returned)
        if lost:
            tasks = [run.task for run in lost if run.task is not None]
            await asyncio.wait(tasks, timeout=_LOST_END_S)
        await session.fetch(_SERVER_RUNS)
        await session.fetch(_SETTLED, self._given.worker_id)

    async def _give_back(self, session: Session, keys: Sequence[tuple[int, int]]) -> list[int]:
        ids, claims = [key[0] for key in keys], [key[1] for key in keys]
        rows = await session.fetch(_GIVE_BACK, self._given.worker_id, ids, claims)
        return [row["id"] for row in rows]

    async def _cancel(self, session: Session) -> None:
        """Stop what is cancelled: read from our table, since anybody may send a hint."""
        ids = [run.id for run in list(self._runs.values())]
        if not ids:
            return
        for row in await session.fetch(_CANCELLED_MEANWHILE, ids, self._given.worker_id):
            run = self._runs.get((row["id"], row["claim"]))
            if run is not None and run.reason is None:
                self._stop(run, "cancelled")

    def _look_for_cancelled(self) -> None:
        if not self._cancel_heard:
            self._cancel_heard = True
            asyncio.get_running_loop().call_later(_LOOK_GAP_S, self._look_now)

    def _look_now(self) -> None:
        self._cancel_heard, self._cancel_hinted = False, True
        self._wake.set()
        self._room_made.set()
