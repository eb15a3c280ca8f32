"""The views in the way of a column's change, and what drops and makes them again. Reads the catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.schema import object_sql
from orchestrator.schema.column_sql import needs_made_anew
from orchestrator.schema.objects import read_schema
from orchestrator.schema.steps import Rank, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.schema.objects import SchemaObject
    from orchestrator.schema.tables import Catalogue, ObjectName

_KINDS = frozenset({"view", "view column", "index", "trigger", "rule"})

# From columns to the views that read them, to the views that read those; the deepest last.
_DEPENDENTS = """
WITH RECURSIVE found AS (
    SELECT r.ev_class AS oid, 1 AS depth
    FROM unnest($1::text[], $2::text[], $3::text[]) w (schema, name, col)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = w.col
    JOIN pg_catalog.pg_depend d ON d.refobjid = c.oid AND d.refobjsubid = a.attnum
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_class <> c.oid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
    UNION
    SELECT r.ev_class, found.depth + 1
    FROM found
    JOIN pg_catalog.pg_depend d ON d.refobjid = found.oid
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_class <> found.oid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
)
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS name
FROM found JOIN pg_catalog.pg_class c ON c.oid = found.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('v', 'm') GROUP BY 1 ORDER BY max(found.depth)"""


async def views_in_the_way(connection: Any, before: Catalogue, wanted: Catalogue) -> list[str]:
    """The views, as SQL, that read a column which no ALTER changes while they are there; one stands on those before."""
    columns = list(_changed(before, wanted))
    rows = await connection.fetch(
        _DEPENDENTS,
        [table[0] for table, _ in columns],
        [table[1] for table, _ in columns],
        [column for _, column in columns],
    )
    return [row["name"] for row in rows]


def _changed(before: Catalogue, wanted: Catalogue) -> Iterator[tuple[ObjectName, str]]:
    remade = {name for name, enum in before.enums.items() if name in wanted.enums and wanted.enums[name] != enum}
    for name, table in wanted.tables.items():
        was_table = before.tables.get(name)
        for column, now in table.columns.items() if was_table else ():
            was = was_table.columns.get(column) if was_table else None
            if was is not None and (
                (was.type, was.collation) != (now.type, now.collation)
                or now.enum in remade
                or needs_made_anew(was, now)
            ):
                yield name, column


async def remade(connection: Any, names: Sequence[str]) -> list[Step]:
    """What drops the views `names`, and makes them again after the change: with comments, triggers and rights."""
    schema = await read_schema(connection, kinds=_KINDS, privileges=True)
    views = {one.name: one for one in schema.objects if one.kind in {"view", "materialized view"}}
    dropped = [sql for name in reversed(names) for sql in object_sql.drop(views[name])]
    made = []
    for name in names:
        parts = [one for one in schema.objects if one.table == name and one.kind == "view column"]
        made += object_sql.create(views[name], schema)
        made += [sql for one in (views[name], *parts) for sql in _rights(one)]
    return [
        *(Step(Rank.DROP_VIEW, sql.rstrip(";"), "made again below" if not i else "") for i, sql in enumerate(dropped)),
        *(Step(Rank.VIEW, sql.rstrip(";")) for sql in made),
    ]


def _rights(one: SchemaObject) -> list[str]:
    """The rights that a view which was just made lacks: all but its owner's."""
    rights = one.facts.get("privileges", ())
    fresh = {**one.facts, "privileges": [right for right in rights if right.startswith("owner: ")]}
    return object_sql.alter(one, msgspec.structs.replace(one, facts=fresh), {"privileges"})
