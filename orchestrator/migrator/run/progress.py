"""What the running statement does, seen from a second session: wait, blockers, percentage. Reads the server's views.

The session that migrates cannot look at itself, and once a lock's time-out has struck, who blocked is gone from
`pg_blocking_pids`. So a second session asks while the first one waits. It logs in only for a statement that runs long,
asks in single statements (no transaction stays open, whose snapshot would stop CREATE INDEX CONCURRENTLY), and whatever
happens to it, the migration goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.database.connect import close
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.lifecycle import Activity
from orchestrator.redaction import without_constants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.sql.statements import Statement

_LINE_EVERY_S = 10.0
# Below the server's deadlock_timeout (1 s): a deadlock's other side is seen before the server breaks it.
_FIRST_LOOK_S = 0.6
_LOOK_EVERY_S = 1.0
_LEAST_S = 0.05
_LOOK_TIMEOUT_S = 2.0
_AFTER_FAILURE_S = 10.0
_TICK_S = 0.25
_EXCERPT_LENGTH = 120

# PostgreSQL manual, "Progress Reporting". CLUSTER's view is VACUUM FULL's, too.
_PROGRESS = """
    SELECT phase AS stage, coalesce(100.0 * blocks_done / nullif(blocks_total, 0),
           100.0 * tuples_done / nullif(tuples_total, 0), 100.0 * lockers_done / nullif(lockers_total, 0)) AS percent
      FROM pg_catalog.pg_stat_progress_create_index WHERE pid = $1
    UNION ALL SELECT 'copying', 100.0 * bytes_processed / nullif(bytes_total, 0)
      FROM pg_catalog.pg_stat_progress_copy WHERE pid = $1
    UNION ALL SELECT phase, 100.0 * heap_blks_scanned / nullif(heap_blks_total, 0)
      FROM pg_catalog.pg_stat_progress_cluster WHERE pid = $1
    UNION ALL SELECT phase, 100.0 * heap_blks_scanned / nullif(heap_blks_total, 0)
      FROM pg_catalog.pg_stat_progress_vacuum WHERE pid = $1
    UNION ALL SELECT phase, 100.0 * sample_blks_scanned / nullif(sample_blks_total, 0)
      FROM pg_catalog.pg_stat_progress_analyze WHERE pid = $1
    LIMIT 1"""
# The start of the server tells it from another host of the same DSN, where the pid is somebody else's.
_LOOK = f"""
    SELECT a.wait_event_type, a.wait_event, p.stage, round(p.percent, 1)::float8 AS percent,
           CASE WHEN a.wait_event_type = 'Lock' THEN pg_catalog.pg_blocking_pids(a.pid) ELSE '{{}}' END AS blocked_by
      FROM pg_catalog.pg_stat_activity a LEFT JOIN ({_PROGRESS}) p ON true
     WHERE a.pid = $1 AND coalesce(pg_catalog.pg_postmaster_start_time() = $2::timestamptz, true)"""  # noqa: S608 constants
# As bytes: in a database of SQL_ASCII the server cuts a long query in the middle of a character.
_QUERY = (
    "pg_catalog.convert_to(left(query, 1000), CASE pg_catalog.getdatabaseencoding()"
    " WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
)
_BLOCKERS = f"""
    SELECT b.pid, b.application_name, b.usename::text AS username, b.state,
           pg_catalog.host(b.client_addr) AS client_address,
           b.backend_type, {_QUERY} AS query,
           round(extract(epoch FROM clock_timestamp() - b.xact_start)::numeric, 1)::float8 AS transaction_age_s,
           round(extract(epoch FROM clock_timestamp() - b.state_change)::numeric, 1)::float8 AS state_age_s
      FROM pg_catalog.pg_stat_activity b WHERE b.pid = ANY($1::int4[]) ORDER BY b.xact_start NULLS LAST"""  # noqa: S608
# pg_blocking_pids says 0 for a prepared transaction, which no session holds any more.
_PREPARED = """
    SELECT gid, owner::text AS username,
           round(extract(epoch FROM clock_timestamp() - prepared)::numeric, 1)::float8 AS transaction_age_s
      FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database()"""


def excerpt(query: str) -> str:
    """The first characters of a query on one line, without its constants: not everybody should see them."""
    text = " ".join(without_constants(query[: 8 * _EXCERPT_LENGTH]).split())
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[: _EXCERPT_LENGTH - 1]}…"


class Seen(msgspec.Struct, frozen=True):
    """What the server says of a session that migrates."""

    wait_event: str | None = None
    stage: str | None = None
    percent: float | None = None
    blockers: tuple[Mapping[str, object], ...] = ()


class Watch:
    """What the session runs now, and what was seen of it. `begin` and `end` cost next to nothing."""

    def __init__(self, life: Lifecycle, *, lock_timeout_s: float) -> None:
        self._life = life
        # A short time-out leaves little time to look: several times within it.
        within_s = max(_LEAST_S, lock_timeout_s / 4) if lock_timeout_s else _LOOK_EVERY_S
        self.first_look_s = min(_FIRST_LOOK_S, within_s)
        self.look_every_s = min(_LOOK_EVERY_S, within_s)
        self._what: Statement | str = ""
        self._began: float | None = None
        self._number = 0
        self._seen = Seen()

    def begin(self, what: Statement | str) -> None:
        """A statement is sent now."""
        self._what, self._began, self._seen = what, time.monotonic(), _NOTHING_SEEN
        self._number += 1

    def end(self) -> None:
        """The server has answered. What was seen of the statement is kept until the next one begins."""
        self._began = None
        self._life.migrations.activity = None

    @property
    def number(self) -> int:
        """Counts statements: tells whether what was asked about is what runs still."""
        return self._number

    @property
    def blockers(self) -> tuple[Mapping[str, object], ...]:
        """Who was last seen to block the statement that runs, or ran last."""
        return self._seen.blockers

    @property
    def elapsed_s(self) -> float | None:
        """How long the statement runs; None where none does."""
        return None if self._began is None else time.monotonic() - self._began

    def saw(self, seen: Seen) -> None:
        """Keep what the server said; blockers stay known when they are not seen for a moment."""
        self._seen = seen if seen.blockers or not self._seen.blockers else _with_blockers(seen, self._seen.blockers)

    def show(self) -> Activity:
        """Put what is known into `migrations.activity`, and return it."""
        kind, text = described(self._what)
        shown = self._seen
        activity = Activity(
            kind,
            text,
            round(self.elapsed_s or 0.0, 1),
            wait_event=shown.wait_event,
            stage=shown.stage,
            percent=shown.percent,
            blockers=shown.blockers,
        )
        self._life.migrations.activity = activity
        return activity


_NOTHING_SEEN = Seen()


def _with_blockers(seen: Seen, blockers: tuple[Mapping[str, object], ...]) -> Seen:
    return Seen(seen.wait_event, seen.stage, seen.percent, blockers if seen.wait_event else ())


def described(what: Statement | str) -> tuple[str, str]:
    """Kind and excerpt of a statement; a text of our own stands for itself."""
    return (what, "") if isinstance(what, str) else (what.kind, excerpt(what.text[: 8 * _EXCERPT_LENGTH]))


@asynccontextmanager
async def watched(
    connection: Any, life: Lifecycle, connect: Callable[[], Awaitable[Any]] | None, *, lock_timeout_s: float
) -> AsyncIterator[Watch]:
    """Watch `connection` while the block runs: `migrations.activity` is kept, and every 10 s there is a line.

    `connect` opens the second session; without it only the time is known. No error of the watching reaches the block.
    """
    watch = Watch(life, lock_timeout_s=lock_timeout_s)
    identity = await connection.fetchrow("SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_postmaster_start_time()")
    task = asyncio.create_task(_watch(watch, life, _Second(connect, identity, life)))
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        life.migrations.activity = None


async def _watch(watch: Watch, life: Lifecycle, second: _Second) -> None:
    said_at = time.monotonic()
    looked_at, looked_number = 0.0, 0
    tick_s = min(_TICK_S, watch.first_look_s)
    try:
        while True:
            await asyncio.sleep(tick_s)
            now = time.monotonic()
            elapsed_s = watch.elapsed_s
            if elapsed_s is not None and elapsed_s >= watch.first_look_s:
                number = watch.number
                if number != looked_number or now - looked_at >= watch.look_every_s:
                    looked_at, looked_number = now, number
                    seen = await second.look()
                    if number != watch.number or watch.elapsed_s is None:
                        continue
                    if seen is not None:
                        watch.saw(seen)
                    watch.show()
                    life.emit("migration.watched", level="debug", migration=life.migrations.current)
            if now - said_at >= _LINE_EVERY_S:
                said_at = now
                _say(watch, life)
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await second.close()


def _say(watch: Watch, life: Lifecycle) -> None:
    state = life.migrations
    if state.current is None:
        return
    if watch.elapsed_s is not None:
        watch.show()
    activity = state.activity
    facts: dict[str, Any] = {}
    if activity is not None:
        facts = {
            "statement_kind": activity.statement_kind,
            "excerpt": activity.excerpt,
            "statement_elapsed_s": activity.elapsed_s,
            "wait_event": activity.wait_event,
            "stage": activity.stage,
            "percent": activity.percent,
            "blockers": list(activity.blockers),
        }
    life.emit(
        "migration.progressed",
        migration=state.current,
        statement=state.statement,
        statements=state.statements,
        applied=state.applied,
        total=state.total,
        elapsed_s=round(time.monotonic() - state.started_at, 1) if state.started_at is not None else None,
        **facts,
    )


def _text(query: bytes | None) -> str:
    return (query or b"").decode(errors="replace")


async def query_of(connection: Any, pid: int) -> str:
    """The first characters of what the session `pid` runs or has run last."""
    return _text(await connection.fetchval(f"SELECT {_QUERY} FROM pg_catalog.pg_stat_activity WHERE pid = $1", pid))  # noqa: S608


async def look_at(connection: Any, pid: int, server_started_at: Any = None) -> Seen | None:
    """What the session `pid` waits for, who blocks it, and how far it is; None where there is no such session.

    `server_started_at` tells that the server is the one that is meant; None takes any.
    """
    row = await connection.fetchrow(_LOOK, pid, server_started_at)
    if row is None:
        return None
    blockers: list[Mapping[str, object]] = []
    pids = sorted(set(row["blocked_by"]))
    if pids:
        others = await connection.fetch(_BLOCKERS, [other for other in pids if other])
        blockers = [{**one, "query": excerpt(_text(one["query"]))} for one in map(dict, others)]
        if 0 in pids:
            prepared = await connection.fetch(_PREPARED)
            blockers += [{"pid": 0, "state": "prepared transaction", **dict(one)} for one in prepared]
    kind, event = row["wait_event_type"], row["wait_event"]
    wait_event = f"{kind}: {event}" if kind and kind != "Client" else None
    return Seen(wait_event, row["stage"], row["percent"], tuple(blockers))


class _Second:
    """The second session: made when it is first needed, and again some time after it failed."""

    def __init__(self, connect: Callable[[], Awaitable[Any]] | None, identity: Any, life: Lifecycle) -> None:
        self._connect, self._pid, self._server_started_at, self._life = connect, identity[0], identity[1], life
        self._connection: Any = None
        self._not_before = 0.0

    async def look(self) -> Seen | None:
        """Ask about the first session; None where that cannot be known now."""
        if self._connect is None or time.monotonic() < self._not_before:
            return None
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                if self._connection is None:
                    self._connection = await self._connect()
                return await look_at(self._connection, self._pid, self._server_started_at)
        except CONNECTION_ERRORS as error:
            self._not_before = time.monotonic() + _AFTER_FAILURE_S
            self._life.emit("migration.watch_failed", level="debug", error=type(error).__name__)
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            return None

    async def close(self) -> None:
        """End the session, if there is one."""
        if self._connection is not None:
            await close(self._connection)
            self._connection = None
