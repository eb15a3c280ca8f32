"""`lint` and `plan` say the same of a statement's work: `impact` decides it once, with its cause and its place."""

from pathlib import Path

import pytest

from orchestrator.analysis.catalog import Known
from orchestrator.analysis.follow import follow
from orchestrator.analysis.impact import impact_of
from orchestrator.analysis.lint import LintFile, LintFolder, lint
from orchestrator.analysis.lint_rules import WORK_RULES
from orchestrator.analysis.locks import Cause
from orchestrator.analysis.sql_file import read_sql
from orchestrator.migrator.sql import parser

BEFORE = """
CREATE TABLE t (id int PRIMARY KEY, a int, b int);
CREATE INDEX t_a ON t (a);
CREATE TABLE u (id int PRIMARY KEY);
CREATE TABLE by_job (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE parts (id int, day int) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
CREATE TABLE bounded (id int, day int NOT NULL, CONSTRAINT bounds CHECK (day >= 20 AND day < 30));
CREATE TABLE unbounded (id int, day int);
"""


def known() -> Known:
    made = Known()
    for one in parser.parse(BEFORE.encode()):
        follow(made, one.node, one.fields())
    made.settle()
    return made


def findings(sql: str) -> list[tuple[str, int, int]]:
    path = Path("x.sql")
    folder = LintFolder(path.parent, (LintFile("x", path),))
    report = lint(folder, pending={"x": read_sql(sql.encode(), str(path))}, known=known())
    return [(f.rule, f.line, f.column) for f in report.findings]


@pytest.mark.parametrize(
    ("sql", "rules"),
    [
        ("ALTER TABLE t ADD COLUMN x int NOT NULL DEFAULT NULL;", ["required-column"]),
        ("ALTER TABLE t ADD COLUMN x int NOT NULL DEFAULT 1;", []),
        ("ALTER TABLE t ALTER a SET NOT NULL, ALTER b SET NOT NULL;", ["set-not-null", "set-not-null"]),
        ("CREATE INDEX IF NOT EXISTS t_a ON t (a);", []),
        ("CREATE INDEX IF NOT EXISTS t_b ON t (b);", ["index-not-concurrent"]),
        # A folder without its database may not name every partition, so the rows may be there.
        ("ALTER TABLE by_job ADD UNIQUE (id, day);", ["unique-builds-index"]),
        ("ALTER TABLE parts ADD UNIQUE (id, day);", ["unique-builds-index"]),
        ("CREATE INDEX i ON parts (id);", ["index-not-concurrent"]),
        ("ALTER TABLE parts ATTACH PARTITION unbounded FOR VALUES FROM (20) TO (30);", ["attach-scans"]),
        ("ALTER TABLE parts ATTACH PARTITION bounded FOR VALUES FROM (20) TO (30);", []),
    ],
)
def test_what_is_found_of_a_tables_rows_is_what_impact_says(sql, rules):
    assert [rule for rule, _, _ in findings(sql)] == rules
    (parsed,) = parser.parse(sql.encode())
    works = [w for t in impact_of(parsed.node, parsed.fields(), known()).touches if not t.fresh for w in t.works]
    assert bool(works) == bool(rules)


def test_each_finding_stands_where_the_work_is_asked_for():
    sql = (
        "ALTER TABLE t\n  ADD COLUMN x int NOT NULL,\n  ADD COLUMN y int UNIQUE,\n"
        "  ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES u (id);"
    )
    assert findings(sql) == [("required-column", 2, 14), ("unique-builds-index", 3, 20), ("constraint-not-valid", 4, 7)]


def test_a_cause_without_a_rule_is_one_that_another_rule_covers():
    # REFERENCED and FOLLOWS come with other work; the rest are statements with rules of their own.
    others = {Cause.REFERENCED, Cause.FOLLOWS, Cause.VALIDATION, Cause.DOMAIN, Cause.MAINTENANCE, Cause.DATA}
    assert set(Cause) - set(WORK_RULES) == others
