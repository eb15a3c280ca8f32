"""`lint`: a table of cases, squawk beside us on the same table, allowing, folders, output, and the database at hand."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.analysis.lint import (
    Level,
    LintFile,
    LintFinding,
    LintFolder,
    LintReport,
    finding,
    lint,
    read_lint_folder,
)
from orchestrator.analysis.lint_rules import RULES
from orchestrator.analysis.lint_squawk import SQUAWK, UNLIKE_SQUAWK
from orchestrator.analysis.locks import Lock
from orchestrator.analysis.sql_file import read_sql
from orchestrator.commands.lint import github_line

BEFORE = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE t (id serial PRIMARY KEY, a int, b varchar(10), c text NOT NULL DEFAULT 'c', m mood, d positive,
    checked int, CONSTRAINT checked_filled CHECK (checked IS NOT NULL));
CREATE TABLE u (id serial PRIMARY KEY);
CREATE INDEX t_a ON t (a);
CREATE TABLE parts (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_2 (id int, day int);
CREATE VIEW v AS SELECT id FROM t;
CREATE MATERIALIZED VIEW mv AS SELECT id FROM t;
CREATE FUNCTION f() RETURNS int LANGUAGE sql IMMUTABLE RETURN 1;
CREATE FUNCTION wild() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
"""


class Case(NamedTuple):
    sql: str
    rules: str = ""  # ours, in order of lines
    notes: str = ""


