"""Take secrets out of text: the known ones, and whatever looks like one. Pure: no I/O.

The texts come from outside (a server's messages, a handler's errors, the files of users), so nothing here costs more
than time in proportion to their length: each pattern has one way to match, or is tried once for each place. SQL is read
by PostgreSQL's own rules for constants and comments (scan.l), as far as they are needed to find where one ends.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

HIDDEN = "***"
MASK = "\N{FULL BLOCK}"
_BACKSLASH = "\\"
_SECRET_LENGTH_MIN = 4
_LATER_MAX = 64
# Words that the lines hold anyway. To hide one would show where the password stands, and garble every other line; the
# passwords of first runs (POSTGRES_PASSWORD=postgres) are such words.
_COMMON_WORDS = frozenset(
    {"postgres", "postgresql", "password", "orchestrator", "database", "localhost", "drizzle", "public"}
)


class Secrets:
    """What must not be seen. It grows: passwords in files are rotated, and an old one may still be shown by a server.

    Of those that came later the newest are kept, more than any rotation needs. `version` grows with each new one.
    """

    def __init__(self, first: Iterable[str] = ()) -> None:
        self._later: deque[str] = deque(maxlen=_LATER_MAX)
        self._always = frozenset(first)
        self.version = 0

    def add_always(self, *secrets: str) -> None:
        """These are secrets as long as the process lives."""
        self._always |= frozenset(one for one in secrets if one)
        self.version += 1

    def add(self, *secrets: str) -> None:
        """These are secrets as well, from now on."""
        new = [one for one in secrets if one and one not in self._always and one not in self._later]
        self._later.extend(new)
        self.version += len(new)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._always, *self._later))


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """What takes every secret out of a text: those that are given, and whatever looks like one.

    That is the password of a URL, `password=…`, and in SQL the constant that follows PASSWORD, the value of a
    `set_config`, and that of a setting or an option whose name speaks of a secret. Where `secrets` are `Secrets`, what
    is added to them later is hidden, too.
    """
    known = secrets if isinstance(secrets, Secrets) else Secrets(secrets)
    version, exact = known.version, _exact(known)

    def redact(text: str) -> str:
        nonlocal version, exact
        if version != known.version:
            version, exact = known.version, _exact(known)
        if exact is not None:
            text = exact.sub(HIDDEN, text)
        if "://" in text:
            text = _RUN.sub(_without_url_password, text)
        return _without_named(text)

    return redact


# ------------------------------------------------------------------------------------------------------ known secrets


def _exact(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for all of them: the longest first, since one that holds another must not leave its rest behind."""
    exact = sorted({s for s in secrets if len(s) >= _SECRET_LENGTH_MIN} - _COMMON_WORDS, key=len, reverse=True)
    return re.compile("|".join(map(_spelled, exact))) if exact else None


def _spelled(secret: str) -> str:
    """A pattern for a secret as it is, as repr() and JSON escape it (repr() of repr() doubles), and as in a URL.

    Runs of backslashes are taken whole (`*+`, `++` give nothing back), and a match begins at a run's beginning alone.
    """
    pieces: list[str] = []
    after_backslash = False
    for character in secret:
        if character == _BACKSLASH:
            if not after_backslash:
                pieces.append(rf"(?:{'' if pieces else _AT_RUN}{_ONE_BACKSLASH}|%5[Cc])(?:{_ONE_BACKSLASH}|%5[Cc])*+")
            after_backslash = True
            continue
        pieces.append(_spellings(character, first=not pieces, after_backslash=after_backslash))
        after_backslash = False
    return "".join(pieces)


def _spellings(character: str, *, first: bool, after_backslash: bool) -> str:
    if character.isascii() and character.isalnum():
        return character
    start = _AT_RUN if first else ""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    spelled = {
        repr(character)[1:-1],
        "".join(f"{_BACKSLASH}u{units[i : i + 4]}" for i in range(0, len(units), 4)),
        "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "replace")),
    } - {character}
    # A run that a backslash of the secret's own has taken is this one's, too.
    first_run = r"\\*+" if after_backslash else r"\\++"
    escapes = []
    for spelling in sorted(spelled):
        head, *tail = map(re.escape, spelling.split(_BACKSLASH))
        if not tail:
            escapes.append(head)
        else:
            escapes.append(start + first_run + _MORE.join(tail))
    return rf"(?:{start}\\*+{re.escape(character)}|(?i:{'|'.join(escapes)}))"


