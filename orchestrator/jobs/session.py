"""Connections of the job server's own, made again whenever they are lost. Touches the database.

One each for claiming (which listens), for finishing, for taking over, and for schedules: none of them waits for
another, or for the pool of requests. The lease has one in `lease`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect import close, connect_once, cut_when_cancelled
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify, is_connection_loss
from orchestrator.database.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.dsn import Dsn

# A plan is made once and kept, and the tables grow from nothing to millions of rows: no plan may depend on their size.
# Kept by force: for arrays, a plan of their own length looks cheaper to the server each time, and making it costs more
# than running it.
_PLANNER = (
    "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
    " SET jit = off; SET plan_cache_mode = force_generic_plan"
)
_LIMIT_LEAST_S, _LIMIT_MOST_S = 1.0, 30.0
_SETTLED_S = 0.5
_WAIT_LEAST_S = 0.05
_WAIT_MOST_S = 1.0


def limit_of(lease_s: float) -> float:
    """Seconds that a statement may take, for a connection that is silent to be replaced within a third of the lease."""
    return min(_LIMIT_MOST_S, max(_LIMIT_LEAST_S, lease_s / 6))


class Session:
    """One connection, whose statements are prepared once; behind a pooler (`statement_cache` off) they are not."""

    def __init__(self, connection: Any, *, direct: bool, limit_s: float) -> None:
        self._connection, self._limit_s = connection, limit_s
        self._prepared: dict[str, Any] = {}
        self.direct = direct

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        """All rows; TimeoutError where the server is silent for longer than the session's limit."""
        if not self.direct:
            return list(await self._connection.fetch(statement, *arguments, timeout=self._limit_s))
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = await self._connection.prepare(statement, timeout=self._limit_s)
        return list(await prepared.fetch(*arguments, timeout=self._limit_s))

    @property
    def connection(self) -> Any:
        """The asyncpg connection, for transactions."""
        return self._connection

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Call `heard` with each payload. Behind a pooler nothing is heard: whoever waits polls as well."""
        if self.direct:
            await self._connection.add_listener(channel, lambda *heard_of: heard(heard_of[3]))


def _limits(limit_s: float) -> str:
    names = {"statement_timeout": 0.75, "idle_in_transaction_session_timeout": 1.0}
    return "; ".join(f"SET {name} = {int(limit_s * share * 1000)}" for name, share in names.items())


async def keep_session(
    dsn: Dsn,
    work: Callable[[Session], Awaitable[None]],
    *,
    purpose: str,
    limit_s: float,
    emit: Callable[..., None],
    lost: Callable[[], None] | None = None,
    asynchronous_commit: bool = False,
) -> None:
    """Run `work` on a session until it returns; on a loss, again on a new one, for ever. Ends by cancellation as well.

    A statement may take three quarters of `limit_s` by the server's clock (where something is locked, it is cancelled
    and leaves no session behind that waits), and all of it by ours. A transaction that is left open, by a process that
    is stopped for one, ends after `limit_s`.

    `lost` is called as soon as the server or the network has closed the connection, also while nothing is asked.
    """
    outage = Outage(least_s=_WAIT_LEAST_S, most_s=_WAIT_MOST_S)

    def settled() -> None:
        if failures := outage.over():
            emit("jobs.connection_restored", level="info", purpose=purpose, failures=failures)

    while True:
        settling: asyncio.TimerHandle | None = None
        try:
            connection = await connect_once(
                dsn,
                application_name=f"orchestrator {purpose}",
                silence_s=2 * limit_s,
            )
            try:
                if lost is not None:
                    connection.add_termination_listener(lambda _, tell=lost: tell())
                direct = dsn.statement_cache
                if direct:
                    await connection.execute(f"{_PLANNER}; {_limits(limit_s)}", timeout=limit_s)
                    if asynchronous_commit:
                        await connection.execute("SET synchronous_commit = off")
                # Not before the work has gone on for a while: at a database that lacks our tables each round fails.
                settling = asyncio.get_running_loop().call_later(_SETTLED_S, settled)
                await cut_when_cancelled(connection, work(Session(connection, direct=direct, limit_s=limit_s)))
            except BaseException:
                # A good-bye would wait for a server that may be out of reach.
                connection.terminate()
                raise
            finally:
                if settling is not None:
                    settling.cancel()
            await close(connection)
        except CONNECTION_ERRORS as error:
            failure = classify(error)
            of_statement = isinstance(error, asyncpg.PostgresError) and not is_connection_loss(error)
            name = "jobs.statement_failed" if of_statement else "jobs.connection_lost"
            if outage.failed(failure):
                emit(
                    name,
                    level="error" if of_statement else "warning",
                    purpose=purpose,
                    cause=failure.cause,
                    sqlstate=failure.sqlstate,
                    error=f"{type(error).__name__}: {error}" if of_statement else type(error).__name__,
                    hint="Trying again until it succeeds; nothing is lost.",
                )
            await asyncio.sleep(outage.wait_s)
        else:
            return
