"""`generate` and the user's own code: what its import does stays its own affair, and refusals name table and column."""

import logging
import re

import pytest
import sqlalchemy as sa
import structlog

from orchestrator import dsn
from orchestrator.schema.loading import SchemaError, load_metadata, without_tables
from orchestrator.schema.models import MetadataError
from orchestrator.tools.generate import generate

TABLE = "import sqlalchemy as sa\nmeta = sa.MetaData()\nsa.Table('t', meta, sa.Column('id', sa.Integer))\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(name, text)` makes one that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # Raised deep in a library: the line is the user's that led there.
        ("import sqlalchemy as sa\n\nsa.Column('a', sa.Integer, nonsense=1)\n", "{file}:3: TypeError"),
        ("import json\nclass A:\n    x = json.loads('{')\n", "{file}:3: JSONDecodeError"),
        ("import sys\nsys.exit('no licence')\n", "{file}:2: it ends the process (sys.exit, code 'no licence')"),
        ("import argparse\nargparse.ArgumentParser().error('x')\n", "{file}:2: it ends the process (sys.exit, code 2)"),
    ],
)
def test_an_import_that_fails_names_the_users_line(module, tmp_path, text, says):
    name = module(f"fails_{abs(hash(text))}", text)
    with pytest.raises(SchemaError, match=re.escape(says.format(file=tmp_path / f"{name}.py"))):
        load_metadata(f"{name}:meta")


def test_what_an_import_sets_up_and_prints_is_contained(module, capsys):
    before = (logging.root.level, logging.root.handlers[:], structlog.get_config())
    known = logging.getLogger("known_before")
    text = (
        "import argparse, logging, logging.config, structlog\n"
        "logging.basicConfig(level='DEBUG', force=True)\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True})\n"
        "logging.getLogger('of_the_module').addHandler(logging.StreamHandler())\n"
        "logging.disable(logging.CRITICAL)\n"
        "structlog.configure(processors=[])\n"
        "print('hello from the models')\n"
        "argparse.ArgumentParser().parse_args()\n"
    )
    metadata = load_metadata(f"{module('noisy_models', text + TABLE)}:meta")
    assert list(metadata.tables) == ["t"]
    assert (logging.root.level, logging.root.handlers, structlog.get_config()) == before
    assert logging.root.manager.disable == logging.NOTSET
    assert not known.disabled
    assert logging.getLogger("of_the_module").handlers == []
    assert capsys.readouterr().out == ""


class Unwritable(sa.types.UserDefinedType):
    def get_col_spec(self):
        raise ZeroDivisionError("of the user's own code")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: sa.Column("c"), r"SQLAlchemy cannot write .* \(table app\.t, column c\).*NullType"),
        (
            lambda: sa.Column("c", sa.ForeignKey("nowhere.id")),
            r"SQLAlchemy cannot write .* \(table app\.t, column c\).*nowhere",
        ),
        (lambda: sa.Column("c", Unwritable), r"\(table app\.t, column c\): ZeroDivisionError: of the user's own code"),
    ],
    ids=["no type", "a key to nowhere", "a type that fails"],
)
async def test_what_sqlalchemy_refuses_is_told_as_its_own(make_database, made, says):
    metadata = sa.MetaData()
    sa.Table("t", metadata, sa.Column("id", sa.Integer, primary_key=True), made(), schema="app")
    with pytest.raises(MetadataError, match=says):
        await generate(dsn.parse(await make_database()), [], metadata, ask=None)


async def test_a_table_of_alembics_name_is_a_table(make_database):
    metadata = sa.MetaData()
    sa.Table("alembic_version", metadata, sa.Column("version_num", sa.String(32), primary_key=True))
    found = await generate(dsn.parse(await make_database()), [], metadata, ask=None)
    assert found.files[0][1].startswith('CREATE TABLE "alembic_version"')


async def test_tables_can_be_left_out_by_name(make_database):
    metadata = sa.MetaData()
    sa.Table("geo_place", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("shape", Unwritable))
    sa.Table(
        "visit", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("at", sa.ForeignKey("geo_place.id"))
    )
    excluded = without_tables(metadata, ["geo_*"])
    assert excluded == {("public", "geo_place")}
    found = await generate(dsn.parse(await make_database()), [], metadata, ask=None, excluded=excluded)
    ((_, text),) = found.files
    assert text == 'CREATE TABLE "visit" (\n\t"id" SERIAL NOT NULL,\n\t"at" INTEGER,\n\tPRIMARY KEY ("id")\n);\n'
    with pytest.raises(SchemaError, match="no table of that name"):
        without_tables(metadata, ["vist"])
