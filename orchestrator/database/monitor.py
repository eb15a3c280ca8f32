"""Ask the database every two seconds whether work can be done there, on a connection of its own.

That a server answers proves little: it may have come back as a standby, as an empty new database, as an older copy of
ours, or with its commits waiting for a standby that is gone. Each check reads what would tell, and commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.database.connect import PARTING_S, close, connect_once, next_try
from orchestrator.database.connect_errors import CONNECTION_ERRORS, NoAnswerError, UnreachableError, classify
from orchestrator.database.quoting import identifier
from orchestrator.errors import MigrationError
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle

# Two failed checks in a row are a loss. A server that freezes: 2 s until the next check, which has 1.2 s, then half a
# second, and 1.2 s again: 503 within 5 s.
_EVERY_S = 2.0
_TIMEOUT_S = 1.2
_FAILURES_TO_LOSE = 2
_EVERY_WHEN_FAILING_S = 0.5
_EVERY_WHEN_LOST_S = 1.0
_REPORT_EVERY_S = 30.0

# In WAL, so that the end of the transaction waits for the disk and for synchronous standbys, as every job's end does.
_COMMIT = "SELECT pg_catalog.pg_logical_emit_message(true, 'orchestrator', '')"

# A plain table that we may read: what it takes to read anything else there would run its owner's code.
_IS_READABLE = """
SELECT c.relkind OPERATOR(pg_catalog.=) 'r' AND NOT c.relrowsecurity
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
    ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.text AND c.relname OPERATOR(pg_catalog.=) $2::pg_catalog.text
