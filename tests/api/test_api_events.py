"""The stream of events: of every replica, none lost, none told twice, whatever order transactions commit in."""

import asyncio
import signal
import socket
import time

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import ADD, TELL, streaming

from orchestrator.api.event_cursor import GAPS_MAX, Cursor, Position, between

HANDLERS = """
from orchestrator.jobs import job


@job("steps")
async def steps(ctx, payload: dict):
    await ctx.progress(1, 4, "a quarter")
"""

# ------------------------------------------------------------------------------------------------------------- the pure


@given(
    order=st.integers(1, 20).flatmap(lambda total: st.permutations(range(1, total + 1))),
    moves=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 20)), max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_however_transactions_commit_each_event_is_taken_once_also_across_reconnects(order, moves):
    """Events become visible in any order; two replicas look now and then; a client moves between them, and breaks."""
    visible: set[int] = set()
    replicas = {True: Cursor(Position(0)), False: Cursor(Position(0))}
    got: list[int] = []
    token = Position(0).token()
    for count, which, breaks_after in [*moves, (len(order), True, len(order))]:
        visible |= set(order[:count])
        order = order[count:]
        for number in sorted(visible):  # a look takes what is visible and new
            replicas[which].take(number)
        start, end = Position.parse(token), replicas[which].position
        missed = [number for number in sorted(visible) if not start.has_seen(number) and end.has_seen(number)]
        for number in missed[:breaks_after]:
            got.append(number)
            token = between(start, end, number).token()
        if breaks_after >= len(missed):
            token = end.token()
    assert sorted(got) == sorted(visible)


def test_a_position_survives_as_text_and_nonsense_is_none():
    for position in (Position(0), Position(7), Position(90, ((3, 3), (10, 19)))):
        assert Position.parse(position.token()) == position
    for text in ("", "x", "-1", "9" * 20, "5~", "5~6", "5~3-2", "5~3.3", "5~4.2", "5~1-", "5~1..2", "5\n", "٣"):
        assert Position.parse(text) is None, text
    many = Position(10**9, tuple((n, n) for n in range(1, 4 * GAPS_MAX + 2, 2)))
    assert Position.parse(many.token()) is None


def test_a_cursor_stops_before_one_gap_too_many():
    cursor = Cursor(Position(0))
    taken = [number for number in range(2, 10 * GAPS_MAX, 2) if cursor.take(number)]
    assert (len(taken), len(cursor.gaps)) == (GAPS_MAX, GAPS_MAX)
    assert cursor.take(1)
    assert cursor.take(taken[-1] + 2)


# ------------------------------------------------------------------------------------------------------------- the real


@pytest.fixture
def env(database_url, tmp_path):
    (tmp_path / "step_jobs.py").write_text(HANDLERS)
    return {"DATABASE_URL": database_url, "JOBS": "step_jobs", "JOBS_LEASE": "5s"}


async def add(run, name="steps", **body):
    async with (
        aiohttp.ClientSession(run.url) as session,
        session.post("/api/jobs", json={"name": name, **body}) as response,
    ):
        assert response.status == 202
        return (await response.json())["id"]


async def test_jobs_of_every_replica_are_told_to_the_clients_of_each(orchestrator, env):
    async with orchestrator.running("serve", env=env) as one, orchestrator.running("serve", env=env) as two:
        await one.phase("ready")
        await two.phase("ready")
        async with streaming(one) as first, streaming(two) as second:
            job_id = await add(one)
            stories = []
            for stream in (first, second):
                told = [(await stream.next("job"))[1] for _ in range(4)]
                assert {event["jobId"] for event in told} == {str(job_id)}
                assert [event["type"] for event in told] == ["queued", "started", "progress", "completed"]
                assert told[2]["progress"] == {"current": 1, "total": 4, "percent": 25.0, "note": "a quarter"}
                assert abs(told[0]["epochMs"] / 1000 - time.time()) < 30
                stories.append(told)
            assert stories[0] == stories[1]
            # Whoever leaves here goes on there: nothing twice, nothing lost.
            later = await add(two)
        async with streaming(two, last_id=first.last_id) as back:
            assert set(await back.jobs(4)) == {later}
            await back.silence()


