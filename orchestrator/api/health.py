"""`/health`, `/health/ready`, `/health/live`, `/health/startup`: the truth about the start. Reads memory only.

`/health/events` is the same as a stream, with the migrations one by one, for who watches a start.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Mapping, Sequence  # noqa: TC003 msgspec reads the annotations
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from orchestrator import __version__
from orchestrator.api import sse
from orchestrator.api.problems import problem
from orchestrator.api.security import SECURITY_HEADERS
from orchestrator.lifecycle import Activity, Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp.typedefs import Handler

    from orchestrator.api.security import Safety
    from orchestrator.lifecycle import Event, Lifecycle, MigrationCounts, MigrationItem

RETRY_AFTER_S = 1
_NO_STORE = {"Cache-Control": "no-store"}
_RETRY = {**_NO_STORE, "Retry-After": str(RETRY_AFTER_S)}
# Whole, so that nothing is left to do for each of many answers.
_PROBE = CIMultiDict({"Content-Type": "application/json", **_NO_STORE, **SECURITY_HEADERS})
_PROBE_RETRY = CIMultiDict({**_PROBE, **_RETRY})

# Events wake the stream at once, at most one snapshot in _GAP_S; what changes without an event is seen within _LOOK_S.
_GAP_S = 0.1
_LOOK_S = 0.5
_REPEAT_S = 10.0
# With 10,000 migrations a look takes milliseconds: at most a 20th of the loop's time goes into looking.
_SHARE = 20.0
_WATCHERS_LIMIT = 64
_NO_ACCESS: Mapping[str, object] = MappingProxyType({})
# Of 10,000 migrations: these many rows around the first that is not applied, and these many of the slowest.
_SHOWN_BEFORE = 150
_SHOWN_AFTER = 50
_SLOWEST = 5


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _status(life: Lifecycle) -> Literal["ok", "starting", "unavailable", "stopping", "stopped", "failed"]:
    """`ok` when ready, as upstream says; else a word for what kind of not-ready it is."""
    match life.phase:
        case Phase.READY:
            return "ok"
        case Phase.STOPPING:
            return "stopping"
        case Phase.STOPPED:
            return "stopped"
        case Phase.FAILED:
            return "failed"
        case _:
            return "unavailable" if life.was_ready else "starting"


class HealthMigrations(msgspec.Struct, frozen=True):
    """How far the migrations are. `activity` is what the server says of the statement that runs."""

    applied: int
    total: int
    current: str | None
    statement: int | None
    statements: int | None
    elapsed_s: float | None
    activity: Activity | None


class PhaseEntry(msgspec.Struct, frozen=True):
    """A phase that was entered; `duration_s` is None while it lasts."""

    phase: Phase
    entered_at: str
    duration_s: float | None


class Health(msgspec.Struct, frozen=True):
    """The truth about the start: 200 when the service serves, 503 while it does not.

    Times are in ISO 8601 and UTC, durations in seconds; no secret is in any of it.
    """

    status: Literal["ok", "starting", "unavailable", "stopping", "stopped", "failed"]
    phase: Phase
    timestamp: str
    uptime_s: float
    started_at: str
    version: str | None
    instance: str | None
    migrations: HealthMigrations
    checks: Mapping[str, Mapping[str, object]]
    history: Sequence[PhaseEntry]
    warnings: Sequence[Mapping[str, object]]
    failure: Mapping[str, object] | None


def health(life: Lifecycle, *, tells_all: bool = True) -> Health:
    """The body of `/health`.

    Who may not be told all is told how far it is: phases, counts, times, and what kinds of warnings there are; nothing
    that names a host, a user, a file, a version, or holds SQL or rows.
    """
    migrations = life.migrations
    elapsed_s = migrations.elapsed_s
    if elapsed_s is None and migrations.started_at is not None:
        elapsed_s = time.monotonic() - migrations.started_at
    return Health(
        status=_status(life),
        phase=life.phase,
        timestamp=_iso(life.now()),
        uptime_s=round(life.uptime_s, 3),
        started_at=_iso(life.now() - life.uptime_s),
        version=__version__ if tells_all else None,
        instance=(life.instance or None) if tells_all else None,
        migrations=HealthMigrations(
            applied=migrations.applied,
            total=migrations.total,
            current=migrations.current if tells_all else None,
            statement=migrations.statement if migrations.current else None,
            statements=migrations.statements if migrations.current else None,
            elapsed_s=None if elapsed_s is None else round(elapsed_s, 3),
            activity=migrations.activity if tells_all else None,
        ),
        checks={
            name: {"status": check.status, "checked_at": _iso(check.at), **(check.facts if tells_all else {})}
            for name, check in life.checks.items()
        },
        history=[
            PhaseEntry(
                entry.phase,
                _iso(entry.entered_at),
                None if entry.duration_s is None else round(entry.duration_s, 3),
            )
            for entry in life.history
        ],
        warnings=life.warnings if tells_all else [{"event": one["event"]} for one in life.warnings],
        failure=life.failure if tells_all or life.failure is None else _failure_in_short(life.failure),
    )


def _failure_in_short(failure: Mapping[str, object]) -> dict[str, object]:
    return {
        "error": "the start failed; the log says why, and so does /health to requests with the API's token",
        **{name: failure[name] for name in ("exit_code", "restart_helps") if name in failure},
    }


class HealthBody:
    """`/health`'s body as JSON text: what `health` tells, at a tenth of its cost while the service is READY.

    All but `timestamp` and `uptime_s` is encoded once for each revision of the state, and each second: a new phase,
    check or warning shows at once. Before READY, where a migration's facts move without an event, nothing is kept.
    """

    __slots__ = ("_after", "_before", "_date", "_dated", "_life", "_made_for", "_tells_all")

    def __init__(self, life: Lifecycle, *, tells_all: bool = True) -> None:
        self._life, self._tells_all = life, tells_all
        self._made_for = (-1, -1)
        self._before = self._after = self._date = b""
        self._dated = -1

    def date(self) -> bytes:
        """The time as HTTP's header Date has it."""
        now = int(self._life.now())
        if now != self._dated:
            self._dated, self._date = now, formatdate(now, usegmt=True).encode()
        return self._date

    def text(self) -> bytes:
        """The body of this instant."""
        life = self._life
        if life.phase is not Phase.READY:
            return msgspec.json.encode(health(life, tells_all=self._tells_all), enc_hook=str)
        now = life.now()
        made_for = life.revision, int(now)
        if made_for != self._made_for:
            self._made_for = made_for
            body = msgspec.structs.asdict(health(life, tells_all=self._tells_all))
            before = {key: body.pop(key) for key in ("status", "phase")}
            until_seconds = _iso(made_for[1])[: -len("000Z")]
            self._before = msgspec.json.encode(before)[:-1] + f',"timestamp":"{until_seconds}'.encode()
            del body["timestamp"], body["uptime_s"]
            self._after = msgspec.json.encode(body, enc_hook=str)[1:]
        return b'%b%03dZ","uptime_s":%.3f,%b' % (self._before, (now - made_for[1]) * 1000, life.uptime_s, self._after)


