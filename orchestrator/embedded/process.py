"""Child processes of the embedded server, run as somebody else where we are root.

Touches: child processes. Each ends with this one, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Nothing is inherited: PG*, LD_*, LC_*, PYTHON* of ours would change what the server does.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
_LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as; uid -1 is "as we are"."""

    uid: int = -1
    gid: int = -1

    def own(self, path: Path) -> None:
        """Make it theirs; a link itself, and not what it leads to."""
        if self.uid >= 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@contextlib.contextmanager
def memory_file(text: str) -> Iterator[int]:
    """A file without a name that a child of any uid can open by descriptor: a password in no argv and on no disk."""
    fd = os.memfd_create("pwfile")
    try:
        os.write(fd, text.encode() + b"\n")
        yield fd
    finally:
        os.close(fd)


async def output_of(command: Sequence[str], account: Account, fds: tuple[int, ...] = ()) -> tuple[int, str]:
    """Exit code and output of a command that ends by itself; on cancellation it and its children are killed first."""
    # SIGKILL, not SIGQUIT, at our death: initdb handles the latter, and would go on to clean up.
    process = await launch(command, account, signal.SIGKILL, fds, asyncio.subprocess.PIPE)
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        output = await process.stdout.read()
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.stdout.read()  # to the end: then initdb's children are gone, too
        await process.wait()
        raise
    return code, output.decode(errors="replace")


async def launch(
    command: Sequence[str], account: Account, death_signal: signal.Signals, fds: tuple[int, ...], output: int
) -> asyncio.subprocess.Process:
    """Start `command` by way of `launch`; a session of its own keeps the terminal's Ctrl-C from it."""
    script = Path(__file__).with_name("launch.py")
    ours = [str(os.getpid()), str(int(death_signal)), str(account.uid), str(account.gid)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(script), *ours, *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env=_ENVIRONMENT,
        cwd="/",
        pass_fds=fds,
        start_new_session=True,
    )


def last_lines(text: str) -> str:
    """The end of a program's output, which says why it failed."""
    return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])
