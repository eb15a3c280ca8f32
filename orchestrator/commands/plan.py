"""`plan`, and `migrate --dry-run`: what would run, and whom it would hold up."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from orchestrator.commands.runner import print_json, run, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


def plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    with_folder(parser)
    with_plan_options(parser)
    parser.set_defaults(run=show_plan)


def with_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options that `migrate --dry-run` shares."""
    with_json(parser)
    parser.add_argument(
        "--exit-code", action="store_true", help="exit 1 when something is pending, 70 when refused or bound to fail"
    )


def show_plan(options: argparse.Namespace) -> int:
    """Print the plan; the exit code is that of `status --exit-code`."""

    def show(found: dict[str, Any]) -> int:
        if options.json:
            print_json(found)
        else:
            _print(found)
        if not options.exit_code:
            return 0
        from orchestrator.errors import EXIT_MIGRATION

        return EXIT_MIGRATION if found["refused"] or found["failures"] else int(found["pending"] > 0)

    gather = partial(_gather, embedded=getattr(options, "embedded", False))
    return run(options, gather, show, default_level="warning")


async def _gather(settings: Settings, life: Lifecycle, *, embedded: bool) -> dict[str, Any]:
    """What is shown, read over one connection."""
    import asyncio

    from orchestrator import __version__
    from orchestrator.analysis.plan import preview
    from orchestrator.commands.reading import reading
    from orchestrator.database.info import server_status
    from orchestrator.embedded.choice import chosen_database
    from orchestrator.migrator.sources import read_sources

    sources = await asyncio.to_thread(read_sources, settings)
    async with (
        chosen_database(settings, life, embedded=embedded) as (_, dsn),
        reading(settings, life, dsn, "plan") as connection,
    ):
        found = await preview(
            connection,
            sources,
            policy=settings.migration_policy,
            ahead=settings.migration_ahead,
            transaction=settings.migration_transaction,
            extensions=settings.extensions,
        )
        return {"version": __version__, "server": await server_status(connection, dsn), **found}


def _print(found: dict[str, Any]) -> None:
    from orchestrator.commands.console import counted, results

    console = results()
    for source in found["sources"]:
        _print_source(console, source)
    hurting = [p["name"] for s in found["sources"] for p in s["pending"] if p["hurts"]]
    failing = [p["name"] for s in found["sources"] for p in s["pending"] if p["failures"]]
    if found["refused"]:
        console.print("\n[bold red]Refused:[/] nothing would run until the findings above are dealt with.")
    elif not found["pending"]:
        console.print("\n[green]Nothing would run.[/]")
    else:
        statements = sum(s["count"] for f in found["sources"] for p in f["pending"] for s in p["statements"])
        amount = f"{counted(found['pending'], 'migration')}, {counted(statements, 'statement')}"
        console.print(f"\n{amount} would run.")
        if found["transaction"] == "all":
            console.print("[yellow]MIGRATION_TRANSACTION=all[/]: every lock above stays until the last one is done.")
        if failing:
            console.print(f"[bold red]It would fail[/] in: {', '.join(failing)}")
        if hurting:
            console.print(f"[bold red]Running code would wait[/] in: {', '.join(hurting)}")
        else:
            console.print("[green]None of them makes running code wait noticeably.[/]")


def _print_source(console: Any, source: dict[str, Any]) -> None:
    from rich.markup import escape

    from orchestrator.commands.console import print_findings

    pending, made = source["pending"], "" if source["ledger_exists"] else " (made first)"
    console.print(
        f"[bold]Migrations of the {source['source']}[/]: {source['applied']} applied, {len(pending)} pending;"
        f" ledger {escape(source['ledger'])}{made}",
    )
    for migration in pending:
        _print_migration(console, migration)
    print_findings(console, source["findings"], source["unlisted"])


def _print_migration(console: Any, migration: dict[str, Any]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    how = "one transaction" if migration["transaction"] == "one" else "statement by statement, no one transaction"
    console.print(f"\n  [bold cyan]{escape(migration['name'])}[/]  [dim]{how}[/]")
    if migration["statements_done"]:
        console.print(f"  an interrupted run did the first {migration['statements_done']} statements already")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=True, show_edge=False)
    for column, options in (
        ("line", {"justify": "right"}),
        ("statement", {"overflow": "fold"}),
        ("lock", {"no_wrap": True}),
        ("on", {"overflow": "fold"}),
        ("rows", {"justify": "right"}),
        ("size", {"justify": "right"}),
        ("what it does", {"overflow": "fold"}),
    ):
        table.add_column(column, **options)
    for in_use, group in groupby(migration["statements"], key=_is_in_use):
        if in_use:
            for _, same in groupby(group, key=_looks):
                _add_rows(table, list(same))
        else:
            table.add_row(*_folded(list(group)), style="dim")
    console.print(table)
    for failure in migration["failures"]:
        console.print(f"  [bold red]would fail[/]: line {failure['line']}: {escape(failure['why'])}")
    if "remedy" in migration:
        console.print(f"  {escape(migration['remedy'])}")
    for held in migration["held"]:
        console.print(
            f"  [bold red]held[/]: the lock on {escape(held['table'])} that statement {held['taken_by']} takes stays"
            f" until statement {held['until']}: {held['blocks']} wait for: {escape(held['work'])}",
        )


