"""The rules of `lint`: what a statement will do to those who use the database meanwhile. Pure: no I/O.

From the grammar and from what is known (`catalog`, `impact`). What the same file, or the same pending set, made is
not in use, and nothing about it hurts. Each rule has one level: an **error** will fail or lose something, a **warning**
hurts running code, a **note** is worth a look and fails nothing.

`lint_squawk.py` says how they compare with the rules of squawk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator  # noqa: TC003 (values of a table)
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.analysis import ast
from orchestrator.analysis.do_blocks import block_statements
from orchestrator.analysis.impact import impact_of
from orchestrator.analysis.locks import Cause, Impact, Lock
from orchestrator.migrator.sql.options import is_on

if TYPE_CHECKING:
    from orchestrator.analysis.ast import Name, Tree
    from orchestrator.analysis.catalog import Known
    from orchestrator.analysis.locks import HeldLock, Touch, Work


class Level(StrEnum):
    """How much it matters; errors and warnings make `lint` exit 1."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Rule(NamedTuple):
    """A rule: its level, and what to write instead."""

    level: Level
    instead: str


_E, _W, _N = Level.ERROR, Level.WARNING, Level.NOTE

RULES: dict[str, Rule] = {
    "syntax": Rule(_E, "Correct the file: nothing of the folder can be applied until then."),
    "required-column": Rule(
        _E,
        "Give it a constant DEFAULT; or add it without NOT NULL, fill it, and SET NOT NULL in a later migration.",
    ),
    "enum-value-used": Rule(
        _E, "Put the use into a migration of its own, after this one: each is a transaction of its own."
    ),
    "concurrently-in-transaction": Rule(_E, "Take out the BEGIN before it."),
    "down-section": Rule(
        _E, "Take the section out: a file is run as a whole, so what undoes it would run right behind it."
    ),
    "duplicate-column": Rule(_E, "Name each column once."),
    "unknown-name": Rule(_E, "Correct the name, or make what it names in an earlier statement."),
    "already-there": Rule(
        _E,
        "Take the statement out, or write IF NOT EXISTS; where all that the file makes is there, `orchestrator repair"
        " applied NAME` says so to the ledger.",
    ),
    "missing-file": Rule(_E, "Restore the file, or take its entry out of meta/_journal.json."),
    "broken-folder": Rule(_E, "Restore the folder from version control, or run drizzle-kit again."),
    "when-backwards": Rule(
        _E,
        "Give the entry a `when` in meta/_journal.json that is greater than every one before it:"
        " where those are applied already, drizzle skips this one silently.",
    ),
    "drop-database": Rule(_E, "A migration cannot: drop it by hand."),
    "outside-database": Rule(
        _W,
        "It acts on the whole server, and no roll back of this database undoes it; `verify`, `rehearse` and `generate`"
        " leave it out. Do it by hand or in a script of the server's owner, or say why in an allow.",
    ),
    "rewrites-table": Rule(
        _W,
        "Add the column without it, set the default in a second statement, and fill the old rows in batches;"
        " the application can compute a generated value.",
    ),
    "type-change": Rule(
        _W, "Add a column of the new type, write both, fill it in batches, switch the reads, drop the old one later."
    ),
    "index-not-concurrent": Rule(
        _W,
        "CREATE INDEX CONCURRENTLY in a migration of its own"
        " (in schema.ts: index(…).concurrently(); orchestrator applies it outside a transaction).",
    ),
    "unique-builds-index": Rule(
        _W,
        "CREATE UNIQUE INDEX CONCURRENTLY in a migration of its own;"
        " then ALTER TABLE … ADD CONSTRAINT … UNIQUE (or PRIMARY KEY) USING INDEX ….",
    ),
    "constraint-not-valid": Rule(
        _W, "Add it NOT VALID, and in a later migration ALTER TABLE … VALIDATE CONSTRAINT …, which blocks nobody."
    ),
    "validate-in-same-transaction": Rule(
        _W, "Put VALIDATE CONSTRAINT into a migration of its own, after the one that adds the constraint."
    ),
    "set-not-null": Rule(
        _W,
        "ADD CONSTRAINT … CHECK (column IS NOT NULL) NOT VALID, VALIDATE CONSTRAINT in a later migration, then SET NOT"
        " NULL, which the valid CHECK lets pass without a look at the rows, and drop the CHECK.",
    ),
    "rename": Rule(
        _W,
        "Add the new name beside the old one (a column, a view), move the code over, and drop the old one when"
        " no running code uses it.",
    ),
    "drop-table": Rule(_W, "Drop it in a release after the one whose code no longer uses it; say so in an allow."),
    "drop-column": Rule(_W, "Drop it in a release after the one whose code no longer uses it; say so in an allow."),
    "drop-object": Rule(_W, "Drop it in a release after the one whose code no longer uses it; say so in an allow."),
    "drop-constraint": Rule(_N, "Is there code that relies on the guarantee?"),
    "drop-default": Rule(_N, "Running code whose INSERT leaves the column out gets NULL, or an error, from here on."),
    "drop-not-null": Rule(_N, "Is there running code that cannot take NULL here?"),
    "drop-index": Rule(
        _N, "DROP INDEX CONCURRENTLY, in a migration of its own, waits without making the readers wait."
    ),
    "reindex-not-concurrent": Rule(_W, "REINDEX (CONCURRENTLY), in a migration of its own."),
    "detach-not-concurrent": Rule(_N, "DETACH PARTITION … CONCURRENTLY, in a migration of its own."),
    "attach-scans": Rule(
        _W, "Give the table a CHECK with the partition's bounds first (NOT VALID, then VALIDATE): no scan is needed."
    ),
    "blocking-maintenance": Rule(
        _W, "Not in a migration: pg_repack, REFRESH MATERIALIZED VIEW CONCURRENTLY, or a plain VACUUM at a quiet hour."
    ),
    "truncate": Rule(_W, "If the rows are to go: DELETE in batches; if nothing uses the table, say so in an allow."),
    "every-row": Rule(_W, "Fill or delete in batches outside of the migration (a job), or say WHERE."),
    "work-under-lock": Rule(
        _W, "Split the file: the statement that takes the lock in one migration, the long work in another."
    ),
    "trigger-disabled": Rule(_W, "Running code relies on the trigger: replace its function instead."),
    "transaction-in-file": Rule(
        _W, "Leave it to orchestrator, which gives each migration a transaction; split the file where it must end."
    ),
    "concurrently-mixed": Rule(_W, "Give what runs CONCURRENTLY, or outside a transaction, a migration of its own."),
    "unlisted-file": Rule(
        _W, "Generate it with drizzle-kit (--custom), so that meta/_journal.json names it; or delete it."
    ),
    "changed-after-apply": Rule(_W, "Put the change into a new migration, and restore this file."),
    "never-runs": Rule(_W, "Re-date it: give it a `when` in meta/_journal.json that is newer than every applied one."),
    "unused-allow": Rule(_W, "Delete the comment."),
    "allow-without-reason": Rule(_W, "Say why: `-- lint: allow RULE because …`."),
    "long-name": Rule(_N, "Name it yourself, in at most 63 bytes."),
}


