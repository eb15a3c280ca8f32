"""A database that has the service's own tables and nothing else, for tests of the queue without a server of ours."""

from pathlib import Path

import asyncpg
import pytest

_MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.fixture
async def queue_url(database_url):
    """The database's address, when the tables are there."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE SCHEMA orchestrator")
    for file in sorted(_MIGRATIONS.glob("*.sql")):
        for statement in file.read_text().split("--> statement-breakpoint"):
            await connection.execute(statement)
    await connection.close()
    return database_url


@pytest.fixture
async def queue_connection(queue_url):
    """A connection to it."""
    connection = await asyncpg.connect(queue_url)
    yield connection
    await connection.close()
