"""The catalogue as data: equal when nothing changed, one difference for each change, and SQL that leads back."""

from pathlib import Path

import asyncpg
import msgspec
import pytest

from orchestrator.schema.diff import column_order, diff
from orchestrator.schema.objects import Schema, SchemaObject, read_schema

RICH = (Path(__file__).parents[1] / "schema" / "rich.sql").read_text()

# One change on the live side → (state, the object's title, the facts that differ). `!` before the SQL: it has no way
# back by SQL alone that a test could take.
CHANGES: dict[str, tuple[str, str, set[str]]] = {
    "CREATE SCHEMA extra": ("unexpected", "schema extra", set()),
    "COMMENT ON SCHEMA \"Shop\" IS 'other'": ("changed", 'schema "Shop"', {"comment"}),
    "CREATE EXTENSION pg_trgm": ("unexpected", "extension pg_trgm", set()),
    # tables
    "CREATE TABLE more (id serial PRIMARY KEY, a int REFERENCES more)": ("unexpected", "table public.more", set()),
    "DROP TABLE cache": ("missing", "table public.cache", set()),
    "DROP TABLE events_rest": ("missing", "table public.events_rest", set()),
    "DROP TABLE cats": ("missing", "table public.cats", set()),
    "ALTER TABLE cache SET LOGGED": ("changed", "table public.cache", {"persistence"}),
    "ALTER TABLE users RESET (fillfactor)": ("changed", "table public.users", {"options"}),
    "ALTER TABLE users SET (autovacuum_enabled = false)": ("changed", "table public.users", {"options"}),
    "ALTER TABLE users REPLICA IDENTITY FULL": ("changed", "table public.users", {"replica_identity"}),
    "ALTER TABLE events DETACH PARTITION events_2025": ("changed", "table public.events_2025", {"partition_of"}),
    "ALTER TABLE cats NO INHERIT animals": ("changed", "table public.cats", {"inherits"}),
    "COMMENT ON TABLE users IS NULL": ("changed", "table public.users", {"comment"}),
    # columns
    "ALTER TABLE users ADD COLUMN extra int NOT NULL DEFAULT 3": ("unexpected", "column extra of public.users", set()),
    "ALTER TABLE users DROP COLUMN home": ("missing", "column home of public.users", set()),
    "ALTER TABLE events ADD COLUMN extra int": ("unexpected", "column extra of public.events", set()),
    "ALTER TABLE events ALTER COLUMN kind SET DEFAULT 'y'": ("changed", "column kind of public.events", {"default"}),
    "ALTER TABLE users ALTER COLUMN score TYPE bigint": ("changed", "column score of public.users", {"type"}),
    'ALTER TABLE users ALTER COLUMN nick TYPE varchar(30) COLLATE "POSIX"': (
        "changed",
        "column nick of public.users",
        {"collation"},
    ),
    'ALTER TABLE users ALTER COLUMN "Name" DROP NOT NULL': ("changed", 'column "Name" of public.users', {"not_null"}),
    "ALTER TABLE users ALTER COLUMN age SET NOT NULL": ("changed", "column age of public.users", {"not_null"}),
    "ALTER TABLE users ALTER COLUMN nick SET DEFAULT 'x'": ("changed", "column nick of public.users", {"default"}),
    "ALTER TABLE users ALTER COLUMN touched DROP DEFAULT": ("changed", "column touched of public.users", {"default"}),
    "ALTER TABLE users ALTER COLUMN full_name DROP EXPRESSION": (
        "changed",
        "column full_name of public.users",
        {"generated"},
    ),
    'ALTER TABLE "Shop".orders ALTER COLUMN id DROP IDENTITY': (
        "changed",
        'column id of "Shop".orders',
        {"identity", "identity_options"},
    ),
    'ALTER TABLE "Shop".orders ALTER COLUMN id SET GENERATED ALWAYS': (
        "changed",
        'column id of "Shop".orders',
        {"identity"},
    ),
    'ALTER TABLE "Shop".orders ALTER COLUMN id SET INCREMENT BY 2 SET CYCLE': (
        "changed",
        'column id of "Shop".orders',
        {"identity_options"},
    ),
    "ALTER TABLE users ALTER COLUMN big SET STORAGE MAIN": ("changed", "column big of public.users", {"storage"}),
    "ALTER TABLE users ALTER COLUMN big SET COMPRESSION pglz": (
        "changed",
        "column big of public.users",
        {"compression"},
    ),
    "ALTER TABLE users ALTER COLUMN age SET STATISTICS 10": ("changed", "column age of public.users", {"statistics"}),
    "ALTER TABLE users ALTER COLUMN age SET (n_distinct = 5)": ("changed", "column age of public.users", {"options"}),
    "COMMENT ON COLUMN users.\"Name\" IS 'other'": ("changed", 'column "Name" of public.users', {"comment"}),
    # constraints
    "ALTER TABLE users ADD CONSTRAINT young CHECK (age < 200)": (
        "unexpected",
        "constraint young of public.users",
        set(),
    ),
    "ALTER TABLE users ADD CONSTRAINT young CHECK (age < 200) NOT VALID": (
        "unexpected",
        "constraint young of public.users",
        set(),
    ),
    "ALTER TABLE users DROP CONSTRAINT adult": ("missing", "constraint adult of public.users", set()),
    "ALTER TABLE users DROP CONSTRAINT adult; ALTER TABLE users ADD CONSTRAINT adult CHECK (age >= 21)": (
        "changed",
        "constraint adult of public.users",
        {"definition"},
    ),
    "ALTER TABLE users DROP CONSTRAINT adult; ALTER TABLE users ADD CONSTRAINT adult CHECK (age >= 18) NOT VALID": (
        "changed",
        "constraint adult of public.users",
        {"validated"},
    ),
    'ALTER TABLE "Shop".orders DROP CONSTRAINT orders_user_id_fkey': (
        "missing",
        'constraint orders_user_id_fkey of "Shop".orders',
        set(),
    ),
    'ALTER TABLE "Shop".orders ALTER CONSTRAINT orders_user_id_fkey DEFERRABLE': (
        "changed",
        'constraint orders_user_id_fkey of "Shop".orders',
        {"definition"},
    ),
    "ALTER TABLE users DROP CONSTRAINT users_nick_key": ("missing", "constraint users_nick_key of public.users", set()),
    'ALTER TABLE "Shop".orders DROP CONSTRAINT no_overlap': (
        "missing",
        'constraint no_overlap of "Shop".orders',
        set(),
    ),
    "ALTER TABLE events DROP CONSTRAINT events_id_check": (
        "missing",
        "constraint events_id_check of public.events",
        set(),
    ),
    "ALTER DOMAIN email DROP CONSTRAINT has_at": ("missing", "constraint has_at of public.email", set()),
    # indexes
    "CREATE INDEX more ON users (age)": ("unexpected", "index public.more of public.users", set()),
    "DROP INDEX users_name": ("missing", "index public.users_name of public.users", set()),
    'DROP INDEX users_name; CREATE INDEX users_name ON users (lower("Name")) WHERE age > 21': (
        "changed",
        "index public.users_name of public.users",
        {"definition"},
    ),
    "ALTER INDEX users_name SET (fillfactor = 50)": (
        "changed",
        "index public.users_name of public.users",
        {"definition"},
    ),
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_name'::regclass": (
        "changed",
        "index public.users_name of public.users",
        {"valid"},
    ),
    "DROP INDEX events_at": ("missing", "index public.events_at of public.events", set()),
    "DROP INDEX totals_user": ("missing", "index public.totals_user of public.totals", set()),
    # types
    "ALTER TYPE role ADD VALUE 'root' BEFORE 'admin'": ("changed", "enum public.role", {"labels"}),
    "CREATE TYPE mood AS ENUM ('good')": ("unexpected", "enum public.mood", set()),
    "ALTER DOMAIN email DROP NOT NULL": ("changed", "domain public.email", {"not_null"}),
    "ALTER DOMAIN email SET DEFAULT 'a@b'": ("changed", "domain public.email", {"default"}),
    "ALTER TYPE address ADD ATTRIBUTE country text": ("changed", "composite type public.address", {"attributes"}),
    "DROP TYPE floatrange": ("missing", "range type public.floatrange", set()),
    "DROP COLLATION plain": ("missing", "collation public.plain", set()),
    # code
    "CREATE OR REPLACE FUNCTION add(a int, b int DEFAULT 2) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT a + b'": (
        "changed",
        "function public.add(a integer, b integer)",
        {"definition"},
    ),
    "ALTER FUNCTION add(int, int) VOLATILE": ("changed", "function public.add(a integer, b integer)", {"definition"}),
    "DROP FUNCTION atomically(int)": ("missing", "function public.atomically(x integer)", set()),
    "DROP PROCEDURE noop(int)": ("missing", "procedure public.noop(INOUT n integer)", set()),
    "DROP AGGREGATE total(int)": ("missing", "aggregate public.total(integer)", set()),
    "COMMENT ON FUNCTION touch() IS 'hi'": ("changed", "function public.touch()", {"comment"}),
    "CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)": (
        "unexpected",
        "operator public.===(integer,integer)",
        set(),
    ),
    # views
    "DROP VIEW adults": ("missing", "view public.adults", set()),
    'CREATE OR REPLACE VIEW adults AS SELECT id, "Name" FROM users WHERE age >= 21': (
        "changed",
        "view public.adults",
        {"definition"},
    ),
    "ALTER VIEW barred RESET (security_barrier)": ("changed", "view public.barred", {"options"}),
    'COMMENT ON COLUMN adults."Name" IS NULL': ("missing", 'view column "Name" of public.adults', set()),
    "DROP MATERIALIZED VIEW totals": ("missing", "materialized view public.totals", set()),
    # triggers, rules, policies
    "DROP TRIGGER touching ON users": ("missing", "trigger touching of public.users", set()),
    "ALTER TABLE users DISABLE TRIGGER touching": ("changed", "trigger touching of public.users", {"enabled"}),
    "CREATE OR REPLACE TRIGGER touching AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch()": (
        "changed",
        "trigger touching of public.users",
        {"definition"},
    ),
    "DROP RULE no_delete ON cache": ("missing", "rule no_delete of public.cache", set()),
    "ALTER TABLE cache DISABLE RULE no_delete": ("changed", "rule no_delete of public.cache", {"enabled"}),
    'DROP POLICY own ON "Shop".orders': ("missing", 'policy own of "Shop".orders', set()),
    'ALTER POLICY own ON "Shop".orders USING (user_id > 1)': ("changed", 'policy own of "Shop".orders', {"using"}),
    'ALTER TABLE "Shop".orders DISABLE ROW LEVEL SECURITY': ("changed", 'table "Shop".orders', {"row_security"}),
    'ALTER TABLE "Shop".orders FORCE ROW LEVEL SECURITY': ("changed", 'table "Shop".orders', {"force_row_security"}),
    # sequences and the rest
    "ALTER SEQUENCE free_seq INCREMENT 5": ("changed", "sequence public.free_seq", {"options"}),
    "DROP SEQUENCE free_seq": ("missing", "sequence public.free_seq", set()),
    "ALTER SEQUENCE users_id_seq OWNED BY NONE": (
        "changed",
        "sequence public.users_id_seq of public.users",
        {"owned_by"},
    ),
    "DROP STATISTICS users_stats": ("missing", "statistics public.users_stats", set()),
    "ALTER PUBLICATION everything ADD TABLE cats": ("changed", "publication everything", {"tables"}),
    "DROP PUBLICATION everything": ("missing", "publication everything", set()),
    "CREATE CAST (role AS address) WITH INOUT": ("unexpected", "cast (public.role AS public.address)", set()),
}
# Where a statement cannot lead back: an enum keeps its labels, an attribute and a constraint's trait are made anew.
NO_WAY_BACK = {
    "ALTER TYPE role ADD VALUE 'root' BEFORE 'admin'",
    "ALTER TYPE address ADD ATTRIBUTE country text",
    "DROP COLLATION plain",
}
PRIVILEGES = {
    "REVOKE SELECT ON users FROM PUBLIC": ("table public.users", {"privileges"}),
    "GRANT INSERT ON cache TO pg_monitor WITH GRANT OPTION": ("table public.cache", {"privileges"}),
    'REVOKE UPDATE ("Name") ON users FROM PUBLIC': ('column "Name" of public.users', {"privileges"}),
    "REVOKE EXECUTE ON FUNCTION add(int, int) FROM PUBLIC": (
        "function public.add(a integer, b integer)",
        {"privileges"},
    ),
    'GRANT USAGE ON SCHEMA "Shop" TO PUBLIC': ('schema "Shop"', {"privileges"}),
    "GRANT USAGE ON SEQUENCE free_seq TO pg_monitor": ("sequence public.free_seq", {"privileges"}),
    "REVOKE USAGE ON TYPE role FROM PUBLIC": ("enum public.role", {"privileges"}),
}


