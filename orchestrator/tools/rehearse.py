"""Apply what is pending to a copy of the database, and tell how it went. Writes only to the copy, which is dropped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.analysis.locks import Lock
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
from orchestrator.tools.replay import LEFT_OUT, replay
from orchestrator.tools.verify import applied_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.backup.pgtools import Emit
    from orchestrator.backup.restricted_role import Place
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.state import Survey

# What a transaction that changes rows holds on the table (TRUNCATE: the strongest).
_WRITES = {Lock.ROW_EXCLUSIVE, Lock.SHARE_ROW_EXCLUSIVE, Lock.EXCLUSIVE, Lock.ACCESS_EXCLUSIVE}

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


async def rehearse(dsn: Dsn, sources: Sequence[Source], how: Rehearsal, emit: Emit) -> RehearsalReport:
    """Copy, apply with the code and the options of a start, look, drop. `emit` hears of each step.

    A migration that fails is a part of the report, not an error here. Cancelled: the copy is dropped.

    Raises:
        PgToolMissingError, CopyError: the copy cannot be made.
        ScratchError: no database can be made.
        MigrationError: the ledger is no ledger, or history is refused.
    """
    with server_errors_explained(dsn, doing="reading the database"):
        async with _session(dsn) as live:
            surveys = await readable_surveys(live, sources, policy=how.options.policy, ahead=how.options.ahead)
            planned = await _planned(live, surveys, how)
            async with isolated_database(
                how.on,
                purpose="rehearse",
                # The operator's own files alone run there, as they would in a start.
                with_own_rights=how.with_own_rights or how.from_files,
                emit=emit,
            ) as place:
                return await _rehearse_on(place, live, dsn, surveys, planned, how, emit)


async def _rehearse_on(
    place: Place,
    live: Any,
    dsn: Dsn,
    surveys: Sequence[Survey],
    planned: dict[tuple[str, str], tuple[LockTaken, ...]],
    how: Rehearsal,
    emit: Emit,
) -> RehearsalReport:
    """Fill the copy, remember its state, apply what is pending, and compare."""
    began, notes = time.monotonic(), list[str]()
    pending = tuple(m.name for one in surveys for m in one.plan.pending)
    emit("rehearsal.started", database=place.dsn.redacted(), pending=len(pending), with_data=how.with_data)
    await _fill_copy(place, live, dsn, surveys, how, emit, notes)
    copied_in_s = time.monotonic() - began
    emit("rehearsal.copied", duration_s=round(copied_in_s, 3))
    async with _session(place.dsn) as copy:
        before = await _state(copy)
        await _watch_locks(copy, surveys)
        before_size = await _size(copy)
    applied, failed = await _apply(place.dsn, surveys, how, emit, notes)
    async with _session(place.dsn) as copy:
        after, locks, after_size = await _state(copy), await _locks(copy), await _size(copy)
    changed = _changed(before.rows, after.rows, _our_tables(surveys))
    findings, already = _unhealthy(before, after)
    if not planned:  # the locks of a file that is not one transaction are not all seen, so what it wrote is not known
        findings += _lost_rows(changed, locks)
    return RehearsalReport(
        pending,
        _with_locks(applied, surveys, planned, locks),
        failed,
        how.with_data,
        round(copied_in_s, 3),
        before_size,
        after_size,
        tuple(changed),
        len(before.rows) - sum(1 for one in changed if one.before is not None),
        tuple(findings),
        tuple(already),
        tuple(notes),
    )


async def _fill_copy(
    place: Place,
    live: Any,
    dsn: Dsn,
    surveys: Sequence[Survey],
    how: Rehearsal,
    emit: Emit,
    notes: list[str],
) -> None:
    """Make the copy what the database is, up to the migrations that are pending; `notes` say where it is not."""
    if how.from_files:
        notes.append("the schema is what the applied files make, not the database's own (--from-files)")
        await replay(
            place.dsn,
            _applied_parts(surveys),
            extensions=how.extensions,
            on_event=lambda event: _note_left_out(event, notes),
        )
        return
    async with _session(place.dsn) as copy:
        notes += await copy_database(live, dsn, copy, place, with_data=how.with_data, emit=emit)
        if not how.with_data:
            await copy_rows(live, copy, [one.source.table for one in surveys])
        for one in surveys:
            # Where the real run would make the ledger, it is made now: the trigger needs it.
            if not one.ledger.exists:
                await create_ledger(copy, one.source.table, one.source.folder)


async def _apply(
    scratch: Dsn, surveys: Sequence[Survey], how: Rehearsal, emit: Emit, notes: list[str]
) -> tuple[list[tuple[str, str, float]], dict[str, Any] | None]:
    """Apply what is pending: `(source, name, seconds)` of each that was, and the error of the one that failed."""
    applied: list[tuple[str, str, float]] = []

    def listen(event: Event) -> None:
        _note_left_out(event, notes)
        if event.name == "migration.applied":
            facts = event.facts
            applied.append((str(facts["source"]), str(facts["migration"]), float(str(facts["duration_s"]))))
        if event.name.startswith("migration."):
            emit(event.name, level=event.level, **event.facts)

    try:
        await replay(
            scratch,
            [one.source for one in surveys],
            extensions=how.extensions,
            options=how.options,
            on_event=listen,
        )
    except MigrationError as error:
        return applied, error.described()
    return applied, None


def _with_locks(
    applied: Sequence[tuple[str, str, float]],
    surveys: Sequence[Survey],
    planned: dict[tuple[str, str], tuple[LockTaken, ...]],
    locks: dict[tuple[str, str, int], tuple[LockTaken, ...]],
) -> tuple[Rehearsed, ...]:
    keys: dict[tuple[str, str], tuple[str, str, int]] = {
        (one.source.label, m.name): _lock_key(one, m) for one in surveys for m in one.source.folder.migrations
    }
    return tuple(
        Rehearsed(
            source,
            name,
            duration_s,
            planned.get((source, name)) or locks.get(keys[source, name], ()),
            (source, name) in planned,
        )
        for source, name, duration_s in applied
    )


def _our_tables(surveys: Sequence[Survey]) -> set[str]:
    return {one.source.table.key for one in surveys} | {f"{SERVICE_SCHEMA}.{name}" for name in RECORDS}


def _lost_rows(
    changed: Sequence[Counted], locks: dict[tuple[str, str, int], tuple[LockTaken, ...]]
) -> list[RehearsalFinding]:
    """The tables whose rows became more or fewer, although no migration held a lock to write to them."""
    written = {held.relation for mine in locks.values() for held in mine if Lock.of(held.mode) in _WRITES}
    return [
        RehearsalFinding(
            "rows", one.table, f"{one.before} rows became {one.after}, and no migration that ran wrote to it"
        )
        for one in changed
        if one.before is not None and one.after is not None and one.table not in written
    ]


def _note_left_out(event: Event, notes: list[str]) -> None:
    if event.name == LEFT_OUT:
        notes.append(str(event.facts["text"]))


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
    held: dict[tuple[str, str, int], list[LockTaken]] = {}
    for ledger, file_hash, created_at, relation, mode, made in rows:
        taken = LockTaken(relation, mode, Lock.of(mode).blocks, made)
        held.setdefault((ledger, file_hash, created_at), []).append(taken)
    return {key: _strongest(locks) for key, locks in held.items()}


def _strongest(locks: Iterable[LockTaken]) -> tuple[LockTaken, ...]:
    """One for each relation, those on what others use first."""
    found: dict[str, LockTaken] = {}
    for one in locks:
        if one.relation not in found or Lock.of(one.mode) > Lock.of(found[one.relation].mode):
            found[one.relation] = one
    return tuple(sorted(found.values(), key=lambda held: (held.made, -Lock.of(held.mode), held.relation)))


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
                live,
                [one.source for one in surveys],
                policy=how.options.policy,
                ahead=how.options.ahead,
                extensions=how.extensions,
            )
    except SqlSyntaxError:
        return {}  # the run ends with the same error
    return {
        (source["source"], file["name"]): _strongest(
            LockTaken(
                touch["table"] if "." in touch["table"] else f"public.{touch['table']}",
                touch["lock"],
                touch["blocks"],
                touch["new"],
            )
            for statement in file["statements"]
            for touch in statement["touches"]
        )
        for source in found["sources"]
        for file in source["pending"]
        if file["transaction"] == "steps"
    }


def _session(dsn: Dsn) -> Any:
    return own_session(dsn, application_name="orchestrator rehearse")
