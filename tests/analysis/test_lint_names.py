"""`lint` and `plan` with a database know its names: what is missing, or there already, is an error in both."""

import pytest

from orchestrator.analysis.lint import lint_with_ledger, read_lint_folder
from orchestrator.analysis.plan import preview
from orchestrator.database.connect import own_session
from orchestrator.dsn import parse
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source

BEFORE = """CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE orders (id int PRIMARY KEY, total int, feel mood);
CREATE TABLE parts (id int) PARTITION BY LIST (id);
CREATE VIEW shown AS SELECT id FROM orders; CREATE INDEX orders_total ON orders (total);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"""
FAILS = {
    "ALTER TABLE orderz ADD COLUMN a int": "the relation orderz does not exist; the nearest that does is orders",
    "ALTER TABLE orders DROP COLUMN totl": "the column totl of orders does not exist; the nearest that does is total",
    "CREATE INDEX i ON orders (totl)": "the column totl of orders does not exist",
    "ALTER TABLE orders ADD COLUMN m modo": "the type modo does not exist; the nearest that does is mood",
    "GRANT SELECT ON orders TO no_such_role_here": "the role no_such_role_here does not exist",
    "CREATE EXTENSION no_such_extension": "the extension no_such_extension does not exist",
    "INSERT INTO orderz VALUES (1)": "the relation orderz does not exist",
    "INSERT INTO orders (ident) VALUES (1)": "the column ident of orders does not exist",
    "CREATE TABLE sales.t (id int)": "the schema sales does not exist",
    "SELECT lowr('A')": "the function lowr does not exist; the nearest that does is lower",
    "CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION tuch()": "the function tuch does not exist",
    "DROP TABLE gone": "the table gone does not exist",
    "CREATE TABLE orders (id int)": "the table orders is there already",
    "CREATE TYPE mood AS ENUM ('a')": "the type mood is there already",
    "CREATE INDEX orders_total ON orders (id)": "the index orders_total is there already",
    "ALTER TABLE orders ADD COLUMN total int": "orders has a column total already",
    "CREATE EXTENSION plpgsql": "the extension plpgsql is there already",
    "DROP TABLE shown_not; CREATE TABLE late (id int)": "the table shown_not does not exist",
    "DROP VIEW shown; DROP TABLE orders; SELECT * FROM orders": "the relation orders does not exist",
    "ALTER TABLE orders RENAME TO sales; UPDATE orders SET total = 1": "the relation orders does not exist",
}
PASSES = [
    "CREATE TABLE a (id serial PRIMARY KEY, of mood REFERENCES a); ALTER SEQUENCE a_id_seq RESTART",
    "CREATE TABLE IF NOT EXISTS orders (id int); ALTER TABLE orders ADD COLUMN IF NOT EXISTS total int",
    "DROP TABLE IF EXISTS gone; DROP TYPE IF EXISTS gone; ALTER TABLE IF EXISTS gone ADD COLUMN x gone",
    "ALTER TABLE orders RENAME COLUMN total TO sum; ALTER TABLE orders ALTER COLUMN sum SET NOT NULL",
    "ALTER TABLE orders DROP COLUMN total, ADD COLUMN total text; CREATE INDEX orders_total ON orders (total)",
    "DO $$ BEGIN CREATE TYPE mood AS ENUM ('x'); EXCEPTION WHEN duplicate_object THEN null; END $$",
    "DO $$ BEGIN EXECUTE 'CREATE TABLE seen (id int)'; END $$; INSERT INTO seen VALUES (1)",
    "DO $$ BEGIN IF NOT EXISTS (SELECT) THEN ALTER TABLE orders ADD COLUMN total int; END IF; END $$",
    "WITH w AS (SELECT * FROM orders) SELECT * FROM w; SELECT o.id FROM orders o FOR UPDATE OF o",
    "CREATE TABLE parts_1 PARTITION OF parts DEFAULT; ALTER TABLE parts ADD COLUMN n int; CREATE INDEX ON parts_1 (n)",
    "CREATE EXTENSION hstore; CREATE TABLE h (a hstore)",
    "CREATE TEMP TABLE orders (x int); INSERT INTO orders (x) VALUES (1)",
    "CREATE SCHEMA s; CREATE TABLE s.orders (id int); SET search_path = s; ALTER TABLE orders DROP COLUMN id",
    "SELECT * FROM pg_class, information_schema.tables; SELECT now(), date('2020-01-01')",
    "DROP TYPE mood CASCADE; CREATE TYPE mood AS ENUM ('x'); ALTER TABLE orders ADD COLUMN feel mood",
    "CREATE FUNCTION f(a anyelement) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE VIEW v AS SELECT f(id) FROM orders",
    (
        "CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION touch(); DROP TRIGGER t ON orders;"
        "DROP POLICY IF EXISTS p ON orders; COMMENT ON COLUMN orders.id IS 'x'; ALTER TABLE orders ADD COLUMN n int"
    ),
    "CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int4); SELECT total(id) FROM orders",
    "INSERT INTO orders VALUES (1) ON CONFLICT (id) DO UPDATE SET total = excluded.total WHERE orders.id = 1",
]


