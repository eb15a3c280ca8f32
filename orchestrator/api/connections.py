"""What a connection may cost: limits of time and number, and a place that is always kept for the probes.

aiohttp's server has no limit on the number of its connections, nor on how long the head of a request, or the reader of
an answer, may take. `Connection` is its protocol with these limits around it; `Connections` knows all that are open.
Touches transports; the clock is the event loop's.

Whoever must wait can be sent away: where there is no room for a new connection, the one that has waited longest for a
request is closed. Where all of them are at work, a new one gets one of the reserved places, and may ask for a probe.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from orchestrator.api.problems import problem
from orchestrator.api.security import BODY_LIMIT_BYTES, SECURITY_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.api.rate_limit import RateLimitedEvents

_LINE_LIMIT_BYTES = 8190
_HEADERS_LIMIT = 100
_HEAD_LIMIT_BYTES = 32 * 1024
# A body that nobody has asked for yet waits in the kernel, but for twice this much.
_READ_BUFFER_BYTES = 32 * 1024
# For this long the rest of a refused body is taken in and thrown away: a connection that is closed at once is reset,
# and the client may never see why. What is far larger than any body may be is not waited for.
_LINGER_S = 1.0
_LINGER_LIMIT_BYTES = 8 * BODY_LIMIT_BYTES
_LOOK_EVERY_S = 0.5
_RESERVED = 32
_NO_LINGER = struct.pack("ii", 1, 0)
_KEPT_LIMIT = 64
_KEPT_LIMIT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, and for how long each may wait.

    `in_all` and `per_address` count connections; `reserved` are those beyond, for probes alone. `head_s` is the time
    from the first moment, or the first byte, to the last byte of a request's head; `idle_s` that between two requests;
    `unread_s` that in which a client takes nothing of its answer.
    """

    in_all: int
    per_address: int
    reserved: int = _RESERVED
    head_s: float = 10.0
    idle_s: float = 75.0  # longer than proxies keep theirs (60 s), or they would send into a closed one
    unread_s: float = 20.0

    @classmethod
    def of_this_process(cls) -> Limits:
        """As many as half of the descriptors that the process may open: the database and the jobs need theirs."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        in_all = min(1024, max(16, descriptors // 2 - _RESERVED))
        return cls(in_all=in_all, per_address=max(8, in_all // 2))


class Connections:
    """All open connections of one port, and what each waits for.

    A kind of waiting has one limit of time, so those that wait stand in the order in which their time is over.
    """

    def __init__(self, limits: Limits, events: RateLimitedEvents) -> None:
        self.limits, self.events = limits, events
        self.for_head: dict[Connection, float] = {}
        self.idle: dict[Connection, float] = {}
        self.unread: dict[Connection, float] = {}
        # Requests that came byte by byte the same before, and what answers them: see `Connection.keep`.
        self.kept: dict[bytes, Callable[[], bytes]] = {}
        self._of_address: dict[str, set[Connection]] = {}
        self._reserved: dict[Connection, None] = {}
        self._count = 0
        self._look: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def admit(self, connection: Connection) -> None:
        """Count a new connection, and make room for it where there is none."""
        of_address = self._of_address.setdefault(connection.address, set())
        if len(of_address) >= self.limits.per_address:
            self._make_room(connection, among=of_address)
        elif self._count - len(self._reserved) >= self.limits.in_all:
            self._make_room(connection)
        of_address.add(connection)
        self._count += 1
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._end_what_is_over)

    def _make_room(self, connection: Connection, among: set[Connection] | None = None) -> None:
        waiting = (one for kind in (self.for_head, self.idle) for one in kind if not one.is_reserved)
        oldest = next((one for one in waiting if among is None or one in among), None)
        if oldest is None:
            oldest = next(iter(self._reserved)) if len(self._reserved) >= self.limits.reserved else None
            connection.is_reserved = True
            self._reserved[connection] = None
        self.events.emit(
            "http.connections_full",
            open=self._count,
            limit=self.limits.in_all if among is None else self.limits.per_address,
            address=connection.address,
            hint="The connection that had waited longest for a request was closed."
            if not connection.is_reserved
            else "All connections are at work: new ones may ask for /health alone.",
        )
        if oldest is not None:
            oldest.drop()

    def forget(self, connection: Connection) -> None:
        """A connection is closed. It may be told more than once."""
        of_address = self._of_address.get(connection.address, set())
        if connection not in of_address:
            return
        of_address.discard(connection)
        if not of_address:
            del self._of_address[connection.address]
        self._reserved.pop(connection, None)
        self._count -= 1

    def drop_waiting(self, count: int) -> int:
        """Close that many of those that wait for a request; returns how many there were."""
        waiting = [*self.for_head, *self.idle][:count]
        for connection in waiting:
            connection.drop()
        return len(waiting)

    def _end_what_is_over(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for kind in (self.for_head, self.idle, self.unread):
            over: list[Connection] = []
            for connection, until in kind.items():
                if until > now:
                    break
                over.append(connection)
            for connection in over:
                connection.drop(reset=kind is self.unread)
        self._look = loop.call_later(_LOOK_EVERY_S, self._end_what_is_over) if self._count else None

    def close(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
            self._look = None


class Connection(web.RequestHandler):
    """aiohttp's protocol for one connection, within the limits of `connections`."""

    __slots__ = (
        "_answered",
        "_connections",
        "_head_bytes",
        "_is_exact",
        "_last",
        "_open",
        "_thrown_away_bytes",
        "_waits_in",
        "address",
        "is_reserved",
    )

    def __init__(self, server: web.Server, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=cast("Any", None),  # probes are not logged; changes of state are
            max_line_size=_LINE_LIMIT_BYTES,
            max_field_size=_LINE_LIMIT_BYTES,
            max_headers=_HEADERS_LIMIT,
            # Nothing is ever expanded: a compressed body is refused, and its rest thrown away as it came.
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            lingering_time=_LINGER_S,
        )
        self._connections = connections
        self.address = ""
        self.is_reserved = False
        self._waits_in: dict[Connection, float] | None = None
        self._answered = 0
        self._head_bytes = 0
        self._thrown_away_bytes: int | None = None
        # Whether each piece that came so far was one whole request without a body: then nothing is left in the parser.
        self._is_exact = True
        self._last = b""
        self._open: asyncio.Transport | None = None  # aiohttp's own is None as soon as it begins to close

    def _wait(self, kind: dict[Connection, float] | None, limit_s: float = 0.0) -> None:
        if self._waits_in is not None:
            self._waits_in.pop(self, None)
        self._waits_in = kind
        if kind is not None:
            kind[self] = self._loop.time() + limit_s

    def drop(self, *, reset: bool = False) -> None:
        """Close at once, whatever is unread or unwritten; `reset` has the kernel, too, forget what it still holds."""
        self._wait(None)
        self._connections.forget(self)
        if self._open is not None:
            if reset:
                self._open.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._open.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit it, and wait for the head of a request."""
        self.address = _address(transport.get_extra_info("peername"))
        self._open = cast("asyncio.Transport", transport)
        self._connections.admit(self)
        super().connection_made(transport)
        self._wait(self._connections.for_head, self._connections.limits.head_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._wait(None)
        self._open = None
        self._connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes against its limit, and hand it on to the parser."""
        is_first = False
        if self._thrown_away_bytes is not None:
            self._thrown_away_bytes += len(data)
            if self._thrown_away_bytes > _LINGER_LIMIT_BYTES:
                self.drop()
                return
        elif self._answered != self._request_count:
            self._is_exact = False  # a body, or the next request before this one is answered
        elif not self._head_bytes:
            kept = self._connections.kept.get(data) if self._is_exact else None
            if kept is not None and self._may_write_at_once():
                self._open.write(kept())  # type: ignore[union-attr]
                self._wait(self._connections.idle, self._connections.limits.idle_s)
                return
            is_first = True
            self._wait(self._connections.for_head, self._connections.limits.head_s)
            self._head_bytes = len(data)
        elif self._head_bytes > _HEAD_LIMIT_BYTES:
            self.drop()
            return
        else:
            self._head_bytes += len(data)
        before = self._request_count
        super().data_received(data)
        if self._request_count == before:
            return
        self._is_exact &= is_first and self._request_count == before + 1 and _is_one_head(data)
        self._last = data if self._is_exact and len(data) <= _KEPT_LIMIT_BYTES else b""
        self._head_bytes, self._thrown_away_bytes = 0, None
        self._wait(None)

    def _may_write_at_once(self) -> bool:
        return self._open is not None and not (
            self.is_reserved or self.writing_paused or self._close or self._force_close
        )

    def keep(self, request: web.Request, answer: Callable[[], bytes]) -> None:
        """Answer the next request that is, byte by byte, the one that is being answered with `answer()` at once.

        The parser has read these bytes once: what is the same needs no second look. Left out is whatever has a
        secret, a body, or a say in how the connection goes on.
        """
        data, kept = self._last, self._connections.kept
        if (
            data
            and request.method == "GET"
            and request.version == (1, 1)
            and request.keep_alive
            and not request.body_exists
            and not request.headers.keys() & _NEVER_KEPT
        ):
            if len(kept) >= _KEPT_LIMIT:
                del kept[next(iter(kept))]
            kept[data] = answer

    def pause_writing(self) -> None:
        """The client takes nothing of its answer: for how long it may do so is limited."""
        super().pause_writing()
        self._wait(self._connections.unread, self._connections.limits.unread_s)

    def resume_writing(self) -> None:
        """The client has taken its answer."""
        super().resume_writing()
        if self._waits_in is self._connections.unread:
            self._wait(None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the answer; then the connection waits for the next request, or until it is closed."""
        if isinstance(resp, web.HTTPException):  # aiohttp's own, for what is no path of ours: `OPTIONS *`
            resp = problem(resp.status, "no such route", headers=SECURITY_HEADERS)
        if self.is_reserved:
            resp.force_close()
        done = await super().finish_response(request, resp, start_time)
        self._answered += 1
        if not request.content.is_eof():
            self._thrown_away_bytes, self._is_exact = 0, False
        if self._open is not None and self._answered == self._request_count:
            limits = self._connections.limits
            if done[0].keep_alive and self._thrown_away_bytes is None:
                self._wait(self._connections.idle, limits.idle_s)
            else:
                self._wait(self._connections.unread, limits.unread_s)
        return done

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 what the parser says names its version, and holds the client's bytes
    ) -> web.StreamResponse:
        """What is no HTTP is a 400; what went wrong outside of every handler is logged, but for a client that left."""
        if status >= 500:  # noqa: PLR2004
            self.log_exception("a request failed outside of its handler", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun and cannot be replaced")
        is_theirs = status < 500  # noqa: PLR2004
        detail = "this is not an HTTP/1.1 request, or its head is too large" if is_theirs else "something went wrong"
        response = problem(status, detail, headers=SECURITY_HEADERS)
        response.force_close()
        return response

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        """Aiohttp's own error log: outsiders can write to it, so it is limited."""
        self._connections.events.emit("http.connection_failed", level="error", exc_info=exc_info)


_NEVER_KEPT = frozenset({"Authorization", "Connection", "Cookie", "Expect", "Origin", "Upgrade"})


def _is_one_head(data: bytes) -> bool:
    return data.find(b"\r\n\r\n") == len(data) - 4 and b"\n\n" not in data


def _address(peer: Any) -> str:
    """Whose connection it is: an IPv4 address, or the network of 64 bits that an IPv6 host has to itself."""
    try:
        found = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return ""
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if not found.is_loopback:
            return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)