@pytest.fixture
async def rich(make_database, admin):
    """Two databases of the same rich schema."""
    urls = [await make_database() for _ in range(2)]
    for url in urls:
        await admin.script(url, RICH)
    return urls


async def schema_of(admin, url: str, *, privileges: bool = False) -> Schema:
    async with admin.connection(url) as connection:
        return await read_schema(connection, privileges=privileges)


async def test_a_rich_schema_made_twice_has_no_difference(rich, admin):
    for privileges in (False, True):
        first, second = [await schema_of(admin, url, privileges=privileges) for url in rich]
        assert diff(first, second) == []
        assert len(first.objects) > 75
        assert column_order(first, second) == []


async def test_each_single_change_is_one_difference_and_its_sql_leads_back(database_url, admin):
    """Every change in a transaction of its own that is rolled back; ADD VALUE and the rest run in it, too."""
    await admin.script(database_url, RICH)
    wanted = await schema_of(admin, database_url)
    wrong: list[str] = []
    async with admin.connection(database_url) as connection:
        for change, (state, title, facts) in CHANGES.items():
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            try:
                try:
                    await connection.execute(change)
                except asyncpg.PostgresError as error:
                    wrong.append(f"{change}: {error}")
                    continue
                found = diff(wanted, await read_schema(connection))
                told = [(d.state, d.title, {c.fact for c in d.changes}) for d in found]
                if told != [(state, title, facts)]:
                    wrong.append(f"{change}: {told}")
                    continue
                if change in NO_WAY_BACK:
                    continue
                sql = "\n".join(found[0].sql).replace(" CONCURRENTLY", "")
                if not sql:
                    wrong.append(f"{change}: no way back")
                    continue
                await connection.execute("SET LOCAL search_path = ''")
                try:
                    await connection.execute(sql)
                except asyncpg.PostgresError as error:
                    wrong.append(f"{change}: {sql}: {error}")
                    continue
                left = diff(wanted, await read_schema(connection))
                if left:
                    wrong.append(f"{change}: after {sql}: {[(d.state, d.title, d.changes) for d in left]}")
            finally:
                await transaction.rollback()
    assert not wrong, "\n".join(wrong)
    assert diff(wanted, await schema_of(admin, database_url)) == []


