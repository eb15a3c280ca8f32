"""What this process counts and remembers from its first moment on, for `/metrics` and `/api/events`. Memory only.

Plain numbers in dicts: prometheus-client renders them when somebody asks, and is not loaded before that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from orchestrator.lifecycle import Event

HTTP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_REMEMBERED = 500
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Histogram:
    """How many values fell into each bucket, and their sum. Bounds are upper ones, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Rows (upper bound as text, how many are at most that), as Prometheus has them."""
        rows, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            rows.append((bound, float(seen)))
        return rows


class Measures(msgspec.Struct):
    """The counters of a process. Not thread-safe: the event loop's thread alone writes and reads."""

    requests: dict[tuple[str, str, int], int] = msgspec.field(default_factory=dict)
    request_s: dict[tuple[str, str], Histogram] = msgspec.field(default_factory=dict)
    migration_s: dict[str, Histogram] = msgspec.field(default_factory=dict)
    lock_wait_s: float = 0.0
    logins: int = 0
    recent: deque[Event] = msgspec.field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def count_request(self, method: str, route: str, status: int, duration_s: float | None) -> None:
        """One request that was answered; `route` is a template, lest every path be a label. None: it was a stream."""
        method = method if method in _METHODS else "other"
        key = (method, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        if duration_s is not None:
            histogram = self.request_s.get((method, route))
            if histogram is None:
                histogram = self.request_s[method, route] = Histogram(HTTP_BUCKETS_S)
            histogram.add(duration_s)

    def hear(self, event: Event) -> None:
        """A listener of the Lifecycle."""
        if event.name == "database.connected":
            self.logins += 1
        elif event.name == "lock.acquired":
            self.lock_wait_s += _seconds(event, "waited_s")
        elif event.name == "migration.applied":
            source = str(event.facts.get("source", ""))
            self.migration_s.setdefault(source, Histogram(LONG_BUCKETS_S)).add(_seconds(event, "duration_s"))
        elif event.name == "migration.progressed":
            return
        if is_told(event):
            self.recent.append(event)


def is_told(event: Event) -> bool:
    """Whether `/api/events` tells it: phases and migrations."""
    return event.name.startswith(("phase.", "migration.", "migrations."))


def _seconds(event: Event, name: str) -> float:
    value = event.facts.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0
