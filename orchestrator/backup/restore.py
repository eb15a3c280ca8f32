"""Restore a backup: into a new database, verified there, then swapped by rename; or into a scratch one, as a test.

Touches the server and child processes. The database that is replaced is never changed, only renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.backup import pgtools
from orchestrator.backup.archive import count_rows
from orchestrator.backup.archive_fill import NO_OWNERS, Archive, fill, hand_over
from orchestrator.backup.manifest import BackupError, open_checked
from orchestrator.backup.restricted_role import Place, admit, isolated_database, restricted_role
from orchestrator.backup.vouching import copy_records, read_records, vouched_for
from orchestrator.database.connect import close, connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.database.quoting import identifier, literal
from orchestrator.database.scratch import create_closed, options_like, server_errors_explained
from orchestrator.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.backup.archive_fill import Filled
    from orchestrator.backup.manifest import Backup, LedgerState
    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn

    ReadLedgers = Callable[[Any], Awaitable[Sequence[LedgerState]]]

_NAME_BYTES_MAX = 63
_PREFIX = "orchestrator_restore_"
_DROP_TIMEOUT_S = 30.0
_TERMINATE_EVERY_S = 0.1
_SHOWN_SESSIONS = 5
_REPORT_EVERY_S = 10.0


class RestoreError(BackupError):
    """The backup was not put in place; the database is what and where it was."""


@dataclass(frozen=True, slots=True)
class Tested:
    """What a test found: `differences` is empty where the restored database is what the backup says.

    `isolated`: a role without rights restored it; `left_out` is what such a role cannot make.
    """

    differences: tuple[str, ...]
    tables: int
    rows: int
    duration_s: float
    isolated: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What is in place now. `kept_as` is the old database's new name, None where there was none."""

    database: str
    kept_as: str | None
    go_back: tuple[str, ...]
    drop: str | None
    terminated: int
    duration_s: float


async def test_backup(
    backup: Backup,
    dsn: Dsn,
    *,
    read_ledgers: ReadLedgers,
    emit: Emit,
    connect_timeout_s: float,
    with_own_rights: bool,
) -> Tested:
    """Restore `backup` into a scratch database on the server of `dsn`, compare, and drop it whatever happens.

    Compared are the schema (what pg_dump says of the scratch database, against the archive's own), every table's rows,
    and the ledgers. A role without any other right restores it, where one can be made: owners, rights and what only a
    superuser may make are then not tested (`left_out`), but for whether the owners are there.

    Raises:
        BackupError: the file is damaged. RestoreError: it cannot be restored at all. ScratchError: no CREATEDB.
        IsolationError: the user is a superuser, and no role without rights can log in.
    """
    began = time.monotonic()
    timeout_s = connect_timeout_s
    async with (
        open_checked(backup) as fd,
        isolated_database(
            dsn, purpose="backup test", with_own_rights=with_own_rights, emit=emit, connect_timeout_s=timeout_s
        ) as place,
    ):
        emit("backup.test_started", file=str(backup.path), database=place.own.database, isolated=place.isolated)
        with server_errors_explained(place.dsn, doing="the test of the backup"):
            options = ("--no-tablespaces", "--no-subscriptions")
            filled = await _fill(backup, fd, place, emit, timeout_s, options)
            differences = await _differences(backup, place.dsn, read_ledgers, timeout_s)
            differences += await _missing_owners(filled, place.own, timeout_s)
        differences += await _schema_differences(backup, fd, place.dsn, filled, emit, timeout_s)
    rows = backup.manifest.tables
    tested = Tested(
        tuple(differences),
        len(rows),
        sum(rows.values()),
        round(time.monotonic() - began, 3),
        place.isolated,
        filled.left_out,
    )
    emit(
        "backup.tested",
        level="error" if differences else "info",
        file=str(backup.path),
        differences=len(differences),
        tables=tested.tables,
        rows=tested.rows,
        isolated=tested.isolated,
        left_out=list(tested.left_out),
        duration_s=tested.duration_s,
    )
    return tested


