"""The queue beside pgqueuer (PyPI) and pg-boss (npm, tuned), on one server, in turn.

    python tests/bench/jobs_throughput.py [--rounds 5] [--count 10000]

work     no-op jobs a second with all bookkeeping, concurrency 20. Ours keeps the job, its attempt and three events.
one      enqueue, one at a time on one connection.
batch    enqueue, all in one call.
idle     from the call of enqueue to the handler's first line, on a worker that sleeps.
backlog  ours alone: `work` with a million more in the queue, without ANALYZE.

Reach: work ≥ 1.5 x pgqueuer and ≥ pg-boss; one and batch ≥ pgqueuer; idle ≤ pgqueuer; backlog ≥ 1 / 1.3.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import asyncpg
from _common import (
    HERE,
    RUN_LIMIT_S,
    Server,
    bench_server,
    clean_environment,
    main,
    orchestrator,
    orchestrator_environment,
)
from reference import NotInstallableError, installed

IDLE_COUNT, ONE_COUNT, BACKLOG = 60, 1000, 1_000_000


def told_by(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> dict:
    done = subprocess.run(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, timeout=RUN_LIMIT_S, check=True)
    return json.loads(done.stdout.decode().splitlines()[-1])


async def fresh(server: Server, side: str) -> str:
    url = await server.create()
    if side == "ours":
        command = orchestrator("migrate")
        environment = orchestrator_environment(DATABASE_URL=url)
        await asyncio.to_thread(subprocess.run, command, env=environment, check=True, stderr=subprocess.DEVNULL)
    elif side == "pgqueuer":
        from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(url)
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()
    return url


async def load_backlog(url: str) -> None:
    """A million jobs of the same handler behind those that are measured, and no ANALYZE."""
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER TABLE orchestrator.jobs SET (autovacuum_enabled = off)")
    await connection.execute(
        "INSERT INTO orchestrator.jobs (name, state, priority)"
        f" SELECT 'noop', 'queued', -1 FROM generate_series(1, {BACKLOG})"
    )
    await connection.execute("CHECKPOINT")
    await connection.close()


async def bench() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", default="work,one,batch,idle,backlog")
    options = parser.parse_args()
    sides = {"ours": None, "pgqueuer": None}
    try:
        sides["pg-boss"] = installed(HERE / "pgboss")
    except NotInstallableError as error:
        print(f"pg-boss is left out: {error}")
    counts = {"work": options.count, "one": ONE_COUNT, "batch": options.count, "idle": IDLE_COUNT}
    async with bench_server() as (server, _):
        for mode in [mode for mode in counts if mode in options.only.split(",")]:
            results: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, home in sides.items():
                    url = await fresh(server, side)
                    if home is None:
                        command = [sys.executable, str(HERE / "_queue_side.py"), side, mode, str(counts[mode])]
                    else:
                        command = ["node", "bench.mjs", url, mode, str(counts[mode])]
                    shape = {name: os.environ[name] for name in ("SHAPE", "UNBOUNDED") if name in os.environ}
                    told = await asyncio.to_thread(told_by, command, clean_environment(DATABASE_URL=url, **shape), home)
                    figure = (
                        statistics.median(told["latencies_ms"]) if mode == "idle" else counts[mode] / told["seconds"]
                    )
                    results[side].append(figure)
                    await server.drop(url)
            show(mode, results)
        if "backlog" in options.only.split(","):
            results = {"empty behind": [], "a million behind": []}
            for _ in range(options.rounds):
                for name, figures in results.items():
                    url = await fresh(server, "ours")
                    if name == "a million behind":
                        await load_backlog(url)
                    command = [sys.executable, str(HERE / "_queue_side.py"), "ours", "claims", str(options.count)]
                    told = await asyncio.to_thread(told_by, command, clean_environment(DATABASE_URL=url))
                    figures.append(options.count / told["seconds"])
                    await server.drop(url)
            show("backlog", results)


def show(mode: str, results: dict[str, list[float]]) -> None:
    unit = "ms" if mode == "idle" else "/s"
    print(f"\n{mode}  (median of {len(results[next(iter(results))])}, in turn; load {os.getloadavg()[0]:.1f})")
    first = statistics.median(next(iter(results.values())))
    for side, figures in results.items():
        median = statistics.median(figures)
        spread = f"{min(figures):,.1f} … {max(figures):,.1f}"
        print(f"  {side:20}{median:12,.1f} {unit}   ratio {first / median:5.2f}   {spread}", flush=True)


main(bench)
