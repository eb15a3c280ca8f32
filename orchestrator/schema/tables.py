"""What a database holds, in the server's own words, so that two can be compared. Reads the catalogue, writes nothing.

Every definition is the server's own deparsed text (`pg_get_constraintdef` and its like), read under one search path:
what is written in two ways and means the same is the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


ConstraintKind = Literal["primary key", "unique", "check", "foreign key", "exclude"]
# Schema and name.
ObjectName = tuple[str, str]

_CONSTRAINTS: Mapping[str, ConstraintKind] = {
    "p": "primary key",
    "u": "unique",
    "c": "check",
    "f": "foreign key",
    "x": "exclude",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """GENERATED … AS IDENTITY, with the options of its sequence; `always` is False for BY DEFAULT."""

    always: bool
    options: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `default` and `generated` are SQL. `generated_kind` is s(tored) or v(irtual)."""

    type: str
    not_null: bool
    default: str | None = None
    generated: str | None = None
    generated_kind: str = ""
    identity: Identity | None = None
    collation: str | None = None
    comment: str | None = None
    enum: ObjectName | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint; `validated` is False after NOT VALID, whose words `definition` leaves out.

    `references` and `referenced_columns` are a foreign key's.
    """

    kind: ConstraintKind
    definition: str
    validated: bool = True
    comment: str | None = None
    columns: tuple[str, ...] = ()
    references: ObjectName | None = None
    referenced_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """An index that no constraint owns; `definition` is the whole CREATE INDEX."""

    definition: str
    valid: bool = True
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with all that hangs on it; tables are in the order in which they were created."""

    columns: Mapping[str, Column]
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    indexes: Mapping[str, Index] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    comment: str | None = None
    unlogged: bool = False
    partitioned_by: str | None = None
    access_method: str = "heap"


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum type and its values, in order."""

    values: tuple[str, ...]
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence that is no identity's; `owned_by` is the column of a serial: table and column."""

    definition: str
    owned_by: tuple[ObjectName, str] | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the compared schemas hold."""

    schemas: frozenset[str]
    enums: Mapping[ObjectName, Enum]
    domains: Mapping[ObjectName, str]
    sequences: Mapping[ObjectName, Sequence]
    tables: Mapping[ObjectName, Table]


# What an extension brought is its own business.
_NOT_OF_AN_EXTENSION = (
    "NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = '{catalogue}'::pg_catalog.regclass"
    " AND e.objid = {alias}.oid AND e.deptype = 'e')"
)
_IN_SCHEMAS = "n.nspname = ANY ($1::text[])"

_TABLES = f"""
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.reloptions::text[] AS options,
 c.relpersistence = 'u' AS unlogged, pg_catalog.pg_get_partkeydef(c.oid) AS partitioned_by,
 (SELECT m.amname::text FROM pg_catalog.pg_am m WHERE m.oid = c.relam) AS access_method,
 pg_catalog.obj_description(c.oid, 'pg_class') AS comment
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND {_IN_SCHEMAS}
 AND {_NOT_OF_AN_EXTENSION.format(catalogue="pg_catalog.pg_class", alias="c")}
ORDER BY c.oid"""  # noqa: S608 constants

_COLUMNS = """
SELECT a.attrelid AS table_oid, a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
 a.attnotnull AS not_null, pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression,
 a.attidentity::text AS identity, a.attgenerated::text AS generated,
 CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.quote_ident(cn.nspname) || '.'
  || pg_catalog.quote_ident(co.collname) END AS collation,
 pg_catalog.col_description(a.attrelid, a.attnum) AS comment,
 CASE WHEN et.typtype = 'e' THEN en.nspname::text END AS enum_schema,
 CASE WHEN et.typtype = 'e' THEN et.typname::text END AS enum_name,
 s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, s.seqtypid::pg_catalog.regtype::text AS seqtype
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
JOIN pg_catalog.pg_type et ON et.oid = CASE WHEN t.typelem <> 0 AND t.typlen = -1 THEN t.typelem ELSE t.oid END
JOIN pg_catalog.pg_namespace en ON en.oid = et.typnamespace
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
LEFT JOIN pg_catalog.pg_depend dep ON a.attidentity <> '' AND dep.refobjid = a.attrelid AND dep.refobjsubid = a.attnum
 AND dep.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND dep.deptype = 'i'
 AND dep.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
