"""What makes one catalogue of another, in an order that runs, and which drops may be renames. Pure: no I/O.

New tables, columns and indexes come written (by alembic, from the code); all else is written here, from the server's
own definitions.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Literal, TypeVar

from orchestrator.database.quoting import identifier, literal
from orchestrator.schema.conversions import is_text, loses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from orchestrator.schema.tables import Catalogue, Column, Constraint, Enum, Index, ObjectName, Sequence, Table

# Where a statement stands in the file: each rank needs only what comes before it.
_SCHEMA, _TYPE, _DROP_IDENTITY, _SEQUENCE, _RENAME, _DROP_KEY, _DROP_CONSTRAINT, _DROP_NAMESAKE = range(8)
_RENAME_AGAIN, _ENUM, _TABLE, _ANEW, _ALTER, _COLUMN, _CONSTRAINT, _INDEX, _KEY, _REST, _PLACE = range(8, 19)
_DROP_COLUMN, _DROP_TABLE, _DROP_SEQUENCE, _DROP_TYPE = range(19, 23)

_COULD_BE_RENAMED = 0.5
_PUBLIC = "public"
_T = TypeVar("_T")

Target = tuple[Literal["table", "column", "enum"], "ObjectName", str]


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, without its semicolon; empty where there is nothing that could be run, and `note` says why.

    `drops` is True for what takes something away for good. `otherwise` is tried where the server knows no such cast
    (42804, 42846). `target` is the table or column that is made or dropped. `changed_rows` is a query for the number of
    rows whose value the step changes.
    """

    rank: int
    sql: str
    note: str = ""
    drops: bool = False
    otherwise: Step | None = None
    target: Target | None = None
    changed_rows: str = ""
    adds_enum_value: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """Statements that alembic wrote, by what they make."""

    tables: Mapping[ObjectName, str] = field(default_factory=dict)
    columns: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)
    indexes: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)
    checks: Mapping[tuple[ObjectName, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rename:
    """A table, one of its columns, or an enum's value that may have got another name, or a table another schema.

    `name` is the present name of the table or enum; `old` the column or value, empty for a table; `new` what it is
    called now, for `schema` the schema that the table is in now.
    """

    kind: Literal["table", "schema", "column", "value"]
    name: ObjectName
    new: str
    old: str = ""

    @property
    def sql(self) -> str:
        """The statement that renames."""
        match self.kind:
            case "column":
                return f"ALTER TABLE {named(self.name)} RENAME COLUMN {identifier(self.old)} TO {identifier(self.new)}"
            case "value":
                return f"ALTER TYPE {named(self.name)} RENAME VALUE {literal(self.old)} TO {literal(self.new)}"
            case "schema":
                return f"ALTER TABLE {named(self.name)} SET SCHEMA {identifier(self.new)}"
        return f"ALTER TABLE {named(self.name)} RENAME TO {identifier(self.new)}"

    @property
    def spelled(self) -> str:
        """As `--rename` has it: users=people, app.users=crm.users, users.name=full_name, mood.ok=fine."""
        parts = [*self.name, self.old] if self.old else [*self.name]
        new = f"{self.new}.{self.name[1]}" if self.kind == "schema" else self.new
        return f"{'.'.join(parts[1:] if self.name[0] == _PUBLIC else parts)}={new}"

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is dropped and what is added if it was no rename; for a value also the enum that is made anew."""
        match self.kind:
            case "column":
                return ("column", self.name, self.old), ("column", self.name, self.new)
            case "value":
                return ("enum", self.name, self.old), ("enum", self.name, self.new), ("enum", self.name, "")
            case "schema":
                return ("table", self.name, ""), ("table", (self.new, self.name[1]), "")
        return ("table", self.name, ""), ("table", (self.name[0], self.new), "")


def named(name: ObjectName) -> str:
    """`name` for a statement: the schema is left out where it is public, as in what SQLAlchemy writes."""
    return identifier(name[1]) if name[0] == _PUBLIC else f"{identifier(name[0])}.{identifier(name[1])}"


def suspected_renames(before: Catalogue, wanted: Catalogue) -> list[list[Rename]]:
    """What was dropped and added and looks alike: for each new name, the old ones that it may be."""
    found = []
    gone = {name: table for name, table in before.tables.items() if name not in wanted.tables}
    for name, table in wanted.tables.items():
        if name not in before.tables:
            alike = [old for old, was in gone.items() if _is_alike(was, table)]
            found.append([Rename("schema", old, name[0]) for old in alike if old[1] == name[1]])
            found.append([Rename("table", old, name[1]) for old in alike if old[0] == name[0]])
            continue
        was = before.tables[name]
        lost = {c: column for c, column in was.columns.items() if c not in table.columns}
        for new, column in table.columns.items():
            if new not in was.columns:
                found.append([Rename("column", name, new, c) for c, old in lost.items() if old.type == column.type])
    for name, enum in wanted.enums.items():
        values = before.enums[name].values if name in before.enums else ()
        missing = [value for value in values if value not in enum.values]
        found += [[Rename("value", name, new, old) for old in missing] for new in enum.values if new not in values]
    return [group for group in found if group]


def moved_enums(before: Catalogue, wanted: Catalogue) -> list[tuple[ObjectName, str]]:
    """Enums with the same name and values in another schema, and that schema: nothing is lost where they move."""
    return [
        (old, new[0])
        for new, enum in wanted.enums.items()
        if new not in before.enums
        for old, was in before.enums.items()
        if old not in wanted.enums and old[1] == new[1] and was.values == enum.values
    ][:1]


def _is_alike(one: Table, other: Table) -> bool:
    """Half of the columns or more have the same name and type."""
    pairs = {(n, c.type) for n, c in one.columns.items()} & {(n, c.type) for n, c in other.columns.items()}
    return bool(pairs) and len(pairs) >= _COULD_BE_RENAMED * max(len(one.columns), len(other.columns))


def steps(before: Catalogue, wanted: Catalogue, written: Written) -> list[Step]:
    """What makes `wanted` of `before`; nothing where they are the same."""
    found = [
        *_schemas(before, wanted),
        *_types(before, wanted),
        *_sequences(before, wanted),
        *_tables(before, wanted, written),
    ]
    return sorted(dict.fromkeys(found), key=lambda step: step.rank)


# ------------------------------------------------------------------------------------------ schemas, types, sequences


def _schemas(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    for schema in sorted(wanted.schemas - before.schemas):
        yield Step(_SCHEMA, f"CREATE SCHEMA {identifier(schema)}")


def _types(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    for name, enum in wanted.enums.items():
        was = before.enums.get(name)
        if was is None:
            yield Step(_TYPE, f"CREATE TYPE {named(name)} AS ENUM ({_values(enum.values)})")
        elif was.values != enum.values:
            yield from _enum(name, was, enum, before, wanted)
        yield from _comment(f"TYPE {named(name)}", was.comment if was else None, enum.comment)
    for name in before.enums.keys() - wanted.enums.keys():
        yield Step(_DROP_TYPE, f"DROP TYPE {named(name)}", drops=True)
    for name, domain in wanted.domains.items():
        if name not in before.domains:
            yield Step(_TYPE, f"CREATE DOMAIN {named(name)} AS {domain}")
        elif before.domains[name] != domain:
            yield Step(
                _TYPE, "", f"the domain {named(name)} is {before.domains[name]}, in the code {domain}: write it by hand"
            )
    for name in before.domains.keys() - wanted.domains.keys():
        yield Step(_DROP_TYPE, f"DROP DOMAIN {named(name)}", drops=True)


def _values(values: tuple[str, ...]) -> str:
    return ", ".join(literal(value) for value in values)


def _enum(name: ObjectName, was: Enum, enum: Enum, before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    kept = [value for value in enum.values if value in was.values]
    if tuple(kept) != was.values:
        yield from _enum_made_anew(name, was, enum, before, wanted)
        return
    for place, value in enumerate(enum.values):
        if value not in was.values:
            later = next((other for other in enum.values[place:] if other in was.values), None)
            position = f" BEFORE {literal(later)}" if later is not None else ""
            yield Step(_TYPE, f"ALTER TYPE {named(name)} ADD VALUE {literal(value)}{position}", adds_enum_value=True)


def _enum_made_anew(name: ObjectName, was: Enum, enum: Enum, before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    """Postgres takes no value out of an enum and moves none: another type takes its place."""
    gone = [value for value in was.values if value not in enum.values]
    note = (
        f"fails where a row still has {_values(tuple(gone))}" if gone else "the values are in another order now"
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
                lines.append(f"{table_sql} DROP CONSTRAINT {identifier(c)}")
                after.append(f"{table_sql} ADD CONSTRAINT {identifier(c)} {constraint.definition}")
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
        f"CREATE TYPE {named(name)} AS ENUM ({_values(enum.values)})",
        *lines,
        *after,
    ]
    for line in lines:
        yield Step(_ENUM, line, note, drops=True, target=("enum", name, ""))
        note = ""
    yield Step(_DROP_TYPE, f"DROP TYPE {named(old)}", drops=True, target=("enum", name, ""))


def _sequences(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    taken = set()
    for name, sequence in wanted.sequences.items():
        if name in before.sequences:
            was = before.sequences[name]
            if was.definition != sequence.definition:
                yield Step(_SEQUENCE, f"ALTER SEQUENCE {named(name)} {sequence.definition}")
            if was.owned_by != sequence.owned_by:
                yield _owner(name, sequence)
            yield from _comment(f"SEQUENCE {named(name)}", was.comment, sequence.comment)
            continue
        if sequence.owned_by and not _has_column(before, *sequence.owned_by):
            continue  # the serial that makes the column makes its sequence
        old = next((o for o, s in before.sequences.items() if _is_the_same_serial(o, s, sequence, wanted)), None)
        if old is not None and old[0] == name[0]:
            taken.add(old)
            yield Step(_RENAME, f"ALTER SEQUENCE {named(old)} RENAME TO {identifier(name[1])}")
            continue
        yield Step(_SEQUENCE, f"CREATE SEQUENCE {named(name)} {sequence.definition}")
        if sequence.owned_by:
            yield _owner(name, sequence)
            yield _place(literal(named(name)), *sequence.owned_by)
        yield from _comment(f"SEQUENCE {named(name)}", None, sequence.comment)
    for name, sequence in before.sequences.items():
        if name in wanted.sequences or name in taken:
            continue
        if sequence.owned_by and not _has_column(wanted, *sequence.owned_by):
            continue  # it goes with its column
        goes_on = _is_carried_over(sequence, wanted)
        if goes_on and sequence.owned_by:
            yield Step(
                _SEQUENCE, f"ALTER SEQUENCE {named(name)} OWNED BY NONE"
            )  # or it would be found for the identity's
            place = f"SELECT pg_catalog.setval({_sequence_of(*sequence.owned_by)}, last_value, is_called)"
            yield Step(_PLACE, f"{place} FROM {named(name)}", "the identity goes on where the sequence stands")
        note = "" if goes_on else "loses where it stands"
        yield Step(_DROP_SEQUENCE, f"DROP SEQUENCE {named(name)}", note, drops=not goes_on)


def _is_the_same_serial(name: ObjectName, old: Sequence, new: Sequence, wanted: Catalogue) -> bool:
    return old.owned_by is not None and old.owned_by == new.owned_by and name not in wanted.sequences


def _is_carried_over(sequence: Sequence, wanted: Catalogue) -> bool:
    """Whether a serial's sequence is left for the one of an identity, which is set to its place."""
    if sequence.owned_by is None:
        return False
    table, column = sequence.owned_by
    return wanted.tables[table].columns[column].identity is not None


def _sequence_of(table: ObjectName, column: str) -> str:
    return f"pg_catalog.pg_get_serial_sequence({literal(named(table))}, {literal(column)})"


def _place(sequence: str, table: ObjectName, column: str) -> Step:
    """Set a sequence behind the rows that are there: a new one begins at its start, and the next INSERT would fail."""
    quoted = identifier(column)
    return Step(
        _PLACE,
        f"SELECT pg_catalog.setval({sequence}, coalesce(max({quoted}), 1), max({quoted}) IS NOT NULL)"  # noqa: S608
        f" FROM {named(table)}",
        "the new sequence goes on behind the rows",
    )


def _owner(name: ObjectName, sequence: Sequence) -> Step:
    owner = "NONE" if sequence.owned_by is None else f"{named(sequence.owned_by[0])}.{identifier(sequence.owned_by[1])}"
    return Step(_REST, f"ALTER SEQUENCE {named(name)} OWNED BY {owner}")


def _has_column(catalogue: Catalogue, table: ObjectName, column: str) -> bool:
    return table in catalogue.tables and column in catalogue.tables[table].columns


def _comment(what: str, was: str | None, comment: str | None) -> Iterator[Step]:
    if was != comment:
        yield Step(_REST, f"COMMENT ON {what} IS {literal(comment)}")


# ------------------------------------------------------------------------------------------------------------- tables


def _tables(before: Catalogue, wanted: Catalogue, written: Written) -> Iterator[Step]:
    gone = {name: table for name, table in before.tables.items() if name not in wanted.tables}
    taken = _names(before.tables)
    for name, table in wanted.tables.items():
        was = before.tables.get(name)
        if was is None:
            yield Step(_TABLE, written.tables[name], target=("table", name, ""))
            made = _Made(name, _empty_like(table), table, written, taken)
            yield from made.after_create()
        else:
            yield from _Made(name, was, table, written, taken).altered()
    yield from _keys_in_the_way(before, wanted)
    # A table that goes makes room for the names that others get; all of them go then, as one may stand on another.
    rank = _DROP_NAMESAKE if _names(gone) & (_names(wanted.tables) - _names(_kept(before, wanted))) else _DROP_TABLE
    for name in _droppable_order(gone):
        yield Step(rank, f"DROP TABLE {named(name)}", "loses the table's rows", drops=True, target=("table", name, ""))
    if _is_cyclic(gone):
        for name, table in gone.items():
            for key, constraint in table.constraints.items():
                if constraint.kind == "foreign key" and constraint.references in gone:
                    yield Step(_DROP_KEY, _drop_constraint(name, key), drops=True)


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
    from dataclasses import replace

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
    return f"ALTER TABLE {named(table)} DROP CONSTRAINT {identifier(name)}"


def _add_constraint(table: ObjectName, name: str, constraint: Constraint) -> Step:
    rank = _KEY if constraint.kind == "foreign key" else _CONSTRAINT
    return Step(rank, f"ALTER TABLE {named(table)} ADD CONSTRAINT {identifier(name)} {constraint.definition}")


def _keys_in_the_way(before: Catalogue, wanted: Catalogue) -> Iterator[Step]:
    """Foreign keys that stay, and have to be away while what they stand on is changed."""
    retyped = {
        (name, column)
        for name, table in wanted.tables.items()
        if name in before.tables
        for column, now in table.columns.items()
        if column in before.tables[name].columns and _base(before.tables[name].columns[column]) != _base(now)
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
                yield Step(_DROP_KEY, _drop_constraint(name, key))
                yield _add_constraint(name, key, now.constraints[key])


@dataclass(frozen=True, slots=True)
class _Made:
    """One table that is in both."""

    name: ObjectName
    was: Table
    now: Table
    written: Written
    taken: frozenset[ObjectName]  # names of relations, before

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
                yield self._added(name, column)
            elif was != column or self._stands_on_a_retyped(column):
                yield from _Altered(self, name, was, column).steps()
        for name in self.was.columns:
            if name not in self.now.columns:
                yield Step(
                    _DROP_COLUMN,
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

    def _added(self, name: str, column: Column, *, drops: bool = False) -> Step:
        needs_value = column.not_null and column.default is None and not column.identity and not column.generated
        note = "NOT NULL without a default: fails where the table has rows" if needs_value else ""
        return Step(
            _COLUMN, self.written.columns[self.name, name], note, drops=drops, target=("column", self.name, name)
        )

    def _constraints(self) -> Iterator[Step]:
        renamed = _same_under_another_name(self.was.constraints, self.now.constraints, lambda c: (c.kind, c.definition))
        for old, new in renamed.items():
            is_taken = new in self.was.constraints or (self.name[0], new) in self.taken
            yield from _renamed(lambda one: f"{self.sql} RENAME CONSTRAINT {identifier(one)}", old, new, again=is_taken)
        for name, constraint in self.now.constraints.items():
            was = self.was.constraints.get(name)
            if was is not None and (was.kind, was.definition) == (constraint.kind, constraint.definition):
                if not was.validated and constraint.validated:
                    yield Step(_REST, f"{self.sql} VALIDATE CONSTRAINT {identifier(name)}")
            elif name not in renamed.values():
                if was is not None and name not in renamed:
                    yield self._dropped(name, was, drops=False)
                declared = self.written.checks.get((self.name, name)) if constraint.kind == "check" else None
                yield Step(_CONSTRAINT, declared) if declared else _add_constraint(self.name, name, constraint)
            on = f"CONSTRAINT {identifier(name)} ON {named(self.name)}"
            yield from _comment(on, was.comment if was else None, constraint.comment)
        for name, constraint in self.was.constraints.items():
            if name not in self.now.constraints and name not in renamed:
                yield self._dropped(name, constraint, drops=name not in self.now.indexes)

    def _dropped(self, name: str, constraint: Constraint, *, drops: bool) -> Step:
        rank = _DROP_KEY if constraint.kind == "foreign key" else _DROP_CONSTRAINT
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
                    yield Step(_DROP_CONSTRAINT, f"DROP INDEX {named((self.name[0], name))}")
                    was = None
                yield Step(_INDEX, self.written.indexes.get((self.name, name), index.definition))
            yield from _comment(f"INDEX {named((self.name[0], name))}", was.comment if was else None, index.comment)
        for name in self.was.indexes:
            if name not in self.now.indexes and name not in renamed:
                drops = name not in self.now.constraints
                yield Step(_DROP_CONSTRAINT, f"DROP INDEX {named((self.name[0], name))}", drops=drops)

    def _options(self) -> Iterator[Step]:
        if self.was.unlogged != self.now.unlogged:
            yield Step(_REST, f"{self.sql} SET {'UNLOGGED' if self.now.unlogged else 'LOGGED'}", "rewrites the table")
        if self.was.partitioned_by != self.now.partitioned_by:
            how = [
                f"partitioned by {one.partitioned_by}" if one.partitioned_by else "not partitioned"
                for one in (self.was, self.now)
            ]
            yield Step(
                _REST,
                "",
                f"the table {named(self.name)} is {how[0]}, in the code {how[1]}: Postgres cannot change that;"
                " create another table, copy the rows, and rename both by hand",
            )
        if self.was.access_method != self.now.access_method:
            yield Step(
                _REST, f"{self.sql} SET ACCESS METHOD {identifier(self.now.access_method)}", "rewrites the table"
            )
        if not self.now.options:
            return  # what the code says nothing of is left as a migration has set it
        changed = {k: v for k, v in self.now.options.items() if self.was.options.get(k) != v}
        if changed:
            yield Step(_REST, f"{self.sql} SET ({', '.join(f'{key} = {value}' for key, value in changed.items())})")
        if gone := [key for key in self.was.options if key not in self.now.options]:
            yield Step(_REST, f"{self.sql} RESET ({', '.join(gone)})")

    def _comments(self) -> Iterator[Step]:
        yield from _comment(f"TABLE {named(self.name)}", self.was.comment, self.now.comment)
        for name, column in self.now.columns.items():
            was = self.was.columns.get(name)
            on = f"COLUMN {named(self.name)}.{identifier(name)}"
            yield from _comment(on, was.comment if was else None, column.comment)


def _renamed(statement: Callable[[str], str], old: str, new: str, *, again: bool) -> Iterator[Step]:
    """Rename, with `again` by way of a free name: the new one is not free before what has it is renamed or dropped."""
    if not again:
        yield Step(_RENAME, f"{statement(old)} TO {identifier(new)}")
        return
    free = f"orchestrator_{hashlib.sha256(f'{statement(old)} {new}'.encode()).hexdigest()[:16]}"
    yield Step(_RENAME, f"{statement(old)} TO {identifier(free)}")
    yield Step(_RENAME_AGAIN, f"{statement(free)} TO {identifier(new)}")


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


@dataclass(frozen=True, slots=True)
class _Altered:
    """One column that is in both, and differs."""

    table: _Made
    name: str
    was: Column
    now: Column

    @property
    def sql(self) -> str:
        return f"{self.table.sql} ALTER COLUMN {identifier(self.name)}"

    def steps(self) -> Iterator[Step]:
        was, now = self.was, self.now
        if (was.generated, was.generated_kind) != (now.generated, now.generated_kind) or (
            was.generated and (was.type != now.type or self.table._stands_on_a_retyped(now))  # noqa: SLF001 the same file
        ):
            if was.generated_kind == "s" and now.generated is None:
                yield Step(_ALTER, f"{self.sql} DROP EXPRESSION")
            else:
                yield from self._made_anew()
                return
        if was.identity and not now.identity:
            yield Step(_DROP_IDENTITY, f"{self.sql} DROP IDENTITY")  # its sequence may have the name of the next one
        default = was.default
        if (was.type, was.collation) != (now.type, now.collation):
            if default is not None and _base(was) != _base(now):
                yield Step(_ALTER, f"{self.sql} DROP DEFAULT")
                default = None
            yield self._retyped()
        if default is not None and now.default is None:
            yield Step(_ALTER, f"{self.sql} DROP DEFAULT")
        elif default != now.default:
            yield Step(_ALTER, f"{self.sql} SET DEFAULT {now.default}")
        if now.not_null and not was.not_null:
            yield Step(_ALTER, f"{self.sql} SET NOT NULL", "fails where a row has NULL there")
        if now.identity and now.identity != was.identity:
            yield from self._identity()
        if was.not_null and not now.not_null:
            yield Step(_ALTER, f"{self.sql} DROP NOT NULL")

    def _made_anew(self) -> Iterator[Step]:
        """Postgres turns no column into a generated one, and (before 17) changes no expression."""
        derived = self.was.generated is not None and self.now.generated is not None
        note = "" if derived else "loses the column's data: "
        if not derived:
            note += "it is computed from now on" if self.now.generated else "it was computed until now"
        yield Step(_ANEW, f"{self.table.sql} DROP COLUMN {identifier(self.name)}", note, drops=not derived)
        yield self.table._added(self.name, self.now, drops=not derived)  # noqa: SLF001 the same file

    def _retyped(self) -> Step:
        now, quoted = self.now, identifier(self.name)
        collate = f" COLLATE {now.collation}" if now.collation else ""
        sql = f"{self.sql} SET DATA TYPE {now.type}{collate}"
        lost = loses(self.was.type, now.type)
        table = ".".join(map(identifier, self.table.name))
        there_and_back = f"{quoted}::{now.type}::{self.was.type}"
        changed_rows = f"SELECT count(*) FROM {table} WHERE {quoted} IS DISTINCT FROM {there_and_back}"  # noqa: S608 quoted
        by_text = Step(
            _ALTER, f"{sql} USING {quoted}::text::{now.type}", "rewrites the table; fails where a value is refused"
        )
        # Only the explicit cast is known: it reads a text, which is refused where it cannot be read, or it makes fit.
        explicit = Step(
            _ALTER,
            f"{sql} USING {quoted}::{now.type}",
            "rewrites the table; fails where a value is refused"
            if is_text(self.was.type)
            else "rewrites the table, and may change values: the server does this conversion only when told to",
            drops=not is_text(self.was.type),
            otherwise=by_text,
            changed_rows=changed_rows,
        )
        if lost:
            note = f"loses {lost}"
        elif _base(self.was) == _base(now):
            note = ""
        else:
            note = "rewrites the table; fails where a value does not fit"
        return Step(_ALTER, sql, note, drops=bool(lost), otherwise=explicit, changed_rows=changed_rows if lost else "")

    def _identity(self) -> Iterator[Step]:
        identity = self.now.identity
        assert identity is not None  # noqa: S101 asked before
        kind = "ALWAYS" if identity.always else "BY DEFAULT"
        if self.was.identity is None:
            yield Step(_ALTER, f"{self.sql} ADD GENERATED {kind} AS IDENTITY ({identity.options})")
            if "nextval(" not in (self.was.default or ""):  # a serial's sequence is there to be asked: see _sequences
                yield _place(_sequence_of(self.table.name, self.name), self.table.name, self.name)
            return
        options = re.sub(r"(START|INCREMENT|MINVALUE|MAXVALUE|CACHE|(?:NO )?CYCLE)\b", r"SET \1", identity.options)
        yield Step(_ALTER, f"{self.sql} SET GENERATED {kind} {options}")


def _base(column: Column) -> str:
    """A type without its measure: varchar(10) and varchar(20) need no cast."""
    return re.sub(r"\([^)]*\)", "", column.type)
