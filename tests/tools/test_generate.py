"""`generate`: what is between the code's tables and the folder, as SQL that is safe to have in a repository."""

import asyncio
import json
import os
import pty
import re
import sys
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from drizzle.reference import NotInstallableError, install
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql as pg

from orchestrator import dsn
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.tools.generate import GenerateError, generate
from orchestrator.tools.new_file import write_migrations

ROOT = Path(__file__).parents[2]
SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))
NOW = 1_750_000_000_000


class Project:
    """A folder and a server; `await project.generate(metadata)` finds, `.write(found)` writes."""

    def __init__(self, server, folder: Path) -> None:
        self.dsn, self.folder = dsn.parse(server.dsn()), folder

    async def generate(self, metadata: sa.MetaData, **options):
        sources = [SERVICE]
        if self.folder.is_dir():
            sources.append(Source("user", read_folder(self.folder), LedgerTable("drizzle", "__drizzle_migrations")))
        return await generate(self.dsn, sources, metadata, **{"ask": None, **options})

    def write(self, found, name: str = "m") -> list[str]:
        number = len(list(self.folder.glob("*.sql")))
        texts = [(f"{name}{number}{suffix}", text) for suffix, text in found.files]
        write_migrations(self.folder, texts, now_ms=NOW)
        return [text for _, text in texts]

    async def start(self, metadata: sa.MetaData) -> None:
        """The first migration, unread."""
        self.write(await self.generate(metadata))

    async def to(self, metadata: sa.MetaData, **options) -> str:
        """Generate and write; nothing is left to do after it, but for what is commented out."""
        found = await self.generate(metadata, **options)
        assert found.unwritten == ()
        texts = self.write(found)
        again = await self.generate(metadata, **options)
        assert (again.active, again.withheld, again.files) == ((), (), ()), again
        return "\n".join(texts)


@pytest.fixture
def project(server, tmp_path) -> Project:
    return Project(server, tmp_path / "migrations")


def table(*columns, name="users", schema=None, **options) -> sa.MetaData:
    metadata = sa.MetaData()
    sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True), *columns, schema=schema, **options)
    return metadata


def statements(sql: str) -> list[str]:
    return [chunk.strip() for chunk in sql.split("--> statement-breakpoint")]


# ------------------------------------------------------------------------------------------------------------ what is


async def test_a_first_migration_holds_everything_in_an_order_that_runs(project):
    metadata = sa.MetaData()
    mood = sa.Enum("ok", "it's", name="mood")
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mood", mood, server_default="ok", nullable=False),
        sa.Column("team", sa.ForeignKey("app.teams.id", ondelete="SET NULL")),
        sa.Column("age", sa.Integer, sa.CheckConstraint("age > 0")),
        sa.UniqueConstraint("team", "age"),
        comment="It's 100% a table",
    )
    sa.Table(
        "teams",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("lead", sa.ForeignKey("users.id"), nullable=False, index=True),
        sa.Column("twice", sa.BigInteger, sa.Computed("id * 2", persisted=True)),
        sa.Column("mood", mood),
        schema="app",
    )
    text = await project.to(metadata)
    assert (
        text
        == """\
CREATE SCHEMA "app";
--> statement-breakpoint
CREATE TYPE "mood" AS ENUM ('ok', 'it''s');
--> statement-breakpoint
CREATE TABLE "users" (
	"id" SERIAL NOT NULL,
	"mood" "mood" DEFAULT 'ok' NOT NULL,
	"team" BIGINT,
	"age" INTEGER CHECK (age > 0),
	PRIMARY KEY ("id"),
	UNIQUE ("team", "age")
);
--> statement-breakpoint
CREATE TABLE "app"."teams" (
	"id" BIGINT GENERATED ALWAYS AS IDENTITY,
	"lead" INTEGER NOT NULL,
	"twice" BIGINT GENERATED ALWAYS AS (id * 2) STORED,
	"mood" "mood",
	PRIMARY KEY ("id")
);
--> statement-breakpoint
CREATE INDEX "ix_app_teams_lead" ON "app"."teams" ("lead");
--> statement-breakpoint
ALTER TABLE "users" ADD CONSTRAINT "users_team_fkey" FOREIGN KEY ("team") \
REFERENCES "app"."teams"("id") ON DELETE SET NULL;
--> statement-breakpoint
ALTER TABLE "app"."teams" ADD CONSTRAINT "teams_lead_fkey" FOREIGN KEY ("lead") REFERENCES "users"("id");
--> statement-breakpoint
COMMENT ON TABLE "users" IS 'It''s 100% a table';
"""
    )


