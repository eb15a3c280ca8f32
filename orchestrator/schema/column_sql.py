"""What makes one column of another. Pure: no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.database.quoting import literal
from orchestrator.schema import ddl
from orchestrator.schema.conversions import is_text, loses
from orchestrator.schema.steps import Rank, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.schema.tables import Column

_REFUSES = "rewrites the table; fails where a value is refused"


@dataclass(frozen=True, slots=True)
class AlteredColumn:
    """A column that differs; `table` and `name` are SQL, `raw_name` is the name as it is."""

    table: str
    name: str
    raw_name: str
    was: Column
    now: Column

    def steps(self) -> Iterator[Step]:
        """Everything but the comment; a column that becomes a computed one is the caller's, who makes it anew."""
        was, now = self.was, self.now
        if was.generated and not now.generated:
            yield self._alter("DROP EXPRESSION")
        if was.identity and not now.identity:
            # Its sequence may have the name of the next one.
            yield self._alter("DROP IDENTITY", rank=Rank.DROP_IDENTITY)
        yield from self._type_and_default()
        if now.not_null and not was.not_null:
            yield self._alter("SET NOT NULL", "fails where a row has NULL there")
        if now.identity and now.identity != was.identity:
            yield from self._identity()
        if was.not_null and not now.not_null:
            yield self._alter("DROP NOT NULL")

    def _alter(self, change: str, note: str = "", *, rank: Rank = Rank.ALTER) -> Step:
        return Step(rank, f"ALTER TABLE {self.table} ALTER COLUMN {self.name} {change}", note)

    def _type_and_default(self) -> Iterator[Step]:
        was, now = self.was, self.now
        retyped = (was.type, was.collation) != (now.type, now.collation)
        # The server may have no cast from the old default to the new type.
        in_the_way = retyped and base_type(was) != base_type(now)
        if was.default is not None and (now.default is None or in_the_way):
            yield self._alter("DROP DEFAULT")
        if retyped:
            yield self._retyped()
        if now.default is not None and (now.default != was.default or in_the_way):
            yield self._alter(f"SET DEFAULT {now.default}")

    def _retyped(self) -> Step:
        """Without USING, so that the server refuses what does not fit; with it where it knows no other cast."""
        was, now, name = self.was, self.now, self.name
        change = f"SET DATA TYPE {now.type}" + (f" COLLATE {now.collation}" if now.collation else "")
        changed_rows = f"SELECT count(*) FROM {self.table} WHERE {name} IS DISTINCT FROM {name}::{now.type}::{was.type}"  # noqa: S608 quoted
        if lost := loses(was.type, now.type):
            note = f"loses {lost}"
        else:
            note = "" if base_type(was) == base_type(now) else "rewrites the table; fails where a value does not fit"
        # An explicit cast of a text reads it, and refuses what it cannot read; any other makes the value fit.
        reads = is_text(was.type)
        told = "rewrites the table, and may change values: the server does this conversion only when told to"
        explicit = self._alter(f"{change} USING {name}::{now.type}", _REFUSES if reads else told)
        return _with(
            self._alter(change, note),
            drops=bool(lost),
            changed_rows=changed_rows if lost else "",
            otherwise=_with(
                explicit,
                drops=not reads,
                changed_rows=changed_rows,
                otherwise=self._alter(f"{change} USING {name}::text::{now.type}", _REFUSES),
            ),
        )

    def _identity(self) -> Iterator[Step]:
        identity = self.now.identity
        assert identity is not None  # noqa: S101 asked before
        kind = "ALWAYS" if identity.always else "BY DEFAULT"
        if self.was.identity is not None:
            yield self._alter(ddl.set_identity(kind, identity.options))
            return
        yield self._alter(f"ADD {ddl.identity(kind, identity.options)}")
        # A serial's sequence is there to be asked where it stands.
        if "nextval(" not in (self.was.default or ""):
            yield place_behind_rows(sequence_of(self.table, self.raw_name), self.table, self.name)


def _with(step: Step, *, drops: bool, changed_rows: str, otherwise: Step) -> Step:
    return Step(step.rank, step.sql, step.note, drops, otherwise, changed_rows=changed_rows)


def needs_made_anew(was: Column, now: Column) -> bool:
    """Whether a column is, or was, computed in a way that no ALTER leads from or (before PostgreSQL 17) to."""
    stays_stored = now.generated is None and (was.generated or "").endswith(" STORED")
    return was.generated != now.generated and not stays_stored


def sequence_of(table: str, raw_name: str) -> str:
    """The sequence of a serial or an identity; `table` is SQL."""
    return f"pg_catalog.pg_get_serial_sequence({literal(table)}, {literal(raw_name)})"


def place_behind_rows(sequence: str, table: str, name: str) -> Step:
    """Set a sequence behind the rows that are there: a new one begins at its start, and the next INSERT would fail."""
    return Step(
        Rank.PLACE,
        f"SELECT pg_catalog.setval({sequence}, coalesce(max({name}), 1), max({name}) IS NOT NULL) FROM {table}",  # noqa: S608 quoted
        "the new sequence goes on behind the rows",
    )


def base_type(column: Column) -> str:
    """A type without its measure: varchar(10) and varchar(20) need no cast."""
    return re.sub(r"\([^)]*\)", "", column.type)
