"""`orchestrator healthcheck`: ask our own `/health` once, for Docker's HEALTHCHECK. Standard library only; ≤ 60 ms.

It speaks HTTP over a bare socket: `http.client` alone costs 25 ms of import, and this runs every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys

TYPE_CHECKING = False  # as in typing, which costs 8 of 25 ms
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 5.0
_LIMIT_BYTES = 1 << 20
_ANY_ADDRESS = {"0.0.0.0", "", "*"}  # noqa: S104 what the server binds, never what is asked


def check(host: str, port: int, path: str = "/health") -> tuple[bool, str]:
    """Whether `GET path` answers 200, and the phase (or why there is none). Never raises; at most five seconds."""
    host = {"::": "::1"}.get(host, "127.0.0.1" if host in _ANY_ADDRESS else host)
    try:
        # Bytes, which getaddrinfo takes as they are: for a str it loads the codec idna, 3 of 20 ms.
        address: Any = (host.encode("ascii" if host.isascii() else "idna"), port)
        with socket.create_connection(address, timeout=_TIMEOUT_S) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = b""
            while len(answer) < _LIMIT_BYTES and (piece := connection.recv(65536)):
                answer += piece
    except OSError as error:
        return False, f"no answer on port {port}: {error.strerror or type(error).__name__}"
    except UnicodeError:
        return False, "HOST is not a name"
    status = answer.split(b" ", 2)[1:2]
    _, _, rest = answer.partition(b'"phase":"')
    phase = rest.partition(b'"')[0].decode("ascii", "replace")
    return status == [b"200"], phase if phase.isalpha() else "the answer has no phase: is this our port?"


def main(arguments: list[str]) -> int:
    """Print the phase; 0 when ready, 1 when not. `--live` asks whether the process lives instead."""
    if any(a != "--live" for a in arguments):
        print("usage: orchestrator healthcheck [--live]   (HOST and PORT as for serve)", file=sys.stderr)
        return 64
    port = os.environ.get("PORT", "").strip() or "3005"
    if not port.isdigit():
        print("PORT is not a number", file=sys.stderr)
        return 1
    path = "/health/live" if "--live" in arguments else "/health"
    ok, phase = check(os.environ.get("HOST", "").strip(), int(port), path)
    print(phase)
    return 0 if ok else 1
