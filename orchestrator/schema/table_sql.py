"""What makes one catalogue of another, in an order that runs. Pure: no I/O.

New tables, columns and indexes come written (by alembic, from the code); all else is written here, from the server's
own definitions.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, TypeVar

from orchestrator.database.quoting import identifier, literal
from orchestrator.schema import ddl, online_sql
from orchestrator.schema.column_sql import AlteredColumn, base_type, needs_made_anew, place_behind_rows, sequence_of
from orchestrator.schema.steps import Rank, Step
from orchestrator.schema.tables import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from orchestrator.schema.steps import Target
    from orchestrator.schema.tables import Catalogue, Column, Constraint, Enum, Index, ObjectName, Sequence, Table

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Written:
    """Statements that alembic wrote, by what they make."""

    tables: Mapping[ObjectName, str] = field(default_factory=dict)
    columns: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)
    indexes: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)
    checks: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)


def steps(before: Catalogue, wanted: Catalogue, written: Written, *, online: bool = False) -> list[Step]:
    """What makes `wanted` of `before`; nothing where they are the same.

    With `online`, tables that are there are changed in the form that keeps nobody waiting, where there is one.
    """
    found = [
        *_schemas(before, wanted),
        *_types(before, wanted),
        *_sequences(before, wanted),
        *_tables(before, wanted, written, online=online),
    ]
    return sorted(dict.fromkeys(found), key=lambda step: step.rank)


# ------------------------------------------------------------------------------------------ schemas, types, sequences


def _schemas(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    for schema in sorted(wanted.schemas - before.schemas):
        yield Step(Rank.SCHEMA, f"CREATE SCHEMA {identifier(schema)}")


def _types(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    for name, enum in wanted.enums.items():
        was = before.enums.get(name)
        if was is None:
            yield Step(Rank.TYPE, ddl.create_enum(named(name), enum.values))
        elif (added := ddl.added_values(named(name), was.values, enum.values)) is not None:
            yield from (Step(Rank.TYPE, sql, adds_enum_value=True) for sql in added)
        else:
            yield from _enum_made_anew(name, was, enum, before, wanted)
        yield from _comment(f"TYPE {named(name)}", was.comment if was else None, enum.comment)
    for name in before.enums.keys() - wanted.enums.keys():
        yield Step(Rank.DROP_TYPE, f"DROP TYPE {named(name)}", drops=True)
    for name, domain in wanted.domains.items():
        if name not in before.domains:
            yield Step(Rank.TYPE, f"CREATE DOMAIN {named(name)} AS {domain}")
        elif before.domains[name] != domain:
            yield Step(
                Rank.TYPE,
                "",
                f"the domain {named(name)} is {before.domains[name]}, in the code {domain}: write it by hand",
            )
    for name in before.domains.keys() - wanted.domains.keys():
        yield Step(Rank.DROP_TYPE, f"DROP DOMAIN {named(name)}", drops=True)


def _enum_made_anew(name: ObjectName, was: Enum, enum: Enum, before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    """Postgres takes no value out of an enum and moves none: another type takes its place."""
    gone = [value for value in was.values if value not in enum.values]
    note = (
        f"fails where a row still has {ddl.values_list(gone)}" if gone else "the values are in another order now"
    ) + "; rewrites every table with a column of the type"
    old = (name[0], f"{name[1]}_before")
    word = re.compile(rf"\b{re.escape(name[1])}\b")
    lines, after = [], []
    for table_name, table in before.tables.items():
        using = [c for c, column in table.columns.items() if column.enum == name]
        kept = wanted.tables.get(table_name)
        if not using or kept is None:
            continue
        table_sql = f"ALTER TABLE {named(table_name)}"
        # Constants of the old type inside a check or an index hold on to it. (Those that change are made anew anyway.)
        for c, constraint in table.constraints.items():
            stays = constraint.kind == "check" and c in kept.constraints
            if stays and kept.constraints[c].definition == constraint.definition and word.search(constraint.definition):
                lines.append(ddl.drop_constraint(named(table_name), identifier(c)))
                after.append(ddl.add_constraint(named(table_name), identifier(c), constraint.definition))
        for i, index in table.indexes.items():
            if i in kept.indexes and kept.indexes[i].definition == index.definition and word.search(index.definition):
                lines.append(f"DROP INDEX {named((table_name[0], i))}")
                after.append(index.definition)
        for c in using:
            column, to = table.columns[c], kept.columns.get(c)
            if to is None or to.enum != name:
                continue  # dropped, or given another type further down
            text = "text[]" if column.type.endswith("[]") else "text"
            if column.default is not None:
                lines.append(f"{table_sql} ALTER COLUMN {identifier(c)} DROP DEFAULT")
            lines.append(
                f"{table_sql} ALTER COLUMN {identifier(c)} SET DATA TYPE {to.type}"
                f" USING {identifier(c)}::{text}::{to.type}"
            )
            if to.default is not None and to.default == column.default:
                after.append(f"{table_sql} ALTER COLUMN {identifier(c)} SET DEFAULT {to.default}")
    lines = [
        f"ALTER TYPE {named(name)} RENAME TO {identifier(old[1])}",
        ddl.create_enum(named(name), enum.values),
        *lines,
        *after,
    ]
    for line in lines:
        yield Step(Rank.ENUM, line, note, drops=True, target=("enum", name, ""))
        note = ""
    yield Step(Rank.DROP_TYPE, f"DROP TYPE {named(old)}", drops=True, target=("enum", name, ""))


def _sequences(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    taken = set()
    for name, sequence in wanted.sequences.items():
        if name in before.sequences:
            was = before.sequences[name]
            if was.definition != sequence.definition:
                yield Step(Rank.SEQUENCE, f"ALTER SEQUENCE {named(name)} {sequence.definition}")
            if was.owned_by != sequence.owned_by:
                yield _owner(name, sequence)
            yield from _comment(f"SEQUENCE {named(name)}", was.comment, sequence.comment)
            continue
        if sequence.owned_by and not _has_column(before, *sequence.owned_by):
            continue  # the serial that makes the column makes its sequence
        old = next((o for o, s in before.sequences.items() if _is_the_same_serial(o, s, sequence, wanted)), None)
        if old is not None and old[0] == name[0]:
            taken.add(old)
            yield Step(Rank.RENAME, f"ALTER SEQUENCE {named(old)} RENAME TO {identifier(name[1])}")
            continue
        yield Step(Rank.SEQUENCE, f"CREATE SEQUENCE {named(name)} {sequence.definition}")
        if sequence.owned_by:
            yield _owner(name, sequence)
            yield place_behind_rows(literal(named(name)), *_on(sequence.owned_by))
        yield from _comment(f"SEQUENCE {named(name)}", None, sequence.comment)
    for name, sequence in before.sequences.items():
        if name in wanted.sequences or name in taken:
            continue
        if sequence.owned_by and not _has_column(wanted, *sequence.owned_by):
            continue  # it goes with its column
        goes_on = _is_carried_over(sequence, wanted)
        if goes_on and sequence.owned_by:
            # Or it would be found for the identity's.
            yield Step(Rank.SEQUENCE, f"ALTER SEQUENCE {named(name)} OWNED BY NONE")
            table, column = sequence.owned_by
            place = f"SELECT pg_catalog.setval({sequence_of(named(table), column)}, last_value, is_called)"
            yield Step(Rank.PLACE, f"{place} FROM {named(name)}", "the identity goes on where the sequence stands")
        note = "" if goes_on else "loses where it stands"
        yield Step(Rank.DROP_SEQUENCE, f"DROP SEQUENCE {named(name)}", note, drops=not goes_on)


def _is_the_same_serial(name: ObjectName, old: Sequence, new: Sequence, wanted: Catalogue) -> bool:
    return old.owned_by is not None and old.owned_by == new.owned_by and name not in wanted.sequences


def _is_carried_over(sequence: Sequence, wanted: Catalogue) -> bool:
    """Whether a serial's sequence is left for the one of an identity, which is set to its place."""
    if sequence.owned_by is None:
        return False
    table, column = sequence.owned_by
    return wanted.tables[table].columns[column].identity is not None


