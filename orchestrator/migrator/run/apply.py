"""Apply pending migrations: one transaction each, the ledger row inside. Touches the database, under the lock.

The walk: survey every source → refuse what must be refused → parse every pending file → run them in order. Nothing is
written before everything that can be known beforehand is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from orchestrator.database.connect_errors import CONNECTION_ERRORS, StandbyError, is_connection_loss
from orchestrator.database.sessions import SET_OUR_PATH
from orchestrator.errors import MigrationError
from orchestrator.migrator import records
from orchestrator.migrator.ledger import create_ledger, upgrade_ledger
from orchestrator.migrator.run.batching import START_CLOCK, is_small, messages
from orchestrator.migrator.run.earlier_settings import name_earlier_setting
from orchestrator.migrator.run.errors import (
    refuse_in_single_transaction,
    refused_history,
    refuses_transaction,
    statement_of,
)
from orchestrator.migrator.run.execution import Execution
from orchestrator.migrator.run.losses import Losses, ended
from orchestrator.migrator.run.notices import Notices
from orchestrator.migrator.run.progress import watched
from orchestrator.migrator.run.report import announce, count
from orchestrator.migrator.run.session import Session, joined
from orchestrator.migrator.run.transactional import KEPT_PARSED_BYTES, FileRun, parsed_bytes
from orchestrator.migrator.state import survey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.run.progress import Watch
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.sql.statements import SqlSyntaxError, Statement
    from orchestrator.migrator.state import Survey


_LEAVE_TIMEOUT_S = 1.0


class AppliedMigration(msgspec.Struct, frozen=True):
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
    losses: Losses | None = None,
) -> list[AppliedMigration]:
    """Bring every source up to date, in order; returns what was applied. Call it under the migration lock.

    `connect_second` opens one more session on the same server, which tells what a long statement waits for and how far
    it is. It is used only where a statement takes longer than a moment; without it that is not known. `losses` are
    those of earlier runs in this process.

    On an error, what is named as applied stays applied, and the database is as it was before the file that failed.
    Cancelled: the statement is cancelled on the server and its transaction rolled back.

    Raises:
        MigrationError: history is refused, a file is not SQL, a statement failed, or it takes the server down each
            time (exit 70).
        StandbyError: something is pending, and the server is a read-only standby.
        asyncpg errors that mean that the session is gone (`is_connection_loss`).
    """
    notices = Notices(life)
    connection.add_log_listener(notices)
    session = await Session.begin(connection, options)
    surveys = [await survey(connection, source, policy=options.policy, ahead=options.ahead) for source in sources]
    announce(surveys, life)
    refused = [(s.source, f) for s in surveys for f in s.plan.refusals]
    if refused:
        raise refused_history(refused)
    if all(_is_settled(s) for s in surveys):
        count(surveys, life)
        return []
    if await connection.fetchval("SELECT pg_catalog.pg_is_in_recovery()"):
        raise StandbyError
    parsed = await _parse_all(session, surveys, options)
    count(surveys, life)
    life.migrations.started_at = time.monotonic()
    async with watched(connection, life, connect_second, lock_timeout_s=options.ddl_lock_timeout_s) as watch:
        run = Run(session, options, life, watch, losses or Losses(), notices)
        try:
            for one in surveys:
                await run.source(one, parsed)
        except CONNECTION_ERRORS as error:
            if is_connection_loss(error):
                run.lost(error)
            raise
        except MigrationError as error:
            run.failed()
            error.facts.setdefault("applied_before", [m.name for m in run.applied])
            await run.explain(error, surveys)
            await name_earlier_setting(error, [m for s in surveys for m in s.source.folder.migrations])
            raise
        finally:
            life.migrations.elapsed_s = time.monotonic() - life.migrations.started_at
            await run.leave()
    return run.applied


def _is_settled(one: Survey) -> bool:
    return one.ledger.exists and not one.plan.pending and one.plan.names is None


def _parse(migration: Migration, *, escapes: bool) -> tuple[Statement, ...]:
    # Late: the grammar loads 14 MB, and most starts have nothing pending.
    from orchestrator.migrator.sql.statements import statements

    return statements(migration.read(), path=str(migration.path), escapes=escapes)


async def _parse_all(
    session: Session, surveys: Sequence[Survey], options: Options
) -> dict[tuple[str, str], tuple[Statement, ...]]:
    """Parse every pending file with Postgres's own grammar, in a thread; keep what is small.

    What the grammar refuses is put to the server, and kept.
    """
    pending = [(s.source.table.key, m) for s in surveys for m in s.plan.pending]
    kept: dict[tuple[str, str], tuple[Statement, ...]] = {}

    def parse() -> Iterator[tuple[str, Migration, SqlSyntaxError]]:
        from orchestrator.migrator.sql.statements import SqlSyntaxError

        for key, migration in pending:
            try:
                parsed = _parse(migration, escapes=session.escapes)
            except SqlSyntaxError as error:
                yield key, migration, error
                continue
            if options.transaction == "all":
                refuse_in_single_transaction(migration, parsed)
            if migration.size_bytes <= KEPT_PARSED_BYTES:
                kept[key, migration.name] = parsed

    refusals = parse()
    while (refused := await asyncio.to_thread(next, refusals, None)) is not None:
        from orchestrator.migrator.run.second_opinion import ask_server

        key, migration, error = refused
        parsed = await ask_server(session.connection, migration, migration.read(), error, escapes=session.escapes)
        if options.transaction == "all":
            refuse_in_single_transaction(migration, parsed)
        kept[key, migration.name] = parsed
    return kept


class Run:
    """One run on one session: what was applied, and how each kind of file is applied."""

    def __init__(
        self, session: Session, options: Options, life: Lifecycle, watch: Watch, losses: Losses, notices: Notices
    ) -> None:
        self._at_work = Execution(session, options, life, watch)
        self._session, self._connection = session, session.connection
        self._options, self._life, self._losses, self._notices = options, life, losses, notices
        self.applied: list[AppliedMigration] = []
        self._items = {(item.source, item.name): item for item in life.migrations.items}
        self._said_session = False
        self._newest_record: int | None = None
        self._prepared: tuple[str, str] = ("", "")
        self._untold: list[tuple[Source, Migration, float]] = []
        self._running: tuple[str, Migration] | None = None
        self._open: list[str] = []

    async def source(self, one: Survey, parsed: dict[tuple[str, str], tuple[Statement, ...]]) -> None:
        """Bring one source up to date."""
        source, plan, table = one.source, one.plan, one.source.table
        await self._session.ours()
        if not one.ledger.exists:
            await self._guarded_ledger(lambda: create_ledger(self._connection, table, source.folder), table.key)
        elif plan.names is not None:
            names = plan.names
            await self._guarded_ledger(lambda: upgrade_ledger(self._connection, table, names), table.key)
            self._life.emit("ledger.upgraded", source=source.label, ledger=table.key, rows=len(names))
        if not plan.pending:
            return
        await self._session.ours()
        keeps = source.label != "service"
        self._running = table.key, plan.pending[0]
        await self._losses.begin(self._connection, table.key, plan.pending[0], keeps=keeps)
        self._open += [table.key] if keeps else []
        has_name = one.ledger.has_name if one.ledger.exists else source.folder.generation == "v1"
        file = FileRun(self._at_work, source, has_name=has_name or plan.names is not None)
        if plan.resumable:
            await self._connection.execute(records.begin_unfinished(table.key, [m.name for m in plan.resumable]))
        last = plan.pending[-1]
        if self._options.transaction == "all":
            for migration in plan.pending:
                self._losses.judge(table.key, migration)
            await self._in_one_transaction(file, plan.pending, parsed)
            return
        key = table.key
        cut = list(messages((m, self._shares(one, m, parsed)) for m in plan.pending))
        for number, message in enumerate(cut):
            left = message
            if len(message) > 1:
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
            and not self._losses.is_careful(one.source.table.key)
            and is_small(migration, parsed.get((one.source.table.key, migration.name)))
        )

    async def _together(
        self,
        file: FileRun,
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
            opening = joined(("BEGIN", *file.fresh_inside, SET_OUR_PATH, START_CLOCK, "COMMIT"))
            return "".join([opening, *(file.small(m, parsed[key, m.name], is_last=m is last) for m in migrations)])

        if self._newest_record is None:
            await self._session.ours()
            self._newest_record = await records.newest_record(self._connection)
        name, text = self._prepared
        if name != message[0].name:
            text = text_of(message)
        self._running = key, message[0]
        await self._session.read_as_before()
        self._notices.shared = f"{message[0].name} to {message[-1].name}"
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
            self._notices.shared = None
        durations: dict[str, float] = {}
        await self._session.ours()
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
            await self._at_work.execute(text, f"{len(message)} small migrations in one message")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            if self._at_work.is_in_transaction:
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
        patience = self._at_work.patience((), ledger=key)
        while True:
            try:
                async with self._connection.transaction():
                    await self._connection.execute(self._at_work.local_lock_timeout)
                    self._at_work.watch.begin("ALTER TABLE")
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
                self._at_work.watch.end()
                await patience.again(refused)
            else:
                self._at_work.watch.end()
                return

    async def _one(
        self, file: FileRun, migration: Migration, parsed: tuple[Statement, ...] | None, one: Survey, *, is_last: bool
    ) -> None:
        if self._losses.is_careful(file.source.table.key):
            is_last = True  # for it is to be on the disk before the next one begins
            await self._losses.before(self._connection, file.source.table.key, migration)
        if parsed is None:
            parsed = await asyncio.to_thread(_parse, migration, escapes=self._session.escapes)
        raw = parsed_bytes(migration, parsed)
        await self._session.read_as_before()
        began = self._begin(file.source, migration, parsed)
        interrupted = one.unfinished.get(migration.name)
        # What was begun in steps goes on in steps, also where the grammar sees no reason for them.
        steps = (interrupted is not None and interrupted.is_begun) or any(
            not s.fits_a_transaction or s.ends_transactions != "no" for s in parsed
        )
        if not steps:
            resumed = interrupted is not None or migration in one.plan.resumable
            try:
                await file.in_transaction(migration, raw, parsed, began, is_last=is_last, resumed=resumed)
            except MigrationError as error:
                statement = statement_of(error, parsed)
                if statement is None or not refuses_transaction(error, statement):
                    raise
                steps = True
        if steps:
            await file.in_steps(migration, raw, parsed, began, interrupted)
        self._done(file.source, migration, time.monotonic() - began)
        if not is_last and not self._said_session and any(s.changes_session for s in parsed):
            self._said_session = True  # once: a project that does so does it often
            self._life.warn(
                "migration.session_changed",
                source=file.source.label,
                migration=migration.name,
                decision="what it SET holds to the end of this file: each file begins with the session's own settings,"
                " where drizzle's would hold on within one run",
                remedy="Write it in every file that depends on it.",
            )

    async def _in_one_transaction(
        self, file: FileRun, pending: Sequence[Migration], parsed: dict[tuple[str, str], tuple[Statement, ...]]
    ) -> None:
        """Drizzle's single transaction: all or nothing; success is said after the commit."""
        every: list[Statement] = []
        patience = self._at_work.patience(every, migration=pending[-1].name, ledger=file.source.table.key)
        while True:
            durations: list[tuple[Migration, float]] = []
            try:
                await self._connection.execute(joined((*file.fresh, "BEGIN")))
                for migration in pending:
                    statements = parsed.get((file.source.table.key, migration.name))
                    if statements is None:
                        statements = await asyncio.to_thread(_parse, migration, escapes=self._session.escapes)
                    raw = parsed_bytes(migration, statements)
                    every += [s for s in statements if not s.leaves_nothing][:1]
                    await self._session.read_as_before()
                    opening = (*(file.fresh_inside if durations else ()), self._at_work.local_lock_timeout)
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
        self._running = source.table.key, migration
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

    async def explain(self, error: MigrationError, surveys: Sequence[Survey]) -> None:
        """Give a refused statement the advice that fits its cause."""
        from orchestrator.migrator.run.causes import explain  # the grammar, once something has failed

        elapsed_s = self._at_work.lost[1] if self._at_work.lost else 0.0
        await explain(error, self._session, self._options, surveys, elapsed_s=elapsed_s)

    async def leave(self) -> None:
        """Take the session back from the files, for what is said of the run at its end; and say that it has ended."""
        if self._connection.is_closed():
            return
        with contextlib.suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                await self._session.ours()
                if self._open:
                    await self._connection.execute(ended(self._open))

    def lost(self, error: BaseException) -> None:
        """The connection is gone: remember what ran."""
        if self._running is None:
            return
        what, elapsed_s = self._at_work.lost or (None, 0.0)
        is_known = what is not None and (not isinstance(what, str) or what == "COMMIT")
        said = self._session.replies.sqlstate if self._session.replies is not None else None
        sqlstate = said or getattr(error, "sqlstate", None)
        self._losses.add(*self._running, what if is_known else None, elapsed_s, sqlstate)
