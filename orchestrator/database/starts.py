"""One row for each start that reached the database. Touches the database, only `orchestrator.starts`."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome = Literal["ready", "migrated", "failed"]

_INSERT = (
    "INSERT INTO orchestrator.starts"
    " (started_at, version, host, pid, command, phases, migrations_applied, outcome, error)"
    " VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9::text::jsonb)"
)


class Start(msgspec.Struct, frozen=True):
    """One start: `started_at` in Unix seconds, `phases_s` seconds by phase, `error` the failure's facts or None."""

    started_at: float
    version: str
    command: str
    phases_s: Mapping[str, float]
    migrations_applied: int
    outcome: Outcome
    error: Mapping[str, object] | None = None


async def record_start(connection: Any, start: Start) -> bool:
    """Add the row; False where there is no such table yet, or the server is read-only. A record never fails a start."""
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        await connection.execute(
            _INSERT,
            datetime.fromtimestamp(start.started_at, UTC),
            start.version,
            socket.gethostname(),
            os.getpid(),
            start.command,
            _json({name: round(seconds, 4) for name, seconds in start.phases_s.items()}),
            start.migrations_applied,
            start.outcome,
            None if start.error is None else _json(start.error),
        )
        return True
    return False


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