_MORE = r"\\++"
_AT_RUN = r"(?<!\\)"
_ONE_BACKSLASH = r"\\++(?:[Uu]005[Cc])?"


# --------------------------------------------------------------------------------------------------------------- URLs

_RUN = re.compile(r"\S++")


def _without_url_password(run: re.Match[str]) -> str:
    """scheme://user:password@ up to the last @ of the run, since an unescaped password may hold one."""
    text = run[0]
    last = text.rfind("@")
    at = text.find("://", 0, max(last, 0))
    while at >= 0:
        user = _USER.match(text, at + 3)
        end = user.end() if user else at + 3
        if end < last and text[end] == ":" and at > 0 and not text[at - 1].isspace():
            if text[end + 1 : last] in _PLACEHOLDERS:
                return text
            return f"{text[: end + 1]}{HIDDEN}{text[last:]}"
        at = text.find("://", end, last)
    return text


_USER = re.compile(r"[^\s/:@]*+")
# What stands for a password in our own messages: an example shows how one is written (see `dsn.EXAMPLE`).
_PLACEHOLDERS = frozenset({"PASSWORD", "p%40ss"})


# ---------------------------------------------------------------------------------------------------------------- SQL

_NAMED = re.compile(r"password|set_config|secret|token|api_?key|passphrase|credential", re.IGNORECASE)
_REST_OF_NAME = re.compile(r"[\w.$\"]*+")
_SPACE = re.compile(r"\s*+")
_BETWEEN = re.compile(r"=>|:=|=|TO\b", re.IGNORECASE)
_UNQUOTED = re.compile(r"[^\s&\"',;)]++")
_NUMBER = re.compile(r"[+-]?\.?[0-9][\w.]*+")
_QUOTE = re.compile(r"(?:[EeNnBbXx]|[Uu]&)?(?=')")
_DOLLAR = re.compile(r"\$(?:[^\W\d]\w*+)?\$")
_IN_STRING = re.compile(r"[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+", re.DOTALL)
_BUT_LINE_BREAKS = re.compile(r"[^\n]")
_NAME_LENGTH_MAX = 100
_BETWEEN_LENGTH_MAX = 1000
_COMMENT_ENDS = re.compile(r"/\*|\*/")


def _without_named(text: str) -> str:
    """Hide the value that follows a name which speaks of a secret."""
    return _replaced(text, lambda _: HIDDEN)


def masked(sql: str) -> str:
    """The same, with each character that is hidden replaced by MASK, so that places stay; line breaks are kept."""
    return _replaced(sql, lambda value: _BUT_LINE_BREAKS.sub(MASK, value))


