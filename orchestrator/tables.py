"""The program's own tables as SQLAlchemy's MetaData, for `generate`; never imported while serving.

    SCHEMA=orchestrator.tables:metadata MIGRATIONS_DIR=migrations orchestrator generate add_something

Functions and triggers are no part of it: they are written into a migration by hand, and not compared.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import INET, INT8MULTIRANGE, JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData(schema="orchestrator")


class Xid8(UserDefinedType[int]):
    """A transaction's id that never comes around again."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type's name."""
        return "XID8"


_NOW = func.now()


def _key() -> Column[Any]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _time(name: str, *, nullable: bool = True, default: Any = None) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default)


def _text(name: str, *, nullable: bool = False, default: str | None = None, comment: str | None = None) -> Column[Any]:
    return Column(name, Text, nullable=nullable, server_default=default, comment=comment)


def _integer(name: str, *, default: int | None = None) -> Column[Any]:
    return Column(name, Integer, nullable=False, server_default=None if default is None else text(str(default)))


def _flag(name: str, *, default: str) -> Column[Any]:
    return Column(name, Boolean, nullable=False, server_default=text(default))


def _payload() -> Column[Any]:
    return Column("payload", JSONB, nullable=False, server_default=text("'{}'::jsonb"))


# ---------------------------------------------------------------------------------- 0000: starts, and what was applied

starts = Table(
    "starts",
    metadata,
    _key(),
    _time("started_at", nullable=False),
    _time("recorded_at", nullable=False, default=_NOW),
    _text("version"),
    _text("host"),
    _integer("pid"),
    _text("command"),
    Column("phases", JSONB, nullable=False),
    _integer("migrations_applied"),
    _text("outcome"),
    Column("error", JSONB),
    CheckConstraint("outcome IN ('ready', 'migrated', 'failed')", name="starts_outcome_check"),
    comment="One row for each start that reached the database: phases are seconds by phase.",
)

migration_records = Table(
    "migration_records",
    metadata,
    _key(),
    _text("ledger"),
    _text("name"),
    _text("hash"),
    Column("created_at", BigInteger, nullable=False),
    _time("applied_at", nullable=False, default=_NOW),
    Column("duration_s", Double, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    _text("text", nullable=True),
    Column("text_gzip", LargeBinary),
    Index("migration_records_ledger_index", "ledger", "created_at"),
    comment="The text of every migration that this program applied; above 1 MiB it is in text_gzip.",
)

unfinished_migrations = Table(
    "unfinished_migrations",
    metadata,
    _text("ledger"),
    _text("name"),
    _integer("statements_done"),
    _text("done_hash"),
    Column("running", Integer),
    _time("since", nullable=False, default=_NOW),
    PrimaryKeyConstraint("ledger", "name"),
    comment=(
        "Migrations that a run began or had still to begin, so that the next one goes on after the last finished"
        " statement."
    ),
)

migration_runs = Table(
    "migration_runs",
    metadata,
    Column("ledger", Text, primary_key=True),
    _text("name"),
    _text("hash"),
    Column("statement", Integer),
    _integer("losses", default=0),
    _text("server"),
    _time("since", nullable=False, default=_NOW),
    comment=("Runs of migrations that have not ended, and how often the server went away under the first file."),
)

backups = Table(
    "backups",
    metadata,
    _key(),
    _time("recorded_at", nullable=False, default=_NOW),
    _time("taken_at", nullable=False),
    _text("file"),
    _text("sha256"),
    _text("manifest_hash"),
    Column("size_bytes", BigInteger, nullable=False),
    Column("duration_s", Double, nullable=False),
    _text("reason"),
    Index("backups_taken_index", "taken_at"),
    comment="One row for each backup that was made: a restore compares the file's checksum and its manifest with it.",
)

# ------------------------------------------------------------------------------------------------------ 0001: the queue

jobs = Table(
    "jobs",
    metadata,
    _key(),
    _text("name"),
    _text("queue", default="default"),
    _text("state"),
    _integer("priority", default=0),
    _integer("attempt", default=0),
    _integer("max_attempts", default=1),
    _flag("cancel_requested", default="false"),
    Column("timeout_s", Double),
    _time("run_at", nullable=False, default=_NOW),
    _time("created_at", nullable=False, default=func.clock_timestamp()),
    _time("started_at"),
    _time("finished_at"),
    _text("worker", nullable=True),
    Column(
        "claim",
        BigInteger,
        comment="The number of the claim that took it last, counted by its worker: no pair of worker and claim comes"
        " twice.",
    ),
    _text("dedupe_key", nullable=True),
    _text("idempotency_key", nullable=True),
    _text("schedule", nullable=True),
    _payload(),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("progress", JSONB),
    Column(
        "unreadable",
        ARRAY(Text),
        comment="Hashes of payload schemas that could not decode its payload: workers that know no other leave it"
        " alone.",
    ),
    CheckConstraint(
        "state IN ('scheduled', 'queued', 'running', 'succeeded', 'failed', 'cancelled')", name="jobs_state_check"
    ),
    CheckConstraint("max_attempts >= 1 AND attempt >= 0", name="jobs_attempts_check"),
    # The order of a claim, whatever the handler: its cost does not grow with the number of handlers.
    Index("jobs_ready_index", text("priority DESC"), "id", postgresql_where=text("state = 'queued'")),
    # The same for each handler: for limits, and where much waits that nobody here can run.
    Index("jobs_queued_index", "name", text("priority DESC"), "id", postgresql_where=text("state = 'queued'")),
    Index("jobs_scheduled_index", "run_at", postgresql_where=text("state = 'scheduled'")),
    # Those that run are few.
    Index("jobs_running_index", "name", postgresql_where=text("state = 'running'")),
    # For lists: the jobs of one name, state and queue stand in the order of their ids.
    Index("jobs_list_index", "name", "state", "queue", "id", postgresql_where=text("state <> 'running'")),
    Index("jobs_finished_index", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
    Index("jobs_schedule_index", "schedule", "state", "id", postgresql_where=text("schedule IS NOT NULL")),
    Index("jobs_failed_index", "id", postgresql_where=text("state IN ('failed', 'cancelled')")),
    Index("jobs_retrying_index", "id", postgresql_where=text("attempt > 0 AND state IN ('scheduled', 'queued')")),
    Index(
        "jobs_dedupe_index",
        "name",
        "dedupe_key",
        unique=True,
        postgresql_where=text("dedupe_key IS NOT NULL AND state IN ('scheduled', 'queued', 'running')"),
    ),
    Index(
        "jobs_idempotency_index",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    comment=(
        "One row a job, kept when finished. Written by orchestrator alone; to add one, use its API or"
        " orchestrator.jobs.enqueue."
    ),
    postgresql_with={
        "fillfactor": 85,
        "autovacuum_vacuum_scale_factor": 0.01,
        "autovacuum_vacuum_threshold": 5000,
        "autovacuum_vacuum_insert_scale_factor": 0.1,
        "autovacuum_analyze_scale_factor": 0.05,
    },
)

# Keys whose request was answered by a job that has another key or none: one with the same dedupe key.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("job_id", BigInteger, nullable=False),
    _text("name"),
    Column("payload", JSONB, nullable=False),
    Index("idempotency_keys_job_index", "job_id"),
)

# Attempts that ended other than well; the view `attempts` has them all. No foreign key to jobs: it would lock and look
# up the job's row for each insert; a trigger removes what goes with it.
job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", BigInteger, nullable=False),
    _integer("attempt"),
    _text("worker", nullable=True),
    _time("started_at"),
    _time("finished_at", nullable=False, default=_NOW),
    _text(
        "outcome",
        comment="lost: its worker fell silent for longer than the lease; interrupted: its server was stopped, and the"
        " attempt does not count.",
    ),
    Column("error", JSONB),
    PrimaryKeyConstraint("job_id", "attempt"),
    CheckConstraint(
        "outcome IN ('failed', 'timed_out', 'cancelled', 'lost', 'interrupted')",
        name="job_attempts_outcome_check",
    ),
)

job_logs = Table(
    "job_logs",
    metadata,
    Column("id", BigInteger, Identity(always=True)),
    Column("job_id", BigInteger, nullable=False),
    _integer("attempt"),
    _time("at", nullable=False),
    _text("level"),
    _text("event"),
    Column("facts", JSONB),
    PrimaryKeyConstraint("job_id", "id"),
)

job_events = Table(
    "job_events",
    metadata,
    _key(),
    _time("at", nullable=False, default=func.clock_timestamp()),
    Column("job_id", BigInteger, nullable=False),
    _integer("attempt"),
    _text("name"),
    _text("queue"),
    _text("kind", default="transition"),
    _text("state", nullable=True),
    _text(
        "was",
        nullable=True,
        comment="The state before; null where the job was added. The counts of jobs are kept by it.",
    ),
    Column("facts", JSONB),
    CheckConstraint("kind IN ('transition', 'progress')", name="job_events_kind_check"),
    Index(
        "job_events_at_index",
        "at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 16, "autosummarize": "on"},
    ),
    comment="A row a transition, and progress. Ids can become visible out of their order.",
)

_VACUUMED_OFTEN = {"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 500}

# What was counted by name, queue and state, in rows that are only added to and taken together.
job_counts = Table(
    "job_counts",
    metadata,
    _text("name"),
    _text("queue"),
    _text("state"),
    Column("count", BigInteger, nullable=False),
    Index("job_counts_index", "name", "queue", "state"),
    postgresql_with=_VACUUMED_OFTEN,
)

# How many jobs ended in each ten seconds; slot is those since 1970.
job_endings = Table(
    "job_endings",
    metadata,
    _text("queue"),
    Column("slot", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    PrimaryKeyConstraint("slot", "queue"),
    postgresql_with=_VACUUMED_OFTEN,
)

# Events up to folded are counted, but for those in gaps: ids that were drawn and could not be seen.
job_count_position = Table(
    "job_count_position",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    Column("folded", BigInteger, nullable=False, server_default=text("0")),
    Column("gaps", INT8MULTIRANGE, nullable=False, server_default=text("'{}'::int8multirange")),
    Column("closing", INT8MULTIRANGE, nullable=False, server_default=text("'{}'::int8multirange")),
    Column("boundary", Xid8, nullable=False, server_default=text("'0'::xid8")),
    CheckConstraint('"only"', name="job_count_position_only_check"),
    postgresql_with={"fillfactor": 20, **_VACUUMED_OFTEN},
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    _text("job"),
    _text("cron"),
    _text("timezone", default="UTC"),
    _payload(),
    _flag("enabled", default="true"),
    _text(
        "source",
        comment="code: follows @job(schedule=...) at each start; api: a person changed it, and code does not overwrite"
        " it.",
    ),
    _time("next_run_at"),
    _time("last_run_at"),
    Column("last_job_id", BigInteger),
    _time("created_at", nullable=False, default=_NOW),
    _time("updated_at", nullable=False, default=_NOW),
    CheckConstraint("source IN ('code', 'api')", name="schedules_source_check"),
    postgresql_with={"fillfactor": 50},
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    _text("host"),
    _integer("pid"),
    _text("version"),
    _time("started_at", nullable=False, default=_NOW),
    Column(
        "seen_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=_NOW,
        comment="When the lease was renewed: whatever this worker has claimed is its own until lease_s later.",
    ),
    _integer("concurrency"),
    _integer("running", default=0),
    Column("lease_s", Double, nullable=False),
    Column("handlers", ARRAY(Text), nullable=False),
    Column("schemas", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column(
        "settled_at",
        DateTime(timezone=True),
        nullable=False,
        server_default=func.clock_timestamp(),
        comment="When this worker last compared what it runs with what it has claimed.",
    ),
    Column(
        "taken_over",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="How often jobs were taken from it: a worker that finds another number compares at once.",
    ),
    postgresql_with={"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 200},
)

# Unlogged: PostgreSQL empties it in a crash, and where a standby is promoted, and so the claims know of both.
server_runs = Table(
    "server_runs",
    metadata,
    Column("only", Boolean, primary_key=True, server_default=text("true")),
    _time("since", nullable=False, default=func.clock_timestamp()),
    CheckConstraint('"only"', name="server_runs_only_check"),
    prefixes=["UNLOGGED"],
)

# Locked while the jobs of a handler with a limit are counted and claimed.
job_limits = Table("job_limits", metadata, Column("name", Text, primary_key=True))

# Nobody claims the jobs of these queues for now.
paused_queues = Table(
    "paused_queues",
    metadata,
    Column("queue", Text, primary_key=True),
    _time("paused_at", nullable=False, default=_NOW),
)

# ------------------------------------------- 0002: ledgers that were mended by hand, changes through the API

repairs = Table(
    "repairs",
    metadata,
    _key(),
    _time("repaired_at", nullable=False, default=_NOW),
    _text("ledger"),
    _text("action"),
    Column("names", ARRAY(Text), nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("role", Text, nullable=False, server_default=text("current_user")),
    Column("login", Text, nullable=False, server_default=text("session_user")),
    _text("os_user"),
    _text("host"),
    Column("client_address", INET, server_default=func.inet_client_addr()),
    _text("version"),
    Column("before", JSONB, nullable=False),
    Column("after", JSONB, nullable=False),
    CheckConstraint("action IN ('accept', 'applied', 'unapplied', 'baseline', 'upgrade')", name="repairs_action_check"),
    comment=(
        "One row for each change of a ledger by hand (orchestrator repair): who, from where, and the ledger's rows"
        " before and after."
    ),
)

api_changes = Table(
    "api_changes",
    metadata,
    _key(),
    _time("changed_at", nullable=False),
    _text("token"),
    _text("address"),
    _text("method"),
    _text("path"),
    _integer("status"),
    Column("facts", JSONB, nullable=False),
    comment=(
        "One row for each request that changed something through the API: the name of the token that it showed, from"
        " where, and what."
    ),
)
Index("api_changes_changed_index", api_changes.c.changed_at)
Index(
    "api_changes_job_index",
    api_changes.c.facts.op("->>")(text("'job'")),
    postgresql_where=text("(facts ->> 'job') IS NOT NULL"),
)
