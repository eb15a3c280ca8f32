"""Fire schedules: a session and a task that do nothing else. Touches the database; lives on the loop of HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from orchestrator.jobs.queue import SCHEDULES_CHANNEL
from orchestrator.jobs.schedules import fire_due, sync_schedules
from orchestrator.jobs.session import keep_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.jobs.parameters import WorkerParameters
    from orchestrator.jobs.session import Session

# A replica that is frozen in the middle of firing lets go of its rows after this.
_LIMIT_S = 5.0
_LOCK_LIMIT = "SET lock_timeout = '1s'"
_LOOK_MOST_S = 15.0
_AGAIN_S = 1.0


class Firing:
    """The schedules, as one worker fires them."""

    def __init__(self, parameters: WorkerParameters, *, emit: Callable[..., None]) -> None:
        self._given, self._emit = parameters, emit
        self._wake = asyncio.Event()
        self._leaving = self._synced = False

    async def run(self) -> None:
        """Fire until `leave`, whatever happens to the database."""
        await keep_session(
            self._given.dsn,
            self._fire_on,
            purpose="schedules",
            limit_s=_LIMIT_S,
            emit=self._emit,
            lost=self._wake.set,
        )

    def leave(self) -> None:
        """Fire no more."""
        self._leaving = True
        self._wake.set()

    async def _fire_on(self, session: Session) -> None:
        self._synced = False  # a database that was made anew lacks the schedules, and it may be one
        await session.listen(SCHEDULES_CHANNEL, lambda _: self._wake.set())
        if session.direct:
            await session.fetch(_LOCK_LIMIT)
        while not self._leaving:
            self._wake.clear()
            wait_s = await self._fire(session)
            timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    async def _fire(self, session: Session) -> float:
        """Fire what is due; seconds until the next one is, or may have been edited unheard."""
        if not self._synced:
            try:
                await sync_schedules(session.connection, self._given.registry)
            except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):
                self._emit("schedules.locked", level="warning", hint="A schedule's row is locked; trying again.")
            else:
                self._synced = True
        fired = await fire_due(session.connection, self._given.registry)
        for name, job in fired.made:
            self._emit("schedule.fired", level="info", schedule=name, job_id=job.id, created=job.created)
        for name, reason in fired.unusable:
            self._emit("schedule.unusable", level="error", schedule=name, error=reason)
        most_s = _LOOK_MOST_S if self._synced and not fired.is_put_off else _AGAIN_S
        next_in_s = most_s if fired.next_in_s is None else max(0.0, min(most_s, fired.next_in_s))
        # What is due by now and was not fired is locked, or left to another replica.
        return next_in_s if next_in_s > 0 or fired.made else _AGAIN_S
