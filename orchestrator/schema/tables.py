"""The tables of a schema, and the types and sequences that they need, with a type for each: what `generate` compares.

Every definition is the server's own deparsed text (`pg_get_constraintdef` and its like), read under one search path:
what is written in two ways and means the same is the same here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.database.quoting import identifier
from orchestrator.schema.ddl import column_tail, identity_options
from orchestrator.schema.objects import Schema, SchemaObject, name_parts, read_schema

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


ConstraintKind = Literal["primary key", "unique", "check", "foreign key", "exclude"]
PUBLIC = "public"
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
    """A column; `default` and `generated` are SQL, the latter with STORED or VIRTUAL."""

    type: str
    not_null: bool
    default: str | None = None
    generated: str | None = None
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
    """Tables, types and sequences."""

    schemas: frozenset[str]  # all of the database
    enums: Mapping[ObjectName, Enum]
    domains: Mapping[ObjectName, str]
    sequences: Mapping[ObjectName, Sequence]
    tables: Mapping[ObjectName, Table]


_KINDS = frozenset(
    {"schema", "table", "column", "key", "constraint", "domain constraint", "index", "sequence", "enum", "domain"}
)


async def read_catalogue(
    connection: Any, schemas: Collection[str], *, path: str, without: Collection[ObjectName] = ()
) -> Catalogue:
    """Read what `catalogue_of` shows; `path` as for `read_schema`."""
    return catalogue_of(await read_schema(connection, path=path, kinds=_KINDS), schemas, without=without)


def catalogue_of(schema: Schema, schemas: Collection[str], *, without: Collection[ObjectName] = ()) -> Catalogue:
    """The typed view of `schema`: the tables in `schemas`, and types and sequences wherever they are.

    Left out are partitions, which are their table's, and the tables `without` with their sequences and the foreign keys
    to them.
    """
    parts: dict[ObjectName, list[SchemaObject]] = {}
    for one in schema.objects:
        if one.table is not None:
            parts.setdefault(_name(one.table), []).append(one)
    named = [(_name(one.name), one) for one in schema.objects if one.kind in {"table", "enum", "domain", "sequence"}]
    tables = sorted((pair for pair in named if pair[1].kind == "table"), key=lambda pair: pair[1].position)
    return Catalogue(
        schemas=frozenset(one.schema for one in schema.objects if one.kind == "schema" and one.schema),
        enums={
            name: Enum(tuple(one.facts.get("labels", ())), one.facts.get("comment"))
            for name, one in named
            if one.kind == "enum"
        },
        domains={name: _domain(one, parts.get(name, ())) for name, one in named if one.kind == "domain"},
        sequences={
            name: sequence
            for name, one in named
            if one.kind == "sequence"
            if (sequence := _sequence(one)).owned_by is None or sequence.owned_by[0] not in without
        },
        tables={
            name: _table(one, parts.get(name, ()), without)
            for name, one in tables
            if name[0] in schemas and name not in without and "partition_of" not in one.facts
        },
    )


def _name(text: str) -> ObjectName:
    schema, name = name_parts(text)
    return schema, name


def named(name: ObjectName) -> str:
    """`name` for a statement: the schema is left out where it is public, as in what SQLAlchemy writes."""
    return identifier(name[1]) if name[0] == PUBLIC else f"{identifier(name[0])}.{identifier(name[1])}"


def _table(one: SchemaObject, parts: Iterable[SchemaObject], without: Collection[ObjectName]) -> Table:
    facts = one.facts
    by_kind: dict[str, dict[str, SchemaObject]] = {"column": {}, "constraint": {}, "index": {}}
    for part in sorted(parts, key=lambda part: part.position):
        if part.kind in by_kind:
            by_kind[part.kind][name_parts(part.name)[-1]] = part
    return Table(
        {name: column_of(part) for name, part in by_kind["column"].items()},
        {
            name: constraint
            for name, part in by_kind["constraint"].items()
            if (constraint := _constraint(part)).references not in without
        },
        {name: _index(part.facts) for name, part in by_kind["index"].items()},
        dict(option.partition("=")[::2] for option in facts.get("options", ())),
        facts.get("comment"),
        facts.get("persistence") == "unlogged",
        facts.get("partitioned_by"),
        facts.get("access_method", "heap"),
    )


def column_of(one: SchemaObject) -> Column:
    """The column that `one`, of the kind `column`, is."""
    facts = one.facts
    enum = one.details.get("enum")
    return Column(
        type=facts["type"],
        not_null=facts.get("not_null") == "yes",
        default=facts.get("default"),
        generated=facts.get("generated"),
        identity=Identity(facts["identity"] == "ALWAYS", identity_options(facts)) if "identity" in facts else None,
        collation=facts.get("collation"),
        comment=facts.get("comment"),
        enum=(enum[0], enum[1]) if enum else None,
    )


def _constraint(one: SchemaObject) -> Constraint:
    facts, details = one.facts, one.details
    references = details.get("references")
    return Constraint(
        kind=_CONSTRAINTS[details["type"]],
        definition=facts["definition"],
        validated=facts.get("validated", True),
        comment=facts.get("comment"),
        columns=tuple(details.get("columns", ())),
        references=(references[0], references[1]) if references else None,
        referenced_columns=tuple(details.get("referenced_columns", ())),
    )


def _index(facts: Mapping[str, Any]) -> Index:
    return Index(facts["definition"], facts.get("valid", True), facts.get("comment"))


def _domain(one: SchemaObject, parts: Iterable[SchemaObject]) -> str:
    checks = [f"CONSTRAINT {part.name} {part.facts['definition']}" for part in parts if part.kind == "constraint"]
    return " ".join([column_tail(one.facts), *checks])


def _sequence(one: SchemaObject) -> Sequence:
    owned_by = one.facts.get("owned_by")
    schema, table, column = name_parts(owned_by) if owned_by else ("", "", "")
    return Sequence(one.facts["options"], ((schema, table), column) if owned_by else None, one.facts.get("comment"))
