"""Each file begins with the session as the login made it, and our own rows are written as whoever logged in."""

import secrets
from urllib.parse import quote, urlsplit

import pytest

BREAK = "\n--> statement-breakpoint\n"
APPLIED = "SELECT count(*) FROM drizzle.__drizzle_migrations"


@pytest.fixture
def migrate(orchestrator, database_url, tmp_path, write):
    async def run(*files: str, url: str = database_url, **env: str):
        folder = write(tmp_path / "m", *((f"{number:04}_m", sql) for number, sql in enumerate(files)))
        env = {"DATABASE_URL": url, "MIGRATIONS_DIR": str(folder), **env}
        return await orchestrator("migrate", "--verbose", env=env)

    return run


def failure(result) -> dict:
    (event,) = [e for e in result.events if e["event"] == "service.failed"]
    return event


LEAKS = [
    "SET search_path = other",
    "SELECT set_config('search_path', '', false)",
    "DO $$ BEGIN PERFORM set_config('search_path', 'other', false); END $$",
    "SET client_encoding = 'LATIN1'",
    "SET DateStyle = 'SQL, DMY'",
    "SET standard_conforming_strings = off",
    "CREATE TEMP TABLE seen (id int)",
    "SELECT nextval('counter')",
    "PREPARE one AS SELECT 1",
    "COMMIT; SET search_path = other; BEGIN",
]
STATE = """CREATE TABLE public.state AS SELECT current_setting('search_path') AS path, current_user::text AS who,
    current_setting('client_encoding') AS encoding, current_setting('DateStyle') AS dates,
    current_setting('standard_conforming_strings') AS strings, to_regclass('pg_temp.seen') IS NULL AS has_no_table,
    (SELECT count(*) FROM pg_prepared_statements WHERE name = 'one') AS prepared;"""


