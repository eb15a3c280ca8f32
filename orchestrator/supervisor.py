"""The order of a start and of its end; no other file knows it.

bind HTTP → read folders → connect → lock → extensions → migrations → launch (job server) → READY → watch
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from orchestrator import __version__
from orchestrator.embedded.choice import chosen_database
from orchestrator.errors import DatabaseUnavailableError, MigrationError, OrchestratorError
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from aiohttp.web import Application

    from orchestrator.database.lock import Holding
    from orchestrator.database.monitor import Identity
    from orchestrator.database.starts import Outcome
    from orchestrator.dsn import Dsn
    from orchestrator.jobs.registry import Registry
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.run.losses import Losses
    from orchestrator.migrator.sources import Source
    from orchestrator.settings import Settings

# What is imported late is what `/health` need not wait for.

_AFTER_LOSS_S = 0.5
_POOL_SIZE = 5
_POOL_CLOSE_TIMEOUT_S = 5.0
# What a stop may take, in shares of SHUTDOWN_TIMEOUT: the jobs at most 1.75 times theirs; then the pool, and after it
# the requests in flight, have half of what is left; answers that are being written have the last one, twice at most.
_JOBS_SHARE = 0.45
_LAST_ANSWERS_SHARE = 0.02


async def serve(settings: Settings, life: Lifecycle, *, embedded: bool = False, upgrade_data: bool = False) -> None:
    """Start and serve until cancelled. `/health` answers from the first moment; nothing else before READY.

    Cancelled in any phase it unwinds in the reverse order: work in a transaction is rolled back, the lock released,
    requests in flight finish, or are cancelled, within `SHUTDOWN_TIMEOUT`.

    Raises:
        OrchestratorError: the start failed and must not serve; its class knows the exit code.
    """
    from orchestrator.api.app import build_app, watching
    from orchestrator.api.backend import Backend
    from orchestrator.api.security import Safety
    from orchestrator.api.server import listening, url_of
    from orchestrator.notifications import notifying

    backend, life.instance = Backend(Safety.of(settings)), settings.instance_name
    app, last_s = build_app(life, backend), settings.shutdown_timeout_s * _LAST_ANSWERS_SHARE
    async with (
        listening(
            app,
            life,
            host=settings.host,
            port=settings.port,
            port_file=settings.port_file,
            shutdown_timeout_s=last_s,
        ) as port,
        notifying(settings.notify_urls, life, after_s=settings.notify_after_s),
        _failure_shown(life, settings.failed_hold_s),
    ):
        await asyncio.to_thread(_import_what_comes_next)
        from orchestrator.migrator.sources import read_sources

        sources = await asyncio.to_thread(read_sources, settings)
        if settings.backup_dir is not None:
            from orchestrator.jobs.schedule_monitor import try_backup_directory  # before the night shows it

            await try_backup_directory(settings.backup_dir, life)
        async with chosen_database(settings, life, embedded=embedded, upgrade_data=upgrade_data) as (given, migrating):
            # One decision of where, for the migrations, the pool, the jobs and the monitor: jobs are written.
            migration_dsn = migrating.with_role("read-write")
            migrated = await _bring_up(settings, migration_dsn, sources, life, command="serve")
            life.enter(Phase.LAUNCHING)
            registry = await _handlers_loaded(settings, app)
            dsn = (
                migration_dsn if given == migrating else await _other_way(settings, given.with_role("read-write"), life)
            )
            async with (
                _pool(dsn, settings, life) as pool,  # after the DDL: no stale plans or OIDs
                _job_server(dsn, migration_dsn, settings, sources, registry, life) as (jobs, working),
            ):
                backend.pool, backend.sources = pool, sources
                backend.policy, backend.ahead = settings.migration_policy, settings.migration_ahead
                backend.registry, backend.jobs = registry, jobs
                async with watching(backend, dsn, life, settings.backup_dir) as tasks:
                    life.enter(Phase.READY)
                    life.emit(
                        "service.ready",
                        url=url_of(settings.host, port),
                        startup_s=round(life.uptime_s, 3),
                        migrations_applied=life.migrations.applied_now,
                    )
                    await _record(pool, life, command="serve", outcome="ready")
                    await _while_they_work(
                        [working, *tasks], _watch(dsn, migration_dsn, settings, sources, migrated, life)
                    )


@asynccontextmanager
async def _failure_shown(life: Lifecycle, hold_s: float) -> AsyncIterator[None]:
    """Enter FAILED while HTTP still answers, and stay for `hold_s`: whoever looks learns why the start ended.

    Everything else has ended by then: no session is open, no lock held. A signal ends the wait, with the same outcome.
    """
    try:
        yield
    except OrchestratorError as error:
        if life.phase not in {Phase.STOPPING, Phase.STOPPED, Phase.FAILED}:
            facts = error.described() | ({"exits_in_s": hold_s} if hold_s else {})
            life.fail(**facts)
            if hold_s:
                life.emit("service.failed", level="error", **facts)
                with contextlib.suppress(asyncio.CancelledError):  # the error goes on instead
                    await asyncio.sleep(hold_s)
        raise


async def migrate_once(settings: Settings, life: Lifecycle, *, embedded: bool = False) -> None:
    """The one-shot: wait, lock, extensions, migrate. Errors as in `serve`."""
    from orchestrator.migrator.sources import read_sources

    sources = await asyncio.to_thread(read_sources, settings)
    # The login is mostly waiting: what comes after it is loaded meanwhile.
    loading = asyncio.create_task(asyncio.to_thread(_import_what_migrates))
    async with chosen_database(settings, life, embedded=embedded) as (_, migration_dsn):
        await _bring_up(settings, migration_dsn, sources, life, command="migrate")
    await loading
    life.enter(Phase.STOPPED)


def _import_what_comes_next() -> None:
    """Load what the phases after this one need, in a thread: the loop answers `/health` meanwhile."""
    import orchestrator.database.connect
    import orchestrator.database.monitor
    import orchestrator.migrator.run.apply  # noqa: F401


def _import_what_migrates() -> None:
    import orchestrator.database.extensions
    import orchestrator.database.lock
    import orchestrator.migrator.run.apply
    import orchestrator.migrator.run.options  # noqa: F401


def _connect_options(settings: Settings, command: str) -> dict[str, Any]:
    return {
        "wait_timeout_s": settings.db_wait_timeout_s,
        "application_name": f"orchestrator {command}",
    }


async def _bring_up(
    settings: Settings, dsn: Dsn, sources: Sequence[Source], life: Lifecycle, *, command: str
) -> Identity | None:
    """CONNECTING to MIGRATING, again from the start where the connection is lost on the way.

    Returns what tells the database that was migrated from others; None but for `serve`.
    """
    from orchestrator.database.connect import connected
    from orchestrator.database.connect_errors import StandbyError, is_connection_loss
    from orchestrator.migrator.run.losses import Losses

    losses, limit_s, waited_s = Losses(), settings.db_wait_timeout_s, 0.0
    held: list[Holding] = []
    while True:
        life.enter(Phase.CONNECTING)
        began, applied = time.monotonic(), life.migrations.applied_now
        options = _connect_options(settings, command)
        if limit_s:
            options["wait_timeout_s"] = limit_s - waited_s
        try:
            async with connected(dsn, life, **options, kind="migration") as connection:
                waited_s += time.monotonic() - began
                return await _under_the_lock(connection, settings, dsn, sources, life, losses, held, command=command)
        except StandbyError:
            # Waits for a primary from here on, among all hosts of the DSN, or for this one to be promoted.
            dsn = dsn.with_role("read-write")
            life.emit(
                "database.standby_found",
                level="warning",
                server=dsn.redacted(),
                hint="The server is a read-only standby, and migrations are pending: waiting for the primary.",
            )
        except Exception as error:
            if not is_connection_loss(error):
                raise _explained(error) from error
            life.emit(
                "database.lost",
                level="warning",
                server=dsn.redacted(),
                during=str(life.phase),
                migration=life.migrations.current,
                error=type(error).__name__,
                hint="The connection was lost; what was in a transaction is rolled back. Trying again from the start.",
            )
            life.migrations.current = None
            await asyncio.sleep(_AFTER_LOSS_S)
            # Rounds that lead nowhere are one wait.
            waited_s = waited_s + _AFTER_LOSS_S if life.migrations.applied_now == applied else 0.0
            if limit_s and waited_s >= limit_s:
                raise DatabaseUnavailableError(
                    f"the connection to {dsn.redacted()} was lost repeatedly: {waited_s:.0f} s were spent on"
                    f" waiting for the database, and DB_WAIT_TIMEOUT is {limit_s:g} s",
                    remedy="Look at the server's log, and at whatever is between here and the server; or raise"
                    " DB_WAIT_TIMEOUT.",
                ) from error


async def _under_the_lock(
    connection: Any,
    settings: Settings,
    dsn: Dsn,
    sources: Sequence[Source],
    life: Lifecycle,
    losses: Losses,
    held: list[Holding],
    *,
    command: str,
) -> Identity | None:
    """LOCKING, EXTENSIONS, MIGRATING, and a row that tells how it went."""
    from orchestrator.database.connect import connect_once
    from orchestrator.database.extensions import ensure_extensions
    from orchestrator.database.lock import migration_lock
    from orchestrator.migrator.run.apply import migrate
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.state import refuse_before_writing

    options = Options.of(settings)

    async def connect_second() -> Any:
        """One more session on the same server, for what the one that migrates cannot see of itself."""
        return await connect_once(dsn, application_name=f"orchestrator {command} watch")

    life.enter(Phase.LOCKING)
    async with migration_lock(
        connection, life, timeout_s=settings.migration_lock_timeout_s, connect_second=connect_second, held=held
    ):
        life.enter(Phase.EXTENSIONS)
        backup = None
        await refuse_before_writing(connection, sources)
        try:
            if settings.backup_before_migrate != "never":
                from orchestrator.migrator.safety_backup import back_up_first  # late: few starts make one

                backup = await back_up_first(connection, dsn, settings, sources, life)
            await ensure_extensions(connection, settings.extensions, life)
            life.enter(Phase.MIGRATING)
            await migrate(connection, sources, options, life, connect_second=connect_second, losses=losses)
        except MigrationError as error:
            if settings.backup_dir is not None:
                from orchestrator.migrator.safety_backup import (  # late: for a start that fails
                    keep_record,
                    offer_way_back,
                )

                await keep_record(connection, backup, life)
                await offer_way_back(error, connection, settings, sources)
            await _record(connection, life, command=command, outcome="failed", error=error)
            raise
        if backup is not None:
            from orchestrator.migrator.safety_backup import keep_record

            await keep_record(connection, backup, life)
        serving = None if settings.database is None else settings.database.user
        if serving is not None and serving != dsn.user:
            from orchestrator.migrator.grants import grant_to_server  # late: most have one role for both

            await grant_to_server(connection, serving, sources, life)
        life.emit("migrations.completed", applied=life.migrations.applied_now, total=life.migrations.total)
        if command == "migrate":
            await _record(connection, life, command=command, outcome="migrated")
            return None
        from orchestrator.database.monitor import read_identity

        return await read_identity(connection, _ledgers(sources))


def _explained(error: Exception) -> Exception:
    """An error of the server outside of any migration file, as one of ours; anything else as it is."""
    import asyncpg

    from orchestrator.database.connect_errors import POOLER_SQLSTATES
    from orchestrator.database.pooler import PoolerError

    if isinstance(error, asyncpg.PostgresError):
        if error.sqlstate in POOLER_SQLSTATES:
            return PoolerError("a statement that was prepared in one transaction is gone in the next")
        advice = "Fix what it names"
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            advice = "Grant the user of DATABASE_URL what it lacks, or give MIGRATION_DATABASE_URL a user that has it"
        return MigrationError(
            f"the server refused a step before the migrations: {error} (SQLSTATE {error.sqlstate})",
            remedy=f"{advice}; then start again; no migration was run.",
            facts={"sqlstate": error.sqlstate},
        )
    if isinstance(error, OSError) and error.filename is not None:
        return MigrationError(
            f"a file of the migrations cannot be read: {error.filename}: {error.strerror}",
            remedy="Mount the folder of the migrations again, and let this user read it; then start again.",
            facts={"path": str(error.filename)},
        )
    return error


async def _other_way(settings: Settings, dsn: Dsn, life: Lifecycle) -> Dsn:
    """Where the migrations went by MIGRATION_DATABASE_URL: no READY before DATABASE_URL itself has answered.

    That there are two is often because of a pooler in transaction mode: such a one is used without prepared statements,
    as `?pgbouncer=true` asks for, also where nobody has said so.
    """
    from orchestrator.database.connect import connect_once, connected
    from orchestrator.database.pooler import PoolerError, ensure_own_session

    async def connect_second() -> Any:
        return await connect_once(dsn, application_name="orchestrator serve watch")

    async with connected(dsn, life, **_connect_options(settings, "serve")) as connection:
        if not dsn.statement_cache:
            return dsn
        try:
            await ensure_own_session(connection, connect_second)
        except PoolerError:
            life.emit(
                "database.pooler_found",
                level="warning",
                server=dsn.redacted(),
                hint="A pooler in transaction mode was found: no statement is prepared, and workers cannot listen"
                " but poll twice"
                " a second. Add ?pgbouncer=true to DATABASE_URL to say so.",
            )
            return dsn.changed(statement_cache=False)
    return dsn


@asynccontextmanager
async def _pool(dsn: Dsn, settings: Settings, life: Lifecycle) -> AsyncIterator[Any]:
    """Connections for requests, made as they are needed: a database that blinks here does not end the start."""
    from orchestrator.database.connect import open_pool

    pool = await open_pool(
        dsn,
        kind="ours",
        max_size=_POOL_SIZE,
        application_name="orchestrator",
        silence_s=settings.jobs_lease_s / 3,
    )
    try:
        yield pool
    finally:
        # `close` waits for ever on a connection in use.
        try:
            async with asyncio.timeout(min(_POOL_CLOSE_TIMEOUT_S, life.stop_left_s / 2)):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _handlers_loaded(settings: Settings, app: Application) -> Registry:
    from orchestrator.threads import DaemonThreads

    # asyncio waits for the threads of its own executor as it ends: a module that hangs at import would hold a stop.
    return await asyncio.get_running_loop().run_in_executor(DaemonThreads(), _load_handlers, settings, app)


def _load_handlers(settings: Settings, app: Application) -> Registry:
    """Import the job server, the API, and the modules of JOBS, in a thread: `/health` answers meanwhile."""
    from orchestrator.api.app import load_routes
    from orchestrator.jobs.builtin import without_idle_schedules
    from orchestrator.jobs.registry import load

    load_routes(app)
    return without_idle_schedules(load(settings.jobs), settings)


def _job_server(
    dsn: Dsn,
    migration_dsn: Dsn,
    settings: Settings,
    sources: Sequence[Source],
    registry: Registry,
    life: Lifecycle,
) -> Any:
    from orchestrator.jobs.context import Service
    from orchestrator.jobs.server import job_server
    from orchestrator.redaction import redactor

    return job_server(
        dsn,
        registry,
        life,
        concurrency=settings.jobs_concurrency,
        lease_s=settings.jobs_lease_s,
        stop_timeout_s=settings.shutdown_timeout_s * _JOBS_SHARE,
        redact=redactor(settings.secrets),
        service=Service(settings, migration_dsn, sources),
    )


async def _while_they_work(working: Sequence[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Do `work` while the job server and its watchers live: a bug that ends one of them ends the process, loudly."""
    doing = asyncio.create_task(work)
    try:
        await asyncio.wait({doing, *working}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*working, doing):
            if task.done():
                task.result()
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def _watch(
    dsn: Dsn,
    migration_dsn: Dsn,
    settings: Settings,
    sources: Sequence[Source],
    migrated: Identity | None,
    life: Lifecycle,
) -> None:
    from orchestrator.database.monitor import watch_database

    async def bring_up_again() -> Identity | None:
        return await _bring_up(settings, migration_dsn, sources, life, command="serve")

    await watch_database(dsn, life, _ledgers(sources), migrated, bring_up_again)


def _ledgers(sources: Sequence[Source]) -> list[tuple[str, str]]:
    return [(source.table.schema, source.table.table) for source in sources]


async def _record(
    connection: Any, life: Lifecycle, *, command: str, outcome: Outcome, error: OrchestratorError | None = None
) -> None:
    """Keep a row of this start, where there is a table for it."""
    from orchestrator.database.starts import Start, record_start

    start = Start(
        started_at=life.now() - life.uptime_s,
        version=__version__,
        command=command,
        phases_s=life.durations_s(),
        migrations_applied=life.migrations.applied_now,
        outcome=outcome,
        error=None if error is None else life.clean({"message": error.message, **error.facts}),
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            if not await record_start(connection, start):
                life.emit("start.not_recorded", level="debug")
