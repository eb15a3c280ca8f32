"""What a statement does to tables in use: the locks it takes, what it rewrites, scans, builds. Pure: no I/O.

From the statement's parse tree and what is known of the database (`catalog.py`). The rules are PostgreSQL 18's:
`AlterTableGetLockLevel` and `ATExec…` (tablecmds.c), `LockTableCommand`, the manual's chapter 13.3, and each is held
against a real server by tests/analysis/test_impact.py (pg_locks, relation file nodes, sequential scans).
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 (a value of a table)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.analysis import ast
from orchestrator.analysis.ast import Name, Tree, Type
from orchestrator.analysis.catalog import VOLATILE, serial_base
from orchestrator.analysis.do_blocks import block_statements
from orchestrator.analysis.locks import Impact, Lock, Touch
from orchestrator.migrator.sql.options import is_on

if TYPE_CHECKING:
    from orchestrator.analysis.catalog import Known, KnownTable

# Parsing and planning look at few names; a data file's VALUES are never walked further than this many lists.
_WALKED_VALUES = 50
_MICROSECONDS = 6
_INTERVAL_FULL = 0x7FFF
# How the scan of a table that a foreign key leads to is told.
SEARCHED = "searched for each row of"


def impact_of(node: str, fields: Tree, known: Known, *, outside: bool = False) -> Impact:
    """The impact of a statement on the database that is known as it is before it. Raises nothing."""
    found = _Found(known)
    if rule := _RULES.get(node):
        rule(found, fields)
    touches = sorted(found.touches(), key=lambda t: (t.fresh, -t.lock, not t.work))
    return Impact(tuple(touches), outside, tuple(found.notes))


@dataclass(slots=True)
class _Draft:
    lock: Lock
    rewrites: list[str] = field(default_factory=list)
    scans: list[str] = field(default_factory=list)
    builds: list[str] = field(default_factory=list)
    kind: str = "table"


@dataclass(slots=True)
class _Found:
    known: Known
    drafts: dict[Name, _Draft] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def touch(
        self, name: Name, lock: Lock, *, rewrites: str = "", scans: str = "", builds: str = "", kind: str = "table"
    ) -> None:
        """Add what is done to a relation; the strongest lock counts."""
        draft = self.drafts.setdefault(self.known.full(name), _Draft(lock, kind=kind))
        draft.lock = max(draft.lock, lock)
        for reasons, reason in ((draft.rewrites, rewrites), (draft.scans, scans), (draft.builds, builds)):
            if reason and reason not in reasons:
                reasons.append(reason)

    def tree(self, name: Name, lock: Lock, *, inherit: bool = True, **work: str) -> None:
        """The same for a table and what inherits from it; a partitioned table itself holds no rows."""
        table = self.known.find(name)
        is_empty = table is not None and table.kind == "partitioned"
        self.touch(name, lock, **({} if is_empty else work))
        for child in self.known.children(name) if inherit else ():
            self.touch(child.name, lock, **({} if child.kind == "partitioned" else work))

    def reads(self, fields: object, lock: Lock = Lock.ACCESS_SHARE) -> None:
        """The relations that a query names."""
        for name in sorted(ast.read_tables(fields), key=str):
            if name.schema not in {"pg_catalog", "information_schema"}:
                self.touch(name, lock)
        for _, inner in ast.nodes(fields, "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
            self.touch(ast.relation(inner["relation"]), Lock.ROW_EXCLUSIVE)

    def touches(self) -> list[Touch]:
        found = []
        for name, draft in self.drafts.items():
            table = self.known.find(name)
            found.append(
                Touch(
                    table=name,
                    kind=table.kind if table else draft.kind,
                    lock=draft.lock,
                    rewrites="; ".join(draft.rewrites),
                    scans="; ".join(draft.scans),
                    builds_index="; ".join(draft.builds),
                    fresh=table is not None and table.fresh,
                    rows=table.rows if table else None,
                    size_bytes=table.size_bytes if table else None,
                )
            )
        return found


# --- ALTER TABLE -----------------------------------------------------------------------------------------------------

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


def subcommand_lock(command: Tree) -> Lock:
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


def _alter_table(found: _Found, fields: Tree) -> None:
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
    lock = max(subcommand_lock(command) for command in commands)
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


def _alter_index(found: _Found, name: Name, lock: Lock, commands: list[Tree]) -> None:
    moves = any(c["subtype"] == "AT_SetTableSpace" for c in commands)
    found.touch(name, lock, rewrites="SET TABLESPACE copies it" if moves else "", kind="index")
    for command in commands:
        if command["subtype"] == "AT_AttachPartition":
            found.touch(ast.relation(command["def"]["PartitionCmd"]["name"]), Lock.ACCESS_EXCLUSIVE, kind="index")


def _add_column(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001 (the handlers' form)
    definition = command["def"]["ColumnDef"]
    column = definition["colname"]
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
            found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, builds=words)
        elif kind == "CONSTR_CHECK" and constraint.get("is_enforced", True):
            found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, scans=f"CHECK on {column} is tested on each row")
        elif kind == "CONSTR_FOREIGN":
            # parse_utilcmd.c: a new column without a default is null everywhere, and needs no validation.
            _foreign_key(found, name, constraint, validates=bool(defaults))
    if reason := added_column_rewrites(definition, found.known):
        found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, rewrites=reason)
        _rebuilds(found, name, inherit=inherit)
    elif kinds & {"CONSTR_NOTNULL", "CONSTR_PRIMARY"} and all(_is_null(default) for default in defaults):
        words = f"{column} is NOT NULL without a default: fails on a row"
        found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, scans=words)
    # With a constant default, which the catalogue keeps, no row needs a look (ATExecAddColumn, PG 11).


def added_column_rewrites(definition: Tree, known: Known) -> str:
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


def _rebuilds(found: _Found, name: Name, *, inherit: bool) -> None:
    for table in [found.known.find(name), *(found.known.children(name) if inherit else ())]:
        if table and table.indexes > 0:
            found.touch(table.name, Lock.ACCESS_EXCLUSIVE, builds=f"its {_count(table.indexes)} built again")


def _count(indexes: int) -> str:
    return "index is" if indexes == 1 else f"{indexes} indexes are"


def _alter_type(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    column, definition = command["name"], command["def"]["ColumnDef"]
    new = ast.column_type(definition["typeName"])
    known = found.known
    facts = known.column(name, column)
    old = facts.type if facts else None
    reason = type_change_rewrites(old, new, definition.get("raw_default"), column, known)
    if reason:
        found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, rewrites=reason)
        _rebuilds(found, name, inherit=inherit)
    elif not known.is_fresh(name):
        found.notes.append(f"{old} → {new} keeps the stored values: no rewrite")
    table = known.find(name)
    if table and old and not reason and column in table.indexed and not _keeps_index(old, new, definition):
        found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, builds=f"the indexes on {column} are built again")
    for check in table.checks.values() if table else ():
        if column in check.columns:
            found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, scans=f"a CHECK on {column} is made again")
    _foreign_keys_fall(found, table, {column}, remade=bool(reason))
    full = known.full(name)
    for other in known.referencing(name):
        for key in other.foreign_keys.values():
            if key.references == full and (column in key.referenced or not key.referenced):
                words = f"each row is looked up in {name} again" if reason and key.valid else ""
                found.touch(other.name, Lock.ACCESS_EXCLUSIVE, scans=words)
                found.touch(name, Lock.ACCESS_EXCLUSIVE, scans=f"{SEARCHED} {other.name}" if words else "")


# Types whose values one index can hold (pg_opclass): between any others an index on the column is built again.
_SAME_INDEX = ({"text", "varchar"}, {"cidr", "inet"})


def _keeps_index(old: Type, new: Type, definition: Tree) -> bool:
    names = {old.name.name, new.name.name}
    return "collClause" not in definition and (len(names) == 1 or any(names <= group for group in _SAME_INDEX))


def type_change_rewrites(  # noqa: PLR0911 (a table of cases)
    old: Type | None, new: Type, using: Tree | None, column: str, known: Known
) -> str:
    """Why ALTER COLUMN … TYPE rewrites the table; empty where it does not (ATColumnChangeRequiresRewrite)."""
    if using is not None and not _is_plain_cast(using, column, new):
        return "USING computes each value"
    if old is None:
        return f"the type that {column} has is not known here: it may be rewritten"
    new_fact, old_fact = known.type_fact(new.name), known.type_fact(old.name)
    if new_fact and new_fact.kind == "domain" and new_fact is not old_fact:
        if new_fact.constrained:
            return f"each value is tested against the domain {new_fact.name}"
        new = new_fact.base or new
    if old_fact and old_fact.kind == "domain" and new_fact is not old_fact:
        old = old_fact.base or old
    change = f"{old} → {new}"
    if old.array != new.array:
        return f"{change} converts each value"
    if _same_type(old, new, known):
        return "" if _keeps_length(old, new) else f"{change} tests or cuts each value"
    pair = (old.name.name, new.name.name)
    if pair in known.coercible and not new.array:
        # Into a type with a length there is a second step, which looks at each value.
        return f"{change} tests the length of each value" if new.mods else ""
    if set(pair) == {"timestamp", "timestamptz"} and known.timezone_is_utc and not new.mods:
        return ""
    return f"{change} converts each value"


def _same_type(old: Type, new: Type, known: Known) -> bool:
    if known.type_fact(old.name) is not known.type_fact(new.name):
        return False
    return old.name.name == new.name.name


def _keeps_length(old: Type, new: Type) -> bool:  # noqa: PLR0911 (a table of types)
    """Whether the length of `new` holds every value of `old`, as the types' support functions tell the planner."""
    kind = new.name.name
    if not new.mods or old.mods == new.mods:
        return True
    if new.array:
        return False
    if kind in {"varchar", "varbit"}:
        return bool(old.mods) and new.mods[0] >= old.mods[0]
    if kind == "numeric":
        scale = new.mods[1] if len(new.mods) > 1 else 0
        old_scale = old.mods[1] if len(old.mods) > 1 else 0
        return bool(old.mods) and scale == old_scale and new.mods[0] >= old.mods[0]
    if kind in {"timestamp", "timestamptz", "time", "timetz"}:
        return new.mods[0] >= (old.mods[0] if old.mods else _MICROSECONDS)
    if kind == "interval":
        # (fields, precision), interval_support: no fewer fields, no less precision.
        wide = new.mods[0] in {_INTERVAL_FULL, *old.mods[:1]}
        return wide and (len(new.mods) == 1 or new.mods[1] >= (old.mods[1] if len(old.mods) > 1 else _MICROSECONDS))
    return False


