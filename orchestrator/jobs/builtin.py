"""The handlers that an operator needs, declared as a user's own are: backup, analyze, prune, verify.

Each has a schedule, which is a row that a person may change. Touches the database and, for backups, BACKUP_DIR.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from orchestrator.database.sessions import as_ours
from orchestrator.errors import EXIT_CONFIG, ConfigurationError, MigrationError, Problem
from orchestrator.jobs.figures import count_jobs
from orchestrator.jobs.registry import Backoff, Registry, job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.jobs.context import Context, Service
    from orchestrator.settings import Settings

_ANALYZE_LOCK_TIMEOUT_S = 5
_DATABASE_BACKUP = "database.backup"
_SHOWN_DIFFERENCES = 20
_INSUFFICIENT_PRIVILEGE = "42501"


def without_idle_schedules(registry: Registry, settings: Settings) -> Registry:
    """The registry; without BACKUP_DIR, `database.backup` has no schedule in it: it would fail every night."""
    if settings.backup_dir is not None:
        return registry
    handlers = registry.handlers.values()
    return Registry(replace(h, schedule=None) if h.name == _DATABASE_BACKUP else h for h in handlers)


def _service(ctx: Context) -> Service:
    service = ctx.service
    assert service is not None, "the job server of `serve` hands it on"  # noqa: S101
    return service


# ------------------------------------------------------------------------------------------------------------- backup


class BackupPayload(msgspec.Struct, forbid_unknown_fields=True):
    """`test` restores the new backup into a scratch database as well, and compares."""

    test: bool = False


@job(
    _DATABASE_BACKUP,
    schedule="0 3 * * *",
    retries=2,
    concurrency=1,
    backoff=Backoff(first_s=300.0, factor=3.0),
)
async def back_up_database(ctx: Context, payload: BackupPayload) -> dict[str, Any]:
    """Dump the database to BACKUP_DIR (pg_dump, custom format), and remove what BACKUP_KEEP and BACKUP_MAX_AGE say."""
    from orchestrator.backup.restore import test_backup  # late, as all of a job's work: few starts run one
    from orchestrator.migrator.safety_backup import back_up, manifest_reader

    service = _service(ctx)
    directory = service.settings.backup_dir
    if directory is None:
        raise ConfigurationError(
            [Problem("BACKUP_DIR", "is not set, so there is nowhere to write a backup", "a directory", "/backups")]
        )

    async def on_progress(size_bytes: int) -> None:
        await ctx.progress(size_bytes, note="bytes written")

    backup, removed = await back_up(
        service.dsn,
        service.settings,
        service.sources,
        _emit(ctx),
        directory=directory,
        reason="job",
        on_progress=on_progress,
    )
    manifest = backup.manifest
    await ctx.progress(manifest.size_bytes, manifest.size_bytes, "done")
    output: dict[str, Any] = {
        "file": str(backup.path),
        "size_bytes": manifest.size_bytes,
        "sha256": manifest.sha256,
        "duration_s": manifest.duration_s,
        "tables": len(manifest.tables),
        "rows": sum(manifest.tables.values()),
        "removed": [str(one.path) for one in removed],
    }
    if payload.test:
        tested = await test_backup(
            backup,
            service.dsn,
            read_ledgers=manifest_reader(manifest),
            emit=_emit(ctx),
            with_own_rights=False,  # whoever may add a job must not decide that
        )
        output["differences"] = list(tested.differences)
        if tested.differences:
            raise BackupDiffersError(backup.path.name, tested.differences)
    return output


class BackupDiffersError(Exception):
    """A backup that was restored as a test, and is not what was backed up."""

    def __init__(self, name: str, differences: Sequence[str]) -> None:
        super().__init__(f"{name}, restored as a test, is not the same: {'; '.join(differences)}")


def _emit(ctx: Context) -> Callable[..., None]:
    """Events as lines of the job's log."""

    def emit(name: str, *, level: str = "info", **facts: Any) -> None:
        getattr(ctx.log, level)(name, **facts)

    return emit


# ------------------------------------------------------------------------------------------------------------ analyze


class AnalyzePayload(msgspec.Struct, forbid_unknown_fields=True):
    """`tables` names some, as schema.table; empty: all of them."""

    tables: list[str] = []


