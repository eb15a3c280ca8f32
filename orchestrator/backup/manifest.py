"""What is known of a backup, in a file beside it, and how backups are found and read. Touches the directory.

What stands in a directory of backups may be anything, put there by anyone: only regular files are opened, and a
manifest is read within a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 msgspec reads the type
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from orchestrator.errors import EXIT_MIGRATION, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Reason = Literal["command", "before_migrate", "job"]

FORMAT: Literal["orchestrator.backup/1"] = "orchestrator.backup/1"
SUFFIX = ".dump"
_MANIFEST_MAX_BYTES = 64 << 20
_HASH_CHUNK_BYTES = 8 << 20


class BackupError(OrchestratorError):
    """No backup was made, or the one that is named cannot be used."""

    exit_code = EXIT_MIGRATION


class LedgerState(msgspec.Struct, frozen=True):
    """A ledger as it was: how many rows, and its newest one; `created_at` in ms since 1970."""

    schema: str
    table: str
    rows: int
    newest_id: int | str | None = None
    newest_name: str | None = None
    newest_hash: str | None = None
    newest_created_at: int | None = None

    @property
    def ledger(self) -> str:
        """Its name for people; not to be taken apart again, since both parts may hold a dot."""
        return f"{self.schema}.{self.table}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a backup. All of it is of one snapshot, the archive's own; `taken_at` is the snapshot's time.

    `tables` are rows by table, `large_objects` their number. `pending` counts the migrations that were to run after it.
    `signature` is made with BACKUP_KEY (see vouching.py), "" without one.
    """

    format: Literal["orchestrator.backup/1"]
    file: str
    size_bytes: int
    sha256: str
    taken_at: datetime
    duration_s: float
    reason: Reason
    database: str
    system_identifier: str | None
    server_version: str
    server_major: int
    pg_dump_version: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,3}(?![0-9])")]
    orchestrator_version: str
    ledgers: list[LedgerState]
    tables: dict[str, int]
    large_objects: int = 0
    pending: int = 0
    signature: str = ""

    @property
    def pg_dump_major(self) -> int:
        """The major version of the program that wrote the archive."""
        return int("".join(c if c.isdigit() else " " for c in self.pg_dump_version).split()[0])


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup: archive and manifest. `digest` is the SHA-256 of all that the manifest says but its signature."""

    path: Path
    manifest: Manifest
    digest: str = ""

    def described(self) -> dict[str, Any]:
        """All that is known of it, as plain data."""
        return {"path": str(self.path), **msgspec.to_builtins(self.manifest)}


def manifest_path(path: Path) -> Path:
    """Where the manifest of the archive `path` lies."""
    return path.with_name(f"{path.name}.json")


def digest_of(manifest: bytes) -> str:
    """The SHA-256 of what a manifest says, however it is laid out: sorted keys, no spaces, without the signature."""
    told = msgspec.json.decode(manifest, type=dict[str, Any])
    told.pop("signature", None)
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


def is_same_database(one: Manifest, other: Manifest) -> bool:
    """Whether both are of one database of one server (by its system identifier, where the user may read it)."""
    return (one.database, one.system_identifier) == (other.database, other.system_identifier)


def is_same_place(manifest: Manifest, database: str) -> bool:
    """Whether it is a backup of a database of that name, on whatever server: one may have moved since."""
    return manifest.database == database


def sha256_of(fd: int) -> tuple[int, str]:
    """The size of an open file in bytes, and its checksum. Blocking."""
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(fd, _HASH_CHUNK_BYTES, offset):
        digest.update(chunk)
        offset += len(chunk)
    return offset, digest.hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a regular file for reading; what is none (a pipe, a device) is not waited for. Blocking.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no regular file")
        yield fd
    finally:
        os.close(fd)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """A manifest and its digest. Blocking.

    Raises:
        OSError: it cannot be read. msgspec.MsgspecError, UnicodeDecodeError: it is no manifest of ours.
    """
    with opened(path) as fd:
        content = os.pread(fd, _MANIFEST_MAX_BYTES, 0)
    return msgspec.json.decode(content, type=Manifest), digest_of(content)


def read_backups(directory: Path) -> list[Backup]:
    """The whole backups of a directory, the newest first; [] where there is none. Blocking; reads no archive."""
    found = []
    for path in directory.glob(f"*{SUFFIX}.json"):
        archive = path.with_name(path.name.removesuffix(".json"))
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            manifest, digest = read_manifest(path)
            if manifest.file == archive.name and _regular_size(archive) == manifest.size_bytes:
                found.append(Backup(archive, manifest, digest))
    return sorted(found, key=lambda b: (b.manifest.taken_at, b.path.name), reverse=True)


def _regular_size(path: Path) -> int:
    found = path.stat()
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def read_backup(path: Path) -> Backup:
    """One backup, whole by its size; `open_checked` looks at every byte. Blocking.

    Raises:
        BackupError: there is no such file, or it is no whole backup of ours.
    """
    try:
        with opened(path) as fd:
            size_bytes = os.fstat(fd).st_size
    except OSError as error:
        raise BackupError(
            f"{path} cannot be read: {error.strerror}",
            remedy="`orchestrator backup --list` shows the backups of BACKUP_DIR.",
            facts={"file": str(path)},
        ) from error
    beside = manifest_path(path)
    try:
        manifest, digest = read_manifest(beside)
    except FileNotFoundError as error:
        raise BackupError(
            f"{path} has no manifest ({beside.name}) beside it: it is no backup of orchestrator, or not whole",
            remedy="Copy both files. An archive of another program is restored by that program, or by pg_restore.",
            facts={"file": str(path)},
        ) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BackupError(
            f"{beside} is no manifest of a backup: {why}",
            remedy="Use another copy or another backup (`orchestrator backup --list`); nothing was restored.",
            facts={"file": str(path)},
        ) from error
    if size_bytes != manifest.size_bytes:
        raise _damaged(path, f"it has {size_bytes} bytes, and had {manifest.size_bytes}")
    return Backup(path, manifest, digest)


@contextlib.asynccontextmanager
async def open_checked(backup: Backup) -> Any:
    """The archive, open for reading, every byte of it compared with the manifest; yields its descriptor.

    Whoever reads it by the descriptor reads what was compared, whatever is put in the file's place meanwhile.

    Raises:
        BackupError: it is not what was written.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = stack.enter_context(opened(backup.path))
            _, found = await uninterrupted(sha256_of, fd)
        except OSError as error:
            raise _damaged(backup.path, f"it cannot be read: {error.strerror}") from error
        if found != backup.manifest.sha256:
            raise _damaged(backup.path, f"its SHA-256 is {found}, and was {backup.manifest.sha256}")
        yield fd


async def uninterrupted(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run blocking `work` in a thread, and be there when it ends: cancelled, it would use what is closed by then."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _damaged(path: Path, what: str) -> BackupError:
    return BackupError(
        f"{path} is damaged: {what}",
        remedy="Use another copy or another backup (`orchestrator backup --list`); nothing was restored.",
        facts={"file": str(path)},
    )
