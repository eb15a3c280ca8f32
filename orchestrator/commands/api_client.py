"""Ask the API: that of a running server, or, where none runs, the same routes in this process on the database.

Which one it is, is said on stderr. A change that is made without a server stands in the audit trail as well.
"""

from __future__ import annotations

import asyncio
import getpass
import socket
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from orchestrator.commands.console import say
from orchestrator.commands.runner import print_json
from orchestrator.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, OrchestratorError
from orchestrator.streams import has_reader

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings

    Reader = Callable[["Client"], Awaitable[Any]]
    Shower = Callable[[Any], None]

_WATCH_EVERY_S = 2.0
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)
_FORBIDDEN = (401, 403)


class RefusedError(OrchestratorError):
    """The API refused what the command asked for; the server's words say why."""

    exit_code = 1


class NoAnswerError(OrchestratorError):
    """No server answers at the URL."""

    exit_code = EXIT_UNAVAILABLE


class NotAllowedError(OrchestratorError):
    """The server asks for a token, or for another one."""

    exit_code = EXIT_CONFIG


class Client:
    """Requests to one API."""

    def __init__(self, session: aiohttp.ClientSession, where: str) -> None:
        self._session, self._where = session, where

    async def ask(
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: object = None
    ) -> Any:
        """The body of the answer; what is None in the query is left out.

        Raises:
            RefusedError: the API refuses it.
            NotAllowedError: it asks for a token.
            NoAnswerError: nothing answers.
        """
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        try:
            async with self._session.request(method, path, params=given, json=body) as response:
                answer = await response.json(content_type=None) if response.content_type.endswith("json") else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NoAnswerError(
                f"{self._where} does not answer: {type(error).__name__}",
                remedy="Check ORCHESTRATOR_URL, and that the server runs there.",
            ) from None
        if response.ok:
            return answer
        detail = answer.get("detail") if isinstance(answer, dict) else None
        if response.status in _FORBIDDEN:
            raise NotAllowedError(
                f"{self._where} refuses: {detail or response.reason}",
                remedy="Set API_TOKEN (or API_TOKEN_FILE) to the token of that server.",
            )
        allowed = answer.get("allowed") if isinstance(answer, dict) else None
        remedy = answer.get("remedy", "") if isinstance(answer, dict) else ""
        if allowed:
            remedy = f"It takes: {', '.join(map(str, allowed))}."
        raise RefusedError(detail or f"{self._where} answers {response.status}", remedy=remedy)


def with_api(parser: argparse.ArgumentParser) -> None:
    """Give a command the options that say which API it asks."""
    parser.add_argument("--url", metavar="URL", help="the server to ask (ORCHESTRATOR_URL)")
    parser.add_argument("--direct", action="store_true", help="use the database, whatever server runs")
    parser.set_defaults(database_if_named=True)


@asynccontextmanager
async def asking(settings: Settings, life: Lifecycle, *, direct: bool, handlers: bool) -> AsyncIterator[Client]:
    """A client of ORCHESTRATOR_URL's server, else of the one that runs at HOST and PORT, else of the database.

    `handlers`: without a server, the modules of JOBS are loaded, which know what a payload has to be.
    """
    url = settings.orchestrator_url or (None if direct else await _local_server(settings))
    if url and not direct:
        token = {"Authorization": f"Bearer {settings.api_token}"} if settings.api_token else {}
        async with aiohttp.ClientSession(url, timeout=_TIMEOUT, headers=token) as session:
            _tell(url)
            yield Client(session, url)
        return
    async with (
        _own_routes(settings, life, handlers=handlers) as path,
        aiohttp.ClientSession(
            "http://localhost", timeout=_TIMEOUT, connector=aiohttp.UnixConnector(path=str(path))
        ) as session,
    ):
        _tell("the database, no server")
        yield Client(session, "the database")


def _tell(where: str) -> None:
    if sys.stderr.isatty():
        say(f"({where})", file=sys.stderr)


