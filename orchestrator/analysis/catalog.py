"""What is known of a database at a statement: from the catalogue, and from the statements before it. Pure: no I/O.

`plan` starts from the live catalogue, `lint` from nothing; both let `Known.learn` follow the files. What a name means
is decided by the search path; what was never heard of is taken as there.
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 (a dataclass's field)
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from orchestrator.analysis import ast
from orchestrator.analysis.ast import Name, Type
from orchestrator.analysis.do_blocks import block_statements

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
class Column:
    """A column; `fresh` as for tables."""

    type: Type | None = None
    not_null: bool = False
    fresh: bool = False


@dataclass(slots=True)
class Check:
    """A CHECK: the columns it speaks of, and those that it shows to be not null."""

    columns: frozenset[str]
    not_null: frozenset[str]
    valid: bool = True


@dataclass(slots=True)
class ForeignKey:
    """A foreign key of one table to another."""

    columns: frozenset[str]
    references: Name
    referenced: frozenset[str] = frozenset()  # empty: its primary key
    valid: bool = True


@dataclass(slots=True)
class Table:
    """A relation. `fresh`: made by the same pending set, so that nobody uses it and it is as good as empty.

    `rows` and `size_bytes` are estimates, None where there is none. `on` is the table of an index.
    """

    name: Name
    kind: RelationKind = "table"
    fresh: bool = False
    rows: int | None = None
    size_bytes: int | None = None
    unlogged: bool = False
    columns: dict[str, Column] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    foreign_keys: dict[str, ForeignKey] = field(default_factory=dict)
    indexes: int = 0
    indexed: set[str] = field(default_factory=set)
    viewed_by: set[tuple[Name, str]] = field(default_factory=set)  # (view, column)
    on: Name | None = None
    parents: list[Name] = field(default_factory=list)
    tablespace: str = ""
    access_method: str = "heap"


@dataclass(slots=True)
class TypeFact:
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
    tables: dict[Name, Table] = field(default_factory=dict)
    types: dict[Name, TypeFact] = field(default_factory=dict)
    functions: dict[str, bool] = field(default_factory=dict)  # name → volatile
    fresh_functions: set[str] = field(default_factory=set)
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

    def find(self, name: Name) -> Table | None:
        """What is known of a relation."""
        return self.tables.get(self.full(name))

    def is_fresh(self, name: Name) -> bool:
        """Whether the pending set itself made it."""
        table = self.find(name)
        return table is not None and table.fresh

    def column(self, name: Name, column: str) -> Column | None:
        """What is known of a column."""
        table = self.find(name)
        return table.columns.get(column) if table else None

    def type_fact(self, name: Name) -> TypeFact | None:
        """What is known of a type of the project's own."""
        if name.schema is not None:
            return self.types.get(name)
        return next((f for s in self.search_path if (f := self.types.get(Name(s, name.name)))), None)

    def children(self, name: Name) -> list[Table]:
        """Its partitions and inheriting tables, and theirs."""
        full, found = self.full(name), []
        for table in self.tables.values():
            if full in table.parents:
                found += [table, *self.children(table.name)]
        return found

    def referencing(self, name: Name) -> list[Table]:
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

    def users_of(self, type_name: Name) -> list[Table]:
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

    def learn(self, node: str, fields: ast.Tree) -> None:
        """Follow a statement: what is there after it."""
        if learn := _LEARNERS.get(node):
            learn(self, fields)

    def _add(self, name: Name, kind: RelationKind = "table") -> Table:
        full = Name(name.schema or (self.search_path[0] if self.search_path else "public"), name.name)
        table = Table(full, kind, fresh=True, rows=0, size_bytes=0)
        self.tables[full] = table
        return table

    def _add_column(self, table: Table, definition: ast.Tree, *, fresh: bool) -> None:
        written = ast.column_type(definition["typeName"]) if "typeName" in definition else None
        if written and (base := serial_base(written)):
            column = Column(base, not_null=True, fresh=fresh)
        else:
            column = Column(written, fresh=fresh)
        table.columns[definition["colname"]] = column
        for constraint in ast.constraints(definition):
            self._add_constraint(table, constraint, [definition["colname"]], validated_if_new=True)

    def _add_constraint(
        self, table: Table, constraint: ast.Tree, columns: list[str], *, validated_if_new: bool = False
    ) -> None:
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
            check = Check(frozenset(ast.column_names(expression)), ast.proves_not_null(expression), valid)
            table.checks[name or f"{table.name.name}_check{len(table.checks) or ''}"] = check
        if kind == "CONSTR_FOREIGN":
            names = frozenset(ast.strings(constraint.get("fk_attrs")) or columns)
            referenced = frozenset(ast.strings(constraint.get("pk_attrs")))
            key = ForeignKey(names, self.full(ast.relation(constraint["pktable"])), referenced, valid)
            table.foreign_keys[name or f"{table.name.name}_{'_'.join(sorted(names))}_fkey"] = key