def _on(column: tuple[ObjectName, str]) -> tuple[str, str]:
    return named(column[0]), identifier(column[1])


def _owner(name: ObjectName, sequence: Sequence) -> Step:
    owner = ".".join(_on(sequence.owned_by)) if sequence.owned_by else "NONE"
    return Step(Rank.REST, f"ALTER SEQUENCE {named(name)} OWNED BY {owner}")


def _has_column(catalogue: Catalogue, table: ObjectName, column: str) -> bool:
    return table in catalogue.tables and column in catalogue.tables[table].columns


def _comment(what: str, was: str | None, comment: str | None) -> Iterator[Step]:
    if was != comment:
        yield Step(Rank.REST, ddl.comment(what, comment))


# ------------------------------------------------------------------------------------------------------------- tables


def _tables(before: Catalogue, wanted: Catalogue, written: Written, *, online: bool) -> Iterator[Step]:
    gone = {name: table for name, table in before.tables.items() if name not in wanted.tables}
    taken = _names(before.tables)
    for name, table in wanted.tables.items():
        was = before.tables.get(name)
        if was is None:
            yield Step(Rank.TABLE, written.tables[name], target=("table", name, ""))
            yield from _Made(name, _empty_like(table), table, written, taken).after_create()
        else:
            needed = _newly_referred_to(name, before, wanted) if online else frozenset()
            yield from _Made(name, was, table, written, taken, online, needed).altered()
    yield from _keys_in_the_way(before, wanted, online=online)
    # A table that goes makes room for the names that others get; all of them go then, as one may stand on another.
    rank = (
        Rank.DROP_NAMESAKE
        if _names(gone) & (_names(wanted.tables) - _names(_kept(before, wanted)))
        else Rank.DROP_TABLE
    )
    for name in _droppable_order(gone):
        yield Step(rank, f"DROP TABLE {named(name)}", "loses the table's rows", drops=True, target=("table", name, ""))
    if _is_cyclic(gone):
        for name, table in gone.items():
            for key, constraint in table.constraints.items():
                if constraint.kind == "foreign key" and constraint.references in gone:
                    yield Step(Rank.DROP_KEY, _drop_constraint(name, key), drops=True)


