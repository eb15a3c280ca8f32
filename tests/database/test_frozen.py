"""A server that freezes, or a pooler that is paused, is bounded and told at every stage of a start and of a command."""

import pytest


async def test_a_server_that_freezes_while_the_lock_is_waited_for_overruns_no_limit(
    orchestrator, database_url, tcp_proxy, admin
):
    env = {
        "DATABASE_URL": tcp_proxy.dsn(database_url),
        "MIGRATION_LOCK_TIMEOUT": "3s",
        "DB_WAIT_TIMEOUT": "6s",
        "DB_CONNECT_TIMEOUT": "1s",
    }
    async with admin.connection(database_url) as holder:
        await holder.execute(f"SELECT pg_advisory_lock({int.from_bytes(b'orchest1')})")
        async with orchestrator.running("migrate", env=env) as run:
            await run.event("lock.waiting")
            tcp_proxy.stall()
            assert await run.wait(25) in {69, 75}, run.output


@pytest.mark.parametrize("command", ["wait", "status", "plan", "migrate"])
async def test_a_server_that_freezes_before_the_login_is_told_and_bounded(
    orchestrator, database_url, tcp_proxy, command
):
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "DB_WAIT_TIMEOUT": "3s", "DB_CONNECT_TIMEOUT": "1s"}
    tcp_proxy.stall()
    async with orchestrator.running(command, env=env) as run:
        await run.event("database.connect_failed", cause="no_answer")
        assert await run.wait(25) == 69, run.output


@pytest.mark.parametrize("command", ["status", "plan"])
async def test_a_command_whose_questions_are_not_answered_says_so(orchestrator, database_url, admin, command):
    assert (await orchestrator("migrate", env={"DATABASE_URL": database_url})).returncode == 0
    async with admin.connection(database_url) as holder, holder.transaction():
        await holder.execute("LOCK TABLE orchestrator.__drizzle_migrations IN ACCESS EXCLUSIVE MODE")
        async with orchestrator.running(command, env={"DATABASE_URL": database_url}) as run:
            told = await run.event("database.answer_awaited", timeout_s=30)
            assert told["waited_s"] == 5.0
