"""`serve`, `migrate`, `wait`: what brings the service up, whole or in part."""

from __future__ import annotations

from orchestrator.commands.plan import show_plan, with_plan_options
from orchestrator.commands.runner import run, with_embedded, with_folder

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    import argparse


def serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    with_folder(parser)
    with_embedded(parser)
    parser.add_argument("--host", metavar="HOST", help="the address to listen on (HOST)")
    parser.add_argument("--port", metavar="PORT", help="the port to listen on, 0 for any (PORT)")
    parser.set_defaults(run=_serve)


def migrate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `migrate`."""
    with_folder(parser)
    with_embedded(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run, as `plan` does, and change nothing"
    )
    with_plan_options(parser)
    parser.set_defaults(run=_migrate)


def wait(parser: argparse.ArgumentParser) -> None:
    """`wait` has no options of its own."""
    parser.set_defaults(run=_wait)


def healthcheck(parser: argparse.ArgumentParser) -> None:
    """For the help alone: `main` answers it before there is a parser."""
    parser.add_argument("--live", action="store_true", help="ask whether the process lives, not whether it is ready")
    parser.add_argument("--host", metavar="HOST", help="the address to ask (HOST)")
    parser.add_argument("--port", metavar="PORT", help="the port to ask; 0 looks into PORT_FILE (PORT)")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return run(options, lambda s, life: supervisor.serve(s, life, embedded=options.embedded), stopped_is_ok=True)


def _migrate(options: argparse.Namespace) -> int:
    if options.dry_run:
        return show_plan(options)
    from orchestrator import supervisor

    return run(options, lambda s, life: supervisor.migrate_once(s, life, embedded=options.embedded))


def _wait(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return run(options, supervisor.wait_for_database)
