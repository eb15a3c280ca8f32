"""Backups seen from the migrations: what a ledger's state is, one before they run, and the one to go back to.

Touches the database and the directory of backups.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Any

from orchestrator.backup.archive import Order, remove_superfluous, take_backup
from orchestrator.backup.manifest import Backup, LedgerState, is_same_place, read_backups
from orchestrator.backup.vouching import recorded
from orchestrator.database.connect import close, connect_once
from orchestrator.database.sessions import as_ours
from orchestrator.errors import MigrationError, OrchestratorError
from orchestrator.migrator.ledger import LedgerTable, read_ledger
from orchestrator.migrator.resolve import Kind
from orchestrator.migrator.state import survey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from orchestrator.backup.manifest import Manifest, Reason
    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.resolve import Ledger, RowId
    from orchestrator.migrator.sources import Source
    from orchestrator.settings import Settings


def ledger_reader(sources: Sequence[Source]) -> Callable[[Any], Awaitable[list[LedgerState]]]:
    """What reads the state of every source's ledger over a connection."""

    async def read(connection: Any) -> list[LedgerState]:
        return [_state(source.table, await read_ledger(connection, source.table)) for source in sources]

    return read


def manifest_reader(manifest: Manifest) -> Callable[[Any], Awaitable[list[LedgerState]]]:
    """What reads the state of the ledgers that a backup has, whatever this process has for files."""

    async def read(connection: Any) -> list[LedgerState]:
        tables = [LedgerTable(state.schema, state.table) for state in manifest.ledgers]
        return [_state(table, await read_ledger(connection, table)) for table in tables]

    return read


def _state(table: LedgerTable, ledger: Ledger) -> LedgerState:
    if not ledger.rows:
        return LedgerState(table.schema, table.table, 0)
    newest = ledger.rows[-1]
    return LedgerState(
        table.schema,
        table.table,
        len(ledger.rows),
        newest.id,
        newest.name,
        newest.hash,
        newest.created_at,
    )


async def back_up(
    dsn: Dsn,
    settings: Settings,
    sources: Sequence[Source],
    emit: Emit,
    *,
    directory: Path,
    reason: Reason,
    pending: int = 0,
    connection: Any = None,
    on_progress: Callable[[int], Awaitable[None]] | None = None,
) -> tuple[Backup, list[Backup]]:
    """Take a backup over a session of its own (or `connection`); in BACKUP_DIR, remove what is too many or too old.

    Returns the backup and what was removed. Errors as in `take_backup`; and those of a failed login.
    """
    order = Order(directory, reason, ledger_reader(sources), pending, settings.backup_key)
    own = connection is None
    if own:
        connection = await connect_once(dsn, application_name="orchestrator backup")
    try:
        backup = await take_backup(connection, dsn, order, emit, on_progress=on_progress)
        if reason != "before_migrate":
            await recorded(connection, backup, emit)
    finally:
        if own:
            await close(connection)
    removed: list[Backup] = []
    if directory == settings.backup_dir:
        removed = await remove_superfluous(
            directory, backup.manifest, emit, keep=settings.backup_keep, max_age_s=settings.backup_max_age_s
        )
    return backup, removed


