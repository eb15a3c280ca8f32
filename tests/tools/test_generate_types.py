"""`generate` and a column's type: no value is changed or cut without its being asked for. Rows are in the tables."""

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from orchestrator import dsn
from orchestrator.migrator.folder import read_folder
from orchestrator.migrator.ledger import LedgerTable
from orchestrator.migrator.sources import Source, service_folder
from orchestrator.tools.generate import generate
from orchestrator.tools.new_file import write_migrations

SERVICE = Source("service", read_folder(service_folder()), LedgerTable("orchestrator", "__drizzle_migrations"))


def metadata(type_) -> sa.MetaData:
    found = sa.MetaData()
    sa.Table("t", found, sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True), sa.Column("c", type_))
    return found


@pytest.fixture
def project(make_database, admin, tmp_path):
    """`await project(before, after, values, allow_drops=…)` → (what generate found, the live database)."""

    async def change(before, after, values, **options):
        live = await make_database()
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"

        async def find(type_, **more):
            sources = [SERVICE]
            if folder.is_dir():
                sources.append(Source("user", read_folder(folder), LedgerTable("drizzle", "__drizzle_migrations")))
            return await generate(dsn.parse(live), sources, metadata(type_), ask=None, **more)

        first = await find(before)
        write_migrations(folder, [("first", first.files[0][1])], now_ms=1_750_000_000_000)
        await admin.script(live, first.files[0][1])
        await admin.script(live, f"INSERT INTO t (c) VALUES {', '.join(f'({v})' for v in values)}")
        return await find(after, **options), live

    return change


LOSSY = {
    "numeric to a smaller scale": (sa.Numeric(10, 4), sa.Numeric(10, 1), ["1.2345", "2"], 1),
    "numeric to integer": (sa.Numeric, sa.Integer, ["1.5", "2.5", "3"], 2),
    "timestamp to date": (sa.DateTime, sa.Date, ["'2020-01-01 10:00'", "'2020-01-01'"], 1),
    "double to real": (sa.Double, sa.REAL, ["0.1234567890123", "0.5"], 1),
    "integer to boolean": (sa.Integer, sa.Boolean, ["0", "1", "7"], 1),
    "timestamp to whole seconds": (sa.DateTime, pg.TIMESTAMP(precision=0), ["'2020-01-01 10:00:00.5'"], 1),
}


@pytest.mark.parametrize("case", LOSSY.values(), ids=LOSSY)
async def test_what_changes_values_is_commented_out_with_the_number_of_rows(project, case):
    before, after, values, rows = case
    found, _ = await project(before, after, values)
    assert found.active == ()
    (step,) = found.withheld
    assert f"{rows} row{'' if rows == 1 else 's'} would change now" in step.note
    assert all(line.startswith("--") for line in found.files[0][1].splitlines())


@pytest.mark.parametrize("case", LOSSY.values(), ids=LOSSY)
async def test_what_changes_values_is_written_where_it_is_allowed(project, admin, case):
    before, after, values, _ = case
    found, live = await project(before, after, values, allow_drops=True)
    await admin.script(live, found.files[0][1])
    assert await admin.value(live, "SELECT count(*) FROM t") == len(values)


REFUSED = {
    "text to a short one": (sa.Text, sa.String(10), "'a text that is long'"),
    "varchar to a shorter one": (sa.String(40), sa.String(10), "'a text that is long'"),
    "integer to a short text": (sa.Integer, sa.String(3), "12345"),
    "bigint to integer": (sa.BigInteger, sa.Integer, "5000000000"),
    "integer to smallint": (sa.Integer, sa.SmallInteger, "50000"),
    "text to integer": (sa.Text, sa.Integer, "'five'"),
    "text to uuid": (sa.Text, sa.Uuid, "'five'"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_does_not_fit_is_refused_by_the_server_and_nothing_is_cut(project, admin, case):
    before, after, value = case
    found, live = await project(before, after, [value])
    assert found.withheld == ()
    with pytest.raises(Exception, match=r"too long|out of range|invalid input"):
        await admin.script(live, found.files[0][1])
    assert await admin.value(live, f"SELECT c = {value} FROM t") is True


KEPT = {
    "short texts": (sa.Text, sa.String(10), "'short'"),
    "small numbers": (sa.BigInteger, sa.Integer, "5"),
    "a number that is a text": (sa.Text, sa.Integer, "'5'"),
    "a text of a number": (sa.Integer, sa.Text, "5"),
    "a wider number": (sa.Integer, sa.BigInteger, "5"),
    "a longer text": (sa.String(5), sa.String(9), "'short'"),
    "a larger scale": (sa.Numeric(6, 2), sa.Numeric(8, 3), "5.250"),
    "json to jsonb": (sa.JSON, pg.JSONB, """'{"a": 1}'"""),
}


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
async def test_what_fits_is_kept(project, admin, case):
    before, after, value = case
    found, live = await project(before, after, [value])
    assert found.withheld == ()
    await admin.script(live, found.files[0][1])
    assert await admin.value(live, "SELECT c::text FROM t") == value.strip("'")