class Hit(NamedTuple):
    """A rule that a statement breaks: `offset` is where, in bytes from the statement's first token."""

    rule: str
    why: str
    offset: int = 0
    level: Level | None = None


@dataclass(slots=True)
class Statements:
    """What the statements so far of one file have done to the open transaction."""

    known: Known
    begun: bool = False
    ended: bool = False
    unvalidated: set[tuple[Name, str]] = field(default_factory=set)
    told_of_lock: bool = False
    emptied: set[Name] = field(default_factory=set)
    # Types that the file makes, and those that it has put aside for one of the same name: nobody knows the new name.
    makes_types: frozenset[Name] = frozenset()
    put_aside: set[Name] = field(default_factory=set)

    def end(self) -> None:
        """The transaction is over."""
        self.known.end_transaction()
        self.unvalidated.clear()
        self.emptied.clear()
        self.told_of_lock = False


def check(at: Statements, node: str, fields: Tree, impact: Impact) -> Iterator[Hit]:
    """The rules that a statement breaks, before `known` has learned it."""
    if node == "DoStmt":
        for inner in block_statements(fields)[0]:
            for hit in check(at, inner.node, inner.fields, impact_of(inner.node, inner.fields, at.known)):
                yield hit._replace(offset=0)  # the place inside the block's text is not one in the file
        return
    if rule := _CHECKS.get(node):
        yield from rule(at, fields, impact)


