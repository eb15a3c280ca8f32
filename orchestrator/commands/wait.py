"""`wait`: wait until a login and a query succeed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.commands.runner import run

if TYPE_CHECKING:
    import argparse

    from orchestrator.lifecycle import Lifecycle
    from orchestrator.settings import Settings


def wait(parser: argparse.ArgumentParser) -> None:
    """`wait` has no options of its own."""
    parser.set_defaults(run=_wait)


def _wait(options: argparse.Namespace) -> int:
    return run(options, _connect)


async def _connect(settings: Settings, life: Lifecycle) -> None:
    from orchestrator.commands.reading import reached
    from orchestrator.embedded.choice import given

    await reached(given(settings.database), settings, life, "wait")
