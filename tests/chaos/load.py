"""What clients do during a run: add jobs by SQL and by HTTP, cancel some, follow the events, fire schedules."""

import asyncio
import contextlib
import json
import random
from collections.abc import Callable

import aiohttp
import asyncpg

from chaos.history import History, Told
from orchestrator.jobs.errors import JobStateError
from orchestrator.jobs.queue import cancel

HANDLERS = """
import asyncio, json, os, time
from orchestrator.jobs import job

def told(what, ctx, payload):
    line = [time.time(), what, ctx.name, ctx.job_id, ctx.attempt, os.getpid(), payload.get("key")]
    with open("runs.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

async def recorded(ctx, payload):
    told("begin", ctx, payload)
    try:
        await asyncio.sleep(payload.get("seconds", 0))
    finally:
        told("end", ctx, payload)

@job("work", retries=0)
async def work(ctx, payload: dict):
    await recorded(ctx, payload)

@job("limited", concurrency=2)
async def limited(ctx, payload: dict):
    await recorded(ctx, payload)

@job("keyed")
async def keyed(ctx, payload: dict):
    await recorded(ctx, payload)

@job("tick")
async def tick(ctx, payload: dict):
    await recorded(ctx, payload)

@job("threaded")
async def threaded(ctx, payload: dict):
    told("begin", ctx, payload)
    await asyncio.to_thread(time.sleep, payload.get("seconds", 0))
    told("end", ctx, payload)
"""
NAMES = ("work", "limited", "keyed", "tick", "threaded")
LIMITS = {"limited": 2}
SCHEDULES = 3
_CANCELLED_SHARE = 0.05
_KEYS = 8
LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)

# A minute is two seconds for the schedules, and each firing is noted with the time that it fired for.
_SCHEDULES = """
CREATE TABLE public.fired (name text, slot timestamptz, job_id bigint, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION public.note_fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.fired (name, slot, job_id) VALUES (NEW.name, OLD.next_run_at, NEW.last_job_id);
    RETURN NULL;
END $$;
CREATE TRIGGER noted AFTER UPDATE OF next_run_at ON orchestrator.schedules
    FOR EACH ROW WHEN (OLD.next_run_at IS DISTINCT FROM NEW.next_run_at) EXECUTE FUNCTION public.note_fire();
DO $$ BEGIN EXECUTE format('CREATE OR REPLACE FUNCTION orchestrator.clock() RETURNS timestamptz LANGUAGE sql VOLATILE'
    ' RETURN %L::timestamptz + (pg_catalog.clock_timestamp() - %L::timestamptz) * 30', now(), now()); END $$;
INSERT INTO orchestrator.schedules (name, job, cron, source, next_run_at)
    SELECT 'every ' || n, 'tick', '* * * * *', 'api', date_trunc('minute', orchestrator.clock()) + interval '1 minute'
    FROM generate_series(1, $COUNT$) n;
"""


