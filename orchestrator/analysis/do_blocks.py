"""The statements inside a DO block, where drizzle-kit wrote foreign keys and types for years. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.blocks import body_of, plpgsql_tree

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Inner:
    """A statement of a block; `line` counts from 1 at the body's first line.

    `conditional`: it may not run, or an error of it is caught (IF, CASE, a loop, a block with EXCEPTION).
    """

    line: int
    node: str
    fields: dict[str, Any]
    conditional: bool = False


PartKind = Literal["statement", "perform", "dynamic", "query", "expression"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of SQL in a PL/pgSQL body, as it is written there; `line` counts from 1 at the body's first line.

    `kind`: a `statement`; a `perform` (its text begins with SELECT); the expression of an EXECUTE (`dynamic`); a query
    that is looped over or any other `expression`. `stands_alone`: nothing else of the block needs what it gives.
    """

    kind: PartKind
    line: int
    text: str
    stands_alone: bool


_CONDITIONS = ("PLpgSQL_stmt_if", "PLpgSQL_stmt_case", "PLpgSQL_stmt_for", "PLpgSQL_stmt_while", "PLpgSQL_exception")
_UNSEEN = frozenset({"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_perform", "PLpgSQL_stmt_call", "PLpgSQL_stmt_dynfors"})


def block_statements(do: dict[str, Any]) -> tuple[list[Inner], bool]:
    """The static statements of a DO block, in order, and whether they are all there is to see.

    What is EXECUTEd or called is not seen, nor is a block in another language than PL/pgSQL.
    """
    parsed = plpgsql_tree(do)
    if parsed is None:
        return [], False
    found: list[Inner] = []
    is_whole = True
    for kind, line, text, conditional in _executed(parsed):
        if kind in _UNSEEN:
            is_whole = False
            continue
        try:
            found += [Inner(line, one.node, one.fields(), conditional) for one in parser.parse(text.encode())]
        except parser.GrammarError:
            is_whole = False
    return found, is_whole


def block_parts(fields: dict[str, Any]) -> list[Part]:
    """All SQL of a DO block or a CREATE FUNCTION, in the order it is written; empty where the language is another."""
    language, body = body_of(fields)
    if language == "sql":
        return [Part("statement", 1, body, stands_alone=True)]
    parsed = plpgsql_tree(fields)
    return [] if parsed is None else list(_parts(parsed, "", 1))


_PART_KINDS: dict[tuple[str, str], PartKind] = {
    ("PLpgSQL_stmt_execsql", "sqlstmt"): "statement",
    ("PLpgSQL_stmt_perform", "expr"): "perform",
    ("PLpgSQL_stmt_call", "expr"): "statement",
    ("PLpgSQL_stmt_dynexecute", "query"): "dynamic",
    ("PLpgSQL_stmt_dynfors", "query"): "dynamic",
    ("PLpgSQL_stmt_fors", "query"): "query",
    ("PLpgSQL_stmt_return_query", "query"): "query",
}
_ALONE = frozenset({"PLpgSQL_stmt_execsql", "PLpgSQL_stmt_perform", "PLpgSQL_stmt_call", "PLpgSQL_stmt_dynexecute"})
_ASSIGNED = 3  # plpgsql.h, RAW_PARSE_PLPGSQL_ASSIGN1: `name := expression`


def _parts(node: Any, owner: str, line: int, key: str = "", *, gives: bool = False) -> Iterator[Part]:
    """`owner` is the PL/pgSQL statement around; `gives` says that its result goes INTO a variable."""
    if isinstance(node, list):
        for one in node:
            yield from _parts(one, owner, line, key, gives=gives)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "PLpgSQL_expr":
                kind: PartKind = _PART_KINDS.get((owner, key), "expression")
                text = value["query"]
                if kind == "expression" and value.get("parseMode", 0) >= _ASSIGNED:
                    text = text.partition(":=")[2] or text.partition("=")[2]
                yield Part(kind, line, text, stands_alone=owner in _ALONE and kind != "expression" and not gives)
            elif name.startswith("PLpgSQL_stmt"):
                yield from _parts(value, name, value.get("lineno", line), gives=bool(value.get("into")))
            elif isinstance(value, dict | list):
                yield from _parts(value, owner, line, name, gives=gives)


def _executed(node: Any, *, conditional: bool = False) -> Iterator[tuple[str, int, str, bool]]:
    """(kind, line, text, whether it may not run) of what a block executes, in the order it is written."""
    if isinstance(node, list):
        for one in node:
            yield from _executed(one, conditional=conditional)
    elif isinstance(node, dict):
        conditional = conditional or "exceptions" in node
        for key, value in node.items():
            if key == "PLpgSQL_stmt_execsql":
                yield key, value.get("lineno", 1), value["sqlstmt"]["PLpgSQL_expr"]["query"], conditional
            elif key in _UNSEEN:
                yield key, value.get("lineno", 1), "", conditional
                yield from _executed(value, conditional=conditional)
            elif isinstance(value, dict | list):
                yield from _executed(value, conditional=conditional or key.startswith(_CONDITIONS))