@dataclass(frozen=True, slots=True)
class Demand:
    """How a backup is put in place: `force` ends the sessions on the old database; `key` is BACKUP_KEY.

    `unverified` takes a backup that nobody vouches for. `with_own_rights` runs the code in it with the user's rights.
    """

    read_ledgers: ReadLedgers
    force: bool = False
    key: str = ""
    unverified: bool = False
    with_own_rights: bool = False
    connect_timeout_s: float = 5.0


async def restore(backup: Backup, dsn: Dsn, demand: Demand, emit: Emit) -> Restored:
    """Put `backup` in the place of the database of `dsn`; the old one is kept under a dated name.

    Everything that can fail is done in a new database beside it; the swap is one transaction of two renames, in which
    no new session can get in. Owner, rights, settings and comment of the old database are given to the new one. With
    `force` the old database's sessions are terminated at the swap. Cancelled or failed: the new database is dropped.

    A superuser does not restore itself: a role without rights does, and what it made is then given to its owners. So no
    code of the backup has a superuser's rights.

    Raises:
        BackupError: the file is damaged, or nobody vouches for it.
        IsolationError: the user is a superuser, and no role without rights can log in.
        RestoreError: sessions are on the old database, a right is missing (42501), pg_restore failed, or what was
            restored is not what the backup says.
        DatabaseUnavailableError: the server was lost on the way. ServerRefusedError: it refused a statement of ours.
    """
    began = time.monotonic()
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3].replace(".", "") + "Z"
    async with open_checked(backup) as fd:
        with server_errors_explained(dsn, doing="the restore"):
            name, kept_as, terminated = await _put_in_place(backup, fd, dsn, stamp, demand, emit)
    restored = Restored(
        name,
        kept_as,
        () if kept_as is None else _go_back(name, kept_as, stamp),
        None if kept_as is None else f"DROP DATABASE {identifier(kept_as)};",
        terminated,
        round(time.monotonic() - began, 3),
    )
    emit(
        "restore.completed",
        database=restored.database,
        file=str(backup.path),
        kept_as=kept_as,
        go_back=list(restored.go_back),
        terminated=terminated,
        duration_s=restored.duration_s,
    )
    return restored


async def _put_in_place(
    backup: Backup, fd: int, dsn: Dsn, stamp: str, demand: Demand, emit: Emit
) -> tuple[str, str | None, int]:
    """The database's name, the old one's new name, and how many sessions were terminated. As `restore`."""
    timeout_s = demand.connect_timeout_s
    async with _maintenance(dsn, timeout_s) as admin:
        target = await _target(admin, dsn)
        await _refuse_early(admin, target, force=demand.force)
        records = await _records(dsn, target, timeout_s)
        voucher = vouched_for(backup, records, demand.key, unverified=demand.unverified)
        await _name_leftovers(admin, emit)
        new = dsn.with_database(f"{_PREFIX}{stamp}_{secrets.token_hex(3)}".lower())
        async with restricted_role(
            dsn.with_database(target.beside),
            purpose="restore",
            # Who is no superuser restores with the own rights: it could not give the objects to their owners.
            with_own_rights=demand.with_own_rights or not target.is_superuser,
            emit=emit,
            connect_timeout_s=timeout_s,
        ) as role:
            await _create(admin, new, target)
            emit(
                "restore.started",
                file=str(backup.path),
                into=new.database,
                replaces=target.name,
                vouched_for_by=voucher,
                isolated=role is not None,
            )
            try:
                await _filled_and_compared(backup, fd, new, role, records, demand, emit)
                if target.exists:
                    await _copy_properties(admin, target.name, str(new.database), emit)
                else:
                    await admin.execute(_open_to_all(identifier(str(new.database))))
            except BaseException:
                await _give_up(dsn, str(new.database), emit, timeout_s)
                raise
        if not target.exists:
            await admin.execute(f"ALTER DATABASE {identifier(str(new.database))} RENAME TO {identifier(target.name)}")
            return target.name, None, 0
        kept_as = _dated(target.name, "before", stamp)
        names = (target.name, kept_as, str(new.database))
        try:
            return target.name, kept_as, await _swap(admin, dsn, names, timeout_s, force=demand.force)
        except asyncio.CancelledError:
            await _give_up(dsn, str(new.database), emit, timeout_s)
            raise


