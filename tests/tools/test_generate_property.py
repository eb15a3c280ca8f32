"""Round trip: whatever MetaData there is, its migration leads to it, and so does the migration of any change of it.

By default a few examples (GENERATE_EXAMPLES=200 for a long run), each of: nothing → A → B → nothing more to do.
"""

import asyncio
import itertools
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg

from orchestrator import dsn
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.tools.generate import generate
from orchestrator.tools.new_file import write_migrations

EXAMPLES = int(os.environ.get("GENERATE_EXAMPLES", "5"))

# Names that break whatever is not quoted: keywords, capitals, spaces, quotes, dots, percent, other scripts.
NAMES = ("user", "Order", "a b", 'q"t', "d.t", "p%s", "größe", "select", "x", "name", "It's", ":b", "$1", "n\\n", "1a")
TEXTS = ("plain", "it's", "100%", "a\\b", "tab\there", "line\nbreak", ":bind", "%(x)s", "--", "größe", ", \n\tx", "")
ENUMS = ("ok", "it's", "A b", "100%", "größe")

# type → defaults that fit it, as SQL or None.
TYPES = {
    "integer": (sa.Integer(), ("0", "-5", "1 + 1")),
    "bigint": (sa.BigInteger(), ("7",)),
    "smallint": (sa.SmallInteger(), ("1",)),
    "text": (sa.Text(), ("'a''b'", "lower('X')", "E'\\\\'")),
    "varchar": (sa.String(20), ("'v'",)),
    "varchar2": (sa.String(30), ("'v'",)),
    "char": (sa.CHAR(3), ("'abc'",)),
    "numeric": (sa.Numeric(10, 2), ("1.50",)),
    "double": (sa.Double(), ("0.5",)),
    "bool": (sa.Boolean(), ("true", "false")),
    "timestamptz": (sa.DateTime(timezone=True), ("now()",)),
    "timestamp": (sa.DateTime(), ("'2020-01-01'",)),
    "date": (sa.Date(), ("CURRENT_DATE",)),
    "interval": (sa.Interval(), ("'1 day'",)),
    "uuid": (sa.Uuid(), ("gen_random_uuid()",)),
    "json": (sa.JSON(), ("'{}'",)),
    "jsonb": (pg.JSONB(), ("""'{"a": 1}'""",)),
    "bytea": (sa.LargeBinary(), ("'\\x00'",)),
    "inet": (pg.INET(), ("'127.0.0.1'",)),
    "array": (pg.ARRAY(sa.Text()), ("'{}'", "ARRAY['a', 'b']")),
    "range": (pg.INT4RANGE(), ("'[1,2)'",)),
    "tsvector": (pg.TSVECTOR(), ()),
}
INDEXED = ("integer", "bigint", "text", "varchar", "numeric", "timestamptz", "uuid", "date")


@dataclass(frozen=True)
class Col:
    type: str
    nullable: bool = True
    default: int | None = None
    comment: str | None = None
    check: bool = False
    unique: bool = False
    refers: int | None = None  # the table, by its place


@dataclass(frozen=True)
class Tab:
    schema: str | None
    key: str  # serial, identity, text
    columns: dict[str, Col] = field(default_factory=dict)
    comment: str | None = None
    indexes: tuple[tuple[str, str], ...] = ()  # column, kind


@dataclass(frozen=True)
class Model:
    tables: dict[str, Tab]
    enum: tuple[str, ...]


cols = st.builds(
    Col,
    type=st.sampled_from([*TYPES, "enum", "enum[]"]),
    nullable=st.booleans(),
    default=st.none() | st.integers(0, 2),
    comment=st.none() | st.sampled_from(TEXTS[:-1]),
    check=st.booleans(),
    unique=st.booleans(),
    refers=st.none() | st.integers(0, 3),
)
tabs = st.builds(
    Tab,
    schema=st.sampled_from([None, None, "app", "Odd schema"]),
    key=st.sampled_from(["serial", "identity", "text"]),
    columns=st.dictionaries(st.sampled_from(NAMES), cols, max_size=4),
    comment=st.none() | st.sampled_from(TEXTS[:-1]),
    indexes=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["plain", "unique", "partial", "expression", "include"])),
        max_size=2,
        unique=True,
    ).map(tuple),
)
models = st.builds(
    Model,
    tables=st.dictionaries(st.sampled_from(NAMES), tabs, max_size=3),
    enum=st.lists(st.sampled_from(ENUMS), min_size=1, max_size=4, unique=True).map(tuple),
)


@st.composite
def changed(draw: st.DrawFn, model: Model) -> Model:
    """The same with some tables and columns gone, come, or altered; a table keeps its schema and its key."""
    fresh = draw(models)
    tables = {}
    for name, table in model.tables.items():
        what = draw(st.sampled_from(["same", "gone", "altered", "altered"]))
        if what == "gone":
            continue
        if what == "altered":
            other = draw(tabs)
            kept = {c: col for c, col in table.columns.items() if draw(st.booleans())}
            tables[name] = replace(other, schema=table.schema, key=table.key, columns={**other.columns, **kept})
        else:
            tables[name] = table
    for name, table in fresh.tables.items():
        tables.setdefault(name, table)
    return Model(tables, draw(st.sampled_from([model.enum, (*model.enum, "added"), fresh.enum])))


