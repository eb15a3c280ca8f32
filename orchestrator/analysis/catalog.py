"""What is known of a database at a statement: from the catalogue, and from the statements before it. Pure: no I/O.

`plan` starts from the live catalogue, `lint` from nothing; `follow.follow` adds what each statement makes. What a name
means is decided by the search path; what was never heard of is taken as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.analysis import ast
from orchestrator.analysis.ast import Name, Type

RelationKind = Literal[
    "table", "partitioned", "index", "view", "materialized view", "sequence", "foreign table", "type"
]

_SERIAL = {
    "smallserial": "int2",
    "serial2": "int2",
    "serial": "int4",
    "serial4": "int4",
    "bigserial": "int8",
    "serial8": "int8",
}

# pg_cast, castmethod 'b' (PostgreSQL 18), as far as columns are ever altered from one to the other.
BINARY_COERCIBLE = frozenset(
    {
        ("text", "varchar"),
        ("varchar", "text"),
        ("text", "bpchar"),
        ("varchar", "bpchar"),
        ("cidr", "inet"),
        ("bit", "varbit"),
        ("varbit", "bit"),
        ("xml", "text"),
        ("xml", "varchar"),
        ("xml", "bpchar"),
        ("int4", "oid"),
        ("oid", "int4"),
        ("citext", "text"),
        ("citext", "varchar"),
        ("text", "citext"),
        ("varchar", "citext"),
    }
)
# Functions that stand in defaults and are not volatile; without a catalogue, any other one is presumed to be.
NON_VOLATILE = frozenset(
    {
        "now", "transaction_timestamp", "statement_timestamp", "timezone", "date_trunc", "date_part", "make_date",
        "make_interval", "make_timestamp", "make_timestamptz", "to_timestamp", "to_date", "to_char", "to_number",
        "lower", "upper", "md5", "sha256", "concat", "concat_ws", "replace", "substring", "substr", "left", "right",
        "trim", "btrim", "ltrim", "rtrim", "lpad", "rpad",
        "length", "char_length", "format", "encode", "decode", "repeat",
        "jsonb_build_object", "jsonb_build_array", "json_build_object", "json_build_array", "to_json", "to_jsonb",
        "array_fill", "string_to_array", "current_setting", "current_user", "session_user", "current_database",
        "current_schema", "abs", "ceil", "ceiling", "floor", "round", "trunc", "power", "sqrt", "mod", "coalesce",
        "greatest", "least", "nullif", "to_tsvector", "to_tsquery", "uuid_nil", "uuid_ns_dns", "date", "interval",
        "array_agg", "extract", "age", "point", "box", "circle", "int4range", "int8range", "numrange", "tsrange",
        "tstzrange", "daterange", "inet_client_addr", "pg_current_xact_id", "txid_current",
    }
)  # fmt: skip


# Those that the manual itself and the usual extensions put into defaults: told as volatile without a "may be".
VOLATILE = frozenset(
    {"random", "clock_timestamp", "timeofday", "nextval", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v4"}
    | {"uuid_generate_v1", "uuid_generate_v1mc", "gen_random_bytes", "random_normal"}
)


@dataclass(slots=True)
class KnownColumn:
    """A column; `fresh` as for tables."""

    type: Type | None = None
    not_null: bool = False
    fresh: bool = False


@dataclass(slots=True)
class KnownCheck:
    """A CHECK: the columns it speaks of, and those that it shows to be not null."""

    columns: frozenset[str]
    not_null: frozenset[str]
    valid: bool = True


@dataclass(slots=True)
class KnownForeignKey:
    """A foreign key of one table to another."""

    columns: frozenset[str]
    references: Name
    referenced: frozenset[str] = frozenset()  # empty: its primary key
    valid: bool = True


@dataclass(slots=True)
class KnownTable:
    """A relation. `fresh`: made by the same pending set, so that nobody uses it and it is as good as empty.

    `rows` and `size_bytes` are estimates, None where there is none. `on` is the table of an index.
    """

    name: Name
    kind: RelationKind = "table"
    fresh: bool = False
    rows: int | None = None
    size_bytes: int | None = None
    unlogged: bool = False
    columns: dict[str, KnownColumn] = field(default_factory=dict)
    checks: dict[str, KnownCheck] = field(default_factory=dict)
    foreign_keys: dict[str, KnownForeignKey] = field(default_factory=dict)
    indexes: int = 0
    indexed: set[str] = field(default_factory=set)
    viewed_by: set[tuple[Name, str]] = field(default_factory=set)  # (view, column)
    on: Name | None = None
    parents: list[Name] = field(default_factory=list)
    tablespace: str = ""
    access_method: str = "heap"


@dataclass(slots=True)
class KnownType:
    """A type of the project's own. `added` are the enum values that the open transaction has added."""

    name: Name
    kind: Literal["enum", "domain", "other"] = "other"
    base: Type | None = None
    constrained: bool = False
    fresh: bool = False
    fresh_in_transaction: bool = False
    added: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Known:
    """All of it. `live` says that it began with the whole catalogue: what is not in it does not exist."""

    live: bool = False
    search_path: list[str] = field(default_factory=lambda: ["public"])
    tables: dict[Name, KnownTable] = field(default_factory=dict)
    types: dict[Name, KnownType] = field(default_factory=dict)
    functions: dict[str, bool] = field(default_factory=dict)  # name → volatile
    fresh_functions: set[str] = field(default_factory=set)
    trigger_functions: set[str] = field(default_factory=set)
    fresh_schemas: set[str] = field(default_factory=set)
    fresh_triggers: set[str] = field(default_factory=set)
    statistics: dict[Name, Name] = field(default_factory=dict)
    coercible: frozenset[tuple[str, str]] = BINARY_COERCIBLE
    timezone_is_utc: bool | None = None

    # --- Asking ------------------------------------------------------------------------------------------------------

    def full(self, name: Name) -> Name:
        """The name with its schema: where the search path finds it, else where it would be made."""
        if name.schema is not None:
            return name
        for schema in self.search_path:
            if (candidate := Name(schema, name.name)) in self.tables:
                return candidate
        return Name(self.search_path[0] if self.search_path else "public", name.name)

    def find(self, name: Name) -> KnownTable | None:
        """What is known of a relation."""
        return self.tables.get(self.full(name))

    def is_fresh(self, name: Name) -> bool:
        """Whether the pending set itself made it."""
        table = self.find(name)
        return table is not None and table.fresh

    def column(self, name: Name, column: str) -> KnownColumn | None:
        """What is known of a column."""
        table = self.find(name)
        return table.columns.get(column) if table else None

    def type_fact(self, name: Name) -> KnownType | None:
        """What is known of a type of the project's own."""
        if name.schema is not None:
            return self.types.get(name)
        return next((f for s in self.search_path if (f := self.types.get(Name(s, name.name)))), None)

    def children(self, name: Name) -> list[KnownTable]:
        """Its partitions and inheriting tables, and theirs."""
        full, found = self.full(name), []
        for table in self.tables.values():
            if full in table.parents:
                found += [table, *self.children(table.name)]
        return found

    def referencing(self, name: Name) -> list[KnownTable]:
        """The tables with a foreign key to it."""
        full = self.full(name)
        return [
            t
            for t in self.tables.values()
            if t.name != full and any(k.references == full for k in t.foreign_keys.values())
        ]

    def views_of(self, name: Name, column: str | None = None) -> list[Name]:
        """The views over it, or over one column of it, and those over them."""
        table, found = self.find(name), []
        for view, of in sorted(table.viewed_by, key=str) if table else ():
            if (column is None or of == column) and view not in found:
                found += [view, *(v for v in self.views_of(view) if v not in found)]
        return found

    def users_of(self, type_name: Name) -> list[KnownTable]:
        """The tables with a column of that type."""
        fact = self.type_fact(type_name)
        return [
            t
            for t in self.tables.values()
            if any(c.type and fact is not None and self.type_fact(c.type.name) is fact for c in t.columns.values())
        ]

    def is_volatile(self, function: Name) -> bool:
        """Whether a function is, or may be, volatile."""
        known = self.functions.get(function.name)
        return known if known is not None else function.name not in NON_VOLATILE

    def volatile_in(self, expression: object) -> str | None:
        """The first function in an expression that is, or may be, volatile."""
        return next((name.name for name in ast.called(expression) if self.is_volatile(name)), None)

    # --- Learning ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What was made so far is in use from here on: the next file is another release."""
        for table in self.tables.values():
            table.fresh = False
            for column in table.columns.values():
                column.fresh = False
        for fact in self.types.values():
            fact.fresh = False
        self.fresh_functions.clear()
        self.fresh_schemas.clear()
        self.fresh_triggers.clear()
        self.end_transaction()

    def end_transaction(self) -> None:
        """What the transaction added can be used from here on."""
        for fact in self.types.values():
            fact.added.clear()
            fact.fresh_in_transaction = False

    def add(self, name: Name, kind: RelationKind = "table") -> KnownTable:
        """A relation that a statement makes."""
        full = Name(name.schema or (self.search_path[0] if self.search_path else "public"), name.name)
        table = KnownTable(full, kind, fresh=True, rows=0, size_bytes=0)
        self.tables[full] = table
        return table

    def add_column(self, table: KnownTable, definition: ast.Tree, *, fresh: bool) -> None:
        """A column as it is written, with its constraints."""
        written = ast.column_type(definition["typeName"]) if "typeName" in definition else None
        if written and (base := serial_base(written)):
            column = KnownColumn(base, not_null=True, fresh=fresh)
        else:
            column = KnownColumn(written, fresh=fresh)
        table.columns[definition["colname"]] = column
        for constraint in ast.constraints(definition):
            self.add_constraint(table, constraint, [definition["colname"]], validated_if_new=True)

    def add_constraint(
        self, table: KnownTable, constraint: ast.Tree, columns: list[str], *, validated_if_new: bool = False
    ) -> None:
        """A constraint of the table, or of the column that `columns` names."""
        kind, name = constraint["contype"], constraint.get("conname")
        valid = validated_if_new or not constraint.get("skip_validation", False)
        if kind in {"CONSTR_NOTNULL", "CONSTR_PRIMARY", "CONSTR_IDENTITY"}:
            for one in ast.strings(constraint.get("keys")) or columns:
                if one in table.columns and valid:
                    table.columns[one].not_null = True
        if kind in {"CONSTR_PRIMARY", "CONSTR_UNIQUE", "CONSTR_EXCLUSION"}:
            table.indexes += 1
            table.indexed |= set(ast.strings(constraint.get("keys")) or columns)
        if kind == "CONSTR_CHECK" and "raw_expr" in constraint:
            expression = constraint["raw_expr"]
            check = KnownCheck(frozenset(ast.column_names(expression)), ast.proves_not_null(expression), valid)
            table.checks[name or f"{table.name.name}_check{len(table.checks) or ''}"] = check
        if kind == "CONSTR_FOREIGN":
            names = frozenset(ast.strings(constraint.get("fk_attrs")) or columns)
            referenced = frozenset(ast.strings(constraint.get("pk_attrs")))
            key = KnownForeignKey(names, self.full(ast.relation(constraint["pktable"])), referenced, valid)
            table.foreign_keys[name or f"{table.name.name}_{'_'.join(sorted(names))}_fkey"] = key


def serial_base(written: Type) -> Type | None:
    """The integer type behind `serial` and its like."""
    base = _SERIAL.get(written.name.name) if written.name.schema is None else None
    return Type(Name("pg_catalog", base)) if base else None
