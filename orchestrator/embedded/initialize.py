"""The first run: initdb makes a cluster, which gets its name when it is complete.

Touches: the data directory, a child process (`initdb`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.embedded.directory import held_directory, is_reachable, reach, write_own
from orchestrator.embedded.errors import EmbeddedServerError
from orchestrator.embedded.process import Account, last_lines, memory_file, output_of

if TYPE_CHECKING:
    from orchestrator.embedded.binaries import Binaries

# Not our name: a role finds a schema of its own name first, and `orchestrator` is the schema of our own tables.
USER = "postgres"
_FIRST_RUN_SETTINGS = """
# Written by orchestrator at the first run; yours to change.
max_connections = 100
shared_buffers = '128MB'
log_line_prefix = '%m [%p] %q%a '
"""


async def initialize(
    cluster: Path, binaries: Binaries, account: Account, lock_fd: int, password: str, *, durable: bool
) -> None:
    """Make the cluster under another name, then rename it: a start that is killed leaves nothing half-made."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cluster.parent))
    try:
        data = unfinished / "data"
        with held_directory(unfinished) as held:
            _prepare(held, account, password)
        reachable = await is_reachable(data, account)
        failure = ""
        for locale in _locales(binaries.major):
            with reach(data, directly=reachable) as (name, fds), memory_file(password) as password_fd:
                command = [
                    str(binaries.bin / "initdb"),
                    *(f"--pgdata={name}", f"--username={USER}", f"--pwfile=/proc/self/fd/{password_fd}"),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"),
                    *locale,
                    *(() if durable else ("--no-sync",)),
                ]
                code, failure = await output_of(command, account, (lock_fd, password_fd, *fds))
            if code == 0:
                break
        else:
            raise EmbeddedServerError(
                f"initdb failed in {cluster.parent}: {last_lines(failure)}",
                remedy="Correct what initdb names above (often space or permissions), or use another --data-dir.",
            )
        _finish(unfinished, cluster)
    finally:
        # Not awaited in a thread: a second cancellation must not skip it, and it is gone already in the good case.
        shutil.rmtree(unfinished, ignore_errors=True)


def _locales(major: int) -> list[list[str]]:
    """The builtin provider is the same on every machine; before 17, C.UTF-8 if the system has it, else C."""
    if major >= 17:  # noqa: PLR2004  # the release that has it
        return [["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
    return [["--locale=C.UTF-8"], ["--locale=C"]]


def _prepare(held: Path, account: Account, password: str) -> None:
    held.chmod(0o711 if account.uid >= 0 else 0o700)
    write_own(held / "pgpass", f"*:*:*:{USER}:{password}\n")
    (held / "data").mkdir(mode=0o700)
    account.own(held / "data")


def _finish(unfinished: Path, cluster: Path) -> None:
    with held_directory(unfinished) as held:
        write_own(held / "data" / "postgresql.conf", _FIRST_RUN_SETTINGS, os.O_APPEND)
    give_name(unfinished, cluster)


def give_name(unfinished: Path, cluster: Path) -> None:
    """Give a complete cluster its name, which survives a power cut."""
    unfinished.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)  # the name survives a power cut, as what is in it does
    finally:
        os.close(parent)
