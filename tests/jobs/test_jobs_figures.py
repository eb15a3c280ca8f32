"""The counts that are kept: what a count of the jobs would say, whoever writes, rolls back, deletes or counts."""

import asyncio
import random

import asyncpg

from orchestrator.jobs import job
from orchestrator.jobs.claimer import _CLAIM
from orchestrator.jobs.completer import _FINISH
from orchestrator.jobs.errors import JobStateError
from orchestrator.jobs.figures import count_jobs, read_sample
from orchestrator.jobs.queue import NewJob, cancel_many, enqueue, enqueue_many, retry
from orchestrator.jobs.registry import DECLARED, Registry

pytest_plugins = ["support.queue_tables"]

# In one statement, and so in one snapshot: what is kept, and what is.
DIFFERENCE = """
SELECT name, queue, state, sum(n) AS n FROM (
    SELECT name, queue, state, count(*) AS n FROM orchestrator.jobs GROUP BY 1, 2, 3
    UNION ALL SELECT name, queue, state, -count FROM orchestrator.job_figures
) both_ways GROUP BY 1, 2, 3 HAVING sum(n) <> 0
"""
WORKER = """
INSERT INTO orchestrator.workers (id, host, pid, version, concurrency, lease_s, handlers)
VALUES ($1, 'here', 1, '1', 20, 3600, '{}')
"""


async def nothing(ctx, payload):
    """Does nothing."""


def registry() -> Registry:
    before = dict(DECLARED._handlers)
    try:
        for name in ("a", "b"):
            job(name)(nothing)
        return Registry([DECLARED.handlers["a"], DECLARED.handlers["b"]])
    finally:
        DECLARED._handlers.clear()
        DECLARED._handlers.update(before)


KNOWN = registry()


class Party:
    """One session that does whatever changes jobs, in an order of its own."""

    def __init__(self, connection, number: int) -> None:
        self.connection, self.worker, self.claims = connection, f"w{number}", 0
        self.chance = random.Random(number)
        self.claimed: list[tuple[int, int]] = []

    async def add(self):
        jobs = [NewJob(self.chance.choice("ab"), queue=self.chance.choice(("default", "mail"))) for _ in range(7)]
        await enqueue_many(self.connection, jobs, registry=KNOWN)
        delay_s = self.chance.choice((0.0, 3600.0))
        await enqueue(self.connection, "a", registry=KNOWN, delay_s=delay_s, dedupe_key=str(self.chance.randrange(3)))

    async def claim(self):
        self.claims += 1
        given = (self.worker, self.claims, 5, ["a", "b"], [], [], ["x"], None, None, False)
        self.claimed += [(row["id"], self.claims) for row in await self.connection.fetch(_CLAIM, *given)]

    async def finish(self):
        ids, claims = map(list, zip(*self.claimed, strict=True)) if self.claimed else ([], [])
        states = [self.chance.choice(("succeeded", "failed", "queued", "scheduled")) for _ in ids]
        outcomes = ["succeeded" if state == "succeeded" else "failed" for state in states]
        errors = [None if state == "succeeded" else '{"type": "E", "message": "no"}' for state in states]
        nothing_more = [None] * len(ids)
        await self.connection.fetch(
            _FINISH, self.worker, ids, claims, outcomes, states, nothing_more, errors, [60.0] * len(ids), []
        )
        self.claimed = []

    async def cancel(self):
        ids = [
            row[0] for row in await self.connection.fetch("SELECT id FROM orchestrator.jobs ORDER BY random() LIMIT 3")
        ]
        await cancel_many(self.connection, sorted(ids))

    async def retry(self):
        one = await self.connection.fetchval(
            "SELECT id FROM orchestrator.jobs WHERE state IN ('failed', 'cancelled', 'scheduled') LIMIT 1"
        )
        if one is not None:
            await retry(self.connection, one)

    async def prune(self):
        await self.connection.execute(
            "DELETE FROM orchestrator.jobs WHERE id IN (SELECT id FROM orchestrator.jobs"
            " WHERE state = 'succeeded' LIMIT 4 FOR UPDATE SKIP LOCKED)"
        )

    async def step(self):
        """One of them, committed or taken back, at once or after others have gone on."""
        claimed = list(self.claimed)
        work = self.chance.choice(
            (self.add, self.add, self.claim, self.claim, self.finish, self.cancel, self.retry, self.prune)
        )
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            await work()
        except (asyncpg.DeadlockDetectedError, JobStateError):
            await transaction.rollback()
            self.claimed = claimed
            return
        await asyncio.sleep(self.chance.choice((0, 0, 0.002, 0.05)))
        if self.chance.random() < 0.2:
            await transaction.rollback()
            self.claimed = claimed
        else:
            await transaction.commit()


