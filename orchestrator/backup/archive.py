"""Backups: pg_dump's archive in a directory, and beside it what is known of it. Touches the database and the directory.

A backup is two files: `NAME.dump`, and `NAME.dump.json` (the manifest: versions, checksum, row counts, ledgers). While
it is written it is `.NAME.dump.partial`, locked by flock; it gets its name by one rename, after everything is on disk
and the manifest lies beside it. So whatever bears the name of a backup is whole, and what has no manifest is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from orchestrator import __version__
from orchestrator.backup import pgtools
from orchestrator.backup.manifest import (
    FORMAT,
    SUFFIX,
    Backup,
    BackupError,
    Manifest,
    digest_of,
    is_same_database,
    manifest_path,
    opened,
    read_backups,
    read_manifest,
    sha256_of,
    uninterrupted,
)
from orchestrator.backup.vouching import signature
from orchestrator.database.quoting import identifier
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from pathlib import Path

    from orchestrator.backup.manifest import LedgerState, Reason
    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn

_REPORT_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
_FULL_BELOW_BYTES = 1 << 20
# A table that somebody holds for longer would keep a backup, and the start behind it, waiting without end.
_LOCK_TIMEOUT_S = 300
# gzip at its fastest: a third less time than the default for 3 % more bytes (measured: 10.4 and 16.5 s for 137 MB), and
# a start waits for it. zstd is faster still, and not in every build.
_DUMP_OPTIONS = (
    *("--format=custom", "--compress=1", "--no-password", "--verbose"),
    f"--lock-wait-timeout={_LOCK_TIMEOUT_S * 1000}",
)
_SERVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class Order:
    """What a backup is taken for: where to, why, how the ledgers are read (the migrator knows that). `key` signs it."""

    directory: Path
    reason: Reason
    read_ledgers: Callable[[Any], Awaitable[Sequence[LedgerState]]]
    pending: int = 0
    key: str = ""


# ------------------------------------------------------------------------------------------------------------- taking


async def take_backup(
    connection: Any, dsn: Dsn, order: Order, emit: Emit, *, on_progress: Callable[[int], Awaitable[None]] | None = None
) -> Backup:
    """Dump the database of `connection` (a session of its own on `dsn`, outside of a transaction) into a new file.

    pg_dump, the row counts and the ledgers see one snapshot. `on_progress` is given the archive's size in bytes, every
    second; events tell it every ten. Cancelled, killed or failed: nothing bears the name of a backup, pg_dump ends, and
    the unfinished file is removed (after a SIGKILL, by the next backup).

    Raises:
        BackupError: the directory cannot be written, its disk is full, pg_dump failed, or the connection was lost.
        PgToolMissingError: no pg_dump fits the server.
    """
    began = time.monotonic()
    major = connection.get_server_version().major
    tool = await pgtools.find("pg_dump", at_least=major, purpose=f"a backup of PostgreSQL {major}")
    await asyncio.to_thread(_prepare_directory, order.directory)
    try:
        async with _snapshot(connection, order) as (snapshot, facts):
            name = f"{_slug(facts['database'])}-{facts['taken_at']:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}{SUFFIX}"
            with _partial(order.directory / name) as fd:
                emit("backup.started", file=str(order.directory / name), reason=order.reason, pg_dump=tool.version)
                run = pgtools.Run(
                    tool,
                    [*_DUMP_OPTIONS, f"--snapshot={snapshot}"],
                    pgtools.environment(
                        _same_server(dsn, connection),
                        application_name="orchestrator backup",
                    ),
                    dsn.secrets,
                    emit,
                    stdout=fd,
                )
                async with _progress_reported(fd, emit, began, on_progress):
                    try:
                        _, counted = await _both(pgtools.run(run), count_rows(connection))
                    except pgtools.PgToolError as error:
                        raise _dump_failed(error, order.directory, fd) from error
                    size_bytes, sha256 = await uninterrupted(_settle, fd)
                manifest = Manifest(
                    format=FORMAT,
                    file=name,
                    size_bytes=size_bytes,
                    sha256=sha256,
                    duration_s=round(time.monotonic() - began, 3),
                    reason=order.reason,
                    pg_dump_version=tool.version,
                    orchestrator_version=__version__,
                    pending=order.pending,
                    tables=counted.tables,
                    large_objects=counted.large_objects,
                    **facts,
                )
                digest = digest_of(msgspec.json.encode(manifest))
                if order.key:
                    manifest = msgspec.structs.replace(manifest, signature=signature(digest, order.key))
                await uninterrupted(_publish, order.directory / name, manifest)
    except _SERVER_ERRORS as error:  # before OSError, of which some of them are
        raise _server_failed(error) from error
    except OSError as error:
        raise _directory_failed(error, order.directory) from error
    emit(
        "backup.completed",
        file=str(order.directory / name),
        size_bytes=size_bytes,
        sha256=sha256,
        duration_s=manifest.duration_s,
        tables=len(manifest.tables),
        rows=sum(manifest.tables.values()),
        server_version=manifest.server_version,
        pg_dump_version=tool.version,
    )
    return Backup(order.directory / name, manifest, digest)


def _same_server(dsn: Dsn, connection: Any) -> Dsn:
    """The one of several hosts that answered `connection`: its snapshot is known nowhere else."""
    address = getattr(connection, "_addr", None)
    if len(dsn.hosts) == 1 or address is None:
        return dsn
    if isinstance(address, str):  # the path of a socket, /directory/.s.PGSQL.5432
        directory, _, port = address.rpartition("/.s.PGSQL.")
        address = (directory, port)
    return dsn.changed(hosts=((str(address[0]), int(address[1])),))


@contextlib.asynccontextmanager
async def _snapshot(connection: Any, order: Order) -> Any:
    """A transaction whose snapshot others can use; yields its id and what the manifest says of the database."""
    version = connection.get_server_version()
    await connection.execute(
        f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'"
        # As pg_dump has it: an error is better than a part of the rows.
        "; SET row_security = off"
    )
    identifier_of_server = None
    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
        identifier_of_server = await connection.fetchval(
            "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
        )
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            "SELECT pg_catalog.pg_export_snapshot() AS snapshot, pg_catalog.current_database()::text AS database,"
            " pg_catalog.now() AS taken_at, pg_catalog.current_setting('server_version') AS server_version"
        )
        yield (
            row["snapshot"],
            {
                "database": row["database"],
                "taken_at": row["taken_at"].astimezone(UTC),
                "server_version": row["server_version"],
                "server_major": version.major,
                "system_identifier": identifier_of_server,
                "ledgers": list(await order.read_ledgers(connection)),
            },
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """Rows by table, exactly."""

    tables: dict[str, int]
    large_objects: int


async def count_rows(connection: Any) -> Counted:
    """Count the rows of every table that pg_dump dumps, in the snapshot of the present transaction, if there is one.

    Leaves of partitioned tables count each for itself. Left out are the tables of extensions, which pg_dump leaves to
    them, and materialised views, which a restore makes anew.

    A query on a table makes the planner compute what is constant in the table's index expressions, with the rights of
    whoever asks. So the tables of others are not queried: their rows are counted as COPY, which plans nothing, sends
    them.
    """
    names = await connection.fetch(
        "SELECT n.nspname::text, c.relname::text, r.rolsuper OR r.rolname = current_user AS is_ours"
        " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_roles r ON r.oid = c.relowner WHERE c.relkind = 'r'"
        " AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND NOT EXISTS ("
        "SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass"
        " AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2"
    )
    tables = {}
    for schema, table, is_ours in names:
        if is_ours:
            qualified = f"{identifier(schema)}.{identifier(table)}"
            rows = await connection.fetchval(f"SELECT pg_catalog.count(*) FROM ONLY {qualified}")  # noqa: S608
        else:
            rows = await _count_by_copy(connection, schema, table)
        # Where the schema's name has a dot, the quotes tell where it ends.
        shown = identifier(schema) if "." in schema or '"' in schema else schema
        tables[f"{shown}.{table}"] = rows
    return Counted(
        tables, await connection.fetchval("SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata")
    )


async def _count_by_copy(connection: Any, schema: str, table: str) -> int:
    rows = 0

    async def count(chunk: bytes) -> None:
        nonlocal rows
        rows += chunk.count(b"\n")  # a line break in a value is written as \n

    await connection.copy_from_table(table, schema_name=schema, output=count)
    return rows


async def _both(first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]) -> tuple[Any, Any]:
    """Both results; where one fails the other is cancelled and awaited, and the error that explains most is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(first), group.create_task(second)
    except BaseExceptionGroup as group_error:
        errors = group_error.exceptions
        raise next((e for e in errors if isinstance(e, OrchestratorError)), errors[0]) from None
    return tasks[0].result(), tasks[1].result()


