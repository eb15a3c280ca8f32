"""Text that the grammar here refuses and another release of the server may accept. Pure: no I/O.

The grammar is that of PostgreSQL 18. Each release makes keywords of new words (`json_value`, `merge_action`), which an
older server takes as names, and a newer server knows syntax that is unknown here. Such a text is cut into statements by
its tokens alone. One that parses once the server's names are quoted is understood; the server must judge any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.migrator.sql import parser

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_WORDS = re.compile(rb"(?:(?:create(?:\s+or\s+replace)?|alter|drop)\s+)?[a-z]+\b", re.IGNORECASE)


class Piece(NamedTuple):
    """One statement of a text: where its first token and its end are (bytes), its first words, its tree or None."""

    offset: int
    end: int
    words: str
    parsed: parser.Parsed | None


def pieces(text: bytes, keywords: frozenset[str]) -> list[Piece]:
    """The statements of `text`, for a server that has these keywords.

    Raises:
        GrammarError: the text ends inside a string or a comment.
    """
    return [_piece(text, offset, end, keywords) for offset, end in _cut(text)]


def _piece(text: bytes, offset: int, end: int, keywords: frozenset[str]) -> Piece:
    statement = text[offset:end]
    words = _FIRST_WORDS.match(statement)
    kind = " ".join(words[0].decode().upper().replace("OR REPLACE", "").split()) if words else "unknown statement"
    for attempt in (statement, _with_quoted_names(statement, keywords)):
        try:
            (parsed,) = parser.parse(attempt)
        except (parser.GrammarError, ValueError):  # ValueError: it is not one statement
            continue
        return Piece(offset, end, kind, parsed)
    return Piece(offset, end, kind, None)


def _cut(text: bytes) -> Iterator[tuple[int, int]]:
    """Offset and end of each statement: at semicolons outside parentheses and BEGIN ATOMIC bodies, as psql cuts it."""
    start: int | None = None
    end = depth = nested = 0
    before = b""
    for at, token_end in parser.tokens(text):
        token = text[at:token_end].lower()
        if token == b";" and depth <= 0 and not nested:
            if start is not None:
                yield start, end
            start, before = None, b""
            continue
        start, end = at if start is None else start, token_end
        depth += (token == b"(") - (token == b")")
        if nested:
            nested += (token == b"case") - (token == b"end")
        elif token == b"atomic" and before == b"begin":
            nested = 1
        before = token
    if start is not None:
        yield start, end


def _with_quoted_names(statement: bytes, keywords: frozenset[str]) -> bytes:
    """The statement with quotes around each word that is a keyword here and a name to the server."""
    quoted, done = [], 0
    for at, end in parser.keywords(statement):
        word = statement[at:end].lower()
        if word.decode(errors="replace") not in keywords:
            quoted += [statement[done:at], b'"', word, b'"']
            done = end
    return b"".join([*quoted, statement[done:]])
