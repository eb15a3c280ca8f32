"""`verify`: whether the database is what its migrations make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.runner import prepared, print_json, run, with_folder, with_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle
    from orchestrator.migrator.edits import Edit
    from orchestrator.schema.diff import Difference
    from orchestrator.settings import Settings
    from orchestrator.tools.verify import Verdict

_DIFFED_LINES = 3


def verify(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify`."""
    with_folder(parser)
    with_json(parser)
    with_scratch(parser)
    parser.add_argument(
        "--schema",
        dest="schemas",
        action="append",
        default=[],
        metavar="NAME",
        help="compare only this schema (repeatable)",
    )
    parser.add_argument("--exclude-schema", action="append", default=[], metavar="NAME", help="exclude this schema")
    parser.add_argument("--privileges", action="store_true", help="compare privileges, too")
    parser.set_defaults(run=_verify)


def with_scratch(added: argparse.ArgumentParser) -> None:
    """Give a command the option that says where its scratch database is made."""
    added.add_argument(
        "--on",
        metavar="URL",
        help="make the scratch database on this server (keep a password out of it: PGPASSWORD, ~/.pgpass)",
    )


def scratch_server(options: argparse.Namespace, dsn: Dsn) -> Dsn:
    """Where the scratch database is made: `--on`, else the server of `dsn`.

    Raises:
        ConfigurationError: `--on` is no usable URL.
    """
    from orchestrator import dsn as dsns

    if options.on is None:
        return dsn
    return dsns.parse(options.on, variable="--on", connect_timeout_s=dsn.connect_timeout_s)


def _verify(options: argparse.Namespace) -> int:
    async def work(settings: Settings, life: Lifecycle) -> Verdict:
        from orchestrator.commands.reading import reached
        from orchestrator.tools.verify import Scope
        from orchestrator.tools.verify import verify as compare

        sources, dsn = await prepared(settings, life)
        await reached(dsn, settings, life, "verify")
        return await compare(
            dsn,
            sources,
            on=scratch_server(options, dsn),
            extensions=settings.extensions,
            scope=Scope(tuple(options.schemas), tuple(options.exclude_schema), options.privileges),
        )

    def show(verdict: Verdict) -> int:
        if options.json:
            print_json(described(verdict))
        else:
            _print(verdict)
        return 0 if verdict.is_equal else 1

    return run(options, work, show, default_level="warning")


def described(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain data, with `equal` first."""
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(verdict)
    flat = [{"source": d["source"], **d["difference"]} for d in facts.pop("differences")]
    return {"equal": verdict.is_equal, "differences": flat, **facts}


def _print(verdict: Verdict) -> None:
    from orchestrator.commands.console import results

    console = results()
    for one in verdict.ledger:
        console.print(f"[yellow]{one.kind.replace('_', ' '):<12}[/]", end="")
        console.print(f"{one.name} ({one.source}): {one.text}", markup=False)
        console.print(f"            → {one.remedy}", markup=False)
    for edit in verdict.edits:
        print_edit(console, edit)
    print_differences(console, [one.difference for one in verdict.differences])
    for text in verdict.cosmetic:
        console.print(f"cosmetic    {text}", markup=False, style="dim")
    for text in verdict.notes:
        console.print(f"note        {text}", markup=False, style="yellow")
    compared = f"{verdict.objects_compared} objects of {verdict.migrations_replayed} migrations compared"
    if verdict.is_equal:
        console.print(f"[green]The database is what the files make.[/] {compared}.")
    else:
        count = len(verdict.ledger) + len(verdict.differences)
        console.print(f"[red]{count} difference{'s' if count != 1 else ''}.[/] {compared}.")


def print_edit(console: Any, edit: Edit) -> None:
    """Print what changed in an applied file."""
    kind = "only white space or comments" if edit.cosmetic else "its statements"
    known = "" if edit.text_known else " (what was applied is not known: another tool did it)"
    console.print(f"{edit.name} was edited after it was applied, {kind}{known}:", markup=False)
    _print_diff(console, edit.diff.splitlines(), "  ")


def _print_diff(console: Any, lines: Sequence[str], indent: str) -> None:
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        console.print(f"{indent}{line}", markup=False, style=styles.get(line[:1], ""))


def print_differences(console: Any, differences: Sequence[Difference]) -> None:
    """Print catalogue differences: what the files say, what the database has, the SQL that leads there."""
    for one in differences:
        colour = {"missing": "red", "unexpected": "yellow", "changed": "magenta"}[one.state]
        console.print(f"[{colour}]{one.state:<12}[/]", end="")
        inside = f", with {one.contains} objects in it" if one.contains else ""
        console.print(f"{one.title}{inside}", markup=False)
        if one.state == "missing":
            console.print("            files: yes    database: no", style="dim")
        elif one.state == "unexpected":
            console.print("            files: no     database: yes", style="dim")
        for change in one.changes:
            _print_change(console, change.fact, change.files, change.database)
        for statement in one.sql:
            console.print(f"            {statement}".replace("\n", "\n            "), markup=False, style="cyan")


def _print_change(console: Any, fact: str, files: object, database: object) -> None:
    texts = [_text(files), _text(database)]
    if max(text.count("\n") for text in texts) >= _DIFFED_LINES:
        import difflib

        console.print(f"            {fact} (- database, + files)", markup=False)
        wanted, found = (text.splitlines() for text in texts)
        lines = list(difflib.unified_diff(found, wanted, lineterm="", n=1))[2:]
        _print_diff(console, lines, "              ")
        return
    label = fact.replace("_", " ")
    console.print(f"            {label}: files {texts[0]}    database {texts[1]}", markup=False)


def _text(value: object) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
