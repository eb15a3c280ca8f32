"""A migration file that is read and parsed once, for all who look at its statements. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.statements import SqlSyntaxError, Statement, statements

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.analysis.ast import Tree

# Above this the trees are not kept, and those of data statements not read whole: only which table they write to.
_KEPT_BYTES = 1 << 20
_DATA_NODES = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt"})


class _Relation(msgspec.Struct):
    relname: str
    schemaname: str | None = None


class _Head(msgspec.Struct):
    relation: _Relation


class SqlFile:
    """The statements of a file. `raw` is what Drizzle reads of it.

    With `keywords`, those of a server, what the grammar here refuses is read as far as it can be (see `statements`).

    Raises:
        SqlSyntaxError: it is not SQL.
    """

    def __init__(self, raw: bytes, *, path: str, keywords: frozenset[str] | None = None) -> None:
        self.raw, self.path = raw, path
        self.statements = statements(raw, path=path, keep_trees=len(raw) <= _KEPT_BYTES, keywords=keywords)
        self._trees: list[tuple[Statement, str, Tree]] | None = None

    @property
    def is_one_transaction(self) -> bool:
        """Whether all of it can run in one transaction."""
        return all(statement.fits_a_transaction for statement in self.statements)

    def trees(self) -> Iterator[tuple[Statement, str, Tree]]:
        """Each statement that has a tree, with the name of its node and the node's fields, which nobody changes."""
        if len(self.raw) > _KEPT_BYTES:
            yield from filter(None, map(_tree, self.statements))
            return
        if self._trees is None:
            self._trees = [(one, one.parsed.node, one.parsed.fields()) for one in self.statements if one.parsed]
        yield from self._trees


def read_sql(raw: bytes, path: str) -> SqlFile | SqlSyntaxError:
    """The file, or why it is not SQL: for those who go on with the others."""
    try:
        return SqlFile(raw, path=path)
    except SqlSyntaxError as error:
        return error


def _tree(statement: Statement) -> tuple[Statement, str, Tree] | None:
    try:
        (one,) = parser.parse(statement.text.encode())
    except parser.GrammarError:  # the server knows it
        return None
    if one.node not in _DATA_NODES:
        return statement, one.node, one.fields()
    head = msgspec.json.decode(one.body, type=_Head).relation
    relation = {"relname": head.relname, **({"schemaname": head.schemaname} if head.schemaname else {})}
    return statement, one.node, {"relation": relation}
