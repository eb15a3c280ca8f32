"""The body of a DO block or of a function: its language, its text, its tree, and whether it ends transactions.

Pure: no I/O.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from orchestrator.migrator.sql import parser

# Whether a statement ends the transaction around it while it runs: `maybe` where only the server can know.
EndsTransactions = Literal["no", "maybe", "yes"]

_WORDS = re.compile(r"\b(?:commit|rollback|call)\b", re.IGNORECASE)
_ENDS = frozenset({"PLpgSQL_stmt_commit", "PLpgSQL_stmt_rollback"})


def body_of(fields: dict[str, Any]) -> tuple[str, str]:
    """Language (in lower case) and text of a DO block or of a function; the text of a BEGIN ATOMIC body is empty."""
    options = {
        o["DefElem"]["defname"]: o["DefElem"].get("arg", {})
        for o in (*fields.get("args", ()), *fields.get("options", ()))
    }
    language = options.get("language", {}).get("String", {}).get("sval", "plpgsql")
    written = options.get("as", {})
    items = written.get("List", {}).get("items", ()) or [written]
    return language.lower(), items[0].get("String", {}).get("sval", "")


def plpgsql_tree(fields: dict[str, Any]) -> Any:
    """The PL/pgSQL tree of a DO block's or function's body; None where it is no PL/pgSQL that can be read."""
    language, body = body_of(fields)
    if language != "plpgsql" or "$orchestrator$" in body:
        return None
    try:
        return parser.plpgsql(f"DO $orchestrator${body}$orchestrator$".encode())
    except parser.GrammarError:
        return None


def ends_transactions(do: dict[str, Any]) -> EndsTransactions:
    """Whether a DO block says COMMIT or ROLLBACK; the procedures that it calls may do so without its word."""
    if not _WORDS.search(body_of(do)[1]):
        return "no"
    tree = plpgsql_tree(do)
    if tree is None:
        return "maybe"
    found: EndsTransactions = "no"
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            if not _ENDS.isdisjoint(node):
                return "yes"
            if "PLpgSQL_stmt_call" in node:
                found = "maybe"
            pending += node.values()
    return found
