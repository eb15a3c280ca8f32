"""Replicas, and a nemesis that kills, freezes, cuts off and crashes what it can; then a checker of what must hold.

    python tests/chaos/chaos.py [--seconds 60] [--seed 7] [--replicas 3] [--lease 3]

The seed is printed: the same one does the same things at the same times, as far as processes allow. What is checked:

- each job that was acknowledged has ended, and none that was rolled back ever ran;
- an attempt has one outcome, and a job succeeds once;
- no job runs twice at once, and no handler beyond its limit, by what the handlers themselves wrote down, but for runs
  in a process that was killed, frozen or cut off for longer than a lease;
- no attempt of any other process is lost;
- what was cancelled stays so, and has ended.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import itertools

from support.silent_proxy import SilentProxy

from orchestrator.embedded.server import embedded_postgres
from orchestrator.jobs.errors import JobStateError
from orchestrator.jobs.queue import cancel

HANDLERS = """
import asyncio, json, os, time
from orchestrator.jobs import job

def told(what, ctx):
    line = [time.time(), what, ctx.name, ctx.job_id, ctx.attempt, os.getpid()]
    with open("runs.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

async def recorded(ctx, payload):
    told("begin", ctx)
    try:
        await asyncio.sleep(payload.get("seconds", 0))
    finally:
        told("end", ctx)

@job("work", retries=0)
async def work(ctx, payload: dict):
    await recorded(ctx, payload)

@job("limited", concurrency=2)
async def limited(ctx, payload: dict):
    await recorded(ctx, payload)

@job("threaded")
async def threaded(ctx, payload: dict):
    told("begin", ctx)
    await asyncio.to_thread(time.sleep, payload.get("seconds", 0))
    told("end", ctx)
"""
LIMITS = {"limited": 2}
_CANCELLED_SHARE = 0.05


@dataclass
class Excuse:
    """A time in which a process could not keep its lease."""

    pid: int
    since: float
    until: float = float("inf")
    why: str = ""


@dataclass
class Replica:
    """One server, its proxy, and its process as it is now."""

    number: int
    proxy: SilentProxy
    process: asyncio.subprocess.Process | None = None
    is_frozen: bool = False


@dataclass
class History:
    """What happened, for the checker."""

    acknowledged: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)
    excuses: list[Excuse] = field(default_factory=list)
    workers: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)


class Chaos:
    """One run."""

    def __init__(self, *, seed: int, seconds: float, replicas: int, lease_s: float, directory: Path) -> None:
        self.random, self.seconds, self.lease_s = random.Random(seed), seconds, lease_s
        self.directory, self.count = directory, replicas
        self.history = History()
        self.replicas: list[Replica] = []
        self.dsn = ""

    async def run(self) -> list[str]:
        """All of it; what does not hold."""
        (self.directory / "handlers.py").write_text(HANDLERS)
        (self.directory / "runs.jsonl").touch()
        settings = {"max_connections": "200"}
        async with embedded_postgres(self.directory / "pg", lambda *_, **__: None, settings=settings) as server:
            self.dsn = server.dsn
            async with contextlib.AsyncExitStack() as stack:
                for number in range(self.count):
                    proxy = SilentProxy(lambda: self._reach(server.dsn))
                    await proxy.start()
                    stack.push_async_callback(proxy.close)
                    replica = Replica(number, proxy)
                    stack.push_async_callback(self._end, replica)
                    self.replicas.append(replica)
                    await self._start(replica)
                await self._until_ready()
                tasks = [asyncio.create_task(one()) for one in (self._clients, self._clients, self._watch_workers)]
                await self._torment()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._settle()
                problems = await self._check()
                for replica in self.replicas:
                    replica.process.send_signal(signal.SIGTERM)
                await asyncio.gather(*(replica.process.wait() for replica in self.replicas))
                return problems

    # ------------------------------------------------------------------------------------------------------- processes

    @staticmethod
    async def _reach(dsn: str):
        from urllib.parse import parse_qs, urlsplit

        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        host = parts.hostname or query.get("host", ["127.0.0.1"])[0]
        port = parts.port or int(query.get("port", ["5432"])[0])
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _start(self, replica: Replica) -> None:
        from support.command import free_port

        clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        log = (self.directory / f"replica-{replica.number}.log").open("ab")
        replica.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", "serve"),
            stdout=log,
            stderr=log,
            cwd=self.directory,
            env=clean
            | {
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "DATABASE_URL": replica.proxy.dsn(self.dsn),
                "JOBS": "handlers",
                "JOBS_LEASE": f"{self.lease_s:g}s",
                "LOG_FORMAT": "json",
                "HOST": "127.0.0.1",
                "PORT": str(free_port()),
                "SHUTDOWN_TIMEOUT": "4s",
            },
        )
        log.close()

    async def _end(self, replica: Replica) -> None:
        if replica.process is not None and replica.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                replica.process.kill()
            await replica.process.wait()

    async def _connect(self):
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                return await asyncpg.connect(self.dsn, timeout=5)
            await asyncio.sleep(0.1)

    async def _until_ready(self) -> None:
        connection = await self._connect()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(asyncpg.UndefinedTableError):
                    if await connection.fetchval("SELECT count(*) FROM orchestrator.workers") >= self.count:
                        break
                await asyncio.sleep(0.1)
        await connection.close()

    # ---------------------------------------------------------------------------------------------------- what goes on

    async def _watch_workers(self) -> None:
        connection = await self._connect()
        while True:
            try:
                rows = await connection.fetch("SELECT id, pid FROM orchestrator.workers")
                self.history.workers |= {row["id"]: row["pid"] for row in rows}
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await self._connect()
            await asyncio.sleep(0.2)

    async def _clients(self) -> None:
        """Add jobs, some in transactions that are rolled back, some with keys; cancel a few."""
        chance = random.Random(self.random.random())
        connection = await self._connect()
        add = (
            "INSERT INTO orchestrator.jobs (name, state, payload) VALUES ($1, 'queued', jsonb_build_object('seconds',"
            " $2::float8)) RETURNING id"
        )
        while True:
            try:
                name = chance.choice(["work", "work", "limited", "threaded"])
                seconds = chance.choice([0.0, 0.01, 0.3, self.lease_s * 1.2])
                if name == "limited":
                    seconds = min(seconds, 0.3)
                is_kept = chance.random() > 0.1
                transaction = connection.transaction()
                await transaction.start()
                ids = [await connection.fetchval(add, name, seconds) for _ in range(chance.randint(1, 5))]
                if is_kept:
                    await connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
                    await transaction.commit()
                    self.history.acknowledged |= set(ids)
                    if chance.random() < _CANCELLED_SHARE:
                        with contextlib.suppress(JobStateError):
                            if await cancel(connection, ids[0]) == "cancelled":
                                self.history.cancelled.add(ids[0])
                else:
                    await transaction.rollback()
                    self.history.rolled_back |= set(ids)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()
                connection = await self._connect()
            await asyncio.sleep(chance.random() * 0.2)

    # ---------------------------------------------------------------------------------------------------- the nemesis

    async def _torment(self) -> None:
        until = time.monotonic() + self.seconds
        actions = [self._kill, self._freeze, self._freeze_long, self._stop, self._drop, self._cut, self._lose_replies]
        actions += [self._terminate, self._crash, self._lock]
        while time.monotonic() < until:
            await asyncio.sleep(self.random.uniform(0.3, 2.0))
            action = self.random.choice(actions)
            name = action.__name__.strip("_")
            self.history.actions[name] = self.history.actions.get(name, 0) + 1
            await action(self.random.choice(self.replicas))

    async def _kill(self, replica: Replica) -> None:
        self.history.excuses.append(Excuse(replica.process.pid, time.time(), why="killed"))
        replica.process.kill()
        await replica.process.wait()
        await self._start(replica)

    async def _stop(self, replica: Replica) -> None:
        replica.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                await replica.process.wait()
        except TimeoutError:
            print("a stop took more than 20 s", flush=True)
            await self._kill(replica)
            return
        await self._start(replica)

    async def _freeze_for(self, replica: Replica, seconds: float, why: str) -> None:
        began = time.time()
        replica.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        replica.process.send_signal(signal.SIGCONT)
        if why:
            self.history.excuses.append(Excuse(replica.process.pid, began, time.time() + self.lease_s, why))

    async def _freeze(self, replica: Replica) -> None:
        await self._freeze_for(replica, self.lease_s * 0.4, "")

    async def _freeze_long(self, replica: Replica) -> None:
        await self._freeze_for(replica, self.lease_s * 1.6, "frozen")

    async def _drop(self, replica: Replica) -> None:
        replica.proxy.drop()

    async def _cut(self, replica: Replica) -> None:
        replica.proxy.cut(everything=True)

    async def _lose_replies(self, replica: Replica) -> None:
        replica.proxy.hold_replies()
        await asyncio.sleep(0.3)
        replica.proxy.cut()

    async def _terminate(self, _: Replica) -> None:
        connection = await self._connect()
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND application_name LIKE 'orchestrator%' AND random() < 0.5"
            )
        connection.terminate()

    async def _crash(self, _: Replica) -> None:
        connection = await self._connect()
        os.kill(connection.get_server_pid(), signal.SIGKILL)
        connection.terminate()
        connection = await self._connect()
        connection.terminate()

    async def _lock(self, _: Replica) -> None:
        """Somebody else's transaction holds rows of ours for longer than a lease."""
        connection = await self._connect()
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with connection.transaction():
                await connection.fetch(
                    "SELECT FROM orchestrator.jobs WHERE state = 'running' ORDER BY random() LIMIT 3"
                    " FOR UPDATE SKIP LOCKED"
                )
                await connection.fetch(
                    "SELECT FROM orchestrator.workers ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED"
                )
                await asyncio.sleep(self.lease_s * 1.5)
        connection.terminate()

    # ---------------------------------------------------------------------------------------------------- the checker

    async def _settle(self) -> None:
        connection = await self._connect()
        async with asyncio.timeout(120):
            while await connection.fetchval(  # noqa: ASYNC110 the database is asked
                "SELECT count(*) FROM orchestrator.jobs WHERE state IN ('queued', 'running', 'scheduled')"
                " AND name = ANY($1)",
                ["work", "limited", "threaded"],
            ):
                await asyncio.sleep(0.2)
        await connection.close()

    def _is_excused(self, pid: int, since: float, until: float) -> bool:
        return any(one.pid == pid and one.since <= until and one.until >= since for one in self.history.excuses)

    async def _check(self) -> list[str]:
        connection = await self._connect()
        problems: list[str] = []
        history = self.history
        states = {row["id"]: row["state"] for row in await connection.fetch("SELECT id, state FROM orchestrator.jobs")}
        problems += [f"acknowledged job {one} is gone" for one in history.acknowledged - states.keys()]
        runs = [json.loads(line) for line in (self.directory / "runs.jsonl").read_text().splitlines()]
        ran = {line[3] for line in runs}
        # After a crash a number may be drawn again, by a job that was added and kept.
        problems += [f"job {one} was rolled back, and ran" for one in (history.rolled_back - states.keys()) & ran]
        for row in await connection.fetch(
            "SELECT job_id, count(*) FROM orchestrator.job_events WHERE state = 'succeeded'"
            " GROUP BY 1 HAVING count(*) > 1"
        ):
            problems.append(f"job {row[0]} succeeded {row[1]} times")
        for row in await connection.fetch(
            "SELECT name, queue, state, sum(n) AS n FROM ("
            " SELECT name, queue, state, count(*) AS n FROM orchestrator.jobs GROUP BY 1, 2, 3"
            " UNION ALL SELECT name, queue, state, -count FROM orchestrator.job_figures"
            ") both_ways GROUP BY 1, 2, 3 HAVING sum(n) <> 0"
        ):
            problems.append(f"{row['name']} {row['queue']} {row['state']}: {row['n']} more than are counted")
        problems += [
            f"job {one} was cancelled, and is {states.get(one)}"
            for one in history.cancelled
            if states.get(one) != "cancelled"
        ]
        problems += [f"job {one} was cancelled before it began, and ran" for one in history.cancelled & ran]
        lost = await connection.fetch(
            "SELECT job_id, attempt, worker, extract(epoch FROM started_at)::float8 AS since,"
            " extract(epoch FROM finished_at)::float8 AS until FROM orchestrator.attempts WHERE outcome = 'lost'"
        )
        for row in lost:
            pid = history.workers.get(row["worker"], -1)
            if not self._is_excused(pid, row["since"], row["until"]):
                problems.append(f"attempt {row['attempt']} of job {row['job_id']} was lost, of pid {pid}, which lived")
        problems += self._overlaps(runs)
        outcomes = dict(
            await connection.fetch("SELECT outcome, count(*) FROM orchestrator.attempts GROUP BY 1 ORDER BY 1")
        )
        print(f"acknowledged {len(history.acknowledged)}, runs {len(runs) // 2}, outcomes {outcomes}", flush=True)
        print(f"nemesis {history.actions}; lost {len(lost)}", flush=True)
        await connection.close()
        return problems

    def _overlaps(self, runs: list[list]) -> list[str]:
        problems = []
        killed = {one.pid: one.since for one in self.history.excuses if one.why == "killed"}
        spans: dict[tuple, list] = {}
        for at, what, name, job_id, attempt, pid in sorted(runs, key=lambda line: line[0]):
            if what == "begin":
                spans.setdefault((name, job_id, attempt, pid), []).append([at, None])
            else:
                spans[name, job_id, attempt, pid][-1][1] = at
        flat = []
        for (name, job_id, attempt, pid), times in spans.items():
            for since, until in times:
                end = until or killed.get(pid, since)
                flat.append((since, end, name, job_id, attempt, pid))
        by_job: dict[int, list] = {}
        for span in flat:
            by_job.setdefault(span[3], []).append(span)
        for job_id, mine in by_job.items():
            mine.sort()
            for one, other in itertools.pairwise(mine):
                if other[0] < one[1] and not self._is_excused(one[5], one[0], one[1]):
                    problems.append(f"job {job_id} ran twice at once: {one} and {other}")
        for name, limit in LIMITS.items():
            # Ends before begins, where they are of the same moment.
            mine = [span for span in flat if span[2] == name and not self._is_excused(span[5], span[0], span[1])]
            moments = sorted([(span[0], 1, 1) for span in mine] + [(span[1], 0, -1) for span in mine])
            running = most = 0
            for _, _, step in moments:
                running += step
                most = max(most, running)
            if most > limit:
                problems.append(f"{most} of {name} ran at once, and {limit} may")
        return problems


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="a directory for what the run leaves behind")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        chaos = Chaos(
            seed=options.seed,
            seconds=options.seconds,
            replicas=options.replicas,
            lease_s=options.lease,
            directory=options.keep or Path(directory),
        )
        problems = await chaos.run()
    for problem in problems[:50]:
        print("BROKEN", problem, flush=True)
    print(f"{len(problems)} broken promises", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
