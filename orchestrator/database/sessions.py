"""The kinds of session that this program opens, and what each one sets before anything else. Touches the session.

Whoever may create objects in a schema on the search path can plant a function or an operator that fits a call better
than PostgreSQL's own (CVE-2018-1058), and it runs with the rights of the caller. So a session that runs our own SQL
looks for names in `pg_catalog` and nowhere else. The code of users keeps the path of its role:

- `ours`: our own SQL alone. Our path, no limits of role or database, and settings that our SQL is written for.
- `migration`: the files of users, with the role's own path; what we run between them stands in `as_ours`, or, inside a
  file's transaction, behind `SET_OUR_PATH`.
- `handlers`: the job handlers of users, with everything as their role has it.

Each kind has TCP keep-alives on the server's side: it notices a client that vanished as soon as the client would it.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

Kind = Literal["ours", "migration", "handlers"]

# `pg_temp` is named, and last: where it is not named it is searched first.
OUR_PATH = "pg_catalog, pg_temp"
# For the transaction that is open: its end brings back what the session, or the file that ran in it, had set.
SET_OUR_PATH = f"SET LOCAL search_path = {OUR_PATH}"
# The same for the path that the role, the database or the URL gives.
_SET_ROLE_PATH = "SET LOCAL search_path TO DEFAULT"

# A peer that vanished is noticed after 10 s, idle or not: within a third of a lease, and before a person asks.
KEEP_ALIVE_IDLE_S, KEEP_ALIVE_INTERVAL_S, KEEP_ALIVE_COUNT, USER_TIMEOUT_MS = 4, 2, 3, 10_000
_KEEP_ALIVE = {
    "tcp_keepalives_idle": str(KEEP_ALIVE_IDLE_S),
    "tcp_keepalives_interval": str(KEEP_ALIVE_INTERVAL_S),
    "tcp_keepalives_count": str(KEEP_ALIVE_COUNT),
    "tcp_user_timeout": str(USER_TIMEOUT_MS),
}
_NO_LIMITS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
# What a role or a database may have set, and what would change the meaning of our SQL or of the text that it gives.
# `default_transaction_read_only` is not among them: whoever sets it means that nothing is to be written.
_MEANING = {
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
# Where the server has it and a plan was made for larger tables than there are, compiling one takes seconds: a start on
# a server with LLVM took 16 s, of which 15 were compilation. It changes no result, and a file may set it for itself.
_NO_COMPILATION = {"jit": "off"}
_FIRST_WITH_TRANSACTION_TIMEOUT = 17
_ALONE = ("CREATE DATABASE", "DROP DATABASE", "ALTER DATABASE", "VACUUM")


_CANCEL_LIMIT_S = 5.0
# The loop itself holds tasks weakly.
_CANCELLING: set[asyncio.Task[None]] = set()


async def _sent(request: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # of no consequence
        await asyncio.wait_for(request, _CANCEL_LIMIT_S)


class Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """An asyncpg connection of one of the kinds; what the kind sets outlives a `reset` (a pool's release).

    Behind a pooler in transaction mode the session is not ours to set: the next transaction may be somebody else's.
    There everything of the kind `ours` runs in transactions, and each of them begins with the settings.
    """

    kind: Kind = "handlers"
    is_shared = False

    async def become(self, kind: Kind, *, may_be_shared: bool) -> None:
        """Take the settings of the kind, in one message; with a pooler between us and the server, for each transaction.

        A pooler answers the login with a process id of its own making. Nothing is set where the ids differ.
        """
        self.kind = kind
        is_ours = f"pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {self.get_server_pid()}"
        self.is_shared = may_be_shared or (
            await super().execute(f"SELECT {_set_config(self._settings())} WHERE {is_ours}") != "SELECT 1"
        )

    def _settings(self) -> dict[str, str]:
        """What the kind sets, by name."""
        if self.kind == "handlers":
            return _KEEP_ALIVE
        limits = dict(_NO_LIMITS)
        if self.get_server_version().major >= _FIRST_WITH_TRANSACTION_TIMEOUT:
            limits["transaction_timeout"] = "0"
        if self.kind == "migration":
            return {**_KEEP_ALIVE, **limits, **_NO_COMPILATION}
        return {"search_path": OUR_PATH, **_KEEP_ALIVE, **limits, **_NO_COMPILATION, **_MEANING}

    @property
    def setting(self) -> str:
        """SQL that gives the session the settings of its kind again, after a RESET ALL."""
        return f"SELECT {_set_config(self._settings())}"

    def _for_each_transaction(self) -> str:
        """SQL that sets the same for the transaction that is open, where the session itself is not ours to set."""
        return "; ".join(
            # A path in quotes would be one schema's name.
            f"SET LOCAL {name} = {value}" if name == "search_path" else f"SET LOCAL {name} = '{value}'"
            for name, value in self._settings().items()
            if name not in _KEEP_ALIVE
        )

    @property
    def _needs_settings(self) -> bool:
        return self.is_shared and self.kind == "ours" and not self.is_in_transaction()

    def terminate(self) -> None:
        """Cut the connection; the cancel request of a statement that was given up still goes out, within seconds.

        Without it the server's side of a commit that waits for a lost standby would stay for ever, one for each try:
        there it looks neither at its client nor at a time limit.
        """
        if self._cancellations and not self.is_closed():
            request = asyncpg.connect_utils._cancel(  # noqa: SLF001  # has no public door
                loop=self._loop,
                addr=self._addr,
                params=self._params,
                backend_pid=self.get_server_pid(),
                backend_secret=self._protocol.backend_secret,
            )
            task = self._loop.create_task(_sent(request))
            _CANCELLING.add(task)
            task.add_done_callback(_CANCELLING.discard)
        super().terminate()

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109
        """As asyncpg's, whose signature it is."""
        if args or not self._needs_settings:
            return str(await super().execute(query, *args, timeout=timeout))
        words = query.lstrip()[:20].upper()
        if words.startswith("BEGIN"):
            query = f"{query.rstrip().removesuffix(';')}; {self._for_each_transaction()}"
        elif not words.startswith(_ALONE):  # those resolve no names, and run in no transaction
            query = f"{self._for_each_transaction()}; {query}"
        return str(await super().execute(query, timeout=timeout))

    async def _execute(self, *args: Any, **options: Any) -> Any:
        if not self._needs_settings:
            return await super()._execute(*args, **options)
        async with self.transaction():
            return await super()._execute(*args, **options)

    async def _executemany(self, *args: Any, **options: Any) -> Any:
        if not self._needs_settings:
            return await super()._executemany(*args, **options)
        async with self.transaction():
            return await super()._executemany(*args, **options)

    async def _introspect_types(self, typeoids: Any, timeout: float) -> Any:  # noqa: ASYNC109 asyncpg's signature
        """Look up the types of a result, with our path: asyncpg's queries are not qualified."""
        if self.kind == "ours":
            return await super()._introspect_types(typeoids, timeout)
        is_nested = self.is_in_transaction()
        await super().execute(f"{'SAVEPOINT orchestrator_types' if is_nested else 'BEGIN'}; {SET_OUR_PATH}")
        try:
            return await super()._introspect_types(typeoids, timeout)
        finally:
            await super().execute(
                "ROLLBACK TO orchestrator_types; RELEASE orchestrator_types" if is_nested else "ROLLBACK"
            )

    def get_reset_query(self) -> str:
        """What a pool runs when a connection is given back: asyncpg's own, and the settings of the kind again."""
        if self.is_shared:
            return "" if self.kind == "ours" else str(super().get_reset_query())
        reset = super().get_reset_query().replace("pg_advisory", "pg_catalog.pg_advisory")
        return f"{reset}\n{self.setting};"


@asynccontextmanager
async def as_ours(connection: Any) -> AsyncIterator[None]:
    """A transaction with our path, in a session of the kind `migration` that has none open.

    Behind the statements of a file, in the file's transaction, it is `SET_OUR_PATH` alone.
    """
    async with connection.transaction():
        await connection.execute(SET_OUR_PATH)
        yield


async def role_schemas(connection: Any) -> list[str]:
    """The schemas that the role's own path leads to, first to last; call it in a transaction of an `ours` session."""
    await connection.execute(_SET_ROLE_PATH)
    schemas = await connection.fetchval("SELECT pg_catalog.current_schemas(false)::pg_catalog.text[]")
    await connection.execute(SET_OUR_PATH)
    return list(schemas)


def _set_config(settings: dict[str, str]) -> str:
    return ", ".join(f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings.items())