async def test_pgvectors_indexes_are_written_as_they_are_declared(project, server, admin):
    if not await admin.value(server.dsn(), "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("the server has no pgvector")
    column = sa.Column("embedding", Vector(3))
    index = sa.Index(
        "users_embedding",
        "embedding",
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={"embedding": "vector_cosine_ops"},
    )
    text = await project.to(table(column, index), extensions=["vector"])
    assert (
        'CREATE INDEX "users_embedding" ON "users" USING hnsw ("embedding" vector_cosine_ops)'
        " WITH (m = 16, ef_construction = 64);" in text
    )


def _column(*arguments, **options):
    return [sa.Column("c", *arguments, **options)], {}


def _with(*more, **options):
    return [sa.Column("c", sa.Text), *more], options


# What alembic's autogenerate sees none or not all of.
CHANGES = {
    "the text of a check": (
        lambda: _with(sa.CheckConstraint("id > 0", name="k")),
        lambda: _with(sa.CheckConstraint("id > 1", name="k")),
        ['DROP CONSTRAINT "k"', "CHECK (id > 1)"],
    ),
    "a check, where there was none": (
        _with,
        lambda: _with(sa.CheckConstraint("c IN ('a', 'b')", name="k")),
        ["CHECK (c IN ('a', 'b'))"],
    ),
    "the words of an enum that is kept as text": (
        lambda: _column(sa.Enum("a", "b", name="e", native_enum=False, create_constraint=True, length=9)),
        lambda: _column(sa.Enum("a", "c", name="e", native_enum=False, create_constraint=True, length=9)),
        ["CHECK (\"c\" IN ('a', 'c'))"],
    ),
    "the predicate of an index": (
        lambda: _with(sa.Index("i", "c", postgresql_where=sa.text("id > 0"))),
        lambda: _with(sa.Index("i", "c", postgresql_where=sa.text("id > 1"))),
        ['DROP INDEX @"i"', 'CREATE INDEX "i" ON @"users" ("c") WHERE id > 1'],
    ),
    "the method, the options and the columns beside an index": (
        lambda: _with(sa.Index("i", "id")),
        lambda: _with(sa.Index("i", "id", postgresql_include=["c"], postgresql_with={"fillfactor": 70})),
        ['("id") INCLUDE ("c") WITH (fillfactor = 70)'],
    ),
    "an expression": (
        lambda: _with(sa.Index("i", sa.text("lower(c)"))),
        lambda: _with(sa.Index("i", sa.text("upper(c)"))),
        ["(upper(c))"],
    ),
    "a default": (
        lambda: _column(sa.JSON, server_default="{}"),
        lambda: _column(sa.JSON, server_default="[]"),
        ["SET DEFAULT '[]'::json"],
    ),
    "a type that needs a cast, and its default": (
        lambda: _column(sa.Text, server_default="1"),
        lambda: _column(sa.Integer, server_default=sa.text("2")),
        ["DROP DEFAULT", 'SET DATA TYPE integer USING "c"::integer', "SET DEFAULT 2"],
    ),
    "types without a cast between them": (
        lambda: _column(sa.Integer),
        lambda: _column(sa.Date),
        ['USING "c"::text::date'],
    ),
    "a length": (
        lambda: _column(sa.String(10)),
        lambda: _column(sa.String(20)),
        ['ALTER COLUMN "c" SET DATA TYPE character varying(20);'],
    ),
    "an identity": (
        lambda: _column(sa.Integer, nullable=False),
        lambda: _column(sa.Integer, sa.Identity(always=True, start=5), nullable=False),
        ["ADD GENERATED ALWAYS AS IDENTITY (START 5"],
    ),
    "an identity's options": (
        lambda: _column(sa.Integer, sa.Identity(always=True, start=5)),
        lambda: _column(sa.Integer, sa.Identity(start=6, cycle=True)),
        ["SET GENERATED BY DEFAULT SET START 6"],
    ),
    "a generated column": (
        lambda: _column(sa.Integer, sa.Computed("id * 2", persisted=True)),
        lambda: _column(sa.Integer, sa.Computed("id * 3", persisted=True)),
        ['DROP COLUMN "c"', "GENERATED ALWAYS AS (id * 3) STORED"],
    ),
    "a primary key": (
        lambda: _column(sa.Integer, nullable=False),
        lambda: _column(sa.Integer, primary_key=True),
        ['ADD CONSTRAINT "users_pkey" PRIMARY KEY ("id", "c")'],
    ),
    "what a foreign key does": (
        lambda: _column(sa.ForeignKey("target.id")),
        lambda: _column(sa.ForeignKey("target.id", ondelete="CASCADE", deferrable=True)),
        ["ON DELETE CASCADE DEFERRABLE"],
    ),
    "comments": (
        lambda: _column(sa.Text, comment="a"),
        lambda: ([sa.Column("c", sa.Text, comment="it's\tb")], {"comment": "t"}),
        ["COLUMN @\"users\".\"c\" IS 'it''s\tb'", "TABLE @\"users\" IS 't'"],
    ),
    "how a table is stored": (
        lambda: _with(postgresql_with={"fillfactor": 80}),
        lambda: _with(postgresql_with={"fillfactor": 90, "autovacuum_enabled": "false"}),
        ['ALTER TABLE @"users" SET (autovacuum_enabled = false, fillfactor = 90)'],
    ),
    "a collation": (
        lambda: _column(sa.Text),
        lambda: _column(sa.Text(collation="C")),
        ['SET DATA TYPE text COLLATE pg_catalog."C"'],
    ),
    "a serial": (
        lambda: _column(sa.Integer),
        lambda: _column(
            sa.Integer, sa.Sequence("users_c_seq", start=7), server_default=sa.text("nextval('users_c_seq')")
        ),
        ["SET DEFAULT nextval('users_c_seq'::regclass)"],
    ),
}


def _all(version: int) -> sa.MetaData:
    """A schema for each change, before it (0) or after (1)."""
    metadata = table(name="target")
    for number, change in enumerate(CHANGES.values()):
        more, options = change[version]()
        key = sa.Column("id", sa.Integer, primary_key=True)
        sa.Table("users", metadata, key, *more, **options, schema=f"s{number}")
    return metadata


async def test_changes_that_autogenerate_does_not_see_are_seen_and_written(project):
    await project.start(_all(0))
    text = await project.to(_all(1), allow_drops=True)
    for number, (what, (_, _, expected)) in enumerate(CHANGES.items()):
        about = "\n".join(chunk for chunk in statements(text) if f"s{number}" in re.split(r"\W+", chunk))
        for one in expected:
            assert one.replace("@", f'"s{number}".') in about, f"{what}: {one} is not in\n{about}"


async def test_what_the_code_says_nothing_of_is_left_as_a_migration_has_it(project):
    by_hand = (
        "CREATE TABLE users (id serial PRIMARY KEY, c text) WITH (fillfactor = 70);\n"
        "CREATE VIEW v AS SELECT * FROM users;\nCREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1;\n"
        "CREATE SCHEMA other; CREATE TABLE other.t (); ALTER TABLE users ENABLE ROW LEVEL SECURITY;"
    )
    write_migrations(project.folder, [("by_hand", by_hand)], now_ms=NOW)
    assert not (await project.generate(table(sa.Column("c", sa.Text)))).differs


async def test_two_ways_to_write_the_same_are_the_same(project):
    by_hand = (
        "CREATE TABLE users (id serial, c varchar(5) DEFAULT ('a'::text)::varchar, PRIMARY KEY (id),"
        " CONSTRAINT k CHECK (((c)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::varchar)::text]))));\n"
        "CREATE INDEX i ON public.users USING btree (lower((c)::text));"
    )
    write_migrations(project.folder, [("by_hand", by_hand)], now_ms=NOW)
    metadata = table(
        sa.Column("c", sa.String(5), server_default=sa.text("'a'::text")),
        sa.CheckConstraint("c IN ('a', 'b')", name="k"),
        sa.Index("i", sa.text("lower(c)")),
    )
    found = await project.generate(metadata)
    assert [step.sql for step in found.active if "DEFAULT" not in step.sql] == []


async def test_public_by_name_is_public(project):
    await project.start(table(sa.Column("c", sa.ForeignKey("public.users.id")), schema="public"))
    assert not (await project.generate(table(sa.Column("c", sa.ForeignKey("users.id"))))).differs


# -------------------------------------------------------------------------------------------------------------- drops


async def test_drops_are_commented_out_once_and_run_when_allowed(project):
    metadata = table(sa.Column("c", sa.Text, index=True), sa.Column("d", sa.Text))
    sa.Table("gone", metadata, sa.Column("id", sa.ForeignKey("users.id"), primary_key=True))
    await project.start(metadata)
    less = table(sa.Column("e", sa.Integer))
    text = await project.to(less)
    assert text == (
        'ALTER TABLE "users" ADD COLUMN "e" INTEGER;\n\n'
        "-- Not run, as it takes something away or needs what does; --allow-drops writes it to be run:\n"
        '-- DROP INDEX "ix_users_c";\n'
        '-- ALTER TABLE "users" DROP COLUMN "c"; -- loses the column\'s data\n'
        '-- ALTER TABLE "users" DROP COLUMN "d"; -- loses the column\'s data\n'
        '-- DROP TABLE "gone"; -- loses the table\'s rows\n'
    )
    again = await project.generate(less)
    assert (again.files, len(again.said), again.differs) == ((), 4, True)
    text = await project.to(less, allow_drops=True)
    assert '-- loses the column\'s data\nALTER TABLE "users" DROP COLUMN "c";' in text


async def test_tables_that_refer_to_each_other_can_be_dropped(project):
    metadata = sa.MetaData()
    sa.Table("a", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("b", sa.ForeignKey("b.id")))
    sa.Table("b", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.ForeignKey("a.id")))
    await project.start(metadata)
    await project.to(table(name="other"), allow_drops=True, renames=["*"])


