"""A replay touches its scratch database and nothing else: whatever the folder's files would do to the server."""

import json
import secrets

import pytest

BREAK = "\n--> statement-breakpoint\n"

# One of each kind; `{role}` and `{other}` are a live role and a live database, `{file}` a file of the server.
STATEMENTS = {
    "a role is made": "CREATE ROLE {role} LOGIN",
    "a password is set": "ALTER ROLE {role} PASSWORD 'overwritten'",
    "a role gets a setting": "ALTER ROLE {role} SET work_mem = '1GB'",
    "a role is granted": "GRANT pg_monitor TO {role}",
    "a database is dropped": "DROP DATABASE IF EXISTS {other}",
    "a database is renamed": "ALTER DATABASE {other} RENAME TO {other}_x",
    "a database gets a setting": "ALTER DATABASE {other} SET work_mem = '1GB'",
    "a database gets an owner": "ALTER DATABASE {other} OWNER TO {role}",
    "a database gets a comment": "COMMENT ON DATABASE {other} IS 'overwritten'",
    "the server gets a setting": "ALTER SYSTEM SET work_mem = '1GB'",
    "a program is run": "COPY (SELECT 1) TO PROGRAM 'cat > {file}'",
    "a file is written": "COPY (SELECT 1) TO '{file}'",
    "a session is ended": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{other}'",
    "a block makes a role": (
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}_b') THEN CREATE ROLE {role}_b; END IF;"
        " END $$"
    ),
    "a block executes a constant": "DO $$ BEGIN EXECUTE 'ALTER ROLE {role} PASSWORD ''overwritten'''; END $$",
    "a function is called that does it": (
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " ALTER ROLE {role} PASSWORD 'overwritten'; END $$;" + BREAK + "SELECT f()"
    ),
    "what a role owns is given away": "REASSIGN OWNED BY {role} TO CURRENT_USER",
    "a role is dropped": "DROP ROLE IF EXISTS {role}",
}
CLUSTER = """
SELECT jsonb_build_object(
  'roles', (SELECT jsonb_object_agg(rolname, rolpassword) FROM pg_authid WHERE rolname LIKE '{role}%'),
  'members', (SELECT count(*) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
     WHERE r.rolname LIKE '{role}%'),
  'settings', (SELECT coalesce(jsonb_agg(s.setconfig), '[]') FROM pg_db_role_setting s
     LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole
     WHERE d.datname LIKE '{other}%' OR r.rolname LIKE '{role}%'),
  'system', (SELECT count(*) FROM pg_file_settings WHERE sourcefile LIKE '%auto.conf'),
  'databases', (SELECT jsonb_agg(jsonb_build_array(datname, pg_get_userbyid(datdba),
     shobj_description(oid, 'pg_database')) ORDER BY datname) FROM pg_database WHERE datname LIKE '{other}%'))::text
"""


@pytest.fixture
async def place(make_database, admin, server, tmp_path):
    """A live role with a password, a live database, a file that the server could write, and what is as it was."""
    name = f"outside_{secrets.token_hex(4)}"
    words = {"role": name, "other": f"{name}_db", "file": f"/tmp/{name}"}
    await admin.script(server.dsn(), f"CREATE ROLE {name} LOGIN PASSWORD 'as-it-was'")
    await admin.script(server.dsn(), f"CREATE DATABASE {name}_db")
    yield words
    await admin.script(server.dsn(), f"DROP DATABASE IF EXISTS {name}_db")
    await admin.script(server.dsn(), f"DROP ROLE IF EXISTS {name}")


async def cluster(admin, server, words) -> str:
    return await admin.value(server.dsn(), CLUSTER.replace("{role}", words["role"]).replace("{other}", words["other"]))


@pytest.fixture
def folder(tmp_path, write, place):
    """One of each, among what a migration is for."""
    files = [("0000_t", "CREATE TABLE t (id serial PRIMARY KEY);")]
    for number, sql in enumerate(STATEMENTS.values(), 1):
        text = sql.replace("{role}", place["role"]).replace("{other}", place["other"]).replace("{file}", place["file"])
        text = text.replace(" f()", f" f{number}()")
        files.append((f"{number:04}_m", f"CREATE TABLE t{number} (id int);{BREAK}{text};"))
    files.append(("0099_grant", f"GRANT SELECT ON t TO {place['role']};{BREAK}CREATE TABLE last (id int);"))
    return write(tmp_path / "m", *files)


