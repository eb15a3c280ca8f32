"""`new`: the next migration of a folder, empty."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load, print_json, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.tools.new_file import NewMigration

_EMPTY = "-- Write your migration here. Between statements: --> statement-breakpoint\n"
_PREFIXES = ("index", "timestamp", "supabase", "unix", "none")


def new(parser: argparse.ArgumentParser) -> None:
    """Add the options of `new`."""
    with_new_file(parser)
    with_json(parser)
    parser.set_defaults(run=_new, folder_may_be_missing=True, embedded=True)  # no database is read


def with_new_file(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Give a command what names a new migration."""
    nargs = "?" if optional else None
    parser.add_argument("name", metavar="NAME", nargs=nargs, help="what the migration does, e.g. add_users")
    with_folder(parser)
    parser.add_argument("--v1", action="store_true", help="begin an empty folder in Drizzle's v1 form (default: v0)")
    parser.add_argument(
        "--prefix", choices=_PREFIXES, help="what a v0 name begins with (default: as the folder's newest one)"
    )


def folder_of(settings: Settings) -> Path:
    """The user's folder, which may be missing yet.

    Raises:
        ConfigurationError: none is named.
    """
    from orchestrator.errors import ConfigurationError, Problem

    if settings.migrations_dir is None:
        raise ConfigurationError(
            [Problem("MIGRATIONS_DIR", "is not set", "the folder to write into, or --migrations-dir", "./migrations")]
        )
    return settings.migrations_dir


def facts_of(made: NewMigration) -> dict[str, object]:
    """A new migration, for --json."""
    return {
        "path": str(made.path),
        "name": made.tag,
        "when": made.when_ms,
        "generation": made.generation,
        "folder": str(made.folder),
    }


def _new(options: argparse.Namespace) -> int:
    import time

    from orchestrator.errors import OrchestratorError
    from orchestrator.tools.new_file import write_migrations

    try:
        folder = folder_of(load(options))
        (made,) = write_migrations(
            folder,
            [(options.name, _EMPTY)],
            now_ms=time.time_ns() // 1_000_000,
            generation="v1" if options.v1 else None,
            prefix=options.prefix,
        )
    except OrchestratorError as error:
        return failed_early(error)
    if options.json:
        print_json(facts_of(made))
    else:
        say(made.path)
        if sys.stderr.isatty():
            say("Write its SQL; then `orchestrator migrate` applies it.", file=sys.stderr)
    return 0
