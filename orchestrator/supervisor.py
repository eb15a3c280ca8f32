"""The order of a start, and of its end: the only file that knows it.

bind HTTP → read folders → connect → lock → extensions → migrations → launch (job server) → READY → watch
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator import __version__
from orchestrator.errors import MigrationError, OrchestratorError
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence
    from pathlib import Path

    from orchestrator.api.app import Backend
    from orchestrator.database.starts import Outcome
    from orchestrator.dsn import Dsn
    from orchestrator.jobs.registry import Registry
    from orchestrator.lifecycle import Event, Lifecycle
    from orchestrator.migrator.lint import LintFolder, Report
    from orchestrator.migrator.survey import Source
    from orchestrator.settings import Settings

# What is imported late is what `/health` need not wait for.

_AFTER_LOSS_S = 0.5
_POOL_SIZE = 5
_POOL_CLOSE_TIMEOUT_S = 5.0
# What a stop may take, in shares of SHUTDOWN_TIMEOUT: the jobs at most 1.75 times theirs; then the pool, and after it
# the requests in flight, have half of what is left; answers that are being written have the last one, twice at most.
_JOBS_SHARE = 0.45
_LAST_ANSWERS_SHARE = 0.02


async def serve(settings: Settings, life: Lifecycle, *, embedded: bool = False) -> None:
    """Start and serve until cancelled. `/health` answers from the first moment; nothing else before READY.

    Cancelled in any phase it unwinds in the reverse order: work in a transaction is rolled back, the lock released,
    requests in flight finish, or are cancelled, within `SHUTDOWN_TIMEOUT`.

    Raises:
        OrchestratorError: the start failed and must not serve; its class knows the exit code.
    """
    from orchestrator.api.app import Backend, build_app, watching
    from orchestrator.api.safety import Safety
    from orchestrator.api.server import listening

    backend = Backend(Safety(settings.api_token, settings.cors_origins, settings.host))
    app, last_s = build_app(life, backend), settings.shutdown_timeout_s * _LAST_ANSWERS_SHARE
    async with (
        listening(app, life, host=settings.host, port=settings.port, shutdown_timeout_s=last_s),
        _failure_shown(life),
    ):
        await asyncio.to_thread(_import_what_comes_next)
        sources = await asyncio.to_thread(read_sources, settings)
        async with _database(settings, life, embedded=embedded) as (given, migration_dsn):
            await _bring_up(settings, migration_dsn, sources, life, command="serve")
            life.enter(Phase.LAUNCHING)
            registry = await _handlers_loaded(settings, backend)
            dsn = given if given == migration_dsn else await _other_way(settings, given, life)
            async with (
                _pool(dsn, settings, life) as pool,  # after the DDL: no stale plans or OIDs
                _job_server(dsn, migration_dsn, settings, sources, registry, life) as (jobs, working),
            ):
                backend.pool, backend.sources = pool, sources
                backend.policy, backend.ahead = settings.migration_policy, settings.migration_ahead
                backend.registry, backend.jobs = registry, jobs
                async with watching(backend, dsn, life) as tasks:
                    life.enter(Phase.READY)
                    life.emit(
                        "service.ready",
                        startup_s=round(life.uptime_s, 3),
                        migrations_applied=life.migrations.applied_now,
                    )
                    await _record(pool, life, command="serve", outcome="ready")
                    await _while_they_work([working, *tasks], _watch(dsn, life))


@asynccontextmanager
async def _failure_shown(life: Lifecycle) -> AsyncIterator[None]:
    """Enter FAILED while HTTP still answers, so that whoever watches the start learns why it ended."""
    try:
        yield
    except OrchestratorError as error:
        if life.phase not in {Phase.STOPPING, Phase.STOPPED, Phase.FAILED}:
            life.fail(**error.described())
        raise


async def migrate_once(settings: Settings, life: Lifecycle, *, embedded: bool = False) -> None:
    """The one-shot: wait, lock, extensions, migrate. Errors as in `serve`."""
    sources = await asyncio.to_thread(read_sources, settings)
    # The login is mostly waiting: what comes after it is loaded meanwhile.
    loading = asyncio.create_task(asyncio.to_thread(_import_what_migrates))
    async with _database(settings, life, embedded=embedded) as (_, migration_dsn):
        await _bring_up(settings, migration_dsn, sources, life, command="migrate")
    await loading
    life.enter(Phase.STOPPED)


async def wait_for_database(settings: Settings, life: Lifecycle) -> None:
    """Return when a login and a query succeed; errors as in `connect`."""
    from orchestrator.database.connect import connected

    life.enter(Phase.CONNECTING)
    async with connected(_given(settings.database), life, **_connect_options(settings, "wait")):
        pass
    life.enter(Phase.STOPPED)


async def gather_status(settings: Settings, life: Lifecycle, *, with_diff: bool = False) -> dict[str, Any]:
    """What `status` shows, read over one connection; writes nothing and needs no lock. One try, no waiting for ever."""
    from orchestrator.database.catalogue import extensions_status, server_status, tables_status
    from orchestrator.database.connect import connected
    from orchestrator.migrator.status import migration_running, migrations_status

    sources = await asyncio.to_thread(read_sources, settings)
    options = _connect_options(settings, "status")
    options["wait_timeout_s"] = settings.command_wait_s
    life.enter(Phase.CONNECTING)
    async with (
        connected(_given(settings.migration_database), life, **options) as connection,
        connection.transaction(readonly=True, isolation="repeatable_read"),
    ):
        return {
            "version": __version__,
            "server": await server_status(connection, _given(settings.migration_database)),
            "sources": await migrations_status(
                connection,
                sources,
                policy=settings.migration_policy,
                ahead=settings.migration_ahead,
                with_diff=with_diff,
            ),
            "running": await migration_running(connection),
            "extensions": await extensions_status(connection, settings.extensions),
            "tables": await tables_status(connection),
        }


async def gather_plan(settings: Settings, life: Lifecycle, *, embedded: bool = False) -> dict[str, Any]:
    """What `plan` shows, read over one connection; writes nothing and takes no lock. One try, as for `status`."""
    from orchestrator.database.catalogue import server_status
    from orchestrator.database.connect import connected
    from orchestrator.migrator.preview import preview
    from orchestrator.migrator.records import OUT_OF_OUR_SCHEMA

    sources = await asyncio.to_thread(read_sources, settings)
    options = _connect_options(settings, "plan")
    options["wait_timeout_s"] = settings.command_wait_s
    async with _database(settings, life, embedded=embedded) as (_, dsn):
        life.enter(Phase.CONNECTING)
        async with (
            connected(dsn, life, **options) as connection,
            connection.transaction(readonly=True, isolation="repeatable_read"),
        ):
            await connection.execute(OUT_OF_OUR_SCHEMA)
            found = await preview(
                connection,
                sources,
                policy=settings.migration_policy,
                ahead=settings.migration_ahead,
                transaction=settings.migration_transaction,
            )
            return {"version": __version__, "server": await server_status(connection, dsn), **found}


async def gather_lint(settings: Settings, life: Lifecycle, folder: LintFolder, *, every: bool) -> tuple[Report, str]:
    """What `lint` finds with the database at hand, and in words what it looked at. One try, as for `status`."""
    from orchestrator.database.connect import connected
    from orchestrator.migrator.lint_live import lint_with_ledger

    sources = await asyncio.to_thread(read_sources, settings)
    options = _connect_options(settings, "lint")
    options["wait_timeout_s"] = settings.command_wait_s
    life.enter(Phase.CONNECTING)
    async with (
        connected(_given(settings.migration_database), life, **options) as connection,
        connection.transaction(readonly=True, isolation="repeatable_read"),
    ):
        return await lint_with_ledger(connection, sources[-1], folder, every=every)


def read_sources(settings: Settings) -> list[Source]:
    """The service's own folder, then the user's. Blocking. A broken image fails here, before it waits for anything.

    Raises:
        FolderError: a folder is not what Drizzle would accept.
    """
    from orchestrator.migrator.folder import read_folder
    from orchestrator.migrator.ledger import LedgerTable
    from orchestrator.migrator.records import SERVICE_SCHEMA
    from orchestrator.migrator.survey import Source

    sources = [Source("service", read_folder(service_folder()), LedgerTable(SERVICE_SCHEMA, "__drizzle_migrations"))]
    if settings.migrations_dir is not None:
        table = LedgerTable(settings.migrations_schema, settings.migrations_table)
        sources.append(Source("user", read_folder(settings.migrations_dir), table))
    return sources


def service_folder() -> Path:
    """Where the program's own migrations are: inside the installed package, or at the top of a checkout."""
    from pathlib import Path

    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _import_what_comes_next() -> None:
    """Load what the phases after this one need, in a thread: the loop answers `/health` meanwhile."""
    import orchestrator.database.connect
    import orchestrator.database.monitor
    import orchestrator.migrator.apply  # noqa: F401


