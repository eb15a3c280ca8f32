"""Compare a live database with what its migrations make, replayed on a scratch database. Writes only to the latter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.connect import own_session
from orchestrator.database.quoting import identifier
from orchestrator.database.scratch import scratch_database, server_errors_explained
from orchestrator.migrator.edits import Edit, edits
from orchestrator.migrator.records import SERVICE_SCHEMA
from orchestrator.migrator.resolve import Kind
from orchestrator.migrator.state import readable_surveys
from orchestrator.schema.diff import Difference, column_order, diff
from orchestrator.schema.objects import Schema, SchemaObject, read_schema
from orchestrator.tools.replay import LEFT_OUT, replay

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Event
    from orchestrator.migrator.ledger import LedgerTable
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.state import Survey

_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_$]*\Z")


class Scope(msgspec.Struct, frozen=True):
    """What is compared: all schemas or those named, without those left out; privileges too if asked for."""

    schemas: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    privileges: bool = False

    def holds(self, schema: str | None) -> bool:
        """Whether objects of `schema` are compared (None: those in no schema)."""
        return (not self.schemas or schema in self.schemas) and schema not in self.excluded


class LedgerDifference(msgspec.Struct, frozen=True):
    """One place where files and ledger are not the same; `kind` is `pending` or a finding's."""

    source: str
    kind: str
    name: str
    text: str
    remedy: str


class SourcedDifference(msgspec.Struct, frozen=True):
    """A difference of the catalogue, and whose it is: the service's own schema, or the user's."""

    source: str
    difference: Difference


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found. `cosmetic` are differences that change nothing, `notes` what could not be compared."""

    ledger: tuple[LedgerDifference, ...]
    differences: tuple[SourcedDifference, ...]
    edits: tuple[Edit, ...]
    cosmetic: tuple[str, ...]
    notes: tuple[str, ...]
    objects_compared: int
    migrations_replayed: int

    @property
    def is_equal(self) -> bool:
        """Whether nothing but the cosmetic differs."""
        return not self.ledger and not self.differences


async def verify(
    dsn: Dsn,
    sources: Sequence[Source],
    *,
    on: Dsn | None = None,
    extensions: Sequence[str] = (),
    scope: Scope | None = None,
) -> Verdict:
    """Replay what the ledger says is applied, in the folder's order, and compare catalogue and ledger.

    Pending files are differences of the ledger and are not replayed, so that drift is told apart from what has yet to
    run. The role needs to read the ledger and to make a database (`on`: there), nothing else. Cancelled: the scratch
    database is dropped.

    Raises:
        ScratchError: no database can be made.
        MigrationError: the files do not run on an empty database.
        DatabaseUnavailableError: a server is not to be reached.
    """
    scope = scope or Scope()
    surveys, edited, live = await _read_live(dsn, sources, scope)
    wanted, notes = await made_by(
        on or dsn,
        [applied_part(one) for one in surveys],
        extensions=extensions,
        scope=scope,
    )
    if wanted.server_version != live.server_version:
        notes.append(
            f"the scratch server is PostgreSQL {wanted.server_version}, the database's {live.server_version}: the"
            " two may"
            " write the same thing differently; use a server of the same version"
        )
    ledgers = [one.source.table for one in surveys]
    labels = _compared(surveys, notes)
    pair = [side.limited(lambda o: _is_compared(o, scope, labels, ledgers)) for side in (wanted, live)]
    cosmetic = [
        f"columns of {table} are in another order: files {', '.join(files)}; database {', '.join(found)}"
        for table, files, found in column_order(*pair)
    ]
    cosmetic += [f"{edit.name}: only white space or comments changed" for edit in edited if edit.cosmetic]
    return Verdict(
        tuple(difference for one in surveys for difference in _ledger_differences(one)),
        tuple(SourcedDifference(_label(d.schema), d) for d in diff(*pair)),
        tuple(edited),
        tuple(cosmetic),
        tuple(notes),
        len(pair[0].objects),
        sum(len(applied_part(one).folder.migrations) for one in surveys),
    )


async def made_by(
    on: Dsn,
    sources: Sequence[Source],
    *,
    extensions: Sequence[str],
    scope: Scope,
    purpose: str = "verify",
) -> tuple[Schema, list[str]]:
    """The catalogue that `sources` make in an empty database on the server of `on`, and what was missing there."""
    notes: list[str] = []

    def listen(event: Event) -> None:
        if event.name == "extension.missing":
            notes.append(
                f"the scratch database lacks the extension {event.facts['extension']} ({event.facts['reason']}):"
                " what depends on it cannot be compared; --on a server, or as a user, that can have it"
            )
        if event.name == LEFT_OUT:
            notes.append(str(event.facts["text"]))

    async with scratch_database(on, purpose=purpose) as scratch:
        await replay(scratch, sources, extensions=extensions, on_event=listen)
        return await _schema_of(scratch, scope), notes


def applied_part(one: Survey) -> Source:
    """The source with the files that the ledger says are applied; the service's own with all, which ours need."""
    source = one.source
    if source.label == "service":
        return source
    names = {entry.migration.name for entry in one.plan.applied if entry.migration is not None}
    names |= {f.name for f in one.plan.findings if f.kind is Kind.REDATED}
    return source_part(source, names)


