"""A stand-in for the web application: it starts when job-server is healthy, asks it once, and shows the answer.

Touches: HTTP, as a client once and then as a server on `PORT`. Standard library only.
"""

# ruff: noqa: INP001 - a script that is mounted into a container, in no package

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError, URLError
from urllib.request import urlopen


def ask_health(url: str) -> tuple[int, bytes]:
    """The status and body of `GET url`; a refusal is an answer too. Raises URLError where nobody answers."""
    try:
        with urlopen(url, timeout=5) as response:  # noqa: S310 - the scheme is the compose file's
            return response.status, response.read()
    except HTTPError as error:
        return error.code, error.read()


def serve(port: int, answer: bytes) -> None:
    """Give `answer` to every GET until the process is told to stop."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Compose probes this page every few seconds; those lines would drown the one that matters."""

    ThreadingHTTPServer(("", port), Page).serve_forever()


def main() -> int:
    """Exit 1 unless job-server is ready; otherwise serve what it said."""
    # As process 1 Python ignores SIGTERM until a handler is set.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    url = os.environ["JOB_SERVER_URL"] + "/health"
    try:
        status, body = ask_health(url)
        health = json.loads(body)
    except (URLError, OSError, ValueError) as error:
        sys.stderr.write(f"web: {url} gave no usable answer: {error}\n")
        return 1
    line = json.dumps({"web": "started", "job_server": {"http": status, "health": health}})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    if status != 200:  # noqa: PLR2004 - the one answer that means ready
        return 1
    serve(int(os.environ["PORT"]), line.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
