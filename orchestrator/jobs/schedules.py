"""Schedules: cron rows in the database that make jobs. Touches the database; `next_after` and `check_cron` are pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from orchestrator.jobs.errors import ScheduleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.jobs.queue import Enqueued
    from orchestrator.jobs.registry import Registry


@dataclass(frozen=True, slots=True)
class Schedule:
    """A row of `schedules`, as a caller gives it; `cron` is five fields, read in `timezone`."""

    name: str
    job: str
    cron: str
    timezone: str = "UTC"
    payload: Mapping[str, Any] | None = None
    enabled: bool = True


def check_cron(cron: str, timezone: str) -> None:
    """Whether both can be used.

    Raises:
        ScheduleError: one of them cannot; says which.
    """
    next_after(cron, timezone, datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")))


def next_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first time after `moment` (which has a zone) that the expression names, in UTC.

    Where clocks change, as Debian's cron does: what falls into a skipped hour runs right after it, a fixed hour that
    comes twice runs once, and `*` in the field of hours goes on with real time.

    Raises:
        ScheduleError: the expression or the zone cannot be used, or names no time in the next 50 years.
    """
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ScheduleError(
            f"{timezone!r} is no time zone", remedy="Use a name such as UTC or Europe/Berlin."
        ) from error
    try:
        return next(CronSim(cron, moment.astimezone(zone))).astimezone(ZoneInfo("UTC"))
    except (CronSimError, StopIteration) as error:
        raise ScheduleError(
            f"{cron!r} is no cron expression, or names no time",
            remedy='Use five fields: minute hour day month weekday, e.g. "*/5 * * * *".',
        ) from error


async def put_schedule(
    connection: Any, schedule: Schedule, *, registry: Registry | None = None, source: Literal["code", "api"] = "api"
) -> bool:
    """Write the row; from then on it is the caller's, and code does not overwrite it. True where it was not there.

    Raises:
        UnknownHandlerError, PayloadError, ScheduleError: nothing was written.
    """
    raise NotImplementedError((connection, schedule, registry, source))


async def delete_schedule(connection: Any, name: str) -> bool:
    """Remove the row; False where there is none. One that code declares comes back at the next start: disable that."""
    raise NotImplementedError((connection, name))


async def trigger_schedule(connection: Any, name: str, *, registry: Registry | None = None) -> Enqueued:
    """Add the schedule's job now, whatever its time, and also where it is disabled; its next time stays.

    While its last job is unfinished it is that one.

    Raises:
        ScheduleNotFoundError: there is none of that name.
        UnknownHandlerError, PayloadError: its job is not, or no longer, what this process knows.
    """
    raise NotImplementedError((connection, name, registry))
