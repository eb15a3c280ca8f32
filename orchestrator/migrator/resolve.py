"""What to run, what is applied, and where history is not straight: a function of files and ledger rows. Pure: no I/O.

The rules are Drizzle's, of the folder's generation (v0: `drizzle-orm` 0.45 `pg-core/dialect.js`; v1: `drizzle-orm` 1.0
`migrator.utils.js`, `up-migrations/pg.js`). Where Drizzle decides in silence, a `HistoryFinding` says what was decided.
"""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.migrator.folder import Folder, Migration

Policy = Literal["drizzle", "strict"]
Ahead = Literal["refuse", "warn"]


# As text where the column holds no integers: drizzle never casts it, so it may be a uuid.
RowId = int | str


class LedgerRow(msgspec.Struct, frozen=True):
    """A row of `__drizzle_migrations`; `created_at` in ms, `name` None where the ledger has no such column."""

    id: RowId
    hash: str
    created_at: int | None
    name: str | None = None


class Ledger(msgspec.Struct, frozen=True):
    """The ledger as it is; `has_name` tells drizzle v1's columns from v0's."""

    exists: bool
    has_name: bool
    rows: tuple[LedgerRow, ...] = ()


class Kind(StrEnum):
    """In which way history is not straight."""

    EDITED = "edited"
    OUT_OF_ORDER = "out_of_order"
    REDATED = "redated"
    ORPHANED = "orphaned"
    AHEAD = "ahead"
    DAMAGED = "damaged"


class HistoryFinding(msgspec.Struct, frozen=True):
    """One place where files and ledger disagree: what it is, what was decided, what the person can do.

    `refused` says that nothing runs because of it; `cosmetic` that only white space or comments changed. `applied_at`
    is when a row that is ahead was applied, where that is known (ISO 8601).
    """

    kind: Kind
    name: str
    decision: str
    remedy: str
    refused: bool = False
    cosmetic: bool = False
    row_id: RowId | None = None
    created_at: int | None = None
    applied_at: str | None = None


class Applied(msgspec.Struct, frozen=True):
    """A ledger row and the file that it stands for, None where no file matches."""

    row: LedgerRow
    migration: Migration | None


class Plan(msgspec.Struct, frozen=True):
    """What a run does with one folder and one ledger, in order.

    `resumable` are pending migrations that Drizzle's rule would pass over if the run stopped before them: their names
    must be kept before the first one runs. `names` gives v0 ledger rows their v1 names (drizzle's own upgrade), None
    where the ledger needs no upgrade.
    """

    pending: tuple[Migration, ...]
    applied: tuple[Applied, ...]
    findings: tuple[HistoryFinding, ...]
    resumable: tuple[Migration, ...] = ()
    names: Mapping[RowId, str] | None = None

    @property
    def refusals(self) -> tuple[HistoryFinding, ...]:
        """The findings because of which nothing may run."""
        return tuple(f for f in self.findings if f.refused)


class _Matching(msgspec.Struct):
    """Which row stands for which file; each at most once, but for rows that are the same twice."""

    row_of: dict[str, LedgerRow] = msgspec.field(default_factory=dict)
    file_of: dict[RowId, Migration] = msgspec.field(default_factory=dict)

    def match(self, migration: Migration, row: LedgerRow) -> None:
        self.row_of[migration.name] = row
        self.file_of[row.id] = migration


def make_plan(
    folder: Folder,
    ledger: Ledger,
    *,
    policy: Policy = "drizzle",
    ahead: Ahead = "refuse",
    known_names: Mapping[RowId, str] | None = None,
    unfinished: frozenset[str] = frozenset(),
    cosmetic: frozenset[str] = frozenset(),
) -> Plan:
    """Decide as Drizzle of the folder's generation decides, and say where that is a decision.

    Args:
        folder: the files.
        ledger: the rows.
        policy: `strict` refuses every finding but a cosmetic edit; `drizzle` refuses what Drizzle refuses.
        ahead: `warn` lets a run go on whose ledger is newer than its files.
        known_names: row id → file name, where our own records know it (a v0 ledger does not).
        unfinished: names that an interrupted run of ours had still to apply.
        cosmetic: names of edited files in which only white space or comments changed.
    """
    maker = _plan_v0 if folder.generation == "v0" else _plan_v1
    plan = maker(folder, ledger, known_names or {}, unfinished)
    findings = tuple(_judge(f, policy, ahead, cosmetic) for f in plan.findings)
    return Plan(plan.pending, plan.applied, findings, plan.resumable, plan.names)


