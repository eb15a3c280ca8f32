"""The errors of a migration, in the words of the person who reads them at night. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import MigrationError
from orchestrator.migrator.resolve import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.records import Unfinished
    from orchestrator.migrator.resolve import HistoryFinding, Plan
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.sql.statements import Statement

# lock_not_available, deadlock_detected
LOCK_ERRORS = frozenset({"55P03", "40P01"})

_NEXT_STEP = "Fix what it names: the file, the data or the server"

_AGAIN = "; then start again"

_NOT_SINGLE = "Set MIGRATION_TRANSACTION=each (the default), or take the statement out"

# What to do next, by SQLSTATE (PostgreSQL manual, appendix A), where that has one cause; `causes` tells the others.
_REMEDIES: dict[str, str] = {
    "42501": "Grant the user of DATABASE_URL what it lacks, or give MIGRATION_DATABASE_URL a user that has it",
    "22021": "Text holds bytes that its encoding has not: a file is UTF-8, so take out a SET client_encoding",
    "53100": "The server's disk is full: free some space or enlarge the volume",
    "53200": "The server ran out of memory: give it more",
    "55P03": "The lock was not granted: end the session that holds it",
    "40P01": "Another session and the migration waited for each other: stop that session",
    "25006": "The session is read-only: check default_transaction_read_only of the role and of the database",
    "23505": "The data holds duplicates, which the migration forbids: correct them",
    "23502": "The data holds NULLs, which the migration forbids: fill them",
    "23503": "The data refers to rows that do not exist: correct it",
    "23514": "The data violates a check that the migration adds: correct it",
}


# Whose a command is that is not the file's, in the words of an error.
OPENING = "what begins its transaction"
RECORD = "our record of it in the schema orchestrator"


def failed_statement(
    error: Any,
    migration: Migration,
    raw: bytes | None,
    owner: Statement | str,
    *,
    done: int | None = None,
    shift: int = 0,
    single: bool = False,
) -> MigrationError:
    """What the server refused: a statement of the file, its COMMIT, or, in the words of `owner`, something of ours.

    `shift` is how many characters of ours were sent before the statement. `done` says how many statements of the file
    are done and stay, where the file is not one transaction; `single` that one transaction is around all files.
    """
    facts: dict[str, object] = {"migration": migration.name, "file": str(migration.path), "sqlstate": error.sqlstate}
    where = str(migration.path)
    if not isinstance(owner, str) and raw is not None:
        from orchestrator.migrator.sql.statements import excerpt, locate

        position = int(error.position) - shift if error.position else None
        line, column = locate(owner, position)
        where = f"{where}:{line}:{column}"
        facts |= {
            "statement": owner.index,
            "statement_kind": owner.kind,
            "line": line,
            "column": column,
            "excerpt": excerpt(raw, line, column),
        }
    elif owner == "COMMIT":
        facts["statement_kind"] = "COMMIT"
    else:
        where = f"{where}: the file itself was fine, but {owner} could not be written"
        facts["statement_kind"] = "our own"
    message = str(error.args[0]) if error.args else type(error).__name__
    facts |= {
        name: value
        for name, value in {
            "reason": message,
            "detail": error.detail,
            "hint": error.hint,
            "context": error.context,
            "schema": error.schema_name,
            "table": error.table_name,
            "column_name": error.column_name,
            "constraint": error.constraint_name,
        }.items()
        if value
    }
    if single:
        state = "the database is as it was before the first of the pending files (MIGRATION_TRANSACTION=all)"
    elif not done:
        state = "the database is as it was before this file"
    else:
        state = f"the first {done} statements of this file are done and stay; the next start goes on behind them"
        facts["statements_done"] = done
    remedy = _REMEDIES.get(error.sqlstate or "", _NEXT_STEP)
    if facts["statement_kind"] == "our own" and error.sqlstate not in LOCK_ERRORS:
        remedy = "Look at the rights of the user of DATABASE_URL, at row security and at triggers of that table"
    if single and error.sqlstate in {"25001", "2D000"}:  # as in `refuses_transaction`
        remedy = _NOT_SINGLE
    parts = [f"{where}: {message} (SQLSTATE {error.sqlstate})"]
    parts += [f"{name}: {value}" for name, value in (("detail", error.detail), ("hint", error.hint)) if value]
    return MigrationError("; ".join(parts), remedy=f"{remedy}{_AGAIN}; {state}.", facts=facts)


def with_advice(error: MigrationError, advice: str) -> None:
    """Put `advice` in the place of what the error's remedy says about its cause; what it says of the state stays."""
    _, again, state = error.remedy.partition(_AGAIN)
    error.remedy = f"{advice}{again}{state}"


