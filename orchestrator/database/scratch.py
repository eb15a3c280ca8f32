"""A database that lives as long as a block, beside another on its server. Touches the server.

The session that makes it stays open and holds an advisory lock whose key stands in the database's name. So whoever
finds such a name knows whether its maker lives, on whatever host, at whatever time: what a killed process left behind
is dropped by the next one that makes a scratch database on that server.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect import own_session
from orchestrator.database.connect_errors import CONNECTION_ERRORS, OwnFaultError, is_connection_loss
from orchestrator.database.quoting import identifier, literal
from orchestrator.errors import (
    EXIT_CONFIG,
    EXIT_MIGRATION,
    ConnectionRefusedForeverError,
    DatabaseUnavailableError,
    OrchestratorError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from orchestrator.dsn import Dsn

PREFIX = "orchestrator_scratch_"
# A superuser may prepare a database of this name: with the extensions that only a superuser may create.
TEMPLATE = "orchestrator_template"
_KEY_DIGITS = 8
# The first half of the two-key form of an advisory lock ("scrt" in ASCII); the second is in the database's name.
_LOCK_CLASS = int.from_bytes(b"scrt")
_DROP_TIMEOUT_S = 60.0


class Key(str):
    """The eight hexadecimal digits that end the name of what a session made, and whose advisory lock it holds."""

    __slots__ = ()

    @classmethod
    async def taken(cls, connection: Any) -> Key:
        """A new key, locked until the session of `connection` ends."""
        number = secrets.randbits(32)
        # As int4: the lock's keys are signed, the catalogue shows them unsigned.
        signed = number - (1 << 32) if number >= 1 << 31 else number
        await connection.execute(f"SELECT pg_catalog.pg_advisory_lock({_LOCK_CLASS}, {signed})")
        return cls(f"{number:0{_KEY_DIGITS}x}")

    @staticmethod
    def is_held(name: str) -> str:
        """SQL: whether the key at the end of the column `name` is locked, by a session of any database.

        objsubid 2 is the two-key form, objid an oid and so unsigned (PostgreSQL manual, pg_locks).
        """
        return (
            "EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 2"  # noqa: S608
            f" AND l.classid = {_LOCK_CLASS} AND pg_catalog.lpad(pg_catalog.to_hex(l.objid::bigint),"
            f" {_KEY_DIGITS}, '0') = pg_catalog.right({name}::text, {_KEY_DIGITS}))"
        )


# Scratch databases whose maker holds no lock any more and that nobody is connected to.
_LEFT_BEHIND = (
    "SELECT d.datname::text FROM pg_catalog.pg_database d"  # noqa: S608 constants
    f" WHERE d.datname::text ~ '^{PREFIX}[0-9a-f]{{{_KEY_DIGITS}}}$' AND pg_catalog.pg_has_role(d.datdba, 'USAGE')"
    " AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid)"
    f" AND NOT {Key.is_held('d.datname')}"
)


# Of a superuser's making, since whatever is in it is trusted. Collation versions and the like do not count.
_TEMPLATE = (
    "SELECT t.datname::text FROM pg_catalog.pg_database t, pg_catalog.pg_database d, pg_catalog.pg_roles owner"  # noqa: S608 constants
    f" WHERE t.datname = '{TEMPLATE}' AND t.datistemplate AND d.datname = $1"
    " AND owner.oid = t.datdba AND owner.rolsuper AND t.encoding = d.encoding"
    " AND t.datcollate = d.datcollate AND t.datctype = d.datctype AND NOT EXISTS"
    " (SELECT 1 FROM (VALUES ('datlocprovider'), ('datlocale'), ('daticulocale'), ('daticurules')) AS k (name)"
    " WHERE pg_catalog.to_jsonb(t) ->> k.name IS DISTINCT FROM pg_catalog.to_jsonb(d) ->> k.name)"
    " AND NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)"
)


class ScratchError(OrchestratorError):
    """The server does not let this user make a database."""

    exit_code = EXIT_CONFIG


class ServerRefusedError(OrchestratorError):
    """The server refused what a command asked of it."""

    exit_code = EXIT_MIGRATION


@contextmanager
def server_errors_explained(dsn: Dsn, *, doing: str) -> Iterator[None]:
    """Turn what the server or the network says in a command's work into one of our errors, which the edge can show.

    Raises:
        DatabaseUnavailableError: the session is gone (exit 69).
        ConnectionRefusedForeverError: a file or a user of this machine's is missing (exit 78).
        ServerRefusedError: the server refused a statement of ours (exit 70; 1 is a difference that was found).
    """
    try:
        yield
    except OwnFaultError as error:
        raise ConnectionRefusedForeverError(f"{doing}: {error}", remedy=error.hint) from error
    except CONNECTION_ERRORS as error:
        if is_connection_loss(error):
            raise DatabaseUnavailableError(
                f"{doing}: the connection to {dsn.redacted()} was lost ({type(error).__name__})",
                remedy="Look at the server's log; then run the command again.",
            ) from error
        sqlstate = getattr(error, "sqlstate", None)
        is_right = isinstance(error, asyncpg.InsufficientPrivilegeError)
        raise ServerRefusedError(
            f"{doing}: the server refused it: {error} (SQLSTATE {sqlstate})",
            remedy=(
                "Grant the user what it lacks, or give MIGRATION_DATABASE_URL a user that has it; then run the command"
                " again."
                if is_right
                else "Fix what it names, then run the command again."
            ),
            facts={"sqlstate": sqlstate},
        ) from error


@asynccontextmanager
async def scratch_database(dsn: Dsn, *, purpose: str) -> AsyncIterator[Dsn]:
    """Make an empty database on the server of `dsn`, yield its DSN, and drop it whatever happens inside.

    It has the encoding and the locale of the database in `dsn`; its name begins with PREFIX and its comment says what
    for. Cancelled: it is dropped first, also by a cancellation while it is being made. What makers that are gone left
    behind on the server is dropped before.

    Raises:
        ScratchError: the role may not create databases (42501), with the SQL that lets it.
        DatabaseUnavailableError: the server cannot be reached.
    """
    async with maker_session(dsn, purpose=purpose) as maker:
        with server_errors_explained(dsn, doing="making a scratch database"):
            name = f"{PREFIX}{await Key.taken(maker)}"
            await _sweep(maker)
        try:
            with server_errors_explained(dsn, doing="making a scratch database"):
                await _create(maker, name, purpose)
            yield dsn.with_database(name)
        finally:
            await finished(_drop(dsn, name))


def maker_session(dsn: Dsn, *, purpose: str) -> AbstractAsyncContextManager[Any]:
    """A session of our own for making databases and roles, without limits of time."""
    return own_session(dsn, application_name=f"orchestrator {purpose}")


async def left_behind(connection: Any) -> list[str]:
    """The scratch databases on the server that no living process made, and that this role could drop."""
    return [row[0] for row in await connection.fetch(_LEFT_BEHIND)]


async def _sweep(connection: Any) -> None:
    for name in await left_behind(connection):
        # Not FORCE: who connected meanwhile has a reason (55006). Another sweeper may be first (3D000).
        with contextlib.suppress(
            asyncpg.ObjectInUseError, asyncpg.InvalidCatalogNameError, asyncpg.InsufficientPrivilegeError
        ):
            await connection.execute(f"DROP DATABASE {identifier(name)}")


async def options_like(connection: Any, database: str) -> str:
    """The options of CREATE DATABASE that make an empty one with the encoding and the locale of `database`.

    The provider is named too: template0 may have another one (a cluster of PostgreSQL 17 and newer may be `builtin`).
    Who is no superuser gets a copy of the template that a superuser has prepared (TEMPLATE), where its encoding and
    locale are the same.
    """
    template = await connection.fetchval(_TEMPLATE, database)
    if template is not None:
        return f"TEMPLATE {identifier(template)}"
    row = await connection.fetchrow(
        "SELECT pg_catalog.pg_encoding_to_char(encoding)::text AS encoding, datcollate::text AS collate,"
        " datctype::text AS ctype, pg_catalog.to_jsonb(d) ->> 'datlocprovider' AS provider,"  # 15 and newer
        # 17 and newer; before
        " coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale') AS locale,"
        " pg_catalog.to_jsonb(d) ->> 'daticurules' AS rules FROM pg_catalog.pg_database d WHERE datname = $1",
        database,
    )
    options = [
        "TEMPLATE template0",
        f"ENCODING {literal(row['encoding'])} LC_COLLATE {literal(row['collate'])} LC_CTYPE {literal(row['ctype'])}",
    ]
    provider = {"i": "icu", "b": "builtin", "c": "libc"}.get(row["provider"])
    if provider is not None:
        options.append(f"LOCALE_PROVIDER {provider}")
        if provider != "libc":
            options.append(f"{provider.upper()}_LOCALE {literal(row['locale'])}")
        if row["rules"]:
            options.append(f"ICU_RULES {literal(row['rules'])}")
    return " ".join(options)


async def _create(connection: Any, name: str, purpose: str) -> None:
    user, database = await connection.fetchrow("SELECT current_user::text, pg_catalog.current_database()::text")
    try:
        await create_closed(connection, name, await options_like(connection, database))
    except asyncpg.InsufficientPrivilegeError as error:
        raise ScratchError(
            f"the user {user} may not create a scratch database: {error}",
            remedy=f"As a superuser: ALTER ROLE {identifier(user)} CREATEDB; or use another server (--on URL).",
            facts={"sqlstate": error.sqlstate, "user": user},
        ) from error
    await connection.execute(
        f"COMMENT ON DATABASE {identifier(name)} IS {literal(f'orchestrator {purpose}: may be dropped')}"
    )


async def create_closed(connection: Any, name: str, options: str) -> None:
    """Create a database that only its owner may enter, from its first moment: it will hold what others may not read.

    Raises:
        asyncpg.InsufficientPrivilegeError: the role may not create databases.
    """
    await connection.execute(f"CREATE DATABASE {identifier(name)} {options} ALLOW_CONNECTIONS false")
    await connection.execute(f"REVOKE ALL ON DATABASE {identifier(name)} FROM PUBLIC")
    await connection.execute(f"ALTER DATABASE {identifier(name)} ALLOW_CONNECTIONS true")


async def finished(work: Any) -> None:
    """Wait for `work` to its end, also when cancelled meanwhile; the cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _drop(dsn: Dsn, name: str) -> None:
    """Drop it on a session of its own: the maker's may be gone."""
    with server_errors_explained(dsn, doing=f"dropping the scratch database {name}"):
        async with asyncio.timeout(_DROP_TIMEOUT_S):
            async with maker_session(dsn, purpose="clean-up") as connection:
                await connection.execute(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")