# ------------------------------------------------------------------------------------------------------------ renames


async def test_what_may_be_a_rename_is_not_run_until_somebody_says(project):
    await project.start(table(sa.Column("name", sa.Text), sa.Index("i", "name")))
    after = table(sa.Column("title", sa.Text), sa.Column("n", sa.Integer), sa.Index("j", "title"))
    found = await project.generate(after)
    ((_, text),) = found.files
    assert text == (
        'ALTER TABLE "users" ADD COLUMN "n" INTEGER;\n\n'
        "-- Renamed, or another one? If renamed, use this line:\n"
        '-- ALTER TABLE "users" RENAME COLUMN "name" TO "title";\n'
        "-- If not, these:\n"
        '-- ALTER TABLE "users" ADD COLUMN "title" TEXT;\n'
        '-- ALTER TABLE "users" DROP COLUMN "name"; -- loses the column\'s data\n'
        "-- Not run, as it takes something away or needs what does; --allow-drops writes it to be run:\n"
        '-- DROP INDEX "i";\n'
        '-- CREATE INDEX "j" ON "users" ("title"); -- needs what is commented out above\n'
    )
    renamed = await project.generate(after, renames=["users.name=title"])
    assert statements(renamed.files[0][1]) == [
        'ALTER TABLE "users" RENAME COLUMN "name" TO "title";',
        'ALTER INDEX "i" RENAME TO "j";',
        'ALTER TABLE "users" ADD COLUMN "n" INTEGER;',
    ]
    new = await project.generate(after, renames=["*"], allow_drops=True)
    assert 'DROP COLUMN "name"' in new.files[0][1]
    with pytest.raises(GenerateError, match="nothing with that name was dropped"):
        await project.generate(after, renames=["users.nam=title"])