def already_there(plan: Plan, name: str) -> str:
    """What to do where the objects of the pending file `name` are in the database and the ledger does not have it."""
    if any(one.kind is Kind.ORPHANED for one in plan.findings):
        return (
            "The ledger has rows without a file, as after the folder was squashed: if all that this file makes is"
            f" there, `orchestrator repair applied {name}` says so to the ledger"
        )
    if not plan.applied:
        return (
            "The ledger is empty: if the schema was made without it (drizzle-kit push, a dump), `orchestrator repair"
            " baseline` enters the files whose objects are there"
        )
    return (
        "Another tool or a person made it: if all that this file makes is there, `orchestrator repair applied"
        f" {name}`; else take what is there out of the file, or drop it"
    )


def statement_of(error: MigrationError, parsed: Sequence[Statement]) -> Statement | None:
    """The statement that failed, where it was one of the file's."""
    number = error.facts.get("statement")
    return parsed[number - 1] if isinstance(number, int) and 0 < number <= len(parsed) else None


def refuses_transaction(error: MigrationError, statement: Statement) -> bool:
    """Whether the server refused `statement` for the transaction around it, and would take it by itself.

    Only its catalogue knows of some: REINDEX and CLUSTER of a partitioned table commit after each partition (25001,
    PreventInTransactionBlock), and a procedure may say COMMIT (2D000, SPI_commit). What stands in a function or a block
    is refused there as well (25001 with a context), and a SET TRANSACTION has only come too late.
    """
    if error.facts.get("sqlstate") == "2D000":
        return statement.ends_transactions != "no"
    if error.facts.get("sqlstate") != "25001" or statement.kind in {"SELECT", "SET"}:
        return False
    return statement.kind in {"REINDEX", "CLUSTER"} or "context" not in error.facts


def blocked(
    error: MigrationError, blockers: Sequence[Mapping[str, object]], *, attempts: int, waited_s: float
) -> MigrationError:
    """Locks were not to be had for as long as MIGRATION_DDL_RETRY_FOR allows."""
    names = "; ".join(describe_blocker(one) for one in blockers) or "no session that this user can see"
    tries = "once" if attempts == 1 else f"{attempts} times in {waited_s:.0f} s"
    pids = [one["pid"] for one in blockers if one.get("pid")]
    stop = " or ".join(f"SELECT pg_terminate_backend({pid})" for pid in pids[:3])
    gids = [one["gid"] for one in blockers if one.get("gid")]
    stop = " or ".join(filter(None, [stop, *(f"ROLLBACK PREPARED '{gid}'" for gid in gids[:3])]))
    state = error.remedy.partition("; then start again; ")[2]
    return MigrationError(
        f"{error.message}; tried {tries}, blocked by: {names}",
        remedy=f"Wait for it to end, or stop it{f': {stop}' if stop else ''}; or raise MIGRATION_DDL_RETRY_FOR{_AGAIN}"
        f"{f'; {state}' if state else '.'}",
        facts={**error.facts, "blockers": list(blockers), "attempts": attempts, "waited_s": round(waited_s, 1)},
    )


