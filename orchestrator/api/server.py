"""Bind the port and serve until the block ends. Touches the network."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.api.connections import Connection, Connections, Limits
from orchestrator.api.rate_limit import RateLimitedEvents
from orchestrator.errors import ListenError
from orchestrator.healthcheck import kept_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from orchestrator.lifecycle import Lifecycle

_BACKLOG = 512
_ACCEPTED_AT_ONCE = 32
_AFTER_EXHAUSTION_S = 0.2
_MADE_ROOM_FOR = 32
_PRIVILEGED_PORTS = 1024
_TRIES = 5
# Out of descriptors, for this process or the machine, or out of memory for sockets (accept(2)).
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@asynccontextmanager
async def listening(
    app: web.Application,
    life: Lifecycle,
    *,
    host: str,
    port: int,
    shutdown_timeout_s: float,
    port_file: Path | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[int]:
    """Serve `app` on `host:port`; yields the port that is bound (port 0 asks for any).

    A name is bound at every address that it has here; `::` serves IPv4, too. `port_file` holds the port meanwhile. At
    the end the port closes, and requests in flight have `shutdown_timeout_s` to finish.

    Raises:
        ListenError: the address cannot be bound.
    """
    sockets = await _bound(host, port)
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=shutdown_timeout_s)
    connections = Connections(limits or Limits.of_this_process(), RateLimitedEvents(life))
    try:
        await runner.setup()
        server, loop = runner.server, asyncio.get_running_loop()
        assert server is not None, "setup() makes it"  # noqa: S101
        acceptor = _Acceptor(sockets, lambda: Connection(server, connections, loop), connections)
        acceptor.start()
        bound: int = sockets[0].getsockname()[1]
        life.emit("http.listening", host=host, port=bound)
        try:
            with _kept(bound, port_file, life):
                yield bound
        finally:
            await acceptor.close()
    finally:
        for one in sockets:
            one.close()
        await runner.cleanup()
        connections.close()


def url_of(host: str, port: int) -> str:
    """Where a browser of this machine finds the page; of all addresses the loopback one."""
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextmanager
def _kept(port: int, path: Path | None, life: Lifecycle) -> Iterator[None]:
    """Have the port in that file while the block lasts. Where it cannot be written, a warning says so."""
    if path is None:
        yield
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # A file of our own, made anew and put in place whole: what somebody else has put there is not written to.
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, f"{port}\n".encode())
        finally:
            os.close(descriptor)
        beside.replace(path)
    except OSError as error:
        life.emit("http.port_not_kept", level="warning", file=str(path), error=error.strerror or type(error).__name__)
    try:
        yield
    finally:
        if kept_port(str(path)) == port:
            with suppress(OSError):
                path.unlink()


class _Acceptor:
    """Takes connections in; asyncio's own, out of descriptors, tries again at once and logs each time."""

    def __init__(
        self, sockets: Sequence[socket.socket], make: Callable[[], Connection], connections: Connections
    ) -> None:
        self._sockets, self._make, self._connections = sockets, make, connections
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._later: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._later = None
        for one in self._sockets:
            self._loop.add_reader(one.fileno(), self._accept, one)

    def _stop(self) -> None:
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())

    async def close(self) -> None:
        """Take no more; those that were just taken are let in first."""
        self._stop()
        if self._later is not None:
            self._later.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                peer, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    return  # accept(2): an error of that one connection, which is gone
                self._wait(error)
                return
            peer.setblocking(False)  # noqa: FBT003 the standard library's
            task = self._loop.create_task(self._connect(peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, peer: socket.socket) -> None:
        with suppress(OSError):  # gone already
            await self._loop.connect_accepted_socket(self._make, peer)

    def _wait(self, error: OSError) -> None:
        """Close what waits for a request, and try again in a moment."""
        self._stop()
        self._later = self._loop.call_later(_AFTER_EXHAUSTION_S, self.start)
        closed = self._connections.drop_waiting(_MADE_ROOM_FOR)
        self._connections.events.emit(
            "http.accept_failed",
            level="error",
            error=error.strerror or errno.errorcode.get(error.errno or 0, ""),
            open=len(self._connections),
            closed=closed,
            hint="Raise the limit of open files (ulimit -n), or find out what keeps them open.",
        )


async def _bound(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of `host`, all on the same port."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _listen_error(host, port, error) from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for left in range(_TRIES - 1, -1, -1):
        sockets: list[socket.socket] = []
        failed: OSError | None = None
        for family, address in addresses:
            # With port 0 the first one chooses for all, which may be taken at another address: then all choose again.
            chosen = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_listener(family, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT} or len(addresses) == 1:
                    failed = error
                    break
                failed = failed or error  # `localhost` is ::1 also where there is no IPv6
        if sockets and (failed is None or failed.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}):
            return sockets
        for one in sockets:
            one.close()
        if failed is not None and not (port == 0 and failed.errno == errno.EADDRINUSE and left):
            raise _listen_error(host, port, failed) from failed
    raise AssertionError("the last try returns or raises")


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is every address, IPv4's too; any other is what it says.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        made.bind(address)
        made.listen(_BACKLOG)
        made.setblocking(False)  # noqa: FBT003 the standard library's
    except BaseException:
        made.close()
        raise
    return made


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    reason = error.strerror or type(error).__name__
    remedy = "Stop the program that uses the port, or set HOST and PORT to an address of this machine that is free."
    if isinstance(error, socket.gaierror):
        reason, remedy = f"HOST cannot be resolved ({reason})", "Set HOST to an address, or a name, of this machine."
    elif error.errno in {errno.EACCES, errno.EPERM} and port < _PRIVILEGED_PORTS:
        reason = f"port {port} is privileged, and this user may not bind it"
        remedy = "Set PORT to 1024 or more and publish it as the other, or grant the capability NET_BIND_SERVICE."
    elif error.errno == errno.EAFNOSUPPORT:
        reason, remedy = "this machine has no such address (IPv6 is off)", "Set HOST=0.0.0.0, or turn IPv6 on."
    return ListenError(f"cannot listen on {host}:{port}: {reason}", remedy=remedy, facts={"host": host, "port": port})
