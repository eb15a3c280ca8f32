"""What a run would do, statement by statement, as plain data for `plan`. Touches database and files; writes nothing.

No lock is taken, and a role that can only read can ask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.analysis import ast
from orchestrator.analysis.catalog_reader import read_known, read_names
from orchestrator.analysis.do_blocks import block_statements
from orchestrator.analysis.follow import follow
from orchestrator.analysis.impact import impact_of
from orchestrator.analysis.locks import Holding, Impact
from orchestrator.analysis.pending import pending_file
from orchestrator.analysis.would_fail import WouldFail
from orchestrator.migrator.records import SERVICE_SCHEMA
from orchestrator.migrator.run.errors import already_there, refuse_in_single_transaction
from orchestrator.migrator.state import readable_surveys
from orchestrator.migrator.status import described_findings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.analysis.catalog import Known
    from orchestrator.analysis.locks import HeldLock, Touch
    from orchestrator.analysis.names_there import NamesThere
    from orchestrator.analysis.sql_file import SqlFile
    from orchestrator.migrator.resolve import Ahead, Policy
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.sql.statements import Statement
    from orchestrator.migrator.state import Survey

_SHOWN_CHARACTERS = 200
# From here on a table counts as large: what blocks it for as long as it is rewritten is no blink.
LARGE_ROWS = 10_000
LARGE_BYTES = 10 * 1024 * 1024


async def preview(
    connection: Any,
    sources: Sequence[Source],
    *,
    policy: Policy,
    ahead: Ahead,
    transaction: Literal["each", "all"] = "each",
    extensions: Sequence[str] = (),
) -> dict[str, Any]:
    """What `migrate` would do now, JSON-ready. Call it in a transaction that only reads.

    `extensions` are those that a run makes first.

    Raises:
        ReadDeniedError: the role may not read a ledger that is there, with the GRANTs that let it.
        SqlSyntaxError: a pending file is not SQL: `migrate` would refuse it before it runs anything.
        MigrationError: `transaction` is all, and a statement cannot stand in one with others: so would it this.
    """
    surveys = await readable_surveys(connection, sources, policy=policy, ahead=ahead)
    files: dict[tuple[str, str], SqlFile] = {
        (one.source.label, migration.name): await pending_file(connection, migration)
        for one in surveys
        for migration in one.plan.pending
    }
    if transaction == "all":
        for one in surveys:
            for migration in one.plan.pending:
                refuse_in_single_transaction(migration, files[one.source.label, migration.name].statements)
    known, there = await known_for(connection, files.values(), surveys)
    there.install(extensions)
    refused = [f for s in surveys for f in s.plan.refusals]
    is_one = transaction == "all"
    told = [await asyncio.to_thread(_source, one, files, known, there, is_one=is_one) for one in surveys]
    return {
        "would_run": not refused and bool(files),
        "refused": bool(refused),
        "transaction": transaction,
        "pending": sum(len(s.plan.pending) for s in surveys),
        "failures": sum(len(migration["failures"]) for source in told for migration in source["pending"]),
        "sources": told,
    }


async def known_for(connection: Any, files: Iterable[SqlFile], surveys: Sequence[Survey]) -> tuple[Known, NamesThere]:
    """The catalogue, as far as the files speak of it: what is known of it for locks, and which names are there."""
    named, functions = await asyncio.to_thread(_mentioned, files)
    known = await read_known(connection, named, functions)
    return known, await read_names(connection, named, {SERVICE_SCHEMA, *(one.source.table.schema for one in surveys)})


def _mentioned(files: Iterable[SqlFile]) -> tuple[set[str], set[str]]:
    named: set[str] = set()
    functions: set[str] = set()
    for file in files:
        for _, node, fields in file.trees():
            inner = block_statements(fields)[0] if node == "DoStmt" else ()
            for one_node, one in ((node, fields), *((i.node, i.fields) for i in inner)):
                named |= {name.name for name in ast.mentioned(one_node, one)}
                functions |= {name.name for name in ast.called(one)}
    return named, functions


def _source(
    one: Survey, files: Mapping[tuple[str, str], SqlFile], known: Known, there: NamesThere, *, is_one: bool
) -> dict[str, Any]:
    source = one.source
    pending = []
    for migration in one.plan.pending:
        file = files[source.label, migration.name]
        done = one.unfinished[migration.name].done if migration.name in one.unfinished else 0
        pending.append(
            {
                "name": migration.name,
                "file": migration.path,
                "size_bytes": migration.size_bytes,
                "transaction": "one" if file.is_one_transaction else "steps",
                "statements_done": done,
                **_statements(file, known, there, done, is_one=is_one),
            }
        )
        if any(failure["rule"] == "already-there" for failure in pending[-1]["failures"]):
            pending[-1]["remedy"] = already_there(one.plan, migration.name)
    known.end_transaction()
    return {
        "source": source.label,
        "folder": str(source.folder.path),
        "ledger": source.table.key,
        "ledger_exists": one.ledger.exists,
        "applied": len(one.plan.applied),
        "pending": pending,
        "findings": described_findings(one.plan.findings),
        "unlisted": list(source.folder.unlisted),
    }


def _statements(file: SqlFile, known: Known, there: NamesThere, done: int, *, is_one: bool) -> dict[str, Any]:
    """The statements of a file; neighbours that do the same to the same tables are one entry with a count.

    The first `done` were run already; `is_one`: the transaction goes on in the next file.
    """
    failures, would_fail = list[dict[str, Any]](), WouldFail(known, there)
    shown: list[dict[str, Any]] = []
    held: list[HeldLock] = []
    holding = Holding()
    steps = not file.is_one_transaction
    in_own = False  # after the file's own COMMIT each statement is a transaction
    last: tuple[str, Impact] | None = None
    for statement, node, fields in file.trees():
        if statement.transaction_control in {"commit", "rollback"} or not statement.transactional:
            known.end_transaction()
            holding = Holding()
            in_own = in_own or statement.transaction_control is not None
        for failure in would_fail.check(node, fields) if statement.index > done else ():
            failures.append({"line": statement.line, "rule": failure.rule, "why": failure.why})
        impact = impact_of(node, fields, known, outside=not statement.transactional)
        held += holding.add(statement.index, node, impact)
        if in_own and steps:
            holding = Holding()
        follow(known, node, fields)
        if last == (statement.kind, impact) and statement.kind in {"INSERT", "UPDATE", "DELETE"}:
            shown[-1]["count"] += 1
            continue
        last = statement.kind, impact
        shown.append(_described(statement, fields, impact))
    if not is_one:
        known.end_transaction()
    return {
        "statements": shown,
        "failures": failures,
        "held": _held(held),
        "hurts": any(s["hurts"] for s in shown) or bool(held),
    }


def _held(held: Sequence[HeldLock]) -> list[dict[str, Any]]:
    """One entry for each table whose lock stays while others are worked on."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in held:
        entry = found.setdefault(
            (str(one.table), one.taken_by),
            {
                "table": str(one.table),
                "lock": one.lock.mode,
                "blocks": one.lock.blocks,
                "taken_by": one.taken_by,
                "until": one.until,
                "work": one.work,
            },
        )
        entry["until"] = one.until
        if one.work not in entry["work"].split("; "):
            entry["work"] += f"; {one.work}"
    return list(found.values())


def _described(statement: Statement, fields: ast.Tree, impact: Impact) -> dict[str, Any]:
    text = " ".join(statement.text[: 2 * _SHOWN_CHARACTERS].split())
    lock = impact.lock
    return {
        "index": statement.index,
        "count": 1,
        "line": statement.line,
        "column": statement.column,
        "kind": statement.kind,
        "actions": ast.actions(fields),
        "text": text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…",
        "outside_transaction": impact.outside,
        "lock": lock.mode if lock else None,
        "hurts": impact.hurts,
        "touches": [_touched(touch) for touch in impact.touches],
        "notes": list(impact.notes),
    }


def _touched(touch: Touch) -> dict[str, Any]:
    return {
        "table": str(touch.table),
        "kind": touch.kind,
        "new": touch.fresh,
        "lock": touch.lock.mode,
        "blocks": touch.lock.blocks,
        "rewrites": touch.rewrites or None,
        "scans": touch.scans or None,
        "builds_index": touch.builds_index or None,
        "rows": touch.rows,
        "size_bytes": touch.size_bytes,
        "hurts": touch.hurts,
    }
