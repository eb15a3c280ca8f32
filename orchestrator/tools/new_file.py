"""The next migration of a folder: its name, its time, its place, written whole or not at all. Touches the file system.

The formats are drizzle-kit's own: v0 `src/cli/commands/migrate.ts` (`writeResult`) and `src/utils/words.ts`
(`prepareMigrationMetadata`); v1 a folder `<yyyymmddhhmmss>_name` with a `migration.sql`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import EXIT_CONFIG, OrchestratorError
from orchestrator.migrator.folder import FolderError, Generation, ms_to_stamp, read_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import ClassVar

Prefix = Literal["index", "timestamp", "supabase", "unix", "none"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME_LENGTH_MAX = 100
_STAMP_DIGITS = 14
_UNIX_DIGITS = 10
_SECOND_MS = 1000
# What drizzle-kit 0.2x and 0.3x write for PostgreSQL.
_JOURNAL_VERSION = "7"


class NewMigrationError(OrchestratorError):
    """The migration cannot be made as it was asked for; nothing was written."""

    exit_code: ClassVar[int] = EXIT_CONFIG


@dataclass(frozen=True, slots=True)
class NewMigration:
    """A migration that is about to be: `path` is its SQL file. `index` is the journal's, None for v1."""

    folder: Path
    generation: Generation
    tag: str
    when_ms: int
    path: Path
    index: int | None


def check_name(name: str) -> str:
    """`name` as it is, if it can be part of a file name everywhere.

    Raises:
        NewMigrationError: with a name that would do.
    """
    if _NAME.fullmatch(name) and len(name) <= _NAME_LENGTH_MAX:
        return name
    if len(name) > _NAME_LENGTH_MAX:
        what = f"has {len(name)} characters, more than {_NAME_LENGTH_MAX}"
    elif not name:
        what = "is empty"
    else:
        what = "may hold only letters a to z, digits, `_` and `-`, and begins with a letter or a digit"
    better = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:_NAME_LENGTH_MAX].strip("_") or "add_users"
    raise NewMigrationError(f"the name {name!r} {what}", remedy=f"For example: {better}", facts={"asked_for": name})


