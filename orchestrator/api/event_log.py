"""Follow `job_events` as all replicas write it, once a process, for any number of clients. Reads the database.

One connection, and only while somebody watches. NOTIFY is a hint; what counts is what a look finds, so a lost one (a
pooler between, a reconnect) costs a second at most, never an event. `positions` says why none is lost or told twice.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.api import sse
from orchestrator.api.event_cursor import GAPS_MAX, Cursor, Position, between
from orchestrator.database.connect import PARTING_S, close, connect_once, cut_when_cancelled
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.jobs.store import EventRow, read_events, read_newest_position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle

_CHANNEL = "orchestrator_events"
_PAGE = 500
_LOOK_EVERY_S = 1.0
# At a thousand jobs a second each look brings dozens of events, instead of each event a look.
_LOOK_GAP_S = 0.02
_TIMEOUT_S = 10.0
_AGAIN_S = 1.0
# For how long the place is kept when the last client has gone: one that reconnects finds it.
_LINGER_S = 30.0
# A gap is given up when no transaction is left that could fill it, and not before this: numbers are drawn a moment
# before their transaction shows in snapshots.
_GAP_MIN_S = 5.0

# In frames (about half a kilobyte each): a client that is that far behind is told so and comes back.
_UNREAD_MAX = 2000
_CLIENTS_MAX = 128


@dataclass(slots=True)
class _Gap:
    """`ceiling`: the first transaction that began after the gap was seen, None until the next look has asked."""

    since: float
    ceiling: int | None = None


class Tail:
    """The one reader of a process. `run` does the work; clients hold `watched` while they want it done."""

    def __init__(self, dsn: Dsn, life: Lifecycle) -> None:
        self.hub = sse.Hub(limit=_UNREAD_MAX, most=_CLIENTS_MAX)
        self._dsn, self._life = dsn, life
        self._cursor: Cursor | None = None
        self._open: dict[tuple[int, int], _Gap] = {}
        self._clients = 0
        self._wanted = asyncio.Event()
        self._hint = asyncio.Event()
        self._looked = asyncio.Condition()
        self._begun = self._done = 0

    @property
    def position(self) -> Position | None:
        """How far it has read; None while nobody watches, or before the first look."""
        return None if self._cursor is None else self._cursor.position

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Read while the block lasts.

        Raises:
            HubFullError: there are too many clients, or the process stops.
        """
        if self._clients >= _CLIENTS_MAX or self.hub.is_closed:
            raise sse.HubFullError
        self._clients += 1
        self._wanted.set()
        self._hint.set()
        try:
            yield
        finally:
            self._clients -= 1
            if not self._clients:
                self._wanted.clear()

    async def caught_up(self, *, timeout_s: float = _TIMEOUT_S) -> Position:
        """The position after a look that began now: whatever was committed before is behind it.

        Raises:
            TimeoutError: the database did not answer.
            HubFullError: the process stops.
        """
        wanted = self._begun + 1
        self._hint.set()
        async with asyncio.timeout(timeout_s), self._looked:
            await self._looked.wait_for(
                lambda: self.hub.is_closed or (self._done >= wanted and self._cursor is not None)
            )
        if self._cursor is None:
            raise sse.HubFullError
        return self._cursor.position

    async def close(self) -> None:
        """End every stream, and all waiting for one."""
        self.hub.close(sse.frame("end", {"type": "end", "phase": self._life.phase}))
        async with self._looked:
            self._looked.notify_all()

    async def run(self) -> None:
        """Follow for ever, through losses of the database. Ends only by cancellation."""
        is_lost = False
        while True:
            await self._wanted.wait()
            connection: Any = None
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection = await connect_once(
                        self._dsn, timeout_s=_TIMEOUT_S, application_name="orchestrator events"
                    )
                    await connection.add_listener(_CHANNEL, self._hinted)
                is_lost = False
                await self._follow(connection)
            except CONNECTION_ERRORS as error:
                if not is_lost:
                    is_lost = True
                    failure = classify(error)
                    self._life.emit("events.connection_lost", level="warning", cause=failure.cause, hint=failure.hint)
                await asyncio.sleep(_AGAIN_S)
            finally:
                if connection is not None:
                    with suppress(asyncio.CancelledError):
                        await close(connection, timeout_s=PARTING_S)

    def _hinted(self, *_: object) -> None:
        self._hint.set()

    async def _follow(self, connection: Any) -> None:
        """Look again and again, until nobody has watched for a while."""
        unwatched_at: float | None = None
        while True:
            self._hint.clear()
            self._begun += 1
            began = self._begun
            async with asyncio.timeout(_TIMEOUT_S):
                await cut_when_cancelled(connection, self._look(connection))
            async with self._looked:
                self._done = began
                self._looked.notify_all()
            if self._clients:
                unwatched_at = None
            else:
                unwatched_at = unwatched_at or time.monotonic()
                if time.monotonic() - unwatched_at > _LINGER_S:
                    self._cursor = None
                    return
            await asyncio.sleep(_LOOK_GAP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._hint.wait()

    async def _look(self, connection: Any) -> None:
        """Publish all that has become visible since the last look."""
        if self._cursor is None:
            last, gaps = await read_newest_position(connection, gaps_max=GAPS_MAX)
            self._cursor, self._open = Cursor(Position(last, gaps)), {}
        cursor = self._cursor
        while True:
            oldest, ceiling = await self._horizon(connection) if cursor.gaps else (0, 0)
            rows = await read_events(connection, after=cursor.last, gaps=cursor.gaps, limit=_PAGE)
            for row in rows:
                if not cursor.take(row.id):
                    # One more gap cannot be told: what lies beyond waits until a transaction has ended.
                    rows = []
                    break
                self.hub.publish(frame_of(row, cursor.token()))
            self._judge(cursor, oldest, ceiling)
            if len(rows) < _PAGE:
                return

    @staticmethod
    async def _horizon(connection: Any) -> tuple[int, int]:
        """The oldest transaction that runs, and the next that will begin. Asked before the rows are."""
        row = await connection.fetchrow(
            "SELECT pg_snapshot_xmin(s)::text::bigint AS oldest, pg_snapshot_xmax(s)::text::bigint AS next"
            " FROM pg_current_snapshot() s"
        )
        return row["oldest"], row["next"]

    def _judge(self, cursor: Cursor, oldest: int, ceiling: int) -> None:
        """Give up the gaps that no transaction can fill any more, and note the new ones."""
        now = time.monotonic()
        known, self._open = self._open, {}
        for gap in tuple(cursor.gaps):
            # A gap that was split is the rest of one that was there before.
            before = known.get(gap) or next((of for (a, b), of in known.items() if a <= gap[0] and gap[1] <= b), None)
            if before is None:
                self._open[gap] = _Gap(now)
            elif before.ceiling is None:
                self._open[gap] = _Gap(before.since, ceiling or None)
            elif oldest >= before.ceiling and now - before.since > _GAP_MIN_S:
                cursor.settle(*gap)
            else:
                self._open[gap] = before


async def replay(
    connect: Callable[[], Any], start: Position, end: Position, *, since_ms: int = 0
) -> AsyncIterator[bytes]:
    """Frames of what lies after `start` and not after `end`, page by page, for a client that comes back.

    Each page is read on a connection of `connect()`, which nobody holds while the client takes its time. The ids are as
    exact as those of the live stream; after the last one the client is at `end`.
    """
    came_to, gaps = 0, list(start.gaps)
    while True:
        async with connect() as connection:
            rows = await read_events(connection, after=max(came_to, start.last), gaps=gaps, limit=_PAGE, until=end.last)
        frames = [
            frame_of(row, between(start, end, row.id).token())
            for row in rows
            # What `end` has not seen will come by the live stream.
            if end.has_seen(row.id) and row.at.timestamp() * 1000 >= since_ms
        ]
        if frames:
            yield b"".join(frames)
        if len(rows) < _PAGE:
            return
        came_to = rows[-1].id
        gaps = [(max(low, came_to + 1), high) for low, high in gaps if high > came_to]


_KINDS = {"running": "started", "succeeded": "completed", "failed": "failed"}


def frame_of(row: EventRow, token: str) -> bytes:
    """One event for the wire: upstream's members (`type`, `epochMs`, `jobId`, `jobName`, `progress`) and our own."""
    facts = row.facts if isinstance(row.facts, dict) else {}
    data: dict[str, object] = {
        "type": "progress" if row.kind == "progress" else _KINDS.get(row.state or "", row.state),
        "epochMs": int(row.at.timestamp() * 1000),
        "timestamp": row.at,
        "jobId": str(row.job_id),
        "jobName": row.name,
        "queue": row.queue,
        "state": row.state or "running",
        "attempt": row.attempt,
    }
    if row.kind == "progress":
        done, total = facts.get("done"), facts.get("total")
        is_share = isinstance(done, (int, float)) and isinstance(total, (int, float)) and total > 0
        data["progress"] = {
            "current": done,
            "total": total,
            "percent": round(100 * done / total, 1) if is_share else None,  # type: ignore[operator]
            "note": facts.get("note"),
        }
    elif isinstance(facts.get("error"), str):
        data["error"] = facts["error"]
    if row.kind != "progress" and facts:
        data["data"] = facts
    return sse.frame("job", data, identity=token)
