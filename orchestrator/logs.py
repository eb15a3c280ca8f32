"""Logs: one line an event, for machines off a terminal and for people on one. Touches the logging of the whole process.

Logs go to the stream that the caller gives: stderr by convention, so that the results of commands own stdout. What the
standard library's loggers say (asyncpg, aiohttp, asyncio, warnings) takes the same way. No secret leaves: exact secrets
that the caller names, and whatever looks like the password of a URL, are replaced last of all.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.log_lines import DescriptorSink, LineWriter, StreamSink
from orchestrator.printable import printable
from orchestrator.redaction import redactor
from orchestrator.shortening import shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO

    from structlog.typing import EventDict, Processor, WrappedLogger

    from orchestrator.lifecycle import Event


def _import_structlog() -> Any:
    """Import structlog without rich.

    structlog.dev and structlog.tracebacks import rich where it is installed: 65 of 120 ms here, for tracebacks with
    local variables that we never show. `None` in sys.modules is Python's own word for "not to be imported"; what was
    there before is put back, so that the commands that draw tables get rich as usual.
    """
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        try:
            import structlog
        finally:
            del sys.modules["rich"]
    import structlog
    import structlog.dev
    import structlog.stdlib
    import structlog.tracebacks

    return structlog


structlog = _import_structlog()

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LEVELS = ("debug", "info", "warning", "error")
_KEYS = ("timestamp", "level", "event", "logger", "version", "phase")
_OWN_VALUES = frozenset({"timestamp", "level", "version", "phase"})
_DEPTH_MAX = 8
# With its end: Docker and containerd cut what is longer than 16 KiB into several.
_LINE_LIMIT_BYTES = 16 * 1024 - 1
# What the end of a process waits for a reader of its log that is slow, or stuck.
FLUSH_LIMIT_S = 5.0


def cleaner(secrets: Iterable[str]) -> Callable[[Mapping[str, object]], dict[str, object]]:
    """What makes facts JSON's own types, with every secret taken out of their texts; their names stay as they are."""
    redact = redactor(secrets)
    return lambda facts: {k: plain(msgspec.to_builtins(v, enc_hook=str), redact) for k, v in facts.items()}


def plain(value: object, redact: Callable[[str], str], depth: int = 0) -> Any:
    """`value` made of JSON's own types only, with every text redacted.

    Anything else is its `str`: an object's own fields (a DSN's, for one) are never looked into.
    """
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if depth < _DEPTH_MAX:
        if isinstance(value, Mapping):
            return {_text(k, redact): plain(v, redact, depth + 1) for k, v in value.items()}
        if isinstance(value, (Sequence, AbstractSet)) and not isinstance(value, (str, bytes, bytearray, memoryview)):
            return [plain(item, redact, depth + 1) for item in value]
    return _text(value, redact)