def _is_plain_cast(using: Tree, column: str, new: Type) -> bool:
    """Whether USING is the column itself, or its cast to the new type, as drizzle-kit writes it."""
    kind, fields = ast.only(using)
    if kind == "TypeCast":
        return ast.column_type(fields["typeName"]) == new and _is_plain_cast(fields["arg"], column, new)
    return kind == "ColumnRef" and ast.strings(fields.get("fields"))[-1:] == [column]


def _set_not_null(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    column, table = command["name"], found.known.find(name)
    if table and column in table.columns and table.columns[column].not_null:
        found.notes.append(f"{name}.{column} is NOT NULL already")
        return
    if table and any(column in check.not_null and check.valid for check in table.checks.values()):
        found.notes.append(f"a valid CHECK proves that {name}.{column} is not null: no scan")
        return
    found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, scans=f"each row's {column} is looked at")


def _add_constraint(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    constraint = command["def"]["Constraint"]
    kind = constraint["contype"]
    validates = not constraint.get("skip_validation") and constraint.get("is_enforced", True)
    if kind == "CONSTR_FOREIGN":
        _foreign_key(found, name, constraint, validates=validates)
    elif kind == "CONSTR_CHECK":
        if validates:
            found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, scans="the CHECK is tested on each row")
    elif kind == "CONSTR_NOTNULL":
        if validates:
            _set_not_null(found, name, {"name": ast.strings(constraint.get("keys"))[0]}, inherit)
    elif kind in {"CONSTR_PRIMARY", "CONSTR_UNIQUE", "CONSTR_EXCLUSION"}:
        words = {"CONSTR_PRIMARY": "PRIMARY KEY", "CONSTR_UNIQUE": "UNIQUE"}.get(kind, "EXCLUDE")
        if "indexname" in constraint:
            found.touch(
                Name(found.known.full(name).schema, constraint["indexname"]), Lock.SHARE_UPDATE_EXCLUSIVE, kind="index"
            )
        else:
            found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, builds=words)
        for column in ast.strings(constraint.get("keys")) if kind == "CONSTR_PRIMARY" else ():
            _set_not_null(found, name, {"name": column}, inherit)


