"""Cron expressions: whether one can be used, and when it is due next. Pure: no I/O but the time zones' files."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from orchestrator.jobs.errors import ScheduleError


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
            f"{timezone!r} is not a time zone", remedy="Use a name such as UTC or Europe/Berlin."
        ) from error
    try:
        return next(CronSim(cron, moment.astimezone(zone))).astimezone(ZoneInfo("UTC"))
    except (CronSimError, StopIteration) as error:
        raise ScheduleError(
            f"{cron!r} is not a cron expression, or never comes due",
            remedy='Use five fields: minute hour day month weekday, e.g. "*/5 * * * *".',
        ) from error
