"""`GET /api/migrations` (what is applied, pending, and not straight) and `GET /api/starts`. Reads the database."""

from __future__ import annotations

from typing import Annotated

import msgspec

from orchestrator.api.operations import Answer, Call, Operation
from orchestrator.database.starts import StartRow, read_starts
from orchestrator.jobs.store import PAGE_MAX
from orchestrator.migrator.status import Running, SourceFacts, migration_running, migrations_status


class Migrations(msgspec.Struct, frozen=True):
    """The service's own folder, then the user's. `running` is None while nobody migrates."""

    sources: list[SourceFacts]
    running: Running | None


class Starts(msgspec.Struct, frozen=True):
    """Starts, the newest first; `next_cursor` asks for older ones."""

    starts: list[StartRow]
    next_cursor: str | None


class StartsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page of starts."""

    cursor: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,18}$(?!\n)")] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 50


async def migrations(call: Call) -> Migrations:
    """All sources."""
    backend = call.backend
    async with call.connection() as connection:
        sources = await migrations_status(connection, backend.sources, policy=backend.policy, ahead=backend.ahead)
        running = await migration_running(connection)
    return Migrations(sources, running)


async def starts(call: Call) -> Starts:
    """A page of starts."""
    query: StartsQuery = call.query
    before = None if query.cursor is None else int(query.cursor)
    async with call.connection() as connection:
        rows = await read_starts(connection, before=before, limit=query.limit + 1)
    shown = rows[: query.limit]
    return Starts(shown, str(shown[-1].id) if len(rows) > query.limit else None)


OPERATIONS = (
    Operation(
        "GET",
        "/api/migrations",
        migrations,
        "Migrations: applied, pending, and not straight",
        "starts",
        {200: Answer("Both folders, compared with their ledgers now.")},
    ),
    Operation(
        "GET",
        "/api/starts",
        starts,
        "Starts of all replicas, the newest first",
        "starts",
        {200: Answer("A page of starts.")},
        query=StartsQuery,
    ),
)
