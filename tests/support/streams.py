"""A client of `GET /api/events`, and events that a test writes by hand."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest

ADD = (
    "INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)"
    " VALUES ($1, 1, 'made', 'default', 'queued')"
)
TELL = "SELECT pg_notify('orchestrator_events', '')"


class Stream:
    """One client of the stream. `last_id` is what a browser would send when it comes back."""

    def __init__(self, response):
        self.response, self.last_id, self.events = response, None, []
        self._buffer = ""

    async def next(self, kind=None, *, timeout_s=10.0):
        """The next event (of that kind); None at the end."""
        async with asyncio.timeout(timeout_s):
            while True:
                while "\n\n" in self._buffer:
                    block, _, self._buffer = self._buffer.partition("\n\n")
                    fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
                    self.last_id = fields.get("id", self.last_id)
                    if "event" in fields:
                        found = (fields["event"], json.loads(fields["data"]))
                        self.events.append(found)
                        if kind in {None, found[0]}:
                            return found
                chunk = await self.response.content.readany()
                if not chunk:
                    return None
                self._buffer += chunk.decode()

    async def jobs(self, count, *, timeout_s=15.0):
        """The next `count` job events' job ids."""
        return [int((await self.next("job", timeout_s=timeout_s))[1]["jobId"]) for _ in range(count)]

    async def silence(self, seconds=0.7):
        """Nothing about jobs comes for a while (longer than the tail takes to look on its own)."""
        with pytest.raises(TimeoutError):
            await self.next("job", timeout_s=seconds)


@asynccontextmanager
async def streaming(run, *, last_id=None, query=""):
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(run.url, timeout=timeout) as session,
        session.get(f"/api/events{query}", headers=headers) as response,
    ):
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        stream = Stream(response)
        hello = (await stream.next("hello"))[1]
        assert (hello["phase"], hello["resumed"]) == ("ready", last_id is not None)
        yield stream
