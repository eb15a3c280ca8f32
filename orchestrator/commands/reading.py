"""How commands reach the database: they wait for it as a start does; a look is a transaction that only reads."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect import connected
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


async def reached(dsn: Dsn, settings: Settings, life: Lifecycle, command: str) -> None:
    """Return when the database has answered a login and a query, and say what is waited for. Errors as in `connected`.

    As for `serve`, DB_WAIT_TIMEOUT bounds it.
    """
    life.enter(Phase.CONNECTING)
    waiting = {"wait_timeout_s": settings.db_wait_timeout_s, "application_name": f"orchestrator {command}"}
    async with connected(dsn, life, **waiting):
        pass


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
        connection.transaction(readonly=True, isolation="repeatable_read"),
    ):
        yield connection