def _is_in_use(statement: dict[str, Any]) -> bool:
    """Whether there is anything to say of it: it touches what others use, or a note tells why not."""
    special = statement["notes"] or statement["outside_transaction"]
    return bool(special) or any(not touch["new"] for touch in statement["touches"])


def _folded(statements: list[dict[str, Any]]) -> list[str]:
    """One row for neighbours that touch nothing in use."""
    from rich.markup import escape

    kinds: dict[str, int] = {}
    for statement in statements:
        kinds[statement["kind"]] = kinds.get(statement["kind"], 0) + statement["count"]
    first, last = statements[0]["line"], statements[-1]["line"]
    lines = str(first) if first == last else f"{first}-{last}"
    words = ", ".join(kind if count == 1 else f"{kind} ({count} times)" for kind, count in kinds.items())
    new = sorted({t["table"] for s in statements for t in s["touches"]})
    does = f"on what is new here: {escape(', '.join(new))}" if new else "touches no table in use"
    return [lines, words, "-", "", "", "", does]


def _looks(statement: dict[str, Any]) -> tuple[str, ...]:
    """Neighbours that are told in the same words are one row."""
    return _words(statement), str(statement["touches"]), str(statement["notes"])


def _words(statement: dict[str, Any]) -> str:
    words = f"{statement['kind']} {', '.join(dict.fromkeys(statement['actions']))}".rstrip()
    return words + (" (outside a transaction)" if statement["outside_transaction"] else "")


def _add_rows(table: Any, statements: list[dict[str, Any]]) -> None:
    from rich.text import Text

    statement, count = statements[0], sum(s["count"] for s in statements)
    first, last = statement["line"], statements[-1]["line"]
    kind = _words(statement) + (f" ({count} times)" if count > 1 else "")
    shown = [touch for touch in statement["touches"] if not touch["new"]]
    for number, touch in enumerate(shown or [None]):
        style = _style(touch)
        table.add_row(
            "" if number else str(first) if first == last else f"{first}-{last}",
            Text("" if number else kind),
            Text(_lock(touch), style=style),
            Text("" if touch is None else touch["table"]),
            _rows(touch),
            _size(touch),
            Text(_does(touch, [] if number else statement["notes"]), style=style),
        )


def _style(touch: dict[str, Any] | None) -> str:
    from orchestrator.analysis.plan import LARGE_BYTES, LARGE_ROWS

    if touch is None or touch["new"]:
        return "dim"
    if touch["hurts"]:
        unknown = touch["rows"] is None and touch["size_bytes"] is None
        large = (touch["rows"] or 0) >= LARGE_ROWS or (touch["size_bytes"] or 0) >= LARGE_BYTES
        return "bold red" if large or unknown else "yellow"
    return "yellow" if touch["blocks"] == "reads and writes" else ""


def _lock(touch: dict[str, Any] | None) -> str:
    return "-" if touch is None else str(touch["lock"]).removesuffix("Lock")


def _rows(touch: dict[str, Any] | None) -> str:
    return "" if touch is None or touch["new"] or touch["rows"] is None else f"{touch['rows']:,}"


def _size(touch: dict[str, Any] | None) -> str:
    from orchestrator.commands.console import size_words

    return "" if touch is None or touch["new"] or touch["size_bytes"] is None else size_words(touch["size_bytes"])


def _does(touch: dict[str, Any] | None, notes: list[str]) -> str:
    if touch is None:
        return "; ".join(notes)
    work = [
        f"{words}: {touch[key]}"
        for key, words in (("rewrites", "REWRITES"), ("builds_index", "BUILDS AN INDEX"), ("scans", "SCANS"))
        if touch[key]
    ]
    if touch["hurts"]:
        work.append(f"{touch['blocks']} wait meanwhile")
    return "; ".join([*work, *notes])