async def test_a_renamed_table_keeps_its_rows_keys_and_sequence(project, make_database, orchestrator, admin):
    await project.start(table(sa.Column("name", sa.Text), sa.Column("mail", sa.Text, unique=True)))
    url = await make_database()
    env = {"DATABASE_URL": url, "MIGRATIONS_DIR": str(project.folder)}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    await admin.script(url, "INSERT INTO users (name, mail) VALUES ('a', 'b'), ('c', 'd')")
    people = table(sa.Column("title", sa.Text), sa.Column("mail", sa.Text, unique=True), name="people")
    asked = []

    async def ask(candidates):
        asked.append([one.spelled for one in candidates])
        return candidates[0]

    text = await project.to(people, ask=ask)
    assert asked == [["users=people"], ["people.name=title"]]
    assert statements(text)[:2] == [
        'ALTER TABLE "users" RENAME TO "people";',
        'ALTER TABLE "people" RENAME COLUMN "name" TO "title";',
    ]
    assert (await orchestrator("migrate", env=env)).returncode == 0
    assert await admin.value(url, "INSERT INTO people (title) VALUES ('e') RETURNING id") == 3
    assert await admin.value(url, "SELECT count(*) FROM people WHERE title IN ('a', 'c', 'e')") == 3


# -------------------------------------------------------------------------------------------------------------- enums


