"""Claim jobs, run their handlers, write what became of them. Touches the database; lives on a loop in its own thread.

Two connections: one claims and listens, the other finishes, so that each claim overlaps with the finishing of what went
before. Whatever a handler does, it ends in `_ended`, and from there in `_flush`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from orchestrator.database.connect import open_pool
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.jobs.context import Context, Run
from orchestrator.jobs.error_record import error_record, stored, type_name, without_nul
from orchestrator.jobs.queue import CANCEL_CHANNEL, JOBS_CHANNEL
from orchestrator.jobs.session import keep_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.dsn import Dsn
    from orchestrator.jobs.context import Level, Reason, Service
    from orchestrator.jobs.registry import Registry
    from orchestrator.jobs.session import Session

_POLL_S = 5.0
_POLL_DEAF_S = 0.5  # where nothing can be heard
_CONTENDED_S = 0.02
_LOOK_GAP_S = 0.02  # between two looks for what was cancelled: whoever may connect may send hints
_BATCH_MAX = 500
_UNWRITTEN_MAX = 2000
_LINES_MAX = 5000
_LINES_EVERY_S = 0.2
_PROGRESS_EVERY_S = 0.25
_HINT_EVERY_S = 0.05
_INSIST_EVERY_S = 5.0
_OUTPUT_BYTES_MAX = 1 << 20
_POOL_SIZE = 10
_LOGGER = "orchestrator.jobs"

_CLAIM = (
    "SELECT id, name, attempt, max_attempts, timeout_s, payload FROM orchestrator.claim_jobs($1, $2, $3, $4, $5, $6)"
)

# Asked when a claim brought less than there was room for: when to look again, and whether others were just faster.
_IDLE = """
SELECT (
    SELECT extract(epoch FROM min(run_at) - clock_timestamp())::double precision
    FROM orchestrator.jobs WHERE state = 'scheduled'
) AS next_in_s, EXISTS (
    SELECT FROM unnest($1::text[]) AS w(name)
    WHERE EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'queued' AND j.name = w.name)
) OR EXISTS (
    SELECT FROM unnest($2::text[], $3::integer[]) AS l(name, most)
    WHERE EXISTS (SELECT FROM orchestrator.jobs j WHERE j.state = 'queued' AND j.name = l.name)
        AND (SELECT count(*) FROM orchestrator.jobs j WHERE j.state = 'running' AND j.name = l.name) < l.most
) AS has_more
"""

# Fenced: a row that another worker has by now (a later attempt), or that was taken back, is left as it is. The state is
# asked for by CASE, so that the primary key is the way to the row: without statistics a planner prefers the index of
# what runs, and reads all of it for each row.
_FINISH = """
WITH given AS (
    SELECT * FROM unnest($2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::double precision[]) AS g(id, attempt, outcome, state, output, error, wait_s)
), finished AS (
    UPDATE orchestrator.jobs j SET
        state = CASE WHEN j.cancel_requested AND g.state IN ('queued', 'scheduled') THEN 'cancelled' ELSE g.state END,
        output = g.output::jsonb,
        error = g.error::jsonb,
        run_at = CASE WHEN g.state IN ('queued', 'scheduled') THEN now() + make_interval(secs => g.wait_s)
            ELSE j.run_at END,
        finished_at = CASE WHEN g.state IN ('queued', 'scheduled') AND NOT j.cancel_requested THEN NULL ELSE now() END,
        max_attempts = CASE WHEN g.outcome = 'interrupted' THEN j.max_attempts + 1 ELSE j.max_attempts END,
        lease_until = NULL
    FROM given g
    WHERE j.id = g.id AND j.attempt = g.attempt AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    RETURNING j.id, j.attempt, j.name, j.queue, j.state, j.started_at, j.run_at, g.outcome, g.error
), tried AS (
    INSERT INTO orchestrator.job_attempts (job_id, attempt, worker, started_at, outcome, error)
    SELECT id, attempt, $1, started_at, outcome, error::jsonb FROM finished
), told AS (
    INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state, facts)
    SELECT id, attempt, name, queue, state,
        CASE WHEN state = 'scheduled' THEN jsonb_build_object('run_at', run_at, 'error', error::jsonb -> 'message')
            WHEN state = 'failed' THEN jsonb_build_object('error', error::jsonb -> 'message') END
    FROM finished
)
SELECT array_agg(id) AS ids,
    CASE WHEN bool_or(state IN ('queued', 'scheduled') OR name = ANY($9::text[]))
        THEN pg_notify('orchestrator_jobs', '') END AS hint
