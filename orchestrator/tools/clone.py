"""A copy of a database in a scratch one: its schema by pg_dump, its rows or only those that migrations depend on.

Touches both databases, pg_dump and pg_restore, and a temporary file that has no name.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from typing import TYPE_CHECKING, Any

from orchestrator.backup import pgtools
from orchestrator.backup.archive_fill import Archive, fill
from orchestrator.database.quoting import identifier, literal
from orchestrator.errors import EXIT_MIGRATION, OrchestratorError
from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.backup.pgtools import Emit
    from orchestrator.backup.restricted_role import Place
    from orchestrator.dsn import Dsn
    from orchestrator.migrator.ledger import LedgerTable

# What a run reads and writes beside the ledgers.
RECORDS = ("migration_records", "unfinished_migrations")


class CopyError(OrchestratorError):
    """The database cannot be copied."""

    exit_code = EXIT_MIGRATION


async def copy_database(live: Any, dsn: Dsn, scratch: Any, place: Place, *, with_data: bool, emit: Emit) -> list[str]:
    """Fill the empty database of `place` from `live`; returns what a person must know of the copy's limits.

    `live` and `scratch` are sessions of their own on the two. Without data the tables are empty; ledgers and records
    are copied by `copy_rows`. Owners and privileges come along where a superuser's own rights fill it, on one server.
    Subscriptions never do: a copy would begin to replicate. Cancelled: the programs end first.

    Raises:
        PgToolMissingError: no pg_dump fits the server; says which version is needed.
        CopyError: a program failed.
    """
    major = live.get_server_version().major
    purpose = f"a copy of PostgreSQL {major} for a rehearsal"
    dump = await pgtools.find("pg_dump", at_least=major, purpose=purpose)
    await pgtools.find("pg_restore", at_least=dump.major, purpose=purpose)
    keeps_owners = (
        not place.isolated
        and await _is_same_server(live, scratch)
        and bool(await scratch.fetchval("SELECT usesuper FROM pg_catalog.pg_user WHERE usename = current_user"))
    )
    whose = [] if keeps_owners else ["--no-owner", "--no-privileges", "--no-comments"]
    common = ["--no-subscriptions", "--no-security-labels", "--no-tablespaces", *whose]
    with _file_without_name() as fd:
        try:
            await pgtools.run(
                pgtools.Run(
                    dump,
                    ["--format=custom", "--compress=1", "--no-password", *common]
                    + ([] if with_data else ["--schema-only"]),
                    pgtools.environment(dsn, application_name="orchestrator rehearse"),
                    dsn.secrets,
                    emit,
                    stdout=fd,
                )
            )
            filled = await fill(
                Archive(fd, "the copy for a rehearsal", dump.major),
                place,
                emit,
                application_name="orchestrator rehearse",
                options=common,
            )
        except pgtools.PgToolError as error:
            raise CopyError(
                f"the database cannot be copied: {error.message}",
                remedy="It may work as a superuser, or on another server (--on URL). Or build the schema from the files"
                " alone: rehearse --from-files.",
                facts=error.facts,
            ) from error
    if keeps_owners:
        return []
    notes = ["everything in the copy belongs to one user, so rights that the real user lacks are not noticed"]
    if place.isolated:
        notes.append(
            "that user has no other right, so that the code in the copied tables has none: a migration that needs more"
            " (CREATE ROLE, an untrusted extension, ALTER … OWNER TO) fails here; --with-own-rights lets it"
        )
    return [*notes, *(f"the copy lacks {what}, which only a superuser can make" for what in filled.left_out)]


async def _is_same_server(live: Any, scratch: Any) -> bool:
    query = "SELECT pg_catalog.pg_postmaster_start_time(), pg_catalog.inet_server_port()"
    return bool(await live.fetchrow(query) == await scratch.fetchrow(query))


@contextlib.contextmanager
def _file_without_name() -> Iterator[int]:
    with tempfile.TemporaryFile(prefix="orchestrator-rehearse-") as file:
        yield file.fileno()


async def copy_rows(live: Any, scratch: Any, ledgers: Sequence[LedgerTable]) -> None:
    """Copy the rows of the ledgers and of what a run knows besides, so that exactly what is pending there runs here."""
    tables = [*((ledger.schema, ledger.table) for ledger in ledgers), *((SERVICE_SCHEMA, name) for name in RECORDS)]
    for schema, table in tables:
        qualified = f"{identifier(schema)}.{identifier(table)}"
        if await live.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", qualified):
            continue
        with tempfile.TemporaryFile(prefix="orchestrator-rehearse-") as file:
            await live.copy_from_table(table, schema_name=schema, output=file, format="binary")
            await asyncio.to_thread(file.seek, 0)
            await scratch.copy_to_table(table, schema_name=schema, source=file, format="binary")
        await _follow_sequence(scratch, qualified)


async def _follow_sequence(scratch: Any, qualified: str) -> None:
    """Set the sequence behind a numeric `id` where the rows end: the next row is a new one."""
    sequence = await scratch.fetchval(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass"
        " AND attname = 'id' AND atttypid = ANY ('{int2,int4,int8,numeric}'::regtype[]))"
        " THEN pg_catalog.pg_get_serial_sequence($1, 'id') END",
        qualified,
    )
    if sequence is not None:
        await scratch.execute(
            f"SELECT pg_catalog.setval({literal(sequence)}, max(id)::bigint) FROM {qualified}"  # noqa: S608
            " HAVING max(id) IS NOT NULL"
        )
