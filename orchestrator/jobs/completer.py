"""Write what became of jobs: lines, progress, outcomes, on one session, in batches. Touches the database.

A job is its worker's own until its outcome is committed, however long that takes: the lease is the worker's, not the
job's. A row that somebody else has locked is passed over and come back to, so it holds up no other job.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.jobs.error_record import stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.jobs.context import Run
    from orchestrator.jobs.session import Session

UNWRITTEN_MAX = 2000
_BATCH_MAX = 500
_LINES_MAX = 5000
_LINES_EVERY_S = 0.2
_PROGRESS_EVERY_S = 0.25
_HINT_EVERY_S = 0.05
_LOCKED_EVERY_S = 0.1
_LOCKED_TOLD_AFTER_S = 10.0

# Fenced: what another worker, or a later claim of this one, has by now, or what was taken back, is left as it is. The
# state is asked for by CASE, so that the primary key is the way to the row: without statistics a planner prefers the
# index of what runs, and reads all of it for each row. What is held and was not finished is locked by somebody.
_FINISH = """
WITH given AS (
    SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::double precision[]) AS g(id, claim, outcome, state, output, error, wait_s)
), held AS (
    SELECT g.* FROM given g JOIN orchestrator.jobs j ON j.id = g.id AND j.claim = g.claim AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    FOR NO KEY UPDATE OF j SKIP LOCKED
), finished AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN j.cancel_requested AND g.state IN ('queued', 'scheduled') THEN 'cancelled' ELSE g.state END,
        output = g.output::jsonb,
        error = g.error::jsonb,
        run_at = CASE WHEN g.state IN ('queued', 'scheduled') THEN now() + make_interval(secs => g.wait_s)
            ELSE j.run_at END,
        finished_at = CASE WHEN g.state IN ('queued', 'scheduled') AND NOT j.cancel_requested THEN NULL ELSE now() END,
        max_attempts = CASE WHEN g.outcome = 'interrupted' THEN j.max_attempts + 1 ELSE j.max_attempts END
    FROM held g WHERE j.id = g.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, j.started_at, j.run_at, g.outcome, g.error
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome, error)
    SELECT id, attempt, $1, started_at, outcome, error::jsonb FROM finished WHERE outcome <> 'succeeded'
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, 'running',
        CASE WHEN state = 'scheduled' THEN jsonb_build_object('run_at', run_at, 'error', error::jsonb -> 'message')
            WHEN state = 'failed' THEN jsonb_build_object('error', error::jsonb -> 'message') END
    FROM finished
)
SELECT array_agg(id) AS ids,
    CASE WHEN bool_or(state IN ('queued', 'scheduled') OR name = ANY($9::text[]))
        THEN pg_notify('orchestrator_jobs', '') END AS hint
FROM finished
"""

# A payload that this process cannot decode is left, without an attempt, to a living worker whose handler of that name
# takes other payloads, as in a deployment that is under way; where none is left that could, it has failed.
_LEAVE = """
WITH held AS (
    SELECT j.id, g.schema_hash FROM unnest($2::bigint[], $3::bigint[], $4::text[]) AS g(id, claim, schema_hash)
    JOIN orchestrator.jobs j ON j.id = g.id AND j.claim = g.claim AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    WHERE EXISTS (
        SELECT FROM orchestrator.workers w, unnest(w.handlers, w.schemas) AS h(name, schema_hash)
        WHERE w.seen_at > clock_timestamp() - make_interval(secs => w.lease_s) AND h.name = j.name
            AND h.schema_hash <> ALL (array_append(coalesce(j.unreadable, '{}'), g.schema_hash))
    )
    FOR NO KEY UPDATE OF j SKIP LOCKED
), changed AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
        finished_at = CASE WHEN cancel_requested THEN now() END,
        attempt = attempt - 1, worker = NULL, started_at = NULL, unreadable = array_append(unreadable, h.schema_hash)
    FROM held h WHERE j.id = h.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.state
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, was, facts)
    SELECT id, attempt, name, queue, state, 'running', '{"unreadable": true}'::jsonb FROM changed
)
SELECT id, pg_notify('orchestrator_jobs', '') AS hint FROM changed
"""

_STILL_HELD = """
SELECT j.id, j.claim FROM unnest($2::bigint[], $3::bigint[]) AS g(id, claim)
JOIN orchestrator.jobs j ON j.id = g.id AND j.claim = g.claim AND j.worker = $1
    AND CASE j.state WHEN 'running' THEN true ELSE false END
"""

_LOG = """
INSERT INTO orchestrator.job_logs (job_id, attempt, at, level, event, facts)
SELECT job_id, attempt, at, level, event, facts::jsonb
FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::text[], $5::text[], $6::text[])
    AS g(job_id, attempt, at, level, event, facts)
