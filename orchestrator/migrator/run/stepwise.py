"""Apply a file that cannot be one transaction, statement by statement, each noted. Touches the database.

Three kinds of file come here: those with statements that refuse a transaction (CREATE INDEX CONCURRENTLY, VACUUM …),
those that manage their own (`COMMIT;` in mid-file), and those with a CALL or DO that may commit inside. Drizzle runs a
file inside a transaction, so one is open at the first statement; what the file says from there on is obeyed.

The work is cut where something is committed. Such a piece is a transaction, or one statement outside of any; it is what
is run again where a lock was not to be had, and what a crash loses at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect_errors import is_connection_loss
from orchestrator.database.lock import HELD_HERE
from orchestrator.errors import MigrationError
from orchestrator.migrator import records
from orchestrator.migrator.run import recovery
from orchestrator.migrator.run.errors import (
    failed_statement,
    invalid_index,
    lock_was_lost,
    prefix_was_edited,
    refuses_transaction,
    statement_of,
)
from orchestrator.migrator.run.session import AS_OURSELVES, joined

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.execution import Execution
    from orchestrator.migrator.sql.statements import Statement


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece begins: statements done, and what the file has said about transactions until there.

    `wrapped`: the transaction that Drizzle would have opened around the file has not been ended by the file.
    `chained`: the last COMMIT or ROLLBACK said AND CHAIN. `own_timeout`: the file has set lock_timeout for its session.
    """

    done: int = 0
    wrapped: bool = True
    chained: bool = False
    own_timeout: bool = False


