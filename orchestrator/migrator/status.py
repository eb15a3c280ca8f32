"""What is applied, pending and not straight, as plain data for `status` and `/api/migrations`. Writes nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.lock import lock_holder
from orchestrator.migrator import records
from orchestrator.migrator.edits import edits
from orchestrator.migrator.resolve import HistoryFinding, Kind, RowId
from orchestrator.migrator.run.progress import Seen, excerpt, look_at, query_of
from orchestrator.migrator.state import readable_surveys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.migrator.edits import Edit
    from orchestrator.migrator.resolve import Ahead, Policy
    from orchestrator.migrator.sources import Source


# What we send before a statement of a file, in the same message (`apply.py`, `batching.py`).
_OPENING = re.compile(r"^(?:SELECT pg_catalog\.set_config\([^;]*;)?(?:BEGIN;)?(?: *SET LOCAL \w+ = \w+;)*")
_NO_EDITS: Mapping[str, Edit] = MappingProxyType({})


class AppliedRow(msgspec.Struct, frozen=True):
    """A row of a ledger, with the name of its file where it is known."""

    id: RowId | None
    name: str | None
    hash: str | None
    created_at: int | None
    dated: str | None
    duration_s: float | None


class PendingFile(msgspec.Struct, frozen=True):
    """A file that no ledger row stands for."""

    name: str
    hash: str
    created_at: int | None
    dated: str | None
    file: str


class FindingFacts(HistoryFinding, frozen=True):
    """A finding, and what changed in an edited file as a unified diff, where that was asked for and is known."""

    diff: str | msgspec.UnsetType = msgspec.UNSET


class SourceFacts(msgspec.Struct, frozen=True):
    """One folder and its ledger. `generation` is that of Drizzle's format."""

    source: str
    folder: str
    generation: Any
    ledger: str
    ledger_exists: bool
    total: int
    applied: list[AppliedRow]
    pending: list[PendingFile]
    findings: list[FindingFacts]
    unlisted: list[str]


class Running(msgspec.Struct, frozen=True):
    """Who migrates this database now, in whatever process, and what it waits for; `blockers` are sessions.

    `query` is shown without its string constants.
    """

    pid: int
    application_name: str | None
    client_address: str | None
    session_age_s: int | None
    state: str | None
    statement_age_s: float | None
    query: str
    wait_event: str | None
    stage: str | None
    percent: float | None
    blockers: list[dict[str, Any]]


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def described_findings(
    findings: Sequence[HistoryFinding], changed: Mapping[str, Edit] = _NO_EDITS
) -> list[FindingFacts]:
    """The findings as they are told; those of an edited file in `changed` with what changed in it."""
    return [
        FindingFacts(
            **msgspec.structs.asdict(one),
            diff=changed[one.name].diff if one.kind is Kind.EDITED and one.name in changed else msgspec.UNSET,
        )
        for one in findings
    ]


async def migration_running(connection: Any) -> Running | None:
    """Who migrates this database now, in whatever process, and what it does there; None where nobody does."""
    holder: Mapping[str, Any] | None = await lock_holder(connection)
    if holder is None:
        return None
    pid = int(str(holder["pid"]))
    query = await query_of(connection, pid)
    seen = await look_at(connection, pid) or Seen()
    return Running(
        **holder,
        query=excerpt(_OPENING.sub("", query)),
        wait_event=seen.wait_event,
        stage=seen.stage,
        percent=seen.percent,
        blockers=[dict(one) for one in seen.blockers],
    )


async def migrations_status(
    connection: Any, sources: Sequence[Source], *, policy: Policy, ahead: Ahead, with_diff: bool = False
) -> list[SourceFacts]:
    """One entry for each source: its ledger, applied rows with their files, pending files, findings.

    `created_at` is the migration's own time (ms since 1970), `duration_s` is known where this program applied it.
    `with_diff` adds to each edited file's finding what changed in it, as a unified diff. Raises as `readable_surveys`.
    """
    surveys = await readable_surveys(connection, sources, policy=policy, ahead=ahead)
    has_records = await records.records_exist(connection)
    result = []
    for one in surveys:
        source = one.source
        durations = await records.durations_s(connection, source.table.key) if has_records else {}
        names = await records.known_names(connection, source.table.key, one.ledger) if has_records else {}
        changed = {edit.name: edit for edit in await edits(connection, one)} if with_diff else {}
        applied = []
        for entry in one.plan.applied:
            name = entry.migration.name if entry.migration else names.get(entry.row.id, entry.row.name)
            applied.append(
                AppliedRow(
                    id=entry.row.id,
                    name=name,
                    hash=entry.row.hash,
                    created_at=entry.row.created_at,
                    dated=_iso(entry.row.created_at),
                    duration_s=durations.get(name) if name else None,
                )
            )
        result.append(
            SourceFacts(
                source=source.label,
                folder=str(source.folder.path),
                generation=source.folder.generation,
                ledger=source.table.key,
                ledger_exists=one.ledger.exists,
                total=len(source.folder.migrations),
                applied=applied,
                pending=[
                    PendingFile(name=m.name, hash=m.hash, created_at=m.when_ms, dated=_iso(m.when_ms), file=str(m.path))
                    for m in one.plan.pending
                ],
                findings=described_findings(one.plan.findings, changed),
                unlisted=list(source.folder.unlisted),
            )
        )
    return result