async def back_up_first(
    connection: Any, dsn: Dsn, settings: Settings, sources: Sequence[Source], life: Lifecycle
) -> Backup | None:
    """BACKUP_BEFORE_MIGRATE: a backup before anything is written; call it under the migration lock, on its session.

    None where none is wanted: nothing is pending (`pending`), history is refused (nothing will run), or the server is a
    standby. It stands on `/health` as the check `backup` while it is made.

    Raises:
        MigrationError: there is no backup, and so there must be no migration (exit 70).
        asyncpg errors that mean that `connection` itself is gone.
    """
    if settings.backup_before_migrate == "never":
        return None
    policy, ahead = settings.migration_policy, settings.migration_ahead
    surveys = [await survey(connection, source, policy=policy, ahead=ahead) for source in sources]
    pending = sum(len(one.plan.pending) for one in surveys)
    will_write = pending or any(not one.ledger.exists or one.plan.names is not None for one in surveys)
    if any(one.plan.refusals for one in surveys) or (settings.backup_before_migrate == "pending" and not will_write):
        return None
    if await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
        return None
    if settings.backup_dir is None:
        raise MigrationError(
            "BACKUP_BEFORE_MIGRATE asks for a backup, and BACKUP_DIR is not set: nothing was run",
            remedy="Set BACKUP_DIR to a directory that outlives the container, or BACKUP_BEFORE_MIGRATE=never.",
        )

    async def on_progress(size_bytes: int) -> None:
        life.check("backup", "pending", size_bytes=size_bytes, pending_migrations=pending)

    await on_progress(0)
    try:
        backup, _ = await back_up(
            dsn,
            settings,
            sources,
            life.emit,
            directory=settings.backup_dir,
            reason="before_migrate",
            pending=pending,
            on_progress=on_progress,
        )
    except Exception as error:
        await connection.fetchval("SELECT 1")  # where the server is gone, that is the news: the start begins again
        if not isinstance(error, OrchestratorError):
            raise
        life.check("backup", "failed", error=error.message)
        raise MigrationError(
            f"no backup, and so no migration: {error.message}",
            remedy=f"{error.remedy} Nothing was run; BACKUP_BEFORE_MIGRATE=never migrates without a backup.",
            facts=error.facts,
        ) from error
    life.check("backup", "ok", file=str(backup.path), size_bytes=backup.manifest.size_bytes)
    return backup


async def keep_record(connection: Any, backup: Backup | None, life: Lifecycle) -> None:
    """Note in our table the backup from before the migrations: only they may have made the table."""
    if backup is not None:
        async with as_ours(connection):
            await recorded(connection, backup, life.emit)


async def offer_way_back(error: MigrationError, connection: Any, settings: Settings, sources: Sequence[Source]) -> None:
    """Where `error` refuses a database that is ahead of the files, name the newest backup from before in its remedy.

    Reads only. The ledgers decide, not the clock: a backup qualifies if its newest row is still a row of the ledger and
    older than every row that is ahead.
    """
    refused = error.facts.get("refused")
    rows = [r for r in refused if r["kind"] == Kind.AHEAD] if isinstance(refused, list) else []
    if not rows or settings.backup_dir is None:
        return
    database = await connection.fetchval("SELECT pg_catalog.current_database()::text")
    ahead: dict[str, set[RowId]] = {}
    ledgers: dict[str, Ledger] = {}
    for source in sources:
        ids = {r["row_id"] for r in rows if r["source"] == source.label}
        if ids:
            ahead[source.table.key] = ids
            ledgers[source.table.key] = await read_ledger(connection, source.table)
    backups = await asyncio.to_thread(read_backups, settings.backup_dir)
    before = [b for b in backups if is_same_place(b.manifest, database) and _is_before(b, ahead, ledgers)]
    if not before:
        error.remedy += f" {settings.backup_dir} has no backup from before these migrations."
        return
    newest = before[0]
    command = f"orchestrator restore {shlex.quote(str(newest.path))}"
    taken_at = newest.manifest.taken_at.isoformat(timespec="seconds")
    error.remedy += (
        f" Or go back to the newest backup from before them, of {taken_at} (what was written since then is lost):"
        f" stop the services, then `{command}`."
    )
    error.facts["backup"] = {"file": str(newest.path), "taken_at": taken_at, "command": command}


def _is_before(backup: Backup, ahead: dict[str, set[RowId]], ledgers: dict[str, Ledger]) -> bool:
    states = {state.ledger: state for state in backup.manifest.ledgers}
    for key, ids in ahead.items():
        state = states.get(key)
        if state is None:
            return False
        if state.newest_id is None:
            continue
        places = {(row.id, row.hash): place for place, row in enumerate(ledgers[key].rows)}
        first = min(place for (row_id, _), place in places.items() if row_id in ids)
        if places.get((state.newest_id, state.newest_hash or ""), first) >= first:
            return False
    return True
