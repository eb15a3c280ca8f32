"""Put jobs into the queue, and change what waits or runs: the half that callers use. Touches the database.

Everything runs on the caller's connection, inside its transaction where there is one: rolled back, it never happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.jobs.errors import IdempotencyError, JobNotFoundError, JobStateError
from orchestrator.jobs.registry import DECLARED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from orchestrator.jobs.registry import Registry

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
UNFINISHED: tuple[State, ...] = ("scheduled", "queued", "running")
FINISHED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What came of it. `created` is False where a key named a job that was there already: then `id` is that one."""

    id: int
    state: State
    created: bool


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be: `run_at` (with a time zone) or `delay_s` from now put it off; None: the handler's own value."""

    name: str
    payload: object = None
    queue: str | None = None
    run_at: datetime | None = None
    delay_s: float | None = None
    priority: int = 0
    dedupe_key: str | None = None
    idempotency_key: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    schedule: str | None = None


async def enqueue(
    connection: Any,
    name: str,
    payload: object = None,
    *,
    registry: Registry | None = None,
    queue: str | None = None,
    run_at: datetime | None = None,
    delay_s: float | None = None,
    priority: int = 0,
    dedupe_key: str | None = None,
    idempotency_key: str | None = None,
    max_attempts: int | None = None,
    timeout_s: float | None = None,
) -> Enqueued:
    """Add one job. While a job of that name with the same `dedupe_key` is unfinished, it is that job instead.

    `idempotency_key` stands for one request for as long as its job is kept, whatever became of it.

    Raises:
        UnknownHandlerError: this process knows no such handler.
        PayloadError: the payload is not what it takes.
        IdempotencyError: the key was used for another name or payload.
    """
    job = NewJob(
        name=name,
        payload=payload,
        queue=queue,
        run_at=run_at,
        delay_s=delay_s,
        priority=priority,
        dedupe_key=dedupe_key,
        idempotency_key=idempotency_key,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
    )
    return (await enqueue_many(connection, [job], registry=registry))[0]


async def enqueue_many(connection: Any, jobs: Sequence[NewJob], *, registry: Registry | None = None) -> list[Enqueued]:
    """Add all of them or none, in one statement; the answers stand in the order of `jobs`. Errors as in `enqueue`."""
    raise NotImplementedError((connection, jobs, registry or DECLARED, IdempotencyError))


async def cancel(connection: Any, job_id: int) -> State:
    """Cancel it: what waits is `cancelled` at once; what runs is told to stop, and `running` until its task has ended.

    Raises:
        JobNotFoundError: there is no such job.
        JobStateError: it is finished.
    """
    raise NotImplementedError((connection, job_id, JobNotFoundError))


async def retry(connection: Any, job_id: int) -> State:
    """Run it again now: what failed or was cancelled gets one more attempt, what waits for its time stops waiting.

    Raises:
        JobNotFoundError: there is no such job.
        JobStateError: it is queued, runs or has succeeded; or `sibling_id` holds its dedupe key.
    """
    raise NotImplementedError((connection, job_id, JobStateError))
