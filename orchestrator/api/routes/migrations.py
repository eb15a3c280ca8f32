"""`/api/migrations` and `/api/starts`: what is applied, pending and different, one by one. Reads the database."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable  # noqa: TC003 read with the annotations
from datetime import datetime  # noqa: TC003 msgspec reads the annotations
from typing import Annotated, Any, Literal

import msgspec

from orchestrator.api.operations import Answer, Call, Operation, existing
from orchestrator.api.problems import Refusal
from orchestrator.api.request_body import off_the_loop
from orchestrator.database.starts import StartMigration, StartRow, read_start, read_starts
from orchestrator.jobs.store import PAGE_MAX, Id
from orchestrator.migrator.folder import FolderError
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


class StartPath(msgspec.Struct, frozen=True):
    """A start's number."""

    id: Id


class StartDetail(StartRow, frozen=True):
    """One start, with the migrations that it applied."""

    migrations: list[StartMigration]


class MigrationPath(msgspec.Struct, frozen=True):
    """A migration, by the folder that it is of and its name there."""

    source: Literal["service", "user"]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class StatementFacts(msgspec.Struct, frozen=True):
    """One statement; `in_transaction` is false for what runs outside of one."""

    line: int
    kind: str
    in_transaction: bool
    text: str


class MigrationDetail(msgspec.Struct, frozen=True):
    """One migration. `text` is what was applied where this program applied it, else the file as it is now.

    `is_cut`: a long text is cut, and no more than the first statements are told apart. `statements` is empty where the
    text is no SQL.
    """

    source: str
    name: str
    state: Literal["applied", "pending"]
    hash: str
    created_at: int | None
    applied_at: datetime | None
    duration_s: float | None
    size_bytes: int
    text: str
    is_cut: bool
    statements: list[StatementFacts]


_TEXT_MAX_BYTES = 256 * 1024
_STATEMENTS_MAX = 500
_RECORD = """
SELECT hash, created_at, applied_at, duration_s, size_bytes, text, substring(text_gzip FROM 1 FOR 4194304) AS text_gzip
FROM orchestrator.migration_records
WHERE ledger = $1 AND name = $2 ORDER BY id DESC LIMIT 1
"""


def _statements(raw: bytes, clean: Callable[[str], str]) -> list[StatementFacts]:
    from orchestrator.migrator.sql.statements import SqlSyntaxError, statements

    try:
        found = statements(raw, path="")[:_STATEMENTS_MAX]
    except SqlSyntaxError:
        return []
    return [StatementFacts(one.line, one.kind, one.transactional, clean(one.text)) for one in found]


async def one(call: Call) -> MigrationDetail:
    """One migration, with its text."""
    backend, path = call.backend, call.parameters
    what = f"migration {path.name!r}"
    source = existing(next((one for one in backend.sources if one.label == path.source), None), what)
    async with call.connection() as connection:
        row = await connection.fetchrow(_RECORD, source.table.key, path.name)
        (status,) = await migrations_status(connection, [source], policy=backend.policy, ahead=backend.ahead)
    if row is None:
        file = existing(next((one for one in source.folder.migrations if one.name == path.name), None), what)
        try:
            raw = await asyncio.to_thread(file.read)
        except (OSError, FolderError) as error:
            raise Refusal(409, f"the file cannot be read: {error}") from None
        facts: dict[str, Any] = {"hash": file.hash, "created_at": file.when_ms, "applied_at": None, "duration_s": None}
        size_bytes = file.size_bytes
    else:
        raw = await asyncio.to_thread(_kept, row["text"], row["text_gzip"])
        facts = {name: row[name] for name in ("hash", "created_at", "applied_at", "duration_s")}
        size_bytes = row["size_bytes"]
    is_cut = len(raw) > _TEXT_MAX_BYTES

    def clean(text: str) -> str:
        return text if backend.life is None else str(backend.life.clean({"text": text})["text"])

    return MigrationDetail(
        source=path.source,
        name=path.name,
        state="pending" if any(one.name == path.name for one in status.pending) else "applied",
        size_bytes=size_bytes,
        text=clean(raw[:_TEXT_MAX_BYTES].decode(errors="replace")),
        is_cut=is_cut,
        statements=[] if is_cut else await off_the_loop(len(raw), _statements, raw, clean),
        **facts,
    )


def _kept(text: str | None, packed: bytes | None) -> bytes:
    """The beginning of a text that was kept."""
    if text is not None:
        return text.encode()
    return zlib.decompressobj(wbits=31).decompress(packed or b"", _TEXT_MAX_BYTES + 1)


async def start(call: Call) -> StartDetail:
    """One start."""
    async with call.connection() as connection:
        found, applied = existing(await read_start(connection, call.parameters.id), f"start {call.parameters.id}")
    return StartDetail(**msgspec.structs.asdict(found), migrations=applied)


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
        "Migrations: applied, pending, and where files and ledger differ",
        "starts",
        {200: Answer("Both folders, compared with their ledgers now.")},
    ),
    Operation(
        "GET",
        "/api/migrations/{source}/{name}",
        one,
        "One migration: its text, its statements, how long it took",
        "starts",
        {200: Answer("The migration.")},
        parameters=MigrationPath,
        refusals={404: "There is no such migration.", 409: "Its file cannot be read."},
    ),
    Operation(
        "GET",
        "/api/starts/{id:[0-9]+}",
        start,
        "One start: host, phases, the migrations that it applied",
        "starts",
        {200: Answer("The start.")},
        parameters=StartPath,
        refusals={404: "There is no such start."},
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
