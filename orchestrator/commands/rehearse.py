"""`rehearse`: what is pending, tried on a copy of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.backup import with_own_rights
from orchestrator.commands.runner import prepared, print_json, run, with_folder, with_json
from orchestrator.commands.verify import scratch_server, with_scratch

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings
    from orchestrator.tools.rehearse import RehearsalReport


def rehearse(parser: argparse.ArgumentParser) -> None:
    """Add the options of `rehearse`."""
    with_folder(parser)
    with_json(parser)
    with_scratch(parser)
    parser.add_argument("--with-data", action="store_true", help="copy the rows, too, so that durations are realistic")
    parser.add_argument("--from-files", action="store_true", help="make the schema from the applied files: no pg_dump")
    with_own_rights(parser)
    parser.set_defaults(run=_rehearse)


def _rehearse(options: argparse.Namespace) -> int:
    if options.with_data and options.from_files:
        from orchestrator.commands.runner import failed_early
        from orchestrator.errors import ConfigurationError, Problem

        problem = Problem("--from-files", "has no rows to copy", "one of --with-data, --from-files", "--with-data")
        return failed_early(ConfigurationError([problem]))

    async def work(settings: Settings, life: Lifecycle) -> RehearsalReport:
        from orchestrator.commands.reading import reached
        from orchestrator.migrator.run.options import Options
        from orchestrator.tools.rehearse import Rehearsal
        from orchestrator.tools.rehearse import rehearse as try_it

        sources, dsn = await prepared(settings, life)
        await reached(dsn, settings, life, "rehearse")
        how = Rehearsal(
            scratch_server(options, dsn),
            Options.of(settings),
            settings.extensions,
            with_data=options.with_data,
            from_files=options.from_files,
            with_own_rights=options.with_own_rights,
        )
        return await try_it(dsn, sources, how, life.emit)

    def show(report: RehearsalReport) -> int:
        if options.json:
            import msgspec

            print_json({"well": report.is_well, **msgspec.to_builtins(report)})
        else:
            _print(report)
        if report.failed is not None:
            from orchestrator.errors import EXIT_MIGRATION

            return EXIT_MIGRATION
        return 0 if report.is_well else 1

    return run(options, work, show, default_level="warning")


def _print(report: RehearsalReport) -> None:
    from orchestrator.commands.console import results

    console = results()

    def say(text: str, style: str = "") -> None:
        console.print(text, markup=False, style=style)

    data = "with its rows" if report.with_data else "without rows: durations mean little"
    say(
        f"{len(report.pending)} pending, tried on a copy of the database ({data}; copied in {report.copied_in_s:.1f} s)"
    )
    for one in report.applied:
        say(f"  ok      {one.name}  {one.duration_s:.3f} s", "green")
        for held in one.locks:
            if not held.made:
                stops = f", stops {held.blocks}" if held.blocks != "nothing" else ""
                say(f"            {held.mode} on {held.relation}{stops}")
        made = [held.relation for held in one.locks if held.made]
        if made:
            say(f"            makes {', '.join(made)}", "dim")
        if one.outside:
            say("            not one transaction: these locks are what `plan` expects of its statements", "dim")
    if report.failed is not None:
        say(f"  failed  {report.failed['error']}", "red")
        say(f"            → {report.failed['remedy']}")
    grown = report.size_after_bytes - report.size_before_bytes
    say(f"size: {report.size_before_bytes:,} → {report.size_after_bytes:,} bytes ({grown:+,})")
    for counted in report.rows_changed:
        before, after = ("none" if n is None else f"{n:,}" for n in (counted.before, counted.after))
        say(f"rows: {counted.table} {before} → {after}")
    say(f"      {report.tables_unchanged} tables as they were")
    for finding in report.findings:
        say(f"  {finding.kind} {finding.name} {finding.text}", "red")
    for finding in report.before_already:
        say(f"  {finding.kind} {finding.name} {finding.text} (as before the run)", "yellow")
    for note in report.notes:
        say(f"note: {note}", "yellow")
    _verdict(console, report)


def _verdict(console: Any, report: RehearsalReport) -> None:
    if report.failed is not None:
        console.print("[red]The migrations would fail.[/] The copy is dropped; the database is as it was.")
    elif report.findings:
        console.print("[yellow]The migrations would run, and leave the problems named above.[/] The copy is dropped.")
    else:
        console.print("[green]The migrations would succeed.[/] The copy is dropped.")
