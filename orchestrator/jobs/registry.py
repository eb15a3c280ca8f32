"""Handlers: the functions that do jobs, by name, and what their payloads look like.

`job` declares them as a module is imported; `load` imports the modules that JOBS names. Touches `sys.path` and the
modules that it imports.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from orchestrator.jobs.error_record import has_nul, message_of
from orchestrator.jobs.errors import HandlerError, PayloadError, UnknownHandlerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Function = TypeVar("Function", bound=Callable[..., Coroutine[Any, Any, Any]])

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,99}")
_BUILTIN = "orchestrator.jobs.builtin"
_PARAMETERS = 2
_WAIT_MOST_S = 10 * 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failed job waits: `first_s`, times `factor` for each further attempt, `most_s` at most, ± jitter.

    `jitter` is a share of the wait: 0.1 spreads it over 90 to 110 %.
    """

    first_s: float = 1.0
    factor: float = 2.0
    most_s: float = 3600.0
    jitter: float = 0.1

    def problem(self) -> str | None:
        """What is wrong with it; None where it can be used."""
        for name, most in (("first_s", _WAIT_MOST_S), ("factor", 1e6), ("most_s", _WAIT_MOST_S), ("jitter", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                return f"{name}={value!r}, and a number from 0 to {most:g} is needed"
        return None

    def wait_s(self, attempt: int, chance: float) -> float:
        """Seconds until the next attempt after `attempt` (1 for the first) failed; `chance` is in [0, 1)."""
        try:
            wait_s = min(self.most_s, self.first_s * self.factor ** (attempt - 1))
        except OverflowError:
            wait_s = self.most_s
        return max(0.0, wait_s * (1 + self.jitter * (2 * chance - 1)))


@dataclass(frozen=True, slots=True)
class Handler:
    """One handler, as `job` declared it. `timeout_s` and `concurrency` None: no limit; `schedule` is a cron line.

    `schema_hash` is the same in all processes whose handlers of this name take the same payloads.
    """

    name: str
    doc: str
    queue: str
    payload_type: Any
    max_attempts: int
    timeout_s: float | None
    concurrency: int | None
    schedule: str | None
    timezone: str
    backoff: Backoff
    function: Callable[..., Coroutine[Any, Any, Any]]
    decoder: msgspec.json.Decoder[Any]
    place: str
    schema_hash: str

    def decode(self, payload: str | bytes) -> Any:
        """The payload of JSON text as the handler's own type.

        Raises:
            PayloadError: it is no such payload.
        """
        try:
            return self.decoder.decode(payload)
        except msgspec.ValidationError as error:
            raise PayloadError(self.name, *_where(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PayloadError(self.name, "$", f"it is not JSON: {error}") from None

    def encode(self, payload: object) -> str:
        """JSON text of a payload that was checked: a Struct, a mapping, or None for an empty one.

        Raises:
            PayloadError: it is not what the handler takes, or is no JSON.
        """
        try:
            text = msgspec.json.encode({} if payload is None else payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PayloadError(self.name, "$", f"it cannot be JSON: {error}") from None
        self.decode(text)
        if has_nul(text):
            raise PayloadError(self.name, "$", "it holds the character NUL, which Postgres cannot store")
        return text.decode()

    def payload_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the payload."""
        return msgspec.json.schema(self.payload_type)


def _where(message: str) -> tuple[str, str]:
    """The path and the reason in msgspec's message: it has no other way to tell the path, and documents this one."""
    reason, _, path = message.rpartition(" - at ")
    reason, path = (reason, path.strip("`")) if reason else (message, "$")
    field = re.search(r"(?:required|unknown) field `([^`]*)`", reason)
    return (f"{path}.{field[1]}" if field else path), reason


class Registry:
    """The handlers of a process, by name."""

    def __init__(self, handlers: Iterable[Handler] = ()) -> None:
        self._handlers: dict[str, Handler] = {}
        for handler in handlers:
            self.add(handler)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """All of them, in the order in which they were declared."""
        return MappingProxyType(self._handlers)

    def add(self, handler: Handler) -> None:
        """Know one more.

        Raises:
            HandlerError: another function has that name already.
        """
        known = self._handlers.get(handler.name)
        if known is not None and _identity(known) != _identity(handler):
            raise HandlerError(
                f"two handlers are named {handler.name!r}: {known.place} and {handler.place}",
                remedy="Give one of them another name; jobs find their handler by it.",
                facts={"name": handler.name, "places": [known.place, handler.place]},
            )
        self._handlers[handler.name] = handler

    def get(self, name: str) -> Handler:
        """The handler of that name.

        Raises:
            UnknownHandlerError: there is none.
        """
        handler = self._handlers.get(name)
        if handler is None:
            raise UnknownHandlerError(name)
        return handler


def _identity(handler: Handler) -> tuple[str, str]:
    """The same for a module that is imported once more."""
    return handler.function.__module__, handler.function.__qualname__


# What `job` has declared in this process: decorators of all modules meet here, as they are imported.
DECLARED = Registry()


def job(
    name: str,
    *,
    retries: int = 0,
    timeout_s: float | None = None,
    concurrency: int | None = None,
    queue: str = "default",
    schedule: str | None = None,
    timezone: str = "UTC",
    backoff: Backoff | float | None = None,
) -> Callable[[Function], Function]:
    """Declare `async def f(ctx, payload)` as the handler of the jobs named `name`; the function stays as it is.

    `retries` counts the attempts after the first. `timeout_s` ends an attempt. `concurrency` is how many run at a time,
    over all replicas. `schedule` is a cron line in `timezone`; its jobs have an empty payload. `backoff` in seconds is
    the first wait. The annotation of `payload` (a msgspec Struct, a dataclass, a TypedDict or dict) is what is checked
    as a job is added.

    Raises:
        HandlerError: something of that is unusable, or the name is taken.
    """

    def declare(function: Function) -> Function:
        declared = _Declared(name, function)
        _check_form(declared, function, retries=retries, concurrency=concurrency, timeout_s=timeout_s)
        waits = backoff if isinstance(backoff, Backoff) else Backoff(1.0 if backoff is None else backoff)
        if wrong := waits.problem():
            raise declared.refused(f"has a back-off with {wrong}", "Give seconds, or a Backoff of numbers.")
        payload_type = _payload_type(declared, function)
        decoder, schema_hash = _decoder(declared, payload_type)
        if schedule is not None:
            _check_schedule(declared, schedule, timezone, decoder)
        DECLARED.add(
            Handler(
                name=name,
                doc=inspect.getdoc(function) or "",
                queue=queue,
                payload_type=payload_type,
                max_attempts=retries + 1,
                timeout_s=None if timeout_s is None else float(timeout_s),
                concurrency=concurrency,
                schedule=schedule,
                timezone=timezone,
                backoff=waits,
                function=function,
                decoder=decoder,
                place=declared.place,
                schema_hash=schema_hash,
            )
        )
        return function

    return declare


class _Declared:
    """What is declared, and where: for the error of a declaration that cannot be used."""

    def __init__(self, name: str, function: Function) -> None:
        code = getattr(function, "__code__", None)
        self.name = name
        self.place = f"{getattr(function, '__module__', '?')}:{code.co_firstlineno if code else '?'}"

    def refused(self, what: str, remedy: str) -> HandlerError:
        """The error to raise; `what` goes on after the handler's name."""
        facts = {"handler": self.name, "place": self.place}
        return HandlerError(f"the handler {self.name!r} ({self.place}) {what}", remedy=remedy, facts=facts)


def _check_form(
    declared: _Declared, function: Function, *, retries: int, concurrency: int | None, timeout_s: float | None
) -> None:
    if not _NAME.fullmatch(declared.name):
        raise declared.refused("has an unusable name", "Use letters, digits and _ . : - in names, 100 at most.")
    if not inspect.iscoroutinefunction(cast("object", function)):
        remedy = "Declare it `async def f(ctx, payload)`; blocking work goes to asyncio.to_thread."
        raise declared.refused("is not an `async def`", remedy)
    if len(inspect.signature(function).parameters) != _PARAMETERS:
        raise declared.refused("does not take (ctx, payload)", "Declare it `async def f(ctx, payload)`.")
    for what, value, least in (("retries", retries, 0), ("concurrency", concurrency, 1)):
        if value is not None and (int(value) != value or value < least):
            raise declared.refused(f"has {what}={value!r}", f"Give a whole number, {least} or more.")
    if timeout_s is not None and not timeout_s > 0:
        raise declared.refused(f"has timeout_s={timeout_s!r}", "Give seconds above 0, or None for no limit.")


def _decoder(declared: _Declared, payload_type: Any) -> tuple[msgspec.json.Decoder[Any], str]:
    """What checks a payload, and the hash by which replicas tell whether they take the same payloads."""
    try:
        decoder = msgspec.json.Decoder(payload_type)
        schema = msgspec.json.encode([declared.name, msgspec.json.schema(payload_type)], order="deterministic")
    except (TypeError, NameError, ValueError) as error:
        raise declared.refused(f"has a payload type that cannot be checked: {error}", _TYPES) from error
    return decoder, hashlib.sha256(schema).hexdigest()[:16]


_TYPES = (
    "Annotate `payload` with a msgspec Struct, a dataclass, a TypedDict or dict, defined at the module's top level."
)


def _payload_type(declared: _Declared, function: Function) -> Any:
    parameter = list(inspect.signature(function).parameters.values())[1]
    if parameter.annotation is inspect.Parameter.empty:
        return dict[str, Any]
    # Only this one is resolved: what `ctx` is annotated with is often there for the type checker alone.
    holder = type("Holder", (), {"__annotations__": {"payload": parameter.annotation}})
    try:
        found = typing.get_type_hints(holder, getattr(function, "__globals__", {}))["payload"]
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise declared.refused(f"has a payload annotation that cannot be resolved: {error}", _TYPES) from error
    if found is dict or found is Any:
        return dict[str, Any]
    if typing.get_origin(found) is dict or isinstance(found, type):
        return found
    raise declared.refused(f"has the payload type {found!r}", _TYPES)


def _check_schedule(declared: _Declared, cron: str, timezone: str, decoder: msgspec.json.Decoder[Any]) -> None:
    from orchestrator.jobs.cron import check_cron  # late, with cronsim: few modules have a schedule
    from orchestrator.jobs.errors import ScheduleError

    try:
        check_cron(cron, timezone)
    except ScheduleError as error:
        raise declared.refused(f"has an unusable schedule: {error.message}", error.remedy) from error
    try:
        decoder.decode(b"{}")
    except msgspec.ValidationError as error:
        raise declared.refused(
            f"has a schedule, but its payload cannot be empty: {error}",
            "Give each field of the payload a default, or make the schedule through the API with a payload.",
        ) from error


def load(modules: Sequence[str]) -> Registry:
    """Import the built-in handlers, then each of `modules`, and return all handlers. Blocking.

    Where there are modules to import, the working directory is looked in as well, after everything that is installed.

    Raises:
        HandlerError: a module cannot be imported, or declares what is unusable; module, line and cause are named.
    """
    here = str(Path.cwd())
    if modules and here not in sys.path:
        sys.path.append(here)
    builtin = [_BUILTIN] if importlib.util.find_spec(_BUILTIN) is not None else []
    for module in [*builtin, *modules]:
        _import(module)
    return DECLARED


def _import(module: str) -> None:
    before = len(DECLARED.handlers)
    try:
        importlib.import_module(module)
    except HandlerError:
        raise
    except BaseException as error:
        # SystemExit as well: a module that leaves at import must not pass for a stop that somebody asked for.
        # KeyboardInterrupt too: the process has handlers for its signals, so it is the module's own.
        if isinstance(error, MemoryError):
            raise
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "?")
        place = "" if missing else _line_of(error, module)
        raise HandlerError(
            f"JOBS names {module}, which cannot be imported{place}: {type(error).__name__}: {message_of(error)}",
            remedy=(
                "Check the name in JOBS; the module must be installed, or be in the working directory."
                if missing
                else "Correct the module, then start again; `python -c 'import …'` shows the whole traceback."
            ),
            facts={"module": module, "cause": type(error).__name__},
        ) from error
    if module != _BUILTIN and len(DECLARED.handlers) == before and not _declares(module):
        raise HandlerError(
            f"JOBS names {module}, which does not declare a handler",
            remedy='Mark its functions with @job("name"), from orchestrator.jobs.',
            facts={"module": module},
        )


def _declares(module: str) -> bool:
    """Whether it or what lies below it declared one; it may have been imported before."""
    return any(f"{handler.function.__module__}.".startswith(f"{module}.") for handler in DECLARED.handlers.values())


def _line_of(error: BaseException, module: str) -> str:
    """Where the module itself was when it failed: the innermost of its own lines, else the innermost of all."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    top = module.replace(".", "/")
    own = [frame for frame in frames if top in frame.filename] or frames
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
