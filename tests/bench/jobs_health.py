"""`/health` requests a second, beside a bare aiohttp handler: while the service is idle, and while it works.

    python tests/bench/jobs_health.py [--rounds 5] [--rate 1000]

Ten connections, one load process. While it works, no-op jobs come in at that rate. Reach: 0.8 of bare. Load, database
and service share this machine's cores, so the bare handler is measured while the jobs run, too. Beside the requests a
second stands the processor time of 1,000 requests (user and system, of the whole server process): that ratio stays
true on a machine that others use as well. While it works it holds the jobs, too.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import asyncpg
from _common import (
    HERE,
    bench_server,
    clean_environment,
    free_port,
    main,
    orchestrator,
    orchestrator_environment,
)

SECONDS, CONNECTIONS, LIMIT_S = 3.0, 10, 60
HANDLERS = 'from orchestrator.jobs import job\n\n@job("noop")\nasync def noop(ctx, payload):\n    pass\n'


async def answers(port: int) -> None:
    deadline = time.monotonic() + LIMIT_S

    def ask() -> bool:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response,
        ):
            return response.status == 200
        return False

    while not await asyncio.to_thread(ask):
        if time.monotonic() > deadline:
            raise SystemExit("the service did not get READY")
        await asyncio.sleep(0.05)


def processor_s(pid: int) -> float:
    """User and system time of a process, all of its threads (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def enqueue_at(url: str, rate: int, until: asyncio.Event) -> int:
    """Rows by plain SQL, fifty at a time: what is measured is the service, not this process."""
    connection = await asyncpg.connect(url)
    made, began = 0, time.monotonic()
    while not until.is_set():
        await connection.execute(
            "INSERT INTO orchestrator.jobs (name, state) SELECT 'noop', 'queued' FROM generate_series(1, 50);"
            "SELECT pg_notify('orchestrator_jobs', '')"
        )
        made += 50
        await asyncio.sleep(max(0.0, began + made / rate - time.monotonic()))
    await connection.close()
    return made


async def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=1000)
    options = parser.parse_args()
    async with bench_server() as (server, scratch):
        url, port, bare_port = await server.create(), free_port(), free_port()
        await asyncio.to_thread(Path(scratch, "handlers.py").write_text, HANDLERS)
        environment = orchestrator_environment(DATABASE_URL=url, HOST="127.0.0.1", PORT=str(port), JOBS="handlers")
        quiet = {"stderr": asyncio.subprocess.DEVNULL, "stdout": asyncio.subprocess.DEVNULL}
        service = await asyncio.create_subprocess_exec(*orchestrator("serve"), env=environment, cwd=scratch, **quiet)
        bare_command = [sys.executable, str(HERE / "_bare_aiohttp.py"), str(bare_port)]
        bare = await asyncio.create_subprocess_exec(*bare_command, env=clean_environment(), **quiet)
        try:
            await answers(port)
            await answers(bare_port)

            async def load(process: asyncio.subprocess.Process, at: int) -> tuple[float, float]:
                """Requests a second, and milliseconds of processor time for 1,000 of them."""
                command = [sys.executable, str(HERE / "_http_load.py"), str(at), str(CONNECTIONS), str(SECONDS)]
                before = processor_s(process.pid)
                done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, check=True)
                told = json.loads(done.stdout)
                used_s = processor_s(process.pid) - before
                return told["requests"] / told["seconds"], used_s * 1e6 / told["requests"]

            results: dict[str, list[tuple[float, float]]] = {
                "bare": [],
                "ours": [],
                "bare, while ours works": [],
                "ours, working": [],
            }
            worked = []
            for _ in range(options.rounds):
                results["bare"].append(await load(bare, bare_port))
                results["ours"].append(await load(service, port))
                until = asyncio.Event()
                began = time.monotonic()
                enqueuing = asyncio.create_task(enqueue_at(url, options.rate, until))
                results["bare, while ours works"].append(await load(bare, bare_port))
                results["ours, working"].append(await load(service, port))
                until.set()
                made = await enqueuing
                worked.append(made / (time.monotonic() - began))
            print(f"\n/health  (median of {options.rounds}, in turn; load {os.getloadavg()[0]:.1f})")
            medians = {
                name: [statistics.median(one) for one in zip(*rows, strict=True)] for name, rows in results.items()
            }
            for name, (rate, cost_ms) in medians.items():
                bare_rate, bare_cost_ms = medians["bare, while ours works" if "work" in name else "bare"]
                print(
                    f"  {name:24}{rate:10,.0f} /s   of bare {rate / bare_rate:5.2f}"
                    f"{cost_ms:10,.0f} ms CPU per 1,000   of bare {cost_ms / bare_cost_ms:5.2f}"
                )
            print(f"  jobs enqueued meanwhile: {statistics.median(worked):,.0f} /s")
        finally:
            for process in (service, bare):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


main(bench)
