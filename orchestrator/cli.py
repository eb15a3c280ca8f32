"""The commands, their exit codes, and what a person sees. The only file that ends the process.

Nothing heavy is imported before it is needed: as PID 1 the process must react to SIGTERM from its first moment, and
`healthcheck` runs every few seconds.
"""

from __future__ import annotations

import os
import sys
import time

from orchestrator import __version__

TYPE_CHECKING = False  # as in typing, which costs `healthcheck` 8 of 25 ms
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine
    from typing import Any, NoReturn

    from orchestrator.errors import OrchestratorError
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings

_EPILOG = """\
examples:
  orchestrator serve --embedded            a first run, on a private Postgres
  DATABASE_URL=postgresql://me:pw@db/app MIGRATIONS_DIR=./drizzle orchestrator serve
  orchestrator migrate                     wait, lock, migrate, exit (an init container)
  orchestrator status                      what is applied, pending, not straight
  orchestrator config                      what would be used, and where it came from

exit codes: 0 done or stopped as asked, 69 no database in time, 70 a migration failed or history is refused,
75 the migration lock was not free in time, 78 configuration, 130/143 interrupted, 1 a bug of ours
"""


_GC_THRESHOLD = 50_000


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["healthcheck"]:
        from orchestrator import healthcheck

        _leave(healthcheck.main(arguments[1:]))
    import gc

    from orchestrator import signals

    signals.early(stopped_code=0 if arguments[:1] == ["serve"] else None)
    # Imports make 100,000 objects that stay: to look through them for cycles every 700 costs 10 ms of a start.
    gc.set_threshold(_GC_THRESHOLD)
    options = _parser().parse_args(arguments)
    _leave(options.run(options))


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which costs 20 ms: everything of ours is closed by now."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a reader that is gone: Python's own end knows what to do
        raise SystemExit(code) from None
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="The start-up of a service: wait for Postgres, apply Drizzle migrations, then serve.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run, command=name)
        added.add_argument("-v", "--verbose", action="store_true", help="debug lines too (LOG_LEVEL=debug)")
        return added

    def with_database(added: argparse.ArgumentParser) -> None:
        added.add_argument("--migrations-dir", metavar="DIR", help="the Drizzle folder (MIGRATIONS_DIR)")

    def with_embedded(added: argparse.ArgumentParser) -> None:
        added.add_argument("--embedded", action="store_true", help="run a private Postgres instead of DATABASE_URL")
        added.add_argument("--data-dir", metavar="DIR", help="where the private Postgres keeps its data (DATA_DIR)")

    serve = command("serve", _serve, "start everything in order, and serve until stopped")
    with_database(serve)
    with_embedded(serve)
    serve.add_argument("--host", metavar="HOST", help="the address to listen on (HOST)")
    serve.add_argument("--port", metavar="PORT", help="the port to listen on, 0 for any (PORT)")
    migrate = command("migrate", _migrate, "wait for the database, apply what is pending, exit")
    with_database(migrate)
    with_embedded(migrate)
    status = command("status", _status, "show what is applied, pending, and not straight")
    with_database(status)
    status.add_argument("--json", action="store_true", help="as JSON, whole")
    status.add_argument("--exit-code", action="store_true", help="exit 1 when something is pending, 70 when refused")
    command("wait", _wait, "wait until a login and a query succeed, exit")
    command("healthcheck", _serve, "ask the running service whether it is ready; exit 0 or 1")
    config = command("config", _config, "show what would be used and where each value came from")
    with_database(config)
    config.add_argument("--embedded", action="store_true", help="as for serve --embedded: no database is needed")
    config.add_argument("--json", action="store_true", help="as JSON")
    config.add_argument("--markdown", action="store_true", help="the table of all variables, for the README")
    return parser


_OVERRIDES = {"host": "HOST", "port": "PORT", "migrations_dir": "MIGRATIONS_DIR", "data_dir": "DATA_DIR"}


