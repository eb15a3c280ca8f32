"""`/api/jobs`: add jobs, list them, look at one and its log, cancel and retry."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec

from orchestrator.api.operations import Answer, Call, Operation, Reply, existing
from orchestrator.api.problems import Refusal, refuse_field
from orchestrator.api.request_body import off_the_loop
from orchestrator.jobs import queue
from orchestrator.jobs.errors import PayloadError, UnknownHandlerError
from orchestrator.jobs.listing import read_jobs
from orchestrator.jobs.search import search_jobs
from orchestrator.jobs.store import (
    ID_MAX,
    PAGE_MAX,
    Id,
    Job,
    JobFilter,
    JobPage,
    LogPage,
    State,
    read_job,
    read_log,
)

if TYPE_CHECKING:
    from orchestrator.jobs.registry import Registry

_BATCH_MAX = 1000
_YEARS_S = 10 * 365 * 86400.0
# `$` of Python matches before a last line break, that of JSON Schema does not: the look-ahead makes them one.
_KEY = r"^[\x21-\x7e]{1,255}$(?!\n)"
_QUEUE = r"^[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,99}$(?!\n)"
_NUMBER = r"^[0-9]{1,18}$(?!\n)"
# Anything but NUL, which Postgres refuses.
_TEXT = r"^[^\x00]*$"

Key = Annotated[str, msgspec.Meta(pattern=_KEY)]
# One of the handlers: the document of a live server lists them.
HandlerName = Annotated[str, msgspec.Meta(extra_json_schema={"x-handlers": True})]


class JobPath(msgspec.Struct, frozen=True):
    """A job's id."""

    id: Id


class NewJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job to be. `run_at` or `delay_s` put it off; what is left out is the handler's own.

    While a job of that name with the same `dedupe_key` is unfinished, it is that job instead. An `idempotency_key`
    stands for one request for as long as its job is kept.
    """

    name: HandlerName
    # As it was sent: the type to read it as is the handler's own.
    payload: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    queue: Annotated[str, msgspec.Meta(pattern=_QUEUE)] | None = None
    run_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=_YEARS_S)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] = 0
    dedupe_key: Key | None = None
    idempotency_key: Key | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=_YEARS_S)] | None = None


class NewJobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several jobs; all are added or none."""

    jobs: Annotated[list[NewJob], msgspec.Meta(min_length=1, max_length=_BATCH_MAX)]


class Idempotency(msgspec.Struct, frozen=True):
    """What makes one job of a request that is sent again."""

    idempotency_key: Key | None = msgspec.field(name="Idempotency-Key", default=None)


class Added(msgspec.Struct, frozen=True):
    """The job that came of it; `created` is false where a key named one that was there."""

    id: Id
    state: State
    created: bool


class AddedAll(msgspec.Struct, frozen=True):
    """What came of each, in the order of the request."""

    jobs: list[Added]


class Changed(msgspec.Struct, frozen=True):
    """The job's state now. A running job stays `running` until its task has ended."""

    id: Id
    state: State