@pytest.fixture
def told(database_url, admin, write, tmp_path):
    """`await told(files…)` → errors of lint, failures of plan, and the pending files of plan."""

    async def run(*files: str, before: str = BEFORE, transaction: str = "each", extensions=()):
        if before:
            await admin.script(database_url, before)
        path = write(tmp_path / "m", *((f"{n:04}_m", text) for n, text in enumerate(files)))
        source = Source("user", read_folder(path), LedgerTable("drizzle", "__drizzle_migrations"))
        async with (
            own_session(parse(database_url), application_name="t") as connection,
            connection.transaction(readonly=True, isolation="repeatable_read"),
        ):
            report, _ = await lint_with_ledger(
                connection, source, read_lint_folder(path), every=False, extensions=extensions
            )
            planned = await preview(
                connection, [source], policy="drizzle", ahead="refuse", transaction=transaction, extensions=extensions
            )
        pending = planned["sources"][0]["pending"]
        errors = [f for f in report.findings if f.level == "error"]
        return errors, [failure for one in pending for failure in one["failures"]], pending

    return run


async def test_plan_says_in_words_and_by_its_exit_code_what_would_fail(
    orchestrator, database_url, admin, write, tmp_path
):
    await admin.script(database_url, BEFORE)
    folder = write(tmp_path / "m", ("0000_m", "CREATE TABLE orders (id int)"))
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    planned = await orchestrator("plan", "--exit-code", env=env)
    assert planned.returncode == 70
    assert "would fail: line 1: the table orders is there already" in planned.stdout
    assert "It would fail in: 0000_m" in planned.stdout
    linted = await orchestrator("lint", env=env)
    assert linted.returncode == 1
    assert "repair baseline" in " ".join(linted.stdout.split())


async def test_what_is_not_there_and_what_is_there_already_are_errors_in_both(told, admin, database_url):
    await admin.script(database_url, BEFORE)
    for statement, words in FAILS.items():
        errors, failures, _ = await told(statement, before="")
        assert words in " ".join(f.why for f in errors), (statement, errors)
        assert words in " ".join(f["why"] for f in failures), (statement, failures)


async def test_what_a_run_would_do_is_no_finding(told, admin, database_url):
    await admin.script(database_url, BEFORE)
    for statement in PASSES:
        errors, failures, _ = await told(statement, before="")
        assert errors == [], statement
        assert failures == [], statement


async def test_the_next_file_builds_on_what_the_one_before_makes(told):
    errors, failures, _ = await told(
        "CREATE TABLE a (id int); ALTER TABLE orders RENAME TO sales",
        "ALTER TABLE a ADD COLUMN b int; ALTER TABLE sales ADD COLUMN c mood",
        "ALTER TABLE a ADD COLUMN b int",
    )
    assert [f.rule for f in errors] == [f["rule"] for f in failures] == ["duplicate-column"]


async def test_a_schema_without_a_ledger_leads_to_a_baseline_and_orphan_rows_to_repair_applied(
    told, admin, database_url
):
    errors, _, pending = await told("CREATE TABLE orders (id int)")
    assert "repair baseline" in errors[0].instead
    assert "repair baseline" in next(p["remedy"] for p in pending if "remedy" in p)
    await admin.script(
        database_url,
        "CREATE SCHEMA drizzle;"
        "CREATE TABLE drizzle.__drizzle_migrations (id serial PRIMARY KEY, hash text NOT NULL, created_at bigint);"
        "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ('aa', 5)",
    )
    errors, _, pending = await told("CREATE TABLE orders (id int)", before="")
    assert "repair applied 0000_m" in errors[0].instead
    assert "repair applied 0000_m" in next(p["remedy"] for p in pending if "remedy" in p)


async def test_what_an_extension_brings_that_a_run_makes_first_is_not_missing(told):
    errors, failures, _ = await told("CREATE TABLE h (a hstore)", extensions=["hstore"])
    assert (errors, failures) == ([], [])
    errors, _, _ = await told("CREATE TABLE h (a hstore)", before="")
    assert [f.rule for f in errors] == ["unknown-name"]


async def test_one_transaction_for_all_uses_an_enum_value_before_it_is_committed(told):
    files = "ALTER TYPE mood ADD VALUE 'calm'", "ALTER TABLE orders ADD COLUMN now mood DEFAULT 'calm'"
    _, failures, _ = await told(*files, transaction="all")
    assert [f["rule"] for f in failures] == ["enum-value-used"]


async def test_each_file_its_transaction_commits_an_enum_value_first(told):
    files = "ALTER TYPE mood ADD VALUE 'calm'", "ALTER TABLE orders ADD COLUMN now mood DEFAULT 'calm'"
    errors, failures, _ = await told(*files)
    assert (errors, failures) == ([], [])
