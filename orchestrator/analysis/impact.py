"""What a statement does to tables in use: the locks it takes, what it rewrites, scans, builds. Pure: no I/O.

From the statement's parse tree and what is known of the database (`catalog.py`). The rules are PostgreSQL 18's:
`AlterTableGetLockLevel` and `ATExec…` (tablecmds.c), `LockTableCommand`, the manual's chapter 13.3, and each is held
against a real server by tests/analysis/test_impact.py (pg_locks, relation file nodes, sequential scans).
"""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 (a value of a table)
from typing import TYPE_CHECKING

from orchestrator.analysis import ast
from orchestrator.analysis.alter_table import alter_table
from orchestrator.analysis.ast import Name, Tree
from orchestrator.analysis.do_blocks import block_statements
from orchestrator.analysis.impact_draft import ImpactDraft
from orchestrator.analysis.locks import Cause, Impact, Lock, Work
from orchestrator.migrator.sql.options import is_on

if TYPE_CHECKING:
    from orchestrator.analysis.catalog import Known

# Parsing and planning look at few names; a data file's VALUES are never walked further than this many lists.
_WALKED_VALUES = 50


def impact_of(node: str, fields: Tree, known: Known, *, outside: bool = False) -> Impact:
    """The impact of a statement on the database that is known as it is before it. Raises nothing."""
    found = ImpactDraft(known)
    if rule := _RULES.get(node):
        rule(found, fields)
    return found.impact(outside=outside)


# --- CREATE ----------------------------------------------------------------------------------------------------------


def _create_table(found: ImpactDraft, fields: Tree) -> None:
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


def _create_as(found: ImpactDraft, fields: Tree) -> None:
    found.reads(fields.get("query"))


def _create_view(found: ImpactDraft, fields: Tree) -> None:
    name = ast.relation(fields["view"])
    if fields.get("replace") and (table := found.known.find(name)) and not table.fresh:
        found.touch(name, Lock.ACCESS_EXCLUSIVE, kind="view")
    found.reads(fields.get("query"))


def _create_index(found: ImpactDraft, fields: Tree) -> None:
    name = ast.relation(fields["relation"])
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if fields.get("concurrent") else Lock.SHARE
    index = fields.get("idxname")
    existing = found.known.find(Name(found.known.full(name).schema, index)) if index else None
    if fields.get("if_not_exists") and existing is not None and not existing.fresh:
        found.notes.append(f"{index} is there: nothing is done")
        found.touch(name, lock)
        return
    work = Work("builds", Cause.INDEX, f"{index or 'the index'} is built over every row")
    found.tree(name, lock, work, inherit=bool(fields["relation"].get("inh")))


def _create_trigger(found: ImpactDraft, fields: Tree) -> None:
    found.tree(ast.relation(fields["relation"]), Lock.SHARE_ROW_EXCLUSIVE)
    if "constrrel" in fields:
        # CreateTriggerFiringOn: the table behind FROM is only looked up.
        found.touch(ast.relation(fields["constrrel"]), Lock.ACCESS_SHARE)


def _create_sequence(found: ImpactDraft, fields: Tree) -> None:
    _owned_by(found, fields)


def _alter_sequence(found: ImpactDraft, fields: Tree) -> None:
    found.touch(ast.relation(fields["sequence"]), Lock.SHARE_ROW_EXCLUSIVE, kind="sequence")
    _owned_by(found, fields)


def _owned_by(found: ImpactDraft, fields: Tree) -> None:
    owner = ast.option(fields.get("options"), "owned_by")
    words = ast.strings((owner or {}).get("arg", {}).get("List", {}).get("items"))
    if len(words) > 1:
        found.touch(ast.qualified(words[:-1]), Lock.ACCESS_SHARE)


def _on_relations(lock: Lock) -> Callable[[ImpactDraft, Tree], None]:
    def rule(found: ImpactDraft, fields: Tree) -> None:
        for one in fields.get("relations", ()):
            if "RangeVar" in one:
                found.touch(ast.relation(one["RangeVar"]), lock)

    return rule


def _on_table(key: str, lock: Lock) -> Callable[[ImpactDraft, Tree], None]:
    def rule(found: ImpactDraft, fields: Tree) -> None:
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


def _drop(found: ImpactDraft, fields: Tree) -> None:
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


