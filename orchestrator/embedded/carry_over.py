"""From a server of an older major to one of a newer: roles, databases and rows by pg_dumpall into psql.

Touches: two child processes. Nothing is written to the older server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK_BYTES = 1 << 16
_SAID_LENGTH_MAX = 2000


class Reachable(Protocol):
    """What is needed of a server to log in to it."""

    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def password_file(self) -> Path: ...  # noqa: D102


async def carry_over(bin_dir: Path, old: Reachable, new: Reachable) -> str:
    """Copy all that `old` holds into `new`, which is empty but for the login role; both have the same password.

    Args:
        bin_dir: Where pg_dumpall and psql of the newer major are; pg_dumpall reads servers of its own major and older.
        old: The server to read.
        new: The server to fill.

    Returns:
        What went wrong, in the programs' own words; empty when all was copied. Cancellation kills both programs.
    """
    nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    dump = await _client([str(bin_dir / "pg_dumpall"), "--no-password"], old, stdin=nothing, stdout=pipe)
    options = ("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-")
    fill = await _client([str(bin_dir / "psql"), *options], new, stdin=pipe, stdout=nothing)
    try:
        _, *said = await asyncio.gather(_copied(dump, fill, new.user), _said(dump), _said(fill))
        failed = [
            text or f"exit code {p.returncode}" for p, text in zip((dump, fill), said, strict=True) if p.returncode
        ]
        return "; ".join(failed)
    finally:
        for process in (dump, fill):
            _kill(process)
            if process.stdout is not None:
                await process.stdout.read()  # to its end, which closes the pipe
            await process.wait()


async def _client(command: list[str], server: Reachable, *, stdin: int, stdout: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        limit=_CHUNK_BYTES,
        start_new_session=True,
        env={
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGUSER": server.user,
            "PGDATABASE": "postgres",
            "PGPASSFILE": str(server.password_file),
            "PGSSLMODE": "disable",
            "LC_ALL": "C",
            "HOME": "/nonexistent",  # no service file, no history
        },
    )


async def _copied(dump: asyncio.subprocess.Process, fill: asyncio.subprocess.Process, user: str) -> None:
    """Pass the script on, but for the creation of the login role, which is there; so is our database: it is dropped."""
    assert dump.stdout is not None  # noqa: S101  # both are pipes
    assert fill.stdin is not None  # noqa: S101
    made = f"CREATE ROLE {user};\n".encode()
    try:
        fill.stdin.write(b"DROP DATABASE orchestrator;\n")
        kept = b""
        while chunk := await dump.stdout.read(_CHUNK_BYTES):
            if made:
                kept += chunk
                if made not in kept:
                    continue
                chunk, made = kept.replace(made, b"", 1), b""
            fill.stdin.write(chunk)
            await fill.stdin.drain()
        fill.stdin.write(kept if made else b"")
        fill.stdin.close()
    except (BrokenPipeError, ConnectionResetError):  # psql has ended, and says why
        _kill(dump)
        await dump.stdout.read()  # its end is not seen before its pipe is read to the end


def _kill(process: asyncio.subprocess.Process) -> None:
    """With its children: pg_dumpall runs pg_dump."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _said(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None  # noqa: S101  # it is a pipe
    said = b""
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        said = (said + chunk)[-_SAID_LENGTH_MAX:]
    await process.wait()
    return said.decode(errors="replace").strip()
