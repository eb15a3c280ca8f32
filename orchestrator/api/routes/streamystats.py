"""The generic paths of StreamyStats' job server, in its shapes, so that its clients work with this one.

Source: `apps/job-server/src/routes/jobs/{queue,scheduler,status}.ts` of fredrikburmester/streamystats. Names there are
keys in camel case (`add-server` is `addServer`), states are those of pg-boss, a wrong body is a 400. What belongs to
StreamyStats' own tables (servers, sessions) is empty here.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from orchestrator.api.operations import Answer, Call, Operation
from orchestrator.api.problems import Refusal
from orchestrator.api.routes.jobs import HandlerName  # noqa: TC001 msgspec reads the annotations
from orchestrator.jobs import queue, schedules
from orchestrator.jobs.errors import PayloadError, UnknownHandlerError
from orchestrator.jobs.listing import ResultRow, read_results
from orchestrator.jobs.store import (
    PAGE_MAX,
    Id,
    Name,
    ScheduleRow,
    State,
    read_job,
    read_schedule,
    read_schedules,
    read_unfinished_ids,
)

if TYPE_CHECKING:
    from orchestrator.jobs.figures import NameFigures

Status = Literal["processing", "completed", "failed"]
_RESULTS_SHOWN = 10
_RESULTS_LOOKED_AT = 100
_MANY_QUEUED = 100
_MANY_FAILED = 5
_MANY_FAILED_NAMES = 10
_CANCEL_MOST_S = 20.0


def camel(name: str) -> str:
    """`add-server` as `addServer`, `database.backup` as `databaseBackup`."""
    first, *rest = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word] or ["unnamed"]
    return first[:1].lower() + first[1:] + "".join(word[:1].upper() + word[1:] for word in rest)


def _state(state: State, attempt: int) -> str:
    """pg-boss's word for the state."""
    match state:
        case "scheduled" | "queued":
            return "retry" if attempt else "created"
        case "running":
            return "active"
        case "succeeded":
            return "completed"
        case _:
            return state


class QueueStats(msgspec.Struct, frozen=True):
    """How many wait, by handler, and `total`."""

    success: bool
    queueStats: dict[str, int]  # noqa: N815 upstream's name


class Result(msgspec.Struct, frozen=True):
    """A row as upstream's `job_results` has it; `processingTime` in milliseconds, an hour at most."""

    id: int
    jobId: str  # noqa: N815
    jobName: str  # noqa: N815
    status: Status
    result: Any
    error: str | None
    processingTime: int | None  # noqa: N815
    createdAt: datetime  # noqa: N815


class Results(msgspec.Struct, frozen=True):
    """What ran lately."""

    success: bool
    results: list[Result]
    count: int


class PgBossJob(msgspec.Struct, frozen=True):
    """A job as pg-boss shows it."""

    id: str
    name: str
    state: Literal["created", "retry", "active", "completed", "cancelled", "failed"]
    data: Any
    output: Any
    createdOn: datetime  # noqa: N815
    startedOn: datetime | None  # noqa: N815
    completedOn: datetime | None  # noqa: N815


class JobStatus(msgspec.Struct, frozen=True):
    """One job."""

    success: bool
    job: PgBossJob


class CancelByType(msgspec.Struct, frozen=True):
    """Whose jobs to cancel; `serverId` narrows it to those with that in their payload."""

    jobType: HandlerName  # noqa: N815
    serverId: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] | None = None  # noqa: N815


class CancelledByType(msgspec.Struct, frozen=True):
    """How many it were."""

    success: bool
    message: str
    cancelledCount: int  # noqa: N815
    jobType: str  # noqa: N815
    serverId: int | None  # noqa: N815


class Scheduler(msgspec.Struct, frozen=True):
    """The schedules: cron lines by name, and how many a person changed."""

    enabled: bool
    mode: str
    defaultIntervals: dict[str, str]  # noqa: N815
    serversWithCustomConfigs: int  # noqa: N815
    healthCheck: bool  # noqa: N815


class SchedulerStatus(msgspec.Struct, frozen=True):
    """The schedules."""

    success: bool
    scheduler: Scheduler


class TriggerSchedule(msgspec.Struct, frozen=True):
    """Which schedule; upstream has `serverId` alone, which triggers `activity-sync` with that in its payload."""

    schedule: Name | None = None
    serverId: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] | None = None  # noqa: N815


class Triggered(msgspec.Struct, frozen=True):
    """What was triggered."""

    success: bool
    message: str
    jobId: str  # noqa: N815


class ByStatus(msgspec.Struct, frozen=True):
    """Upstream's servers by state of their sync: none here."""

    pending: int = 0
    syncing: int = 0
    completed: int = 0
    failed: int = 0


class Servers(msgspec.Struct, frozen=True):
    """Upstream's servers: none here."""

    total: int = 0
    byStatus: ByStatus = ByStatus()  # noqa: N815 frozen
    rows: list[Any] = msgspec.field(name="list", default_factory=list)


