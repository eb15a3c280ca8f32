"""What a change of type loses: the table against a real server, which is asked to convert values that would be lost."""

import asyncpg
import pytest

from orchestrator.schema.conversions import is_text, loses, parsed

# from, to, a value that shows it (as text), whether the server converts it without an error and to another value
CASES = [
    ("numeric(10,4)", "numeric(10,1)", "1.2345"),
    ("numeric", "integer", "1.5"),
    ("numeric", "numeric(5,2)", "1.005"),
    ("numeric(5,2)", "numeric(8,2)", "1.25"),
    ("numeric(5,2)", "numeric(8,3)", "1.25"),
    ("double precision", "bigint", "1.5"),
    ("double precision", "real", "0.123456789012"),
    ("double precision", "numeric(6,1)", "1.25"),
    ("real", "double precision", "1.5"),
    ("integer", "real", "16777217"),
    ("integer", "double precision", "16777217"),
    ("bigint", "double precision", "9007199254740993"),
    ("smallint", "real", "32767"),
    ("numeric", "double precision", "1.00000000000000000001"),
    ("integer", "smallint", "40000"),
    ("integer", "bigint", "40000"),
    ("integer", "numeric(4,0)", "40000"),
    ("bigint", "numeric(12,2)", "40000"),
    ("timestamp without time zone", "date", "2020-01-01 10:11:12"),
    ("timestamp with time zone", "date", "2020-01-01 10:11:12+00"),
    ("date", "timestamp without time zone", "2020-01-01"),
    ("timestamp without time zone", "time without time zone", "2020-01-01 10:11:12"),
    ("timestamp without time zone", "timestamp(0) without time zone", "2020-01-01 10:11:12.345"),
    ("timestamp(3) without time zone", "timestamp(3) without time zone", "2020-01-01 10:11:12.345"),
    ("interval", "interval(0)", "1.5 seconds"),
    ("text", "character varying(3)", "abcd"),
    ("character varying(20)", "character varying(3)", "abcd"),
    ("character varying(3)", "text", "abc"),
    ("integer", "text", "5"),
    ("numeric[]", "integer[]", "{1.5}"),
]


@pytest.mark.parametrize(("was", "now", "value"), CASES, ids=lambda one: one)
async def test_the_table_says_what_the_server_does(server, was, now, value):
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute("SET TimeZone = 'UTC'")
        async with connection.transaction():
            await connection.execute(f"CREATE TEMP TABLE t (c {was}) ON COMMIT DROP")
            await connection.execute(f"INSERT INTO t VALUES ('{value}')")
            await connection.execute("ALTER TABLE t ADD COLUMN b text; UPDATE t SET b = c::text")
            try:
                async with connection.transaction():
                    await connection.execute(f"ALTER TABLE t ALTER c TYPE {now}")
            except asyncpg.DataError:
                kept = True  # refused: nothing is lost
            else:
                try:
                    async with connection.transaction():
                        kept = await connection.fetchval(f"SELECT c::{was}::text = b FROM t")
                except (asyncpg.DataError, asyncpg.CannotCoerceError):
                    kept = False  # it cannot be read back
            assert bool(loses(was, now)) is not kept
    finally:
        await connection.close()


def test_types_are_taken_apart():
    assert parsed("numeric(10,2)[]") == ("numeric", (10, 2), "[]")
    assert parsed("timestamp(3) with time zone") == ("timestamp with time zone", (3,), "")
    assert [is_text(one) for one in ("character varying(3)", "text", "uuid")] == [True, True, False]
