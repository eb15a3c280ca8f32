"""Nobody's tables land among our own, though the embedded database's user and our schema have one name."""

from orchestrator.database.embedded import embedded_postgres


async def test_who_uses_the_embedded_database_makes_tables_in_public(tmp_path, admin):
    async with embedded_postgres(tmp_path, lambda *_, **__: None, durable=False) as server:
        assert await admin.value(server.dsn, "SHOW search_path") == "public"