class Load:
    """The clients of one run. `connect` leads to the primary, as soon as there is one; `urls` are the replicas' own."""

    def __init__(self, history: History, *, connect: Callable, urls: Callable[[], list[str]], lease_s: float) -> None:
        self._history, self._connect, self._urls, self._lease_s = history, connect, urls, lease_s

    async def make_schedules(self) -> None:
        connection = await self._connect()
        await connection.execute(_SCHEDULES.replace("$COUNT$", str(SCHEDULES)))
        connection.terminate()

    async def add_by_sql(self, chance: random.Random) -> None:
        """Add jobs, some in transactions that are rolled back; cancel a few."""
        connection = await self._connect()
        add = (
            "WITH made AS (INSERT INTO orchestrator.jobs (name, state, payload)"
            " VALUES ($1, 'queued', jsonb_build_object('seconds', $2::float8)) RETURNING id, name, queue, state),"
            # Jobs are counted by their events.
            " told AS (INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)"
            " SELECT id, 0, name, queue, state FROM made) SELECT id FROM made"
        )
        while True:
            name = chance.choice(["work", "work", "limited", "threaded"])
            seconds = chance.choice([0.0, 0.01, 0.3, self._lease_s * 1.2])
            if name == "limited":
                seconds = min(seconds, 0.3)
            is_kept, is_cancelled = chance.random() > 0.1, chance.random() < _CANCELLED_SHARE
            count, pause_s = chance.randint(1, 5), chance.random() * 0.2
            try:
                transaction = connection.transaction()
                await transaction.start()
                ids = [await connection.fetchval(add, name, seconds) for _ in range(count)]
                if is_kept:
                    await connection.execute("SELECT pg_notify('orchestrator_jobs', '')")
                    await transaction.commit()
                    self._history.acknowledged |= set(ids)
                    if is_cancelled:
                        with contextlib.suppress(JobStateError):
                            if await cancel(connection, ids[0]) == "cancelled":
                                self._history.cancelled.add(ids[0])
                else:
                    await transaction.rollback()
                    self._history.rolled_back |= set(ids)
            except LOST:
                connection.terminate()
                connection = await self._connect()
            await asyncio.sleep(pause_s)

    async def add_by_http(self, who: str, chance: random.Random) -> None:
        """Add jobs with keys, again and again until acknowledged; now and then twice at once, or once more later."""
        timeout = aiohttp.ClientTimeout(total=6)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            number = 0
            while True:
                number += 1
                name, dedupe = chance.choice([("keyed", f"d{chance.randrange(_KEYS)}"), ("work", None)])
                seconds, key = chance.choice([0.0, 0.05, 0.5, self._lease_s * 0.6]), f"{who}-{number}"
                payload = {"seconds": seconds, "key": dedupe}
                body = {"name": name, "payload": payload, **({"dedupe_key": dedupe} if dedupe else {})}
                how, pause_s = chance.random(), chance.random() * 0.25
                await asyncio.gather(*(self._post(session, key, body) for _ in range(2 if how < 0.2 else 1)))
                if 0.2 < how < 0.4:
                    await asyncio.sleep(pause_s)
                    await self._post(session, key, body)
                await asyncio.sleep(pause_s)

    async def _post(self, session: aiohttp.ClientSession, key: str, body: dict) -> None:
        while True:
            url = random.choice(self._urls())
            try:
                async with session.post(f"{url}/api/jobs", json=body, headers={"Idempotency-Key": key}) as answer:
                    if answer.status == 202:
                        made = int((await answer.json())["id"])
                        break
                    if answer.status not in {429, 503}:
                        self._history.key_changes.append(f"{key}: {answer.status} {await answer.text()}")
                        return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
        self._history.acknowledged.add(made)
        before = self._history.keys.setdefault(key, (made, body.get("dedupe_key")))
        if before[0] != made:
            self._history.key_changes.append(f"{key} was job {before[0]}, and then {made}")

    async def follow(self, offset: int) -> None:
        """Follow the events, from replica to replica, with the place of the last one."""
        told = Told()
        self._history.told.append(told)
        last_id: str | None = None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=5 * self._lease_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                offset += 1
                url = self._urls()[offset % len(self._urls())]
                headers = {} if last_id is None else {"Last-Event-ID": last_id}
                try:
                    async with session.get(f"{url}/api/events", headers=headers) as answer:
                        if answer.status == 200:
                            told.connections += 1
                            async for line in answer.content:
                                text = line.decode().rstrip("\n")
                                if text.startswith("id: "):
                                    seen = text.removeprefix("id: ")
                                elif text.startswith("data: "):
                                    last_id = self._note(told, json.loads(text.removeprefix("data: ")), last_id, seen)
                                elif not text:
                                    seen = None
                except (aiohttp.ClientError, OSError, TimeoutError):
                    pass
                await asyncio.sleep(0.2)

    @staticmethod
    def _note(told: Told, data: dict, last_id: str | None, seen: str | None) -> str | None:
        if data["type"] == "hello":
            if told.began is None:
                told.began = int(seen.partition("~")[0])
            elif not data["resumed"]:
                told.not_resumed += 1
        elif "jobId" in data and data["type"] != "progress":
            told.events.append((int(data["jobId"]), data["attempt"], data["state"], data["timestamp"]))
        return seen or last_id

    async def hint_schedules(self) -> None:
        """Say twice a second that the schedules' clock has moved: it runs faster than replicas think."""
        await self._again("SELECT pg_notify('orchestrator_schedules', '')", 0.5)

    async def watch_workers(self) -> None:
        """Note which process each worker is."""
        await self._again("SELECT id, pid FROM orchestrator.workers", 0.2)

    async def _again(self, statement: str, every_s: float) -> None:
        connection = await self._connect()
        while True:
            try:
                rows = await connection.fetch(statement)
                if rows and "pid" in dict(rows[0]):
                    self._history.workers |= {row["id"]: row["pid"] for row in rows}
            except LOST:
                connection.terminate()
                connection = await self._connect()
            await asyncio.sleep(every_s)