def check_held(at: Statements, held: list[HeldLock]) -> Iterator[Hit]:
    """Long work under a lock of an earlier statement: told once in a transaction."""
    if held and not at.told_of_lock:
        at.told_of_lock = True
        strongest = max(held, key=lambda h: h.lock)
        tables = sorted({str(h.table) for h in held if h.lock is strongest.lock})
        yield Hit(
            "work-under-lock",
            f"the transaction still holds the lock on {', '.join(tables)} that statement {strongest.taken_by} took:"
            f" {strongest.lock.blocks} wait until this ({strongest.work}) and all that follows is done",
        )


# --- ALTER TABLE -----------------------------------------------------------------------------------------------------


# What a statement does to rows is decided by `impact`; these say which rule it breaks.
WORK_RULES = {
    Cause.NEW_VALUES: "rewrites-table",
    Cause.REQUIRED: "required-column",
    Cause.INDEX: "unique-builds-index",
    Cause.CHECK: "constraint-not-valid",
    Cause.NOT_NULL: "set-not-null",
    Cause.FOREIGN_KEY: "constraint-not-valid",
    Cause.TYPE_CHANGE: "type-change",
    Cause.STORAGE: "rewrites-table",
    Cause.PARTITION_BOUNDS: "attach-scans",
}


def _alter_table(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    name, known = ast.relation(fields["relation"]), at.known
    if fields["objtype"] not in {"OBJECT_TABLE", "OBJECT_FOREIGN_TABLE", "OBJECT_MATVIEW"}:
        return
    works = [] if known.is_fresh(name) else list(_works(at, impact))
    yield from works
    changed = {hit.offset for hit in works if hit.rule == "type-change"}
    for command in ast.commands(fields):
        kind = command["subtype"].removeprefix("AT_")
        if known.is_fresh(name):
            continue
        if kind == "AddConstraint" and ast.is_unvalidated(added := command["def"]["Constraint"]):
            at.unvalidated.add((known.full(name), added.get("conname", "")))
        if kind == "AlterColumnType" and ast.offset(command["def"]["ColumnDef"]) not in changed:
            yield from _alter_type(at, name, command)
        if rule := _COMMANDS.get(kind):
            yield from rule(at, name, command)


def _works(at: Statements, impact: Impact) -> Iterator[Hit]:
    """One finding for each rule and place, whatever number of partitions it concerns."""
    told: set[tuple[str, int | str]] = set()
    for touch in impact.touches:
        if touch.fresh:
            continue
        for work in touch.works:
            rule = WORK_RULES.get(work.cause, "")
            place = rule, work.offset or work.why
            if not rule or place in told or (work.cause is Cause.REQUIRED and touch.table in at.emptied):
                continue
            told.add(place)
            yield Hit(rule, _work_why(touch, work), work.offset)


def _work_why(touch: Touch, work: Work) -> str:
    if work.cause is Cause.REQUIRED:
        return work.why
    builds = " builds an index" if work.cause is Cause.INDEX and work.does == "builds" else ""
    tables = touch.table if work.other is None else f"{touch.table} and {work.other}"
    ends = ", and running code meets another type" if work.cause is Cause.TYPE_CHANGE else ""
    return f"{work.why}{builds}: {touch.lock.blocks} of {tables} wait meanwhile{ends}"


def _validate(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    if (at.known.full(name), command["name"]) in at.unvalidated:
        why = f"{command['name']} was added in the same transaction, whose lock stays while each row is tested"
        yield Hit("validate-in-same-transaction", why)


def _alter_type(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    column, definition = command["name"], command["def"]["ColumnDef"]
    facts = at.known.column(name, column)
    if not (facts and facts.fresh):
        old = facts.type if facts else "its type"
        new = ast.column_type(definition["typeName"])
        why = f"{name}.{column}: {old} → {new} keeps the stored values, but running code meets another type"
        yield Hit("type-change", why, ast.offset(definition), Level.NOTE)


def _drop_column(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    facts = at.known.column(name, command["name"])
    if not (facts and facts.fresh):
        yield Hit("drop-column", f"running code that reads or writes {name}.{command['name']} fails from here on")


def _drop_constraint(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    del at
    yield Hit("drop-constraint", f"{name} no longer guarantees {command['name']}")


def _column_default(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    if "def" in command:
        return
    facts = at.known.column(name, command["name"])
    if facts and facts.not_null:
        why = f"{name}.{command['name']} is NOT NULL: an INSERT that leaves it out fails from here on"
        yield Hit("drop-default", why)
    elif not (facts and facts.fresh):
        yield Hit("drop-default", f"an INSERT that leaves {name}.{command['name']} out gets NULL from here on")


def _drop_not_null(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    facts = at.known.column(name, command["name"])
    if not (facts and facts.fresh):
        yield Hit("drop-not-null", f"running code can meet NULL in {name}.{command['name']}")


def _detach(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    del at
    if not command["def"]["PartitionCmd"].get("concurrent"):
        yield Hit("detach-not-concurrent", f"reads and writes of {name} and all its partitions wait for the lock")


def _disable_trigger(at: Statements, name: Name, command: Tree) -> Iterator[Hit]:
    del at
    yield Hit("trigger-disabled", f"{command.get('name', 'every trigger')} of {name} does not fire from here on")


_COMMANDS: dict[str, Callable[[Statements, Name, Tree], Iterator[Hit]]] = {
    "ColumnDefault": _column_default,
    "DetachPartition": _detach,
    "DisableTrig": _disable_trigger,
    "DisableTrigAll": _disable_trigger,
    "DisableTrigUser": _disable_trigger,
    "DropColumn": _drop_column,
    "DropConstraint": _drop_constraint,
    "DropNotNull": _drop_not_null,
    "ValidateConstraint": _validate,
}


# --- Other statements ------------------------------------------------------------------------------------------------


def _create_index(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    if fields.get("concurrent"):
        if at.begun:
            yield Hit("concurrently-in-transaction", "CREATE INDEX CONCURRENTLY refuses a transaction (25001)")
        return
    for touch in impact.touches:
        if touch.builds_index and not touch.fresh:
            why = f"{touch.builds_index}: {touch.lock.blocks} of {ast.relation(fields['relation'])} wait meanwhile"
            yield Hit("index-not-concurrent", why)
            return


_OBJECTS = {
    "OBJECT_VIEW": "the view",
    "OBJECT_MATVIEW": "the materialized view",
    "OBJECT_SEQUENCE": "the sequence",
    "OBJECT_TYPE": "the type",
    "OBJECT_DOMAIN": "the domain",
    "OBJECT_FUNCTION": "the function",
    "OBJECT_PROCEDURE": "the procedure",
    "OBJECT_ROUTINE": "the routine",
    "OBJECT_AGGREGATE": "the aggregate",
    "OBJECT_SCHEMA": "the schema",
    "OBJECT_EXTENSION": "the extension",
    "OBJECT_TRIGGER": "the trigger",
    "OBJECT_FOREIGN_TABLE": "the foreign table",
}


def _drop(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    kind, known = fields["removeType"], at.known
    for item in fields.get("objects", ()):
        words = ast.dropped_name(kind, item)
        name = ast.qualified(words)
        if kind == "OBJECT_INDEX":
            index = known.find(name)
            if fields.get("concurrent"):
                if at.begun:
                    yield Hit("concurrently-in-transaction", "DROP INDEX CONCURRENTLY refuses a transaction (25001)")
            elif not (index and (index.fresh or (index.on and known.is_fresh(index.on)))):
                on = index.on if index and index.on else "its table"
                yield Hit("drop-index", f"reads and writes of {on} wait for the lock on {name}")
        elif kind == "OBJECT_TABLE":
            if not known.is_fresh(name):
                yield Hit("drop-table", f"running code that uses {name} fails from here on, and its rows are gone")
        elif kind in _OBJECTS and not _is_fresh_object(known, kind, words) and name not in at.put_aside:
            yield Hit("drop-object", f"running code that uses {_OBJECTS[kind]} {'.'.join(words)} fails from here on")


def _is_fresh_object(known: Known, kind: str, words: list[str]) -> bool:
    name = ast.qualified(words)
    if kind in {"OBJECT_TYPE", "OBJECT_DOMAIN"}:
        fact = known.type_fact(name)
        return fact is not None and fact.fresh
    if kind in {"OBJECT_FUNCTION", "OBJECT_PROCEDURE", "OBJECT_ROUTINE"}:
        return name.name in known.fresh_functions
    if kind == "OBJECT_SCHEMA":
        return words[0] in known.fresh_schemas
    if kind == "OBJECT_TRIGGER":
        return known.is_fresh(ast.qualified(words[:-1])) or words[-1] in known.fresh_triggers
    return known.is_fresh(name)


_RENAMED_UNSEEN = frozenset({"OBJECT_INDEX", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"})


def _rename(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    kind, known = fields["renameType"], at.known
    if kind in _RENAMED_UNSEEN:
        return
    if "relation" in fields:
        name = ast.relation(fields["relation"])
        facts = known.column(name, fields.get("subname", ""))
        if known.is_fresh(name) or (facts and facts.fresh):
            return
        what = f"{name}.{fields['subname']}" if kind in {"OBJECT_COLUMN", "OBJECT_ATTRIBUTE"} else str(name)
    elif "object" in fields:
        words = ast.dropped_name(kind, fields["object"])
        # A trigger's function is called by the trigger alone, which holds it by its oid.
        if _is_fresh_object(known, kind, words) or words[-1] in known.trigger_functions:
            return
        name = ast.qualified(words)
        if kind == "OBJECT_TYPE" and name in at.makes_types:
            at.put_aside.add(name._replace(name=fields["newname"]))
            return
        what = ".".join(words)
    else:
        what = fields.get("subname", "")
    yield Hit("rename", f"running code that uses {what} fails from here on")


def _set_schema(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    if "relation" in fields and not at.known.is_fresh(name := ast.relation(fields["relation"])):
        yield Hit("rename", f"running code that uses {name} fails from here on: its schema is another")


def _alter_enum(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    name = ast.qualified(ast.strings(fields["typeName"]))
    fact = at.known.type_fact(name)
    if "oldVal" in fields and not (fact and fact.fresh):
        yield Hit("rename", f"running code that uses the value {fields['oldVal']!r} of {name} fails from here on")


def _create_table(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del at, impact
    seen: set[str] = set()
    for definition in ast.columns(fields):
        if definition["colname"] in seen:
            yield Hit("duplicate-column", f"{definition['colname']} is defined twice", ast.offset(definition))
        seen.add(definition["colname"])


def _truncate(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    at.emptied |= {at.known.full(ast.relation(one["RangeVar"])) for one in fields.get("relations", ())}
    names = [str(t.table) for t in impact.touches if not t.fresh]
    if names:
        yield Hit("truncate", f"every row of {', '.join(names)} is gone, and reads and writes wait for the lock")


def _every_row(verb: str) -> Callable[[Statements, Tree, Impact], Iterator[Hit]]:
    def rule(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
        del impact
        name = ast.relation(fields["relation"])
        if verb == "UPDATE":
            yield from _assigned_twice([t["ResTarget"] for t in fields.get("targetList", ()) if "ResTarget" in t])
        if verb == "DELETE" and "whereClause" not in fields and "usingClause" not in fields:
            at.emptied.add(at.known.full(name))
        if "whereClause" not in fields and "fromClause" not in fields and not at.known.is_fresh(name):
            why = f"{verb} without WHERE: every row of {name} stays locked until the transaction ends"
            yield Hit("every-row", why)

    return rule


def _insert(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    if "relation" in fields:
        at.emptied.discard(at.known.full(ast.relation(fields["relation"])))
    yield from _assigned_twice([c["ResTarget"] for c in fields.get("cols", ()) if "ResTarget" in c])


def _assigned_twice(targets: list[Tree]) -> Iterator[Hit]:
    seen: set[str] = set()
    for target in targets:
        name = target.get("name", "")
        if name in seen and "indirection" not in target:
            yield Hit("duplicate-column", f"{name} is set twice", ast.offset(target))
        seen.add(name)


def _reindex(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del at, impact
    if not is_on(fields.get("params"), "concurrently"):
        yield Hit("reindex-not-concurrent", "writes wait while the indexes are built again, and nearly every query too")


def _maintenance(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del at, fields
    for touch in impact.touches:
        if touch.rewrites and not touch.fresh and touch.lock is Lock.ACCESS_EXCLUSIVE:
            why = f"{touch.rewrites}: {touch.lock.blocks} of {touch.table} wait meanwhile"
            yield Hit("blocking-maintenance", why)
    if not impact.touches and impact.notes:
        yield Hit("blocking-maintenance", impact.notes[0])


def _vacuum(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    if is_on(fields.get("options"), "full"):
        yield from _maintenance(at, fields, impact)


def _lock(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del at, fields
    for touch in impact.touches:
        if touch.lock >= Lock.SHARE and not touch.fresh:
            why = f"{touch.lock.blocks} of {touch.table} wait until the migration is done"
            yield Hit("blocking-maintenance", f"LOCK TABLE: {why}")


def _transaction(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del impact
    if at.ended:
        return  # after the file's own COMMIT there is no transaction of the migrator's; the file needs its own
    kind = fields["kind"].removeprefix("TRANS_STMT_")
    if kind in {"BEGIN", "START"}:
        yield Hit("transaction-in-file", "BEGIN in a file: the migrator has a transaction open already")
    elif kind in {"COMMIT", "ROLLBACK", "PREPARE"}:
        why = f"{kind} ends the migrator's transaction: if a later statement fails, what came before stays"
        yield Hit("transaction-in-file", why)


def _alter_domain(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    fact = at.known.type_fact(ast.qualified(ast.strings(fields["typeName"])))
    constraint = fields.get("def", {}).get("Constraint", {})
    validates = fields["subtype"] in {"C", "O"} and not constraint.get("skip_validation")
    if validates and not (fact and fact.fresh):
        tables = [str(t.table) for t in impact.touches]
        on = f" of {', '.join(tables)}" if tables else " of every table that uses it"
        yield Hit("constraint-not-valid", f"each value{on} is tested: writes wait meanwhile")


def _drop_database(at: Statements, fields: Tree, impact: Impact) -> Iterator[Hit]:
    del at, impact
    yield Hit("drop-database", f"everything in {fields['dbname']} is gone")


_CHECKS: dict[str, Callable[[Statements, Tree, Impact], Iterator[Hit]]] = {
    "AlterDomainStmt": _alter_domain,
    "AlterEnumStmt": _alter_enum,
    "AlterObjectSchemaStmt": _set_schema,
    "AlterTableStmt": _alter_table,
    "ClusterStmt": _maintenance,
    "CreateStmt": _create_table,
    "DeleteStmt": _every_row("DELETE"),
    "DropStmt": _drop,
    "DropdbStmt": _drop_database,
    "IndexStmt": _create_index,
    "InsertStmt": _insert,
    "LockStmt": _lock,
    "RefreshMatViewStmt": _maintenance,
    "ReindexStmt": _reindex,
    "RenameStmt": _rename,
    "TransactionStmt": _transaction,
    "TruncateStmt": _truncate,
    "UpdateStmt": _every_row("UPDATE"),
    "VacuumStmt": _vacuum,
}