def source_part(source: Source, names: Collection[str]) -> Source:
    """The source with the files in `names` alone, in the folder's order."""
    kept = tuple(migration for migration in source.folder.migrations if migration.name in names)
    return type(source)(source.label, msgspec.structs.replace(source.folder, migrations=kept), source.table)


async def _read_live(dsn: Dsn, sources: Sequence[Source], scope: Scope) -> tuple[list[Survey], list[Edit], Schema]:
    with server_errors_explained(dsn, doing="reading the database"):
        async with _session(dsn) as connection:
            surveys = await readable_surveys(connection, sources)
            edited = [edit for one in surveys for edit in await edits(connection, one)]
            return surveys, edited, await read_schema(connection, privileges=scope.privileges)


async def _schema_of(dsn: Dsn, scope: Scope) -> Schema:
    with server_errors_explained(dsn, doing="reading the scratch database"):
        async with _session(dsn) as connection:
            return await read_schema(connection, privileges=scope.privileges)


def _session(dsn: Dsn) -> Any:
    return own_session(dsn, application_name="orchestrator verify")


def _label(schema: str | None) -> str:
    return "service" if schema == SERVICE_SCHEMA else "user"


def _compared(surveys: Sequence[Survey], notes: list[str]) -> set[str]:
    """Whose objects can be compared: the user's where there is a folder, the service's where its own are applied."""
    labels: set[str] = set()
    for one in surveys:
        if one.source.label == "service" and (not one.ledger.exists or one.plan.pending):
            notes.append("the service's own schema is not compared: its migrations are pending (orchestrator migrate)")
        else:
            labels.add(one.source.label)
    return labels


def _is_compared(one: SchemaObject, scope: Scope, labels: set[str], ledgers: Sequence[LedgerTable]) -> bool:
    if _label(one.schema) not in labels or not scope.holds(one.schema):
        return False
    return not any(is_of_ledger(one, table) for table in ledgers)


def is_of_ledger(one: SchemaObject, table: LedgerTable) -> bool:
    """Whether the object is a ledger or a part of it, or the schema made for it: the rows are compared, not this."""
    if one.kind == "schema":
        return one.schema == table.schema and table.schema not in {"public", SERVICE_SCHEMA}
    names = {f"{schema}.{name}" for schema in _spellings(table.schema) for name in _spellings(table.table)}
    return one.name in names or one.table in names


def _spellings(name: str) -> set[str]:
    """A name as `quote_ident` may write it; which words it quotes depends on the server."""
    return {identifier(name), name} if _PLAIN_NAME.match(name) else {identifier(name)}


def _ledger_differences(one: Survey) -> list[LedgerDifference]:
    label = one.source.label
    found = [
        LedgerDifference(
            label, "pending", migration.name, "in the folder, but not applied", "Apply it: orchestrator migrate."
        )
        for migration in one.plan.pending
    ]
    found += [
        LedgerDifference(label, str(finding.kind), finding.name, _TEXTS[finding.kind], _remedy(finding.kind))
        for finding in one.plan.findings
        if not finding.cosmetic
    ]
    return found


_TEXTS = {
    Kind.EDITED: "the file differs from what was applied under its name",
    Kind.OUT_OF_ORDER: "never applied, although newer ones are",
    Kind.REDATED: "applied under another time than that of the file",
    Kind.ORPHANED: "applied, but no file of the folder matches",
    Kind.AHEAD: "applied by newer code than this",
    Kind.DAMAGED: "the ledger row has no created_at",
}


def _remedy(kind: Kind) -> str:
    return {
        Kind.EDITED: "Restore the file, or accept it: orchestrator repair accept NAME.",
        Kind.OUT_OF_ORDER: "Re-date it, or mark it: orchestrator repair applied NAME.",
        Kind.REDATED: "Restore its old time.",
        Kind.ORPHANED: "Restore the file, or mark it: orchestrator repair unapplied NAME.",
        Kind.AHEAD: "Compare with the code that applied it.",
        Kind.DAMAGED: "Correct the row by hand.",
    }[kind]
