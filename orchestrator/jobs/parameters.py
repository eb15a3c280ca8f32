"""What the parts of one worker are given. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.dsn import Dsn
    from orchestrator.jobs.context import Service
    from orchestrator.jobs.registry import Registry


@dataclass(frozen=True, slots=True)
class WorkerParameters:
    """One worker: who it is, what it can run, where. `lease_s` is in seconds.

    `emit` tells an event and may be called in any thread; `redact` takes secrets out of a text. `service` is there in
    `serve`, for the built-in handlers.
    """

    dsn: Dsn
    registry: Registry
    worker_id: str
    concurrency: int
    lease_s: float
    emit: Callable[..., None]
    redact: Callable[[str], str]
    service: Service | None = None
