"""The database that a restore replaces: what it is, whether it may be replaced, and the swap. Touches the server.

The database that is replaced is never changed, only renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator.backup.manifest import BackupError
from orchestrator.database.connect import close, connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.database.quoting import identifier, literal
from orchestrator.database.scratch import create_closed, options_like
from orchestrator.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from orchestrator.backup.pgtools import Emit
    from orchestrator.dsn import Dsn

PREFIX = "orchestrator_restore_"
_DROP_TIMEOUT_S = 30.0
_TERMINATE_EVERY_S = 0.1
_SHOWN_SESSIONS = 5


class RestoreError(BackupError):
    """The backup was not put in place; the database is what and where it was."""


@dataclass(frozen=True, slots=True)
class Target:
    """The database that is replaced; `options` make another one of its kind, `beside` is the one that we are on."""

    name: str
    exists: bool
    user: str
    is_superuser: bool
    beside: str
    options: str


@contextlib.asynccontextmanager
async def maintenance(dsn: Dsn) -> AsyncIterator[Any]:
    """A session on another database of the server: nobody can rename the one that they are on."""
    failed: BaseException | None = None
    for name in ("postgres", "template1"):
        if name == dsn.database:
            continue
        try:
            connection = await connect_once(dsn.with_database(name), application_name="orchestrator restore")
        except CONNECTION_ERRORS as error:
            failed = failed or error
            continue
        try:
            yield connection
        finally:
            await close(connection)
        return
    failure = classify(failed) if failed is not None else None
    raise DatabaseUnavailableError(
        f"no session on the database postgres or template1 of {dsn.redacted()}: {failed or 'none is left'}",
        remedy=(failure.hint if failure else "") + " A restore needs one of them beside the database that it replaces.",
        facts={"sqlstate": failure.sqlstate if failure else None},
    ) from failed


async def find_target(admin: Any, dsn: Dsn) -> Target:
    """What stands in the way of a restore to `dsn`, and who we are; `admin` is on another database of the server."""
    user, is_superuser, beside = await admin.fetchrow(
        "SELECT rolname::text, rolsuper, pg_catalog.current_database()::text FROM pg_catalog.pg_roles"
        " WHERE rolname = current_user"
    )
    name = dsn.database or dsn.user or user
    exists = bool(await admin.fetchval("SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1", name))
    options = await options_like(admin, name) if exists else "TEMPLATE template0"
    return Target(name, exists, user, is_superuser, beside, options)


# Of others' sessions an ordinary user sees the pid and the user, and not what they are.
_IS_CLIENT = "(backend_type = 'client backend' OR backend_type IS NULL AND usesysid IS NOT NULL)"
_SESSIONS = (
    "SELECT pid, usename::text AS user, application_name, client_addr::text AS client_address, state"  # noqa: S608
    f" FROM pg_catalog.pg_stat_activity WHERE datname = $1 AND {_IS_CLIENT} ORDER BY backend_start"
)


async def refuse_early(admin: Any, target: Target, *, force: bool) -> None:
    """What would be refused at the swap, known before an hour was spent."""
    row = await admin.fetchrow(
        "SELECT r.rolsuper OR r.rolcreatedb AS may_create, r.rolsuper OR coalesce((SELECT"
        " pg_catalog.pg_has_role(d.datdba, 'MEMBER') FROM pg_catalog.pg_database d WHERE d.datname = $1), true) AS owns"
        " FROM pg_catalog.pg_roles r WHERE r.rolname = current_user",
        target.name,
    )
    if not row["may_create"]:
        raise _not_permitted(target, "may not create databases", f"ALTER ROLE {identifier(target.user)} CREATEDB;")
    if not row["owns"]:
        sql = f"ALTER DATABASE {identifier(target.name)} OWNER TO {identifier(target.user)};"
        raise _not_permitted(target, f"does not own the database {target.name}, and so may not rename it", sql)
    sessions = await admin.fetch(_SESSIONS, target.name)
    if sessions and not force:
        raise _in_use(target.name, sessions)


def _not_permitted(target: Target, what: str, sql: str) -> RestoreError:
    return RestoreError(
        f"the user {target.user} {what} (SQLSTATE 42501)",
        remedy=f"As a superuser: {sql} Or restore as a user who may (MIGRATION_DATABASE_URL). Nothing was changed.",
        facts={"sqlstate": "42501", "user": target.user, "sql": sql},
    )


def _why_ended(terminating: asyncio.Task[None] | None) -> asyncpg.PostgresError | None:
    """Why sessions could not be terminated (42501, for those of a superuser), None where that was not tried or went."""
    if terminating is None or not terminating.done() or terminating.cancelled():
        return None
    error = terminating.exception()
    return error if isinstance(error, asyncpg.PostgresError) else None


def _in_use(
    name: str,
    sessions: Sequence[Any],
    *,
    restored_as: str | None = None,
    refused: asyncpg.PostgresError | None = None,
) -> RestoreError:
    shown = [f"{s['pid']} {s['application_name'] or s['user']!r}" for s in sessions[:_SHOWN_SESSIONS]]
    more = f" and {len(sessions) - _SHOWN_SESSIONS} more" if len(sessions) > _SHOWN_SESSIONS else ""
    left = f" What was restored is kept in {restored_as}: drop it." if restored_as else " Nothing was changed."
    why, remedy = "", "Stop the services that use it, or give --force to terminate them."
    if refused is not None:
        why = f"; they cannot be terminated: {refused} (SQLSTATE {refused.sqlstate})"
        remedy = "Stop the services that use it, or restore as a superuser or a member of pg_signal_backend."
    return RestoreError(
        f"{len(sessions)} sessions are on the database {name}: {', '.join(shown)}{more}{why}",
        remedy=f"{remedy}{left}",
        facts={
            "sessions": [dict(session) for session in sessions],
            "restored_as": restored_as,
            "sqlstate": None if refused is None else refused.sqlstate,
        },
    )


async def create_beside(admin: Any, new: Dsn, target: Target) -> None:
    """Make the database `new` like the one that it will replace; nobody else may enter it.

    Raises:
        RestoreError: it cannot be made.
    """
    try:
        await create_closed(admin, str(new.database), target.options)
        comment = f"orchestrator restore of {target.name}: may be dropped"
        await admin.execute(f"COMMENT ON DATABASE {identifier(str(new.database))} IS {literal(comment)}")
    except asyncpg.InsufficientPrivilegeError as error:
        raise _not_permitted(
            target, "may not create databases", f"ALTER ROLE {identifier(target.user)} CREATEDB;"
        ) from error
    except asyncpg.PostgresError as error:
        raise RestoreError(
            f"no new database can be made: {error} (SQLSTATE {error.sqlstate})",
            remedy="Fix what it names. Nothing was changed.",
            facts={"sqlstate": error.sqlstate},
        ) from error


async def name_leftovers(admin: Any, emit: Emit) -> None:
    """Say which databases killed restores, or such as could not be swapped, have left: each is as large as a backup.

    None is dropped here: what could not be swapped may be wanted.
    """
    rows = await admin.fetch(
        "SELECT d.datname::text FROM pg_catalog.pg_database d WHERE starts_with(d.datname::text, $1) AND NOT EXISTS"
        " (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid) ORDER BY 1",
        PREFIX,
    )
    if rows:
        _say_left(emit, [row[0] for row in rows])


def _say_left(emit: Emit, names: Sequence[str], **facts: object) -> None:
    drops = " ".join(f"DROP DATABASE {identifier(name)};" for name in names)
    emit(
        "restore.left_behind", level="warning", databases=list(names), hint=f"Where it is not wanted: {drops}", **facts
    )


async def give_up(dsn: Dsn, name: str, emit: Emit) -> None:
    """Drop the new database after an error, which stays the news: where the drop fails too, what is left is named."""
    try:
        await asyncio.shield(_drop(dsn, name))
    except (*CONNECTION_ERRORS, DatabaseUnavailableError) as error:  # TimeoutError is an OSError
        _say_left(emit, [name], error=type(error).__name__)


async def _drop(dsn: Dsn, name: str) -> None:
    async with asyncio.timeout(_DROP_TIMEOUT_S), maintenance(dsn) as admin:
        await admin.execute(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


def open_to_all(name: str) -> str:
    """The rights of a database that nobody has changed any of (PostgreSQL manual, 5.8)."""
    return f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC"


async def copy_properties(admin: Any, old: str, new: str, emit: Emit) -> None:
    """Owner, rights, settings, limit and comment: pg_dump leaves them to whoever creates the database."""
    row = await admin.fetchrow(
        "SELECT oid, pg_catalog.pg_get_userbyid(datdba)::text AS owner, datconnlimit, datacl IS NOT NULL AS has_acl,"
        " pg_catalog.shobj_description(oid, 'pg_database') AS comment FROM pg_catalog.pg_database WHERE datname = $1",
        old,
    )
    name = identifier(new)
    statements = [
        f"ALTER DATABASE {name} OWNER TO {identifier(row['owner'])}",
        f"ALTER DATABASE {name} CONNECTION LIMIT {row['datconnlimit']}",
        f"COMMENT ON DATABASE {name} IS {literal(row['comment'])}",
    ]
    if not row["has_acl"]:
        statements.append(open_to_all(name))
    else:
        grants = await admin.fetch(
            "SELECT CASE WHEN a.grantee = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END AS grantee,"
            " a.privilege_type::text AS privilege, a.is_grantable FROM pg_catalog.pg_database d,"
            " pg_catalog.aclexplode(d.datacl) a WHERE d.datname = $1",
            old,
        )
        statements += [
            f"GRANT {g['privilege']} ON DATABASE {name} TO {identifier(g['grantee']) if g['grantee'] else 'PUBLIC'}"
            + (" WITH GRANT OPTION" if g["is_grantable"] else "")
            for g in grants
        ]
    settings = await admin.fetch(
        "SELECT CASE WHEN s.setrole = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(s.setrole)::text END AS role,"
        " c AS setting FROM pg_catalog.pg_db_role_setting s, unnest(s.setconfig) c WHERE s.setdatabase = $1",
        row["oid"],
    )
    for setting in settings:
        key, _, value = setting["setting"].partition("=")
        whose = (
            f"DATABASE {name}" if setting["role"] is None else f"ROLE {identifier(setting['role'])} IN DATABASE {name}"
        )
        # FROM CURRENT takes the value as it is stored, lists of names included.
        statements.append(
            f"SELECT pg_catalog.set_config({literal(key)}, {literal(value)}, true);"  # noqa: S608 quoted
            f" ALTER {whose} SET {identifier(key)} FROM CURRENT"
        )
    for statement in statements:
        try:
            await admin.execute(statement)  # several in one message are one transaction: set_config is local to it
        except asyncpg.PostgresError as error:
            emit(
                "restore.property_not_copied",
                level="warning",
                sqlstate=error.sqlstate,
                error=str(error),
                hint=f"As a superuser: {statement};".replace(name, identifier(old)),
            )


async def swap(admin: Any, dsn: Dsn, names: tuple[str, str, str], *, force: bool) -> int:
    """Both renames in one transaction; returns how many sessions were terminated.

    ALTER DATABASE … RENAME locks the database against new sessions, then waits up to 5 s for those that are there to
    go: a second session ends them meanwhile. Nothing has to be put back if this process dies in between.
    """
    name, kept_as, new = names
    terminated = 0

    async def terminate(connection: Any) -> None:
        nonlocal terminated
        while True:
            terminated += await connection.fetchval(
                "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity"  # noqa: S608
                f" WHERE datname = $1 AND {_IS_CLIENT}",
                name,
            )
            await asyncio.sleep(_TERMINATE_EVERY_S)

    async with contextlib.AsyncExitStack() as stack:
        terminating = None
        if force:
            second = await stack.enter_async_context(maintenance(dsn))
            terminating = asyncio.create_task(terminate(second))
        try:
            async with admin.transaction():
                await admin.execute(f"ALTER DATABASE {identifier(name)} RENAME TO {identifier(kept_as)}")
                await admin.execute(f"ALTER DATABASE {identifier(new)} RENAME TO {identifier(name)}")
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.ObjectInUseError):
                refused = _why_ended(terminating)
                raise _in_use(name, await admin.fetch(_SESSIONS, name), restored_as=new, refused=refused) from error
            raise RestoreError(
                f"the databases cannot be renamed: {error} (SQLSTATE {error.sqlstate})",
                remedy=f"What was restored is kept in {new}; rename by hand, as a user who may:"
                f" ALTER DATABASE {identifier(name)} RENAME TO {identifier(kept_as)};"
                f" ALTER DATABASE {identifier(new)} RENAME TO {identifier(name)};",
                facts={"sqlstate": error.sqlstate, "restored_as": new},
            ) from error
        finally:
            if terminating is not None:
                terminating.cancel()
                await asyncio.wait([terminating])
    return terminated
