"""`GET /api/migrations` (what is applied, pending, and not straight) and `GET /api/starts`. Reads the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from orchestrator.api.operations import Answer, Call, Operation, json_answer
from orchestrator.database.starts import StartRow, read_starts
from orchestrator.jobs.store import PAGE_MAX
from orchestrator.migrator.status import migration_running, migrations_status

if TYPE_CHECKING:
    from aiohttp import web


class AppliedRow(msgspec.Struct, frozen=True):
    """A row of a ledger, with the name of its file where it is known."""

    id: int | None
    name: str | None
    hash: str | None
    created_at: int | None
    dated: str | None
    duration_s: float | None


class PendingFile(msgspec.Struct, frozen=True):
    """A file that no ledger row stands for."""

    name: str
    hash: str
    created_at: int | None
    dated: str | None
    file: str


class FindingFacts(msgspec.Struct, frozen=True):
    """Something that is not straight, what is decided about it, and what to do."""

    kind: str
    name: str | None
    decision: str
    remedy: str
    refused: bool
    cosmetic: bool
    row_id: int | None
    created_at: int | None


class SourceFacts(msgspec.Struct, frozen=True):
    """One folder and its ledger."""

    source: str
    folder: str
    generation: Any
    ledger: str
    ledger_exists: bool
    total: int
    applied: list[AppliedRow]
    pending: list[PendingFile]
    findings: list[FindingFacts]
    unlisted: list[str]


class Running(msgspec.Struct, frozen=True):
    """Who migrates this database now, in whatever process, and what it waits for; `blockers` are sessions."""

    pid: int
    application_name: str | None
    client_address: str | None
    session_age_s: int | None
    state: str | None
    statement_age_s: float | None
    query: str
    wait_event: str | None
    stage: str | None
    percent: float | None
    blockers: list[dict[str, Any]]


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


async def migrations(call: Call) -> web.Response:
    """All sources."""
    backend = call.backend
    async with call.connection() as connection:
        sources = await migrations_status(connection, backend.sources, policy=backend.policy, ahead=backend.ahead)
        running = await migration_running(connection)
    return json_answer({"sources": sources, "running": running})


async def starts(call: Call) -> web.Response:
    """A page of starts."""
    query: StartsQuery = call.query
    before = None if query.cursor is None else int(query.cursor)
    async with call.connection() as connection:
        rows = await read_starts(connection, before=before, limit=query.limit + 1)
    shown = rows[: query.limit]
    return json_answer(Starts(shown, str(shown[-1].id) if len(rows) > query.limit else None))


OPERATIONS = (
    Operation(
        "GET",
        "/api/migrations",
        migrations,
        "Migrations: applied, pending, and not straight",
        "starts",
        {200: Answer(Migrations, "Both folders, compared with their ledgers now.")},
    ),
    Operation(
        "GET",
        "/api/starts",
        starts,
        "Starts of all replicas, the newest first",
        "starts",
        {200: Answer(Starts, "A page of starts.")},
        query=StartsQuery,
    ),
)
