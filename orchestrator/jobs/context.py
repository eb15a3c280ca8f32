"""What a handler is given: the job's facts, a log, progress, the pool. Pure but for the clock; the worker writes.

Bounded on every side: a handler that logs or reports in a loop costs a fixed amount of memory, and its last lines.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator.jobs.error_record import cut, redacted_json, without_nul

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.jobs.registry import Handler
    from orchestrator.migrator.sources import Source
    from orchestrator.settings import Settings

Level = Literal["debug", "info", "warning", "error"]
# Why a job's task was told to end.
Reason = Literal["cancelled", "timed_out", "lost", "stopped"]

LINES_MAX = 1000
LINE_BYTES_MAX = 4096
_EVENT_LENGTH_MAX = 500
_NOTE_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Service:
    """The service that the jobs run in: for handlers that look after it. `dsn` is the one that migrates."""

    settings: Settings
    dsn: Dsn
    sources: Sequence[Source]


class Run:
    """One attempt at a job in this process: what the worker knows of it."""

    __slots__ = (
        "attempt",
        "claim",
        "dropped",
        "entered",
        "handler",
        "id",
        "is_unreadable",
        "lines",
        "max_attempts",
        "payload",
        "progress",
        "progress_at",
        "reason",
        "since",
        "started_at",
        "task",
        "timeout_s",
        "timer",
    )

    def __init__(self, record: Any, claim: int, handler: Handler) -> None:
        self.id: int = record["id"]
        self.claim = claim
        self.attempt: int = record["attempt"]
        self.max_attempts: int = record["max_attempts"]
        self.payload: str = record["payload"]
        timeout_s = record["timeout_s"]
        self.timeout_s: float | None = handler.timeout_s if timeout_s is None else timeout_s
        self.handler = handler
        self.started_at = time.time()
        self.since = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.entered = False
        self.is_unreadable = False
        self.reason: Reason | None = None
        self.lines = 0
        self.dropped = 0
        self.progress: str | None = None
        self.progress_at = 0.0


class JobLog:
    """Lines that are kept with the job: an event, and facts as keys. The first thousand of an attempt are kept."""

    __slots__ = ("_bound", "_redact", "_run", "_write")

    def __init__(
        self,
        run: Run,
        write: Callable[[Run, Level, str, str | None], None],
        redact: Callable[[str], str],
        bound: dict[str, Any],
    ) -> None:
        self._run, self._write, self._redact, self._bound = run, write, redact, bound

    def bind(self, **facts: Any) -> JobLog:
        """A log whose lines all have these facts as well."""
        return JobLog(self._run, self._write, self._redact, {**self._bound, **facts})

    def debug(self, event: str, **facts: Any) -> None:
        """Keep a line of this level; it is on the process's own log where that shows debug."""
        self._line("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        """Keep a line of this level; it is on the process's own log where that shows debug."""
        self._line("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Keep a line of this level, and say it on the process's own log, too."""
        self._line("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        """Keep a line of this level, and say it on the process's own log, too."""
        self._line("error", event, facts)

    def _line(self, level: Level, event: str, facts: dict[str, Any]) -> None:
        run = self._run
        if run.lines >= LINES_MAX:
            run.dropped += 1
            return
        run.lines += 1
        if self._bound:
            facts = {**self._bound, **facts}
        kept = encoded_facts(facts, self._redact) if facts else None
        self._write(run, level, cut(str(event), _EVENT_LENGTH_MAX, self._redact), kept)


def encoded_facts(facts: dict[str, Any], redact: Callable[[str], str]) -> str:
    """JSON of the facts, whatever they are, without secrets, and cut to `LINE_BYTES_MAX`."""
    try:
        whole = without_nul(msgspec.json.encode(facts, enc_hook=str))
    except Exception as error:  # noqa: BLE001 a fact that cannot be shown must not fail the job that logs it
        return msgspec.json.encode({"unshowable": type(error).__name__}).decode()
    if len(whole) > LINE_BYTES_MAX:
        # Cut in the middle of a character, or of an escape: it is text from here on, not JSON.
        text = whole[: LINE_BYTES_MAX * 4].decode("utf-8", "replace")
        return msgspec.json.encode({"cut": cut(text, LINE_BYTES_MAX // 2, redact)}).decode()
    return redacted_json(whole, redact)


class Context:
    """What a handler works with: `job_id`, `name`, `attempt` (1 for the first), `max_attempts`, `pool`, `log`.

    `pool` is an asyncpg pool on the service's database, shared by the handlers of the process. `service` is there for
    the built-in handlers, None outside of `serve`.
    """

    __slots__ = ("_redact", "_report", "_run", "log", "pool", "service")

    def __init__(
        self,
        run: Run,
        pool: Any,
        write: Callable[[Run, Level, str, str | None], None],
        report: Callable[[Run, str], None],
        redact: Callable[[str], str],
        service: Service | None = None,
    ) -> None:
        self._run, self._report, self._redact = run, report, redact
        self.pool, self.service = pool, service
        self.log = JobLog(run, write, redact, {})

    @property
    def job_id(self) -> int:
        """The job's id."""
        return self._run.id

    @property
    def name(self) -> str:
        """The handler's name."""
        return self._run.handler.name

    @property
    def attempt(self) -> int:
        """Which attempt this is, 1 for the first."""
        return self._run.attempt

    @property
    def max_attempts(self) -> int:
        """How many there are at most."""
        return self._run.max_attempts

    @property
    def stop_requested(self) -> bool:
        """Whether the job should end: cancelled, timed out, lost to another worker, or the server stops.

        The task is cancelled as well, so only code that runs in a thread, or catches CancelledError, need ask.
        """
        return self._run.reason is not None

    async def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Tell how far it is. As often as you like: it is written a few times a second, and the last word always.

        Gives other tasks a turn, so a loop that reports can be cancelled.
        """
        note = None if note is None else cut(str(note), _NOTE_LENGTH_MAX, self._redact)
        self._report(self._run, encoded_facts({"done": done, "total": total, "note": note}, self._redact))
        await asyncio.sleep(0)
