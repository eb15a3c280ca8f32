"""Job servers as processes, and questions to the queue's tables: for tests of what several servers do together.

A test module names this one in `pytest_plugins` and has its handlers' text in HANDLERS.
"""

import asyncio
import contextlib
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest


@pytest.fixture
def registry(tmp_path, request):
    """The handlers of HANDLERS, in this process as well, so that the test may enqueue."""
    from orchestrator.jobs.registry import DECLARED, Registry

    text = request.module.HANDLERS
    (tmp_path / "handlers.py").write_text(text)
    before = dict(DECLARED._handlers)
    DECLARED._handlers.clear()
    exec(compile(text, "handlers.py", "exec"), {"__name__": "handlers"})
    registry = Registry(DECLARED.handlers.values())
    DECLARED._handlers.clear()
    DECLARED._handlers.update(before)
    return registry


@pytest.fixture
def serve(orchestrator, registry):
    """`async with serve(url, LEASE="2s") as run:` a server with the handlers above, READY and working."""

    @contextlib.asynccontextmanager
    async def serving(url, **env):
        env = {"DATABASE_URL": url, "JOBS": "handlers", "JOBS_LEASE": "2s", "SHUTDOWN_TIMEOUT": "4s", **env}
        async with orchestrator.running("serve", env=env) as run:
            await run.phase("ready")
            yield run

    return serving


class Look:
    """Questions that the tests ask the queue's tables."""

    def __init__(self, connection, wait_until):
        self.connection, self._wait_until = connection, wait_until

    async def job(self, job_id):
        return await self.connection.fetchrow("SELECT * FROM orchestrator.jobs WHERE id = $1", job_id)

    async def until(self, job_id, *states, timeout_s=15.0, attempt=None):
        async def there():
            row = await self.job(job_id)
            return row if row["state"] in states and attempt in {None, row["attempt"]} else None

        return await self._wait_until(there, timeout_s, f"job {job_id} is {states}")

    async def outcomes(self, job_id):
        rows = await self.connection.fetch(
            "SELECT outcome FROM orchestrator.job_attempts WHERE job_id = $1 ORDER BY attempt", job_id
        )
        return [row[0] for row in rows]

    async def pid_of_runner(self, job_id):
        return await self.connection.fetchval(
            "SELECT w.pid FROM orchestrator.jobs j JOIN orchestrator.workers w ON w.id = j.worker WHERE j.id = $1",
            job_id,
        )

    async def workers(self, count):
        await self._wait_until(
            lambda: self.connection.fetchval(
                "SELECT count(*) = $1 FROM orchestrator.workers WHERE seen_at > now() - interval '3 seconds'", count
            ),
            15,
            f"{count} workers",
        )


@pytest.fixture
def look_by(wait_until):
    """`look_by(connection)`: a `Look` at another server than the tests' own."""
    return lambda connection: Look(connection, wait_until)


@pytest.fixture
async def look(database_url, look_by):
    connection = await asyncpg.connect(database_url)
    yield look_by(connection)
    await connection.close()


class SilentProxy:
    """A TCP proxy whose open connections can be dropped without a word, while new ones are served.

    `drop()`: nothing more passes in either direction, and nobody is told. `hold_replies()`: what the client sends
    arrives, and nothing comes back. `cut()`: those connections end.
    """

    def __init__(self, connect):
        self._connect = connect
        self._links: list[dict] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = None
        self.port = 0

    def dsn(self, dsn: str) -> str:
        parts = urlsplit(dsn)
        login, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self.port}", query=""))

    async def start(self):
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self):
        self._listener.close()
        self.cut(everything=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self):
        for link in self._links:
            link["up"] = link["down"] = False

    def hold_replies(self):
        for link in self._links:
            link["down"] = False

    def cut(self, *, everything=False):
        for link in self._links:
            if everything or not (link["up"] and link["down"]):
                for writer in link["writers"]:
                    writer.transport.abort()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        link = {"up": True, "down": True, "writers": [writer]}
        try:
            answers, upstream = await self._connect()
            link["writers"].append(upstream)
            self._links.append(link)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, "up", reader, upstream))
                both.create_task(self._pump(link, "down", answers, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in link["writers"]:
                end.transport.abort()
            self._links = [one for one in self._links if one is not link]
            self._tasks.discard(task)

    @staticmethod
    async def _pump(link, way, reader, writer):
        while data := await reader.read(65536):
            if link[way]:
                writer.write(data)
                await writer.drain()
        if link["up"] and link["down"]:
            raise ConnectionResetError
        await asyncio.Event().wait()  # what one side says of its end is not passed on either


@pytest.fixture
async def silent_proxy(server):
    async def connect():
        if server.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{server.host}/.s.PGSQL.{server.port}")
        return await asyncio.open_connection(server.host, server.port)

    proxy = SilentProxy(connect)
    await proxy.start()
    yield proxy
    await proxy.close()
