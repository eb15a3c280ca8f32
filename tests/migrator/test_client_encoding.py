"""A file that sets client_encoding: its bytes go to the server as they are, as with psql and drizzle."""

import pytest

NAME = "\u0141\u00f3d\u017a"


@pytest.fixture
def migrate(orchestrator, database_url, tmp_path, write):
    async def run(*texts: str):
        files = [(f"{n:04}_m", text) for n, text in enumerate(texts)]
        env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(write(tmp_path / "m", *files))}
        return await orchestrator("migrate", env=env)

    return run


@pytest.mark.parametrize("steps", ["", "COMMIT; "], ids=["one transaction", "in steps"])
async def test_bytes_that_the_encoding_does_not_have_are_the_files_error(steps, migrate):
    result = await migrate(
        "CREATE TABLE before_it ();",
        f"{steps}CREATE TABLE t (v text);\nSET client_encoding = 'EUC_JIS_2004';\n\nINSERT INTO t VALUES ('{NAME}');",
    )
    assert result.returncode == 70, result.stderr[-2000:]
    told = result.events[-1]
    assert (told["line"], told["statement_kind"], told["sqlstate"]) == (4, "INSERT", "22021"), told
    assert "client_encoding" in told["remedy"]


@pytest.mark.parametrize("large", ["", f"\n-- {'x' * 2_000_000}"], ids=["small", "large"])
@pytest.mark.parametrize("steps", ["", "COMMIT; "], ids=["one transaction", "in steps"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "utf8"])
async def test_our_record_is_the_file_whatever_the_file_has_set(encoding, steps, large, migrate, admin, database_url):
    text = f"-- {NAME}\n{steps}SET client_encoding = '{encoding}';\nCREATE TABLE t AS SELECT 'caf\u00e9' AS v;{large}"
    result = await migrate(text, f"CREATE TABLE u AS SELECT '{NAME}' AS v;")
    assert result.returncode == 0, result.stderr[-2000:]
    as_psql = "caf\u00c3\u00a9" if encoding == "LATIN1" else "caf\u00e9"
    assert await admin.value(database_url, "SELECT v FROM t") == as_psql
    assert await admin.value(database_url, "SELECT v FROM u") == NAME
    if not large:
        kept = await admin.value(database_url, "SELECT text FROM orchestrator.migration_records WHERE name = '0000_m'")
        assert kept == text


@pytest.mark.parametrize("mode", ["each", "all"])
@pytest.mark.parametrize("first", ["SET {}", "DO $$ BEGIN PERFORM set_config('{}', '{}', false); END $$"])
async def test_how_the_next_file_is_read_is_not_what_this_one_has_set(
    first, mode, orchestrator, admin, database_url, tmp_path, write
):
    for name, value in {"client_encoding": "LATIN1", "standard_conforming_strings": "off"}.items():
        said = first.format(name, value) if "set_config" in first else f"SET {name} = {value}"
        next_one = f"CREATE TABLE {name} AS SELECT '{NAME}\\n' AS v;"
        small = f"CREATE TABLE {name}_small (v text DEFAULT '{NAME}\\n');"
        files = (f"{name}_0", f"{said};"), (f"{name}_1", next_one), (f"{name}_2", f"{said};")
        folder = write(tmp_path / name, *files, (f"{name}_3", small), (f"{name}_4", f"CREATE TABLE {name}_4 ();"))
        env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "MIGRATION_TRANSACTION": mode}
        result = await orchestrator("migrate", env={**env, "MIGRATIONS_TABLE": name})
        assert result.returncode == 0, result.stderr[-2000:]
        assert await admin.value(database_url, f"SELECT v FROM {name}") == f"{NAME}\\n"
        await admin(database_url, f"INSERT INTO {name}_small DEFAULT VALUES")
        assert await admin.value(database_url, f"SELECT v FROM {name}_small") == f"{NAME}\\n"
