"""`restore`: replace the database with a backup, and keep the old database."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.commands.backup import read_file, resolved, with_trust
from orchestrator.commands.console import say
from orchestrator.commands.runner import print_json, run, with_json

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.backup.manifest import Backup
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


def restore(parser: argparse.ArgumentParser) -> None:
    """Add the options of `restore`."""
    with_json(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", help="the backup: a path, or a file's name in BACKUP_DIR")
    parser.add_argument("--force", action="store_true", help="terminate the sessions that use the database")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    with_trust(parser)
    parser.set_defaults(run=_restore)


def _restore(options: argparse.Namespace) -> int:
    async def work(settings: Settings, life: Lifecycle) -> dict[str, Any] | None:
        from dataclasses import asdict

        from orchestrator.backup.restore import Demand
        from orchestrator.backup.restore import restore as restore_backup
        from orchestrator.embedded.choice import given
        from orchestrator.lifecycle import Phase
        from orchestrator.migrator.safety_backup import manifest_reader

        dsn = given(settings.migration_database)
        chosen = await read_file(resolved(_given_file(options), settings))
        if not await _agreed(chosen, dsn, options):
            return None
        life.enter(Phase.CONNECTING)
        demand = Demand(
            manifest_reader(chosen.manifest),
            force=options.force,
            key=settings.backup_key,
            unverified=options.unverified,
            with_own_rights=options.with_own_rights,
        )
        restored = await restore_backup(chosen, dsn, demand, life.emit)
        return {**asdict(restored), "backup": chosen.described()}

    def show(result: dict[str, Any] | None) -> int:
        if result is None:
            say("Nothing was changed.", file=sys.stderr)
            return 1
        if options.json:
            print_json(result)
        else:
            _print_restored(result)
        return 0

    return run(options, work, show)


def _given_file(options: argparse.Namespace) -> str:
    from orchestrator.errors import ConfigurationError, Problem

    if options.file is None:
        backups = "a backup, as `orchestrator backup --list` shows them"
        raise ConfigurationError([Problem("the file", "is not given", backups, "app-….dump")])
    return str(options.file)


async def _agreed(chosen: Backup, dsn: Dsn, options: argparse.Namespace) -> bool:
    """Say what is put in whose place, and ask."""
    from orchestrator.commands.console import confirmed

    if not options.yes:
        manifest = chosen.manifest
        say(f"Backup:   {chosen.path}", file=sys.stderr)
        say(f"          {manifest.database}, taken {manifest.taken_at:%Y-%m-%d %H:%M:%S}Z", file=sys.stderr)
        say(f"Replaces: {dsn.redacted()} (kept under another name)", file=sys.stderr)
    return await confirmed("Go on?", yes=options.yes)


def _print_restored(result: dict[str, Any]) -> None:
    say(f"{result['database']} now holds the backup of {result['backup']['taken_at']}.")
    if result["kept_as"]:
        say(f"The previous database is kept as {result['kept_as']}. To go back, while no session uses either of them:")
        for statement in result["go_back"]:
            say(f"  {statement}")
        say(f"To delete the previous database: {result['drop']}")
