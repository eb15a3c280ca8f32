"""Databases of a test's own, and SQL in them."""

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from support.server import Server


class Admin:
    """SQL by a connection of its own each time: `await admin(dsn, "SELECT …", *arguments)` → records."""

    async def __call__(self, dsn: str, text: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.connection(dsn) as connection:
            return await connection.fetch(text, *arguments)

    async def value(self, dsn: str, text: str, *arguments: Any) -> Any:
        async with self.connection(dsn) as connection:
            return await connection.fetchval(text, *arguments)

    async def script(self, dsn: str, text: str) -> None:
        """Any number of statements, without arguments or results."""
        async with self.connection(dsn) as connection:
            await connection.execute(text)

    @asynccontextmanager
    async def connection(self, dsn: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)


@pytest.fixture
def admin() -> Admin:
    """`await admin(dsn, text, *args)` → records; `.value(…)`; `.script(dsn, many)`; `async with .connection(dsn)`."""
    return Admin()


@pytest.fixture
async def make_database(server: Server, admin: Admin) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """`await make_database()` → the DSN of one more fresh, empty database; `raw=True`: of bytes in no encoding."""
    made: list[str] = []

    async def make(*, raw: bool = False) -> str:
        name = f"test_{os.getpid()}_{secrets.token_hex(5)}"
        options = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'" if raw else ""
        if raw and server.major >= 15:  # the cluster's may be builtin
            options += " LOCALE_PROVIDER libc"
        await admin.script(server.dsn(), f"CREATE DATABASE {name} TEMPLATE template0 {options}")
        made.append(name)
        return server.dsn(name)

    yield make
    for name in made:
        await admin.script(server.dsn(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def database_url(make_database: Callable[[], Awaitable[str]]) -> str:
    """The DSN of a fresh, empty database, dropped afterwards."""
    return await make_database()
