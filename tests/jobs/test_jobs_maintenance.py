"""What a worker does for all: it names the session that keeps dead rows from being removed."""

import asyncio
import contextlib

import asyncpg
import pytest

from orchestrator import dsn
from orchestrator.jobs import maintenance
from orchestrator.jobs.maintenance import Maintenance
from orchestrator.jobs.parameters import WorkerParameters
from orchestrator.jobs.registry import Registry

pytest_plugins = ["support.queue_tables"]


@pytest.fixture
def maintained(queue_url, monkeypatch):
    """`async with maintained() as events:` the maintenance of a worker, which looks often and finds a second old."""
    monkeypatch.setattr(maintenance, "_HORIZON_EVERY_S", 0.1)
    monkeypatch.setattr(maintenance, "_HORIZON_OLD_S", 1.0)

    @contextlib.asynccontextmanager
    async def maintaining():
        events: list[tuple[str, dict]] = []
        parameters = WorkerParameters(
            dsn.parse(queue_url),
            Registry(),
            worker_id="w1",
            concurrency=1,
            lease_s=2.0,
            emit=lambda name, **facts: events.append((name, facts)),
            redact=str,
        )
        one = Maintenance(parameters, emit=parameters.emit)
        task = asyncio.create_task(one.run())
        try:
            yield events
        finally:
            one.leave()
            await task

    return maintaining


@pytest.mark.parametrize(
    "statements",
    [
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"),
        ("BEGIN", "CREATE TABLE forgotten (a int)"),  # no snapshot between two statements, but a number of its own
    ],
)
async def test_a_session_that_keeps_dead_rows_is_named_once_for_each_of_its_transactions(
    queue_url, maintained, wait_until, statements
):
    holder = await asyncpg.connect(queue_url, server_settings={"application_name": "forgotten psql"})
    try:
        async with maintained() as events:

            def said():
                return [facts for name, facts in events if name == "jobs.old_snapshot_held"]

            for times in (1, 2):
                for statement in statements:
                    await holder.execute(statement)
                await wait_until(lambda times=times: len(said()) >= times, 15, "the session is named")
                facts = said()[-1]
                assert (facts["pid"], facts["application"]) == (holder.get_server_pid(), "forgotten psql")
                assert (facts["state"], facts["level"]) == ("idle in transaction", "warning")
                assert facts["age_s"] >= 1
                assert facts["username"]
                assert facts["database"]
                await holder.execute("ROLLBACK")
            assert len(said()) == 2
            assert [name for name, _ in events if name != "jobs.old_snapshot_held"] == []
    finally:
        await holder.close()
