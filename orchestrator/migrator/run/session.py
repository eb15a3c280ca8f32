"""What the session is set to around the statements of a file, and which of several commands has failed.

Each file begins with the session as the login made it, so that its outcome is the same whether the files before it ran
in this process or in an earlier one. What we write is written as whoever logged in, with our own search path. The SQL
is text, which travels with the statements; the session itself is touched by `Session` alone.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.quoting import literal
from orchestrator.database.replies import count_replies
from orchestrator.database.sessions import OUR_PATH, SET_OUR_PATH
from orchestrator.migrator.records import SERVICE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.migrator.run.options import Options
    from orchestrator.migrator.sql.statements import Statement

# DISCARD ALL in its parts (PostgreSQL manual, DISCARD), but for two: it cannot stand in a transaction, and it would let
# go of the migration lock. RESET ROLE leads back to the role that ALTER ROLE or the URL gives, not to the login's.
DISCARD = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ROLE",
    "RESET ALL",
    "DEALLOCATE ALL",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)
# For the rest of the transaction that is open: its end brings back what the file had set.
AS_OURSELVES = ("SET LOCAL session_authorization = DEFAULT", "SET LOCAL role = DEFAULT", SET_OUR_PATH)
# A role of our schema's name finds it first by "$user".
_USER = re.compile(r'("\$user"|\$user)\s*,?\s*')


def joined(commands: Iterable[str]) -> str:
    """The commands as text that something else can follow."""
    return "".join(f"{command};" for command in commands)


class Message:
    """Commands that travel in one message, and whose each is: a statement of a file, or a word for one of ours."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._owners: list[Statement | str] = []

    def __bool__(self) -> bool:
        return bool(self._texts)

    def ours(self, owner: str, *commands: str) -> Message:
        """Add commands of ours; `owner` says what they are for."""
        self._texts += [f"{command};" for command in commands]
        self._owners += [owner] * len(commands)
        return self

    def add(self, statement: Statement) -> Message:
        """Add a statement of the file, which may end with a line comment."""
        self._texts.append(f"{statement.text}\n;\n")
        self._owners.append(statement)
        return self

    @property
    def text(self) -> str:
        """The message."""
        return "".join(self._texts)

    def culprit(self, completed: int | None, position: str | int | None) -> tuple[Statement | str, int]:
        """Whose command has failed, and how many characters of the message stand before it.

        A `position` lies in the command that failed. Without one, as many commands as are `completed` stand before it;
        where that is not known (None) it is the last statement of the file, or the last command.
        """
        if position is not None:
            at, start = int(position) - 1, 0
            for text, owner in zip(self._texts, self._owners, strict=True):
                if at < start + len(text):
                    return owner, start
                start += len(text)
        if completed is None:
            of_file = [n for n, owner in enumerate(self._owners) if not isinstance(owner, str)]
            completed = of_file[-1] if of_file else len(self._owners) - 1
        number = min(completed, len(self._owners) - 1)
        return self._owners[number], sum(map(len, self._texts[:number]))


class Session:
    """The one session that migrates. `login` is its user; `escapes`: its standard_conforming_strings is off."""

    def __init__(self, connection: Any, options: Options) -> None:
        self.connection = connection
        self.replies = count_replies(connection)
        self._settings: tuple[str, ...] = (
            connection.setting,
            f"SET statement_timeout = {options.statement_timeout_ms}",
        )
        self.login = ""
        self.escapes = False
        self._reading = ("", "")

    @classmethod
    async def begin(cls, connection: Any, options: Options) -> Session:
        """Remember what the login gave, and set our own path: until the first file begins, only our own SQL runs."""
        session = cls(connection, options)
        # A killed holder keeps its lock until its statement ends, unless the server looks for its client (Linux alone).
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute("SET client_connection_check_interval = '500ms'")
            session._settings += ("SET client_connection_check_interval = '500ms'",)
        role, path, session.login, strings = await connection.fetchrow(
            "SELECT current_user::pg_catalog.text, pg_catalog.current_setting('search_path'),"
            " session_user::pg_catalog.text, pg_catalog.current_setting('standard_conforming_strings')"
        )
        session.escapes = strings == "off"
        if role == SERVICE_SCHEMA:  # what a user's file makes unqualified belongs where drizzle would have put it
            session._settings += (
                f"SELECT pg_catalog.set_config('search_path', {literal(_USER.sub('', path))}, false)",
            )
        await session.ours()
        session._reading = session._read_by()
        return session

    def fresh(self, *, is_service: bool) -> tuple[str, ...]:
        """Commands that give a file the session as the login made it; our own files have our own path.

        They are part of the transaction that a BEGIN behind them in the message opens: send them with each try.
        """
        return (*DISCARD, *self._settings, *((f"SET search_path = {OUR_PATH}",) if is_service else ()))

    async def read_as_before(self) -> None:
        """Undo what decides how the server reads a message, before it comes to the commands in it.

        Call it where a file begins: the commands of `fresh` would be read by what the file before it has set.
        """
        if self._reading != self._read_by():
            await self.ours()

    def _read_by(self) -> tuple[str, str]:
        settings = self.connection.get_settings()  # as the server reports them
        return settings.client_encoding, settings.standard_conforming_strings

    async def ours(self) -> None:
        """Give the session to our own SQL, until the next file begins."""
        await self.connection.execute(joined(self.fresh(is_service=True)))

    @property
    def as_ourselves(self) -> tuple[str, ...]:
        """AS_OURSELVES for a note in the middle of a file, whose role holds again after it."""
        # Some servers forget the role when the session's authorization comes back: only where a file has changed it.
        same = self.connection.get_settings().session_authorization == self.login
        return AS_OURSELVES[1:] if same else AS_OURSELVES

    @property
    def completed(self) -> int | None:
        """How many commands of the last message were complete; None where that cannot be counted."""
        return None if self.replies is None else self.replies.completed
