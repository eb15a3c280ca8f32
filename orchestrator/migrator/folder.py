"""Read a folder of Drizzle migrations, of either generation, into facts. Touches the file system, never the database.

v0: `meta/_journal.json` names the files and their order (`drizzle-orm` ≤ 0.45, `migrator.js`, `readMigrationFiles`).
v1: every folder `<14 digits>_name` that holds a `migration.sql` (`drizzle-orm` 1.0, the same function).
"""

from __future__ import annotations

import hashlib
import math
import os
from calendar import timegm
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator.errors import MigrationError

Generation = Literal["v0", "v1"]
_STAMP_DIGITS = 14
_SHOWN = 10
_PIECE_BYTES = 64 * 1024


class FolderError(MigrationError):
    """The folder is not what Drizzle would accept; nothing was run."""


class Migration(msgspec.Struct, frozen=True, gc=False):
    """One migration file.

    `name` is v0's tag or v1's folder name, `when_ms` what Drizzle writes into `created_at` (ms since 1970, UTC), `hash`
    the sha256 in hex of the file as Drizzle reads it. The content is not held: `read()` gives it when it is needed.
    `is_utf8` is False where Drizzle, and so we, read U+FFFD in place of bytes that are none. `text` is what is run
    in the place of the file's content: a replay leaves out what acts outside the scratch database.
    """

    name: str
    when_ms: int
    hash: str
    path: str
    size_bytes: int
    is_utf8: bool = True
    text: bytes | None = None

    def read(self) -> bytes:
        """The file's bytes as Drizzle sees them, the same that `hash` was made of.

        Raises:
            FolderError: the file changed since the folder was read.
        """
        if self.text is not None:
            return self.text
        raw = as_node_reads(Path(self.path).read_bytes())
        if hashlib.sha256(raw).hexdigest() != self.hash:
            raise FolderError(
                f"{self.path} changed while it was being used",
                remedy="Start again when nothing writes to the migrations folder.",
                facts={"file": str(self.path)},
            )
        return raw


class Folder(msgspec.Struct, frozen=True):
    """A folder of migrations in the order in which Drizzle runs them. `unlisted` files no run will ever use."""

    path: Path
    generation: Generation
    migrations: tuple[Migration, ...]
    unlisted: tuple[str, ...] = ()


class FolderProblem(msgspec.Struct, frozen=True):
    """What is wrong with a folder: `text` says it, `file` is where, `name` the migration that it is about.

    A run refuses them all but `backwards`: it applies on an empty ledger what it passes over on another.
    """

    kind: Literal["journal", "twice", "when", "outside", "missing", "unstamped", "empty", "backwards"]
    text: str
    file: str
    name: str = ""


class _Entry(msgspec.Struct):
    tag: str
    when: int | float


class _Journal(msgspec.Struct):
    entries: list[_Entry]


def as_node_reads(raw: bytes) -> bytes:
    """What Drizzle hashes and runs: Node puts U+FFFD for a byte that is not UTF-8 (`fs.readFileSync(…).toString()`)."""
    if raw.isascii():
        return raw
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="replace").encode()
    return raw


def read_folder(path: Path) -> Folder:
    """Read `path`, v0 where it holds `meta/_journal.json`, else v1. Blocking: call it from a thread.

    Raises:
        FolderError: with every problem of the folder at once: a journal that is not JSON, a journal entry without its
            file, the same entry twice, a name that carries no time.
    """
    folder, found = scan_folder(path)
    problems = [problem for problem in found if problem.kind != "backwards"]
    if problems:
        raise _refused(folder, problems)
    return folder


def scan_folder(path: Path) -> tuple[Folder, list[FolderProblem]]:
    """What can be read of `path`, in order, and all that is wrong with it. Blocking.

    Raises:
        FolderError: there is no such folder, or it cannot be read.
    """
    path = path.absolute()
    journal = path / "meta" / "_journal.json"
    if journal.is_file():
        return _scan_v0(path, journal)
    if not path.is_dir():
        raise FolderError(
            f"there is no migrations folder at {path}",
            remedy="Point MIGRATIONS_DIR at the folder that holds meta/_journal.json or the <14 digits>_name folders.",
            facts={"folder": str(path)},
        )
    return _scan_v1(path)