async def _filled_and_compared(
    backup: Backup, fd: int, new: Dsn, role: Dsn | None, records: Sequence[Any], demand: Demand, emit: Emit
) -> None:
    """Fill the new database and see that it is what the backup says; then everything in it has its owner."""
    timeout_s = demand.connect_timeout_s
    place = Place(new, new, isolated=False)
    if role is not None:
        place = Place(role.with_database(str(new.database)), new, isolated=True)
        async with _session(new, timeout_s) as own:
            await admit(own, place.dsn, timeout_s)
            await own.execute(
                "\n".join([row[0] for row in await own.fetch(_TABLESPACES, str(role.user))]) or "SELECT 1"
            )
    filled = await _fill(backup, fd, place, emit, timeout_s, ())
    differences = await _differences(backup, place.dsn, demand.read_ledgers, timeout_s)
    if differences:
        raise _not_the_same(backup, differences)
    async with _session(place.dsn, timeout_s) as connection:
        await copy_records(connection, records)
    await _analyze(place.dsn, timeout_s)
    if place.isolated:
        try:
            await hand_over(_archive(backup, fd), filled, place, emit, connect_timeout_s=timeout_s)
        except asyncpg.PostgresError as error:
            raise RestoreError(
                f"what was restored from {backup.path} cannot be given to its owners: {error}"
                f" (SQLSTATE {error.sqlstate})",
                remedy="Create the roles that are missing (pg_dumpall --roles-only has them), then again. The database"
                " is as it was.",
                facts={"sqlstate": error.sqlstate, "file": str(backup.path)},
            ) from error


async def _analyze(dsn: Dsn, connect_timeout_s: float) -> None:
    """Statistics, before anyone plans a query: without them the first hours after a restore are slow ones."""
    connection = await connect_once(
        # The functions in its indexes may need the path of the role.
        dsn,
        timeout_s=connect_timeout_s,
        application_name="orchestrator restore",
        kind="migration",
    )
    try:
        await connection.execute("ANALYZE")
    finally:
        await close(connection)


# Tables of the backup may be in them; the grants go away with the role.
_TABLESPACES = (
    "SELECT pg_catalog.format('GRANT CREATE ON TABLESPACE %I TO %I;', spcname, $1::text) FROM pg_catalog.pg_tablespace"
    " WHERE spcname NOT IN ('pg_default', 'pg_global')"
)


@contextlib.asynccontextmanager
async def _session(dsn: Dsn, timeout_s: float) -> AsyncIterator[Any]:
    connection = await connect_once(dsn, timeout_s=timeout_s, application_name="orchestrator restore")
    try:
        yield connection
    finally:
        await close(connection)


async def _records(dsn: Dsn, target: _Target, timeout_s: float) -> Sequence[Any]:
    """What the database that is replaced knows of its backups."""
    if not target.exists:
        return ()
    async with _session(dsn.with_database(target.name), timeout_s) as connection:
        return await read_records(connection)


def _dated(name: str, word: str, stamp: str) -> str:
    suffix = f"_{word}_{stamp}"
    return name.encode()[: _NAME_BYTES_MAX - len(suffix)].decode(errors="ignore") + suffix


def _go_back(name: str, kept_as: str, stamp: str) -> tuple[str, ...]:
    """SQL for any other database of the server, while nobody is on these two."""
    aside = _dated(name, "restored", stamp)
    return (
        f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(aside)};",
        f"ALTER DATABASE {identifier(kept_as)} RENAME TO {identifier(name)};",
    )


def _not_the_same(backup: Backup, differences: list[str]) -> RestoreError:
    return RestoreError(
        f"what was restored from {backup.path} is not what the backup says: {'; '.join(differences[:5])}",
        remedy="The archive is damaged in a way that its checksum does not show, or triggers changed rows: use another"
        " backup. The database is as it was.",
        facts={"file": str(backup.path), "differences": differences},
    )


