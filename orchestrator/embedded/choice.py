"""Which database is used: the one that the settings name, or a private server that runs meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event, Lifecycle
    from orchestrator.settings import Settings


def given(dsn: Dsn | None) -> Dsn:
    """The DSN of the settings, which is there: `settings.load` demands one unless it is told otherwise."""
    assert dsn is not None, "settings.load() demands a database unless told otherwise"  # noqa: S101
    return dsn


@asynccontextmanager
async def chosen_database(
    settings: Settings, life: Lifecycle, *, embedded: bool, upgrade_data: bool = False
) -> AsyncIterator[tuple[Dsn, Dsn]]:
    """The database to use, and the one to migrate through: as configured, or a private server that runs meanwhile."""
    if not embedded:
        yield given(settings.database), given(settings.migration_database)
        return
    from orchestrator import dsn
    from orchestrator.embedded.errors import EmbeddedServerError
    from orchestrator.embedded.server import embedded_postgres

    task, died = asyncio.current_task(), False

    def end_with_the_server(event: Event) -> None:
        nonlocal died
        if event.name == "embedded.exited" and task is not None:
            died = True
            task.cancel("the embedded server ended")

    async with embedded_postgres(settings.data_dir, life.emit, upgrade_data=upgrade_data) as server:
        own = dsn.parse(server.dsn)
        stop_listening = life.listen(end_with_the_server)
        try:
            yield own, own
        except asyncio.CancelledError:
            if died and task is not None and task.uncancel() == 0:
                raise EmbeddedServerError(
                    "the embedded Postgres ended while it was in use",
                    remedy=f"Its log says why: {server.log_file}; then start again, the data is kept.",
                    facts={"log_file": str(server.log_file)},
                ) from None
            raise
        finally:
            stop_listening()
