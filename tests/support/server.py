"""A real Postgres for the session: TEST_DATABASE_URL's (a superuser's DSN), else an embedded one."""

import asyncio
import contextlib
import functools
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from orchestrator.embedded.server import embedded_postgres
from support.secrets_shown import Known


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
def server(known: Known) -> Iterator[Server]:
    """`host port user password major embedded`, and `server.dsn(database="postgres", host=…, port=…)`."""
    with (
        tempfile.TemporaryDirectory(prefix="orchestrator-tests-") as directory,
        _in_thread(functools.partial(_session_server, Path(directory))) as server,
    ):
        known.secrets.add(server.password)
        pgpass = list(Path(directory).glob("postgres-*/pgpass"))
        known.secrets.update(path.read_text().strip().rpartition(":")[2] for path in pgpass)
        yield server