class SessionPoller(msgspec.Struct, frozen=True):
    """Upstream's poller of sessions: none here."""

    enabled: bool = False
    intervalMs: int = 0  # noqa: N815
    isRunning: bool = False  # noqa: N815
    trackedServers: int = 0  # noqa: N815
    totalTrackedSessions: int = 0  # noqa: N815
    healthCheck: bool = False  # noqa: N815


class RecentResult(msgspec.Struct, frozen=True):
    """A result in short."""

    id: int
    jobName: str  # noqa: N815
    status: Status
    createdAt: datetime  # noqa: N815
    error: str | None
    processingTime: int | None  # noqa: N815


class SystemHealth(msgspec.Struct, frozen=True):
    """What a person should look at."""

    overall: Literal["healthy", "warning", "unhealthy"]
    issues: list[str]
    warnings: list[str]


class ServerStatus(msgspec.Struct, frozen=True):
    """All of it at a glance; `uptime` in seconds."""

    success: bool
    timestamp: datetime
    uptime: float
    queueStats: dict[str, int]  # noqa: N815
    jobStatusMap: dict[str, Status]  # noqa: N815
    servers: Servers
    scheduler: Scheduler
    sessionPoller: SessionPoller  # noqa: N815
    recentResults: list[RecentResult]  # noqa: N815
    systemHealth: SystemHealth  # noqa: N815


class StatusPath(msgspec.Struct, frozen=True):
    """Upstream's queue is the handler's name here; the queue's own name serves as well."""

    queue: Name
    id: Id


class ResultsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which results."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 20
    status: Status | None = None
    jobName: Name | None = None  # noqa: N815


async def _figures(call: Call) -> list[NameFigures]:
    if call.backend.sampler is None:
        raise Refusal(503, "the job server is not ready yet", headers={"Retry-After": "1"})
    return (await call.backend.sampler.fresh()).figures


def _queued(call: Call, figures: list[NameFigures]) -> dict[str, int]:
    known = () if call.backend.registry is None else call.backend.registry.handlers
    counts = {camel(name): 0 for name in known}
    for figure in figures:
        if figure.state in {"scheduled", "queued"}:
            counts[camel(figure.name)] = counts.get(camel(figure.name), 0) + figure.count
    return counts


async def queue_stats(call: Call) -> QueueStats:
    """How many wait."""
    counts = _queued(call, await _figures(call))
    return QueueStats(success=True, queueStats={**counts, "total": sum(counts.values())})


def _result(row: ResultRow) -> Result:
    status: Status = {"running": "processing", "succeeded": "completed"}.get(row.state, "failed")  # type: ignore[assignment]
    error = row.error or ("cancelled" if row.state == "cancelled" else None)
    return Result(row.id, str(row.id), row.name, status, row.output, error, row.processing_ms, row.at)


async def results(call: Call) -> Results:
    """What ran lately."""
    query: ResultsQuery = call.query
    async with call.connection() as connection:
        rows = await read_results(connection, status=query.status, name=query.jobName, limit=query.limit)
    found = [_result(row) for row in rows]
    return Results(success=True, results=found, count=len(found))


async def job_status(call: Call) -> JobStatus:
    """One job, by its queue and id."""
    async with call.connection() as connection:
        job = await read_job(connection, call.parameters.id)
    if job is None or call.parameters.queue not in {job.name, job.queue}:
        raise Refusal(404, "Job not found")
    shown = PgBossJob(
        id=str(job.id),
        name=job.name,
        state=_state(job.state, job.attempt),  # type: ignore[arg-type]
        data=job.payload,
        output=job.output if job.error is None else job.error,
        createdOn=job.created_at,
        startedOn=job.started_at,
        completedOn=job.finished_at,
    )
    return JobStatus(success=True, job=shown)


async def cancel_by_type(call: Call) -> CancelledByType:
    """Cancel all that is unfinished of one handler."""
    given: CancelByType = call.body
    handlers = {} if call.backend.registry is None else call.backend.registry.handlers
    if given.jobType not in handlers:
        raise Refusal(400, "Invalid job type", validTypes=list(handlers))
    cancelled, last, left = 0, 0, ""
    until = time.monotonic() + _CANCEL_MOST_S
    async with call.connection() as connection:
        while ids := await read_unfinished_ids(
            connection, given.jobType, server_id=given.serverId, after=last, limit=queue.CANCEL_BATCH
        ):
            if time.monotonic() > until:
                left = " There are more: send it again."
                break
            cancelled += len(await queue.cancel_many(connection, ids))
            last = ids[-1]
    call.changed(name=given.jobType, cancelled=cancelled)
    return CancelledByType(
        success=True,
        message=f'Jobs of type "{given.jobType}" cancelled successfully. {cancelled} jobs cancelled.{left}',
        cancelledCount=cancelled,
        jobType=given.jobType,
        serverId=given.serverId,
    )


def _scheduler(rows: list[ScheduleRow]) -> Scheduler:
    return Scheduler(
        enabled=True,
        mode="orchestrator",
        defaultIntervals={camel(row.name): row.cron for row in rows if row.enabled},
        serversWithCustomConfigs=sum(row.source == "api" for row in rows),
        healthCheck=True,
    )


