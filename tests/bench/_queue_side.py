"""One side of the queue benchmarks, in a process of its own: `_queue_side.py <ours|pgqueuer> <mode> <count>`.

DATABASE_URL names a database that is prepared. Prints JSON: seconds of the measured part, or latencies.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[2]))
URL = os.environ["DATABASE_URL"]
CONCURRENCY = 20
NAMES = int(os.environ.get("NAMES", "1"))  # handlers among which the jobs are spread
OLD_SNAPSHOT = "OLD_SNAPSHOT" in os.environ  # a session holds one, so that dead rows stay
PAUSE_S = 0.03
ALONE_S = 1.0


class Ours:
    """Our worker as the server runs it, but for the thread."""

    def __init__(self) -> None:
        from orchestrator import dsn
        from orchestrator.jobs import job
        from orchestrator.jobs.lease import Lease
        from orchestrator.jobs.parameters import WorkerParameters
        from orchestrator.jobs.registry import DECLARED
        from orchestrator.jobs.worker import StopTimes, Worker

        self.started: asyncio.Future[float] | None = None
        self.done = 0

        async def noop(ctx, payload):
            self.done += 1
            if self.started is not None:
                self.started.set_result(time.perf_counter())
                self.started = None

        for number in range(NAMES):
            job("noop" + (str(number) if number else ""))(noop)
        self.until, self.times = asyncio.Event(), StopTimes.of(5.0)
        parameters = WorkerParameters(
            dsn.parse(URL),
            DECLARED,
            worker_id="bench",
            concurrency=CONCURRENCY,
            lease_s=30,
            emit=lambda *told, **facts: print(told, facts, file=sys.stderr),
            redact=lambda text: text,
        )
        self.worker, loop = Worker(parameters), asyncio.get_running_loop()
        self.lease = Lease(
            parameters,
            count=lambda: len(self.worker.runs),
            changed=lambda: loop.call_soon_threadsafe(self.worker.compare_soon),
        )

    async def one(self, connection, n):
        from orchestrator.jobs import enqueue

        await enqueue(connection, "noop", {"n": n})

    async def batch(self, connection, count):
        from orchestrator.jobs.queue import NewJob, enqueue_many

        await enqueue_many(
            connection, [NewJob("noop" + (str(n % NAMES) if n % NAMES else ""), {"n": n}) for n in range(count)]
        )

    async def work(self):
        self.lease.start()
        await self.worker.run(self.until, lambda: self.times)
        await asyncio.to_thread(self.lease.end)

    def stop(self):
        self.until.set()

    left = "SELECT count(*) FROM orchestrator.jobs WHERE state IN ('queued', 'running') AND name LIKE 'noop%'"


class PgQueuer:
    """pgqueuer as its own benchmark runs it: a batch of ten with a budget of twenty, the least that it allows."""

    def __init__(self) -> None:
        self.started: asyncio.Future[float] | None = None
        self.done = 0
        self.manager = None

    async def prepare(self, connection):
        from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
        from pgqueuer.queries import Queries

        self.queries = Queries(AsyncpgDriver(connection))
        self.connection = connection

    async def one(self, _, n):
        await self.queries.enqueue("noop", json.dumps({"n": n}).encode())

    async def batch(self, _, count):
        payloads = [json.dumps({"n": n}).encode() for n in range(count)]
        await self.queries.enqueue(["noop"] * count, payloads, [0] * count)

    async def work(self):
        from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
        from pgqueuer.qm import QueueManager
        from pgqueuer.queries import Queries

        connection = await asyncpg.connect(URL)
        self.manager = QueueManager(Queries(AsyncpgDriver(connection)))

        @self.manager.entrypoint("noop")
        async def noop(job):
            self.done += 1
            if self.started is not None:
                self.started.set_result(time.perf_counter())
                self.started = None

        shape = {"batch_size": CONCURRENCY // 2, "max_concurrent_tasks": CONCURRENCY}
        if os.environ.get("UNBOUNDED"):
            shape = {"batch_size": CONCURRENCY}
        await self.manager.run(**shape)
        await connection.close()

    def stop(self):
        self.manager.shutdown.set()

    left = "SELECT count(*) FROM pgqueuer WHERE entrypoint = 'noop'"


async def main() -> None:
    name, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    side = Ours() if name == "ours" else PgQueuer()
    connection = await asyncpg.connect(URL)
    if isinstance(side, PgQueuer):
        await side.prepare(connection)
    told = await MODES[mode](side, connection, count)
    await connection.close()
    print(json.dumps(told))


async def one(side, connection, count):
    began = time.perf_counter()
    for n in range(count):
        await side.one(connection, n)
    return {"seconds": time.perf_counter() - began}


async def batch(side, connection, count):
    began = time.perf_counter()
    await side.batch(connection, count)
    return {"seconds": time.perf_counter() - began}


async def work(side, connection, count):
    other = await asyncpg.connect(URL)
    if OLD_SNAPSHOT:
        holder = await asyncpg.connect(URL)
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    await side.batch(connection, count)
    began = time.perf_counter()
    task = asyncio.create_task(side.work())
    while side.done < count:  # noqa: ASYNC110 nothing of the side's own is added to what it does
        await asyncio.sleep(0.005)
    while await other.fetchval(side.left):  # noqa: ASYNC110 the database is asked
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - began
    side.stop()
    await task
    await other.close()
    return {"seconds": seconds}


async def claims(side, connection, count):
    """As `work`, to the end of the measured jobs: what stands behind them is worked on as well, and not counted."""
    other = await asyncpg.connect(URL)
    if OLD_SNAPSHOT:
        holder = await asyncpg.connect(URL)
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    await side.batch(connection, count)
    began = time.perf_counter()
    task = asyncio.create_task(side.work())
    while side.done < count:  # noqa: ASYNC110 nothing of the side's own is added to what it does
        await asyncio.sleep(0.002)
    seconds = time.perf_counter() - began
    side.stop()
    await task
    await other.close()
    return {"seconds": seconds}


async def idle(side, connection, count):
    task = asyncio.create_task(side.work())
    await asyncio.sleep(ALONE_S)
    latencies = []
    for n in range(count):
        side.started = started = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        await side.one(connection, n)
        latencies.append((await started - began) * 1000)
        await asyncio.sleep(PAUSE_S)
    side.stop()
    await task
    return {"latencies_ms": latencies}


MODES = {"one": one, "batch": batch, "work": work, "idle": idle, "claims": claims}
asyncio.run(main())