def _newly_referred_to(name: ObjectName, before: Catalogue, wanted: Catalogue) -> frozenset[frozenset[str]]:
    """The columns that new foreign keys stand on: their UNIQUE has to be there at once."""
    return frozenset(
        frozenset(one.referenced_columns)
        for other, table in wanted.tables.items()
        for key, one in table.constraints.items()
        if one.references == name and (other not in before.tables or key not in before.tables[other].constraints)
    )


def _kept(before: Catalogue, wanted: Catalogue) -> dict[ObjectName, Table]:
    return {name: table for name, table in before.tables.items() if name in wanted.tables}


def _names(tables: Mapping[ObjectName, Table]) -> frozenset[ObjectName]:
    """The names that tables, their indexes, and the constraints with an index take in their schemas."""
    return frozenset(
        (schema, name)
        for (schema, table_name), table in tables.items()
        for name in (
            table_name,
            *table.indexes,
            *(name for name, one in table.constraints.items() if one.kind not in {"check", "foreign key"}),
        )
    )


def _empty_like(table: Table) -> Table:
    """What CREATE TABLE makes of `table`: all but its foreign keys, indexes and comments."""
    return replace(
        table,
        columns={name: replace(column, comment=None) for name, column in table.columns.items()},
        constraints={
            name: replace(constraint, comment=None)
            for name, constraint in table.constraints.items()
            if constraint.kind != "foreign key"
        },
        indexes={},
        comment=None,
    )


def _graph(tables: Mapping[ObjectName, Table]) -> dict[ObjectName, set[ObjectName]]:
    """For each table those that must be dropped before it: they refer to it."""
    graph: dict[ObjectName, set[ObjectName]] = {name: set() for name in tables}
    for name, table in tables.items():
        for constraint in table.constraints.values():
            if constraint.references in graph and constraint.references != name:
                graph[constraint.references].add(name)
    return graph


def _is_cyclic(tables: Mapping[ObjectName, Table]) -> bool:
    try:
        TopologicalSorter(_graph(tables)).prepare()
    except CycleError:
        return True
    return False


