"""The facts of the live catalogue that `impact` and `lint` judge by. Touches the database: reads the catalogue alone.

No lock is waited for: sizes open the tables, and where one is locked against readers, pg_class's estimate stands in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import asyncpg

from orchestrator.analysis.ast import Name, Type, nodes, only, proves_not_null
from orchestrator.analysis.catalog import (
    Known,
    KnownCheck,
    KnownColumn,
    KnownForeignKey,
    KnownTable,
    KnownType,
    RelationKind,
)
from orchestrator.analysis.names_there import NamesThere, Thing
from orchestrator.database.sessions import role_schemas
from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIZE_WAIT_MS = 200
_KINDS: dict[str, RelationKind] = {
    "r": "table",
    "p": "partitioned",
    "i": "index",
    "I": "index",
    "v": "view",
    "m": "materialized view",
    "S": "sequence",
    "f": "foreign table",
    "c": "type",
}
_OURS = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"
_RELATIONS = f"""
    SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
           CASE WHEN c.reltuples < 0 THEN NULL ELSE c.reltuples::bigint END AS rows,
           (c.relpages + coalesce(toast.relpages, 0))::bigint
             * pg_catalog.current_setting('block_size')::bigint AS estimated_bytes,
           c.relpersistence = 'u' AS unlogged, coalesce(s.spcname::text, ds.spcname::text) AS tablespace,
           coalesce(am.amname::text, '') AS access_method,
           (SELECT count(*) FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid) AS indexes,
           (SELECT i.indrelid::bigint FROM pg_catalog.pg_index i WHERE i.indexrelid = c.oid) AS on_oid
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_class toast ON toast.oid = c.reltoastrelid
      LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
      LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
      JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
      JOIN pg_catalog.pg_tablespace ds ON ds.oid = d.dattablespace
     WHERE {_OURS} AND c.relkind IN ('r', 'p', 'i', 'I', 'v', 'm', 'S', 'f', 'c')"""  # noqa: S608 (constants)
_COLUMNS = """
    SELECT a.attrelid::bigint AS oid, a.attname::text AS name, a.attnotnull AS not_null, a.atttypmod AS mod,
           coalesce(en.nspname, tn.nspname)::text AS type_schema, coalesce(e.typname, t.typname)::text AS type_name,
           e.oid IS NOT NULL AS is_array
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
      JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
      LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' AND t.typsubscript
                = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
      LEFT JOIN pg_catalog.pg_namespace en ON en.oid = e.typnamespace
     WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.attrelid = ANY($1::oid[]) OR t.typtype IN ('d', 'c', 'e'))"""
_CONSTRAINTS = f"""
    SELECT k.conrelid::bigint AS oid, k.conname::text AS name, k.contype::text AS kind, k.convalidated AS valid,
           k.confrelid::bigint AS references,
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)) AS columns,
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = k.confrelid AND a.attnum = ANY(k.confkey)) AS referenced,
           CASE WHEN k.contype = 'c' THEN pg_catalog.pg_get_expr(k.conbin, k.conrelid) END AS expression
      FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE {_OURS} AND k.contype IN ('c', 'f')"""  # noqa: S608 (constants)
_VIEWS = """
    SELECT DISTINCT d.refobjid::bigint AS oid, r.ev_class::bigint AS view, coalesce(a.attname::text, '') AS attribute
      FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND r.ev_class <> d.refobjid
      LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND d.refobjsubid > 0
     WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
       AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.ev_class >= 16384"""
_INDEXED = """
    SELECT i.indrelid::bigint AS oid, array_agg(DISTINCT a.attname::text) AS columns
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
     WHERE i.indrelid >= 16384 AND a.attnum > 0 GROUP BY 1"""
_STATISTICS = """
    SELECT s.stxrelid::bigint AS oid, n.nspname::text AS schema, s.stxname::text AS name
      FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace"""
_TYPES = f"""
    SELECT n.nspname::text AS schema, t.typname::text AS name, t.typtype::text AS kind,
           b.typname::text AS base, bn.nspname::text AS base_schema, t.typtypmod AS mod,
           t.typnotnull OR EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid) AS constrained
      FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
      LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
      LEFT JOIN pg_catalog.pg_namespace bn ON bn.oid = b.typnamespace
     WHERE {_OURS} AND t.typtype IN ('e', 'd', 'b', 'r') AND t.typcategory <> 'A'"""  # noqa: S608 (constants)


async def _path(connection: Any) -> list[str]:
    """The schemas where a file's names are looked up; a run takes `"$user"` off the path of a role of our name."""
    schemas = await role_schemas(connection)
    is_namesake = await connection.fetchval("SELECT current_user::text") == SERVICE_SCHEMA
    return [schema for schema in schemas if not (is_namesake and schema == SERVICE_SCHEMA)]


