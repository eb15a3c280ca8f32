"""`serve`: bring the service up in order, and serve until stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.runner import run, with_embedded, with_folder

if TYPE_CHECKING:
    import argparse


def serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    with_folder(parser)
    with_embedded(parser)
    parser.add_argument(
        "--upgrade-data",
        action="store_true",
        help="with --embedded: data of an older major of PostgreSQL is copied to this one, and kept",
    )
    parser.add_argument("--host", metavar="HOST", help="the address to listen on (HOST)")
    parser.add_argument("--port", metavar="PORT", help="the port to listen on, 0 for any (PORT)")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    return run(
        options,
        lambda s, life: supervisor.serve(s, life, embedded=options.embedded, upgrade_data=options.upgrade_data),
        stopped_is_ok=True,
    )
