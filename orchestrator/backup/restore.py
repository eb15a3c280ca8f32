"""Restore a backup: into a new database, verified there, then swapped by rename; or into a scratch one, as a test.

Touches the server and child processes. The database that is replaced is never changed, only renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.backup import pgtools
from orchestrator.backup.archive_fill import Archive, fill, hand_over
from orchestrator.backup.compare import differences_of_rows, differences_of_schema, missing_owners
from orchestrator.backup.manifest import open_checked
from orchestrator.backup.restricted_role import Place, admit, isolated_database, restricted_role
from orchestrator.backup.target import (
    PREFIX,
    RestoreError,
    Target,
    copy_properties,
    create_beside,
    find_target,
    give_up,
    maintenance,
    name_leftovers,
    open_to_all,
    refuse_early,
    swap,
)
from orchestrator.backup.vouching import copy_records, read_records, vouched_for
from orchestrator.database.connect import close, connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.database.quoting import identifier
from orchestrator.database.scratch import server_errors_explained

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from orchestrator.backup.archive_fill import Filled
    from orchestrator.backup.compare import ReadLedgers
    from orchestrator.backup.manifest import Backup
    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn


_NAME_BYTES_MAX = 63
_REPORT_EVERY_S = 10.0


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
    async with (
        open_checked(backup) as fd,
        isolated_database(dsn, purpose="backup test", with_own_rights=with_own_rights, emit=emit) as place,
    ):
        emit("backup.test_started", file=str(backup.path), database=place.own.database, isolated=place.isolated)
        with server_errors_explained(place.dsn, doing="the test of the backup"):
            options = ("--no-tablespaces", "--no-subscriptions")
            filled = await _fill(backup, fd, place, emit, options)
            differences = await differences_of_rows(backup, place.dsn, read_ledgers)
            differences += await missing_owners(filled, place.own)
        differences += await differences_of_schema(backup, fd, place.dsn, filled, emit)
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
    async with maintenance(dsn) as admin:
        target = await find_target(admin, dsn)
        await refuse_early(admin, target, force=demand.force)
        records = await _records(dsn, target)
        voucher = vouched_for(backup, records, demand.key, unverified=demand.unverified)
        await name_leftovers(admin, emit)
        new = dsn.with_database(f"{PREFIX}{stamp}_{secrets.token_hex(3)}".lower())
        async with restricted_role(
            dsn.with_database(target.beside),
            purpose="restore",
            # Who is no superuser restores with the own rights: it could not give the objects to their owners.
            with_own_rights=demand.with_own_rights or not target.is_superuser,
            emit=emit,
        ) as role:
            await create_beside(admin, new, target)
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
                    await copy_properties(admin, target.name, str(new.database), emit)
                else:
                    await admin.execute(open_to_all(identifier(str(new.database))))
            except BaseException:
                await give_up(dsn, str(new.database), emit)
                raise
        if not target.exists:
            await admin.execute(f"ALTER DATABASE {identifier(str(new.database))} RENAME TO {identifier(target.name)}")
            return target.name, None, 0
        kept_as = _dated(target.name, "before", stamp)
        names = (target.name, kept_as, str(new.database))
        try:
            return target.name, kept_as, await swap(admin, dsn, names, force=demand.force)
        except asyncio.CancelledError:
            await give_up(dsn, str(new.database), emit)
            raise


async def _filled_and_compared(
    backup: Backup, fd: int, new: Dsn, role: Dsn | None, records: Sequence[Any], demand: Demand, emit: Emit
) -> None:
    """Fill the new database and see that it is what the backup says; then everything in it has its owner."""
    place = Place(new, new, isolated=False)
    if role is not None:
        place = Place(role.with_database(str(new.database)), new, isolated=True)
        async with _session(new) as own:
            await admit(own, place.dsn)
            await own.execute(
                "\n".join([row[0] for row in await own.fetch(_TABLESPACES, str(role.user))]) or "SELECT 1"
            )
    filled = await _fill(backup, fd, place, emit, ())
    differences = await differences_of_rows(backup, place.dsn, demand.read_ledgers)
    if differences:
        raise _not_the_same(backup, differences)
    async with _session(place.dsn) as connection:
        await copy_records(connection, records)
    await _analyze(place.dsn)
    if place.isolated:
        try:
            await hand_over(_archive(backup, fd), filled, place, emit)
        except asyncpg.PostgresError as error:
            raise RestoreError(
                f"what was restored from {backup.path} cannot be given to its owners: {error}"
                f" (SQLSTATE {error.sqlstate})",
                remedy="Create the roles that are missing (pg_dumpall --roles-only has them), then again. The database"
                " is as it was.",
                facts={"sqlstate": error.sqlstate, "file": str(backup.path)},
            ) from error


async def _analyze(dsn: Dsn) -> None:
    """Statistics, before anyone plans a query: without them the first hours after a restore are slow ones."""
    connection = await connect_once(
        # The functions in its indexes may need the path of the role.
        dsn,
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
async def _session(dsn: Dsn) -> AsyncIterator[Any]:
    connection = await connect_once(dsn, application_name="orchestrator restore")
    try:
        yield connection
    finally:
        await close(connection)


async def _records(dsn: Dsn, target: Target) -> Sequence[Any]:
    """What the database that is replaced knows of its backups."""
    if not target.exists:
        return ()
    async with _session(dsn.with_database(target.name)) as connection:
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


async def _fill(backup: Backup, fd: int, place: Place, emit: Emit, options: Sequence[str]) -> Filled:
    """Restore the archive into an empty database; the first error ends it."""
    try:
        async with _progress_reported(place.own, emit):
            return await fill(
                _archive(backup, fd),
                place,
                emit,
                application_name="orchestrator restore",
                options=options,
            )
    except pgtools.PgToolError as error:
        raise RestoreError(
            f"{backup.path} cannot be restored: {error.message}",
            remedy="Fix what it names. "
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
async def _progress_reported(own: Dsn, emit: Emit) -> AsyncIterator[None]:
    """A line every ten seconds: how large the new database is by now."""

    async def report() -> None:
        began = time.monotonic()
        connection = await connect_once(own, application_name="orchestrator restore")
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
