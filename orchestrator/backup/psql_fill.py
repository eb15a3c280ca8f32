r"""Restore an archive by way of psql, into a server that is older than every pg_restore. Touches child processes.

A script has more power than an archive: a line that begins with a backslash is a command of psql, and may run a program
here (CVE-2025-8714, CVE-2025-8715: names in the archive could hold such lines). So only a pg_restore that forbids them
with `\restrict` is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from orchestrator.backup import pgtools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.backup.pgtools import Emit, Tool
    from orchestrator.dsn import Dsn

_COPY_BYTES = 1 << 20
_HEAD_LINES = 50
_UNKNOWN_SETTING = b"SET transaction_timeout = 0;"


async def fill_by_script(
    tool: Tool,
    path: str,
    fds: Sequence[int],
    options: Sequence[str],
    into: Dsn,
    environment: dict[str, str],
    emit: Emit,
) -> None:
    """Restore, without the setting that this server does not know: it is in the first lines of the script.

    Raises:
        PgToolMissingError: no psql is there, or pg_restore is one that lets an archive command psql.
        PgToolError: one of the two failed.
    """
    psql = await pgtools.find("psql", at_least=tool.major, purpose=path)
    script_out, script_in = os.pipe()
    psql_in, psql_feed = os.pipe()
    open_ends = {script_in, psql_in}

    def close_end(end: int) -> None:
        if end in open_ends:
            open_ends.discard(end)
            os.close(end)

    async def run_and_close(run: pgtools.Run, end: int) -> None:
        try:
            await pgtools.run(run)
        finally:
            close_end(end)  # the other side of the pipe sees its end

    def copy() -> bool:
        """Hand the script on; False where it may command psql, which then gets nothing of it."""
        with (
            os.fdopen(script_out, "rb") as source,
            os.fdopen(psql_feed, "wb") as sink,
            contextlib.suppress(BrokenPipeError),
        ):
            head = source.read(_COPY_BYTES).split(b"\n")
            if head != [b""] and not any(line.startswith(b"\\restrict ") for line in head[:_HEAD_LINES]):
                while source.read(_COPY_BYTES):  # to its end, which is no error then
                    pass
                return False
            sink.write(b"\n".join(line for i, line in enumerate(head) if i > _HEAD_LINES or line != _UNKNOWN_SETTING))
            while chunk := source.read(_COPY_BYTES):
                sink.write(chunk)
        return True

    run_restore = pgtools.Run(
        tool, [*options, "--file=-", path], environment, into.secrets, emit, stdout=script_in, fds=fds
    )
    arguments = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"]
    run_psql = pgtools.Run(psql, arguments, environment, into.secrets, emit, stdin=psql_in)
    copying = asyncio.ensure_future(asyncio.to_thread(copy))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_and_close(run_restore, script_in))
            group.create_task(run_and_close(run_psql, psql_in))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        # Both programs have ended, and with the last ends of their pipes the thread does.
        for end in tuple(open_ends):
            close_end(end)
        await asyncio.wait([copying])
    if not copying.result():
        raise pgtools.PgToolMissingError(
            f"pg_restore {tool.version} ({tool.path}) writes scripts in which an archive can command psql"
            " (CVE-2025-8714)",
            remedy="Install the newest minor version of PostgreSQL's client programs (17.6 or 18, and newer).",
            facts={"tool": "pg_restore", "version": tool.version},
        )
