"""A migration file as statements, by Postgres's own grammar."""

from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.migrator.sql.statements import (
    ConcurrentIndex,
    SqlSyntaxError,
    excerpt,
    locate,
    same_meaning_hash,
    statements,
)


def parse(text):
    return statements(text.encode(), path="0000_x.sql")


def one(text):
    (statement,) = parse(text)
    return statement


def refused(raw):
    with pytest.raises(SqlSyntaxError) as caught:
        statements(raw.encode() if isinstance(raw, str) else raw, path="0000_x.sql")
    return caught.value


# (text, kind, what it is beside an ordinary statement: "outside" a transaction, control, "session")
KINDS = [
    ("CREATE TABLE a (x int)", "CREATE TABLE", ""),
    ("CREATE TABLE a AS SELECT 1", "CREATE TABLE AS", ""),
    ("CREATE MATERIALIZED VIEW v AS SELECT 1", "CREATE MATERIALIZED VIEW", ""),
    ("CREATE INDEX i ON t(a)", "CREATE INDEX", ""),
    ("create unique index concurrently on t(a)", "CREATE INDEX CONCURRENTLY", "outside"),
    ("DROP INDEX i", "DROP INDEX", ""),
    ("DROP INDEX CONCURRENTLY i", "DROP INDEX CONCURRENTLY", "outside"),
    ("DROP MATERIALIZED VIEW v", "DROP MATERIALIZED VIEW", ""),
    ("DROP TRIGGER t ON a", "DROP TRIGGER", ""),
    ("REINDEX INDEX i", "REINDEX", ""),
    ("REINDEX TABLE t", "REINDEX", ""),
    ("REINDEX SCHEMA s", "REINDEX", "outside"),
    ("REINDEX DATABASE", "REINDEX", "outside"),
    ("REINDEX SYSTEM", "REINDEX", "outside"),
    ("REINDEX INDEX CONCURRENTLY i", "REINDEX CONCURRENTLY", "outside"),
    ("REINDEX (VERBOSE, CONCURRENTLY) TABLE t", "REINDEX CONCURRENTLY", "outside"),
    ("REINDEX (CONCURRENTLY off) TABLE t", "REINDEX", ""),
    ("REINDEX (CONCURRENTLY 0) TABLE t", "REINDEX", ""),
    ("REINDEX (CONCURRENTLY false, CONCURRENTLY on) TABLE t", "REINDEX CONCURRENTLY", "outside"),
    ("ALTER TABLE a DETACH PARTITION b", "ALTER TABLE", ""),
    ("ALTER TABLE a DETACH PARTITION b CONCURRENTLY", "ALTER TABLE", "outside"),
    ("ALTER TABLE a DETACH PARTITION b FINALIZE", "ALTER TABLE", ""),
    ("ALTER TABLE a RENAME TO b", "ALTER TABLE", ""),
    ("ALTER TABLE a RENAME COLUMN x TO y", "ALTER TABLE", ""),
    ("ALTER VIEW a RENAME COLUMN x TO y", "ALTER VIEW", ""),
    ("ALTER TABLE a RENAME CONSTRAINT x TO y", "ALTER TABLE", ""),
    ("ALTER TABLE a SET SCHEMA s", "ALTER TABLE", ""),
    ("ALTER INDEX i SET (fillfactor = 50)", "ALTER INDEX", ""),
    ("ALTER SEQUENCE s RESTART", "ALTER SEQUENCE", ""),
    ("ALTER TYPE e ADD VALUE IF NOT EXISTS 'x'", "ALTER TYPE", ""),
    ("ALTER TYPE e RENAME ATTRIBUTE x TO y", "ALTER TYPE", ""),
    ("ALTER FUNCTION f() STABLE", "ALTER FUNCTION", ""),
    ("ALTER SCHEMA s OWNER TO me", "ALTER SCHEMA", ""),
    ("ALTER FOREIGN DATA WRAPPER w OPTIONS (a 'b')", "ALTER FOREIGN DATA WRAPPER", ""),
    ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO me", "ALTER DEFAULT PRIVILEGES", ""),
    ("CREATE TYPE e AS ENUM ('a')", "CREATE TYPE", ""),
    ("CREATE TYPE c AS (a int)", "CREATE TYPE", ""),
    ("CREATE DOMAIN d AS int", "CREATE DOMAIN", ""),
    ("CREATE AGGREGATE a(int) (sfunc = x, stype = y)", "CREATE AGGREGATE", ""),
    ("CREATE TEXT SEARCH CONFIGURATION x (parser = y)", "CREATE TEXT SEARCH CONFIGURATION", ""),
    ("CREATE EXTENSION IF NOT EXISTS vector", "CREATE EXTENSION", ""),
    ("CREATE SCHEMA s", "CREATE SCHEMA", ""),
    ("CREATE SEQUENCE s", "CREATE SEQUENCE", ""),
    ("CREATE VIEW v AS SELECT 1", "CREATE VIEW", ""),
    ("CREATE TRIGGER t AFTER INSERT ON a EXECUTE FUNCTION f()", "CREATE TRIGGER", ""),
    ("CREATE EVENT TRIGGER t ON ddl_command_end EXECUTE FUNCTION f()", "CREATE EVENT TRIGGER", ""),
    ("CREATE POLICY p ON t", "CREATE POLICY", ""),
    ("CREATE PUBLICATION p FOR ALL TABLES", "CREATE PUBLICATION", ""),
    ("CREATE ROLE r", "CREATE ROLE", ""),
    ("CREATE FOREIGN TABLE f (a int) SERVER s", "CREATE FOREIGN TABLE", ""),
    ("CREATE PROCEDURE p() LANGUAGE sql AS 'COMMIT'", "CREATE PROCEDURE", ""),
    ("REFRESH MATERIALIZED VIEW CONCURRENTLY v", "REFRESH MATERIALIZED VIEW", ""),
    ("TRUNCATE a", "TRUNCATE TABLE", ""),
    ("LOCK TABLE a", "LOCK TABLE", ""),
    ("COMMENT ON TABLE a IS 'x'", "COMMENT", ""),
    ("GRANT SELECT ON a TO b", "GRANT", ""),
    ("REVOKE a FROM b", "REVOKE ROLE", ""),
    ("INSERT INTO a VALUES (1)", "INSERT", ""),
    ("WITH x AS (SELECT 1) INSERT INTO a SELECT * FROM x", "INSERT", ""),
    ("MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE", "MERGE", ""),
    ("TABLE x", "SELECT", ""),
    ("DO $$ BEGIN COMMIT; END $$", "DO", ""),
    ("CALL p()", "CALL", ""),
    ("COPY a FROM '/x'", "COPY", ""),
    ("COPY a TO STDOUT", "COPY", ""),
    ("ANALYZE a", "ANALYZE", ""),
    ("VACUUM a", "VACUUM", "outside"),
    ("CLUSTER", "CLUSTER", "outside"),
    ("CLUSTER t USING i", "CLUSTER", ""),
    ("CREATE DATABASE d", "CREATE DATABASE", "outside"),
    ("DROP DATABASE d", "DROP DATABASE", "outside"),
    ("ALTER DATABASE d SET TABLESPACE x", "ALTER DATABASE", "outside"),
    ("ALTER DATABASE d CONNECTION LIMIT 1", "ALTER DATABASE", ""),
    ("ALTER DATABASE d SET a = 1", "ALTER DATABASE", ""),
    ("CREATE TABLESPACE x LOCATION '/x'", "CREATE TABLESPACE", "outside"),
    ("DROP TABLESPACE x", "DROP TABLESPACE", "outside"),
    ("ALTER SYSTEM SET a = 1", "ALTER SYSTEM", "outside"),
    ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", "CREATE SUBSCRIPTION", "outside"),
    ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (connect = false)", "CREATE SUBSCRIPTION", ""),
    ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p WITH (create_slot = off)", "CREATE SUBSCRIPTION", ""),
    ("ALTER SUBSCRIPTION s REFRESH PUBLICATION", "ALTER SUBSCRIPTION", "outside"),
    ("ALTER SUBSCRIPTION s SET PUBLICATION p", "ALTER SUBSCRIPTION", "outside"),
    ("ALTER SUBSCRIPTION s SET PUBLICATION p WITH (refresh = false)", "ALTER SUBSCRIPTION", ""),
    ("ALTER SUBSCRIPTION s SET (failover = true)", "ALTER SUBSCRIPTION", "outside"),
    ("ALTER SUBSCRIPTION s DISABLE", "ALTER SUBSCRIPTION", ""),
    ("DROP SUBSCRIPTION s", "DROP SUBSCRIPTION", "outside"),
    ("COMMIT PREPARED 'x'", "COMMIT PREPARED", "outside"),
    ("ROLLBACK PREPARED 'x'", "ROLLBACK PREPARED", "outside"),
    ("BEGIN", "BEGIN", "begin"),
    ("START TRANSACTION READ ONLY", "START TRANSACTION", "begin"),
    ("COMMIT", "COMMIT", "commit"),
    ("END", "COMMIT", "commit"),
    ("COMMIT AND CHAIN", "COMMIT AND CHAIN", "commit"),
    ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION", "commit"),
    ("ROLLBACK", "ROLLBACK", "rollback"),
    ("ABORT", "ROLLBACK", "rollback"),
    ("SAVEPOINT a", "SAVEPOINT", "savepoint"),
    ("RELEASE a", "RELEASE", "savepoint"),
    ("ROLLBACK TO a", "ROLLBACK TO", "savepoint"),
    ("SET a = 1", "SET", "session"),
    ("SET search_path TO DEFAULT", "SET", "session"),
    ("SET LOCAL a = 1", "SET", ""),
    ("SET ROLE x", "SET", "session"),
    ("SET SESSION AUTHORIZATION x", "SET", "session"),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SET", ""),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET", "session"),
    ("SET CONSTRAINTS ALL DEFERRED", "SET CONSTRAINTS", ""),
    ("RESET ALL", "RESET", "session"),
    ("LISTEN x", "LISTEN", "session"),
    ("DISCARD PLANS", "DISCARD PLANS", "session"),
    ("DISCARD ALL", "DISCARD ALL", "outside session"),
    ("SELECT pg_catalog.set_config('search_path', '', false)", "SELECT", "session"),
    ("SELECT SET_CONFIG('a', 'b', true)", "SELECT", ""),
    ("SELECT set_config('a', 'b', is_local => true)", "SELECT", ""),
    ("SELECT set_config('a', 'b', x) FROM t", "SELECT", "session"),
    ("SELECT 'set_config(1, 2, false)'", "SELECT", ""),
    ("INSERT INTO a SELECT set_config('a', 'b', false)", "INSERT", "session"),
]