def _refused(folder: Folder, problems: list[FolderProblem]) -> FolderError:
    first = problems[0]
    if first.kind == "journal":
        remedy = "Restore the file from version control, or run drizzle-kit again; nothing was run."
        return FolderError(first.text, remedy=remedy, facts={"file": first.file})
    if first.kind == "empty":
        remedy = "Point MIGRATIONS_DIR at the folder that drizzle-kit writes, or unset it."
        return FolderError(first.text, remedy=remedy, facts={"folder": first.file})
    remedy = (
        "Restore the missing files, or correct meta/_journal.json; nothing was run."
        if folder.generation == "v0"
        else "Name folders <yyyymmddhhmmss>_name, each with a migration.sql; nothing was run."
    )
    shown = [problem.text for problem in problems[:_SHOWN]]
    more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
    return FolderError("; ".join(shown) + more, remedy=remedy, facts={"folder": str(folder.path), "problems": shown})


def _scan_v0(path: Path, journal: Path) -> tuple[Folder, list[FolderProblem]]:
    where = str(journal)
    try:
        entries = msgspec.json.decode(journal.read_bytes(), type=_Journal).entries
    except msgspec.DecodeError as error:
        broken = FolderProblem("journal", f"{journal} is not a Drizzle journal: {error}", where)
        return Folder(path, "v0", ()), [broken]
    except OSError as error:
        raise _unreadable(journal, error) from error
    problems: list[FolderProblem] = []
    migrations: list[Migration] = []
    seen: set[str] = set()
    highest, holder = -math.inf, ""
    for entry in entries:
        tag, when = entry.tag, entry.when
        if tag in seen:
            problems.append(FolderProblem("twice", f"the journal names {tag!r} twice", where, tag))
            continue
        seen.add(tag)
        if when != int(when):
            text = f"the journal's `when` of {tag!r} is not a whole number of milliseconds"
            problems.append(FolderProblem("when", text, where, tag))
            continue
        if when <= highest:
            text = f"the `when` of {tag} ({when:.0f}) is not after that of {holder} ({highest:.0f})"
            problems.append(FolderProblem("backwards", text, where, tag))
        else:
            highest, holder = when, tag
        if not tag or "\0" in tag or tag.startswith("/") or ".." in tag.split("/"):
            problems.append(FolderProblem("outside", f"the journal's tag {tag!r} leads out of the folder", where, tag))
            continue
        file = f"{path}/{tag}.sql"
        try:
            migrations.append(_migration(tag, int(when), file))
        except FileNotFoundError:
            text = f"the journal names {tag!r}, and there is no file {tag}.sql"
            problems.append(FolderProblem("missing", text, where, tag))
        except OSError as error:
            raise _unreadable(file, error) from error
    with os.scandir(path) as found:
        names = [entry.name for entry in found]
    files = [name for name in names if name.endswith(".sql")]
    unlisted = [name for name in files if name[:-4] not in seen]
    # Folders of drizzle 1.0 beside a journal: half of a conversion. Neither generation would run both.
    unlisted += [
        f"{name}/migration.sql"
        for name in set(names).difference(files)
        if _is_stamped(name) and (path / name / "migration.sql").is_file()
    ]
    return Folder(path, "v0", tuple(migrations), tuple(sorted(unlisted))), problems


def _is_stamped(name: str) -> bool:
    stamp = name[:_STAMP_DIGITS]
    return len(stamp) == _STAMP_DIGITS and stamp.isascii() and stamp.isdigit()


