"""The job server of one process: what runs here, from LAUNCHING until the process stops.

Handlers run on an event loop in a thread of their own; leases are kept from the loop of HTTP. So a handler that blocks
its loop neither freezes `/health` nor loses its jobs to another replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.jobs.registry import Registry


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs in this process; `started_at` in Unix seconds by this machine's clock."""

    id: int
    name: str
    attempt: int
    started_at: float


class JobServer:
    """What runs here. Its attributes may be read from any thread."""

    worker_id: str
    registry: Registry
    concurrency: int
    lease_s: float

    @property
    def running(self) -> list[RunningJob]:
        """The jobs that run in this process now."""
        raise NotImplementedError
