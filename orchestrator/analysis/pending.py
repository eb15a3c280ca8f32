"""The pending files as a run would read them: what the grammar here refuses, the server judges. Touches both."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.sql_file import SqlFile
from orchestrator.migrator.run.second_opinion import ask_server, server_keywords
from orchestrator.migrator.sql.statements import SqlSyntaxError

if TYPE_CHECKING:
    from orchestrator.migrator.folder import Migration


async def pending_file(connection: Any, migration: Migration) -> SqlFile:
    """The statements of a pending file, in a session of the kind `ours`; nothing of it is run.

    Raises:
        FolderError: it cannot be read, or is another one than it was.
        SqlSyntaxError: it is not SQL.
    """
    raw = await asyncio.to_thread(migration.read)
    try:
        return await asyncio.to_thread(SqlFile, raw, path=migration.path)
    except SqlSyntaxError as error:
        await ask_server(connection, migration, raw, error, escapes=False)
        keywords = await server_keywords(connection)
        return await asyncio.to_thread(SqlFile, raw, path=migration.path, keywords=keywords)