@pytest.mark.parametrize("mode", ["each", "all"])
@pytest.mark.parametrize("leak", LEAKS)
async def test_what_one_file_sets_is_gone_in_the_next_also_within_a_run(migrate, admin, make_database, leak, mode):
    if mode == "all" and "COMMIT" in leak:
        pytest.skip("refused there")
    at_once, apart = await make_database(), await make_database()
    states = []
    for url in (at_once, apart):
        await admin.script(url, "CREATE SCHEMA other; CREATE SEQUENCE counter")
        if url == apart:
            assert (await migrate(leak, url=url, MIGRATION_TRANSACTION=mode)).returncode == 0
        result = await migrate(leak, STATE, url=url, MIGRATION_TRANSACTION=mode)
        assert result.returncode == 0, result.stderr
        states.append([tuple(row) for row in await admin(url, "SELECT * FROM state")])
        assert await admin.value(url, APPLIED) == 2
    assert states[0] == states[1]
    assert states[0][0][0] == '"$user", public'


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mode", ["each", "all"])
async def test_a_role_that_a_file_sets_is_that_files_alone_and_not_our_records(
    migrate, admin, database_url, mode, large
):
    """The text of a large file is kept in another way."""
    name = f"maker_{secrets.token_hex(4)}"
    filling = f"{BREAK}INSERT INTO t VALUES ('{'x' * (1 << 20)}');" if large else ""
    make = f"CREATE ROLE {name}; GRANT CREATE ON SCHEMA public TO {name}; SET ROLE {name};"
    make += f"CREATE TABLE t (v text);{filling}"
    try:
        result = await migrate(make, "CREATE TABLE u ();", MIGRATION_TRANSACTION=mode)
        assert result.returncode == 0, result.stderr
        owners = "SELECT relname, relowner::regrole::text FROM pg_class WHERE relname IN ('t', 'u') ORDER BY 1"
        assert [tuple(row) for row in await admin(database_url, owners)] == [
            ("t", name),
            ("u", urlsplit(database_url).username),
        ]
    finally:
        await admin.script(database_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


FILES = {
    "in the file": "CREATE TABLE {n} ();",
    "set role": "SET ROLE {guest};" + BREAK + "CREATE TABLE {n} ();",
    "set local role": "SET LOCAL ROLE {guest};" + BREAK + "CREATE TABLE {n} ();",
    "in steps": "COMMIT;"
    + BREAK
    + "SET ROLE {guest};"
    + BREAK
    + "CREATE TABLE {n} (id int);"
    + BREAK
    + "CREATE INDEX CONCURRENTLY ON {n} (id);"
    + BREAK
    + "CREATE TABLE {n}_2 ();",
}


@pytest.mark.parametrize("how", ["alter role", "options"])
async def test_a_login_that_may_do_nothing_by_itself_writes_with_the_role_that_it_began_with(
    migrate, admin, database_url, server, known, how
):
    """NOINHERIT, and a role that ALTER ROLE or the URL sets: ROLE NONE would be the login, which has no rights."""
    owner, guest, login = (f"{word}_{secrets.token_hex(4)}" for word in ("owner", "guest", "login"))
    password = secrets.token_hex(12)
    known.secrets.add(password)
    database = urlsplit(database_url).path[1:]
    await admin.script(
        database_url,
        f"CREATE ROLE {owner}; CREATE ROLE {guest}; GRANT {guest} TO {owner};"
        f" CREATE ROLE {login} LOGIN NOINHERIT PASSWORD '{password}' IN ROLE {owner}, {guest};"
        f" GRANT CREATE ON DATABASE {database} TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}, {guest}",
    )
    try:
        url = f"postgresql://{login}:{password}@{server.host}:{server.port}/{database}"
        if how == "options":
            url += f"?options={quote(f'-c role={owner}')}"
        else:
            await admin.script(database_url, f"ALTER ROLE {login} SET role = {owner}")
        names = [f"t{number}" for number in range(len(FILES))]
        result = await migrate(
            *(sql.format(n=n, guest=guest) for n, sql in zip(names, FILES.values(), strict=True)), url=url
        )
        assert result.returncode == 0, result.stderr
        rows = await admin(
            database_url,
            "SELECT relname, relowner::regrole::text FROM pg_class WHERE relname ~ '^t[0-9_]+$' ORDER BY 1",
        )
        assert [tuple(row) for row in rows] == [
            ("t0", owner),
            ("t1", guest),
            ("t2", guest),
            ("t3", guest),
            ("t3_2", guest),
        ]
        assert await admin.value(database_url, APPLIED) == len(FILES)
        theirs = (
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace"
        )
        assert [row[0] for row in await admin(database_url, theirs)] == [owner]
    finally:
        await admin.script(
            database_url, f"DROP OWNED BY {owner}, {guest}, {login} CASCADE; DROP ROLE {login}, {guest}, {owner}"
        )


async def test_session_authorization_that_a_file_sets_is_that_files_alone(migrate, admin, database_url):
    name = f"maker_{secrets.token_hex(4)}"
    await admin.script(database_url, f"CREATE ROLE {name}; GRANT CREATE ON SCHEMA public TO {name}")
    try:
        steps = BREAK.join(["COMMIT", f"SET SESSION AUTHORIZATION {name}", "CREATE TABLE c ()", "CREATE TABLE d ()"])
        result = await migrate(f"SET SESSION AUTHORIZATION {name}; CREATE TABLE a ();", "CREATE TABLE b ();", steps)
        assert result.returncode == 0, result.stderr
        owned = f"SELECT relname::text FROM pg_class WHERE relowner = '{name}'::regrole AND relkind = 'r' ORDER BY 1"
        assert [row[0] for row in await admin(database_url, owned)] == ["a", "c", "d"]
    finally:
        await admin.script(database_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_the_error_of_a_later_file_names_the_earlier_files_set(migrate, tmp_path):
    files = ["CREATE SCHEMA s; CREATE TABLE s.a (id int);", "SELECT 1;\nSET search_path = s;"]
    assert (await migrate(*files)).returncode == 0
    result = await migrate(*files, "ALTER TABLE a ADD COLUMN x int;")
    told = failure(result)
    assert told["sqlstate"] == "42P01"
    place = f"{tmp_path / 'm' / '0001_m.sql'}:2"
    assert told["earlier_setting"] == f"{place}: SET search_path = s"
    assert place in told["remedy"]
    assert "where drizzle's would hold on within one run" in told["remedy"]


async def test_standard_conforming_strings_of_a_database_are_honoured(migrate, admin, database_url):
    name = urlsplit(database_url).path[1:]
    await admin.script(database_url, f"ALTER DATABASE {name} SET standard_conforming_strings = off")
    result = await migrate(r"CREATE TABLE t AS SELECT 'a\tb' AS v;")
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT v FROM t") == "a\tb"
    assert await admin.value(database_url, "SELECT text FROM orchestrator.migration_records WHERE name = '0000_m'") == (
        r"CREATE TABLE t AS SELECT 'a\tb' AS v;"
    )


PLANTED = """
CREATE TABLE public.called (what text);
CREATE FUNCTION public.trap(what text) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.called VALUES (what); RETURN true; END $$;
CREATE FUNCTION public.eq(a text, b name) RETURNS bool LANGUAGE sql AS $$ SELECT public.trap('text = name') $$;
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = name, FUNCTION = public.eq);
CREATE FUNCTION public.eqn(a name, b text) RETURNS bool LANGUAGE sql AS $$ SELECT public.trap('name = text') $$;
CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.eqn);
CREATE FUNCTION public.div(a int, b numeric) RETURNS int LANGUAGE sql AS
    $$ SELECT 1 FROM public.trap('int / numeric') $$;
CREATE OPERATOR public./ (LEFTARG = int, RIGHTARG = numeric, FUNCTION = public.div);
CREATE FUNCTION public.minus(a numeric, b double precision) RETURNS numeric LANGUAGE sql AS
    $$ SELECT 1.0 FROM public.trap('numeric - float8') $$;
CREATE OPERATOR public.- (LEFTARG = numeric, RIGHTARG = double precision, FUNCTION = public.minus);
CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS
    $$ SELECT pg_catalog.now() FROM public.trap('now') $$;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
    $$ SELECT pg_catalog.clock_timestamp() FROM public.trap('clock_timestamp') $$;
CREATE FUNCTION public.statement_timestamp() RETURNS timestamptz LANGUAGE sql AS
    $$ SELECT pg_catalog.statement_timestamp() FROM public.trap('statement_timestamp') $$;
"""


async def test_nothing_of_ours_in_the_migrations_session_calls_what_others_have_planted(migrate, admin, database_url):
    """A path that leads to public first, as a role may have it; the file's own statements do find what is there."""
    await admin.script(database_url, PLANTED)
    await admin.script(
        database_url, f"ALTER DATABASE {urlsplit(database_url).path[1:]} SET search_path = public, pg_catalog"
    )
    steps = BREAK.join(
        ["CREATE INDEX CONCURRENTLY i ON d (id)", "REINDEX INDEX CONCURRENTLY i", "DROP INDEX CONCURRENTLY i"]
    )
    large = f"CREATE TABLE l (v text);{BREAK}INSERT INTO l VALUES ('{'x' * (1 << 20)}');"
    files = [
        "CREATE TABLE a ();",
        "CREATE TABLE b ();",
        "CREATE TABLE d (id int); INSERT INTO d VALUES (1);",
        steps,
        large,
    ]
    result = await migrate(*files)
    assert result.returncode == 0, result.stderr
    assert [row[0] for row in await admin(database_url, "SELECT DISTINCT what FROM public.called")] == []
    result = await migrate(*files, "CREATE TABLE e AS SELECT now() AS at;")
    assert result.returncode == 0, result.stderr
    assert [row[0] for row in await admin(database_url, "SELECT DISTINCT what FROM public.called")] == ["now"]


async def test_no_plan_of_ours_is_compiled_and_a_file_may_want_its_own_to_be(migrate, admin, database_url):
    name = urlsplit(database_url).path[1:]
    await admin.script(database_url, f"ALTER DATABASE {name} SET jit = on")
    result = await migrate(
        "CREATE TABLE t AS SELECT current_setting('jit') AS v;",
        "SET jit = on; INSERT INTO t SELECT current_setting('jit');",
        "INSERT INTO t SELECT current_setting('jit');",
    )
    assert result.returncode == 0, result.stderr
    assert [row["v"] for row in await admin(database_url, "SELECT v FROM t")] == ["off", "on", "off"]
