"""Which drops may be renames: what was dropped and added and looks alike. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from orchestrator.database.quoting import identifier, literal
from orchestrator.schema.tables import PUBLIC, named

if TYPE_CHECKING:
    from orchestrator.schema.steps import Target
    from orchestrator.schema.tables import Catalogue, ObjectName, Table

_COULD_BE_RENAMED = 0.5


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
        return f"{'.'.join(parts[1:] if self.name[0] == PUBLIC else parts)}={new}"

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
