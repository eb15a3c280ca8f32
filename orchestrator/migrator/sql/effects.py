"""Which statements leave nothing behind when they are rolled back. Pure: no I/O.

Most of what a statement does is undone with its transaction, and some is not: a number that was drawn from a sequence,
and whatever a function does that the statement calls. Where a first try may be thrown away for the sake of speed, only
statements that change the catalogue and compute nothing that others have written may be in it. What is not known here
counts as leaving something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Fields = dict[str, Any]

# Functions of PostgreSQL's own that defaults, checks and indexes call, and that do nothing but compute.
_QUIET_FUNCTIONS = frozenset(
    "btrim char_length clock_timestamp concat date_trunc gen_random_uuid jsonb_build_array jsonb_build_object length"  # noqa: SIM905 (readable)
    " lower md5 now round statement_timestamp timezone to_tsvector transaction_timestamp upper".split()
)
# Types that are no keywords of the grammar; those that are stand in pg_catalog already. A domain can have a default.
_KNOWN_TYPES = frozenset(
    "bool bytea cidr date float4 float8 inet int2 int4 int8 json jsonb text timestamptz tsvector uuid xml".split()  # noqa: SIM905 (readable)
)
_QUIET_NODES = frozenset(
    "A_ArrayExpr A_Const A_Expr BoolExpr BooleanTest CaseExpr CaseWhen CoalesceExpr CollateClause ColumnRef List"  # noqa: SIM905 (readable)
    " MinMaxExpr NullTest SQLValueFunction TypeCast String Integer Float Boolean TypeName".split()
)
_CONSTRAINTS = frozenset(
    "CHECK DEFAULT FOREIGN GENERATED NOTNULL NULL PRIMARY UNIQUE ATTR_DEFERRABLE ATTR_DEFERRED ATTR_IMMEDIATE"  # noqa: SIM905 (readable)
    " ATTR_NOT_DEFERRABLE".split()
)
_ALTERATIONS = frozenset(
    "AddColumn AddConstraint AlterColumnType AttachPartition ChangeOwner ColumnDefault DisableRowSecurity DropColumn"  # noqa: SIM905 (readable)
    " DropConstraint DropExpression DropIdentity DropNotNull EnableRowSecurity ForceRowSecurity NoForceRowSecurity"
    " ReplicaIdentity SetNotNull SetOptions SetRelOptions SetStatistics SetStorage".split()
)


def leaves_nothing(node: str, fields: _Fields) -> bool:
    """Whether a roll back undoes all that the statement does; `node` and `fields` are its tree's."""
    judge = _JUDGES.get(node)
    return judge is not None and judge(fields)


def _is_quiet(tree: Any) -> bool:
    """Whether an expression calls nothing but what is known to compute."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            for name, value in node.items():
                if name == "FuncCall":
                    *schema, function = [part["String"].get("sval", "") for part in value["funcname"]]
                    if function not in _QUIET_FUNCTIONS or schema not in ([], ["pg_catalog"]):
                        return False
                elif name[0].isupper() and name not in _QUIET_NODES:
                    return False
                pending.append(value)
    return True


def _is_known_type(type_name: _Fields) -> bool:
    *schema, name = [part["String"].get("sval", "") for part in type_name["names"]]
    return schema == ["pg_catalog"] or (not schema and name in _KNOWN_TYPES)


def _constraints_are_quiet(constraints: Iterable[_Fields]) -> bool:
    return all(
        one["Constraint"]["contype"].removeprefix("CONSTR_") in _CONSTRAINTS
        and _is_quiet(one["Constraint"].get("raw_expr"))
        for one in constraints
    )


def _column_is_quiet(column: _Fields) -> bool:
    """ADD COLUMN: its default is computed for the rows that are there."""
    constraints = column.get("constraints", ())
    has_default = any(c["Constraint"]["contype"] == "CONSTR_DEFAULT" for c in constraints)
    names = [part["String"].get("sval", "") for part in column["typeName"]["names"]]
    return (
        _constraints_are_quiet(constraints)
        and names[-1] not in {"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"}
        and (has_default or _is_known_type(column["typeName"]))
    )


def _alteration_is_quiet(command: _Fields) -> bool:
    kind = command["subtype"].removeprefix("AT_")
    definition = command.get("def", {})
    if kind not in _ALTERATIONS:
        return False
    if kind == "AddColumn":
        return _column_is_quiet(definition["ColumnDef"])
    if kind == "AddConstraint":
        return _constraints_are_quiet([definition])
    if kind == "AlterColumnType":
        column = definition["ColumnDef"]
        return _is_known_type(column["typeName"]) and _is_quiet(column.get("raw_default"))
    return not definition.get("PartitionCmd", {}).get("concurrent")


def _index_is_quiet(fields: _Fields) -> bool:
    parts = [*fields.get("indexParams", ()), *fields.get("indexIncludingParams", ())]
    return (
        not fields.get("concurrent")
        and all(_is_quiet(part["IndexElem"].get("expr")) for part in parts)
        and _is_quiet(fields.get("whereClause"))
    )


def _lasts(relation: _Fields) -> bool:
    """A temporary object is left to the session."""
    return relation.get("relpersistence") != "t" and relation.get("schemaname") != "pg_temp"


def _function_is_quiet(fields: _Fields) -> bool:
    """Checkers of other languages may run what they check."""
    for option in fields.get("options", ()):
        element = option["DefElem"]
        if element["defname"] == "language" and element["arg"]["String"]["sval"].lower() not in {"sql", "plpgsql"}:
            return False
    return True


def _always(_: _Fields) -> bool:
    return True


_JUDGES: dict[str, Callable[[_Fields], bool]] = {
    "AlterDefaultPrivilegesStmt": _always,
    "AlterEnumStmt": _always,
    "AlterObjectSchemaStmt": _always,
    "AlterOwnerStmt": _always,
    "AlterPolicyStmt": _always,
    "AlterTableStmt": lambda f: all(_alteration_is_quiet(c["AlterTableCmd"]) for c in f.get("cmds", ())),
    "CommentStmt": _always,
    "CompositeTypeStmt": lambda f: _lasts(f["typevar"]),
    "CreateDomainStmt": _always,
    "CreateEnumStmt": _always,
    "CreateFunctionStmt": _function_is_quiet,
    "CreatePolicyStmt": _always,
    "CreateSchemaStmt": lambda f: not f.get("schemaElts"),
    "CreateSeqStmt": lambda f: _lasts(f["sequence"]),
    "CreateStmt": lambda f: _lasts(f["relation"]),
    "CreateTrigStmt": _always,
    "DropStmt": lambda f: not f.get("concurrent"),
    "GrantStmt": _always,
    "IndexStmt": _index_is_quiet,
    "RenameStmt": _always,
    "RuleStmt": _always,
    "ViewStmt": lambda f: _lasts(f["view"]),
}