LEFT JOIN pg_catalog.pg_sequence s ON s.seqrelid = dep.objid
WHERE a.attrelid = ANY ($1::pg_catalog.oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum"""

_CONSTRAINT_ROWS = """
SELECT k.conrelid AS table_oid, k.conname::text AS name, k.contype::text AS kind, k.convalidated AS validated,
 pg_catalog.pg_get_constraintdef(k.oid) AS definition,
 pg_catalog.obj_description(k.oid, 'pg_constraint') AS comment,
 rn.nspname::text AS referenced_schema, r.relname::text AS referenced_name,
 ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = k.conrelid
  AND a.attnum = ANY (k.conkey)) AS columns,
 ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = k.confrelid
  AND a.attnum = ANY (k.confkey)) AS referenced_columns
FROM pg_catalog.pg_constraint k
LEFT JOIN pg_catalog.pg_class r ON r.oid = k.confrelid AND k.contype = 'f'
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.conrelid = ANY ($1::pg_catalog.oid[]) AND k.contype IN ('p', 'u', 'c', 'f', 'x') AND k.conparentid = 0
ORDER BY k.conrelid, k.oid"""

_INDEXES = """
SELECT i.indrelid AS table_oid, c.relname::text AS name, pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
 i.indisvalid AS valid, pg_catalog.obj_description(i.indexrelid, 'pg_class') AS comment
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY ($1::pg_catalog.oid[])
 AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
  WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
ORDER BY i.indrelid, c.relname"""

_ENUMS = f"""
SELECT n.nspname::text AS schema, t.typname::text AS name, pg_catalog.obj_description(t.oid, 'pg_type') AS comment,
 ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS values
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype = 'e' AND {_IN_SCHEMAS}
 AND {_NOT_OF_AN_EXTENSION.format(catalogue="pg_catalog.pg_type", alias="t")}
