"""Compare the code with the folder and write what is between them as SQL. Touches scratch databases and nothing else.

Two databases are made: in one the folder is replayed, in the other the code's MetaData is made real. Their catalogues
are compared, the statements that lead from the one to the other are written, and run in the first before anybody sees
them: what is written is known to work, and to lead there.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.database.quoting import identifier
from orchestrator.database.scratch import scratch_database, server_errors_explained
from orchestrator.schema.migration_text import commented_out, files
from orchestrator.schema.renames import Rename, moved_enums, suspected_renames
from orchestrator.schema.steps import Rank, Step
from orchestrator.schema.tables import Catalogue, named
from orchestrator.tools.replay import LEFT_OUT, replay
from orchestrator.tools.scratch_pair import GenerateError, Permissions, ScratchPair, counted, scratch_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sqlalchemy import MetaData

    from orchestrator.dsn import Dsn
    from orchestrator.migrator.sources import Source
    from orchestrator.schema.steps import Target
    from orchestrator.schema.tables import ObjectName

    # The candidates for one new table or column → the one it was, or None: it is new.
    Ask = Callable[[Sequence[Rename]], Awaitable[Rename | None]]

_PASSES = 2  # after the first


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
    remake_views: bool = False,
    online: bool = False,
    extensions: Sequence[str] = (),
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
        remake_views: views in the way of a column's change are dropped, and made again after it.
        online: tables that are there are changed in the form that keeps nobody waiting, where there is one.
        extensions: extensions to make before the replay.

    Raises:
        MigrationError: the folder itself does not run, or what was written does not.
        MetadataError: the server refuses the metadata.
    """
    may = Permissions(allow_drops, remake_views, online)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ours = await enter(scratch_database(server, purpose="generate"))
        theirs = await enter(scratch_database(server, purpose="generate"))
        left_out: list[str] = []
        await replay(
            ours,
            sources,
            extensions=extensions,
            on_event=lambda event: left_out.append(str(event.facts["text"])) if event.name == LEFT_OUT else None,
        )
        with server_errors_explained(server, doing="comparing code and migrations"):
            pair = await enter(
                scratch_pair(
                    ours,
                    theirs,
                    metadata,
                    may,
                    ledgers=ledgers(sources),
                    excluded=frozenset(excluded),
                )
            )
            found = await _difference(pair, _Answers(ask, set(renames)))
            active, withheld = [await counted(server, pair.path, steps) for steps in (found.active, found.withheld)]
    said = _commented(sources)
    known = [step for step in withheld if set(commented_out(step)) <= said]
    fresh = [step for step in withheld if step not in known]
    return Generated(
        files(active, fresh, found.unasked, values_first=found.values_first),
        tuple(active),
        tuple(fresh),
        tuple(known),
        found.unasked,
        tuple(dict.fromkeys(found.notes)),
        tuple(left_out),
    )


def ledgers(sources: Sequence[Source]) -> frozenset[ObjectName]:
    """The tables that Drizzle's format keeps its books in: no code describes them."""
    return frozenset((source.table.schema, source.table.table) for source in sources)


def _commented(sources: Sequence[Source]) -> frozenset[str]:
    """Every line of the folder that is a comment: drops that were offered before."""
    if not sources:
        return frozenset()
    texts = [migration.read().decode(errors="replace") for migration in sources[-1].folder.migrations]
    return frozenset(line for text in texts for line in text.splitlines() if line.startswith("-- "))


@dataclass(slots=True)
class _Difference:
    """What has to be run, what is commented out, and what nobody could be asked about."""

    active: list[Step]
    withheld: list[Step]
    unasked: tuple[tuple[Rename, ...], ...]
    values_first: bool
    notes: list[str]


async def _difference(pair: ScratchPair, answers: _Answers) -> _Difference:
    """What leads to the code, run in the scratch database: first the renames, then all else, then what that left."""
    before = await _renamed(pair, answers)
    todo = await pair.todo(before)
    unasked = tuple(tuple(group) for group in answers.unasked)
    tried = await pair.tried(todo, frozenset(target for group in unasked for one in group for target in one.targets))
    active, withheld = [*answers.done, *tried.active], list(tried.withheld)
    notes = [*await pair.applied(todo), *(step.note for step in todo if not step.sql)]
    # What was dropped took along what stood on it: that is made again.
    for further in (*range(_PASSES), None):
        more = [step for step in await pair.todo(await pair.before()) if step.sql]
        if not more:
            break
        if further is None:
            notes += [f"after all of it this would still be to do: {step.sql}" for step in more]
            break
        notes += await pair.applied(more)
        for step in more:
            (withheld if step.drops and not pair.may.drops else active).append(step)
    return _Difference(active, withheld, unasked, tried.values_first, notes)


# --------------------------------------------------------------------------------------------------------- the renames


@dataclass(slots=True)
class _Answers:
    """What is known of renames: given beforehand (`*`: all else is new), asked for, done, and left unanswered."""

    ask: Ask | None
    given: set[str]
    new: set[Target] = field(default_factory=set)
    done: list[Step] = field(default_factory=list)
    unasked: list[list[Rename]] = field(default_factory=list)

    async def chosen(self, candidates: list[Rename]) -> Rename | None:
        """Which of the old names the new one was; None: it is new, or nobody is there to say."""
        known = next((one for one in candidates if one.spelled in self.given), None)
        if known is not None:
            self.given.discard(known.spelled)
            return known
        added = candidates[0].targets[1]
        if "*" in self.given or added in self.new:
            return None
        if self.ask is None:
            self.unasked.append(candidates)
            return None
        answer = await self.ask(candidates)
        if answer is None:
            self.new.add(added)
        return answer


async def _renamed(pair: ScratchPair, answers: _Answers) -> Catalogue:
    """Do the renames that are known or answered, one by one, as each shows others; returns what is then."""
    while True:
        before = await pair.before()
        moved = moved_enums(before, pair.wanted)
        for name, schema in moved:
            sql = f"ALTER TYPE {named(name)} SET SCHEMA {identifier(schema)}"
            await _done(pair, answers, sql, before, schema)
        if moved:
            continue
        answers.unasked.clear()
        for candidates in suspected_renames(before, pair.wanted):
            rename = await answers.chosen(candidates)
            if rename is not None:
                schema_of = rename.new if rename.kind == "schema" else None
                await _done(pair, answers, rename.sql, before, schema_of)
                break
        else:
            break
    if unused := sorted(answers.given - {"*"}):
        raise GenerateError(
            f"--rename {' '.join(unused)}: nothing with that name was dropped with something like it added",
            remedy="Write it as table=new_table, table.column=new_column, type.value=new_value or schema.table="
            "other.table; --check shows what differs.",
            facts={"renames": unused},
        )
    return before


async def _done(pair: ScratchPair, answers: _Answers, sql: str, before: Catalogue, schema: str | None) -> None:
    """Do a rename, and before it make the schema that something moves to."""
    if schema is not None and schema not in before.schemas:
        make = f"CREATE SCHEMA IF NOT EXISTS {identifier(schema)}"
        await pair.run(make)
        answers.done.append(Step(Rank.ANSWER, make))
    await pair.run(sql)
    answers.done.append(Step(Rank.ANSWER, sql))