CASES = {
    # what hurts nobody
    "nothing": Case("SELECT 1;"),
    "a new table and all that belongs to it": Case(
        "CREATE TABLE n (id int PRIMARY KEY, t_id int REFERENCES t (id)); CREATE INDEX n_i ON n (t_id);"
        " ALTER TABLE n ADD CONSTRAINT k FOREIGN KEY (t_id) REFERENCES t (id); ALTER TABLE n ADD COLUMN x int NOT NULL;"
        " ALTER TABLE n ALTER COLUMN x SET NOT NULL; UPDATE n SET x = 1; ALTER TABLE n RENAME TO n2; DROP TABLE n2;"
    ),
    "a nullable column": Case("ALTER TABLE t ADD COLUMN x int;"),
    "a column with a constant default": Case("ALTER TABLE t ADD COLUMN x text NOT NULL DEFAULT 'x';"),
    "a column with now() as its default": Case("ALTER TABLE t ADD COLUMN x timestamptz NOT NULL DEFAULT now();"),
    "a default by a function known to be immutable": Case("ALTER TABLE t ADD COLUMN x int DEFAULT f();"),
    "a foreign key with a new column": Case("ALTER TABLE t ADD COLUMN u_id int REFERENCES u (id);"),
    "a constraint that is not valid yet": Case(
        "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0) NOT VALID;"
        " ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES u (id) NOT VALID;"
    ),
    "validated in a file of its own": Case("ALTER TABLE t VALIDATE CONSTRAINT checked_filled;"),
    "not null that a valid check proves": Case("ALTER TABLE t ALTER COLUMN checked SET NOT NULL;"),
    "an index concurrently, alone": Case("CREATE INDEX CONCURRENTLY i ON t (a); CREATE INDEX CONCURRENTLY j ON t (b);"),
    "a unique constraint by its index": Case("ALTER TABLE t ADD CONSTRAINT k UNIQUE USING INDEX i;"),
    "an enum value that nothing uses": Case("ALTER TYPE mood ADD VALUE 'meh';"),
    "an enum value used after COMMIT": Case(
        "ALTER TYPE mood ADD VALUE 'meh'; COMMIT; UPDATE t SET m = 'meh' WHERE id = 1;", "transaction-in-file"
    ),
    "a value of an enum that is new": Case("CREATE TYPE e AS ENUM ('a'); ALTER TYPE e ADD VALUE 'b'; SELECT 'b'::e;"),
    "the same word as an enum's new value, elsewhere": Case("ALTER TYPE mood ADD VALUE 'x'; SELECT 'x'::text;"),
    "what has just been made is dropped": Case(
        "CREATE FUNCTION tmp() RETURNS int LANGUAGE sql RETURN 1; SELECT tmp(); DROP FUNCTION tmp();"
        " ALTER TABLE t ADD COLUMN x int; ALTER TABLE t DROP COLUMN x;"
    ),
    "some rows are changed": Case("UPDATE t SET a = 1 WHERE a IS NULL; DELETE FROM t WHERE a = 2;"),
    # what fails
    "no SQL": Case("CREATE TABEL x ();", "syntax"),
    "what undoes it, below it": Case("SELECT 1;\n-- migrate:down\nSELECT 2;", "down-section"),
    "a required column": Case("ALTER TABLE t ADD COLUMN x int NOT NULL;", "required-column"),
    "an enum value used in a cast": Case("ALTER TYPE mood ADD VALUE 'meh';\nSELECT 'meh'::mood;", "enum-value-used"),
    "an enum value used in a table of that type": Case(
        "ALTER TYPE mood ADD VALUE 'meh';\nUPDATE t SET m = 'meh' WHERE id = 1;", "enum-value-used"
    ),
    "an enum value used as a default": Case(
        "ALTER TYPE mood ADD VALUE 'meh';\nALTER TABLE t ALTER COLUMN m SET DEFAULT 'meh';", "enum-value-used"
    ),
    "concurrently after BEGIN": Case(
        "BEGIN;\nCREATE INDEX CONCURRENTLY i ON t (a);\nCOMMIT;",
        "transaction-in-file concurrently-in-transaction transaction-in-file",
    ),
    "a column twice in a table": Case("CREATE TABLE n (a int, a text);", "duplicate-column"),
    "a column set twice": Case("UPDATE t SET a = 1, a = 2 WHERE id = 1;", "duplicate-column"),
    "a column inserted twice": Case("INSERT INTO t (a, a) VALUES (1, 2);", "duplicate-column"),
    "a column that is there already": Case("ALTER TABLE t ADD COLUMN a int;", "duplicate-column"),
    "a database is dropped": Case("DROP DATABASE x;", "drop-database"),
    "a role is made": Case("CREATE ROLE x;", "outside-database"),
    # what hurts
    "a volatile default": Case("ALTER TABLE t ADD COLUMN x uuid DEFAULT gen_random_uuid();", "rewrites-table"),
    "a default by a function of the project": Case("ALTER TABLE t ADD COLUMN x int DEFAULT wild();", "rewrites-table"),
    "a serial column": Case("ALTER TABLE t ADD COLUMN x bigserial;", "rewrites-table"),
    "an identity column": Case("ALTER TABLE t ADD COLUMN x int GENERATED ALWAYS AS IDENTITY;", "rewrites-table"),
    "a stored generated column": Case(
        "ALTER TABLE t ADD COLUMN x int GENERATED ALWAYS AS (a * 2) STORED;", "rewrites-table"
    ),
    "a column of a constrained domain": Case("ALTER TABLE t ADD COLUMN x positive;", "rewrites-table"),
    "SET UNLOGGED": Case("ALTER TABLE t SET UNLOGGED;", "rewrites-table"),
    "an index": Case("CREATE INDEX i ON t (a);", "index-not-concurrent"),
    "a unique index on a table never heard of": Case("CREATE UNIQUE INDEX i ON elsewhere (a);", "index-not-concurrent"),
    "a unique constraint": Case("ALTER TABLE t ADD CONSTRAINT k UNIQUE (a);", "unique-builds-index"),
    "a unique column": Case("ALTER TABLE t ADD COLUMN x int UNIQUE;", "unique-builds-index"),
    "a primary key": Case("ALTER TABLE u ADD PRIMARY KEY (id);", "unique-builds-index"),
    "a foreign key": Case("ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES u (id);", "constraint-not-valid"),
    "a foreign key as drizzle-kit wrote it, in a block": Case(
        "DO $$ BEGIN\n ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES u (id);\n"
        "EXCEPTION WHEN duplicate_object THEN null;\nEND $$;",
        "constraint-not-valid",
    ),
    "a check": Case("ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0);", "constraint-not-valid"),
    "a check on a domain": Case("ALTER DOMAIN positive ADD CONSTRAINT k CHECK (VALUE < 9);", "constraint-not-valid"),
    "a check, validated at once": Case(
        "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0) NOT VALID;\nALTER TABLE t VALIDATE CONSTRAINT k;",
        "validate-in-same-transaction",
    ),
    "not null": Case("ALTER TABLE t ALTER COLUMN a SET NOT NULL;", "set-not-null"),
    "another type": Case("ALTER TABLE t ALTER COLUMN a SET DATA TYPE bigint;", "type-change"),
    "another type, as drizzle-kit writes it": Case(
        'ALTER TABLE "t" ALTER COLUMN "a" SET DATA TYPE bigint USING "a"::bigint;', "type-change"
    ),
    "a type that was never heard of": Case("ALTER TABLE elsewhere ALTER COLUMN a TYPE text;", "type-change"),
    "a wider varchar": Case("ALTER TABLE t ALTER COLUMN b TYPE varchar(20);", "", "type-change"),
    "varchar to text": Case("ALTER TABLE t ALTER COLUMN b TYPE text;", "", "type-change"),
    "a column is renamed": Case("ALTER TABLE t RENAME COLUMN a TO x;", "rename"),
    "a table is renamed": Case("ALTER TABLE t RENAME TO x;", "rename"),
    "an enum value is renamed": Case("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue';", "rename"),
    "a type is renamed": Case("ALTER TYPE mood RENAME TO feeling;", "rename"),
    "a table moves": Case("ALTER TABLE t SET SCHEMA other;", "rename"),
    "a column is dropped": Case("ALTER TABLE t DROP COLUMN a;", "drop-column"),
    "a table is dropped": Case("DROP TABLE t;", "drop-table"),
    "a type is dropped": Case("DROP TYPE mood;", "drop-object"),
    "a view is dropped": Case("DROP VIEW v;", "drop-object"),
    "a function is dropped": Case("DROP FUNCTION f();", "drop-object"),
    "a schema is dropped": Case("DROP SCHEMA s CASCADE;", "drop-object"),
    "an extension is dropped": Case("DROP EXTENSION vector;", "drop-object"),
    "a sequence is dropped": Case("DROP SEQUENCE s;", "drop-object"),
    "a domain is dropped": Case("DROP DOMAIN positive;", "drop-object"),
    "a trigger is dropped": Case("DROP TRIGGER x ON t;", "drop-object"),
    "a trigger is made anew": Case("CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION g(); DROP TRIGGER x ON t;"),
    "triggers are switched off": Case("ALTER TABLE t DISABLE TRIGGER ALL;", "trigger-disabled"),
    "a constraint is dropped": Case("ALTER TABLE t DROP CONSTRAINT k;", "", "drop-constraint"),
    "a default is dropped": Case("ALTER TABLE t ALTER COLUMN c DROP DEFAULT;", "", "drop-default"),
    "NOT NULL is dropped": Case("ALTER TABLE t ALTER COLUMN c DROP NOT NULL;", "", "drop-not-null"),
    "an index is dropped": Case("DROP INDEX t_a;", "", "drop-index"),
    "a partition is detached": Case("ALTER TABLE parts DETACH PARTITION parts_1;", "", "detach-not-concurrent"),
    "a partition is attached": Case(
        "ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (10) TO (20);", "attach-scans"
    ),
    "REINDEX": Case("REINDEX TABLE t;", "reindex-not-concurrent"),
    "CLUSTER": Case("CLUSTER t USING t_a;", "blocking-maintenance"),
    "VACUUM FULL": Case("VACUUM FULL t;", "blocking-maintenance"),
    "REFRESH": Case("REFRESH MATERIALIZED VIEW mv;", "blocking-maintenance"),
    "LOCK TABLE": Case("LOCK TABLE t;", "blocking-maintenance"),
    "TRUNCATE": Case("TRUNCATE t CASCADE;", "truncate"),
    "every row is changed": Case("UPDATE t SET a = 1;", "every-row"),
    "every row is deleted": Case("DELETE FROM t;", "every-row"),
    "data are filled under the lock of a new column": Case(
        "ALTER TABLE t ADD COLUMN x int;\nUPDATE t SET x = a WHERE x IS NULL;", "work-under-lock"
    ),
    "an index is built under the lock of another table": Case(
        "ALTER TABLE t ADD COLUMN x int;\nCREATE INDEX i ON u (id);", "index-not-concurrent work-under-lock"
    ),
    "a file that begins and ends its transaction": Case(
        "BEGIN;\nALTER TABLE t ADD COLUMN x int;\nCOMMIT;", "transaction-in-file transaction-in-file"
    ),
    "a file that begins one and never ends it": Case("BEGIN;\nALTER TABLE t ADD COLUMN x int;", "transaction-in-file"),
    "a file that ends the migrator's transaction": Case(
        "ALTER TABLE t ADD COLUMN x int;\nCOMMIT;\nCREATE INDEX CONCURRENTLY i ON t (a);", "transaction-in-file"
    ),
    "concurrently with others": Case(
        "ALTER TABLE t ADD COLUMN x int;\nCREATE INDEX CONCURRENTLY i ON t (a);", "concurrently-mixed"
    ),
    "a name that is too long": Case(f"ALTER TABLE t ADD COLUMN {'x' * 70} int;", "", "long-name"),
    # what squawk says and we do not
    "a design that schema.ts decides": Case(
        "CREATE TABLE n (a serial, b smallint, c int, d varchar(5), e char(5), f timestamp);"
        " CREATE DOMAIN dd AS int CHECK (VALUE > 0);"
    ),
    "grants, policies, defaults": Case(
        "REVOKE SELECT ON t FROM PUBLIC; CREATE POLICY p ON t; ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        " ALTER TABLE t ALTER COLUMN a SET DEFAULT 1; DROP POLICY p ON t; ALTER TABLE t REPLICA IDENTITY FULL;"
        " ALTER TABLE t ALTER COLUMN a ADD GENERATED ALWAYS AS IDENTITY; CREATE OR REPLACE VIEW v AS SELECT 1 AS id;"
    ),
}
# squawk says these of a case, and there we do not: why.
SQUAWK_IS_WRONG = {
    ("a foreign key with a new column", "adding-foreign-key-constraint"): "no row has a value: nothing is validated",
    ("a default by a function known to be immutable", "adding-field-with-default"): "the file before it says IMMUTABLE",
    ("not null that a valid check proves", "adding-not-nullable-field"): "a valid CHECK proves it",
    ("an index is dropped", "require-concurrent-index-deletion"): "a note",
    (
        "a primary key",
        "constraint-missing-not-valid",
    ): "NOT VALID is not for it: see unique-builds-index",
    ("a unique constraint", "constraint-missing-not-valid"): "the same",
    ("what has just been made is dropped", "ban-drop-column"): "nobody uses it yet",
    ("what has just been made is dropped", "ban-drop-function"): "nobody uses it yet",
    ("a trigger is made anew", "ban-drop-trigger"): "nobody relies on it yet",
}
NEW_TABLE = "a new table and all that belongs to it"
# Every rule of squawk 2.70, as its program accepts them (`squawk --exclude RULE`).
SQUAWK_RULES = sorted({*SQUAWK, *UNLIKE_SQUAWK} - {"syntax-error", "unused-ignore"})


