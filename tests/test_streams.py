"""Standard output and error that are closed, full, stuck or gone: nothing that is done changes, and no exit code."""

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from support.command import free_port
from support.waiting import until

from orchestrator import logs
from orchestrator.log_lines import DescriptorSink, LineWriter
from orchestrator.shortening import shortened

ROOT = Path(__file__).parent.parent
COMMAND = f"{sys.executable} -m orchestrator"
STATES = {
    "closed": "<&- >&- 2>&-",
    "full": ">/dev/full 2>&1",
    "readers gone": "> >(exec true) 2> >(exec true)",
}


def environment(**more):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "LOG_FORMAT": "json", **more}


async def shell(line, env, *, cwd):
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", line),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        *("wait", "migrate", "status --json", "plan", "lint --all", "verify", "backup", "config"),
        *("new add_things", "repair accept", "help start", "token", "--help", "--version", "status --nope", "", "nope"),
        "healthcheck --port 1",
    ],
)
async def test_a_command_ends_alike_whoever_reads_what_it_says(arguments, database_url, write, tmp_path):
    folder = write(tmp_path / "drizzle", ("0000_one", "CREATE TABLE one (id integer PRIMARY KEY)"))
    env = environment(DATABASE_URL=database_url, MIGRATIONS_DIR=str(folder), BACKUP_DIR=str(tmp_path / "backups"))
    expected, _, said = await shell(f"{COMMAND} {arguments}", env, cwd=tmp_path)
    for state, redirection in STATES.items():
        shutil.rmtree(folder)
        write(folder, ("0000_one", "CREATE TABLE one (id integer PRIMARY KEY)"))  # as it was before `new`
        code, _, left = await shell(f"{COMMAND} {arguments} {redirection}", env, cwd=tmp_path)
        assert code == expected, f"{state}: {left} instead of {said}"
        assert "Traceback" not in left, f"{state}: {left}"


async def test_a_result_that_is_lost_is_said(tmp_path):
    code, _, told = await shell(f"{COMMAND} help start >/dev/full", environment(), cwd=tmp_path)
    assert (code, told) == (0, "orchestrator: what was written to standard output is lost: No space left on device\n")
    assert (await shell(f"{COMMAND} help start | true", environment(), cwd=tmp_path))[2] == ""


async def test_what_an_encoding_lacks_is_written_all_the_same(tmp_path):
    env = environment(PYTHONIOENCODING="ascii:strict")
    code, out, err = await shell(f"{COMMAND} help start", env, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "\\u2192" in out or "\\u2013" in out or out.isascii()


@pytest.mark.parametrize("state", STATES)
async def test_a_server_serves_and_stops_alike_whoever_reads_its_log(state, database_url, tmp_path):
    port = free_port()
    env = environment(DATABASE_URL=database_url, PORT=str(port), HOST="127.0.0.1")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"exec {COMMAND} serve {STATES[state]}"), stdin=subprocess.DEVNULL, env=env, cwd=tmp_path
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def is_ready():
                assert process.returncode is None, process.returncode
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/health") as response:
                        return response.status == 200

            await until(is_ready, 30, "ready")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


FLOOD = """
import asyncio, logging
from orchestrator.jobs import job

@job("flood")
async def flood(ctx, payload) -> None:
    for _ in range(6_000):
        logging.getLogger("flood").warning("x" * 1000)
        await asyncio.sleep(0)

@job("prints")
async def prints(ctx, payload) -> None:
    for _ in range(200):
        print("y" * 1000, flush=True)
"""


