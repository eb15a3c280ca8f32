"""Apply whole folders to a scratch database with the code that a start uses. Touches that database alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from orchestrator.database.connect import connected
from orchestrator.database.extensions import ensure_extensions
from orchestrator.database.lock import migration_lock
from orchestrator.database.scratch import server_errors_explained
from orchestrator.lifecycle import Lifecycle
from orchestrator.migrator.run.apply import migrate
from orchestrator.migrator.run.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event
    from orchestrator.migrator.run.apply import AppliedMigration
    from orchestrator.migrator.sources import Source

_WAIT_TIMEOUT_S = 10.0
_LOCK_TIMEOUT_S = 10.0


async def replay(
    dsn: Dsn,
    sources: Sequence[Source],
    *,
    extensions: Sequence[str] = (),
    options: Options | None = None,
    connect_timeout_s: float = 5.0,
    on_event: Callable[[Event], None] | None = None,
) -> list[AppliedMigration]:
    """Bring `dsn` up to date from `sources`, in order; returns what was applied, with durations, in order.

    The same code as a start (lock, extensions, ledger, transactions), with a Lifecycle of its own: nothing of it shows
    on `/health` or in the log; `on_event` hears it all. Cancelled: the running statement is rolled back.

    Raises:
        MigrationError: what a start would raise for these files (exit 70).
        DatabaseUnavailableError: the database is gone, or went away in mid-work (exit 69).
    """
    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    if on_event is not None:
        life.listen(on_event)
    with server_errors_explained(dsn, doing="replaying the migrations"):
        async with (
            connected(
                dsn,
                life,
                wait_timeout_s=_WAIT_TIMEOUT_S,
                connect_timeout_s=connect_timeout_s,
                application_name="orchestrator replay",
                kind="migration",
            ) as connection,
            migration_lock(connection, life, timeout_s=_LOCK_TIMEOUT_S),
        ):
            await ensure_extensions(connection, extensions, life)
            return await migrate(connection, sources, options or Options(), life)
