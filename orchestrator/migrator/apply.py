"""Apply pending migrations: one transaction each, the ledger row inside. Touches the database, under the lock.

The walk: survey every source → refuse what must be refused → parse every pending file → run them in order. Nothing is
written before everything that can be known beforehand is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from orchestrator.database.connect import no_time_limits, on_notice
from orchestrator.database.failure import CONNECTION_ERRORS, StandbyError, is_connection_loss
from orchestrator.database.lock import HELD_HERE
from orchestrator.errors import MigrationError
from orchestrator.lifecycle import MigrationItem
from orchestrator.migrator import records
from orchestrator.migrator.failures import (
    failed_statement,
    lock_was_lost,
    refuse_in_single_transaction,
    refused_history,
    refuses_transaction,
    statement_of,
    transaction_was_ended,
)
from orchestrator.migrator.group import DURATION, PROOF, START_CLOCK, STATEMENT_TIMEOUT_MS, is_small, messages
from orchestrator.migrator.ledger import create_ledger, insert_statement, upgrade_ledger
from orchestrator.migrator.patience import Patience
from orchestrator.migrator.plan import Kind
from orchestrator.migrator.survey import survey
from orchestrator.migrator.watch import watched

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.plan import Ahead, Policy
    from orchestrator.migrator.sql import Statement
    from orchestrator.migrator.survey import Source, Survey
    from orchestrator.migrator.watch import Watch

TransactionMode = Literal["each", "all"]

_KEPT_PARSED_BYTES = 1 << 20
_BATCH_BYTES = 1 << 18
_BATCHED_KINDS = frozenset({"INSERT", "UPDATE", "DELETE"})


@dataclass(frozen=True, slots=True)
class Options:
    """What the person chose. A duration of 0 means: no limit."""

    policy: Policy = "drizzle"
    ahead: Ahead = "refuse"
    transaction: TransactionMode = "each"
    statement_timeout_s: float = 0.0
    ddl_lock_timeout_s: float = 5.0
    ddl_retry_for_s: float = 600.0


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """One migration that this run applied."""

    source: str
    name: str
    duration_s: float


async def migrate(
    connection: Any,
    sources: Sequence[Source],
    options: Options,
    life: Lifecycle,
    *,
    connect_second: Callable[[], Awaitable[Any]] | None = None,
) -> list[AppliedMigration]:
    """Bring every source up to date, in order; returns what was applied. Call it under the migration lock.

    `connect_second` opens one more session on the same server, which tells what a long statement waits for and how far
    it is. It is used only where a statement takes longer than a moment; without it that is not known.

    On an error, what is named as applied stays applied, and the database is as it was before the file that failed.
    Cancelled: the statement is cancelled on the server and its transaction rolled back.

    Raises:
        MigrationError: history is refused, a file is not SQL, or a statement failed (exit 70).
        StandbyError: something is pending, and the server is a read-only standby.
        asyncpg errors that mean that the session is gone (`is_connection_loss`).
    """
    connection.add_log_listener(on_notice(life))
    await _prepare_session(connection, options)
    surveys = [await survey(connection, source, policy=options.policy, ahead=options.ahead) for source in sources]
    _announce(surveys, life)
    refused = [(s.source, f) for s in surveys for f in s.plan.refusals]
    if refused:
        raise refused_history(refused)
    if all(_is_settled(s) for s in surveys):
        _count(surveys, life)
        return []
    if await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
        raise StandbyError
    parsed = await _parse_all(surveys, options)
    _count(surveys, life)
    life.migrations.started_at = time.monotonic()
    async with watched(connection, life, connect_second, lock_timeout_s=options.ddl_lock_timeout_s) as watch:
        run = Run(connection, options, life, watch)
        try:
            for one in surveys:
                await run.source(one, parsed)
        except MigrationError as error:
            run.failed()
            error.facts.setdefault("applied_before", [m.name for m in run.applied])
            raise
        finally:
            life.migrations.elapsed_s = time.monotonic() - life.migrations.started_at
    return run.applied


def _is_settled(one: Survey) -> bool:
    return one.ledger.exists and not one.plan.pending and one.plan.names is None


async def _prepare_session(connection: Any, options: Options) -> None:
    """Set what a run depends on: role and database settings may say otherwise."""
    await connection.execute(
        f"{no_time_limits(connection)}; SET statement_timeout = {_ms(options.statement_timeout_s)};"
        " SET standard_conforming_strings = on;"
        f" {records.OUT_OF_OUR_SCHEMA}"
    )
    # A killed holder keeps its lock until its statement ends, unless the server looks for its client (PG 14+, Linux).
    with contextlib.suppress(asyncpg.PostgresError):
        await connection.execute("SET client_connection_check_interval = '500ms'")


def _ms(seconds: float) -> int:
    """For a setting of the server, where 0 means none: what is shorter than a millisecond is still something."""
    return max(1, int(seconds * 1000)) if seconds else 0


_EVENTS = {
    Kind.EDITED: "migration.edited",
    Kind.OUT_OF_ORDER: "migration.out_of_order",
    Kind.REDATED: "migration.redated",
    Kind.ORPHANED: "migration.orphaned",
    Kind.AHEAD: "migration.ahead",
    Kind.DAMAGED: "migration.ledger_damaged",
}


def _announce(surveys: Sequence[Survey], life: Lifecycle) -> None:
    for one in surveys:
        folder = one.source.folder
        for finding in one.plan.findings:
            facts = {
                "source": one.source.label,
                "migration": finding.name,
                "decision": finding.decision,
                "remedy": finding.remedy,
                **({"applied_at": finding.applied_at} if finding.applied_at else {}),
            }
            if finding.cosmetic:
                life.emit("migration.edited", level="info", **facts, cosmetic=True)
            else:
                life.warn(_EVENTS[finding.kind], **facts)
        for migration in one.plan.pending:
            if not migration.is_utf8:
                life.warn(
                    "migration.not_utf8",
                    source=one.source.label,
                    migration=migration.name,
                    decision="run as drizzle runs it: U+FFFD stands for the bytes that are not UTF-8",
                    remedy="Save the file as UTF-8 before it is applied anywhere.",
                )
        if folder.unlisted:
            life.warn(
                "migration.unlisted",
                source=one.source.label,
                files=list(folder.unlisted),
                decision="passed over: the journal does not name them",
                remedy="Add them to meta/_journal.json (drizzle-kit generate), or delete them.",
            )
        life.emit(
            "migrations.planned",
            source=one.source.label,
            generation=folder.generation,
            ledger=one.source.table.key,
            applied=len(one.ledger.rows),
            pending=len(one.plan.pending),
        )


def _count(surveys: Sequence[Survey], life: Lifecycle) -> None:
    state = life.migrations
    state.total = sum(len(s.source.folder.migrations) for s in surveys)
    state.applied, state.items = 0, []
    for one in surveys:
        applied = {a.migration.name for a in one.plan.applied if a.migration}
        pending = {m.name for m in one.plan.pending}
        state.applied += len(applied)
        for migration in one.source.folder.migrations:
            if migration.name in pending:
                state.items.append(MigrationItem(one.source.label, migration.name, "pending"))
            elif migration.name in applied:
                state.items.append(MigrationItem(one.source.label, migration.name, "applied"))


async def _parse_all(surveys: Sequence[Survey], options: Options) -> dict[tuple[str, str], tuple[Statement, ...]]:
    """Parse every pending file with Postgres's own grammar, in a thread; keep what is small."""
    pending = [(s.source.table.key, m) for s in surveys for m in s.plan.pending]
    if not pending:
        return {}

    def parse() -> dict[tuple[str, str], tuple[Statement, ...]]:
        kept: dict[tuple[str, str], tuple[Statement, ...]] = {}
        for key, migration in pending:
            parsed = _parse(migration)
            if options.transaction == "all":
                refuse_in_single_transaction(migration, parsed)
            if migration.size_bytes <= _KEPT_PARSED_BYTES:
                kept[key, migration.name] = parsed
        return kept

    return await asyncio.to_thread(parse)


