"""Apply whole folders to a scratch database with the code that a start uses. Touches that database alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.connect import connected
from orchestrator.database.extensions import ensure_extensions
from orchestrator.database.lock import migration_lock
from orchestrator.database.scratch import server_errors_explained
from orchestrator.lifecycle import Lifecycle
from orchestrator.migrator.run.apply import migrate
from orchestrator.migrator.run.options import Options
from orchestrator.migrator.run.second_opinion import server_keywords
from orchestrator.migrator.state import survey
from orchestrator.tools.replay_edits import edited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event
    from orchestrator.migrator.run.apply import AppliedMigration
    from orchestrator.migrator.sources import Source

LEFT_OUT = "replay.statement_left_out"
_WAIT_TIMEOUT_S = 10.0
_LOCK_TIMEOUT_S = 10.0


async def replay(
    dsn: Dsn,
    sources: Sequence[Source],
    *,
    extensions: Sequence[str] = (),
    options: Options | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> list[AppliedMigration]:
    """Bring `dsn` up to date from `sources`, in order; returns what was applied, with durations, in order.

    The same code as a start (lock, extensions, ledger, transactions), with a Lifecycle of its own: nothing of it shows
    on `/health` or in the log; `on_event` hears it all. Cancelled: the running statement is rolled back.

    What acts outside the database it runs in (roles, other databases, settings and files of the server) is not run; an
    event `replay.statement_left_out` names each such statement.

    Raises:
        OutsideDatabaseError: such a statement cannot be left out; nothing was run.
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
                application_name="orchestrator replay",
                kind="migration",
            ) as connection,
            migration_lock(connection, life, timeout_s=_LOCK_TIMEOUT_S),
        ):
            await ensure_extensions(connection, extensions, life)
            run = options or Options()
            edited_sources = await _without_outside(connection, sources, run, life)
            return await migrate(connection, edited_sources, run, life)


async def _without_outside(
    connection: Any, sources: Sequence[Source], options: Options, life: Lifecycle
) -> Sequence[Source]:
    """The sources without the pending statements that would act beyond the scratch database; each is told."""
    roles = [row["rolname"] for row in await connection.fetch("SELECT rolname::text FROM pg_catalog.pg_roles")]
    names = {
        (one.source.label, migration.name)
        for one in [await survey(connection, source, policy=options.policy, ahead=options.ahead) for source in sources]
        for migration in one.plan.pending
    }
    made, left_out = await asyncio.to_thread(edited, sources, names, roles, await server_keywords(connection))
    for one in left_out:
        life.emit(LEFT_OUT, level="warning", text=one.text, **msgspec.structs.asdict(one))
    return made
