"""Connect to Postgres and wait for it: one try, and the retry that ends in a session or an error.

A real login costs a few CPU milliseconds, so between logins a bare TCP connect is tried: a database that comes up is
noticed at once, and waiting for hours costs next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from orchestrator.database.addresses import look_up
from orchestrator.database.connect_errors import CONNECTION_ERRORS, Failure, NoAnswerError, OwnFaultError, classify
from orchestrator.database.dial import dial
from orchestrator.database.outage import Outage
from orchestrator.database.sessions import USER_TIMEOUT_MS, Connection
from orchestrator.errors import (
    ConfigurationError,
    ConnectionRefusedForeverError,
    DatabaseUnavailableError,
    OrchestratorError,
)
from orchestrator.lifecycle import Lifecycle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    import tenacity

    from orchestrator.database.sessions import Kind
    from orchestrator.dsn import Dsn

T = TypeVar("T")

OLDEST_SERVER = 14
_PROBE_EVERY_S = 0.047
_PROBE_TIMEOUT_S = 0.5
_RESOLVE_EVERY_S = 1.0
_LOOK_UP_S = 2.0
_RESOLVE_AGAIN_S = 0.1  # a look-up that fails is a thread and two packets: rarer than a probe
_REPLACED_WITHIN_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
_RELEASE_S = 1.0
_OWN_WAIT_TIMEOUT_S = 10.0
# For a session that only reads: at a stop, with the server out of reach, each of them counts.
PARTING_S = 0.2
_FIRST_WITH_TRANSACTION_TIMEOUT = 17


async def connect_once(
    dsn: Dsn,
    *,
    application_name: str,
    timeout_s: float | None = None,
    kind: Kind = "ours",
    prepares: bool = False,
    silence_s: float = USER_TIMEOUT_MS / 1000,
) -> Any:
    """One login, as a session of the kind (see `sessions`), with TCP keep-alive on both sides.

    It has no cache of prepared statements (poolers) unless it `prepares`. Every session of this program but the first
    one of an embedded server is opened here. A peer that vanished without a word is noticed after about `silence_s`.

    `timeout_s` is for each address of each host; None is what the DSN says. Files (DATABASE_URL_FILE, certificates)
    are read anew each time.

    Raises CONNECTION_ERRORS; ConnectionRefusedForeverError for a server older than 14; cancelling closes the socket.
    """
    try:
        dsn = dsn.current()
    except ConfigurationError as error:
        raise OwnFaultError("file", str(error), error.remedy) from error
    if timeout_s is None:
        timeout_s = dsn.connect_timeout_s
    connection = await dial(
        dsn, limit_s=timeout_s, application_name=application_name, prepares=prepares, silence_s=silence_s
    )
    try:
        _refuse_an_old_server(connection, dsn)
        async with asyncio.timeout(timeout_s):
            await connection.become(kind, may_be_shared=not dsn.statement_cache)
    except TimeoutError:
        connection.terminate()
        raise _no_first_answer() from None
    except BaseException:
        connection.terminate()
        raise
    return connection


def _no_first_answer() -> NoAnswerError:
    return NoAnswerError(
        "an answer to the first query",
        "no_answer",
        "The login succeeded, and the first query got no answer within DB_CONNECT_TIMEOUT: a pooler that is paused, or"
        " a server that is frozen.",
    )


def _refuse_an_old_server(connection: Any, dsn: Dsn) -> None:
    if connection.get_server_version().major >= OLDEST_SERVER:
        return
    named = connection.get_settings().server_version
    raise ConnectionRefusedForeverError(
        f"the server is PostgreSQL {named}; {OLDEST_SERVER} or newer is needed",
        remedy=f"Upgrade the server to PostgreSQL {OLDEST_SERVER} or newer (pg_upgrade, or dump and restore).",
        facts={"hosts": [f"{h}:{p}" for h, p in dsn.hosts], "server_version": named},
    )


class _Pool(asyncpg.Pool):  # type: ignore[misc] # asyncpg has no types
    """A pool to which a connection is given back within `_RELEASE_S`, or is cut.

    asyncpg waits without a bound for the end of a statement that was cancelled: for ever, where the connection was
    dropped in silence, and a stop then waits for it, too.
    """

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 asyncpg's
        """As asyncpg's; a connection that does not come back is terminated, and that is no error."""
        with contextlib.suppress(TimeoutError):
            await super().release(connection, timeout=_RELEASE_S if timeout is None else timeout)


