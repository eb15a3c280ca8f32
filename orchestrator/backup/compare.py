"""Whether a restored database is what its backup says: rows, ledgers, schema. Touches it and child processes."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from orchestrator.backup import pgtools
from orchestrator.backup.archive import count_rows
from orchestrator.backup.archive_fill import NO_OWNERS, Archive
from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.backup.archive_fill import Filled
    from orchestrator.backup.manifest import Backup, LedgerState
    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn

    ReadLedgers = Callable[[Any], Awaitable[Sequence[LedgerState]]]


async def differences_of_rows(backup: Backup, dsn: Dsn, read_ledgers: ReadLedgers) -> list[str]:
    """Where rows or ledgers of the database are not what the manifest says, as lines."""
    connection = await connect_once(dsn, application_name="orchestrator restore")
    try:
        await connection.execute("SET row_security = off")
        async with _row_security_lifted(connection):
            found = await count_rows(connection)
        ledgers = {state.ledger: state for state in await read_ledgers(connection)}
    finally:
        await close(connection)
    expected = backup.manifest.tables
    lines = []
    for table in sorted(expected.keys() | found.tables.keys()):
        wanted, got = expected.get(table), found.tables.get(table)
        if wanted != got:
            lines.append(f"table {table}: {_rows(got)}, the backup has {_rows(wanted)}")
    if found.large_objects != backup.manifest.large_objects:
        lines.append(f"large objects: {found.large_objects}, the backup has {backup.manifest.large_objects}")
    for state in backup.manifest.ledgers:
        restored = ledgers.get(state.ledger)
        if restored is not None and restored != state:
            lines.append(
                f"ledger {state.ledger}: newest row {restored.newest_id} ({restored.rows} rows), the backup has"
                f" {state.newest_id} ({state.rows} rows)"
            )
    return lines


async def missing_owners(filled: Filled, own: Dsn) -> list[str]:
    """The owners of which a restore would say that there is no such role."""
    connection = await connect_once(own, application_name="orchestrator restore")
    try:
        known = {row[0] for row in await connection.fetch("SELECT rolname::text FROM pg_catalog.pg_roles")}
    finally:
        await close(connection)
    # Where names hold blanks, their end is enough: it is only a warning that is lost.
    owners = {entry.rpartition(" ")[2] for entry in filled.entries} - {""}
    ends = {name.rpartition(" ")[2] for name in known}
    return [f"owner {owner}: there is no such role on this server" for owner in sorted(owners - ends)]


@contextlib.asynccontextmanager
async def _row_security_lifted(connection: Any) -> AsyncIterator[None]:
    """Let the owner of tables see their rows also where row security is forced on them; nothing of it stays."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for schema, table in await connection.fetch(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
            " ON n.oid = c.relnamespace JOIN pg_catalog.pg_roles r ON r.oid = c.relowner"
            " WHERE c.relforcerowsecurity AND r.rolname = current_user"
        ):
            await connection.execute(
                f"ALTER TABLE {identifier(schema)}.{identifier(table)} NO FORCE ROW LEVEL SECURITY"
            )
        yield
    finally:
        await transaction.rollback()


def _rows(count: int | None) -> str:
    return "is missing" if count is None else f"{count} rows"


async def differences_of_schema(backup: Backup, fd: int, dsn: Dsn, filled: Filled, emit: Emit) -> list[str]:
    """Where the schema as pg_dump writes it is not the one that the archive holds."""
    tool = await pgtools.find("pg_dump", at_least=backup.manifest.pg_dump_major, purpose="the comparison")
    reader = await pgtools.find("pg_restore", at_least=tool.major, purpose="the comparison")
    if tool.version != reader.version or tool.version != backup.manifest.pg_dump_version:
        # Another version writes the same schema in other words.
        emit(
            "backup.schema_not_compared", level="debug", pg_dump=tool.version, taken_by=backup.manifest.pg_dump_version
        )
        return []
    environment = pgtools.environment(dsn, application_name="orchestrator backup test")
    options = ["--schema-only", *(NO_OWNERS if filled.isolated else ())]
    path = Archive(fd, backup.path.name, backup.manifest.pg_dump_major).path
    ours = pgtools.Run(reader, [*options, "--file=-", path], environment, dsn.secrets, emit, fds=(fd,))
    theirs = pgtools.Run(tool, [*options, "--no-password"], environment, dsn.secrets, emit)
    expected, found = [
        {title: text for title, text in statements_of(await pgtools.output(run)).items() if filled.compares(title)}
        for run in (ours, theirs)
    ]
    lines = [f"schema: {name} is not as in the backup" for name in sorted(expected.keys() - found.keys())]
    lines += [f"schema: {name} is not in the backup" for name in sorted(found.keys() - expected.keys())]
    return lines + [
        f"schema: {name} differs" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]


_ENTRY = re.compile(r"^-- Name: (?P<name>.*); Type: (?P<type>[^;]*); Schema: (?P<schema>[^;]*); Owner:", re.MULTILINE)

# Some builds number a column's versions in an option of its own, anew in each database, and the pg_dump of another
# build writes it down.
_BOOKKEEPING = re.compile(r"^ALTER .* SET \(pg_attver=\d+\);$|\bpg_attver=\d+, |, pg_attver=\d+\b")


def statements_of(script: bytes) -> dict[str, str]:
    """The entries of a script of pg_dump by their titles: `TABLE public.people` → its text, without comments."""
    text = script.decode(errors="replace")
    marks = list(_ENTRY.finditer(text))
    found: dict[str, str] = {}
    for mark, following in zip(marks, [*marks[1:], None], strict=bool(marks)):
        if mark["type"].endswith("DATA"):  # of a materialised view: the archive names it, pg_dump does not
            continue
        body = text[mark.end() : following.start() if following else len(text)]
        # \restrict and \unrestrict carry a random word; SET default_… depends on what came before.
        lines = [
            s
            for line in body.splitlines()[1:]
            if (s := _BOOKKEEPING.sub("", line.rstrip())) and not s.startswith(("--", "\\", "SET default_"))
        ]
        title = f"{mark['type']} {mark['schema']}.{mark['name']}"
        found[title] = found.get(title, "") + "\n".join(lines)
    return found
