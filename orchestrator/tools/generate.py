"""Compare the code with the folder and write what is between them as SQL. Touches scratch databases and nothing else.

Two databases are made: in one the folder is replayed, in the other the code's MetaData is made real. Their catalogues
are compared, the statements that lead from the one to the other are written, and run in the first before anybody sees
them: what is written is known to work, and to lead there.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier, literal
from orchestrator.database.scratch import scratch_database, server_errors_explained
from orchestrator.errors import MigrationError
from orchestrator.migrator.sql.statements import BREAKPOINT
from orchestrator.schema.renames import Rename, moved_enums, suspected_renames
from orchestrator.schema.steps import Rank, Step
from orchestrator.schema.table_sql import steps
from orchestrator.schema.tables import Catalogue, named, read_catalogue
from orchestrator.tools.replay import LEFT_OUT, replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from sqlalchemy import MetaData

    from orchestrator.dsn import Dsn
    from orchestrator.migrator.sources import Source
    from orchestrator.schema.steps import Target
    from orchestrator.schema.tables import ObjectName

    # The candidates for one new table or column → the one it was, or None: it is new.
    Ask = Callable[[Sequence[Rename]], Awaitable[Rename | None]]

_PASSES = 3
_COUNT_TIMEOUT_MS = 10_000
_SETTLED = "orchestrator_settled"
# An enum's value cannot be used in the transaction that adds it.
_UNSAFE_NEW_VALUE = "55P04"
# datatype_mismatch: there is no assignment cast; cannot_coerce: there is no cast at all.
_NO_SUCH_CAST = frozenset({"42804", "42846"})


class GenerateError(MigrationError):
    """The difference cannot be written: the server refuses what would have to be done. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What is between folder and code.

    `files` are the texts of the migrations to write, in order, each with what to put behind the name; none where
    nothing has to be written. `withheld` stands in them commented out. `said` are drops that an earlier file of the
    folder holds commented out already. `unasked` may be renames. `unwritten` says what has to be done by hand,
    `left_out` what of the folder was not replayed, since it acts outside the database.
    """

    files: tuple[tuple[str, str], ...] = ()
    active: tuple[Step, ...] = ()
    withheld: tuple[Step, ...] = ()
    said: tuple[Step, ...] = ()
    unasked: tuple[tuple[Rename, ...], ...] = ()
    unwritten: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether code and migrations differ at all."""
        return bool(self.active or self.withheld or self.said or self.unwritten)


async def generate(
    server: Dsn,
    sources: Sequence[Source],
    metadata: MetaData,
    *,
    ask: Ask | None,
    renames: Collection[str] = (),
    excluded: Collection[ObjectName] = (),
    allow_drops: bool = False,
    extensions: Sequence[str] = (),
    connect_timeout_s: float = 5.0,
) -> Generated:
    """Say what brings the state that `sources` lead to, to what `metadata` says. Writes no file.

    Args:
        server: where scratch databases can be made.
        sources: the folders, in the order of a start; the last one's schemas are compared.
        metadata: the code's tables.
        ask: asks a person which of the old names a new one was; without it what may be a rename is commented out.
        renames: answers given beforehand, `old=new` as `Rename.spelled`; `*` says that all else is none.
        excluded: tables that `metadata` lacks and that are to be left alone, with the foreign keys to them.
        allow_drops: what takes something away for good is not commented out.
        extensions: extensions to make before the replay.
        connect_timeout_s: for one attempt to connect.

    Raises:
        MigrationError: the folder itself does not run, or what was written does not.
        MetadataError: the server refuses the metadata.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ours = await enter(scratch_database(server, purpose="generate", connect_timeout_s=connect_timeout_s))
        theirs = await enter(scratch_database(server, purpose="generate", connect_timeout_s=connect_timeout_s))
        left_out: list[str] = []
        await replay(
            ours,
            sources,
            extensions=extensions,
            connect_timeout_s=connect_timeout_s,
            on_event=lambda event: left_out.append(str(event.facts["text"])) if event.name == LEFT_OUT else None,
        )
        with server_errors_explained(server, doing="comparing code and migrations"):
            both = await enter(_connected(server, ours, theirs, metadata, ledgers(sources), frozenset(excluded)))
            found = await both.generate(ask, set(renames), allow_drops=allow_drops, said=await _commented(sources))
            return replace(found, left_out=tuple(left_out))


def ledgers(sources: Sequence[Source]) -> frozenset[ObjectName]:
    """The tables that Drizzle's format keeps its books in: no code describes them."""
    return frozenset((source.table.schema, source.table.table) for source in sources)


