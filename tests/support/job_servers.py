"""Job servers as processes, and questions to the queue's tables: for tests of what several servers do together.

A test module names this one in `pytest_plugins` and has its handlers' text in HANDLERS.
"""

import asyncio
import contextlib

import asyncpg
import pytest

from support.silent_proxy import SilentProxy


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
            "SELECT outcome FROM orchestrator.attempts WHERE job_id = $1 ORDER BY attempt", job_id
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
