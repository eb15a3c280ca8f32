"""Evolve the models of a real project in every way that loses data where it is done wrong, on tables with rows.

Runs in whatever Python can import the project: `python -m support.evolving MODULE:NAME [--exclude TABLE]… [WAY]…`; the
server is in DATABASE_URL. Each way is one change of a copy of the models; `generate` writes the migration, a live
database with rows runs it, the rows are compared, and `generate` then finds nothing more to do. Prints a line a way,
and exits with the number of faults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import sqlalchemy as sa

from orchestrator import dsn
from orchestrator.analysis.lint import lint, read_lint_folder
from orchestrator.errors import OrchestratorError
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.schema.loading import load_metadata, without_tables
from orchestrator.tools.generate import generate
from orchestrator.tools.new_file import write_migrations

SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))
MOOD = "evolving_mood"
VALUES = ("calm", "glad", "sad")
ROWS = 3
# format_type() → an expression of the row's number `n`.
SAMPLES = {
    **dict.fromkeys(("text", "character varying", "citext", "name"), "'r' || n"),
    **dict.fromkeys(("integer", "bigint", "smallint", "numeric", "real", "double precision"), "n"),
    "character": "n::text",
    "money": "n::text::money",
    "boolean": "true",
    "date": "DATE '2024-01-01' + n",
    "timestamp without time zone": "TIMESTAMP '2024-01-01' + n * INTERVAL '1 h'",
    "timestamp with time zone": "TIMESTAMPTZ '2024-01-01' + n * INTERVAL '1 h'",
    "time without time zone": "TIME '01:00'",
    "interval": "n * INTERVAL '1 h'",
    "uuid": "md5(n::text)::uuid",
    "json": "'{}'::json",
    "jsonb": "'{}'::jsonb",
    "bytea": "'\\x01'::bytea",
    "inet": "'127.0.0.1'::inet",
    "tsvector": "'r'::tsvector",
}


@dataclass(slots=True)
class Change:
    """One evolution: the models after it, options for `generate`, and what becomes of tables and columns."""

    metadata: sa.MetaData
    options: dict = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    by_hand: bool = False


def copied(metadata: sa.MetaData, leave: str = "") -> sa.MetaData:
    made = sa.MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        if table.key != leave:
            table.to_metadata(made)
    return made


def mood(*values: str) -> sa.Column:
    return sa.Column("evolving", sa.Enum(*values, name=MOOD), server_default=values[0], nullable=False)


def first(tables):
    for table in tables:
        return table
    raise LookupError("no such table")


def qualified(table: sa.Table) -> str:
    return f"{table.schema or 'public'}.{table.name}"


class Models:
    """The project's models with an enum's column added, and the tables that the ways are tried on."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.metadata = metadata
        referred = {key.target_fullname.rpartition(".")[0] for t in metadata.tables.values() for key in t.foreign_keys}
        self.leaves = [t for t in metadata.tables.values() if t.key not in referred]
        self.enum_table = self.leaves[0].key
        self.bare = copied(metadata)
        metadata.tables[self.enum_table].append_column(mood(*VALUES))

    def plain(self, wanted=(sa.String,), *, nullable: bool | None = None) -> sa.Column:
        """A column that nothing else speaks of."""
        for table in self.metadata.tables.values():
            texts = " ".join(str(getattr(c, "sqltext", "")) for c in table.constraints)
            texts += " ".join(
                str(e) for i in table.indexes for e in (*i.expressions, i.dialect_options["postgresql"]["where"])
            )
            texts += " ".join(str(c.computed.sqltext) for c in table.columns if c.computed is not None)
            for c in table.columns:
                constrained = any(c.name in getattr(k, "columns", ()) for k in table.constraints)
                if type(c.type) in wanted and not (
                    c.primary_key or c.foreign_keys or c.index or c.unique or constrained or c.name in texts
                ) and nullable in {None, c.nullable}:  # fmt: skip
                    return c
        raise LookupError("no such column")

    def change(self, column: sa.Column, alter) -> Change:
        made = copied(self.metadata)
        alter(made.tables[column.table.key].c[column.name])
        return Change(made)

    # ------------------------------------------------------------------------------------------------------- the ways

    def drop(self) -> Change:
        column = self.plain((sa.String, sa.Text, sa.Integer, sa.Boolean, sa.DateTime))
        found = self.change(column, lambda c: c.table._columns.remove(c))
        found.options, found.gone = {"allow_drops": True, "renames": ["*"]}, frozenset({column.name})
        return found

    def drop_not_allowed(self) -> Change:
        column = self.plain((sa.String, sa.Text, sa.Integer, sa.Boolean, sa.DateTime))
        return self.change(column, lambda c: c.table._columns.remove(c))

    def rename(self) -> Change:
        column = self.plain((sa.String, sa.Text, sa.Integer, sa.Boolean, sa.DateTime))

        def alter(c):
            table = c.table
            table._columns.remove(c)
            table.append_column(sa.Column("evolved", c.type, nullable=c.nullable, server_default=c.server_default))

        found = self.change(column, alter)
        prefix = f"{column.table.schema}." if column.table.schema else ""
        found.options = {"renames": [f"{prefix}{column.table.name}.{column.name}=evolved"]}
        found.renamed = {column.name: "evolved"}
        return found

    def narrow(self) -> Change:
        return self.change(
            self.plain((sa.String, sa.Text, sa.Unicode, sa.UnicodeText)), lambda c: setattr(c, "type", sa.String(2))
        )

    def widen(self) -> Change:
        return self.change(self.plain((sa.Integer,)), lambda c: setattr(c, "type", sa.BigInteger()))

    def not_null(self) -> Change:
        column = self.plain((sa.String, sa.Text, sa.Integer, sa.Boolean, sa.DateTime), nullable=True)
        return self.change(column, lambda c: setattr(c, "nullable", False))

    def not_null_online(self) -> Change:
        found = self.not_null()
        found.options = {"online": True}
        return found

    def not_null_with_default(self) -> Change:
        made = copied(self.metadata)
        made.tables[self.enum_table].append_column(sa.Column("more", sa.Text, server_default="x", nullable=False))
        return Change(made)

    def _enum(self, *values: str, **options) -> Change:
        made = copied(self.bare)
        made.tables[self.enum_table].append_column(mood(*values))
        return Change(made, options)

    def enum_add(self) -> Change:
        return self._enum("calm", "new", "glad", "sad")

    def enum_rename(self) -> Change:
        return self._enum("calm", "happy", "sad", renames=[f"{MOOD}.glad=happy"])

    def enum_drop(self) -> Change:
        return self._enum("calm", "glad", allow_drops=True)

    def index(self) -> Change:
        column = self.plain((sa.String, sa.Text, sa.Integer, sa.DateTime))
        return self.change(column, lambda c: sa.Index("evolving_index", c))

    def index_online(self) -> Change:
        found = self.index()
        found.options = {"online": True}
        return found

    def _leaf(self) -> sa.Table:
        return first(t for t in self.leaves if t.key != self.enum_table and len(t.columns) > 1)

    def table_rename(self) -> Change:
        leaf = self._leaf()
        made = copied(self.metadata, leaf.key)
        moved = leaf.to_metadata(made, name="evolved_table")
        prefix = f"{leaf.schema}." if leaf.schema else ""
        renames = [f"{prefix}{leaf.name}=evolved_table"]
        return Change(made, {"renames": renames}, {qualified(leaf): qualified(moved)})

    def schema_move(self) -> Change:
        leaf = self._leaf()
        made = copied(self.metadata, leaf.key)
        stays = lambda _table, _to, _constraint, referred: referred  # noqa: E731
        moved = leaf.to_metadata(made, schema="evolved", referred_schema_fn=stays)
        prefix = f"{leaf.schema}." if leaf.schema else ""
        renames = [f"{prefix}{leaf.name}=evolved.{leaf.name}"]
        return Change(made, {"renames": renames}, {qualified(leaf): qualified(moved)})

    def identity(self) -> Change:
        table = first(
            t
            for t in self.metadata.tables.values()
            if (c := t.autoincrement_column) is not None
            and c.server_default is None
            and c.default is None
            and not c.foreign_keys
        )
        made = copied(self.metadata)
        sa.Identity()._set_parent_with_dispatch(made.tables[table.key].autoincrement_column)
        return Change(made)

    def partition(self) -> Change:
        table = first(
            t
            for t in self.leaves
            if len(t.primary_key.columns) == 1
            and not any(isinstance(c, sa.UniqueConstraint) for c in t.constraints)
            and not any(i.unique for i in t.indexes)
        )
        made = copied(self.metadata)
        (column,) = table.primary_key.columns
        made.tables[table.key].dialect_options["postgresql"]["partition_by"] = f'HASH ("{column.name}")'
        return Change(made, by_hand=True)