def _replaced(text: str, replacement: Callable[[str], str]) -> str:
    pieces: list[str] = []
    done = 0
    for found in _NAMED.finditer(text):
        if found.start() < done:
            continue
        for start, end in _values(text, found):
            pieces += (text[done:start], replacement(text[start:end]))
            done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _values(text: str, found: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Where the values that the name speaks of begin and end; to the end of the text where that cannot be told."""
    word = found[0].lower()
    at = _skipped(text, _REST_OF_NAME.match(text, found.end()).end())  # type: ignore[union-attr] # it always matches
    if at is not None and word == "set_config":
        yield from _arguments(text, at)
        return
    between = None if at is None else _BETWEEN.match(text, at)
    value = _skipped(text, between.end()) if between else at
    if value is None:
        yield found.end(), len(text)
    elif between or word == "password":
        end = _constant_end(text, value)
        if end is None and word == "password":
            plain = _UNQUOTED.match(text, value) if between else _NUMBER.match(text, value)
            end = plain.end() if plain else None
        if end is not None:
            yield value, end


def _arguments(text: str, at: int) -> Iterator[tuple[int, int]]:
    """The constants of a call behind the setting's name; PostgreSQL's own settings (no dot) hold no secret."""
    if not text.startswith("(", at):
        return
    commas, here = 0, at + 1
    while here < len(text) and text[here] != ")":
        end = _constant_end(text, here) or (number.end() if (number := _NUMBER.match(text, here)) else None)
        if end is not None:
            if commas or end - here > _NAME_LENGTH_MAX:
                yield here, end
            elif "." not in text[here:end]:
                return
            here = end
        else:
            commas += text[here] == ","
            after = max(here + 1, _REST_OF_NAME.match(text, here).end())  # type: ignore[union-attr] # it always matches
            if _NAMED.search(text, here, after):
                return  # it is looked at by itself
            skipped = _skipped(text, after)
            if skipped is None:
                yield after, len(text)
                return
            here = skipped


def _skipped(text: str, at: int) -> int | None:
    """Behind white space and comments; None where those are so long that they are not looked through."""
    limit = at + _BETWEEN_LENGTH_MAX
    while at < limit:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr] # it always matches
        end = _comment_end(text, at, min(limit, len(text)))
        if end is None:
            return at
        at = end
    return at if at >= len(text) else None


def _comment_end(text: str, at: int, limit: int) -> int | None:
    """Where the comment that begins at `at` ends, or `limit`; None if none does."""
    if text.startswith("--", at):
        end = text.find("\n", at, limit)
        return limit if end < 0 else end
    if not text.startswith("/*", at):
        return None
    depth = 0
    for mark in _COMMENT_ENDS.finditer(text, at, limit):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return limit


def _constant_end(text: str, at: int) -> int | None:
    """Where the constant that begins at `at` ends; None if none does. One that does not end is the rest of the text.

    A backslash is taken for an escape, as it is in E'…' and libpq's own strings: elsewhere too much is hidden at worst.
    """
    if dollar := _DOLLAR.match(text, at):
        end = text.find(dollar[0], dollar.end())
        return len(text) if end < 0 else end + len(dollar[0])
    if opening := _ESCAPED_QUOTE.match(text, at):  # a text in a text: \'…\'
        end = text.find(opening[0], opening.end())
        return len(text) if end < 0 else end + len(opening[0])
    quote = _QUOTE.match(text, at)
    if quote is None:
        return None
    return _string_end(text, quote.end())


def _string_end(text: str, at: int) -> int:
    opened = len(_QUOTES.match(text, at)[0])  # type: ignore[index] # it always matches
    behind = at + opened
    if opened % 2:
        return min(_IN_STRING.match(text, at + 1).end() + 1, len(text))  # type: ignore[union-attr] # it always matches
    if text[behind : behind + 1] in {"", *" \t\r\n;,)"}:
        return behind  # an empty constant, or one of quotes alone
    for closing in _SOME_QUOTES.finditer(text, behind):  # a text in a text: ''…''
        if len(closing[0]) % (2 * opened):
            return closing.end()
    return len(text)


_SOME_QUOTES = re.compile(r"'++")
_ESCAPED_QUOTE = re.compile(r"\\{1,8}'")
_QUOTES = re.compile(r"'*+")


# ------------------------------------------------------------------------------------------------- statements of others

_TOKEN = re.compile(
    r"""(?P<comment>--|/\*)|(?P<string>(?:[EeNnBbXx]|[Uu]&)?')|(?P<name>[^\W\d][\w$]*+|(?:[Uu]&)?"[^"]*+"?|\$[0-9]++)"""
    r"""|(?P<dollar>\$(?:[^\W\d]\w*+)?\$)|(?P<number>\.?[0-9][\w.]*+)|(?P<other>\s++|.)""",
    re.DOTALL,
)
_PLAIN_STRING = re.compile(r"[^']*+(?:''[^']*+)*+")


def without_constants(sql: str) -> str:
    """A statement without its strings, numbers and comments: not everybody should see them.

    It may be cut off. What follows a backslash in a plain string is left out, since only the session that sent it knows
    where such a string ends (`standard_conforming_strings`).
    """
    pieces: list[str] = []
    at = 0
    while found := _TOKEN.match(sql, at):
        kind, at = found.lastgroup, found.end()
        if kind == "comment":
            pieces.append(" ")
            at = _comment_end(sql, found.start(), len(sql)) or len(sql)
        elif kind == "dollar":
            end = sql.find(found[0], at)
            pieces.append("'…'")
            at = len(sql) if end < 0 else end + len(found[0])
        elif kind == "string":
            pieces.append("'…'")
            is_escaped = found[0][0] in "Ee"
            inside = (_IN_STRING if is_escaped else _PLAIN_STRING).match(sql, at)
            at = inside.end() + 1 if inside else len(sql)
            if inside and not is_escaped and _BACKSLASH in inside[0]:
                break
        else:
            pieces.append("…" if kind == "number" else found[0])
    return "".join(pieces)
