"""What the tests stand on: a real Postgres, the real command as a process, and a proxy that cuts connections.

The server is TEST_DATABASE_URL's (a superuser's DSN), else an embedded one, started once for each session. Whatever the
processes print is kept and searched for the passwords that were in use.
"""

import asyncio
import contextlib
import functools
import inspect
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import aiohttp
import asyncpg
import pytest

from orchestrator.embedded.server import embedded_postgres

ROOT = Path(__file__).parent.parent
_STREAM_LIMIT_BYTES = 64 * 1024 * 1024
_SECRET_LENGTH_MIN = 8


def pytest_configure(config: pytest.Config) -> None:
    """Embedded servers are one for each worker; a given one is shared, and some tests look at all of its databases."""
    if os.environ.get("TEST_DATABASE_URL") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("TEST_DATABASE_URL is one server for all: run pytest without -n")


# -------------------------------------------------------------------------------------------------- waiting for a state


async def _wait_until(predicate: Callable[[], Any], timeout_s: float = 10.0, what: str = "") -> Any:
    """Ask until the answer is true, and return it; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or inspect.getsource(predicate).strip()}")
        await asyncio.sleep(0.01)


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    """`await wait_until(predicate, timeout_s=10, what="")`: the predicate is sync or async; returns its true answer."""
    return _wait_until


# ---------------------------------------------------------------------------------------------------------- the folders

WHEN = 1716000000000


def _write_folder(folder: Path, *files: tuple[str, str] | tuple[str, str, int]) -> Path:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (tag, sql, *when) in enumerate(files):
        (folder / f"{tag}.sql").write_bytes(sql.encode())
        moment = when[0] if when else WHEN + number
        entries.append({"idx": number, "version": "7", "when": moment, "tag": tag, "breakpoints": True})
    journal = {"version": "7", "dialect": "postgresql", "entries": entries}
    (folder / "meta" / "_journal.json").write_text(json.dumps(journal))
    return folder


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """`write(path, (tag, SQL), (tag, SQL, when), …)`: a v0 folder, written (again); returns its path."""
    return _write_folder


# ----------------------------------------------------------------------------------------------------------- the server


@dataclass(frozen=True, slots=True)
class Server:
    """The session's Postgres, by a superuser of the tests' own whose password is recognisable."""

    host: str
    port: int
    user: str
    password: str
    major: int
    embedded: bool

    def dsn(self, database: str = "postgres", *, host: str | None = None, port: int | None = None) -> str:
        host, port = host or self.host, port or self.port
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        if host.startswith("/"):
            return f"postgresql://{login}@/{database}?host={quote(host, safe='')}&port={port}"
        return f"postgresql://{login}@{host}:{port}/{database}"


class _Known:
    """What the session knows: the passwords in use, and everything that processes printed, with the command."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.printed: list[tuple[str, str]] = []

    def assert_no_secret(self, printed: list[tuple[str, str]]) -> None:
        for command, text in printed:
            for secret in self.secrets:
                shown = next((line for line in text.splitlines() if secret in line), None)
                assert shown is None, f"`{command}` printed a password: {shown.replace(secret, '<THE PASSWORD>')}"


@pytest.fixture(scope="session")
def known() -> Iterator[_Known]:
    """`known.secrets.add(…)`: one more text that no process may print."""
    known = _Known()
    yield known
    known.assert_no_secret(known.printed)


@contextlib.contextmanager
def _in_thread(context: Callable[[], Any]) -> Iterator[Any]:
    """Hold an async context open on a loop of its own, in a thread that lives as long as it does.

    Tests have a loop each; and the embedded server ends with the thread that started it.
    """
    entered: list[Any] = []
    failed: list[BaseException] = []
    ready, loops = threading.Event(), []

    async def hold() -> None:
        leave = asyncio.Event()
        loops.append((asyncio.get_running_loop(), leave))
        async with context() as value:
            entered.append(value)
            ready.set()
            await leave.wait()

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the session's thread
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="session server")
    thread.start()
    try:
        ready.wait()
        if failed:
            raise failed[0]
        yield entered[0]
    finally:
        if thread.is_alive():
            loop, leave = loops[0]
            loop.call_soon_threadsafe(leave.set)
        thread.join()
    if failed:
        raise failed[0]


@asynccontextmanager
async def _any_server(directory: Path) -> AsyncIterator[tuple[str, bool]]:
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given, False
        return
    settings = {"max_connections": "200"}
    async with embedded_postgres(directory, lambda *_, **__: None, durable=False, settings=settings) as embedded:
        yield embedded.dsn, True


