"""A server of the system's own PostgreSQL, which is of another release than the embedded one, and has TLS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
OLDER = [place for place in BINARIES if int(place.parent.name) < 18]


@contextmanager
def installed_server(programs: Path) -> Iterator[str]:
    """Run a server of these programs on loopback; yields the URL of its superuser and the database postgres."""
    place = Path(tempfile.mkdtemp(prefix="orchestrator-installed-"))
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_owner:
        shutil.chown(place, "postgres")

    def run(*command: object) -> None:
        subprocess.run([*as_owner, *map(str, command)], check=True, capture_output=True, cwd=place)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run(programs / "initdb", "-D", place / "data", "-U", "app", "-A", "trust", "-N", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    run(programs / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log", "-o", options, "start")
    try:
        yield f"postgresql://app@127.0.0.1:{port}/postgres"
    finally:
        run(programs / "pg_ctl", "-D", place / "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(place)