def _droppable_order(tables: Mapping[ObjectName, Table]) -> list[ObjectName]:
    if _is_cyclic(tables):
        return list(tables)
    return list(TopologicalSorter(_graph(tables)).static_order())


def _drop_constraint(table: ObjectName, name: str) -> str:
    return ddl.drop_constraint(named(table), identifier(name))


def _add_constraint(table: ObjectName, name: str, constraint: Constraint) -> Step:
    rank = Rank.KEY if constraint.kind == "foreign key" else Rank.CONSTRAINT
    return Step(rank, ddl.add_constraint(named(table), identifier(name), constraint.definition))


def _keys_in_the_way(before: Catalogue, wanted: Catalogue, *, online: bool) -> Iterator[Step]:
    """Foreign keys that stay, and have to be away while what they stand on is changed."""
    retyped = {
        (name, column)
        for name, table in wanted.tables.items()
        if name in before.tables
        for column, now in table.columns.items()
        if column in before.tables[name].columns and base_type(before.tables[name].columns[column]) != base_type(now)
    }
    remade: dict[ObjectName, list[frozenset[str]]] = {}
    for name, was_table in before.tables.items():
        now_table = wanted.tables.get(name)
        for constraint in was_table.constraints.values():
            if constraint.kind in {"primary key", "unique"} and now_table is not None:
                # Under another name it is the same one: it is renamed.
                stays = {(c.kind, c.definition) for c in now_table.constraints.values()}
                if (constraint.kind, constraint.definition) not in stays:
                    remade.setdefault(name, []).append(frozenset(constraint.columns))
    for name, table in before.tables.items():
        now = wanted.tables.get(name)
        for key, constraint in table.constraints.items():
            target = constraint.references
            if target is None or now is None or key not in now.constraints:
                continue
            if now.constraints[key].definition != constraint.definition:
                continue  # it is made anew anyway
            touched = {(name, c) for c in constraint.columns} | {(target, c) for c in constraint.referenced_columns}
            if touched & retyped or frozenset(constraint.referenced_columns) in remade.get(target, ()):
                yield Step(Rank.DROP_KEY, _drop_constraint(name, key), allow=online_sql.MADE_AGAIN if online else "")
                if online:
                    definition = now.constraints[key].definition
                    yield from online_sql.not_valid(named(name), identifier(key), definition, key=True)
                else:
                    yield _add_constraint(name, key, now.constraints[key])


