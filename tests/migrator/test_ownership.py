"""Who was in the database before us: code of others in a ledger or in our schema is refused before it runs."""

import secrets
from urllib.parse import urlsplit

import pytest

FOLDER = ("0000_a", "CREATE TABLE public.a ();")
EVIL = """
CREATE TABLE public.called (who text);
GRANT ALL ON public.called TO PUBLIC;
CREATE FUNCTION public.evil() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN NEW; END $$;
CREATE FUNCTION public.bad(anyelement) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN true; END $$;
"""
LEDGER = "CREATE TABLE drizzle.__drizzle_migrations (id serial PRIMARY KEY, hash text NOT NULL, created_at bigint);"
LEDGER = f"CREATE SCHEMA drizzle; {LEDGER}"
FUNCTION = "function public.bad(anyelement) belongs to"
PLANTED = {
    "an owned ledger": (LEDGER, "table drizzle.__drizzle_migrations belongs to"),
    "a trigger": (
        (
            f"{LEDGER} CREATE TRIGGER t BEFORE INSERT ON drizzle.__drizzle_migrations"
            " FOR EACH ROW EXECUTE FUNCTION public.evil()"
        ),
        "function public.evil() belongs to",
    ),
    "a check": (f"{LEDGER} ALTER TABLE drizzle.__drizzle_migrations ADD CHECK (public.bad(hash))", FUNCTION),
    "a default": (
        f"{LEDGER} ALTER TABLE drizzle.__drizzle_migrations ADD COLUMN x boolean DEFAULT public.bad(1)",
        FUNCTION,
    ),
    "a policy": (
        (
            f"{LEDGER} ALTER TABLE drizzle.__drizzle_migrations ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY p ON drizzle.__drizzle_migrations USING (public.bad(hash))"
        ),
        FUNCTION,
    ),
    "a domain": (
        (
            "CREATE SCHEMA drizzle; CREATE DOMAIN public.d AS text CHECK (public.bad(VALUE));"
            " CREATE TABLE drizzle.__drizzle_migrations (id serial PRIMARY KEY, hash public.d, created_at bigint)"
        ),
        FUNCTION,
    ),
    "an operator in an index": (
        (
            "CREATE FUNCTION public.bad(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN $1; END $$;"
            f" CREATE OPERATOR public.~~~ (RIGHTARG = text, FUNCTION = public.bad); {LEDGER}"
            " CREATE INDEX ON drizzle.__drizzle_migrations ((OPERATOR(public.~~~) hash))"
        ),
        "function public.bad(text) belongs to",
    ),
    "a rule": (
        f"{LEDGER} CREATE RULE r AS ON INSERT TO drizzle.__drizzle_migrations DO ALSO SELECT public.bad(1)",
        FUNCTION,
    ),
    "a view": (
        (
            "CREATE SCHEMA drizzle; CREATE VIEW drizzle.__drizzle_migrations"
            " AS SELECT 1 AS id, 'x'::text AS hash, 1::bigint AS created_at WHERE public.bad(1)"
        ),
        "view drizzle.__drizzle_migrations belongs to",
    ),
    "a child": (
        f"{LEDGER} CREATE TABLE public.child () INHERITS (drizzle.__drizzle_migrations)",
        "table public.child belongs to",
    ),
    "our schema": ("CREATE SCHEMA orchestrator", "schema orchestrator belongs to"),
}


@pytest.fixture
async def mallory(database_url, server, admin):
    """A role that may create schemas and objects in the database: its name and DSN."""
    name, database = f"mallory_{secrets.token_hex(4)}", urlsplit(database_url).path[1:]
    await admin.script(
        database_url,
        f"CREATE ROLE {name} LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE {database} TO {name};"
        f" GRANT CREATE ON SCHEMA public TO {name}",
    )
    yield name, f"postgresql://{name}:x@{server.host}:{server.port}/{database}"
    await admin.script(
        database_url, f"REASSIGN OWNED BY {name} TO {server.user}; DROP OWNED BY {name} CASCADE; DROP ROLE {name}"
    )


@pytest.mark.parametrize("how", PLANTED)
async def test_what_others_planted_is_refused_by_name_before_it_runs(
    how, orchestrator, database_url, mallory, admin, write, tmp_path
):
    name, dsn = mallory
    sql, said = PLANTED[how]
    await admin.script(dsn, EVIL + sql)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", FOLDER))}
    for command in (["migrate"], ["serve"], ["repair", "applied", "0000_a", "--yes"]):
        result = await orchestrator(*command, env=env)
        assert result.returncode == 78, result.stderr
        (failed,) = result.named("service.failed") or [{"error": result.stderr, "remedy": result.stderr}]
        assert f"{said} {name}" in failed["error"], failed
        assert f"MIGRATION_TRUSTED_OWNERS={name}" in failed["remedy"]
    # Who only reads is refused only where reading runs code.
    for command in ("status", "plan"):
        result = await orchestrator(command, env=env)
        assert result.returncode == (78 if how in {"a view", "a policy", "a rule"} else 0), result.stderr
    assert await admin.value(database_url, "SELECT count(*) FROM public.called WHERE who <> $1", name) == 0
    if how != "our schema":
        assert await admin.value(database_url, "SELECT to_regnamespace('orchestrator') IS NULL")


async def test_what_a_trusted_role_owns_is_used_and_so_is_what_is_ours(
    orchestrator, database_url, mallory, admin, write, tmp_path
):
    name, dsn = mallory
    await admin.script(dsn, LEDGER)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", FOLDER))}
    assert (await orchestrator("migrate", env=env)).returncode == 78
    assert (await orchestrator("migrate", env=env | {"MIGRATION_TRUSTED_OWNERS": name})).returncode == 0
    # The database's owner is trusted by us, and what we own by whoever is a member of ours.
    database = urlsplit(database_url).path[1:]
    await admin.script(database_url, f"ALTER DATABASE {database} OWNER TO {name}")
    assert (await orchestrator("migrate", env=env)).returncode == 0


async def test_a_schema_of_our_name_that_another_application_uses_is_refused_with_what_is_in_it(
    orchestrator, database_url, admin, write, tmp_path
):
    await admin.script(
        database_url,
        "CREATE SCHEMA orchestrator; CREATE TABLE orchestrator.jobs (a int); CREATE TYPE orchestrator.mood AS ENUM ();"
        " CREATE FUNCTION orchestrator.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", FOLDER))}
    result = await orchestrator("migrate", env=env | {"EXTENSIONS": "hstore"})
    assert result.returncode == 78
    (failed,) = result.named("service.failed")
    for what in ("table orchestrator.jobs", "function orchestrator.f()", "type orchestrator.mood"):
        assert what in failed["error"]
    left = "SELECT array_agg(relname::text) FROM pg_class WHERE relnamespace = 'orchestrator'::regnamespace"
    assert await admin.value(database_url, left) == ["jobs"]
    assert await admin.value(database_url, "SELECT count(*) FROM pg_extension WHERE extname = 'hstore'") == 0
    await admin.script(database_url, "DROP SCHEMA orchestrator CASCADE; CREATE SCHEMA orchestrator")
    assert (await orchestrator("migrate", env=env)).returncode == 0  # one that is empty was made for us