class ListQuery(JobFilter, frozen=True, forbid_unknown_fields=True):
    """Which jobs, and how many a page. `q` is an id, or a part of a name or of an error.

    A page of a search may be short and not be the last: it looks at a bounded number of jobs.
    """

    q: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=_TEXT)] | None = None
    cursor: Annotated[str, msgspec.Meta(pattern=_NUMBER)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 50


class RunAgain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another job like this one. `payload` is its own where it is left out."""

    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class LogQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where in the log, and how much of it."""

    cursor: Annotated[str, msgspec.Meta(pattern=_NUMBER)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 100


def _new(given: NewJob, key: str | None = None) -> queue.NewJob:
    if given.run_at is not None and given.delay_s is not None:
        raise refuse_field("delay_s", "run_at and delay_s exclude each other")
    return queue.NewJob(
        name=given.name,
        payload=given.payload,
        queue=given.queue,
        run_at=None if given.run_at is None else _bounded(given.run_at),
        delay_s=given.delay_s,
        priority=given.priority,
        dedupe_key=given.dedupe_key,
        idempotency_key=key or given.idempotency_key,
        max_attempts=given.max_attempts,
        timeout_s=given.timeout_s,
    )


def _bounded(moment: datetime) -> datetime:
    """The moment as it is, unless it lies outside of what UTC and Postgres can both say: then nearly so."""
    return min(max(moment, datetime.fromisoformat("0002-01-01T00:00:00+00:00")), _LAST)


_LAST = datetime.fromisoformat("9998-12-31T00:00:00+00:00")


async def add(call: Call) -> Reply[Added]:
    """Add one job."""
    given: NewJob = call.body
    key = call.headers.idempotency_key
    if key and given.idempotency_key and key != given.idempotency_key:
        raise refuse_field("idempotency_key", "it differs from the header Idempotency-Key", status=409)
    wanted = _new(given, key)
    row = await off_the_loop(len(bytes(given.payload)), queue.row_of, wanted, call.backend.registry)
    async with call.connection() as connection:
        (made,) = await queue.enqueue_rows(connection, [row])
    call.changed(job=made.id, name=given.name, created=made.created)
    headers = {"Location": f"/api/jobs/{made.id}"}
    if not made.created:
        headers["Idempotency-Replayed"] = "true"
    return Reply(Added(made.id, made.state, made.created), headers=headers)


async def add_batch(call: Call) -> Reply[AddedAll]:
    """Add many jobs in one statement."""
    if "Idempotency-Key" in call.request.headers:
        raise Refusal(400, "a batch takes no Idempotency-Key: give each of its jobs an idempotency_key")
    given = call.body.jobs
    rows = await off_the_loop(sum(len(bytes(one.payload)) for one in given), _checked, given, call.backend.registry)
    async with call.connection() as connection, connection.transaction():
        made = await queue.enqueue_rows(connection, rows)
    call.changed(jobs=len(made), first=made[0].id, names=sorted({one.name for one in given}))
    return Reply(AddedAll([Added(one.id, one.state, one.created) for one in made]))


def _checked(jobs: list[NewJob], registry: Registry | None) -> list[queue.Row]:
    """The jobs for the queue; the first that is wrong is refused by its number."""
    rows = []
    for number, given in enumerate(jobs):
        try:
            rows.append(queue.row_of(_new(given), registry))
        except UnknownHandlerError as error:
            raise refuse_field(f"jobs[{number}].name", error.message) from None
        except PayloadError as error:
            raise refuse_field(f"jobs[{number}].payload{error.path.removeprefix('$')}", error.reason) from None
    return rows


async def listing(call: Call) -> JobPage:
    """A page of jobs."""
    query: ListQuery = call.query
    before = None if query.cursor is None else int(query.cursor)
    async with call.connection() as connection:
        if query.q is not None:
            return await search_jobs(connection, query, query.q, before=before, limit=query.limit)
        return await read_jobs(connection, query, before=before, limit=query.limit)


async def one(call: Call) -> Job:
    """One job."""
    async with call.connection() as connection:
        return existing(await read_job(connection, call.parameters.id), f"job {call.parameters.id}")


async def log(call: Call) -> LogPage:
    """A page of the job's log."""
    after = 0 if call.query.cursor is None else int(call.query.cursor)
    async with call.connection() as connection:
        page = await read_log(connection, call.parameters.id, after=after, limit=call.query.limit)
    return existing(page, f"job {call.parameters.id}")


async def run_again(call: Call) -> Reply[Added]:
    """Add another job like this one."""
    given: RunAgain = call.body
    async with call.connection() as connection:
        job = existing(await read_job(connection, call.parameters.id), f"job {call.parameters.id}")
        payload = job.payload if given.payload is msgspec.UNSET else given.payload
        wanted = queue.NewJob(job.name, payload, queue=job.queue, priority=job.priority, timeout_s=job.timeout_s)
        row = await off_the_loop(len(bytes(payload)), queue.row_of, wanted, call.backend.registry)
        (made,) = await queue.enqueue_rows(connection, [row])
    call.changed(job=made.id, name=job.name, like=job.id)
    return Reply(Added(made.id, made.state, made.created), headers={"Location": f"/api/jobs/{made.id}"})


async def cancel(call: Call) -> Reply[Changed]:
    """Cancel it."""
    async with call.connection() as connection:
        state = await queue.cancel(connection, call.parameters.id)
    call.changed(job=call.parameters.id, state=state)
    return Reply(Changed(call.parameters.id, state))


async def discard(call: Call) -> None:
    """Remove it, if it is finished."""
    async with call.connection() as connection:
        await queue.discard(connection, call.parameters.id)
    call.changed(job=call.parameters.id)


async def retry(call: Call) -> Reply[Changed]:
    """Run it again."""
    async with call.connection() as connection:
        state = await queue.retry(connection, call.parameters.id)
    call.changed(job=call.parameters.id, state=state)
    return Reply(Changed(call.parameters.id, state))


assert ID_MAX >= 10**18  # noqa: S101 a cursor of 18 digits is a bigint
_JOB = "/api/jobs/{id:[0-9]+}"
_NOT_FOUND = {404: "There is no such job."}
_KEY_USED = {
    409: "The idempotency key was used for another name or payload (`job_id` is the job that has it), or two are given."
}

OPERATIONS = (
    Operation(
        "GET",
        "/api/jobs",
        listing,
        "List jobs, the newest first",
        "jobs",
        {200: Answer("A page of jobs.")},
        query=ListQuery,
    ),
    Operation(
        "POST",
        "/api/jobs",
        add,
        "Add a job",
        "jobs",
        {202: Answer("The job is in the queue.", headers={"Location": "The job's own path."})},
        headers=Idempotency,
        body=NewJob,
        refusals=_KEY_USED,
        description="An `Idempotency-Key` makes one job of repeated requests; `Idempotency-Replayed` says so.",
    ),
    Operation(
        "POST",
        "/api/jobs/batch",
        add_batch,
        f"Add up to {_BATCH_MAX} jobs, all or none",
        "jobs",
        {202: Answer("The jobs are in the queue.")},
        body=NewJobs,
        refusals=_KEY_USED,
    ),
    Operation(
        "GET",
        _JOB,
        one,
        "One job, with its payload, output, error and attempts",
        "jobs",
        {200: Answer("The job.")},
        parameters=JobPath,
        refusals=_NOT_FOUND,
    ),
    Operation(
        "GET",
        f"{_JOB}/log",
        log,
        "What the job logged",
        "jobs",
        {200: Answer("Lines, oldest first.")},
        parameters=JobPath,
        query=LogQuery,
        refusals=_NOT_FOUND,
    ),
    Operation(
        "DELETE",
        _JOB,
        discard,
        "Remove a finished job, with its attempts and its log",
        "jobs",
        {204: Answer("It is gone.")},
        parameters=JobPath,
        refusals={**_NOT_FOUND, 409: "It is not finished."},
    ),
    Operation(
        "POST",
        f"{_JOB}/cancel",
        cancel,
        "Cancel a job that waits or runs",
        "jobs",
        {202: Answer("It is cancelled, or told to stop.")},
        parameters=JobPath,
        refusals={**_NOT_FOUND, 409: "It is finished."},
    ),
    Operation(
        "POST",
        f"{_JOB}/again",
        run_again,
        "Add another job like this one, with this payload or another",
        "jobs",
        {202: Answer("It is in the queue.", headers={"Location": "The job's own path."})},
        parameters=JobPath,
        body=RunAgain,
        refusals=_NOT_FOUND,
    ),
    Operation(
        "POST",
        f"{_JOB}/retry",
        retry,
        "Run a job again that failed, was cancelled, or waits",
        "jobs",
        {202: Answer("It is queued.")},
        parameters=JobPath,
        refusals={**_NOT_FOUND, 409: "Its state, or another job with its dedupe key, does not allow it."},
    ),
)
