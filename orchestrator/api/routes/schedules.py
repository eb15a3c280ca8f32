"""`/api/schedules`: read, write, remove and trigger the cron rows."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from orchestrator.api.operations import Answer, Call, Operation, Reply, existing, handler_names
from orchestrator.api.problems import Refusal, refuse_field
from orchestrator.api.routes.jobs import Added, HandlerName
from orchestrator.jobs import schedules
from orchestrator.jobs.errors import UnknownHandlerError
from orchestrator.jobs.store import Name, ScheduleRow, read_schedule, read_schedules

# What stands in cron lines (numbers, names, * / , - # L W ?) and in names of zones; whether it is one is seen later.
_CRON = r"^[0-9A-Za-z*/,#? \-]{1,200}$(?!\n)"
_ZONE = r"^[A-Za-z0-9_+/\-]{1,64}$(?!\n)"

# All schedules are listed with their payloads.
_PAYLOAD_MAX_BYTES = 64 * 1024


class SchedulePath(msgspec.Struct, frozen=True):
    """A schedule's name."""

    name: Name


class PutSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole schedule: what is left out has its default. `cron` is five fields, read in `timezone`."""

    job: HandlerName
    cron: Annotated[str, msgspec.Meta(pattern=_CRON, examples=["*/5 * * * *"])]
    timezone: Annotated[str, msgspec.Meta(pattern=_ZONE, extra_json_schema={"x-zones": True})] = "UTC"
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    enabled: bool = True


class PatchSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be changed of a schedule; `enabled` false pauses it."""

    job: HandlerName | msgspec.UnsetType = msgspec.UNSET
    cron: Annotated[str, msgspec.Meta(pattern=_CRON, examples=["*/5 * * * *"])] | msgspec.UnsetType = msgspec.UNSET
    timezone: Annotated[str, msgspec.Meta(pattern=_ZONE, extra_json_schema={"x-zones": True})] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    payload: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class ScheduleList(msgspec.Struct, frozen=True):
    """All schedules, by name."""

    schedules: list[ScheduleRow]


async def listing(call: Call) -> ScheduleList:
    """All of them."""
    async with call.connection() as connection:
        return ScheduleList(await read_schedules(connection))


async def one(call: Call) -> ScheduleRow:
    """One of them."""
    async with call.connection() as connection:
        row = await read_schedule(connection, call.parameters.name)
    return existing(row, f"schedule {call.parameters.name!r}")


async def patch(call: Call) -> ScheduleRow:
    """Change what is given, and leave the rest as it is."""
    name, given = call.parameters.name, call.body
    changed = {one: value for one, value in msgspec.structs.asdict(given).items() if value is not msgspec.UNSET}
    _check_size(changed.get("payload"))
    async with call.connection() as connection, connection.transaction():
        if set(changed) <= {"enabled"}:  # also where this process does not know the job
            if changed:
                await schedules.set_enabled(connection, name, enabled=given.enabled)
        else:
            row = existing(await read_schedule(connection, name), f"schedule {name!r}")
            before = {one: getattr(row, one) for one in PatchSchedule.__struct_fields__}
            await _put(call, connection, schedules.Schedule(name=name, **{**before, **changed}))
        row = existing(await read_schedule(connection, name), f"schedule {name!r}")
    call.changed(schedule=name, **{one: value for one, value in changed.items() if one != "payload"})
    return row


def _check_size(payload: object) -> None:
    if len(msgspec.json.encode(payload)) > _PAYLOAD_MAX_BYTES:
        raise refuse_field("payload", f"it is larger than {_PAYLOAD_MAX_BYTES} bytes", status=413)


async def _put(call: Call, connection: Any, schedule: schedules.Schedule) -> bool:
    try:
        return await schedules.put_schedule(connection, schedule, registry=call.backend.registry)
    except UnknownHandlerError as error:
        raise refuse_field("job", error.message, allowed=handler_names(call.backend)) from None


async def put(call: Call) -> Reply[ScheduleRow]:
    """Make it, or change it."""
    name, given = call.parameters.name, call.body
    _check_size(given.payload)
    schedule = schedules.Schedule(
        name=name,
        job=given.job,
        cron=given.cron,
        timezone=given.timezone,
        payload=given.payload,
        enabled=given.enabled,
    )
    async with call.connection() as connection, connection.transaction():
        is_new = await _put(call, connection, schedule)
        row = existing(await read_schedule(connection, name), f"schedule {name!r}")
    call.changed(schedule=name, job=given.job, cron=given.cron, timezone=given.timezone, enabled=given.enabled)
    return Reply(row, status=201 if is_new else 200)


async def delete(call: Call) -> None:
    """Remove it."""
    async with call.connection() as connection:
        if not await schedules.delete_schedule(connection, call.parameters.name):
            raise Refusal(404, f"there is no schedule {call.parameters.name!r}")
    call.changed(schedule=call.parameters.name)


async def trigger(call: Call) -> Reply[Added]:
    """Add its job now."""
    async with call.connection() as connection, connection.transaction():
        try:
            made = await schedules.trigger_schedule(connection, call.parameters.name, registry=call.backend.registry)
        except UnknownHandlerError as error:
            raise Refusal(409, f"{error.message}: this schedule's job is not one of this process") from None
    call.changed(schedule=call.parameters.name, job=made.id)
    answer = Added(made.id, made.state, made.created)
    return Reply(answer, headers={"Location": f"/api/jobs/{made.id}"})


_SCHEDULE = "/api/schedules/{name}"
_NOT_FOUND = {404: "There is no such schedule."}

OPERATIONS = (
    Operation(
        "GET",
        "/api/schedules",
        listing,
        "List schedules",
        "schedules",
        {200: Answer("All of them, by name.")},
    ),
    Operation(
        "GET",
        _SCHEDULE,
        one,
        "One schedule",
        "schedules",
        {200: Answer("The schedule.")},
        parameters=SchedulePath,
        refusals=_NOT_FOUND,
    ),
    Operation(
        "PUT",
        _SCHEDULE,
        put,
        "Make a schedule, or change one",
        "schedules",
        {200: Answer("It is changed."), 201: Answer("It is new.")},
        parameters=SchedulePath,
        body=PutSchedule,
        description="From then on it is yours: what `@job(schedule=…)` says no longer changes it.",
    ),
    Operation(
        "PATCH",
        _SCHEDULE,
        patch,
        "Change a schedule in part, pause it, or let it go on",
        "schedules",
        {200: Answer("The schedule, as it is now.")},
        parameters=SchedulePath,
        body=PatchSchedule,
        refusals=_NOT_FOUND,
        description="From then on it is yours, as with PUT.",
    ),
    Operation(
        "DELETE",
        _SCHEDULE,
        delete,
        "Remove a schedule",
        "schedules",
        {204: Answer("It is gone. One that code declares comes back at the next start: disable that.")},
        parameters=SchedulePath,
        refusals=_NOT_FOUND,
    ),
    Operation(
        "POST",
        f"{_SCHEDULE}/trigger",
        trigger,
        "Add the schedule's job now",
        "schedules",
        {202: Answer("Its job is in the queue.", headers={"Location": "The job's own path."})},
        parameters=SchedulePath,
        refusals={**_NOT_FOUND, 409: "Its job, or its payload, is not one of this process."},
    ),
)
