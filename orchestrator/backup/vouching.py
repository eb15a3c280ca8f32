"""Who says that a backup is the one that was made: a signature in its manifest, or our own table. Touches the database.

A checksum in a file beside the archive proves that neither was damaged. It does not prove that nobody altered both:
whoever can write to the directory can. So a manifest is signed where there is a key, and its digest is kept in the
database as well, which whoever writes to the directory cannot change.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.backup.manifest import BackupError
from orchestrator.database.connect_errors import CONNECTION_ERRORS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.backup.manifest import Backup

Voucher = Literal["signature", "table"]

# Only where the table is ours, the database owner's or a superuser's: what others made says what they want it to.
_TABLE = (
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_catalog.pg_roles r ON r.oid = c.relowner, pg_catalog.pg_database d"
    " WHERE n.nspname = 'orchestrator' AND c.relname = 'backups' AND c.relkind = 'r'"
    " AND d.datname = pg_catalog.current_database()"
    " AND (r.rolsuper OR c.relowner = d.datdba OR r.rolname = current_user))"
)
_COLUMNS = "taken_at, file, sha256, manifest_hash, size_bytes, duration_s, reason"
_INSERT = (
    f"INSERT INTO orchestrator.backups ({_COLUMNS}) SELECT $1, $2, $3, $4, $5, $6, $7"  # noqa: S608 constants
    " WHERE NOT EXISTS (SELECT 1 FROM orchestrator.backups WHERE manifest_hash = $4)"
)


def signature(digest: str, key: str) -> str:
    """HMAC-SHA256 (RFC 2104) over the manifest's digest."""
    return hmac.digest(key.encode(), f"orchestrator.backup {digest}".encode(), "sha256").hex()


async def record(connection: Any, backup: Backup) -> bool:
    """Keep what the backup is, once; False where this database has no table for it (yet)."""
    one = backup.manifest
    row = (one.taken_at, one.file, one.sha256, backup.digest, one.size_bytes, one.duration_s, one.reason)
    return await copy_records(connection, [row])


async def read_records(connection: Any) -> Sequence[Any]:
    """All that the table holds, () where there is none."""
    if not await connection.fetchval(_TABLE):
        return ()
    rows: Sequence[Any] = await connection.fetch(f"SELECT {_COLUMNS} FROM orchestrator.backups ORDER BY id")  # noqa: S608
    return rows


async def copy_records(connection: Any, rows: Sequence[Any]) -> bool:
    """Add those that the table lacks; False where there is none."""
    if not await connection.fetchval(_TABLE):
        return False
    await connection.executemany(_INSERT, [tuple(row) for row in rows])
    return True


def vouched_for(backup: Backup, records: Sequence[Any], key: str, *, unverified: bool = False) -> Voucher | None:
    """Who vouches for it; None where nobody does and `unverified` allows that. Pure.

    Raises:
        BackupError: nobody does; or the signature is another key's; or the table knows another backup of that name.
    """
    given = backup.manifest.signature
    signed = bool(given and key) and hmac.compare_digest(given, signature(backup.digest, key))
    if signed:
        return "signature"
    same_name = [row for row in records if row["file"] == backup.manifest.file]
    if any(row["manifest_hash"] == backup.digest for row in same_name):
        return "table"
    if unverified:
        return None
    if same_name:
        why = "the database knows a backup of this name, and it is another one: the archive or its manifest was altered"
    elif given and key:
        why = "its signature was not made with BACKUP_KEY: it was altered, or signed with another key"
    elif given:
        why = "it is signed, and there is no BACKUP_KEY to check that; and the database does not know it"
    else:
        why = "it is not signed, and the database does not know it"
    raise BackupError(
        f"nobody vouches for {backup.path}: {why}",
        remedy="A backup holds code that a restore runs, so it must be the one that was made. Set BACKUP_KEY (or"
        " BACKUP_KEY_FILE) as it was when the backup was made, or use another copy. If you know where the file comes"
        " from and trust that: --unverified. Nothing was restored.",
        facts={"file": str(backup.path), "signed": bool(given)},
    )


async def recorded(connection: Any, backup: Backup, emit: Any) -> None:
    """`record`, after a backup was made: that it cannot be kept is told, and does not undo the backup."""
    error: BaseException | None = None
    try:
        if await record(connection, backup):
            return
    except CONNECTION_ERRORS as refused:
        error = refused
    if error is not None or not backup.manifest.signature:
        emit(
            "backup.not_recorded",
            level="warning" if error is not None else "info",
            file=str(backup.path),
            sqlstate=getattr(error, "sqlstate", None),
            hint="The database does not keep this backup's checksum"
            + (" (it has no table for it yet)" if error is None else "")
            + (
                "."
                if backup.manifest.signature
                else ", and it is not signed: a restore will want --unverified. Set BACKUP_KEY to have backups signed."
            ),
        )
