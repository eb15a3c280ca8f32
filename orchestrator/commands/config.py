"""`config`: what each setting is, and where its value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load, print_json, with_folder, with_json

if TYPE_CHECKING:
    import argparse


def config(parser: argparse.ArgumentParser) -> None:
    """Add the options of `config`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument("--embedded", action="store_true", help="as for serve --embedded: no database is required")
    parser.add_argument("--markdown", action="store_true", help="the table of all variables, for the README")
    parser.set_defaults(run=_config)


def _config(options: argparse.Namespace) -> int:
    from orchestrator.errors import OrchestratorError

    if options.markdown:
        from orchestrator.variables import markdown_table

        say(markdown_table())
        return 0
    try:
        settings = load(options)
    except OrchestratorError as error:
        return failed_early(error)
    if options.json:
        rows = [{"variable": n, "value": v, "source": s} for n, v, s in settings.describe()]
        print_json({"settings": rows, "suspects": settings.suspects})
    else:
        from rich.markup import escape

        from orchestrator.commands.console import results, table

        shown = table("variable", "value", "from")
        for name, value, source in settings.describe():
            shown.add_row(name, escape(value), escape(source))
        console = results()
        console.print(shown)
        for found, meant in settings.suspects:
            console.print(f"[yellow]{found} is set but has no meaning here: did you mean {meant}?[/]")
    return 0
