"""Mend a ledger by hand: proposed, shown, then done under the migration lock in one transaction, with a record of it.

Touches the ledger and our own tables; `baseline` also makes a scratch database. The files and the user's tables never.
"""

from __future__ import annotations

import os
import pwd
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator import __version__
from orchestrator.database.connect import connected
from orchestrator.database.lock import HELD_HERE, migration_lock
from orchestrator.database.scratch import server_errors_explained
from orchestrator.errors import EXIT_CONFIG, EXIT_MIGRATION, MigrationError, OrchestratorError
from orchestrator.migrator import records
from orchestrator.migrator.edits import Edit, edits
from orchestrator.migrator.ledger import (
    create_ledger,
    insert_statement,
    ledger_name,
    read_ledger,
    upgrade_ledger,
)
from orchestrator.migrator.resolve import LedgerRow, RowId, upgraded_names
from orchestrator.migrator.run.apply import migrate
from orchestrator.migrator.run.options import Options
from orchestrator.migrator.state import refuse_before_writing, survey
from orchestrator.schema.diff import Difference, diff
from orchestrator.schema.objects import read_schema
from orchestrator.tools.verify import Scope, is_of_ledger, made_by, source_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.state import Survey
    from orchestrator.schema.objects import SchemaObject

Action = Literal["accept", "applied", "unapplied", "baseline", "upgrade"]


class UnknownNameError(OrchestratorError):
    """No file and no ledger row has the name."""

    exit_code = EXIT_CONFIG


class RepairRefusedError(OrchestratorError):
    """The repair would make things worse; nothing was changed."""

    exit_code = EXIT_MIGRATION


class Row(msgspec.Struct, frozen=True):
    """A ledger row as people see it; `id` None for one that is not written yet."""

    id: RowId | None
    hash: str
    created_at: int | None
    name: str | None
    file: str | None


