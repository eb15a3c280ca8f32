"""The edge of a command: settings in, signals and logs around the work, an exit code and a last line out."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.commands.console import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine
    from typing import Any, TypeVar

    from orchestrator.dsn import Dsn
    from orchestrator.errors import OrchestratorError
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.sources import Source
    from orchestrator.settings import Settings
    from orchestrator.signals import Deadline

    T = TypeVar("T")

_OVERRIDES = {
    "host": "HOST",
    "port": "PORT",
    "migrations_dir": "MIGRATIONS_DIR",
    "data_dir": "DATA_DIR",
    "schema": "SCHEMA",
    "url": "ORCHESTRATOR_URL",
}


_FLUSH_AT_STOP_S = 1.0


def with_folder(added: argparse.ArgumentParser) -> None:
    """Give a command the option that names the user's folder."""
    added.add_argument("--migrations-dir", metavar="DIR", help="the Drizzle folder (MIGRATIONS_DIR)")


def with_embedded(added: argparse.ArgumentParser) -> None:
    """Give a command the options of a private Postgres."""
    added.add_argument("--embedded", action="store_true", help="run a private Postgres instead of DATABASE_URL")
    added.add_argument("--data-dir", metavar="DIR", help="where the private Postgres keeps its data (DATA_DIR)")


def with_json(added: argparse.ArgumentParser) -> None:
    """Give a command the option that turns its result into JSON on stdout."""
    added.add_argument("--json", action="store_true", help="print the whole result as JSON")


def print_json(value: object) -> None:
    """Print a result for machines, indented."""
    import msgspec

    say(msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode())


async def prepared(settings: Settings, life: Lifecycle) -> tuple[list[Source], Dsn]:
    """What a command on the database begins with: the folders, read, and where to log in; CONNECTING is entered.

    Raises:
        FolderError: a folder is not what Drizzle would accept.
    """
    import asyncio

    from orchestrator.lifecycle import Phase
    from orchestrator.migrator.sources import read_sources

    sources = await asyncio.to_thread(read_sources, settings)
    assert settings.migration_database is not None, "load() demands a database"  # noqa: S101
    life.enter(Phase.CONNECTING)
    return sources, settings.migration_database


def load(options: argparse.Namespace, *, needs_database: bool = True) -> Settings:
    """The settings, with what the command line overrides; ConfigurationError with every problem."""
    from orchestrator.settings import load as load_settings

    overrides = {
        variable: value for name, variable in _OVERRIDES.items() if (value := getattr(options, name, None)) is not None
    }
    needs_database = needs_database and not getattr(options, "embedded", False)
    if needs_database and getattr(options, "database_if_named", False):
        from orchestrator.settings import names_a_database

        needs_database = names_a_database(os.environ)
    return load_settings(
        os.environ,
        overrides,
        needs_database=needs_database,
        folder_may_be_missing=getattr(options, "folder_may_be_missing", False),
    )


