"""Figures of the queue, taken on a timer: a scrape reads memory, however many scrape. Reads the database."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.api.counters import LONG_BUCKETS_S, Histogram
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.database.outage import Outage
from orchestrator.jobs.figures import NameFigures, Queues, read_runs, read_sample

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.lifecycle import Lifecycle

_EVERY_S = 15.0
_TIMEOUT_S = 30.0
# A look that takes long is taken seldom: at most a 20th of one connection's time goes into the timer's, and a 10th into
# those that requests ask for.
_TIMER_SHARE = 20.0
_REQUEST_SHARE = 10.0
_REQUEST_MIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look found. `taken_at` is monotonic, in seconds; so is what it cost."""

    taken_at: float
    cost_s: float
    figures: list[NameFigures]
    queues: Queues


class Sampler:
    """The newest sample, and who takes the next one."""

    def __init__(self, pool: Any, life: Lifecycle, worker_id: str | None = None) -> None:
        self.sample: Sample | None = None
        # By name and state: what ended in this process, so that the sum over all replicas is right.
        self.runs: dict[tuple[str, str], Histogram] = {}
        self._pool, self._life, self._worker_id = pool, life, worker_id
        self._counted_until: datetime | None = None
        self._is_outdated = False
        self._lock = asyncio.Lock()

    async def fresh(self) -> Sample:
        """A sample of about now: one of a second ago serves, or an older one where it is costly.

        Raises what the database does.
        """
        async with self._lock:
            known = self.sample
            if known is not None and not self._is_outdated:
                age_s = time.monotonic() - known.taken_at
                if age_s < max(_REQUEST_MIN_S, _REQUEST_SHARE * known.cost_s):
                    return known
            return await self._take()

    def outdate(self) -> None:
        """What the newest sample tells was changed here: the next request looks anew."""
        self._is_outdated = True

    async def run(self) -> None:
        """Take a sample every 15 s, for ever. Ends only by cancellation."""
        outage = Outage()
        while True:
            pause_s = _EVERY_S
            try:
                async with self._lock:
                    pause_s = max(_EVERY_S, _TIMER_SHARE * (await self._take()).cost_s)
                outage.over()
            except (*CONNECTION_ERRORS, TimeoutError) as error:
                failure = classify(error)
                if outage.failed(failure):
                    self._life.emit("metrics.sample_failed", level="warning", cause=failure.cause, hint=failure.hint)
            await asyncio.sleep(pause_s)

    async def _take(self) -> Sample:
        began = time.monotonic()
        self._is_outdated = False
        async with asyncio.timeout(_TIMEOUT_S), self._pool.acquire() as connection:
            figures, queues = await read_sample(connection)
            await self._count_runs(connection)
        self.sample = Sample(time.monotonic(), time.monotonic() - began, figures, queues)
        return self.sample

    async def _count_runs(self, connection: Any) -> None:
        """Count what has ended here since the last look, by the database's clock."""
        if self._worker_id is None:
            return
        until, rows = await read_runs(connection, self._worker_id, since=self._counted_until, bounds=LONG_BUCKETS_S)
        self._counted_until = until
        for name, state, bucket, count, total_s in rows:
            histogram = self.runs.setdefault((name, state), Histogram(LONG_BUCKETS_S))
            histogram.counts[bucket] += count
            histogram.total += total_s
