"""Statements that refuse a transaction: whether an earlier try of one came to its end, and what it left behind.

Such a statement and the note that it is done cannot be one transaction, so after a crash between the two the catalogue
must tell. Reads the catalogue; what has to be cleared is returned as SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.database.quoting import identifier
from orchestrator.migrator.run.session import DISCARD, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.migrator.sql.parser import Parsed
    from orchestrator.migrator.sql.statements import ConcurrentIndex, Statement

_INDEX = (
    "SELECT i.indexrelid AS oid, i.indisvalid AS valid, n.nspname::pg_catalog.text AS schema,"
    " c.relname::pg_catalog.text AS name"
    " FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    # The index of a partitioned table (relkind I) is invalid until its last partition is attached: that is no failure.
    " WHERE c.relkind = 'i'"
)
# What REINDEX CONCURRENTLY leaves where it ends half way: the new index, or the old one (PostgreSQL manual, REINDEX).
# Its toast table's index, and the partitions of a partitioned table, are its work as well.
_HALF_REINDEXED = (
    f"{_INDEX} AND NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$' AND (i.indrelid = ANY (SELECT t.relid"  # noqa: S608
    " FROM pg_catalog.unnest($1::pg_catalog.oid[]) AS given(oid), LATERAL (SELECT given.oid AS relid UNION ALL"
    " SELECT p.relid FROM pg_catalog.pg_partition_tree(given.oid) p) t) OR i.indrelid = ANY (SELECT r.reltoastrelid"
    " FROM pg_catalog.pg_class r WHERE r.oid = ANY($1::pg_catalog.oid[])))"
)
_SUBSCRIPTION = (
    "SELECT 1 FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid"
    " WHERE s.subname = $1 AND d.datname = pg_catalog.current_database()"
)
_DATABASE = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1"
_TABLESPACE = "SELECT 1 FROM pg_catalog.pg_tablespace WHERE spcname = $1"
# SQL by grammar node: does the thing exist, named by the node's field? For drop and for what ends a prepared
# transaction, to be gone is the end.
_EXISTS = {
    "CreatedbStmt": ("dbname", _DATABASE, True),
    "DropdbStmt": ("dbname", _DATABASE, False),
    "CreateTableSpaceStmt": ("tablespacename", _TABLESPACE, True),
    "DropTableSpaceStmt": ("tablespacename", _TABLESPACE, False),
    "CreateSubscriptionStmt": ("subname", _SUBSCRIPTION, True),
    "DropSubscriptionStmt": ("subname", _SUBSCRIPTION, False),
    # COMMIT PREPARED and ROLLBACK PREPARED
    "TransactionStmt": ("gid", "SELECT 1 FROM pg_catalog.pg_prepared_xacts WHERE gid = $1", False),
}


_ENDING_PROCEDURE = (
    "SELECT 1 FROM pg_catalog.pg_proc p WHERE p.prokind = 'p' AND p.proname = $1"
    " AND pg_catalog.lower(p.prosrc) ~ '\\m(commit|rollback|call)\\M' LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the catalogue says before a statement is run.

    `is_done`: it is as the statement would leave it. `leftovers` is the SQL that clears what an earlier try left
    behind, `instead` what is run in the statement's place. `known` are the oids of the table's indexes now.
    """

    is_done: bool = False
    leftovers: tuple[str, ...] = ()
    instead: str | None = None
    known: frozenset[int] = field(default_factory=frozenset)


async def look(connection: Any, statement: Statement, *, before: frozenset[int] | None) -> Look:
    """Look at what `statement` would make or drop.

    `before` are the `known` of an earlier try that did not come to its end, None for the first one.
    """
    if statement.kind == "DISCARD ALL":
        return Look(instead=joined(DISCARD))
    index = statement.concurrent_index
    if index is None:
        return await _other(connection, statement)
    if index.operation == "drop":
        return Look(is_done=await _find_index(connection, index) is None)
    if index.operation == "reindex":
        # Only after a try of ours: another's leftovers are for others to judge.
        left = await half_reindexed(connection, index) if before is not None else []
        return Look(leftovers=_drops(left))
    return await _create(connection, index, before)


async def _create(connection: Any, index: ConcurrentIndex, before: frozenset[int] | None) -> Look:
    if index.name is not None:
        found = await _find_index(connection, index)
        if found is None:
            return Look()
        return Look(is_done=found["valid"], leftovers=() if found["valid"] else _drops([found]))
    # The server chooses the name, and another one the second time: what is there since then was made by that try.
    indexes = await _indexes_of(connection, index)
    if before is None:
        return Look(known=frozenset(found["oid"] for found in indexes))
    made = [found for found in indexes if found["oid"] not in before]
    invalid = [found for found in made if not found["valid"]]
    return Look(is_done=len(made) > len(invalid), leftovers=_drops(invalid), known=before)


def tree_of(statement: Statement) -> Parsed | None:
    """The statement's tree; None where the grammar here does not know it, and the server does."""
    from orchestrator.migrator.sql import parser

    try:
        (parsed,) = parser.parse(statement.text.encode())
    except (parser.GrammarError, ValueError):  # ValueError: it is not one statement
        return None
    return parsed


async def calls_an_end(connection: Any, statement: Statement) -> bool:
    """Whether a CALL may run COMMIT or ROLLBACK: a procedure of that name says so, or calls others, which may.

    False for what is no CALL, and for languages whose text does not tell: then the server refuses it in a transaction.
    """
    parsed = tree_of(statement)
    if parsed is None or parsed.node != "CallStmt":
        return False
    name = parsed.fields()["funccall"]["funcname"][-1]["String"]["sval"]
    return bool(await _fetch(connection, _ENDING_PROCEDURE, name))


