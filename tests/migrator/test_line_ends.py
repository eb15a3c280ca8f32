"""A folder that was checked out with other line ends is the same folder: CRLF against LF is no edit."""

import json

import pytest

BODY = "CREATE TABLE a (v int);\nCREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n  SELECT 1\n$$;\n"


@pytest.fixture
def run(orchestrator, database_url, tmp_path):
    async def run(command: str, *arguments: str, **env: str):
        told = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(tmp_path / "m"), **env}
        return await orchestrator(command, *arguments, env=told)

    return run


@pytest.mark.parametrize("by", ["us", "drizzle", "us, with mixed line ends"])
async def test_line_ends_alone_are_no_edit(run, admin, database_url, tmp_path, write, by):
    write(tmp_path / "m", ("0000_a", BODY))
    file = tmp_path / "m" / "0000_a.sql"
    file.write_bytes(BODY.replace("\n", "\r\n", 2 if "mixed" in by else -1).encode())
    assert (await run("migrate")).returncode == 0
    if by == "drizzle":  # its ledger, and none of our records
        await admin.script(database_url, "DROP SCHEMA orchestrator CASCADE")
    file.write_bytes(BODY.encode())
    assert (await run("migrate", MIGRATION_POLICY="strict")).returncode == 0
    found = json.loads((await run("status", "--json")).stdout)
    (user,) = [source for source in found["sources"] if source["source"] == "user"]
    assert [(one["kind"], one["cosmetic"]) for one in user["findings"]] == [("edited", True)]
    file.write_bytes(BODY.replace("SELECT 1", "SELECT 2").encode())
    refused = await run("migrate", MIGRATION_POLICY="strict")
    assert refused.returncode == 70
    assert "repair accept 0000_a" in refused.stderr
