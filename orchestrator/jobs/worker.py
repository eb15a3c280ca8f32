"""Run the handlers of claimed jobs, and decide what becomes of each. Lives on a loop in its own thread.

Two connections: one claims and listens (`claimer`), the other writes (`completer`), so that each claim overlaps with
the writing of what went before. Whatever a handler does, it ends in `_ended`, and from there with the completer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.connect import open_pool
from orchestrator.jobs.claimer import Claimer
from orchestrator.jobs.completer import Completer, Ending
from orchestrator.jobs.context import Context, Run
from orchestrator.jobs.error_record import error_record, stored, type_name, without_nul
from orchestrator.jobs.session import keep_session, limit_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.jobs.context import Level, Reason
    from orchestrator.jobs.parameters import WorkerParameters
    from orchestrator.jobs.session import Session

_DECODED_AT_ONCE_BYTES = 64 * 1024
_INSIST_EVERY_S = 5.0
_OUTPUT_BYTES_MAX = 1 << 20
_POOL_SIZE = 10
_LOGGER = "orchestrator.jobs"
_MESSAGE_SAID_MAX = 500


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

    def __init__(self, parameters: WorkerParameters) -> None:
        self.runs: dict[tuple[int, int], Run] = {}
        self._given = parameters
        limited = [handler.name for handler in parameters.registry.handlers.values() if handler.concurrency is not None]
        self._completer = Completer(
            parameters.worker_id, hinted_names=limited, emit=parameters.emit, room_made=self._make_room
        )
        self._claimer = Claimer(parameters, self._completer, runs=self.runs, begin=self._begin, stop=self.stop_run)
        self._pool: Any = None
        self._stopping = False
        self._drained = asyncio.Event()
        self._failures_said = Rate(20, 10.0)
        self._lines_said = Rate(50, 1.0)
        self._logger = logging.getLogger(_LOGGER)

    def compare_soon(self) -> None:
        """Compare what runs here with what is claimed, at once: the lease says that something may have changed."""
        self._claimer.compare_soon()

    @property
    def is_pool_exhausted(self) -> bool:
        """Whether the handlers' pool is at its largest and all of it is in use; from any thread."""
        pool = self._pool
        return pool is not None and pool.get_size() == pool.get_max_size() and pool.get_idle_size() == 0

    def _make_room(self) -> None:
        self._claimer.room_made()

    # ------------------------------------------------------------------------------------------------ from start to end

    async def run(self, until: asyncio.Event, times: Callable[[], StopTimes]) -> None:
        """Work until `until` is set. Then claim no more, wait, cancel, wait again, requeue the rest (`StopTimes`)."""
        self._pool = await open_pool(
            self._given.dsn,
            kind="handlers",
            max_size=_POOL_SIZE,
            application_name="orchestrator jobs",
            silence_s=self._given.lease_s / 3,
        )
        for run in list(self.runs.values()):
            if run.task is not None and run.task.done():  # cancelled with all of this loop, before it began
                self._interrupted(run)
        try:
            async with asyncio.TaskGroup() as group:
                # A claim that a crash of the server undoes is made again; the job's end is what must be durable.
                claiming = group.create_task(
                    self._session("worker", self._claimer.run, lost=self._claimer.wake, asynchronous_commit=True)
                )
                completing = group.create_task(self._session("worker finish", self._completer.run))
                await until.wait()
                self._stopping = True
                self._claimer.finish()
                # A claim that is under way is waited for: what it brings is known, and given back.
                limits = times()
                await asyncio.wait([claiming], timeout=limits.claim_s)
                claiming.cancel()
                await self._until_drained(limits.drain_s)
                for run in list(self.runs.values()):
                    self.stop_run(run, "stopped")
                await self._until_drained(limits.grace_s)
                for run in list(self.runs.values()):
                    self._interrupted(run)
                self._completer.finish()
                await asyncio.wait([completing], timeout=limits.write_s)
                completing.cancel()
        finally:
            self._pool.terminate()

    def _session(self, purpose: str, work: Callable[[Session], Any], **options: Any) -> Any:
        return keep_session(
            self._given.dsn,
            work,
            purpose=purpose,
            limit_s=limit_of(self._given.lease_s),
            emit=self._given.emit,
            **options,
        )

    async def _until_drained(self, limit_s: float) -> None:
        self._drained.clear()
        if self.runs:
            try:
                async with asyncio.timeout(limit_s):
                    await self._drained.wait()
            except TimeoutError:
                return

    def _begin(self, record: Any, claim: int) -> None:
        """Run what was claimed; where it must not run beside what is here, behind that."""
        run = Run(record, claim, self._given.registry.handlers[record["name"]])
        if self._stopping:
            self._interrupted(run)
            return
        before = []
        for other in list(self.runs.values()):
            if other.id == run.id:
                # Taken over from this very worker, whose lease was over, or whose claim a crash has undone.
                self.stop_run(other, "lost")
            elif other.reason != "lost" or other.handler is not run.handler or run.handler.concurrency is None:
                continue
            if other.task is not None:
                before.append(other.task)
        self.runs[run.id, run.claim] = run
        run.task = asyncio.get_running_loop().create_task(self._perform(run, before))

    # ---------------------------------------------------------------------------------------------------------- running

    async def _perform(self, run: Run, before: list[asyncio.Task[None]]) -> None:
        run.entered = True
        handler, given = run.handler, self._given
        try:
            if before:
                await asyncio.wait(before)
            if run.reason is not None:
                raise asyncio.CancelledError  # noqa: TRY301 told to end before it began
            if run.timeout_s is not None:
                run.timer = asyncio.get_running_loop().call_later(run.timeout_s, self.stop_run, run, "timed_out")
            try:
                decode = handler.decoder.decode
                is_long = len(run.payload) > _DECODED_AT_ONCE_BYTES  # the loop also answers probes
                payload = await asyncio.to_thread(decode, run.payload) if is_long else decode(run.payload)
            except msgspec.DecodeError:
                run.is_unreadable = True
                raise
            context = Context(run, self._pool, self._write, self._completer.report, given.redact, given.service)
            output = await handler.function(context, payload)
            text = None if output is None else _encoded(output)
        except BaseException as error:  # noqa: BLE001 SystemExit and its like are failures of the job, not of the server
            self._ended(run, None, error)
        else:
            self._ended(run, text, None)

    def _ended(self, run: Run, output: str | None, error: BaseException | None) -> None:
        """Decide what becomes of the job; nothing here waits."""
        if self.runs.pop((run.id, run.claim), None) is None:
            return  # given back already, as the server stopped
        if run.timer is not None:
            run.timer.cancel()
        if run.dropped:
            dropped = msgspec.json.encode({"dropped": run.dropped}).decode()
            self._completer.keep_line(run, "warning", "log.cut", dropped)
        self._completer.move(run)
        if run.reason == "lost":
            self._given.emit("job.lost", level="warning", job_id=run.id, job=run.handler.name, attempt=run.attempt)
        elif run.reason == "stopped":
            self._interrupted(run)
        elif run.reason == "cancelled":
            self._put(run, "cancelled", "cancelled", output=output)
        elif run.reason == "timed_out":
            self._failed(run, "timed_out", self._timeout_record(run, error), "TimeoutError")
        elif error is not None:
            self._failed(run, "failed", error_record(error, self._given.redact), type_name(error))
        else:
            self._put(run, "succeeded", "succeeded", output=output)
        self._claimer.room_made()
        if not self.runs:
            self._drained.set()

    def _put(self, run: Run, outcome: str, state: str, **more: Any) -> None:
        self._completer.put(Ending(run.id, run.claim, run.attempt, outcome, state, **more))

    def _timeout_record(self, run: Run, error: BaseException | None) -> str:
        message = f"not done within {run.timeout_s:g} s"
        if error is None:
            return stored("TimeoutError", message)
        # Where it was when it was cancelled is what a person wants to know.
        trace = msgspec.json.decode(error_record(error, self._given.redact))["trace"]
        return stored("TimeoutError", message, trace)

    def _failed(self, run: Run, outcome: str, record: str, kind: str) -> None:
        wait_s: float | None = None
        if run.attempt < run.max_attempts:
            wait_s = run.handler.backoff.wait_s(run.attempt, random.random())  # noqa: S311 jitter is no secret
        state = "failed" if wait_s is None else "scheduled" if wait_s > 0 else "queued"
        schema_hash = run.handler.schema_hash if run.is_unreadable else None
        self._put(run, outcome, state, error=record, wait_s=wait_s or 0.0, unreadable_by=schema_hash)
        kept_back = self._failures_said.passes()
        if kept_back is not None:
            self._given.emit(
                "job.failed",
                level="error" if wait_s is None else "warning",
                job_id=run.id,
                job=run.handler.name,
                attempt=run.attempt,
                max_attempts=run.max_attempts,
                outcome=outcome,
                error_type=kind,
                error=msgspec.json.decode(record)["message"][:_MESSAGE_SAID_MAX],
                retry_in_s=None if wait_s is None else round(wait_s, 3),
                **({"more_not_shown": kept_back} if kept_back else {}),
            )

    def _interrupted(self, run: Run) -> None:
        self.runs.pop((run.id, run.claim), None)
        self._put(run, "interrupted", "queued")

    def stop_run(self, run: Run, reason: Reason) -> None:
        """Tell a job's task to end. What was told first stays the reason, but that a lost job is nobody's to finish."""
        if (run.id, run.claim) not in self.runs:
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
        self._given.emit(
            "job.stop_ignored",
            level="warning",
            job_id=run.id,
            job=run.handler.name,
            attempt=run.attempt,
            reason=run.reason,
            hint="The handler catches CancelledError and goes on; it is cancelled again.",
        )
        self.stop_run(run, run.reason or "cancelled")

    # ----------------------------------------------------------------------------------------------- lines and progress

    def _write(self, run: Run, level: Level, event: str, facts: str | None) -> None:
        self._completer.keep_line(run, level, event, facts)
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


class OutputTooLargeError(ValueError):
    """A handler returned more than a job's row should hold."""


def _encoded(output: object) -> str:
    text = msgspec.json.encode(output)
    if len(text) > _OUTPUT_BYTES_MAX:
        raise OutputTooLargeError(
            f"the handler returned {len(text)} bytes of JSON; {_OUTPUT_BYTES_MAX} at most are kept: store it elsewhere"
        )
    return without_nul(text).decode()
