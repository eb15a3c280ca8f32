"""`status` and `config`: what is, read without changing anything."""

from __future__ import annotations

from orchestrator.commands.runner import failed_early, load, print_json, run, with_folder, with_json

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


def config(parser: argparse.ArgumentParser) -> None:
    """Add the options of `config`."""
    with_folder(parser)
    with_json(parser)
    parser.add_argument("--embedded", action="store_true", help="as for serve --embedded: no database is needed")
    parser.add_argument("--markdown", action="store_true", help="the table of all variables, for the README")
    parser.set_defaults(run=_config)


def _status(options: argparse.Namespace) -> int:
    from orchestrator import supervisor

    found: dict[str, Any] = {}

    async def gather(settings: Settings, life: Lifecycle) -> None:
        found.update(await supervisor.gather_status(settings, life, with_diff=options.diff))

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


def _config(options: argparse.Namespace) -> int:
    from orchestrator.errors import OrchestratorError

    if options.markdown:
        from orchestrator.variables import markdown_table

        print(markdown_table())
        return 0
    try:
        settings = load(options)
    except OrchestratorError as error:
        return failed_early(error)
    if options.json:
        rows = [{"variable": n, "value": v, "source": s} for n, v, s in settings.describe()]
        print_json({"settings": rows, "suspects": settings.suspects})
    else:
        from orchestrator.commands.console import print_settings

        print_settings(settings.describe(), settings.suspects)
    return 0
