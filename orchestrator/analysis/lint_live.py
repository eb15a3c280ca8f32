"""`lint` with a database at hand: the pending files on top of the live catalogue. Only reads, files and database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.lint import LintFolder, Report, finding, lint
from orchestrator.analysis.plan import known_for
from orchestrator.migrator.resolve import Kind
from orchestrator.migrator.state import readable_surveys

if TYPE_CHECKING:
    from orchestrator.migrator.state import Source


async def lint_with_ledger(connection: Any, source: Source, folder: LintFolder, *, every: bool) -> tuple[Report, str]:
    """What is found in the pending files (or in all), and in words what was looked at.

    With `every` the files are read from the first on, as without a database; the ledger then adds which file was
    changed after it was applied. Raises as `preview`, and not for a file that is not SQL: that is a finding.
    """
    (one,) = await readable_surveys(connection, [source])
    if every:
        report = await asyncio.to_thread(lint, folder)
        scope = f"all files of {folder.path}"
    else:
        known = await known_for(connection, [one], tolerant=True)
        pending = frozenset(migration.name for migration in one.plan.pending)
        report = await asyncio.to_thread(lint, folder, pending=pending, known=known)
        files = "file" if len(pending) == 1 else "files"
        scope = f"the {len(pending)} pending {files} of {folder.path}; --all looks at every one"
    paths = {file.name: str(file.path) for file in folder.files}
    for found in one.plan.findings:
        path = paths.get(found.name)
        if path is not None and found.kind is Kind.EDITED and not found.cosmetic:
            report.findings.append(finding("changed-after-apply", path, "it was changed after it was applied"))
        elif path is not None and found.kind is Kind.OUT_OF_ORDER and source.folder.generation == "v0":
            why = "it is older than the newest applied migration: drizzle, and so a run, passes over it"
            report.findings.append(finding("never-runs", path, why))
    report.findings.sort(key=lambda f: (f.file, f.line, f.column))
    return report, scope
