"""What is applied, pending and not straight, as plain data for `status` and `/api/migrations`. Writes nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from orchestrator.database.lock import lock_holder
from orchestrator.migrator import records
from orchestrator.migrator.edits import edits
from orchestrator.migrator.resolve import Kind
from orchestrator.migrator.run.progress import Seen, excerpt, look_at, query_of
from orchestrator.migrator.state import readable_surveys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.migrator.edits import Edit
    from orchestrator.migrator.resolve import Ahead, HistoryFinding, Policy
    from orchestrator.migrator.sources import Source


# What we send before a statement of a file, in the same message (`apply.py`, `batching.py`).
_OPENING = re.compile(r"^(?:SELECT pg_catalog\.set_config\([^;]*;)?(?:BEGIN;)?(?: *SET LOCAL \w+ = \w+;)*")
_NO_EDITS: Mapping[str, Edit] = MappingProxyType({})


def _iso(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def described_findings(
    findings: Sequence[HistoryFinding], changed: Mapping[str, Edit] = _NO_EDITS
) -> list[dict[str, Any]]:
    """Findings as plain data; those of an edited file in `changed` with what changed in it."""
    return [
        {
            "kind": f.kind,
            "name": f.name,
            "decision": f.decision,
            "remedy": f.remedy,
            "refused": f.refused,
            "cosmetic": f.cosmetic,
            "row_id": f.row_id,
            "created_at": f.created_at,
            "applied_at": f.applied_at,
            **({"diff": changed[f.name].diff} if f.kind is Kind.EDITED and f.name in changed else {}),
        }
        for f in findings
    ]


async def migration_running(connection: Any) -> dict[str, Any] | None:
    """Who migrates this database now, in whatever process, and what it does there; None where nobody does. JSON-ready.

    Keys: those of the lock's holder (`pid`, `application_name`, `client_address`, `session_age_s`, `state`,
    `statement_age_s`), `query` without its string constants, `wait_event`, `stage`, `percent`, `blockers`.
    """
    holder = await lock_holder(connection)
    if holder is None:
        return None
    pid = int(str(holder["pid"]))
    query = await query_of(connection, pid)
    seen = await look_at(connection, pid) or Seen()
    return {
        **holder,
        "query": excerpt(_OPENING.sub("", query)),
        "wait_event": seen.wait_event,
        "stage": seen.stage,
        "percent": seen.percent,
        "blockers": [dict(one) for one in seen.blockers],
    }


async def migrations_status(
    connection: Any, sources: Sequence[Source], *, policy: Policy, ahead: Ahead, with_diff: bool = False
) -> list[dict[str, Any]]:
    """One entry for each source: its ledger, applied rows with their files, pending files, findings. JSON-ready.

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
                {
                    "id": entry.row.id,
                    "name": name,
                    "hash": entry.row.hash,
                    "created_at": entry.row.created_at,
                    "dated": _iso(entry.row.created_at),
                    "duration_s": durations.get(name) if name else None,
                }
            )
        result.append(
            {
                "source": source.label,
                "folder": str(source.folder.path),
                "generation": source.folder.generation,
                "ledger": source.table.key,
                "ledger_exists": one.ledger.exists,
                "total": len(source.folder.migrations),
                "applied": applied,
                "pending": [
                    {
                        "name": m.name,
                        "hash": m.hash,
                        "created_at": m.when_ms,
                        "dated": _iso(m.when_ms),
                        "file": str(m.path),
                    }
                    for m in one.plan.pending
                ],
                "findings": described_findings(one.plan.findings, changed),
                "unlisted": list(source.folder.unlisted),
            }
        )
    return result
