"""A setting that an earlier file made and that a later one may miss. Touches files, once something has failed.

Drizzle's session carries settings from file to file within one run; here each file begins with the session's own.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from orchestrator.migrator.run.progress import excerpt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.errors import MigrationError
    from orchestrator.migrator.folder import Migration

# What a missing setting ends in: a name that is not found or not permitted, a schema that is none, text that is read
# in another way (PostgreSQL manual, appendix A).
_CLASSES = frozenset({"42", "3F", "22"})
_MAY_SET = re.compile(rb"\b(?:set|reset|discard)\b|set_config|\btemp", re.IGNORECASE)
_TEMPORARY = re.compile(r"\s*CREATE\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP", re.IGNORECASE)
_FILES_LIMIT = 300
_SIZE_LIMIT_BYTES = 1 << 20


async def name_earlier_setting(error: MigrationError, folder: Sequence[Migration]) -> None:
    """Add the nearest SET before the file that has failed, where the error may be for want of it."""
    name = error.facts.get("migration")
    if str(error.facts.get("sqlstate", ""))[:2] not in _CLASSES or "statement" not in error.facts:
        return
    position = next((n for n, migration in enumerate(folder) if migration.name == name), 0)
    found = await asyncio.to_thread(_nearest, folder[max(0, position - _FILES_LIMIT) : position])
    if found is None:
        return
    place, text = found
    error.facts["earlier_setting"] = f"{place}: {text}"
    error.remedy = (
        f"{error.remedy} If the statement depends on {place} ({text}): that holds to the end of its own file, where"
        " drizzle's would hold on within one run; write it in this file, too."
    )


def _nearest(earlier: Sequence[Migration]) -> tuple[str, str] | None:
    from orchestrator.migrator.sql.statements import SqlSyntaxError, statements

    for migration in reversed(earlier):
        if migration.size_bytes > _SIZE_LIMIT_BYTES:
            continue
        try:
            raw = migration.read()
            parsed = statements(raw, path=str(migration.path)) if _MAY_SET.search(raw) else ()
        except (SqlSyntaxError, OSError):
            continue
        for statement in reversed(parsed):
            if statement.changes_session or _TEMPORARY.match(statement.text):
                return f"{migration.path}:{statement.line}", excerpt(statement.text)
    return None