"""

_PROGRESS = """
WITH held AS (
    SELECT j.id, g.progress FROM unnest($2::bigint[], $3::bigint[], $4::text[]) AS g(id, claim, progress)
    JOIN orchestrator.jobs j ON j.id = g.id AND j.claim = g.claim AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    FOR NO KEY UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE orchestrator.jobs j SET progress = h.progress::jsonb || jsonb_build_object('at', now())
    FROM held h WHERE j.id = h.id
    RETURNING j.id, j.attempt, j.name, j.queue, j.progress
)
INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, kind, facts)
SELECT id, attempt, name, queue, 'progress', progress FROM moved
"""

_HINT = "SELECT pg_notify('orchestrator_events', '')"


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one claimed job. `unreadable_by` is the hash of the schema that its payload does not have."""

    id: int
    claim: int
    attempt: int
    outcome: str
    state: str
    output: str | None = None
    error: str | None = None
    wait_s: float = 0.0
    unreadable_by: str | None = None

    def columns(self) -> tuple[Any, ...]:
        """In the order of the statement's parameters."""
        return self.id, self.claim, self.outcome, self.state, self.output, self.error, self.wait_s


class Completer:
    """The outcomes, lines and progress of one worker, until they are committed. Lives on the loop of the handlers."""

    def __init__(
        self,
        worker_id: str,
        *,
        hinted_names: Sequence[str],
        emit: Callable[..., None],
        room_made: Callable[[], None],
    ) -> None:
        self._worker_id, self._hinted_names = worker_id, list(hinted_names)
        self._emit, self._room_made = emit, room_made
        self._endings: deque[Ending] = deque()
        self._writing: list[Ending] = []
        self._locked: list[Ending] = []
        self._locked_since: dict[Ending, float] = {}
        self._lines: list[tuple[int, int, datetime, str, str, str | None]] = []
        self._lines_due = False
        self._moved: dict[tuple[int, int], str] = {}
        self._hint_wanted = False
        self._hinted_at = 0.0
        self._is_over = False
        self._dirty = asyncio.Event()

    # ------------------------------------------------------------------------------------------------------- what comes

    @property
    def is_full(self) -> bool:
        """Whether so much is unwritten that nothing more should be claimed."""
        return len(self._endings) + len(self._locked) >= UNWRITTEN_MAX

    def unwritten(self) -> set[tuple[int, int]]:
        """Job and claim of each outcome that is not known to be committed."""
        return {(one.id, one.claim) for one in (*self._endings, *self._writing, *self._locked)}

    def put(self, ending: Ending) -> None:
        """Write this outcome as soon as may be."""
        self._endings.append(ending)
        self._dirty.set()

    def keep_line(self, run: Run, level: str, event: str, facts: str | None) -> None:
        """Write this line of a job's log within a moment; beyond a bound it is counted instead."""
        if len(self._lines) >= _LINES_MAX:
            run.dropped += 1
            return
        event = event.replace("\0", "").encode("utf-8", "backslashreplace").decode()
        self._lines.append((run.id, run.attempt, datetime.now(UTC), level, event, facts))
        if not self._lines_due:
            self._lines_due = True
            asyncio.get_running_loop().call_later(_LINES_EVERY_S, self._dirty.set)

    def report(self, run: Run, progress: str) -> None:
        """Write this progress, a few times a second at most, and the last word always."""
        now = time.monotonic()
        run.progress = progress
        if now - run.progress_at >= _PROGRESS_EVERY_S:
            run.progress_at = now
            self.move(run)
        elif run.progress_at <= now:
            # The time of the next write, which is under way: later words only replace this one.
            wait_s = run.progress_at + _PROGRESS_EVERY_S - now
            run.progress_at = now + wait_s
            asyncio.get_running_loop().call_later(wait_s, self.move, run)

    def move(self, run: Run) -> None:
        """Write the run's last word now."""
        if run.progress is not None:
            self._moved[run.id, run.claim] = run.progress
            run.progress = None
            self._dirty.set()

    def hint(self) -> None:
        """Tell those who follow the events that there are some."""
        self._hint_wanted = True
        self._dirty.set()

    def finish(self) -> None:
        """End `run` when everything is written."""
        self._is_over = True
        self._dirty.set()

    # ---------------------------------------------------------------------------------------------------------- writing

    async def run(self, session: Session) -> None:
        """Write until `finish` and everything is written; what was begun on a session that broke is written again."""
        loop = asyncio.get_running_loop()
        self._endings.extendleft(reversed(self._writing))
        self._writing = []
        while True:
            if self._endings or self._lines or self._moved:
                self._dirty.set()
            elif self._is_over and not self._locked:
                return
            await self._dirty.wait()
            self._dirty.clear()
            await self._flush(session)
            if self._hint_wanted:
                wait_s = self._hinted_at + _HINT_EVERY_S - loop.time()
                if wait_s > 0:
                    loop.call_later(wait_s, self._dirty.set)
                else:
                    self._hint_wanted, self._hinted_at = False, loop.time()
                    await session.fetch(_HINT)

    async def _flush(self, session: Session) -> None:
        """Write what there is: ends after the lines and progress that came before them.

        Who sees a job finished sees all that it said.
        """
        while True:
            # Taken first: what these jobs have said is in the lists by now.
            batch = [self._endings.popleft() for _ in range(min(_BATCH_MAX, len(self._endings)))]
            batch.sort(key=lambda ending: (ending.id, ending.claim))  # locks in one order everywhere
            self._writing = batch
            await self._flush_lines(session)
            await self._flush_progress(session)
            if not batch:
                return
            ids = await self._leave(session, [ending for ending in batch if ending.unreadable_by is not None])
            ids |= await self._finish(session, [ending for ending in batch if ending.id not in ids])
            if self._locked_since:
                self._locked_since = {one: since for one, since in self._locked_since.items() if one.id not in ids}
            await self._pass_by(session, [ending for ending in batch if ending.id not in ids])
            self._writing = []
            self._room_made()
            self._hint_wanted = True

    async def _pass_by(self, session: Session, left: list[Ending]) -> None:
        """Set aside for a moment what is locked; refuse what is not ours any more."""
        held: set[tuple[int, int]] = set()
        if left:
            ids, claims = [ending.id for ending in left], [ending.claim for ending in left]
            held = {(row["id"], row["claim"]) for row in await session.fetch(_STILL_HELD, self._worker_id, ids, claims)}
        locked = [ending for ending in left if (ending.id, ending.claim) in held]
        for ending in left:
            if (ending.id, ending.claim) not in held:
                self._emit(
                    "job.finish_refused",
                    level="warning",
                    job_id=ending.id,
                    attempt=ending.attempt,
                    outcome=ending.outcome,
                )
        if locked and not self._locked:
            asyncio.get_running_loop().call_later(_LOCKED_EVERY_S, self._try_locked)
        self._locked += locked
        now = time.monotonic()
        for ending in locked:
            since = self._locked_since.setdefault(ending, now)
            if now - since > _LOCKED_TOLD_AFTER_S:
                self._locked_since[ending] = now + 30 * _LOCKED_TOLD_AFTER_S  # once in five minutes
                self._emit(
                    "job.outcome_waits",
                    level="warning",
                    job_id=ending.id,
                    hint="Another session has locked the job's row; its outcome is written when that session lets go.",
                )

    def _try_locked(self) -> None:
        self._endings.extend(self._locked)
        self._locked = []
        self._dirty.set()

    async def _flush_lines(self, session: Session) -> None:
        if self._lines:
            lines = self._lines[:_LINES_MAX]
            self._lines_due = False
            await self._written(session, _LOG, [], lines)
            del self._lines[: len(lines)]

    async def _flush_progress(self, session: Session) -> None:
        if self._moved:
            moved, self._moved = self._moved, {}
            rows = [(*key, text) for key, text in sorted(moved.items())]
            try:
                await self._written(session, _PROGRESS, [self._worker_id], rows)
            except CONNECTION_ERRORS:
                self._moved = {**moved, **self._moved}
                raise
            self._hint_wanted = True

    async def _written(self, session: Session, statement: str, first: list[Any], rows: list[Any]) -> None:
        """Write rows by one statement; where the server refuses a value (class 22, 54), all rows but that one."""
        try:
            await session.fetch(statement, *first, *map(list, zip(*rows, strict=True)))
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            if len(rows) == 1:
                self._emit("job.value_refused", level="warning", job_id=rows[0][0], sqlstate=error.sqlstate)
                return
            for row in rows:
                await self._written(session, statement, first, [row])

    async def _leave(self, session: Session, batch: list[Ending]) -> set[int]:
        if not batch:
            return set()
        ids, claims = [ending.id for ending in batch], [ending.claim for ending in batch]
        rows = await session.fetch(_LEAVE, self._worker_id, ids, claims, [ending.unreadable_by for ending in batch])
        for row in rows:
            self._emit("job.left_to_others", level="warning", job_id=row["id"])
        return {row["id"] for row in rows}

    async def _finish(self, session: Session, batch: list[Ending]) -> set[int]:
        if not batch:
            return set()
        columns = map(list, zip(*(ending.columns() for ending in batch), strict=True))
        try:
            (record,) = await session.fetch(_FINISH, self._worker_id, *columns, self._hinted_names)
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            if len(batch) > 1:
                return {job_id for ending in batch for job_id in await self._finish(session, [ending])}
            (one,) = batch
            text = stored("OutputError", f"Postgres cannot store what the handler returned (SQLSTATE {error.sqlstate})")
            return await self._finish(session, [Ending(one.id, one.claim, one.attempt, "failed", "failed", error=text)])
        return set(record["ids"] or ())
