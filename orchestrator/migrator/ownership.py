"""Whose code would run when a ledger or our own schema is read or written? Reads the catalogue alone.

Whoever may create objects in a database can be there before us: a ledger with a trigger, a view in its place, a check
that calls a function. What belongs to somebody else there runs with our rights (a superuser's, maybe). So before a
ledger is read or anything is written, the owners of all of that are looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.errors import EXIT_CONFIG, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE_SCHEMA = "orchestrator"
_SHOWN = 8

# Trusted is who could do worse without us (superusers, the owner of the database), and whose rights we have: ourselves
# and the roles that we are a member of. A superuser passes as a member of every role: the real memberships are read.
_TRUSTED = """
mine(oid) AS (
    SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname IN (current_user, session_user)
    UNION
    SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN mine ON mine.oid = m.member
), trusted(oid) AS (
    SELECT mine.oid FROM mine
    UNION ALL
    SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
    UNION ALL
    SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper OR r.rolname = 'pg_database_owner' OR r.rolname = ANY ($3)
)"""

# The relations in question and what is related by inheritance; then what belongs to each (defaults, checks, rules,
# triggers, policies, indexes); then, by pg_depend, every function that these lead to, also by way of operators and of
# the checks of domains. Functions of PostgreSQL's own are pinned and stand in no dependency.
_FOUND = f"""
WITH RECURSIVE {_TRUSTED}, schemas AS (
    SELECT n.oid, n.nspowner FROM pg_catalog.pg_namespace n WHERE n.nspname = '{SERVICE_SCHEMA}' OR n.nspname = ANY ($1)
), relations(oid) AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (n.nspname = '{SERVICE_SCHEMA}' OR (n.nspname, c.relname) IN (
        SELECT g.schema, g.name
        FROM ROWS FROM (pg_catalog.unnest($1::name[]), pg_catalog.unnest($2::name[])) AS g(schema, name)))
    UNION
    SELECT CASE WHEN i.inhrelid = r.oid THEN i.inhparent ELSE i.inhrelid END
    FROM relations r JOIN pg_catalog.pg_inherits i ON r.oid IN (i.inhrelid, i.inhparent)
), parts(relation, class, object) AS (
    SELECT r.oid, 'pg_class'::regclass, r.oid FROM relations r
    UNION ALL
    SELECT r.oid, 'pg_class'::regclass, i.indexrelid FROM relations r JOIN pg_catalog.pg_index i ON i.indrelid = r.oid
    UNION ALL
    SELECT r.oid, 'pg_attrdef'::regclass, a.oid FROM relations r JOIN pg_catalog.pg_attrdef a ON a.adrelid = r.oid
    UNION ALL
    SELECT r.oid, 'pg_constraint'::regclass, k.oid
    FROM relations r JOIN pg_catalog.pg_constraint k ON k.conrelid = r.oid
    UNION ALL
    SELECT r.oid, 'pg_rewrite'::regclass, w.oid FROM relations r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.oid
    UNION ALL
    SELECT r.oid, 'pg_trigger'::regclass, t.oid
    FROM relations r JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT r.oid, 'pg_policy'::regclass, p.oid FROM relations r JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid
), reached(part_class, part, class, object) AS (
    SELECT p.class, p.object, p.class, p.object FROM parts p
    UNION
    SELECT r.part_class, r.part, f.class, f.object FROM reached r CROSS JOIN LATERAL (
        SELECT d.refclassid::regclass, d.refobjid FROM pg_catalog.pg_depend d
        WHERE d.classid = r.class AND d.objid = r.object AND d.refclassid IN (
            'pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_opclass'::regclass,
            'pg_opfamily'::regclass)
        UNION ALL
        SELECT 'pg_constraint'::regclass, k.oid FROM pg_catalog.pg_constraint k
        WHERE r.class = 'pg_type'::regclass AND k.contypid = r.object
    ) AS f(class, object)
), owned(part_class, part, class, object, owner, kind) AS (
    SELECT 'pg_namespace'::regclass, s.oid, 'pg_namespace'::regclass, s.oid, s.nspowner, '' FROM schemas s
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid, 'pg_class'::regclass, c.oid, c.relowner, c.relkind::text
    FROM relations r JOIN pg_catalog.pg_class c ON c.oid = r.oid
    UNION ALL
    SELECT r.part_class, r.part, r.class, r.object, f.proowner, ''
    FROM reached r JOIN pg_catalog.pg_proc f ON r.class = 'pg_proc'::regclass AND f.oid = r.object
    UNION ALL
    SELECT 'pg_proc'::regclass, f.oid, 'pg_proc'::regclass, f.oid, f.proowner, ''
    FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
    WHERE n.nspname = '{SERVICE_SCHEMA}'
)
SELECT pg_catalog.pg_describe_object(o.class, o.object, 0) AS what, pg_catalog.pg_get_userbyid(o.owner)::text AS owner,
    CASE WHEN (o.part_class, o.part) <> (o.class::oid, o.object) THEN
        pg_catalog.pg_describe_object(o.part_class, o.part, 0) END AS by,
    o.kind IN ('v', 'f') OR o.part_class IN ('pg_rewrite'::regclass, 'pg_policy'::regclass) AS runs_when_read