@contextlib.asynccontextmanager
async def _progress_reported(
    fd: int, emit: Emit, began: float, on_progress: Callable[[int], Awaitable[None]] | None
) -> Any:
    async def report() -> None:
        said_at, said_bytes = time.monotonic(), 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            size_bytes, now = os.fstat(fd).st_size, time.monotonic()
            if on_progress is not None:
                await on_progress(size_bytes)
            if now - said_at >= _REPORT_EVERY_S:
                rate = (size_bytes - said_bytes) / (now - said_at)
                said_at, said_bytes = now, size_bytes
                emit(
                    "backup.progressed",
                    size_bytes=size_bytes,
                    bytes_per_s=round(rate),
                    elapsed_s=round(now - began, 1),
                )

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


# -------------------------------------------------------------------------------------------------------------- files


def _slug(database: str) -> str:
    """The database's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", database)[:48] or "database"


def _partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _prepare_directory(directory: Path) -> None:
    """See that it is there and can be written, and remove what killed backups left in it.

    Raises:
        BackupError: it is not, or cannot.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        _remove_leftovers(directory)
    except OSError as error:
        raise _directory_failed(error, directory) from error


def try_directory(directory: Path) -> str | None:
    """Why no backup can be written there, None where one can: a file is made in it, and removed. Blocking."""
    probe = directory / f".orchestrator-{secrets.token_hex(4)}.probe"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        probe.unlink()
    except OSError as error:
        return _directory_failed(error, directory).message
    return None


