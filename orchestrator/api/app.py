"""The HTTP application: who may ask, the gate that stays shut until READY, the routes, errors as problem+json."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from orchestrator.api import health, page
from orchestrator.api.dispatch import ROUTE, Dispatcher
from orchestrator.api.measures import Measures
from orchestrator.api.problems import problem
from orchestrator.api.safety import BODY_LIMIT_BYTES, Safety
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aiohttp.typedefs import Handler

    from orchestrator.api.metrics import Exposition
    from orchestrator.api.sampling import Sampler
    from orchestrator.api.tail import Tail
    from orchestrator.dsn import Dsn
    from orchestrator.jobs.registry import Registry
    from orchestrator.jobs.server import JobServer
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.survey import Source


class Backend(msgspec.Struct):
    """What the routes work with. `safety` is there from the start; the supervisor fills the rest at LAUNCHING."""

    safety: Safety = msgspec.field(default_factory=Safety)
    pool: Any = None
    sources: Sequence[Source] = msgspec.field(default_factory=tuple)
    policy: Any = "drizzle"
    ahead: Any = "refuse"
    registry: Registry | None = None
    jobs: JobServer | None = None
    life: Lifecycle | None = None
    measures: Measures = msgspec.field(default_factory=Measures)
    sampler: Sampler | None = None
    tail: Tail | None = None
    dispatcher: Dispatcher | None = None


def build_app(life: Lifecycle, backend: Backend) -> web.Application:
    """The application. It can serve before anything else is there: until READY only what tells of the start is open."""
    backend.life = life
    dispatcher = backend.dispatcher = Dispatcher(backend)
    measures = backend.measures
    life.listen(measures.hear)

    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:  # noqa: PLR2004 a redirect is no error
                raise
            keep = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
            detail = "no such route" if error.status == 404 else error.reason  # noqa: PLR2004
            return problem(error.status, detail, headers=keep, instance=request.path)
        except Exception as error:  # noqa: BLE001 the edge of HTTP: logged once, told without its insides
            life.emit("http.request_failed", level="error", method=request.method, path=request.path, exc_info=error)
            return problem(500, "something went wrong; the log has the error", instance=request.path)

    # Two middlewares rather than one for each concern: `/health` pays for each of them.
    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        status, is_stream = 499, False  # what stays where the client went before it had an answer
        try:
            response = await answered(request, handler)
            status, is_stream = response.status, response.content_type == "text/event-stream"
        finally:
            resource = request.match_info.route.resource
            route = request.get(ROUTE) or ("none" if resource is None else resource.canonical)
            measures.count_request(request.method, route, status, None if is_stream else time.perf_counter() - began)
        return response

    @web.middleware
    async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = backend.safety.check(request)
        if refused is not None:
            return refused
        if page.is_asked_for(request):
            return page.index()
        if life.phase is not Phase.READY and not is_before_the_gate(request.path):
            return problem(
                503,
                f"the service is not ready: it is {life.phase}; /health tells more",
                headers={"Retry-After": str(health.RETRY_AFTER_S)},
                instance=request.path,
                phase=str(life.phase),
            )
        # What the application itself has no route for: most of it is not even loaded before READY.
        unknown = request.match_info.http_exception
        if unknown is None or unknown.status != 404:  # noqa: PLR2004
            return await handler(request)
        return await dispatcher.answer(request)

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        backend.safety.set_headers(request, response)

    async def end_streams(_: web.Application) -> None:
        if backend.tail is not None:
            await backend.tail.close()

    app = web.Application(middlewares=[counted, admitted], client_max_size=BODY_LIMIT_BYTES)
    app.on_response_prepare.append(prepare)
    app.on_shutdown.append(end_streams)
    health.install(app, life, lambda: backend.safety.access)
    app.add_routes([*page.routes(), web.get("/metrics", _metrics(life, backend))])
    return app


def is_before_the_gate(path: str) -> bool:
    """Whether the path answers in every phase: what tells of the start."""
    return path in {"/health", "/metrics"} or path.startswith(("/health/", "/page/"))


def _metrics(life: Lifecycle, backend: Backend) -> Handler:
    exposition: Exposition | None = None

    async def metrics(request: web.Request) -> web.Response:
        nonlocal exposition
        if exposition is None:
            exposition = await asyncio.to_thread(_exposition, life, backend)
        body, content_type = exposition.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return metrics


def _exposition(life: Lifecycle, backend: Backend) -> Exposition:
    # Late, and in a thread: prometheus-client takes a while to load, and many servers are never scraped.
    from orchestrator.api.metrics import Exposition

    return Exposition(life, backend)


def load_routes(backend: Backend) -> None:
    """Load what stands behind the gate, so that the first request after READY need not. Blocking: for a thread."""
    import orchestrator.api.events
    import orchestrator.api.sampling
    import orchestrator.api.tail  # noqa: F401

    if backend.dispatcher is not None:
        backend.dispatcher.load()


@asynccontextmanager
async def watching(backend: Backend, dsn: Dsn, life: Lifecycle) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Sample the queue and follow its events while the block lasts; `backend.pool` must be there.

    Yields the tasks: they end by a bug of ours alone, which whoever holds the block must not miss.
    """
    from orchestrator.api.events import tell
    from orchestrator.api.sampling import Sampler
    from orchestrator.api.tail import Tail

    sampler = backend.sampler = Sampler(backend.pool, life, None if backend.jobs is None else backend.jobs.worker_id)
    tail = backend.tail = Tail(dsn, life)
    stop_telling = tell(life, tail)
    tasks = [
        asyncio.create_task(sampler.run(), name="queue figures"),
        asyncio.create_task(tail.run(), name="job events"),
    ]
    if backend.safety.refuses_changes:
        life.emit(
            "api.unprotected",
            level="warning",
            hint="No API_TOKEN is set and HOST is not loopback: requests that change something are refused.",
        )
    try:
        yield tasks
    finally:
        stop_telling()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
