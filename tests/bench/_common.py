"""What the benchmarks share: a server of their own, folders, runs measured by the kernel, the table.

Rules that all of them follow. Both sides run on the same embedded server with its durable defaults, in one go, in turn
(A, B, C, A, B, C …), after a warm-up of each; the median is printed, and the ratio to the reference. CPU is user +
system of the child itself, so that what else the machine does shows. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "drizzle"))
from reference import NotInstallableError, install

from orchestrator.embedded.server import embedded_postgres

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BREAKPOINT = "--> statement-breakpoint\n"
FIRST_WHEN_MS = 1_700_000_000_000
RUN_LIMIT_S = 900


# ------------------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a process: wall seconds, CPU seconds (user + system), peak resident bytes."""

    wall_s: float
    cpu_s: float = 0.0
    peak_bytes: int = 0


def clean_environment(**more: str) -> dict[str, str]:
    """What a container gives a process, and no more: no PYTHONDONTWRITEBYTECODE, no PG* of the caller's shell."""
    clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return clean | {"LOG_FORMAT": "json"} | more


def orchestrator(*arguments: str) -> list[str]:
    """The command: what the console script `orchestrator` does, from this checkout or as it is installed."""
    code = "import sys; from orchestrator.cli import main; sys.argv[0] = 'orchestrator'; sys.exit(main())"
    return [sys.executable, "-c", code, *arguments]


def orchestrator_environment(**more: str) -> dict[str, str]:
    """`clean_environment`, with the checkout on the path. It stands first, before what is installed."""
    return clean_environment(PYTHONPATH=str(ROOT), **more)


def compile_bytecode() -> None:
    """As an installer does: a start never compiles. Quick where it is done already."""
    compileall.compile_dir(ROOT / "orchestrator", quiet=2)
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2)


def measured(command: Sequence[str], environment: dict[str, str], *, cwd: Path | None = None) -> Sample:
    """Run to the end. `_spawn.py`, a small process, starts it: a child's peak memory is never below its parent's."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [sys.executable, "-I", "-S", HERE / "_spawn.py", str(output.fileno()), *command],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=[output.fileno()],
            timeout=RUN_LIMIT_S,
            check=True,
        )
        told = json.loads(done.stdout)
        if told["code"] != 0:
            output.seek(0)
            tail = output.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{command[:3]}… ended with {told['code']}:\n{tail}")
    return Sample(told["wall_s"], told["cpu_s"], told["peak_bytes"])


# ------------------------------------------------------------------------------------------------------------ databases


class Server:
    """Databases on the benchmark's server, each new and empty."""

    def __init__(self, dsn: str, admin: asyncpg.Connection, version: str) -> None:
        self.dsn, self._admin, self.version = dsn, admin, version
        self._made = 0

    def url(self, name: str) -> str:
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))

    async def create(self, template: str = "template0") -> str:
        """A new database's DSN; the server has nothing left to write when this returns."""
        self._made += 1
        name = f"bench_{self._made}"
        await self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        await self._admin.execute("CHECKPOINT")
        return self.url(name)

    async def drop(self, url: str) -> None:
        await self._admin.execute(f"DROP DATABASE IF EXISTS {urlsplit(url).path[1:]} WITH (FORCE)")

    async def checkpoint(self) -> None:
        await self._admin.execute("CHECKPOINT")


@asynccontextmanager
async def bench_server() -> AsyncIterator[tuple[Server, Path]]:
    """An embedded server on a directory of its own, and a scratch directory beside it; both are gone afterwards."""
    compile_bytecode()
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as made:
        scratch = Path(made)
        async with embedded_postgres(scratch / "server", lambda *_, **__: None) as server:
            admin = await asyncpg.connect(server.dsn)
            try:
                # Not the user `orchestrator`: what stands first in its search path is the schema of that name.
                await admin.execute("CREATE ROLE bench SUPERUSER LOGIN PASSWORD 'bench'")
                parts = urlsplit(server.dsn)
                own = urlunsplit(parts._replace(netloc=f"bench:bench@{parts.hostname}:{parts.port}"))
                yield Server(own, admin, server.version), scratch
            finally:
                await admin.close()


