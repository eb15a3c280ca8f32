"""`repair`: mend the ledger by hand, shown before it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.runner import prepared, print_json, run, with_folder, with_json
from orchestrator.commands.verify import print_differences, print_edit, scratch_server, with_scratch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings
    from orchestrator.tools.repair import Proposal, Row

_SHOWN_HASH = 12


def repair(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `repair`."""
    from argparse import SUPPRESS

    actions = parser.add_subparsers(required=True, metavar="<action>", dest="action")
    accept = actions.add_parser("accept", help="accept an edited file's new content as what was applied")
    accept.add_argument("names", nargs="+", metavar="NAME")
    applied = actions.add_parser("applied", help="mark a migration as applied, without running it")
    applied.add_argument("names", nargs="+", metavar="NAME")
    unapplied = actions.add_parser("unapplied", help="mark it as not applied: its row is deleted, its changes stay")
    unapplied.add_argument("names", nargs="+", metavar="NAME", help="a file's name, or #ID of a ledger row")
    baseline = actions.add_parser("baseline", help="adopt a database that has the schema but no ledger")
    baseline.add_argument(
        "--to", metavar="NAME", help="the last migration whose changes the database has (default: the newest)"
    )
    baseline.add_argument("--force", action="store_true", help="even if the schema is not what the files make")
    baseline.add_argument(
        "--schema", dest="schemas", action="append", default=[], metavar="NAME", help="compare only this schema"
    )
    baseline.add_argument("--exclude-schema", action="append", default=[], metavar="NAME", help="exclude this schema")
    with_scratch(baseline)
    upgrade = actions.add_parser("upgrade", help="give a ledger of drizzle v0 the columns and names of v1")
    for added in (accept, applied, unapplied, baseline, upgrade):
        with_folder(added)
        with_json(added)
        added.add_argument("--yes", action="store_true", help="do it without asking")
        added.add_argument("--service", action="store_true", help="the service's own ledger, not the user's")
        added.add_argument("-v", "--verbose", action="store_true", default=SUPPRESS, help="debug lines too")
    parser.set_defaults(run=_repair)


def _repair(options: argparse.Namespace) -> int:
    async def work(settings: Settings, life: Lifecycle) -> tuple[Proposal, bool]:
        from orchestrator.commands.console import confirmed
        from orchestrator.tools.repair import Wish
        from orchestrator.tools.repair import repair as mend
        from orchestrator.tools.verify import Scope

        sources, dsn = await prepared(settings, life)
        is_baseline = options.action == "baseline"
        names = ([options.to] if options.to else []) if is_baseline else getattr(options, "names", [])
        wish = Wish(
            options.action,
            tuple(names),
            "service" if options.service else "user",
            force=is_baseline and options.force,
            on=scratch_server(options, dsn) if is_baseline else None,
            extensions=settings.extensions,
            scope=Scope(tuple(options.schemas), tuple(options.exclude_schema)) if is_baseline else Scope(),
            lock_timeout_s=settings.migration_lock_timeout_s,
            wait_timeout_s=settings.db_wait_timeout_s,
        )

        async def confirm(proposal: Proposal) -> bool:
            if not options.json:
                _print(proposal)
            return await confirmed(f"Change {proposal.ledger} so?", yes=options.yes)

        return await mend(dsn, sources, wish, life, confirm)

    def show(made: tuple[Proposal, bool]) -> int:
        proposal, done = made
        if options.json:
            import msgspec

            print_json({"done": done, **msgspec.to_builtins(proposal)})
        else:
            _print_end(proposal, done=done, refused=bool(proposal.differences) and not proposal.forced)
        return 0 if done or proposal.is_empty else 1

    return run(options, work, show, default_level="warning")


def _print(proposal: Proposal) -> None:
    from orchestrator.commands.console import results

    console = results()
    console.print(f"[bold]repair {proposal.action}[/] of the ledger {proposal.ledger}:")
    for edit in proposal.edits:
        print_edit(console, edit)
    if proposal.differences:
        console.print("The database is not what these files make:", style="yellow")
        print_differences(console, proposal.differences)
    _print_rows(console, "before", proposal.before)
    _print_rows(console, "after", proposal.after)
    for warning in proposal.warnings:
        console.print(f"  warning: {warning}", markup=False, style="yellow")


def _print_rows(console: Any, title: str, rows: Sequence[Row]) -> None:
    from rich.markup import escape

    from orchestrator.commands.console import table

    if not rows:
        console.print(f"  {title}: no row")
        return
    shown = table("id", "hash", "created_at", "name", "file", title=f"  {title}", indent=2)
    for row in rows:
        shown.add_row(
            "new" if row.id is None else str(row.id),
            escape(f"{row.hash[:_SHOWN_HASH]}…"),
            str(row.created_at),
            escape(row.name or "-"),
            escape(row.file or "-"),
        )
    console.print(shown)


def _print_end(proposal: Proposal, *, done: bool, refused: bool) -> None:
    from rich.markup import escape

    from orchestrator.commands.console import results

    console = results()
    if done:
        console.print(
            "[green]Done.[/] The table orchestrator.repairs records who did it, and the rows before and after."
        )
    elif proposal.is_empty:
        console.print("There is nothing to change.")
    elif refused:
        print_differences(console, proposal.differences)
        last = escape(proposal.names[-1]) if proposal.names else "-"
        console.print(
            f"[red]Refused:[/] the database is not what the files up to {last}"
            " make. Correct it, choose another --to, exclude schemas, or give --force."
        )
    else:
        console.print("Nothing was changed.")
