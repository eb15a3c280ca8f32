"""Server-sent events to bounded subscribers: a slow client is told and dropped, never a leak. Touches the network.

A `Hub` fans frames out; `respond` writes one subscriber's frames to one response. What a subscriber has not read yet is
bounded twice: by the hub's limit in frames, and by `_WRITE_TIMEOUT_S` for a peer that takes nothing at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

_PING_EVERY_S = 15.0
_WRITE_TIMEOUT_S = 20.0
_RETRY_MS = 1000
_PING = b": still here\n\n"
# proxies (nginx) would hold the frames back until their buffer is full
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class HubFullError(Exception):
    """There are as many subscribers as the hub allows; the caller answers 503."""


def frame(event: str, data: object, *, identity: str | None = None) -> bytes:
    """One event as it goes over the wire (HTML standard, 9.2.5); `data` becomes one line of JSON."""
    head = f"id: {identity}\n" if identity is not None else ""
    return b"".join((f"{head}event: {event}\ndata: ".encode(), msgspec.json.encode(data, enc_hook=str), b"\n\n"))


class Subscriber:
    """What one client has yet to read. Made by `Hub.subscribe`."""

    def __init__(self, limit: int, keep: Literal["all", "newest"]) -> None:
        self._limit, self._keep = limit, keep
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.is_closed = False
        self.is_dropped = False

    def put(self, data: bytes) -> None:
        """Add a frame. At the limit what is unread makes room (`newest`), or the client is dropped (`all`)."""
        if self.is_closed:
            return
        if len(self._frames) >= self._limit:
            self._frames.clear()
            if self._keep == "all":
                self.is_dropped = True
                data = frame("dropped", {"reason": "too slow", "limit": self._limit})
        self._frames.append(data)
        if self.is_dropped:
            self.close()
        self._wake.set()

    def close(self) -> None:
        """No more frames; what is there is still delivered."""
        self.is_closed = True
        self._wake.set()

    async def take(self, *, timeout_s: float) -> bytes | None:
        """Everything that waits, at once; empty when nothing came within `timeout_s`, None at the end."""
        if not self._frames and not self.is_closed:
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
        if self._frames:
            data = b"".join(self._frames)
            self._frames.clear()
            return data
        return None if self.is_closed else b""


class Hub:
    """Fans frames out to at most `most` subscribers, each with at most `limit` frames unread. Not thread-safe.

    `keep` says what a full subscriber loses: `newest` replaces what is unread (for snapshots, where only the newest
    counts), `all` tells the client with an event `dropped` and ends its stream; it comes back with `Last-Event-ID`.
    """

    def __init__(self, *, limit: int, most: int, keep: Literal["all", "newest"] = "all") -> None:
        self._limit, self._most, self._keep = limit, most, keep
        self._subscribers: set[Subscriber] = set()
        self._watched = asyncio.Event()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._subscribers)

    async def until_watched(self) -> None:
        """Return when somebody is subscribed."""
        await self._watched.wait()

    @contextmanager
    def subscribe(self) -> Iterator[Subscriber]:
        """A subscriber while the block lasts.

        Raises:
            HubFullError: there are `most` of them, or the hub is closed.
        """
        if self.is_closed or len(self._subscribers) >= self._most:
            raise HubFullError
        subscriber = Subscriber(self._limit, self._keep)
        self._subscribers.add(subscriber)
        self._watched.set()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers:
                self._watched.clear()

    def publish(self, data: bytes) -> None:
        """Hand a frame to every subscriber; never waits."""
        for subscriber in tuple(self._subscribers):
            subscriber.put(data)

    def close(self, last: bytes = b"") -> None:
        """Send `last`, then end every stream: an open one would hold aiohttp's cleanup for its whole time-out."""
        self.is_closed = True
        for subscriber in tuple(self._subscribers):
            if last:
                subscriber.put(last)
            subscriber.close()


async def respond(request: web.Request, subscriber: Subscriber, *, first: bytes = b"") -> web.StreamResponse:
    """Write `first`, then the subscriber's frames until they end or the client goes; see `send`."""

    async def frames() -> AsyncGenerator[bytes, None]:
        yield first
        async for data in taken(subscriber):
            yield data

    return await send(request, frames())


async def taken(subscriber: Subscriber) -> AsyncIterator[bytes]:
    """The subscriber's frames until they end, with a comment every 15 s in which there are none."""
    while (data := await subscriber.take(timeout_s=_PING_EVERY_S)) is not None:
        yield data or _PING


async def send(request: web.Request, frames: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Write the frames until they end or the client goes; a client that takes nothing for 20 s is cut off.

    The comments among them find out that a client has gone. `frames` is closed at the end, whatever happens.
    """
    response = web.StreamResponse(headers=_HEADERS)
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await response.prepare(request)
            await response.write(f"retry: {_RETRY_MS}\n\n".encode())
        async for data in frames:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await response.write(data)
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        pass  # the client has gone, which is how a stream ends
    finally:
        await frames.aclose()
    return response
