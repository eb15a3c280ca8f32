"""`/metrics` as Prometheus reads it: what is in memory, in its words. Touches nothing but memory.

It answers in every phase, since the phase is one of its figures, and asks for the token if there is one: the names of
handlers and their numbers are nobody else's, and Prometheus can send it (`authorization: credentials_file`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from orchestrator import __version__
from orchestrator.jobs.store import STATES
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from orchestrator.api.backend import Backend
    from orchestrator.api.counters import Histogram, Measures
    from orchestrator.lifecycle import Lifecycle


class Exposition:
    """The registry of one process. A collector of prometheus-client: `collect` is called for each scrape."""

    def __init__(self, life: Lifecycle, backend: Backend) -> None:
        self._life, self._backend = life, backend
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its Content-Type: OpenMetrics where `accept` asks for it, else the text format."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Nothing: names are unique, and the first scrape should not cost two."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All figures, as they are now."""
        yield from self._start()
        yield from self._migrations()
        yield from _http(self._backend.measures)
        yield from self._queue()
        yield from self._schedules()

    def _start(self) -> Iterator[Metric]:
        life = self._life
        yield InfoMetricFamily("orchestrator_build", "What runs here.", {"version": __version__})
        yield _gauge(
            "orchestrator_phase", "1 for the phase that it is in.", "phase", {p: float(p is life.phase) for p in Phase}
        )
        seconds = CounterMetricFamily("orchestrator_phase_seconds", "Time spent in each phase.", labels=["phase"])
        for phase, duration_s in life.durations_s().items():
            seconds.add_metric([phase], duration_s)
        yield seconds
        yield GaugeMetricFamily("orchestrator_uptime_seconds", "Since the process began.", life.uptime_s)
        yield CounterMetricFamily(
            "orchestrator_database_connect_attempts",
            "Tries to connect for the start, failed ones and good ones.",
            life.connect_attempts + self._backend.measures.logins,
        )
        check = life.checks.get("database")
        yield GaugeMetricFamily(
            "orchestrator_database_up",
            "1 where the last check of the database succeeded.",
            float(check is not None and check.status == "ok"),
        )
        lock = life.checks.get("lock")
        waited_s = lock.facts.get("waited_s") if lock is not None and lock.status == "pending" else None
        waiting_s = float(waited_s) if isinstance(waited_s, (int, float)) else 0.0
        yield CounterMetricFamily(
            "orchestrator_lock_wait_seconds",
            "Waited for the migration lock.",
            self._backend.measures.lock_wait_s + (waiting_s if life.phase is Phase.LOCKING else 0.0),
        )

    def _migrations(self) -> Iterator[Metric]:
        state = self._life.migrations
        yield GaugeMetricFamily("orchestrator_migrations_applied", "Migrations that are applied.", state.applied)
        yield GaugeMetricFamily(
            "orchestrator_migrations_pending",
            "Migrations that are not applied yet.",
            max(0, state.total - state.applied),
        )
        yield _histogram(
            "orchestrator_migration_duration_seconds",
            "Migrations that this process applied, by source.",
            ["source"],
            {(source,): histogram for source, histogram in self._backend.measures.migration_s.items()},
        )

    def _queue(self) -> Iterator[Metric]:
        sampler = self._backend.sampler
        sample = None if sampler is None else sampler.sample
        jobs = GaugeMetricFamily("orchestrator_jobs", "Jobs kept, by name and state.", labels=["name", "state"])
        oldest = GaugeMetricFamily(
            "orchestrator_jobs_oldest_queued_seconds", "For how long the first job has been due.", labels=["name"]
        )
        workers = GaugeMetricFamily("orchestrator_workers", "Workers that were heard of within their lease.")
        age = GaugeMetricFamily("orchestrator_queue_sample_age_seconds", "How old the figures of the queue are.")
        if sample is not None and sampler is not None:
            counts: dict[tuple[str, str], int] = {}
            waits: dict[str, float] = {}
            for figure in sample.figures:
                for every in STATES:
                    counts.setdefault((figure.name, every), 0)
                counts[figure.name, figure.state] += figure.count
                waits[figure.name] = max(waits.get(figure.name, 0.0), figure.oldest_s or 0.0)
            for (name, state), count in counts.items():
                jobs.add_metric([name, state], count)
            for name, wait_s in waits.items():
                oldest.add_metric([name], wait_s)
            workers.add_metric([], sum(worker.is_alive for worker in sample.queues.workers))
            age.add_metric([], time.monotonic() - sample.taken_at)
        yield from (jobs, oldest, workers, age)
        runs = {} if sampler is None else sampler.runs
        yield _histogram(
            "orchestrator_job_run_seconds",
            "Jobs that ended in this process: from the start of the last attempt, by name and state.",
            ["name", "state"],
            runs,
        )

    def _schedules(self) -> Iterator[Metric]:
        monitor = self._backend.monitor
        good = GaugeMetricFamily(
            "orchestrator_schedule_last_success_timestamp_seconds",
            "When a run of the schedule last succeeded.",
            labels=["schedule"],
        )
        bad = GaugeMetricFamily(
            "orchestrator_schedule_last_failure_timestamp_seconds",
            "When a run of the schedule was last given up.",
            labels=["schedule"],
        )
        taken = GaugeMetricFamily(
            "orchestrator_backup_last_success_timestamp_seconds", "When the newest good backup was taken."
        )
        size = GaugeMetricFamily("orchestrator_backup_last_success_size_bytes", "How large it is.")
        if monitor is not None:
            found = monitor.found
            for one in found.schedules:
                if one.succeeded_at is not None:
                    good.add_metric([one.name], one.succeeded_at.timestamp())
                if one.failed_at is not None:
                    bad.add_metric([one.name], one.failed_at.timestamp())
            if found.backup_at is not None:
                taken.add_metric([], found.backup_at.timestamp())
                size.add_metric([], found.backup_size_bytes)
        yield from (good, bad, taken, size)


def _http(measures: Measures) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "orchestrator_http_requests", "Requests answered.", labels=["method", "route", "status"]
    )
    for (method, route, status), count in measures.requests.items():
        requests.add_metric([method, route, str(status)], count)
    yield requests
    yield _histogram(
        "orchestrator_http_request_seconds",
        "From the request's head to the answer's end; streams are not among them.",
        ["method", "route"],
        measures.request_s,
    )


def _gauge(name: str, text: str, label: str, values: Mapping[Phase, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _histogram(name: str, text: str, labels: list[str], values: Mapping[Any, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for key, histogram in values.items():
        family.add_metric(list(key), buckets=histogram.cumulative(), sum_value=histogram.total)
    return family