def _import_what_migrates() -> None:
    import orchestrator.database.extensions
    import orchestrator.database.lock
    import orchestrator.migrator.apply
    import orchestrator.migrator.options  # noqa: F401


def _given(dsn: Dsn | None) -> Dsn:
    assert dsn is not None, "settings.load() demands a database unless told otherwise"  # noqa: S101
    return dsn


def _connect_options(settings: Settings, command: str) -> dict[str, Any]:
    return {
        "wait_timeout_s": settings.db_wait_timeout_s,
        "connect_timeout_s": settings.db_connect_timeout_s,
        "application_name": f"orchestrator {command}",
    }


@asynccontextmanager
async def _database(settings: Settings, life: Lifecycle, *, embedded: bool) -> AsyncIterator[tuple[Dsn, Dsn]]:
    """The database to use, and the one to migrate through: as configured, or a private server that runs meanwhile."""
    if not embedded:
        yield _given(settings.database), _given(settings.migration_database)
        return
    from orchestrator import dsn
    from orchestrator.database.embedded import EmbeddedServerError, embedded_postgres

    task, died = asyncio.current_task(), False

    def end_with_the_server(event: Event) -> None:
        nonlocal died
        if event.name == "embedded.exited" and task is not None:
            died = True
            task.cancel("the embedded server ended")

    async with embedded_postgres(settings.data_dir, life.emit) as server:
        own = dsn.parse(server.dsn)
        stop_listening = life.listen(end_with_the_server)
        try:
            yield own, own
        except asyncio.CancelledError:
            if died and task is not None and task.uncancel() == 0:
                raise EmbeddedServerError(
                    "the embedded Postgres ended while it was in use",
                    remedy=f"Its log says why: {server.log_file}; then start again, the data is kept.",
                    facts={"log_file": str(server.log_file)},
                ) from None
            raise
        finally:
            stop_listening()


