"""A fuzzer on raw sockets: whatever bytes come, no answer is a 500, and nothing is left behind when they are gone.

    FUZZ_REQUESTS=2000000 FUZZ_SEED=7 pytest tests/test_api_fuzz.py

searches longer, and repeats a search. What is sent is requests that are nearly right: paths, queries, headers and
bodies of the API with something wrong in them; the last one on each connection may be framed wrongly, too, or have
bytes that are changed, cut, doubled or moved.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import aiohttp

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "50000"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
PEERS = 32
PIPELINED = 10
QUIET_S = 0.1
PATIENCE_S = 15.0
TOKEN = "s3cr3t-token-of-the-fuzzer"

JOBS = """
import asyncio, gc
from orchestrator.jobs import job


@job("anything")
async def anything(ctx, payload: dict):
    pass


@job("census")
async def census(ctx, payload: dict):
    gc.collect()
    return {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
"""

METHODS = [
    b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH",
]  # fmt: skip
ODD_METHODS = [
    b"TRACE", b"CONNECT", b"get", b"", b"G\x00T",
]  # fmt: skip
WORDS = [
    b"1", b"0", b"-1", b"9" * 19, b"9" * 5000, b"%00", b"%ff", b"%", b"%0a", b"..", b"%2e%2e", b"anything",
    b"nightly", b"x" * 3000, b"\xc3\xa9", b"\xff", b"a b", b"*", b"null", b"true", b"1e3", b"NaN", b"[]", b"{}", b"'",
    b'"', b";", b"$1", b"\\", b"",
]  # fmt: skip
HEADERS = [
    b"Host: localhost", b"Host: evil.example", b"Host: [::1", b"Host:", b"Content-Type: application/json",
    b"Content-Type: text/plain", b"Content-Type: \xff", b"Content-Type: a/b; charset=x", b"Content-Encoding: gzip",
    b"Content-Encoding: br", b"Origin: http://[::1", b"Origin: null", b"Origin: http://localhost",
    b"Sec-Fetch-Site: cross-site", b"Authorization: Bearer", b"Authorization: Bearer \xff\xfe",
    b"Authorization: Basic " + b"x" * 3000, b"Authorization: Bearer " + TOKEN.encode() + b"x", b"Idempotency-Key: a",
    b"Idempotency-Key: " + b"k" * 300, b"Idempotency-Key: a\r\nIdempotency-Key: b", b"Last-Event-ID: 1",
    b"Last-Event-ID: " + b"9" * 4000, b"Accept: application/json", b"Accept: text/html", b"Accept: \xff",
    b"If-None-Match: *", b"Range: bytes=0-", b"Cookie: " + b"c=" * 1000, b"Access-Control-Request-Method: POST",
    b"X-Forwarded-For: 1.2.3.4", b"TE: trailers", b"Trailer: x", b"HTTP2-Settings: x",
]  # fmt: skip
# These decide where a request ends, or whether there is one at all.
FRAMING = [
    b"Host: localhost\r\nHost: localhost", b"Content-Encoding: \x01", b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: 99999999999999999999", b"Content-Length: 1\r\nContent-Length: 2", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: x", b"Expect: 100-continue", b"Expect: x",
    b"Upgrade: websocket", b"Connection: upgrade\r\nUpgrade: h2c", b"Connection: close", b"Connection: keep-alive",
    b"Connection: \x00", b"X" * 9000 + b": y", b"X: " + b"y" * 9000, b": nameless", b"no colon", b" folded: x",
]  # fmt: skip
VALUES = [
    b"null", b"true", b"0", b"-1", b"1e308", b"1e400", b"1E-9999", b"9223372036854775808", b"1" * 400, b'""', b'"x"',
    b'"\\u0000"', b'"\\ud800"', b'"\xff"', b"[]", b"{}", b"[[[[[[]]]]]]", b'{"a": 1, "a": 2}', b"[" * 70 + b"]" * 70,
    b'"' + b"x" * 5000 + b'"', b'"2026-01-01T00:00:00Z"', b'"0001-01-01T00:00:00+14:00"', b'"* * * * *"',
    b'"0 0 31 2 *"', b'"Europe/Berlin"', b'"anything"', b"NaN",
]  # fmt: skip
FIELDS = [
    b"name", b"payload", b"queue", b"run_at", b"delay_s", b"priority", b"dedupe_key", b"idempotency_key",
    b"max_attempts", b"timeout_s", b"jobs", b"job", b"cron", b"timezone", b"enabled", b"jobType", b"serverId",
    b"schedule", b"\\u0000", b"unknown",
]  # fmt: skip


PLAIN = re.compile(rb"[\x20-\x7e]{0,8000}")


class Requests:
    """Requests that are nearly right, for one server."""

    def __init__(self, operations, chance):
        self._operations, self._chance = operations, chance

    def target(self):
        """A method and a path, which often go together."""
        chance = self._chance
        method, path = chance.choice(self._operations)
        while b"{}" in path:
            path = path.replace(b"{}", chance.choice(WORDS), 1)
        if chance.random() < 0.3:
            names = [
                b"state",
                b"name",
                b"queue",
                b"schedule",
                b"since",
                b"cursor",
                b"limit",
                b"status",
                b"jobName",
                b"x",
            ]
            given = [chance.choice(names) + b"=" + chance.choice(WORDS) for _ in range(chance.randint(1, 4))]
            path += b"?" + b"&".join(given)
        return method if chance.random() < 0.8 else chance.choice(METHODS), path.replace(b" ", b"+") or b"/"

    def body(self):
        chance = self._chance
        if chance.random() < 0.2:
            return chance.choice(VALUES)
        if chance.random() < 0.15:
            return b'{"name": "anything", "payload": {"x": %b}}' % chance.choice(VALUES)
        pairs = [b'"name": "anything"'] if chance.random() < 0.5 else []
        pairs += [b'"%b": %b' % (chance.choice(FIELDS), chance.choice(VALUES)) for _ in range(chance.randint(0, 4))]
        return b"{" + b", ".join(pairs) + b"}"

    def one(self, *, last):
        """A request; where it ends is plain, unless it is the last one."""
        chance = self._chance
        method, path = self.target()
        while not last and path.split(b"?")[0].endswith(b"/events"):
            method, path = self.target()  # a stream would keep the others waiting
        body = self.body() if method in {b"POST", b"PUT"} or chance.random() < 0.1 else b""
        headers = [b"Host: localhost"]
        if chance.random() < 0.6:  # the others are strangers
            headers.append(b"Authorization: Bearer " + TOKEN.encode())
        if body:
            headers.append(b"Content-Type: application/json")
            if chance.random() < 0.2:
                cut = chance.randint(0, len(body))
                parts = [part for part in (body[:cut], body[cut:]) if part]
                body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
                headers.append(b"Transfer-Encoding: chunked")
            else:
                headers.append(b"Content-Length: %d" % len(body))
        for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
            headers.insert(chance.randint(0, len(headers)), chance.choice(HEADERS))
        version = b"HTTP/1.1"
        if last:
            method = method if chance.random() < 0.8 else chance.choice(ODD_METHODS)
            version = (
                version if chance.random() < 0.8 else chance.choice([b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"x"])
            )
            for _ in range(chance.choice([0, 1, 1, 2])):
                headers.insert(chance.randint(0, len(headers)), chance.choice(FRAMING))
        else:
            path = quote(path[:7000], safe="/?&=%*+:;'$[]{}").encode()
            headers = list({one.split(b":")[0]: one for one in headers if PLAIN.fullmatch(one)}.values())
        head = b"\r\n".join([method + b" " + path + b" " + version, *headers, b"", b""])
        return self.bent(head + body) if last and chance.random() < 0.5 else head + body

    def bent(self, whole):
        chance = self._chance
        at, other = sorted((chance.randint(0, len(whole)), chance.randint(0, len(whole))))
        match chance.randint(0, 4):
            case 0:
                return whole[:at]
            case 1:
                return whole[:at] + bytes([chance.randint(0, 255)]) + whole[at + 1 :]
            case 2:
                return whole[:at] + whole[other:]
            case 3:
                return whole[:other] + whole[at:]
            case _:
                return whole[:at] + chance.choice([b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\r\n\r\n"]) + whole[at:]


STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


async def send(port, requests, statuses, broken):
    """Some requests on one connection, and the statuses of what comes until it ends, or nothing comes any more."""
    sent = [requests.one(last=number == PIPELINED) for number in range(1, PIPELINED + 1)]
    answer = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return len(sent)
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(b"".join(sent[:-1]))
            is_answered = False
            while True:
                async with asyncio.timeout(QUIET_S if is_answered else PATIENCE_S):
                    piece = await reader.read(1 << 16)
                if not piece:
                    break
                answer += piece
                # All but the last are whole requests, and are answered; of the last one, nobody knows.
                if not is_answered and len(STATUS.findall(answer)) >= PIPELINED - 1:
                    is_answered = True
                    writer.write(sent[-1])
    finally:
        writer.transport.abort()
    for status in STATUS.findall(answer):
        statuses[int(status)] += 1
        if int(status) >= 500 and int(status) != 503:
            broken.append((status, sent))
    return len(sent)


def figures(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    rss_kb = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
    return {"rss_mb": rss_kb / 1024, "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir()))}


async def test_no_bytes_make_a_500_and_nothing_grows(orchestrator, database_url, tmp_path, known, wait_until):
    known.secrets.add(TOKEN)
    (tmp_path / "fuzzed_jobs.py").write_text(JOBS)
    env = {"DATABASE_URL": database_url, "JOBS": "fuzzed_jobs", "API_TOKEN": TOKEN}
    chance = random.Random(SEED)
    statuses, broken, took_s = Counter(), [], []
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with aiohttp.ClientSession(run.url, headers={"Authorization": f"Bearer {TOKEN}"}) as session:

            async def census():
                """Tasks and objects of the server, when it is quiet again."""
                async with session.post("/api/jobs", json={"name": "census"}) as response:
                    job = (await response.json())["id"]

                async def counted():
                    async with session.get(f"/api/jobs/{job}") as response:
                        return (await response.json()).get("output")

                return await wait_until(counted, timeout_s=60) | figures(run.pid)

            async with session.get("/openapi.json") as response:
                document = await response.json()
            operations = [
                (method.upper().encode(), re.sub(r"\{\w+\}", "{}", path).encode())
                for path, methods in document["paths"].items()
                for method in methods
            ]
            operations += [
                (b"GET", path) for path in (b"/page/page.js", b"/nothing", b"//", b"*", b"http://x/api/jobs")
            ]

            async def fuzz(count):
                left = count

                async def peer(seed):
                    nonlocal left
                    requests = Requests(operations, random.Random(seed))
                    while left > 0:
                        sent = await send(run.port, requests, statuses, broken)
                        left -= sent

                async def probe():
                    while left > 0:
                        began = time.monotonic()
                        async with session.get("/health", headers={"Connection": "close"}) as answer:
                            assert answer.status == 200
                        took_s.append(time.monotonic() - began)
                        await asyncio.sleep(0.02)

                await asyncio.gather(probe(), *(peer(chance.randrange(1 << 30)) for _ in range(PEERS)))

            began = time.monotonic()
            await fuzz(REQUESTS // 4)  # what is loaded and kept once is no growth
            await asyncio.sleep(0)
            before = await census()
            await fuzz(REQUESTS - REQUESTS // 4)

            async def is_quiet():
                return figures(run.pid)["descriptors"] <= before["descriptors"] + 8

            await wait_until(is_quiet, timeout_s=60, what="the descriptors of the fuzzer's connections are closed")
            after = await census()
        print(
            json.dumps({"seed": SEED, "seconds": round(time.monotonic() - began, 1), "before": before, "after": after})
        )
        print(f"statuses {dict(sorted(statuses.items()))}, /health p99 {sorted(took_s)[int(len(took_s) * 0.99)]:.3f} s")
        assert not broken, [(status, b"".join(sent)[:6000]) for status, sent in broken[:1]]
        assert statuses[200] > REQUESTS // 50, "the fuzzer says nothing that is understood"
        assert sum(statuses.values()) > REQUESTS // 2
        assert after["tasks"] <= before["tasks"] + 8
        assert after["rss_mb"] < before["rss_mb"] * 1.3 + 20
        assert after["objects"] < before["objects"] * 1.3 + 20_000
    assert not [event for event in run.events if event["level"] == "error"]
    told = Counter(event["event"] for event in run.events if event["event"].startswith(("http.", "api.token")))
    assert all(count < 60 for count in told.values()), told