@pytest.mark.parametrize(("text", "kind", "marks"), KINDS)
def test_the_grammar_says_what_a_statement_is(text, kind, marks):
    found = one(f"/* a */ {text} ; -- b")
    assert (found.text.rstrip(), found.kind) == (text, kind)
    control = next((word for word in marks.split() if word in {"begin", "commit", "rollback", "savepoint"}), None)
    assert found.transaction_control == control
    assert found.transactional is ("outside" not in marks)
    assert found.changes_session is ("session" in marks)


async def test_postgres_refuses_in_a_transaction_exactly_what_is_marked_so(database_url):
    # Subscriptions are looked up before they are refused, and COPY TO STDOUT needs another protocol.
    texts = [text for text, _, marks in KINDS if "SUBSCRIPTION" not in text and "STDOUT" not in text]
    found = [statement for statement in map(one, texts) if statement.transaction_control is None]
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE t (a int); CREATE INDEX i ON t (a); CREATE SCHEMA s")
        await connection.execute("CREATE TABLE a (x int) PARTITION BY LIST (x)")
        await connection.execute("CREATE TABLE b PARTITION OF a FOR VALUES IN (1)")
        wrong = []
        for statement in found:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(statement.text)
                answer = "00000"
            except asyncpg.PostgresError as error:
                answer = error.sqlstate
            await transaction.rollback()
            # An older server does not know every form: 42601.
            if answer != "42601" and (answer == "25001") is statement.transactional:
                wrong.append((statement.text, answer))
        assert wrong == []
    finally:
        await connection.close()


