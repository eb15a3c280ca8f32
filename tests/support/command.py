"""The command `orchestrator` as a real process: its output, its events, its HTTP."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.secrets_shown import Known
from support.waiting import until

ROOT = Path(__file__).parents[2]
_STREAM_LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """A command that has ended. `events` are the log lines, parsed."""

    returncode: int
    stdout: str
    stderr: str
    events: list[dict[str, Any]]
    duration_s: float

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("event") == name]


@dataclass(frozen=True, slots=True)
class Response:
    """What an HTTP request brought. `body` is parsed where it is JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(slots=True)
class Process:
    """A running command. What it prints is read as it comes."""

    command: str
    port: int
    process: asyncio.subprocess.Process
    stdout: str = ""
    stderr: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readers = [asyncio.create_task(self._read("stdout")), asyncio.create_task(self._read("stderr"))]

    async def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        while line := (await stream.readline()).decode(errors="replace"):
            setattr(self, name, getattr(self, name) + line)
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict) and "event" in parsed:
                    self.events.append(parsed)
            self._changed.set()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    async def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code, when it has ended and everything it printed is read."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._readers)
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"`{self.command}` still runs after {timeout_s} s:\n{self.output}") from None

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def event(self, name: str, *, timeout_s: float = 20.0, nth: int = 1, **facts: Any) -> dict[str, Any]:
        """The nth log event of the run with this name and these facts; waits for it, fails if it can no longer come."""

        def found() -> list[dict[str, Any]]:
            same = [event for event in self.events if event.get("event") == name]
            return [event for event in same if all(event.get(key) == value for key, value in facts.items())]

        wanted = f"event {name} {facts or ''} (nth={nth})"
        try:
            async with asyncio.timeout(timeout_s):
                while len(found()) < nth:
                    ended = all(reader.done() for reader in self._readers)
                    assert not ended, f"`{self.command}` ended without {wanted}:\n{self.output}"
                    self._changed.clear()
                    changed = asyncio.create_task(self._changed.wait())
                    try:
                        live = [reader for reader in self._readers if not reader.done()]
                        await asyncio.wait([changed, *live], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
        except TimeoutError:
            raise AssertionError(f"no {wanted} within {timeout_s} s:\n{self.output}") from None
        return found()[nth - 1]

    async def phase(self, name: str, *, timeout_s: float = 20.0, nth: int = 1) -> dict[str, Any]:
        """Wait until it has entered the phase (for the nth time)."""
        return await self.event("phase.entered", timeout_s=timeout_s, nth=nth, phase=name)

    async def get(self, path: str = "/health", **options: Any) -> Response:
        """One GET, on a connection of its own; aiohttp.ClientError if nobody listens."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self.url + path, **options) as response,
        ):
            is_json = response.content_type.endswith("json")
            body = await response.json(content_type=None) if is_json else await response.text()
            return Response(response.status, response.headers, body)

    async def health(self, path: str = "/health") -> tuple[int, Any]:
        """Status and body; (0, None) while nobody listens."""
        try:
            response = await self.get(path)
        except aiohttp.ClientError:
            return 0, None
        return response.status, response.body

    async def until_health(self, status: int, *, timeout_s: float = 20.0, path: str = "/health") -> Any:
        """The body, as soon as the status is this one."""

        async def answered() -> list[Any] | None:
            got, body = await self.health(path)
            return [body] if got == status else None

        return (await until(answered, timeout_s, f"{path} answers {status}"))[0]


class Orchestrator:
    """The command `orchestrator`, run as a process with a clean environment."""

    def __init__(self, known: Known, directory: Path, python_path: str | None) -> None:
        self._known = known
        self._directory = directory
        self._python_path = python_path
        self.processes: list[Process] = []

    async def __call__(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0, cwd: Path | None = None
    ) -> Result:
        """Run to the end; the exit code is not judged."""
        began = time.monotonic()
        process = await self._start(arguments, env or {}, cwd)
        try:
            code = await process.wait(timeout_s)
        finally:
            await self._end(process, signal.SIGKILL)
        return Result(code, process.stdout, process.stderr, process.events, time.monotonic() - began)

    @asynccontextmanager
    async def running(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> AsyncIterator[Process]:
        """Run while the block runs; then SIGTERM, and after 20 s SIGKILL and a failure."""
        process = await self._start(arguments, env or {}, cwd)
        try:
            yield process
        except BaseException:
            await self._end(process, signal.SIGKILL)
            raise
        await self._end(process, signal.SIGTERM)

    async def _start(self, arguments: tuple[str, ...], env: Mapping[str, str], cwd: Path | None) -> Process:
        clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        if self._python_path is not None:
            clean["PYTHONPATH"] = self._python_path
        port = int(env["PORT"]) if env.get("PORT", "").isdigit() else free_port()
        clean |= {"LOG_FORMAT": "json", "HOST": "127.0.0.1", "PORT": str(port)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=clean | dict(env),
            cwd=cwd or self._directory,
            start_new_session=True,
            limit=_STREAM_LIMIT_BYTES,
        )
        self.processes.append(Process(" ".join(["orchestrator", *arguments]), port, process))
        return self.processes[-1]

    async def _end(self, process: Process, number: signal.Signals) -> None:
        try:
            if process.returncode is None:
                process.send_signal(number)
                await process.wait(20.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait(20.0)
            self._known.printed.append((process.command, process.output))
        leaked = _session_members(process.pid)
        assert not leaked, f"`{process.command}` left processes behind: {leaked}"


def _session_members(session: int) -> list[str]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            before, _, after = stat.read_text(errors="replace").rpartition(")")
            state, _parent, _group, of = after.split()[:4]
            if int(of) == session and state not in {"Z", "X"}:
                members.append(f"{before})")
    return members


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def _python_path() -> str | None:
    """None where the package is installed, as in CI."""
    installed = subprocess.run([sys.executable, "-I", "-c", "import orchestrator"], capture_output=True, check=False)
    return None if installed.returncode == 0 else str(ROOT)


@pytest.fixture
async def orchestrator(known: Known, tmp_path: Path, _python_path: str | None) -> AsyncIterator[Orchestrator]:
    """`await orchestrator("migrate", env={…})` → Result; `async with orchestrator.running("serve", …)` → Process."""
    orchestrator = Orchestrator(known, tmp_path, _python_path)
    yield orchestrator
    running = [process.command for process in orchestrator.processes if process.returncode is None]
    assert not running, f"still running: {running}"
    known.assert_no_secret([(process.command, process.output) for process in orchestrator.processes])