async def scheduler_status(call: Call) -> SchedulerStatus:
    """The schedules."""
    async with call.connection() as connection:
        rows = await read_schedules(connection)
    return SchedulerStatus(success=True, scheduler=_scheduler(rows))


async def scheduler_trigger(call: Call) -> Triggered:
    """Run a schedule's job now."""
    given: TriggerSchedule = call.body
    if given.schedule is None and given.serverId is None:
        raise Refusal(400, "Server ID is required, or the name of a schedule")
    name, registry = given.schedule or "activity-sync", call.backend.registry
    async with call.connection() as connection, connection.transaction():
        row = await read_schedule(connection, name)
        if row is None:
            raise Refusal(404, f"there is no schedule {name!r}")
        try:
            if given.serverId is None:
                made = await schedules.trigger_schedule(connection, name, registry=registry)
            else:
                payload = {**msgspec.json.decode(msgspec.json.encode(row.payload)), "serverId": given.serverId}
                made = await queue.enqueue(connection, row.job, payload, registry=registry)
        except (UnknownHandlerError, PayloadError) as error:
            raise Refusal(409, error.message) from None
    call.changed(schedule=name, job=made.id)
    return Triggered(success=True, message=f"Schedule triggered: {name}", jobId=str(made.id))


async def server_status(call: Call) -> ServerStatus:
    """All of it at a glance."""
    figures = await _figures(call)
    counts = _queued(call, figures)
    async with call.connection() as connection:
        rows = await read_results(connection, status=None, name=None, limit=_RESULTS_LOOKED_AT)
        scheduled = await read_schedules(connection)
    newest = [_result(row) for row in rows]
    status_map: dict[str, Status] = {}
    for result in newest:
        status_map.setdefault(result.jobName, result.status)
    recent = newest[:_RESULTS_SHOWN]
    total = sum(counts.values())
    warnings = []
    if total > _MANY_QUEUED:
        warnings.append(f"High job queue volume: {total} jobs queued")
    failed = sum(result.status == "failed" for result in recent)
    if failed > _MANY_FAILED:
        warnings.append(f"High number of recent failed jobs: {failed}")
    failed = sum(status == "failed" for status in status_map.values())
    if failed > _MANY_FAILED_NAMES:
        warnings.append(f"High number of failed jobs: {failed}")
    return ServerStatus(
        success=True,
        timestamp=datetime.now(UTC),
        uptime=0.0 if call.backend.life is None else round(call.backend.life.uptime_s, 3),
        queueStats={**counts, "totalQueued": total, "standardJobsQueued": total, "jellyfinJobsQueued": 0},
        jobStatusMap=status_map,
        servers=Servers(),
        scheduler=_scheduler(scheduled),
        sessionPoller=SessionPoller(),
        recentResults=[
            RecentResult(one.id, one.jobName, one.status, one.createdAt, one.error, one.processingTime)
            for one in recent
        ],
        systemHealth=SystemHealth("warning" if warnings else "healthy", [], warnings),
    )


_TAG = "upstream"
_UNUSABLE = {400: "The query or the body is not usable."}

OPERATIONS = (
    Operation(
        "GET",
        "/api/jobs/queue/stats",
        queue_stats,
        "How many jobs wait, by handler",
        _TAG,
        {200: Answer("Counts.")},
    ),
    Operation(
        "GET",
        "/api/jobs/results",
        results,
        "What ran lately",
        _TAG,
        {200: Answer("Results, the newest first.")},
        query=ResultsQuery,
        invalid=400,
    ),
    Operation(
        "GET",
        "/api/jobs/queue/{queue}/{id:[0-9]+}/status",
        job_status,
        "One job, by queue and id",
        _TAG,
        {200: Answer("The job.")},
        parameters=StatusPath,
        refusals={404: "There is no such job."},
    ),
    Operation(
        "POST",
        "/api/jobs/cancel-by-type",
        cancel_by_type,
        "Cancel all unfinished jobs of one handler",
        _TAG,
        {200: Answer("They are cancelled, or told to stop.")},
        body=CancelByType,
        refusals=_UNUSABLE,
        invalid=400,
    ),
    Operation(
        "GET",
        "/api/jobs/scheduler/status",
        scheduler_status,
        "The schedules",
        _TAG,
        {200: Answer("Cron lines by name.")},
    ),
    Operation(
        "POST",
        "/api/jobs/scheduler/trigger",
        scheduler_trigger,
        "Run a schedule's job now",
        _TAG,
        {200: Answer("Its job is in the queue.")},
        body=TriggerSchedule,
        refusals={
            **_UNUSABLE,
            404: "There is no such schedule.",
            409: "Its job, or the payload with that serverId, is not one of this process.",
        },
        invalid=400,
    ),
    Operation(
        "GET",
        "/api/jobs/server-status",
        server_status,
        "Queue, schedules and results at a glance",
        _TAG,
        {200: Answer("As it is now.")},
    ),
)
