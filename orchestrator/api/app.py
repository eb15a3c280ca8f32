"""The HTTP application: the gate that stays shut until READY, the routes, and errors as problem+json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from orchestrator.api import health, migrations
from orchestrator.api.problems import problem
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler

    from orchestrator.jobs.registry import Registry
    from orchestrator.jobs.server import JobServer
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.survey import Source

_BODY_LIMIT_BYTES = 1 << 20


@dataclass(slots=True)
class Backend:
    """What the routes behind the gate work with; the supervisor fills it at LAUNCHING, before the gate opens."""

    pool: Any = None
    sources: Sequence[Source] = field(default_factory=tuple)
    policy: Any = "drizzle"
    ahead: Any = "refuse"
    registry: Registry | None = None
    jobs: JobServer | None = None


def build_app(life: Lifecycle, backend: Backend) -> web.Application:
    """The application. It can serve before anything else is there: until READY all but `/health*` is 503."""

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_health = request.path == "/health" or request.path.startswith("/health/")
        if life.phase is not Phase.READY and not is_health:
            return problem(
                503,
                f"the service is not ready: it is {life.phase}; /health tells more",
                headers={"Retry-After": str(health.RETRY_AFTER_S)},
                instance=request.path,
                phase=str(life.phase),
            )
        return await handler(request)

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
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

    app = web.Application(middlewares=[errors, gate], client_max_size=_BODY_LIMIT_BYTES)

    async def harden(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = "orchestrator"
        response.headers["X-Content-Type-Options"] = "nosniff"

    app.on_response_prepare.append(harden)
    app.add_routes([*health.routes(life), *migrations.routes(backend)])
    return app