async def _commented(sources: Sequence[Source]) -> frozenset[str]:
    """Every line of the folder that is a comment: drops that were offered before."""
    if not sources:
        return frozenset()
    texts = [migration.read().decode(errors="replace") for migration in sources[-1].folder.migrations]
    return frozenset(line for text in texts for line in text.splitlines() if line.startswith("-- "))


@asynccontextmanager
async def _connected(
    live: Dsn,
    ours: Dsn,
    theirs: Dsn,
    metadata: MetaData,
    without: frozenset[ObjectName],
    excluded: frozenset[ObjectName],
) -> AsyncIterator[_Both]:
    """Make the metadata real in `theirs`, and be connected to both."""
    from orchestrator.schema.models import create_all, schemas_of, tables_of

    async with AsyncExitStack() as stack:
        connections = []
        for dsn in (ours, theirs):
            one = await connect_once(dsn, timeout_s=5, application_name="orchestrator generate", kind="migration")
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
        yield _Both(
            live, ours, connections[0], connections[1], metadata, schemas, path, (without - tables) | excluded, wanted
        )


@dataclass(slots=True)
class _Both:
    """The two databases and what is known of them; `live` is the one that the migration is for."""

    live: Dsn
    ours: Dsn
    connection: Any
    their_connection: Any
    metadata: MetaData
    schemas: frozenset[str]
    path: str
    without: frozenset[ObjectName]
    wanted: Catalogue
    answered: list[Step] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

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

    async def generate(
        self, ask: Ask | None, renames: set[str], *, allow_drops: bool, said: frozenset[str]
    ) -> Generated:
        before, unasked = await self._renamed(ask, renames)
        todo = await self._castable(await self._todo(before))
        in_doubt = frozenset(target for group in unasked for one in group for target in one.targets)
        active, withheld, own_file = await self._tried(todo, in_doubt, allow_drops=allow_drops)
        notes: list[str] = []
        await self._applied(todo, notes, lenient=not allow_drops)
        for last in (*[False] * (_PASSES - 2), True):
            before = await self.before()
            more = await self._castable([step for step in await self._todo(before) if step.sql])
            if not more:
                break
            if last:
                notes += [f"after all of these statements, this would still be missing: {step.sql}" for step in more]
                break
            await self._applied(more, notes, lenient=not allow_drops)
            active += [s for s in more if not s.drops or allow_drops]
            withheld += [s for s in more if s.drops and not allow_drops]
        notes += [step.note for step in todo if not step.sql]
        active, withheld = await self._counted([*self.answered, *active]), await self._counted(withheld)
        doubted = tuple(tuple(group) for group in unasked)
        known = [step for step in withheld if set(_commented_out(step)) <= said]
        fresh = [step for step in withheld if step not in known]
        files = _files(active, fresh, doubted, own_file=own_file)
        return Generated(files, tuple(active), tuple(fresh), tuple(known), doubted, tuple(dict.fromkeys(notes)))

    async def _todo(self, before: Catalogue) -> list[Step]:
        from orchestrator.schema.models import write_missing

        if before == self.wanted:
            return []
        written = await write_missing(self.ours, self.metadata, path=self.path, without=self.without)
        return steps(before, self.wanted, written)

    async def _renamed(self, ask: Ask | None, renames: set[str]) -> tuple[Catalogue, list[list[Rename]]]:
        """Do the renames that are known or answered; returns what is then, and what nobody could be asked about."""
        all_new = "*" in renames
        unused = renames - {"*"}
        new: set[Target] = set()
        while True:
            before = await self.before()
            moved = moved_enums(before, self.wanted)
            if moved:
                for (schema, name), to in moved:
                    await self._answered(f"ALTER TYPE {named((schema, name))} SET SCHEMA {identifier(to)}", before, to)
                continue
            groups = suspected_renames(before, self.wanted)
            chosen: Rename | None = None
            open_groups = []
            for group in groups:
                added = group[0].targets[1]
                chosen = next((one for one in group if one.spelled in unused), None)
                if chosen is not None:
                    unused.discard(chosen.spelled)
                elif not all_new and added not in new:
                    if ask is None:
                        open_groups.append(group)
                        continue
                    chosen = await ask(group)
                if chosen is not None:
                    break
                new.add(added)
            if chosen is None:
                break
            await self._answered(chosen.sql, before, chosen.new if chosen.kind == "schema" else None)
        if unused:
            raise GenerateError(
                f"--rename {' '.join(sorted(unused))}: nothing with that name was dropped while something similar"
                " was added",
                remedy="Write it as table=new_table, table.column=new_column, type.value=new_value or schema.table="
                "other.table; --check shows what differs.",
                facts={"renames": sorted(unused)},
            )
        return before, open_groups

    async def _answered(self, sql: str, before: Catalogue, schema: str | None) -> None:
        """Do a rename, and the schema before it that something moves to."""
        if schema is not None and schema not in before.schemas:
            sql_before = f"CREATE SCHEMA IF NOT EXISTS {identifier(schema)}"
            await self._run(sql_before)
            self.answered.append(Step(Rank.ANSWER, sql_before))
        await self._run(sql)
        self.answered.append(Step(Rank.ANSWER, sql))

    async def _run(self, sql: str) -> None:
        await self.connection.execute(sql)

    async def _tried(
        self, todo: Sequence[Step], in_doubt: frozenset[Target], *, allow_drops: bool
    ) -> tuple[list[Step], list[Step], bool]:
        """Which statements run without those that are commented out, in one transaction as a migration has it.

        Returns the ones that do, the ones to comment out, and whether the enums' values need a migration of their own.
        """
        rest = list(todo)
        added: list[Step] = []
        while True:
            try:
                active, withheld = await self._tried_once(rest, in_doubt, allow_drops=allow_drops)
            except asyncpg.UnsafeNewEnumValueUsageError:
                added = [step for step in rest if step.adds_enum_value]
                if not added:
                    raise
                for step in added:
                    await self._run(step.sql)
                rest = [step for step in rest if not step.adds_enum_value]
            else:
                return [*added, *active], withheld, bool(added)

    async def _tried_once(
        self, todo: Sequence[Step], in_doubt: frozenset[Target], *, allow_drops: bool
    ) -> tuple[list[Step], list[Step]]:
        active, withheld = [], []
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            for step in todo:
                if not step.sql:
                    continue
                if (step.drops and not allow_drops) or step.target in in_doubt:
                    withheld.append(step)
                    continue
                failed = await self._error(step)
                if failed == _UNSAFE_NEW_VALUE:
                    raise asyncpg.UnsafeNewEnumValueUsageError
                if failed is None or not withheld:
                    active.append(step)  # one that fails by itself fails again below, and then says why
                else:
                    withheld.append(replace(step, note=step.note or "needs what is commented out above"))
        finally:
            await transaction.rollback()
        return active, withheld

    async def _castable(self, todo: Sequence[Step]) -> list[Step]:
        """The steps, each change of a type with the first cast that the server knows for it."""
        if not any(step.otherwise for step in todo):
            return list(todo)
        found = []
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            for step in todo:
                way: Step = step
                while await self._error(way) in _NO_SUCH_CAST and way.otherwise is not None:
                    way = way.otherwise
                found.append(replace(way, otherwise=None))
        finally:
            await transaction.rollback()
        return found

    async def _error(self, step: Step) -> str | None:
        """Run it if it can run in a transaction; the SQLSTATE of what went wrong, which is undone."""
        if not step.sql or " CONCURRENTLY " in step.sql:
            return None
        try:
            async with self.connection.transaction():
                await self._run(step.sql)
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return None

    async def _applied(self, todo: Sequence[Step], notes: list[str], *, lenient: bool) -> None:
        """Run everything, drops too.

        Raises:
            GenerateError: the server refuses one; of a drop that is commented out anyway it is noted instead.
        """
        for step in todo:
            if not step.sql or (step.adds_enum_value and await self._has_value(step)):
                continue
            try:
                await self._run(step.sql)
            except asyncpg.PostgresError as error:
                if not (step.drops and lenient):
                    raise _refused(step.sql, error) from error
                notes.append(f"the server refuses {step.sql!r} as things stand: {error}")

    async def _counted(self, done: Sequence[Step]) -> list[Step]:
        """The steps, each that may change values with the number of rows in the live database whose value it changes.

        Where there is no such table yet, or the server cannot compare or convert, nothing is said.
        """
        if not any(step.changed_rows for step in done):
            return list(done)
        counted = []
        live = await connect_once(self.live, timeout_s=5, application_name="orchestrator generate")
        try:
            await live.execute(f"SET default_transaction_read_only = on; SET statement_timeout = {_COUNT_TIMEOUT_MS}")
            await live.execute("SELECT pg_catalog.set_config('search_path', $1, false)", self.path)
            for step in done:
                note = step.note
                if step.changed_rows:
                    with contextlib.suppress(asyncpg.PostgresError):
                        rows = await live.fetchval(step.changed_rows)
                        note = f"{note}: {rows:,} row{'' if rows == 1 else 's'} would change now"
                counted.append(replace(step, note=note))
        finally:
            await close(live)
        return counted

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


