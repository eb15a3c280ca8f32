"""Two scratch databases: what the folder makes, and what the code makes. Runs statements in the first, reads both."""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier, literal
from orchestrator.errors import MigrationError
from orchestrator.schema.steps import Rank, Step
from orchestrator.schema.table_sql import steps
from orchestrator.schema.tables import Catalogue, named, read_catalogue
from orchestrator.schema.views import remade, views_in_the_way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from sqlalchemy import MetaData

    from orchestrator.dsn import Dsn
    from orchestrator.schema.steps import Target
    from orchestrator.schema.tables import ObjectName

_SETTLED = "orchestrator_settled"
_COUNT_TIMEOUT_MS = 10_000
# An enum's value cannot be used in the transaction that adds it.
_UNSAFE_NEW_VALUE = "55P04"
# datatype_mismatch: there is no assignment cast; cannot_coerce: there is no cast at all.
_NO_SUCH_CAST = frozenset({"42804", "42846"})
# What Postgres says of a column whose type cannot change while a view reads it, or that cannot be dropped.
_VIEW_IN_THE_WAY = frozenset({"0A000", "2BP01"})


class GenerateError(MigrationError):
    """The difference cannot be written: the server refuses what would have to be done. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What may be written to be run: drops, views made again; and whether tables that are in use stay usable."""

    drops: bool = False
    views: bool = False
    online: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """Which steps run without those that are commented out; `values_first`: new enum values run before them."""

    active: list[Step]
    withheld: list[Step]
    values_first: bool


@asynccontextmanager
async def scratch_pair(
    ours: Dsn,
    theirs: Dsn,
    metadata: MetaData,
    may: Permissions,
    *,
    ledgers: frozenset[ObjectName],
    excluded: frozenset[ObjectName],
) -> AsyncIterator[ScratchPair]:
    """Make the metadata real in `theirs`, and be connected to both. `ours` holds what the folder makes."""
    from orchestrator.schema.models import create_all, schemas_of, tables_of

    async with AsyncExitStack() as stack:
        connections = []
        for dsn in (ours, theirs):
            one = await connect_once(dsn, application_name="orchestrator generate", kind="migration")
            stack.push_async_callback(close, one)
            connections.append(one)
        path = await _copy_extensions(*connections)
        for one in connections:
            await one.execute("SELECT pg_catalog.set_config('search_path', $1, false)", path)
        await create_all(theirs, metadata, path=path)
        schemas, tables = schemas_of(metadata), tables_of(metadata)
        wanted = await read_catalogue(connections[1], schemas, path=path)
        # What listeners of the metadata make beside its tables is not its own.
        wanted = replace(wanted, tables={name: table for name, table in wanted.tables.items() if name in tables})
        without = (ledgers - tables) | excluded
        yield ScratchPair(ours, connections[0], connections[1], metadata, schemas, path, without, wanted, may)