async def test_what_commits_late_is_told_once_live_and_to_who_comes_back(orchestrator, env, database_url, admin):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with (
            admin.connection(database_url) as slow,
            admin.connection(database_url) as slower,
            streaming(run) as live,
        ):
            first, second = slow.transaction(), slower.transaction()
            await first.start()
            await second.start()
            await slow.execute(ADD, 1)
            await admin(database_url, ADD, 2)
            await slower.execute(ADD, 3)
            await admin(database_url, ADD, 4)
            assert await live.jobs(2) == [2, 4]
            assert "~" in live.last_id
            async with streaming(run, last_id=live.last_id) as leaving:
                pass
            await first.commit()
            assert await live.jobs(1) == [1]
            # Away while the first was committed, back before the second is.
            async with streaming(run, last_id=leaving.last_id) as back:
                assert await back.jobs(1) == [1]
                await second.commit()
                assert await back.jobs(1) == [3]
                assert await live.jobs(1) == [3]
                await admin(database_url, ADD, 5)
                assert await back.jobs(1) == await live.jobs(1) == [5]
                await back.silence()
                await live.silence(0.01)
        # In the middle of what was committed at once.
        async with admin.connection(database_url) as connection:
            start = live.last_id
            await connection.executemany(ADD, [(number,) for number in range(10, 20)])
            await connection.execute(TELL)
        async with streaming(run, last_id=start) as again:
            assert await again.jobs(4) == [10, 11, 12, 13]
        async with streaming(run, last_id=again.last_id) as again:
            assert await again.jobs(6) == [14, 15, 16, 17, 18, 19]
            await again.silence()


async def test_a_client_that_comes_while_a_transaction_runs_still_gets_its_event(
    orchestrator, env, database_url, admin
):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with admin.connection(database_url) as slow:
            transaction = slow.transaction()
            await transaction.start()
            await slow.execute(ADD, 1)
            await admin(database_url, ADD, 2)
            async with streaming(run) as stream:  # the tail begins here, with the first client
                await transaction.commit()
                assert await stream.jobs(1) == [1]
                await stream.silence()


async def test_a_gap_that_was_rolled_back_is_given_up(orchestrator, env, database_url, admin, wait_until):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with streaming(run) as stream, admin.connection(database_url) as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(ADD, 1)
            await admin(database_url, ADD, 2)
            assert await stream.jobs(1) == [2]
            assert "~" in stream.last_id
            await transaction.rollback()
            numbers = iter(range(3, 1000))

            async def settled():
                number = next(numbers)
                await connection.execute(ADD, number)
                await connection.execute(TELL)
                assert await stream.jobs(1) == [number]
                await asyncio.sleep(0.1)
                return "~" not in stream.last_id

            await wait_until(settled, timeout_s=15)


async def test_the_stream_outlives_its_own_connection_and_misses_nothing(
    orchestrator, env, database_url, admin, wait_until
):
    ending = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'orchestrator events' AND datname = current_database()"
    )
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with streaming(run) as stream:
            assert await admin.value(database_url, ending) == 1
            await admin(database_url, ADD, 1)
            await run.event("events.connection_lost")
            await admin(database_url, ADD, 2)
            assert await stream.jobs(2) == [1, 2]
            await stream.silence()


async def test_since_tells_what_was_from_then_on_with_the_start_itself(orchestrator, env, database_url, admin):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        await admin(database_url, ADD, 1)
        at = await admin.value(database_url, "SELECT max(at) FROM orchestrator.job_events")
        await admin(database_url, ADD, 2)
        async with streaming(run, query=f"?since={int(at.timestamp() * 1000) + 1}") as stream:
            assert await stream.jobs(1) in ([1], [2])  # they may lie in one millisecond
        async with streaming(run, query=f"?since={int(time.time() * 1000) - 60_000}") as stream:
            assert await stream.jobs(2) == [1, 2]
            phases = [data["phase"] for kind, data in stream.events if kind == "phase"]
            assert phases[-2:] == ["launching", "ready"]
            assert [data["type"] for kind, data in stream.events if kind == "migration"][-1] == "migrations.completed"


async def test_a_slow_client_is_told_so_and_let_go_while_others_go_on(orchestrator, env, database_url, admin):
    many = 30_000
    flood = (
        "INSERT INTO orchestrator.job_events (job_id, attempt, name, queue, state)"
        f" SELECT n, 1, 'made', 'default', 'queued' FROM generate_series(1, {many}) n"
    )
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", run.port))
            lazy.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with streaming(run) as quick:
                await admin(database_url, flood)
                await admin(database_url, TELL)
                assert await quick.jobs(many, timeout_s=30) == list(range(1, many + 1))
                text = await asyncio.to_thread(_read_all, lazy)
                assert text.count(b"event: job") < many
                assert text.rstrip(b"\r\n0").rpartition(b"event: ")[2].startswith(b"dropped")
                await admin(database_url, ADD, many + 1)
                assert await quick.jobs(1) == [many + 1]


def _read_all(connection):
    connection.settimeout(15)
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
        if part.endswith(b"0\r\n\r\n"):
            break
    return b"".join(parts)


async def test_open_streams_do_not_hold_up_the_end(orchestrator, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        async with streaming(run) as stream:
            began = time.monotonic()
            run.send_signal(signal.SIGTERM)
            assert (await stream.next("phase"))[1]["phase"] == "stopping"
            assert (await stream.next("end"))[1]["type"] == "end"
            assert await stream.next() is None
            assert await run.wait(timeout_s=10) == 0
            assert time.monotonic() - began < 5
