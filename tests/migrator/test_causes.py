"""What a refused statement comes of is told by the statement and the catalogue; where it cannot be told, nothing is."""

import secrets
import time

import pytest

from orchestrator.database.connect import connected
from orchestrator.database.lock import migration_lock
from orchestrator.dsn import parse
from orchestrator.errors import MigrationError
from orchestrator.lifecycle import Lifecycle
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.run.apply import migrate
from orchestrator.migrator.run.options import Options
from orchestrator.migrator.sources import Source, service_folder

BEFORE = """CREATE SCHEMA extensions;
CREATE EXTENSION vector SCHEMA extensions; CREATE EXTENSION pg_trgm SCHEMA extensions;
CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE orders (id int PRIMARY KEY, "customerId" int, total numeric CONSTRAINT total_positive CHECK (total > 0));
CREATE TABLE lines (order_id int REFERENCES orders);
CREATE VIEW shown AS SELECT id FROM orders;
CREATE FUNCTION gross(amount numeric) RETURNS numeric LANGUAGE sql AS 'SELECT amount * 1.2';
CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""
# Statement → what the remedy says, and what it does not.
CASES = {
    # 42P01
    'ALTER TABLE "order" ADD COLUMN x int': ["the nearest that does is orders"],
    'SELECT * FROM orders o JOIN "order" p USING (id)': ["relation order does not", "the nearest that does is orders"],
    "INSERT INTO invoices VALUES (1)": ["in the schema billing", "write billing.invoices", "holds public"],
    "CREATE TABLE clients (id int); INSERT INTO client VALUES (1)": ["the nearest that does is clients"],
    "DROP TABLE lines; SELECT * FROM lines": ["The file itself drops or renames the relation lines (line 1)"],
    "DO $$ BEGIN ALTER TABLE ordrs ADD FOREIGN KEY (id) REFERENCES lines(id); END $$": ["nearest that does is orders"],
    "SELECT * FROM quite_unknown": ["relation quite_unknown does not exist, and nothing of a like name"],
    "SELECT set_config('search_path', '', false);\nSELECT * FROM orders": [
        "write public.orders",
        "or correct the file's own search_path (line 1)",
    ],
    # 42703
    "SELECT customerId FROM orders": ['but "customerId" does: write it in double quotes'],
    "ALTER TABLE orders DROP COLUMN totl": ["the nearest that does is total"],
    "UPDATE orders SET totals = 1": ["the column totals of orders does not exist; the nearest that does is total"],
    "CREATE INDEX ON lines (nothing)": ["lines has order_id"],
    "DO $$ BEGIN PERFORM totl FROM orders; END $$": ["the nearest that does is total"],
    # 42704
    "CREATE TABLE t (a vector(3))": ["extension vector", "in the schema extensions", "write extensions.vector"],
    "CREATE TABLE t (a modd)": ["the nearest that does is mood"],
    "CREATE TABLE t (a citext)": ["comes from the extension citext", "EXTENSIONS=citext"],
    "CREATE TABLE t (a geometry)": ["no files of the extension postgis", "use an image that includes it"],
    "CREATE TABLE t (a wholly_unknown)": ["the type wholly_unknown does not exist, and nothing of a like name"],
    "GRANT SELECT ON orders TO nobody_of_this_name": ["Roles belong to the whole server"],
    "ALTER TABLE orders OWNER TO nobody_of_this_name": ["Roles belong to the whole server"],
    "CREATE INDEX ON orders USING gin (total gin_trgm_ops)": ["extensions.gin_trgm_ops"],
    "CREATE TABLE t (a text); CREATE INDEX ON t USING gin (a)": ["no default operator class for gin"],
    "CREATE INDEX ON orders USING bloom (id)": ["comes from the extension bloom", "EXTENSIONS=bloom"],
    "ALTER TABLE orders DROP CONSTRAINT total_positiv": ["the nearest that does is total_positive"],
    "DROP TRIGGER touch ON orders": ["the trigger touch of orders does not exist; the nearest that does is touched"],
    "DROP INDEX orders_pk": ["the nearest that does is orders_pkey"],
    "SET transaction_timeot = 0": ["has no setting transaction_timeot; the nearest is transaction_timeout"],
    "SET work_memory = 0": ["has no setting work_memory"],
    "ALTER TYPE modo ADD VALUE 'x'": ["the nearest that does is mood"],
    "DROP EXTENSION pg_trgn": ["the nearest that does is pg_trgm"],
    'CREATE TABLE t (a text COLLATE "xx_YY")': ["the collation xx_YY does not exist"],
    # 42883
    "SELECT gros(1)": ["the nearest that does is gross"],
    "SELECT gross('now'::date)": ["is there, but not for arguments of these types", "gross(amount numeric)"],
    "SELECT uuid_generate_v4()": ["no files of the extension uuid-ossp"],
    "SELECT similarity('a', 'b')": ["in the schema extensions", "write extensions.similarity"],
    "SELECT levenshtein('a', 'b')": ["EXTENSIONS=fuzzystrmatch"],
    "SELECT 1 + 'a'::text": ["Fix what it names"],
    # 3F000
    "CREATE TABLE biling.t ()": ["the nearest that does is billing"],
    # 42P07, 42710, 42701, 42P06, 42723
    "CREATE TABLE orders ()": ["the table orders is there already", "repair baseline"],
    "CREATE TABLE a (); CREATE TABLE a ()": ["The file makes the table a twice: it does so first at line 1"],
    "CREATE TABLE shown ()": ["the name shown is that of the view that is there"],
    "CREATE TYPE mood AS ENUM ('x')": ["the type mood is there already", "repair baseline"],
    "ALTER TYPE mood ADD VALUE 'sad'": ["write ADD VALUE IF NOT EXISTS"],
    "CREATE ROLE CURRENT": ["Make it only where it is missing"],
    "CREATE EXTENSION vector": ["write CREATE EXTENSION IF NOT EXISTS"],
    "ALTER TABLE orders ADD COLUMN total int": ["the column total of orders is there already"],
    "ALTER TABLE orders ADD CONSTRAINT total_positive CHECK (id > 0)": ["the constraint total_positive of orders is"],
    "CREATE SCHEMA billing": ["the schema billing is there already"],
    # 2BP01, 55006, 57014
    "DROP TABLE orders": ["drop or change them first, or write CASCADE"],
    "DROP TYPE mood; ALTER TABLE orders DROP COLUMN id": ["drop or change them first, or write CASCADE"],
    "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
    "INSERT INTO c VALUES (1); ALTER TABLE c ADD COLUMN x int": ["put this statement into a migration of its own"],
    "SET LOCAL statement_timeout = '50ms';\nSELECT pg_sleep(5)": ["The file's own statement_timeout (line 1)"],
    "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)": ["Somebody cancelled the statement"],
    # an extension that the server does not have
    "CREATE EXTENSION postgi": ["no files of the extension postgi", "use an image that includes it"],
    "CREATE EXTENSION pgvector": ["the nearest that it has is vector", "no files of the extension pgvector"],
}


@pytest.fixture
def refused(make_database, admin, write, tmp_path):
    """`await refused(url, files…, **options)` → the error of the last of the files."""

    async def run(url: str, *files: str, **options) -> MigrationError:
        folder = read_folder(write(tmp_path / "m", *((f"{n:04}_m", sql) for n, sql in enumerate(files))))
        sources = [
            Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations")),
            Source("user", folder, LedgerTable("drizzle", "__drizzle_migrations")),
        ]
        life = Lifecycle(now=time.time, monotonic=time.monotonic)
        async with (
            connected(parse(url), life, wait_timeout_s=5, application_name="t", kind="migration") as connection,
            migration_lock(connection, life, timeout_s=5),
        ):
            with pytest.raises(MigrationError) as raised:
                await migrate(connection, sources, Options(**options), life)
        return raised.value

    return run


@pytest.mark.parametrize("statement", CASES)
async def test_the_remedy_fits_the_cause(refused, admin, database_url, statement):
    await admin.script(database_url, BEFORE)
    user = await admin.value(database_url, "SELECT current_user")
    error = await refused(database_url, statement.replace("CURRENT", user))
    for words in CASES[statement]:
        assert words.lower() in error.remedy.lower(), error.described()
    if "EXTENSIONS" not in " ".join(CASES[statement]):
        assert "EXTENSIONS" not in error.remedy
    assert "then start again; the database is as it was before this file." in error.remedy


async def test_a_time_limit_of_ours_is_told_as_ours(refused, database_url):
    error = await refused(database_url, "SELECT pg_sleep(5)", statement_timeout_s=0.06)
    assert "MIGRATION_STATEMENT_TIMEOUT (0.06 s)" in error.remedy


async def test_what_a_file_before_made_in_the_same_single_transaction_is_offered(refused, database_url):
    error = await refused(database_url, "CREATE TABLE orders ()", 'DROP TABLE "order"', transaction="all")
    assert "the nearest that does is orders" in error.remedy


async def test_orphan_rows_and_an_object_that_is_there_are_a_squashed_folder(refused, database_url, admin):
    await admin.script(
        database_url,
        "CREATE TABLE orders (); CREATE SCHEMA drizzle;"
        "CREATE TABLE drizzle.__drizzle_migrations (id serial PRIMARY KEY, hash text NOT NULL, created_at bigint);"
        "INSERT INTO drizzle.__drizzle_migrations (hash, created_at) VALUES ('aa', 5), ('bb', 6)",
    )
    error = await refused(database_url, "CREATE TABLE orders ()")
    assert "orchestrator repair applied 0000_m" in error.remedy


async def test_the_log_of_a_start_has_the_advice(orchestrator, database_url, write, tmp_path):
    await_folder = write(tmp_path / "m", ("0000_a", f"GRANT ALL ON SCHEMA public TO role_{secrets.token_hex(4)}"))
    result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(await_folder)})
    assert result.returncode == 70
    (event,) = [e for e in result.events if e["event"] == "service.failed"]
    assert "Roles belong to the whole server" in event["remedy"]