class Proposal(msgspec.Struct, frozen=True):
    """What a repair would change: only the rows that change, as they are and as they would be. Empty: nothing to do.

    `differences` are what `baseline` found between database and files; `forced` that they are passed over.
    """

    action: Action
    ledger: str
    names: tuple[str, ...]
    before: tuple[Row, ...]
    after: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    differences: tuple[Difference, ...] = ()
    forced: bool = False
    makes_ledger: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to change."""
        return not self.before and not self.after and not self.makes_ledger


class Wish(msgspec.Struct, frozen=True):
    """What the person asked for. `names` are files; for `unapplied` also rows, as `#ID`; for `baseline` the last file.

    `on` is where the scratch database of a baseline is made.
    """

    action: Action
    names: tuple[str, ...] = ()
    label: Literal["user", "service"] = "user"
    force: bool = False
    on: Dsn | None = None
    extensions: tuple[str, ...] = ()
    scope: Scope = Scope()
    lock_timeout_s: float = 0.0
    wait_timeout_s: float = 5.0


async def repair(
    dsn: Dsn,
    sources: Sequence[Source],
    wish: Wish,
    life: Lifecycle,
    confirm: Callable[[Proposal], Awaitable[bool]],
) -> tuple[Proposal, bool]:
    """Propose, ask `confirm`, do it; returns the proposal and whether it was done.

    The lock is held from the first look to the commit, so that what was shown is what is done. The change and its row
    in `orchestrator.repairs` are one transaction; where our own tables are not there yet, they are made before it.
    Cancelled: nothing is changed.

    Raises:
        UnknownNameError: nothing has that name.
        RepairRefusedError: a baseline of a ledger that has rows, an upgrade with rows that match no file.
        LockTimeoutError: another migrator holds the lock.
    """
    source = next((one for one in sources if one.label == wish.label), None)
    if source is None:
        raise UnknownNameError(
            "there is no folder of migrations whose ledger could be repaired",
            remedy="Set MIGRATIONS_DIR, or --migrations-dir; --service is for the service's own ledger.",
        )
    async with _locked(dsn, wish, life) as connection:
        with server_errors_explained(dsn, doing=f"repair {wish.action}"):
            await refuse_before_writing(connection, sources)
            one = await survey(connection, source, policy="drizzle", ahead="warn")
            proposal = await _PROPOSALS[wish.action](connection, dsn, sources, one, wish)
            if proposal.is_empty or (proposal.differences and not proposal.forced) or not await confirm(proposal):
                return proposal, False
            # Not with the ledger that is being mended: what shall be marked as applied would be run.
            if wish.label == "user" or not await _can_record(connection):
                await migrate(connection, [s for s in sources if s.label == "service"], Options(), life)
            await _carry_out(connection, one, proposal)
    life.emit("ledger.repaired", action=wish.action, ledger=source.table.key, migrations=list(proposal.names))
    return proposal, True


async def _can_record(connection: Any) -> bool:
    """Whether our own tables are there, whatever their ledger says."""
    has_repairs = "SELECT pg_catalog.to_regclass('orchestrator.repairs') IS NOT NULL"
    return await records.records_exist(connection) and bool(await connection.fetchval(has_repairs))


@asynccontextmanager
async def _locked(dsn: Dsn, wish: Wish, life: Lifecycle) -> AsyncIterator[Any]:
    async with (
        connected(
            dsn,
            life,
            wait_timeout_s=wish.wait_timeout_s,
            application_name="orchestrator repair",
        ) as connection,
        migration_lock(connection, life, timeout_s=wish.lock_timeout_s),
    ):
        yield connection


# --------------------------------------------------------------------------------------------------------- proposals


def _file(one: Survey, name: str) -> Migration:
    for migration in one.source.folder.migrations:
        if name in {migration.name, f"{migration.name}.sql"}:
            return migration
    near = _near(name, [m.name for m in one.source.folder.migrations])
    raise UnknownNameError(
        f"{one.source.folder.path} has no migration {name!r}",
        remedy=f"Did you mean {near}?" if near else "`orchestrator status` lists the names.",
        facts={"migration": name, "folder": str(one.source.folder.path)},
    )


def _near(name: str, names: Sequence[str]) -> str | None:
    import difflib  # late: only for a name that is wrong

    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _new_row(one: Survey, migration: Migration, *, has_name: bool) -> Row:
    name = ledger_name(one.source.folder, migration) if has_name else None
    return Row(None, migration.hash, migration.when_ms, name, migration.name)


def _row(row: LedgerRow, file: str | None) -> Row:
    return Row(row.id, row.hash, row.created_at, row.name, file)


def _has_name(one: Survey) -> bool:
    return one.ledger.has_name if one.ledger.exists else one.source.folder.generation == "v1"


async def _accept(connection: Any, _dsn: Dsn, _sources: Sequence[Source], one: Survey, wish: Wish) -> Proposal:
    names = {_file(one, name).name for name in wish.names}
    found = [edit for edit in await edits(connection, one) if edit.name in names]
    rows = {row.id: row for row in one.ledger.rows}
    before = tuple(_row(rows[edit.row_id], edit.name) for edit in found)
    return Proposal(
        "accept",
        one.source.table.key,
        tuple(edit.name for edit in found),
        before,
        tuple(msgspec.structs.replace(row, hash=edit.file_hash) for row, edit in zip(before, found, strict=True)),
        edits=tuple(found),
        warnings=tuple(
            f"{edit.name}: its statements changed, but the database has the effects of the earlier text;"
            " `orchestrator verify` shows whether that matters"
            for edit in found
            if not edit.cosmetic
        ),
    )


async def _applied(_connection: Any, _dsn: Dsn, _sources: Sequence[Source], one: Survey, wish: Wish) -> Proposal:
    named = {_file(one, name).name for name in wish.names}
    have_a_row = {entry.migration.name for entry in one.plan.applied if entry.migration is not None}
    files = [m for m in one.source.folder.migrations if m.name in named and m.name not in have_a_row]
    newest = max((m.when_ms for m in files), default=0)
    passed = [m.name for m in one.plan.pending if m.when_ms < newest and m.name not in named]
    warnings = []
    if passed and one.source.folder.generation == "v0":
        warnings.append(
            f"drizzle skips what is older than the newest applied migration: {', '.join(passed)} would never run"
        )
    return Proposal(
        "applied",
        one.source.table.key,
        tuple(m.name for m in files),
        (),
        tuple(_new_row(one, m, has_name=_has_name(one)) for m in files),
        warnings=tuple(warnings),
        makes_ledger=bool(files) and not one.ledger.exists,
    )


async def _unapplied(connection: Any, _dsn: Dsn, _sources: Sequence[Source], one: Survey, wish: Wish) -> Proposal:
    known: dict[RowId, str] = {}
    if await records.records_exist(connection):
        known = await records.known_names(connection, one.source.table.key, one.ledger)
    files = {entry.row.id: entry.migration.name for entry in one.plan.applied if entry.migration is not None}

    def names_of(row: LedgerRow) -> list[str]:
        """What a person may call the row, the best name first."""
        names = (files.get(row.id), row.name, known.get(row.id), f"#{row.id}")
        return [name for name in names if name]

    rows = one.ledger.rows
    asked = [name.removesuffix(".sql") for name in wish.names]
    for name in asked:
        if not any(name in names_of(row) for row in rows):
            if not name.startswith("#"):
                _file(one, name)  # raises for an unknown name; a file without a row has nothing to take away
                continue
            raise UnknownNameError(
                f"{one.source.table.key} has no row {name}", remedy="`orchestrator status --json` lists the rows."
            )
    chosen = [row for row in rows if any(name in asked for name in names_of(row))]
    ids = {row.id for row in chosen}
    newest = max((row.created_at or 0 for row in rows if row.id not in ids), default=0)
    stays = [files[row.id] for row in chosen if row.id in files and (row.created_at or 0) <= newest]
    warnings = []
    if stays and one.source.folder.generation == "v0":
        warnings.append(f"newer migrations stay applied, so drizzle would not run {', '.join(stays)} again: re-date it")
    return Proposal(
        "unapplied",
        one.source.table.key,
        tuple(names_of(row)[0] for row in chosen),
        tuple(_row(row, files.get(row.id)) for row in chosen),
        (),
        warnings=tuple(warnings),
    )


async def _baseline(connection: Any, dsn: Dsn, sources: Sequence[Source], one: Survey, wish: Wish) -> Proposal:
    key = one.source.table.key
    if one.ledger.rows:
        raise RepairRefusedError(
            f"the ledger {key} has {len(one.ledger.rows)} rows: a baseline is for a database without one",
            remedy="Mark single migrations instead: orchestrator repair applied NAME.",
            facts={"ledger": key, "rows": len(one.ledger.rows)},
        )
    migrations = one.source.folder.migrations
    last = _file(one, wish.names[0]) if wish.names else migrations[-1] if migrations else None
    files = migrations[: migrations.index(last) + 1] if last is not None else ()
    differences, notes = await _compare(connection, dsn, sources, one, wish, [m.name for m in files])
    return Proposal(
        "baseline",
        key,
        tuple(m.name for m in files),
        (),
        tuple(_new_row(one, m, has_name=_has_name(one)) for m in files),
        warnings=tuple(notes),
        differences=tuple(differences),
        forced=wish.force and bool(differences),
        makes_ledger=not one.ledger.exists,
    )


async def _compare(
    connection: Any, dsn: Dsn, sources: Sequence[Source], one: Survey, wish: Wish, names: Sequence[str]
) -> tuple[list[Difference], list[str]]:
    """What differs between the database and what the files in `names` make, in the user's schemas."""
    others = [source for source in sources if source.label == "service" and source is not one.source]
    wanted, notes = await made_by(
        wish.on or dsn,
        [*others, source_part(one.source, names)],
        extensions=wish.extensions,
        scope=wish.scope,
        purpose="repair baseline",
    )
    live = await read_schema(connection)

    def keep(thing: SchemaObject) -> bool:
        is_users = thing.schema != records.SERVICE_SCHEMA
        return is_users and wish.scope.holds(thing.schema) and not is_of_ledger(thing, one.source.table)

    return diff(wanted.limited(keep), live.limited(keep)), notes


