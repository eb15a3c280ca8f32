"""A look at the database for commands that change nothing: one try to connect, in a transaction that only reads."""

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


@asynccontextmanager
async def reading(settings: Settings, life: Lifecycle, dsn: Dsn, command: str) -> AsyncIterator[Any]:
    """A connection whose transaction sees one state and writes nothing; needs no lock. Errors as in `connected`."""
    life.enter(Phase.CONNECTING)
    async with (
        connected(
            dsn,
            life,
            wait_timeout_s=settings.command_wait_s,
            connect_timeout_s=settings.db_connect_timeout_s,
            application_name=f"orchestrator {command}",
        ) as connection,
        connection.transaction(readonly=True, isolation="repeatable_read"),
    ):
        yield connection