@job("database.analyze", schedule="30 3 * * *", concurrency=1)
async def analyze_database(ctx: Context, payload: AnalyzePayload) -> dict[str, Any]:
    """Gather statistics (ANALYZE) of every table, partitioned parents included: those autovacuum passes over."""
    import asyncpg

    from orchestrator.database.connect import close, connect_once
    from orchestrator.database.quoting import identifier

    service, began = _service(ctx), time.monotonic()
    connection = await connect_once(service.dsn, application_name="orchestrator analyze")
    skipped: list[str] = []
    try:
        # Who holds a table (a migration, for one) is not waited for: the table is skipped, and nobody queues behind us.
        await connection.execute(f"SET statement_timeout = 0; SET lock_timeout = '{_ANALYZE_LOCK_TIMEOUT_S}s'")
        rows = await connection.fetch(
            "SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm')"
            " AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
            " AND (cardinality($1::text[]) = 0 OR n.nspname || '.' || c.relname = ANY($1)) ORDER BY 1, 2",
            payload.tables,
        )
        for done, (schema, name) in enumerate(rows):
            await ctx.progress(done, len(rows), f"{schema}.{name}")
            try:
                await connection.execute(f"ANALYZE {identifier(schema)}.{identifier(name)}")
            except (asyncpg.LockNotAvailableError, asyncpg.UndefinedTableError) as error:
                skipped.append(f"{schema}.{name}")
                ctx.log.warning("table.not_analyzed", table=f"{schema}.{name}", sqlstate=error.sqlstate)
        await ctx.progress(len(rows), len(rows))
    finally:
        await close(connection)
    missing = sorted(set(payload.tables) - {f"{schema}.{name}" for schema, name in rows})
    return {
        "tables": len(rows) - len(skipped),
        "skipped": skipped,
        "missing": missing,
        "duration_s": round(time.monotonic() - began, 3),
    }


# -------------------------------------------------------------------------------------------------------------- prune


class PrunePayload(msgspec.Struct, forbid_unknown_fields=True):
    """`older_than_s` stands in for JOBS_RETENTION; `batch` is how many rows one transaction deletes."""

    older_than_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    batch: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000


# Each takes the oldest first by an index, and few at a time: no long lock, and autovacuum keeps up.
_PRUNE_JOBS = """
    DELETE FROM orchestrator.jobs WHERE id = ANY(ARRAY(
        SELECT id FROM orchestrator.jobs WHERE finished_at < $1 AND state IN ('succeeded', 'failed', 'cancelled')
        ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED))
"""
# Without statistics, as after a load, a planner would sort all that is old enough for each batch of it.
_BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
# Ids and times go together but for moments: what is not old enough among the oldest ids ends the run.
_PRUNE_EVENTS = """
    DELETE FROM orchestrator.job_events WHERE at < $1 AND id = ANY(ARRAY(
        SELECT id FROM orchestrator.job_events WHERE id <= (SELECT folded FROM orchestrator.job_count_position)
        ORDER BY id LIMIT $2))
"""


@job("jobs.prune", schedule="15 * * * *", concurrency=1)
async def prune_jobs(ctx: Context, payload: PrunePayload) -> dict[str, Any]:
    """Delete finished jobs, with their attempts and logs, and events that are older than JOBS_RETENTION."""
    # By anything of ours the counts are exact: this is for jobs that somebody else has written or changed.
    recount = has_more = True
    while has_more:
        async with ctx.pool.acquire() as connection, as_ours(connection):
            has_more, wrong = await count_jobs(connection.fetch, recount=recount)
        recount = False
        if wrong:
            ctx.log.warning("jobs.counts_corrected", counts=wrong)
    retention_s = payload.older_than_s or _service(ctx).settings.jobs_retention_s
    deleted = {"jobs": 0, "events": 0}
    if not retention_s:
        return deleted
    before = datetime.now(UTC) - timedelta(seconds=retention_s)
    for what, statement in (("jobs", _PRUNE_JOBS), ("events", _PRUNE_EVENTS)):
        while True:
            async with ctx.pool.acquire() as connection, as_ours(connection):
                await connection.execute(_BY_INDEX)
                tag = await connection.execute(statement, before, payload.batch)
            count = int(tag.rpartition(" ")[2])
            deleted[what] += count
            await ctx.progress(deleted["jobs"] + deleted["events"], note=f"{what} deleted")
            if count < payload.batch:
                break
    return deleted