def _judge(finding: HistoryFinding, policy: Policy, ahead: Ahead, cosmetic: frozenset[str]) -> HistoryFinding:
    is_cosmetic = finding.kind is Kind.EDITED and finding.name in cosmetic
    refused = (
        finding.refused
        or (finding.kind is Kind.AHEAD and ahead == "refuse")
        or (policy == "strict" and finding.kind is not Kind.AHEAD and not is_cosmetic)
    )
    return HistoryFinding(
        finding.kind,
        finding.name,
        "refused: nothing was run" if refused else finding.decision,
        finding.remedy,
        refused,
        is_cosmetic,
        finding.row_id,
        finding.created_at,
    )


def _plan_v0(folder: Folder, ledger: Ledger, known_names: Mapping[RowId, str], unfinished: frozenset[str]) -> Plan:
    rows = ledger.rows
    damaged = [_damaged(row) for row in rows if row.created_at is None]
    matching = _match_by_time(folder.migrations, rows)
    redated = _match_redated(folder.migrations, rows, matching, known_names)
    newest = max((row.created_at for row in rows if row.created_at is not None), default=None)
    pending: list[Migration] = []
    findings: list[HistoryFinding] = list(damaged)
    for migration in folder.migrations:
        row = matching.row_of.get(migration.name)
        # `!lastDbMigration || Number(lastDbMigration.created_at) < migration.folderMillis`, read once before the loop
        runs = newest is None or migration.when_ms > newest
        if row is not None and not runs:
            if row.hash != migration.hash:
                findings.append(_edited(migration, row))
        elif migration.name in unfinished and migration.name not in redated:
            pending.append(migration)
        elif runs:
            pending.append(migration)
            if migration.name in redated:
                findings.append(_redated(migration, redated[migration.name], runs=True))
        elif migration.name in redated:
            findings.append(_redated(migration, redated[migration.name], runs=False))
        else:
            findings.append(_out_of_order(migration, runs=False))
    findings += _unmatched_rows(folder, rows, matching, redated)
    return Plan(tuple(pending), _applied(rows, matching), tuple(findings), _passed_over(pending, newest))


def _plan_v1(folder: Folder, ledger: Ledger, known_names: Mapping[RowId, str], unfinished: frozenset[str]) -> Plan:
    del unfinished  # v1 goes by names: an interrupted run leaves nothing that is passed over
    rows, names, findings = ledger.rows, None, []
    if ledger.exists and not ledger.has_name:
        names, lost = upgraded_names(folder.migrations, rows)
        rows = tuple(LedgerRow(r.id, r.hash, r.created_at, names.get(r.id)) for r in rows)
        findings += [_lost_in_upgrade(row) for row in lost]
    lost_ids = {f.row_id for f in findings}
    matching = _Matching()
    by_name = {migration.name: migration for migration in folder.migrations}
    for row in rows:
        if row.name in by_name:
            matching.match(by_name[row.name], row)
    redated = _match_redated(folder.migrations, rows, matching, known_names)
    newest = max((row.created_at for row in rows if row.created_at is not None), default=None)
    pending = [m for m in folder.migrations if m.name not in matching.row_of]
    for migration in folder.migrations:
        matched = matching.row_of.get(migration.name)
        if matched is not None:
            if matched.hash != migration.hash:
                findings.append(_edited(migration, matched))
        elif migration.name in redated:
            findings.append(_redated(migration, redated[migration.name], runs=True))
        elif newest is not None and migration.when_ms < newest:
            findings.append(_out_of_order(migration, runs=True))
    findings += [f for f in _unmatched_rows(folder, rows, matching, redated) if f.row_id not in lost_ids]
    return Plan(tuple(pending), _applied(rows, matching), tuple(findings), (), names)