def psql_environment(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return clean_environment(
        PGHOST=parts.hostname or "",
        PGPORT=str(parts.port),
        PGUSER=parts.username or "",
        PGPASSWORD=unquote(parts.password or ""),
        PGDATABASE=parts.path[1:],
    )


# -------------------------------------------------------------------------------------------------------------- folders


def write_folder(folder: Path, files: Sequence[tuple[str, str]]) -> Path:
    """A Drizzle v0 folder of (tag, SQL)."""
    (folder / "meta").mkdir(parents=True)
    entries = []
    for index, (tag, sql) in enumerate(files):
        (folder / f"{tag}.sql").write_text(sql)
        when_ms = FIRST_WHEN_MS + index * 60_000
        entries.append({"idx": index, "version": "7", "when": when_ms, "tag": tag, "breakpoints": True})
    journal = {"version": "7", "dialect": "postgresql", "entries": entries}
    (folder / "meta" / "_journal.json").write_text(json.dumps(journal, indent=2))
    return folder


def small_migrations(count: int) -> list[tuple[str, str]]:
    """What drizzle-kit writes: a table, an index, a column, a foreign key; four statements a file."""
    files = []
    for n in range(count):
        statements = [
            (
                f'CREATE TABLE "items_{n}" (\n\t"id" serial PRIMARY KEY NOT NULL,\n\t"name" text NOT NULL,\n'
                '\t"payload" jsonb,\n\t"created_at" timestamp with time zone DEFAULT now() NOT NULL\n);\n'
            ),
            f'CREATE INDEX "items_{n}_name_idx" ON "items_{n}" USING btree ("name");',
            f'ALTER TABLE "items_{n}" ADD COLUMN "owner_id" integer;',
        ]
        if n:
            statements.append(
                f'ALTER TABLE "items_{n}" ADD CONSTRAINT "items_{n}_owner_fk" FOREIGN KEY ("owner_id")'
                f' REFERENCES "public"."items_{n - 1}"("id") ON DELETE no action ON UPDATE no action;'
            )
        files.append((f"{n:04d}_items_{n}", BREAKPOINT.join(statements)))
    return files


def tiny_migrations(count: int) -> list[tuple[str, str]]:
    """One statement a file: what costs is the way there and back."""
    return [(f"{n:05d}_tiny", f"CREATE TABLE tiny_{n} (id integer);\n") for n in range(count)]


def concatenated(folder: Path, into: Path) -> Path:
    """The folder as one file for `psql -1`: Drizzle's ledger made, each file, and its ledger row after it."""
    from orchestrator.migrator.folder import read_folder

    with into.open("wb") as out:
        out.write(
            b"CREATE SCHEMA drizzle;\nCREATE TABLE drizzle.__drizzle_migrations"
            b" (id SERIAL PRIMARY KEY, hash text NOT NULL, created_at bigint);\n"
        )
        for migration in read_folder(folder).migrations:
            with Path(migration.path).open("rb") as file:
                shutil.copyfileobj(file, out)
            out.write(
                b"\n;INSERT INTO drizzle.__drizzle_migrations (hash, created_at)"
                b" VALUES ('%s', %d);\n" % (migration.hash.encode(), migration.when_ms)
            )
    return into


# ---------------------------------------------------------------------------------------------------------- contestants


@dataclass(slots=True)
class Contestant:
    """One side of a comparison; `run` is one measured run, after whatever it prepares untimed."""

    name: str
    run: Callable[[], Awaitable[Sample]]
    samples: list[Sample] = field(default_factory=list)

    def median(self, of: Callable[[Sample], float]) -> float:
        return statistics.median(of(sample) for sample in self.samples)


async def compare(title: str, contestants: Sequence[Contestant], *, rounds: int, warm: int = 1) -> None:
    """Run all in turn, `warm` times unseen and `rounds` times measured, print the table; the first is the reference."""
    for number in range(warm + rounds):
        for contestant in contestants:
            sample = await contestant.run()
            if number >= warm:
                contestant.samples.append(sample)
    show(title, contestants)


def show(title: str, contestants: Sequence[Contestant]) -> None:
    rounds = len(contestants[0].samples)
    print(f"\n{title}  (median of {rounds}, in turn; load {os.getloadavg()[0]:.1f})")
    print(f"  {'':34}{'wall':>10}{'min':>10}{'own cpu':>10}{'peak':>10}{'ratio':>8}{'of min':>8}")
    reference = contestants[0]
    for one in contestants:
        wall, least = one.median(lambda s: s.wall_s), min(s.wall_s for s in one.samples)
        ratio = wall / reference.median(lambda s: s.wall_s)
        ratio_of_least = least / min(s.wall_s for s in reference.samples)
        cpu, peak = one.median(lambda s: s.cpu_s), one.median(lambda s: s.peak_bytes)
        print(
            f"  {one.name:34}{wall * 1000:7.0f} ms{least * 1000:7.0f} ms{cpu * 1000:7.0f} ms"
            f"{peak / 1e6:7.0f} MB{ratio:8.2f}{ratio_of_least:8.2f}",
            flush=True,
        )


def on_fresh_database(
    server: Server, command_of: Callable[[str], tuple[list[str], dict[str, str], Path | None]]
) -> Callable[[], Awaitable[Sample]]:
    """A run on a new, empty database each time; making and dropping it is not timed."""

    async def run() -> Sample:
        url = await server.create()
        try:
            command, environment, cwd = command_of(url)
            return await asyncio.to_thread(measured, command, environment, cwd=cwd)
        finally:
            await server.drop(url)

    return run


def psql_once(file: Path) -> Callable[[str], tuple[list[str], dict[str, str], Path | None]]:
    return lambda url: (
        ["psql", "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(file)],
        psql_environment(url) | {"PGOPTIONS": "-c client_min_messages=warning"},
        None,
    )


def our_migrate(folder: Path) -> Callable[[str], tuple[list[str], dict[str, str], Path | None]]:
    return lambda url: (
        orchestrator("migrate"),
        orchestrator_environment(DATABASE_URL=url, MIGRATIONS_DIR=str(folder)),
        None,
    )


def bare_asyncpg(file: Path) -> Callable[[str], tuple[list[str], dict[str, str], Path | None]]:
    return lambda url: (
        [sys.executable, str(HERE / "_asyncpg_loop.py"), str(file)],
        clean_environment(DATABASE_URL=url),
        None,
    )


def drizzle(folder: Path) -> Callable[[str], tuple[list[str], dict[str, str], Path | None]] | None:
    """Real drizzle-orm 0.45 under node; None where it cannot be had, which is said."""
    try:
        home = install().home
    except NotInstallableError as error:
        print(f"drizzle is left out: {error}")
        return None
    return lambda url: (["node", "migrate_v0.mjs", str(folder)], clean_environment(DATABASE_URL=url), home)


def rounds_option(description: str, default: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=default, help=f"measured runs of each side ({default})")
    return parser.parse_args()


def has_psql() -> bool:
    found = shutil.which("psql") is not None
    if not found:
        print("psql is not installed: Debian's postgresql-client has it")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(bench: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(bench())
