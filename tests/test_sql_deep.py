"""Nothing that a file says kills the process: deep and large statements are judged by the server, if not by us."""

import pytest

from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.statements import statements

DEEP = {
    "a sum": lambda n: "SELECT " + "+".join(["1"] * n),
    "a text": lambda n: "CREATE VIEW v AS SELECT " + " || ".join(["'a'"] * n) + " AS x",
    "a union": lambda n: "CREATE VIEW v AS " + " UNION ALL ".join(["SELECT 1 AS x"] * n),
    "a list of conditions": lambda n: "SELECT " + " AND ".join(["true"] * n),
    "casts": lambda n: "SELECT 1" + "::int" * n,
    "a check": lambda n: "CREATE TABLE t (a int CHECK (" + "+".join(["a"] * n) + " > 0))",
    "a do block": lambda n: "DO $$ BEGIN PERFORM " + "+".join(["1"] * n) + "; END $$",
    "an update": lambda n: "UPDATE t SET a = " + "-".join(["1"] * n) + " WHERE set_config('a.b', 'c', false) = 'c'",
}


@pytest.mark.parametrize("terms", [500, 5000, 70_000])
@pytest.mark.parametrize("shape", DEEP)
def test_a_deep_statement_is_one_statement(shape: str, terms: int):
    text = DEEP[shape](terms)
    one, other = statements(f"{text};\nSELECT 2;".encode(), path="deep.sql")
    assert (one.text, other.text, other.line) == (text, "SELECT 2", 2)
    if text.startswith("DO"):
        parser.plpgsql(text.encode())


@pytest.mark.parametrize("nested", ["(", "NOT ", "CASE WHEN true THEN "])
def test_what_the_grammar_itself_finds_too_deep_is_an_error_that_names_its_place(nested: str):
    with pytest.raises(Exception, match="memory exhausted"):
        statements(f"SELECT {nested * 50_000}".encode(), path="deep.sql")


async def test_deep_but_legal_files_run(orchestrator, admin, database_url, tmp_path, write):
    files = [
        ("0000_t", "CREATE TABLE t AS SELECT " + " || ".join(["'a'"] * 1500) + " AS x;"),
        ("0001_v", "CREATE VIEW v AS " + " UNION ALL ".join(f"SELECT {n} AS x" for n in range(1000)) + ";"),
        ("0002_c", "ALTER TABLE t ADD COLUMN n int CHECK (" + "+".join(["n"] * 900) + " > 0);"),
    ]
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", *files))}
    result = await orchestrator("migrate", env=env)
    assert result.returncode == 0, result.stderr
    assert await admin.value(database_url, "SELECT length(x) FROM t") == 1500
    assert await admin.value(database_url, "SELECT count(*) FROM v") == 1000


async def test_what_is_too_deep_for_the_server_too_is_the_files_error(orchestrator, database_url, tmp_path, write):
    folder = write(tmp_path / "m", ("0000_t", "SELECT " + "+".join(["1"] * 70_000) + ";"))
    result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)})
    assert (result.returncode, result.events[-1].get("sqlstate")) == (70, "54001"), result.stderr[-2000:]
