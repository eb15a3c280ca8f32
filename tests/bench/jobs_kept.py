"""What a queue costs as jobs are kept: lists by each filter, /api/queues, counting, pruning, bytes a job.

    python tests/bench/jobs_kept.py [--counts 10000,100000,1000000]

Each count has a database of its own: of ten jobs nine have succeeded and one waits; twenty names, no ANALYZE. Times are
processor time of the server's process for the session, so what else the machine does shows little; the last column is
the largest count against the smallest.
"""

import argparse
import asyncio
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from _common import bench_server, main, orchestrator, orchestrator_environment

from orchestrator.jobs.builtin import _BY_INDEX, _PRUNE_JOBS
from orchestrator.jobs.figures import count_jobs, read_sample
from orchestrator.jobs.listing import read_jobs
from orchestrator.jobs.store import JobFilter

ROUNDS = 20
FUTURE = datetime.now(UTC) + timedelta(hours=1)
LISTS = {
    "all": JobFilter(),
    "unknown queue": JobFilter(queue="unknown"),
    "rare queue": JobFilter(queue="rare"),
    "common queue": JobFilter(queue="default"),
    "unknown name": JobFilter(name="unknown"),
    "rare name": JobFilter(name="rare"),
    "common name": JobFilter(name="name3"),
    "rare state": JobFilter(state="failed"),
    "absent state": JobFilter(state="scheduled"),
    "common state": JobFilter(state="succeeded"),
    "common name, rare queue": JobFilter(name="name3", queue="rare"),
    "since tomorrow": JobFilter(since=FUTURE),
    "since tomorrow, common name": JobFilter(since=FUTURE, name="name3"),
    "unknown schedule": JobFilter(schedule="unknown"),
}
FILL = """
INSERT INTO orchestrator.jobs
    (name, queue, state, worker, attempt, created_at, started_at, finished_at, payload, output)
SELECT CASE WHEN n = $1 / 3 THEN 'rare' ELSE 'name' || n % 20 END, CASE WHEN n = $1 / 2 THEN 'rare' ELSE 'default' END,
    CASE WHEN n = $1 / 4 + 1 THEN 'failed' WHEN n % 10 = 0 THEN 'queued' ELSE 'succeeded' END, 'worker-0123456789ab', 1,
    at, at, CASE WHEN n % 10 > 0 THEN at END, '{"n": 1, "to": "somebody@example.com"}', '{"ok": true}'
FROM generate_series(1, $1::int) n CROSS JOIN LATERAL (SELECT now() - ($1 - n) * interval '10 milliseconds') t(at)
"""
SIZE = "SELECT pg_total_relation_size('orchestrator.jobs') / (SELECT count(*) FROM orchestrator.jobs)"


def processor_ms(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


async def measure(url: str, count: int) -> dict[str, float]:
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER TABLE orchestrator.jobs SET (autovacuum_enabled = off)")
    await connection.execute(FILL, count)
    pid = connection.get_server_pid()
    costs = {"bytes a job": float(await connection.fetchval(SIZE))}

    async def cost(name, work, rounds=ROUNDS):
        await work()
        before = processor_ms(pid)
        for _ in range(rounds):
            await work()
        costs[name] = (processor_ms(pid) - before) / rounds

    async def prune():
        async with connection.transaction():
            await connection.execute(_BY_INDEX)
            await connection.execute(_PRUNE_JOBS, FUTURE, 1000)

    for name, which in LISTS.items():
        await cost(f"list: {name}, ms", lambda which=which: read_jobs(connection, which, before=None, limit=50))
    await connection.execute("SELECT orchestrator.count_jobs(true, 1000)")
    await cost("/api/queues, ms", lambda: read_sample(connection))
    await cost("jobs counted anew, ms", lambda: count_jobs(connection.fetch, recount=True), 1)
    await cost("prune 1,000, ms", prune, 3)
    await connection.close()
    return costs


async def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="10000,100000,1000000")
    counts = [int(one) for one in parser.parse_args().counts.split(",")]
    found = []
    async with bench_server() as (server, _):
        for count in counts:
            url = await server.create()
            environment = orchestrator_environment(DATABASE_URL=url)
            await asyncio.to_thread(
                subprocess.run, orchestrator("migrate"), env=environment, check=True, stderr=subprocess.DEVNULL
            )
            found.append(await measure(url, count))
            await server.drop(url)
    print(f"{'jobs kept':38}" + "".join(f"{count:>12,}" for count in counts) + f"{'growth':>10}")
    for name in found[0]:
        row = [one[name] for one in found]
        print(f"{name:38}" + "".join(f"{value:12,.2f}" for value in row) + f"{row[-1] / max(row[0], 0.01):10.2f}")


main(bench)
