"""Facts of a database for `status`: the server, the extensions, the tables. Reads the catalogue, writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.dsn import Dsn


async def server_status(connection: Any, dsn: Dsn) -> dict[str, Any]:
    """Who answers, and as whom we speak."""
    row = await connection.fetchrow(
        "SELECT pg_catalog.current_setting('server_version') AS server_version,"
        " pg_catalog.current_database()::text AS database,"
        ' current_user::text AS "user", pg_catalog.pg_is_in_recovery() AS standby,'
        " pg_catalog.pg_database_size(pg_catalog.current_database()) AS size_bytes"
    )
    return {"address": dsn.redacted(), **dict(row)}


async def extensions_status(connection: Any, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Each extension that is asked for or installed: its version, and the SQL where it is missing."""
    rows = await connection.fetch(
        "SELECT coalesce(e.extname::text, a.name::text) AS name, e.extversion AS installed_version,"
        " a.default_version AS available_version"
        " FROM pg_catalog.pg_extension e FULL JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname"
        " WHERE e.extname IS NOT NULL OR a.name::text = ANY($1::text[]) ORDER BY 1",
        list(wanted),
    )
    found = {row["name"]: dict(row) for row in rows}
    listed = [*wanted, *(name for name in found if name not in wanted)]
    result = []
    for name in listed:
        facts = found.get(name, {"name": name, "installed_version": None, "available_version": None})
        is_missing = facts["installed_version"] is None
        sql = f'CREATE EXTENSION IF NOT EXISTS "{name}";' if is_missing else None
        result.append({**facts, "wanted": name in wanted, "sql": sql})
    return result


async def tables_status(connection: Any) -> list[dict[str, Any]]:
    """Every table outside the system's schemas: estimated rows (None: never analysed) and total size."""
    rows = await connection.fetch(
        "SELECT n.nspname::text AS schema, c.relname::text AS name,"
        " CASE WHEN c.reltuples < 0 THEN NULL ELSE c.reltuples::bigint END AS estimated_rows,"
        " pg_catalog.pg_total_relation_size(c.oid) AS size_bytes"
        " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        " AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%' ORDER BY 1, 2"
    )
    return [dict(row) for row in rows]
