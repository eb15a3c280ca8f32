"""A TCP proxy that drops connections in silence, and loses answers."""

import asyncio
from urllib.parse import urlsplit, urlunsplit


class SilentProxy:
    """A TCP proxy whose open connections can be dropped without a word, while new ones are served.

    `drop()`: nothing more passes in either direction, and nobody is told. `hold_replies()`: what the client sends
    arrives, and nothing comes back. `cut()`: those connections end. `part()`: the same as `drop()`, and new connections
    are accepted and lead nowhere until `join()`.
    """

    def __init__(self, connect):
        self._connect = connect
        self._links: list[dict] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = None
        self._open = asyncio.Event()
        self._open.set()
        self.port = 0

    def dsn(self, dsn: str) -> str:
        parts = urlsplit(dsn)
        login, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self.port}", query=""))

    async def start(self):
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self):
        self._listener.close()
        self.cut(everything=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self):
        for link in self._links:
            link["up"] = link["down"] = False

    def part(self):
        self._open.clear()
        self.drop()

    def join(self):
        self._open.set()

    def hold_replies(self):
        for link in self._links:
            link["down"] = False

    def cut(self, *, everything=False):
        for link in self._links:
            if everything or not (link["up"] and link["down"]):
                for writer in link["writers"]:
                    writer.transport.abort()

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        link = {"up": True, "down": True, "writers": [writer]}
        try:
            await self._open.wait()
            answers, upstream = await self._connect()
            link["writers"].append(upstream)
            self._links.append(link)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, "up", reader, upstream))
                both.create_task(self._pump(link, "down", answers, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in link["writers"]:
                end.transport.abort()
            self._links = [one for one in self._links if one is not link]
            self._tasks.discard(task)

    @staticmethod
    async def _pump(link, way, reader, writer):
        while data := await reader.read(65536):
            if link[way]:
                writer.write(data)
                await writer.drain()
        if link["up"] and link["down"]:
            raise ConnectionResetError
        await asyncio.Event().wait()  # what one side says of its end is not passed on either