def stops_others(statement: Statement) -> bool:
    """Whether a statement outside a transaction takes locks for which readers or writers behind it wait.

    What is CONCURRENTLY does not, and must wait for others as long as they take.
    """
    if statement.kind != "VACUUM":
        return statement.kind in {"CLUSTER", "REINDEX"}
    parsed = tree_of(statement)
    options = parsed.fields().get("options", ()) if parsed is not None else ()
    return "full" in {option.get("DefElem", {}).get("defname") for option in options}


async def invalid_after(connection: Any, statement: Statement, known: frozenset[int]) -> str | None:
    """The name of an index that the statement has built and that is not valid; None where all is well."""
    index = statement.concurrent_index
    if index is None or index.operation == "drop":
        return None
    if index.operation == "create" and index.name is None:
        bad = [i for i in await _indexes_of(connection, index) if i["oid"] not in known and not i["valid"]]
    else:
        bad = await half_reindexed(connection, index) if index.operation == "reindex" else []
        found = await _find_index(connection, index) if index.name is not None else None
        bad += [found] if found is not None and not found["valid"] else []
    return str(bad[0]["name"]) if bad else None


async def half_reindexed(connection: Any, index: ConcurrentIndex) -> list[Any]:
    """The invalid indexes that a REINDEX CONCURRENTLY which did not come to its end has left."""
    if index.name is not None:
        owners = await _fetch(
            connection,
            "SELECT i.indrelid AS oid FROM pg_catalog.pg_index i WHERE i.indexrelid = pg_catalog.to_regclass($1)",
            _qualified(index.schema, index.name),
        )
    elif index.table is not None:
        owners = await _fetch(
            connection,
            "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid AS oid",
            _qualified(index.schema, index.table),
        )
    else:
        owners = await _fetch(
            connection,
            "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = ANY ('{r,m,t}'::pg_catalog.\"char\"[])"
            " AND ($1::pg_catalog.text IS NULL OR n.nspname = $1)",
            index.schema,
        )
    rows: list[Any] = await _fetch(
        connection, _HALF_REINDEXED, [row["oid"] for row in owners if row["oid"] is not None]
    )
    return rows


def _drops(found: Sequence[Any]) -> tuple[str, ...]:
    # A toast table's index is dropped without CONCURRENTLY: the server has no other way for it.
    return tuple(
        f"DROP INDEX {'' if row['schema'] == 'pg_toast' else 'CONCURRENTLY '}IF EXISTS"
        f" {_qualified(row['schema'], row['name'])}"
        for row in found
    )


async def _fetch(connection: Any, sql: str, *arguments: object) -> list[Any]:
    """The rows. Only the names of the file's objects are looked up by the path that the file has set.

    Each table, function, type and operator of ours is qualified.
    """
    rows: list[Any] = await connection.fetch(
        sql.replace(" = ", " OPERATOR(pg_catalog.=) ").replace(" ~ ", " OPERATOR(pg_catalog.~) "), *arguments
    )
    return rows


async def _fetchrow(connection: Any, sql: str, *arguments: object) -> Any:
    return next(iter(await _fetch(connection, sql, *arguments)), None)


def _qualified(schema: str | None, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}" if schema else identifier(name)


async def _find_index(connection: Any, index: ConcurrentIndex) -> Any:
    """The index of that name: in the schema that is written, or its table's, or the first of `search_path`."""
    if index.table is not None:
        return await _fetchrow(
            connection,
            f"{_INDEX} AND c.relname = $1 AND i.indrelid = pg_catalog.to_regclass($2)",
            index.name,
            _qualified(index.schema, index.table),
        )
    return await _fetchrow(
        connection,
        f"{_INDEX} AND i.indexrelid = pg_catalog.to_regclass($1)",
        _qualified(index.schema, index.name or ""),
    )


async def _indexes_of(connection: Any, index: ConcurrentIndex) -> list[Any]:
    rows: list[Any] = await _fetch(
        connection, f"{_INDEX} AND i.indrelid = pg_catalog.to_regclass($1)", _qualified(index.schema, index.table or "")
    )
    return rows


async def _other(connection: Any, statement: Statement) -> Look:
    parsed = tree_of(statement)
    if parsed is not None and parsed.node == "AlterTableStmt":
        return await _detach(connection, parsed.fields())
    if parsed is None or parsed.node not in _EXISTS:
        return Look()  # VACUUM, ALTER SYSTEM, CLUSTER, REINDEX …: once more does no harm
    name_field, query, is_done_if_there = _EXISTS[parsed.node]
    name = parsed.fields().get(name_field, "")
    return Look(is_done=bool(await _fetchrow(connection, query, name)) is is_done_if_there)


async def _detach(connection: Any, fields: dict[str, Any]) -> Look:
    """DETACH PARTITION CONCURRENTLY: two transactions; what was cut off between them waits for FINALIZE."""
    relation = fields["relation"]
    partition = next(
        command["AlterTableCmd"]["def"]["PartitionCmd"]["name"]
        for command in fields["cmds"]
        if "PartitionCmd" in command["AlterTableCmd"].get("def", {})
    )
    parent = _qualified(relation.get("schemaname"), relation["relname"])
    child = _qualified(partition.get("schemaname"), partition["relname"])
    row = await _fetchrow(
        connection,
        "SELECT h.inhdetachpending AS pending FROM pg_catalog.pg_inherits h"
        " WHERE h.inhparent = pg_catalog.to_regclass($1) AND h.inhrelid = pg_catalog.to_regclass($2)",
        parent,
        child,
    )
    if row is None:
        return Look(is_done=True)
    return Look(instead=f"ALTER TABLE {parent} DETACH PARTITION {child} FINALIZE" if row["pending"] else None)