async def test_a_reader_that_is_stuck_stops_neither_health_nor_a_stop(database_url, tmp_path):
    (tmp_path / "flooding.py").write_text(FLOOD)
    port, (out, out_end), (err, err_end) = free_port(), os.pipe(), os.pipe()
    env = environment(DATABASE_URL=database_url, PORT=str(port), HOST="127.0.0.1", JOBS="flooding")
    env["PYTHONPATH"] += f":{tmp_path}"
    process = await asyncio.create_subprocess_exec(
        *COMMAND.split(), "serve", stdin=subprocess.DEVNULL, stdout=out_end, stderr=err_end, env=env, cwd=tmp_path
    )
    os.close(out_end)
    os.close(err_end)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def health():
                assert process.returncode is None, os.read(err, 65536).decode()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/health", timeout=aiohttp.ClientTimeout(10)) as response:
                        return response.status == 200

            async def state(job_id):
                async with session.get(f"/api/jobs/{job_id}") as response:
                    return (await response.json())["state"]

            await until(health, 30, "ready")

            async def made(name):
                async with session.post("/api/jobs", json={"name": name}) as response:
                    assert response.status == 202, await response.text()
                    return (await response.json())["id"]

            took, flooding = [], await made("flood")
            while await state(flooding) != "succeeded":
                began = time.monotonic()
                assert await health()
                took.append(time.monotonic() - began)
                process.send_signal(signal.SIGUSR1)  # a line of the main loop's
            printing = await made("prints")
            for _ in range(300):
                began = time.monotonic()
                process.send_signal(signal.SIGUSR1)
                assert await health()
                took.append(time.monotonic() - began)
            assert await state(printing) == "running"  # its print waits for a reader, and holds up nobody else
            slowest = sorted(took)[int(len(took) * 0.99) - 1]
            assert slowest < 0.25, slowest
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        # The default time to stop in is 15 s, of which jobs have a share: the one that prints is stuck.
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert time.monotonic() - began < 15
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(out)
        os.close(err)


async def test_what_found_no_room_is_counted_and_said_as_soon_as_the_reader_reads_again():
    reader, writer = os.pipe()
    lines = []
    said = []
    log = LineWriter(DescriptorSink(writer), said.append)
    for number in range(6000):
        log.write(f"{number:06} {'x' * 1000}")
    assert not log.flush(0.1)

    def read():
        left = b""
        while data := os.read(reader, 65536):
            *whole, left = (left + data).split(b"\n")
            lines.extend(whole)

    reading = asyncio.create_task(asyncio.to_thread(read))
    await until(lambda: said, 20, "the count")
    assert await asyncio.to_thread(log.flush, 20)
    os.close(writer)
    await reading
    os.close(reader)
    assert len(lines) + sum(said) == 6000
    numbers = [int(line[:6]) for line in lines]
    assert numbers == sorted(numbers)
    assert all(len(line) == 1007 for line in lines)


def test_a_line_that_was_torn_is_ended_before_the_next(tmp_path):
    path = tmp_path / "log"
    # A file that may grow to 100 bytes stands for a disk that is full, and then not.
    script = f"""
import os, resource, signal
from orchestrator.log_lines import DescriptorSink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sink = DescriptorSink(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
told = [sink.put("a" * 60), sink.put("b" * 60), sink.put("c" * 60)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(told, sink.put("d" * 60))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "[True, False, False] True\n"
    assert path.read_text() == f"{'a' * 60}\n{'b' * 39}\n{'d' * 60}\n"


def test_a_process_that_was_forked_writes_its_own_lines():
    script = """
import logging, os, sys
from orchestrator import logs
logs.configure(level="info", log_format="json", stream=sys.stderr, version="1", phase=str)
logging.getLogger("x").info("parent")
logs.flush(5)
if (child := os.fork()) == 0:
    logging.getLogger("x").info("child")
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=20
    )
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["parent", "child"]


