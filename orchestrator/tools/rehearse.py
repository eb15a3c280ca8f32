"""Apply what is pending to a copy of the database, and tell how it went. Writes only to the copy, which is dropped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.backup.archive import count_rows
from orchestrator.backup.restricted_role import isolated_database
from orchestrator.database.connect import own_session
from orchestrator.database.scratch import server_errors_explained
from orchestrator.errors import MigrationError
from orchestrator.migrator.ledger import create_ledger
from orchestrator.migrator.records import SERVICE_SCHEMA
from orchestrator.migrator.sql.statements import SqlSyntaxError
from orchestrator.migrator.state import readable_surveys
from orchestrator.tools.clone import RECORDS, copy_database, copy_rows
from orchestrator.tools.replay import replay
from orchestrator.tools.verify import applied_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.backup.pgtools import Emit
    from orchestrator.backup.restricted_role import Place
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.state import Survey

# What a transaction that changes rows holds on the table (TRUNCATE: the strongest).
_WRITES = {"RowExclusiveLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"}
_BLOCKS = {
    "AccessExclusiveLock": "reads and writes",
    "ExclusiveLock": "writes",
    "ShareRowExclusiveLock": "writes",
    "ShareLock": "writes",
    "ShareUpdateExclusiveLock": "other DDL",
}

# The last thing that a migration does is to write its ledger row: at that moment its transaction holds every lock that
# it took. So a trigger there writes them down, in the transaction, however the statements were sent.
_WATCH = """
CREATE SCHEMA orchestrator_rehearsal;
CREATE TABLE orchestrator_rehearsal.locks (
    ledger text, hash text, created_at bigint, relation text, mode text, made boolean
);
CREATE TABLE orchestrator_rehearsal.known (oid oid PRIMARY KEY);
INSERT INTO orchestrator_rehearsal.known SELECT oid FROM pg_catalog.pg_class;
CREATE FUNCTION orchestrator_rehearsal.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = '' AS $$
BEGIN
    INSERT INTO orchestrator_rehearsal.locks
    SELECT TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, NEW.hash, NEW.created_at, n.nspname || '.' || c.relname, l.mode,
        NOT EXISTS (SELECT 1 FROM orchestrator_rehearsal.known k WHERE k.oid = c.oid)
    FROM pg_catalog.pg_locks l
    JOIN pg_catalog.pg_class c ON c.oid = l.relation
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE l.locktype = 'relation' AND l.granted AND l.pid = pg_catalog.pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND c.relkind IN ('r', 'p', 'm', 'v', 'f') AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', 'orchestrator_rehearsal') AND c.oid <> TG_RELID
    AND NOT (n.nspname = 'orchestrator' AND c.relname IN ('migration_records', 'unfinished_migrations'));
    INSERT INTO orchestrator_rehearsal.known SELECT oid FROM pg_catalog.pg_class ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
"""
_STRENGTH = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)


class LockTaken(msgspec.Struct, frozen=True):
    """The strongest lock that a migration held on a relation; `made` by itself, so that nobody waited for it."""

    relation: str
    mode: str
    blocks: str
    made: bool


class Rehearsed(msgspec.Struct, frozen=True):
    """One migration that ran, with the locks that its transaction held at its end.

    `outside`: it was not one transaction, so that locks came and went; they are those that `plan` expects.
    """

    source: str
    name: str
    duration_s: float
    locks: tuple[LockTaken, ...]
    outside: bool


class Counted(msgspec.Struct, frozen=True):
    """A table's rows before and after."""

    table: str
    before: int | None
    after: int | None


class RehearsalFinding(msgspec.Struct, frozen=True):
    """Something that is not whole after the run: `kind` is rows, constraint or index."""

    kind: str
    name: str
    text: str


class RehearsalReport(msgspec.Struct, frozen=True):
    """How it went. `failed` holds the error of the migration that did not, None where all did."""

    pending: tuple[str, ...]
    applied: tuple[Rehearsed, ...]
    failed: dict[str, Any] | None
    with_data: bool
    copied_in_s: float
    size_before_bytes: int
    size_after_bytes: int
    rows_changed: tuple[Counted, ...]
    tables_unchanged: int
    findings: tuple[RehearsalFinding, ...]
    before_already: tuple[RehearsalFinding, ...]
    notes: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        """Whether a real run would go well, as far as this one can tell."""
        return self.failed is None and not self.findings


class Rehearsal(msgspec.Struct, frozen=True):
    """How it is rehearsed: `on` is the server of the copy, `from_files` replays instead of copying the schema.

    A copy is filled and migrated by a role without any other right, unless `with_own_rights` or `from_files`.
    """

    on: Dsn
    options: Options
    extensions: tuple[str, ...] = ()
    with_data: bool = False
    from_files: bool = False
    with_own_rights: bool = False
    connect_timeout_s: float = 5.0
    wait_timeout_s: float = 5.0