async def test_privileges_are_compared_when_asked_for_and_an_owner_is_an_owner(database_url, admin):
    await admin.script(database_url, RICH)
    wanted = await schema_of(admin, database_url, privileges=True)
    async with admin.connection(database_url) as connection:
        for change, (title, facts) in PRIVILEGES.items():
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            await connection.execute(change)
            assert diff(_without_privileges(wanted), await read_schema(connection)) == []
            (found,) = diff(wanted, await read_schema(connection, privileges=True))
            assert (found.state, found.title, {c.fact for c in found.changes}) == ("changed", title, facts), change
            await connection.execute("\n".join(found.sql))
            assert diff(wanted, await read_schema(connection, privileges=True)) == [], (change, found.sql)
            await transaction.rollback()
        await connection.execute("CREATE ROLE schema_other; ALTER TABLE users OWNER TO schema_other")
        try:
            assert diff(wanted, await read_schema(connection, privileges=True)) == []
        finally:
            await connection.execute("DROP OWNED BY schema_other CASCADE; DROP ROLE schema_other")


def _without_privileges(schema: Schema) -> Schema:
    return Schema(
        tuple(
            msgspec.structs.replace(one, facts={k: v for k, v in one.facts.items() if k != "privileges"})
            for one in schema.objects
        )
    )