def serial_base(written: Type) -> Type | None:
    """The integer type behind `serial` and its like."""
    base = _SERIAL.get(written.name.name) if written.name.schema is None else None
    return Type(Name("pg_catalog", base)) if base else None


def _create_table(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["relation"])
    if fields.get("if_not_exists") and known.find(name) is not None:
        return
    table = known._add(name, "partitioned" if "partspec" in fields else "table")  # noqa: SLF001 (its own file)
    table.unlogged = fields["relation"].get("relpersistence") == "u"
    for definition in ast.columns(fields):
        known._add_column(table, definition, fresh=True)  # noqa: SLF001
    for constraint in ast.table_constraints(fields):
        known._add_constraint(table, constraint, [], validated_if_new=True)  # noqa: SLF001
    for parent in fields.get("inhRelations", ()):
        parent_name = known.full(ast.relation(parent["RangeVar"]))
        table.parents.append(parent_name)
        if above := known.find(parent_name):
            table.columns = {
                n: Column(c.type, c.not_null, fresh=True) for n, c in above.columns.items()
            } | table.columns


def _create_foreign_table(known: Known, fields: ast.Tree) -> None:
    known._add(ast.relation(fields["base"]["relation"]), "foreign table")  # noqa: SLF001


def _create_as(known: Known, fields: ast.Tree) -> None:
    kind: RelationKind = "materialized view" if fields.get("objtype") == "OBJECT_MATVIEW" else "table"
    known._add(ast.relation(fields["into"]["rel"]), kind)  # noqa: SLF001


def _select(known: Known, fields: ast.Tree) -> None:
    if "intoClause" in fields:
        known._add(ast.relation(fields["intoClause"]["rel"]))  # noqa: SLF001


def _create_view(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["view"])
    if known.find(name) is None:
        known._add(name, "view")  # noqa: SLF001


def _create_sequence(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["sequence"])
    if known.find(name) is None:
        known._add(name, "sequence")  # noqa: SLF001


def _create_index(known: Known, fields: ast.Tree) -> None:
    on = known.full(ast.relation(fields["relation"]))
    if table := known.find(on):
        table.indexes += 1
        table.indexed |= {e["IndexElem"]["name"] for e in fields.get("indexParams", ()) if "name" in e["IndexElem"]}
    if name := fields.get("idxname"):
        full = Name(on.schema, name)
        known.tables.setdefault(full, Table(full, "index", fresh=True, on=on))


def _create_statistics(known: Known, fields: ast.Tree) -> None:
    relations = [ast.relation(one["RangeVar"]) for one in fields.get("relations", ()) if "RangeVar" in one]
    if relations and "defnames" in fields:
        known.statistics[known.full(ast.qualified(ast.strings(fields["defnames"])))] = known.full(relations[0])


def _create_schema(known: Known, fields: ast.Tree) -> None:
    if name := fields.get("schemaname"):
        known.fresh_schemas.add(name)
    for element in fields.get("schemaElts", ()):
        known.learn(*ast.only(element))


def _created_type(known: Known, words: list[str], fact_kind: Literal["enum", "domain", "other"]) -> TypeFact:
    name = ast.qualified(words)
    full = Name(name.schema or (known.search_path[0] if known.search_path else "public"), name.name)
    fact = TypeFact(full, fact_kind, fresh=True, fresh_in_transaction=True)
    known.types[full] = fact
    return fact


def _create_enum(known: Known, fields: ast.Tree) -> None:
    _created_type(known, ast.strings(fields["typeName"]), "enum")


def _create_composite(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["typevar"])
    _created_type(known, [*([name.schema] if name.schema else []), name.name], "other")


