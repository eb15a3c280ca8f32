"""Real projects' migrations, run by real Drizzle and by us, and compared: schema dump, ledger, row counts, sequences.

    python tests/bench/real_input.py head REPOSITORY PATH [--extensions vector,uuid-ossp]
    python tests/bench/real_input.py past REPOSITORY PATH [--extensions …] [--walk first-parent|all]

`head` takes the folder as it is at HEAD: one database by drizzle, one by `orchestrator migrate`, one by `orchestrator
serve`. `past` walks the folder through every commit that changed it: by drizzle all the way, by ours all the way, and
compares after each step; then, for each commit, by drizzle up to it and by ours from there on, compared at the end.

REPOSITORY is a git repository (bare or not), PATH the migrations folder inside it. TEST_DATABASE_URL (or `--url`) is a
superuser's DSN of a server that has the extensions, e.g. of
    docker run -d -p 127.0.0.1:55417:5432 -e POSTGRES_PASSWORD=pw pgvector/pgvector:pg17
Databases named real_input_… are made there and dropped. Exit 1 if anything differs. Needs git, node and npm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "drizzle"))
from reference import Contents, Drizzle, contents, install, quoted  # noqa: E402 its folder is not a package

OUR_LIMIT_S = 600
SHOWN_LINES = 20


# ------------------------------------------------------------------------------------------------------- the repository


def git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, check=True)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    date: str
    subject: str

    def __str__(self) -> str:
        return f"{self.sha[:8]} {self.date}"


def commits(repository: Path, path: str, walk: str) -> list[Commit]:
    """The commits that changed `path`, the oldest first.

    first-parent: what HEAD's branch itself was, state after state, as one who pulls it sees it. all: every commit
    of HEAD's ancestry in topological order, side branches included: harsher than any one installation's past.
    """
    how = ["--first-parent"] if walk == "first-parent" else ["--full-history", "--topo-order"]
    told = git(repository, "log", "--reverse", *how, "--format=%H%x09%cs%x09%s", "HEAD", "--", path).decode()
    return [Commit(*line.split("\t", 2)) for line in told.splitlines()]


def extract(repository: Path, revision: str, path: str, folder: Path) -> Path:
    """The files of `path` at `revision`; the tree itself is named, so no attribute of the repository changes a byte."""
    with tarfile.open(fileobj=io.BytesIO(git(repository, "archive", f"{revision}:{path}"))) as archive:
        archive.extractall(folder, filter="data")
    return folder


# ---- the databases


class Databases:
    """Databases of one server, by names of ours."""

    def __init__(self, url: str, extensions: Sequence[str]) -> None:
        self._url = url
        self._extensions = extensions
        self._made: list[str] = []

    def url(self, name: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/real_input_{name}"))

    async def make(self, name: str, *, template: str | None = None, with_extensions: bool = False) -> str:
        """A fresh database, or a copy of `template`; drizzle needs the extensions made, ours makes them itself."""
        await self.drop(name)
        source = quoted(f"real_input_{template}") if template else "template0"
        await self._execute(self._url, f"CREATE DATABASE {quoted(f'real_input_{name}')} TEMPLATE {source}")
        self._made.append(name)
        for extension in self._extensions if with_extensions else ():
            await self._execute(self.url(name), f"CREATE EXTENSION IF NOT EXISTS {quoted(extension)}")
        return self.url(name)

    async def drop(self, name: str) -> None:
        await self._execute(self._url, f"DROP DATABASE IF EXISTS {quoted(f'real_input_{name}')} WITH (FORCE)")

    async def drop_all(self) -> None:
        for name in self._made:
            await self.drop(name)

    async def _execute(self, url: str, statement: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


# ---- our side


@dataclass(frozen=True, slots=True)
class Ours:
    """The real command as a process, on a given folder."""

    extensions: Sequence[str]
    extra: dict[str, str]

    def _environment(self, url: str, folder: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": url,
            "MIGRATIONS_DIR": str(folder),
            "EXTENSIONS": ",".join(self.extensions),
            "LOG_FORMAT": "json",
            **self.extra,
        }

    def migrate(self, url: str, folder: Path) -> tuple[int, float, str]:
        """Exit code, seconds of the whole process, and what it printed."""
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "migrate"],
            env=self._environment(url, folder),
            capture_output=True,
            text=True,
            timeout=OUR_LIMIT_S,
            check=False,
        )
        return done.returncode, time.monotonic() - started, done.stdout + done.stderr

    def serve(self, url: str, folder: Path) -> tuple[int, float, str]:
        """The same of a `serve` that is stopped as soon as `/health` answers 200; the seconds are those to READY."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = self._environment(url, folder) | {"HOST": "127.0.0.1", "PORT": str(port)}
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "serve"], env=environment, stdout=printed, stderr=printed
            )
            try:
                while process.poll() is None and not _is_ready(port):
                    if time.monotonic() - started > OUR_LIMIT_S:
                        raise AssertionError("serve was not ready in time")
                    time.sleep(0.01)
                took_s = time.monotonic() - started
                process.send_signal(signal.SIGTERM)
                code = process.wait(30)
            finally:
                process.kill()
            printed.seek(0)
            return code, took_s, printed.read()