@pytest.mark.parametrize("text", [text for text, _, _ in KINDS])
def test_a_statement_is_the_same_in_a_small_file_and_in_a_large_one(text):
    padding = f"INSERT INTO t VALUES ('{'x' * 30_000}');\n"
    small, large = one(text), parse(f"{padding}{text};\n{padding}")[1]
    for name in ("text", "kind", "transactional", "transaction_control", "changes_session", "concurrent_index"):
        assert getattr(small, name) == getattr(large, name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE INDEX CONCURRENTLY ON t(a)", ConcurrentIndex("create", None, None, "t")),
        (
            'CREATE INDEX CONCURRENTLY IF NOT EXISTS "I x" ON s."T"(a)',
            ConcurrentIndex("create", "s", "I x", "T", if_not_exists=True),
        ),
        ("DROP INDEX CONCURRENTLY IF EXISTS s.i", ConcurrentIndex("drop", "s", "i", None, if_exists=True)),
        ("DROP INDEX CONCURRENTLY I", ConcurrentIndex("drop", None, "i", None)),
        ("REINDEX INDEX CONCURRENTLY s.i", ConcurrentIndex("reindex", "s", "i", None)),
        ("REINDEX TABLE CONCURRENTLY s.t", ConcurrentIndex("reindex", "s", None, "t")),
        ("REINDEX SCHEMA CONCURRENTLY s", ConcurrentIndex("reindex", "s", None, None)),
        ("REINDEX DATABASE CONCURRENTLY d", ConcurrentIndex("reindex", None, None, None)),
        ("CREATE INDEX i ON t(a)", None),
        ("REINDEX INDEX i", None),
    ],
)
def test_a_concurrent_index_is_named(text, expected):
    assert one(text).concurrent_index == expected


