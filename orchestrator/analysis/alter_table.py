"""What ALTER TABLE does to tables in use, subcommand by subcommand. Pure: no I/O.

The rules are PostgreSQL 18's: `AlterTableGetLockLevel` and `ATExec…` (tablecmds.c).
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 (a value of a table)
from typing import TYPE_CHECKING

from orchestrator.analysis import ast
from orchestrator.analysis.ast import Name, Tree
from orchestrator.analysis.catalog import VOLATILE, serial_base
from orchestrator.analysis.impact_draft import ImpactDraft, referenced_by
from orchestrator.analysis.locks import Cause, Lock, Work
from orchestrator.analysis.type_change import keeps_index, type_change_rewrites

if TYPE_CHECKING:
    from orchestrator.analysis.catalog import Known

# AlterTableGetLockLevel; what is not here takes ACCESS EXCLUSIVE.
_SUBCOMMAND_LOCKS = {
    "SetStatistics": Lock.SHARE_UPDATE_EXCLUSIVE,
    "ClusterOn": Lock.SHARE_UPDATE_EXCLUSIVE,
    "DropCluster": Lock.SHARE_UPDATE_EXCLUSIVE,
    "SetOptions": Lock.SHARE_UPDATE_EXCLUSIVE,
    "ResetOptions": Lock.SHARE_UPDATE_EXCLUSIVE,
    "ValidateConstraint": Lock.SHARE_UPDATE_EXCLUSIVE,
    "AttachPartition": Lock.SHARE_UPDATE_EXCLUSIVE,
    "DetachPartitionFinalize": Lock.SHARE_UPDATE_EXCLUSIVE,
    "EnableTrig": Lock.SHARE_ROW_EXCLUSIVE,
    "EnableAlwaysTrig": Lock.SHARE_ROW_EXCLUSIVE,
    "EnableReplicaTrig": Lock.SHARE_ROW_EXCLUSIVE,
    "EnableTrigAll": Lock.SHARE_ROW_EXCLUSIVE,
    "EnableTrigUser": Lock.SHARE_ROW_EXCLUSIVE,
    "DisableTrig": Lock.SHARE_ROW_EXCLUSIVE,
    "DisableTrigAll": Lock.SHARE_ROW_EXCLUSIVE,
    "DisableTrigUser": Lock.SHARE_ROW_EXCLUSIVE,
}
# reloptions.c: the storage parameters whose lock is ACCESS EXCLUSIVE; the others' is SHARE UPDATE EXCLUSIVE.
_STRONG_OPTIONS = frozenset(
    {"user_catalog_table", "fastupdate", "gin_pending_list_limit", "buffering", "pages_per_range", "autosummarize"}
    | {"security_barrier", "security_invoker", "check_option"}
)


def _subcommand_lock(command: Tree) -> Lock:
    """The lock that one subcommand of ALTER TABLE takes on its table (AlterTableGetLockLevel)."""
    kind, definition = command["subtype"].removeprefix("AT_"), command.get("def", {})
    if kind in {"SetRelOptions", "ResetRelOptions"}:
        names = {o["DefElem"]["defname"] for o in definition.get("List", {}).get("items", ())}
        return Lock.ACCESS_EXCLUSIVE if names & _STRONG_OPTIONS else Lock.SHARE_UPDATE_EXCLUSIVE
    if kind == "AddConstraint" and definition["Constraint"]["contype"] == "CONSTR_FOREIGN":
        return Lock.SHARE_ROW_EXCLUSIVE
    if kind == "DetachPartition" and definition["PartitionCmd"].get("concurrent"):
        return Lock.SHARE_UPDATE_EXCLUSIVE
    return _SUBCOMMAND_LOCKS.get(kind, Lock.ACCESS_EXCLUSIVE)


def alter_table(found: ImpactDraft, fields: Tree) -> None:
    """Add the impact of all subcommands. ALTER INDEX and ALTER TYPE of a composite type are the same node."""
    name, commands = ast.relation(fields["relation"]), ast.commands(fields)
    if fields["objtype"] == "OBJECT_TYPE":
        for table in found.known.users_of(name):
            found.tree(table.name, Lock.ACCESS_EXCLUSIVE)
        return
    if fields.get("missing_ok") and found.known.live and found.known.find(name) is None:
        found.notes.append(f"{name} does not exist: nothing is done")
        return
    if not commands:
        return
    inherit = bool(fields["relation"].get("inh"))
    lock = max(_subcommand_lock(command) for command in commands)
    if fields["objtype"] == "OBJECT_INDEX":
        _alter_index(found, name, lock, commands)
        return
    # What concerns this one relation and no child of it is not handed on (ATPrepCmd, ATSimpleRecursion).
    recurses = inherit and any(c["subtype"].removeprefix("AT_") not in _ALONE for c in commands)
    found.tree(name, lock, inherit=recurses)
    for command in commands:
        if handle := _SUBCOMMANDS.get(command["subtype"].removeprefix("AT_")):
            handle(found, name, command, inherit)


_ALONE = frozenset(
    {"ChangeOwner", "ClusterOn", "DropCluster", "SetLogged", "SetUnLogged", "SetAccessMethod", "SetTableSpace"}
    | {"SetRelOptions", "ResetRelOptions", "ReplicaIdentity", "AddInherit", "DropInherit", "AddOf", "DropOf"}
    | {"EnableRowSecurity", "DisableRowSecurity", "ForceRowSecurity", "NoForceRowSecurity", "GenericOptions"}
    | {"AttachPartition", "DetachPartition", "DetachPartitionFinalize", "SetCompression"}
    | {"EnableRule", "EnableAlwaysRule", "EnableReplicaRule", "DisableRule"}
    | {"AddIdentity", "SetIdentity", "DropIdentity"}
)


def _alter_index(found: ImpactDraft, name: Name, lock: Lock, commands: list[Tree]) -> None:
    moves = any(c["subtype"] == "AT_SetTableSpace" for c in commands)
    works = (Work("rewrites", Cause.STORAGE, "SET TABLESPACE copies it"),) if moves else ()
    found.touch(name, lock, *works, kind="index")
    for command in commands:
        if command["subtype"] == "AT_AttachPartition":
            found.touch(ast.relation(command["def"]["PartitionCmd"]["name"]), Lock.ACCESS_EXCLUSIVE, kind="index")


def _add_column(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001 (the handlers' form)
    definition = command["def"]["ColumnDef"]
    column, place = definition["colname"], ast.offset(definition)
    if command.get("missing_ok") and found.known.column(name, column) is not None:
        found.notes.append(f"{name}.{column} is there: nothing is done")
        return
    constraints = ast.constraints(definition)
    kinds = {constraint["contype"] for constraint in constraints}
    defaults = [c["raw_expr"] for c in constraints if c["contype"] == "CONSTR_DEFAULT"]
    for constraint in constraints:
        kind = constraint["contype"]
        if kind in {"CONSTR_PRIMARY", "CONSTR_UNIQUE"}:
            words = f"{'UNIQUE' if kind == 'CONSTR_UNIQUE' else 'PRIMARY KEY'} on {column}"
            work = Work("builds", Cause.INDEX, words, ast.offset(constraint) or place)
            found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
        elif kind == "CONSTR_CHECK" and constraint.get("is_enforced", True):
            words = f"the CHECK on {column} is tested on each row"
            work = Work("scans", Cause.CHECK, words, ast.offset(constraint) or place)
            found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
        elif kind == "CONSTR_FOREIGN":
            # parse_utilcmd.c: a new column without a default is null everywhere, and needs no validation.
            _foreign_key(found, name, constraint, validates=bool(defaults))
    if reason := _added_column_rewrites(definition, found.known):
        found.tree(name, Lock.ACCESS_EXCLUSIVE, Work("rewrites", Cause.NEW_VALUES, reason, place), inherit=inherit)
        found.rebuild_indexes(name, inherit=inherit)
    is_computed = bool(kinds & {"CONSTR_GENERATED", "CONSTR_IDENTITY"})
    is_filled = is_computed or serial_base(ast.column_type(definition["typeName"])) is not None
    if kinds & {"CONSTR_NOTNULL", "CONSTR_PRIMARY"} and not is_filled and all(map(_is_null, defaults)):
        words = f"{column} is NOT NULL and has no default: it fails where the table has a row"
        found.tree(name, Lock.ACCESS_EXCLUSIVE, Work("scans", Cause.REQUIRED, words, place), inherit=inherit)
    elif "CONSTR_NOTNULL" in kinds and is_computed and not reason:
        words = f"each row's {column} is computed and tested"
        found.tree(name, Lock.ACCESS_EXCLUSIVE, Work("scans", Cause.NOT_NULL, words, place), inherit=inherit)
    # With a constant default, which the catalogue keeps, no row needs a look (ATExecAddColumn, PG 11).


def _added_column_rewrites(definition: Tree, known: Known) -> str:
    """Why ADD COLUMN rewrites the table; empty where the catalogue can keep the one value (ATExecAddColumn)."""
    written = ast.column_type(definition["typeName"])
    fact = known.type_fact(written.name)
    if serial_base(written):
        return "serial gives each row a number"
    if fact and fact.kind == "domain" and fact.constrained:
        return f"each row is tested against the domain {fact.name}"
    for constraint in ast.constraints(definition):
        kind = constraint["contype"]
        if kind == "CONSTR_DEFAULT" and (volatile := known.volatile_in(constraint["raw_expr"])):
            may = "is" if known.functions.get(volatile) or volatile in VOLATILE else "may be"
            return f"the default calls {volatile}(), which {may} volatile: each row gets its own value"
        if kind == "CONSTR_GENERATED" and constraint.get("generated_kind", "s") == "s":
            return "a stored generated column is computed for each row"
        if kind == "CONSTR_IDENTITY":
            return "an identity column gives each row a number"
    return ""


def _is_null(expression: Tree) -> bool:
    kind, fields = ast.only(expression)
    if kind == "TypeCast":
        return _is_null(fields["arg"])
    return kind == "A_Const" and bool(fields.get("isnull"))


def _alter_type(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    column, definition = command["name"], command["def"]["ColumnDef"]
    new = ast.column_type(definition["typeName"])
    known = found.known
    facts = known.column(name, column)
    old = facts.type if facts else None
    reason = type_change_rewrites(old, new, definition.get("raw_default"), column, known)
    place = ast.offset(definition)
    if reason:
        found.tree(name, Lock.ACCESS_EXCLUSIVE, Work("rewrites", Cause.TYPE_CHANGE, reason, place), inherit=inherit)
        found.rebuild_indexes(name, inherit=inherit)
    elif not known.is_fresh(name):
        found.notes.append(f"{old} → {new} keeps the stored values: no rewrite")
    table = known.find(name)
    if table and old and not reason and column in table.indexed and not keeps_index(old, new, definition):
        work = Work("builds", Cause.TYPE_CHANGE, f"the indexes on {column} are built again", place)
        found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
    for check in table.checks.values() if table else ():
        if column in check.columns:
            work = Work("scans", Cause.TYPE_CHANGE, f"a CHECK on {column} is made again", place)
            found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
    found.drop_foreign_keys(table, {column}, remade=bool(reason))
    full = known.full(name)
    for other in known.referencing(name):
        for key in other.foreign_keys.values():
            if key.references == full and (column in key.referenced or not key.referenced):
                is_tested = bool(reason) and key.valid
                words = f"each row is looked up in {name} again"
                works = (Work("scans", Cause.TYPE_CHANGE, words, place),) if is_tested else ()
                found.touch(other.name, Lock.ACCESS_EXCLUSIVE, *works)
                found.touch(name, Lock.ACCESS_EXCLUSIVE, *([referenced_by(other.name)] if is_tested else ()))


def _set_not_null(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    _not_null(found, name, command["name"], inherit=inherit)


def _not_null(
    found: ImpactDraft, name: Name, column: str, *, inherit: bool, cause: Cause = Cause.NOT_NULL, offset: int = 0
) -> None:
    table = found.known.find(name)
    if table and column in table.columns and table.columns[column].not_null:
        found.notes.append(f"{name}.{column} is NOT NULL already")
        return
    if table and any(column in check.not_null and check.valid for check in table.checks.values()):
        found.notes.append(f"a valid CHECK proves that {name}.{column} is not null: no scan")
        return
    work = Work("scans", cause, f"each row's {column} is looked at", offset)
    found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)


def _add_constraint(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    constraint = command["def"]["Constraint"]
    kind, place = constraint["contype"], ast.offset(constraint)
    validates = not ast.is_unvalidated(constraint)
    if kind == "CONSTR_FOREIGN":
        _foreign_key(found, name, constraint, validates=validates)
    elif kind == "CONSTR_CHECK":
        if validates:
            work = Work("scans", Cause.CHECK, "the CHECK is tested on each row", place)
            found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
    elif kind == "CONSTR_NOTNULL":
        if validates:
            _not_null(found, name, ast.strings(constraint.get("keys"))[0], inherit=inherit)
    elif kind in {"CONSTR_PRIMARY", "CONSTR_UNIQUE", "CONSTR_EXCLUSION"}:
        words = {"CONSTR_PRIMARY": "PRIMARY KEY", "CONSTR_UNIQUE": "UNIQUE"}.get(kind, "EXCLUDE")
        if "indexname" in constraint:
            found.touch(
                Name(found.known.full(name).schema, constraint["indexname"]), Lock.SHARE_UPDATE_EXCLUSIVE, kind="index"
            )
        else:
            found.tree(name, Lock.ACCESS_EXCLUSIVE, Work("builds", Cause.INDEX, words, place), inherit=inherit)
        for column in ast.strings(constraint.get("keys")) if kind == "CONSTR_PRIMARY" else ():
            _not_null(found, name, column, inherit=inherit, cause=Cause.INDEX, offset=place)


def _foreign_key(found: ImpactDraft, name: Name, constraint: Tree, *, validates: bool) -> None:
    referenced = ast.relation(constraint["pktable"])
    validates = validates and not found.known.is_fresh(name)
    words = f"each row is looked up in {referenced}"
    work = Work("scans", Cause.FOREIGN_KEY, words, ast.offset(constraint), referenced)
    found.tree(name, Lock.SHARE_ROW_EXCLUSIVE, *([work] if validates else ()))
    found.tree(referenced, Lock.SHARE_ROW_EXCLUSIVE, *([referenced_by(name)] if validates else ()))


def _drop_column(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    found.drop_foreign_keys(found.known.find(name), {command["name"]})
    if command.get("behavior") == "DROP_CASCADE":
        for other in found.known.referencing(name):
            if any(command["name"] in k.referenced or not k.referenced for k in other.foreign_keys.values()):
                found.touch(other.name, Lock.ACCESS_EXCLUSIVE)
        for view in found.known.views_of(name, command["name"]):
            found.touch(view, Lock.ACCESS_EXCLUSIVE)


def _drop_constraint(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    key = table.foreign_keys.get(command["name"]) if table else None
    if key:
        found.touch(key.references, Lock.ACCESS_EXCLUSIVE)
    if command.get("behavior") == "DROP_CASCADE":
        for other in found.known.referencing(name):
            found.touch(other.name, Lock.ACCESS_EXCLUSIVE)


def _validate(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    table = found.known.find(name)
    key = table.foreign_keys.get(command["name"]) if table else None
    check = table.checks.get(command["name"]) if table else None
    if (key and key.valid) or (check and check.valid):
        found.notes.append(f"{command['name']} is valid already")
        return
    work = Work("scans", Cause.VALIDATION, f"{command['name']} is tested on each row")
    found.tree(name, Lock.SHARE_UPDATE_EXCLUSIVE, work, inherit=inherit)
    if key:
        found.touch(key.references, Lock.ROW_SHARE, referenced_by(name))


def _persistence(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table, unlogged = found.known.find(name), command["subtype"] == "AT_SetUnLogged"
    if table and table.unlogged == unlogged and found.known.live:
        found.notes.append(f"{name} is {'UNLOGGED' if unlogged else 'LOGGED'} already")
        return
    words = "SET UNLOGGED" if unlogged else "SET LOGGED"
    found.touch(name, Lock.ACCESS_EXCLUSIVE, Work("rewrites", Cause.STORAGE, f"{words} rewrites the table"))
    found.rebuild_indexes(name, inherit=False)


def _tablespace(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    if table and found.known.live and table.tablespace == command["name"]:
        found.notes.append(f"{name} is in {command['name']} already")
        return
    found.touch(name, Lock.ACCESS_EXCLUSIVE, Work("rewrites", Cause.STORAGE, "SET TABLESPACE copies the table"))


def _access_method(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    if table and found.known.live and table.access_method == command.get("name", "heap"):
        return
    found.touch(name, Lock.ACCESS_EXCLUSIVE, Work("rewrites", Cause.STORAGE, "SET ACCESS METHOD rewrites the table"))
    found.rebuild_indexes(name, inherit=False)


def _set_expression(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    work = Work("rewrites", Cause.STORAGE, f"the generated {command['name']} is computed anew")
    found.tree(name, Lock.ACCESS_EXCLUSIVE, work, inherit=inherit)
    found.rebuild_indexes(name, inherit=inherit)


def _attach(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    partition = command["def"]["PartitionCmd"]
    child = ast.relation(partition["name"])
    words = "each row is tested against the partition's bounds"
    table = found.known.find(child)
    if table and any(check.valid for check in table.checks.values()):
        found.notes.append(f"{words}, unless a CHECK of {child} proves them")
        found.tree(child, Lock.ACCESS_EXCLUSIVE)
    else:
        found.tree(child, Lock.ACCESS_EXCLUSIVE, Work("scans", Cause.PARTITION_BOUNDS, words))


def _detach(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    partition = command["def"]["PartitionCmd"]
    found.tree(ast.relation(partition["name"]), Lock.ACCESS_EXCLUSIVE)


def _inherit(found: ImpactDraft, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    parent = ast.relation(command["def"]["RangeVar"])
    adds = command["subtype"] == "AT_AddInherit"
    found.touch(parent, Lock.SHARE_UPDATE_EXCLUSIVE if adds else Lock.ACCESS_SHARE)


_SUBCOMMANDS: dict[str, Callable[[ImpactDraft, Name, Tree, bool], None]] = {
    "AddColumn": _add_column,
    "AddConstraint": _add_constraint,
    "AddInherit": _inherit,
    "AlterColumnType": _alter_type,
    "AttachPartition": _attach,
    "DetachPartition": _detach,
    "DetachPartitionFinalize": _detach,
    "DropColumn": _drop_column,
    "DropConstraint": _drop_constraint,
    "DropInherit": _inherit,
    "SetAccessMethod": _access_method,
    "SetExpression": _set_expression,
    "SetLogged": _persistence,
    "SetNotNull": _set_not_null,
    "SetTableSpace": _tablespace,
    "SetUnLogged": _persistence,
    "ValidateConstraint": _validate,
}
