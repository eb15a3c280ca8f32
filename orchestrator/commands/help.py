"""`help`: the manual in the terminal. Reads the pages that ship in the package, and touches nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from orchestrator.commands.console import say

if TYPE_CHECKING:
    import argparse
    from importlib.resources.abc import Traversable

_EXIT_USAGE = 2  # as argparse has it


def help(parser: argparse.ArgumentParser) -> None:  # noqa: A001 the command's name
    """Add the options of `help`."""
    parser.add_argument("topic", metavar="TOPIC", nargs="?", help="the page to show; without it, the pages are listed")
    parser.add_argument("--no-pager", action="store_true", help="do not use a pager, even on a terminal")
    parser.set_defaults(run=_help)


def pages() -> dict[str, Traversable]:
    """The pages of the manual by their names, sorted."""
    from importlib.resources import files

    found = {file.name.removesuffix(".md"): file for file in (files("orchestrator") / "docs").iterdir()}
    return dict(sorted((name, file) for name, file in found.items() if file.name.endswith(".md")))


def _help(options: argparse.Namespace) -> int:
    manual = pages()
    if options.topic is None:
        say("The pages of the manual; `orchestrator help TOPIC` shows one:\n")
        for name, file in manual.items():
            say(f"  {name:<20} {_title(file)}")
        say("\n`orchestrator --help` lists the commands, `orchestrator COMMAND --help` shows the options of one.")
        return 0
    topic = options.topic.removesuffix(".md")
    page = manual.get(topic) or manual.get(options.pages.get(topic, ""))
    if page is not None:
        _show(page.read_text(encoding="utf-8"), paged=not options.no_pager)
        return 0
    import difflib

    near = difflib.get_close_matches(topic, [*manual, *options.pages], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    say(f"orchestrator help: there is no page {topic!r}.{hint} The pages: {', '.join(manual)}.", file=sys.stderr)
    return _EXIT_USAGE


def _title(page: Traversable) -> str:
    return page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _show(text: str, *, paged: bool) -> None:
    """Markdown as it is where another program reads it; rendered, and in a pager, on a terminal."""
    if not sys.stdout.isatty():
        say(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    rendered = Markdown(_without_pictures(text), hyperlinks=False)
    if not paged:
        console.print(rendered)
        return
    import os

    # `less` shows colours with -R, and ends at once where the page fits on the screen.
    os.environ.setdefault("LESS", "-FRX")
    with console.pager(styles=True):
        console.print(rendered)


def _without_pictures(text: str) -> str:
    import re

    return re.sub(r"^<picture>\n(?:.*\n)*?</picture>\n", "", text, flags=re.MULTILINE)
