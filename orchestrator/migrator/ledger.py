"""Drizzle's ledger `__drizzle_migrations`: read, create, upgrade, extend, to the byte as Drizzle does.

Both shapes: v0 (`id, hash, created_at`) and v1 (plus `name, applied_at`). Touches the database, only this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.quoting import identifier, literal
from orchestrator.errors import MigrationError
from orchestrator.migrator.folder import Folder, Migration, ms_to_stamp
from orchestrator.migrator.ownership import refuse_untrusted
from orchestrator.migrator.resolve import Ledger, LedgerRow, RowId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class LedgerTable(msgspec.Struct, frozen=True):
    """Where a ledger lives: Drizzle's `migrationsSchema` and `migrationsTable`; and who may own it besides us."""

    schema: str
    table: str
    trusted_owners: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name under which our own records know this ledger."""
        return f"{self.schema}.{self.table}"

    @property
    def qualified(self) -> str:
        """The quoted, qualified name: a file may have emptied `search_path`."""
        return f"{identifier(self.schema)}.{identifier(self.table)}"


async def read_ledger(connection: Any, table: LedgerTable) -> Ledger:
    """The ledger as it is; `exists` is False where there is no such table. Writes nothing.

    The rows are in order of `id`, or of time where that is no integer.

    Raises:
        MigrationError: the table exists and is not a Drizzle ledger.
        UntrustedOwnerError: to read it would run somebody else's code.
    """
    await refuse_untrusted(connection, [(table.schema, table.table)], table.trusted_owners, writing=False)
    columns = {
        row["attname"]: row["type"]
        for row in await connection.fetch(
            "SELECT a.attname::text AS attname, a.atttypid::regtype::text AS type FROM pg_catalog.pg_attribute a"
            " JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname::text = $1 AND c.relname::text = $2 AND c.relkind IN ('r', 'p', 'v')"
            " AND a.attnum > 0 AND NOT a.attisdropped",
            table.schema,
            table.table,
        )
    }
    if not columns:
        return Ledger(exists=False, has_name=False)
    missing = {"id", "hash", "created_at"} - columns.keys()
    if missing:
        raise MigrationError(
            f"{table.key} exists and is not a Drizzle ledger: it lacks the columns {', '.join(sorted(missing))}",
            remedy="Set MIGRATIONS_SCHEMA and MIGRATIONS_TABLE to the ledger that drizzle uses.",
            facts={"ledger": table.key},
        )
    has_name = "name" in columns
    name = "name" if has_name else "NULL::text"
    is_number = columns["id"] in {"smallint", "integer", "bigint"}
    rows = await connection.fetch(
        f"SELECT id{'' if is_number else '::text'}, hash::text, created_at::bigint, {name}"  # noqa: S608
        f" FROM {table.qualified} ORDER BY {'id' if is_number else 'created_at, id'}"
    )
    return Ledger(exists=True, has_name=has_name, rows=tuple(_with_own_ids(rows)))


def _with_own_ids(rows: Iterable[Sequence[Any]]) -> Iterator[LedgerRow]:
    """The rows; one whose id is NULL or stands twice (a copy of a ledger has no key) is known by its number."""
    seen = set()
    for number, (row_id, *values) in enumerate(rows, start=1):
        own = row_id if row_id is not None and row_id not in seen else f"row {number}"
        seen.add(own)
        yield LedgerRow(own, *values)


async def create_ledger(connection: Any, table: LedgerTable, folder: Folder) -> None:
    """Create schema and table as Drizzle of the folder's generation creates them; call it only where there is none.

    It looks before it creates: `CREATE SCHEMA IF NOT EXISTS` needs the privilege even where the schema exists (42501).
    """
    v1 = (
        ",\n\t\t\t\tname text,\n\t\t\t\tapplied_at timestamp with time zone DEFAULT now()"
        if folder.generation == "v1"
        else ""
    )
    async with connection.transaction():
        if not await connection.fetchval("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", table.schema):
            await connection.execute(f"CREATE SCHEMA {identifier(table.schema)}")
        await connection.execute(
            f"CREATE TABLE {table.qualified} (\n"
            "\t\t\t\tid SERIAL PRIMARY KEY,\n\t\t\t\thash text NOT NULL,\n\t\t\t\tcreated_at bigint"
            f"{v1}\n\t\t\t)"
        )


async def upgrade_ledger(connection: Any, table: LedgerTable, names: Mapping[RowId, str]) -> None:
    """Give a v0 ledger drizzle v1's columns and names, in one transaction (drizzle-orm 1.0, `up-migrations/pg.js`)."""
    async with connection.transaction():
        await connection.execute(
            f"ALTER TABLE {table.qualified} ADD COLUMN IF NOT EXISTS name text;"
            f"ALTER TABLE {table.qualified} ADD COLUMN IF NOT EXISTS applied_at timestamp with time zone DEFAULT now()"
        )
        await connection.executemany(
            f"UPDATE {table.qualified} SET name = $2, applied_at = NULL WHERE id::text = $1",  # noqa: S608
            [(str(row_id), name) for row_id, name in names.items()],
        )


def ledger_name(folder: Folder, migration: Migration) -> str:
    """What stands in the column `name`: v1's folder name; for a v0 file, the name that `drizzle-kit up` would give it.

    A v0 row without it would make drizzle v1 run the migration again. The rule is drizzle-kit 1.0's
    (`migrateToFoldersV3`): `when` cut to seconds, and the tag without what stands before its first underscore.
    """
    if folder.generation == "v1":
        return migration.name
    return f"{ms_to_stamp(migration.when_ms)}_{migration.name.partition('_')[2]}"


def insert_statement(
    table: LedgerTable, folder: Folder, migration: Migration, *, has_name: bool, condition: str
) -> str:
    """The SQL that adds the row of `migration` where `condition` holds; its command tag tells whether it did.

    Plain text, no parameters: it travels in one message with what stands beside it in the transaction.
    """
    columns, values = "hash, created_at", f"{literal(migration.hash)}, {migration.when_ms}"
    if has_name:
        columns, values = f"{columns}, name", f"{values}, {literal(ledger_name(folder, migration))}"
    return f"INSERT INTO {table.qualified} ({columns}) SELECT {values} WHERE {condition}"
