"""Find the operation for a request, among routes that are made when they are first needed.

The operations' modules bring msgspec types, asyncpg and the queue with them, and nobody can reach them before READY: so
`/health` does not wait for them. LAUNCHING loads them in a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler

    from orchestrator.api.backend import Backend
    from orchestrator.api.operations import Operation

# Where the template of the route that served a request is kept, for the metrics.
ROUTE = "orchestrator.route"


def operations() -> Sequence[Operation]:
    """Every operation behind the gate."""
    from orchestrator.api import openapi
    from orchestrator.api.routes import bulk, events, jobs, migrations, queues, schedules, streamystats

    return (
        *openapi.about(operations),
        *bulk.OPERATIONS,
        *jobs.OPERATIONS,
        *queues.OPERATIONS,
        *schedules.OPERATIONS,
        *migrations.OPERATIONS,
        *events.OPERATIONS,
        *streamystats.OPERATIONS,
    )


class Dispatcher:
    """The routes behind the gate, and what they work with."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._router: web.UrlDispatcher | None = None

    def load(self) -> web.UrlDispatcher:
        """Make the routes, once. Blocking: it imports."""
        if self._router is None:
            router = web.UrlDispatcher()
            for operation in operations():
                handler = _handler(operation, self._backend)
                router.add_route(operation.method, operation.path, handler)
                if operation.method == "GET" and not operation.is_stream:
                    router.add_route("HEAD", operation.path, handler)
            self._router = router
        return self._router

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve the request.

        Raises:
            HTTPException: 404, or 405 with Allow: there is no such route.
        """
        match = await self.load().resolve(request)
        if match.http_exception is not None:
            raise match.http_exception
        resource = match.route.resource
        request[ROUTE] = "" if resource is None else resource.canonical
        request["match"] = dict(match)
        return await match.handler(request)


DISPATCHER = web.AppKey("dispatcher", Dispatcher)


def _handler(operation: Operation, backend: Backend) -> Handler:
    from orchestrator.api.operations import perform
    from orchestrator.api.security import check_content

    async def handle(request: web.Request) -> web.StreamResponse:
        request[ROUTE] = operation.template
        return check_content(request) or await perform(operation, request, backend, request["match"])

    return handle