FROM finished
"""

_LOG = """
INSERT INTO orchestrator.job_logs (job_id, attempt, at, level, event, facts)
SELECT job_id, attempt, at, level, event, facts::jsonb
FROM unnest($1::bigint[], $2::integer[], $3::timestamptz[], $4::text[], $5::text[], $6::text[])
    AS g(job_id, attempt, at, level, event, facts)
"""

_PROGRESS = """
WITH moved AS (
    UPDATE orchestrator.jobs j SET progress = g.progress::jsonb || jsonb_build_object('at', now())
    FROM unnest($2::bigint[], $3::integer[], $4::text[]) AS g(id, attempt, progress)
    WHERE j.id = g.id AND j.attempt = g.attempt AND j.worker = $1
        AND CASE j.state WHEN 'running' THEN true ELSE false END
    RETURNING j.id, j.attempt, j.name, j.queue, j.progress
)
INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, kind, facts)
SELECT id, attempt, name, queue, 'progress', progress FROM moved
"""

_HINT = "SELECT pg_notify('orchestrator_events', '')"

_CANCELLED_MEANWHILE = """
SELECT id, attempt FROM orchestrator.jobs WHERE id = ANY($1::bigint[]) AND state = 'running' AND cancel_requested
"""

_LIMITS = "INSERT INTO orchestrator.job_limits (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"

# id, attempt, outcome, state, output, error, wait_s: a row of what `_FINISH` is given.
_Ending = tuple[int, int, str, str, "str | None", "str | None", float]


@dataclass(frozen=True, slots=True)
class StopTimes:
    """What a stop may take at most, in order: the last claim, jobs that end by themselves, or by force, the writes."""

    claim_s: float
    drain_s: float
    grace_s: float
    write_s: float

    @classmethod
    def of(cls, timeout_s: float) -> StopTimes:
        """`timeout_s` for the jobs, and half as much for all the rest."""
        return cls(timeout_s / 8, timeout_s, min(2.0, timeout_s / 8), timeout_s / 4)

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.claim_s + self.drain_s + self.grace_s + self.write_s


class Rate:
    """At most so many in so long: what is beyond is counted, and told with the next one that passes."""

    def __init__(self, most: int, every_s: float) -> None:
        self._most, self._every_s = most, every_s
        self._left, self._since, self._kept_back = most, 0.0, 0

    def passes(self) -> int | None:
        """How many were kept back before this one; None where it is kept back itself."""
        now = time.monotonic()
        if now - self._since >= self._every_s:
            self._since, self._left = now, self._most
        if self._left == 0:
            self._kept_back += 1
            return None
        self._left -= 1
        kept_back, self._kept_back = self._kept_back, 0
        return kept_back


class Worker:
    """Runs jobs until `stop`. All of it lives on one loop, but for `runs`, which any thread may read."""

    def __init__(
        self,
        dsn: Dsn,
        registry: Registry,
        *,
        worker_id: str,
        concurrency: int,
        lease_s: float,
        connect_timeout_s: float,
        emit: Callable[..., None],
        redact: Callable[[str], str],
        service: Service | None = None,
    ) -> None:
        self._service = service
        self.runs: dict[tuple[int, int], Run] = {}
        self._dsn, self._registry, self._id = dsn, registry, worker_id
        self._concurrency, self._lease_s, self._connect_timeout_s = concurrency, lease_s, connect_timeout_s
        self._emit, self._redact = emit, redact
        handlers = registry.handlers.values()
        self._names = [handler.name for handler in handlers if handler.concurrency is None]
        self._limited = [handler.name for handler in handlers if handler.concurrency is not None]
        self._limits = [handler.concurrency for handler in handlers if handler.concurrency is not None]
        self._pool: Any = None
        self._stopping = False
        self._flush_over = False
        self._cancel_heard = self._cancel_hinted = False
        self._wake = asyncio.Event()
        self._room_made = asyncio.Event()
        self._drained = asyncio.Event()
        self._dirty = asyncio.Event()
        self._endings: list[_Ending] = []
        self._lines: list[tuple[int, int, datetime, str, str, str | None]] = []
        self._lines_due = False
        self._moved: dict[tuple[int, int], str] = {}
        self._hint_wanted = False
        self._hinted_at = 0.0
        self._failures_said = Rate(20, 10.0)
        self._lines_said = Rate(50, 1.0)
        self._logger = logging.getLogger(_LOGGER)

    # ------------------------------------------------------------------------------------------------ from start to end

    async def run(self, until: asyncio.Event, times: Callable[[], StopTimes]) -> None:
        """Work until `until` is set. Then claim no more, wait, cancel, wait again, requeue the rest (`StopTimes`)."""
        self._pool = await self._open_pool()
        for run in list(self.runs.values()):
            if run.task is not None and run.task.done():  # cancelled with all of this loop, before it began
                self._interrupted(run.id, run.attempt)
        try:
            async with asyncio.TaskGroup() as group:
                claiming = group.create_task(self._session("worker", self._claim_on, listens=True))
                flushing = group.create_task(self._session("worker finish", self._flush_on))
                await until.wait()
                self._stopping = True
                self._wake.set()
                self._room_made.set()
                # A claim that is under way is waited for: what it brings is known, and given back.
                limits = times()
                await asyncio.wait([claiming], timeout=limits.claim_s)
                claiming.cancel()
                await self._until_drained(limits.drain_s)
                for run in list(self.runs.values()):
                    self.stop_run(run, "stopped")
                await self._until_drained(limits.grace_s)
                for run in list(self.runs.values()):
                    self._interrupted(run.id, run.attempt)
                self._flush_over = True
                self._dirty.set()
                await asyncio.wait([flushing], timeout=limits.write_s)
                flushing.cancel()
        finally:
            self._pool.terminate()

    def _session(self, purpose: str, work: Callable[[Session], Any], *, listens: bool = False) -> Any:
        return keep_session(
            self._dsn,
            work,
            purpose=purpose,
            connect_timeout_s=self._connect_timeout_s,
            emit=self._emit,
            lost=self._wake.set if listens else None,
            # A claim that a crash of the server undoes is made again; the job's end is what must be durable.
            asynchronous_commit=listens,
        )

    async def _open_pool(self) -> Any:
        return await open_pool(
            self._dsn,
            kind="handlers",
            max_size=_POOL_SIZE,
            connect_timeout_s=self._connect_timeout_s,
            application_name="orchestrator jobs",
        )

    async def _until_drained(self, limit_s: float) -> None:
        self._drained.clear()
        if self.runs:
            try:
                async with asyncio.timeout(limit_s):
                    await self._drained.wait()
            except TimeoutError:
                return

    # --------------------------------------------------------------------------------------------------------- claiming

    async def _claim_on(self, session: Session) -> None:
        await session.listen(JOBS_CHANNEL, lambda _: self._wake.set())
        await session.listen(CANCEL_CHANNEL, lambda _: self._look_for_cancelled())
        await session.fetch(_LIMITS, self._limited)
        self._cancel_hinted = True  # what was said while nobody listened
        poll_s = _POLL_S if session.direct else _POLL_DEAF_S
        loop = asyncio.get_running_loop()
        while not self._stopping:
            if self._cancel_hinted:
                self._cancel_hinted = False
                for record in await session.fetch(_CANCELLED_MEANWHILE, [run.id for run in list(self.runs.values())]):
                    self.cancel(record["id"], record["attempt"])
                continue
            room = self._concurrency - len(self.runs)
            if room <= 0 or len(self._endings) >= _UNWRITTEN_MAX:
                self._room_made.clear()
                await self._room_made.wait()
                continue
            self._wake.clear()
            records = await session.fetch(
                _CLAIM, self._id, self._lease_s, room, self._names, self._limited, self._limits
            )
            for record in records:
                self._begin(record, loop)
            if records:
                self._hint_wanted = True
                self._dirty.set()
            if len(records) >= room:
                await asyncio.sleep(0)
                continue
            (idle,) = await session.fetch(_IDLE, self._names, self._limited, self._limits)
            next_in_s = poll_s if idle["next_in_s"] is None else max(0.0, min(poll_s, idle["next_in_s"]))
            timer = loop.call_later(_CONTENDED_S if idle["has_more"] else next_in_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _begin(self, record: Any, loop: asyncio.AbstractEventLoop) -> None:
        if self._stopping:
            self._interrupted(record["id"], record["attempt"])
            return
        run = Run(record, self._registry.handlers[record["name"]])
        # Taken over from this very worker, whose lease ran out while the database was away: one of the two must end.
        self.lose(run.id, run.attempt - 1)
        self.runs[run.id, run.attempt] = run
        run.task = loop.create_task(self._perform(run))
        if run.timeout_s is not None:
            run.timer = loop.call_later(run.timeout_s, self.stop_run, run, "timed_out")

    # ---------------------------------------------------------------------------------------------------------- running

    async def _perform(self, run: Run) -> None:
        run.entered = True
        handler = run.handler
        try:
            if run.reason is not None:
                raise asyncio.CancelledError  # noqa: TRY301 told to end before it began
            payload = handler.decoder.decode(run.payload)
            context = Context(run, self._pool, self._write, self._report, self._redact, self._service)
            output = await handler.function(context, payload)
            text = None if output is None else _encoded(output)
        except BaseException as error:  # noqa: BLE001 SystemExit and its like are failures of the job, not of the server
            self._ended(run, None, error)
        else:
            self._ended(run, text, None)

    def _ended(self, run: Run, output: str | None, error: BaseException | None) -> None:
        """Decide what becomes of the job; nothing here waits."""
        if self.runs.pop((run.id, run.attempt), None) is None:
            return  # given back already, as the server stopped
        if run.timer is not None:
            run.timer.cancel()
        if run.dropped:
            self._keep_line(run, "warning", "log.cut", msgspec.json.encode({"dropped": run.dropped}).decode())
        self._move(run)
        if run.reason == "lost":
            self._emit("job.lost", level="warning", job_id=run.id, job=run.handler.name, attempt=run.attempt)
        elif run.reason == "stopped":
            self._interrupted(run.id, run.attempt)
        elif run.reason == "cancelled":
            self._endings.append((run.id, run.attempt, "cancelled", "cancelled", output, None, 0.0))
        elif run.reason == "timed_out":
            self._failed(run, "timed_out", self._timeout_record(run, error), "TimeoutError")
        elif error is not None:
            self._failed(run, "failed", error_record(error, self._redact), type_name(error))
        else:
            self._endings.append((run.id, run.attempt, "succeeded", "succeeded", output, None, 0.0))
        self._dirty.set()
        self._room_made.set()
        if not self.runs:
            self._drained.set()

    def _timeout_record(self, run: Run, error: BaseException | None) -> str:
        message = f"not done within {run.timeout_s:g} s"
        if error is None:
            return stored("TimeoutError", message)
        # Where it was when it was cancelled is what a person wants to know.
        trace = msgspec.json.decode(error_record(error, self._redact))["trace"]
        return stored("TimeoutError", message, trace)

    def _failed(self, run: Run, outcome: str, record: str, kind: str) -> None:
        wait_s: float | None = None
        if run.attempt < run.max_attempts:
            wait_s = run.handler.backoff.wait_s(run.attempt, random.random())  # noqa: S311 jitter is no secret
        state = "failed" if wait_s is None else "scheduled" if wait_s > 0 else "queued"
        self._endings.append((run.id, run.attempt, outcome, state, None, record, wait_s or 0.0))
        kept_back = self._failures_said.passes()
        if kept_back is not None:
            self._emit(
                "job.failed",
                level="warning",
                job_id=run.id,
                job=run.handler.name,
                attempt=run.attempt,
                max_attempts=run.max_attempts,
                outcome=outcome,
                error=kind,
                retry_in_s=None if wait_s is None else round(wait_s, 3),
                **({"more_not_shown": kept_back} if kept_back else {}),
            )

    def _interrupted(self, job_id: int, attempt: int) -> None:
        self.runs.pop((job_id, attempt), None)
        self._endings.append((job_id, attempt, "interrupted", "queued", None, None, 0.0))

    def stop_run(self, run: Run, reason: Reason) -> None:
        """Tell a job's task to end. What was told first stays the reason, but that a lost job is nobody's to finish."""
        if (run.id, run.attempt) not in self.runs:
            return
        if run.reason is None or reason == "lost":
            run.reason = reason
        if run.timer is not None:
            run.timer.cancel()
        run.timer = asyncio.get_running_loop().call_later(_INSIST_EVERY_S, self._insist, run)
        # A task that never ran would end without a word: `_perform` looks at the reason first.
        if run.entered and run.task is not None:
            run.task.cancel()

    def _insist(self, run: Run) -> None:
        self._emit(
            "job.stop_ignored",
            level="warning",
            job_id=run.id,
            job=run.handler.name,
            attempt=run.attempt,
            reason=run.reason,
            hint="The handler catches CancelledError and goes on; it is cancelled again.",
        )
        self.stop_run(run, run.reason or "cancelled")

    def cancel(self, job_id: int, attempt: int | None = None) -> None:
        """Stop the job, if it runs here."""
        for run in list(self.runs.values()):
            if run.id == job_id and attempt in {None, run.attempt} and run.reason is None:
                self.stop_run(run, "cancelled")

    def lose(self, job_id: int, attempt: int) -> None:
        """Stop an attempt that is no longer ours."""
        run = self.runs.get((job_id, attempt))
        if run is not None:
            self.stop_run(run, "lost")

    def _look_for_cancelled(self) -> None:
        """A hint was heard. Anybody may send one, so what is cancelled is read from our table, and not too often."""
        if not self._cancel_heard:
            self._cancel_heard = True
            asyncio.get_running_loop().call_later(_LOOK_GAP_S, self._look_now)

    def _look_now(self) -> None:
        self._cancel_heard, self._cancel_hinted = False, True
        self._wake.set()
        self._room_made.set()

    # ----------------------------------------------------------------------------------------------- lines and progress

    def _write(self, run: Run, level: Level, event: str, facts: str | None) -> None:
        self._keep_line(run, level, event, facts)
        number = logging.getLevelNamesMapping()[level.upper()] if level in {"warning", "error"} else logging.DEBUG
        if self._logger.isEnabledFor(number) and self._lines_said.passes() is not None:
            import structlog  # loaded long since, by orchestrator.logs

            structlog.stdlib.get_logger(_LOGGER).log(
                number,
                event,
                job_id=run.id,
                job=run.handler.name,
                attempt=run.attempt,
                facts=None if facts is None else msgspec.json.decode(facts),
            )

    def _keep_line(self, run: Run, level: str, event: str, facts: str | None) -> None:
        if len(self._lines) >= _LINES_MAX:
            run.dropped += 1
            return
        event = event.replace("\0", "").encode("utf-8", "backslashreplace").decode()
        self._lines.append((run.id, run.attempt, datetime.now(UTC), level, event, facts))
        if not self._lines_due:
            self._lines_due = True
            asyncio.get_running_loop().call_later(_LINES_EVERY_S, self._dirty.set)

    def _report(self, run: Run, progress: str) -> None:
        now = time.monotonic()
        run.progress = progress
        if now - run.progress_at >= _PROGRESS_EVERY_S:
            run.progress_at = now
            self._move(run)
        elif run.progress_at <= now:
            # The time of the next write, which is under way: later words only replace this one.
            wait_s = run.progress_at + _PROGRESS_EVERY_S - now
            run.progress_at = now + wait_s
            asyncio.get_running_loop().call_later(wait_s, self._move, run)

    def _move(self, run: Run) -> None:
        if run.progress is not None:
            self._moved[run.id, run.attempt] = run.progress
            run.progress = None
            self._dirty.set()

    # ---------------------------------------------------------------------------------------------------------- writing

    async def _flush_on(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._endings or self._lines or self._moved:
                self._dirty.set()
            elif self._flush_over:
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
            batch = sorted(self._endings[:_BATCH_MAX], key=itemgetter(0, 1))  # locks in one order everywhere
            await self._flush_lines(session)
            await self._flush_progress(session)
            if not batch:
                return
            ids = await self._finish(session, batch)
            del self._endings[: len(batch)]
            self._room_made.set()
            self._hint_wanted = True
            for job_id, attempt, outcome, *_ in batch:
                if job_id not in ids:
                    self._emit("job.finish_refused", level="warning", job_id=job_id, attempt=attempt, outcome=outcome)

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
                await self._written(session, _PROGRESS, [self._id], rows)
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

    async def _finish(self, session: Session, batch: list[_Ending]) -> set[int]:
        try:
            (record,) = await session.fetch(_FINISH, self._id, *map(list, zip(*batch, strict=True)), self._limited)
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            if len(batch) > 1:
                return {job_id for ending in batch for job_id in await self._finish(session, [ending])}
            job_id, attempt = batch[0][:2]
            record_text = stored(
                "OutputError", f"Postgres cannot store what the handler returned (SQLSTATE {error.sqlstate})"
            )
            return await self._finish(session, [(job_id, attempt, "failed", "failed", None, record_text, 0.0)])
        return set(record["ids"] or ())


class OutputTooLargeError(ValueError):
    """A handler returned more than a job's row should hold."""


def _encoded(output: object) -> str:
    text = msgspec.json.encode(output)
    if len(text) > _OUTPUT_BYTES_MAX:
        raise OutputTooLargeError(
            f"the handler returned {len(text)} bytes of JSON; {_OUTPUT_BYTES_MAX} at most are kept: store it elsewhere"
        )
    return without_nul(text).decode()
