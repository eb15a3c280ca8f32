"""Connections: how long each may wait, how many there may be, and that a probe always finds a place."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from orchestrator.api.app import build_app
from orchestrator.api.backend import Backend
from orchestrator.api.connections import Connection, Limits, _address
from orchestrator.api.server import listening
from orchestrator.errors import ListenError
from orchestrator.lifecycle import Lifecycle

QUICK = Limits(in_all=24, per_address=16, reserved=4, head_s=0.6, idle_s=1.2, unread_s=0.8)
PROBE = b"GET /health/live HTTP/1.1\r\nHost: probe\r\n\r\n"


class Served:
    """A server in this process, with its events."""

    def __init__(self, life, port):
        self.life, self.port, self.events = life, port, []
        life.listen(self.events.append)

    def named(self, name):
        return [event for event in self.events if event.name == name]


@pytest.fixture
def serving():
    @asynccontextmanager
    async def serve(*, limits=QUICK, host="127.0.0.1", port=0, app=None):
        loop = asyncio.get_running_loop()
        life = Lifecycle(now=loop.time, monotonic=loop.time)
        events = []
        life.listen(events.append)
        made = app or build_app(life, Backend())
        async with listening(made, life, host=host, port=port, shutdown_timeout_s=0.2, limits=limits) as bound:
            served = Served(life, bound)
            yield served

    return serve


class Peer:
    """A client that does no more than it is told; closed when the test ends."""

    made: list["Peer"] = []  # noqa: RUF012

    @classmethod
    async def to(cls, port, sent=b"", *, source="127.0.0.1", host="127.0.0.1"):
        peer = cls()
        peer.reader, peer.writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        cls.made.append(peer)
        peer.writer.write(sent)
        return peer

    async def answer(self, timeout_s=5.0):
        """The head of the next answer, and its body."""
        async with asyncio.timeout(timeout_s):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length:")
            )
            return head, await self.reader.readexactly(length)

    async def ended_after_s(self, within_s=10.0):
        """Seconds until the server closes."""
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass
        return asyncio.get_running_loop().time() - began

    def close(self):
        self.writer.transport.abort()


@pytest.fixture(autouse=True)
async def _peers_are_closed():
    yield
    while Peer.made:
        Peer.made.pop().close()
    await asyncio.sleep(0)


async def test_who_is_silent_or_slow_with_a_head_or_idle_is_closed_in_time(serving):
    async with serving() as served:
        silent = await Peer.to(served.port)
        half = await Peer.to(served.port, b"GET /health HTTP/1.1\r\nHost: x\r\n")
        idle = await Peer.to(served.port, PROBE)
        await idle.answer()

        async def trickles(peer):
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    peer.writer.write(b"X")
                    await asyncio.sleep(0.05)

        slow = await Peer.to(served.port, b"GET /health HTTP/1.1\r\nX-Slow: ")
        writing = asyncio.create_task(trickles(slow))
        ended = await asyncio.gather(*(peer.ended_after_s() for peer in (silent, half, slow, idle)))
        writing.cancel()
        assert all(s < 3 for s in ended), ended
        assert ended[3] > 1.0, "between two requests there is more time"
        assert not served.named("http.request_failed")


async def test_a_client_that_does_not_take_its_answer_is_cut_off(serving, wait_until):
    async def large(_):
        return web.Response(body=bytes(32 << 20))

    app = web.Application()
    app.router.add_get("/large", large)
    async with serving(app=app) as served:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", served.port))
        peer.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        established = 1
        await wait_until(lambda: peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != established)
        peer.close()


async def test_a_full_house_closes_who_waits_longest_and_a_probe_gets_in(serving):
    async with serving() as served:
        silent = [await Peer.to(served.port, source=f"127.0.0.{2 + n % 3}") for n in range(3 * 24)]
        for n in range(10):
            peer = await Peer.to(served.port, PROBE)
            assert (await peer.answer())[0].startswith(b"HTTP/1.1 200"), n
            peer.close()
        # Those of the first are long closed.
        assert await silent[0].ended_after_s(0.3) < 0.3
        assert len(served.named("http.connections_full")) == 1
        for peer in silent:
            peer.close()


async def test_one_address_cannot_take_the_places_of_the_others(serving):
    async with serving() as served:
        kept = [await Peer.to(served.port, PROBE, source="127.0.0.9") for _ in range(4)]
        for peer in kept:
            await peer.answer()
        many = [await Peer.to(served.port, source="127.0.0.2") for _ in range(60)]
        for peer in kept:  # idle, and older than all of these
            peer.writer.write(PROBE)
            assert (await peer.answer())[0].startswith(b"HTTP/1.1 200")
        for peer in kept + many:
            peer.close()


async def test_where_all_are_at_work_there_are_places_for_probes_and_for_nothing_else(serving):
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    life = Lifecycle(now=loop.time, monotonic=loop.time)
    app = build_app(life, Backend())

    async def work(_):
        await go_on.wait()
        return web.Response()

    app.router.add_get("/health/work", work)
    app.router._resources.insert(0, app.router._resources.pop())  # before the route that takes everything
    app.router._resource_index.clear()
    for resource_ in app.router._resources:
        app.router.index_resource(resource_)
    async with serving(app=app) as served:
        working = [
            await Peer.to(served.port, b"GET /health/work HTTP/1.1\r\nHost: x\r\n\r\n", source=f"127.0.0.{2 + n % 2}")
            for n in range(24)
        ]
        await asyncio.sleep(0.2)
        silent = [await Peer.to(served.port, source="127.0.0.3") for _ in range(8)]
        for path, status in ((b"/health", b"503"), (b"/health/live", b"200"), (b"/api/jobs", b"503"), (b"/", b"503")):
            peer = await Peer.to(served.port, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
            head, body = await peer.answer()
            assert head[9:12] == status, path
            assert b"connection: close" in head.lower()
            assert (b"too many connections" in body) == (path in {b"/api/jobs", b"/"})
            peer.close()
        go_on.set()
        for peer in working:
            assert (await peer.answer())[0].startswith(b"HTTP/1.1 200")
        for peer in working + silent:
            peer.close()
        peer = await Peer.to(served.port, PROBE)
        assert b"connection: close" not in (await peer.answer())[0].lower()
        peer.close()


async def test_out_of_descriptors_it_closes_who_waits_and_says_so_once(
    orchestrator, database_url, tmp_path, wait_until
):
    (tmp_path / "hungry.py").write_text(
        "import asyncio, os\n"
        "from orchestrator.jobs import job\n"
        "kept = []\n"
        '@job("eat")\n'
        "async def eat(ctx, payload: dict):\n"
        "    for _ in range(600):\n"
        "        try:\n"
        "            while True:\n"
        '                kept.append(os.open("/dev/null", os.O_RDONLY))\n'
        "        except OSError:\n"
        "            for _ in range(6):\n"
        "                os.close(kept.pop())\n"
        '        await ctx.progress(1, 1, "full")\n'
        "        await asyncio.sleep(0.05)\n"
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        running = orchestrator.running("serve", env={"DATABASE_URL": database_url, "JOBS": "hungry"})
        async with running as run:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await run.phase("ready")
            silent = [await Peer.to(run.port) for _ in range(8)]
            async with aiohttp.ClientSession(run.url) as session:
                async with session.post("/api/jobs", json={"name": "eat"}) as made:
                    assert made.status == 202

                async def has_eaten():
                    async with session.get("/api/jobs/1") as shown:
                        return (await shown.json())["progress"]

                await wait_until(has_eaten, timeout_s=20)
            crowd = [await Peer.to(run.port) for _ in range(60)]
            failed = await run.event("http.accept_failed", timeout_s=15)
            assert failed["hint"].startswith("Raise the limit")
            # A probe that waits a moment is answered: silent ones make room.
            for _ in range(5):
                peer = await Peer.to(run.port, PROBE)
                assert (await peer.answer(timeout_s=10))[0].startswith(b"HTTP/1.1 200")
                peer.close()
            for peer in silent + crowd:
                peer.close()
        assert len([event for event in run.events if event["event"] == "http.accept_failed"]) <= 3
        assert len(run.events) < 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_probe_that_comes_again_is_answered_with_the_same_and_never_in_the_middle_of_something(serving):
    async with serving() as served:
        heads = []
        peer = await Peer.to(served.port)
        for _ in range(3):
            peer.writer.write(PROBE)
            head, body = await peer.answer()
            heads.append(head)
            assert json.loads(body)["phase"] == "starting"

        def names(head):
            return sorted(line.split(b":")[0].lower() for line in head.splitlines()[1:] if line)

        assert heads[0].splitlines()[0] == heads[2].splitlines()[0]
        assert names(heads[0]) == names(heads[2])
        # The same bytes as the rest of another request's head, or as its body, are not a request.
        other = await Peer.to(served.port, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(PROBE))
        await asyncio.sleep(0.05)
        other.writer.write(b"\r\n")
        await asyncio.sleep(0.05)
        other.writer.write(PROBE)
        assert (await other.answer())[0][9:12] in {b"403", b"404"}
        other.writer.write(PROBE)
        assert (await other.answer())[0].startswith(b"HTTP/1.1 200")
        third = await Peer.to(served.port, PROBE + b"POST /nothing HTTP/1.1\r\nX-Header: ")
        await third.answer()
        third.writer.write(PROBE)
        assert (await third.answer())[0][9:12] in {b"403", b"404"}
        for one in (peer, other, third):
            one.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x00\x01\x02", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(300)) + b"\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_http_is_a_400_that_names_no_version_and_no_byte_of_it(serving, request_, status):
    async with serving() as served:
        peer = await Peer.to(served.port, request_)
        head, body = await peer.answer()
        assert head[9:12] == status
        for telling in (b"aiohttp", b"Python", b"xxxx", b"Got more"):
            assert telling not in head + body
        assert json.loads(body)["status"] == 400
        assert b"Server: orchestrator" in head
        await peer.ended_after_s()
        assert not [event for event in served.events if event.level == "error"]


async def test_what_is_no_path_is_a_problem_of_ours_too(serving):
    async with serving() as served:
        for target in (b"*", b"host:80", b"x"):
            for more in (b"", b"Expect: x\r\n"):
                peer = await Peer.to(served.port, b"OPTIONS %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (target, more))
                head, body = await peer.answer()
                assert head[9:10] == b"4"
                assert json.loads(body)["status"] == int(head[9:12])
                assert b"Server: orchestrator" in head


async def test_more_silent_clients_than_descriptors_take_nothing_from_anybody(orchestrator, database_url):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as run:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await run.phase("ready")
            told = len(run.events)
            for number in range(400):
                half = b"GET /health HTTP/1.1\r\nX: " if number % 2 else b""
                await Peer.to(run.port, half, source=f"127.0.0.{1 + number % 7}")
                if number % 20 == 0:
                    assert (await run.health())[0] == 200
            # The database is asked every few seconds: it is not lost.
            for _ in range(8):
                assert (await run.health())[0] == 200
                await asyncio.sleep(0.5)
            assert len(run.events) - told < 6, run.events[told:]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_nobody_is_told_to_go_on_before_it_is_known_who_they_are(orchestrator, database_url):
    env = {"DATABASE_URL": database_url, "API_TOKEN": "s3cr3t-token-to-go-on"}
    ask = b"POST /api/jobs HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        peer = await Peer.to(run.port, ask + b"Content-Length: 2\r\n\r\n")
        assert (await peer.answer())[0][9:12] == b"401"
        peer.close()
        peer = await Peer.to(
            run.port, ask + b"Authorization: Bearer s3cr3t-token-to-go-on\r\nContent-Length: 2\r\n\r\n"
        )
        assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.writer.write(b"{}")
        assert (await peer.answer())[0][9:12] == b"422"
        peer.close()


async def test_a_body_does_not_count_as_the_next_requests_head(orchestrator, database_url):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as run:
        await run.phase("ready")
        body = b'{"name": "' + b"x" * 400_000 + b'"}'
        ask = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        ask += b"Content-Length: %d\r\n\r\n"
        peer = await Peer.to(run.port)
        for _ in range(3):
            peer.writer.write(ask % len(body))
            for at in range(0, len(body), 50_000):
                peer.writer.write(body[at : at + 50_000])
                await asyncio.sleep(0)
            assert (await peer.answer())[0][9:12] == b"422"


async def test_host_may_be_every_address_of_both_families(serving):
    async with serving(host="::") as served:
        for host, source in (("127.0.0.1", "127.0.0.1"), ("::1", "::1")):
            peer = await Peer.to(served.port, PROBE, host=host, source=source)
            assert (await peer.answer())[0].startswith(b"HTTP/1.1 200")
            peer.close()
    async with serving(host="localhost") as served:
        peer = await Peer.to(served.port, PROBE)
        assert (await peer.answer())[0].startswith(b"HTTP/1.1 200")
        peer.close()


async def test_an_address_that_cannot_be_bound_is_told_with_what_to_do(serving, monkeypatch):
    async with serving() as served:
        with pytest.raises(ListenError, match="in use"):
            async with serving(port=served.port):
                pass
    with pytest.raises(ListenError, match="cannot be resolved"):
        async with serving(host="no-such-name.invalid"):
            pass
    with pytest.raises(ListenError, match="assign"):
        async with serving(host="192.0.2.1"):
            pass

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", refused)  # as root every port may be bound
    with pytest.raises(ListenError, match="port 80 is privileged") as told:
        async with serving(port=80):
            pass
    assert "NET_BIND_SERVICE" in told.value.remedy


def test_an_address_is_a_host_whatever_it_has_to_choose_from():
    assert _address(("10.0.0.1", 5)) == _address(("::ffff:10.0.0.1", 5, 0, 0)) == "10.0.0.1"
    assert _address(("2001:db8::1", 5, 0, 0)) == _address(("2001:db8:0:0:ffff::9", 6, 0, 0))
    assert _address(("fe80::1%eth0", 5, 0, 2)) == "fe80::/64"
    assert _address(None) == _address(()) == _address("") == ""


def test_what_is_relied_on_in_aiohttps_protocol_is_there():
    assert {"_request_count", "_close", "_force_close"} <= set(web.RequestHandler.__slots__)
    assert issubclass(Connection, web.RequestHandler)
