"""`generate` on models that evolve, with rows in the tables: nothing is lost that nobody asked to lose, and it runs."""

import pytest
import sqlalchemy as sa

from orchestrator import dsn
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.schema.loading import SchemaError, load_metadata
from orchestrator.tools.generate import generate
from orchestrator.tools.new_file import write_migrations

SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))


class Project:
    """A folder, and a live database that is where the folder leads."""

    def __init__(self, live, folder, admin):
        self.live, self.folder, self.admin = live, folder, admin

    async def find(self, metadata, **options):
        sources = [SERVICE]
        if self.folder.is_dir():
            sources.append(Source("user", read_folder(self.folder), LedgerTable("drizzle", "__drizzle_migrations")))
        return await generate(dsn.parse(self.live), sources, metadata, **{"ask": None, **options})

    async def to(self, metadata, **options) -> str:
        """Generate, write, run on the live database; what is left to do after it is what stands commented out."""
        found = await self.find(metadata, **options)
        assert found.unwritten == ()
        number = len(list(self.folder.glob("*.sql")))
        texts = [(f"m{number}{suffix}", text) for suffix, text in found.files]
        write_migrations(self.folder, texts, now_ms=1_750_000_000_000)
        for _, text in texts:
            if any(line and not line.startswith("--") for line in text.splitlines()):
                await self.admin.script(self.live, text)
        again = await self.find(metadata, **{**options, "renames": ()})
        assert (again.active, again.files, again.unwritten) == ((), (), ())
        return "\n".join(text for _, text in texts)

    async def script(self, sql):
        await self.admin.script(self.live, sql)

    async def value(self, sql):
        return await self.admin.value(self.live, sql)


@pytest.fixture
async def project(make_database, admin, tmp_path):
    return Project(await make_database(), tmp_path / "migrations", admin)


def tables(*made):
    metadata = sa.MetaData()
    for name, *parts in made:
        schema, _, bare = name.rpartition(".")
        options = parts.pop() if parts and isinstance(parts[-1], dict) else {}
        sa.Table(bare, metadata, *parts, schema=schema or None, **options)
    return metadata


def key(type_=sa.Integer, *more, **options):
    return sa.Column("id", type_, *more, primary_key=True, **options)


async def test_a_serial_that_becomes_an_identity_goes_on_where_it_stands(project):
    await project.to(tables(("t", key(), sa.Column("c", sa.Text))))
    await project.script("INSERT INTO t (c) VALUES ('a'), ('b'), ('c'); DELETE FROM t WHERE id = 3")
    text = await project.to(tables(("t", key(sa.Integer, sa.Identity(always=True)), sa.Column("c", sa.Text))))
    assert "-- DROP SEQUENCE" not in text  # its place is kept, so nothing is lost with it
    assert await project.value("INSERT INTO t (c) VALUES ('d') RETURNING id") == 4


async def test_an_identity_that_becomes_a_serial_goes_on_behind_the_rows(project):
    await project.to(tables(("t", key(sa.Integer, sa.Identity()), sa.Column("c", sa.Text))))
    await project.script("INSERT INTO t (c) VALUES ('a'), ('b'), ('c')")
    await project.to(tables(("t", key(), sa.Column("c", sa.Text))))
    assert await project.value("INSERT INTO t (c) VALUES ('d') RETURNING id") == 4


async def test_a_plain_column_that_becomes_an_identity_goes_on_behind_the_rows(project):
    await project.to(tables(("t", key(autoincrement=False), sa.Column("c", sa.Text))))
    await project.script("INSERT INTO t VALUES (7, 'a')")
    await project.to(tables(("t", key(sa.Integer, sa.Identity()), sa.Column("c", sa.Text))))
    assert await project.value("INSERT INTO t (c) VALUES ('b') RETURNING id") == 8


async def test_an_empty_table_begins_at_its_start(project):
    await project.to(tables(("t", key(autoincrement=False), sa.Column("c", sa.Text))))
    await project.to(tables(("t", key(sa.Integer, sa.Identity()), sa.Column("c", sa.Text))))
    assert await project.value("INSERT INTO t (c) VALUES ('a') RETURNING id") == 1


async def test_a_table_in_another_schema_is_offered_as_a_move(project):
    def model(name):
        stays = ("other", key())  # a schema that no table of the code names is left alone
        return tables((name, key(), sa.Column("name", sa.Text), sa.Column("mail", sa.Text)), stays)

    await project.to(model("users"))
    await project.script("INSERT INTO users (name) VALUES ('Ada')")
    after = model("crm.users")
    found = await project.find(after)
    ((_, text),) = found.files
    assert '-- ALTER TABLE "users" SET SCHEMA "crm";' in text
    assert not any(line.startswith(("CREATE TABLE", "DROP")) for line in text.splitlines())
    await project.to(after, renames=["users=crm.users"])
    assert await project.value("SELECT name FROM crm.users") == "Ada"
    assert await project.value("INSERT INTO crm.users (name) VALUES ('Bob') RETURNING id") == 2


async def test_an_enum_in_another_schema_moves_with_its_columns(project):
    def model(schema):
        return tables(("t", key(), sa.Column("m", sa.Enum("a", "b", name="mood", schema=schema))))

    await project.to(model(None))
    await project.script("INSERT INTO t (m) VALUES ('a')")
    text = await project.to(model("app"))
    assert 'ALTER TYPE "mood" SET SCHEMA "app"' in text
    assert await project.value("SELECT m::text FROM t") == "a"