def test_what_python_itself_would_print_is_a_line_of_the_log():
    script = """
import gc, sys, threading
from orchestrator import logs
logs.configure(level="info", log_format="json", stream=sys.stderr, version="1", phase=str, secrets=["s3cr3t-word"])

class Broken:
    def __del__(self):
        raise ValueError("s3cr3t-word")

def fails():
    raise KeyError("s3cr3t-word")

Broken()
thread = threading.Thread(target=fails, name="a thread")
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True, timeout=20
    )
    assert "s3cr3t" not in done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["exception"][0]["exc_type"] for event in events] == ["ValueError", "KeyError"]


# --------------------------------------------------------------------------------------------------- how long a line is


def lines_of(facts, log_format="json"):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        before = logging.getLogger().handlers[:]
        logs.configure(level="info", log_format=log_format, stream=stream, version="1", phase=str)
        try:
            logs.structlog.stdlib.get_logger("x").error("things.failed", **facts)
            logs.flush()
        finally:
            logging.getLogger().handlers[:] = before
    with os.fdopen(reader, "rb") as written:
        return written.read().splitlines(keepends=True)


@pytest.mark.parametrize(
    "facts",
    [
        {"names": [f"name {number}" for number in range(50_000)]},
        {"found": [{"name": f"n{i}", "diff": "-a\n+b\n" * 500, "all": list(range(1000))} for i in range(300)]},
        {"error": "é" * 100_000},
        {"error": "\u202e" * 20_000},
        {f"fact_{number}": number for number in range(5000)},
        {"deep": {str(i): {str(j): {str(k): "x" * 50 for k in range(30)} for j in range(30)} for i in range(30)}},
    ],
    ids=["list", "objects", "text", "steering", "facts", "deep"],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_is_at_most_16_kb_long_and_keeps_the_remedy(facts, log_format):
    remedy = "Do this, and then that. " * 30
    lines = lines_of({**facts, "remedy": remedy, "exit_code": 70}, log_format)
    assert all(len(line) <= 16 * 1024 for line in lines)
    if log_format == "json":
        (line,) = lines
        event = json.loads(line)
        assert (event["event"], event["remedy"]) == ("things.failed", remedy)
        names = list(event)
        containers = [names.index(name) for name, value in event.items() if isinstance(value, (list, dict))]
        assert all(names.index("remedy") < at for at in containers)
        if "names" in facts:
            more = event["names"][-1]
            assert more == f"… and {50_000 - len(event['names']) + 1} more"
    else:
        assert remedy.split(". ", maxsplit=1)[0] in b"".join(lines).decode()


def test_what_fits_is_left_as_it_is():
    names = [f"name {number}" for number in range(500)]
    (line,) = lines_of({"names": names})
    assert json.loads(line)["names"] == names


def test_whatever_the_facts_are_they_fit():
    chance = random.Random(11)

    def value(depth):
        kind = chance.randrange(4 if depth else 2)
        if kind == 0:
            return chance.choice("aé\n") * int(chance.expovariate(1 / 2000))
        if kind == 1:
            return chance.randrange(10**9)
        if kind == 2:
            return [value(depth - 1) for _ in range(int(chance.expovariate(1 / 20)))]
        return {f"k{i}": value(depth - 1) for i in range(int(chance.expovariate(1 / 10)))}

    def size(facts):
        return len(json.dumps(facts, ensure_ascii=False).encode())

    for _ in range(300):
        facts = {"event": "e", **{f"f{i}": value(3) for i in range(chance.randrange(1, 30))}, "remedy": "Do it."}
        for limit in (16383, 2000, 300):
            found = shortened(facts, limit, size=size, keep={"event"})
            assert size(found) <= limit
            assert (found["event"], found["remedy"]) == ("e", "Do it.")


GREEDY = """
import asyncio, os
from orchestrator.jobs import job

@job("greedy")
async def greedy(ctx, payload) -> None:
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    await asyncio.sleep(6)
    for one in taken:
        os.close(one)
"""


async def test_a_process_without_descriptors_says_so_a_few_times_and_heals(orchestrator, database_url, tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    env = {"DATABASE_URL": database_url, "JOBS": "greedy", "PYTHONPATH": f"{ROOT}:{tmp_path}", "JOBS_LEASE": "60s"}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with orchestrator.running("serve", env=env) as run:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await run.phase("ready")
            async with aiohttp.ClientSession(run.url) as session:
                async with session.post("/api/jobs", json={"name": "greedy"}) as response:
                    job_id = (await response.json())["id"]

                # Each asks for a descriptor that the process has not got.
                asking = [asyncio.create_task(run.health()) for _ in range(40)]
                await asyncio.wait(asking, timeout=5)
                for task in asking:
                    task.cancel()

                async def is_done():
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(f"/api/jobs/{job_id}") as response:
                            return (await response.json()).get("state") == "succeeded"

                await until(is_done, 40, "the job has ended")
            await run.until_health(200)
            assert len(run.events) < 120, [event["event"] for event in run.events]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