async def _local_server(settings: Settings) -> str | None:
    """The URL of the server that runs where `serve` with these settings would, if it is ready."""
    from orchestrator.healthcheck import check, kept_port

    port = settings.port or (kept_port(str(settings.port_file)) if settings.port_file else None)
    if not port:
        return None
    is_ready, _ = await asyncio.to_thread(check, settings.host, port)
    if not is_ready:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def _own_routes(settings: Settings, life: Lifecycle, *, handlers: bool) -> AsyncIterator[Path]:
    """The routes of the API, served to this process alone on a socket that only this user can reach."""
    from orchestrator.api.audit import CHANGED, AuditTrail
    from orchestrator.api.backend import Backend
    from orchestrator.api.queue_sampler import Sampler
    from orchestrator.api.rate_limit import RateLimitedEvents
    from orchestrator.api.routing import Dispatcher
    from orchestrator.api.security import READING
    from orchestrator.database.connect import connected, open_pool
    from orchestrator.jobs.registry import load
    from orchestrator.lifecycle import Phase

    if settings.database is None:
        raise NoAnswerError(
            "there is neither a server to ask nor a database",
            remedy="Set ORCHESTRATOR_URL (and API_TOKEN) or DATABASE_URL.",
        )
    dsn = settings.database
    life.enter(Phase.CONNECTING)
    async with connected(
        dsn,
        life,
        wait_timeout_s=settings.db_wait_timeout_s,
        application_name="orchestrator command",
    ) as connection:
        if await connection.fetchval("SELECT to_regclass('orchestrator.paused_queues')") is None:
            raise RefusedError(
                "this database has no queue of this version yet",
                remedy="Run `orchestrator migrate`, or start the server, which does the same.",
            )
    registry = await asyncio.to_thread(load, settings.jobs) if handlers else None
    pool = await open_pool(
        dsn,
        kind="ours",
        max_size=2,
        application_name="orchestrator command",
    )
    backend = Backend(pool=pool, registry=registry, life=life, sampler=Sampler(pool, life))
    dispatcher, audit = Dispatcher(backend), AuditTrail(life, RateLimitedEvents(life))
    who = f"{getpass.getuser()} (command)"

    async def handle(request: web.Request) -> web.StreamResponse:
        response = await dispatcher.answer(request)
        if request.method not in READING and response.status < 400:  # noqa: PLR2004
            audit.note(
                token=who,
                address=socket.gethostname(),
                method=request.method,
                path=request.path,
                status=response.status,
                facts=request.get(CHANGED, {}),
            )
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    writing = asyncio.create_task(audit.run(pool), name="audit trail")
    try:
        with tempfile.TemporaryDirectory(prefix="orchestrator-") as directory:  # for this user alone
            path = Path(directory) / "api"
            await web.UnixSite(runner, str(path)).start()
            yield path
    finally:
        await runner.cleanup()
        writing.cancel()  # it writes what is left
        with suppress(asyncio.CancelledError):
            await writing
        await pool.close()


def watches(parser: argparse.ArgumentParser) -> None:
    """Give a command the option that shows its result again and again."""
    parser.add_argument("--watch", action="store_true", help="show it again every two seconds, until Ctrl-C")


async def shown(options: argparse.Namespace, client: Client, read: Reader, show: Shower) -> None:
    """Read and show: as JSON, as words, and with `--watch` again and again on a cleared screen."""
    while True:
        found = await read(client)
        if options.watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")
        if options.json:
            print_json(found)
        else:
            show(found)
        sys.stdout.flush()
        if not (options.watch and has_reader()):
            return
        await asyncio.sleep(_WATCH_EVERY_S)


def ago(moment: str | None) -> str:
    """A moment as its distance from now: `3 min ago`, `in 2 h`; a dash for none."""
    if moment is None:
        return "-"
    seconds = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    words = span(abs(seconds))
    return f"in {words}" if seconds > 1 else f"{words} ago" if seconds < -1 else "now"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"  # noqa: PLR2004