FROM owned o WHERE o.owner NOT IN (SELECT t.oid FROM trusted t) ORDER BY o.class, 1, 3
"""  # noqa: S608 constants

# What a schema of our name holds where our ledger is not in it: then it is not ours.
_STRANGERS = f"""
WITH schema AS (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = '{SERVICE_SCHEMA}'), things AS (
    SELECT 'pg_class'::regclass AS class, c.oid FROM pg_catalog.pg_class c JOIN schema ON c.relnamespace = schema.oid
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL
    SELECT 'pg_proc'::regclass, f.oid FROM pg_catalog.pg_proc f JOIN schema ON f.pronamespace = schema.oid
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid FROM pg_catalog.pg_type t JOIN schema ON t.typnamespace = schema.oid
    WHERE t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'b' AND t.typelem = 0)
)
SELECT pg_catalog.pg_describe_object(t.class, t.oid, 0) AS what FROM things t
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN schema ON c.relnamespace = schema.oid
    WHERE c.relname = '__drizzle_migrations' AND c.relkind IN ('r', 'p'))
ORDER BY t.class, 1
"""  # noqa: S608 constants


class UntrustedOwnerError(OrchestratorError):
    """What we would read or write runs the code of somebody whom nothing says to trust. Nothing was run."""

    exit_code: ClassVar[int] = EXIT_CONFIG


class SchemaTakenError(OrchestratorError):
    """The schema `orchestrator` belongs to another application. Nothing was written."""

    exit_code: ClassVar[int] = EXIT_CONFIG


async def refuse_untrusted(
    connection: Any, ledgers: Sequence[tuple[str, str]], trusted: Sequence[str], *, writing: bool
) -> None:
    """Return if the ledgers (schema, table) and our own schema lead to nobody's code but that of trusted roles.

    Who only reads is refused only where reading runs code: a view, a foreign table, a policy. Call it with our path.

    Raises:
        UntrustedOwnerError: with the names, and the setting that allows it (exit 78).
    """
    schemas, tables = [schema for schema, _ in ledgers], [table for _, table in ledgers]
    rows = await connection.fetch(_FOUND, schemas, tables, list(trusted))
    found = [row for row in rows if writing or row["runs_when_read"]]
    if not found:
        return
    lines = [
        f"{row['what']} belongs to {row['owner']}" + (f" (it runs by {row['by']})" if row["by"] else "")
        for row in found
    ]
    owners = sorted({row["owner"] for row in found})
    raise UntrustedOwnerError(
        f"code of others would run with our rights: {_listed(lines)}",
        remedy="Nothing was run. Check what they are, then drop them or give them another owner (ALTER … OWNER TO);"
        f" or, if you trust these roles, set MIGRATION_TRUSTED_OWNERS={','.join(owners)}.",
        facts={"owners": owners, "objects": lines[:_SHOWN]},
    )


async def refuse_a_taken_schema(connection: Any) -> None:
    """Return if the schema `orchestrator` is ours, empty, or not there. Call it with our path.

    Raises:
        SchemaTakenError: with what is in it (exit 78).
    """
    names = [row["what"] for row in await connection.fetch(_STRANGERS)]
    if names:
        raise SchemaTakenError(
            f"the schema {SERVICE_SCHEMA} is in use by something else, and our tables need it: {_listed(names)}",
            remedy=f"Nothing was written. Rename that schema (ALTER SCHEMA {SERVICE_SCHEMA} RENAME TO …), or give this"
            " service a database of its own.",
            facts={"schema": SERVICE_SCHEMA, "objects": names[:_SHOWN]},
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'; '.join(names[:_SHOWN])}{more}"
