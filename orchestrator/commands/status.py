"""`status`: what is applied, pending and different, read without changing anything."""

from __future__ import annotations

from orchestrator.commands.runner import print_json, run, with_folder, with_json

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


def status(parser: argparse.ArgumentParser) -> None:
    """Add the options of `status`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument("--exit-code", action="store_true", help="exit 1 when something is pending, 70 when refused")
    parser.add_argument("--diff", action="store_true", help="show what changed in each edited file")
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {}

    async def gather(settings: Settings, life: Lifecycle) -> None:
        found.update(await _gather(settings, life, with_diff=options.diff))

    code = run(options, gather, default_level="warning")
    if code != 0:
        return code
    if options.json:
        print_json(found)
    else:
        from orchestrator.commands.console import print_status

        print_status(found)
    if options.exit_code:
        from orchestrator.errors import EXIT_MIGRATION

        if any(f["refused"] for s in found["sources"] for f in s["findings"]):
            return EXIT_MIGRATION
        return 1 if any(s["pending"] for s in found["sources"]) else 0
    return 0


async def _gather(settings: Settings, life: Lifecycle, *, with_diff: bool) -> dict[str, Any]:
    """What is shown, read over one connection."""
    import asyncio

    from orchestrator import __version__
    from orchestrator.commands.reading import reading
    from orchestrator.database.info import extensions_status, server_status, tables_status
    from orchestrator.embedded.choice import given
    from orchestrator.migrator.sources import read_sources
    from orchestrator.migrator.status import migration_running, migrations_status

    sources = await asyncio.to_thread(read_sources, settings)
    dsn = given(settings.migration_database)
    async with reading(settings, life, dsn, "status") as connection:
        return {
            "version": __version__,
            "server": await server_status(connection, dsn),
            "sources": await migrations_status(
                connection,
                sources,
                policy=settings.migration_policy,
                ahead=settings.migration_ahead,
                with_diff=with_diff,
            ),
            "running": await migration_running(connection),
            "extensions": await extensions_status(connection, settings.extensions),
            "tables": await tables_status(connection),
        }