def describe_blocker(one: Mapping[str, object]) -> str:
    """One session that holds what we wait for, in a line."""
    if one.get("gid"):
        return f"the prepared transaction {one['gid']!r} of {one['username']}, for {one['transaction_age_s']:g} s"
    who = f"pid {one['pid']}"
    if one.get("application_name"):
        who += f", {one['application_name']!r}"
    if one.get("state"):
        who += f", {one['state']}"
    if one.get("transaction_age_s") is not None:
        who += f", its transaction open for {one['transaction_age_s']:g} s"
    return f"{who}: {one['query']}" if one.get("query") else who


def refuse_in_single_transaction(migration: Migration, statements: Sequence[Statement]) -> None:
    """MIGRATION_TRANSACTION=all: raise where a statement of the file cannot stand in one transaction with others."""
    culprit = next((s for s in statements if not s.fits_a_transaction), None)
    if culprit is not None:
        raise MigrationError(
            f"{migration.path}:{culprit.line}: {culprit.kind} cannot run inside the single transaction of"
            " MIGRATION_TRANSACTION=all",
            remedy=f"{_NOT_SINGLE}; nothing was run.",
            facts={"file": str(migration.path), "line": culprit.line, "statement_kind": culprit.kind},
        )


def refused_history(refused: Sequence[tuple[Source, HistoryFinding]]) -> MigrationError:
    """Files and ledger disagree in a way that is refused; nothing was run."""
    shown = [f"{f.kind}: {f.name}{f', applied {f.applied_at}' if f.applied_at else ''}" for _, f in refused[:5]]
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""  # noqa: PLR2004
    return MigrationError(
        f"files and ledger disagree, and nothing was run: {'; '.join(shown)}{more}",
        remedy=refused[0][1].remedy,
        facts={
            "refused": [
                {
                    "source": source.label,
                    "kind": str(finding.kind),
                    "migration": finding.name,
                    "row_id": finding.row_id,
                    "created_at": finding.created_at,
                    "applied_at": finding.applied_at,
                    "remedy": finding.remedy,
                }
                for source, finding in refused
            ]
        },
    )


def lock_was_lost(migration: Migration) -> MigrationError:
    """The session does not hold the lock inside the migration's transaction: a transaction pooler stands between."""
    return MigrationError(
        f"{migration.path}: this session no longer holds the migration lock; the migration was rolled back",
        remedy="A pooler in transaction mode (PgBouncer, Supavisor) gives each transaction another session: set"
        " MIGRATION_DATABASE_URL to the server itself, or to a pooler in session mode.",
        facts={"migration": migration.name, "file": str(migration.path)},
    )


def transaction_was_ended(migration: Migration) -> MigrationError:
    """Something in the file ended the transaction around it, unseen by the grammar."""
    return MigrationError(
        f"{migration.path}: a statement ended the transaction around the migration; its ledger row was not written",
        remedy="Write the COMMIT as a statement of its own, so that it is seen; then correct what was applied.",
        facts={"migration": migration.name, "file": str(migration.path)},
    )


def prefix_was_edited(migration: Migration, interrupted: Unfinished) -> MigrationError:
    """A file that is half applied was changed in the half that is."""
    return MigrationError(
        f"{migration.path}: its first {interrupted.done} statements were applied by an interrupted run, and they have"
        " changed since",
        remedy="Restore these statements as they were applied; what stands behind them may change. Nothing was run.",
        facts={"migration": migration.name, "file": str(migration.path), "statements_done": interrupted.done},
    )


def invalid_index(migration: Migration, statement: Statement, name: str) -> MigrationError:
    """CREATE INDEX CONCURRENTLY ended and the index is not valid."""
    return MigrationError(
        f"{migration.path}:{statement.line}: the index {name} was built and is not valid; no ledger row was written",
        remedy="Start again: it is dropped and built again. If it stays invalid, look for duplicates in the data.",
        facts={"migration": migration.name, "file": str(migration.path), "line": statement.line, "index": name},
    )
