"""Several small migrations in one message, each its own transaction with its ledger row inside. Pure: no I/O.

The way to the server and back is most of what a tiny migration costs. Nobody looks at the answers between the
transactions, so what must hold there fails by itself: a transaction whose session does not hold the migration lock
cannot write its ledger row. Whatever goes wrong in a message, the rest of it is not run, our records tell how far it
came, and what is left is applied one by one in the ordinary way, which names file, statement and line.

So one of them may begin twice, and only what leaves nothing when it is rolled back may share a message: a number that
was drawn from a sequence is not given again, and the first run must give the ids that Drizzle gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.database.lock import HELD_HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sql.statements import Statement

# What a message may hold: enough to make the way there and back small, and little enough to be shown as one moment.
_MESSAGE_BYTES = 128 * 1024
_MESSAGE_MIGRATIONS = 100
_MIGRATION_BYTES = 16 * 1024
# A statement in a message must be over at once, or else the message is rolled back to where it came and the statement
# runs in the ordinary way, where its time-outs, its blockers and its progress are those of one statement.
STATEMENT_TIMEOUT_MS = 1000
# When the transaction before this one ended, in seconds; `now()` is the same in the whole message.
_CLOCK = (
    "pg_catalog.set_config('orchestrator.clock', extract(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.text,"
    " false)"
)
# Event triggers run code of others for each DDL: with them nothing may be thrown away, and nothing shares a message.
START_CLOCK = (
    f"SELECT {_CLOCK} WHERE 1 / (CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_event_trigger"  # noqa: S608 constants
    " WHERE evtenabled <> 'D') THEN 0 ELSE 1 END) = 1"
)
DURATION = "extract(epoch FROM clock_timestamp()) - pg_catalog.current_setting('orchestrator.clock')::numeric"
# Division by zero where the lock is not held. Not a constant, which the planner would divide by at once.
PROOF = f"1 / (CASE WHEN {HELD_HERE} THEN 1 ELSE 0 END) = 1 AND {_CLOCK} IS NOT NULL"


def is_small(migration: Migration, statements: Sequence[Statement] | None) -> bool:
    """Whether a migration may share a message: small, and nothing in it outlasts a roll back."""
    return (
        statements is not None
        and migration.size_bytes <= _MIGRATION_BYTES
        and all(s.leaves_nothing for s in statements)
    )


def messages(pending: Iterable[tuple[Migration, bool]]) -> Iterator[list[Migration]]:
    """Cut (migration, may it share a message) into messages, in order; what may not stands alone."""
    message: list[Migration] = []
    size = 0
    for migration, shares in pending:
        if not shares:
            if message:
                yield message
                message, size = [], 0
            yield [migration]
            continue
        if message and (size + migration.size_bytes > _MESSAGE_BYTES or len(message) == _MESSAGE_MIGRATIONS):
            yield message
            message, size = [], 0
        message.append(migration)
        size += migration.size_bytes
    if message:
        yield message