"""
_UNKNOWN = -1


class Identity(NamedTuple):
    """What tells a database from every other one, and from an older copy of itself: `rows` by ledger, 0 for none.

    -1 is a ledger that is there, and that this role may not read.
    """

    cluster: int
    database: int
    rows: tuple[int, ...]

    def is_succeeded_by(self, other: Identity) -> bool:
        """Whether `other` is the same database, with all that was applied to this one."""
        same = (self.cluster, self.database) == (other.cluster, other.database)
        pairs = zip(self.rows, other.rows, strict=True)
        return same and all(now >= then or _UNKNOWN in {then, now} for then, now in pairs)


async def read_identity(connection: Any, ledgers: Sequence[tuple[str, str]]) -> Identity:
    """The database's identity by its ledgers (schema and table).

    Raises:
        UnreachableError: the server is a standby, or read-only.
    """
    row = await connection.fetchrow(
        "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS cluster,"
        " (SELECT oid::pg_catalog.int8 FROM pg_catalog.pg_database"
        "   WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) AS database,"
        " pg_catalog.pg_is_in_recovery() AS standby,"
        " pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on' AS read_only"
    )
    if row["standby"] or row["read_only"]:
        what = "a read-only standby" if row["standby"] else "read-only"
        raise UnreachableError("read_only", f"The server answers, but it is {what}: nothing can be written.")
    rows = []
    for schema, table in ledgers:
        is_readable = await connection.fetchval(_IS_READABLE, schema, table)
        if is_readable:
            name = f"{identifier(schema)}.{identifier(table)}"
            rows.append(await connection.fetchval(f"SELECT pg_catalog.count(*) FROM {name}"))  # noqa: S608 quoted
        else:
            rows.append(0 if is_readable is None else _UNKNOWN)
    return Identity(row["cluster"], row["database"], tuple(rows))


async def watch_database(
    dsn: Dsn,
    life: Lifecycle,
    ledgers: Sequence[tuple[str, str]],
    known: Identity | None,
    bring_up_again: Callable[[], Awaitable[Identity | None]],
) -> None:
    """Check for ever: lost → CONNECTING (503), back → READY, in this process.

    `known` is what was migrated. Where another database answers, or an older copy of ours, `bring_up_again` is called
    before READY returns. Ends only by cancellation, or by what that raises.

    Raises:
        MigrationError: what was just migrated again is not what answers here.
    """
    watch = _Watch(dsn, life, ledgers, known)
    pause_s = 0.0
    try:
        while True:
            await asyncio.sleep(pause_s)
            try:
                is_ours = await watch.is_ours()
            except CONNECTION_ERRORS as error:
                watch.failed(error)
                pause_s = _pause_s(watch.failures)
                continue
            if not is_ours:
                watch.changed()
                await watch.know_again(await bring_up_again())
                continue
            watch.worked()
            pause_s = _EVERY_S
    finally:
        await watch.close()


class _Watch:
    """The connection of the checks, and what they found."""

    def __init__(self, dsn: Dsn, life: Lifecycle, ledgers: Sequence[tuple[str, str]], known: Identity | None) -> None:
        self._dsn, self._life, self._ledgers = dsn, life, ledgers
        self._connection: Any = None
        self._known = known
        self._is_migrated_again = False
        # Who answered, from the login before: it stays on `/health`.
        self._facts = life.checks["database"].facts if "database" in life.checks else {"server": dsn.redacted()}
        self.failures = 0
        self._lost_at = self._said_at = 0.0

    async def is_ours(self) -> bool:
        """One check: False where it is not the database that was migrated, or an older copy of it."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await connect_once(
                self._dsn, timeout_s=_TIMEOUT_S, application_name="orchestrator monitor"
            )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await read_identity(connection, self._ledgers)
            await self._commits(connection)
        except BaseException:
            connection.terminate()
            raise
        if self._known is not None and not self._known.is_succeeded_by(found):
            if self._is_migrated_again:
                raise MigrationError(
                    "DATABASE_URL leads to another database than the one that was migrated",
                    remedy="Let DATABASE_URL and MIGRATION_DATABASE_URL, and all of their hosts, lead to one database.",
                )
            return False
        self._known, self._is_migrated_again = found, False
        return True

    async def _commits(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await connection.execute(_COMMIT)
        except TimeoutError:
            raise NoAnswerError(
                "the end of a commit",
                "commit_hangs",
                "The server answers, but commits do not finish: its disk is full or slow, or a synchronous standby"
                " is gone.",
            ) from None

    async def know_again(self, migrated: Identity | None) -> None:
        """What was migrated again is what must answer from here on."""
        self._known, self._is_migrated_again = migrated, True
        await self.close()
        self._connection = None
        self._facts = self._life.checks["database"].facts
        self._life.enter(Phase.LAUNCHING)

    def failed(self, error: BaseException) -> None:
        """Count a failed check; the second one in a row is the loss."""
        self._connection = None
        self.failures += 1
        failure, now, life = classify(error), time.monotonic(), self._life
        facts: dict[str, object] = {
            "server": self._dsn.redacted(),
            "cause": failure.cause,
            "sqlstate": failure.sqlstate,
            **failure.told(),
            "hint": failure.hint,
            "failures": self.failures,
        }
        life.check("database", "failed", **facts, **next_try(life, _pause_s(self.failures)))
        if self.failures == _FAILURES_TO_LOSE:
            self._lost_at = self._said_at = now
            life.emit("database.lost", level="error", **facts)
            life.enter(Phase.CONNECTING, reason="database lost")
        elif self.failures > _FAILURES_TO_LOSE and now - self._said_at >= _REPORT_EVERY_S:
            self._said_at = now
            life.emit("database.connect_failed", level="warning", **facts, lost_s=round(now - self._lost_at, 1))
        elif self.failures < _FAILURES_TO_LOSE:
            life.emit("database.check_failed", level="warning", **facts)

    def changed(self) -> None:
        """Say that it is another database, or an older one; 503 from here on."""
        self._life.emit(
            "database.changed",
            level="error",
            server=self._dsn.redacted(),
            hint="Another database answers, or an older copy of the one that was migrated: the start is repeated.",
        )
        self._life.enter(Phase.CONNECTING, reason="database changed")

    def worked(self) -> None:
        """A check succeeded: where it had been lost, it is back."""
        life = self._life
        if life.phase is not Phase.READY:
            if self.failures:
                life.emit("database.restored", lost_s=round(time.monotonic() - self._lost_at, 1))
            life.enter(Phase.READY, reason="database restored")
        self.failures = 0
        life.check("database", "ok", **self._facts)

    async def close(self) -> None:
        """Part from the server; that it is out of reach holds up nothing."""
        if self._connection is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await close(self._connection, timeout_s=PARTING_S)


def _pause_s(failures: int) -> float:
    if failures == 0:
        return _EVERY_S
    return _EVERY_WHEN_FAILING_S if failures < _FAILURES_TO_LOSE else _EVERY_WHEN_LOST_S
