"""SQL at work on the session that migrates: watched, timed, and tried again where a lock was not free.

What one file is run with, whether it is one transaction or goes statement by statement.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.migrator.run.lock_retry import Patience

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.run.progress import Watch
    from orchestrator.migrator.run.session import Session
    from orchestrator.migrator.sql.statements import Statement


class Execution:
    """The session at work. `lost` is what ran when the connection went, and for how many seconds it had."""

    def __init__(self, session: Session, options: Options, life: Lifecycle, watch: Watch) -> None:
        self.session, self.options, self._life, self.watch = session, options, life, watch
        self.connection: Any = session.connection
        self.lost: tuple[Statement | str, float] | None = None

    def patience(self, statements: Sequence[Statement], **facts: object) -> Patience:
        """For one piece of work, of these statements, that may have to be tried again; `facts` name it."""
        return Patience(self._life, self.watch, facts, retry_for_s=self.options.ddl_retry_for_s, statements=statements)

    @property
    def local_lock_timeout(self) -> str:
        """SQL that lets the present transaction wait for locks as long as it may, and no longer."""
        return f"SET LOCAL lock_timeout = {self.options.ddl_lock_timeout_ms}"

    @property
    def lock_timeout(self) -> str:
        """The same for the session."""
        return f"SET lock_timeout = {self.options.ddl_lock_timeout_ms}"

    def at(self, number: int) -> None:
        """Remember which statement runs now."""
        self._life.migrations.statement = number

    async def execute(self, text: str, what: Statement | str = "") -> str:
        """Run `text`, which is `what` to those who watch, as one simple query; return the last command's tag."""
        self.watch.begin(what)
        if self.session.replies is not None:
            self.session.replies.completed, self.session.replies.sqlstate = 0, None
        try:
            tag: str = await self.connection.execute(text)
        except CONNECTION_ERRORS:
            self.lost = what, self.watch.elapsed_s or 0.0
            raise
        finally:
            self.watch.end()
        return tag

    async def roll_back(self) -> None:
        """End the transaction that is open, if there is one; what it fails with is not told: an error is on its way."""
        if self.is_in_transaction:
            await self.clear("ROLLBACK")

    async def clear(self, text: str) -> None:
        """Run SQL of ours that clears up behind an error; a session that is lost needs none."""
        if not self.connection.is_closed():
            with contextlib.suppress(*CONNECTION_ERRORS):
                await self.connection.execute(text)

    @property
    def is_in_transaction(self) -> bool:
        """What the server said last about the transaction."""
        return not self.connection.is_closed() and bool(self.connection.is_in_transaction())