async def test_rehearse_leaves_the_server_as_it_was_and_names_what_it_left_out(
    orchestrator, admin, server, database_url, place, folder
):
    before = await cluster(admin, server, place)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    for more in ((), ("--from-files",)):
        done = await orchestrator("rehearse", "--json", *more, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        told = " ".join(json.loads(done.stdout)["notes"])
        for what in ("CREATE ROLE", "ALTER ROLE", "DROP DATABASE", "ALTER SYSTEM", "PROGRAM", "pg_terminate_backend"):
            assert what in told, what
        assert "overwritten" not in done.stdout + done.stderr
        assert await cluster(admin, server, place) == before


async def test_verify_and_baseline_leave_the_server_as_it_was(
    orchestrator, admin, server, make_database, place, folder, tmp_path
):
    before = await cluster(admin, server, place)
    live = await make_database()
    env = {"DATABASE_URL": live, "MIGRATIONS_DIR": str(folder)}
    # What the files make in the database itself, and no ledger: as `drizzle-kit push` leaves it.
    numbers = range(1, len(STATEMENTS) + 1)
    tables = "CREATE TABLE t (id serial PRIMARY KEY); CREATE TABLE last (id int);" + "".join(
        f"CREATE TABLE t{n} (id int);" for n in numbers
    )
    await admin.script(live, tables)
    number = list(STATEMENTS).index("a function is called that does it") + 1
    await admin.script(
        live,
        f"CREATE FUNCTION f{number}() RETURNS void LANGUAGE plpgsql AS $$ BEGIN ALTER ROLE {place['role']}"
        " PASSWORD 'overwritten'; END $$",
    )
    done = await orchestrator("repair", "baseline", "--yes", "--to", "0099_grant", "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert await cluster(admin, server, place) == before
    done = await orchestrator("verify", "--schema", "public", "--json", env=env)
    found = json.loads(done.stdout)
    assert any("CREATE ROLE" in note for note in found["notes"])
    assert await cluster(admin, server, place) == before
    assert (done.returncode, found["differences"]) == (0, [])


async def test_generate_leaves_the_server_as_it_was(orchestrator, admin, server, database_url, place, folder, tmp_path):
    before = await cluster(admin, server, place)
    (tmp_path / "my_models.py").write_text(
        "import sqlalchemy as sa\nm = sa.MetaData()\nsa.Table('t', m, sa.Column('id', sa.Integer, primary_key=True))\n"
    )
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "SCHEMA": "my_models:m"}
    done = await orchestrator("generate", "--check", "--json", env=env, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr  # the tables that the model lacks
    assert any("CREATE ROLE" in text for text in json.loads(done.stdout)["left_out"])
    assert await cluster(admin, server, place) == before


async def test_lint_flags_each_kind(orchestrator, folder):
    done = await orchestrator("lint", "--offline", "--all", "--json", env={"MIGRATIONS_DIR": str(folder)})
    found = json.loads(done.stdout)["findings"]
    flagged = {one["file"].split("/")[-1] for one in found if one["rule"] in {"outside-database", "drop-database"}}
    assert flagged == {f"{number:04}_m.sql" for number in range(1, len(STATEMENTS) + 1)}


async def test_what_is_needed_by_the_rest_is_refused_before_anything_runs(
    orchestrator, admin, server, database_url, write, tmp_path, place
):
    sql = f"CREATE ROLE {place['role']}_new;{BREAK}CREATE SCHEMA mine AUTHORIZATION {place['role']}_new;"
    folder = write(tmp_path / "needed", ("0000_x", sql))
    before = await cluster(admin, server, place)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    done = await orchestrator("rehearse", "--from-files", env=env)
    assert done.returncode == 70
    assert "cannot be replayed" in done.stdout + done.stderr
    assert await cluster(admin, server, place) == before


async def test_a_grant_to_a_role_that_is_not_made_is_left_out_with_it(
    orchestrator, admin, server, database_url, write, tmp_path, place
):
    role = f"{place['role']}_new"
    sql = f"CREATE ROLE {role};{BREAK}CREATE TABLE t (id int);{BREAK}GRANT SELECT ON t TO {role};"
    folder = write(tmp_path / "granted", ("0000_x", sql))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    done = await orchestrator("rehearse", "--from-files", "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("which this server does not have" in note for note in json.loads(done.stdout)["notes"])