@pytest.mark.parametrize(
    "text",
    ["", " \r\n\t", ";", ";; ;", "-- only a comment", "/* a /* nested */ */ ;", "--> statement-breakpoint\n" * 3],
)
def test_a_file_without_statements_yields_none(text):
    assert parse(text) == ()


def test_a_breakpoint_may_stand_right_behind_a_semicolon_and_at_the_end():
    found = parse("SELECT 1;--> statement-breakpoint\n\n-- note\nSELECT 2; SELECT 3\n--> statement-breakpoint\n")
    assert [(s.index, s.line, s.column, s.text) for s in found] == [
        (1, 1, 1, "SELECT 1"),
        (2, 4, 1, "SELECT 2"),
        (3, 4, 11, "SELECT 3"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $b$\nBEGIN\n  PERFORM 1; COMMIT;\nEND;\n$b$",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END",
        "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
        "SELECT E'a\\';b', 'c'';d', \"e;f\", /* ; */ 1 -- ;\n + 2",
    ],
)
def test_a_semicolon_inside_a_body_ends_nothing(text):
    found = parse(f"SELECT 1;\n{text};\nSELECT 2;")
    assert [s.text for s in found] == ["SELECT 1", text, "SELECT 2"]


def test_columns_count_characters_and_lines_survive_crlf():
    found = parse("/* ä */ SELECT 'é日😀'; SELECT 2;\r\n\r\n\t SELECT 3;\r\n")
    assert [(s.line, s.column) for s in found] == [(1, 9), (1, 23), (3, 3)]
    assert found[0].byte_offset == len("/* ä */ ".encode())
    assert found[0].text == "SELECT 'é日😀'"


def test_a_servers_position_becomes_a_place_in_the_file():
    statement = parse("SELECT 1;\n  SELECT 'é😀',\r\n\tx + nope\nFROM t")[1]
    text = statement.text
    assert locate(statement, None) == locate(statement, 1) == (2, 3)
    assert locate(statement, text.index(",") + 1) == (2, 14)
    assert locate(statement, text.index("nope") + 1) == (3, 6)
    assert locate(statement, text.index("FROM") + 1) == (4, 1)
    assert locate(statement, 10_000) == (4, 7)


