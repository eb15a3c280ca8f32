"""The parser of a command line, and what it says of one that it cannot read: the nearest that it knows."""

from __future__ import annotations

import argparse
import re

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """As argparse's, but that an unknown command, action or option is answered with the nearest that there is."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and what may have been meant; ends with exit code 2."""
        if match := re.match(r"argument (<\w+>): invalid choice: '([^']*)'", message):
            kind, given = match[1].strip("<>"), match[2]
            message = f"there is no {kind} {given}{_nearest(given, self._choices())}"
        elif match := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            message = f"there is no option {match[1]}{_nearest(match[1], self._option_names())}"
        elif match := re.match(r"the following arguments are required: <(\w+)>$", message):
            width = max((len(name) for name in self._choices()), default=0)
            lines = [f"  {name:{width}}  {text}" for name, text in self._choices().items()]
            message = "\n".join([f"which {match[1]}?", *lines])
        super().error(message)

    def _choices(self) -> dict[str, str]:
        """The commands or actions that come next, with their help."""
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
        return {one.dest: one.help or "" for group in groups for one in group._choices_actions}  # noqa: SLF001

    def _option_names(self) -> list[str]:
        """The options of this parser and of those below it, of which an unknown one may be meant."""
        below = [
            parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
            for parser in action.choices.values()
        ]
        own = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        return own + [name for one in below if isinstance(one, Parser) for name in one._option_names()]  # noqa: SLF001


def _nearest(given: str, known: Iterable[str]) -> str:
    import difflib

    known = list(known)
    found = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else f"; there is: {', '.join(known)}"
