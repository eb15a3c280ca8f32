"""`healthcheck`: for the help alone. `main` answers it before there is a parser."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which costs a start 8 ms
if TYPE_CHECKING:
    import argparse


def healthcheck(parser: argparse.ArgumentParser) -> None:
    """It has no options."""
    parser.set_defaults(run=None)
