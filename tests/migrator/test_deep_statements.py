"""No statement of a file ends the process, however deep or large it is; what the parser cannot do the server judges."""

import pytest

from orchestrator.migrator.sql import parser
from orchestrator.migrator.sql.statements import statements

# Left-recursive rules of the grammar have no limit but memory: these trees are as deep as the text is long.
DEEP = {
    "a sum": lambda n: "SELECT " + "+".join(["1"] * n),
    "a text": lambda n: "CREATE VIEW v AS SELECT " + " || ".join(["'a'"] * n) + " AS x",
    "a union": lambda n: "CREATE VIEW v AS " + " UNION ALL ".join(["SELECT 1 AS x"] * n),
    "a list of conditions": lambda n: "SELECT " + " AND ".join(["true"] * n),
    "casts": lambda n: "SELECT 1" + "::int" * n,
    "tests for null": lambda n: "SELECT 1" + " ISNULL" * n,
    "joins": lambda n: "SELECT 1 FROM a" + " JOIN a USING (b)" * n,
    "a check": lambda n: "CREATE TABLE t (a int CHECK (" + "+".join(["a"] * n) + " > 0))",
    "a do block": lambda n: "DO $$ BEGIN PERFORM " + "+".join(["1"] * n) + "; END $$",
    "an update": lambda n: "UPDATE t SET a = " + "-".join(["1"] * n) + " WHERE set_config('a.b', 'c', false) = 'c'",
}
# Of the others the grammar itself takes some thousands (bison's YYMAXDEPTH).
NESTED = {
    "negations": lambda n: "SELECT " + "NOT " * n + "a",
    "signs": lambda n: "SELECT " + "- " * n + "a",
    "arrays": lambda n: "SELECT ARRAY[" + "[" * n + "1" + "]" * n + "]",
    "subqueries": lambda n: "SELECT " + "(SELECT " * n + "1" + ")" * n,
    "calls": lambda n: "SELECT " + "f(" * n + ")" * n,
    "conditions": lambda n: "SELECT " + "CASE WHEN true THEN " * n + "1" + " END" * n,
    "blocks": lambda n: "DO $$ " + "BEGIN " * n + "NULL; " + "END; " * n + " $$",
    "branches": lambda n: "DO $$ BEGIN " + "IF true THEN " * n + "NULL; " + "END IF; " * n + " END $$",
}


def _is_one_statement(text: str) -> None:
    one, other = statements(f"{text};\nSELECT 2;".encode(), path="deep.sql")
    assert (one.text, other.text, other.line) == (text, "SELECT 2", 2)
    if text.startswith("DO"):
        parser.plpgsql(text.encode())


@pytest.mark.parametrize("terms", [500, 5000, 70_000])
@pytest.mark.parametrize("shape", DEEP)
def test_a_deep_statement_is_one_statement(shape: str, terms: int):
    _is_one_statement(DEEP[shape](terms))


@pytest.mark.parametrize("shape", DEEP | NESTED)
def test_there_is_no_depth_between_that_the_decoder_cannot_follow(shape: str):
    for depth in (100, 200, 300, 400, 500, 700, 1000, 1300, 1500):
        _is_one_statement((DEEP | NESTED)[shape](depth))


@pytest.mark.parametrize("shape", ["calls", "conditions", "a text", "subqueries", "joins", "a union"])
async def test_lint_reads_what_it_can_of_a_deep_statement(shape, orchestrator, tmp_path, write):
    deep = (DEEP | NESTED)[shape]
    # The depth at which the tree is cut falls on each of the nodes of a level in one of these.
    files = [(f"{n:04}_d", f"CREATE INDEX i{n} ON t (({deep(n).removeprefix('SELECT ')}));") for n in range(60, 70)]
    if shape in {"a text", "joins", "a union"}:
        files = [(f"{n:04}_d", deep(n) + ";") for n in range(60, 70)]
    files += [("1000_d", deep(400) + " WHERE f(1);" if shape == "joins" else deep(400) + ";")]
    result = await orchestrator("lint", "--all", str(write(tmp_path / "m", *files)))
    assert "Traceback" not in result.stderr, result.stderr[-2000:]


@pytest.mark.parametrize("nested", ["(", "NOT ", "CASE WHEN true THEN "])
def test_what_the_grammar_itself_finds_too_deep_is_an_error_that_names_its_place(nested: str):
    with pytest.raises(Exception, match="memory exhausted"):
        statements(f"SELECT {nested * 50_000}".encode(), path="deep.sql")


def test_where_no_large_stack_is_granted_the_text_is_refused_and_the_process_lives(monkeypatch):
    monkeypatch.setattr(parser, "_STACK_BYTES_A_BYTE", 1 << 32)
    with pytest.raises(parser.GrammarError, match="too large to be parsed here"):
        parser.parse(DEEP["a sum"](70_000).encode())


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


async def test_what_the_grammar_finds_too_deep_the_server_judges_and_the_file_is_told(
    orchestrator, database_url, tmp_path, write
):
    folder = write(tmp_path / "m", ("0000_t", "SELECT 1;\nSELECT " + "NOT " * 50_000 + "true;"))
    result = await orchestrator("migrate", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)})
    assert (result.returncode, result.events[-1].get("line")) == (70, 2), result.stderr[-2000:]
    assert "memory exhausted" in result.events[-1]["error"]
