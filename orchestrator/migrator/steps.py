"""Apply a file that cannot be one transaction, statement by statement, each noted. Touches the database.

Two kinds of file come here: those with statements that refuse a transaction (CREATE INDEX CONCURRENTLY, VACUUM …), and
those that manage their own (`COMMIT;` in mid-file). Drizzle runs a file inside a transaction, so one is open at the
first statement; what the file says from there on is obeyed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.failure import is_connection_loss
from orchestrator.database.lock import HELD_HERE
from orchestrator.database.quoting import identifier
from orchestrator.migrator import records
from orchestrator.migrator.failures import failed_statement, invalid_index, lock_was_lost, prefix_was_edited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.errors import MigrationError
    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sql import Statement

_INDEX = (
    "SELECT i.indisvalid AS valid, n.nspname::text AS schema, c.relname::text AS name"
    " FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
)


class Steps:
    """One run over one file. `finish` writes record and ledger row; it is called inside the last transaction."""

    def __init__(
        self,
        connection: Any,
        *,
        ledger_key: str,
        migration: Migration,
        raw: bytes,
        statements: Sequence[Statement],
        on_statement: Callable[[int], None],
        finish: Callable[[], Awaitable[None]],
    ) -> None:
        self._connection, self._key, self._migration, self._raw = connection, ledger_key, migration, raw
        self._statements, self._on_statement, self._finish = statements, on_statement, finish
        # True while the transaction that Drizzle would have opened around the file has not been ended by the file.
        self._wrapped = True
        self._done = 0
        self._texts = [statement.text for statement in statements]

    async def run(self, interrupted: records.Unfinished | None) -> None:
        """Run what is not done yet, then `finish`.

        On an error the open transaction is rolled back, and what was noted as done stays done. Cancelled: the same.

        Raises:
            MigrationError: a statement failed, an index stayed invalid, the lock was lost, or the done part was edited.
        """
        try:
            await self._resume(interrupted)
            for statement in self._statements[self._done :]:
                self._on_statement(statement.index)
                await self._step(statement, interrupted)
                interrupted = None
            if not self._in_block:
                await self._connection.execute("BEGIN")
            await self._finish()
            await self._connection.execute("COMMIT")
        except BaseException as error:
            if not self._connection.is_closed() and self._in_block and not is_connection_loss(error):
                with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
                    await self._connection.execute("ROLLBACK")
            raise

    @property
    def _in_block(self) -> bool:
        return bool(self._connection.is_in_transaction())

    async def _resume(self, interrupted: records.Unfinished | None) -> None:
        if interrupted is None or interrupted.done == 0:
            await self._connection.execute(records.begin_unfinished(self._key, [self._migration.name]))
            return
        done = self._texts[: interrupted.done]
        if len(done) < interrupted.done or records.steps_hash(done) != interrupted.done_hash:
            raise prefix_was_edited(self._migration, interrupted)
        self._done = interrupted.done
        for statement in self._statements[: self._done]:
            if statement.transaction_control in {"commit", "rollback"}:
                self._wrapped = False
            elif statement.changes_session:
                # The session that made these settings is gone; what follows may depend on them.
                await self._execute(statement)

    async def _step(self, statement: Statement, interrupted: records.Unfinished | None) -> None:
        control = statement.transaction_control
        if control == "begin":
            if not self._in_block:
                await self._execute(statement)
            self._done = statement.index
        elif control == "commit":
            self._wrapped = False
            if self._in_block:
                await self._note(statement.index)
                await self._execute(statement)
            else:
                await self._note(statement.index)
        elif control == "rollback":
            self._wrapped = False
            if self._in_block:
                await self._execute(statement)
            await self._note(statement.index)
        elif not statement.transactional:
            await self._outside(statement, interrupted)
        elif self._in_block:
            await self._execute(statement)
            self._done = statement.index
        elif self._wrapped:
            await self._connection.execute("BEGIN")
            await self._execute(statement)
            self._done = statement.index
        else:
            # After the file's own COMMIT each statement is a transaction: its note goes into the same one.
            await self._connection.execute("BEGIN")
            await self._execute(statement)
            await self._note(statement.index)
            await self._connection.execute("COMMIT")

    async def _outside(self, statement: Statement, interrupted: records.Unfinished | None) -> None:
        """A statement that refuses a transaction. Noted before and after: it may run twice, and is looked at first."""
        if self._in_block and self._wrapped:
            await self._note(self._done)
            await self._connection.execute("COMMIT")
        if not self._in_block:
            await self._note(self._done, running=statement.index)
        was_running = interrupted is not None and interrupted.running == statement.index
        if not await self._is_done_already(statement, was_running=was_running):
            await self._execute(statement)
        await self._check_index(statement)
        await self._note(statement.index)

    async def _is_done_already(self, statement: Statement, *, was_running: bool) -> bool:
        """Drop what an earlier try left behind, and tell whether that try had come to its end before it was noted."""
        index = statement.concurrent_index
        if index is None or index.name is None:
            if index is not None and index.operation == "create":
                await self._drop_invalid_on_table(index.schema, index.table)
            return False
        found = await self._find_index(index.schema, index.name, index.table)
        if index.operation == "create":
            if found is None:
                return False
            if found["valid"]:
                return was_running
            await self._drop_index(found)
            return False
        return index.operation == "drop" and found is None and was_running

    async def _check_index(self, statement: Statement) -> None:
        index = statement.concurrent_index
        if index is None or index.operation == "drop":
            return
        if index.name is not None:
            found = await self._find_index(index.schema, index.name, index.table)
            bad = [found] if found is not None and not found["valid"] else []
        else:
            bad = await self._invalid_on_table(index.schema, index.table)
        if bad:
            raise invalid_index(self._migration, statement, str(bad[0]["name"]))

    async def _find_index(self, schema: str | None, name: str, table: str | None) -> Any:
        """The index of that name: in its own schema, or its table's, or the first of `search_path` that has it."""
        if schema is not None:
            return await self._connection.fetchrow(f"{_INDEX} WHERE n.nspname = $1 AND c.relname = $2", schema, name)
        if table is not None:
            return await self._connection.fetchrow(
                f"{_INDEX} WHERE c.relname = $1 AND i.indrelid = pg_catalog.to_regclass($2)", name, identifier(table)
            )
        return await self._connection.fetchrow(
            f"{_INDEX} WHERE i.indexrelid = pg_catalog.to_regclass($1)", identifier(name)
        )

    async def _invalid_on_table(self, schema: str | None, table: str | None) -> list[Any]:
        if table is None:
            return []
        qualified = f"{identifier(schema)}.{identifier(table)}" if schema else identifier(table)
        rows: list[Any] = await self._connection.fetch(
            f"{_INDEX} WHERE NOT i.indisvalid AND i.indrelid = pg_catalog.to_regclass($1)", qualified
        )
        return rows

    async def _drop_invalid_on_table(self, schema: str | None, table: str | None) -> None:
        for found in await self._invalid_on_table(schema, table):
            await self._drop_index(found)

    async def _drop_index(self, found: Any) -> None:
        await self._connection.execute(
            f"DROP INDEX CONCURRENTLY IF EXISTS {identifier(found['schema'])}.{identifier(found['name'])}"
        )

    async def _note(self, done: int, *, running: int | None = None) -> None:
        """Note how far we are, on condition that the lock is ours still."""
        note = records.note_step(
            self._key,
            self._migration.name,
            done=done,
            done_hash=records.steps_hash(self._texts[:done]),
            running=running,
        )
        tag = await self._connection.execute(f"{note} AND {HELD_HERE}")
        if tag != "UPDATE 1":
            raise lock_was_lost(self._migration)
        self._done = done

    async def _execute(self, statement: Statement) -> None:
        try:
            await self._connection.execute(statement.text)
        except asyncpg.PostgresError as error:
            if is_connection_loss(error):
                raise
            raise await self._failure(error, statement) from error

    async def _failure(self, error: Any, statement: Statement) -> MigrationError:
        """The error, with how many statements stay: a transaction that is open takes its own with it."""
        if self._in_block:
            with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
                await self._connection.execute("ROLLBACK")
        row = await self._connection.fetchval(
            "SELECT statements_done FROM orchestrator.unfinished_migrations WHERE ledger = $1 AND name = $2",
            self._key,
            self._migration.name,
        )
        return failed_statement(error, self._migration, self._raw, statement, done=row or 0)