KEYS = {
    "serial": lambda: sa.Column("id", sa.Integer, primary_key=True),
    "identity": lambda: sa.Column("id", sa.BigInteger, sa.Identity(always=True, start=3), primary_key=True),
    "text": lambda: sa.Column("id", sa.Text, primary_key=True),
}


def build(model: Model) -> sa.MetaData:
    metadata = sa.MetaData()
    enum = pg.ENUM(*model.enum, name="Mood%", metadata=metadata)
    tables = [
        sa.Table(name, metadata, KEYS[tab.key](), schema=tab.schema, comment=tab.comment)
        for name, tab in model.tables.items()
    ]
    for table, tab in zip(tables, model.tables.values(), strict=True):
        for name, col in tab.columns.items():
            if col.refers is not None and col.refers < len(tables):
                _add_reference(table, name, col, tables[col.refers])
            else:
                _add_column(table, name, col, enum, model.enum[0])
        for number, (name, kind) in enumerate(tab.indexes):
            col = tab.columns.get(name)
            if col is not None and col.type in INDEXED and col.refers is None:
                _add_index(f"{table.name} {name} {kind} {number}", table.c[name], kind)
    return metadata


def _add_reference(table: sa.Table, name: str, col: Col, target: sa.Table) -> None:
    """To any table, itself and later ones too: so there are cycles."""
    table.append_column(sa.Column(name, target.c.id.type, comment=col.comment))
    options = {"deferrable": True, "initially": "DEFERRED"} if col.check else {}
    options |= {"ondelete": "CASCADE"} if col.unique else {}
    key = sa.ForeignKeyConstraint(
        [name], [target.c.id], use_alter=col.nullable, name=f"fk {table.name} {name}", **options
    )
    table.append_constraint(key)


def _add_column(table: sa.Table, name: str, col: Col, enum: pg.ENUM, value: str) -> None:
    if col.type == "enum":
        kind, defaults = enum, ("'" + value.replace("'", "''") + "'",)
    elif col.type == "enum[]":
        kind, defaults = pg.ARRAY(enum), ("'{}'",)
    else:
        kind, defaults = TYPES[col.type]
    default = None
    if defaults and col.default is not None:
        default = sa.text(defaults[col.default % len(defaults)].replace(":", "\\:"))
    column = sa.Column(name, kind, nullable=col.nullable, server_default=default, comment=col.comment)
    table.append_column(column)
    if col.unique and col.type in INDEXED:
        table.append_constraint(sa.UniqueConstraint(column, postgresql_nulls_not_distinct=col.nullable))
    if col.check and col.type in {"integer", "bigint"}:
        table.append_constraint(sa.CheckConstraint(column > 0))
    if col.check and col.type in {"varchar", "text"}:
        table.append_constraint(sa.CheckConstraint(column.in_(["a", "it's", "100%"]), name=f"ck {name}"))


def _add_index(name: str, column: sa.Column, kind: str) -> None:
    options = {
        "plain": {},
        "unique": {"unique": True},
        "partial": {"postgresql_where": column.is_not(None)},
        "expression": {},
        "include": {"postgresql_include": ["id"]},
    }[kind]
    sa.Index(name, sa.func.coalesce(column, column) if kind == "expression" else column, **options)


SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))


class Project:
    """A folder, and what `generate` finds between it and a model."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server, self.folder = dsn.parse(server), folder
        self.clock = itertools.count(1_700_000_000_000, 1000)
        self.texts: list[str] = []

    def sources(self) -> list[Source]:
        if not self.folder.is_dir():
            return [SERVICE]
        return [SERVICE, Source("user", read_folder(self.folder), LedgerTable("drizzle", "__drizzle_migrations"))]

    async def to(self, model: Model) -> None:
        """Generate the migration to `model`, and see that there is nothing more to do."""
        found = await generate(self.server, self.sources(), build(model), ask=None, renames=["*"], allow_drops=True)
        assert not found.unwritten, found.unwritten
        texts = [(f"m{next(self.clock)}{suffix}", text) for suffix, text in found.files]
        self.texts += [text for _, text in texts]
        write_migrations(self.folder, texts, now_ms=next(self.clock))
        again = await generate(self.server, self.sources(), build(model), ask=None, renames=["*"], allow_drops=True)
        assert not again.differs, [step.sql for step in again.active] + list(again.unwritten)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_a_generated_migration_leads_to_the_code_and_so_does_that_of_any_change(server):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="GENERATE_EXAMPLES" not in os.environ,
        database=None,
        phases=[Phase.generate],  # to shrink takes minutes: a failure prints its migrations
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), model=models)
    def round_trip(data: st.DataObject, model: Model) -> None:
        async def run() -> None:
            with tempfile.TemporaryDirectory() as directory:
                project = Project(server.dsn(), Path(directory) / "migrations")
                try:
                    await project.to(model)
                    await project.to(data.draw(changed(model)))
                except BaseException:
                    print("\n=====\n".join(project.texts))
                    raise

        asyncio.run(run())

    round_trip()
