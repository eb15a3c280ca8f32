"""How soon a database that comes up is noticed, and what waiting for it costs.

    python tests/bench/waiting.py [--rounds 15] [--seconds 30]

`orchestrator wait` waits, for each cause of failure in turn; at a random moment, logins begin to work, and the clock
runs until its line `database.connected`. The causes:

  refused    nobody listens; then a proxy before a real server does
  starting   the server answers 57P03 to each login (recovery); then it lets them in. Noticed early and late, since the
             tries grow rarer after five seconds
  dns        a resolver of our own says NXDOMAIN for the host, as Docker's does for a service that is not up; then it
             knows it. In a mount namespace with a resolv.conf of its own: needs root and `unshare`

CPU is of a process that waits undisturbed for `--seconds`, given for a minute; its first seven seconds do not count,
in which some causes are tried more often.
Reach: 50 ms (median), 0.6 s of CPU a minute.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from _common import Server, bench_server, free_port, main, orchestrator, orchestrator_environment

NAME = "db.bench.invalid"
RESOLVER = "127.53.53.1"
LATE_S = 6.0
LIMIT_S = 60


class Door:
    """A TCP port before the server: shut (nobody listens), starting (57P03 to every login), or open."""

    def __init__(self, server: Server) -> None:
        parts = urlsplit(server.dsn)
        self._upstream = (parts.hostname, parts.port)
        self.port = free_port()
        self.starting = False
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await (self._refuse(reader, writer) if self.starting else self._pass_on(reader, writer))
        writer.transport.abort() if not self.starting else writer.close()
        self._tasks.discard(task)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What the postmaster says during recovery (PostgreSQL manual, "Message Formats")."""
        while True:
            (size,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            if body == struct.pack("!i", 80877103):  # SSLRequest
                writer.write(b"N")
                continue
            break
        fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
        writer.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
        await writer.drain()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, upstream = await asyncio.open_connection(*self._upstream)
        try:
            await asyncio.gather(_pump(reader, upstream), _pump(answers, writer))
        finally:
            upstream.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


class Resolver(asyncio.DatagramProtocol):
    """DNS over UDP for one name: NXDOMAIN, or 127.0.0.1 once it is known (RFC 1035)."""

    def __init__(self) -> None:
        self.known = False
        self.asked = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked += 1
        end = data.index(b"\0", 12) + 5
        is_a = struct.unpack("!H", data[end - 4 : end - 2])[0] == 1
        flags = 0x8180 if self.known else 0x8183
        answers = int(self.known and is_a)
        reply = data[:2] + struct.pack("!HHHHH", flags, 1, answers, 0, 0) + data[12:end]
        if answers:
            reply += struct.pack("!HHHIH4s", 0xC00C, 1, 1, 5, 4, socket.inet_aton("127.0.0.1"))
        self._transport.sendto(reply, addr)


@asynccontextmanager
async def waiting(dsn: str, wrap: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *wrap,
        *orchestrator("wait"),
        env=orchestrator_environment(DATABASE_URL=dsn),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    assert process.stderr is not None
    async with asyncio.timeout(LIMIT_S):
        while told := await process.stderr.readline():
            with contextlib.suppress(ValueError):
                parsed: dict[str, Any] = json.loads(told)
                if parsed["event"] == event:
                    return parsed
    raise SystemExit(f"`orchestrator wait` ended without {event}")


def cpu_s(pid: int) -> float:
    """User and system, of the threads too, in the kernel's nanoseconds where it tells them."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


class Cause:
    """One way not to be there: how it begins, and how it ends."""

    def __init__(self, name: str, dsn: str, door: Door, resolver: Resolver | None, wrap: list[str]) -> None:
        self.name, self.dsn, self._door, self._resolver, self.wrap = name, dsn, door, resolver, wrap

    async def begin(self) -> None:
        if self._resolver is not None:
            self._resolver.known = False
        self._door.starting = self.name == "starting"
        if self.name != "refused":
            await self._door.listen()

    async def end(self) -> None:
        if self._resolver is not None:
            self._resolver.known = True
        self._door.starting = False
        if self.name == "refused":
            await self._door.listen()

    async def over(self) -> None:
        await self._door.close()


async def notice_s(cause: Cause, after_s: float) -> float:
    """Seconds from the first login that could work to `database.connected`."""
    await cause.begin()
    async with waiting(cause.dsn, cause.wrap) as process:
        await line(process, "database.connect_failed")
        await asyncio.sleep(after_s + random.random())
        began = time.monotonic()
        await cause.end()
        await line(process, "database.connected")
        took = time.monotonic() - began
    await cause.over()
    return took


async def waiting_cost(cause: Cause, seconds: float) -> float:
    """CPU seconds of a minute's waiting."""
    await cause.begin()
    async with waiting(cause.dsn, cause.wrap) as process:
        await line(process, "database.connect_failed")
        await asyncio.sleep(LATE_S + 1)
        before, began = cpu_s(process.pid), time.monotonic()
        await asyncio.sleep(seconds)
        cost = (cpu_s(process.pid) - before) / (time.monotonic() - began) * 60
    await cause.over()
    return cost


@asynccontextmanager
async def resolver_of_our_own() -> AsyncIterator[tuple[Resolver, list[str]] | None]:
    """A resolver on port 53 of a loopback address, and the command that runs another one under it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        print("dns is left out: it needs root and unshare")
        yield None
        return
    loop = asyncio.get_running_loop()
    transport, resolver = await loop.create_datagram_endpoint(Resolver, local_addr=(RESOLVER, 53))
    try:
        with tempfile.TemporaryDirectory() as made:
            given = Path(made)
            (given / "resolv.conf").write_text(f"nameserver {RESOLVER}\n")
            (given / "nsswitch.conf").write_text("hosts: files dns\n")
            script = 'for f in resolv.conf nsswitch.conf; do mount --bind $0/$f /etc/$f || exit; done; exec "$@"'
            probe = ["unshare", "--mount", "sh", "-c", script, made]
            tried = await asyncio.to_thread(subprocess.run, [*probe, "true"], capture_output=True, check=False)
            if tried.returncode != 0:
                print("dns is left out: no mount namespace here")
                yield None
            else:
                yield resolver, probe
    finally:
        transport.close()


async def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    async with bench_server() as (server, _), resolver_of_our_own() as resolver:
        parts = urlsplit(server.dsn)

        def cause(name: str, host: str = "127.0.0.1") -> Cause:
            door = Door(server)
            netloc = f"{parts.username}:{parts.password}@{host}:{door.port}"
            dsn = urlunsplit(parts._replace(netloc=netloc, query="sslmode=prefer"))
            own, wrap = resolver if name == "dns" and resolver is not None else (None, [])
            return Cause(name, dsn, door, own, wrap)

        causes = [cause("refused"), cause("starting"), *([cause("dns", NAME)] if resolver is not None else [])]
        took: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for one in causes:
                took.setdefault((one.name, "early"), []).append(await notice_s(one, 0.0))
        for _ in range(max(3, options.rounds // 3)):
            # At the same time: this is waiting, not work.
            later = await asyncio.gather(*(notice_s(one, LATE_S) for one in causes))
            for one, seconds in zip(causes, later, strict=True):
                took.setdefault((one.name, "late"), []).append(seconds)
        costs = dict(
            zip(
                [one.name for one in causes],
                await asyncio.gather(*(waiting_cost(one, options.seconds) for one in causes)),
                strict=True,
            )
        )
        print(f"\nnotice and cost of waiting  (load {os.getloadavg()[0]:.1f})")
        print(f"  {'':10}{'early: median':>16}{'max':>8}{'after 6 s: median':>20}{'max':>8}{'CPU s a minute':>16}")
        for one in causes:
            early, late = took[one.name, "early"], took[one.name, "late"]
            print(
                f"  {one.name:10}{statistics.median(early) * 1000:13.0f} ms{max(early) * 1000:5.0f} ms"
                f"{statistics.median(late) * 1000:17.0f} ms{max(late) * 1000:5.0f} ms{costs[one.name]:16.2f}"
            )


main(bench)