# ----------------------------------------------------------------------------------------------- filling and comparing


async def _fill(backup: Backup, fd: int, place: Place, emit: Emit, timeout_s: float, options: Sequence[str]) -> Filled:
    """Restore the archive into an empty database; the first error ends it."""
    try:
        async with _progress_reported(place.own, emit, timeout_s):
            return await fill(
                _archive(backup, fd),
                place,
                emit,
                application_name="orchestrator restore",
                connect_timeout_s=timeout_s,
                options=options,
            )
    except pgtools.PgToolError as error:
        raise RestoreError(
            f"{backup.path} cannot be restored: {error.message}",
            remedy="Mend what it names. "
            + (
                "It was restored by a role without rights; what only a superuser may make (functions in C or LEAKPROOF,"
                " operator classes, casts) needs --with-own-rights, and trust in all that is in the backup."
                if place.isolated
                else "Where a right, a role or an extension is missing: restore as the owner of all that is in it, or"
                " as a superuser (MIGRATION_DATABASE_URL), on a server that has them."
            )
            + " The database is as it was.",
            facts={**error.facts, "file": str(backup.path)},
        ) from error


def _archive(backup: Backup, fd: int) -> Archive:
    return Archive(fd, backup.path.name, backup.manifest.pg_dump_major)


@contextlib.asynccontextmanager
async def _progress_reported(own: Dsn, emit: Emit, timeout_s: float) -> AsyncIterator[None]:
    """A line every ten seconds: how large the new database is by now."""

    async def report() -> None:
        began = time.monotonic()
        connection = await connect_once(own, timeout_s=timeout_s, application_name="orchestrator restore")
        try:
            while True:
                await asyncio.sleep(_REPORT_EVERY_S)
                size_bytes = await connection.fetchval(
                    "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())"
                )
                emit("restore.progressed", size_bytes=size_bytes, elapsed_s=round(time.monotonic() - began, 1))
        finally:
            await close(connection)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        # Where its session is lost, pg_restore's is as well, and says so.
        if not task.cancelled() and isinstance(error := task.exception(), CONNECTION_ERRORS):
            emit("restore.progress_unknown", level="debug", error=type(error).__name__)


async def _differences(backup: Backup, dsn: Dsn, read_ledgers: ReadLedgers, connect_timeout_s: float) -> list[str]:
    """Where rows or ledgers of the database are not what the manifest says, as lines."""
    connection = await connect_once(dsn, timeout_s=connect_timeout_s, application_name="orchestrator restore")
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


async def _missing_owners(filled: Filled, own: Dsn, connect_timeout_s: float) -> list[str]:
    """The owners of which a restore would say that there is no such role."""
    connection = await connect_once(own, timeout_s=connect_timeout_s, application_name="orchestrator restore")
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


async def _schema_differences(
    backup: Backup, fd: int, dsn: Dsn, filled: Filled, emit: Emit, connect_timeout_s: float
) -> list[str]:
    """Where the schema as pg_dump writes it is not the one that the archive holds."""
    tool = await pgtools.find("pg_dump", at_least=backup.manifest.pg_dump_major, purpose="the comparison")
    reader = await pgtools.find("pg_restore", at_least=tool.major, purpose="the comparison")
    if tool.version != reader.version or tool.version != backup.manifest.pg_dump_version:
        # Another version writes the same schema in other words.
        emit(
            "backup.schema_not_compared", level="debug", pg_dump=tool.version, taken_by=backup.manifest.pg_dump_version
        )
        return []
    environment = pgtools.environment(
        dsn, application_name="orchestrator backup test", connect_timeout_s=connect_timeout_s
    )
    options = ["--schema-only", *(NO_OWNERS if filled.isolated else ())]
    path = _archive(backup, fd).path
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


# --------------------------------------------------------------------------------------------------------- databases


