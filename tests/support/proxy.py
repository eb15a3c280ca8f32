"""A TCP proxy before the server, which cuts, stalls and refuses connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit, urlunsplit

import pytest

from support.server import Server


class TcpProxy:
    """A TCP proxy on loopback, before the server. `port` stays the same while it refuses and accepts again."""

    def __init__(self, connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.accepted = 0
        self._connect = connect
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def dsn(self, dsn: str) -> str:
        """The same database by way of the proxy."""
        parts = urlsplit(dsn)
        login, _, _ = parts.netloc.rpartition("@")
        query = "&".join(part for part in parts.query.split("&") if part and not part.startswith(("host=", "port=")))
        return urlunsplit(parts._replace(netloc=f"{login}@{self.host}:{self.port}", query=query))

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._writers) // 2

    async def accept(self) -> None:
        """Listen (again)."""
        self._flowing.set()
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close the listener: new connections are refused; open ones live on until `cut`."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def cut(self) -> None:
        """Abort every open connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Let nothing through, in either direction; connections stay open, new ones are accepted."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let everything through again, also what was held."""
        self._flowing.set()

    async def close(self) -> None:
        await self.refuse()
        await self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            answers, upstream = await self._connect()
            self._writers |= {writer, upstream}
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, upstream))
                both.create_task(self._pump(answers, writer))
        except* OSError:
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side has closed: so does the other, as for Postgres


@pytest.fixture
async def tcp_proxy(server: Server) -> AsyncIterator[TcpProxy]:
    """`.dsn(database_url)`, `await .cut()/.refuse()/.accept()`, `.stall()/.resume()`, `.connections`, `.accepted`."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if server.host.startswith("/"):
            return await asyncio.open_unix_connection(f"{server.host}/.s.PGSQL.{server.port}")
        return await asyncio.open_connection(server.host, server.port)

    proxy = TcpProxy(connect)
    await proxy.accept()
    yield proxy
    await proxy.close()
