"""What a statement makes, changes and drops, followed in what is known of the database. Pure: no I/O."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from orchestrator.analysis import ast
from orchestrator.analysis.ast import Name
from orchestrator.analysis.catalog import Known, KnownColumn, KnownTable, KnownType, RelationKind
from orchestrator.analysis.do_blocks import block_statements

if TYPE_CHECKING:
    from collections.abc import Callable


def follow(known: Known, node: str, fields: ast.Tree) -> None:
    """Change `known` to what is there after the statement."""
    if learn := _LEARNERS.get(node):
        learn(known, fields)


def _create_table(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["relation"])
    if fields.get("if_not_exists") and known.find(name) is not None:
        return
    table = known.add(name, "partitioned" if "partspec" in fields else "table")
    table.unlogged = fields["relation"].get("relpersistence") == "u"
    for definition in ast.columns(fields):
        known.add_column(table, definition, fresh=True)
    for constraint in ast.table_constraints(fields):
        known.add_constraint(table, constraint, [], validated_if_new=True)
    for parent in fields.get("inhRelations", ()):
        parent_name = known.full(ast.relation(parent["RangeVar"]))
        table.parents.append(parent_name)
        if above := known.find(parent_name):
            table.columns = {
                n: KnownColumn(c.type, c.not_null, fresh=True) for n, c in above.columns.items()
            } | table.columns


def _create_foreign_table(known: Known, fields: ast.Tree) -> None:
    known.add(ast.relation(fields["base"]["relation"]), "foreign table")


def _create_as(known: Known, fields: ast.Tree) -> None:
    kind: RelationKind = "materialized view" if fields.get("objtype") == "OBJECT_MATVIEW" else "table"
    known.add(ast.relation(fields["into"]["rel"]), kind)


def _select(known: Known, fields: ast.Tree) -> None:
    if "intoClause" in fields:
        known.add(ast.relation(fields["intoClause"]["rel"]))


def _create_view(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["view"])
    if known.find(name) is None:
        known.add(name, "view")


def _create_sequence(known: Known, fields: ast.Tree) -> None:
    name = ast.relation(fields["sequence"])
    if known.find(name) is None:
        known.add(name, "sequence")


def _create_index(known: Known, fields: ast.Tree) -> None:
    on = known.full(ast.relation(fields["relation"]))
    if table := known.find(on):
        table.indexes += 1
        table.indexed |= {e["IndexElem"]["name"] for e in fields.get("indexParams", ()) if "name" in e["IndexElem"]}
    if name := fields.get("idxname"):
        full = Name(on.schema, name)
        known.tables.setdefault(full, KnownTable(full, "index", fresh=True, on=on))


def _create_statistics(known: Known, fields: ast.Tree) -> None:
    relations = [ast.relation(one["RangeVar"]) for one in fields.get("relations", ()) if "RangeVar" in one]
    if relations and "defnames" in fields:
        known.statistics[known.full(ast.qualified(ast.strings(fields["defnames"])))] = known.full(relations[0])


def _create_schema(known: Known, fields: ast.Tree) -> None:
    if name := fields.get("schemaname"):
        known.fresh_schemas.add(name)
    for element in fields.get("schemaElts", ()):
        follow(known, *ast.only(element))


def _created_type(known: Known, words: list[str], fact_kind: Literal["enum", "domain", "other"]) -> KnownType:
    name = ast.qualified(words)
    full = Name(name.schema or (known.search_path[0] if known.search_path else "public"), name.name)
    fact = KnownType(full, fact_kind, fresh=True, fresh_in_transaction=True)
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
        fact = known.types.setdefault(full, KnownType(full, "enum"))
    if "newVal" in fields and "oldVal" not in fields and not fact.fresh_in_transaction:
        fact.added.add(fields["newVal"])


def _create_function(known: Known, fields: ast.Tree) -> None:
    name = ast.strings(fields["funcname"])[-1]
    volatility = ast.option(fields.get("options"), "volatility")
    word = (volatility or {}).get("arg", {}).get("String", {}).get("sval", "volatile")
    known.functions[name] = word == "volatile"
    known.fresh_functions.add(name)
    if ast.strings(fields.get("returnType", {}).get("names"))[-1:] in (["trigger"], ["event_trigger"]):
        known.trigger_functions.add(name)


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
        follow(known, one.node, one.fields)


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


def _moved(known: Known, table: KnownTable, full: Name) -> None:
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
        table = known.tables.setdefault(full, KnownTable(full))
    for command in ast.commands(fields):
        _alter(known, table, command)


def _alter(known: Known, table: KnownTable, command: ast.Tree) -> None:
    kind, name = command["subtype"].removeprefix("AT_"), command.get("name", "")
    if change := _ALTERATIONS.get(kind):
        change(known, table, name, command.get("def", {}))


def _at_add_column(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del name
    if definition["ColumnDef"]["colname"] not in table.columns:
        known.add_column(table, definition["ColumnDef"], fresh=True)


def _at_drop_column(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.pop(name, None)
    table.checks = {n: c for n, c in table.checks.items() if name not in c.columns}
    table.foreign_keys = {n: k for n, k in table.foreign_keys.items() if name not in k.columns}


def _at_type(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known
    table.columns.setdefault(name, KnownColumn()).type = ast.column_type(definition["ColumnDef"]["typeName"])


def _at_set_not_null(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.setdefault(name, KnownColumn()).not_null = True


def _at_drop_not_null(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.columns.setdefault(name, KnownColumn()).not_null = False


def _at_add_constraint(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del name
    known.add_constraint(table, definition["Constraint"], [])


def _at_validate(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known, definition
    for named in (table.checks.get(name), table.foreign_keys.get(name)):
        if named:
            named.valid = True


def _at_drop_constraint(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del known, definition
    table.checks.pop(name, None)
    table.foreign_keys.pop(name, None)


def _at_attach(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del name
    if child := known.find(ast.relation(definition["PartitionCmd"]["name"])):
        child.parents.append(table.name)


def _at_detach(known: Known, table: KnownTable, name: str, definition: ast.Tree) -> None:
    del name
    if child := known.find(ast.relation(definition["PartitionCmd"]["name"])):
        child.parents = [parent for parent in child.parents if parent != table.name]


def _at_persistence(known: Known, table: KnownTable, name: str, definition: ast.Tree, *, unlogged: bool) -> None:
    del known, name, definition
    table.unlogged = unlogged


_ALTERATIONS: dict[str, Callable[[Known, KnownTable, str, ast.Tree], None]] = {
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