@dataclass(frozen=True, slots=True)
class _Made:
    """One table that is in both."""

    name: ObjectName
    was: Table
    now: Table
    written: Written
    taken: frozenset[ObjectName]  # names of relations, before
    online: bool = False
    needed_at_once: frozenset[frozenset[str]] = frozenset()

    @property
    def sql(self) -> str:
        return f"ALTER TABLE {named(self.name)}"

    def after_create(self) -> Iterator[Step]:
        yield from self._constraints()
        yield from self._indexes()
        yield from self._comments()

    def altered(self) -> Iterator[Step]:
        for name, column in self.now.columns.items():
            was = self.was.columns.get(name)
            if was is None:
                yield from self._added(name, column)
            elif needs_made_anew(was, column) or (
                was.generated and column.generated and (was.type != column.type or self._stands_on_a_retyped(column))
            ):
                yield from self._made_anew(name, was, column)
            elif was != column:
                yield from self._altered_column(name, was, column)
        for name in self.was.columns:
            if name not in self.now.columns:
                yield Step(
                    Rank.DROP_COLUMN,
                    f"{self.sql} DROP COLUMN {identifier(name)}",
                    "loses the column's data",
                    drops=True,
                    target=("column", self.name, name),
                )
        yield from self._constraints()
        yield from self._indexes()
        yield from self._options()
        yield from self._comments()

    def _stands_on_a_retyped(self, column: Column) -> bool:
        """Whether a column is computed of one whose type changes, which Postgres refuses while it is there."""
        return column.generated is not None and any(
            re.search(rf"(?<!\w){re.escape(name)}(?!\w)", column.generated)
            for name, now in self.now.columns.items()
            if name in self.was.columns and self.was.columns[name].type != now.type
        )

    def _altered_column(self, name: str, was: Column, now: Column) -> Iterator[Step]:
        column = AlteredColumn(named(self.name), identifier(name), name, was, now)
        for step in column.steps():
            # An identity needs NOT NULL at once.
            if self.online and step.sql.endswith(" SET NOT NULL") and not now.identity:
                yield from online_sql.not_null(column.table, column.name, name)
            else:
                yield step

    def _added(self, name: str, column: Column, *, drops: bool = False) -> Iterator[Step]:
        needs_value = column.not_null and column.default is None and not column.identity and not column.generated
        sql = self.written.columns[self.name, name]
        target: Target = ("column", self.name, name)
        if self.online and needs_value and sql.endswith(" NOT NULL"):
            yield Step(Rank.COLUMN, sql.removesuffix(" NOT NULL"), drops=drops, target=target)
            note = "fill the old rows first: fails where one has NULL there"
            yield from online_sql.not_null(named(self.name), identifier(name), name, note=note)
            return
        note = "NOT NULL without a default: fails where the table has rows" if needs_value else ""
        yield Step(Rank.COLUMN, sql, note, drops=drops, target=target)

    def _made_anew(self, name: str, was: Column, now: Column) -> Iterator[Step]:
        """Postgres turns no column into a generated one, and (before 17) changes no expression."""
        derived = was.generated is not None and now.generated is not None
        note = "" if derived else "loses the column's data: "
        if not derived:
            note += "it is computed from now on" if now.generated else "it was computed until now"
        yield Step(Rank.ANEW, f"{self.sql} DROP COLUMN {identifier(name)}", note, drops=not derived)
        yield from self._added(name, now, drops=not derived)

    def _constraints(self) -> Iterator[Step]:
        renamed = _same_under_another_name(self.was.constraints, self.now.constraints, lambda c: (c.kind, c.definition))
        for old, new in renamed.items():
            is_taken = new in self.was.constraints or (self.name[0], new) in self.taken
            yield from _renamed(lambda one: f"{self.sql} RENAME CONSTRAINT {identifier(one)}", old, new, again=is_taken)
        for name, constraint in self.now.constraints.items():
            was = self.was.constraints.get(name)
            if was is not None and (was.kind, was.definition) == (constraint.kind, constraint.definition):
                if not was.validated and constraint.validated:
                    yield Step(Rank.REST, ddl.validate_constraint(named(self.name), identifier(name)))
            elif name not in renamed.values():
                if was is not None and name not in renamed:
                    allow = online_sql.MADE_AGAIN if self.online else ""
                    yield replace(self._dropped(name, was, drops=False), allow=allow)
                yield from self._added_constraint(name, constraint)
            on = f"CONSTRAINT {identifier(name)} ON {named(self.name)}"
            yield from self._comment(on, was.comment if was else None, constraint.comment)
        for name, constraint in self.was.constraints.items():
            if name not in self.now.constraints and name not in renamed:
                yield self._dropped(name, constraint, drops=name not in self.now.indexes)

    def _added_constraint(self, name: str, constraint: Constraint) -> Iterator[Step]:
        if self.online and not (
            constraint.kind in {"unique", "primary key"} and frozenset(constraint.columns) in self.needed_at_once
        ):
            found = online_sql.constraint(named(self.name), identifier(name), constraint)
            if found is not None:
                yield from found
                return
        declared = self.written.checks.get((self.name, name)) if constraint.kind == "check" else None
        yield Step(Rank.CONSTRAINT, declared) if declared else _add_constraint(self.name, name, constraint)

    def _comment(self, on: str, was: str | None, comment: str | None) -> Iterator[Step]:
        """A comment; online, when what it is on is there: its index may have been built before it."""
        for step in _comment(on, was, comment):
            yield replace(step, rank=Rank.FINISH) if self.online else step

    def _dropped(self, name: str, constraint: Constraint, *, drops: bool) -> Step:
        rank = Rank.DROP_KEY if constraint.kind == "foreign key" else Rank.DROP_CONSTRAINT
        return Step(rank, _drop_constraint(self.name, name), drops=drops)

    def _indexes(self) -> Iterator[Step]:
        renamed = _same_under_another_name(self.was.indexes, self.now.indexes, _index_body)
        for old, new in renamed.items():
            is_taken = (self.name[0], new) in self.taken
            yield from _renamed(
                lambda one: f"ALTER INDEX {named((self.name[0], one))} RENAME", old, new, again=is_taken
            )
        for name, index in self.now.indexes.items():
            was = self.was.indexes.get(name)
            if name not in renamed.values() and (was is None or was.definition != index.definition or not was.valid):
                if was is not None and name not in renamed:
                    yield self._dropped_index(name, drops=False)
                    was = None
                sql = self.written.indexes.get((self.name, name), index.definition)
                is_concurrent = self.online or " INDEX CONCURRENTLY " in sql
                yield online_sql.index(sql) if is_concurrent else Step(Rank.INDEX, sql)
            yield from self._comment(
                f"INDEX {named((self.name[0], name))}", was.comment if was else None, index.comment
            )
        for name in self.was.indexes:
            if name not in self.now.indexes and name not in renamed:
                yield self._dropped_index(name, drops=name not in self.now.constraints)

    def _dropped_index(self, name: str, *, drops: bool) -> Step:
        sql = named((self.name[0], name))
        if self.online:
            return online_sql.drop_index(sql, drops=drops)
        return Step(Rank.DROP_CONSTRAINT, f"DROP INDEX {sql}", drops=drops)

    def _options(self) -> Iterator[Step]:
        if self.was.unlogged != self.now.unlogged:
            yield Step(Rank.REST, f"{self.sql} {ddl.set_persistence(unlogged=self.now.unlogged)}", "rewrites the table")
        if self.was.partitioned_by != self.now.partitioned_by:
            how = [
                f"partitioned by {one.partitioned_by}" if one.partitioned_by else "not partitioned"
                for one in (self.was, self.now)
            ]
            yield Step(
                Rank.REST,
                "",
                f"the table {named(self.name)} is {how[0]}, in the code {how[1]}: Postgres cannot change that;"
                " create another table, copy the rows, and rename both by hand",
            )
        if self.was.access_method != self.now.access_method:
            yield Step(
                Rank.REST, f"{self.sql} SET ACCESS METHOD {identifier(self.now.access_method)}", "rewrites the table"
            )
        if not self.now.options:
            return  # what the code says nothing of is left as a migration has set it
        for change in ddl.changed_options(self.was.options, self.now.options):
            yield Step(Rank.REST, f"{self.sql} {change}")

    def _comments(self) -> Iterator[Step]:
        yield from _comment(f"TABLE {named(self.name)}", self.was.comment, self.now.comment)
        for name, column in self.now.columns.items():
            was = self.was.columns.get(name)
            on = f"COLUMN {named(self.name)}.{identifier(name)}"
            yield from _comment(on, was.comment if was else None, column.comment)