def _mood(*values, default=None):
    return table(sa.Column("mood", pg.ENUM(*values, name="mood"), server_default=default))


async def test_a_new_value_that_is_used_at_once_gets_a_migration_before_it(project, make_database, orchestrator, admin):
    await project.start(_mood("a", "c"))
    text = await project.to(_mood("0", "a", "b", "c", "d"))
    assert statements(text) == [
        "ALTER TYPE \"mood\" ADD VALUE '0' BEFORE 'a';",
        "ALTER TYPE \"mood\" ADD VALUE 'b' BEFORE 'c';",
        "ALTER TYPE \"mood\" ADD VALUE 'd';",
    ]
    found = await project.generate(_mood("0", "a", "b", "c", "d", "e", default="e"))
    assert [suffix for suffix, _ in found.files] == ["_values", ""]
    project.write(found)
    env = {"DATABASE_URL": (url := await make_database()), "MIGRATIONS_DIR": str(project.folder)}
    done = await orchestrator("migrate", env=env)
    assert done.returncode == 0, done.stderr
    assert await admin.value(url, "INSERT INTO users DEFAULT VALUES RETURNING mood::text") == "e"


async def test_a_value_that_is_gone_makes_the_type_anew_and_keeps_the_rows(project, make_database, orchestrator, admin):
    await project.start(_mood("a", "b", "c", default="a"))
    env = {"DATABASE_URL": (url := await make_database()), "MIGRATIONS_DIR": str(project.folder)}
    await orchestrator("migrate", env=env)
    await admin.script(url, "INSERT INTO users (mood) VALUES ('a'), ('c')")
    commented = await project.generate(_mood("c", "a", default="a"))
    assert commented.active == ()
    await project.to(_mood("c", "a", default="a"), allow_drops=True)
    done = await orchestrator("migrate", env=env)
    assert done.returncode == 0, done.stderr
    assert [r[0] for r in await admin(url, "SELECT mood::text FROM users ORDER BY users.mood")] == ["c", "a"]


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def code(tmp_path):
    """`code(text)` → the environment in which `my_models` is that text."""

    def write(text: str) -> dict[str, str]:
        (tmp_path / "my_models.py").write_text(text)
        return {"SCHEMA": "my_models:Base", "MIGRATIONS_DIR": str(tmp_path / "migrations")}

    return write


BASE = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
class Base(DeclarativeBase):
    pass