@asynccontextmanager
async def _session_server(directory: Path) -> AsyncIterator[Server]:
    async with _any_server(directory) as (dsn, embedded):
        connection = await asyncpg.connect(dsn)
        role, password = f"tester_{secrets.token_hex(4)}", f"s3cr3t-pw-{secrets.token_hex(8)}"
        try:
            await connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")
            parts = urlsplit(dsn)
            query = parse_qs(parts.query)
            yield Server(
                host=parts.hostname or query.get("host", ["127.0.0.1"])[0],
                port=parts.port or int(query.get("port", ["5432"])[0]),
                user=role,
                password=password,
                major=connection.get_server_version().major,
                embedded=embedded,
            )
            await connection.execute(f"DROP ROLE IF EXISTS {role}")
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def server(known: _Known) -> Iterator[Server]:
    """`host port user password major embedded`, and `server.dsn(database="postgres", host=…, port=…)`."""
    with (
        tempfile.TemporaryDirectory(prefix="orchestrator-tests-") as directory,
        _in_thread(functools.partial(_session_server, Path(directory))) as server,
    ):
        known.secrets.add(server.password)
        pgpass = list(Path(directory).glob("postgres-*/pgpass"))
        known.secrets.update(path.read_text().strip().rpartition(":")[2] for path in pgpass)
        yield server


class Admin:
    """SQL by a connection of its own each time: `await admin(dsn, "SELECT …", *arguments)` → records."""

    async def __call__(self, dsn: str, text: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.connection(dsn) as connection:
            return await connection.fetch(text, *arguments)

    async def value(self, dsn: str, text: str, *arguments: Any) -> Any:
        async with self.connection(dsn) as connection:
            return await connection.fetchval(text, *arguments)

    async def script(self, dsn: str, text: str) -> None:
        """Any number of statements, without arguments or results."""
        async with self.connection(dsn) as connection:
            await connection.execute(text)

    @asynccontextmanager
    async def connection(self, dsn: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)


@pytest.fixture
def admin() -> Admin:
    """`await admin(dsn, text, *args)` → records; `.value(…)`; `.script(dsn, many)`; `async with .connection(dsn)`."""
    return Admin()


@pytest.fixture
async def make_database(server: Server, admin: Admin) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """`await make_database()` → the DSN of one more fresh, empty database; `raw=True`: of bytes in no encoding."""
    made: list[str] = []

    async def make(*, raw: bool = False) -> str:
        name = f"test_{os.getpid()}_{secrets.token_hex(5)}"
        options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'" if raw else ""
        if raw and server.major >= 15:  # the cluster's may be builtin
            options += " LOCALE_PROVIDER libc"
        await admin.script(server.dsn(), f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        made.append(name)
        return server.dsn(name)

    yield make
    for name in made:
        await admin.script(server.dsn(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def database_url(make_database: Callable[[], Awaitable[str]]) -> str:
    """The DSN of a fresh, empty database, dropped afterwards."""
    return await make_database()


# ---------------------------------------------------------------------------------------------------------- the command


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

        return (await _wait_until(answered, timeout_s, f"{path} answers {status}"))[0]


class Orchestrator:
    """The command `orchestrator`, run as a process with a clean environment."""

    def __init__(self, known: _Known, directory: Path, python_path: str | None) -> None:
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
async def orchestrator(known: _Known, tmp_path: Path, _python_path: str | None) -> AsyncIterator[Orchestrator]:
    """`await orchestrator("migrate", env={…})` → Result; `async with orchestrator.running("serve", …)` → Process."""
    orchestrator = Orchestrator(known, tmp_path, _python_path)
    yield orchestrator
    running = [process.command for process in orchestrator.processes if process.returncode is None]
    assert not running, f"still running: {running}"
    known.assert_no_secret([(process.command, process.output) for process in orchestrator.processes])


# ------------------------------------------------------------------------------------------------------------ the proxy


class TcpProxy:
    """A TCP proxy on loopback, before the server. `port` stays the same while it refuses and accepts again."""

    def __init__(self, connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.accepted = 0
        self._connect = connect
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def dsn(self, dsn: str) -> str:
        """The same database by way of the proxy."""
        parts = urlsplit(dsn)
        login, _, _ = parts.netloc.rpartition("@")
        query = "&".join(part for part in parts.query.split("&") if part and not part.startswith(("host=", "port=")))
        return urlunsplit(parts._replace(netloc=f"{login}@{self.host}:{self.port}", query=query))

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._writers) // 2

    async def accept(self) -> None:
        """Listen (again)."""
        self._flowing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close the listener: new connections are refused; open ones live on until `cut`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def cut(self) -> None:
        """Abort every open connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Let nothing through, in either direction; connections stay open, new ones are accepted."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let everything through again, also what was held."""
        self._flowing.set()

    async def close(self) -> None:
        await self.refuse()
        await self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await self._connect()
            self._writers |= {writer, upstream}
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, upstream))
                both.create_task(self._pump(answers, writer))
        except* OSError:
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has closed: so does the other, as for Postgres


@pytest.fixture
async def tcp_proxy(server: Server) -> AsyncIterator[TcpProxy]:
    """`.dsn(database_url)`, `await .cut()/.refuse()/.accept()`, `.stall()/.resume()`, `.connections`, `.accepted`."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if server.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{server.host}/.s.PGSQL.{server.port}")
        return await asyncio.open_connection(server.host, server.port)

    proxy = TcpProxy(connect)
    await proxy.accept()
    yield proxy
    await proxy.close()
