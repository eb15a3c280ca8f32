"""What changed in an applied file since it was applied: the kept text against the file. Reads files and our records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.migrator import records
from orchestrator.migrator.resolve import Kind, RowId

if TYPE_CHECKING:
    from orchestrator.migrator.state import Survey

_SHOWN_LINES = 2000


class Edit(msgspec.Struct, frozen=True):
    """An edited file. `diff` is a unified diff from what was applied to the file, empty where the text is not known."""

    name: str
    row_id: RowId
    applied_hash: str
    file_hash: str
    cosmetic: bool
    text_known: bool
    diff: str


async def edits(connection: Any, one: Survey) -> list[Edit]:
    """Every edited file of a source with its difference. Writes nothing."""
    files = {migration.name: migration for migration in one.source.folder.migrations}
    rows = {row.id: row for row in one.ledger.rows}
    has_records = await records.records_exist(connection)
    found = []
    for finding in one.plan.findings:
        if finding.kind is not Kind.EDITED or finding.row_id is None:
            continue
        row, file = rows[finding.row_id], files[finding.name]
        text = None
        if has_records and row.created_at is not None:
            text = await records.recorded_text(connection, one.source.table.key, row.created_at, row.hash)
        shown = "" if text is None else text_diff(text, file.read(), finding.name)
        found.append(Edit(finding.name, row.id, row.hash, file.hash, finding.cosmetic, text is not None, shown))
    return found


def text_diff(applied: bytes, file: bytes, name: str) -> str:
    """A unified diff, bounded; line ends that differ show as such. Pure."""
    import difflib  # late: for the few runs that show an edit

    before, after = (text.decode(errors="replace").split("\n") for text in (applied, file))
    lines = difflib.unified_diff(before, after, f"{name} (as applied)", f"{name} (the file)", lineterm="")
    shown = []
    for number, line in enumerate(lines):
        if number == _SHOWN_LINES:
            shown.append("… (more)")
            break
        shown.append(line.replace("\r", "␍"))
    return "\n".join(shown)
