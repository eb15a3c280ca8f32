"""Bounded streams: what a slow client gets, and what it costs; and the stream of a start."""

import asyncio
import json
import signal
import socket
import time

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from orchestrator.api import health, sse
from orchestrator.lifecycle import Lifecycle, MigrationItem, Phase


async def events(response: aiohttp.ClientResponse):
    """(event, data) of a stream, until it ends."""
    event = ""
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            event = line[7:]
        elif line.startswith("data: "):
            yield event, json.loads(line[6:])


async def test_who_reads_too_slowly_is_told_and_dropped_and_others_miss_nothing():
    hub = sse.Hub(limit=3, most=10)
    with hub.subscribe() as slow, hub.subscribe() as quick:
        for number in range(4):
            hub.publish(b"%d\n" % number)
            assert await quick.take(timeout_s=1) == b"%d\n" % number
        assert b"event: dropped" in await slow.take(timeout_s=1)
        assert await slow.take(timeout_s=1) is None
        hub.publish(b"4\n")
        assert await quick.take(timeout_s=1) == b"4\n"
        assert await slow.take(timeout_s=1) is None


async def test_of_snapshots_a_slow_client_gets_the_newest():
    hub = sse.Hub(limit=1, most=10, keep="newest")
    with hub.subscribe() as slow:
        for number in range(1000):
            hub.publish(b"%d" % number)
        assert await slow.take(timeout_s=1) == b"999"
        assert await slow.take(timeout_s=0.01) == b""


async def test_a_hub_has_a_limit_and_its_end_reaches_everybody():
    hub = sse.Hub(limit=3, most=1)
    with hub.subscribe() as only:
        with pytest.raises(sse.HubFullError), hub.subscribe():
            pass
        hub.close(b"bye")
        assert await only.take(timeout_s=1) == b"bye"
        assert await only.take(timeout_s=1) is None
    assert len(hub) == 0
    with pytest.raises(sse.HubFullError), hub.subscribe():
        pass


async def test_a_client_that_takes_nothing_is_cut_off(monkeypatch, wait_until):
    monkeypatch.setattr(sse, "_WRITE_TIMEOUT_S", 0.3)
    hub = sse.Hub(limit=4, most=10, keep="newest")

    async def watch(request):
        with hub.subscribe() as subscriber:
            return await sse.respond(request, subscriber)

    app = web.Application()
    app.router.add_get("/", watch)
    async with TestServer(app) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)  # noqa: FBT003 the standard library's signature
            await asyncio.get_running_loop().sock_connect(client, (server.host, server.port))
            await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_until(lambda: len(hub) == 1)

            def is_cut():
                hub.publish(bytes(1 << 20))
                return len(hub) == 0

            await wait_until(is_cut)


def test_ten_thousand_migrations_are_a_small_snapshot():
    life = Lifecycle(now=time.time, monotonic=time.monotonic)
    life.migrations.total = 10_000
    names = [f"{n:05d}_some_change" for n in range(10_000)]
    life.migrations.items = [MigrationItem("user", name, "applied", n / 1000) for n, name in enumerate(names[:9000])]
    life.migrations.items += [MigrationItem("user", name, "pending") for name in names[9000:]]
    life.migrations.current = "09000_some_change"
    body = health.snapshot(life)
    items = body["items"]
    assert (items["total"], items["counts"]) == (10_000, {"applied": 9000, "running": 1, "pending": 999})
    assert len(items["rows"]) == 200
    assert items["left_out_before"] == 8850
    assert items["rows"][150]["state"] == "running"
    assert items["slowest"][0] == {"source": "user", "name": "08999_some_change", "duration_s": 8.999}
    assert len(msgspec.json.encode(body, enc_hook=str)) < 30_000
    life.migrations.items = life.migrations.items[:9000]
    assert health.snapshot(life)["items"]["rows"][-1]["name"] == "08999_some_change"


async def test_the_stream_tells_a_start_from_second_0_and_ends_with_the_process(orchestrator, tcp_proxy, database_url):
    await tcp_proxy.refuse()
    async with orchestrator.running("serve", env={"DATABASE_URL": tcp_proxy.dsn(database_url)}) as run:
        await run.event("database.connect_failed")
        async with aiohttp.ClientSession() as session, session.get(run.url + "/health/events") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            phases = []
            async for event, body in events(response):
                if body["phase"] not in phases:
                    phases.append(body["phase"])
                if body["phase"] == "connecting" and phases == ["connecting"]:
                    check = body["checks"]["database"]
                    assert (check["cause"], check["retry_in_s"]) == ("refused", 5.0)
                    assert check["next_try_at"] > check["checked_at"]
                    await tcp_proxy.accept()
                if body["phase"] == "ready" and run.returncode is None and event == "state":
                    stopped_at = time.monotonic()
                    run.send_signal(signal.SIGTERM)
            # An open stream does not hold the process: aiohttp would wait for it for SHUTDOWN_TIMEOUT / 2.
            assert await run.wait() == 0
            assert time.monotonic() - stopped_at < 4
            assert (event, body["phase"]) == ("end", str(Phase.STOPPING))
            assert [phase for phase in phases if phase in {"connecting", "ready", "stopping"}] == [
                "connecting", "ready", "stopping",
            ]  # fmt: skip


async def test_a_failed_start_tells_why_before_the_stream_closes(orchestrator, database_url, admin, tmp_path):
    (tmp_path / "d" / "meta").mkdir(parents=True)
    (tmp_path / "d" / "0000_a.sql").write_text("SELECT pg_advisory_lock(7);\n--> statement-breakpoint\nSELECT 1/0;")
    journal = {"entries": [{"idx": 0, "when": 1716000000000, "tag": "0000_a", "breakpoints": True}]}
    (tmp_path / "d" / "meta" / "_journal.json").write_text(json.dumps(journal))
    async with admin.connection(database_url) as holder:
        await holder.execute("SELECT pg_advisory_lock(7)")
        env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "d")}
        async with orchestrator.running("serve", env=env) as run:
            await run.phase("migrating")
            async with aiohttp.ClientSession() as session, session.get(run.url + "/health/events") as response:
                seen = []
                async for event, body in events(response):
                    seen.append((event, body))
                    if body["migrations"]["current"] == "0000_a":
                        await holder.execute("SELECT pg_advisory_unlock_all()")
            assert await run.wait() == 70
    event, body = seen[-1]
    assert (event, body["phase"], body["status"]) == ("end", "failed", "failed")
    failure = body["failure"]
    assert (failure["sqlstate"], failure["line"], failure["exit_code"]) == ("22012", 3, 70)
    assert failure["excerpt"].startswith("SELECT 1/0;")
    assert [row["name"] for row in body["items"]["rows"]][-1] == "0000_a"


async def test_one_snapshot_can_be_asked_for_where_streams_fail(orchestrator):
    async with orchestrator.running("serve", env={"DATABASE_URL": "postgresql://u:pw@127.0.0.1:1/db"}) as run:
        await run.event("database.connect_failed")
        answer = await run.get("/health/events", headers={"Accept": "application/json"})
        assert (answer.status, answer.body["phase"], answer.body["items"]["rows"]) == (200, "connecting", [])
