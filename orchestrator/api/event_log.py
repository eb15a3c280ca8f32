"""Follow `job_events` as all replicas write it, once a process, for any number of clients. Reads the database.

One connection, and only while somebody watches. NOTIFY is a hint; what counts is what a look finds, so a lost one (a
pooler between, a reconnect) costs a second at most, never an event. `event_cursor` says why none is lost or told twice.

What is told is durable: a claim commits asynchronously, and an event that a crash of the server took back would leave
its number to another one, which nobody would be told. And a gap in the numbers is waited for only as long as there is a
transaction that could fill it: one that has written events of this database, which its lock on the table shows. What
else is open on the server delays nothing.
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
from orchestrator.database.outage import Outage
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
# Where there are more gaps than can be told, those that are this old are given up, and that is said.
_GAP_MOST_S = 10.0

# Whoever draws a number holds this lock before, and lets go of it after its transaction is over for all snapshots.
_WRITERS = """
SELECT l.virtualtransaction FROM pg_catalog.pg_locks l
WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
    AND l.relation = 'orchestrator.job_events'::pg_catalog.regclass
"""
_PREPARED = "-1/"  # a transaction that was prepared has another name than it had before
_UNFLUSHED = "SELECT pg_catalog.pg_current_wal_insert_lsn() > pg_catalog.pg_current_wal_flush_lsn()"
# A commit that waits for the disk takes everything before it along.
_FLUSH = (
    "SET LOCAL synchronous_commit = local",
    "SELECT pg_catalog.pg_logical_emit_message(true, 'orchestrator', 'events are told')",
)

# In frames (about half a kilobyte each): a client that is that far behind is told so and comes back.
_UNREAD_MAX = 2000
_CLIENTS_MAX = 128


@dataclass(slots=True)
class _Gap:
    """Since when it is open, and the transactions that could fill it when it was seen."""

    since: float
    writers: frozenset[str]


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
        self._is_new = True

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
        outage = Outage(least_s=_AGAIN_S, most_s=_AGAIN_S)
        while True:
            await self._wanted.wait()
            connection: Any = None
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection = await connect_once(
                        self._dsn, timeout_s=_TIMEOUT_S, application_name="orchestrator events"
                    )
                    await connection.add_listener(_CHANNEL, self._hinted)
                outage.over()
                self._is_new = True
                await self._follow(connection)
            except CONNECTION_ERRORS as error:
                failure = classify(error)
                if outage.failed(failure):
                    self._life.emit("events.connection_lost", level="warning", cause=failure.cause, hint=failure.hint)
                await asyncio.sleep(outage.wait_s)
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
        if self._is_new and self._cursor is not None:
            last, _ = await read_newest_position(connection, gaps_max=0)
            if last < self._cursor.last:
                # Another server goes on in its place, without the newest of what was told.
                self._life.emit("events.log_went_back", level="warning", told=self._cursor.last, now=last)
                self._cursor = None
        self._is_new = False
        if self._cursor is None:
            last, gaps = await read_newest_position(connection, gaps_max=GAPS_MAX)
            self._cursor, self._open = Cursor(Position(last, gaps)), {}
        cursor = self._cursor
        while True:
            # Asked before the rows are read: what has ended by now is seen by then.
            writing = await self._writers(connection) if cursor.gaps else frozenset()
            rows = await read_events(connection, after=cursor.last, gaps=cursor.gaps, limit=_PAGE)
            if rows:
                await self._make_durable(connection)
            is_full = False
            for row in rows:
                if not cursor.take(row.id):
                    is_full = True
                    break
                self.hub.publish(frame_of(row, cursor.token()))
            await self._judge(connection, cursor, writing)
            # One more gap cannot be told: what lies beyond waits until there is room.
            if (is_full and not self._give_up_old(cursor)) or (not is_full and len(rows) < _PAGE):
                return

    @staticmethod
    async def _writers(connection: Any) -> frozenset[str]:
        """The transactions that have written events and are open, prepared ones included."""
        return frozenset(row["virtualtransaction"] for row in await connection.fetch(_WRITERS))

    @staticmethod
    async def _make_durable(connection: Any) -> None:
        """Wait until the server's disk has what was read."""
        if await connection.fetchval(_UNFLUSHED):
            async with connection.transaction():
                for statement in _FLUSH:
                    await connection.execute(statement)

    async def _judge(self, connection: Any, cursor: Cursor, writing: frozenset[str]) -> None:
        """Settle the gaps that no transaction can fill any more, and note who could fill the new ones."""
        now = time.monotonic()
        known, self._open = self._open, {}
        new: list[tuple[int, int]] = []
        has_prepared = any(name.startswith(_PREPARED) for name in writing)
        for gap in tuple(cursor.gaps):
            # A gap that was split is the rest of one that was there before.
            before = known.get(gap) or next((of for (a, b), of in known.items() if a <= gap[0] and gap[1] <= b), None)
            if before is None:
                new.append(gap)
            elif has_prepared or before.writers & writing:
                self._open[gap] = before
            else:
                cursor.settle(*gap)
        if new:
            # Asked after the rows were read: who has ended before this is seen the next time.
            writers = await self._writers(connection)
            self._open.update({gap: _Gap(now, writers) for gap in new})

    def _give_up_old(self, cursor: Cursor) -> bool:
        """Make room for gaps: whoever keeps some open for this long must not keep everybody waiting. False: for now."""
        now = time.monotonic()
        old = [gap for gap, of in self._open.items() if now - of.since >= _GAP_MOST_S]
        for gap in old:
            cursor.settle(*gap)
            del self._open[gap]
        if old:
            self._life.emit(
                "events.gaps_given_up",
                level="warning",
                first=old[0][0],
                last=old[-1][1],
                hint="A transaction that has added jobs has been open for a long time; the stream leaves out what it"
                " added.",
            )
        return bool(old)


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
