"""What a run tells before it begins: history that is not straight, what is planned, what is counted. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lifecycle import MigrationItem
from orchestrator.migrator.resolve import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.state import Survey

_EVENTS = {
    Kind.EDITED: "migration.edited",
    Kind.OUT_OF_ORDER: "migration.out_of_order",
    Kind.REDATED: "migration.redated",
    Kind.ORPHANED: "migration.orphaned",
    Kind.AHEAD: "migration.ahead",
    Kind.DAMAGED: "migration.ledger_damaged",
}


def announce(surveys: Sequence[Survey], life: Lifecycle) -> None:
    """Say what was found and decided, and how much is pending, for each source."""
    for one in surveys:
        folder = one.source.folder
        for finding in one.plan.findings:
            facts = {
                "source": one.source.label,
                "migration": finding.name,
                "decision": finding.decision,
                "remedy": finding.remedy,
                **({"applied_at": finding.applied_at} if finding.applied_at else {}),
            }
            if finding.cosmetic:
                life.emit("migration.edited", level="info", **facts, cosmetic=True)
            else:
                life.warn(_EVENTS[finding.kind], **facts)
        for migration in one.plan.pending:
            if not migration.is_utf8:
                life.warn(
                    "migration.not_utf8",
                    source=one.source.label,
                    migration=migration.name,
                    decision="run as drizzle runs it: U+FFFD stands for the bytes that are not UTF-8",
                    remedy="Save the file as UTF-8 before it is applied anywhere.",
                )
        if folder.unlisted:
            life.warn(
                "migration.unlisted",
                source=one.source.label,
                files=list(folder.unlisted),
                decision="ignored: the journal does not name them",
                remedy="Add them to meta/_journal.json (drizzle-kit generate), or delete them; where they are folders"
                " of drizzle 1.0, convert the whole folder (drizzle-kit up) and delete the journal.",
            )
        life.emit(
            "migrations.planned",
            source=one.source.label,
            generation=folder.generation,
            ledger=one.source.table.key,
            applied=len(one.ledger.rows),
            pending=len(one.plan.pending),
        )


def count(surveys: Sequence[Survey], life: Lifecycle) -> None:
    """Put every migration, applied or pending, into `migrations.items`, and the totals beside them."""
    state = life.migrations
    state.total = sum(len(s.source.folder.migrations) for s in surveys)
    state.applied, state.items = 0, []
    for one in surveys:
        applied = {a.migration.name for a in one.plan.applied if a.migration}
        pending = {m.name for m in one.plan.pending}
        state.applied += len(applied)
        for migration in one.source.folder.migrations:
            if migration.name in pending:
                state.items.append(MigrationItem(one.source.label, migration.name, "pending"))
            elif migration.name in applied:
                state.items.append(MigrationItem(one.source.label, migration.name, "applied"))
