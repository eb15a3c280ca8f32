"""Events that outsiders can cause, told at once and then counted: whoever reaches the port cannot fill the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.lifecycle import Level, Lifecycle

_EVERY_S = 10.0


class RateLimitedEvents:
    """Emits each event by its name once in ten seconds; `more` says how many of them were left out since the last."""

    def __init__(self, life: Lifecycle, *, every_s: float = _EVERY_S) -> None:
        self._life, self._every_s = life, every_s
        self._told_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def emit(self, name: str, *, level: Level = "warning", **facts: object) -> None:
        """Tell that it happened, or count it. `name` is one of ours: the names that are remembered are few."""
        now = self._life.monotonic()
        if now - self._told_at.get(name, -self._every_s) < self._every_s:
            self._left_out[name] = self._left_out.get(name, 0) + 1
            return
        self._told_at[name] = now
        more = self._left_out.pop(name, 0)
        self._life.emit(name, level=level, **facts, **({"more": more} if more else {}))
