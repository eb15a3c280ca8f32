"""What happened in a run, for the checker: what was acknowledged, told, tormented, and which losses are excused."""

from dataclasses import dataclass, field


@dataclass
class Excuse:
    """A time in which a process could not keep its lease."""

    pid: int
    since: float
    until: float = float("inf")
    why: str = ""


@dataclass
class Told:
    """What one follower of the events was told, in order: (job, attempt, state, time). `began` is the first place."""

    began: int | None = None
    events: list[tuple[int, int, str, str]] = field(default_factory=list)
    not_resumed: int = 0
    connections: int = 0

    def has(self, event: tuple[int, int, str]) -> bool:
        """Whether this one is among the last that it was told."""
        return any(one[:3] == event for one in self.events[-200:])


@dataclass
class History:
    """All of it."""

    acknowledged: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)
    # idempotency key → (job, dedupe key), as the API answered; and what was answered otherwise later.
    keys: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    key_changes: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    excuses: list[Excuse] = field(default_factory=list)
    workers: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)

    def is_excused(self, pid: int, since: float, until: float) -> bool:
        return any(one.pid == pid and one.since <= until and one.until >= since for one in self.excuses)