def _text(value: object, redact: Callable[[str], str]) -> str:
    try:
        text = value.isoformat() if isinstance(value, datetime) else str(value)
    except Exception as error:  # noqa: BLE001 - a fact that cannot be shown must not cost the line
        text = f"<{type(value).__name__}: {type(error).__name__} in its str()>"
    # Lone surrogates (a file name that is no UTF-8) cannot be written to a stream.
    return redact(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Shape:
    """Gives every line its keys, in their order. A fact that bears the name of a key becomes `fact_…`."""

    def __init__(self, version: str, phase: Callable[[], str]) -> None:
        self._version = version
        self._phase = phase

    def __call__(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        record: logging.LogRecord = event_dict.pop("_record")
        event_dict.pop("_from_structlog")
        of_lifecycle: Event | None = event_dict.pop("_lifecycle_event", None)
        shaped: dict[str, Any] = {
            "timestamp": _timestamp(record.created if of_lifecycle is None else of_lifecycle.at),
            "level": "error" if record.levelno >= logging.ERROR else record.levelname.lower(),
            "event": event_dict.pop("event", ""),
            "logger": record.name,
            "version": self._version,
            "phase": str(self._phase() if of_lifecycle is None else of_lifecycle.phase),
        }
        facts = event_dict if of_lifecycle is None else {**of_lifecycle.facts, **event_dict}
        for key, value in facts.items():
            shaped[f"fact_{key}" if key in _KEYS else key] = value
        return shaped


def _exception(show: Callable[[Any], Any]) -> Processor:
    """Turns `exc_info` into `exception` by `show`, which gets the triple."""

    def process(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        info = event_dict.pop("exc_info", None)
        if isinstance(info, BaseException):
            info = (type(info), info, info.__traceback__)
        elif info and not isinstance(info, tuple):
            info = sys.exc_info()
        if info and info[1] is not None:
            event_dict["exception"] = show(info)
        return event_dict

    return process


def _traceback_text(info: Any) -> str:
    """A traceback as Python prints it: without local variables."""
    import traceback  # late: loaded with the first exception that is shown

    return "".join(traceback.format_exception(*info)).rstrip()


class _Lines(logging.Handler):
    """Makes lines, and gives them to who writes them: never waits, and never fails."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._writer: LineWriter | None = None
        self._sink: StreamSink | DescriptorSink = StreamSink(stream)
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):
            return  # memory, which nobody can hold up
        if not stream.isatty():
            self._sink = DescriptorSink(descriptor)
        self._writer = LineWriter(self._sink, _say_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a line that cannot be made is told, and never raised to who logged
            line = (
                f'{{"level":"error","event":"logs.line_lost","logger":"{__name__}","error":"{type(error).__name__}"}}'
            )
        if self._writer is None:
            self._sink.put(line)
        else:
            self._writer.write(line)

    def flush(self, limit_s: float = 1.0) -> None:
        """Wait until what was logged is written, for at most `limit_s`. `logging` calls it as Python ends."""
        if self._writer is not None:
            self._writer.flush(limit_s)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """An error that Python can give to nobody (in a `__del__`) is a line, not a write to a stderr that may be stuck."""
    logging.getLogger("python").error(found.err_msg or "exception ignored", exc_info=found.exc_value)


def _ended_thread(found: threading.ExceptHookArgs) -> None:
    """The same for an error that ends a thread."""
    if found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else ""
        logging.getLogger("python").error("thread ended: %s", name, exc_info=found.exc_value)


def _say_dropped(count: int) -> None:
    structlog.stdlib.get_logger(__name__).warning(
        "logs.lines_dropped", count=count, hint="Whoever reads the log was stuck, or its disk was full."
    )


def flush(limit_s: float = FLUSH_LIMIT_S) -> None:
    """Wait until what was logged is written, for at most `limit_s` seconds: its reader may be stuck."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Lines):
            handler.flush(limit_s)


def configure(
    *,
    level: str,
    log_format: str,
    stream: TextIO,
    version: str,
    phase: Callable[[], str],
    secrets: Iterable[str] = (),
    colour: bool = True,
) -> None:
    """Send every logger of the process, structlog's and the standard library's, to `stream`.

    `level` is one of LEVELS; `log_format` is "json", "console", or "auto": console on a terminal, else JSON. `phase` is
    asked for each line that is not a Lifecycle event's. `colour=False` keeps a terminal's lines plain. `secrets` (of 4
    characters or more) never appear in a line, however they are spelled. May be called again: the last call counts.
    """
    redact = redactor(secrets)
    on_terminal = _is_terminal(stream)
    as_json = log_format == "json" or (log_format == "auto" and not on_terminal)

    def clean(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        # The names of the facts, and what this module itself writes, are an interface: no secret may garble them.
        return {k: v if k in _OWN_VALUES else plain(v, redact) for k, v in event_dict.items()}

    if as_json:
        show_exception = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
        last: list[Any] = [clean, _to_json]
    else:
        show_exception = _traceback_text
        fitting = [] if on_terminal else [_bounded]
        last = [clean, *fitting, _for_people, _console_renderer(colours=on_terminal and colour)]

    handler = _Lines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[_Shape(version, phase), _exception(show_exception), *last])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # warnings.warn() of a library (asyncpg's about a password file, for one) is a line like every other.
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _unraisable
    threading.excepthook = _ended_thread
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def event_logger(name: str = "orchestrator") -> Callable[[Event], None]:
    """A listener for `Lifecycle.listen` that writes each event as a line of the logger `name`.

    Time and phase are the event's own. A fact `exc_info` (an exception) becomes the line's `exception`. Never raises.
    """
    logger = structlog.stdlib.get_logger(name)

    def log(event: Event) -> None:
        logger.log(logging.getLevelNamesMapping()[event.level.upper()], event.name, _lifecycle_event=event)

    return log


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _to_json(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> str:
    line = _encoded(event_dict)
    return line if _bytes_of(line) <= _LINE_LIMIT_BYTES else _encoded(_bounded(_logger, _method, event_dict))


def _encoded(facts: Mapping[str, Any]) -> str:
    return printable(msgspec.json.encode(facts).decode())


def _bytes_of(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode())


def _bounded(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """The same, where it is longer than a line may be with less of its lists and texts."""

    def size(facts: Mapping[str, Any]) -> int:
        return _bytes_of(_encoded(facts))

    if size(event_dict) <= _LINE_LIMIT_BYTES:
        return event_dict
    return shortened(event_dict, _LINE_LIMIT_BYTES, size=size, keep=_OWN_VALUES | {"logger"})


def _for_people(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """The time of day instead of a date, no version, and no control character that a server's text may carry."""
    event_dict.pop("version", None)
    event_dict["timestamp"] = event_dict["timestamp"][11:-1]
    event_dict["event"] = _CONTROL.sub(lambda match: repr(match[0])[1:-1], str(event_dict["event"]))
    event_dict = {key: _harmless(value) for key, value in event_dict.items()}
    if "remedy" in event_dict and event_dict.get("level") == "error" and "exception" not in event_dict:
        # What went wrong and what to do next: below the line, to be read, not searched for among the facts.
        told = [str(event_dict.pop(key)) for key in ("error", "excerpt") if event_dict.get(key)]
        told.append(f"→ {event_dict.pop('remedy')}")
        lines = [line for text in told for line in text.splitlines()]
        event_dict["exception"] = "\n".join(f"  {_CONTROL.sub('?', line)}" for line in lines)
    elif isinstance(ways := event_dict.get("connect"), list):  # commands to copy, of the embedded server
        del event_dict["connect"]
        event_dict["exception"] = "\n".join(f"  {way}" for way in ways)
    return event_dict


def _harmless(value: Any) -> Any:
    """What JSON has, without a character that steers a terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _harmless(one) for key, one in value.items()}
    return [_harmless(one) for one in value] if isinstance(value, list) else value


def _console_renderer(*, colours: bool) -> Any:
    return structlog.dev.ConsoleRenderer(
        colors=colours, sort_keys=False, pad_event_to=28, exception_formatter=structlog.dev.plain_traceback
    )