class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    {}
"""


async def test_the_command_from_nothing_to_agreement(orchestrator, code, server, tmp_path, make_database):
    env = code(BASE.format("name: Mapped[str]")) | {"DATABASE_URL": await make_database()}
    differs = await orchestrator("generate", "--check", env=env)
    assert (differs.returncode, "CREATE TABLE" in differs.stdout) == (1, True), differs.stderr
    assert not (tmp_path / "migrations").exists()
    made = await orchestrator("generate", "add_users", env=env)
    assert (made.returncode, made.stdout) == (0, f"{tmp_path}/migrations/0000_add_users.sql\n"), made.stderr
    for arguments in (("generate", "--check"), ("generate", "nothing")):
        agree = await orchestrator(*arguments, env=env)
        assert (agree.returncode, agree.stdout) == (0, "Code and migrations agree: nothing to write.\n"), agree.stderr
    code(BASE.format("name: Mapped[str]\n    mail: Mapped[str | None]"))
    as_json = await orchestrator("generate", "add_mail", "--json", env=env)
    facts = json.loads(as_json.stdout)
    assert facts["statements"] == ['ALTER TABLE "users" ADD COLUMN "mail" VARCHAR']
    assert facts["written"][0]["name"] == "0001_add_mail"
    left = "SELECT datname FROM pg_database WHERE datname LIKE 'orchestrator_scratch_%' AND datname IS NULL"
    connection = await asyncpg.connect(server.dsn())
    assert await connection.fetch(left) == []
    await connection.close()


async def test_no_database_is_needed(orchestrator, code, tmp_path):
    env = code(BASE.format("name: Mapped[str]"))
    made = await orchestrator("generate", "add_users", "--v1", env=env)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith("_add_users/migration.sql\n")
    assert not list(tmp_path.glob("orchestrator-generate-*"))


@pytest.mark.parametrize(
    ("text", "schema", "says"),
    [
        ("import nothing_of_this_name\n", "my_models:Base", "my_models.py:1: ModuleNotFoundError"),
        ("\n\n1 / 0\n", "my_models:Base", "my_models.py:3: ZeroDivisionError"),
        ("\nx = = 1\n", "my_models:Base", "my_models.py:2: SyntaxError"),
        ("import sqlalchemy\nmeta = sqlalchemy.MetaData()\n", "my_models:Base", "is my_models:meta meant?"),
        ("Base = 1\n", "my_models:Base", "is a int, and neither a MetaData nor anything that has one"),
        ("", "no_module:Base", "the module no_module does not import"),
    ],
)
async def test_a_schema_that_cannot_be_had_is_said_with_its_place(orchestrator, code, text, schema, says):
    env = code(text) | {"SCHEMA": schema}
    done = await orchestrator("generate", "--check", env=env)
    assert done.returncode == 78
    assert says in done.events[-1]["error"]


async def test_without_the_extra_one_line_says_what_to_install(orchestrator, code, tmp_path):
    (tmp_path / "sqlalchemy.py").write_text("raise ModuleNotFoundError('no', name='sqlalchemy')\n")
    env = code("") | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = await orchestrator("generate", "--check", env=env)
    assert done.returncode == 78
    assert done.events[-1]["remedy"] == "pip install 'orchestrator[dev]'"


async def test_the_programs_own_tables_are_defined_in_code_and_its_migrations_lead_to_them(
    orchestrator, make_database, tmp_path
):
    env = {
        "SCHEMA": "orchestrator.tables:metadata",
        "MIGRATIONS_DIR": str(service_folder()),
        "DATABASE_URL": await make_database(),
    }
    done = await orchestrator("generate", "--check", env=env)
    assert (done.returncode, done.stdout) == (0, "Code and migrations agree: nothing to write.\n"), done.stdout
    # And it looks: without the folder all of it is missing.
    bare = await orchestrator("generate", "--check", env=env | {"MIGRATIONS_DIR": str(tmp_path)})
    assert (bare.returncode, 'CREATE TABLE "orchestrator"."starts"' in bare.stdout) == (1, True), bare.stderr


async def test_on_a_terminal_a_person_is_asked(code, tmp_path, make_database, orchestrator):
    env = code(BASE.format("name: Mapped[str]")) | {"DATABASE_URL": await make_database()}
    assert (await orchestrator("generate", "a", env=env)).returncode == 0
    code(BASE.format("title: Mapped[str]"))
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", "generate", "b"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "TERM": "xterm",
            "PYTHONPATH": str(ROOT),
            **env,
        },
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b"7\n1\n")  # 7 is no answer
    async with asyncio.timeout(30):
        code_ = await process.wait()
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert code_ == 0, shown
    assert "title of the table users is in the code" in shown
    sql = (tmp_path / "migrations" / "0001_b.sql").read_text()
    assert sql == 'ALTER TABLE "users" RENAME COLUMN "name" TO "title";\n'


@pytest.mark.drizzle
async def test_real_drizzle_runs_what_was_generated(project, make_database):
    try:
        drizzle = install()
    except NotInstallableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    await project.start(table(sa.Column("a", sa.Text, comment="it's"), sa.Column("b", sa.Text)))
    await project.start(table(sa.Column("a", sa.Text, server_default="x"), sa.CheckConstraint("id > 0")))
    outcome = drizzle.migrate("v0", await make_database(), project.folder)
    assert outcome.ok, outcome.message