def _create_domain(known: Known, fields: ast.Tree) -> None:
    fact = _created_type(known, ast.strings(fields["domainname"]), "domain")
    fact.base = ast.column_type(fields["typeName"])
    kinds = {c["contype"] for c in ast.constraints(fields)}
    fact.constrained = bool(kinds & {"CONSTR_CHECK", "CONSTR_NOTNULL"})


def _alter_domain(known: Known, fields: ast.Tree) -> None:
    fact = known.type_fact(ast.qualified(ast.strings(fields["typeName"])))
    if fact and fields["subtype"] in {"C", "O"}:
        fact.constrained = True


def _alter_enum(known: Known, fields: ast.Tree) -> None:
    name = ast.qualified(ast.strings(fields["typeName"]))
    fact = known.type_fact(name)
    if fact is None:
        full = Name(name.schema or (known.search_path[0] if known.search_path else "public"), name.name)
        fact = known.types.setdefault(full, TypeFact(full, "enum"))
    if "newVal" in fields and "oldVal" not in fields and not fact.fresh_in_transaction:
        fact.added.add(fields["newVal"])


def _create_function(known: Known, fields: ast.Tree) -> None:
    name = ast.strings(fields["funcname"])[-1]
    volatility = ast.option(fields.get("options"), "volatility")
    word = (volatility or {}).get("arg", {}).get("String", {}).get("sval", "volatile")
    known.functions[name] = word == "volatile"
    known.fresh_functions.add(name)


def _create_trigger(known: Known, fields: ast.Tree) -> None:
    known.fresh_triggers.add(fields["trigname"])


def _set(known: Known, fields: ast.Tree) -> None:
    if fields.get("name") == "search_path" and fields.get("kind") == "VAR_SET_VALUE":
        words = [a["A_Const"]["sval"].get("sval", "") for a in fields.get("args", ()) if "sval" in a.get("A_Const", {})]
        known.search_path = [word for word in words if word not in {"", "$user"}]


def _drop(known: Known, fields: ast.Tree) -> None:
    kind = fields["removeType"]
    for item in fields.get("objects", ()):
        words = ast.dropped_name(kind, item)
        if kind in _RELATIONS:
            full = known.full(ast.qualified(words))
            dropped = known.tables.pop(full, None)
            if dropped and dropped.on and (table := known.tables.get(dropped.on)):
                table.indexes -= 1
            if fields.get("behavior") == "DROP_CASCADE" and kind == "OBJECT_TABLE":
                for other in known.referencing(full):
                    other.foreign_keys = {n: k for n, k in other.foreign_keys.items() if k.references != full}
        elif kind in {"OBJECT_TYPE", "OBJECT_DOMAIN"}:
            fact = known.type_fact(ast.qualified(words))
            if fact:
                known.types.pop(fact.name, None)
        elif kind == "OBJECT_SCHEMA":
            known.tables = {n: t for n, t in known.tables.items() if n.schema != words[0]}
            known.types = {n: t for n, t in known.types.items() if n.schema != words[0]}


