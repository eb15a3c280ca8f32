"""Lists of jobs: each filter finds what a plain look at every row finds, and costs the same however many are kept."""

import itertools
import json
import random
from datetime import UTC, datetime, timedelta

from orchestrator.jobs.listing import JobFilter, read_jobs, read_results
from orchestrator.jobs.store import STATES

pytest_plugins = ["support.queue_tables"]

NOW = datetime.now(UTC)
NAMES, QUEUES, SCHEDULES = ("a", "rare", "none"), ("mail", "none"), (None, "nightly")


def matches(row, which: JobFilter) -> bool:
    return all(
        getattr(which, column) is None or row[column] == getattr(which, column)
        for column in ("state", "name", "queue", "schedule")
    ) and (which.since is None or row["created_at"] >= which.since)


async def fill(connection, count: int) -> list:
    """Jobs of every kind, with times that run backwards for a moment now and then, as they do with two sessions."""
    chance = random.Random(1)
    rows = []
    for number in range(count):
        state = chance.choice(STATES)
        added = NOW - timedelta(seconds=10 * (count - number) + chance.uniform(0, 0.02))
        name = "rare" if number % 211 == 7 else chance.choice("ab")
        schedule = "nightly" if number % 17 == 0 else None
        queue = "mail" if number % 23 == 3 else "default"
        rows.append((name, queue, state, added, schedule))
    await connection.executemany(
        "INSERT INTO orchestrator.jobs (name, queue, state, created_at, schedule) VALUES ($1, $2, $3, $4, $5)", rows
    )
    return await connection.fetch("SELECT * FROM orchestrator.jobs ORDER BY id DESC")


async def test_every_combination_of_filters_finds_what_a_look_at_each_row_finds(queue_connection):
    assert (await read_jobs(queue_connection, JobFilter(name="a", since=NOW), before=None, limit=5)).jobs == []
    rows = await fill(queue_connection, 1500)
    moments = (None, NOW - timedelta(seconds=95), rows[700]["created_at"])
    assert not (await read_jobs(queue_connection, JobFilter(since=NOW + timedelta(days=1)), before=None, limit=5)).jobs
    first = JobFilter(since=datetime.fromisoformat("0001-01-01T00:00:00+14:00"))
    assert len((await read_jobs(queue_connection, first, before=None, limit=200)).jobs) == 200
    for which in itertools.starmap(
        JobFilter, itertools.product((None, *STATES), (None, *NAMES), (None, *QUEUES), SCHEDULES, moments)
    ):
        expected = [row["id"] for row in rows if matches(row, which)]
        page = await read_jobs(queue_connection, which, before=None, limit=30)
        assert [job.id for job in page.jobs] == expected[:30], which
        assert (page.next_cursor is None) == (len(expected) <= 30), which
        if page.next_cursor is not None:
            after = await read_jobs(queue_connection, which, before=int(page.next_cursor), limit=200)
            assert [job.id for job in after.jobs] == expected[30:230], which
    ended = ("running", "succeeded", "failed", "cancelled")
    for status, states in (("failed", ended[2:]), ("completed", ended[1:2]), ("processing", ended[:1]), (None, ended)):
        for name in (None, *NAMES):
            found = await read_results(queue_connection, status=status, name=name, limit=20)
            wanted = [row["id"] for row in rows if row["state"] in states and name in {None, row["name"]}]
            assert [row.id for row in found] == wanted[:20]


class Explained:
    """A connection that runs what is fetched under EXPLAIN, and adds up the pages that were touched."""

    def __init__(self, connection) -> None:
        self._connection, self.pages = connection, 0

    async def _explain(self, statement, arguments):
        text = await self._connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *arguments)
        plan = json.loads(text)[0]["Plan"]
        self.pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    async def fetch(self, statement, *arguments):
        await self._explain(statement, arguments)
        return await self._connection.fetch(statement, *arguments)

    async def fetchval(self, statement, *arguments):
        await self._explain(statement, arguments)
        return await self._connection.fetchval(statement, *arguments)


async def test_no_filter_reads_more_pages_of_a_large_table_whatever_it_matches(queue_connection):
    # Without statistics, as after a load.
    await queue_connection.execute("ALTER TABLE orchestrator.jobs SET (autovacuum_enabled = off)")
    await queue_connection.execute(
        "INSERT INTO orchestrator.jobs (name, queue, state, created_at, finished_at)"
        " SELECT 'name' || n % 20, CASE WHEN n = 5000 THEN 'rare' ELSE 'default' END,"
        " CASE WHEN n % 3 = 0 THEN 'queued' WHEN n = 20000 THEN 'failed' ELSE 'succeeded' END,"
        " now() - interval '1 day' + n * interval '1 second', CASE WHEN n % 3 > 0 THEN now() END"
        " FROM generate_series(1, 60000) n"
    )
    await queue_connection.execute(
        "INSERT INTO orchestrator.jobs (name, state) SELECT 'other', 'queued' FROM generate_series(1, 60000)"
    )
    future = datetime.now(UTC) + timedelta(hours=1)
    filters = [
        JobFilter(queue="unknown"),
        JobFilter(queue="rare"),
        JobFilter(queue="rare", state="succeeded"),
        JobFilter(name="unknown"),
        JobFilter(name="name3"),
        JobFilter(name="name3", state="queued"),
        JobFilter(name="other", queue="rare"),
        JobFilter(state="failed"),
        JobFilter(state="scheduled"),
        JobFilter(state="succeeded", queue="default"),
        JobFilter(schedule="unknown"),
        JobFilter(since=future),
        JobFilter(since=future, name="other", state="queued"),
    ]
    for which in filters:
        explained = Explained(queue_connection)
        await read_jobs(explained, which, before=None, limit=50)
        # The table and its indexes are 8,000 pages; a walk from group to group, and a page of jobs, is some hundred.
        assert explained.pages < 1200, (which, explained.pages)
