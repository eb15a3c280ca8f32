"""What everybody may ask for (`/health`, its stream), and what a start leaves behind, hold no secret of a start."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import aiohttp
import pytest

TOKEN = "a-token-that-nobody-may-see"
MODULE = """
import os
raise RuntimeError(f"no way to {os.environ['DATABASE_URL']} with {os.environ['API_TOKEN']}")
"""
PLAIN = "CREATE ROLE pg_refused PASSWORD 'hunter2hunter2'"
NESTED = f"DO $$ BEGIN PERFORM pg_sleep(0.2); EXECUTE '{PLAIN.replace(chr(39), chr(39) * 2)}'; END $$"


@pytest.mark.parametrize("migration", ["", PLAIN, NESTED], ids=["module", "statement", "statement in a statement"])
async def test_a_failed_start_shows_no_secret_to_whoever_watches(
    orchestrator, database_url, admin, tmp_path, known, tcp_proxy, migration
):
    known.secrets |= {TOKEN, "hunter2hunter2"}
    await tcp_proxy.refuse()
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "API_TOKEN": TOKEN}
    if migration:
        (tmp_path / "m" / "meta").mkdir(parents=True)
        (tmp_path / "m" / "0000_a.sql").write_text(migration)
        entry = {"idx": 0, "when": 1716000000000, "tag": "0000_a", "breakpoints": True}
        (tmp_path / "m" / "meta" / "_journal.json").write_text(json.dumps({"entries": [entry]}))
        env["MIGRATIONS_DIR"] = str(tmp_path / "m")
    else:
        (tmp_path / "broken.py").write_text(MODULE)
        env["JOBS"] = "broken"
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("connecting")
        shown = {"Authorization": f"Bearer {TOKEN}"}  # who shows none is told little (tests/api/test_api_access.py)
        async with (
            aiohttp.ClientSession(run.url, headers=shown) as session,
            session.get("/health/events") as response,
        ):
            await tcp_proxy.accept()
            told = (await response.read()).decode()
        assert await run.wait() == (70 if migration else 78)
    assert '"phase":"failed"' in told
    assert ("pg_refused" if migration else "JOBS names broken, which cannot be imported") in told
    kept = await admin.value(database_url, "SELECT coalesce(json_agg(s)::text, '') FROM orchestrator.starts s")
    for text in (told, kept, run.output):
        for secret in (urlsplit(database_url).password, TOKEN, "hunter2"):
            assert secret not in text


@pytest.mark.parametrize(
    "text", ["raise KeyboardInterrupt", "class Odd(BaseException):\n    def __str__(self):\n        1 / 0\nraise Odd"]
)
async def test_a_module_of_handlers_may_raise_anything_at_import(orchestrator, database_url, tmp_path, text):
    (tmp_path / "odd.py").write_text(text)
    result = await orchestrator("serve", env={"DATABASE_URL": database_url, "JOBS": "odd"})
    assert result.returncode == 78
    assert "JOBS names odd" in result.events[-1]["error"]
