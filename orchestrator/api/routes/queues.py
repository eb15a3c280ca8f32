"""`GET /api/queues` and `GET /api/handlers`: what waits, what runs, who works, and what can be done at all."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 msgspec reads the annotations
from typing import Any

import msgspec

from orchestrator.api.operations import Answer, Call, Operation
from orchestrator.api.problems import Refusal
from orchestrator.jobs.bulk import pause_queue, resume_queue
from orchestrator.jobs.figures import Queues  # noqa: TC001 the type of a body, read from the annotation
from orchestrator.jobs.store import Name  # noqa: TC001 as above


class HandlerFacts(msgspec.Struct, frozen=True):
    """One handler. `payload_schema` is JSON Schema (2020-12)."""

    name: str
    doc: str
    queue: str
    max_attempts: int
    timeout_s: float | None
    concurrency: int | None
    schedule: str | None
    payload_schema: dict[str, Any]


class Handlers(msgspec.Struct, frozen=True):
    """All handlers of this process."""

    handlers: list[HandlerFacts]


async def queues(call: Call) -> Queues:
    """All queues and workers."""
    if call.backend.sampler is None:
        raise Refusal(503, "the job server is not ready yet", headers={"Retry-After": "1"})
    return (await call.backend.sampler.fresh()).queues


async def handlers(call: Call) -> Handlers:
    """All handlers."""
    registry = call.backend.registry
    known = () if registry is None else registry.handlers.values()
    return Handlers(
        [
            HandlerFacts(
                name=handler.name,
                doc=handler.doc,
                queue=handler.queue,
                max_attempts=handler.max_attempts,
                timeout_s=handler.timeout_s,
                concurrency=handler.concurrency,
                schedule=handler.schedule,
                payload_schema=handler.payload_schema(),
            )
            for handler in known
        ]
    )


class QueuePath(msgspec.Struct, frozen=True):
    """A queue's name."""

    name: Name


class Paused(msgspec.Struct, frozen=True):
    """Whether the queue is paused now; `changed` where it was not so before."""

    name: str
    paused: bool
    changed: bool


async def pause(call: Call) -> Paused:
    """Let nobody claim its jobs."""
    async with call.connection() as connection:
        changed = await pause_queue(connection, call.parameters.name)
    return _changed(call, paused=True, changed=changed)


async def resume(call: Call) -> Paused:
    """Claim its jobs again."""
    async with call.connection() as connection:
        changed = await resume_queue(connection, call.parameters.name)
    return _changed(call, paused=False, changed=changed)


def _changed(call: Call, *, paused: bool, changed: bool) -> Paused:
    call.changed(queue=call.parameters.name, paused=paused)
    if call.backend.sampler is not None:
        call.backend.sampler.outdate()
    return Paused(call.parameters.name, paused=paused, changed=changed)


_QUEUE = "/api/queues/{name}"


class Overview(msgspec.Struct, frozen=True):
    """What no other route tells: the newest good backup, None where none is known, and the schedule that makes them."""

    backup_at: datetime | None
    backup_size_bytes: int
    backup_schedule: str | None


_BACKUPS = """
SELECT b.taken_at, b.size_bytes,
    (SELECT name FROM orchestrator.schedules
        WHERE job = 'database.backup' AND enabled ORDER BY name LIMIT 1) AS schedule
FROM (SELECT true) one LEFT JOIN LATERAL (
    SELECT taken_at, size_bytes FROM orchestrator.backups ORDER BY taken_at DESC LIMIT 1
) b ON true
"""


async def overview(call: Call) -> Overview:
    """The newest backup."""
    async with call.connection() as connection:
        row = await connection.fetchrow(_BACKUPS)
    return Overview(row["taken_at"], row["size_bytes"] or 0, row["schedule"])


OPERATIONS = (
    Operation(
        "GET",
        "/api/overview",
        overview,
        "The newest good backup, and the schedule that makes them",
        "queues",
        {200: Answer("As it is now.")},
    ),
    Operation(
        "POST",
        f"{_QUEUE}/pause",
        pause,
        "Pause a queue: what runs goes on, nothing more is begun",
        "queues",
        {200: Answer("It is paused, on all replicas.")},
        parameters=QueuePath,
    ),
    Operation(
        "POST",
        f"{_QUEUE}/resume",
        resume,
        "Let a paused queue go on",
        "queues",
        {200: Answer("Its jobs are claimed again.")},
        parameters=QueuePath,
    ),
    Operation(
        "GET",
        "/api/queues",
        queues,
        "Queues: counts by state, the oldest job that waits, throughput; and the workers",
        "queues",
        {200: Answer("As they were a moment ago.")},
    ),
    Operation(
        "GET",
        "/api/handlers",
        handlers,
        "Handlers, with the schema of each payload",
        "queues",
        {200: Answer("Those of this process.")},
    ),
)
