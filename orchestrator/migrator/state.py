"""Look at one folder and one ledger and say what a run would do. Touches files and database, and writes nothing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.quoting import identifier
from orchestrator.database.sessions import as_ours
from orchestrator.errors import MigrationError
from orchestrator.migrator import records
from orchestrator.migrator.ledger import read_ledger
from orchestrator.migrator.ownership import refuse_a_taken_schema, refuse_untrusted
from orchestrator.migrator.resolve import Ahead, HistoryFinding, Kind, Ledger, Plan, Policy, RowId, make_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.migrator.sources import Source


class Survey(msgspec.Struct, frozen=True):
    """What is, and what a run would do, for one source. `unfinished` tells how far interrupted runs came, by name."""

    source: Source
    ledger: Ledger
    plan: Plan
    unfinished: dict[str, records.Unfinished]


async def survey(connection: Any, source: Source, *, policy: Policy, ahead: Ahead) -> Survey:
    """Read ledger and records, and plan. Needs no lock, and works for a role that can only read.

    Raises:
        MigrationError: the ledger's table is not a ledger.
    """
    async with as_ours(connection):
        return await _survey(connection, source, policy=policy, ahead=ahead)


async def _survey(connection: Any, source: Source, *, policy: Policy, ahead: Ahead) -> Survey:
    key = source.table.key
    ledger = await read_ledger(connection, source.table)
    plan = make_plan(source.folder, ledger, policy=policy, ahead=ahead)
    if not plan.findings and not plan.pending:
        return Survey(source, ledger, plan, {})
    has_records = await records.records_exist(connection)
    unfinished = await records.unfinished(connection, key) if has_records else {}
    if plan.findings:
        # Only where files and ledger differ, what we remember of them is needed.
        names = await records.known_names(connection, key, ledger) if has_records else {}
        plan = make_plan(
            source.folder,
            ledger,
            policy=policy,
            ahead=ahead,
            known_names=names,
            unfinished=frozenset(unfinished),
            cosmetic=await _cosmetic_edits(connection, source, ledger, plan, has_records=has_records),
        )
        plan = msgspec.structs.replace(plan, findings=tuple(_named(f, names) for f in plan.findings))
        plan = await _dated(connection, source, plan, has_records=has_records)
    return Survey(source, ledger, plan, unfinished)


async def refuse_before_writing(connection: Any, sources: Sequence[Source]) -> None:
    """Return if we may write to the ledgers and to our own schema; call it under the lock, before anything is written.

    Raises:
        UntrustedOwnerError, SchemaTakenError: with names; nothing was run (exit 78).
    """
    names = [(source.table.schema, source.table.table) for source in sources]
    trusted = [role for source in sources for role in source.table.trusted_owners]
    async with as_ours(connection):
        await refuse_a_taken_schema(connection)
        await refuse_untrusted(connection, names, trusted, writing=True)


class ReadDeniedError(MigrationError):
    """The role may not read the ledger; nothing was looked at."""


async def readable_surveys(
    connection: Any, sources: Sequence[Source], *, policy: Policy = "drizzle", ahead: Ahead = "warn"
) -> list[Survey]:
    """The survey of each source, for those who only look: what the role may not read is said at once, with the GRANTs.

    It is asked before it is read: a refused SELECT would say less, and end the transaction.

    Raises:
        ReadDeniedError: the role may not read a ledger or our records of it.
    """
    rows = await connection.fetch(
        "SELECT n.nspname::text AS schema, c.relname::text AS name, current_user::text AS role"
        " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'v') AND ((n.nspname::text, c.relname::text) IN"
        "   (SELECT * FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])))"
        "   OR (n.nspname::text = $3 AND c.relname IN ('migration_records', 'unfinished_migrations')))"
        " AND NOT (pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
        "   AND pg_catalog.has_table_privilege(c.oid, 'SELECT')) ORDER BY n.nspname = $3 DESC, 1, 2",
        [source.table.schema for source in sources],
        [source.table.table for source in sources],
        records.SERVICE_SCHEMA,
    )
    if rows:
        role, tables = rows[0]["role"], [f"{row['schema']}.{row['name']}" for row in rows]
        schemas = dict.fromkeys(identifier(row["schema"]) for row in rows)
        grants = [
            f"GRANT USAGE ON SCHEMA {schema} TO {identifier(role)};"
            f" GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {identifier(role)};"
            for schema in schemas
        ]
        raise ReadDeniedError(
            f"the user {role} may not read {', '.join(tables)}, which record what was applied",
            remedy=f"As their owner: {' '.join(grants)}",
            facts={"user": role, "tables": tables},
        )
    return [await survey(connection, source, policy=policy, ahead=ahead) for source in sources]


def _named(finding: HistoryFinding, names: dict[RowId, str]) -> HistoryFinding:
    known = names.get(finding.row_id) if finding.row_id is not None else None
    return (
        msgspec.structs.replace(finding, name=known)
        if known and finding.kind in {Kind.ORPHANED, Kind.AHEAD}
        else finding
    )


async def _dated(connection: Any, source: Source, plan: Plan, *, has_records: bool) -> Plan:
    """The plan, its rows that are ahead with the time when they were applied: v1's ledger knows, else our records."""
    ids = [f.row_id for f in plan.findings if f.kind is Kind.AHEAD]
    if not ids:
        return plan
    # As JSON, so that a ledger without the column (v0) is no error.
    rows = await connection.fetch(
        "SELECT l.id::text, l.hash::text, l.created_at::bigint, (to_jsonb(l) ->> 'applied_at')::timestamptz"  # noqa: S608
        f" FROM {source.table.qualified} l WHERE l.id::text = ANY($1)",
        [str(row_id) for row_id in ids],
    )
    ours = await records.applied_times(connection, source.table.key) if has_records else {}
    times = {row_id: at or ours.get((created_at, row_hash)) for row_id, row_hash, created_at, at in rows}
    return msgspec.structs.replace(
        plan,
        findings=tuple(
            msgspec.structs.replace(f, applied_at=at.isoformat(timespec="seconds"))
            if f.row_id is not None and (at := times.get(str(f.row_id))) is not None
            else f
            for f in plan.findings
        ),
    )


