"""How commands reach the database: they wait for it as a start does; a look is a transaction that only reads."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect import connected
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings

_FIRST_TOLD_S, _TOLD_EVERY_S = 5.0, 30.0


async def reached(dsn: Dsn, settings: Settings, life: Lifecycle, command: str) -> None:
    """Return when the database has answered a login and a query, and say what is waited for. Errors as in `connected`.

    As for `serve`, DB_WAIT_TIMEOUT bounds it.
    """
    life.enter(Phase.CONNECTING)
    waiting = {"wait_timeout_s": settings.db_wait_timeout_s, "application_name": f"orchestrator {command}"}
    async with connected(dsn, life, **waiting):
        pass


@asynccontextmanager
async def _waiting_told(dsn: Dsn, life: Lifecycle) -> AsyncIterator[None]:
    """Say after 5 s, and then every 30 s, that answers are still awaited: something may be locked, or frozen."""

    async def tell() -> None:
        waited_s = _FIRST_TOLD_S
        await asyncio.sleep(_FIRST_TOLD_S)
        while True:
            life.emit(
                "database.answer_awaited",
                level="warning",
                server=dsn.redacted(),
                waited_s=waited_s,
                hint="The server has not answered everything yet: a table is locked, or the server is slow or frozen.",
            )
            await asyncio.sleep(_TOLD_EVERY_S)
            waited_s += _TOLD_EVERY_S

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


@asynccontextmanager
async def reading(settings: Settings, life: Lifecycle, dsn: Dsn, command: str) -> AsyncIterator[Any]:
    """A connection whose transaction sees one state and writes nothing; needs no lock. Errors as in `connected`."""
    life.enter(Phase.CONNECTING)
    async with (
        connected(
            dsn,
            life,
            wait_timeout_s=settings.db_wait_timeout_s,
            application_name=f"orchestrator {command}",
        ) as connection,
        _waiting_told(dsn, life),
        connection.transaction(readonly=True, isolation="repeatable_read"),
    ):
        yield connection