@dataclass(frozen=True, slots=True)
class ScratchPair:
    """The two databases and what is known of them; `wanted` is what the code makes."""

    ours: Dsn
    connection: Any
    their_connection: Any
    metadata: MetaData
    schemas: frozenset[str]
    path: str
    without: frozenset[ObjectName]
    wanted: Catalogue
    may: Permissions

    async def before(self) -> Catalogue:
        """What the folder leads to, with the checks that mean the same written as in the code."""
        return await self._settled(await self._read())

    async def _read(self) -> Catalogue:
        wanted = self.wanted
        found = await read_catalogue(self.connection, self.schemas, path=self.path, without=self.without)

        # A type may be where no table is: there it alone is compared, and nothing beside it.
        def is_compared(name: ObjectName, same: Collection[ObjectName]) -> bool:
            return name[0] in self.schemas or name in same

        return replace(
            found,
            enums={name: one for name, one in found.enums.items() if is_compared(name, wanted.enums)},
            domains={name: one for name, one in found.domains.items() if is_compared(name, wanted.domains)},
            sequences={name: one for name, one in found.sequences.items() if is_compared(name, wanted.sequences)},
        )

    async def todo(self, before: Catalogue) -> list[Step]:
        """What leads from `before` to what the code makes, each change of a type with a cast that the server knows."""
        from orchestrator.schema.models import write_missing

        if before == self.wanted:
            return []
        written = await write_missing(self.ours, self.metadata, path=self.path, without=self.without)
        found = steps(before, self.wanted, written, online=self.may.online)
        if self.may.views and any(step.rank in {Rank.ALTER, Rank.ANEW, Rank.ENUM} for step in self._allowed(found)):
            views = await views_in_the_way(self.connection, before, self.wanted)
            found = sorted([*found, *await remade(self.connection, views)], key=lambda step: step.rank)
        return await self._castable(found)

    def _allowed(self, found: Sequence[Step]) -> list[Step]:
        return [step for step in found if self.may.drops or not step.drops]

    async def run(self, sql: str) -> None:
        """Run a statement, for good."""
        await self.connection.execute(sql)

    async def tried(self, todo: Sequence[Step], in_doubt: frozenset[Target]) -> Tried:
        """Run what may be run in one transaction, as a migration has it, and take it back.

        What stands on values of enums that it adds makes these a migration of their own: they are then added for good.
        """
        try:
            return await self._tried(todo, in_doubt, values_first=False)
        except asyncpg.UnsafeNewEnumValueUsageError:
            added = [step for step in todo if step.adds_enum_value]
            if not added:
                raise
        for step in added:
            await self.run(step.sql)
        found = await self._tried([step for step in todo if step not in added], in_doubt, values_first=True)
        return replace(found, active=[*added, *found.active])

    async def _tried(self, todo: Sequence[Step], in_doubt: frozenset[Target], *, values_first: bool) -> Tried:
        active: list[Step] = []
        withheld: list[Step] = []
        async with self._undone():
            for step in (step for step in todo if step.sql):
                if (step.drops and not self.may.drops) or step.target in in_doubt:
                    withheld.append(step)
                    continue
                failed = await self._error(step)
                if failed == _UNSAFE_NEW_VALUE:
                    raise asyncpg.UnsafeNewEnumValueUsageError
                if failed is None or not withheld:
                    active.append(step)  # one that fails by itself fails again when it is applied, and then says why
                else:
                    withheld.append(replace(step, note=step.note or "needs what is commented out above"))
        return Tried(active, withheld, values_first)

    @asynccontextmanager
    async def _undone(self) -> AsyncIterator[None]:
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    async def _castable(self, todo: Sequence[Step]) -> list[Step]:
        if not any(step.otherwise for step in todo):
            return list(todo)
        found = []
        async with self._undone():
            for step in todo:
                way: Step = step
                while await self._error(way) in _NO_SUCH_CAST and way.otherwise is not None:
                    way = way.otherwise
                found.append(replace(way, otherwise=None))
        return found

    async def _error(self, step: Step) -> str | None:
        """Run it in the open transaction; the SQLSTATE of what went wrong, which is undone."""
        if not step.sql:
            return None
        try:
            async with self.connection.transaction():
                await self.run(step.sql.replace(" INDEX CONCURRENTLY ", " INDEX ", 1))
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return None

    async def applied(self, todo: Sequence[Step]) -> list[str]:
        """Run everything, drops too; returns what the server refuses of the drops that are commented out anyway.

        Raises:
            GenerateError: the server refuses another one.
        """
        notes = []
        for step in todo:
            if not step.sql or (step.adds_enum_value and await self._has_value(step)):
                continue
            try:
                await self.run(step.sql)
            except asyncpg.PostgresError as error:
                if not step.drops or self.may.drops:
                    raise await self._refused(step.sql, error) from error
                notes.append(f"the server refuses {step.sql!r} as things stand: {error}")
        return notes

    async def _refused(self, sql: str, error: asyncpg.PostgresError) -> GenerateError:
        remedy = (
            "Write this step by hand (`orchestrator new NAME`), in the order that the server asks for; then generate"
            " the rest."
        )
        if error.sqlstate in _VIEW_IN_THE_WAY and not self.may.views:
            views = await views_in_the_way(self.connection, await self.before(), self.wanted)
            if views:
                remedy = f"--remake-views drops {', '.join(views)} and makes it again after the change; or: {remedy}"
        return GenerateError(
            f"the server refuses a statement that is needed: {error} (SQLSTATE {error.sqlstate}; in: {sql})",
            remedy=remedy,
            facts={"sqlstate": error.sqlstate, "statement": sql, "hint": error.hint, "detail": error.detail},
        )

    async def _has_value(self, step: Step) -> bool:
        """Whether the trial added it already."""
        now = await self._read()
        return any(
            step.sql.startswith(f"ALTER TYPE {named(name)} ADD VALUE {literal(value)}")
            for name, enum in now.enums.items()
            for value in enum.values
        )

    async def _settled(self, before: Catalogue) -> Catalogue:
        """Take a check for the same if it is what the wanted one becomes when its own text is read again.

        The server's text of `status IN ('a', 'b')` on a varchar reads back as another text, once.
        """
        tables = dict(before.tables)
        for name, table in before.tables.items():
            wanted = self.wanted.tables.get(name)
            for check, constraint in table.constraints.items():
                same = wanted.constraints.get(check) if wanted else None
                if constraint.kind != "check" or same is None or same.definition == constraint.definition:
                    continue
                if await self._read_again(name, same.definition) == constraint.definition:
                    constraints = {
                        **tables[name].constraints,
                        check: replace(constraint, definition=same.definition),
                    }
                    tables[name] = replace(tables[name], constraints=constraints)
        return replace(before, tables=tables)

    async def _read_again(self, table: ObjectName, definition: str) -> str | None:
        transaction = self.their_connection.transaction()
        await transaction.start()
        try:
            await self.their_connection.execute(
                f"ALTER TABLE {named(table)} ADD CONSTRAINT {identifier(_SETTLED)} {definition}"
            )
            found: str | None = await self.their_connection.fetchval(
                "SELECT pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint WHERE conname = $1", _SETTLED
            )
        finally:
            await transaction.rollback()
        return found