def test_an_excerpt_shows_the_line_and_keeps_the_caret_under_tabs():
    assert excerpt(b"a\n\t b\tc\r\nd", 2, 5) == "\t b\tc\n\t  \t^"
    assert excerpt(b"a", 1, 99) == "a\n ^"
    line, caret = excerpt(("é" * 500 + "X" + "é" * 500).encode(), 1, 501).split("\n")
    assert len(line) <= 120
    assert line[caret.index("^")] == "X"


@pytest.mark.parametrize(
    ("raw", "place", "reason", "hint"),
    [
        ("SELECT 'ä';\n  selec 1;", (2, 3), 'at or near "selec"', "Correct the file"),
        ("SELECT 'éé'; /* ü */ selec 1", (1, 22), 'at or near "selec"', "Correct the file"),
        ("SELECT 1;\nCREATE TABLE t (\n  a int,\n", (3, 9), "at end of input", "Correct the file"),
        ("\ufeffSELECT 1", (1, 1), "byte order mark", "without a byte order mark"),
        ("SELECT 1".encode("utf-16"), (1, 1), "UTF-16", "Save the file as UTF-8"),
        ("é\nSELECT '\0'", (2, 9), "NUL byte at byte offset 11", "no NUL"),
        ("SELECT 'é';\nSELECT '".encode() + b"\xff'", (2, 9), "not UTF-8 at byte offset 21", "UTF-8"),
        ("SELECT 'é'".encode()[:-2], (1, 9), "not UTF-8 at byte offset 8", "UTF-8"),
        ("\\connect x\nSELECT 1;", (1, 1), "syntax error", "psql alone"),
        ("SELECT 1;\n\\restrict abc\n", (2, 1), "syntax error", "psql alone"),
        ("COPY t FROM STDIN;\n1\tit's\n\\.\n", (1, 1), "COPY", "INSERT"),
        ("SELECT 1;\nCOPY t (a) FROM stdin WITH CSV;\n1,2\n\\.\nSELECT 1;", (2, 1), "COPY", "INSERT"),
        ("COPY t FROM STDIN", (1, 1), "COPY", "INSERT"),
        ("CREATE TABLE `t` (a int)", (1, 14), "syntax error", "MySQL"),
        ("DELIMITER //\nCREATE", (1, 1), "syntax error", "MySQL"),
        ("SELECT 1;\nSELECT 'it's';", (2, 13), "unterminated quoted string", "never closed"),
        ("DO $$ BEGIN\nEND $;", (1, 4), "unterminated dollar-quoted string", "never closed"),
        ("SELECT 1 /* x", (1, 10), "unterminated /* comment", "never closed"),
        ("CREATE TABLE a (b int)\nCREATE TABLE c (d int);", (2, 1), "syntax error", "semicolon missing before"),
        ("SELECT a\n\nSELECT 2", (3, 8), "syntax error", "semicolon missing before"),
        ("SELECT (\n  SELECT FROM WHERE)", (2, 15), "syntax error", "Correct the file"),
        ("SELECT 'a\n--> statement-breakpoint\nb'", (1, 8), "unterminated", "--> statement-breakpoint"),
        ("DO $$ --> statement-breakpoint\n$$", (1, 4), "unterminated", "--> statement-breakpoint"),
        ("CREATE TABLE t (--> statement-breakpoint\na int)", (1, 17), "at end of", "--> statement-breakpoint"),
        ("SELECT 1; -- x --> statement-breakpoint nonsense", (1, 41), "syntax error", "Correct the file"),
    ],
)
def test_an_error_names_its_place_and_what_to_do(raw, place, reason, hint):
    error = refused(raw)
    assert (error.line, error.column) == place
    assert reason in error.reason
    assert hint in error.remedy
    assert error.message == f"0000_x.sql:{place[0]}:{place[1]}: {error.reason}"
    assert error.facts["path"] == "0000_x.sql"
    assert error.near.split("\n")[1].endswith("^")
    assert error.exit_code == 70


