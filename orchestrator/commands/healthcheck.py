"""`healthcheck`: for the help alone. `main` answers it before there is a parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def healthcheck(parser: argparse.ArgumentParser) -> None:
    """Add the options of `healthcheck`."""
    parser.add_argument("--live", action="store_true", help="ask whether the process is alive, not whether it is ready")
    parser.add_argument("--host", metavar="HOST", help="the address to ask (HOST)")
    parser.add_argument("--port", metavar="PORT", help="the port to ask; 0 looks into PORT_FILE (PORT)")
    parser.set_defaults(run=None)
