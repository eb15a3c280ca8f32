"""The names that a statement needs, makes and drops, each with its kind, as the grammar tells them. Pure: no I/O.

What only the running statement knows is not seen: the text of an EXECUTE, the body of a function that is called.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orchestrator.migrator.sql import parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Fields = dict[str, Any]
NameKind = Literal[
    "access method", "collation", "column", "constraint", "extension", "function", "operator class", "policy",
    "relation", "role", "schema", "setting", "trigger", "type", "value",
]  # fmt: skip


class Ref(NamedTuple):
    """A name in a statement. `of` is the relation or type that a column, constraint, trigger, policy or value is of.

    `offset` counts bytes from the statement's first token, None where the grammar does not say. `is_optional`: IF
    EXISTS, IF NOT EXISTS or OR REPLACE stands with it. `what` is its kind where the command says it more closely.
    """

    kind: NameKind
    name: str
    schema: str | None = None
    of: tuple[str | None, str] | None = None
    offset: int | None = None
    is_optional: bool = False
    what: str = ""

    @property
    def key(self) -> tuple[NameKind, str | None, str, tuple[str | None, str] | None]:
        """What makes it the same name."""
        return self.kind, self.schema, self.name, self.of


def needed(node: str, fields: _Fields) -> list[Ref]:
    """What a statement needs to be there, in no promised order; of a DO block what its statements need."""
    if node == "DoStmt":
        return [ref for inner, of in inner_statements(fields) for ref in needed(inner, of)]
    own = {cte["ctename"] for key, cte in _walk(fields) if key == "CommonTableExpr"}
    new = [id(one) for one in _new_relations(node, fields)]
    found = []
    for key, one in _walk(fields):
        if "relname" in one and id(one) not in new and not ("schemaname" not in one and one["relname"] in own):
            found.append(Ref("relation", one["relname"], one.get("schemaname"), offset=one.get("location")))
        elif "names" in one and "typemod" in one and not one.get("pct_type"):
            found += _type(one)
        elif key == "FuncCall" and one.get("funcformat") != "COERCE_SQL_SYNTAX":
            found += _qualified("function", one["funcname"], one.get("location"))
        elif one.get("roletype") == "ROLESPEC_CSTRING":
            found.append(Ref("role", one["rolename"], offset=one.get("location")))
        elif key == "IndexElem":
            found += _qualified("operator class", one.get("opclass", ()))
            found += _qualified("collation", one.get("collation", ()))
        elif key in {"CollateClause", "collClause"}:
            found += _qualified("collation", one["collname"], one.get("location"))
        elif key == "ColumnRef" and (words := _words(one["fields"])) and len(words) == len(one["fields"]):
            of = (None, words[-2]) if len(words) > 1 else None
            found.append(Ref("column", words[-1], of=of, offset=one.get("location")))
    found += _OF_NODE[node](fields) if node in _OF_NODE else []
    return [*found, *(Ref("schema", one.schema) for one in (*found, *made(node, fields)) if one.schema)]


def made(node: str, fields: _Fields) -> list[Ref]:
    """What a statement makes."""
    if node == "DoStmt":
        return [ref for inner, of in inner_statements(fields) for ref in made(inner, of)]
    optional = bool(fields.get("if_not_exists") or fields.get("replace") or fields.get("skipIfNewValExists"))
    found = [
        Ref("relation", one["relname"], one.get("schemaname"), is_optional=optional, what=_WHAT.get(node, ""))
        for one in _new_relations(node, fields)
    ]
    if node in _NAME_FIELDS:
        kind, field = _NAME_FIELDS[node]
        value = fields.get(field)
        if isinstance(value, str):
            table = fields.get("relation") or fields.get("table")
            of = _relation(table) if table else None
            found.append(Ref(kind, value, of=of, is_optional=optional))
        elif value:
            found += [one._replace(is_optional=optional) for one in _qualified(kind, value)]
    if node in {"CreateStmt", "AlterTableStmt"}:
        of = _relation(fields["relation"])
        found += [
            Ref("column", one["colname"], of=of, is_optional=missing_ok)
            for one, missing_ok in _new_columns(node, fields)
        ]
        found += [Ref("constraint", name, of=of) for name in _new_constraints(node, fields)]
    elif node == "IndexStmt" and "idxname" in fields:
        schema = fields["relation"].get("schemaname")
        found.append(Ref("relation", fields["idxname"], schema, is_optional=optional, what="index"))
    elif node == "AlterEnumStmt" and "oldVal" not in fields:
        found.append(Ref("value", fields["newVal"], of=_pair(fields["typeName"]), is_optional=optional))
    elif node == "RenameStmt":
        found += [one._replace(name=fields["newname"], is_optional=False) for one in _renamed(fields)]
    return found


def dropped(node: str, fields: _Fields) -> list[Ref]:
    """What a statement drops, or gives another name."""
    if node == "DoStmt":
        return [ref for inner, of in inner_statements(fields) for ref in dropped(inner, of)]
    if node == "DropStmt":
        return _dropped(fields)
    if node == "RenameStmt":
        return _renamed(fields)
    if node == "AlterTableStmt":
        kinds: dict[str, NameKind] = {"AT_DropColumn": "column", "AT_DropConstraint": "constraint"}
        of = _relation(fields["relation"])
        return [Ref(kinds[c["subtype"]], c["name"], of=of) for c in _commands(fields) if c["subtype"] in kinds]
    return []


def inner_statements(do: _Fields) -> Iterator[tuple[str, _Fields]]:
    """The statements that are written in a DO block in PL/pgSQL, whether or not they run."""
    written = [one["DefElem"]["arg"] for one in do.get("args", ()) if one["DefElem"]["defname"] == "as"]
    body = written[0].get("String", {}).get("sval", "") if written else ""
    if "$orchestrator$" in body:
        return
    try:
        block = parser.plpgsql(f"DO $orchestrator${body}$orchestrator$".encode())
    except parser.GrammarError:
        return
    for key, one in _walk(block):
        if key == "PLpgSQL_stmt_execsql":
            with contextlib.suppress(parser.GrammarError):
                yield from (
                    (p.node, p.fields()) for p in parser.parse(one["sqlstmt"]["PLpgSQL_expr"]["query"].encode())
                )


# --- By command ------------------------------------------------------------------------------------------------------

_WHAT = {
    "CreateForeignTableStmt": "foreign table",
    "CreateSeqStmt": "sequence",
    "CreateStmt": "table",
    "CreateTableAsStmt": "table",
    "ViewStmt": "view",
}
# Where a command keeps the name of what it makes.
_NAME_FIELDS: dict[str, tuple[NameKind, str]] = {
    "CreateDomainStmt": ("type", "domainname"),
    "CreateEnumStmt": ("type", "typeName"),
    "CreateExtensionStmt": ("extension", "extname"),
    "CreateFunctionStmt": ("function", "funcname"),
    "CreatePolicyStmt": ("policy", "policy_name"),
    "CreateRangeStmt": ("type", "typeName"),
    "CreateRoleStmt": ("role", "role"),
    "CreateSchemaStmt": ("schema", "schemaname"),
    "CreateTrigStmt": ("trigger", "trigname"),
}
_COLUMN_COMMANDS = frozenset(
    "AlterColumnType ColumnDefault DropColumn DropExpression DropIdentity DropNotNull SetExpression SetIdentity"  # noqa: SIM905 (readable)
    " SetNotNull SetOptions SetStatistics SetStorage SetCompression AddIdentity".split()
)
_CONSTRAINT_COMMANDS = frozenset({"AlterConstraint", "DropConstraint", "ValidateConstraint"})
_TRIGGER_COMMANDS = frozenset({"DisableTrig", "EnableAlwaysTrig", "EnableReplicaTrig", "EnableTrig"})
# DROP, COMMENT and RENAME: what kind of name it is, and what the command calls it.
_OBJECTS: dict[str, tuple[NameKind, str]] = {
    "OBJECT_AGGREGATE": ("function", "aggregate"),
    "OBJECT_COLLATION": ("collation", ""),
    "OBJECT_COLUMN": ("column", ""),
    "OBJECT_DOMAIN": ("type", "domain"),
    "OBJECT_EXTENSION": ("extension", ""),
    "OBJECT_FOREIGN_TABLE": ("relation", "foreign table"),
    "OBJECT_FUNCTION": ("function", ""),
    "OBJECT_INDEX": ("relation", "index"),
    "OBJECT_MATVIEW": ("relation", "materialized view"),
    "OBJECT_POLICY": ("policy", ""),
    "OBJECT_PROCEDURE": ("function", "procedure"),
    "OBJECT_ROLE": ("role", ""),
    "OBJECT_SCHEMA": ("schema", ""),
    "OBJECT_SEQUENCE": ("relation", "sequence"),
    "OBJECT_TABCONSTRAINT": ("constraint", ""),
    "OBJECT_TABLE": ("relation", "table"),
    "OBJECT_TRIGGER": ("trigger", ""),
    "OBJECT_TYPE": ("type", ""),
    "OBJECT_VIEW": ("relation", "view"),
}
_OF_A_TABLE = frozenset({"OBJECT_COLUMN", "OBJECT_POLICY", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER"})


def _of_index(fields: _Fields) -> list[Ref]:
    of = _relation(fields["relation"])
    elements = [e["IndexElem"] for k in ("indexParams", "indexIncludingParams") for e in fields.get(k, ())]
    found = [Ref("column", e["name"], of=of) for e in elements if "name" in e]
    return [*found, Ref("access method", fields.get("accessMethod", "btree"))]


def _of_enum(fields: _Fields) -> list[Ref]:
    schema, name = pair = _pair(fields["typeName"])
    values = [Ref("value", fields[key], of=pair) for key in ("oldVal", "newValNeighbor") if key in fields]
    return [Ref("type", name, schema), *values]


def _of_setting(fields: _Fields) -> list[Ref]:
    setting = fields.get("setstmt", fields).get("name")
    return [Ref("setting", setting)] if setting else []


def _of_insert(fields: _Fields) -> list[Ref]:
    of = _relation(fields["relation"]) if "relation" in fields else None
    named = fields.get("onConflictClause", {}).get("infer", {}).get("conname")
    constraint = [Ref("constraint", named, of=of)] if named else []
    return [*_targets(fields.get("cols", ()), of), *constraint]


def _of_update(fields: _Fields) -> list[Ref]:
    return _targets(fields.get("targetList", ()), _relation(fields["relation"]))


def _targets(targets: Sequence[_Fields], of: tuple[str | None, str] | None) -> list[Ref]:
    named = [one["ResTarget"] for one in targets if "name" in one.get("ResTarget", {})]
    return [Ref("column", one["name"], of=of, offset=one.get("location")) for one in named]


def _of_rename(fields: _Fields) -> list[Ref]:
    return [one._replace(is_optional=bool(fields.get("missing_ok"))) for one in _renamed(fields)]


def _of_commands(fields: _Fields) -> list[Ref]:
    of, found = _relation(fields["relation"]), list[Ref]()
    for command in _commands(fields):
        kind, name = command["subtype"].removeprefix("AT_"), command.get("name", "")
        optional = bool(command.get("missing_ok"))
        if kind in _COLUMN_COMMANDS and name:
            found.append(Ref("column", name, of=of, is_optional=optional))
        elif kind in _CONSTRAINT_COMMANDS:
            found.append(Ref("constraint", name, of=of, is_optional=optional))
        elif kind in _TRIGGER_COMMANDS:
            found.append(Ref("trigger", name, of=of))
        elif kind == "AddConstraint":
            constraint = command["def"]["Constraint"]
            found += [Ref("column", one, of=of) for k in ("keys", "fk_attrs") for one in _words(constraint.get(k, ()))]
            if "pktable" in constraint:
                to = _relation(constraint["pktable"])
                found += [Ref("column", one, of=to) for one in _words(constraint.get("pk_attrs", ()))]
            if "indexname" in constraint:
                found.append(Ref("relation", constraint["indexname"], of[0], what="index"))
    if fields.get("missing_ok"):
        found = [one._replace(is_optional=True) for one in found]
    return found


def _dropped(fields: _Fields) -> list[Ref]:
    kind_name = fields.get("removeType") or fields.get("objtype", "")
    if kind_name not in _OBJECTS:
        return []
    kind, what = _OBJECTS[kind_name]
    optional = bool(fields.get("missing_ok"))
    found = []
    for item in fields.get("objects") or [fields.get("object", {})]:
        words = _item_words(item)
        if not words:
            continue
        if kind_name in _OF_A_TABLE:
            of = (words[-3] if len(words) > 2 else None, words[-2]) if len(words) > 1 else None  # noqa: PLR2004
            found.append(Ref(kind, words[-1], of=of, is_optional=optional, what=what))
            found += [Ref("relation", of[1], of[0], is_optional=optional)] if of else []
        else:
            schema = words[-2] if len(words) > 1 else None
            found.append(Ref(kind, words[-1], schema, is_optional=optional, what=what))
    return found


def _renamed(fields: _Fields) -> list[Ref]:
    kind_name = fields["renameType"]
    if kind_name not in _OBJECTS:
        return []
    kind, what = _OBJECTS[kind_name]
    if kind_name in _OF_A_TABLE and "relation" in fields:
        return [Ref(kind, fields["subname"], of=_relation(fields["relation"]))]
    if "relation" in fields:
        schema, name = _relation(fields["relation"])
        return [Ref(kind, name, schema, what=what)]
    words = _item_words(fields["object"]) if "object" in fields else [fields.get("subname", "")]
    return [Ref(kind, words[-1], words[-2] if len(words) > 1 else None, what=what)] if words and words[-1] else []


def _item_words(item: _Fields) -> list[str]:
    for name, one in item.items():
        if name == "List":
            return _words(one.get("items", ()))
        if name == "String":
            return [one.get("sval", "")]
        return _words(one.get("names") or one.get("objname") or ())
    return []


def _new_relations(node: str, fields: _Fields) -> list[_Fields]:
    """The RangeVars that name what the statement makes, not what it needs."""
    into = fields.get("into", {}) if node == "CreateTableAsStmt" else fields.get("intoClause", {})
    of_node = {
        "CreateForeignTableStmt": fields.get("base", {}).get("relation"),
        "CreateSeqStmt": fields.get("sequence"),
        "CreateStmt": fields.get("relation"),
        "CreateTableAsStmt": into.get("rel"),
        "SelectStmt": into.get("rel"),
        "ViewStmt": fields.get("view"),
    }.get(node)
    if node == "CompositeTypeStmt":
        return [fields["typevar"]]
    return [of_node] if of_node else []


def _new_columns(node: str, fields: _Fields) -> Iterator[tuple[_Fields, bool]]:
    if node == "CreateStmt":
        yield from ((e["ColumnDef"], False) for e in fields.get("tableElts", ()) if "ColumnDef" in e)
    for command in _commands(fields):
        if command["subtype"] == "AT_AddColumn":
            yield command["def"]["ColumnDef"], bool(command.get("missing_ok"))


def _new_constraints(node: str, fields: _Fields) -> Iterator[str]:
    if node == "CreateStmt":
        for element in fields.get("tableElts", ()):
            if name := element.get("Constraint", {}).get("conname"):
                yield name
    for command in _commands(fields):
        if command["subtype"] == "AT_AddConstraint" and (name := command["def"]["Constraint"].get("conname")):
            yield name


# What stands in fields of a command's own.
_OF_NODE: dict[str, Callable[[_Fields], list[Ref]]] = {
    "AlterDatabaseSetStmt": _of_setting,
    "AlterDomainStmt": lambda f: _qualified("type", f["typeName"]),
    "AlterEnumStmt": _of_enum,
    "AlterExtensionContentsStmt": lambda f: [Ref("extension", f["extname"])],
    "AlterExtensionStmt": lambda f: [Ref("extension", f["extname"])],
    "AlterRoleSetStmt": _of_setting,
    "AlterSystemStmt": _of_setting,
    "AlterTableStmt": _of_commands,
    "AlterTypeStmt": lambda f: _qualified("type", f["typeName"]),
    "CommentStmt": _dropped,
    "CreateTrigStmt": lambda f: _qualified("function", f["funcname"]),
    "DropStmt": _dropped,
    "IndexStmt": _of_index,
    "InsertStmt": _of_insert,
    "RenameStmt": _of_rename,
    "UpdateStmt": _of_update,
    "VariableSetStmt": _of_setting,
}

# --- Reading trees ---------------------------------------------------------------------------------------------------


def _walk(tree: Any) -> Iterator[tuple[str, _Fields]]:
    """Every dict inside with the key that it stands under, in the order of the text as far as trees keep it."""
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        key, at = pending.pop()
        if isinstance(at, list):
            pending += [(key, one) for one in reversed(at)]
        elif isinstance(at, dict):
            yield key, at
            pending += [(k, v) for k, v in reversed(at.items()) if isinstance(v, dict | list)]


def _words(parts: Sequence[_Fields]) -> list[str]:
    return [part["String"].get("sval", "") for part in parts if "String" in part]


def _pair(parts: Sequence[_Fields]) -> tuple[str | None, str]:
    words = _words(parts)
    return (words[-2] if len(words) > 1 else None), words[-1]


def _qualified(kind: NameKind, parts: Sequence[_Fields], offset: int | None = None) -> list[Ref]:
    if not _words(parts):
        return []
    schema, name = _pair(parts)
    return [Ref(kind, name, schema, offset=offset)]


def _relation(range_var: _Fields) -> tuple[str | None, str]:
    return range_var.get("schemaname"), range_var["relname"]


def _commands(fields: _Fields) -> list[_Fields]:
    return [command["AlterTableCmd"] for command in fields.get("cmds", ())]


_SERIAL = frozenset({"smallserial", "serial", "bigserial", "serial2", "serial4", "serial8"})


def _type(type_name: _Fields) -> list[Ref]:
    found = _qualified("type", type_name["names"], type_name.get("location"))
    return [one for one in found if not (one.schema is None and one.name in _SERIAL)]
