"""`GET /api/events`: jobs of all replicas, and this one's phases and migrations, as server-sent events.

A client that comes back with `Last-Event-ID` goes on exactly where it was, on any replica; upstream's `?since=<ms>`
starts at a time. Each event's frame is made once for all clients.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec

from orchestrator.api import sse
from orchestrator.api.counters import is_told
from orchestrator.api.event_cursor import Position
from orchestrator.api.event_log import replay
from orchestrator.api.operations import Answer, Call, Operation
from orchestrator.api.problems import Refusal
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.jobs.store import read_first_event_since

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aiohttp import web

    from orchestrator.api.event_log import Tail
    from orchestrator.lifecycle import Event, Lifecycle

# Upstream keeps five minutes; who wants all that is kept reads GET /api/jobs.
_SINCE_MAX = timedelta(hours=1)
# Rounds in which a client that comes back is led to the present before it is fed as it happens.
_ROUNDS = 3


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`since` in milliseconds since 1970: events from then on, of the last hour at most."""

    since: Annotated[int, msgspec.Meta(ge=0, le=253402300799999)] | None = None


async def stream(call: Call) -> web.StreamResponse:
    """The stream, until the client goes or the process stops."""
    tail, life = call.backend.tail, call.backend.life
    if tail is None or life is None:
        raise _later("the events are not ready yet")
    try:
        with tail.watched():
            present = await tail.caught_up()
            start = Position.parse(call.request.headers.get("Last-Event-ID", ""))
            # A place ahead of everything that is committed is of another database.
            is_known = start is not None and start.last <= present.last
            since_ms = 0
            if not is_known:
                start = present
                if call.query.since is not None:
                    moment = max(datetime.fromtimestamp(call.query.since / 1000, UTC), datetime.now(UTC) - _SINCE_MAX)
                    since_ms = int(moment.timestamp() * 1000)
                    async with call.connection() as connection:
                        first = await read_first_event_since(connection, moment)
                    start = present if first is None else Position(min(first - 1, present.last))
            assert start is not None  # noqa: S101 mypy cannot see it
            told = _past(call, since_ms) if since_ms else b""
            hello = _hello(life, start, resumed=is_known)
            return await sse.send(call.request, _frames(call, tail, hello + told, start, since_ms))
    except sse.HubFullError:
        raise _later("too many clients follow the events, or the process stops") from None
    except TimeoutError:
        raise _later("the database does not answer") from None


def _later(detail: str) -> Refusal:
    return Refusal(503, detail, headers={"Retry-After": "1"})


def _hello(life: Lifecycle, start: Position, *, resumed: bool) -> bytes:
    data = {
        "type": "hello",
        "timestamp": datetime.now(UTC),
        "phase": life.phase,
        "resumed": resumed,
        "migrations": {"applied": life.migrations.applied, "total": life.migrations.total},
    }
    return sse.frame("hello", data, identity=start.token())


def _past(call: Call, since_ms: int) -> bytes:
    life, recent = call.backend.life, call.backend.measures.recent
    return b"".join(_frame(event, life) for event in recent if life is not None and event.at * 1000 >= since_ms)


def _frame(event: Event, life: Lifecycle) -> bytes:
    """A phase or a migration; it has no id, since it is this process's alone."""
    kind = "phase" if event.name.startswith("phase.") else "migration"
    at = datetime.fromtimestamp(event.at, UTC)
    data = {"type": event.name, "epochMs": int(event.at * 1000), "timestamp": at, "phase": event.phase}
    data |= life.clean({**event.facts})
    return sse.frame(kind, data)


def tell(life: Lifecycle, tail: Tail) -> Callable[[], None]:
    """Hand this process's phases and migrations to the clients; returns what ends it."""

    def hear(event: Event) -> None:
        if is_told(event):
            tail.hub.publish(_frame(event, life))

    return life.listen(hear)


async def _frames(call: Call, tail: Tail, first: bytes, start: Position, since_ms: int) -> AsyncGenerator[bytes, None]:
    """`first`, then what lies between `start` and now, then what happens, with nothing left out between them."""
    yield first
    # A client whose database goes while it is led to the present is sent away, and comes back with its place.
    with suppress(sse.HubFullError, TimeoutError, *CONNECTION_ERRORS):
        for _ in range(_ROUNDS):
            end = tail.position
            if end is None or end == start:
                break
            async for data in replay(call.connection, start, end, since_ms=since_ms):
                yield data
                if tail.hub.is_closed:
                    return
            start = end
        # From here on nothing may be missed: live frames pile up (bounded) while the last of the past is sent. The
        # position and the subscription are taken in one go, without an await between.
        end = tail.position or start
        with tail.hub.subscribe() as subscriber:
            if end != start:
                async for data in replay(call.connection, start, end, since_ms=since_ms):
                    yield data
            async for data in sse.taken(subscriber):
                yield data


OPERATIONS = (
    Operation(
        "GET",
        "/api/events",
        stream,
        "Jobs, phases and migrations as they happen",
        "events",
        {
            200: Answer(
                "Server-sent events: hello, job, phase, migration; dropped tells a client that it was too slow.",
                content_type="text/event-stream",
            )
        },
        query=EventsQuery,
        refusals={503: "The database does not answer, or too many clients follow."},
        description=(
            "`Last-Event-ID` continues where the last stream ended, on any replica: no event is lost, and none is"
            " sent twice."
        ),
    ),
)
