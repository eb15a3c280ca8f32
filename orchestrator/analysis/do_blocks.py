"""The statements inside a DO block, where drizzle-kit wrote foreign keys and types for years. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.migrator.sql import parser

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


_CONDITIONS = ("PLpgSQL_stmt_if", "PLpgSQL_stmt_case", "PLpgSQL_stmt_for", "PLpgSQL_stmt_while", "PLpgSQL_exception")
_UNSEEN = frozenset({"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_perform", "PLpgSQL_stmt_call", "PLpgSQL_stmt_dynfors"})


def block_statements(do: dict[str, Any]) -> tuple[list[Inner], bool]:
    """The static statements of a DO block, in order, and whether they are all there is to see.

    What is EXECUTEd or called is not seen, nor is a block in another language than PL/pgSQL.
    """
    options = {o["DefElem"]["defname"]: o["DefElem"].get("arg", {}) for o in do.get("args", ())}
    language = options.get("language", {}).get("String", {}).get("sval", "plpgsql")
    body = options.get("as", {}).get("String", {}).get("sval", "")
    if language.lower() != "plpgsql" or "$orchestrator$" in body:
        return [], False
    try:
        parsed = parser.plpgsql(f"DO $orchestrator${body}$orchestrator$".encode())
    except parser.GrammarError:
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