async def test_a_value_of_an_enum_is_offered_as_renamed(project):
    def model(*values):
        return tables(("t", key(), sa.Column("m", sa.Enum(*values, name="mood"), server_default=values[1])))

    await project.to(model("a", "b", "c"))
    await project.script("INSERT INTO t DEFAULT VALUES")
    found = await project.find(model("a", "beta", "c"))
    assert "-- ALTER TYPE \"mood\" RENAME VALUE 'b' TO 'beta';" in found.files[0][1]
    assert found.active == ()
    await project.to(model("a", "beta", "c"), renames=["mood.b=beta"])
    assert await project.value("SELECT m::text FROM t") == "beta"
    assert await project.value("INSERT INTO t DEFAULT VALUES RETURNING m::text") == "beta"


@pytest.mark.parametrize("persisted", [True, False], ids=["stored", "as the server has it"])
async def test_a_computed_column_can_become_a_plain_one_and_back(project, persisted):
    def model(*computed):
        return tables(("t", key(autoincrement=False), sa.Column("twice", sa.Integer, *computed)))

    if not persisted and await project.value("SELECT current_setting('server_version_num')::int < 180000"):
        pytest.skip("virtual columns are of PostgreSQL 18")
    computed = sa.Computed("id * 2", persisted=persisted)
    await project.to(model(computed))
    await project.script("INSERT INTO t (id) VALUES (2)")
    await project.to(model(), allow_drops=True)
    assert await project.value("SELECT twice FROM t") == (4 if persisted else None)
    await project.to(model(sa.Computed("id * 2", persisted=persisted)), allow_drops=True)
    assert await project.value("SELECT twice FROM t") == 4


async def test_two_constraints_that_want_one_name_get_theirs_as_create_all_gives_them(project):
    # Both would be called a_b_c_key; the one that comes first has the name.
    await project.to(
        tables(
            ("a_b", key(), sa.Column("c", sa.Integer, unique=True)),
            ("a", key(), sa.Column("b_c", sa.Integer, unique=True)),
        )
    )


async def test_names_that_are_swapped_are_swapped_by_way_of_a_free_one(project):
    def model(one, two):
        return tables(
            (
                "t",
                key(),
                sa.Column("a", sa.Integer),
                sa.Column("b", sa.Integer),
                sa.UniqueConstraint("a", name=one),
                sa.UniqueConstraint("b", name=two),
                sa.Index(f"i_{one}", "a"),
                sa.Index(f"i_{two}", "b"),
            )
        )

    await project.to(model("x", "y"))
    await project.script("INSERT INTO t (a, b) VALUES (1, 2)")
    text = await project.to(model("y", "x"))
    assert "DROP" not in text
    assert "ADD CONSTRAINT" not in text


async def test_a_table_that_is_replaced_while_its_indexes_keep_their_names(project):
    before = tables(("people", key(), sa.Column("name", sa.Text), sa.Index("by_name", "name")))
    await project.to(before)
    await project.script("INSERT INTO people (name) VALUES ('Ada')")
    after = tables(("persons", key(), sa.Column("title", sa.Text), sa.Index("by_name", "title")))
    # Without leave to drop, what needs the name waits, too: the file runs.
    await project.to(after)
    assert await project.value("SELECT count(*) FROM people") == 1
    await project.to(after, allow_drops=True, renames=["*"])
    assert await project.value("SELECT to_regclass('people')") is None


async def test_a_primary_key_that_is_only_renamed_leaves_the_keys_that_refer_to_it_alone(project):
    def model(name):
        return tables(
            ("users", sa.Column("id", sa.Integer), sa.PrimaryKeyConstraint("id", name=name)),
            ("posts", key(), sa.Column("author", sa.ForeignKey("users.id"))),
        )

    await project.to(model("users_pk"))
    text = await project.to(model("users_key"))
    assert text == 'ALTER TABLE "users" RENAME CONSTRAINT "users_pk" TO "users_key";\n'


async def test_unlogged_is_compared_and_written(project):
    await project.to(tables(("t", key())))
    await project.script("INSERT INTO t DEFAULT VALUES")
    assert "SET UNLOGGED" in await project.to(tables(("t", key(), {"prefixes": ["UNLOGGED"]})))
    assert "SET LOGGED" in await project.to(tables(("t", key())))
    assert await project.value("SELECT count(*) FROM t") == 1


async def test_a_table_that_becomes_partitioned_is_told_as_work_by_hand(project):
    await project.to(tables(("t", key())))
    found = await project.find(tables(("t", key(), {"postgresql_partition_by": "RANGE (id)"})))
    assert ["partitioned by RANGE (id)" in note for note in found.unwritten] == [True]


def test_an_empty_metadata_is_refused_with_the_likely_cause(tmp_path, monkeypatch):
    (tmp_path / "empty_models.py").write_text("import sqlalchemy\nmetadata = sqlalchemy.MetaData()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SchemaError, match="has no tables") as raised:
        load_metadata("empty_models:metadata")
    assert "not imported" in raised.value.remedy
