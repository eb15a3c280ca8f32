"""What the routes work with, handed to each call. It knows no route."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.api.counters import Measures
from orchestrator.api.security import Safety

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.api.audit import AuditTrail
    from orchestrator.api.event_log import Tail
    from orchestrator.api.queue_sampler import Sampler
    from orchestrator.jobs.registry import Registry
    from orchestrator.jobs.schedule_monitor import ScheduleMonitor
    from orchestrator.jobs.server import JobServer
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.sources import Source


class Backend(msgspec.Struct):
    """What the routes work with. `safety` is there from the start; the supervisor fills the rest at LAUNCHING."""

    safety: Safety = msgspec.field(default_factory=Safety)
    pool: Any = None
    # Fewer than the pool has connections.
    writing: asyncio.Semaphore = msgspec.field(default_factory=lambda: asyncio.Semaphore(3))
    sources: Sequence[Source] = msgspec.field(default_factory=tuple)
    policy: Any = "drizzle"
    ahead: Any = "refuse"
    registry: Registry | None = None
    jobs: JobServer | None = None
    life: Lifecycle | None = None
    measures: Measures = msgspec.field(default_factory=Measures)
    sampler: Sampler | None = None
    monitor: ScheduleMonitor | None = None
    tail: Tail | None = None
    audit: AuditTrail | None = None
