"""Locks that are not to be had: say who holds them, let others pass, try again, and fail when that took too long.

A statement that waits for a lock stops everybody who comes after it, so it waits for seconds only (`lock_timeout`).
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from orchestrator.lifecycle import Activity
from orchestrator.migrator.run.errors import LOCK_ERRORS, blocked
from orchestrator.migrator.run.progress import described

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.errors import MigrationError
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.run.progress import Watch
    from orchestrator.migrator.sql.statements import Statement

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_BURNT = "Numbers that this try took from sequences (serial, identity) are not given again: later ids may have a gap."


def pause_s(attempt: int) -> float:
    """Seconds until the next try, before jitter: others pass for longer and longer, the lock is held by long work."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 8))


class Patience:
    """One piece of work (a whole transaction) and for how long it is tried again; `retry_for_s` 0 is for ever."""

    def __init__(
        self,
        life: Lifecycle,
        watch: Watch,
        facts: Mapping[str, object],
        *,
        retry_for_s: float,
        statements: Sequence[Statement] = (),
    ) -> None:
        self._life, self._watch, self._facts, self._retry_for_s = life, watch, facts, retry_for_s
        self._statements = statements
        self._attempt = 0
        self._began: float | None = None

    async def again(self, error: MigrationError, statement: Statement | None = None) -> None:
        """Return after a pause where the work should be tried again; call it after the roll back.

        Raises:
            MigrationError: `error` itself if it is not about locks; with the blockers named if the time is over.
        """
        if error.facts.get("sqlstate") not in LOCK_ERRORS:
            raise error
        now = time.monotonic()
        self._attempt += 1
        if self._began is None:
            self._began = now
        waited_s, blockers = now - self._began, self._watch.blockers
        pause = pause_s(self._attempt) * random.uniform(0.5, 1.5)  # noqa: S311 jitter
        if self._retry_for_s and waited_s + pause > self._retry_for_s:
            raise blocked(error, blockers, attempts=self._attempt, waited_s=waited_s) from error.__cause__
        # nextval is not rolled back (PostgreSQL manual, "Sequence Manipulation Functions").
        burnt = {"sequences": _BURNT} if any(not s.leaves_nothing for s in self._statements) else {}
        self._life.emit(
            "migration.lock_refused",
            level="warning",
            **self._facts,
            **{name: error.facts.get(name) for name in ("statement", "line", "statement_kind", "sqlstate", "detail")},
            attempt=self._attempt,
            blockers=list(blockers),
            retry_in_s=round(pause, 2),
            waited_s=round(waited_s, 1),
            **burnt,
            hint="Rolled back, so that nobody waits behind it; tried again for as long as MIGRATION_DDL_RETRY_FOR.",
        )
        kind, text = described(statement) if statement is not None else (str(error.facts.get("statement_kind", "")), "")
        self._life.migrations.activity = Activity(
            kind, text, round(waited_s, 1), stage="waiting to try again", blockers=blockers
        )
        await asyncio.sleep(pause)