@pytest.fixture(scope="module")
def known_before():
    def made():
        from orchestrator.analysis.catalog import Known
        from orchestrator.analysis.follow import follow
        from orchestrator.migrator.sql import parser

        known = Known()
        for one in parser.parse(BEFORE.encode()):
            follow(known, one.node, one.fields())
        known.settle()
        return known

    return made


def lint_text(text: str, known) -> LintReport:
    """One file, with nothing before it but what is known, against the rules."""
    path = Path("x.sql")
    folder = LintFolder(path.parent, (LintFile("x", path),))
    return lint(folder, pending={"x": read_sql(text.encode(), str(path))}, known=known)


def rules(findings: list[LintFinding], *levels: Level) -> list[str]:
    return [f.rule for f in findings if f.level in levels]


@pytest.mark.parametrize("name", CASES)
def test_each_case_breaks_the_rules_it_says(name, known_before):
    case = CASES[name]
    found = lint_text(case.sql, known_before()).findings
    assert rules(found, Level.ERROR, Level.WARNING) == case.rules.split()
    assert rules(found, Level.NOTE) == case.notes.split()


def test_every_rule_has_a_case_or_a_folder():
    told = {rule for case in CASES.values() for rule in (*case.rules.split(), *case.notes.split())}
    of_folders = {
        "missing-file",
        "broken-folder",
        "when-backwards",
        "unlisted-file",
        "changed-after-apply",
        "never-runs",
    }
    assert told | of_folders | {"unused-allow", "allow-without-reason"} == set(RULES)