class Steps:
    """One run over one file. `finish` writes record and ledger row; it is called inside the last transaction."""

    def __init__(
        self,
        run: Execution,
        *,
        ledger_key: str,
        migration: Migration,
        raw: bytes,
        statements: Sequence[Statement],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        self._run, self._key, self._migration, self._raw = run, ledger_key, migration, raw
        self._connection: Any = run.connection
        self._statements, self._finish = statements, finish
        self._texts = [statement.text for statement in statements]
        self._done, self._noted = 0, 0
        self._fresh = run.session.fresh(is_service=False)
        self._wrapped, self._chained, self._own_timeout = True, False, False
        # Statements of which a try was noted as begun and not as ended, with the indexes that were there before.
        self._begun: dict[int, frozenset[int]] = {}
        # Statements that the server has refused inside a transaction, and would take by themselves.
        self._refused: set[int] = set()

    async def run(self, interrupted: records.Unfinished | None) -> None:
        """Run what is not done yet, then `finish`.

        On an error the open transaction is rolled back, and what was noted as done stays done. Cancelled: the same.

        Raises:
            MigrationError: a statement failed, an index stayed invalid, the lock was lost, or the done part was edited.
        """
        facts = {"migration": self._migration.name, "file": str(self._migration.path)}
        patience = self._run.patience(self._statements, **facts)
        try:
            await self._send(joined(self._fresh))
            await self._resume(interrupted)
            while True:
                place = _Place(self._done, self._wrapped, self._chained, self._own_timeout)
                refused = len(self._refused)
                try:
                    if await self._piece():
                        return
                except MigrationError as error:
                    await self._run.roll_back()
                    self._done, self._wrapped = place.done, place.wrapped
                    self._chained, self._own_timeout = place.chained, place.own_timeout
                    if len(self._refused) == refused:
                        await patience.again(error, statement_of(error, self._statements))
                else:
                    patience = self._run.patience(self._statements, **facts)
        except BaseException as error:
            if not is_connection_loss(error):
                await self._run.roll_back()
            raise

    @property
    def _in_block(self) -> bool:
        return self._run.is_in_transaction

    async def _resume(self, interrupted: records.Unfinished | None) -> None:
        if interrupted is None or not interrupted.is_begun:
            note = records.begin_unfinished(self._key, [self._migration.name])
            await self._send(f"{joined(AS_OURSELVES)}{note}")
            return
        done = self._texts[: interrupted.done]
        if interrupted.done and (len(done) < interrupted.done or records.steps_hash(done) != interrupted.done_hash):
            raise prefix_was_edited(self._migration, interrupted)
        self._done = self._noted = interrupted.done
        if interrupted.running is not None:
            self._begun[interrupted.running] = interrupted.known
        for statement in self._statements[: self._done]:
            if statement.transaction_control in {"commit", "rollback"}:
                self._wrapped, self._chained = False, statement.kind.endswith("AND CHAIN")
            elif statement.changes_session:
                # The session that made these settings is gone; what follows may depend on them.
                if statement.transactional:
                    await self._execute(statement)
                else:
                    await self._execute_outside(
                        statement, await recovery.look(self._connection, statement, before=None)
                    )

    async def _piece(self) -> bool:
        """Run until something is committed; True when that was the end of the file."""
        if self._chained and not self._in_block:
            await self._open()
        while self._done < len(self._statements):
            statement = self._statements[self._done]
            self._run.at(statement.index)
            if await self._runs_by_itself(statement):
                if self._in_block and self._wrapped:
                    await self._note(self._done)
                    await self._commit()
                    return False
                await self._outside(statement)
                return False
            is_files_own_block = self._in_block and not self._wrapped
            try:
                await self._inside(statement)
            except MigrationError as error:
                if not is_files_own_block and refuses_transaction(error, statement):
                    self._refused.add(statement.index)
                raise
            if not self._in_block or statement.transaction_control in {"commit", "rollback"}:
                return False
        self._run.at(len(self._statements))
        if not self._in_block:
            await self._open()
        await self._finish()
        await self._commit()
        return True

    async def _runs_by_itself(self, statement: Statement) -> bool:
        """Whether the statement is run outside any transaction. In a block that the file began, it fails as in psql."""
        if not statement.transactional or statement.index in self._refused:
            return True
        if statement.ends_transactions == "no" or (self._in_block and not self._wrapped):
            return False
        return statement.ends_transactions == "yes" or await recovery.calls_an_end(self._connection, statement)

    async def _inside(self, statement: Statement) -> None:
        control = statement.transaction_control
        if control == "begin":
            if not self._in_block:
                await self._execute(statement)
                await self._limit_waiting()
            self._done = statement.index
        elif control in {"commit", "rollback"}:
            await self._end_block(statement)
        elif self._in_block or self._wrapped:
            if not self._in_block:
                await self._open()
            await self._execute(statement)
            self._done = statement.index
        else:
            # After the file's own COMMIT each statement is a transaction: its note goes into the same one.
            await self._open()
            await self._execute(statement)
            await self._note(statement.index)
            await self._commit()

    async def _end_block(self, statement: Statement) -> None:
        """COMMIT or ROLLBACK of the file's own, and the note that belongs to it."""
        # A note inside a prepared transaction would be locked until that ends, and one that is rolled back is lost.
        note_inside = self._in_block and statement.kind in {"COMMIT", "COMMIT AND CHAIN"}
        if note_inside:
            await self._note(statement.index)
        if self._in_block:
            await self._execute(statement)
        self._wrapped, self._chained = False, self._in_block
        if note_inside:
            self._noted = statement.index
        else:
            if self._chained:  # ROLLBACK AND CHAIN: the note must not wait for what comes
                await self._send("ROLLBACK")
            await self._note(statement.index)
        if self._chained:
            await self._limit_waiting()

    async def _outside(self, statement: Statement) -> None:
        """A statement that refuses a transaction. Noted before and after: it may run twice, and is looked at first."""
        before = self._begun.get(statement.index)
        found = await recovery.look(self._connection, statement, before=before)
        if before is None or not found.is_done:
            for leftover in found.leftovers:
                await self._sent(leftover, statement)
            if before is None and not self._in_block:
                # What is there already was not made by us: should we be cut off, it is not taken for our work.
                running = None if found.is_done else statement.index
                await self._note(self._done, running=running, known=found.known)
                if running is not None:
                    self._begun[statement.index] = found.known
            try:
                await self._execute_outside(statement, found)
            except MigrationError as error:
                if statement.ends_transactions != "no":
                    error.remedy += " What the statement has committed itself stays, too; it runs again from its start."
                raise
            invalid = await recovery.invalid_after(self._connection, statement, found.known)
            if invalid is not None:
                raise invalid_index(self._migration, statement, invalid)
        await self._note(statement.index)

    async def _execute_outside(self, statement: Statement, found: recovery.Look) -> None:
        if found.instead is None:
            is_limited = not self._own_timeout and recovery.stops_others(statement)
            if is_limited:
                await self._send(self._run.lock_timeout)
            try:
                await self._execute(statement)
            finally:
                if is_limited:
                    await self._run.clear("SET lock_timeout = 0")
            return
        await self._sent(found.instead, statement)
        if statement.kind == "DISCARD ALL":
            self._own_timeout = False
            await self._send(joined(self._fresh))

    async def _note(self, done: int, *, running: int | None = None, known: frozenset[int] = frozenset()) -> None:
        """Note how far we are, on condition that the lock is ours still."""
        note = records.note_step(
            self._key,
            self._migration.name,
            done=done,
            done_hash=records.steps_hash(self._texts[:done]),
            running=running,
            known=known,
        )
        # A role that the file SET has no right to our tables; it is the file's again after the commit.
        tag = await self._send(f"{joined(self._run.session.as_ourselves)}{note} AND {HELD_HERE}")
        if tag != "UPDATE 1":
            raise lock_was_lost(self._migration)
        self._done = done
        if not self._in_block:
            self._noted = done

    async def _open(self) -> None:
        await self._send("BEGIN")
        await self._limit_waiting()

    async def _limit_waiting(self) -> None:
        """In a transaction, wait for locks no longer than is set, unless the file has its own idea of that."""
        if self._in_block and not self._own_timeout:
            await self._send(self._run.local_lock_timeout)

    async def _commit(self) -> None:
        await self._send("COMMIT")
        self._noted = self._done

    async def _send(self, text: str) -> str:
        """Run SQL of ours. Deferred constraints and triggers run in a COMMIT, and fail as the file's."""
        try:
            return await self._run.execute(text, "COMMIT")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            await self._run.roll_back()
            raise failed_statement(error, self._migration, None, "COMMIT", done=self._noted) from error

    async def _execute(self, statement: Statement) -> None:
        await self._sent(statement.text, statement)
        if statement.changes_session and _sets_lock_timeout(statement):
            self._own_timeout = True

    async def _sent(self, text: str, statement: Statement) -> None:
        try:
            await self._run.execute(text, statement)
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            await self._run.roll_back()
            raise failed_statement(error, self._migration, self._raw, statement, done=self._noted) from error


def _sets_lock_timeout(statement: Statement) -> bool:
    """Whether a statement that changes the session's settings changes how long it waits for locks."""
    parsed = recovery.tree_of(statement)
    if parsed is not None and parsed.node == "VariableSetStmt":
        fields = parsed.fields()
        return fields.get("name") == "lock_timeout" or fields["kind"] == "VAR_RESET_ALL"
    return "lock_timeout" in statement.text
