"""`notify --test`: whether notifications arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.console import say
from orchestrator.commands.runner import failed_early, load, print_json, with_json

if TYPE_CHECKING:
    import argparse


def notify(parser: argparse.ArgumentParser) -> None:
    """Add the options of `notify`."""
    with_json(parser)
    parser.add_argument(
        "--test", action="store_true", required=True, help="send a test to every target; exit 1 if one fails"
    )
    parser.set_defaults(run=_notify)


def _notify(options: argparse.Namespace) -> int:
    import asyncio

    from orchestrator.errors import ConfigurationError, OrchestratorError, Problem
    from orchestrator.notifications import send, test_notification
    from orchestrator.variables import BY_NAME

    try:
        settings = load(options, needs_database=False)
        if not settings.notify_urls:
            variable = BY_NAME["NOTIFY_URL"]
            raise ConfigurationError([Problem(variable.name, "is not set", variable.kind, variable.example)])
    except OrchestratorError as error:
        return failed_early(error)
    told = asyncio.run(send(settings.notify_urls, test_notification()))
    if options.json:
        print_json({"targets": [{"target": target, "error": problem} for target, problem in told]})
    else:
        for target, problem in told:
            say(f"{'failed' if problem else 'sent  '}  {target}{f'  {problem}' if problem else ''}")
    return 1 if any(problem for _, problem in told) else 0
