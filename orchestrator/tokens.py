"""The API's tokens as text: how a file of them is read, and how a token is made. Pure but for randomness."""

from __future__ import annotations

import re

import msgspec

_LENGTH_MIN = 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9_.@\-]{1,64}")
_RANDOM_BYTES = 32
_FIELDS = (2, 3)


class Token(msgspec.Struct, frozen=True):
    """One token: `name` stands in the audit trail for whoever shows it; `may_change` is False for a read-only one."""

    name: str
    value: str
    may_change: bool = True

    def __repr__(self) -> str:
        return f"Token(name={self.name!r}, value='***', may_change={self.may_change})"


class TokenError(ValueError):
    """What is wrong with a token or a file of them, never the text itself."""


def usable(value: str) -> str:
    """The token, if it is one that can be shown in a header and not be guessed.

    Raises:
        TokenError: it is too short, or holds what a header cannot.
    """
    if len(value) < _LENGTH_MIN or not _TOKEN.fullmatch(value):
        raise TokenError("is shorter than 16 characters, or contains a space or a character that is not ASCII")
    return value


def parse(text: str) -> tuple[Token, ...]:
    """Tokens of a text: `NAME TOKEN` a line, or `NAME TOKEN read` for one that changes nothing; `#` begins a comment.

    Raises:
        TokenError: a line is no such thing, two have a name or a token in common, or there is none; the line is told.
    """
    found: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = [] if line.lstrip().startswith("#") else line.split()
        if not words:
            continue
        if len(words) not in _FIELDS or (len(words) == max(_FIELDS) and words[2] != "read"):
            raise TokenError(f"has a line {number} that is neither NAME TOKEN nor NAME TOKEN read")
        if not _NAME.fullmatch(words[0]):
            raise TokenError(
                f"has a line {number} whose name has other characters than letters, digits and _ . @ - (at most 64)"
            )
        try:
            token = Token(words[0], usable(words[1]), may_change=len(words) == min(_FIELDS))
        except TokenError as error:
            raise TokenError(f"has a line {number} whose token {error}") from None
        if any(token.name == one.name or token.value == one.value for one in found):
            raise TokenError(f"has a line {number} that repeats a name or a token")
        found.append(token)
    if not found:
        raise TokenError("contains no token")
    return tuple(found)


def new() -> str:
    """A token that nobody can guess: 256 bits, in characters that need no quoting."""
    import secrets  # late: one command makes tokens, and every start reads them

    return secrets.token_urlsafe(_RANDOM_BYTES)
