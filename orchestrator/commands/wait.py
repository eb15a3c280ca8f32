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
    """Return when it has answered; errors as in `connected`."""
    from orchestrator.database.connect import connected
    from orchestrator.embedded.choice import given
    from orchestrator.lifecycle import Phase

    life.enter(Phase.CONNECTING)
    async with connected(
        given(settings.database),
        life,
        wait_timeout_s=settings.db_wait_timeout_s,
        connect_timeout_s=settings.db_connect_timeout_s,
        application_name="orchestrator wait",
    ):
        pass