def _is_ready(port: int) -> bool:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer,
    ):
        return answer.status == 200
    return False


def warnings(output: str) -> list[str]:
    """What our run said of a history that is not straight, as `event name`."""
    told = []
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("level") == "warning":
                told.append(f"{event.get('event')} {event.get('migration') or event.get('name') or ''}".strip())
    return told


# ---- the comparison


@dataclass(slots=True)
class Report:
    differences: int = 0
    facts: list[str] = field(default_factory=list)

    def compare(self, what: str, ours: Contents, theirs: Contents) -> bool:
        """Print what differs; sequences are compared apart, for a run that drizzle rolled back leaves holes."""
        parts = {
            "schema": (ours.schema.splitlines(), theirs.schema.splitlines()),
            "ledger": (ours.ledger, theirs.ledger),
            "row counts": (_lines(ours.rows), _lines(theirs.rows)),
            "sequences": (_lines(ours.sequences), _lines(theirs.sequences)),
        }
        is_equal = True
        for part, (mine, reference) in parts.items():
            if list(mine) == list(reference):
                continue
            is_equal = False
            diff = list(difflib.unified_diff(list(reference), list(mine), "drizzle", "ours", n=0, lineterm=""))
            self.differ(f"{what}: {part} differ", *diff[:SHOWN_LINES])
        return is_equal

    def differ(self, *lines: str) -> None:
        self.differences += 1
        print("DIFFERENCE", *lines, sep="\n    ", flush=True)


def _lines(mapping: object) -> list[str]:
    return [f"{key} {value}" for key, value in sorted(dict(mapping).items())]


async def head(options: argparse.Namespace, databases: Databases, drizzle: Drizzle, ours: Ours, work: Path) -> Report:
    report = Report()
    revision = git(options.repository, "rev-parse", "HEAD").decode().strip()
    folder = extract(options.repository, revision, options.path, work / "head")
    count = len(json.loads((folder / "meta" / "_journal.json").read_text())["entries"])
    print(f"{options.repository} {options.path} at {revision[:8]}: {count} migrations", flush=True)

    url = await databases.make("drizzle", with_extensions=True)
    outcome = drizzle.migrate("v0", url, folder)
    if not outcome.ok:
        report.differ(f"drizzle itself fails: {outcome.message}")
    theirs = await contents(url)
    again = drizzle.migrate("v0", url, folder)
    print(f"  drizzle             {outcome.process_s:7.2f} s (migrate() {outcome.migrate_s:.2f} s), again", end=" ")
    print(
        f"{again.process_s:.2f} s: {len(theirs.ledger)} rows, dump of {len(theirs.schema.splitlines())} lines",
        flush=True,
    )
    for command in (ours.migrate, ours.serve):
        name = command.__name__
        url = await databases.make(f"our_{name}")
        code, took_s, output = command(url, folder)
        if code != 0:
            report.differ(f"orchestrator {name} ended with {code}", *output.splitlines()[-5:])
        is_equal = report.compare(f"orchestrator {name}", await contents(url), theirs)
        again_code, again_s, again_output = command(url, folder)
        if again_code != 0 or '"migration.applied"' in again_output:
            report.differ(f"orchestrator {name} did something the second time ({again_code})")
        for what in warnings(output):
            print(f"      says: {what}")
        back = drizzle.migrate("v0", url, folder)
        if not back.ok:
            report.differ("drizzle fails after us", back.message)
        is_equal = is_equal and report.compare(f"drizzle after {name}", await contents(url), theirs)
        print(f"  orchestrator {name:7}{took_s:7.2f} s, again {again_s:.2f} s: {'equal' if is_equal else 'DIFFERENT'}")
    return report


