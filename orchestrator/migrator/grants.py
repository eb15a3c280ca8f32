"""What the role that serves may do in our own schema, granted by the role that migrates. Touches the database.

Two URLs with two users are least privilege: MIGRATION_DATABASE_URL's owns the tables, DATABASE_URL's uses them. Whoever
makes the tables knows what serving needs, so it is granted here, and nobody has to keep a list of our tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.database.quoting import literal
from orchestrator.database.sessions import as_ours
from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.sources import Source

# What vouches for what was migrated and backed up: the role that serves may read it, and change none of it.
_READ_ONLY = ("__drizzle_migrations", "migration_records", "unfinished_migrations", "repairs", "backups")
# A history: rows are added.
_ADD_ONLY = ("starts", "api_changes")

# The statements that are still to be run, so that a start that grants nothing writes nothing.
_MISSING = """
WITH tables AS (
    SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, n.nspname = $2 AS is_ours, c.relname,
        c.relkind
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v') AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
    AND (n.nspname = $2 OR EXISTS (
        SELECT 1 FROM ROWS FROM (pg_catalog.unnest($6::text[]), pg_catalog.unnest($3::text[])) AS l (schema, name)
        WHERE l.schema = n.nspname AND l.name = c.relname
    ))
), wanted AS (
    SELECT t.*, p.right FROM tables t
    CROSS JOIN (VALUES (1, 'SELECT'), (2, 'INSERT'), (3, 'UPDATE'), (4, 'DELETE')) AS p (rank, "right")
    WHERE p.right = 'SELECT' OR t.is_ours AND t.relkind <> 'v' AND t.relname <> ALL ($4::text[])
    AND (p.right = 'INSERT' OR t.relname <> ALL ($5::text[]))
)
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, $1::text) FROM pg_catalog.pg_namespace n
WHERE pg_catalog.pg_has_role(n.nspowner, 'USAGE') AND NOT pg_catalog.has_schema_privilege($1, n.oid, 'USAGE')
AND (n.nspname = $2 OR n.nspname = ANY ($6::text[]))
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %s TO %I', pg_catalog.string_agg(w.right, ', '), w.name, $1::text) FROM wanted w
WHERE NOT pg_catalog.has_table_privilege($1, w.oid, w.right) GROUP BY w.name
UNION ALL
SELECT pg_catalog.format('GRANT USAGE ON SEQUENCE %I.%I TO %I', n.nspname, c.relname, $1::text)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $2 AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
-- The planner may ask for the right first, which is an error for what is no sequence.
AND CASE WHEN c.relkind = 'S' THEN NOT pg_catalog.has_sequence_privilege($1, c.oid, 'USAGE') ELSE false END
UNION ALL
SELECT pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO %I', f.oid::pg_catalog.regprocedure, $1::text)
FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
WHERE n.nspname = $2 AND pg_catalog.pg_has_role(f.proowner, 'USAGE')
AND NOT pg_catalog.has_function_privilege($1, f.oid, 'EXECUTE')
"""


async def grant_to_server(connection: Any, role: str, sources: Sequence[Source], life: Lifecycle) -> None:
    """Let `role` serve: use the queue's tables, and read the ledgers and what is known of migrations and backups.

    What it has already is left alone, and so is what is not ours to grant. Nothing is granted on the user's tables:
    their migrations do that, or default privileges (see the page `security`).
    """
    ledgers = [source.table.table for source in sources]
    async with as_ours(connection):
        exists = f"SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = {literal(role)})"  # noqa: S608
        if not await connection.fetchval(exists):
            return
        schemas = [source.table.schema for source in sources]
        statements = [
            row[0]
            for row in await connection.fetch(
                _MISSING, role, SERVICE_SCHEMA, ledgers, list(_READ_ONLY), list(_ADD_ONLY), schemas
            )
        ]
        for statement in statements:
            await connection.execute(statement)
    if statements:
        life.emit("grants.given", role=role, statements=len(statements))
