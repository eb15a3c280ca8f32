"""One migrator per database: a session advisory lock, polled, that says who holds it. Touches the database."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from orchestrator.database.connect import answered, no_time_limits
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.database.pooler import PoolerError, ensure_own_session
from orchestrator.database.sessions import as_ours
from orchestrator.errors import LockTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.lifecycle import Lifecycle

T = TypeVar("T")

# A constant of ours ("orchest1" in ASCII). Advisory locks are per database, so it needs nothing of the database's name.
LOCK_KEY = int.from_bytes(b"orchest1")
_CLASS_ID, _OBJECT_ID = LOCK_KEY >> 32, LOCK_KEY & 0xFFFFFFFF

# True in a session that holds the lock, with whatever path. objsubid 1 is the one-key form (manual, pg_locks).
HELD_HERE = (
    "EXISTS (SELECT 1 FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND granted"  # noqa: S608
    " AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND objsubid OPERATOR(pg_catalog.=) 1"
    f" AND classid OPERATOR(pg_catalog.=) {_CLASS_ID} AND objid OPERATOR(pg_catalog.=) {_OBJECT_ID})"
)
_HOLDER = (
    "SELECT a.pid, a.application_name, pg_catalog.host(a.client_addr) AS client_address,"  # noqa: S608 constants
    " round(extract(epoch FROM now() - a.backend_start))::int AS session_age_s, a.state,"
    " round(extract(epoch FROM clock_timestamp() - a.query_start)::numeric, 1)::float8 AS statement_age_s"
    " FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    f" AND l.classid = {_CLASS_ID} AND l.objid = {_OBJECT_ID}"
    " AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
)
# By a simple query: through a pooler a prepared statement may be gone before it is executed.
_TRY = f"SELECT 1 WHERE pg_catalog.pg_try_advisory_lock({LOCK_KEY})"
_UNLOCK = f"SELECT 1 WHERE pg_catalog.pg_advisory_unlock({LOCK_KEY})"
_DONE = "SELECT 1"
_UNLOCK_TRIES = 30
_ANSWER_S = 10.0
_READY_S = 30.0  # a second session is opened meanwhile
_POLL_S = 0.2
_REPORT_EVERY_S = 30.0


_OWN = "SELECT pid, backend_start::text FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
_END = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
    " WHERE pid = $1::int AND backend_start::text = $2::text"
)


class Holding(NamedTuple):
    """A session that has held the lock: its process at the server, and when that began, as the server writes it."""

    pid: int
    began: str


@asynccontextmanager
async def migration_lock(
    connection: Any,
    life: Lifecycle,
    *,
    timeout_s: float,
    connect_second: Callable[[], Awaitable[Any]] | None = None,
    held: list[Holding] | None = None,
) -> AsyncIterator[None]:
    """Hold the lock of the database on this session; wait for it at most `timeout_s` (0 = for ever).

    Before it is taken, a pooler that would share the session is refused; `connect_second` opens another connection by
    the same way, which makes that sure.

    `held` are the sessions by which this start has held the lock before: a connection that was lost may live on at the
    server, and is ended first. The present one is added.

    Polls `pg_try_advisory_lock`: a waiter blocked in `pg_advisory_lock` holds a snapshot, and CREATE INDEX CONCURRENTLY
    of the holder would wait for it: a deadlock. Cancelled while waiting: nothing is held.

    Raises:
        LockTimeoutError: with who holds it (exit 75).
        PoolerError: the session is not ours alone (exit 78).
    """
    await _answered(connection, _ready(connection, life, connect_second, held or ()), limit_s=_READY_S)
    began = time.monotonic()
    said_at: float | None = None
    while await _answered(connection, connection.execute(_TRY)) != _DONE:
        now = time.monotonic()
        is_late = bool(timeout_s) and now - began >= timeout_s
        if is_late or said_at is None or now - said_at >= _REPORT_EVERY_S:
            holder = await _answered(connection, lock_holder(connection))
            if is_late:
                raise LockTimeoutError(
                    f"another migrator held the lock for {timeout_s:g} s: {_describe(holder)}",
                    remedy="Wait for it to end, or stop it: SELECT pg_terminate_backend("
                    f"{holder['pid'] if holder else 'pid'}); then start again.",
                    facts={"holder": holder},
                )
            if holder is not None or said_at is not None:
                said_at = now
                life.check("lock", "pending", holder=holder, waited_s=round(now - began, 1))
                life.emit("lock.waiting", level="warning", holder=holder, waited_s=round(now - began, 1))
        await asyncio.sleep(_POLL_S * random.uniform(0.75, 1.25))  # noqa: S311 jitter
    life.checks.pop("lock", None)
    life.emit("lock.acquired", waited_s=round(time.monotonic() - began, 3))
    try:
        if await connection.execute(f"SELECT 1 WHERE {HELD_HERE}") != _DONE:
            raise PoolerError("the lock is not held any more in the next transaction")
        if held is not None:
            async with as_ours(connection):
                held.append(Holding(*await connection.fetchrow(_OWN)))
        yield
    finally:
        await _release(connection, life)


async def _answered(connection: Any, work: Awaitable[T], *, limit_s: float = _ANSWER_S) -> T:
    """None of what is asked here waits for anybody: a server that is silent is as good as lost."""
    return await answered(connection, work, stage="an answer to the request for the lock", limit_s=limit_s)


async def _ready(
    connection: Any,
    life: Lifecycle,
    connect_second: Callable[[], Awaitable[Any]] | None,
    held: Sequence[Holding],
) -> None:
    """A session of our own, which no setting ends, and none of our earlier ones beside it."""
    await ensure_own_session(connection, connect_second)
    # The holder may be idle for as long as a backup, or a person who is asked, takes.
    await connection.execute(no_time_limits(connection))
    for earlier in held:
        async with as_ours(connection):
            if await connection.fetchval(_END, earlier.pid, earlier.began):
                life.emit("lock.earlier_session_ended", level="warning", pid=earlier.pid)


async def lock_holder(connection: Any) -> dict[str, object] | None:
    """Who holds the lock of this database, None where nobody does or it cannot be seen."""
    async with as_ours(connection):
        row = await connection.fetchrow(_HOLDER)
    return dict(row) if row is not None else None


def _describe(holder: dict[str, object] | None) -> str:
    if holder is None:
        return "this user cannot see which session holds it"
    where = holder["client_address"] or "local socket"
    return f"pid {holder['pid']}, {holder['application_name']!r} from {where}, for {holder['session_age_s']} s"


async def _release(connection: Any, life: Lifecycle) -> None:
    """Unlock where the session still answers; where it does not, its end unlocks."""
    if connection.is_closed():
        return
    with contextlib.suppress(*CONNECTION_ERRORS):
        async with asyncio.timeout(2):
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            # Once, where the session is ours. If a pooler has given us another one, the lock is on one that comes back.
            for _ in range(_UNLOCK_TRIES):
                if await connection.execute(_UNLOCK) == _DONE:
                    life.emit("lock.released", level="debug")
                    return
            life.emit(
                "lock.stranded",
                level="warning",
                hint="The lock was gone when it was to be released: a pooler holds it, or a migration has released it.",
            )
