"""How one file is applied: statements, our record of it and its ledger row in one transaction. Touches the database.

A file that cannot be one transaction is handed to `stepwise`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg

from orchestrator.database.connect_errors import is_connection_loss
from orchestrator.database.lock import HELD_HERE
from orchestrator.database.sessions import SET_OUR_PATH
from orchestrator.errors import MigrationError
from orchestrator.migrator import records
from orchestrator.migrator.ledger import insert_statement
from orchestrator.migrator.run.batching import DURATION, PROOF, STATEMENT_TIMEOUT_MS
from orchestrator.migrator.run.errors import (
    OPENING,
    RECORD,
    failed_statement,
    lock_was_lost,
    statement_of,
    transaction_was_ended,
)
from orchestrator.migrator.run.session import AS_OURSELVES, Message, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.execution import Execution
    from orchestrator.migrator.sources import Source
    from orchestrator.migrator.sql.statements import Statement

# Of what is larger, the parsed statements are not kept until their turn, and the text is packed into our record.
KEPT_PARSED_BYTES = 1 << 20
_BATCH_BYTES = 1 << 18
_BATCHED_KINDS = frozenset({"INSERT", "UPDATE", "DELETE"})


def parsed_bytes(migration: Migration, statements: Sequence[Statement]) -> bytes:
    """The file as it was parsed, without reading it again; one that has no statement is read."""
    return statements[0].raw if statements else migration.read()


class FileRun:
    """How one file is applied, into one ledger."""

    def __init__(self, run: Execution, source: Source, *, has_name: bool) -> None:
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
        opening = (*self.fresh, *self._begin(is_last=is_last))
        patience = self._run.patience(parsed, migration=migration.name, file=str(migration.path))
        while True:
            try:
                await self.statements_and_row(migration, raw, parsed, began, resumed=resumed, opening=opening)
                await self.commit(migration)
            except MigrationError as error:
                await patience.again(error, statement_of(error, parsed))
            else:
                return

    @property
    def fresh(self) -> tuple[str, ...]:
        """Commands after which the session is as the login made it; a transaction of their own.

        In the file's transaction they would be rolled back with it, and SET TRANSACTION must come before any query.
        """
        return ("BEGIN", *self.fresh_inside, "COMMIT")

    @property
    def fresh_inside(self) -> tuple[str, ...]:
        """The same inside a transaction that others have begun."""
        return self._run.session.fresh(is_service=self.source.label == "service")

    def _begin(self, *, is_last: bool) -> tuple[str, ...]:
        return ("BEGIN", *(() if is_last else ("SET LOCAL synchronous_commit = off",)), self._run.local_lock_timeout)

    def small(self, migration: Migration, statements: Sequence[Statement], *, is_last: bool) -> str:
        """A whole small migration as SQL that proves by itself that the lock is held; it travels with others."""
        limit_ms = self._run.options.statement_timeout_ms
        limit_ms = min(limit_ms, STATEMENT_TIMEOUT_MS) if limit_ms else STATEMENT_TIMEOUT_MS
        row = insert_statement(
            self.source.table, self.source.folder, migration, has_name=self._has_name, condition=PROOF
        )
        raw = parsed_bytes(migration, statements)
        parts = [
            joined((*self._begin(is_last=is_last), f"SET LOCAL statement_timeout = {limit_ms}")),
            *(f"{statement.text}\n;\n" for statement in statements),
            # What may share a message changes no role.
            joined(
                (
                    SET_OUR_PATH,
                    records.record_statement(self.source.table.key, migration, duration=DURATION, raw=raw),
                    row,
                    "COMMIT",
                )
            ),
        ]
        return "".join(parts)

    async def commit(self, migration: Migration) -> None:
        """End the transaction; deferred constraints and triggers run here, and fail as the file's."""
        try:
            await self._run.execute("COMMIT", "COMMIT")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            raise failed_statement(error, migration, None, "COMMIT", single=self._is_single) from error

    async def statements_and_row(
        self,
        migration: Migration,
        raw: bytes,
        parsed: Sequence[Statement],
        began: float,
        *,
        resumed: bool,
        opening: tuple[str, ...] = (),
    ) -> None:
        """The statements of a file and its ledger row in one transaction; rolled back on an error.

        `opening` begins the transaction where none is open. It travels with the first statement, and the row with the
        last one: the way to the server and back is most of what a small migration costs.
        """
        large = len(raw) > KEPT_PARSED_BYTES
        # What we write is UTF-8, and the server reads a message by what was set before it.
        recodes = b"client_encoding" in raw.lower()
        apart = large or recodes
        packing = asyncio.create_task(asyncio.to_thread(records.compress, raw)) if large else None
        message = Message().ours(OPENING, *opening)
        try:
            batches = _batches(parsed, may_be_several=self._run.session.completed is not None)
            for number, batch in enumerate(batches, start=1):
                for statement in batch:
                    message.add(statement)
                if number < len(batches) or apart:
                    await self._send(migration, raw, message, batch[0])
                    message = Message()
            if recodes:
                await self._send(migration, raw, message.ours(RECORD, "SET LOCAL client_encoding = 'UTF8'"), None)
                message = Message()
            if packing is not None and (packed := await packing) is not None:
                duration_s = time.monotonic() - began
                await self._send(migration, raw, message.ours(RECORD, *AS_OURSELVES), None)
                message = Message()
                await self._record_packed(migration, packed, duration_s)
            else:
                packed = None
            self._close(message, migration, raw, began, is_recorded=packed is not None, resumed=resumed)
            tag = await self._send(migration, raw, message, batches[-1][0] if batches and not apart else None)
            if not self._run.is_in_transaction:
                raise transaction_was_ended(migration)
            if tag != "INSERT 0 1":
                raise lock_was_lost(migration)
        except (MigrationError, asyncpg.PostgresError):
            await self._run.roll_back()
            raise
        finally:
            if packing is not None:
                packing.cancel()

    async def _send(self, migration: Migration, raw: bytes, message: Message, first: Statement | None) -> str:
        """Send the message, whose first statement of the file is `first`; returns the last command's tag.

        An error names the command that has failed. Nothing is run again to find it.
        """
        if first is not None:
            self._run.at(first.index)
        try:
            return await self._run.execute(message.text, first or "COMMIT")
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            owner, shift = message.culprit(self._run.session.completed, error.position)
            raise failed_statement(error, migration, raw, owner, shift=shift, single=self._is_single) from error

    async def _record_packed(self, migration: Migration, packed: bytes, duration_s: float) -> None:
        try:
            await records.record_packed(
                self._run.connection, self.source.table.key, migration, duration_s=duration_s, packed=packed
            )
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            raise failed_statement(error, migration, None, RECORD, single=self._is_single) from error

    def _close(
        self, message: Message, migration: Migration, raw: bytes, began: float, *, is_recorded: bool, resumed: bool
    ) -> None:
        """Add record, ledger row, and the proof that the lock is still ours."""
        key = self.source.table.key
        message.ours(RECORD, *AS_OURSELVES)
        if not is_recorded:
            duration = records.since_message(time.monotonic() - began)
            message.ours(RECORD, records.record_statement(key, migration, duration=duration, raw=raw))
        if resumed:
            message.ours(RECORD, records.end_unfinished(key, migration.name))
        # Last: its command tag says whether the lock was held (a transaction pooler loses it between transactions).
        row = insert_statement(
            self.source.table, self.source.folder, migration, has_name=self._has_name, condition=HELD_HERE
        )
        message.ours(f"its row in the ledger {key}", row)

    async def in_steps(
        self,
        migration: Migration,
        raw: bytes,
        parsed: Sequence[Statement],
        began: float,
        interrupted: records.Unfinished | None,
    ) -> None:
        """A file that cannot be one transaction: statement by statement, each noted, so that a crash resumes."""
        from orchestrator.migrator.run.stepwise import Steps

        await Steps(
            self._run,
            ledger_key=self.source.table.key,
            migration=migration,
            raw=raw,
            statements=parsed,
            finish=lambda: self.statements_and_row(migration, raw, (), began, resumed=True),
        ).run(interrupted)


def _batches(parsed: Iterable[Statement], *, may_be_several: bool) -> list[list[Statement]]:
    """Neighbouring small data statements together, everything else alone."""
    batches: list[list[Statement]] = []
    size = 0
    for statement in parsed:
        small = (
            may_be_several
            and statement.kind in _BATCHED_KINDS
            and statement.byte_length <= _BATCH_BYTES // 4
            and not statement.changes_session
        )
        if small and batches and size and size + statement.byte_length <= _BATCH_BYTES:
            batches[-1].append(statement)
            size += statement.byte_length
        else:
            batches.append([statement])
            size = statement.byte_length if small else 0
    return batches