def _foreign_key(found: _Found, name: Name, constraint: Tree, *, validates: bool) -> None:
    referenced = ast.relation(constraint["pktable"])
    validates = validates and not found.known.is_fresh(name)
    reason = f"each row is looked up in {referenced}" if validates else ""
    found.tree(name, Lock.SHARE_ROW_EXCLUSIVE, scans=reason)
    found.tree(referenced, Lock.SHARE_ROW_EXCLUSIVE, scans=f"{SEARCHED} {name}" if validates else "")


def _foreign_keys_fall(
    found: _Found, table: KnownTable | None, columns: set[str] | None, *, remade: bool = False
) -> None:
    """Dropping a foreign key drops its triggers on the other table too, under ACCESS EXCLUSIVE."""
    for key in table.foreign_keys.values() if table else ():
        if columns is None or key.columns & columns:
            searched = f"{SEARCHED} {table.name if table else ''}" if remade and key.valid else ""
            found.touch(key.references, Lock.ACCESS_EXCLUSIVE, scans=searched)


def _drop_column(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    _foreign_keys_fall(found, found.known.find(name), {command["name"]})
    if command.get("behavior") == "DROP_CASCADE":
        for other in found.known.referencing(name):
            if any(command["name"] in k.referenced or not k.referenced for k in other.foreign_keys.values()):
                found.touch(other.name, Lock.ACCESS_EXCLUSIVE)
        for view in found.known.views_of(name, command["name"]):
            found.touch(view, Lock.ACCESS_EXCLUSIVE)


def _drop_constraint(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    key = table.foreign_keys.get(command["name"]) if table else None
    if key:
        found.touch(key.references, Lock.ACCESS_EXCLUSIVE)
    if command.get("behavior") == "DROP_CASCADE":
        for other in found.known.referencing(name):
            found.touch(other.name, Lock.ACCESS_EXCLUSIVE)


def _validate(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    table = found.known.find(name)
    key = table.foreign_keys.get(command["name"]) if table else None
    check = table.checks.get(command["name"]) if table else None
    if (key and key.valid) or (check and check.valid):
        found.notes.append(f"{command['name']} is valid already")
        return
    found.tree(name, Lock.SHARE_UPDATE_EXCLUSIVE, inherit=inherit, scans=f"{command['name']} is tested on each row")
    if key:
        found.touch(key.references, Lock.ROW_SHARE, scans=f"{SEARCHED} {name}")


def _persistence(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table, unlogged = found.known.find(name), command["subtype"] == "AT_SetUnLogged"
    if table and table.unlogged == unlogged and found.known.live:
        found.notes.append(f"{name} is {'UNLOGGED' if unlogged else 'LOGGED'} already")
        return
    words = "SET UNLOGGED" if unlogged else "SET LOGGED"
    found.touch(name, Lock.ACCESS_EXCLUSIVE, rewrites=f"{words} writes the table anew")
    _rebuilds(found, name, inherit=False)


def _tablespace(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    if table and found.known.live and table.tablespace == command["name"]:
        found.notes.append(f"{name} is in {command['name']} already")
        return
    found.touch(name, Lock.ACCESS_EXCLUSIVE, rewrites="SET TABLESPACE copies the table")


def _access_method(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del inherit
    table = found.known.find(name)
    if table and found.known.live and table.access_method == command.get("name", "heap"):
        return
    found.touch(name, Lock.ACCESS_EXCLUSIVE, rewrites="SET ACCESS METHOD writes the table anew")
    _rebuilds(found, name, inherit=False)


def _set_expression(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    reason = f"the generated {command['name']} is computed anew"
    found.tree(name, Lock.ACCESS_EXCLUSIVE, inherit=inherit, rewrites=reason)
    _rebuilds(found, name, inherit=inherit)


def _attach(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    partition = command["def"]["PartitionCmd"]
    child = ast.relation(partition["name"])
    found.tree(
        child, Lock.ACCESS_EXCLUSIVE, scans="each row is tested against the partition's bounds, unless a CHECK does"
    )


def _detach(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    partition = command["def"]["PartitionCmd"]
    found.tree(ast.relation(partition["name"]), Lock.ACCESS_EXCLUSIVE)


def _inherit(found: _Found, name: Name, command: Tree, inherit: bool) -> None:  # noqa: FBT001
    del name, inherit
    parent = ast.relation(command["def"]["RangeVar"])
    adds = command["subtype"] == "AT_AddInherit"
    found.touch(parent, Lock.SHARE_UPDATE_EXCLUSIVE if adds else Lock.ACCESS_SHARE)


_SUBCOMMANDS: dict[str, Callable[[_Found, Name, Tree, bool], None]] = {
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


# --- CREATE ----------------------------------------------------------------------------------------------------------


def _create_table(found: _Found, fields: Tree) -> None:
    name = ast.relation(fields["relation"])
    if fields.get("if_not_exists") and found.known.find(name) is not None:
        found.notes.append(f"{name} is there: nothing is done")
        return
    inherited = Lock.ACCESS_EXCLUSIVE if "partbound" in fields else Lock.SHARE_UPDATE_EXCLUSIVE
    for parent in fields.get("inhRelations", ()):
        parent_name = ast.relation(parent["RangeVar"])
        found.touch(parent_name, inherited)
        table = found.known.find(parent_name)
        for key in table.foreign_keys.values() if table and "partbound" in fields else ():
            found.touch(key.references, Lock.SHARE_ROW_EXCLUSIVE)
    for element in fields.get("tableElts", ()):
        if "TableLikeClause" in element:
            found.touch(ast.relation(element["TableLikeClause"]["relation"]), Lock.ACCESS_SHARE)
    inline = [c for column in ast.columns(fields) for c in ast.constraints(column)]
    for constraint in [*inline, *ast.table_constraints(fields)]:
        if constraint["contype"] == "CONSTR_FOREIGN" and ast.relation(constraint["pktable"]) != name:
            found.tree(ast.relation(constraint["pktable"]), Lock.SHARE_ROW_EXCLUSIVE)


def _create_as(found: _Found, fields: Tree) -> None:
    found.reads(fields.get("query"))


def _create_view(found: _Found, fields: Tree) -> None:
    name = ast.relation(fields["view"])
    if fields.get("replace") and (table := found.known.find(name)) and not table.fresh:
        found.touch(name, Lock.ACCESS_EXCLUSIVE, kind="view")
    found.reads(fields.get("query"))


def _create_index(found: _Found, fields: Tree) -> None:
    name = ast.relation(fields["relation"])
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if fields.get("concurrent") else Lock.SHARE
    index = fields.get("idxname")
    existing = found.known.find(Name(found.known.full(name).schema, index)) if index else None
    if fields.get("if_not_exists") and existing is not None and not existing.fresh:
        found.notes.append(f"{index} is there: nothing is done")
        found.touch(name, lock)
        return
    reason = f"{index or 'the index'} is built over every row"
    found.tree(name, lock, inherit=bool(fields["relation"].get("inh")), builds=reason)


def _create_trigger(found: _Found, fields: Tree) -> None:
    found.tree(ast.relation(fields["relation"]), Lock.SHARE_ROW_EXCLUSIVE)
    if "constrrel" in fields:
        # CreateTriggerFiringOn: the table behind FROM is only looked up.
        found.touch(ast.relation(fields["constrrel"]), Lock.ACCESS_SHARE)


def _create_sequence(found: _Found, fields: Tree) -> None:
    _owned_by(found, fields)


def _alter_sequence(found: _Found, fields: Tree) -> None:
    found.touch(ast.relation(fields["sequence"]), Lock.SHARE_ROW_EXCLUSIVE, kind="sequence")
    _owned_by(found, fields)


def _owned_by(found: _Found, fields: Tree) -> None:
    owner = ast.option(fields.get("options"), "owned_by")
    words = ast.strings((owner or {}).get("arg", {}).get("List", {}).get("items"))
    if len(words) > 1:
        found.touch(ast.qualified(words[:-1]), Lock.ACCESS_SHARE)


def _on_relations(lock: Lock) -> Callable[[_Found, Tree], None]:
    def rule(found: _Found, fields: Tree) -> None:
        for one in fields.get("relations", ()):
            if "RangeVar" in one:
                found.touch(ast.relation(one["RangeVar"]), lock)

    return rule


def _on_table(key: str, lock: Lock) -> Callable[[_Found, Tree], None]:
    def rule(found: _Found, fields: Tree) -> None:
        if key in fields:
            found.touch(ast.relation(fields[key]), lock)

    return rule


# --- DROP, RENAME, COMMENT -------------------------------------------------------------------------------------------

_DROPPED_KINDS = {
    "OBJECT_TABLE": "table",
    "OBJECT_VIEW": "view",
    "OBJECT_MATVIEW": "materialized view",
    "OBJECT_SEQUENCE": "sequence",
    "OBJECT_FOREIGN_TABLE": "foreign table",
}
_ON_A_TABLE = frozenset({"OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"})


def _drop(found: _Found, fields: Tree) -> None:
    kind, known = fields["removeType"], found.known
    cascades = fields.get("behavior") == "DROP_CASCADE"
    for item in fields.get("objects", ()):
        words = ast.dropped_name(kind, item)
        name = ast.qualified(words)
        if kind in _ON_A_TABLE:
            found.tree(ast.qualified(words[:-1]), Lock.ACCESS_EXCLUSIVE, inherit=kind == "OBJECT_TRIGGER")
        elif kind == "OBJECT_INDEX":
            _drop_index(found, name, concurrent=bool(fields.get("concurrent")))
        elif kind == "OBJECT_STATISTIC_EXT":
            if on := known.statistics.get(known.full(name)):
                found.touch(on, Lock.SHARE_UPDATE_EXCLUSIVE)
        elif kind in _DROPPED_KINDS:
            if fields.get("missing_ok") and known.live and known.find(name) is None:
                found.notes.append(f"{name} does not exist: nothing is done")
                continue
            _drop_relation(found, name, _DROPPED_KINDS[kind], cascades=cascades)
        elif kind == "OBJECT_SCHEMA" and cascades:
            for table in [t for t in known.tables.values() if t.name.schema == words[0] and t.kind != "index"]:
                _drop_relation(found, table.name, table.kind, cascades=True)
        elif kind in {"OBJECT_TYPE", "OBJECT_DOMAIN"} and cascades:
            for table in known.users_of(name):
                found.tree(table.name, Lock.ACCESS_EXCLUSIVE)
        elif cascades and kind not in {"OBJECT_SCHEMA", "OBJECT_TYPE", "OBJECT_DOMAIN"}:
            found.notes.append("CASCADE drops what depends on it: those tables are locked too")


def _drop_relation(found: _Found, name: Name, kind: str, *, cascades: bool) -> None:
    known = found.known
    found.touch(name, Lock.ACCESS_EXCLUSIVE, kind=kind)
    table = known.find(name)
    for child in known.children(name):
        found.touch(child.name, Lock.ACCESS_EXCLUSIVE)
        _foreign_keys_fall(found, child, None)
    for parent in table.parents if table else ():
        above = known.find(parent)
        if above and above.kind == "partitioned":
            found.touch(parent, Lock.ACCESS_EXCLUSIVE)
    _foreign_keys_fall(found, table, None)
    if cascades:
        for other in known.referencing(name):
            found.touch(other.name, Lock.ACCESS_EXCLUSIVE)
        for view in known.views_of(name):
            found.touch(view, Lock.ACCESS_EXCLUSIVE)


def _drop_index(found: _Found, name: Name, *, concurrent: bool) -> None:
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.ACCESS_EXCLUSIVE
    index = found.known.find(name)
    if index is None and found.known.live:
        found.notes.append(f"{name} does not exist")
        return
    found.touch(name, lock, kind="index")
    if index and index.on:
        found.touch(index.on, lock)


_RENAMED = frozenset(
    {"OBJECT_TABLE", "OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_SEQUENCE"}
    | {"OBJECT_FOREIGN_TABLE", "OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY", "OBJECT_ATTRIBUTE"}
)


def _rename(found: _Found, fields: Tree) -> None:
    kind = fields["renameType"]
    if "relation" not in fields:
        return
    name = ast.relation(fields["relation"])
    if kind == "OBJECT_INDEX":
        found.touch(name, Lock.SHARE_UPDATE_EXCLUSIVE, kind="index")
    elif kind == "OBJECT_ATTRIBUTE":
        for table in found.known.users_of(name):
            found.touch(table.name, Lock.ACCESS_SHARE)
    elif kind in {"OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER"}:
        found.tree(name, Lock.ACCESS_EXCLUSIVE)
    elif kind in _RENAMED:
        found.touch(name, Lock.ACCESS_EXCLUSIVE)


def _set_schema(found: _Found, fields: Tree) -> None:
    if "relation" in fields:
        found.touch(ast.relation(fields["relation"]), Lock.ACCESS_EXCLUSIVE)


def _comment(found: _Found, fields: Tree) -> None:
    kind = fields["objtype"]
    words = ast.dropped_name(kind, fields["object"])
    if kind in {
        "OBJECT_TABLE",
        "OBJECT_VIEW",
        "OBJECT_MATVIEW",
        "OBJECT_INDEX",
        "OBJECT_SEQUENCE",
        "OBJECT_FOREIGN_TABLE",
    }:
        found.touch(ast.qualified(words), Lock.SHARE_UPDATE_EXCLUSIVE)
    elif kind == "OBJECT_COLUMN" and len(words) > 1:
        found.touch(ast.qualified(words[:-1]), Lock.SHARE_UPDATE_EXCLUSIVE)
    elif kind in {*_ON_A_TABLE, "OBJECT_TABCONSTRAINT"} and len(words) > 1:
        found.touch(ast.qualified(words[:-1]), Lock.ACCESS_SHARE)


# --- Data and maintenance --------------------------------------------------------------------------------------------


def _truncate(found: _Found, fields: Tree) -> None:
    pending = [ast.relation(one["RangeVar"]) for one in fields.get("relations", ())]
    seen: set[Name] = set()
    while pending:
        name = found.known.full(pending.pop())
        if name in seen:
            continue
        seen.add(name)
        found.tree(name, Lock.ACCESS_EXCLUSIVE)
        if fields.get("behavior") == "DROP_CASCADE":
            pending += [table.name for table in found.known.referencing(name)]


def _lock(found: _Found, fields: Tree) -> None:
    for one in fields.get("relations", ()):
        found.tree(ast.relation(one["RangeVar"]), Lock(fields["mode"]), inherit=bool(one["RangeVar"].get("inh")))


def _refresh(found: _Found, fields: Tree) -> None:
    name = ast.relation(fields["relation"])
    if fields.get("skipData"):
        found.touch(name, Lock.ACCESS_EXCLUSIVE, kind="materialized view")
    elif fields.get("concurrent"):
        found.touch(
            name, Lock.EXCLUSIVE, scans="its query runs, and the difference is applied", kind="materialized view"
        )
    else:
        found.touch(
            name, Lock.ACCESS_EXCLUSIVE, rewrites="its query runs, and it is written anew", kind="materialized view"
        )


def _reindex(found: _Found, fields: Tree) -> None:
    concurrent = is_on(fields.get("params"), "concurrently")
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.SHARE
    if "relation" not in fields:
        found.notes.append("every index is built again, one table after the other")
        return
    name = ast.relation(fields["relation"])
    if fields["kind"] == "REINDEX_OBJECT_INDEX":
        index = found.known.find(name)
        if index and index.on:
            found.touch(index.on, lock, builds=f"{name} is built again")
        found.touch(name, lock if concurrent else Lock.ACCESS_EXCLUSIVE, kind="index")
    else:
        found.tree(name, lock, builds="its indexes are built again")
    if not concurrent:
        found.notes.append("the indexes are locked against readers too: nearly every query waits")


def _cluster(found: _Found, fields: Tree) -> None:
    if "relation" in fields:
        found.touch(ast.relation(fields["relation"]), Lock.ACCESS_EXCLUSIVE, rewrites="CLUSTER writes the table anew")
        _rebuilds(found, ast.relation(fields["relation"]), inherit=False)
    else:
        found.notes.append("every table that was clustered before is written anew")


def _vacuum(found: _Found, fields: Tree) -> None:
    full = is_on(fields.get("options"), "full")
    for one in fields.get("rels", ()):
        if "relation" not in one["VacuumRelation"]:
            continue
        name = ast.relation(one["VacuumRelation"]["relation"])
        if full:
            found.tree(name, Lock.ACCESS_EXCLUSIVE, rewrites="VACUUM FULL writes the table anew")
            _rebuilds(found, name, inherit=True)
        else:
            words = "VACUUM" if fields.get("is_vacuumcmd") else "ANALYZE (a sample)"
            found.tree(name, Lock.SHARE_UPDATE_EXCLUSIVE, scans=words)
    if not fields.get("rels"):
        found.notes.append("every table of the database")


def _insert(found: _Found, fields: Tree) -> None:
    select = fields.get("selectStmt", {}).get("SelectStmt", {})
    if not select.get("valuesLists") or len(select["valuesLists"]) <= _WALKED_VALUES:
        found.reads(fields)
    found.touch(ast.relation(fields["relation"]), Lock.ROW_EXCLUSIVE)


def _update(found: _Found, fields: Tree) -> None:
    found.reads(fields)
    name = ast.relation(fields["relation"])
    words = "" if "whereClause" in fields else "every row"
    found.tree(name, Lock.ROW_EXCLUSIVE, inherit=bool(fields["relation"].get("inh")), scans=words)


def _select(found: _Found, fields: Tree) -> None:
    into = fields.get("intoClause", {}).get("rel")
    found.reads({key: value for key, value in fields.items() if key != "intoClause"})
    for _, clause in ast.nodes(fields, "LockingClause"):
        named = [ast.relation(one["RangeVar"]) for one in clause.get("lockedRels", ())]
        for name in named or ast.read_tables(fields.get("fromClause")):
            found.touch(name, Lock.ROW_SHARE)
    del into
    if any(name.schema not in {None, "pg_catalog"} for name in ast.called(fields)):
        found.notes.append("calls functions: what they do is not seen")


def _copy(found: _Found, fields: Tree) -> None:
    if "relation" in fields:
        lock = Lock.ROW_EXCLUSIVE if fields.get("is_from") else Lock.ACCESS_SHARE
        found.touch(ast.relation(fields["relation"]), lock)
    found.reads(fields.get("query"))


def _do(found: _Found, fields: Tree) -> None:
    """Every statement of the block, also where a condition may pass it over."""
    inner, is_whole = block_statements(fields)
    for one in inner:
        if rule := _RULES.get(one.node):
            rule(found, one.fields)
    if not is_whole:
        found.notes.append("what it EXECUTEs or calls is not seen by the grammar: read it")


def _call(found: _Found, fields: Tree) -> None:
    del fields
    found.notes.append("what the procedure does is not seen by the grammar: read it")


def _grant(found: _Found, fields: Tree) -> None:
    if fields.get("objtype") == "OBJECT_TABLE" and fields.get("targtype") == "ACL_TARGET_OBJECT":
        for one in fields.get("objects", ()):
            found.touch(ast.relation(one["RangeVar"]), Lock.ACCESS_SHARE)


def _publication(found: _Found, fields: Tree) -> None:
    for one in fields.get("pubobjects", ()):
        table = one["PublicationObjSpec"].get("pubtable")
        if table:
            found.tree(ast.relation(table["relation"]), Lock.SHARE_UPDATE_EXCLUSIVE)


def _alter_domain(found: _Found, fields: Tree) -> None:
    subtype, constraint = fields["subtype"], fields.get("def", {}).get("Constraint", {})
    validates = (subtype == "C" and not constraint.get("skip_validation")) or subtype in {"O", "V"}
    if not validates:
        return
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if subtype == "V" else Lock.SHARE
    for table in found.known.users_of(ast.qualified(ast.strings(fields["typeName"]))):
        found.touch(table.name, lock, scans="each value of the domain is tested")


def _alter_extension(found: _Found, fields: Tree) -> None:
    del fields
    found.notes.append("runs the extension's own script")


def _create_schema(found: _Found, fields: Tree) -> None:
    for element in fields.get("schemaElts", ()):
        node, inner = ast.only(element)
        if rule := _RULES.get(node):
            rule(found, inner)


_RULES: dict[str, Callable[[_Found, Tree], None]] = {
    "AlterDomainStmt": _alter_domain,
    "AlterExtensionStmt": _alter_extension,
    "AlterObjectSchemaStmt": _set_schema,
    "AlterPolicyStmt": _on_table("table", Lock.ACCESS_EXCLUSIVE),
    "AlterPublicationStmt": _publication,
    "AlterSeqStmt": _alter_sequence,
    "AlterTableStmt": _alter_table,
    "CallStmt": _call,
    "ClusterStmt": _cluster,
    "CommentStmt": _comment,
    "CopyStmt": _copy,
    "CreateExtensionStmt": _alter_extension,
    "CreatePolicyStmt": _on_table("table", Lock.ACCESS_EXCLUSIVE),
    "CreatePublicationStmt": _publication,
    "CreateSchemaStmt": _create_schema,
    "CreateSeqStmt": _create_sequence,
    "CreateStatsStmt": _on_relations(Lock.SHARE_UPDATE_EXCLUSIVE),
    "CreateStmt": _create_table,
    "CreateTableAsStmt": _create_as,
    "CreateTrigStmt": _create_trigger,
    "DeleteStmt": _update,
    "DoStmt": _do,
    "DropStmt": _drop,
    "GrantStmt": _grant,
    "IndexStmt": _create_index,
    "InsertStmt": _insert,
    "LockStmt": _lock,
    "MergeStmt": _update,
    "RefreshMatViewStmt": _refresh,
    "ReindexStmt": _reindex,
    "RenameStmt": _rename,
    "RuleStmt": _on_table("relation", Lock.ACCESS_EXCLUSIVE),
    "SecLabelStmt": _comment,
    "SelectStmt": _select,
    "TruncateStmt": _truncate,
    "UpdateStmt": _update,
    "VacuumStmt": _vacuum,
    "ViewStmt": _create_view,
}
