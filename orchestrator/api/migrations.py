"""`GET /` (who this is) and `GET /api/migrations` (what is applied, pending, and not straight). Reads the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from orchestrator import __version__
from orchestrator.api.problems import problem

if TYPE_CHECKING:
    from orchestrator.api.app import Backend

_TIMEOUT_S = 10
_ENDPOINTS = {
    "health": "/health",
    "live": "/health/live",
    "startup": "/health/startup",
    "migrations": "/api/migrations",
}


def _json(body: object) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body, enc_hook=str),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def routes(backend: Backend) -> list[web.RouteDef]:
    """The routes behind the gate."""

    async def root(_: web.Request) -> web.Response:
        return _json(
            {"message": "Job Server API", "name": "orchestrator", "version": __version__, "endpoints": _ENDPOINTS}
        )

    async def listing(request: web.Request) -> web.Response:
        # Late: `/health` answers 30 ms sooner. READY has loaded both by the time that the gate opens.
        import asyncpg

        from orchestrator.migrator.status import migrations_status

        try:
            async with backend.pool.acquire(timeout=_TIMEOUT_S) as connection:
                sources = await migrations_status(
                    connection, backend.sources, policy=backend.policy, ahead=backend.ahead
                )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return problem(503, "the database does not answer", headers={"Retry-After": "1"}, instance=request.path)
        return _json({"sources": sources})

    return [web.get("/", root), web.get("/api/migrations", listing)]
