"""Who changed what through the API: a log event at once, and a row of `orchestrator.api_changes` soon after.

Touches the database, in one task of its own: no request waits for it. What the database did not take yet is bounded;
the log has all of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from orchestrator.database.connect_errors import CONNECTION_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.api.rate_limit import RateLimitedEvents
    from orchestrator.lifecycle import Lifecycle

# Where a route leaves what it changed, for the trail.
CHANGED = "orchestrator.changed"
NOBODY = "(no token)"
_KEPT_MAX = 10_000
_WRITTEN_AT_ONCE = 1000
_EVERY_S = 0.5
_AFTER_FAILURE_S = 5.0
_LAST_WRITE_S = 1.0
_PRUNED_EVERY_S = 3600.0

_INSERT = """
INSERT INTO orchestrator.api_changes (changed_at, token, address, method, path, status, facts)
SELECT c.at, c.token, c.address, c.method, c.path, c.status, c.facts::pg_catalog.jsonb
FROM ROWS FROM (
        pg_catalog.unnest($1::timestamptz[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
        pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::integer[]),
        pg_catalog.unnest($7::text[])
    )
    AS c (at, token, address, method, path, status, facts)
"""
_PRUNE = "DELETE FROM orchestrator.api_changes WHERE changed_at < pg_catalog.now() - '90 days'::pg_catalog.interval"


class Change(msgspec.Struct, frozen=True):
    """One request that changed something; `token` is the name of the one that it showed."""

    at: datetime
    token: str
    address: str
    method: str
    path: str
    status: int
    facts: str


class AuditTrail:
    """The changes of this process that are not in the table yet. Not thread-safe."""

    def __init__(self, life: Lifecycle, events: RateLimitedEvents) -> None:
        self._life, self._events = life, events
        self._left: deque[Change] = deque(maxlen=_KEPT_MAX)

    def note(
        self, *, token: str, address: str | None, method: str, path: str, status: int, facts: Mapping[str, object]
    ) -> None:
        """Tell the log, and keep it for the table."""
        change = Change(
            datetime.fromtimestamp(self._life.now(), UTC),
            token,
            address or "",
            method,
            path,
            status,
            msgspec.json.encode(facts, enc_hook=str).decode(),
        )
        self._life.emit(
            "api.changed", token=token, address=change.address, method=method, path=path, status=status, what=facts
        )
        if len(self._left) == _KEPT_MAX:
            self._events.emit(
                "api.changes_left_out", hint="These changes could not be written to the table; the log has them."
            )
        self._left.append(change)

    async def run(self, pool: Any) -> None:
        """Write what is noted, until cancelled; then once more, within a second."""
        pruned_at: float | None = None
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                if not await self._write(pool):
                    await asyncio.sleep(_AFTER_FAILURE_S)
                elif pruned_at is None or self._life.monotonic() - pruned_at > _PRUNED_EVERY_S:
                    pruned_at = self._life.monotonic()
                    await self._prune(pool)
        finally:
            try:
                async with asyncio.timeout(_LAST_WRITE_S):
                    await self._write(pool)
            except TimeoutError:
                self._events.emit("api.changes_not_written", left=len(self._left))

    async def _write(self, pool: Any) -> bool:
        """Write as much as there is; False where the database does not take it, which is kept for the next time."""
        while self._left:
            rows = [self._left.popleft() for _ in range(min(_WRITTEN_AT_ONCE, len(self._left)))]
            written = False
            try:
                columns = zip(*(msgspec.structs.astuple(row) for row in rows), strict=True)
                await pool.execute(_INSERT, *map(list, columns))
                written = True
            except CONNECTION_ERRORS as error:
                self._events.emit(
                    "api.changes_not_written", left=len(self._left) + len(rows), error=type(error).__name__
                )
                return False
            finally:
                if not written:
                    self._left.extendleft(reversed(rows[: _KEPT_MAX - len(self._left)]))
        return True

    async def _prune(self, pool: Any) -> None:
        """Remove what is older than 90 days, where this role may: one that serves alone may only add."""
        try:
            await pool.execute(_PRUNE)
        except asyncpg.InsufficientPrivilegeError:
            return
        except CONNECTION_ERRORS as error:
            self._events.emit("api.changes_not_pruned", error=type(error).__name__)