def snapshot(
    life: Lifecycle, access: Mapping[str, object] = _NO_ACCESS, *, tells_all: bool = True
) -> dict[str, object]:
    """The body of `/health`, with the migrations one by one: bounded, however many there are.

    `access` says what the API asks for (see `stream`). Who may not be told all is told the counts alone.
    """
    items = _items(life.migrations)
    if not tells_all:
        items |= {"rows": [], "slowest": [], "left_out_before": 0}
    told = msgspec.structs.asdict(health(life, tells_all=tells_all))
    return {**told, "items": items, "access": access, "tells_all": tells_all}


def _items(migrations: MigrationCounts) -> dict[str, object]:
    """Counts of all, rows around the first migration that is not applied, and the slowest of this process."""
    items, current = migrations.items, migrations.current

    def state(item: MigrationItem) -> str:
        return "running" if item.state == "pending" and item.name == current else item.state

    def row(item: MigrationItem) -> dict[str, object]:
        return {"source": item.source, "name": item.name, "state": state(item), "duration_s": _rounded(item.duration_s)}

    turn = next((number for number, item in enumerate(items) if item.state != "applied"), len(items))
    first = max(0, min(turn - _SHOWN_BEFORE, len(items) - _SHOWN_BEFORE - _SHOWN_AFTER))
    timed = [item for item in items if item.duration_s]
    slowest = heapq.nlargest(_SLOWEST, timed, key=lambda item: item.duration_s or 0.0)
    return {
        "total": len(items),
        # what is applied stands before the turn, all but a few: nothing to ask about each
        "counts": Counter({"applied": turn} if turn else {}) + Counter(state(item) for item in items[turn:]),
        "left_out_before": first,
        "rows": [row(item) for item in items[first : first + _SHOWN_BEFORE + _SHOWN_AFTER]],
        "slowest": [
            {"source": item.source, "name": item.name, "duration_s": _rounded(item.duration_s)} for item in slowest
        ],
        "spent_s": round(sum(item.duration_s or 0.0 for item in timed), 3),
        "timed": len(timed),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _without_clocks(body: dict[str, object]) -> dict[str, object]:
    """The body but for what changes with every look: two of them are equal where nothing happened."""
    still = {key: value for key, value in body.items() if key not in {"timestamp", "uptime_s"}}
    migrations, checks = body["migrations"], body["checks"]
    if isinstance(migrations, HealthMigrations):
        still["migrations"] = msgspec.structs.replace(migrations, elapsed_s=None)
    if isinstance(checks, dict):
        still["checks"] = {
            name: {key: value for key, value in check.items() if key != "checked_at"} for name, check in checks.items()
        }
    return still


class StartEvents:
    """The stream of snapshots. It costs nothing while nobody watches."""

    def __init__(self, life: Lifecycle, access: Callable[[], Mapping[str, object]], *, tells_all: bool) -> None:
        self.life, self._access, self._tells_all = life, access, tells_all
        self._latest: tuple[float, dict[str, object]] | None = None
        self.hub = sse.Hub(limit=1, most=_WATCHERS_LIMIT, keep="newest")
        self._happened = asyncio.Event()

    def now(self) -> dict[str, object]:
        """The snapshot of this instant, or of a moment ago: what is asked for again and again costs no more for it."""
        at = time.monotonic()
        if self._latest is None or at - self._latest[0] > _GAP_S:
            self._latest = at, snapshot(self.life, self._access(), tells_all=self._tells_all)
        return self._latest[1]

    async def run(self) -> None:
        """Publish what changes, until cancelled."""
        before: dict[str, object] | None = None
        said_at = 0.0
        while True:
            await self.hub.until_watched()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._happened.wait()
            self._happened.clear()
            began = time.monotonic()
            body = self.now()
            still, now = _without_clocks(body), time.monotonic()
            if still != before or now - said_at >= _REPEAT_S:
                before, said_at = still, now
                self.hub.publish(sse.frame("state", body))
            await asyncio.sleep(max(_GAP_S, _SHARE * (time.monotonic() - began)))

    @asynccontextmanager
    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Publish while the application serves."""

        def happened(_: Event) -> None:
            self._happened.set()

        stop_listening = self.life.listen(happened)
        task = asyncio.create_task(self.run(), name="health events")
        try:
            yield
        finally:
            stop_listening()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def end(self, _: web.Application) -> None:
        """Tell everybody how it ended (a failed start has its `failure` by now), and close."""
        self._latest = None
        self.hub.close(sse.frame("end", self.now()))


def stream(app: web.Application, life: Lifecycle, safety: Safety) -> Handler:
    """The handler of `/health/events`, whose streams last as long as the application serves.

    There are two: one tells everything to those who may know it, the other the phase and little more. Both tell what
    the API asks for (`Safety.access`): it is no secret, whoever asks the API learns the same.
    """
    both = {tells_all: StartEvents(life, lambda: safety.access, tells_all=tells_all) for tells_all in (True, False)}
    for events in both.values():
        app.cleanup_ctx.append(events.running)
        app.on_shutdown.append(events.end)

    async def watch(request: web.Request) -> web.StreamResponse:
        """The stream; `Accept: application/json` asks for one snapshot of the same instead (where streams fail)."""
        events = both[safety.tells_all(request)]
        if request.headers.get("Accept") == "application/json":
            return web.Response(
                body=msgspec.json.encode(events.now(), enc_hook=str),
                content_type="application/json",
                headers=_NO_STORE,
            )
        try:
            with events.hub.subscribe() as subscriber:
                return await sse.respond(request, subscriber, first=sse.frame("state", events.now()))
        except sse.HubFullError:
            return problem(
                503,
                f"{_WATCHERS_LIMIT} clients watch already; ask for Accept: application/json instead",
                headers=_RETRY,
                instance=request.path,
            )

    return watch


class Probe:
    """What answers one probe: nothing of the request matters. `is_ok` says whether the answer is 200, or 503."""

    __slots__ = ("_body", "_is_ok")

    def __init__(self, body: HealthBody, is_ok: Callable[[], bool]) -> None:
        self._body, self._is_ok = body, is_ok

    def response(self) -> web.Response:
        """The answer of this instant."""
        status, headers = (200, _PROBE) if self._is_ok() else (503, _PROBE_RETRY)
        return web.Response(status=status, body=self._body.text(), headers=headers)

    def wire(self) -> tuple[int, bytes]:
        """The same as its status and as it goes over the wire."""
        status, head = (200, _PROBE_HEAD) if self._is_ok() else (503, _PROBE_RETRY_HEAD)
        body = self._body.text()
        return status, b"%bContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (head, len(body), self._body.date(), body)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    rows = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{rows}".encode()


_PROBE_HEAD = _head(200, _PROBE)
_PROBE_RETRY_HEAD = _head(503, _PROBE_RETRY)


def probes(life: Lifecycle, *, tells_all: bool = True) -> Mapping[str, Probe]:
    """The probes, by path. None of them is behind the gate."""
    body = HealthBody(life, tells_all=tells_all)
    ready = Probe(body, lambda: life.phase is Phase.READY)
    return {
        "/health": ready,
        "/health/ready": ready,
        "/health/live": Probe(body, lambda: True),
        "/health/startup": Probe(body, lambda: life.was_ready),
    }
