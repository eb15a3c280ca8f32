"""`/api/jobs/failures`, `…/count` and `…/bulk`: failures in groups, and actions on all that a filter lets through."""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchestrator.api.operations import Answer, Call, Operation
from orchestrator.jobs.bulk import BULK_MAX, Action, Count, FailureGroups, act_on, count_jobs, read_failures
from orchestrator.jobs.store import JobFilter


class CountQuery(JobFilter, frozen=True, forbid_unknown_fields=True):
    """Which jobs; with `action`, those of them that it applies to."""

    action: Action | None = None


class Bulk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is done to all jobs of the filter that the action applies to.

    `expected` is how many they are: where they are more or fewer by now, nothing is done. `retry` runs again what
    failed, was cancelled or waits for its time; `cancel` is for what is unfinished; `discard` removes what is finished.
    """

    action: Action
    filter: JobFilter
    expected: Annotated[int, msgspec.Meta(ge=0, le=BULK_MAX)]


class BulkDone(msgspec.Struct, frozen=True):
    """How many jobs were changed. Left out of a retry is what has an unfinished job with its dedupe key."""

    changed: int
    left_out: int


async def failures(call: Call) -> FailureGroups:
    """What fails now."""
    async with call.connection() as connection:
        return await read_failures(connection)


async def count(call: Call) -> Count:
    """How many."""
    query: CountQuery = call.query
    async with call.connection() as connection:
        return await count_jobs(connection, query, query.action)


async def act(call: Call) -> BulkDone:
    """Do it to all of them, or to none."""
    given: Bulk = call.body
    async with call.connection() as connection, connection.transaction():
        changed, left_out = await act_on(connection, given.filter, given.action, given.expected)
    which = {name: value for name, value in msgspec.structs.asdict(given.filter).items() if value is not None}
    call.changed(action=given.action, changed=changed, left_out=left_out, filter=which)
    return BulkDone(changed, left_out)


OPERATIONS = (
    Operation(
        "GET",
        "/api/jobs/failures",
        failures,
        "Failures, grouped by name and error, the newest group first",
        "jobs",
        {200: Answer("Groups.")},
    ),
    Operation(
        "GET",
        "/api/jobs/count",
        count,
        f"How many jobs a filter lets through, counted up to {BULK_MAX}",
        "jobs",
        {200: Answer("The count.")},
        query=CountQuery,
    ),
    Operation(
        "POST",
        "/api/jobs/bulk",
        act,
        f"Retry, cancel or discard all jobs of a filter, up to {BULK_MAX}",
        "jobs",
        {200: Answer("It is done.")},
        body=Bulk,
        refusals={409: "They are more or fewer than `expected` by now: `count` says how many."},
    ),
)