async def read_known(connection: Any, named: Iterable[str], functions: Iterable[str]) -> Known:
    """What the catalogue says: every relation, and the columns of those whose name is in `named`.

    Call it in a transaction that reads the same snapshot throughout. Works for a role that owns nothing.
    """
    known = Known(live=True)
    known.search_path = await _path(connection)
    zone = await connection.fetchval("SELECT pg_catalog.current_setting('TimeZone')")
    known.timezone_is_utc = str(zone).upper() in {"UTC", "ETC/UTC", "GMT", "ETC/GMT", "UCT", "ZULU"}
    by_oid: dict[int, KnownTable] = {}
    on_oids: dict[int, int] = {}
    for row in await connection.fetch(_RELATIONS):
        kind = _KINDS[row["kind"]]
        holds_rows = kind in {"table", "materialized view"}
        table = KnownTable(
            Name(row["schema"], row["name"]),
            kind,
            rows=row["rows"] if holds_rows else None,
            size_bytes=row["estimated_bytes"] if holds_rows else None,
            unlogged=row["unlogged"],
            indexes=row["indexes"],
            tablespace=row["tablespace"],
            access_method=row["access_method"],
        )
        by_oid[row["oid"]] = table
        known.tables[table.name] = table
        if row["on_oid"] is not None:
            on_oids[row["oid"]] = row["on_oid"]
    for oid, on in on_oids.items():
        by_oid[oid].on = by_oid[on].name if on in by_oid else None
    for row in await connection.fetch(
        "SELECT inhrelid::bigint, inhparent::bigint FROM pg_catalog.pg_inherits ORDER BY inhseqno"
    ):
        child, parent = by_oid.get(row[0]), by_oid.get(row[1])
        if child and parent and child.kind != "index":
            child.parents.append(parent.name)
    await _read_columns(connection, known, by_oid, set(named))
    await _read_constraints(connection, by_oid)
    await _read_types(connection, known)
    for row in await connection.fetch(_VIEWS):
        viewed, view = by_oid.get(row["oid"]), by_oid.get(row["view"])
        if viewed and view:
            viewed.viewed_by.add((view.name, row["attribute"]))
    for row in await connection.fetch(_INDEXED):
        if row["oid"] in by_oid:
            by_oid[row["oid"]].indexed |= set(row["columns"])
    for row in await connection.fetch(_STATISTICS):
        if row["oid"] in by_oid:
            known.statistics[Name(row["schema"], row["name"])] = by_oid[row["oid"]].name
    wanted = list(functions)
    for row in await connection.fetch(
        "SELECT proname::text, bool_or(provolatile = 'v') FROM pg_catalog.pg_proc WHERE proname::text = ANY($1::text[])"
        " GROUP BY 1",
        wanted,
    ):
        known.functions[row[0]] = row[1]
    await _read_sizes(connection, {o: t for o, t in by_oid.items() if t.name.name in set(named)})
    return known


_THINGS = """
    SELECT 'relation', n.nspname::text, c.relname::text, c.relkind::text
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^pg_(toast|temp)'
    UNION ALL SELECT 'type', n.nspname::text, t.typname::text, ''
      FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
     WHERE t.typrelid = 0 AND t.typname !~ '^_'
    UNION ALL SELECT DISTINCT 'function', n.nspname::text, p.proname::text, ''
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    UNION ALL SELECT 'schema', NULL, nspname::text, '' FROM pg_catalog.pg_namespace
    UNION ALL SELECT 'role', NULL, rolname::text, '' FROM pg_catalog.pg_roles
    UNION ALL SELECT 'extension', NULL, extname::text, '' FROM pg_catalog.pg_extension"""
_COLUMN_NAMES = """
    SELECT n.nspname::text, c.relname::text, array_agg(a.attname::text)
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.relname = ANY($1::text[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND n.nspname !~ '^pg_'
     GROUP BY 1, 2"""
_CHILDREN = """
    SELECT pn.nspname::text, p.relname::text, cn.nspname::text, c.relname::text
      FROM pg_catalog.pg_inherits i
      JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
     WHERE p.relkind IN ('r', 'p')"""