def made(kind: str, name: str, **facts) -> SchemaObject:
    return SchemaObject(kind, "public", name, facts=facts)


def test_a_schema_that_is_missing_is_one_difference_with_all_that_is_in_it():
    inside = [
        SchemaObject("schema", "s", "s"),
        SchemaObject("table", "s", "s.a"),
        SchemaObject("column", "s", "b", "s.a", {"type": "integer"}),
        SchemaObject("sequence", "s", "s.a_seq", "s.a", {"owned_by": "s.a.b"}),
    ]
    (found,) = diff(Schema(tuple(inside)), Schema(()))
    assert (found.state, found.title, found.contains, found.sql) == ("missing", "schema s", 3, ("CREATE SCHEMA s;",))


def test_a_column_that_is_missing_takes_its_sequence_along_and_no_index_of_another():
    column = SchemaObject("column", "s", "b", "s.a", {"type": "integer", "default": "nextval('s.q'::regclass)"})
    sequence = SchemaObject("sequence", "s", "s.q", "s.a", {"owned_by": "s.a.b", "options": ""})
    index = SchemaObject("index", "s", "s.i", "s.a", {"definition": "CREATE INDEX i ON s.a USING btree (b)"})
    table = SchemaObject("table", "s", "s.a")
    found = diff(Schema((table, column, sequence, index)), Schema((table,)))
    assert [d.title for d in found] == ["column b of s.a", "index s.i of s.a"]


def test_the_order_of_columns_is_cosmetic():
    def table(*names: str) -> Schema:
        return Schema(
            tuple(SchemaObject("column", "s", n, "s.a", {"type": "text"}, position=i) for i, n in enumerate(names))
        )

    assert diff(table("a", "b"), table("b", "a")) == []
    assert column_order(table("a", "b"), table("b", "a")) == [("s.a", ["a", "b"], ["b", "a"])]
    assert column_order(table("a", "b"), table("b")) == []


def test_an_enum_grows_where_the_files_have_the_label_and_never_shrinks():
    def labels(*names: str) -> Schema:
        return Schema((made("enum", "public.e", labels=list(names)),))

    (found,) = diff(labels("a", "b", "c", "d"), labels("b", "d"))
    assert found.sql == (
        "ALTER TYPE public.e ADD VALUE 'a' BEFORE 'b';",
        "ALTER TYPE public.e ADD VALUE 'c' BEFORE 'd';",
    )
    (found,) = diff(labels("a", "b"), labels("b", "a"))
    assert found.sql[0].startswith("-- ")
