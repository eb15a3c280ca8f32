"""`status`: what is applied, pending and different, read without changing anything."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from orchestrator.commands.runner import print_json, run, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.status import Running, SourceFacts
    from orchestrator.settings import Settings

_SHOWN_APPLIED = 10


def status(parser: argparse.ArgumentParser) -> None:
    """Add the options of `status`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument(
        "--exit-code", action="store_true", help="exit 1 when something is pending, 70 when it would be refused"
    )
    parser.add_argument("--diff", action="store_true", help="show what changed in each edited file")
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> int:
    def show(found: dict[str, Any]) -> int:
        if options.json:
            print_json(found)
        else:
            _print(found)
        if not options.exit_code:
            return 0
        if any(f.refused for s in found["sources"] for f in s.findings):
            from orchestrator.errors import EXIT_MIGRATION

            return EXIT_MIGRATION
        return 1 if any(s.pending for s in found["sources"]) else 0

    return run(options, partial(_gather, with_diff=options.diff), show, default_level="warning")


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


def _print(status: dict[str, Any]) -> None:
    """Print what was found, as tables."""
    from rich.markup import escape

    from orchestrator.commands.console import results, size_words, table

    console = results()
    server = status["server"]
    role = "standby" if server["standby"] else "primary"
    console.print(
        f"[bold]{escape(server['address'])}[/]  PostgreSQL {escape(server['server_version'])} ({role}),"
        f" {size_words(server['size_bytes'])}"
    )
    if status.get("running"):
        _print_running(console, status["running"])
    for source in status["sources"]:
        _print_source(console, source)
    if status["extensions"]:
        shown = table("extension", "installed", "available", "", title="Extensions")
        for e in status["extensions"]:
            note = f"[red]missing:[/] {escape(e['sql'])}" if e["wanted"] and e["sql"] else ""
            cells = (e["name"], e["installed_version"] or "-", e["available_version"] or "-")
            shown.add_row(*map(escape, cells), note)
        console.print(shown)
    shown = table("table", "rows (estimate)", "size", right=("rows (estimate)", "size"), title="Tables")
    for t in status["tables"]:
        rows = "-" if t["estimated_rows"] is None else f"{t['estimated_rows']:,}"
        shown.add_row(escape(f"{t['schema']}.{t['name']}"), rows, size_words(t["size_bytes"]))
    console.print(shown if status["tables"] else "No tables yet.")


def _print_running(console: Any, running: Running) -> None:
    from rich.markup import escape

    told = [f"pid {running.pid}, {running.application_name!r}", f"for {running.session_age_s} s"]
    if running.percent is not None:
        told.append(f"{running.stage or ''} {running.percent:.0f} %".strip())
    if running.wait_event:
        told.append(f"waits: {running.wait_event}")
    told += [f"blocked by pid {one['pid']} ({one.get('state')})" for one in running.blockers]
    console.print(f"[yellow]A migration runs now[/]: {escape(', '.join(told))}")
    if running.query:
        console.print(f"  {escape(running.query)}")


def _print_source(console: Any, source: SourceFacts) -> None:
    from rich.markup import escape

    from orchestrator.commands.console import counted, print_findings, table

    applied, pending = source.applied, source.pending
    console.print(
        f"\n[bold]Migrations of the {source.source}[/]: {escape(source.folder)} (drizzle {source.generation}),"
        f" ledger {escape(source.ledger)}{'' if source.ledger_exists else ' (does not exist yet)'}"
    )
    colour = "green" if not pending else "yellow"
    console.print(f"  [{colour}]{len(applied)} applied, {len(pending)} pending[/], {counted(source.total, 'file')}")
    shown = table("state", "migration", "dated (UTC)", "took", indent=2)
    if len(applied) > _SHOWN_APPLIED:
        shown.add_row("…", f"{len(applied) - _SHOWN_APPLIED} earlier ones (all of them: --json)", "", "")
    for row in applied[-_SHOWN_APPLIED:]:
        took = "" if row.duration_s is None else f"{row.duration_s:.3f} s"
        name = row.name or f"row {row.id}, hash {(row.hash or '')[:12]}…"
        shown.add_row("[green]applied[/]", escape(name), (row.dated or "").replace("+00:00", ""), took)
    for file in pending:
        shown.add_row("[yellow]pending[/]", escape(file.name), (file.dated or "").replace("+00:00", ""), "")
    if applied or pending:
        console.print(shown)
    print_findings(console, source.findings, source.unlisted)