# ------------------------------------------------------------------------------------------------------------- verify


class VerifyPayload(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing to choose."""


@job("migrations.verify", schedule="45 3 * * *", concurrency=1)
async def verify_migrations(ctx: Context, payload: VerifyPayload) -> dict[str, Any]:
    """Compare the migration files as they are on disk now with the ledgers, and the database with what they make.

    It fails where the next start would be refused (MIGRATION_POLICY, MIGRATION_AHEAD), and where `orchestrator verify`
    finds that the database is not what its applied migrations make. Other findings are warnings in the job's log and
    stand in its output. Where the user may not create a scratch database, the output says that nothing was compared.
    """
    del payload
    from orchestrator.migrator.folder import read_folder
    from orchestrator.migrator.state import survey

    service = _service(ctx)
    settings, found, refused = service.settings, [], []
    for done, source in enumerate(service.sources):
        await ctx.progress(done, len(service.sources), str(source.folder.path))
        read = msgspec.structs.replace(source, folder=await asyncio.to_thread(read_folder, source.folder.path))
        async with ctx.pool.acquire() as connection:
            one = await survey(connection, read, policy=settings.migration_policy, ahead=settings.migration_ahead)
        findings = [
            {"kind": str(f.kind), "migration": f.name, "refused": f.refused, "cosmetic": f.cosmetic, "remedy": f.remedy}
            for f in one.plan.findings
        ]
        for finding in findings:
            (ctx.log.info if finding["cosmetic"] else ctx.log.warning)("migration.not_straight", **finding)
        refused += [f"{f['kind']}: {f['migration']}" for f in findings if f["refused"]]
        found.append(
            {
                "source": source.label,
                "folder": str(source.folder.path),
                "ledger": source.table.key,
                "applied": len(one.ledger.rows),
                "pending": [migration.name for migration in one.plan.pending],
                "findings": findings,
                "unlisted": list(read.folder.unlisted),
            }
        )
    if refused:
        raise MigrationError(
            f"files and ledger disagree, and the next start would be refused: {'; '.join(refused)}",
            remedy="`orchestrator status` shows each finding and its remedy.",
        )
    await ctx.progress(len(found), len(found), "comparing the database with what the files make")
    return {"sources": found, "database": await _compared(ctx, service)}


async def _compared(ctx: Context, service: Service) -> dict[str, Any]:
    """What `verify` says of the database itself; of the ledger the job has told by then.

    Raises:
        DatabaseDiffersError: the database is not what its applied migrations make.
        MigrationError: it could not be compared, for another reason than the right to create a database.
    """
    from orchestrator.jobs.child_command import run_command

    ended = await run_command(service, "verify")
    if ended.exit_code == EXIT_CONFIG and ended.error.get("sqlstate") == _INSUFFICIENT_PRIVILEGE:
        ctx.log.info("migrations.not_compared", reason=ended.error.get("error"), remedy=ended.error.get("remedy"))
        return {"compared": False, "reason": ended.error.get("error"), "remedy": ended.error.get("remedy")}
    if ended.result is None:
        raise MigrationError(
            f"orchestrator verify ended with exit code {ended.exit_code}:"
            f" {ended.error.get('error', 'it gave no reason')}",
            remedy=str(ended.error.get("remedy") or "Run `orchestrator verify` by hand to see what is the matter."),
        )
    differences = [_difference(one) for one in ended.result["differences"]]
    for text in differences[:_SHOWN_DIFFERENCES]:
        ctx.log.warning("database.differs", difference=text)
    if differences:
        raise DatabaseDiffersError(differences)
    return {"compared": True, "objects": ended.result["objects_compared"], "notes": ended.result["notes"]}


def _difference(one: dict[str, Any]) -> str:
    return f"{one['state']}: {one['kind']} {one['name']}" + (f" of {one['table']}" if one["table"] else "")


class DatabaseDiffersError(Exception):
    """The database is not what its applied migrations make."""

    def __init__(self, differences: Sequence[str]) -> None:
        shown = "; ".join(differences[:_SHOWN_DIFFERENCES])
        more = f"; and {len(differences) - _SHOWN_DIFFERENCES} more" if len(differences) > _SHOWN_DIFFERENCES else ""
        super().__init__(
            f"the database is not what its applied migrations make: {shown}{more}. `orchestrator verify` shows each"
            " difference and the SQL that fixes it."
        )
