"""`token`: make a token for the API. Touches nothing but the system's randomness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.console import say

if TYPE_CHECKING:
    import argparse


def token(parser: argparse.ArgumentParser) -> None:
    """Add the options of `token`."""
    parser.add_argument("--name", metavar="NAME", help="print a line for API_TOKENS_FILE, with this name")
    parser.add_argument("--read-only", action="store_true", help="with --name: a token that changes nothing")
    parser.set_defaults(run=_token)


def _token(options: argparse.Namespace) -> int:
    from orchestrator import tokens

    made = tokens.new()
    if options.name is None:
        if options.read_only:
            options.whole_parser("token").error("--read-only needs --name: API_TOKEN may change everything")
        say(made)
        return 0
    line = f"{options.name} {made}{' read' if options.read_only else ''}"
    try:
        tokens.parse(line)
    except tokens.TokenError:
        options.whole_parser("token").error("a name is of letters, digits and _ . @ - (64 at most)")
    say(line)
    return 0
