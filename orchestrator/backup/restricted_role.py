"""A role that can do nothing but fill one database: other people's code runs as it. Touches the server.

A database is full of code that its owners wrote: CHECK constraints, defaults, functions in indexes, triggers. Whoever
restores it runs that code. SET ROLE is no protection, since the code can say RESET ROLE: the role has to be the one
that logged in.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.database.connect import close, connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.database.quoting import identifier, literal
from orchestrator.database.scratch import Key, finished, maker_session, scratch_database, server_errors_explained
from orchestrator.errors import EXIT_CONFIG, OrchestratorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from orchestrator.dsn import Dsn

    Emit = Callable[..., None]

PREFIX = "orchestrator_restricted_"
_SCRAM_ROUNDS = 4096
_DROP_TIMEOUT_S = 30.0


class IsolationError(OrchestratorError):
    """The code that a restore runs would have a superuser's rights, and no role can be made that has none."""

    exit_code = EXIT_CONFIG


@dataclass(frozen=True, slots=True)
class Place:
    """A database to restore into: `dsn` is how its contents are written, `own` is our own way to it.

    Where `isolated` is False they are the same, and what is restored runs with our own rights.
    """

    dsn: Dsn
    own: Dsn
    isolated: bool


@asynccontextmanager
async def isolated_database(dsn: Dsn, *, purpose: str, with_own_rights: bool, emit: Emit) -> AsyncIterator[Place]:
    """A scratch database, and a role for filling it that has no other right; both are dropped whatever happens inside.

    Where no role can be made (the user is neither a superuser nor has CREATEROLE), the user's own rights are used, and
    an event says so. With `with_own_rights` they are used in any case. Cancelled: both are dropped first.

    Raises:
        IsolationError: the user is a superuser, and a role without rights cannot log in.
        ScratchError, DatabaseUnavailableError: as in `scratch_database`.
    """
    async with (
        restricted_role(dsn, purpose=purpose, with_own_rights=with_own_rights, emit=emit) as role,
        scratch_database(dsn, purpose=purpose) as own,
    ):
        if role is None:
            yield Place(own, own, isolated=False)
            return
        theirs = role.with_database(str(own.database))
        async with maker_session(own, purpose=purpose) as connection:
            await admit(connection, theirs)
        yield Place(theirs, own, isolated=True)


@asynccontextmanager
async def restricted_role(dsn: Dsn, *, purpose: str, with_own_rights: bool, emit: Emit) -> AsyncIterator[Dsn | None]:
    """A new role that may log in and nothing else, as a DSN; None where the user's own rights have to do.

    It is dropped at the end. What it owns must be gone by then, or belong to somebody else: where something is left, an
    event names it. What a killed process left behind is dropped by the next one that makes such a role.
    """
    if with_own_rights:
        yield None
        return
    async with maker_session(dsn, purpose=purpose) as maker:
        with server_errors_explained(dsn, doing="making a role for the restore"):
            user, is_super, may_create = await maker.fetchrow(
                "SELECT rolname::text, rolsuper, rolsuper OR rolcreaterole FROM pg_catalog.pg_roles"
                " WHERE rolname = current_user"
            )
            if not may_create:
                emit(
                    "restore.not_isolated",
                    level="warning",
                    user=user,
                    hint=f"The code in the copied tables (constraints, triggers, functions in indexes) runs with the"
                    f" rights of {user}. With CREATEROLE a role without any right would run it: as a superuser,"
                    f" ALTER ROLE {identifier(user)} CREATEROLE.",
                )
                yield None
                return
            key = await Key.taken(maker)
            await _sweep(maker)
        name, password = f"{PREFIX}{key}", secrets.token_urlsafe(24)
        try:
            with server_errors_explained(dsn, doing="making a role for the restore"):
                await maker.execute(
                    f"CREATE ROLE {identifier(name)} LOGIN NOINHERIT PASSWORD {literal(_scram_verifier(password))}"
                )
                if not is_super:  # to end its sessions, and to own what it leaves
                    await maker.execute(f"GRANT {identifier(name)} TO {identifier(user)}")
            # What sessions of ours begin with (a role, a search_path) is not theirs to set.
            yield dsn.changed(user=name, password=password, server_settings={})
        finally:
            await finished(_drop(dsn, name, emit))


async def admit(connection: Any, role: Dsn) -> None:
    """Let `role` fill the database of `connection`, which is new and which nobody else may enter; see that it can.

    The database stays ours: its owner could give it settings that our own sessions in it begin with.

    Raises:
        IsolationError: the role cannot log in, whatever it is allowed (pg_hba.conf, a pooler).
    """
    database, name = identifier(str(role.database)), identifier(str(role.user))
    await connection.execute(
        f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {name};"
        f" GRANT ALL ON SCHEMA public TO {name}; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    )
    try:
        theirs = await connect_once(role, application_name="orchestrator restore")
    except CONNECTION_ERRORS as error:
        failure = classify(error)
        raise IsolationError(
            "what is restored runs code of those who wrote it, and the role without rights that would run it"
            f" cannot log in ({failure.cause})",
            remedy="Let the server admit it as it admits this user (in pg_hba.conf, a line for `all` with"
            " scram-sha-256; no pooler in between). Or, where you trust everybody who could write to that database,"
            " give --with-own-rights: the code then runs with this user's rights.",
            facts={"cause": failure.cause, "sqlstate": failure.sqlstate},
        ) from error
    await close(theirs)


def _scram_verifier(password: str) -> str:
    """What the server stores of a password (RFC 5802; PostgreSQL manual, pg_authid): no log of it has the password."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ROUNDS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    parts = (salt, hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256${_SCRAM_ROUNDS}:{salt64}${stored64}:{server64}"


async def _sweep(connection: Any) -> None:
    """Drop the roles whose makers are gone, unless something still belongs to them."""
    rows = await connection.fetch(
        "SELECT rolname::text FROM pg_catalog.pg_roles"  # noqa: S608 constants
        f" WHERE rolname::text OPERATOR(pg_catalog.~) '^{PREFIX}[0-9a-f]{{8}}$' AND NOT {Key.is_held('rolname')}"
    )
    for (name,) in rows:
        with contextlib.suppress(
            asyncpg.DependentObjectsStillExistError, asyncpg.UndefinedObjectError, asyncpg.InsufficientPrivilegeError
        ):
            await connection.execute(f"DROP ROLE {identifier(name)}")


async def _drop(dsn: Dsn, name: str, emit: Emit) -> None:
    """Drop it on a session of its own; where that fails the error before it stays the news."""
    try:
        async with maker_session(dsn, purpose="clean-up") as connection:
            await connection.execute(f"SET statement_timeout = '{_DROP_TIMEOUT_S:g}s'")
            if await connection.fetchval("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1", name):
                # What it was granted outside of its database, too.
                await connection.execute(f"DROP OWNED BY {identifier(name)}; DROP ROLE {identifier(name)}")
    except (*CONNECTION_ERRORS, OrchestratorError) as error:
        emit(
            "restore.role_left",
            level="warning",
            role=name,
            error=type(error).__name__,
            sqlstate=getattr(error, "sqlstate", None),
            hint=f"It can do nothing, and nobody knows its password. Drop what it owns, then it:"
            f" DROP OWNED BY {identifier(name)}; DROP ROLE {identifier(name)};",
        )
