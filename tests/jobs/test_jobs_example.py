"""The example of the README: a project with handlers and migrations of its own, and nothing of ours forked."""

import asyncio
import os
import sys
from pathlib import Path

import asyncpg

PROJECT = Path(__file__).parents[1] / "example_project"
ROOT = Path(__file__).parents[2]


async def test_a_project_of_one_s_own_brings_handlers_and_migrations_without_a_fork(
    orchestrator, database_url, wait_until
):
    env = {"DATABASE_URL": database_url, "JOBS": "my_app.jobs", "MIGRATIONS_DIR": "drizzle"}
    async with orchestrator.running("serve", env=env, cwd=PROJECT) as run:
        await run.phase("ready")
        placing = await asyncio.create_subprocess_exec(
            *(sys.executable, "place_order.py", "Ada", "tea", "milk"),
            cwd=PROJECT,
            env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await placing.communicate()
        assert placing.returncode == 0
        connection = await asyncpg.connect(database_url)
        try:
            await wait_until(lambda: connection.fetchval("SELECT bool_and(confirmed) FROM orders"))
            row = await connection.fetchrow("SELECT customer, items FROM orders")
            assert tuple(row) == ("Ada", ["tea", "milk"])
            output = "SELECT output::text FROM orchestrator.jobs WHERE id = $1 AND state = 'succeeded'"
            assert await wait_until(lambda: connection.fetchval(output, int(printed))) == '{"order_id": 1}'
            schedules = await connection.fetch("SELECT name, timezone FROM orchestrator.schedules")
            assert ("orders.forget", "Europe/Berlin") in [tuple(row) for row in schedules]
        finally:
            await connection.close()