def _drop_relation(found: ImpactDraft, name: Name, kind: str, *, cascades: bool) -> None:
    known = found.known
    found.touch(name, Lock.ACCESS_EXCLUSIVE, kind=kind)
    table = known.find(name)
    for child in known.children(name):
        found.touch(child.name, Lock.ACCESS_EXCLUSIVE)
        found.drop_foreign_keys(child)
    for parent in table.parents if table else ():
        above = known.find(parent)
        if above and above.kind == "partitioned":
            found.touch(parent, Lock.ACCESS_EXCLUSIVE)
    found.drop_foreign_keys(table)
    if cascades:
        for other in known.referencing(name):
            found.touch(other.name, Lock.ACCESS_EXCLUSIVE)
        for view in known.views_of(name):
            found.touch(view, Lock.ACCESS_EXCLUSIVE)


def _drop_index(found: ImpactDraft, name: Name, *, concurrent: bool) -> None:
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


def _rename(found: ImpactDraft, fields: Tree) -> None:
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


def _set_schema(found: ImpactDraft, fields: Tree) -> None:
    if "relation" in fields:
        found.touch(ast.relation(fields["relation"]), Lock.ACCESS_EXCLUSIVE)


def _comment(found: ImpactDraft, fields: Tree) -> None:
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


def _truncate(found: ImpactDraft, fields: Tree) -> None:
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


def _lock(found: ImpactDraft, fields: Tree) -> None:
    for one in fields.get("relations", ()):
        found.tree(ast.relation(one["RangeVar"]), Lock(fields["mode"]), inherit=bool(one["RangeVar"].get("inh")))


def _refresh(found: ImpactDraft, fields: Tree) -> None:
    name = ast.relation(fields["relation"])
    if fields.get("skipData"):
        found.touch(name, Lock.ACCESS_EXCLUSIVE, kind="materialized view")
    elif fields.get("concurrent"):
        work = Work("scans", Cause.MAINTENANCE, "its query runs, and the difference is applied")
        found.touch(name, Lock.EXCLUSIVE, work, kind="materialized view")
    else:
        work = Work("rewrites", Cause.MAINTENANCE, "its query runs, and it is written anew")
        found.touch(name, Lock.ACCESS_EXCLUSIVE, work, kind="materialized view")


def _reindex(found: ImpactDraft, fields: Tree) -> None:
    concurrent = is_on(fields.get("params"), "concurrently")
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.SHARE
    if "relation" not in fields:
        found.notes.append("every index is built again, one table after the other")
        return
    name = ast.relation(fields["relation"])
    if fields["kind"] == "REINDEX_OBJECT_INDEX":
        index = found.known.find(name)
        if index and index.on:
            found.touch(index.on, lock, Work("builds", Cause.MAINTENANCE, f"{name} is built again"))
        found.touch(name, lock if concurrent else Lock.ACCESS_EXCLUSIVE, kind="index")
    else:
        found.tree(name, lock, Work("builds", Cause.MAINTENANCE, "its indexes are built again"))
    if not concurrent:
        found.notes.append("the indexes are locked against readers too: nearly every query waits")


def _cluster(found: ImpactDraft, fields: Tree) -> None:
    if "relation" in fields:
        name, work = ast.relation(fields["relation"]), Work("rewrites", Cause.MAINTENANCE, "CLUSTER rewrites the table")
        found.touch(name, Lock.ACCESS_EXCLUSIVE, work)
        found.rebuild_indexes(name, inherit=False)
    else:
        found.notes.append("every table that was clustered before is written anew")


def _vacuum(found: ImpactDraft, fields: Tree) -> None:
    full = is_on(fields.get("options"), "full")
    for one in fields.get("rels", ()):
        if "relation" not in one["VacuumRelation"]:
            continue
        name = ast.relation(one["VacuumRelation"]["relation"])
        if full:
            work = Work("rewrites", Cause.MAINTENANCE, "VACUUM FULL rewrites the table")
            found.tree(name, Lock.ACCESS_EXCLUSIVE, work)
            found.rebuild_indexes(name, inherit=True)
        else:
            words = "VACUUM" if fields.get("is_vacuumcmd") else "ANALYZE (a sample)"
            found.tree(name, Lock.SHARE_UPDATE_EXCLUSIVE, Work("scans", Cause.MAINTENANCE, words))
    if not fields.get("rels"):
        found.notes.append("every table of the database")


