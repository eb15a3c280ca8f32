"""Two catalogues as a list of differences, each with what would make the database what the files say. Pure: no I/O.

`files` is the catalogue that the migrations make, `database` the one that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator.schema import object_sql
from orchestrator.schema.objects import by_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.schema.objects import Schema, SchemaObject

State = Literal["missing", "unexpected", "changed"]


class Change(msgspec.Struct, frozen=True):
    """One fact of an object that is not the same; None stands for what is not set."""

    fact: str
    files: Any
    database: Any


class Difference(msgspec.Struct, frozen=True):
    """One object that is not the same on both sides.

    `missing` is in the files alone, `unexpected` in the database alone; what belongs to such an object is not told
    apart from it, `contains` counts it. `sql` leads from the database to the files; empty where no statement does.
    """

    state: State
    kind: str
    name: str
    schema: str | None
    table: str | None
    changes: tuple[Change, ...] = ()
    contains: int = 0
    sql: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What a person calls the object."""
        return f"{self.kind} {self.name}" + (f" of {self.table}" if self.table else "")


def diff(files: Schema, database: Schema) -> list[Difference]:
    """Every difference but the order of columns, by schema and object; equal schemas give an empty list."""
    wanted, found = by_key(files.objects), by_key(database.objects)
    missing = [one for key, one in wanted.items() if key not in found]
    unexpected = [one for key, one in found.items() if key not in wanted]
    differences = [
        *_one_sided("missing", missing, files),
        *_one_sided("unexpected", unexpected, database),
        *_changed(wanted, found),
    ]
    return sorted(differences, key=lambda d: (d.schema or "", d.table or d.name, d.table is not None, d.kind, d.name))


def column_order(files: Schema, database: Schema) -> list[tuple[str, list[str], list[str]]]:
    """(table, the files' order, the database's) where the same columns stand in another order: cosmetic."""
    orders = [_columns(files), _columns(database)]
    return [
        (table, orders[0][table], found)
        for table, found in orders[1].items()
        if table in orders[0] and found != orders[0][table] and sorted(found) == sorted(orders[0][table])
    ]


def _columns(schema: Schema) -> dict[str, list[str]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for one in schema.objects:
        if one.kind == "column" and one.table is not None:
            found.setdefault(one.table, []).append((one.position, one.name))
    return {table: [name for _, name in sorted(columns)] for table, columns in found.items()}


def _one_sided(state: Literal["missing", "unexpected"], objects: list[SchemaObject], side: Schema) -> list[Difference]:
    """Differences for what one side alone has; what goes with a larger thing is counted there."""
    schema_names = {one.schema: one.name for one in objects if one.kind == "schema"}
    owners = {one.name for one in objects if one.table is None}
    columns = {f"{one.table}.{one.name}" for one in objects if one.kind == "column"}
    counts: dict[str, int] = {}
    tops: list[SchemaObject] = []
    for one in objects:
        if one.inherited:
            continue
        owner = next(
            (
                candidate
                for candidate, holds in (
                    (schema_names.get(one.schema, ""), one.kind != "schema" and one.schema in schema_names),
                    (one.table or "", one.table in owners),
                    (str(one.facts.get("owned_by")), one.facts.get("owned_by") in columns),
                )
                if holds
            ),
            None,
        )
        if owner is None:
            tops.append(one)
        else:
            counts[owner] = counts.get(owner, 0) + 1
    make = object_sql.create if state == "missing" else _drop
    return [
        Difference(
            state,
            one.kind,
            one.name,
            one.schema,
            one.table,
            contains=counts.get(one.name if one.kind != "column" else f"{one.table}.{one.name}", 0),
            sql=tuple(make(one, side)),
        )
        for one in tops
    ]


def _drop(one: SchemaObject, _: Schema) -> list[str]:
    return object_sql.drop(one)


def _changed(
    wanted: Mapping[tuple[str, str, str], SchemaObject], found: Mapping[tuple[str, str, str], SchemaObject]
) -> list[Difference]:
    changes: dict[tuple[str, str, str], tuple[Change, ...]] = {}
    for key, one in wanted.items():
        other = found.get(key)
        if other is not None and one.facts != other.facts:
            names = sorted(one.facts.keys() | other.facts.keys())
            changes[key] = tuple(
                Change(name, one.facts.get(name), other.facts.get(name))
                for name in names
                if one.facts.get(name) != other.facts.get(name)
            )
    differences = []
    for key, mine in changes.items():
        one, other = wanted[key], found[key]
        # What a child has from its parent is the parent's difference.
        if any(changes.get((one.kind, parent, one.name)) == mine for parent in (*one.parents, *other.parents)):
            continue
        differences.append(
            Difference(
                "changed",
                one.kind,
                one.name,
                one.schema,
                one.table,
                mine,
                sql=tuple(object_sql.alter(one, other, {change.fact for change in mine})),
            )
        )
    return differences