def _parse(migration: Migration) -> tuple[Statement, ...]:
    from orchestrator.migrator.sql import statements  # the grammar loads 14 MB: only when something is pending

    return statements(migration.read(), path=str(migration.path))


class Run:
    """One run on one session: what was applied, and how each kind of file is applied."""

    def __init__(self, connection: Any, options: Options, life: Lifecycle, watch: Watch) -> None:
        self._connection, self.options, self._life, self.watch = connection, options, life, watch
        self.applied: list[AppliedMigration] = []
        self._items = {(item.source, item.name): item for item in life.migrations.items}
        self._said_session = False
        self._newest_record: int | None = None
        self._prepared: tuple[str, str] = ("", "")
        self._untold: list[tuple[Source, Migration, float]] = []
        self.has_changed_session = False

    async def source(self, one: Survey, parsed: dict[tuple[str, str], tuple[Statement, ...]]) -> None:
        """Bring one source up to date."""
        source, plan, table = one.source, one.plan, one.source.table
        if not one.ledger.exists:
            await self._guarded_ledger(lambda: create_ledger(self._connection, table, source.folder), table.key)
        elif plan.names is not None:
            names = plan.names
            await self._guarded_ledger(lambda: upgrade_ledger(self._connection, table, names), table.key)
            self._life.emit("ledger.upgraded", source=source.label, ledger=table.key, rows=len(names))
        if not plan.pending:
            return
        has_name = one.ledger.has_name if one.ledger.exists else source.folder.generation == "v1"
        file = _FileRun(self, source, has_name=has_name or plan.names is not None)
        if plan.resumable:
            await self._connection.execute(records.begin_unfinished(table.key, [m.name for m in plan.resumable]))
        last = plan.pending[-1]
        if self.options.transaction == "all":
            await self._in_one_transaction(file, plan.pending, parsed)
            return
        key = table.key
        cut = list(messages((m, self._shares(one, m, parsed)) for m in plan.pending))
        for number, message in enumerate(cut):
            left = message
            if len(message) > 1 and not self.has_changed_session:
                following = cut[number + 1] if number + 1 < len(cut) else []
                left = await self._together(file, message, parsed, following, last=last)
            if left:
                self._tell()
            for migration in left:
                await self._one(file, migration, parsed.get((key, migration.name)), one, is_last=migration is last)
        self._tell()

    def _shares(self, one: Survey, migration: Migration, parsed: dict[tuple[str, str], tuple[Statement, ...]]) -> bool:
        """Whether the migration may share a message with its neighbours."""
        return (
            one.source.label != "service"  # its first one makes the records that tell how far a message came
            and migration.name not in one.unfinished
            and migration not in one.plan.resumable
            and is_small(migration, parsed.get((one.source.table.key, migration.name)))
        )

    async def _together(
        self,
        file: _FileRun,
        message: Sequence[Migration],
        parsed: dict[tuple[str, str], tuple[Statement, ...]],
        following: Sequence[Migration],
        *,
        last: Migration,
    ) -> list[Migration]:
        """Apply several small migrations, a transaction each, in one message; returns those that are not in.

        While the server works, what the message before has done is told, and the one that follows is made.
        An error is not told here: what is left is applied one by one, and fails there as it should.
        """
        key, label = file.source.table.key, file.source.label

        def text_of(migrations: Sequence[Migration]) -> str:
            return "".join([START_CLOCK, *(file.small(m, parsed[key, m.name], is_last=m is last) for m in migrations)])

        if self._newest_record is None:
            self._newest_record = await records.newest_record(self._connection)
        name, text = self._prepared
        if name != message[0].name:
            text = text_of(message)
        sending = asyncio.create_task(self._send_together(text, message))
        try:
            await asyncio.sleep(0)  # it is under way
            self._tell()
            state = self._life.migrations
            state.current, state.statement = message[0].name, 0
            state.statements = len(parsed[key, message[0].name])
            for migration in message:
                self._items[label, migration.name].state = "running"
            if len(following) > 1:
                self._prepared = following[0].name, text_of(following)
            await sending
        finally:
            await self._ended(sending)
        durations: dict[str, float] = {}
        for record, name, duration_s in await records.newer_records(self._connection, key, self._newest_record):
            self._newest_record, durations[name] = record, duration_s
        left = []
        for migration in message:
            if migration.name in durations:
                self._untold.append((file.source, migration, durations[migration.name]))
            else:
                self._items[label, migration.name].state = "pending"
                left.append(migration)
        return left

    async def _send_together(self, text: str, message: Sequence[Migration]) -> None:
        try:
            await self.execute(text, f"{len(message)} small migrations in one message")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            if self.is_in_transaction:
                await self._connection.execute("ROLLBACK")
            self._life.emit("migrations.taken_apart", level="debug", migrations=len(message), sqlstate=error.sqlstate)

    @staticmethod
    async def _ended(sending: asyncio.Task[None]) -> None:
        """Leave no statement under way behind: cancelled, it is cancelled on the server, too."""
        if not sending.done():
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, *CONNECTION_ERRORS):
                await sending

    def _tell(self) -> None:
        """Say what is applied and was not said yet."""
        untold, self._untold = self._untold, []
        for source, migration, duration_s in untold:
            self._done(source, migration, duration_s)

    async def _guarded_ledger(self, work: Callable[[], Awaitable[None]], key: str) -> None:
        patience = self.patience(ledger=key)
        while True:
            try:
                async with self._connection.transaction():
                    await self._connection.execute(self.local_lock_timeout)
                    self.watch.begin("ALTER TABLE")
                    await work()
            except asyncpg.PostgresError as error:
                if is_connection_loss(error):
                    raise
                schema = key.partition(".")[0]
                refused = MigrationError(
                    f"the ledger {key} cannot be made: {error} (SQLSTATE {error.sqlstate})",
                    remedy=f'As the owner of the database: CREATE SCHEMA IF NOT EXISTS "{schema}" AUTHORIZATION'
                    " <the user of DATABASE_URL>; then start again. Nothing was run.",
                    facts={"ledger": key, "sqlstate": error.sqlstate},
                )
                refused.__cause__ = error
                self.watch.end()
                await patience.again(refused)
            else:
                self.watch.end()
                return

    async def _one(
        self, file: _FileRun, migration: Migration, parsed: tuple[Statement, ...] | None, one: Survey, *, is_last: bool
    ) -> None:
        raw = await asyncio.to_thread(migration.read) if migration.size_bytes > _KEPT_PARSED_BYTES else migration.read()
        if parsed is None:
            parsed = await asyncio.to_thread(_parse, migration)
        began = self._begin(file.source, migration, parsed)
        interrupted = one.unfinished.get(migration.name)
        # What was begun in steps goes on in steps, also where the grammar sees no reason for them.
        steps = not all(s.fits_a_transaction for s in parsed) or (interrupted is not None and interrupted.is_begun)
        if not steps:
            resumed = interrupted is not None or migration in one.plan.resumable
            try:
                await file.in_transaction(migration, raw, parsed, began, is_last=is_last, resumed=resumed)
            except MigrationError as error:
                if not refuses_transaction(error):
                    raise
                steps = True
        if steps:
            await file.in_steps(migration, raw, parsed, began, interrupted)
        self._done(file.source, migration, time.monotonic() - began)
        if not is_last and not self._said_session and any(s.changes_session for s in parsed):
            self._said_session = True  # once: a project that does so does it often
            # Drizzle's session is one too. A run that begins behind this file would not have the setting.
            self._life.warn(
                "migration.session_changed",
                source=file.source.label,
                migration=migration.name,
                decision="what it SET holds for the files after it in this run, as with drizzle",
                remedy="Write SET LOCAL, or RESET at the end of the file, so that every run gives the same schema.",
            )

    async def _in_one_transaction(
        self, file: _FileRun, pending: Sequence[Migration], parsed: dict[tuple[str, str], tuple[Statement, ...]]
    ) -> None:
        """Drizzle's single transaction: all or nothing; success is said after the commit."""
        patience = self.patience(migration=pending[-1].name, ledger=file.source.table.key)
        while True:
            durations: list[tuple[Migration, float]] = []
            try:
                await self._connection.execute(f"BEGIN; {self.local_lock_timeout}")
                for migration in pending:
                    raw = migration.read()
                    statements = parsed.get((file.source.table.key, migration.name))
                    if statements is None:
                        statements = await asyncio.to_thread(_parse, migration)
                    opening = _ROLE_BACK if durations and self.has_changed_session else ""
                    began = self._begin(file.source, migration, statements)
                    await file.statements_and_row(migration, raw, statements, began, resumed=True, opening=opening)
                    durations.append((migration, time.monotonic() - began))
                await file.commit(pending[-1])
            except MigrationError as error:
                await patience.again(error)
                for migration in pending:
                    self._items[file.source.label, migration.name].state = "pending"
            else:
                break
        for migration, duration_s in durations:
            self._done(file.source, migration, duration_s)

    def _begin(self, source: Source, migration: Migration, parsed: Sequence[Statement]) -> float:
        self.has_changed_session = self.has_changed_session or any(s.changes_session for s in parsed)
        state = self._life.migrations
        state.current, state.statement, state.statements = migration.name, 0, len(parsed)
        self._items[source.label, migration.name].state = "running"
        self._life.emit(
            "migration.started", level="debug", source=source.label, migration=migration.name, statements=len(parsed)
        )
        return time.monotonic()

    def _done(self, source: Source, migration: Migration, duration_s: float) -> None:
        self.applied.append(AppliedMigration(source.label, migration.name, duration_s))
        item = self._items[source.label, migration.name]
        item.state, item.duration_s = "applied", duration_s
        self._life.migrations.applied += 1
        self._life.migrations.applied_now += 1
        self._life.migrations.current = None
        self._life.emit(
            "migration.applied", source=source.label, migration=migration.name, duration_s=round(duration_s, 4)
        )

    def failed(self) -> None:
        """Mark what ran as failed: the run ends here."""
        for item in self._items.values():
            if item.state == "running":
                item.state = "failed"

    def patience(self, **facts: object) -> Patience:
        """For one piece of work that may have to be tried again; `facts` name it."""
        return Patience(self._life, self.watch, facts, retry_for_s=self.options.ddl_retry_for_s)

    @property
    def local_lock_timeout(self) -> str:
        """SQL that lets the present transaction wait for locks as long as it may, and no longer."""
        return f"SET LOCAL lock_timeout = {_ms(self.options.ddl_lock_timeout_s)};"

    @property
    def lock_timeout(self) -> str:
        """The same for the session."""
        return f"SET lock_timeout = {_ms(self.options.ddl_lock_timeout_s)};"

    def at(self, number: int) -> None:
        """Remember which statement runs now."""
        self._life.migrations.statement = number

    async def execute(self, text: str, what: Statement | str = "") -> str:
        """Run `text`, which is `what` to those who watch, as one simple query; return the last command's tag."""
        self.watch.begin(what)
        try:
            tag: str = await self._connection.execute(text)
        finally:
            self.watch.end()
        return tag

    async def prepare_session(self) -> None:
        """Set again what a run depends on, after a file has reset it."""
        await _prepare_session(self._connection, self.options)

    @property
    def is_in_transaction(self) -> bool:
        """What the server said last about the transaction."""
        return bool(self._connection.is_in_transaction())

    @property
    def connection(self) -> Any:
        """The session."""
        return self._connection