def _remove_leftovers(directory: Path) -> None:
    for partial in directory.glob(f".*{SUFFIX}.partial"):
        with contextlib.suppress(OSError), opened(partial) as fd:
            # Held by whoever writes it, this process or its pg_dump; free when both are gone.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
    for path in directory.glob(f"*{SUFFIX}.json"):
        archive = path.with_name(path.name.removesuffix(".json"))
        # In this order: what is partial now has its name after the second look.
        if not _partial_path(archive).exists() and not archive.exists():
            with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
                read_manifest(path)  # of ours
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial(path: Path) -> Any:
    """A new, locked file under the temporary name; it is gone at the end, unless it was published."""
    partial = _partial_path(path)
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Some network file systems have no locks: there, what a killed backup left stays until a person removes it.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        if not path.exists():
            manifest_path(path).unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
        os.close(fd)


def _settle(fd: int) -> tuple[int, str]:
    """The file on disk, its size and its checksum. Blocking."""
    os.fsync(fd)
    return sha256_of(fd)


def _publish(path: Path, manifest: Manifest) -> None:
    """Manifest first, then the archive's name: where that is, all is. Blocking."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    fd = os.open(manifest_path(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    _partial_path(path).rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------------------------- errors


def _dump_failed(error: pgtools.PgToolError, directory: Path, fd: int) -> BackupError:
    """Asked of the file system and not of the message, which changes with versions."""
    facts = {**error.facts, "directory": str(directory)}
    written_bytes = os.fstat(fd).st_size
    space = os.statvfs(directory)
    if space.f_bavail * space.f_frsize < _FULL_BELOW_BYTES:
        return _disk_full(directory, written_bytes, facts)
    return BackupError(
        error.message,
        remedy="Fix what it names (a right that the user lacks, a lock that is held, a server that stopped); then"
        " again. The unfinished file is removed.",
        facts=facts,
    )


def _disk_full(directory: Path, written_bytes: int | None, facts: dict[str, object]) -> BackupError:
    after = "" if written_bytes is None else f" after {written_bytes} bytes"
    return BackupError(
        f"the disk of {directory} is full{after}; the unfinished file is removed",
        remedy="Free some space there, keep fewer backups (BACKUP_KEEP, BACKUP_MAX_AGE), or set BACKUP_DIR to another"
        " disk.",
        facts={**facts, "directory": str(directory), "written_bytes": written_bytes},
    )


def _directory_failed(error: OSError, directory: Path) -> BackupError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _disk_full(directory, None, {"errno": errno.errorcode[error.errno]})
    return BackupError(
        f"{directory} cannot be written: {error.strerror or type(error).__name__}",
        remedy="Make it a directory that this user may write (in a container, a volume), or set BACKUP_DIR to one.",
        facts={"directory": str(directory), "errno": errno.errorcode.get(error.errno or 0)},
    )


def _server_failed(error: BaseException) -> BackupError:
    sqlstate = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
    code = f" (SQLSTATE {sqlstate})" if sqlstate else ""
    return BackupError(
        f"the server did not let the backup end: {str(error) or type(error).__name__}{code}",
        remedy="Fix what it names, or look at the server's log; then again. The unfinished file is removed.",
        facts={"sqlstate": sqlstate},
    )


# ---------------------------------------------------------------------------------------------------------- retention


def superfluous(backups: Iterable[Backup], *, keep: int, max_age_s: float, now: datetime) -> list[Backup]:
    """Which of one database's backups may go. Pure. `keep` 0 and `max_age_s` 0 are no limit.

    Never the newest, and never the newest from before the newest migrations: it is the way back for the code. With a
    limit of number, a migration that fails at every restart does not push the others out: of the backups taken before
    the same pending migrations only the first and the last stay.
    """
    newest_first = sorted(backups, key=lambda b: (b.manifest.taken_at, b.path.name), reverse=True)
    if not newest_first:
        return []
    newest = newest_first[0]
    way_back = next((b for b in newest_first if b.manifest.ledgers != newest.manifest.ledgers), newest)
    repeated = _repeated(newest_first) if keep else []
    counted = [b for b in newest_first if b not in repeated]
    found = [*repeated, *(counted[keep:] if keep else ())]
    if max_age_s:
        found += [b for b in counted if (now - b.manifest.taken_at).total_seconds() > max_age_s and b not in found]
    return [b for b in newest_first if b in found and b not in (newest, way_back)]


def _repeated(newest_first: Sequence[Backup]) -> list[Backup]:
    """Those between the first and the last that were taken before the same migrations, again and again."""
    tries: dict[tuple[object, ...], list[Backup]] = {}
    for backup in newest_first:
        manifest = backup.manifest
        if manifest.reason == "before_migrate" and manifest.pending:
            tries.setdefault((manifest.pending, *manifest.ledgers), []).append(backup)
    return [backup for group in tries.values() for backup in group[1:-1]]


async def remove_superfluous(directory: Path, of: Manifest, emit: Emit, *, keep: int, max_age_s: float) -> list[Backup]:
    """Remove what `superfluous` names among the backups of the same database in the same server; returns them.

    Files without a manifest of ours, and other databases' backups, are left alone.
    """

    def remove() -> list[Backup]:
        same = [b for b in read_backups(directory) if is_same_database(b.manifest, of)]
        gone = superfluous(same, keep=keep, max_age_s=max_age_s, now=datetime.now(UTC))
        for backup in gone:
            backup.path.unlink(missing_ok=True)  # first: a manifest alone is no backup
            manifest_path(backup.path).unlink(missing_ok=True)
        if gone:
            _sync_directory(directory)
        return gone

    try:
        gone: list[Backup] = await uninterrupted(remove)
    except OSError as error:
        raise _directory_failed(error, directory) from error
    for backup in gone:
        taken_at = backup.manifest.taken_at.isoformat(timespec="seconds")
        emit("backup.removed", file=str(backup.path), taken_at=taken_at, size_bytes=backup.manifest.size_bytes)
    return gone