def _serve(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return _run(options, lambda s, life: supervisor.serve(s, life, embedded=options.embedded), stopped_is_ok=True)


def _migrate(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return _run(options, lambda s, life: supervisor.migrate_once(s, life, embedded=options.embedded))


def _wait(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return _run(options, supervisor.wait_for_database)


def _status(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    found: dict[str, Any] = {}

    async def gather(settings: Settings, life: Lifecycle) -> None:
        found.update(await supervisor.gather_status(settings, life))

    code = _run(options, gather, default_level="warning")
    if code != 0:
        return code
    if options.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        from orchestrator.terminal import print_status

        print_status(found)
    if options.exit_code:
        from orchestrator.errors import EXIT_MIGRATION

        if any(f["refused"] for s in found["sources"] for f in s["findings"]):
            return EXIT_MIGRATION
        return 1 if any(s["pending"] for s in found["sources"]) else 0
    return 0


def _config(options: argparse.Namespace) -> int:
    from orchestrator.errors import OrchestratorError

    if options.markdown:
        from orchestrator.settings import markdown_table

        print(markdown_table())
        return 0
    try:
        settings = _load(options)
    except OrchestratorError as error:
        return _failed_early(error)
    if options.json:
        import msgspec

        rows = [{"variable": n, "value": v, "source": s} for n, v, s in settings.describe()]
        print(msgspec.json.format(msgspec.json.encode({"settings": rows, "suspects": settings.suspects})).decode())
    else:
        from orchestrator.terminal import print_settings

        print_settings(settings.describe(), settings.suspects)
    return 0


def _load(options: argparse.Namespace) -> Settings:
    from orchestrator.settings import load

    overrides = {
        variable: value for name, variable in _OVERRIDES.items() if (value := getattr(options, name, None)) is not None
    }
    return load(os.environ, overrides, needs_database=not getattr(options, "embedded", False))


def _run(
    options: argparse.Namespace,
    work: Callable[[Settings, Lifecycle], Coroutine[Any, Any, object]],
    *,
    stopped_is_ok: bool = False,
    default_level: str | None = None,
) -> int:
    """Load the settings, run `work` under signals and logs, and turn how it ended into an exit code."""
    from orchestrator.errors import OrchestratorError

    try:
        settings = _load(options)
    except OrchestratorError as error:
        return _failed_early(error)

    import asyncio

    from orchestrator import logs, signals
    from orchestrator.lifecycle import Lifecycle, Phase

    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    on_terminal = sys.stderr.isatty() and settings.log_format != "json"
    stream: Any = sys.stderr
    end_progress: Callable[[], None] = _nothing
    if on_terminal:
        from orchestrator.terminal import CurrentStderr, show_progress

        stream, end_progress = CurrentStderr(), show_progress(life)
    level = settings.log_level if default_level is None or settings.log_level == "debug" else default_level
    logs.configure(
        level="debug" if options.verbose else level,
        log_format=settings.log_format,
        stream=stream,
        version=__version__,
        phase=lambda: str(life.phase),
        secrets=(*settings.secrets, os.environ.get("PGPASSWORD", "")),
    )
    life.listen(logs.event_logger())
    for found, meant in settings.suspects:
        life.emit(
            "settings.suspected", level="warning", variable=found, hint=f"it means nothing here; did you mean {meant}?"
        )

    async def guarded() -> int:
        def stopping(signum: int) -> None:
            if life.phase not in {Phase.FAILED, Phase.STOPPED}:
                life.enter(Phase.STOPPING, signal=signum)
            # Whatever hangs, the process ends in time.
            asyncio.get_running_loop().call_later(settings.shutdown_timeout_s, _force, life)

        with signals.stop_on_signals(stopping) as stop:
            try:
                await work(settings, life)
            except Exception:
                if life.phase not in {Phase.STOPPED, Phase.STOPPING}:
                    life.enter(Phase.FAILED)
                raise
        if stop.signal is None:
            return 0
        if life.phase is Phase.STOPPING:
            life.enter(Phase.STOPPED)
        life.emit("service.stopped", signal=stop.signal, uptime_s=round(life.uptime_s, 3))
        return 0 if stopped_is_ok else signals.exit_code(stop.signal)

    try:
        return asyncio.run(guarded())
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


def _nothing() -> None:
    """End nothing: there is no progress bar off a terminal."""


def _force(life: Lifecycle) -> None:
    life.emit("service.stop_forced", level="error", hint="The stop took longer than SHUTDOWN_TIMEOUT; ended at once.")
    os._exit(1)


def _explain(error: OrchestratorError, life: Lifecycle) -> None:
    """The last line: what, where, and what to do next."""
    life.emit(
        "service.failed",
        level="error",
        error=error.message,
        remedy=error.remedy,
        restart_helps=error.restart_helps,
        exit_code=error.exit_code,
        **{f"error_{k}" if k in {"error", "remedy"} else k: v for k, v in error.facts.items()},
    )


def _failed_early(error: OrchestratorError) -> int:
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
    return error.exit_code