def _renamed(statement: Callable[[str], str], old: str, new: str, *, again: bool) -> Iterator[Step]:
    """Rename, with `again` by way of a free name: the new one is not free before what has it is renamed or dropped."""
    if not again:
        yield Step(Rank.RENAME, f"{statement(old)} TO {identifier(new)}")
        return
    free = f"orchestrator_{hashlib.sha256(f'{statement(old)} {new}'.encode()).hexdigest()[:16]}"
    yield Step(Rank.RENAME, f"{statement(old)} TO {identifier(free)}")
    yield Step(Rank.RENAME_AGAIN, f"{statement(free)} TO {identifier(new)}")


def _same_under_another_name(
    was: Mapping[str, _T], now: Mapping[str, _T], body: Callable[[_T], object]
) -> dict[str, str]:
    """Old name → new name of what has only that changed; two may have changed their names with each other."""
    stay = {name for name, one in now.items() if name in was and body(was[name]) == body(one)}
    renamed: dict[str, str] = {}
    for new, one in now.items():
        if new not in stay:
            same = (old for old, other in was.items() if old not in stay | renamed.keys() and body(one) == body(other))
            old = next(same, None)
            if old is not None:
                renamed[old] = new
    return renamed


def _index_body(index: Index) -> tuple[bool, str]:
    return index.definition.startswith("CREATE UNIQUE"), index.definition.partition(" ON ")[2]