async def counted(live: Dsn, path: str, done: Sequence[Step]) -> list[Step]:
    """The steps, each that may change values with the number of rows in the live database whose value it changes.

    Where there is no such table yet, or the server cannot compare or convert, nothing is said.
    """
    if not any(step.changed_rows for step in done):
        return list(done)
    found = []
    connection = await connect_once(live, application_name="orchestrator generate")
    try:
        await connection.execute(f"SET default_transaction_read_only = on; SET statement_timeout = {_COUNT_TIMEOUT_MS}")
        await connection.execute("SELECT pg_catalog.set_config('search_path', $1, false)", path)
        for step in done:
            note = step.note
            if step.changed_rows:
                with contextlib.suppress(asyncpg.PostgresError):
                    rows = await connection.fetchval(step.changed_rows)
                    note = f"{note}: {rows:,} row{'' if rows == 1 else 's'} would change now"
            found.append(replace(step, note=note))
    finally:
        await close(connection)
    return found


async def _copy_extensions(ours: Any, theirs: Any) -> str:
    """Make the extensions of `ours` in `theirs`; returns the search path under which both are read."""
    rows = await ours.fetch(
        "SELECT e.extname::text AS name, n.nspname::text AS schema FROM pg_catalog.pg_extension e"
        " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY e.oid"
    )
    for row in rows:
        if row["schema"] != "pg_catalog":
            await theirs.execute(f"CREATE SCHEMA IF NOT EXISTS {identifier(row['schema'])}")
        await theirs.execute(
            f"CREATE EXTENSION IF NOT EXISTS {identifier(row['name'])} SCHEMA {identifier(row['schema'])}"
        )
    return ", ".join(dict.fromkeys(["public", *(identifier(r["schema"]) for r in rows if r["schema"] != "pg_catalog")]))
