"""Nobody's tables land among our own, though user and schema may have one name: "$user" comes first in the default."""

import json
from urllib.parse import quote

from orchestrator.database.embedded import embedded_postgres


async def test_a_user_of_our_schemas_name_has_its_tables_in_public(orchestrator, database_url, admin, tmp_path):
    is_there = await admin.value(database_url, "SELECT 1 FROM pg_roles WHERE rolname = 'orchestrator'")
    await admin.script(database_url, "SELECT 1" if is_there else "CREATE ROLE orchestrator")
    await admin.script(
        database_url,
        "DO $$ BEGIN EXECUTE format('GRANT ALL ON DATABASE %I TO orchestrator', current_database()); END $$;"
        "GRANT ALL ON SCHEMA public TO orchestrator",
    )
    entry = {"idx": 0, "version": "7", "when": 1, "tag": "0000_a", "breakpoints": True}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "_journal.json").write_text(json.dumps({"entries": [entry]}))
    (tmp_path / "0000_a.sql").write_text("CREATE TABLE jobs (mine int);")
    url = f"{database_url}?options={quote('-c role=orchestrator')}"
    done = await orchestrator("migrate", env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert await admin(database_url, "SELECT mine FROM public.jobs") == []
    if not is_there:
        await admin.script(database_url, "DROP OWNED BY orchestrator CASCADE; DROP ROLE orchestrator")


async def test_so_it_is_for_all_who_use_the_embedded_database(tmp_path, admin):
    async with embedded_postgres(tmp_path, lambda *_, **__: None, durable=False) as server:
        assert await admin.value(server.dsn, "SHOW search_path") == "public"
