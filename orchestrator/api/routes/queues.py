"""`GET /api/queues` and `GET /api/handlers`: what waits, what runs, who works, and what can be done at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.api.operations import Answer, Call, Operation, json_answer
from orchestrator.api.problems import Refusal
from orchestrator.jobs.figures import Queues

if TYPE_CHECKING:
    from aiohttp import web


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


async def queues(call: Call) -> web.Response:
    """All queues and workers."""
    if call.backend.sampler is None:
        raise Refusal(503, "the job server is not ready yet", headers={"Retry-After": "1"})
    return json_answer((await call.backend.sampler.fresh()).queues)


async def handlers(call: Call) -> web.Response:
    """All handlers."""
    registry = call.backend.registry
    known = () if registry is None else registry.handlers.values()
    return json_answer(
        Handlers(
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
    )


OPERATIONS = (
    Operation(
        "GET",
        "/api/queues",
        queues,
        "Queues: counts by state, the oldest job that waits, throughput; and the workers",
        "queues",
        {200: Answer(Queues, "As they were a moment ago.")},
    ),
    Operation(
        "GET",
        "/api/handlers",
        handlers,
        "Handlers, with the schema of each payload",
        "queues",
        {200: Answer(Handlers, "Those of this process.")},
    ),
)