async def _upgrade(_connection: Any, _dsn: Dsn, _sources: Sequence[Source], one: Survey, _wish: Wish) -> Proposal:
    key = one.source.table.key
    if not one.ledger.exists or one.ledger.has_name:
        return Proposal("upgrade", key, (), (), ())
    names, files = _upgrade_names(one)
    return Proposal(
        "upgrade",
        key,
        tuple(files.get(row.id) or f"#{row.id}" for row in one.ledger.rows),
        tuple(_row(row, files.get(row.id)) for row in one.ledger.rows),
        tuple(msgspec.structs.replace(_row(row, files.get(row.id)), name=names[row.id]) for row in one.ledger.rows),
        makes_ledger=True,  # the columns come, also where there is no row
    )


def _upgrade_names(one: Survey) -> tuple[dict[RowId, str], dict[RowId, str]]:
    """Row id → the name that drizzle v1 would give it, and → the file; of a v0 folder, as `drizzle-kit up` names it.

    Raises:
        RepairRefusedError: a row matches no file (drizzle refuses that, too).
    """
    folder = one.source.folder
    as_v1 = [
        msgspec.structs.replace(m, name=ledger_name(folder, m), when_ms=m.when_ms // 1000 * 1000)
        for m in folder.migrations
    ]
    names, lost = upgraded_names(as_v1, one.ledger.rows)
    if lost:
        raise RepairRefusedError(
            f"the ledger {one.source.table.key} cannot be upgraded: no file matches row"
            f" {', '.join(f'{row.id} (hash {row.hash[:12]}…)' for row in lost)}",
            remedy="Restore the files that were applied, or delete the rows: orchestrator repair unapplied '#ID'.",
            facts={"rows": [row.id for row in lost]},
        )
    files = {new.name: old.name for new, old in zip(as_v1, folder.migrations, strict=True)}
    return names, {row_id: files[name] for row_id, name in names.items()}


_PROPOSALS = {
    "accept": _accept,
    "applied": _applied,
    "unapplied": _unapplied,
    "baseline": _baseline,
    "upgrade": _upgrade,
}


# ---------------------------------------------------------------------------------------------------------- the change


async def _carry_out(connection: Any, one: Survey, proposal: Proposal) -> None:
    """All of it, and its record, in one transaction."""
    async with connection.transaction():
        await _CHANGES[proposal.action](connection, one, proposal)
        await _record(connection, one, proposal)
        if not await connection.fetchval(f"SELECT {HELD_HERE}"):
            raise MigrationError(
                "this session no longer holds the migration lock; nothing was changed",
                remedy="There is a pooler in transaction mode: set MIGRATION_DATABASE_URL to the server itself.",
            )


async def _do_accept(connection: Any, one: Survey, proposal: Proposal) -> None:
    files = {m.name: m for m in one.source.folder.migrations}
    for before, after in zip(proposal.before, proposal.after, strict=True):
        tag = await connection.execute(
            f"UPDATE {one.source.table.qualified} SET hash = $1 WHERE id::text = $2 AND hash = $3",  # noqa: S608
            after.hash,
            str(before.id),
            before.hash,
        )
        _one_row(tag)
        assert after.file is not None  # noqa: S101 an edited row has its file
        await _keep_text(connection, one, files[after.file], when_ms=before.created_at, instead_of=before.hash)


async def _do_applied(connection: Any, one: Survey, proposal: Proposal) -> None:
    source = one.source
    files = {m.name: m for m in source.folder.migrations}
    if not one.ledger.exists:
        await create_ledger(connection, source.table, source.folder)
    for name in proposal.names:
        statement = insert_statement(
            source.table, source.folder, files[name], has_name=_has_name(one), condition="true"
        )
        _one_row(await connection.execute(statement))
        await _keep_text(connection, one, files[name], when_ms=files[name].when_ms, instead_of=None)
        await connection.execute(records.end_unfinished(source.table.key, name))


async def _do_unapplied(connection: Any, one: Survey, proposal: Proposal) -> None:
    for row in proposal.before:
        _one_row(
            await connection.execute(
                f"DELETE FROM {one.source.table.qualified} WHERE id::text = $1 AND hash = $2",  # noqa: S608
                str(row.id),
                row.hash,
            )
        )
        if row.file is not None:
            await connection.execute(records.end_unfinished(one.source.table.key, row.file))


async def _do_upgrade(connection: Any, one: Survey, proposal: Proposal) -> None:
    names = {row.id: row.name for row in proposal.after if row.id is not None and row.name is not None}
    await upgrade_ledger(connection, one.source.table, names)


_CHANGES = {
    "accept": _do_accept,
    "applied": _do_applied,
    "unapplied": _do_unapplied,
    "baseline": _do_applied,
    "upgrade": _do_upgrade,
}


def _one_row(tag: str) -> None:
    if tag.rpartition(" ")[2] != "1":
        raise MigrationError(
            "the ledger changed while it was being repaired; nothing was changed",
            remedy="Something writes to it without the migration lock (another tool?). Stop it, then try again.",
        )


async def _keep_text(
    connection: Any, one: Survey, migration: Migration, *, when_ms: int | None, instead_of: str | None
) -> None:
    """Keep the file's text as that of the ledger row; its duration is that of the text before it, else unknown (0)."""
    raw = migration.read()
    packed = records.compress(raw)
    await connection.execute(
        "INSERT INTO orchestrator.migration_records"
        " (ledger, name, hash, created_at, duration_s, size_bytes, text, text_gzip)"
        " SELECT $1, $2, $3, $4, coalesce((SELECT duration_s FROM orchestrator.migration_records WHERE ledger = $1"
        " AND created_at = $4 AND hash = $5 ORDER BY id DESC LIMIT 1), 0), $6, $7, $8",
        one.source.table.key,
        migration.name,
        migration.hash,
        when_ms,
        instead_of,
        migration.size_bytes,
        raw.decode(errors="replace") if packed is None else None,
        packed,
    )


async def _record(connection: Any, one: Survey, proposal: Proposal) -> None:
    """Who changed what, from where: the rows before, and as they are now."""
    files = {(row.hash, row.created_at): row.file for row in (*proposal.before, *proposal.after)}
    changed = {row.id for row in (*proposal.before, *proposal.after)}
    unchanged = {row.id for row in one.ledger.rows if row.id not in changed}
    now = await read_ledger(connection, one.source.table)
    after = [_row(row, files.get((row.hash, row.created_at))) for row in now.rows if row.id not in unchanged]
    await connection.execute(
        "INSERT INTO orchestrator.repairs (ledger, action, names, forced, os_user, host, version, before, after)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9::text::jsonb)",
        proposal.ledger,
        proposal.action,
        list(proposal.names),
        proposal.forced,
        _os_user(),
        socket.gethostname(),
        __version__,
        msgspec.json.encode(proposal.before).decode(),
        msgspec.json.encode(after).decode(),
    )


def _os_user() -> str:
    """The user of the process; in a container its number may have no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
