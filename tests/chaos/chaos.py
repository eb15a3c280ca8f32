"""Replicas on a primary with a synchronous standby, and a nemesis; then a checker of what must hold.

    python tests/chaos/chaos.py [--seconds 60] [--seed 7] [--replicas 3] [--lease 3]

The seed is printed, with the fingerprint of the plan that it stands for: the same seed gives the same acts of the
nemesis in the same order with the same pauses and victims, and the same steps of each client. Which statement an act
meets is decided by the machine. The nemesis kills, freezes, stops, cuts off and partitions replicas, drops their
connections in silence, loses answers, terminates sessions, locks rows, crashes and restarts the server, and fails over
to its standby. What is checked:

- each job that was acknowledged has ended, and none that was rolled back ever ran;
- an attempt has one outcome, and a job succeeds once;
- no job and no dedupe key runs twice at once, and no handler beyond its limit, by what the handlers themselves wrote
  down, but for runs in a process that was killed, or frozen or cut off for longer than a lease;
- no attempt of any other process is lost;
- an idempotency key stands for one job, whatever answered, and however often it is sent;
- a schedule fires once for a time, and makes no job for none;
- each event is told once to each client that follows them, and those of one job in their order;
- what was cancelled stays so.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from support.cluster import Cluster, cluster
from support.command import free_port
from support.silent_proxy import SilentProxy
from support.waiting import until

from chaos.checker import Checker
from chaos.history import Excuse, History
from chaos.load import HANDLERS, LOST, NAMES, Load
from chaos.plan import Act, Plan


@dataclass
class Replica:
    """One server, its proxy, and its process as it is now."""

    number: int
    proxy: SilentProxy
    port: int
    process: asyncio.subprocess.Process | None = None


class Chaos:
    """One run."""

    def __init__(self, *, seed: int, seconds: float, replicas: int, lease_s: float, directory: Path) -> None:
        self.plan = Plan.of(seed, seconds=seconds, replicas=replicas)
        self.seconds, self.lease_s, self.directory, self.count = seconds, lease_s, directory, replicas
        self.history = History()
        self.figures: dict[str, object] = {}
        self.replicas: list[Replica] = []
        self.cluster: Cluster

    async def run(self) -> list[str]:
        """All of it; what does not hold."""
        (self.directory / "handlers.py").write_text(HANDLERS)
        (self.directory / "runs.jsonl").touch()
        async with cluster() as self.cluster, contextlib.AsyncExitStack() as stack:
            for number in range(self.count):
                proxy = SilentProxy(self._reach)
                await proxy.start()
                stack.push_async_callback(proxy.close)
                replica = Replica(number, proxy, free_port())
                stack.push_async_callback(self._end, replica)
                self.replicas.append(replica)
                await self._start(replica)
            await self._until_ready()
            load = Load(self.history, connect=self._connect, urls=self._urls, lease_s=self.lease_s)
            await load.make_schedules()
            chance = self.plan.chance
            following = [asyncio.create_task(load.follow(number)) for number in range(2)]
            watching = [asyncio.create_task(one()) for one in (load.hint_schedules, load.watch_workers)]
            adding = [asyncio.create_task(load.add_by_sql(chance(f"sql {number}"))) for number in range(2)]
            adding += [
                asyncio.create_task(load.add_by_http(f"http-{number}", chance(f"http {number}"))) for number in range(2)
            ]
            await self._torment()
            await self._cancelled(adding)
            await self._settle(following)
            await self._cancelled([*watching, *following])
            connection = await self._connect()
            checker = Checker(self.history, connection, self.directory)
            problems = await checker.check()
            self.figures = checker.figures
            connection.terminate()
            for replica in self.replicas:
                replica.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*(replica.process.wait() for replica in self.replicas))
            return problems

    @staticmethod
    async def _cancelled(tasks: list[asyncio.Task]) -> None:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    # ------------------------------------------------------------------------------------------------------- processes

    async def _reach(self):
        return await asyncio.open_connection("127.0.0.1", self.cluster.primary.port)

    def _urls(self) -> list[str]:
        return [f"http://127.0.0.1:{replica.port}" for replica in self.replicas]

    async def _start(self, replica: Replica) -> None:
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
                "DATABASE_URL": replica.proxy.dsn(self.cluster.primary.dsn()),
                "JOBS": "handlers",
                "JOBS_LEASE": f"{self.lease_s:g}s",
                "LOG_FORMAT": "json",
                "HOST": "127.0.0.1",
                "PORT": str(replica.port),
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
        """A connection to whoever is the primary by then."""
        while True:
            with contextlib.suppress(*LOST):
                return await asyncpg.connect(self.cluster.primary.dsn(), timeout=5)
            await asyncio.sleep(0.1)

    async def _until_ready(self) -> None:
        connection = await self._connect()
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                    if await connection.fetchval("SELECT count(*) FROM orchestrator.workers") >= self.count:
                        break
                await asyncio.sleep(0.1)
        connection.terminate()

    # ---------------------------------------------------------------------------------------------------- the nemesis

    async def _torment(self) -> None:
        until = time.monotonic() + self.seconds
        for act in self.plan.acts:
            await asyncio.sleep(act.pause_s)
            if time.monotonic() > until:
                return
            self.history.actions[act.name] = self.history.actions.get(act.name, 0) + 1
            await getattr(self, f"_{act.name}")(self.replicas[act.replica], act)

    async def _kill(self, replica: Replica, _: Act) -> None:
        self.history.excuses.append(Excuse(replica.process.pid, time.time(), why="killed"))
        replica.process.kill()
        await replica.process.wait()
        await self._start(replica)

    async def _stop(self, replica: Replica, act: Act) -> None:
        replica.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                await replica.process.wait()
        except TimeoutError:
            print("a stop took more than 20 s", flush=True)
            await self._kill(replica, act)
            return
        await self._start(replica)

    async def _freeze_for(self, replica: Replica, seconds: float, why: str) -> None:
        began = time.time()
        replica.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        replica.process.send_signal(signal.SIGCONT)
        if why:
            self.history.excuses.append(Excuse(replica.process.pid, began, time.time() + self.lease_s, why))

    async def _freeze(self, replica: Replica, _: Act) -> None:
        await self._freeze_for(replica, self.lease_s * 0.4, "")

    async def _freeze_long(self, replica: Replica, act: Act) -> None:
        await self._freeze_for(replica, self.lease_s * (1.3 + act.share), "frozen")

    async def _partition(self, replica: Replica, act: Act) -> None:
        began = time.time()
        replica.proxy.part()
        await asyncio.sleep(self.lease_s * (1.3 + act.share))
        replica.proxy.join()
        self.history.excuses.append(Excuse(replica.process.pid, began, time.time() + self.lease_s, "cut off"))

    async def _drop(self, replica: Replica, _: Act) -> None:
        replica.proxy.drop()

    async def _cut(self, replica: Replica, _: Act) -> None:
        replica.proxy.cut(everything=True)

    async def _lose_replies(self, replica: Replica, _: Act) -> None:
        replica.proxy.hold_replies()
        await asyncio.sleep(0.3)
        replica.proxy.cut()

    async def _terminate(self, _: Replica, act: Act) -> None:
        connection = await self._connect()
        with contextlib.suppress(*LOST):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                f" AND application_name LIKE 'orchestrator%' AND hashint4(pid) % 100 > {int(act.share * 200) - 100}"
            )
        connection.terminate()

    async def _crash(self, _: Replica, __: Act) -> None:
        """A process of the server dies: it ends all sessions, and recovers."""
        connection = await self._connect()
        os.kill(connection.get_server_pid(), signal.SIGKILL)
        connection.terminate()
        (await self._connect()).terminate()

    async def _restart(self, _: Replica, __: Act) -> None:
        """The server is restarted in a hurry."""
        await self.cluster.primary.restart()

    async def _fail_over(self, _: Replica, __: Act) -> None:
        await self.cluster.primary.kill()
        await self._promoted()

    async def _fail_over_frozen(self, _: Replica, act: Act) -> None:
        """The primary falls silent, for up to two leases, before anybody acts."""
        self.cluster.primary.freeze()
        await asyncio.sleep(self.lease_s * 2 * act.share)
        await self._promoted()

    async def _promoted(self) -> None:
        await self.cluster.fail_over()
        await self.cluster.rebuild(synchronous=True)

    async def _lock(self, _: Replica, act: Act) -> None:
        """Somebody else's transaction holds rows of ours for longer than a lease."""
        connection = await self._connect()
        with contextlib.suppress(*LOST):
            async with connection.transaction():
                order = f"ORDER BY hashtext($1::text || id::text), {act.share} LIMIT"
                await connection.fetch(
                    f"SELECT FROM orchestrator.jobs WHERE state = 'running' {order} 3 FOR UPDATE SKIP LOCKED",
                    str(act.share),
                )
                await connection.fetch(
                    f"SELECT FROM orchestrator.workers {order} 1 FOR UPDATE SKIP LOCKED", str(act.share)
                )
                await asyncio.sleep(self.lease_s * 1.5)
        connection.terminate()

    # ------------------------------------------------------------------------------------------------------- the end

    async def _settle(self, following: list[asyncio.Task]) -> None:
        """Wait until nothing is left to do, and all of it is told."""
        connection = await self._connect()
        await connection.execute("UPDATE orchestrator.schedules SET enabled = false WHERE job = 'tick'")
        async with asyncio.timeout(120):
            while await connection.fetchval(  # noqa: ASYNC110 the database is asked
                "SELECT count(*) FROM orchestrator.jobs WHERE state IN ('queued', 'running', 'scheduled')"
                " AND name = ANY($1)",
                list(NAMES),
            ):
                await asyncio.sleep(0.2)
        last = await connection.fetchrow(
            "SELECT job_id, attempt, state FROM orchestrator.job_events WHERE kind = 'transition' AND name = ANY($1)"
            " ORDER BY id DESC LIMIT 1",
            list(NAMES),
        )
        connection.terminate()
        with contextlib.suppress(AssertionError):  # the checker says what was not told
            await until(lambda: all(told.has(tuple(last)) for told in self.history.told), 20)
        assert not any(task.done() for task in following), "a follower of the events has ended"


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--lease", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="a directory for what the run leaves behind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        chaos = Chaos(
            seed=options.seed,
            seconds=options.seconds,
            replicas=options.replicas,
            lease_s=options.lease,
            directory=options.keep or Path(directory),
        )
        print(f"seed {options.seed}, plan {chaos.plan.fingerprint}", flush=True)
        problems = await chaos.run()
    print(f"nemesis {chaos.history.actions}", flush=True)
    print(f"figures {chaos.figures}", flush=True)
    for problem in problems[:50]:
        print("BROKEN", problem, flush=True)
    print(f"{len(problems)} broken promises", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