def plan_migration(
    path: Path, name: str, *, now_ms: int, generation: Generation | None = None, prefix: Prefix | None = None
) -> NewMigration:
    """Say what the next migration of `path` is called and when it is; `path` may be missing or empty. Writes nothing.

    Its time is later than that of every other: drizzle v0 passes over what is older than the newest applied one. The
    style of the prefix is that of the folder's newest entry. `generation` is for a folder that has none yet.

    Raises:
        NewMigrationError: the name cannot be used, or is taken; `generation` is not the folder's.
        FolderError: what is there is no folder of migrations.
    """
    check_name(name)
    path = path.absolute()
    folder = read_folder(path) if is_begun(path) else None
    if folder is not None and generation not in {None, folder.generation}:
        raise NewMigrationError(
            f"{path} is a {folder.generation} folder, and {generation} was asked for",
            remedy="Leave the option out; `drizzle-kit up` turns a v0 folder into v1.",
            facts={"folder": str(path), "generation": folder.generation},
        )
    taken = [migration.name for migration in folder.migrations] if folder else []
    taken += [Path(one.removesuffix("/migration.sql")).stem for one in folder.unlisted] if folder else []
    for other in taken:
        if _title(other).lower() == name.lower():
            raise NewMigrationError(
                f"{other} has the name {name!r} already",
                remedy="Choose another name: two migrations of the same name cannot be told apart when one is"
                " re-dated.",
                facts={"asked_for": name, "taken_by": other},
            )
    newest = max((migration.when_ms for migration in folder.migrations), default=None) if folder else None
    if (folder.generation if folder else generation or "v0") == "v1":
        when_ms = now_ms // _SECOND_MS * _SECOND_MS
        if newest is not None:
            when_ms = max(when_ms, newest // _SECOND_MS * _SECOND_MS + _SECOND_MS)
        tag = f"{ms_to_stamp(when_ms)}_{name}"
        return NewMigration(path, "v1", tag, when_ms, path / tag / "migration.sql", None)
    when_ms = now_ms if newest is None else max(now_ms, newest + 1)
    entries = _journal(path)["entries"]
    index = max((entry["idx"] for entry in entries if isinstance(entry.get("idx"), int)), default=-1) + 1
    tag = _tag(prefix or _style(entries), name, index, when_ms)
    file = path / f"{tag}.sql"
    if file.exists():
        raise NewMigrationError(
            f"{file} is there already, and the journal does not name it",
            remedy="Remove the file, or add it to meta/_journal.json; nothing was written.",
            facts={"file": str(file)},
        )
    return NewMigration(path, "v0", tag, when_ms, file, index)


def write_migrations(
    path: Path,
    texts: Sequence[tuple[str, str]],
    *,
    now_ms: int,
    generation: Generation | None = None,
    prefix: Prefix | None = None,
) -> list[NewMigration]:
    """Make a migration of each (name, SQL), in order, and return them. Blocking.

    Each appears whole: the SQL first, under its name only when it is on the disk, and the journal's entry last. Two
    that write into one folder at a time wait for each other. Errors as in `plan_migration`.
    """
    for name, _ in texts:
        check_name(name)
    path = path.absolute()
    with _writing(path):
        made = []
        for name, sql in texts:
            new = plan_migration(path, name, now_ms=now_ms, generation=generation, prefix=prefix)
            if new.generation == "v1":
                _write_v1(new, sql)
            else:
                _write_v0(new, sql)
            made.append(new)
        return made


def is_begun(path: Path) -> bool:
    """Whether `path` holds anything yet; FolderError where it cannot be read."""
    try:
        begun = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FolderError(
            f"cannot read {path}: {error.strerror}",
            remedy="Name a directory that you may write to.",
            facts={"folder": str(path)},
        ) from error
    return bool(begun) and ((path / "meta" / "_journal.json").is_file() or [e.name for e in begun] != ["meta"])


def _title(tag: str) -> str:
    """A name without the number and the `_` in front of it."""
    number, separator, title = tag.partition("_")
    return title if separator and (number.isdigit() or not number) else tag


def _style(entries: Sequence[dict[str, Any]]) -> Prefix | Literal["bare"]:
    """How the newest entry's name begins; `bare` is a name that was given by hand, without any prefix."""
    if not entries:
        return "index"
    tag = str(entries[-1]["tag"])
    number, separator, _ = tag.partition("_")
    if not separator or not (number.isdigit() or not number):
        return "bare"
    if not number:
        return "none"
    return "timestamp" if len(number) == _STAMP_DIGITS else "unix" if len(number) == _UNIX_DIGITS else "index"


def _tag(prefix: Prefix | Literal["bare"], name: str, index: int, when_ms: int) -> str:
    if prefix == "bare":
        return name
    # `none` leaves the underscore in front of the name: drizzle-kit does, too.
    number = {
        "index": f"{index:04}",
        "timestamp": ms_to_stamp(when_ms),
        "supabase": ms_to_stamp(when_ms),
        "unix": str(when_ms // _SECOND_MS),
        "none": "",
    }[prefix]
    return f"{number}_{name}"


def _journal(path: Path) -> dict[str, Any]:
    file = path / "meta" / "_journal.json"
    try:
        journal: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        journal = {"version": _JOURNAL_VERSION, "dialect": "postgresql", "entries": []}
    return journal


def _write_v0(new: NewMigration, sql: str) -> None:
    file = new.folder / "meta" / "_journal.json"
    journal = _journal(new.folder)
    ends_with_newline = file.is_file() and file.read_bytes().endswith(b"\n")
    entries = journal["entries"]
    entries.append(
        {
            "idx": new.index,
            "version": str(entries[-1].get("version", _JOURNAL_VERSION)) if entries else _JOURNAL_VERSION,
            "when": new.when_ms,
            "tag": new.tag,
            "breakpoints": True,
        }
    )
    # JSON.stringify(journal, null, 2), to the byte; the last newline is a formatter's, and stays.
    text = json.dumps(journal, indent=2, ensure_ascii=False) + ("\n" if ends_with_newline else "")
    file.parent.mkdir(exist_ok=True)
    _write_whole(new.path, sql)
    _write_whole(file, text)


def _write_v1(new: NewMigration, sql: str) -> None:
    # One level further down than a reader looks, until it is whole.
    unfinished = new.folder / f".unfinished-{secrets.token_hex(4)}"
    inner = unfinished / new.tag
    inner.mkdir(parents=True)
    try:
        _write_whole(inner / "migration.sql", sql)
        inner.rename(new.folder / new.tag)
        _sync_directory(new.folder)
    finally:
        (inner / "migration.sql").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            inner.rmdir()
        unfinished.rmdir()


def _write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as out:
            out.write(text.encode())
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(file.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the folder against another writer, making it if it is missing; a problem with it is FolderError."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from error
    written = False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        written = True
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(fd)
        if made and not written:
            with contextlib.suppress(OSError):
                path.rmdir()


def _unwritable(path: Path, error: OSError) -> FolderError:
    return FolderError(
        f"cannot write into {path}: {error.strerror or type(error).__name__}",
        remedy="Name a migrations folder that this user may write to.",
        facts={"folder": str(path)},
    )
