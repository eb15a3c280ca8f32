"""A database that lives as long as a block, beside another on its server. Touches the server."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from orchestrator.database.connect import close, connect_once
from orchestrator.database.quoting import identifier, literal
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.dsn import Dsn

PREFIX = "orchestrator_scratch_"
_DROP_TIMEOUT_S = 10.0


class ScratchError(OrchestratorError):
    """The server does not let this user make a database."""


@asynccontextmanager
async def scratch_database(dsn: Dsn, *, purpose: str, connect_timeout_s: float = 5.0) -> AsyncIterator[Dsn]:
    """Make an empty database on the server of `dsn`, yield its DSN, and drop it whatever happens inside.

    It has the encoding and the locale of the database in `dsn`; its name begins with PREFIX and its comment says what
    for, so that one that a killed process left behind is known for what it is. Cancelled: it is dropped first.

    Raises:
        ScratchError: the role may not create databases (42501), with the SQL that lets it.
    """
    name = f"{PREFIX}{secrets.token_hex(6)}"
    connection = await connect_once(dsn, timeout_s=connect_timeout_s, application_name=f"orchestrator {purpose}")
    try:
        row = await connection.fetchrow(
            "SELECT pg_catalog.pg_encoding_to_char(encoding) AS encoding, datcollate::text AS collate,"
            " datctype::text AS ctype, current_user::text AS username"
            " FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
        )
        try:
            await connection.execute(
                f"CREATE DATABASE {identifier(name)} TEMPLATE template0 ENCODING {literal(row['encoding'])}"
                f" LC_COLLATE {literal(row['collate'])} LC_CTYPE {literal(row['ctype'])}"
            )
        except asyncpg.InsufficientPrivilegeError as error:
            raise ScratchError(
                f"the user {row['username']} may not create a scratch database: {error}",
                remedy=f"As a superuser: ALTER ROLE {identifier(row['username'])} CREATEDB; or use another server.",
                facts={"sqlstate": error.sqlstate, "user": row["username"]},
            ) from error
        await connection.execute(
            f"COMMENT ON DATABASE {identifier(name)} IS {literal(f'orchestrator {purpose}: may be dropped')}"
        )
    finally:
        await close(connection)
    try:
        yield dsn.with_database(name)
    finally:
        await asyncio.shield(_drop(dsn, name, connect_timeout_s))


async def _drop(dsn: Dsn, name: str, connect_timeout_s: float) -> None:
    async with asyncio.timeout(_DROP_TIMEOUT_S):
        connection = await connect_once(dsn, timeout_s=connect_timeout_s, application_name="orchestrator clean-up")
        try:
            with contextlib.suppress(asyncpg.InvalidCatalogNameError):
                await connection.execute(f"DROP DATABASE {identifier(name)} WITH (FORCE)")
        finally:
            await close(connection)
