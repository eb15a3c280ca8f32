"""Our own records in the schema `orchestrator`: the text of applied migrations, and what a run left unfinished.

Drizzle's ledger never gets a column of ours. Touches the database, only tables that `migrations/` makes.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.quoting import literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.resolve import Ledger, RowId

SERVICE_SCHEMA = "orchestrator"

_PLAIN_LIMIT_BYTES = 1 << 20
_COMPRESSION = 1


class Unfinished(msgspec.Struct, frozen=True):
    """How far an interrupted run came in one file: `done` statements, their text's hash, the one that ran.

    `known` are the oids of the indexes that its table had before that one: what else is there now, it has made.
    """

    name: str
    done: int
    done_hash: str
    running: int | None
    known: frozenset[int] = frozenset()

    @property
    def is_begun(self) -> bool:
        """Whether anything of the file was run in steps."""
        return self.done > 0 or self.running is not None


async def records_exist(connection: Any) -> bool:
    """Whether our own tables are there yet."""
    return bool(
        await connection.fetchval(
            "SELECT count(*) = 2 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname IN ('migration_records', 'unfinished_migrations')",
            SERVICE_SCHEMA,
        )
    )


async def known_names(connection: Any, ledger_key: str, ledger: Ledger) -> dict[RowId, str]:
    """Ledger row id → the name of the file that it was, where we applied it."""
    rows = await connection.fetch(
        "SELECT DISTINCT ON (created_at, hash) created_at, hash, name FROM orchestrator.migration_records"
        " WHERE ledger = $1 ORDER BY created_at, hash, id",
        ledger_key,
    )
    names = {(row["created_at"], row["hash"]): row["name"] for row in rows}
    found = {row.id: names.get((row.created_at, row.hash)) for row in ledger.rows}
    return {row_id: name for row_id, name in found.items() if name is not None}


async def recorded_text(connection: Any, ledger_key: str, created_at: int, file_hash: str) -> bytes | None:
    """The text that was applied as the ledger row (created_at, hash), None where we did not apply it."""
    row = await connection.fetchrow(
        "SELECT text, text_gzip FROM orchestrator.migration_records"
        " WHERE ledger = $1 AND created_at = $2 AND hash = $3 ORDER BY id DESC LIMIT 1",
        ledger_key,
        created_at,
        file_hash,
    )
    if row is None:
        return None
    return row["text"].encode() if row["text"] is not None else zlib.decompress(row["text_gzip"], wbits=31)


async def unfinished(connection: Any, ledger_key: str) -> dict[str, Unfinished]:
    """What interrupted runs left to do, by name."""
    rows = await connection.fetch(
        "SELECT name, statements_done, done_hash, running FROM orchestrator.unfinished_migrations WHERE ledger = $1",
        ledger_key,
    )
    found = {}
    for name, done, done_hash, running in rows:
        digest, _, known = done_hash.partition(" ")
        found[name] = Unfinished(name, done, digest, running, frozenset(map(int, known.split())))
    return found


def begin_unfinished(ledger_key: str, names: Iterable[str]) -> str:
    """SQL that notes `names` as still to be applied."""
    values = ", ".join(f"({literal(ledger_key)}, {literal(name)}, 0, '')" for name in names)
    return (
        "INSERT INTO orchestrator.unfinished_migrations (ledger, name, statements_done, done_hash)"  # noqa: S608
        f" VALUES {values} ON CONFLICT (ledger, name) DO NOTHING"
    )


def note_step(
    ledger_key: str, name: str, *, done: int, done_hash: str, running: int | None = None, known: Iterable[int] = ()
) -> str:
    """SQL that notes that the first `done` statements of `name` are finished, which one runs now, and `known`."""
    kept = " ".join([done_hash, *map(str, sorted(known))])
    return (
        f"UPDATE orchestrator.unfinished_migrations SET statements_done = {done}, done_hash = {literal(kept)},"  # noqa: S608
        f" running = {literal(running)}, since = now() WHERE ledger = {literal(ledger_key)} AND name = {literal(name)}"
    )


def end_unfinished(ledger_key: str, name: str) -> str:
    """SQL that forgets `name`: its ledger row is written in the same transaction."""
    return (
        "DELETE FROM orchestrator.unfinished_migrations"  # noqa: S608
        f" WHERE ledger = {literal(ledger_key)} AND name = {literal(name)}"
    )


def steps_hash(texts: Sequence[str]) -> str:
    """The hash of the statements that are done, so that an edit of them is seen before a run goes on behind them."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def compress(raw: bytes) -> bytes | None:
    """What is kept of a large file: gzip at the fastest level; None for what is small enough to be kept as text."""
    if len(raw) <= _PLAIN_LIMIT_BYTES and b"\0" not in raw:
        return None
    packer = zlib.compressobj(_COMPRESSION, wbits=31)
    return packer.compress(raw) + packer.flush()


_RECORD = (
    "INSERT INTO orchestrator.migration_records"
    " (ledger, name, hash, created_at, duration_s, size_bytes, text, text_gzip) VALUES"
)


def since_message(before_s: float) -> str:
    """SQL of a duration: `before_s`, and what the message that it travels in has taken when the server comes to it."""
    return f"{before_s:.6f} + extract(epoch FROM clock_timestamp() - statement_timestamp())"


def record_statement(ledger_key: str, migration: Migration, *, duration: str, raw: bytes) -> str:
    """SQL that keeps the text of a small applied migration; it travels in one message with the ledger row."""
    return (
        f"{_RECORD} ({literal(ledger_key)}, {literal(migration.name)}, {literal(migration.hash)}, {migration.when_ms},"
        f" {duration}, {migration.size_bytes}, {literal(raw.decode(errors='replace'))}, NULL)"
    )


async def newest_record(connection: Any) -> int:
    """The id of the newest record, 0 where there is none."""
    return int(await connection.fetchval("SELECT coalesce(max(id), 0) FROM orchestrator.migration_records"))


async def newer_records(connection: Any, ledger_key: str, than: int) -> list[tuple[int, str, float]]:
    """(id, name, duration in seconds) of what was applied after the record `than`, in order."""
    rows = await connection.fetch(
        "SELECT id, name, duration_s FROM orchestrator.migration_records WHERE id > $1 AND ledger = $2 ORDER BY id",
        than,
        ledger_key,
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def record_packed(
    connection: Any, ledger_key: str, migration: Migration, *, duration_s: float, packed: bytes
) -> None:
    """Keep the packed text of a large applied migration; call it inside the migration's transaction."""
    await connection.execute(
        f"{_RECORD} ($1, $2, $3, $4, $5, $6, NULL, $7)",
        ledger_key,
        migration.name,
        migration.hash,
        migration.when_ms,
        duration_s,
        migration.size_bytes,
        packed,
    )


async def durations_s(connection: Any, ledger_key: str) -> Mapping[str, float]:
    """Seconds that each migration took when we applied it, by name."""
    rows = await connection.fetch(
        "SELECT name, duration_s FROM orchestrator.migration_records WHERE ledger = $1 ORDER BY id", ledger_key
    )
    return {row["name"]: row["duration_s"] for row in rows}


async def applied_times(connection: Any, ledger_key: str) -> dict[tuple[int, str], datetime]:
    """(created_at, hash) of a ledger row → when we applied it."""
    rows = await connection.fetch(
        "SELECT created_at, hash, min(applied_at) AS applied_at FROM orchestrator.migration_records WHERE ledger = $1"
        " GROUP BY created_at, hash",
        ledger_key,
    )
    return {(row["created_at"], row["hash"]): row["applied_at"] for row in rows}
