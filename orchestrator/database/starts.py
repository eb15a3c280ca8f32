"""One row for each start that reached the database. Touches the database, only `orchestrator.starts`."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator.database.connect_errors import CONNECTION_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome = Literal["ready", "migrated", "failed"]

_INSERT = (
    "INSERT INTO orchestrator.starts"
    " (started_at, version, host, pid, command, phases, migrations_applied, outcome, error)"
    " SELECT $1::timestamptz, $2::text, $3::text, $4::int, $5::text, $6::text::jsonb, $7::int, $8::text,"
    " $9::text::jsonb"
    # For this transaction alone: a row that tells of a start is not worth the wait for the disk.
    " WHERE pg_catalog.set_config('synchronous_commit', 'off', true) OPERATOR(pg_catalog.=) 'off'"
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
    with contextlib.suppress(*CONNECTION_ERRORS):
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


class StartRow(msgspec.Struct, frozen=True):
    """A start as it was recorded; `phases` are seconds by phase."""

    id: int
    started_at: datetime
    recorded_at: datetime
    version: str
    host: str
    pid: int
    command: str
    phases: dict[str, float]
    migrations_applied: int
    outcome: Outcome
    error: dict[str, Any] | None


_SELECT = (
    "SELECT id, started_at, recorded_at, version, host, pid, command, phases::text AS phases, migrations_applied,"
    " outcome, error::text AS error FROM orchestrator.starts"
)


class StartMigration(msgspec.Struct, frozen=True):
    """A migration that was applied while a start ran."""

    ledger: str
    name: str
    duration_s: float
    applied_at: datetime


async def read_start(connection: Any, start_id: int) -> tuple[StartRow, list[StartMigration]] | None:
    """One start, and the migrations that were applied between its beginning and its record; None where there is none.

    One process migrates at a time, so these are its own, unless it waited for another one.
    """
    row = await connection.fetchrow(f"{_SELECT} WHERE id = $1", start_id)
    if row is None:
        return None
    start = _start(row)
    rows = await connection.fetch(
        "SELECT ledger, name, duration_s, applied_at FROM orchestrator.migration_records"
        " WHERE applied_at >= $1 AND applied_at <= $2 ORDER BY id DESC LIMIT $3",
        start.started_at,
        start.recorded_at,
        start.migrations_applied,
    )
    return start, [StartMigration(**row) for row in reversed(rows)]


async def read_starts(connection: Any, *, before: int | None, limit: int) -> list[StartRow]:
    """The newest starts with an id below `before`."""
    rows = await connection.fetch(
        f"{_SELECT} WHERE id < $1 ORDER BY id DESC LIMIT $2", 2**63 - 1 if before is None else before, limit
    )
    return [_start(row) for row in rows]


def _start(row: Any) -> StartRow:
    error = None if row["error"] is None else msgspec.json.decode(row["error"])
    return StartRow(**{**row, "phases": msgspec.json.decode(row["phases"]), "error": error})


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
