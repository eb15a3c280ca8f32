"""What the grammar here refuses is put to the server, whose word counts. Touches the session, and runs nothing.

The server parses the whole of a message before it runs any of it, so a text behind a command that fails is parsed and
never run (PostgreSQL manual, "Multiple Statements in a Simple Query").
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect_errors import is_connection_loss
from orchestrator.migrator.sql.statements import SqlSyntaxError, refused_by_server, statements

if TYPE_CHECKING:
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sql.statements import Statement

# The comment is for whoever finds the statement in the server's log.
_FAILS = (
    "/* orchestrator asks whether the following can be parsed; it is not run */ SELECT 1 OPERATOR(pg_catalog./) 0; "
)
_FAILED = "22012"  # division_by_zero


async def ask_server(
    connection: Any, migration: Migration, raw: bytes, error: SqlSyntaxError, *, escapes: bool
) -> tuple[Statement, ...]:
    """The statements of a file that the grammar here has refused with `error`, where the server accepts them all.

    Call it while the session has our own path. `escapes` as in `statements`.

    Raises:
        SqlSyntaxError: the server refuses one as well, or the file is no text that could be put to it.
    """
    if not error.is_grammar:
        raise error
    path = str(migration.path)
    keywords = await server_keywords(connection)
    parsed = await asyncio.to_thread(statements, raw, path=path, escapes=escapes, keywords=keywords)
    for statement in parsed:
        if not statement.is_known:
            refused = await _refusal(connection, raw, statement, path)
            if refused is not None:
                # Ours knows more about the usual mistakes, where it is about the same statement.
                is_same = statement.byte_offset <= error.byte_offset <= statement.byte_end
                raise error if is_same else refused
    return parsed


async def server_keywords(connection: Any) -> frozenset[str]:
    """The words that are keywords to the server."""
    rows = await connection.fetch("SELECT word FROM pg_catalog.pg_get_keywords()")
    return frozenset(row["word"] for row in rows)


async def _refusal(connection: Any, raw: bytes, statement: Statement, path: str) -> SqlSyntaxError | None:
    try:
        async with connection.transaction():  # a savepoint, where one is open
            await connection.execute(f"{_FAILS}{statement.text}")
    except asyncpg.PostgresError as error:
        if is_connection_loss(error):
            raise
        if error.sqlstate == _FAILED:
            return None
        position = int(error.position) - len(_FAILS) if error.position else None
        return refused_by_server(raw, statement, path, str(error.args[0]), position)
    raise AssertionError("a division by zero has succeeded")
