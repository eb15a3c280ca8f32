"""The extensions that a service asks for: each on its own, only where it is missing. Touches the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect_errors import is_connection_loss
from orchestrator.database.quoting import identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.lifecycle import Lifecycle

_NOT_PERMITTED = {"42501"}
# feature_not_supported (not available), undefined_file (a required extension's control file is missing)
_NOT_AVAILABLE = {"0A000", "58P01", "22023"}


async def ensure_extensions(connection: Any, names: Sequence[str], life: Lifecycle) -> None:
    """Create each extension that is missing; call it under the migration lock (IF NOT EXISTS races, 23505).

    One that cannot be created is a warning with the exact SQL for the database's owner, on `/health` too; the start
    goes on, since the migrations may not need it. An installed one needs no privilege: it is looked up first.
    """
    if not names:
        life.check("extensions", "ok", installed={}, missing=[])
        return
    installed = await _installed(connection)
    standby = await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()")
    missing: list[dict[str, object]] = []
    for name in names:
        if name in installed:
            life.emit("extension.skipped", level="debug", extension=name, version=installed[name])
            continue
        statement = f"CREATE EXTENSION IF NOT EXISTS {identifier(name)};"
        if standby:
            missing.append({"extension": name, "reason": "standby", "sql": statement})
            continue
        try:
            # With the role's own path: where the extension names no schema, its objects are made in the first of it.
            await connection.execute(statement)
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            reason, hint = _explain(error, name)
            facts: dict[str, object] = {"extension": name, "reason": reason}
            if reason != "not_available":  # where the server has no files of it, no SQL helps
                facts["sql"] = statement
            missing.append(facts)
            life.warn("extension.missing", **facts, sqlstate=error.sqlstate, hint=hint)
        else:
            life.emit("extension.created", extension=name, version=(await _installed(connection)).get(name))
    installed = await _installed(connection)
    present = {name: installed[name] for name in names if name in installed}
    life.check("extensions", "warning" if missing else "ok", installed=present, missing=missing)


async def _installed(connection: Any) -> dict[str, str]:
    rows = await connection.fetch("SELECT extname::pg_catalog.text, extversion FROM pg_catalog.pg_extension")
    return {row["extname"]: row["extversion"] for row in rows}


def _explain(error: asyncpg.PostgresError, name: str) -> tuple[str, str]:
    if error.sqlstate in _NOT_PERMITTED:
        return "not_permitted", "The database's owner (or a superuser) runs the SQL once, in this database."
    if error.sqlstate in _NOT_AVAILABLE:
        return (
            "not_available",
            f"The server has no files of {name!r}: use an image that includes it, then restart.",
        )
    return "failed", f"The server said: {error}"
