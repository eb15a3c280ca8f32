"""Every session is opened by kind: whose search path it has, whose limits, and that it keeps them."""

from urllib.parse import urlsplit

import pytest

from orchestrator import dsn as dsns
from orchestrator.database.connect import close, connect_once, open_pool
from orchestrator.database.sessions import OUR_PATH, as_ours, role_schemas

ROLES = {
    "search_path": "public, pg_catalog",
    "statement_timeout": "1234ms",
    "idle_in_transaction_session_timeout": "1234ms",
    "default_transaction_isolation": "serializable",
    "transform_null_equals": "on",
    "default_transaction_read_only": "on",
}
LIMITLESS = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
MEANT = {"default_transaction_isolation": "read committed", "transform_null_equals": "off"}
EXPECTED = {
    "ours": {**ROLES, "search_path": OUR_PATH, **LIMITLESS, **MEANT},
    "migration": {**ROLES, **LIMITLESS},
    "handlers": ROLES,
}


@pytest.fixture
async def dsn(database_url, admin, server):
    """A database whose settings are all against us."""
    name = urlsplit(database_url).path[1:]
    for setting, value in ROLES.items():
        written = value if setting == "search_path" else f"'{value}'"
        await admin.script(server.dsn(), f'ALTER DATABASE "{name}" SET {setting} = {written}')
    return dsns.parse(database_url)


async def settings_of(connection):
    rows = await connection.fetch(
        "SELECT n, pg_catalog.current_setting(n) AS v FROM pg_catalog.unnest($1::text[]) n", list(ROLES)
    )
    return {row["n"]: row["v"] for row in rows}


@pytest.mark.parametrize("kind", ["ours", "migration", "handlers"])
async def test_a_session_has_the_settings_of_its_kind_also_after_a_pool_s_reset(dsn, kind):
    connection = await connect_once(dsn, timeout_s=5, application_name="test", kind=kind)
    try:
        assert await settings_of(connection) == EXPECTED[kind]
    finally:
        await close(connection)
    pool = await open_pool(dsn, kind=kind, max_size=1, application_name="test")
    try:
        async with pool.acquire() as one:
            pid = one.get_server_pid()
            await one.execute("SET search_path = nowhere; SET statement_timeout = 99")
        async with pool.acquire() as one:
            assert one.get_server_pid() == pid
            assert await settings_of(one) == EXPECTED[kind]
            assert await one.fetchval("SELECT pg_catalog.current_setting('tcp_keepalives_idle')") == "4"
    finally:
        pool.terminate()


async def test_ours_can_ask_for_the_path_of_the_role_and_a_migration_s_session_can_use_ours(dsn):
    ours = await connect_once(dsn, timeout_s=5, application_name="test")
    migration = await connect_once(dsn, timeout_s=5, application_name="test", kind="migration")
    try:
        async with ours.transaction():
            assert await role_schemas(ours) == ["public", "pg_catalog"]
            assert await ours.fetchval("SHOW search_path") == OUR_PATH
        async with as_ours(migration):
            assert await migration.fetchval("SHOW search_path") == OUR_PATH
        assert await migration.fetchval("SHOW search_path") == ROLES["search_path"]
    finally:
        await close(ours)
        await close(migration)


async def test_a_type_is_looked_up_by_no_planted_function_whatever_the_path(database_url, admin):
    await admin.script(
        database_url,
        """CREATE TABLE called (who name);
        CREATE FUNCTION step(state oid[], one oid) RETURNS oid[] LANGUAGE plpgsql AS
          $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN state || one; END $$;
        CREATE AGGREGATE array_agg(oid) (SFUNC = step, STYPE = oid[]);
        CREATE TYPE pair AS (a int, b text); CREATE TYPE triple AS (a int, b text, c date)""",
    )
    for kind in ("handlers", "migration", "ours"):
        connection = await connect_once(dsns.parse(database_url), timeout_s=5, application_name="test", kind=kind)
        try:
            assert await connection.fetchval("SELECT (1, 'x')::public.pair") == (1, "x")
            if kind == "ours":
                continue
            async with connection.transaction():
                await connection.execute("SET LOCAL search_path = public, pg_catalog")
                assert await connection.fetchval("SELECT (1, 'x', NULL)::public.triple") == (1, "x", None)
                assert await connection.fetchval("SHOW search_path") == "public, pg_catalog"
        finally:
            await close(connection)
    assert await admin.value(database_url, "SELECT count(*) FROM called") == 0
