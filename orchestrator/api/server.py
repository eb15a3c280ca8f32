"""Bind the port and serve until the block ends. Touches the network."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from orchestrator.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.lifecycle import Lifecycle

_HEADER_LIMIT_BYTES = 16 * 1024
# A body that nobody has asked for yet waits in the kernel, but for twice this much.
_READ_BUFFER_BYTES = 32 * 1024
# For this long the rest of a refused body is taken in and thrown away: a connection that is closed at once is reset,
# and the client may never see why.
_LINGER_S = 1.0


class _NoClientErrors(logging.Filter):
    """Keeps what is no HTTP out of the log: an error with a trace and the client's own bytes for each such request.

    Who sends it is answered with 400; whoever can reach the port could fill the log, and what they sent may be secret.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_no_client_errors = _NoClientErrors()


@asynccontextmanager
async def listening(
    app: web.Application, life: Lifecycle, *, host: str, port: int, shutdown_timeout_s: float
) -> AsyncIterator[int]:
    """Serve `app` on `host:port`; yields the port that is bound (port 0 asks for any).

    At the end the port closes, and requests in flight have `shutdown_timeout_s` to finish.

    Raises:
        ListenError: the address cannot be bound.
    """
    logger = logging.getLogger("orchestrator.http")
    logger.addFilter(_no_client_errors)
    runner = web.AppRunner(
        app,
        logger=logger,
        handle_signals=False,
        access_log=None,  # probes are not logged; changes of state are
        shutdown_timeout=shutdown_timeout_s,
        max_line_size=_HEADER_LIMIT_BYTES,
        max_field_size=_HEADER_LIMIT_BYTES,
        # Nothing is ever expanded: a compressed body is refused, and what is left of it thrown away as it came.
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        lingering_time=_LINGER_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ListenError(
                f"cannot listen on {host}:{port}: {error.strerror or type(error).__name__}",
                remedy="Stop what uses the port, or set HOST and PORT to an address of this machine that is free.",
                facts={"host": host, "port": port},
            ) from error
        bound: int = runner.addresses[0][1]
        life.emit("http.listening", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()