async def rehearse(dsn: Dsn, sources: Sequence[Source], how: Rehearsal, emit: Emit) -> RehearsalReport:
    """Copy, apply with the code and the options of a start, look, drop. `emit` hears of each step.

    A migration that fails is a part of the report, not an error here. Cancelled: the copy is dropped.

    Raises:
        PgToolMissingError, CopyError: the copy cannot be made.
        ScratchError: no database can be made.
        MigrationError: the ledger is no ledger, or history is refused.
    """
    with server_errors_explained(dsn, doing="reading the database"):
        async with _session(dsn, how) as live:
            surveys = await readable_surveys(live, sources, policy=how.options.policy, ahead=how.options.ahead)
            pending = tuple(m.name for one in surveys for m in one.plan.pending)
            planned = await _planned(live, surveys, how)
            async with isolated_database(
                how.on,
                purpose="rehearse",
                # The operator's own files alone run there, as they would in a start.
                with_own_rights=how.with_own_rights or how.from_files,
                emit=emit,
                connect_timeout_s=how.connect_timeout_s,
            ) as place:
                return await _on(place, live, dsn, surveys, pending, planned, how, emit)


async def _on(
    place: Place,
    live: Any,
    dsn: Dsn,
    surveys: Sequence[Survey],
    pending: tuple[str, ...],
    planned: dict[tuple[str, str], tuple[LockTaken, ...]],
    how: Rehearsal,
    emit: Emit,
) -> RehearsalReport:
    began, scratch = time.monotonic(), place.dsn
    notes: list[str] = []
    emit("rehearsal.started", database=scratch.redacted(), pending=len(pending), with_data=how.with_data)
    if how.from_files:
        notes.append("the schema is what the applied files make, not the database's own (--from-files)")
        await replay(
            scratch, _applied_parts(surveys), extensions=how.extensions, connect_timeout_s=how.connect_timeout_s
        )
    async with _session(scratch, how) as copy:
        if not how.from_files:
            notes += await copy_database(
                live,
                dsn,
                copy,
                place,
                with_data=how.with_data,
                emit=emit,
                connect_timeout_s=how.connect_timeout_s,
            )
            if not how.with_data:
                await copy_rows(live, copy, [one.source.table for one in surveys])
        for one in surveys:
            # Where the real run would make the ledger, it is made now: the trigger needs it.
            if not one.ledger.exists and not how.from_files:
                await create_ledger(copy, one.source.table, one.source.folder)
        copied_in_s = time.monotonic() - began
        emit("rehearsal.copied", duration_s=round(copied_in_s, 3))
        before = await _state(copy)
        await _watch_locks(copy, surveys)
        began_sizes = await _size(copy)
    failed: dict[str, Any] | None = None
    durations: list[tuple[str, str, float]] = []

    def listen(event: Event) -> None:
        if event.name == "migration.applied":
            facts = event.facts
            durations.append((str(facts["source"]), str(facts["migration"]), float(str(facts["duration_s"]))))
        if event.name.startswith("migration."):
            emit(event.name, level=event.level, **event.facts)

    try:
        await replay(
            scratch,
            [one.source for one in surveys],
            extensions=how.extensions,
            options=how.options,
            connect_timeout_s=how.connect_timeout_s,
            on_event=listen,
        )
    except MigrationError as error:
        failed = error.described()
    async with _session(scratch, how) as copy:
        after = await _state(copy)
        locks = await _locks(copy)
        size_after = await _size(copy)
        findings, already = _unhealthy(before, after)
    written = {held.relation for mine in locks.values() for held in mine if held.mode in _WRITES}
    ours = {one.source.table.key for one in surveys} | {f"{SERVICE_SCHEMA}.{name}" for name in RECORDS}
    changed = _changed(before.rows, after.rows, ours)
    findings += [
        RehearsalFinding(
            "rows", one.table, f"{one.before} rows became {one.after}, and no migration that ran wrote to it"
        )
        for one in changed
        if one.before is not None and one.after is not None and one.table not in written and not planned
    ]
    migrations: dict[tuple[str, str], tuple[Survey, Migration]] = {
        (one.source.label, m.name): (one, m) for one in surveys for m in one.source.folder.migrations
    }
    return RehearsalReport(
        pending,
        tuple(
            Rehearsed(
                source,
                name,
                duration_s,
                planned.get((source, name)) or locks.get(_lock_key(*migrations[source, name]), ()),
                (source, name) in planned,
            )
            for source, name, duration_s in durations
        ),
        failed,
        how.with_data,
        round(copied_in_s, 3),
        began_sizes,
        size_after,
        tuple(changed),
        len(before.rows) - sum(1 for one in changed if one.before is not None),
        tuple(findings),
        tuple(already),
        tuple(notes),
    )


def _applied_parts(surveys: Sequence[Survey]) -> list[Source]:
    """What is applied, the service's own too: what is pending of it is rehearsed like the rest."""
    parts = []
    for one in surveys:
        part = applied_part(one)
        if one.source.label == "service" and one.ledger.exists:
            names = {entry.migration.name for entry in one.plan.applied if entry.migration is not None}
            kept = tuple(m for m in one.source.folder.migrations if m.name in names)
            part = type(part)(part.label, msgspec.structs.replace(part.folder, migrations=kept), part.table)
        parts.append(part)
    return parts