@dataclass(frozen=True, slots=True)
class _Target:
    """The database that is replaced; `options` make another one of its kind, `beside` is the one that we are on."""

    name: str
    exists: bool
    user: str
    is_superuser: bool
    beside: str
    options: str


@contextlib.asynccontextmanager
async def _maintenance(dsn: Dsn, connect_timeout_s: float) -> AsyncIterator[Any]:
    """A session on another database of the server: nobody can rename the one that they are on."""
    failed: BaseException | None = None
    for name in ("postgres", "template1"):
        if name == dsn.database:
            continue
        try:
            connection = await connect_once(
                dsn.with_database(name), timeout_s=connect_timeout_s, application_name="orchestrator restore"
            )
        except CONNECTION_ERRORS as error:
            failed = failed or error
            continue
        try:
            yield connection
        finally:
            await close(connection)
        return
    failure = classify(failed) if failed is not None else None
    raise DatabaseUnavailableError(
        f"no session on the database postgres or template1 of {dsn.redacted()}: {failed or 'none is left'}",
        remedy=(failure.hint if failure else "") + " A restore needs one of them beside the database that it replaces.",
        facts={"sqlstate": failure.sqlstate if failure else None},
    ) from failed


async def _target(admin: Any, dsn: Dsn) -> _Target:
    user, is_superuser, beside = await admin.fetchrow(
        "SELECT rolname::text, rolsuper, pg_catalog.current_database()::text FROM pg_catalog.pg_roles"
        " WHERE rolname = current_user"
    )
    name = dsn.database or dsn.user or user
    exists = bool(await admin.fetchval("SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", name))
    options = await options_like(admin, name) if exists else "TEMPLATE template0"
    return _Target(name, exists, user, is_superuser, beside, options)


# Of others' sessions an ordinary user sees the pid and the user, and not what they are.
_IS_CLIENT = "(backend_type = 'client backend' OR backend_type IS NULL AND usesysid IS NOT NULL)"
_SESSIONS = (
    "SELECT pid, usename::text AS user, application_name, client_addr::text AS client_address, state"  # noqa: S608
    f" FROM pg_catalog.pg_stat_activity WHERE datname = $1 AND {_IS_CLIENT} ORDER BY backend_start"
)


async def _refuse_early(admin: Any, target: _Target, *, force: bool) -> None:
    """What would be refused at the swap, known before an hour was spent."""
    row = await admin.fetchrow(
        "SELECT r.rolsuper OR r.rolcreatedb AS may_create, r.rolsuper OR coalesce((SELECT"
        " pg_catalog.pg_has_role(d.datdba, 'MEMBER') FROM pg_catalog.pg_database d WHERE d.datname = $1), true) AS owns"
        " FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
        target.name,
    )
    if not row["may_create"]:
        raise _not_permitted(target, "may not create databases", f"ALTER ROLE {identifier(target.user)} CREATEDB;")
    if not row["owns"]:
        sql = f"ALTER DATABASE {identifier(target.name)} OWNER TO {identifier(target.user)};"
        raise _not_permitted(target, f"does not own the database {target.name}, and so may not rename it", sql)
    sessions = await admin.fetch(_SESSIONS, target.name)
    if sessions and not force:
        raise _in_use(target.name, sessions)


def _not_permitted(target: _Target, what: str, sql: str) -> RestoreError:
    return RestoreError(
        f"the user {target.user} {what} (SQLSTATE 42501)",
        remedy=f"As a superuser: {sql} Or restore as a user who may (MIGRATION_DATABASE_URL). Nothing was changed.",
        facts={"sqlstate": "42501", "user": target.user, "sql": sql},
    )


def _why_ended(terminating: asyncio.Task[None] | None) -> asyncpg.PostgresError | None:
    """Why sessions could not be terminated (42501, for those of a superuser), None where that was not tried or went."""
    if terminating is None or not terminating.done() or terminating.cancelled():
        return None
    error = terminating.exception()
    return error if isinstance(error, asyncpg.PostgresError) else None


