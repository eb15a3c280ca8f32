"""What is kept of a handler's failure: type, message, trace without local variables, all bounded. Pure: no I/O."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

_MESSAGE_LENGTH_MAX = 4000
_TRACE_LENGTH_MAX = 16_000
_FRAMES_MAX = 30


def type_name(error: BaseException) -> str:
    """`ValueError`, `my_app.errors.Broken`."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Its text, whatever its own `str` does."""
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 code of the handler's: it may raise anything
        return f"<{type(broken).__name__} in its str()>"


_LOOKED_AT = 4  # times what is kept


def cut(text: str, most: int, redact: Callable[[str], str]) -> str:
    """The first `most` characters without secrets: taken out before, since half a secret is not known as one."""
    return redact(text[: most * _LOOKED_AT])[:most]


def redacted_json(text: bytes, redact: Callable[[str], str]) -> str:
    """JSON text without secrets in its strings, each for itself: a pattern that spans two would break it."""
    as_it_is = text.decode()
    if redact(as_it_is) == as_it_is:
        return as_it_is
    return msgspec.json.encode(_redacted(msgspec.json.decode(text), redact)).decode()


def _redacted(value: object, redact: Callable[[str], str]) -> object:
    match value:
        case str():
            return redact(value)
        case list():
            return [_redacted(one, redact) for one in value]
        case dict():
            return {redact(key): _redacted(one, redact) for key, one in value.items()}
        case _:
            return value


def error_record(error: BaseException, redact: Callable[[str], str]) -> str:
    """JSON `{type, message, trace}`; the trace begins in the handler."""
    inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        lines = traceback.format_exception(type(error), error, inner, limit=-_FRAMES_MAX)
        trace = redact("".join(lines)[-_TRACE_LENGTH_MAX * _LOOKED_AT :])[-_TRACE_LENGTH_MAX:]
    except BaseException as broken:  # noqa: BLE001 as above: it calls the error's own str
        trace = f"<{type(broken).__name__} in its traceback>"
    return stored(type_name(error), cut(message_of(error), _MESSAGE_LENGTH_MAX, redact), trace)


def stored(kind: str, message: str, trace: str | None = None) -> str:
    """JSON that Postgres can keep: without NUL and lone surrogates."""
    record = {"type": _clean(kind), "message": _clean(message), "trace": None if trace is None else _clean(trace)}
    return msgspec.json.encode(record).decode()


# After an even run of backslashes it is an escape; after an odd one, a text that speaks of one.
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def has_nul(text: bytes) -> bool:
    """Whether JSON text holds the character NUL, which jsonb refuses (22P05)."""
    return b"\\u0000" in text and _NUL.search(text) is not None


def without_nul(text: bytes) -> bytes:
    """JSON text with U+FFFD in the place of each NUL."""
    return _NUL.sub(rb"\1\\ufffd", text) if b"\\u0000" in text else text


def _clean(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "backslashreplace").decode()
