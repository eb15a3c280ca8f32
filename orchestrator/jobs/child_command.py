"""Run a command of ours as a child process, for a job that does what a tool does: a service loads no tool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.jobs.context import Service

_END_WITHIN_S = 20.0
_DATABASE_VARIABLES = frozenset(
    {"DATABASE_URL", "DATABASE_URL_FILE", "MIGRATION_DATABASE_URL", "MIGRATION_DATABASE_URL_FILE"}
)


class Ended(msgspec.Struct, frozen=True):
    """How a command ended: its exit code, its JSON result (None: it has none), and the facts of its last error."""

    exit_code: int
    result: Any
    error: dict[str, Any]


async def run_command(service: Service, *arguments: str) -> Ended:
    """Run `orchestrator ARGUMENTS --json` on the database and the folder of the service; returns when it has ended.

    It has the service's own environment. Cancelled: it is told to end, which drops its scratch database, and killed
    where it does not end within 20 s.
    """
    folder = service.settings.migrations_dir
    # -P: nothing of the working directory runs for a library of its name.
    command = [sys.executable, "-P", "-m", "orchestrator", *arguments, "--json"]
    process = await asyncio.create_subprocess_exec(
        *(command if folder is None else [*command, "--migrations-dir", str(folder)]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(service),
        start_new_session=True,  # a Ctrl-C at the terminal is the service's, which cancels the job
    )
    try:
        output, told = await process.communicate()
    finally:
        await _ended(process)
    assert process.returncode is not None, "communicate() waits for the end"  # noqa: S101
    return Ended(process.returncode, _decoded(output), _last_error(told.splitlines()))


def _environment(service: Service) -> dict[str, str]:
    told = {"LOG_FORMAT": "json", "LOG_LEVEL": "info"}
    if service.settings.migration_database is not None:
        return {**os.environ, **told}
    # A private server: no variable names it.
    kept = {name: value for name, value in os.environ.items() if name not in _DATABASE_VARIABLES}
    without = {name: value for name, value in kept.items() if not name.startswith("PG")}
    return {**without, **told, **service.dsn.libpq_environment(os.environ)}


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _last_error(lines: Sequence[bytes]) -> dict[str, Any]:
    """The facts of `service.failed`, the line with which a command says what was the matter."""
    for line in reversed(lines):
        event = _decoded(line)
        if isinstance(event, dict) and event.get("event") == "service.failed":
            return event
    return {}