async def _cosmetic_edits(
    connection: Any, source: Source, ledger: Ledger, plan: Plan, *, has_records: bool
) -> frozenset[str]:
    """The edited files that differ from what was applied in line ends, white space or comments alone.

    A checkout on Windows writes CRLF where another writes LF (git's core.autocrlf), also inside a function's body: that
    is known by the hash alone, whoever applied the file.
    """
    by_id = {row.id: row for row in ledger.rows}
    files = {migration.name: migration for migration in source.folder.migrations}
    cosmetic = set()
    for finding in plan.findings:
        row = by_id.get(finding.row_id) if finding.row_id is not None else None
        if finding.kind is not Kind.EDITED or row is None or row.created_at is None:
            continue
        file = files[finding.name]
        unix = (raw := file.read()).replace(b"\r\n", b"\n")
        if row.hash in {hashlib.sha256(text).hexdigest() for text in (unix, unix.replace(b"\n", b"\r\n"))}:
            cosmetic.add(finding.name)
            continue
        applied = None
        if has_records:
            applied = await records.recorded_text(connection, source.table.key, row.created_at, row.hash)
        if applied is None:
            continue
        if applied.replace(b"\r\n", b"\n") == unix or _mean_the_same(applied, raw):
            cosmetic.add(finding.name)
    return frozenset(cosmetic)


def _mean_the_same(one: bytes, other: bytes) -> bool:
    """Whether two texts differ in white space and comments alone; False where one of them cannot be read."""
    from orchestrator.migrator.sql.statements import SqlSyntaxError, same_meaning_hash  # the grammar is 14 MB: late

    try:
        return same_meaning_hash(one, path="") == same_meaning_hash(other, path="")
    except SqlSyntaxError:
        return False