class _State(msgspec.Struct, frozen=True):
    rows: dict[str, int]
    unhealthy: dict[tuple[str, str], str]


async def _state(copy: Any) -> _State:
    counted = await count_rows(copy)
    rows = {name: count for name, count in counted.tables.items() if not name.startswith("orchestrator_rehearsal.")}
    found = await copy.fetch(
        "SELECT 'constraint' AS kind, c.conrelid::regclass::text || '.' || c.conname AS name,"
        " 'is not validated: rows may break it' AS text FROM pg_catalog.pg_constraint c"
        " WHERE NOT c.convalidated AND c.conrelid <> 0"
        " UNION ALL SELECT 'index', i.indexrelid::regclass::text, 'is not valid: no query uses it'"
        " FROM pg_catalog.pg_index i WHERE NOT (i.indisvalid AND i.indisready)"
    )
    return _State(rows, {(row["kind"], row["name"]): row["text"] for row in found})


async def _size(copy: Any) -> int:
    size: int = await copy.fetchval("SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")
    return size


def _unhealthy(before: _State, after: _State) -> tuple[list[RehearsalFinding], list[RehearsalFinding]]:
    """What is not whole after the run: what the run left so, and what was so before."""
    found = [RehearsalFinding(kind, name, text) for (kind, name), text in sorted(after.unhealthy.items())]
    already = [one for one in found if (one.kind, one.name) in before.unhealthy]
    return [one for one in found if one not in already], already


def _changed(before: dict[str, int], after: dict[str, int], ours: set[str]) -> list[Counted]:
    return [
        Counted(table, before.get(table), after.get(table))
        for table in sorted((before.keys() | after.keys()) - ours)
        if before.get(table) != after.get(table)
    ]


async def _watch_locks(copy: Any, surveys: Sequence[Survey]) -> None:
    await copy.execute(_WATCH)
    for one in surveys:
        await copy.execute(
            f"CREATE TRIGGER orchestrator_rehearsal AFTER INSERT ON {one.source.table.qualified}"
            " FOR EACH ROW EXECUTE FUNCTION orchestrator_rehearsal.note();"
            # Also where a file sets session_replication_role.
            f" ALTER TABLE {one.source.table.qualified} ENABLE ALWAYS TRIGGER orchestrator_rehearsal"
        )


def _lock_key(one: Survey, migration: Migration) -> tuple[str, str, int]:
    return (one.source.table.key, migration.hash, migration.when_ms)


async def _locks(copy: Any) -> dict[tuple[str, str, int], tuple[LockTaken, ...]]:
    rows = await copy.fetch("SELECT ledger, hash, created_at, relation, mode, made FROM orchestrator_rehearsal.locks")
    strongest: dict[tuple[str, str, int], dict[str, LockTaken]] = {}
    for ledger, file_hash, created_at, relation, mode, made in rows:
        held = strongest.setdefault((ledger, file_hash, created_at), {})
        if relation not in held or _STRENGTH.index(mode) > _STRENGTH.index(held[relation].mode):
            held[relation] = LockTaken(relation, mode, _BLOCKS.get(mode, "nothing"), made)
    return {
        key: tuple(sorted(held.values(), key=lambda h: (h.made, -_STRENGTH.index(h.mode), h.relation)))
        for key, held in strongest.items()
    }


async def _planned(
    live: Any, surveys: Sequence[Survey], how: Rehearsal
) -> dict[tuple[str, str], tuple[LockTaken, ...]]:
    """The pending files that are not one transaction, with the locks that `plan` expects of their statements."""
    if not any(one.plan.pending for one in surveys):
        return {}
    from orchestrator.analysis.plan import preview  # the grammar loads 14 MB: only when something is pending

    try:
        async with live.transaction(readonly=True, isolation="repeatable_read"):
            found = await preview(
                live, [one.source for one in surveys], policy=how.options.policy, ahead=how.options.ahead
            )
    except SqlSyntaxError:
        return {}  # the run ends with the same error
    planned: dict[tuple[str, str], tuple[LockTaken, ...]] = {}
    for source in found["sources"]:
        for file in source["pending"]:
            if file["transaction"] == "steps":
                held: dict[str, LockTaken] = {}
                for touch in (touch for statement in file["statements"] for touch in statement["touches"]):
                    name = touch["table"] if "." in touch["table"] else f"public.{touch['table']}"
                    one = LockTaken(name, touch["lock"], touch["blocks"], touch["new"])
                    if one.relation not in held or _strength(one) > _strength(held[one.relation]):
                        held[one.relation] = one
                planned[source["source"], file["name"]] = tuple(held.values())
    return planned


def _strength(held: LockTaken) -> int:
    return _STRENGTH.index(held.mode)


def _session(dsn: Dsn, how: Rehearsal) -> Any:
    return own_session(
        dsn,
        wait_timeout_s=how.wait_timeout_s,
        connect_timeout_s=how.connect_timeout_s,
        application_name="orchestrator rehearse",
    )
