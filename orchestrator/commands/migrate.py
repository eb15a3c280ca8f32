"""`migrate`: wait for the database, apply what is pending, and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.plan import show_plan, with_plan_options
from orchestrator.commands.runner import run, with_embedded, with_folder

if TYPE_CHECKING:
    import argparse


def migrate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `migrate`."""
    with_folder(parser)
    with_embedded(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would run, as `plan` does, and change nothing"
    )
    with_plan_options(parser)
    parser.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    if options.dry_run:
        return show_plan(options)
    from orchestrator import supervisor

    return run(options, lambda s, life: supervisor.migrate_once(s, life, embedded=options.embedded))