def _scan_v1(path: Path) -> tuple[Folder, list[FolderProblem]]:
    problems: list[FolderProblem] = []
    migrations: list[Migration] = []
    unlisted: list[str] = []
    try:
        with os.scandir(path) as found:
            names = sorted((e.name for e in found), key=_locale_key)
    except OSError as error:
        raise _unreadable(path, error) from error
    for name in names:
        file = f"{path}/{name}/migration.sql"
        try:
            if _is_stamped(name):
                migrations.append(_migration(name, stamp_to_ms(name[:_STAMP_DIGITS]), file))
            elif Path(file).is_file():
                text = f"the folder {name!r} holds a migration.sql, and its name does not begin with 14 digits"
                problems.append(FolderProblem("unstamped", text, file, name))
            elif name.endswith(".sql"):
                unlisted.append(name)
        except (FileNotFoundError, NotADirectoryError):
            # Drizzle passes over what has no migration.sql; a stamped folder without one was meant to have it.
            if (path / name).is_dir():
                text = f"the folder {name!r} has no migration.sql"
                problems.append(FolderProblem("missing", text, f"{path}/{name}", name))
            elif name.endswith(".sql"):
                unlisted.append(name)
        except OSError as error:
            raise _unreadable(file, error) from error
    if not migrations and not problems:
        if not any(path.iterdir()):
            text = f"{path} is empty: of a folder that is missing on the host, a container engine makes an empty mount"
        else:
            text = f"{path} holds no migrations: no meta/_journal.json and no <14 digits>_name/migration.sql"
        problems.append(FolderProblem("empty", text, str(path)))
    return Folder(path, "v1", tuple(migrations), tuple(unlisted)), problems


def _migration(name: str, when_ms: int, file: str) -> Migration:
    # A folder of 10,000 files is read at every start: three system calls a file, a path that is a str, and a Struct are
    # half of the time that Path, fstat and a dataclass take.
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        raw = os.read(fd, _PIECE_BYTES)
        if len(raw) == _PIECE_BYTES:
            os.lseek(fd, 0, os.SEEK_SET)
            with os.fdopen(os.dup(fd), "rb") as whole:
                raw = whole.read()
    finally:
        os.close(fd)
    read = as_node_reads(raw)
    return Migration(name, when_ms, hashlib.sha256(read).hexdigest(), file, len(raw), is_utf8=read is raw)


def _unreadable(file: Path | str, error: OSError) -> FolderError:
    return FolderError(
        f"cannot read {file}: {error.strerror or type(error).__name__}",
        remedy="Make the migrations folder readable for the user that the container runs as.",
        facts={"file": str(file)},
    )


def stamp_to_ms(stamp: str) -> int:
    """`yyyymmddhhmmss` as UTC milliseconds; out-of-range parts carry over, as in JavaScript's `Date.UTC`."""
    year, month = int(stamp[0:4]), int(stamp[4:6])
    day, hour, minute, second = (int(stamp[i : i + 2]) for i in (6, 8, 10, 12))
    if year < 100:  # noqa: PLR2004 Date.UTC reads 0 to 99 as 1900 to 1999
        year += 1900
    year, month0 = year + (month - 1) // 12, (month - 1) % 12
    return (timegm((year, month0 + 1, 1, 0, 0, 0)) + (day - 1) * 86400 + hour * 3600 + minute * 60 + second) * 1000


def ms_to_stamp(when_ms: int) -> str:
    """UTC milliseconds as `yyyymmddhhmmss`, the reverse of `stamp_to_ms` (whole seconds, rounded down)."""
    import time

    return time.strftime("%Y%m%d%H%M%S", time.gmtime(when_ms // 1000))


_PUNCTUATION = "_-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$"


def _locale_key(name: str) -> tuple[list[tuple[int, int, str]], str, str]:
    """Order as JavaScript's `localeCompare` does (UCA root order): punctuation, digits, letters; accents; case.

    v1 sorts folder names with it; it matters only between names whose 14 digits are equal.
    """
    base, accents = name, ""
    if not name.isascii():
        import unicodedata

        decomposed = unicodedata.normalize("NFKD", name)
        accents = "".join(c for c in decomposed if unicodedata.combining(c))
        base = "".join(c for c in decomposed if not unicodedata.combining(c))
    keys = []
    for character in base:
        place = _PUNCTUATION.find(character)
        if place >= 0:
            keys.append((0, place, ""))
        elif character.isdigit():
            keys.append((1, 0, character))
        else:
            keys.append((2, 0, character.casefold()))
    return keys, accents, base.swapcase()
