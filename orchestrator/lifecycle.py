"""The state of a start: its phase, earlier phases, checks, listeners. Pure: no I/O, no clock of its own.

Everything below the supervisor speaks through `Lifecycle.emit`; logs, `/health` and the event stream are listeners. The
phase is the only truth about readiness: nothing else says whether the service serves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping  # noqa: TC003 msgspec reads the annotations
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

Level = Literal["debug", "info", "warning", "error"]


class Phase(StrEnum):
    """Where a start is. The order is the only safe one."""

    STARTING = "starting"
    CONNECTING = "connecting"
    LOCKING = "locking"
    EXTENSIONS = "extensions"
    MIGRATING = "migrating"
    LAUNCHING = "launching"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_ENDINGS = frozenset({Phase.STOPPING, Phase.FAILED})
_NEXT: Mapping[Phase, frozenset[Phase]] = {
    # A command that needs no database ends without a login.
    Phase.STARTING: frozenset({Phase.CONNECTING, Phase.STOPPED}) | _ENDINGS,
    Phase.CONNECTING: frozenset({Phase.LOCKING, Phase.READY, Phase.STOPPED}) | _ENDINGS,
    # A connection that is lost under the lock, or a standby, sends the start back to CONNECTING.
    Phase.LOCKING: frozenset({Phase.EXTENSIONS, Phase.CONNECTING, Phase.STOPPED}) | _ENDINGS,
    Phase.EXTENSIONS: frozenset({Phase.MIGRATING, Phase.CONNECTING}) | _ENDINGS,
    Phase.MIGRATING: frozenset({Phase.LAUNCHING, Phase.CONNECTING, Phase.STOPPED}) | _ENDINGS,
    Phase.LAUNCHING: frozenset({Phase.READY, Phase.CONNECTING}) | _ENDINGS,
    # A database that is lost after READY is CONNECTING again, then READY again, in the same process.
    Phase.READY: frozenset({Phase.CONNECTING}) | _ENDINGS,
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.FAILED}),
    Phase.STOPPED: frozenset(),
    Phase.FAILED: frozenset(),
}

_HISTORY_LIMIT = 200


class Event(msgspec.Struct, frozen=True):
    """One thing that happened: a dotted name in the past tense, and facts. `at` is in Unix seconds."""

    name: str
    level: Level
    at: float
    phase: Phase
    facts: Mapping[str, object]


class PhaseEntry(msgspec.Struct, frozen=True):
    """One stay in a phase; `entered_at` in Unix seconds, `duration_s` None while it lasts."""

    phase: Phase
    entered_at: float
    duration_s: float | None


class Check(msgspec.Struct, frozen=True):
    """What is known of one thing that the service depends on. `at` is in Unix seconds."""

    status: Literal["ok", "pending", "warning", "failed"]
    at: float
    facts: Mapping[str, object]


class MigrationItem(msgspec.Struct):
    """One migration of one source, as the start sees it; `duration_s` None until it was applied by this process."""

    source: str
    name: str
    state: Literal["applied", "pending", "running", "failed"]
    duration_s: float | None = None


class Activity(msgspec.Struct, frozen=True):
    """What the running statement does, as the server's own views tell it; `elapsed_s` since the statement began.

    `percent` is known for index builds, COPY, CLUSTER and VACUUM (pg_stat_progress_*), `stage` is the server's word for
    it, `blockers` are the sessions that it waits for.
    """

    statement_kind: str
    excerpt: str
    elapsed_s: float
    wait_event: str | None = None
    stage: str | None = None
    percent: float | None = None
    blockers: tuple[Mapping[str, object], ...] = ()


class MigrationCounts(msgspec.Struct):
    """How far the migrations are; `applied_now` counts those of this process.

    `started_at` is a monotonic time in seconds, None before the first one. `items` are all migrations of all sources in
    order, `activity` what the running statement does.
    """

    applied: int = 0
    total: int = 0
    applied_now: int = 0
    current: str | None = None
    statement: int = 0
    statements: int = 0
    started_at: float | None = None
    elapsed_s: float | None = None
    items: list[MigrationItem] = msgspec.field(default_factory=list)
    activity: Activity | None = None

    def item(self, source: str, name: str) -> MigrationItem | None:
        """The item of that name."""
        return next((item for item in self.items if item.name == name and item.source == source), None)


class Lifecycle(msgspec.Struct):
    """The state of one process, from exec to exit.

    `now` gives Unix seconds and `monotonic` monotonic seconds; both are handed in, so that a table can test this.
    `clean` takes secrets out of facts: what is remembered here is shown to everybody who asks. Events are handed on as
    they are. `stop_within_s` is what a stop may take from its first moment on (SHUTDOWN_TIMEOUT). `revision` grows with
    every event and every check: where it is the same, and no migration runs, so is all the rest. `instance` is what the
    operator calls this one (INSTANCE_NAME).
    Not thread-safe: all calls come from the event loop's thread.
    """

    now: Callable[[], float]
    monotonic: Callable[[], float]
    checks: dict[str, Check] = msgspec.field(default_factory=dict)
    migrations: MigrationCounts = msgspec.field(default_factory=MigrationCounts)
    warnings: list[dict[str, object]] = msgspec.field(default_factory=list)
    was_ready: bool = False
    connect_attempts: int = 0
    failure: Mapping[str, object] | None = None
    stop_within_s: float = 15.0
    clean: Callable[[dict[str, object]], dict[str, object]] = dict
    instance: str = ""
    revision: int = 0
    _phase: Phase = Phase.STARTING
    _entered_at: float = 0.0
    _entered_monotonic: float = 0.0
    _born_monotonic: float = 0.0
    _history: deque[PhaseEntry] = msgspec.field(default_factory=lambda: deque(maxlen=_HISTORY_LIMIT))
    _listeners: list[Callable[[Event], None]] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        self._entered_at = self.now()
        self._entered_monotonic = self._born_monotonic = self.monotonic()

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase

    @property
    def uptime_s(self) -> float:
        """Seconds since this object was made, which is the start of the process for all a prober can see."""
        return self.monotonic() - self._born_monotonic

    @property
    def stop_left_s(self) -> float:
        """Seconds that a stop may still take; all of them while nobody has asked for one."""
        spent_s = self.monotonic() - self._entered_monotonic if self._phase is Phase.STOPPING else 0.0
        return max(0.0, self.stop_within_s - spent_s)

    @property
    def history(self) -> list[PhaseEntry]:
        """The phases so far, the present one last; bounded to the newest 200."""
        present = PhaseEntry(self._phase, self._entered_at, None)
        return [*self._history, present]

    def durations_s(self) -> dict[str, float]:
        """Seconds spent in each phase until now, the present one included."""
        total: dict[str, float] = {}
        for entry in self._history:
            total[entry.phase] = total.get(entry.phase, 0.0) + (entry.duration_s or 0.0)
        total[self._phase] = total.get(self._phase, 0.0) + self.monotonic() - self._entered_monotonic
        return total

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` for each event, at once and in order; returns what ends it. A listener must not raise."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def emit(self, name: str, *, level: Level = "info", **facts: object) -> None:
        """Tell every listener that `name` happened."""
        self.revision += 1
        event = Event(name=name, level=level, at=self.now(), phase=self._phase, facts=facts)
        for listener in tuple(self._listeners):
            listener(event)

    def enter(self, phase: Phase, **facts: object) -> None:
        """Go to `phase` and emit `phase.entered` with the name and duration of the one that ended.

        Raises:
            AssertionError: the step is not one of the order of a start; that is a bug of ours.
        """
        if phase is self._phase:
            return
        assert phase in _NEXT[self._phase], f"illegal phase step {self._phase} → {phase}"  # noqa: S101
        ended, duration_s = self._phase, self.monotonic() - self._entered_monotonic
        self._history.append(PhaseEntry(ended, self._entered_at, duration_s))
        self._phase, self._entered_at, self._entered_monotonic = phase, self.now(), self.monotonic()
        self.was_ready = self.was_ready or phase is Phase.READY
        self.emit(
            "phase.entered",
            level="error" if phase is Phase.FAILED else "info",
            previous=str(ended),
            previous_duration_s=round(duration_s, 3),
            **facts,
        )

    def fail(self, **facts: object) -> None:
        """Remember why the start failed, for those who watch it, and enter FAILED."""
        self.failure = self.clean(facts)
        self.revision += 1  # where it is FAILED already, there is no event
        self.enter(Phase.FAILED)

    def check(self, name: str, status: Literal["ok", "pending", "warning", "failed"], **facts: object) -> None:
        """Remember the newest outcome of the check `name`; `/health` shows it."""
        self.revision += 1
        self.checks[name] = Check(status=status, at=self.now(), facts=self.clean(facts))

    def warn(self, name: str, **facts: object) -> None:
        """Emit a warning that also stands on `/health` until the process ends; the same warning is kept once."""
        entry: dict[str, object] = {"event": name, **self.clean(facts)}
        if entry not in self.warnings:
            self.warnings.append(entry)
        self.emit(name, level="warning", **facts)

    def warn_about(self, name: str, subject: str, **facts: object) -> None:
        """As `warn`, but the warning stands only until `no_longer`; told again it is brought up to date in silence."""
        is_new = not self._without(name, subject)
        self.warnings.append({"event": name, "subject": subject, **self.clean(facts)})
        self.revision += 1
        if is_new:
            self.emit(name, level="warning", subject=subject, **facts)

    def no_longer(self, name: str, subject: str) -> bool:
        """Take a warning of `warn_about` back; whether there was one."""
        self.revision += 1
        return self._without(name, subject)

    def _without(self, name: str, subject: str) -> bool:
        kept = [one for one in self.warnings if (one["event"], one.get("subject")) != (name, subject)]
        was_there = len(kept) < len(self.warnings)
        self.warnings[:] = kept
        return was_there