class _FileRun:
    """How one file is applied, into one ledger."""

    def __init__(self, run: Run, source: Source, *, has_name: bool) -> None:
        self._run, self.source, self._has_name = run, source, has_name
        self._is_single = run.options.transaction == "all"

    async def in_transaction(
        self,
        migration: Migration,
        raw: bytes,
        parsed: Sequence[Statement],
        began: float,
        *,
        is_last: bool,
        resumed: bool,
    ) -> None:
        """All of a file, its ledger row inside one transaction; the whole of it again where a lock was not to be had.

        `synchronous_commit = off` for all but the last: WAL is ordered, so a crash leaves a consistent prefix.
        """
        opening = f"{'BEGIN;' if is_last else _BEGIN_NOT_LAST}{self._run.local_lock_timeout}"
        patience = self._run.patience(migration=migration.name, file=str(migration.path))
        while True:
            try:
                await self.statements_and_row(migration, raw, parsed, began, resumed=resumed, opening=opening)
                await self.commit(migration)
            except MigrationError as error:
                await patience.again(error, statement_of(error, parsed))
            else:
                return

    def small(self, migration: Migration, statements: Sequence[Statement], *, is_last: bool) -> str:
        """A whole small migration as SQL that proves by itself that the lock is held; it travels with others."""
        limit_ms = _ms(self._run.options.statement_timeout_s)
        limit_ms = min(limit_ms, STATEMENT_TIMEOUT_MS) if limit_ms else STATEMENT_TIMEOUT_MS
        parts = [
            "BEGIN;" if is_last else _BEGIN_NOT_LAST,
            f"{self._run.local_lock_timeout}SET LOCAL statement_timeout = {limit_ms};",
            *(f"{statement.text}\n;\n" for statement in statements),
            records.record_statement(self.source.table.key, migration, duration=DURATION, raw=migration.read()),
            ";",
            insert_statement(
                self.source.table, self.source.folder, migration, has_name=self._has_name, condition=PROOF
            ),
            ";COMMIT;",
        ]
        return "".join(parts)

    async def commit(self, migration: Migration) -> None:
        """End the transaction; deferred constraints and triggers run here, and fail as the file's."""
        try:
            await self._run.execute("COMMIT", "COMMIT")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            raise failed_statement(error, migration, None, None, single=self._is_single) from error

    async def statements_and_row(
        self,
        migration: Migration,
        raw: bytes,
        parsed: Sequence[Statement],
        began: float,
        *,
        resumed: bool,
        opening: str = "",
    ) -> None:
        """The statements of a file and its ledger row in one transaction; rolled back on an error.

        `opening` begins the transaction where none is open. It travels with the first statement, and the row with the
        last one: the way to the server and back is most of what a small migration costs.
        """
        large = len(raw) > _KEPT_PARSED_BYTES
        packing = asyncio.create_task(asyncio.to_thread(records.compress, raw)) if large else None
        try:
            *before, last = _batches(parsed) or [[]]
            if len(last) > 1 or (last and large):
                before, last = [*before, last], []
            for batch in before:
                await self._batch(migration, raw, batch, opening=opening)
                opening = ""
            if packing is not None and (packed := await packing) is not None:
                duration_s = time.monotonic() - began
                if self._run.has_changed_session:
                    await self._run.execute(_ROLE_AWAY)
                await records.record_packed(
                    self._run.connection, self.source.table.key, migration, duration_s=duration_s, packed=packed
                )
            else:
                packed = None
            row = self._row(migration, raw, began, is_recorded=packed is not None, resumed=resumed)
            tag = await self._statement(migration, raw, last[0] if last else None, opening=opening, closing=row)
            if not self._run.is_in_transaction:
                raise transaction_was_ended(migration)
            if tag != "INSERT 0 1":
                raise lock_was_lost(migration)
        except (MigrationError, asyncpg.PostgresError):
            if not self._run.connection.is_closed() and self._run.is_in_transaction:
                with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
                    await self._run.connection.execute("ROLLBACK")
            raise
        finally:
            if packing is not None:
                packing.cancel()

    async def _batch(self, migration: Migration, raw: bytes, batch: Sequence[Statement], *, opening: str) -> None:
        """Run one statement, or several small INSERTs, UPDATEs, DELETEs in one message.

        A batch that fails is rolled back to its savepoint and run one by one, so that the error names its statement.
        """
        if len(batch) > 1:
            self._run.at(batch[0].index)
            if opening:
                await self._run.execute(opening)
                opening = ""
            body = "\n;\n".join(s.text for s in batch)  # a statement may end with a -- comment
            try:
                await self._run.execute(
                    f"SAVEPOINT orchestrator_batch;{body}\n;\nRELEASE SAVEPOINT orchestrator_batch", batch[0]
                )
            except asyncpg.PostgresError as error:
                if is_connection_loss(error):
                    raise
                await self._run.execute(
                    "ROLLBACK TO SAVEPOINT orchestrator_batch; RELEASE SAVEPOINT orchestrator_batch"
                )
            else:
                return
        for statement in batch:
            await self._statement(migration, raw, statement, opening=opening)
            opening = ""

    async def _statement(
        self, migration: Migration, raw: bytes, statement: Statement | None, *, opening: str = "", closing: str = ""
    ) -> str:
        """Run `opening`, the statement, and `closing` in one message; returns the last command's tag.

        An error is the statement's, unless it is of `closing`: then its position lies behind the statement.
        """
        text = "" if statement is None else statement.text
        if statement is not None:
            self._run.at(statement.index)
        try:
            return await self._run.execute(
                f"{opening}{text}\n;\n{closing}" if closing else f"{opening}{text}", statement or "COMMIT"
            )
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            shift = len(opening)
            if error.position and int(error.position) - shift > len(text):
                statement = None
            raise failed_statement(error, migration, raw, statement, shift=shift, single=self._is_single) from error

    def _row(self, migration: Migration, raw: bytes, began: float, *, is_recorded: bool, resumed: bool) -> str:
        """SQL of record, ledger row, and the proof that the lock is still ours."""
        key = self.source.table.key
        parts = []
        if not is_recorded:
            parts += [_ROLE_AWAY] if self._run.has_changed_session else []
            duration = records.since_message(time.monotonic() - began)
            parts.append(records.record_statement(key, migration, duration=duration, raw=raw))
        if resumed:
            parts.append(records.end_unfinished(key, migration.name))
        # Last: its command tag says whether the lock was held (a transaction pooler loses it between transactions).
        parts.append(
            insert_statement(
                self.source.table, self.source.folder, migration, has_name=self._has_name, condition=HELD_HERE
            )
        )
        return ";".join(parts)

    async def in_steps(
        self,
        migration: Migration,
        raw: bytes,
        parsed: Sequence[Statement],
        began: float,
        interrupted: records.Unfinished | None,
    ) -> None:
        """A file that cannot be one transaction: statement by statement, each noted, so that a crash resumes."""
        from orchestrator.migrator.steps import Steps

        await Steps(
            self._run,
            ledger_key=self.source.table.key,
            migration=migration,
            raw=raw,
            statements=parsed,
            finish=lambda: self.statements_and_row(migration, raw, (), began, resumed=True),
        ).run(interrupted)


# A role that a file SET has no right to our tables. It is the next file's again: after the commit, or, where that file
# is in the same transaction, by _ROLE_BACK.
_ROLE_AWAY = (
    "SELECT pg_catalog.set_config('orchestrator.role', pg_catalog.current_setting('role'), true); SET LOCAL ROLE NONE"
)
_ROLE_BACK = "SELECT pg_catalog.set_config('role', pg_catalog.current_setting('orchestrator.role'), true);"
_BEGIN_NOT_LAST = "BEGIN; SET LOCAL synchronous_commit = off;"


def _batches(parsed: Iterable[Statement]) -> list[list[Statement]]:
    """Neighbouring small data statements together, everything else alone."""
    batches: list[list[Statement]] = []
    size = 0
    for statement in parsed:
        small = statement.kind in _BATCHED_KINDS and statement.byte_length <= _BATCH_BYTES // 4
        if small and batches and size and size + statement.byte_length <= _BATCH_BYTES:
            batches[-1].append(statement)
            size += statement.byte_length
        else:
            batches.append([statement])
            size = statement.byte_length if small else 0
    return batches