def upgraded_names(
    migrations: Sequence[Migration], rows: Sequence[LedgerRow]
) -> tuple[dict[RowId, str], tuple[LedgerRow, ...]]:
    """The v1 names of a v0 ledger's rows, and the rows that match no file (drizzle-orm 1.0, `up-migrations/pg.js`).

    By `created_at` truncated to seconds; where several files share it, by hash among them; where none has it, by hash.
    """
    by_ms: dict[int, list[Migration]] = defaultdict(list)
    by_hash: dict[str, Migration] = {}
    for migration in sorted(migrations, key=lambda m: m.when_ms):
        by_ms[migration.when_ms].append(migration)
        by_hash[migration.hash] = migration
    names: dict[RowId, str] = {}
    lost: list[LedgerRow] = []
    for row in rows:
        candidates = by_ms.get(row.created_at // 1000 * 1000, []) if row.created_at is not None else []
        if len(candidates) == 1:
            found: Migration | None = candidates[0]
        elif candidates:
            found = next((c for c in candidates if c.hash == row.hash), None)
        else:
            found = by_hash.get(row.hash)
        if found is None:
            lost.append(row)
        else:
            names[row.id] = found.name
    return names, tuple(lost)


def _match_by_time(migrations: Sequence[Migration], rows: Sequence[LedgerRow]) -> _Matching:
    matching = _Matching()
    by_when: dict[int, list[LedgerRow]] = defaultdict(list)
    for row in rows:
        if row.created_at is not None:
            by_when[row.created_at].append(row)
    for exactly in (True, False):
        for migration in migrations:
            if migration.name in matching.row_of:
                continue
            for row in by_when.get(migration.when_ms, ()):
                if row.id not in matching.file_of and (row.hash == migration.hash or not exactly):
                    matching.match(migration, row)
                    break
    # Two runners without a lock leave the same row twice: the second stands for the same file.
    by_content = {(m.when_ms, m.hash): m for m in migrations}
    for row in rows:
        twin = by_content.get((row.created_at or 0, row.hash))
        if twin is not None:
            matching.file_of.setdefault(row.id, twin)
    return matching


def _match_redated(
    migrations: Sequence[Migration], rows: Sequence[LedgerRow], matching: _Matching, known_names: Mapping[RowId, str]
) -> dict[str, LedgerRow]:
    """Files that no row stands for, though a row has their content or is known to be theirs, under another time."""
    by_hash: dict[str, LedgerRow] = {}
    by_name: dict[str, LedgerRow] = {}
    for row in rows:
        if row.id not in matching.file_of:
            by_hash.setdefault(row.hash, row)
            known = known_names.get(row.id) or row.name
            if known:
                by_name.setdefault(_title(known), row)
    found: dict[str, LedgerRow] = {}
    if not by_hash:
        return found
    taken: set[RowId] = set()
    for migration in migrations:
        if migration.name in matching.row_of:
            continue
        candidate = by_hash.get(migration.hash) or by_name.get(_title(migration.name))
        if candidate is not None and candidate.id not in taken:
            taken.add(candidate.id)
            found[migration.name] = candidate
    return found


def _title(name: str) -> str:
    """A migration's name without the time or number in front of it: what stays when it is dated anew."""
    number, separator, title = name.partition("_")
    return title if separator and number.isdigit() else name


def _applied(rows: Sequence[LedgerRow], matching: _Matching) -> tuple[Applied, ...]:
    return tuple(Applied(row, matching.file_of.get(row.id)) for row in rows)


def _passed_over(pending: Sequence[Migration], newest: int | None) -> tuple[Migration, ...]:
    """Pending v0 migrations that are not newer than what runs before them: a second run would pass over them."""
    passed: list[Migration] = []
    highest = newest
    for migration in pending:
        if highest is not None and migration.when_ms <= highest:
            passed.append(migration)
        else:
            highest = migration.when_ms
    return tuple(passed)


def _unmatched_rows(
    folder: Folder, rows: Sequence[LedgerRow], matching: _Matching, redated: Mapping[str, LedgerRow]
) -> list[HistoryFinding]:
    explained = {row.id for row in redated.values()}
    newest_file = max((m.when_ms for m in folder.migrations), default=None)
    findings = []
    for row in rows:
        if row.id in matching.file_of or row.id in explained or row.created_at is None:
            continue
        is_ahead = newest_file is None or row.created_at > newest_file
        findings.append(_ahead(row) if is_ahead else _orphaned(row))
    return findings


def _row_title(row: LedgerRow) -> str:
    return row.name or f"ledger row {row.id} (hash {row.hash[:12]}…)"


def _edited(migration: Migration, row: LedgerRow) -> HistoryFinding:
    return HistoryFinding(
        Kind.EDITED,
        migration.name,
        "not run again: the database has the effects of the earlier text",
        "Put the change into a new migration and restore this file; or, where the database has the edited text too,"
        f" say so: orchestrator repair accept {migration.name}.",
        row_id=row.id,
        created_at=row.created_at,
    )


def _out_of_order(migration: Migration, *, runs: bool) -> HistoryFinding:
    if runs:
        decision = "run now, although newer migrations are applied (drizzle v1 decides by name)"
        remedy = "Check that it does not depend on later migrations; re-date it to run it last."
    else:
        decision = "skipped, as drizzle skips it: it is older than the newest applied migration and was never applied"
        remedy = "Give it a `when` in meta/_journal.json that is newer than every applied one, then start again."
    return HistoryFinding(Kind.OUT_OF_ORDER, migration.name, decision, remedy, created_at=migration.when_ms)


def _redated(migration: Migration, row: LedgerRow, *, runs: bool) -> HistoryFinding:
    if runs:
        decision = f"run again, as drizzle does: ledger row {row.id} has it under another time"
        remedy = "Restore the migration's old time, unless it is written to run twice."
    else:
        decision = f"not run again: ledger row {row.id} has it under another time"
        remedy = "Restore the migration's old time, so that file and ledger agree."
    return HistoryFinding(Kind.REDATED, migration.name, decision, remedy, row_id=row.id, created_at=row.created_at)


def _orphaned(row: LedgerRow) -> HistoryFinding:
    return HistoryFinding(
        Kind.ORPHANED,
        _row_title(row),
        "ignored: no file of the folder matches it",
        "Restore the file that was applied, from version control; the database holds what it did.",
        row_id=row.id,
        created_at=row.created_at,
    )


def _ahead(row: LedgerRow) -> HistoryFinding:
    return HistoryFinding(
        Kind.AHEAD,
        _row_title(row),
        "served anyway (MIGRATION_AHEAD=warn)",
        "The code is older than the database: start the newer image, or set MIGRATION_AHEAD=warn to serve this one.",
        row_id=row.id,
        created_at=row.created_at,
    )


def _damaged(row: LedgerRow) -> HistoryFinding:
    return HistoryFinding(
        Kind.DAMAGED,
        _row_title(row),
        "refused: with an empty created_at Drizzle would run every migration again",
        f"Set created_at of ledger row {row.id} to the `when` of its migration, or delete the row.",
        refused=True,
        row_id=row.id,
    )


def _lost_in_upgrade(row: LedgerRow) -> HistoryFinding:
    return HistoryFinding(
        Kind.ORPHANED,
        _row_title(row),
        "refused: the v0 ledger cannot be upgraded to drizzle v1 while a row matches no file",
        "Restore the migration that was applied, or run `drizzle-kit up` on the folder that has it.",
        refused=True,
        row_id=row.id,
        created_at=row.created_at,
    )
