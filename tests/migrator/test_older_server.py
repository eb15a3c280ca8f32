"""What the grammar here refuses the server judges: keywords of later releases are names to an older one."""

import os

import pytest
from support.installed_server import OLDER, installed_server

from orchestrator.migrator.sql.dialect import pieces

pytestmark = pytest.mark.skipif(not OLDER and not os.environ.get("CI"), reason="needs an installed PostgreSQL below 18")

FUNCTION = (
    "CREATE FUNCTION json_value(j jsonb, k text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT j ->> k $$;\n"
    "CREATE TABLE t (id serial PRIMARY KEY, merge_action text, json_array int[] DEFAULT '{}', j jsonb);\n"
    "INSERT INTO t (j) VALUES ('{\"a\": 1}'), ('{\"a\": 2}');\n"
)


@pytest.fixture(scope="module")
def older():
    with installed_server(OLDER[-1]) as url:
        yield url


@pytest.fixture
async def url(older, admin):
    name = f"older_{os.urandom(4).hex()}"
    await admin(older, f"CREATE DATABASE {name}")
    yield older.replace("/postgres", f"/{name}")
    await admin(older, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def migrate(orchestrator, url, tmp_path, write):
    async def run(*texts: str, **env: str):
        files = [(f"{n:04}_m", text) for n, text in enumerate(texts)]
        return await orchestrator(
            "migrate", env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(write(tmp_path / "m", *files)), **env}
        )

    return run


async def test_names_that_have_become_keywords_are_names_to_an_older_server(migrate, admin, url):
    use = "SELECT json_value(j, 'a'), t.json_array FROM t; UPDATE t SET merge_action = json_value(j, 'a');"
    result = await migrate(FUNCTION, use, "CREATE TABLE behind ();")
    assert result.returncode == 0, result.stderr
    assert await admin.value(url, "SELECT array_agg(merge_action ORDER BY id) FROM t") == ["1", "2"]
    assert await admin.value(url, "SELECT array_agg(id ORDER BY id) FROM t") == [1, 2]
    assert await admin.value(url, "SELECT to_regclass('behind') IS NOT NULL")


async def test_what_they_are_is_known_all_the_same(migrate, admin, url):
    result = await migrate(
        FUNCTION,
        "CREATE INDEX CONCURRENTLY i ON t (json_value(j, 'a'::text));\nALTER TABLE t ADD COLUMN json_object text;",
        "CREATE FUNCTION json_scalar(i int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN i > 0 THEN 1 END; SELECT 2; END;"
        "CREATE TABLE seen AS SELECT json_scalar(1) AS v",
        "COMMIT; DO $$ BEGIN CREATE TABLE json_exists (); COMMIT; CREATE TABLE json_query (); END $$;"
        " CREATE TABLE json_table (json_table int);",
    )
    assert result.returncode == 0, result.stderr
    assert await admin.value(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass")
    assert await admin.value(url, "SELECT v FROM seen") == 2
    assert await admin.value(
        url, "SELECT to_regclass('json_query') IS NOT NULL AND to_regclass('\"json_table\"') IS NOT NULL"
    )


async def test_what_the_server_refuses_too_is_the_files_error_at_its_place(migrate, admin, url):
    function = "CREATE FUNCTION json_value(j jsonb) RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
    for text, place in {
        f"SELECT 1;\n{function}SELEC 2;": ":3:1: ",
        f"{function}\nCREATE TABLE ä (a int,);": ":3:23: ",
        "SELECT json_value('{}', 'a' b);": ":1:29: ",
        "SELECT json_value(1);\nSELECT 'open;": ":2:8: unterminated",
    }.items():
        result = await migrate("CREATE TABLE first ();", text)
        assert result.returncode == 70, result.stderr
        assert f"0001_m.sql{place}" in result.stderr, result.stderr
        assert await admin.value(url, "SELECT to_regclass('first') IS NULL")  # nothing was run


async def test_nothing_of_a_file_runs_while_the_server_judges_it(migrate, admin, url):
    result = await migrate("CREATE TABLE json_array (a int); INSERT INTO json_array VALUES (1 2);")
    assert result.returncode == 70
    assert await admin.value(url, "SELECT to_regclass('json_array') IS NULL")


async def test_one_transaction_for_all_takes_them_as_well(migrate, admin, url):
    result = await migrate(FUNCTION, "SELECT json_value(j, 'a') FROM t;", MIGRATION_TRANSACTION="all")
    assert result.returncode == 0, result.stderr
    assert await admin.value(url, "SELECT count(*) FROM t") == 2


async def test_a_chunk_ends_at_a_breakpoint(migrate, admin, url):
    result = await migrate(f"{FUNCTION}--> statement-breakpoint\nCREATE TABLE b (json_table int)")
    assert result.returncode == 0, result.stderr
    assert await admin.value(url, "SELECT to_regclass('b') IS NOT NULL")


KEYWORDS = frozenset(b"create table select from begin end case when then".decode().split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT (1;2); SELECT 3", ["SELECT (1;2)", "SELECT 3"]),
        ("SELECT json_value(1) -- a; b\n; /* ; */", ["SELECT json_value(1)"]),
        ("SELECT ';', $$;$$, \";\";;SELECT 2;", ["SELECT ';', $$;$$, \";\"", "SELECT 2"]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE 1 WHEN 1 THEN 2 END; END; SELECT 1",
            ["CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE 1 WHEN 1 THEN 2 END; END", "SELECT 1"],
        ),
        ("BEGIN; SELECT 1; END; SELECT ) ; SELECT 2", ["BEGIN", "SELECT 1", "END", "SELECT )", "SELECT 2"]),
        ("; ;", []),
    ],
)
def test_statements_are_told_apart_by_their_tokens(text, expected):
    raw = text.encode()
    assert [raw[piece.offset : piece.end].decode() for piece in pieces(raw, KEYWORDS)] == expected


async def test_a_replay_takes_them_as_well(migrate, orchestrator, url, tmp_path, write):
    assert (await migrate(FUNCTION)).returncode == 0
    env = {"DATABASE_URL": url, "MIGRATIONS_DIR": str(tmp_path / "m")}
    result = await orchestrator("verify", env=env)
    assert result.returncode == 0, (result.stdout, result.stderr)
    files = [("0000_m", FUNCTION), ("0001_m", "UPDATE t SET merge_action = json_value(j, 'a') WHERE id = 1;")]
    write(tmp_path / "m", *files)
    for command in ("rehearse", "plan", "lint"):
        result = await orchestrator(command, env=env)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    write(tmp_path / "m", *files, ("0002_m", "SELECT json_value(1); SELEC 2;"))
    assert "0002_m.sql:1:23: syntax error" in (await orchestrator("plan", env=env)).stderr
    linted = await orchestrator("lint", env=env)
    assert (linted.returncode, "  1:23  error syntax" in linted.stdout) == (1, True), linted