def test_what_is_said_of_a_lock_is_a_lock():
    assert [lock.mode for lock in Lock][-1] == "AccessExclusiveLock"


# ---------------------------------------------------------------------------------------------------- squawk, beside us


@pytest.fixture(scope="module")
def squawk():
    program = Path(sys.executable).with_name("squawk")
    if not program.is_file():
        pytest.skip("squawk-cli is not installed")
    return program


def test_every_rule_of_squawk_is_ours_or_left_out_with_a_reason(squawk, tmp_path):
    file = tmp_path / "x.sql"
    file.write_text("SELECT 1;")
    excluded = [part for rule in SQUAWK_RULES for part in ("--exclude", rule)]
    done = subprocess.run([squawk, *excluded, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not set(SQUAWK) & set(UNLIKE_SQUAWK)
    assert set(SQUAWK.values()) <= set(RULES)
    assert len(SQUAWK_RULES) == 77


def test_whatever_squawk_finds_in_the_cases_we_find_or_say_why_not(squawk, tmp_path, known_before):
    names = {f"{number:03}.sql": name for number, name in enumerate(CASES)}
    for file, name in names.items():
        (tmp_path / file).write_text(CASES[name].sql)
    included = [part for rule in SQUAWK_RULES if not rule.startswith("require-timeout") for part in ("--include", rule)]
    command = [squawk, "--reporter", "json", "--pg-version", "18", *included, *sorted(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    theirs = [(names[f["file"]], f["rule_name"]) for f in json.loads(done.stdout)]
    assert len({rule for _, rule in theirs}) > 50, "the table covers most of what squawk knows"
    lacking = set()
    for name, rule in sorted(set(theirs)):
        assert rule in SQUAWK or rule in UNLIKE_SQUAWK, f"squawk has a rule that we do not know: {rule}"
        ours = {f.rule for f in lint_text(CASES[name].sql, known_before()).findings}
        is_new = name == NEW_TABLE  # squawk goes by the file without its transaction, we by what is in use
        if rule in SQUAWK and SQUAWK[rule] not in ours and not is_new and (name, rule) not in SQUAWK_IS_WRONG:
            lacking.add((name, rule))
    assert not lacking


# ------------------------------------------------------------------------------------------------------------- allowing


def allowed(text: str, known) -> tuple[list[str], list[tuple[str, str]]]:
    report = lint_text(text, known)
    return [f.rule for f in report.findings], [(f.rule, f.allowed) for f in report.allowed]


@pytest.mark.parametrize(
    "text",
    [
        "-- lint: allow drop-column nothing reads it since 1.4\nALTER TABLE t DROP COLUMN a;",
        "/* lint: allow drop-column nothing reads it since 1.4 */ ALTER TABLE t DROP COLUMN a;",
        "ALTER TABLE t -- lint: allow drop-column nothing reads it since 1.4\n DROP COLUMN a;",
        "ALTER TABLE t DROP COLUMN a; -- lint: allow drop-column nothing reads it since 1.4",
        """SELECT 1;--> statement-breakpoint
-- lint: allow drop-column: nothing reads it since 1.4

-- (ticket 12)
ALTER TABLE t DROP COLUMN a;""",
    ],
)
def test_a_comment_on_or_above_the_statement_allows(text, known_before):
    assert allowed(text, known_before()) == ([], [("drop-column", "nothing reads it since 1.4")])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("-- lint: allow drop-column\nALTER TABLE t DROP COLUMN a;", ["allow-without-reason", "drop-column"]),
        ("-- lint: allow drop-table because\nALTER TABLE t DROP COLUMN a;", ["unused-allow", "drop-column"]),
        ("-- lint: allow no-such-rule because\nALTER TABLE t DROP COLUMN a;", ["unused-allow", "drop-column"]),
        (
            "-- lint: allow drop-column because\nSELECT 1;\nALTER TABLE t DROP COLUMN a;",
            ["unused-allow", "drop-column"],
        ),
        ("SELECT '-- lint: allow drop-column because';\nALTER TABLE t DROP COLUMN a;", ["drop-column"]),
    ],
)
def test_an_allow_that_allows_nothing_is_a_finding(text, left, known_before):
    assert allowed(text, known_before())[0] == left


def test_what_hurts_in_a_do_block_is_told_where_the_block_begins(known_before):
    text = "SELECT 1;\n\nDO $$ BEGIN\n  ALTER TABLE t ADD COLUMN x uuid DEFAULT gen_random_uuid();\nEND $$;\n"
    (found,) = lint_text(text, known_before()).findings
    assert (found.line, found.column, found.rule) == (3, 1, "rewrites-table")


def test_a_line_and_a_column_lead_to_the_part_that_hurts(known_before):
    text = "-- é\nALTER TABLE t\n  ADD COLUMN ok int,\n  ADD COLUMN x uuid DEFAULT gen_random_uuid();\n"
    (found,) = lint_text(text, known_before()).findings
    assert (found.line, found.column, found.rule) == (4, 14, "rewrites-table")


# -------------------------------------------------------------------------------------------------------------- folders


def v0(path: Path, *files: tuple[str, str], when: list[int] | None = None) -> Path:
    (path / "meta").mkdir(parents=True)
    entries = []
    for number, (tag, sql) in enumerate(files):
        (path / f"{tag}.sql").write_text(sql)
        moment = when[number] if when else 1000 * (number + 1)
        entries.append({"idx": number, "version": "7", "when": moment, "tag": tag, "breakpoints": True})
    journal = {"version": "7", "dialect": "postgresql", "entries": entries}
    (path / "meta" / "_journal.json").write_text(json.dumps(journal, indent=2))
    return path


def test_what_an_earlier_file_made_is_in_use_and_its_types_are_known(tmp_path):
    folder = v0(
        tmp_path / "m",
        ("0000_a", "CREATE TABLE t (id int, b varchar(5)); CREATE INDEX i ON t (id);"),
        ("0001_b", "CREATE INDEX j ON t (id);\nALTER TABLE t ALTER COLUMN b TYPE text;"),
    )
    found = lint(read_lint_folder(folder)).findings
    assert [(f.rule, f.level, f.line) for f in found] == [
        ("index-not-concurrent", "warning", 1),
        ("type-change", "note", 2),
        ("work-under-lock", "warning", 2),
    ][:2]


def test_what_is_wrong_with_the_folder_is_found_with_its_line(tmp_path):
    folder = v0(
        tmp_path / "m", ("0000_a", "SELECT 1"), ("0001_b", "SELECT 1"), ("0002_c", "SELECT 1"), when=[300, 200, 400]
    )
    (folder / "0002_c.sql").unlink()
    (folder / "0003_d.sql").write_text("SELECT 1")
    found = {f.rule: f for f in lint(read_lint_folder(folder)).findings}
    assert set(found) == {"when-backwards", "missing-file", "unlisted-file"}
    lines = (folder / "meta" / "_journal.json").read_text().splitlines()
    assert "0001_b" in lines[found["when-backwards"].line - 1]
    assert "0002_c" in lines[found["missing-file"].line - 1]
    assert found["unlisted-file"].file.endswith("0003_d.sql")
    (folder / "0001_b.sql").write_text("-- lint: allow when-backwards it was applied everywhere before\nSELECT 1")
    report = lint(read_lint_folder(folder))
    assert {f.rule for f in report.findings} == {"missing-file", "unlisted-file"}
    assert [f.rule for f in report.allowed] == ["when-backwards"]
    pending = {"0000_a": read_sql(b"SELECT 1", "0000_a.sql")}
    assert "when-backwards" not in {f.rule for f in lint(read_lint_folder(folder), pending=pending).findings}


def test_a_journal_that_is_none_and_an_empty_folder_are_findings(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "_journal.json").write_text("{")
    assert [f.rule for f in lint(read_lint_folder(tmp_path)).findings] == ["broken-folder"]
    (tmp_path / "e").mkdir()
    assert [f.rule for f in lint(read_lint_folder(tmp_path / "e")).findings] == ["broken-folder"]


def test_a_v1_folder_is_read_in_order(tmp_path):
    for name, sql in (("20240101000000_a", "CREATE TABLE t (a int)"), ("20240102000000_b", "CREATE INDEX i ON t (a)")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "migration.sql").write_text(sql)
    (tmp_path / "20240103000000_c").mkdir()
    found = lint(read_lint_folder(tmp_path)).findings
    assert [f.rule for f in found] == ["index-not-concurrent", "missing-file"]


def test_three_hundred_files_take_less_than_two_seconds(tmp_path):
    files = []
    for number in range(300):
        columns = "".join(f",\n\t\"column_{i}\" text DEFAULT 'x' NOT NULL" for i in range(12))
        sql = f'CREATE TABLE "t{number}" (\n\t"id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL{columns}\n);'
        sql += f'--> statement-breakpoint\nALTER TABLE "t{number // 2}" ADD COLUMN "n{number}" text;'
        sql += f'--> statement-breakpoint\nCREATE INDEX "i{number}" ON "t{number // 3}" USING btree ("id");'
        files.append((f"{number:04}_x", sql))
    folder = v0(tmp_path / "m", *files)
    began = time.process_time()  # other work on the machine is not ours
    report = lint(read_lint_folder(folder))
    took_s = time.process_time() - began
    assert len(report.files) == 300
    assert took_s < 2, took_s


# ---------------------------------------------------------------------------------------------------------- the command


async def test_the_command_tells_people_machines_and_github_the_same(tmp_path, orchestrator):
    folder = v0(
        tmp_path / "m,x",
        ("0000_a", "CREATE TABLE t (a int); CREATE INDEX h ON t (a);"),
        ("0001_b", "CREATE INDEX i ON t (a);\nDROP INDEX h"),
    )
    env = {"MIGRATIONS_DIR": str(folder)}
    text = await orchestrator("lint", env=env)
    assert text.returncode == 1
    assert "1:1  warning index-not-concurrent" in text.stdout
    assert "without a database" in text.stdout
    assert "drop-index" not in text.stdout
    assert "drop-index" in (await orchestrator("lint", "--notes", env=env)).stdout
    as_json = json.loads((await orchestrator("lint", "--json", env=env)).stdout)
    assert as_json["counts"] == {"error": 0, "warning": 1, "note": 0} | {"note": as_json["counts"]["note"]}
    assert as_json["findings"][0]["file"].endswith("0001_b.sql")
    lines = (await orchestrator("lint", "--github", env=env)).stdout.splitlines()
    assert re.fullmatch(
        r"::warning file=m%2Cx/0001_b\.sql,line=1,col=1,title=lint%3A index-not-concurrent::.+", lines[0]
    )


async def test_a_clean_folder_exits_0_and_notes_alone_do_too(tmp_path, orchestrator):
    folder = v0(
        tmp_path / "m", ("0000_a", "CREATE TABLE t (a int); CREATE INDEX i ON t (a);"), ("0001_b", "DROP INDEX i")
    )
    assert (await orchestrator("lint", str(folder))).returncode == 0
    assert (await orchestrator("lint", str(folder / "0000_a.sql"))).returncode == 0
    nothing = await orchestrator("lint")
    assert nothing.returncode == 78
    assert nothing.events[-1]["problems"][0]["variable"] == "MIGRATIONS_DIR"


async def test_a_file_that_is_named_is_judged_by_what_the_files_before_it_made(tmp_path, orchestrator):
    folder = v0(tmp_path / "m", ("0000_a", "CREATE TABLE t (b varchar(5)); DROP TABLE x;"), ("0001_b", ""))
    (folder / "0001_b.sql").write_text("ALTER TABLE t ALTER COLUMN b TYPE text;")
    done = await orchestrator("lint", "--json", str(folder / "0001_b.sql"))
    assert done.returncode == 0
    assert [(f["rule"], f["level"]) for f in json.loads(done.stdout)["findings"]] == [("type-change", "note")]


def test_a_line_for_github_escapes_what_it_must():
    one = finding("drop-table", "a:b,c%.sql", "100% gone\r\nfor ever", line=3, column=4)
    line = github_line(one)
    assert line.startswith(
        "::warning file=a%3Ab%2Cc%25.sql,line=3,col=4,title=lint%3A drop-table::100%25 gone%0D%0Afor ever."
    )
    assert "\n" not in line


async def test_with_a_database_the_pending_files_are_judged_on_the_live_catalogue(
    tmp_path, orchestrator, database_url, admin
):
    folder = v0(
        tmp_path / "m",
        ("0000_a", "CREATE TABLE t (a varchar(5));\nCREATE TABLE gone (a int); DROP TABLE gone;"),
        ("0001_b", "CREATE TABLE n (a int);"),
    )
    env = {"MIGRATIONS_DIR": str(folder), "DATABASE_URL": database_url}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    await admin.script(database_url, "CREATE TABLE by_hand (a varchar(5)); CREATE INDEX hand ON by_hand (a);")
    shutil.rmtree(folder)
    v0(
        folder,
        ("0000_a", "CREATE TABLE t (a varchar(5));\nCREATE TABLE gone (a int); DROP TABLE gone; SELECT 2;"),
        ("0001_b", "CREATE TABLE n (a int);"),
        ("0002_c", "CREATE TABLE m (a int); ALTER TABLE by_hand ALTER COLUMN a TYPE text;"),
        ("0003_d", "CREATE INDEX i ON m (a);\nCREATE INDEX j ON by_hand (a);\nCREATE TABEL"),
        ("0004_e", "CREATE INDEX i ON m (a);\nCREATE INDEX j ON n (a);"),
        ("0005_f", "SELECT 1;"),
        when=[1000, 2000, 3000, 4000, 5000, 1500],
    )
    done = await orchestrator("lint", "--json", env=env)
    told = json.loads(done.stdout)
    assert "the 3 pending files" in told["scope"]
    found = [(Path(f["file"]).stem, f["rule"], f["line"]) for f in told["findings"] if f["level"] != "note"]
    assert found == [
        ("0000_a", "changed-after-apply", 1),
        ("0003_d", "syntax", 3),
        ("0004_e", "index-not-concurrent", 2),
        ("0005_f", "never-runs", 1),
    ]
    told = await orchestrator("lint", env=env)
    assert "3 files looked at (the 3 pending files" in told.stdout
    assert "and 2 others by the journal or the ledger alone" in told.stdout
    every = json.loads((await orchestrator("lint", "--all", "--json", env=env)).stdout)
    assert len(every["files"]) == 6
    assert {f["rule"] for f in every["findings"]} >= {"changed-after-apply", "syntax"}
    offline = json.loads((await orchestrator("lint", "--offline", "--json", env=env)).stdout)
    assert "changed-after-apply" not in {f["rule"] for f in offline["findings"]}