async def read_names(connection: Any, named: Iterable[str], schemas: Iterable[str]) -> NamesThere:
    """The names of the catalogue, with the columns of the relations in `named`; call it as `read_known`.

    `schemas` are those that a run makes before the first file, where they are not there.
    """
    there = NamesThere(live=True, role_path=await _path(connection))
    for kind, schema, name, relkind in await connection.fetch(_THINGS):
        there.things[kind, schema, name] = Thing(what=_KINDS.get(relkind, ""))
    for schema in schemas:
        there.things.setdefault(("schema", None, schema), Thing())
    for schema, relation, columns in await connection.fetch(_COLUMN_NAMES, list(named)):
        there.columns[schema, relation] = dict.fromkeys(columns, True)
    for parent_schema, parent, schema, relation in await connection.fetch(_CHILDREN):
        there.children.setdefault((parent_schema, parent), set()).add((schema, relation))
    rows = await connection.fetch("SELECT name::text FROM pg_catalog.pg_available_extensions")
    there.available = frozenset(row[0] for row in rows)
    return there


async def _read_columns(connection: Any, known: Known, by_oid: dict[int, KnownTable], named: set[str]) -> None:
    del known
    wanted = [oid for oid, table in by_oid.items() if table.name.name in named and table.kind != "index"]
    for row in await connection.fetch(_COLUMNS, wanted):
        table = by_oid.get(row["oid"])
        if table:
            name = Name(row["type_schema"], row["type_name"])
            written = Type(name, _mods(row["type_name"], row["mod"]), row["is_array"])
            table.columns[row["name"]] = KnownColumn(written, row["not_null"])


async def _read_constraints(connection: Any, by_oid: dict[int, KnownTable]) -> None:
    from orchestrator.migrator.sql import parser

    for row in await connection.fetch(_CONSTRAINTS):
        table, columns = by_oid.get(row["oid"]), frozenset(row["columns"])
        if table is None:
            continue
        if row["kind"] == "f":
            referenced = by_oid.get(row["references"])
            if referenced:
                table.foreign_keys[row["name"]] = KnownForeignKey(
                    columns, referenced.name, frozenset(row["referenced"]), row["valid"]
                )
            continue
        parsed = parser.parse(f"SELECT {row['expression']}".encode())[0].fields()
        target = next((only(fields["val"]) for _, fields in nodes(parsed, "ResTarget")), None)
        proven = proves_not_null({target[0]: target[1]}) if target else frozenset()
        table.checks[row["name"]] = KnownCheck(columns, proven, row["valid"])


async def _read_types(connection: Any, known: Known) -> None:
    for row in await connection.fetch(_TYPES):
        name = Name(row["schema"], row["name"])
        kind = {"e": "enum", "d": "domain"}.get(row["kind"], "other")
        base = Type(Name(row["base_schema"], row["base"]), _mods(row["base"], row["mod"])) if row["base"] else None
        known.types[name] = KnownType(name, cast("Any", kind), base, row["constrained"])
    pairs = await connection.fetch(
        "SELECT s.typname::text, t.typname::text FROM pg_catalog.pg_cast c"
        " JOIN pg_catalog.pg_type s ON s.oid = c.castsource JOIN pg_catalog.pg_type t ON t.oid = c.casttarget"
        " WHERE c.castmethod = 'b'"
    )
    known.coercible = frozenset((row[0], row[1]) for row in pairs)


async def _read_sizes(connection: Any, tables: dict[int, KnownTable]) -> None:
    """The size of each table with its indexes and toast, where nobody holds it against readers."""
    wanted = {oid: t for oid, t in tables.items() if t.kind in {"table", "materialized view"}}
    if not wanted:
        return
    # pg_total_relation_size opens the table (ACCESS SHARE), so it would wait behind a DDL statement: all at once where
    # nobody holds one, else one by one.
    for oids in (list(wanted), *([oid] for oid in wanted)):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {_SIZE_WAIT_MS}")
                sizes = await connection.fetch(
                    "SELECT o::bigint, pg_catalog.pg_total_relation_size(o) FROM unnest($1::oid[]) AS o", oids
                )
        except asyncpg.LockNotAvailableError:
            continue
        for oid, size in sizes:
            wanted[oid].size_bytes = size if size is not None else wanted[oid].size_bytes
        if len(oids) == len(wanted):
            return


def _mods(type_name: str, mod: int) -> tuple[int, ...]:
    """A type modifier as what stands in the brackets (each type's own typmodout)."""
    if mod < 0:
        return ()
    if type_name in {"varchar", "bpchar"}:
        return (mod - 4,)
    if type_name == "numeric":
        packed = mod - 4
        scale = packed & 0x7FF
        return (packed >> 16 & 0xFFFF, scale - 2048 if scale >= 1024 else scale)  # noqa: PLR2004 (11 bits, signed)
    if type_name == "interval":
        precision = mod & 0xFFFF
        return (mod >> 16 & 0x7FFF,) if precision == 0xFFFF else (mod >> 16 & 0x7FFF, precision)  # noqa: PLR2004
    return (mod,)