def _in_use(
    name: str,
    sessions: Sequence[Any],
    *,
    restored_as: str | None = None,
    refused: asyncpg.PostgresError | None = None,
) -> RestoreError:
    shown = [f"{s['pid']} {s['application_name'] or s['user']!r}" for s in sessions[:_SHOWN_SESSIONS]]
    more = f" and {len(sessions) - _SHOWN_SESSIONS} more" if len(sessions) > _SHOWN_SESSIONS else ""
    left = f" What was restored is kept in {restored_as}: drop it." if restored_as else " Nothing was changed."
    why, remedy = "", "Stop the services that use it, or give --force to terminate them."
    if refused is not None:
        why = f"; they cannot be terminated: {refused} (SQLSTATE {refused.sqlstate})"
        remedy = "Stop the services that use it, or restore as a superuser or a member of pg_signal_backend."
    return RestoreError(
        f"{len(sessions)} sessions are on the database {name}: {', '.join(shown)}{more}{why}",
        remedy=f"{remedy}{left}",
        facts={
            "sessions": [dict(session) for session in sessions],
            "restored_as": restored_as,
            "sqlstate": None if refused is None else refused.sqlstate,
        },
    )


async def _create(admin: Any, new: Dsn, target: _Target) -> None:
    try:
        await create_closed(admin, str(new.database), target.options)
        comment = f"orchestrator restore of {target.name}: may be dropped"
        await admin.execute(f"COMMENT ON DATABASE {identifier(str(new.database))} IS {literal(comment)}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise _not_permitted(
            target, "may not create databases", f"ALTER ROLE {identifier(target.user)} CREATEDB;"
        ) from error
    except asyncpg.PostgresError as error:
        raise RestoreError(
            f"no new database can be made: {error} (SQLSTATE {error.sqlstate})",
            remedy="Mend what it names. Nothing was changed.",
            facts={"sqlstate": error.sqlstate},
        ) from error


async def _name_leftovers(admin: Any, emit: Emit) -> None:
    """Say which databases killed restores, or such as could not be swapped, have left: each is as large as a backup.

    None is dropped here: what could not be swapped may be wanted.
    """
    rows = await admin.fetch(
        "SELECT d.datname::text FROM pg_catalog.pg_database d WHERE starts_with(d.datname::text, $1) AND NOT EXISTS"
        " (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid) ORDER BY 1",
        _PREFIX,
    )
    if rows:
        _say_left(emit, [row[0] for row in rows])


def _say_left(emit: Emit, names: Sequence[str], **facts: object) -> None:
    drops = " ".join(f"DROP DATABASE {identifier(name)};" for name in names)
    emit(
        "restore.left_behind", level="warning", databases=list(names), hint=f"Where it is not wanted: {drops}", **facts
    )


async def _give_up(dsn: Dsn, name: str, emit: Emit, connect_timeout_s: float) -> None:
    """Drop the new database after an error, which stays the news: where the drop fails too, what is left is named."""
    try:
        await asyncio.shield(_drop(dsn, name, connect_timeout_s))
    except (*CONNECTION_ERRORS, DatabaseUnavailableError) as error:  # TimeoutError is an OSError
        _say_left(emit, [name], error=type(error).__name__)