async def past(options: argparse.Namespace, databases: Databases, drizzle: Drizzle, ours: Ours, work: Path) -> Report:
    report = Report()
    walked = commits(options.repository, options.path, options.walk)
    print(f"{len(walked)} commits changed {options.path} ({options.walk})", flush=True)
    theirs_url = await databases.make("a", with_extensions=True)
    ours_url = await databases.make("b", with_extensions=True)
    folders: list[Path] = []
    our_s = their_s = 0.0
    failed: list[bool] = []
    for index, commit in enumerate(walked):
        folder = extract(options.repository, commit.sha, options.path, work / f"{index:03}-{commit.sha[:8]}")
        folders.append(folder)
        outcome = drizzle.migrate("v0", theirs_url, folder)
        code, took_s, output = ours.migrate(ours_url, folder)
        their_s, our_s = their_s + outcome.process_s, our_s + took_s
        failed.append(not outcome.ok)
        if code != (0 if outcome.ok else 70):
            report.differ(f"{commit}: drizzle {outcome.message or 'succeeds'}, ours {code}", *output.splitlines()[-4:])
        theirs = await contents(theirs_url)
        is_equal = report.compare(str(commit), await contents(ours_url), theirs)
        verdict = "equal" if is_equal else "DIFFERENT"
        ending = "" if outcome.ok else f"; both refuse: {outcome.message}"
        print(
            f"  {commit} {len(theirs.ledger):3} rows {verdict}, exit {code}{ending}",
            *_indented(warnings(output)),
            flush=True,
        )
        await databases.make(f"k{index}", template="a")
    end = await contents(theirs_url)
    print(
        f"A (drizzle) {their_s:.1f} s, B (ours) {our_s:.1f} s; {sum(failed)} commits at which drizzle fails", flush=True
    )
    equal = 0
    for index, commit in enumerate(walked):
        url = await databases.make("c", template=f"k{index}")
        await databases.drop(f"k{index}")
        codes = [ours.migrate(url, folder)[0] for folder in folders[index + 1 :]]
        expected = [70 if one else 0 for one in failed[index + 1 :]]
        if codes != expected:
            report.differ(f"C from {commit}: exit codes {codes}, expected {expected}")
        is_equal = report.compare(f"C: drizzle up to {commit}, then ours", await contents(url), end)
        equal += is_equal
    print(f"C: {equal} of {len(walked)} take-overs end as drizzle all the way ends")
    return report


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"\n      says: {line}" for line in lines]


@asynccontextmanager
async def prepared(options: argparse.Namespace) -> AsyncIterator[tuple[Databases, Drizzle, Ours, Path]]:
    extensions = [name for name in options.extensions.split(",") if name]
    databases = Databases(options.url, extensions)
    extra = dict(item.split("=", 1) for item in options.set)
    work = Path(tempfile.mkdtemp(prefix="real-input-"))
    try:
        yield databases, install(), Ours(extensions, extra), work
    finally:
        if not options.keep:
            await databases.drop_all()
        shutil.rmtree(work)


async def run(options: argparse.Namespace) -> int:
    async with prepared(options) as (databases, drizzle, ours, work):
        report = await options.command(options, databases, drizzle, ours, work)
    print("equal in all" if report.differences == 0 else f"{report.differences} differences")
    return 1 if report.differences else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, command in {"head": head, "past": past}.items():
        one = commands.add_parser(name)
        one.set_defaults(command=command)
        one.add_argument("repository", type=Path, help="a git repository")
        one.add_argument("path", help="the migrations folder inside it")
        one.add_argument("--extensions", default="", help="made before the migrations, e.g. vector,uuid-ossp")
        one.add_argument("--url", default=os.environ.get("TEST_DATABASE_URL"), help="default: $TEST_DATABASE_URL")
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for our side")
        one.add_argument("--keep", action="store_true", help="leave the databases for a look")
        if name == "past":
            one.add_argument("--walk", choices=["first-parent", "all"], default="first-parent", help="which commits")
    options = parser.parse_args()
    if not options.url:
        parser.error("set TEST_DATABASE_URL, or give --url")
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