async def test_what_is_kept_equals_a_count_at_every_moment_whoever_writes_and_counts(
    queue_url, queue_connection, wait_until
):
    db = queue_connection
    await db.execute("INSERT INTO orchestrator.server_runs VALUES (true, now() - interval '1 hour')")
    connections = [await asyncpg.connect(queue_url) for _ in range(7)]
    over = False
    try:
        parties = [Party(connection, number) for number, connection in enumerate(connections[:4])]
        for party in parties:
            await db.execute(WORKER, party.worker)

        async def act(party):
            for _ in range(120):
                await party.step()

        async def count(connection):
            while not over:
                await count_jobs(connection.fetch)
                await asyncio.sleep(0.003)

        # Numbers that were drawn long ago, and are filled in when everything after them has been counted.
        late = connections[4].transaction()
        await late.start()
        await enqueue_many(connections[4], [NewJob("a")] * 3, registry=KNOWN)
        counting = [asyncio.create_task(count(connection)) for connection in connections[5:]]
        acting = [asyncio.create_task(act(party)) for party in parties]
        looks = 0
        while not all(task.done() for task in acting):
            assert await db.fetch(DIFFERENCE) == []
            looks += 1
            if looks == 20:
                await late.commit()
            await asyncio.sleep(0.005)
        await asyncio.gather(*acting)
        if looks < 20:
            await late.commit()
        over = True
        await asyncio.gather(*counting)
        assert looks > 5
        assert await db.fetch(DIFFERENCE) == []
        await count_jobs(db.fetch)
        assert await db.fetchval("SELECT count(*) FROM orchestrator.uncounted_events") == 0
        assert await db.fetchval("SELECT count(*) FROM orchestrator.job_events") > 500
        # What was rolled back has left gaps; those end with the transactions that could have filled them.
        await wait_until(lambda: counted_without_gaps(db), 30)
        assert await db.fetch(DIFFERENCE) == []
        figures, queues = await read_sample(db)
        ended = await db.fetchval(
            "SELECT count(*) FROM orchestrator.job_events WHERE state IN ('succeeded', 'failed', 'cancelled')"
        )
        assert sum(sum(queue.ended_per_minute) for queue in queues.queues) == ended
        states = await db.fetch("SELECT DISTINCT state FROM orchestrator.jobs")
        assert {figure.state for figure in figures} == {row["state"] for row in states}
    finally:
        for connection in connections:
            await connection.close()


async def counted_without_gaps(db):
    await count_jobs(db.fetch)
    return await db.fetchval("SELECT isempty(gaps) FROM orchestrator.job_count_position")


async def test_what_others_have_written_is_counted_by_the_jobs_themselves(queue_connection):
    db = queue_connection
    await enqueue(db, "a", registry=KNOWN)
    await db.execute("INSERT INTO orchestrator.jobs (name, state) SELECT 'a', 'queued' FROM generate_series(1, 10)")
    assert await count_jobs(db.fetch) == (False, 0)
    assert len(await db.fetch(DIFFERENCE)) == 1
    assert await count_jobs(db.fetch, recount=True) == (False, 1)
    assert await db.fetch(DIFFERENCE) == []
    await db.execute("DELETE FROM orchestrator.jobs")
    assert await db.fetch("SELECT * FROM orchestrator.job_figures") == []
    await count_jobs(db.fetch)
    assert await db.fetch("SELECT * FROM orchestrator.job_counts") == []


async def test_who_holds_a_lock_on_the_counts_delays_no_writer_and_no_worker(queue_url, queue_connection):
    db = queue_connection
    other = await asyncpg.connect(queue_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await enqueue(other, "a", registry=KNOWN)
        # A delete that is not committed, and a count that is under way: adding and counting go on.
        await other.execute("DELETE FROM orchestrator.jobs")
        async with asyncio.timeout(5):
            await enqueue(db, "a", registry=KNOWN)
            await count_jobs(db.fetch)
            await db.execute("DELETE FROM orchestrator.jobs")
            assert await db.fetch(DIFFERENCE) == []
        await transaction.commit()
        assert await db.fetch(DIFFERENCE) == []
        await other.execute("BEGIN; LOCK TABLE orchestrator.job_counts IN SHARE MODE")
        async with asyncio.timeout(5):
            await enqueue(db, "a", registry=KNOWN)
            try:
                await count_jobs(db.fetch)
            except asyncpg.LockNotAvailableError:
                pass
            else:
                raise AssertionError("it did not need the lock")
        await other.execute("ROLLBACK")
        assert await db.fetch(DIFFERENCE) == []
    finally:
        await other.close()