async def _drop(dsn: Dsn, name: str, connect_timeout_s: float) -> None:
    async with asyncio.timeout(_DROP_TIMEOUT_S), _maintenance(dsn, connect_timeout_s) as admin:
        await admin.execute(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


def _open_to_all(name: str) -> str:
    """The rights of a database that nobody has changed any of (PostgreSQL manual, 5.8)."""
    return f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC"


async def _copy_properties(admin: Any, old: str, new: str, emit: Emit) -> None:
    """Owner, rights, settings, limit and comment: pg_dump leaves them to whoever creates the database."""
    row = await admin.fetchrow(
        "SELECT oid, pg_catalog.pg_get_userbyid(datdba)::text AS owner, datconnlimit, datacl IS NOT NULL AS has_acl,"
        " pg_catalog.shobj_description(oid, 'pg_database') AS comment FROM pg_catalog.pg_database WHERE datname = $1",
        old,
    )
    name = identifier(new)
    statements = [
        f"ALTER DATABASE {name} OWNER TO {identifier(row['owner'])}",
        f"ALTER DATABASE {name} CONNECTION LIMIT {row['datconnlimit']}",
        f"COMMENT ON DATABASE {name} IS {literal(row['comment'])}",
    ]
    if not row["has_acl"]:
        statements.append(_open_to_all(name))
    else:
        grants = await admin.fetch(
            "SELECT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END AS grantee,"
            " a.privilege_type::text AS privilege, a.is_grantable FROM pg_catalog.pg_database d,"
            " pg_catalog.aclexplode(d.datacl) a WHERE d.datname = $1",
            old,
        )
        statements += [
            f"GRANT {g['privilege']} ON DATABASE {name} TO {identifier(g['grantee']) if g['grantee'] else 'PUBLIC'}"
            + (" WITH GRANT OPTION" if g["is_grantable"] else "")
            for g in grants
        ]
    settings = await admin.fetch(
        "SELECT CASE WHEN s.setrole = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole)::text END AS role,"
        " c AS setting FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) c WHERE s.setdatabase = $1",
        row["oid"],
    )
    for setting in settings:
        key, _, value = setting["setting"].partition("=")
        whose = (
            f"DATABASE {name}" if setting["role"] is None else f"ROLE {identifier(setting['role'])} IN DATABASE {name}"
        )
        # FROM CURRENT takes the value as it is stored, lists of names included.
        statements.append(
            f"SELECT pg_catalog.set_config({literal(key)}, {literal(value)}, true);"  # noqa: S608 quoted
            f" ALTER {whose} SET {identifier(key)} FROM CURRENT"
        )
    for statement in statements:
        try:
            await admin.execute(statement)  # several in one message are one transaction: set_config is local to it
        except asyncpg.PostgresError as error:
            emit(
                "restore.property_not_copied",
                level="warning",
                sqlstate=error.sqlstate,
                error=str(error),
                hint=f"As a superuser: {statement};".replace(name, identifier(old)),
            )


async def _swap(admin: Any, dsn: Dsn, names: tuple[str, str, str], connect_timeout_s: float, *, force: bool) -> int:
    """Both renames in one transaction; returns how many sessions were terminated.

    ALTER DATABASE … RENAME locks the database against new sessions, then waits up to 5 s for those that are there to
    go: a second session ends them meanwhile. Nothing has to be put back if this process dies in between.
    """
    name, kept_as, new = names
    terminated = 0

    async def terminate(connection: Any) -> None:
        nonlocal terminated
        while True:
            terminated += await connection.fetchval(
                "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity"  # noqa: S608
                f" WHERE datname = $1 AND {_IS_CLIENT}",
                name,
            )
            await asyncio.sleep(_TERMINATE_EVERY_S)

    async with contextlib.AsyncExitStack() as stack:
        terminating = None
        if force:
            second = await stack.enter_async_context(_maintenance(dsn, connect_timeout_s))
            terminating = asyncio.create_task(terminate(second))
        try:
            async with admin.transaction():
                await admin.execute(f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(kept_as)}")
                await admin.execute(f"ALTER DATABASE {identifier(new)} RENAME TO {identifier(name)}")
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.ObjectInUseError):
                refused = _why_ended(terminating)
                raise _in_use(name, await admin.fetch(_SESSIONS, name), restored_as=new, refused=refused) from error
            raise RestoreError(
                f"the databases cannot be renamed: {error} (SQLSTATE {error.sqlstate})",
                remedy=f"What was restored is kept in {new}; rename by hand, as a user who may:"
                f" ALTER DATABASE {identifier(name)} RENAME TO {identifier(kept_as)};"
                f" ALTER DATABASE {identifier(new)} RENAME TO {identifier(name)};",
                facts={"sqlstate": error.sqlstate, "restored_as": new},
            ) from error
        finally:
            if terminating is not None:
                terminating.cancel()
                await asyncio.wait([terminating])
    return terminated
