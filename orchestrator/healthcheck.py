"""`orchestrator healthcheck`: ask our own `/health` once, for Docker's HEALTHCHECK. Standard library only; ≤ 60 ms.

It speaks HTTP over a bare socket: `http.client` alone costs 25 ms of import, and this runs every few seconds. It ends
within five seconds, whatever the name server and the peer do.
"""

from __future__ import annotations

import _thread
import os
import socket
import stat
import sys
import time

TYPE_CHECKING = False  # as in typing, which costs 8 of 25 ms
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_TIMEOUT_S = 5.0
_LIMIT_BYTES = 1 << 20
_ANY_ADDRESS = {"0.0.0.0", "", "*"}  # noqa: S104 what the server binds, never what is asked
_DEFAULT_PORT = "3005"
_PORT_MAX = 65535
_EXIT_USAGE = 2  # as argparse has it
_USAGE = "usage: orchestrator healthcheck [--live] [--host HOST] [--port PORT]   (HOST and PORT as for serve)"


def check(host: str, port: int, path: str = "/health") -> tuple[bool, str]:
    """Whether `GET path` answers 200, and the phase (or why there is none). Never raises; at most five seconds."""
    host = host.strip("[]")
    host = {"::": "::1"}.get(host, "127.0.0.1" if host in _ANY_ADDRESS else host)
    told: list[tuple[bool, str]] = []
    done = _thread.allocate_lock()
    done.acquire()

    def ask() -> None:
        try:
            told.append(_ask(host, port, path, time.monotonic() + _TIMEOUT_S))
        finally:
            done.release()

    # In a thread that nobody waits for: a name server that is silent holds getaddrinfo, which nothing interrupts.
    _thread.start_new_thread(ask, ())
    done.acquire(timeout=_TIMEOUT_S)
    return told[0] if told else (False, f"no answer on port {port} within {_TIMEOUT_S:g} s")


def _ask(host: str, port: int, path: str, until: float) -> tuple[bool, str]:
    try:
        # Bytes, which getaddrinfo takes as they are: for a str it loads the codec idna, 3 of 20 ms.
        address: Any = (host.encode("ascii" if host.isascii() else "idna"), port)
        with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
            named = f"[{host}]" if ":" in host else host
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {named}\r\n\r\n".encode())
            answer = b""
            while len(answer) < _LIMIT_BYTES:
                connection.settimeout(max(0.001, until - time.monotonic()))
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
    except OSError as error:
        return False, f"no answer on port {port}: {error.strerror or type(error).__name__}"
    except UnicodeError:
        return False, "HOST is not a name"
    status = answer.split(b" ", 2)[1:2]
    _, _, rest = answer.partition(b'"phase":"')
    phase = rest.partition(b'"')[0].decode("ascii", "replace")
    return status == [b"200"], phase if phase.isalpha() else "the answer has no phase: is this our port?"


def default_port_file(environ: Mapping[str, str]) -> str:
    """Where the port is kept that PORT=0 has chosen, unless PORT_FILE says where."""
    below = environ.get("XDG_RUNTIME_DIR", "").strip()
    return f"{below}/orchestrator/port" if below.startswith("/") else f"/tmp/orchestrator-{os.getuid()}/port"  # noqa: S108 see `kept_port`


def kept_port(path: str) -> int | None:
    """The port in that file; None where there is none, or where somebody else wrote it: anyone may write below /tmp."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.getuid()}:
                return None
            return int(os.read(descriptor, 16))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None


def main(arguments: list[str]) -> int:
    """Print the phase; 0 when ready, 1 when not, 2 for an option that is none. `--live`: whether the process lives."""
    options = _options(arguments)
    if options is None:
        print(_USAGE, file=sys.stderr)
        return _EXIT_USAGE
    if "help" in options:
        print(_USAGE)
        return 0
    text = options.get("port", os.environ.get("PORT", "").strip() or _DEFAULT_PORT)
    port = int(text) if text.isdecimal() and text.isascii() and len(text) <= len(str(_PORT_MAX)) else -1
    if not 0 <= port <= _PORT_MAX:
        print("PORT is not a number from 0 to 65535", file=sys.stderr)
        return _EXIT_USAGE if "port" in options else 1
    if port == 0:
        path = os.environ.get("PORT_FILE", "").strip() or default_port_file(os.environ)
        port = kept_port(path) or 0
        if not port:
            print(f"PORT is 0, and {path} holds no port: does the service run?")
            return 1
    host = options.get("host", os.environ.get("HOST", "").strip())
    ok, phase = check(host, port, "/health/live" if "live" in options else "/health")
    print(phase)
    return 0 if ok else 1


def _options(arguments: list[str]) -> dict[str, str] | None:
    """The options by name; None where one is unknown or lacks its value. By hand: argparse costs 10 ms."""
    found: dict[str, str] = {}
    left = list(arguments)
    while left:
        name, has_value, value = left.pop(0).partition("=")
        if name in {"--live", "--help", "-h"} and not has_value:
            found[{"-h": "help"}.get(name, name[2:])] = ""
        elif name in {"--host", "--port"} and (has_value or left):
            found[name[2:]] = (value if has_value else left.pop(0)).strip()
        else:
            return None
    return found