WAYS = (
    "drop", "drop_not_allowed", "rename", "narrow", "widen", "not_null", "not_null_online", "not_null_with_default",
    "enum_add", "enum_rename", "enum_drop", "index", "index_online", "table_rename", "schema_move", "identity",
    "partition",
)  # fmt: skip


class Project:
    """A folder and a database where it leads, with rows."""

    def __init__(self, server: dsn.Dsn, folder: Path) -> None:
        self.server, self.folder, self.number = server, folder, 0

    async def find(self, metadata, **options):
        sources = [SERVICE]
        if self.folder.is_dir():
            sources.append(Source("user", read_folder(self.folder), LedgerTable("drizzle", "__drizzle_migrations")))
        return await generate(self.server, sources, metadata, **{"ask": None, **options})

    def write(self, files) -> None:
        write_migrations(self.folder, [(f"m{self.number}{s}", text) for s, text in files], now_ms=1_750_000_000_000)
        self.number += 1


async def connect(server: dsn.Dsn, database: str):
    host, port = server.hosts[0]
    return await asyncpg.connect(host=host, port=port, user=server.user, password=server.password, database=database)


async def run_files(connection, files) -> None:
    for _, text in files:
        for statement in text.split("--> statement-breakpoint"):
            if re.sub(r"(?m)^--.*$", "", statement).strip():
                await connection.execute(statement)