def _insert(found: ImpactDraft, fields: Tree) -> None:
    select = fields.get("selectStmt", {}).get("SelectStmt", {})
    if not select.get("valuesLists") or len(select["valuesLists"]) <= _WALKED_VALUES:
        found.reads(fields)
    found.touch(ast.relation(fields["relation"]), Lock.ROW_EXCLUSIVE)


def _update(found: ImpactDraft, fields: Tree) -> None:
    found.reads(fields)
    name = ast.relation(fields["relation"])
    works = () if "whereClause" in fields else (Work("scans", Cause.DATA, "every row"),)
    found.tree(name, Lock.ROW_EXCLUSIVE, *works, inherit=bool(fields["relation"].get("inh")))


def _select(found: ImpactDraft, fields: Tree) -> None:
    into = fields.get("intoClause", {}).get("rel")
    found.reads({key: value for key, value in fields.items() if key != "intoClause"})
    for _, clause in ast.nodes(fields, "LockingClause"):
        named = [ast.relation(one["RangeVar"]) for one in clause.get("lockedRels", ())]
        for name in named or ast.read_tables(fields.get("fromClause")):
            found.touch(name, Lock.ROW_SHARE)
    del into
    if any(name.schema not in {None, "pg_catalog"} for name in ast.called(fields)):
        found.notes.append("calls functions: what they do is not seen")


def _copy(found: ImpactDraft, fields: Tree) -> None:
    if "relation" in fields:
        lock = Lock.ROW_EXCLUSIVE if fields.get("is_from") else Lock.ACCESS_SHARE
        found.touch(ast.relation(fields["relation"]), lock)
    found.reads(fields.get("query"))


def _do(found: ImpactDraft, fields: Tree) -> None:
    """Every statement of the block, also where a condition may pass it over."""
    inner, is_whole = block_statements(fields)
    for one in inner:
        if rule := _RULES.get(one.node):
            rule(found, one.fields)
    if not is_whole:
        found.notes.append("what it EXECUTEs or calls is not seen by the grammar: read it")


def _call(found: ImpactDraft, fields: Tree) -> None:
    del fields
    found.notes.append("what the procedure does is not seen by the grammar: read it")


def _grant(found: ImpactDraft, fields: Tree) -> None:
    if fields.get("objtype") == "OBJECT_TABLE" and fields.get("targtype") == "ACL_TARGET_OBJECT":
        for one in fields.get("objects", ()):
            found.touch(ast.relation(one["RangeVar"]), Lock.ACCESS_SHARE)


def _publication(found: ImpactDraft, fields: Tree) -> None:
    for one in fields.get("pubobjects", ()):
        table = one["PublicationObjSpec"].get("pubtable")
        if table:
            found.tree(ast.relation(table["relation"]), Lock.SHARE_UPDATE_EXCLUSIVE)


def _alter_domain(found: ImpactDraft, fields: Tree) -> None:
    subtype, constraint = fields["subtype"], fields.get("def", {}).get("Constraint", {})
    validates = (subtype == "C" and not constraint.get("skip_validation")) or subtype in {"O", "V"}
    if not validates:
        return
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if subtype == "V" else Lock.SHARE
    for table in found.known.users_of(ast.qualified(ast.strings(fields["typeName"]))):
        found.touch(table.name, lock, Work("scans", Cause.DOMAIN, "each value of the domain is tested"))


def _alter_extension(found: ImpactDraft, fields: Tree) -> None:
    del fields
    found.notes.append("runs the extension's own script")


def _create_schema(found: ImpactDraft, fields: Tree) -> None:
    for element in fields.get("schemaElts", ()):
        node, inner = ast.only(element)
        if rule := _RULES.get(node):
            rule(found, inner)


_RULES: dict[str, Callable[[ImpactDraft, Tree], None]] = {
    "AlterDomainStmt": _alter_domain,
    "AlterExtensionStmt": _alter_extension,
    "AlterObjectSchemaStmt": _set_schema,
    "AlterPolicyStmt": _on_table("table", Lock.ACCESS_EXCLUSIVE),
    "AlterPublicationStmt": _publication,
    "AlterSeqStmt": _alter_sequence,
    "AlterTableStmt": alter_table,
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
