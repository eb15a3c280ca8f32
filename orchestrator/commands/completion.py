"""`completion`: a script that completes commands and options in a shell, made by shtab from the parser itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.commands.console import say

if TYPE_CHECKING:
    import argparse

_SHELLS = ("bash", "zsh", "fish")
_INSTALL = """\
bash: orchestrator completion bash > ~/.local/share/bash-completion/completions/orchestrator
zsh:  orchestrator completion zsh > "${fpath[1]}/_orchestrator"
fish: orchestrator completion fish > ~/.config/fish/completions/orchestrator.fish"""


def completion(parser: argparse.ArgumentParser) -> None:
    """Add the options of `completion`."""
    parser.description = f"{parser.description}\n\n{_INSTALL}"
    parser.add_argument("shell", choices=_SHELLS, help="the shell that reads the script")
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    from orchestrator.errors import EXIT_CONFIG

    try:
        import shtab  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        say("completion needs shtab: pip install 'orchestrator[dev]'", file=sys.stderr)
        return EXIT_CONFIG
    whole = options.whole_parser()
    _mark_directories(whole, shtab.DIRECTORY)
    say(shtab.complete(whole, shell=options.shell))
    return 0


def _mark_directories(parser: argparse.ArgumentParser, directory: object) -> None:
    """Complete what is called DIR in the help with directories, and the commands, which the help lists by itself."""
    import argparse

    for action in parser._actions:  # noqa: SLF001 argparse has no public way to walk a parser
        if action.metavar == "DIR":
            action.complete = directory  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 same
            action.help = "the command"
            for inner in action.choices.values():
                _mark_directories(inner, directory)
