"""Is this session ours? A pooler in transaction mode hands it to others between our transactions. Touches the session.

A session lock taken through such a pooler protects nothing, and stays behind on a server connection that nobody owns.
Known by behaviour, not by name: PgBouncer, Supavisor, Odyssey, pgcat … all look the same from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.database.connect import close
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.errors import EXIT_CONFIG, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_ROUNDS = 5
_SECOND_TIMEOUT_S = 1.0


class PoolerError(OrchestratorError):
    """A pooler in transaction mode stands between us and the server."""

    exit_code: ClassVar[int] = EXIT_CONFIG

    def __init__(self, what: str) -> None:
        super().__init__(
            f"there is a pooler in transaction mode before the database: {what}",
            remedy="Migrations need a session of their own: set MIGRATION_DATABASE_URL to the server itself, or to the"
            " pooler in session mode. DATABASE_URL may stay as it is.",
        )


async def ensure_own_session(connection: Any, connect_second: Callable[[], Awaitable[Any]] | None) -> None:
    """Return if the session is ours alone; call it before anything is locked or changed. Writes nothing.

    Straight to the server this is one query. Where something stands between (it answers with another pid than the one
    that was given at login), a mark is set in the session, and a second one is opened by the same way: whoever sees the
    mark there, or misses it here, shares. A quiet pooler with a single server connection is known by the former, a busy
    one by the latter.

    Raises:
        PoolerError: the session is shared.
    """
    if await _holds(connection, f"pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {connection.get_server_pid()}"):
        return
    value = secrets.token_hex(8)
    mark = f"pg_catalog.current_setting('orchestrator.mark', true) OPERATOR(pg_catalog.=) '{value}'"
    await connection.execute(f"SET orchestrator.mark = '{value}'")
    second: Any = None
    try:
        for _ in range(_ROUNDS):
            if not await _holds(connection, mark):
                raise PoolerError("what one transaction sets in the session is lost in the next")
            if connect_second is None:
                continue
            try:
                async with asyncio.timeout(_SECOND_TIMEOUT_S):
                    if second is None:
                        second = await connect_second()
                    is_shared = await _holds(second, mark)
            except CONNECTION_ERRORS:
                # No room for a second one while we stand idle: what the pooler has, we hold. That is session mode.
                connect_second = None
                if second is not None:
                    second.terminate()
                continue
            if is_shared:
                raise PoolerError("what one connection sets in its session is visible to another")
    finally:
        if second is not None:
            await close(second)
        with contextlib.suppress(*CONNECTION_ERRORS):
            await connection.execute("RESET orchestrator.mark")


async def _holds(connection: Any, condition: str) -> bool:
    """Ask by one simple query: a prepared statement may be gone before it is executed."""
    return bool(await connection.execute(f"SELECT 1 WHERE {condition}") == "SELECT 1")