async def _bring_up(settings: Settings, dsn: Dsn, sources: Sequence[Source], life: Lifecycle, *, command: str) -> None:
    """CONNECTING to MIGRATING, again from the start where the connection is lost on the way."""
    from orchestrator.database.connect import connected
    from orchestrator.database.failure import StandbyError, is_connection_loss

    while True:
        life.enter(Phase.CONNECTING)
        try:
            async with connected(dsn, life, **_connect_options(settings, command)) as connection:
                await _under_the_lock(connection, settings, dsn, sources, life, command=command)
        except StandbyError:
            # Waits for a primary from here on, among all hosts of the DSN, or for this one to be promoted.
            dsn = msgspec.structs.replace(dsn, options={**dsn.options, "target_session_attrs": "read-write"})
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
        else:
            return


async def _under_the_lock(
    connection: Any, settings: Settings, dsn: Dsn, sources: Sequence[Source], life: Lifecycle, *, command: str
) -> None:
    """LOCKING, EXTENSIONS, MIGRATING, and a row that tells how it went."""
    from orchestrator.database.connect import connect_once
    from orchestrator.database.extensions import ensure_extensions
    from orchestrator.database.lock import migration_lock
    from orchestrator.migrator.apply import migrate
    from orchestrator.migrator.options import Options

    options = Options.of(settings)

    async def connect_second() -> Any:
        """One more session on the same server, for what the one that migrates cannot see of itself."""
        timeout_s = dsn.connect_timeout_s or settings.db_connect_timeout_s
        return await connect_once(dsn, timeout_s=timeout_s, application_name=f"orchestrator {command} watch")

    life.enter(Phase.LOCKING)
    async with migration_lock(
        connection, life, timeout_s=settings.migration_lock_timeout_s, connect_second=connect_second
    ):
        life.enter(Phase.EXTENSIONS)
        try:
            if settings.backup_before_migrate != "never":
                from orchestrator.migrator.backups import back_up_first  # late: few starts make one

                await back_up_first(connection, dsn, settings, sources, life)
            await ensure_extensions(connection, settings.extensions, life)
            life.enter(Phase.MIGRATING)
            await migrate(connection, sources, options, life, connect_second=connect_second)
        except MigrationError as error:
            if settings.backup_dir is not None:
                from orchestrator.migrator.backups import offer_way_back  # late: for a start that fails

                await offer_way_back(error, connection, settings, sources)
            await _record(connection, life, command=command, outcome="failed", error=error)
            raise
        life.emit("migrations.completed", applied=life.migrations.applied_now, total=life.migrations.total)
        if command == "migrate":
            await _record(connection, life, command=command, outcome="migrated")