async def open_pool(
    dsn: Dsn,
    *,
    kind: Kind,
    max_size: int,
    application_name: str,
    silence_s: float = USER_TIMEOUT_MS / 1000,
) -> Any:
    """A pool of such sessions, made as they are needed; a session that is given back has its kind's settings again."""

    async def connect_one(*_: object, **__: object) -> Any:
        return await connect_once(
            dsn,
            application_name=application_name,
            kind=kind,
            prepares=dsn.statement_cache,
            silence_s=silence_s,
        )

    return await _Pool(
        connect=connect_one,
        connection_class=Connection,
        record_class=asyncpg.Record,
        min_size=0,
        max_size=max_size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        loop=asyncio.get_running_loop(),
    )


def no_time_limits(connection: Any) -> str:
    """SQL that lets no setting of role or database end the session, however long it works, or waits for other work.

    For a session that is ours alone: where a pooler shares it, others would get the settings.
    """
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
    if connection.get_server_version().major >= _FIRST_WITH_TRANSACTION_TIMEOUT:
        names.append("transaction_timeout")
    return "; ".join(f"SET {name} = 0" for name in names)


async def close(connection: Any, *, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
    """Close politely within `timeout_s`, else cut. Never raises but for cancellation."""
    if connection.is_closed():
        return
    try:
        await connection.close(timeout=timeout_s)
    except CONNECTION_ERRORS:
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise


def next_try(life: Lifecycle, retry_in_s: float) -> dict[str, object]:
    """When the next login is tried, at the latest: a probe may find a listener before, and tries at once."""
    at = datetime.fromtimestamp(life.now() + retry_in_s, UTC)
    return {
        "retry_in_s": round(retry_in_s, 2),
        "next_try_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


async def answered(connection: Any, work: Awaitable[T], *, stage: str, limit_s: float) -> T:
    """What `work` on the connection comes to, where that is a matter of moments; a server that is silent is cut off.

    Raises:
        NoAnswerError: it took longer than `limit_s`: the server is frozen, or a pooler is paused.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await cut_when_cancelled(connection, work)
    except TimeoutError:
        hint = f"The server accepted the session, and has not answered for {limit_s:g} s: it is frozen, or a pooler is."
        raise NoAnswerError(stage, "no_answer", hint) from None


async def cut_when_cancelled(connection: Any, work: Awaitable[T]) -> T:
    """Do `work` on `connection`; a cancellation cuts the connection first.

    What asyncpg does on a cancellation (a request to cancel, a ROLLBACK) waits without a bound for a server that may be
    out of reach.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait([working])
    except asyncio.CancelledError:
        connection.terminate()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise
    return working.result()


class _Reporter:
    """Says the first failure, each change of cause, and one line every 30 s; nothing else."""

    def __init__(self, dsn: Dsn, life: Lifecycle) -> None:
        self._dsn, self._life = dsn, life
        self._outage = Outage()
        self._since = time.monotonic()

    def failed(self, failure: Failure, attempt: int, *, retry_in_s: float) -> None:
        self._life.connect_attempts += 1
        facts = {
            "hosts": [f"{host}:{port}" for host, port in self._dsn.hosts],
            "cause": failure.cause,
            "sqlstate": failure.sqlstate,
            **failure.told(),
            "attempt": attempt,
            "waited_s": round(time.monotonic() - self._since, 1),
            "hint": failure.hint,
        }
        self._life.check("database", "failed", **facts, **next_try(self._life, retry_in_s))
        if self._outage.failed(failure):
            loud = failure.outlook == "ambiguous"
            self._life.emit("database.connect_failed", level="error" if loud else "warning", **facts)


def _wait_s(failure: Failure, attempt: int, waited_s: float) -> float:
    """Seconds until the next login at the latest: the back-off formula, apart from the sleeping."""
    if failure.outlook == "ambiguous":
        return min(5.0, 0.5 * 1.5 ** min(attempt, 10))  # a login with a password is costly, and the server logs each
    if failure.cause in {"refused", "no_socket", "name_not_resolved", "unreachable"}:
        return 5.0  # the probe ends the wait as soon as something listens
    if failure.cause in {"starting_up", "stopping", "closed"}:
        return 0.05 if waited_s < 5 else 0.25  # noqa: PLR2004 a quick restart is noticed at once, a long recovery soon
    return 0.5


async def connect(
    dsn: Dsn,
    life: Lifecycle,
    *,
    wait_timeout_s: float,
    application_name: str,
    kind: Kind = "ours",
) -> Any:
    """Log in, retrying for `wait_timeout_s` (0 = for ever); returns the connection.

    Raises:
        DatabaseUnavailableError: the time is over (exit 69).
        ConnectionRefusedForeverError: no retry can help: a refused parameter, a server older than 14 (exit 78).
    """
    login = _Login(dsn, life, wait_timeout_s, application_name, kind)
    try:
        return await login.attempt()
    except CONNECTION_ERRORS as error:
        login.failed = error
    import tenacity  # late: it costs 5 ms, and most logins succeed at once

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(login.is_worth_retrying),
        wait=login.wait_s,
        stop=login.is_late,
        sleep=login.wait,
        before_sleep=login.report,
        reraise=True,
    )
    try:
        return await retrying(login.attempt)
    except CONNECTION_ERRORS as error:
        raise _given_up(error, login.last, dsn, wait_timeout_s) from error


class _Login:
    """The tries to log in: what the last failure was, how long is left. `failed` is told as the next attempt's end."""

    def __init__(
        self,
        dsn: Dsn,
        life: Lifecycle,
        wait_timeout_s: float,
        application_name: str,
        kind: Kind,
    ) -> None:
        self._dsn, self._life, self._application_name, self._kind = dsn, life, application_name, kind
        self._reporter, self._prober = _Reporter(dsn, life), _Prober(dsn)
        self._began = time.monotonic()
        self._deadline = self._began + wait_timeout_s if wait_timeout_s else None
        self._attempts, self._cut_short = 0, False
        self._own_fault_at: float | None = None
        self.last = Failure("none", "transient", "")
        self.failed: BaseException | None = None

    async def attempt(self) -> Any:
        """One login, and the proof that the server serves."""
        if self.failed is not None:
            error, self.failed = self.failed, None
            raise error
        timeout_s = self._dsn.connect_timeout_s
        if self._deadline is not None:
            left_s = max(0.05, self._deadline - time.monotonic())
            timeout_s, self._cut_short = min(timeout_s, left_s), left_s < timeout_s
        connection = await connect_once(
            self._dsn, timeout_s=timeout_s, application_name=self._application_name, kind=self._kind
        )
        try:
            waited_s = time.monotonic() - self._began
            async with asyncio.timeout(timeout_s):
                await _greet(connection, self._dsn, self._life, attempt=self._attempts + 1, waited_s=waited_s)
        except TimeoutError:
            connection.terminate()
            raise _no_first_answer() from None
        except BaseException:
            connection.terminate()
            raise
        return connection

    def is_worth_retrying(self, error: BaseException) -> bool:
        """Whether waiting can help; remembers the failure."""
        if not isinstance(error, CONNECTION_ERRORS):
            return False
        failure = classify(error)
        self._attempts += 1
        # The deadline's own cut says nothing about the server: the cause that was known before it does.
        if self._attempts == 1 or not (self._cut_short and failure.cause in {"timeout", "no_answer"}):
            self.last = failure
        if isinstance(error, OwnFaultError) and self._attempts > 1:
            # Files that were right a moment ago are being replaced: certificate and key come one after the other.
            self._own_fault_at = self._own_fault_at or time.monotonic()
            return time.monotonic() - self._own_fault_at < _REPLACED_WITHIN_S
        self._own_fault_at = None
        return failure.outlook != "hopeless"

    def report(self, state: tenacity.RetryCallState) -> None:
        """Say that it failed, where that is news."""
        self._reporter.failed(self.last, state.attempt_number, retry_in_s=state.upcoming_sleep)

    def wait_s(self, state: tenacity.RetryCallState) -> float:
        """Seconds until the next login, the deadline in mind."""
        wanted = _wait_s(self.last, state.attempt_number, time.monotonic() - self._began)
        return wanted if self._deadline is None else max(0.0, min(wanted, self._deadline - time.monotonic()))

    async def wait(self, seconds: float) -> None:
        """Wait; where nothing listens, only until something does."""
        if self.last.cause in {"refused", "no_socket", "name_not_resolved", "unreachable"}:
            await self._prober.wait_for_listener(seconds)
        else:
            await asyncio.sleep(seconds)

    def is_late(self, _: tenacity.RetryCallState) -> bool:
        """Whether `DB_WAIT_TIMEOUT` is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline


def _given_up(error: BaseException, failure: Failure, dsn: Dsn, wait_timeout_s: float) -> OrchestratorError:
    """What `connect` ends with: no retry can help, or the time is over."""
    facts: dict[str, object] = {
        "hosts": [f"{h}:{p}" for h, p in dsn.hosts],
        "cause": failure.cause,
        "sqlstate": failure.sqlstate,
        **failure.told(),
    }
    if isinstance(error, OwnFaultError):
        return ConnectionRefusedForeverError(
            f"nothing can connect from here ({failure.cause}): {failure.words}", remedy=failure.hint, facts=facts
        )
    if failure.outlook == "hopeless":
        detail = f": {failure.words}" if failure.words else ""
        return ConnectionRefusedForeverError(
            f"the database refuses the connection ({failure.cause}){detail}", remedy=failure.hint, facts=facts
        )
    return DatabaseUnavailableError(
        f"no usable database at {dsn.redacted()} within {wait_timeout_s:g} s (last: {failure.cause})",
        # What is refused stays so, however long one waits.
        remedy=failure.hint if failure.outlook == "ambiguous" else f"{failure.hint} Or raise DB_WAIT_TIMEOUT.",
        facts=facts,
    )


async def _greet(connection: Any, dsn: Dsn, life: Lifecycle, *, attempt: int, waited_s: float) -> None:
    """Ask the server who it is: a real query through a real login is the only proof that it serves."""
    row = await connection.fetchrow(
        "SELECT pg_catalog.current_database()::text AS database, current_user::text AS username,"
        " pg_catalog.pg_is_in_recovery() AS standby, pg_catalog.current_setting('server_version') AS version"
    )
    facts = {
        "server": dsn.redacted(),
        "database": row["database"],
        "user": row["username"],
        "server_version": row["version"],
        "standby": row["standby"],
    }
    life.check("database", "ok", **facts)
    life.emit("database.connected", **facts, attempt=attempt, waited_s=round(waited_s, 3))


class _Prober:
    """Tries bare TCP (or Unix) connects to all hosts until one is accepted."""

    def __init__(self, dsn: Dsn) -> None:
        self._dsn = dsn
        self._addresses: list[tuple[int, Any]] = []
        self._resolved_at = -_RESOLVE_EVERY_S

    async def wait_for_listener(self, seconds: float) -> None:
        """Return when something listens on one of the hosts, or after `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            await asyncio.sleep(min(_PROBE_EVERY_S, max(0.0, deadline - loop.time())))
            if loop.time() >= deadline:
                return
            for family, address in await self._resolve():
                if await _accepts(family, address):
                    return

    async def _resolve(self) -> list[tuple[int, Any]]:
        loop = asyncio.get_running_loop()
        if loop.time() - self._resolved_at < (_RESOLVE_EVERY_S if self._addresses else _RESOLVE_AGAIN_S):
            return self._addresses
        addresses: list[tuple[int, Any]] = []
        for host, port in self._dsn.hosts:
            if host.startswith("/"):
                addresses.append((socket.AF_UNIX, f"{host}/.s.PGSQL.{port}"))
                continue
            with contextlib.suppress(socket.gaierror, NoAnswerError):
                found = await look_up(host, port, limit_s=_LOOK_UP_S)
                addresses += [(address.family, address.at) for address in found]
        self._addresses, self._resolved_at = addresses, loop.time()
        return addresses


async def _accepts(family: int, address: Any) -> bool:
    try:
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError:  # no such family here, or no descriptor: the login itself says which
        return False
    with opened as probe:
        probe.setblocking(False)  # noqa: FBT003 the standard library's signature
        error = probe.connect_ex(address)
        if error == errno.EINPROGRESS:
            # A near host has answered by now; the loop's way of waiting costs three times as much as the connect.
            if not _is_writable_now(probe):
                try:
                    async with asyncio.timeout(_PROBE_TIMEOUT_S):
                        await _until_writable(probe)
                except TimeoutError:
                    return False
            error = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error == 0


def _is_writable_now(probe: socket.socket) -> bool:
    poll = select.poll()
    poll.register(probe, select.POLLOUT)
    return bool(poll.poll(0))


async def _until_writable(probe: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(probe, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(probe)


@asynccontextmanager
async def connected(dsn: Dsn, life: Lifecycle, **options: Any) -> AsyncIterator[Any]:
    """`connect`, and the connection closed at the end whatever happens; see there for options and errors."""
    connection = await connect(dsn, life, **options)
    try:
        yield connection
    finally:
        await close(connection)


@asynccontextmanager
async def own_session(dsn: Dsn, *, application_name: str) -> AsyncIterator[Any]:
    """`connected`, unseen on `/health` or in the log: for work on a server that has just answered. Bounded."""
    life = Lifecycle(now=lambda: 0.0, monotonic=lambda: 0.0)
    options = {"wait_timeout_s": _OWN_WAIT_TIMEOUT_S, "application_name": application_name}
    async with connected(dsn, life, **options) as connection:
        yield connection
