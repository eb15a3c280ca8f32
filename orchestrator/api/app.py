"""The HTTP application: who may ask, the gate that stays shut until READY, the routes, errors as problem+json."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

from orchestrator.api import health, page
from orchestrator.api.audit import CHANGED, NOBODY, AuditTrail
from orchestrator.api.connections import Connection
from orchestrator.api.problems import problem
from orchestrator.api.rate_limit import RateLimitedEvents
from orchestrator.api.routing import DISPATCHER, ROUTE, Dispatcher
from orchestrator.api.security import BODY_LIMIT_BYTES, CALLER, READING, is_loopback
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp.typedefs import Handler

    from orchestrator.api.backend import Backend
    from orchestrator.api.metrics import Exposition
    from orchestrator.api.security import Safety
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle


def build_app(life: Lifecycle, backend: Backend) -> web.Application:
    """The application. It can serve before anything else is there: until READY only what tells of the start is open."""
    backend.life = life
    dispatcher = Dispatcher(backend)
    life.listen(backend.measures.hear)
    gate = Gate(life, backend)
    own_methods: dict[str, list[str]] = {}

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        """What the application itself has no route for: most of it is not even loaded before READY."""
        if request.path in own_methods:
            raise web.HTTPMethodNotAllowed(request.method, own_methods[request.path])
        return await dispatcher.answer(request)

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        backend.safety.set_headers(request, response)

    async def end_streams(_: web.Application) -> None:
        if backend.tail is not None:
            await backend.tail.close()

    async def end_requests(_: web.Application) -> None:
        await gate.close(life.stop_left_s / 2)

    # No middlewares: two of them cost a request more than all that `/health` does. The handlers are wrapped instead.
    app = web.Application(client_max_size=BODY_LIMIT_BYTES)
    app[DISPATCHER] = dispatcher
    app.on_response_prepare.append(prepare)
    app.on_shutdown.append(end_streams)
    told_all, told_little = health.probes(life), health.probes(life, tells_all=False)
    for path, probe in told_all.items():
        handler = gate.for_probe(probe, told_little[path], path)
        app.router.add_get(path, handler, expect_handler=_no_expectation)
    app.cleanup_ctx.append(lambda _: backend.safety.tokens.watched(life))
    stream = health.stream(app, life, backend.safety)
    app.router.add_get(
        "/health/events", gate.before(stream, "/health/events"), allow_head=False, expect_handler=_no_expectation
    )
    for path, handler in {**page.files(), "/metrics": _metrics(life, backend)}.items():
        app.router.add_get(path, gate.before(handler, path), expect_handler=_no_expectation)
    own_methods |= {one.canonical: sorted(route.method for route in one) for one in app.router.resources()}
    anything = r"/{path:[\s\S]*}"  # a dot does not match %0A
    app.router.add_route("*", anything, gate.before(elsewhere, "none"), expect_handler=_no_expectation)
    app.on_shutdown.append(end_requests)  # after the streams, which would never end by themselves
    return app


async def _no_expectation(_: web.Request) -> None:
    """Nobody is told to send a body before it is known who they are: who reads the body, says so."""


class Gate:
    """What every request passes: it is counted, looked at, kept out before READY; what goes wrong becomes a problem."""

    def __init__(self, life: Lifecycle, backend: Backend) -> None:
        self._life, self._backend = life, backend
        self._requests: set[asyncio.Task[Any]] = set()
        self._events = RateLimitedEvents(life)
        self._audit = backend.audit = AuditTrail(life, self._events)

    async def close(self, limit_s: float) -> None:
        """Wait for the requests in flight (probes never wait for anything), and cancel those that take longer."""
        if self._requests:
            _, late = await asyncio.wait(self._requests, timeout=limit_s)
            for task in late:
                task.cancel()

    def before(self, handler: Handler, label: str) -> Handler:
        """The handler behind the gate; `label` is its route for the metrics, unless the handler finds a better one."""

        async def admitted(request: web.Request) -> web.StreamResponse:
            return self._refusal(request) or await handler(request)

        async def handle(request: web.Request) -> web.StreamResponse:
            began = time.perf_counter()
            status, is_stream = 499, False  # what stays where the client went before it had an answer
            task = asyncio.current_task()
            assert task is not None, "aiohttp serves each request in a task"  # noqa: S101
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)  # the answer is written after this function
            try:
                response = await self._answered(request, admitted)
                status, is_stream = response.status, response.content_type == "text/event-stream"
                if request.method not in READING and status < HTTPStatus.BAD_REQUEST:
                    self._audit.note(
                        token=request.get(CALLER, NOBODY),
                        address=request.remote,
                        method=request.method,
                        path=request.path,
                        status=status,
                        facts=request.get(CHANGED, {}),
                    )
            finally:
                duration_s = None if is_stream else time.perf_counter() - began
                self._backend.measures.count_request(request.method, request.get(ROUTE, label), status, duration_s)
            return response

        return handle

    def for_probe(self, told_all: health.Probe, told_little: health.Probe, label: str) -> Handler:
        """The same for what is open to all: where there is neither query nor body, there is nothing to look at.

        A request that comes again byte by byte is answered by the connection itself, before it is parsed.
        """
        measures, safety = self._backend.measures, self._backend.safety

        def for_whom(request: web.Request) -> health.Probe:
            return told_all if safety.tells_all(request) else told_little

        async def answered(request: web.Request) -> web.Response:
            return for_whom(request).response()

        looked_at = self.before(answered, label)

        def again(probe: health.Probe) -> bytes:
            began = time.perf_counter()
            status, text = probe.wire()
            measures.count_request("GET", label, status, time.perf_counter() - began)
            return text

        async def handle(request: web.Request) -> web.StreamResponse:
            if request.body_exists or request.rel_url.raw_query_string:
                return await looked_at(request)
            began = time.perf_counter()
            probe = for_whom(request)
            response = probe.response()
            measures.count_request(request.method, label, response.status, time.perf_counter() - began)
            connection = request.protocol
            if isinstance(connection, Connection) and not safety.cors_origins:
                connection.keep(request, partial(again, probe))
            return response

        return handle

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:  # noqa: PLR2004 a redirect is no error
                raise
            keep = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
            detail = "no such route" if error.status == 404 else error.reason  # noqa: PLR2004
            return problem(error.status, detail, headers=keep, instance=request.path)
        except Exception as error:  # noqa: BLE001 the edge of HTTP: logged once, told without its insides
            self._events.emit(
                "http.request_failed", level="error", method=request.method, path=request.path, exc_info=error
            )
            return problem(500, "something went wrong; the log has the error", instance=request.path)

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        """The answer to what must not go on, or needs not: the page is one for all that ask for `/` as browsers do."""
        if isinstance(request.protocol, Connection) and request.protocol.is_reserved:
            return problem(503, "there are too many connections; try again", headers=_LATER, instance=request.path)
        if page.is_asked_for(request):
            return page.index(request)
        refused = self._backend.safety.check(request)
        if refused is not None:
            if "Authorization" in request.headers and refused.status == HTTPStatus.UNAUTHORIZED:
                self._events.emit("api.token_refused", address=request.remote, method=request.method)
            return refused
        phase = self._life.phase
        if phase is Phase.READY or is_before_the_gate(request.path):
            return None
        return problem(
            503,
            f"the service is not ready: it is {phase}; see /health",
            headers={"Retry-After": str(health.RETRY_AFTER_S)},
            instance=request.path,
            phase=str(phase),
        )


_LATER = {"Retry-After": "1"}


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


def load_routes(app: web.Application) -> None:
    """Load what stands behind the gate, so that the first request after READY need not. Blocking: for a thread."""
    import orchestrator.api.event_log  # noqa: F401

    app[DISPATCHER].load()


def _tell_who_may_ask(safety: Safety, life: Lifecycle) -> None:
    """Say in the log what is open to the network, or closed to everybody."""
    without = safety.access_for_strangers
    if is_loopback(safety.host) or (without == "none" and safety.tokens):
        return
    if without == "none":
        life.emit(
            "api.closed",
            level="warning",
            hint="No API_TOKEN is set and HOST is not loopback: nothing but /health answers. Set API_TOKEN"
            " (`orchestrator token` makes one), or API_ACCESS=read or open where nobody else reaches this port.",
        )
    else:
        may = "look at everything" if without == "read" else "look at everything and change it"
        life.emit("api.unprotected", level="warning", access=without, hint=f"Whoever reaches this port may {may}.")


@asynccontextmanager
async def watching(
    backend: Backend, dsn: Dsn, life: Lifecycle, backup_dir: Path | None = None
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Sample the queue, its schedules and its events while the block lasts; `backend.pool` must be there.

    Yields the tasks: they end by a bug of ours alone, which whoever holds the block must not miss.
    """
    from orchestrator.api.event_log import Tail
    from orchestrator.api.queue_sampler import Sampler
    from orchestrator.api.routes.events import tell
    from orchestrator.jobs.schedule_monitor import ScheduleMonitor

    sampler = backend.sampler = Sampler(backend.pool, life, None if backend.jobs is None else backend.jobs.worker_id)
    monitor = backend.monitor = ScheduleMonitor(backend.pool, life, backup_dir)
    tail = backend.tail = Tail(dsn, life)
    stop_telling = tell(life, tail)
    tasks = [
        asyncio.create_task(sampler.run(), name="queue figures"),
        asyncio.create_task(monitor.run(), name="schedule monitor"),
        asyncio.create_task(tail.run(), name="job events"),
        *([] if backend.audit is None else [asyncio.create_task(backend.audit.run(backend.pool), name="audit trail")]),
    ]
    _tell_who_may_ask(backend.safety, life)
    try:
        yield tasks
    finally:
        stop_telling()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
