"""`/health`, `/health/ready`, `/health/live`, `/health/startup`: the truth about the start. Reads memory only."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from orchestrator import __version__
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from orchestrator.lifecycle import Lifecycle

RETRY_AFTER_S = 1
_NO_STORE = {"Cache-Control": "no-store"}
_RETRY = {**_NO_STORE, "Retry-After": str(RETRY_AFTER_S)}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _status(life: Lifecycle) -> str:
    """`ok` when ready, as upstream says; else a word for what kind of not-ready it is."""
    match life.phase:
        case Phase.READY:
            return "ok"
        case Phase.STOPPING | Phase.STOPPED | Phase.FAILED:
            return str(life.phase)
        case _:
            return "unavailable" if life.was_ready else "starting"


def health(life: Lifecycle) -> dict[str, object]:
    """The body of `/health`: times in ISO 8601 UTC, durations in seconds, no secret in any of it."""
    migrations = life.migrations
    elapsed_s = migrations.elapsed_s
    if elapsed_s is None and migrations.started_at is not None:
        elapsed_s = time.monotonic() - migrations.started_at
    return {
        "status": _status(life),
        "phase": life.phase,
        "timestamp": _iso(life.now()),
        "uptime_s": round(life.uptime_s, 3),
        "version": __version__,
        "migrations": {
            "applied": migrations.applied,
            "total": migrations.total,
            "current": migrations.current,
            "statement": migrations.statement if migrations.current else None,
            "statements": migrations.statements if migrations.current else None,
            "elapsed_s": None if elapsed_s is None else round(elapsed_s, 3),
            "activity": migrations.activity,
        },
        "checks": {
            name: {"status": check.status, "checked_at": _iso(check.at), **check.facts}
            for name, check in life.checks.items()
        },
        "history": [
            {
                "phase": entry.phase,
                "entered_at": _iso(entry.entered_at),
                "duration_s": None if entry.duration_s is None else round(entry.duration_s, 3),
            }
            for entry in life.history
        ],
        "warnings": life.warnings,
        "failure": life.failure,
    }


def routes(life: Lifecycle) -> list[web.RouteDef]:
    """The probes. None of them is behind the gate."""

    def answer(*, ok: bool) -> web.Response:
        return web.Response(
            status=200 if ok else 503,
            body=msgspec.json.encode(health(life), enc_hook=str),
            content_type="application/json",
            headers=_NO_STORE if ok else _RETRY,
        )

    async def ready(_: web.Request) -> web.Response:
        return answer(ok=life.phase is Phase.READY)

    async def live(_: web.Request) -> web.Response:
        return answer(ok=True)

    async def startup(_: web.Request) -> web.Response:
        return answer(ok=life.was_ready)

    return [
        web.get("/health", ready),
        web.get("/health/ready", ready),
        web.get("/health/live", live),
        web.get("/health/startup", startup),
    ]