def _refused(sql: str, error: asyncpg.PostgresError) -> GenerateError:
    return GenerateError(
        f"the server refuses a statement that is needed: {error} (SQLSTATE {error.sqlstate}; in: {sql})",
        remedy="Write this step by hand (`orchestrator new NAME`), in the order that the server asks for; then generate"
        " the rest.",
        facts={"sqlstate": error.sqlstate, "statement": sql, "hint": error.hint, "detail": error.detail},
    )


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


# ------------------------------------------------------------------------------------------------------------ the text


def _files(
    active: Sequence[Step], withheld: Sequence[Step], unasked: Sequence[Sequence[Rename]], *, own_file: bool
) -> tuple[tuple[str, str], ...]:
    if not active and not withheld:
        return ()
    if not own_file:
        return (("", _text(active, withheld, unasked)),)
    values = [step for step in active if step.adds_enum_value]
    # Renames run before all else, or the second file's statements would find other names.
    first = [step for step in active if step.rank is Rank.ANSWER]
    rest = [step for step in active if step not in values and step not in first]
    return (
        ("_values", _text([*first, *values], (), ())),
        ("", _text(rest, withheld, unasked)),
    )


def _text(active: Sequence[Step], withheld: Sequence[Step], unasked: Sequence[Sequence[Rename]]) -> str:
    chunks = []
    for step in active:
        if BREAKPOINT.decode() in step.sql:
            raise GenerateError(
                f"a string in the code holds `{BREAKPOINT.decode()}`, at which Drizzle would split the file:"
                f" {step.sql}",
                remedy="Write that string in another way.",
            )
        chunks.append(f"-- {step.note}\n{step.sql};\n" if step.note else f"{step.sql};\n")
    text = f"{BREAKPOINT.decode()}\n".join(chunks)
    lines = []
    in_doubt: set[Step] = set()
    for group in unasked:
        targets = {target for one in group for target in one.targets}
        about = [step for step in withheld if step.target in targets and step not in in_doubt]
        in_doubt.update(about)
        lines.append("-- Renamed, or another one? If renamed, use this line:")
        lines += [f"-- {one.sql};" for one in group]
        lines.append("-- If not, these:")
        lines += [line for step in about for line in _commented_out(step)]
    others = [step for step in withheld if step not in in_doubt]
    if others:
        lines.append("-- Not run, as it takes something away or needs what does; --allow-drops writes it to be run:")
        lines += [line for step in others for line in _commented_out(step)]
    return text + ("\n" if text and lines else "") + "".join(f"{line}\n" for line in lines)


def _commented_out(step: Step) -> list[str]:
    lines = re.sub(r"(\r\n?|\n)", r"\n", f"{step.sql};").split("\n")
    lines[-1] += f" -- {step.note}" if step.note else ""
    return [f"-- {line}".rstrip() for line in lines]