def run(  # noqa: PLR0915 the edge of every command is one story
    options: argparse.Namespace,
    work: Callable[[Settings, Lifecycle], Coroutine[Any, Any, T]],
    show: Callable[[T], int] | None = None,
    *,
    stopped_is_ok: bool = False,
    default_level: str | None = None,
) -> int:
    """Load the settings, run `work` under signals and logs, and turn how it ended into an exit code.

    Where `work` came to its end, `show` gets what it made: it prints that, and says the exit code.
    """
    from orchestrator.errors import OrchestratorError

    try:
        settings = load(options)
    except OrchestratorError as error:
        return failed_early(error)

    import asyncio

    from orchestrator import logs, signals
    from orchestrator.lifecycle import Lifecycle, Phase
    from orchestrator.threads import DaemonThreads

    settings.secrets.add_always(os.environ.get("PGPASSWORD", ""))
    life = Lifecycle(
        now=time.time,
        monotonic=time.monotonic,
        clean=logs.cleaner(settings.secrets),
        stop_within_s=settings.shutdown_timeout_s,
    )
    on_terminal = sys.stderr.isatty() and settings.log_format != "json"
    stream: Any = sys.stderr
    end_progress: Callable[[], None] = _nothing
    if on_terminal:
        from orchestrator.commands.progress import CurrentStderr, show_progress

        stream, end_progress = CurrentStderr(), show_progress(life)
    level = settings.log_level if default_level is None or settings.log_level == "debug" else default_level
    logs.configure(
        level="debug" if options.verbose else level,
        log_format=settings.log_format,
        stream=stream,
        version=__version__,
        phase=lambda: str(life.phase),
        secrets=settings.secrets,
    )
    life.listen(logs.event_logger())
    for found, meant in settings.suspects:
        life.emit(
            "settings.suspected", level="warning", variable=found, hint=f"it has no meaning here; did you mean {meant}?"
        )

    made: list[T] = []
    flush_limit_s = logs.FLUSH_LIMIT_S

    async def guarded() -> int:
        nonlocal flush_limit_s
        # What hangs in a thread (a name server that is silent) holds up no exit.
        asyncio.get_running_loop().set_default_executor(DaemonThreads())

        def stopping(signum: int) -> None:
            if life.phase not in {Phase.FAILED, Phase.STOPPED}:
                life.enter(Phase.STOPPING, signal=signum)

        def told() -> None:
            life.emit("service.asked", signal=int(signal.SIGUSR1), uptime_s=round(life.uptime_s, 3))

        deadline = _deadline(settings, stopped_is_ok=stopped_is_ok)
        with signals.stop_on_signals(stopping, deadline, told) as stop:
            try:
                made.append(await work(settings, life))
            except Exception:
                if life.phase not in {Phase.STOPPED, Phase.STOPPING, Phase.FAILED}:
                    life.enter(Phase.FAILED)
                raise
        if stop.signal is None:
            life.enter(Phase.STOPPED)
            return 0
        # Whoever reads the log may be stuck: the stop is within its time all the same.
        flush_limit_s = min(_FLUSH_AT_STOP_S, life.stop_left_s / 2)
        if life.phase is Phase.STOPPING:
            life.enter(Phase.STOPPED)
        life.emit("service.stopped", signal=stop.signal, uptime_s=round(life.uptime_s, 3))
        return 0 if stopped_is_ok else signals.exit_code(stop.signal)

    try:
        code = asyncio.run(guarded())
    except OrchestratorError as error:
        end_progress()
        _explain(error, life)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 the edge: a bug of ours, with its traceback
        end_progress()
        life.emit(
            "service.failed",
            level="error",
            error=f"{type(error).__name__}: {error}",
            remedy="This is a bug of orchestrator: please report it with these lines.",
            exit_code=1,
            exc_info=error,
        )
        return 1
    finally:
        end_progress()
        logs.flush(flush_limit_s)
    return show(made[0]) if show is not None and code == 0 and made else code


# Written by a thread that waits for nobody: as JSON, which a person can read as well.
_FORCED = (
    b'{"level":"error","event":"service.stop_forced",'
    b'"hint":"The stop took longer than SHUTDOWN_TIMEOUT; the process was ended."}\n'
)


def _deadline(settings: Settings, *, stopped_is_ok: bool) -> Deadline:
    """What ends the process when its stop takes too long. Without any time to stop in, that is what was asked for."""
    from orchestrator import signals

    at_once = 0 if stopped_is_ok else signals.exit_code(signal.SIGTERM)
    if settings.shutdown_timeout_s == 0:
        return signals.Deadline(0, code=at_once, line=b"")
    return signals.Deadline(settings.shutdown_timeout_s, code=1, line=_FORCED)


def _nothing() -> None:
    """End nothing: there is no progress bar off a terminal."""


def _explain(error: OrchestratorError, life: Lifecycle) -> None:
    """The last line: what, where, and what to do next. A failure that was held for people to see is told already."""
    if "exits_in_s" in (life.failure or ()):
        return
    life.emit("service.failed", level="error", **error.described())


def failed_early(error: OrchestratorError) -> int:
    """Say that the settings cannot be used, in the form that LOG_FORMAT asks for if that much can be read."""
    from orchestrator import logs
    from orchestrator.lifecycle import Lifecycle

    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    asked = os.environ.get("LOG_FORMAT", "").strip().lower()
    logs.configure(
        level="info",
        log_format=asked if asked in {"json", "console"} else "auto",
        stream=sys.stderr,
        version=__version__,
        phase=lambda: str(life.phase),
    )
    life.listen(logs.event_logger())
    _explain(error, life)
    logs.flush()
    return error.exit_code
