"""`generate --online` writes what `lint` asks for, and `--remake-views` what a view in the way needs; both run."""

import re

import pytest
import sqlalchemy as sa

from orchestrator import dsn
from orchestrator.analysis.lint import lint, read_lint_folder
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.tools.generate import GenerateError, generate
from orchestrator.tools.new_file import write_migrations

SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))


class Project:
    """A folder, and a live database with rows that is where the folder leads."""

    def __init__(self, live, folder, admin):
        self.live, self.folder, self.admin = live, folder, admin

    async def find(self, metadata, **options):
        sources = [SERVICE]
        if self.folder.is_dir():
            sources.append(Source("user", read_folder(self.folder), LedgerTable("drizzle", "__drizzle_migrations")))
        return await generate(dsn.parse(self.live), sources, metadata, **{"ask": None, "renames": ["*"], **options})

    async def to(self, metadata, **options):
        """Generate, write, and run each statement on the live database as a stepwise run does; returns the files."""
        found = await self.find(metadata, **options)
        await self.write(found.files)
        again = await self.find(metadata, **options)
        assert (again.active, again.withheld, again.unwritten) == ((), (), ()), [step.sql for step in again.active]
        return dict(found.files)

    async def write(self, files):
        number = len(list(self.folder.glob("*.sql")))
        write_migrations(
            self.folder, [(f"m{number}{suffix}", text) for suffix, text in files], now_ms=1_750_000_000_000
        )
        for _, text in files:
            for statement in text.split("--> statement-breakpoint"):
                if re.sub(r"(?m)^--.*$", "", statement).strip():
                    await self.admin.script(self.live, statement)

    def linted(self, *, since):
        """The findings of all files after the first `since`."""
        report = lint(read_lint_folder(self.folder), only=sorted(self.folder.glob("*.sql"))[since:])
        return [(one.rule, one.why) for one in report.findings], {one.rule for one in report.allowed}


@pytest.fixture
async def project(make_database, admin, tmp_path):
    return Project(await make_database(), tmp_path / "migrations", admin)


def before():
    metadata = sa.MetaData()
    sa.Table("teams", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("slug", sa.Text))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mail", sa.Text),
        sa.Column("team", sa.Integer),
        sa.Column("age", sa.Integer),
        sa.CheckConstraint("age > 0", name="old_enough"),
        sa.Index("users_age", "age"),
    )
    return metadata


def after():
    metadata = sa.MetaData()
    sa.Table("teams", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("slug", sa.Text, unique=True))
    sa.Table(
        "users",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("mail", sa.Text, nullable=False, index=True),
        sa.Column("team", sa.ForeignKey("teams.id", ondelete="CASCADE")),
        sa.Column("age", sa.Integer),
        sa.Column("state", sa.Text, server_default="new", nullable=False),
        sa.CheckConstraint("age >= 18", name="old_enough"),
        sa.Index("users_age", "age", unique=True, postgresql_include=["mail"]),
        sa.UniqueConstraint("mail", "team", name='odd "name"', deferrable=True, initially="DEFERRED"),
    )
    sa.Table(
        "notes",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("by", sa.ForeignKey("users.id"), index=True),
    )
    return metadata


ROWS = """
INSERT INTO teams (slug) VALUES ('a'), ('b');
INSERT INTO users (mail, team, age) VALUES ('m', 1, 30), ('n', 2, 40);
"""


async def test_lint_finds_nothing_in_what_is_written_online(project):
    await project.to(before())
    await project.admin.script(project.live, ROWS)
    files = await project.to(after(), online=True)
    assert list(files) == ["", "_indexes", "_finish"]
    findings, allowed = project.linted(since=1)
    assert findings == []
    assert allowed == {"drop-constraint"}
    assert 'ADD CONSTRAINT "odd ""name""" UNIQUE USING INDEX "odd ""name""" DEFERRABLE' in files["_finish"]
    assert all(" INDEX CONCURRENTLY " in line for line in files["_indexes"].splitlines() if line[:2] != "--")
    assert await project.admin.value(project.live, "SELECT count(*) FROM users WHERE state = 'new'") == 2


async def test_a_unique_that_a_new_key_stands_on_is_there_at_once(project, admin):
    def model(*more, unique):
        metadata = sa.MetaData()
        sa.Table("a", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("s", sa.Text, unique=unique))
        for name in more:
            sa.Table(name, metadata, sa.Column("a", sa.ForeignKey("a.s")))
        return metadata

    await project.to(model(unique=False))
    files = await project.to(model("b", unique=True), online=True)
    assert list(files) == [""]


async def test_a_required_column_is_added_online_and_asks_for_the_old_rows(project, admin):
    def model(*more):
        metadata = sa.MetaData()
        sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True), *more)
        return metadata

    await project.to(model())
    await admin.script(project.live, "INSERT INTO t DEFAULT VALUES")
    found = await project.find(model(sa.Column("name", sa.Text, nullable=False)), online=True)
    (_, first), (_, last) = found.files
    assert 'ADD COLUMN "name" TEXT;' in first
    assert "-- fill the old rows first" in last
    await admin.script(project.live, first)
    await admin.script(project.live, "UPDATE t SET name = 'x'")
    await admin.script(project.live, last)
    assert await admin.value(
        project.live, "SELECT attnotnull FROM pg_attribute WHERE attname = 'name' AND attrelid = 't'::regclass"
    )


VIEWS = """
CREATE VIEW "Short" WITH (security_barrier) AS SELECT id, name FROM t WHERE name <> '';
COMMENT ON VIEW "Short" IS 'short names';
ALTER VIEW "Short" ALTER COLUMN name SET DEFAULT 'x';
GRANT SELECT ON "Short" TO PUBLIC;
CREATE MATERIALIZED VIEW counted AS SELECT name, count(*) AS n FROM "Short" GROUP BY name;
CREATE UNIQUE INDEX counted_name ON counted (name);
"""


def named(length):
    metadata = sa.MetaData()
    sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(length)))
    return metadata


async def test_a_view_in_the_way_of_a_widened_column_is_dropped_and_made_again_on_request(project, admin):
    await project.to(named(10))
    await project.write([("_views", VIEWS.replace(";\n", ";\n--> statement-breakpoint\n").rsplit("-->", 1)[0])])
    with pytest.raises(GenerateError) as refused:
        await project.find(named(20))
    assert '--remake-views drops public."Short", public.counted' in (refused.value.remedy or "")
    files = await project.to(named(20), remake_views=True)
    lines = [line for line in files[""].splitlines() if not line.startswith("--")]
    assert lines[0] == "DROP MATERIALIZED VIEW public.counted;"
    await admin.script(project.live, "INSERT INTO t (name) VALUES (repeat('x', 20)); REFRESH MATERIALIZED VIEW counted")
    assert await admin.value(project.live, "SELECT obj_description('\"Short\"'::regclass)") == "short names"
    assert await admin.value(project.live, "SELECT has_table_privilege('pg_monitor', '\"Short\"', 'SELECT')")
    assert await admin.value(project.live, "SELECT count(*) FROM counted") == 1
    assert await admin.value(project.live, "SELECT to_regclass('counted_name') IS NOT NULL")


async def test_an_enum_made_anew_is_no_dropped_object(project):
    def model(*values):
        metadata = sa.MetaData()
        sa.Table(
            "t", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("m", sa.Enum(*values, name="mood"))
        )
        return metadata

    await project.to(model("a", "b", "c"))
    await project.to(model("a", "c"), allow_drops=True)
    findings, _ = project.linted(since=1)
    assert {rule for rule, _ in findings} == {"type-change"}  # the table is written anew, which nothing spares
