"""What commands share when they speak with a person: words for numbers, tables, findings, a question."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from orchestrator.errors import EXIT_CONFIG, OrchestratorError
from orchestrator.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from rich.console import Console
    from rich.table import Table

    from orchestrator.migrator.status import FindingFacts

# Off a terminal nobody sees a width: names stay on one line, for grep and for scripts.
_WIDTH_OFF_A_TERMINAL = 200


class NotConfirmedError(OrchestratorError):
    """Nobody is there to be asked; nothing was changed."""

    exit_code = EXIT_CONFIG


def say(*words: object, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """`print` for a person or a script: nothing in the words steers a terminal."""
    print(*(printable(str(word)) for word in words), end=end, file=file, flush=flush)


def terminal(**options: Any) -> Console:
    """A console that shows each text as it is: what steers a terminal is written out. Its own colours stay."""
    from rich.console import Console
    from rich.segment import Segment

    class Harmless(Console):
        def render(self, *arguments: Any, **more: Any) -> Iterator[Segment]:
            for one in super().render(*arguments, **more):
                yield one if one.control else Segment(printable(one.text), one.style)

    return Harmless(**options)


def results() -> Console:
    """Where a command prints its result: stdout, with colours on a terminal; lines are never cut."""
    console = terminal(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OFF_A_TERMINAL
    return console


def table(*columns: str, right: tuple[str, ...] = (), title: str = "", indent: int = 0) -> Table:
    """A table without lines. What is too long for its column is folded, never cut: a cut name is of no use."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, indent), title=title or None, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return made


def counted(count: int, thing: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def size_words(size: int) -> str:
    """A size for people: `3.4 MB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TB"


def print_findings(console: Any, findings: Sequence[FindingFacts], unlisted: Sequence[str]) -> None:
    """Print where the history of one source is not straight, and the files that no run will use."""
    from rich.markup import escape

    for finding in findings:
        mark = "[red]refused[/]" if finding.refused else "[yellow]warning[/]"
        kind = str(finding.kind).replace("_", " ")
        console.print(f"  {mark} {kind}: {escape(finding.name)}: {escape(finding.decision)}")
        console.print(f"          → {escape(finding.remedy)}")
        if finding.diff:
            console.print(finding.diff, markup=False, highlight=False)
    if unlisted:
        console.print(f"  [yellow]warning[/] not named by the journal: {escape(', '.join(unlisted))}")


def can_ask() -> bool:
    """Whether there is a person at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


async def confirmed(question: str, *, yes: bool) -> bool:
    """Whether the person at the terminal says yes; `yes` is `--yes`, which answers for them.

    Raises:
        NotConfirmedError: there is no terminal.
    """
    if yes:
        return True
    if not can_ask():
        raise NotConfirmedError(
            "there is no terminal to ask on, and --yes was not given; nothing was changed",
            remedy="Look at what it would change, then run it again with --yes.",
        )
    answer = await ask(f"{question} [y/N] ")
    return answer is not None and answer.lower() in {"y", "yes"}


async def ask(question: str) -> str | None:
    """A line from the terminal, None at its end. Cancelled by Ctrl-C at once, as a thread that reads could not be."""
    import asyncio

    say(question, end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)  # a terminal is readable when a whole line is there
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    line = sys.stdin.readline()
    return line.strip() if line else None
