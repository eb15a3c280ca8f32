"""What a file has seen to itself is no finding: what is conditional is not certain, an emptied table has no rows."""

import pytest

from orchestrator.analysis.lint import LintFile, LintFolder, lint

GUARD = "DO $$ BEGIN IF NOT EXISTS (SELECT 1) THEN ALTER TABLE t ADD COLUMN a int; END IF; END $$;"
CAUGHT = "DO $$ BEGIN ALTER TABLE t ADD COLUMN a int; EXCEPTION WHEN duplicate_column THEN NULL; END $$;"
TABLE = "ALTER TABLE t ADD COLUMN a int;"

CASES = {
    "added twice": (TABLE + TABLE, {"duplicate-column"}),
    "added again where it is absent": (TABLE + GUARD, set()),
    "added again, and the error is caught": (TABLE + CAUGHT, set()),
    "added after what may have added it": (GUARD + TABLE, set()),
    "added twice in a block that always runs": (
        TABLE + "DO $$ BEGIN ALTER TABLE t ADD COLUMN a int; END $$;",
        {"duplicate-column"},
    ),
    "required": ("ALTER TABLE t ADD COLUMN a int NOT NULL;", {"required-column"}),
    "required, after DELETE": ("DELETE FROM t; ALTER TABLE t ADD COLUMN a int NOT NULL;", {"every-row"}),
    "required, after TRUNCATE": (
        "TRUNCATE public.t, u; ALTER TABLE t ADD COLUMN a int NOT NULL;",
        {"truncate", "work-under-lock"},
    ),
    "required, after DELETE of some": (
        "DELETE FROM t WHERE x; ALTER TABLE t ADD COLUMN a int NOT NULL;",
        {"required-column"},
    ),
    "required, after DELETE by another table": (
        "DELETE FROM t USING u; ALTER TABLE t ADD COLUMN a int NOT NULL;",
        {"every-row", "required-column"},
    ),
    "required, after DELETE of another": (
        "DELETE FROM u; ALTER TABLE t ADD COLUMN a int NOT NULL;",
        {"every-row", "required-column"},
    ),
    "required, emptied and filled again": (
        "TRUNCATE t; INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN a int NOT NULL;",
        {"truncate", "required-column"},
    ),
    "a section that undoes, of goose": (
        "-- +goose Up\nCREATE TABLE a ();\n-- +goose Down\nDROP TABLE a;",
        {"down-section"},
    ),
    "a section that undoes, of dbmate": (
        "-- migrate:up\nCREATE TABLE a ();\n-- migrate:down\nDROP TABLE a;",
        {"down-section"},
    ),
    "a section that undoes, of node-pg-migrate": (
        "-- Up Migration\nCREATE TABLE a ();\n-- Down Migration\nDROP TABLE a;",
        {"down-section"},
    ),
    "a section that undoes, commented out": ("CREATE TABLE a ();\n-- Down\n-- DROP TABLE a;", set()),
    "a comment that speaks of down": ("-- down here the tables begin\nCREATE TABLE a ();", set()),
    "the file's own transaction after its own COMMIT": (
        "CREATE TABLE a (); COMMIT; BEGIN; CREATE TABLE b (); COMMIT;",
        {"transaction-in-file"},
    ),
}


@pytest.fixture
def linted(tmp_path):
    """The findings in one file, with nothing before it."""

    def linted(sql: str):
        (tmp_path / "x.sql").write_text(sql)
        return lint(LintFolder(tmp_path, (LintFile("x", tmp_path / "x.sql"),))).findings

    return linted


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_taken_at_its_word(name, linted):
    sql, rules = CASES[name]
    assert {f.rule for f in linted(sql) if f.level != "note"} == rules


def test_only_the_commit_that_ends_the_migrators_transaction_is_told(linted):
    found = linted("COMMIT; BEGIN; CREATE TABLE b (); COMMIT; BEGIN; CREATE TABLE c (); COMMIT;")
    assert [(f.rule, f.column) for f in found] == [("transaction-in-file", 1)]


def test_nobody_but_its_trigger_uses_a_triggers_function(tmp_path):
    make = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
    other = "CREATE FUNCTION g() RETURNS int LANGUAGE sql RETURN 1;"
    texts = [make + other, "ALTER FUNCTION f() RENAME TO f2; ALTER FUNCTION g() RENAME TO g2;"]
    files = [LintFile(str(number), tmp_path / f"{number}.sql") for number in range(2)]
    for file, text in zip(files, texts, strict=True):
        file.path.write_text(text)
    found = lint(LintFolder(tmp_path, tuple(files))).findings
    assert [(f.rule, "uses g" in f.why) for f in found] == [("rename", True)]