def _explained(error: Exception) -> Exception:
    """An error of the server outside of any migration file, as one of ours; anything else as it is."""
    import asyncpg

    from orchestrator.database.failure import POOLER_SQLSTATES
    from orchestrator.database.pooler import PoolerError

    if isinstance(error, asyncpg.PostgresError):
        if error.sqlstate in POOLER_SQLSTATES:
            return PoolerError("a statement that one transaction prepares is gone in the next")
        mend = "Mend what it names"
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            mend = "Grant the user of DATABASE_URL what it lacks, or give MIGRATION_DATABASE_URL a user that has it"
        return MigrationError(
            f"the server refused what comes before the migrations: {error} (SQLSTATE {error.sqlstate})",
            remedy=f"{mend}; then start again; no migration was run.",
            facts={"sqlstate": error.sqlstate},
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
        timeout_s = dsn.connect_timeout_s or settings.db_connect_timeout_s
        return await connect_once(dsn, timeout_s=timeout_s, application_name="orchestrator serve watch")

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
                hint="A pooler in transaction mode: no statement is prepared, and workers cannot listen but look twice"
                " a second. Add ?pgbouncer=true to DATABASE_URL to say so.",
            )
            return msgspec.structs.replace(dsn, statement_cache=False)
    return dsn


@asynccontextmanager
async def _pool(dsn: Dsn, settings: Settings, life: Lifecycle) -> AsyncIterator[Any]:
    """Connections for requests, made as they are needed: a database that blinks here does not end the start."""
    import asyncpg

    arguments = dsn.connect_arguments()
    server_settings = {"application_name": "orchestrator", **arguments.pop("server_settings", {})}
    pool = await asyncpg.create_pool(
        **arguments,
        min_size=0,
        max_size=_POOL_SIZE,
        timeout=dsn.connect_timeout_s or settings.db_connect_timeout_s,
        server_settings=server_settings,
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


async def _handlers_loaded(settings: Settings, backend: Backend) -> Registry:
    from orchestrator.threads import DaemonThreads

    # asyncio waits for the threads of its own executor as it ends: a module that hangs at import would hold a stop.
    return await asyncio.get_running_loop().run_in_executor(DaemonThreads(), _load_handlers, settings, backend)


def _load_handlers(settings: Settings, backend: Backend) -> Registry:
    """Import the job server, the API, and the modules of JOBS, in a thread: `/health` answers meanwhile."""
    from orchestrator.api.app import load_routes
    from orchestrator.jobs.builtin import without_idle_schedules
    from orchestrator.jobs.registry import load

    load_routes(backend)
    return without_idle_schedules(load(settings.jobs), settings)


def _job_server(
    dsn: Dsn,
    migration_dsn: Dsn,
    settings: Settings,
    sources: Sequence[Source],
    registry: Registry,
    life: Lifecycle,
) -> Any:
    from orchestrator import logs
    from orchestrator.jobs.context import Service
    from orchestrator.jobs.server import job_server

    return job_server(
        dsn,
        registry,
        life,
        concurrency=settings.jobs_concurrency,
        lease_s=settings.jobs_lease_s,
        connect_timeout_s=settings.db_connect_timeout_s,
        stop_timeout_s=settings.shutdown_timeout_s * _JOBS_SHARE,
        redact=logs.redactor(settings.secrets),
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


async def _watch(dsn: Dsn, life: Lifecycle) -> None:
    from orchestrator.database.monitor import watch_database

    await watch_database(dsn, life)


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
