"""What of a file would fail for certain on what is known: one truth of `lint` and `plan`. Pure: no I/O.

A name that is not there, one that is there already, an enum value that is used before it is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from orchestrator.analysis import ast
from orchestrator.analysis.do_blocks import block_statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.analysis.ast import Name, Tree
    from orchestrator.analysis.catalog import Known
    from orchestrator.analysis.names_there import NamesThere
    from orchestrator.migrator.sql.names import Ref


class Failure(NamedTuple):
    """Why a statement fails, by a rule of `lint`; `offset` counts bytes as the tree's locations do."""

    rule: str
    why: str
    offset: int = 0


class WouldFail:
    """One file's statements, in order, held against what is known before each of them."""

    def __init__(self, known: Known, there: NamesThere) -> None:
        self._known, self._there = known, there
        self._is_told = False
        there.begin_file()

    def check(self, node: str, fields: Tree) -> Iterator[Failure]:
        """The failures of a statement; then it is followed. Of what is there already the file's first one is told."""
        if node != "DoStmt":
            yield from self._names(node, fields)
            yield from _enum_values_used(self._known, node, fields)
            self._there.learn(node, fields)
            return
        inner, is_whole = block_statements(fields)
        for one in inner:
            if not one.conditional:
                for failure in (
                    *self._names(one.node, one.fields),
                    *_enum_values_used(self._known, one.node, one.fields),
                ):
                    yield failure._replace(offset=0)  # the place inside the block's text is not one in the file
            self._there.learn(one.node, one.fields, certain=not one.conditional)
        if not is_whole:
            self._there.lose_track()

    def _names(self, node: str, fields: Tree) -> Iterator[Failure]:
        for ref, near in self._there.absent(node, fields):
            meant = f"; the nearest that does is {near}" if near else ""
            yield Failure("unknown-name", f"{_named(ref)} does not exist{meant}", ref.offset or 0)
        for ref in self._there.present(node, fields):
            if ref.kind == "column" and ref.of is not None:
                yield Failure("duplicate-column", f"{ref.of[1]} has a column {ref.name} already", ref.offset or 0)
            elif not self._is_told:
                self._is_told = True
                yield Failure("already-there", f"{_named(ref)} is there already")


def _named(ref: Ref) -> str:
    name = f"{ref.schema}.{ref.name}" if ref.schema not in {None, "public"} else ref.name
    of = f" of {ref.of[1]}" if ref.of else ""
    return f"the {ref.what or ref.kind} {name}{of}"


def _enum_values_used(known: Known, node: str, fields: Tree) -> Iterator[Failure]:
    """ALTER TYPE … ADD VALUE, then its use before COMMIT: 55P04."""
    added = {value: fact.name for fact in known.types.values() for value in fact.added}
    if not added or node == "AlterEnumStmt":
        return
    for _, constant in ast.nodes(fields, "A_Const"):
        value = constant.get("sval", {}).get("sval")
        if (name := added.get(value)) is not None and _is_of_type(known, name, fields):
            why = f"the value {value!r} of {name} is used in the transaction that adds it: it fails (55P04)"
            yield Failure("enum-value-used", why, ast.offset(constant))
            return


def _is_of_type(known: Known, name: Name, fields: Tree) -> bool:
    """Whether a statement has to do with that type: by a cast, a column's definition, or a table that has it."""
    for _, written in ast.nodes(fields, "typeName"):
        if ast.qualified(ast.strings(written.get("names")) or ["?"]).name == name.name:
            return True
    tables = ast.mentioned("", fields)
    return any(
        column.type and column.type.name.name == name.name
        for table in map(known.find, tables)
        if table
        for column in table.columns.values()
    )