def test_an_error_is_short_however_long_the_file_is():
    error = refused("SELECT 1; SELECT '" + "x" * 1_000_000)
    assert len(error.message) < 200
    assert all(len(line) <= 121 for line in error.near.split("\n"))


def test_the_first_error_of_a_large_file_is_found_in_its_place():
    rows = "INSERT INTO t VALUES (1, 'é;\n');\n" * 5000
    error = refused(f"{rows}selec 1;\n{rows}")
    assert (error.line, error.column) == (10_001, 1)
    error = refused(f"{rows}SELECT 'x;\n")
    assert (error.line, error.column) == (10_001, 8)


def test_a_window_never_ends_inside_a_line_comment():
    text = ("SELECT 1; -- a; b " + "x; " * 20_000 + "\n") + "SELECT 2" + " " * 40_000 + ";SELECT 3; -- c; d"
    assert [s.text.split(" ")[1][:1] for s in parse(text)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("-- note\ncreate table t (a int default 1);", True),
        ("create table t\r\n(\ta int default/* x */1 );--> statement-breakpoint\n", True),
        ("create table t (a int default 2);", False),
        ("create table t (a int default '1');", False),
        ("CREATE table t (a int default 1);", False),
        ("create table t (a int, default 1);", False),
    ],
)
def test_only_white_space_and_comments_leave_the_meaning(other, same):
    mine = same_meaning_hash(b"create table t (a int default 1);", path="x")
    assert (same_meaning_hash(other.encode(), path="x") == mine) is same


def test_the_hash_of_a_large_file_does_not_depend_on_its_windows():
    rows = [f"INSERT INTO t VALUES ({n}, 'a;\n');" for n in range(4000)]
    plain, spread = "\n".join(rows), "\n".join(f"{row} -- {'x' * (n % 50)};" for n, row in enumerate(rows))
    assert same_meaning_hash(plain.encode(), path="x") == same_meaning_hash(spread.encode(), path="x")


def test_threads_parse_at_once():
    texts = [f"SELECT {n};\n" * 5000 for n in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(parse, texts))
    assert [{s.text for s in each} for each in found] == [{f"SELECT {n}"} for n in range(8)]


PIECES = [
    "SELECT 1",
    "SELECT 'é;''😀'",
    'SELECT "a;b" -- c; d\n, 2',
    "DO $é$ BEGIN; 'x $é$",
    "CREATE INDEX CONCURRENTLY i ON t (a)",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END",
    "INSERT INTO t VALUES " + ", ".join(["(1, 'x;\n')"] * 4000),
    "COMMIT",
]
GAPS = [";", ";\n", " ;\r\n", "; -- é; x\n", ";\n/* ; /* 日 */ */\n", ";--> statement-breakpoint\n", ";\t;;"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=12), st.sampled_from(["", " é"]))
def test_slices_and_gaps_are_the_file_and_splitting_is_stable(parts, comment):
    text = f"--{comment}\n" + "".join(piece + gap for piece, gap in parts)
    raw = text.encode()
    found = statements(raw, path="x")
    assert [s.text for s in found] == [piece for piece, _ in parts]
    at = 0
    for number, statement in enumerate(found, 1):
        assert statement.index == number
        assert at <= statement.byte_offset < statement.byte_end <= len(raw)
        assert statements(raw[at : statement.byte_offset].removeprefix(b";"), path="x") == ()
        before = raw[: statement.byte_offset].decode()
        assert statement.line == before.count("\n") + 1
        assert statement.column == len(before) - before.rfind("\n")
        assert statements(statement.text.encode(), path="x")[0].kind == statement.kind
        at = statement.byte_end
    assert statements(raw[at:].removeprefix(b";"), path="x") == ()


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | st.text("';$-/*\\()x \n\"", max_size=40).map(str.encode)
)
def test_any_bytes_give_statements_or_an_error_with_a_place(raw):
    try:
        found, error = statements(raw, path="x"), None
    except SqlSyntaxError as refusal:
        found, error = (), refusal
    assert error is None or (error.line >= 1 and error.column >= 1 and error.near.endswith("^"))
    assert all(s.text.strip() for s in found)
