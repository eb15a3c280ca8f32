"""How one file is applied: statements, our record of it and its ledger row in one transaction. Touches the database.

A file that cannot be one transaction is handed to `steps`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import asyncpg

from orchestrator.database.connect_errors import is_connection_loss
from orchestrator.database.lock import HELD_HERE
from orchestrator.errors import MigrationError
from orchestrator.migrator import records
from orchestrator.migrator.ledger import insert_statement
from orchestrator.migrator.run.batching import DURATION, PROOF, STATEMENT_TIMEOUT_MS
from orchestrator.migrator.run.errors import (
    failed_statement,
    lock_was_lost,
    statement_of,
    transaction_was_ended,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.run.apply import Run
    from orchestrator.migrator.sql.statements import Statement
    from orchestrator.migrator.state import Source

# Of what is larger, the parsed statements are not kept until their turn, and the text is packed into our record.
KEPT_PARSED_BYTES = 1 << 20
_BATCH_BYTES = 1 << 18
_BATCHED_KINDS = frozenset({"INSERT", "UPDATE", "DELETE"})


class FileRun:
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
        limit_ms = self._run.options.statement_timeout_ms
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
        large = len(raw) > KEPT_PARSED_BYTES
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
        from orchestrator.migrator.run.stepwise import Steps

        await Steps(
            self._run,
            ledger_key=self.source.table.key,
            migration=migration,
            raw=raw,
            statements=parsed,
            finish=lambda: self.statements_and_row(migration, raw, (), began, resumed=True),
        ).run(interrupted)


# A role that a file SET has no right to our tables. It is the next file's again: after the commit, or, where that file
# is in the same transaction, by ROLE_BACK.
_ROLE_AWAY = (
    "SELECT pg_catalog.set_config('orchestrator.role', pg_catalog.current_setting('role'), true); SET LOCAL ROLE NONE"
)
ROLE_BACK = "SELECT pg_catalog.set_config('role', pg_catalog.current_setting('orchestrator.role'), true);"
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