async def fill(connection) -> int:
    """A few rows in each table that takes generic ones; returns how many tables those are."""
    tables = await connection.fetch(
        "SELECT c.oid, c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    )
    filled = 0
    await connection.execute("SET session_replication_role = replica")
    for table in tables:
        columns = await connection.fetch(
            "SELECT quote_ident(a.attname) AS name, format_type(a.atttypid, NULL) AS type,"
            " (SELECT min(enumlabel) FROM pg_enum e WHERE e.enumtypid = a.atttypid) AS label FROM pg_attribute a"
            " WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND NOT a.atthasdef AND a.attidentity = ''",
            table["oid"],
        )
        values = [
            f"'{one['label']}'"
            if one["label"]
            else "'{}'"
            if one["type"].endswith("[]")
            else SAMPLES.get(one["type"], "NULL")
            for one in columns
        ]
        if columns:
            sql = (
                f"INSERT INTO {table['name']} ({', '.join(c['name'] for c in columns)})"
                f" SELECT {', '.join(values)} FROM generate_series(1, {ROWS}) n"
            )
        else:
            sql = f"INSERT INTO {table['name']} DEFAULT VALUES"
        try:
            await connection.execute(sql)
            filled += 1
        except asyncpg.PostgresError:
            continue  # a CHECK wants other values: the table stays empty
    await connection.execute("RESET session_replication_role")
    return filled


async def rows(connection) -> dict[str, list[dict]]:
    found = {}
    for table in await connection.fetch(
        "SELECT n.nspname || '.' || c.relname AS name, c.oid::regclass::text AS sql FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'"
        " AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    ):
        texts = await connection.fetch(f"SELECT to_jsonb(t)::text AS row FROM {table['sql']} t ORDER BY 1")
        found[table["name"]] = [json.loads(one["row"]) for one in texts]
    return found


def lost(before: dict, after: dict, change: Change) -> str:
    """Which table has not every row with every value that it had; empty: none."""
    for table, was in before.items():
        now = after.get(change.tables.get(table, table))
        if now is None or len(now) != len(was):
            return f"rows of {table}: {len(was)} became {None if now is None else len(now)}"
        # A name that is gone or renamed in one table may be another's, where it stays.
        present = set(now[0]) if now else set()
        names = {k: k if k in present else change.renamed.get(k, k) for k in (was[0] if was else ())}
        kept = {k: new for k, new in names.items() if new in present or k not in change.gone}
        values = [sorted(str([row.get(k) for k in side]) for row in found) for side, found in (
            (kept, was), (kept.values(), now)
        )]  # fmt: skip
        if values[0] != values[1]:
            return f"values of {table} changed"
    return ""


async def evolve(project: Project, template: str, way: str, models: Models) -> str:
    """What went wrong; empty: nothing."""
    change = getattr(models, way)()
    here = Project(project.server, project.folder.parent / f"migrations_{way}")
    await asyncio.to_thread(shutil.copytree, project.folder, here.folder)
    here.number = project.number
    admin = await connect(project.server, project.server.database)
    name = f"evolving_{way}_{os.getpid()}"
    await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    live = await connect(project.server, name)
    try:
        return await fault_of(here, live, change)
    except (OrchestratorError, asyncpg.PostgresError) as error:
        return f"{type(error).__name__}: {error} {getattr(error, 'remedy', '') or ''}"
    finally:
        await live.close()
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.close()


async def fault_of(here: Project, live, change: Change) -> str:
    before = await rows(live)
    found = await here.find(change.metadata, **change.options)
    if change.by_hand:
        return "" if found.unwritten else "is not told as work by hand"
    if found.unwritten or not found.files:
        return f"by hand: {found.unwritten}" if found.unwritten else "no difference was found"
    here.write(found.files)
    await run_files(live, found.files)
    if fault := lost(before, await rows(live), change):
        return fault
    again = await here.find(change.metadata, **{**change.options, "renames": ()})
    if again.active or again.files or again.unwritten:
        return f"--check does not hold: {[s.sql for s in (*again.active, *again.withheld)]} {again.unwritten}"
    if not change.options.get("online"):
        return ""
    report = lint(read_lint_folder(here.folder), only=sorted(here.folder.glob("*.sql"))[1:])
    return f"lint finds {[(f.rule, f.why) for f in report.findings]}" if report.findings else ""


async def main(schema: str, server: dsn.Dsn, ways: list[str], excluded: list[str]) -> int:
    metadata = load_metadata(schema)
    without_tables(metadata, excluded)
    models = Models(metadata)
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        project = Project(server, Path(directory) / "migrations")
        began = time.monotonic()
        found = await project.find(models.metadata)
        project.write(found.files)
        admin = await connect(server, server.database)
        template = f"evolving_{os.getpid()}"
        await admin.execute(f'DROP DATABASE IF EXISTS "{template}"')
        await admin.execute(f'CREATE DATABASE "{template}"')
        live = await connect(server, template)
        await run_files(live, found.files)
        filled = await fill(live)
        await live.close()
        again = await project.find(models.metadata)
        held = not again.differs
        findings = [f.rule for f in lint(read_lint_folder(project.folder)).findings]
        seconds = time.monotonic() - began
        tables = len(models.metadata.tables)
        print(
            f"{tables} tables, {filled} with rows; --check {'holds' if held else 'FAILS'}; {seconds:.0f} s; {findings}",
            flush=True,
        )
        faults += not held or bool(findings)
        for way in ways or WAYS:
            try:
                fault = await evolve(project, template, way, models)
            except (LookupError, RuntimeError) as error:
                print(f"  {way:24} nothing to try it on ({error})", flush=True)
                continue
            print(f"  {way:24} {fault or 'ok'}", flush=True)
            faults += bool(fault)
        await admin.execute(f'DROP DATABASE "{template}"')
        await admin.close()
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("schema")
    parser.add_argument("ways", nargs="*", metavar="WAY", choices=[*WAYS, []])
    parser.add_argument("--exclude", action="append", default=[])
    given = parser.parse_intermixed_args()
    server_of = dsn.parse(os.environ["DATABASE_URL"])
    sys.exit(asyncio.run(main(given.schema, server_of, given.ways, given.exclude)))