ORDER BY n.nspname, t.typname"""  # noqa: S608 constants

_DOMAINS = f"""
SELECT n.nspname::text AS schema, t.typname::text AS name,
 pg_catalog.format_type(t.typbasetype, t.typtypmod)
 || CASE WHEN t.typcollation <> b.typcollation THEN ' COLLATE ' || pg_catalog.quote_ident(co.collname) ELSE '' END
 || coalesce(' DEFAULT ' || t.typdefault, '') || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
 || coalesce((SELECT pg_catalog.string_agg(' CONSTRAINT ' || pg_catalog.quote_ident(k.conname) || ' '
  || pg_catalog.pg_get_constraintdef(k.oid), '' ORDER BY k.conname)
  FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '') AS definition
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
LEFT JOIN pg_catalog.pg_collation co ON co.oid = t.typcollation
WHERE t.typtype = 'd' AND {_IN_SCHEMAS}
 AND {_NOT_OF_AN_EXTENSION.format(catalogue="pg_catalog.pg_type", alias="t")}
ORDER BY n.nspname, t.typname"""  # noqa: S608 constants

_SEQUENCES = f"""
SELECT n.nspname::text AS schema, c.relname::text AS name, pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
 s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
 s.seqtypid::pg_catalog.regtype::text AS seqtype,
 own.nspname::text AS owner_schema, o.relname::text AS owner_table, a.attname::text AS owner_column
FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_depend d ON d.objid = c.oid AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
 AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
LEFT JOIN pg_catalog.pg_class o ON o.oid = d.refobjid
LEFT JOIN pg_catalog.pg_namespace own ON own.oid = o.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE {_IN_SCHEMAS} AND coalesce(d.deptype, 'a') <> 'i'
 AND {_NOT_OF_AN_EXTENSION.format(catalogue="pg_catalog.pg_class", alias="c")}
ORDER BY n.nspname, c.relname"""  # noqa: S608 constants


async def schemas_with_types(connection: Any) -> frozenset[str]:
    """The schemas that hold an enum, a domain or a sequence that no extension brought."""
    rows = await connection.fetch(
        "SELECT DISTINCT n.nspname::text AS name FROM pg_catalog.pg_namespace n"  # noqa: S608 constants
        " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND ("
        " EXISTS (SELECT FROM pg_catalog.pg_type t WHERE t.typnamespace = n.oid AND t.typtype IN ('e', 'd')"
        f" AND {_NOT_OF_AN_EXTENSION.format(catalogue='pg_catalog.pg_type', alias='t')})"
        " OR EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'S'"
        f" AND {_NOT_OF_AN_EXTENSION.format(catalogue='pg_catalog.pg_class', alias='c')}))"
    )
    return frozenset(row["name"] for row in rows)


async def read_catalogue(
    connection: Any, schemas: Collection[str], *, path: str, without: Collection[ObjectName] = ()
) -> Catalogue:
    """Everything in `schemas` that `generate` compares; `path` is the search path that names are shortened by.

    `without` are tables to leave out, with their sequences: ledgers.
    """
    await connection.execute("SELECT pg_catalog.set_config('search_path', $1, false)", path)
    asked = sorted(schemas)
    existing = await connection.fetch(
        "SELECT nspname::text AS name FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[])", asked
    )
    rows = [r for r in await connection.fetch(_TABLES, asked) if (r["schema"], r["name"]) not in without]
    oids = [row["oid"] for row in rows]
    columns: dict[int, dict[str, Column]] = {oid: {} for oid in oids}
    constraints: dict[int, dict[str, Constraint]] = {oid: {} for oid in oids}
    indexes: dict[int, dict[str, Index]] = {oid: {} for oid in oids}
    for row in await connection.fetch(_COLUMNS, oids):
        columns[row["table_oid"]][row["name"]] = _column(row)
    for row in await connection.fetch(_CONSTRAINT_ROWS, oids):
        constraints[row["table_oid"]][row["name"]] = _constraint(row)
    for row in await connection.fetch(_INDEXES, oids):
        indexes[row["table_oid"]][row["name"]] = Index(row["definition"], row["valid"], row["comment"])
    tables = {
        (row["schema"], row["name"]): Table(
            columns[row["oid"]],
            constraints[row["oid"]],
            indexes[row["oid"]],
            dict(option.partition("=")[::2] for option in row["options"] or ()),
            row["comment"],
            row["unlogged"],
            row["partitioned_by"],
            row["access_method"] or "heap",
        )
        for row in rows
    }
    return Catalogue(
        schemas=frozenset(row["name"] for row in existing),
        enums={
            (r["schema"], r["name"]): Enum(tuple(r["values"]), r["comment"])
            for r in await connection.fetch(_ENUMS, asked)
        },
        domains={(r["schema"], r["name"]): r["definition"] for r in await connection.fetch(_DOMAINS, asked)},
        sequences={
            (r["schema"], r["name"]): _sequence(r)
            for r in await connection.fetch(_SEQUENCES, asked)
            if (r["owner_schema"], r["owner_table"]) not in without
        },
        tables=tables,
    )


def _column(row: Any) -> Column:
    identity = Identity(row["identity"] == "a", _sequence_options(row)) if row["identity"] else None
    return Column(
        type=row["type"],
        not_null=row["not_null"],
        default=None if row["generated"] else row["expression"],
        generated=row["expression"] if row["generated"] else None,
        generated_kind=row["generated"],
        identity=identity,
        collation=row["collation"],
        comment=row["comment"],
        enum=(row["enum_schema"], row["enum_name"]) if row["enum_name"] else None,
    )


def _constraint(row: Any) -> Constraint:
    return Constraint(
        kind=_CONSTRAINTS[row["kind"]],
        definition=row["definition"].removesuffix(" NOT VALID"),
        validated=row["validated"],
        comment=row["comment"],
        columns=tuple(row["columns"]),
        references=(row["referenced_schema"], row["referenced_name"]) if row["referenced_name"] else None,
        referenced_columns=tuple(row["referenced_columns"]),
    )


def _sequence(row: Any) -> Sequence:
    owner = ((row["owner_schema"], row["owner_table"]), row["owner_column"]) if row["owner_column"] else None
    return Sequence(f"AS {row['seqtype']} {_sequence_options(row)}", owner, row["comment"])


def _sequence_options(row: Any) -> str:
    cycle = "CYCLE" if row["seqcycle"] else "NO CYCLE"
    return (
        f"START WITH {row['seqstart']} INCREMENT BY {row['seqincrement']} MINVALUE {row['seqmin']}"
        f" MAXVALUE {row['seqmax']} CACHE {row['seqcache']} {cycle}"
    )
