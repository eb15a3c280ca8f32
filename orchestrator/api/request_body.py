"""A request's body: read within a limit of time, checked, and turned into a value. Touches the request.

Whatever runs here on outside text takes time in proportion to its length, and a long text is dealt with in a thread of
its own, one at a time: the event loop, which answers the probes and renews the leases, never waits for it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from orchestrator.api.problems import Refusal, refuse_field
from orchestrator.api.security import BODY_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

Result = TypeVar("Result")

_BODY_TIMEOUT_S = 30.0
# As deep as payloads are; Postgres and every client must be able to read what we keep.
DEPTH_MAX = 64
# Each costs a hundred bytes of memory for two bytes of text, and all of them are made in one uninterrupted call.
CONTAINERS_MAX = 50_000
# Up to this length a text costs less than to hand it to a thread.
_ON_THE_LOOP_BYTES = 8 * 1024
_SHOWN_LENGTH = 200
_INTEGERS_BELOW = 2.0**63


async def read(request: web.Request, kind: Any, *, invalid: int = 422) -> Any:
    """The body as a value of that type; None where `kind` is None, which takes no body.

    Raises:
        Refusal: 408 where it does not arrive in 30 s, 413 where it is too large, and as `decode` does.
    """
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            if request.body_exists and request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # of the answer itself
            text = await request.read()
    except TimeoutError:
        raise Refusal(408, "the body did not arrive in time") from None
    if kind is None:
        if text.strip() not in {b"", b"{}", b"null"}:
            raise Refusal(invalid, "this takes no body")
        return None
    return await off_the_loop(len(text), decode, text, kind, invalid)


async def off_the_loop(size: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do the work on a text of `size` bytes: at once where that is little, else in the thread for long texts.

    The thread does one thing at a time, in the order of asking. It goes on where the caller is cancelled.
    """
    if size <= _ON_THE_LOOP_BYTES:
        return work(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_thread(), work, *arguments)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="long texts")


def decode(text: bytes, kind: Any, invalid: int = 422) -> Any:
    """JSON text as a value of that type; the time it takes grows with the length of the text, whatever it holds.

    Raises:
        Refusal: 400 where it is no JSON, too deep, or gives a key twice; 413 where it holds too many lists and objects,
            or is larger than a body may be with its numbers written out, as Postgres gives them back; `invalid` with
            the field's name where it is of another type.
    """
    if not text:
        raise Refusal(400, "there is no body; JSON is expected")
    marks = _STRING.sub(b"", text)
    containers = marks.count(b"[") + marks.count(b"{")
    if containers > DEPTH_MAX and _is_deep(marks):
        raise Refusal(400, f"the JSON is nested more than {DEPTH_MAX} deep")
    if containers > CONTAINERS_MAX:
        raise Refusal(413, f"the JSON holds more than {CONTAINERS_MAX} lists and objects")
    if len(text) + _expansion(marks) > BODY_LIMIT_BYTES:
        raise Refusal(413, f"with its numbers written out, the body is larger than {BODY_LIMIT_BYTES} bytes")
    try:
        value = _typed(text, kind, has_floats=b"." in marks or b"e" in marks or b"E" in marks)
        # msgspec takes the last of two that are the same, other readers the first: what was meant, nobody knows.
        json.loads(text, object_pairs_hook=_without_twins, parse_int=len, parse_float=len)
    except msgspec.ValidationError as error:
        raise refuse_invalid(error, invalid, kind) from None
    except RecursionError:
        raise Refusal(400, f"the JSON is nested more than {DEPTH_MAX} deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    return value


def _typed(text: bytes, kind: Any, *, has_floats: bool) -> Any:
    """The value; 2.0 is an integer, as JSON Schema has it, and msgspec only where text is one, too."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        if not has_floats:
            raise
        return msgspec.json.decode(msgspec.json.encode(_with_integers(msgspec.json.decode(text))), type=kind)


def _with_integers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _INTEGERS_BELOW else value
    if isinstance(value, dict):
        return {name: _with_integers(one) for name, one in value.items()}
    return [_with_integers(one) for one in value] if isinstance(value, list) else value


# A match never fails once it has begun, closed or not: so no part of the text is looked at twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_EXPONENT = re.compile(rb"[eE][+-]?([0-9]{1,9})")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_STEPS = tuple(1 if byte in b"[{" else -1 for byte in range(256))
# Other threads run between two pieces: what is a single call of C is not interrupted.
_PIECE_BYTES = 64 * 1024


def _is_deep(marks: bytes) -> bool:
    """Whether the brackets are nested more than DEPTH_MAX deep; whether they match, the parser sees."""
    brackets, depth = marks.translate(None, _NOT_BRACKETS), 0
    for start in range(0, len(brackets), _PIECE_BYTES):
        depths = list(accumulate(map(_STEPS.__getitem__, brackets[start : start + _PIECE_BYTES]), initial=depth))
        if max(depths) > DEPTH_MAX:
            return True
        depth = depths[-1]
    return False


def _expansion(marks: bytes) -> int:
    """How many digits the exponents stand for: jsonb keeps 1e308 as a number, and gives back all of its digits."""
    if b"e" not in marks and b"E" not in marks:
        return 0
    return sum(map(int, _EXPONENT.findall(marks)))


def _without_twins(pairs: list[tuple[str, object]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Refusal(400, f"the key {twin[:_SHOWN_LENGTH]!r} is given twice in one object")


def _allowed(kind: Any, path: str) -> list[Any]:
    """The values that the place `path` of a `kind` takes, where they are few and known: those of a Literal."""
    info: Any = msgspec.inspect.type_info(kind)
    for step in re.findall(r"\.([^.\[\]]+)|(\[)", path):
        options = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
        struct = next((one for one in options if isinstance(one, msgspec.inspect.StructType)), None)
        items = next((one for one in options if isinstance(one, msgspec.inspect.ListType)), None)
        if step[1] and items is not None:
            info = items.item_type
        elif struct is not None and (fields := [one.type for one in struct.fields if one.encode_name == step[0]]):
            info = fields[0]
        else:
            return []
    options = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return [value for one in options if isinstance(one, msgspec.inspect.LiteralType) for value in one.values]


def refuse_invalid(error: Exception, status: int, kind: Any) -> Refusal:
    """The field and the reason out of msgspec's message, which documents no other way to the path.

    What is shown of a name is bounded: it may be as long as the body.
    """
    message = str(error)
    reason, _, path = message.rpartition(" - at ")
    reason, path = (reason, path.strip("`")) if reason else (message, "$")
    named = re.search(r"(?:required|unknown) field `([^`]*)`", reason)
    field = f"{path}.{named[1]}" if named else path
    allowed = _allowed(kind, path)
    if allowed:
        reason = f"{reason[:_SHOWN_LENGTH]}; it is one of {', '.join(map(str, allowed))}"
        return refuse_field(field[:_SHOWN_LENGTH], reason, status=status, allowed=allowed)
    return refuse_field(field[:_SHOWN_LENGTH], reason[:_SHOWN_LENGTH], status=status)