_RELATIONS = frozenset(
    {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_INDEX", "OBJECT_SEQUENCE", "OBJECT_FOREIGN_TABLE"}
)


def _do(known: Known, fields: ast.Tree) -> None:
    for one in block_statements(fields)[0]:
        known.learn(one.node, one.fields)


def _rename(known: Known, fields: ast.Tree) -> None:
    kind = fields["renameType"]
    if "relation" not in fields:
        if kind == "OBJECT_TYPE":
            fact = known.type_fact(ast.qualified(ast.strings(fields["object"].get("List", {}).get("items"))))
            if fact:
                known.types.pop(fact.name, None)
                fact.name = Name(fact.name.schema, fields["newname"])
                known.types[fact.name] = fact
        return
    table = known.find(ast.relation(fields["relation"]))
    if table is None:
        return
    new = fields["newname"]
    if kind == "OBJECT_COLUMN":
        column = table.columns.pop(fields["subname"], None)
        if column:
            table.columns[new] = column
    elif kind == "OBJECT_TABCONSTRAINT":
        for named in (table.checks, table.foreign_keys):
            if fields["subname"] in named:
                named[new] = named.pop(fields["subname"])  # type: ignore[assignment]
    elif kind in _RELATIONS:
        _moved(known, table, Name(table.name.schema, new))


def _moved(known: Known, table: Table, full: Name) -> None:
    old = table.name
    known.tables.pop(old, None)
    table.name = full
    known.tables[full] = table
    for other in known.tables.values():
        other.parents = [full if p == old else p for p in other.parents]
        other.on = full if other.on == old else other.on
        for key in other.foreign_keys.values():
            if key.references == old:
                key.references = full


def _set_schema(known: Known, fields: ast.Tree) -> None:
    if "relation" in fields and (table := known.find(ast.relation(fields["relation"]))):
        _moved(known, table, Name(fields["newschema"], table.name.name))


def _alter_table(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["relation"])
    table = known.find(name)
    if table is None:
        if known.live:
            return
        # Never heard of: it is there, made before the files that we see.
        full = known.full(name)
        table = known.tables.setdefault(full, Table(full))
    for command in ast.commands(fields):
        _alter(known, table, command)


def _alter(known: Known, table: Table, command: ast.Tree) -> None:
    kind, name = command["subtype"].removeprefix("AT_"), command.get("name", "")
    if change := _ALTERATIONS.get(kind):
        change(known, table, name, command.get("def", {}))


def _at_add_column(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del name
    if definition["ColumnDef"]["colname"] not in table.columns:
        known._add_column(table, definition["ColumnDef"], fresh=True)  # noqa: SLF001


def _at_drop_column(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.pop(name, None)
    table.checks = {n: c for n, c in table.checks.items() if name not in c.columns}
    table.foreign_keys = {n: k for n, k in table.foreign_keys.items() if name not in k.columns}


def _at_type(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known
    table.columns.setdefault(name, Column()).type = ast.column_type(definition["ColumnDef"]["typeName"])


def _at_set_not_null(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.setdefault(name, Column()).not_null = True


def _at_drop_not_null(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.setdefault(name, Column()).not_null = False


def _at_add_constraint(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del name
    known._add_constraint(table, definition["Constraint"], [])  # noqa: SLF001


def _at_validate(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known, definition
    for named in (table.checks.get(name), table.foreign_keys.get(name)):
        if named:
            named.valid = True


def _at_drop_constraint(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.checks.pop(name, None)
    table.foreign_keys.pop(name, None)


def _at_attach(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del name
    if child := known.find(ast.relation(definition["PartitionCmd"]["name"])):
        child.parents.append(table.name)


def _at_detach(known: Known, table: Table, name: str, definition: ast.Tree) -> None:
    del name
    if child := known.find(ast.relation(definition["PartitionCmd"]["name"])):
        child.parents = [parent for parent in child.parents if parent != table.name]


def _at_persistence(known: Known, table: Table, name: str, definition: ast.Tree, *, unlogged: bool) -> None:
    del known, name, definition
    table.unlogged = unlogged


_ALTERATIONS: dict[str, Callable[[Known, Table, str, ast.Tree], None]] = {
    "AddColumn": _at_add_column,
    "AddConstraint": _at_add_constraint,
    "AlterColumnType": _at_type,
    "AttachPartition": _at_attach,
    "DetachPartition": _at_detach,
    "DetachPartitionFinalize": _at_detach,
    "DropColumn": _at_drop_column,
    "DropConstraint": _at_drop_constraint,
    "DropNotNull": _at_drop_not_null,
    "SetLogged": partial(_at_persistence, unlogged=False),
    "SetNotNull": _at_set_not_null,
    "SetUnLogged": partial(_at_persistence, unlogged=True),
    "ValidateConstraint": _at_validate,
}


_LEARNERS: dict[str, Callable[[Known, ast.Tree], None]] = {
    "AlterDomainStmt": _alter_domain,
    "AlterEnumStmt": _alter_enum,
    "AlterObjectSchemaStmt": _set_schema,
    "AlterTableStmt": _alter_table,
    "CompositeTypeStmt": _create_composite,
    "CreateDomainStmt": _create_domain,
    "CreateEnumStmt": _create_enum,
    "CreateForeignTableStmt": _create_foreign_table,
    "CreateFunctionStmt": _create_function,
    "CreateSchemaStmt": _create_schema,
    "CreateSeqStmt": _create_sequence,
    "CreateStatsStmt": _create_statistics,
    "CreateStmt": _create_table,
    "CreateTableAsStmt": _create_as,
    "CreateTrigStmt": _create_trigger,
    "DoStmt": _do,
    "DropStmt": _drop,
    "IndexStmt": _create_index,
    "RenameStmt": _rename,
    "SelectStmt": _select,
    "VariableSetStmt": _set,
    "ViewStmt": _create_view,
}
