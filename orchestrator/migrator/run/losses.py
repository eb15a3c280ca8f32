"""A migration that takes the server down, or whose connection is cut each time, is not run for ever. Touches one table.

A lost connection is usually weather: the run begins again, and what was in a transaction was rolled back. But a
statement that ends the server (out of memory, say) does so at each try, and each try ends the work of all of its users.
So losses are counted by statement, in this process and, by a row that stands for as long as a run has not ended, over
restarts of both: whoever finds the row of a run that did not end, and a server that was started since, counts one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orchestrator.database.quoting import literal
from orchestrator.errors import MigrationError
from orchestrator.migrator.run.progress import excerpt
from orchestrator.migrator.run.session import AS_OURSELVES, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.migrator.folder import Migration
    from orchestrator.migrator.sql.statements import Statement

# A crash of the server loses its cumulative statistics, and with them the time when they were reset; a restart changes
# the first (PostgreSQL manual, "The Cumulative Statistics System"). Everybody may read both.
_SERVER = (
    "SELECT pg_catalog.concat_ws(' ', extract(epoch FROM pg_catalog.pg_postmaster_start_time()),"
    " extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()))"
)
_TABLE = "orchestrator.migration_runs"
_DEATHS = 2
_CUTS = 3
_ADMIN_SHUTDOWN = "57P01"

Kind = Literal["died", "ended", "restarted", "cut"]


class Lost(NamedTuple):
    """One loss: what ran (None where that is not known), for how long, how the server said so, and which server."""

    ledger: str
    migration: Migration
    statement: Statement | str | None
    elapsed_s: float
    sqlstate: str | None
    server: str

    @property
    def number(self) -> int | str | None:
        """What tells one statement of the file from another."""
        return self.statement if self.statement is None or isinstance(self.statement, str) else self.statement.index


class _Earlier(NamedTuple):
    """What earlier processes have left word of: the file that ran last, its statement if known, and the count."""

    name: str = ""
    statement: int | None = None
    deaths: int = 0


_NOTHING = _Earlier()


class Losses:
    """The losses of one process, and what earlier ones have left word of. Give it to each run of the process.

    Where there is one, a run is careful: files go by themselves, each is noted before it begins, and is on the disk
    before the next one does. A crash takes back what was committed in the last moments, so that without it the file
    that a run finds pending first need not be the one that ran.
    """

    def __init__(self) -> None:
        self._lost: list[Lost] = []
        self._earlier: dict[str, _Earlier] = {}
        self._servers: dict[str, str] = {}
        self._keeps = False

    def add(self, ledger: str, migration: Migration, what: Statement | str | None, elapsed_s: float, code: Any) -> None:
        """The connection was lost while `what` ran, for so long; `code` is the SQLSTATE that the server gave."""
        self._lost.append(Lost(ledger, migration, what, elapsed_s, code, self._servers.get(ledger, "")))

    def is_careful(self, ledger: str) -> bool:
        """Whether the connection was lost, or the server went away with an earlier process, while this ledger grew."""
        return any(one.ledger == ledger for one in self._lost) or bool(self._earlier.get(ledger, _NOTHING).deaths)

    async def begin(self, connection: Any, ledger: str, first: Migration, *, keeps: bool) -> None:
        """A run begins with `first`. Call it under the lock; `keeps`: there are tables of ours to keep notes in.

        Raises as `before`.
        """
        server = self._servers[ledger] = str(await connection.fetchval(_SERVER))
        self._keeps = keeps and bool(await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NOT NULL", _TABLE))
        if self._keeps and ledger not in self._earlier:  # what comes after that is this process's own
            self._earlier[ledger] = await _earlier(connection, ledger, first, server)
        await self._note(connection, ledger, first)
        self.judge(ledger, first)

    async def before(self, connection: Any, ledger: str, migration: Migration) -> None:
        """A file begins, in a run that is careful.

        Raises:
            MigrationError: the server went away, or the connection was cut, too often while the same statement ran.
        """
        await self._note(connection, ledger, migration)
        self.judge(ledger, migration)

    def judge(self, ledger: str, migration: Migration) -> None:
        """Raises as `before`."""
        mine, deaths, statement = self._known(ledger, migration)
        if deaths >= _DEATHS:
            raise _went_away(ledger, migration, statement, deaths, terminated=all(kind == "ended" for _, kind in mine))
        if len(mine) >= _CUTS:
            raise _cut_each_time(migration, statement, [one.elapsed_s for one, _ in mine])

    def _known(self, ledger: str, migration: Migration) -> tuple[list[tuple[Lost, Kind]], int, Statement | str | None]:
        """Losses at the statement that was lost last, how often the server went away with it, and the statement.

        A loss of which the statement is not known counts for any.
        """
        mine = [one for one in self._lost if one.ledger == ledger and one.migration.name == migration.name]
        last = next((one for one in reversed(mine) if one.statement is not None), None)
        counted = [
            (one, _kind(one, self._servers[ledger]))
            for one in mine
            if last is None or one.number in {None, last.number}
        ]
        earlier = self._earlier.get(ledger, _NOTHING)
        deaths = earlier.deaths + sum(kind in {"died", "ended"} for _, kind in counted)
        if last is not None or earlier.name != migration.name:
            return counted, deaths, last.statement if last is not None else None
        return counted, deaths, _statement(migration, earlier.statement)

    async def _note(self, connection: Any, ledger: str, migration: Migration) -> None:
        if not self._keeps:
            return
        _, deaths, statement = self._known(ledger, migration)
        number = None if statement is None or isinstance(statement, str) else statement.index
        values = [ledger, migration.name, migration.hash, number, deaths, self._servers[ledger]]
        await connection.execute(
            f"{joined(AS_OURSELVES)} INSERT INTO {_TABLE} (ledger, name, hash, statement, losses, server)"  # noqa: S608
            f" VALUES ({', '.join(map(literal, values))}) ON CONFLICT (ledger) DO UPDATE SET name = excluded.name,"
            " hash = excluded.hash, statement = excluded.statement, losses = excluded.losses,"
            " server = excluded.server, since = excluded.since"
        )


def ended(ledgers: Sequence[str]) -> str:
    """SQL that says that a run has come to its end, well or not: what comes after it is not its doing."""
    keys = ", ".join(map(literal, ledgers))
    # Not worth a wait for the disk: a row that is left only says that a run with nothing pending has not ended.
    return f"SET LOCAL synchronous_commit = off; DELETE FROM {_TABLE} WHERE ledger IN ({keys})"  # noqa: S608


def _kind(lost: Lost, server: str) -> Kind:
    is_shutdown = lost.sqlstate == _ADMIN_SHUTDOWN
    if lost.server == server:
        return "ended" if is_shutdown else "cut"
    return "restarted" if is_shutdown else "died"


async def _earlier(connection: Any, ledger: str, first: Migration, server: str) -> _Earlier:
    """How often the server went away in the time of earlier processes, with a run that has not ended."""
    row = await connection.fetchrow(
        f"SELECT name, hash, statement, losses, server FROM {_TABLE} WHERE ledger = $1",  # noqa: S608 a constant
        ledger,
    )
    if row is None:
        return _NOTHING
    died = int(row["server"] != server)
    if row["name"] != first.name:  # that one was applied, and the run went on behind it
        return _Earlier(deaths=died)
    if row["hash"] != first.hash:  # an edited file is another one
        return _NOTHING
    return _Earlier(row["name"], row["statement"], int(row["losses"]) + died)


def _statement(migration: Migration, number: int | None) -> Statement | None:
    """The statement of that number, which an earlier process has left word of."""
    from orchestrator.migrator.sql.statements import statements

    # The file was read before: what the grammar here refuses the server has accepted.
    parsed = statements(migration.read(), path=str(migration.path), keywords=frozenset()) if number else ()
    return next((statement for statement in parsed if statement.index == number), None)


def _place(migration: Migration, statement: Statement | str | None) -> tuple[str, dict[str, object]]:
    facts: dict[str, object] = {"migration": migration.name, "file": str(migration.path)}
    if statement is None or isinstance(statement, str):
        return str(migration.path), {**facts, **({"statement_kind": statement} if statement else {})}
    facts |= {
        "line": statement.line,
        "statement": statement.index,
        "statement_kind": statement.kind,
        "excerpt": excerpt(statement.text),
    }
    return f"{migration.path}:{statement.line}", facts


def _went_away(
    ledger: str, migration: Migration, statement: Statement | str | None, deaths: int, *, terminated: bool
) -> MigrationError:
    where, facts = _place(migration, statement)
    what = "its session was terminated" if terminated else "the server went away"
    forget = f"DELETE FROM {_TABLE} WHERE ledger = {literal(ledger)};"  # noqa: S608 for a person to run
    return MigrationError(
        f"{where}: {what} each time this ran, {deaths} times; it is not run again",
        remedy="Each try ends the work of the server's other users, too. Its log and the kernel's tell why (often it is"
        " the memory limit of its container). Give it what it lacks, or split the statement; an edited file is tried"
        f" again, and so is this one after: {forget}",
        facts={**facts, "losses": deaths},
    )


def _cut_each_time(migration: Migration, statement: Statement | str | None, silences_s: list[float]) -> MigrationError:
    where, facts = _place(migration, statement)
    shortest_s, longest_s = min(silences_s), max(silences_s)
    is_regular = longest_s - shortest_s <= max(0.5, 0.2 * longest_s)
    told = f"{shortest_s:.1f} s" if is_regular else f"{shortest_s:.1f} to {longest_s:.1f} s"
    return MigrationError(
        f"{where}: the connection was cut {len(silences_s)} times while this ran, after {told} of silence"
        f"{' each time' if is_regular else ''}; the server itself stayed up",
        remedy="Something between here and the server ends connections that are silent for so long (an idle limit of"
        " HAProxy, of a load balancer, of a pooler or of a firewall): raise it, or set MIGRATION_DATABASE_URL to the"
        " server itself; then start again. What was in a transaction is rolled back.",
        facts={**facts, "losses": len(silences_s), "silences_s": [round(one, 1) for one in silences_s]},
    )
