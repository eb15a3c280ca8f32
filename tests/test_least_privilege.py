"""One role migrates and owns, one serves, and a superuser does neither: the recipe of the manual, word for word."""

import json
import re
import secrets
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from orchestrator import dsn as dsns
from orchestrator.backup import pgtools

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "compose" / "roles.sql"
FOLDER = (
    ("0000_people", "CREATE TABLE people (id serial PRIMARY KEY, name text); INSERT INTO people (name) VALUES ('a');"),
)


@asynccontextmanager
async def roles(server, admin, known, **more: str):
    """Both roles and their database, made by the recipe; yields the URLs of the one that migrates and the other."""
    mark = secrets.token_hex(4)
    names = {"owner": f"owner_{mark}", "app": f"app_{mark}", "database": f"test_roles_{mark}"}
    passwords = {f"{name}_password": f"s3cr3t-pw-{secrets.token_hex(8)}" for name in ("owner", "app")}
    known.secrets.update(passwords.values())
    dsn = dsns.parse(server.dsn())
    psql = await pgtools.find("psql", at_least=server.major, purpose="a test")
    environment = pgtools.environment(dsn, application_name="test")
    variables = [f"--set={name}={value}" for name, value in {**names, **passwords, **more}.items()]
    run = pgtools.Run(psql, ["-X", *variables, f"--file={RECIPE}"], environment, dsn.secrets, lambda *_, **__: None)
    await pgtools.run(run)
    await pgtools.run(run)  # again: nothing to do
    try:
        yield (
            f"postgresql://{names[who]}:{passwords[f'{who}_password']}@{server.host}:{server.port}/{names['database']}"
            for who in ("owner", "app")
        )
    finally:
        for (name,) in await admin(
            server.dsn(), "SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = $1", names["owner"]
        ):
            await admin.script(server.dsn(), f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.script(server.dsn(), f"DROP ROLE {names['app']}; DROP ROLE {names['owner']}")
        await admin.script(
            server.dsn(), "UPDATE pg_database SET datistemplate = false WHERE datname ~ 'orch.*template'"
        )
        await admin.script(server.dsn(), "DROP DATABASE IF EXISTS orchestrator_template")


@pytest.fixture
def backups(tmp_path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    return directory


async def test_the_one_that_serves_does_all_that_serving_is_and_nothing_else(
    orchestrator, server, admin, known, tmp_path, write, backups, wait_until
):
    write(tmp_path / "m", *FOLDER)
    async with roles(server, admin, known) as (owner, app):
        env = {
            "DATABASE_URL": app,
            "MIGRATION_DATABASE_URL": owner,
            "MIGRATIONS_DIR": str(tmp_path / "m"),
            "BACKUP_DIR": str(backups),
            "API_TOKEN": "a-token-of-the-tests-alone",
        }
        known.secrets.add(env["API_TOKEN"])
        async with orchestrator.running("serve", env=env) as service:
            await service.event("service.ready")
            given = await service.event("grants.given")
            assert given["role"] == urlsplit(app).username
            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {env['API_TOKEN']}"}) as http:
                for job, payload in {
                    "database.backup": {"test": True},
                    "database.analyze": {},
                    "jobs.prune": {"older_than_s": 1},
                    "migrations.verify": {},
                }.items():
                    body = {"name": job, "payload": payload}
                    async with http.post(f"{service.url}/api/jobs", json=body) as answer:
                        assert answer.status in {200, 201, 202}, await answer.text()
                        number = (await answer.json())["id"]

                    async def state(number: int = number) -> dict | None:
                        async with http.get(f"{service.url}/api/jobs/{number}") as answer:
                            found = await answer.json()
                        return found if found["state"] in {"succeeded", "failed", "cancelled"} else None

                    found = await wait_until(state, 60, job)
                    assert found["state"] == "succeeded", (job, found)
                for path in ("/api/migrations", "/api/schedules", "/api/queues", "/api/jobs", "/metrics", "/health"):
                    async with http.get(service.url + path) as answer:
                        assert answer.status == 200, (path, await answer.text())
            assert [e for e in service.events if e["level"] in {"error", "warning"}] == []
        # What is pending is refused, and what is not needs no second role.
        async with orchestrator.running("serve", env={**env, "MIGRATION_DATABASE_URL": app}) as service:
            await service.event("service.ready")
            assert not any(e["event"] == "start.not_recorded" for e in service.events)
        async with admin.connection(app) as connection:
            assert await connection.fetchval("UPDATE people SET name = 'b' RETURNING name") == "b"
            await connection.fetch("SELECT * FROM drizzle.__drizzle_migrations, orchestrator.backups")
            for refused in (
                "UPDATE drizzle.__drizzle_migrations SET hash = ''",
                "DELETE FROM orchestrator.__drizzle_migrations",
                "INSERT INTO orchestrator.backups (file) VALUES ('x')",
                "UPDATE orchestrator.migration_records SET text = ''",
                "DELETE FROM orchestrator.starts",
                "CREATE TABLE public.mine ()",
                "CREATE SCHEMA mine",
                "DROP TABLE people",
                "ALTER TABLE orchestrator.jobs DISABLE TRIGGER ALL",
                "CREATE RULE r AS ON UPDATE TO orchestrator.jobs DO INSTEAD NOTHING",
                "CREATE ROLE other",
                "CREATE DATABASE other",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(refused)


async def test_the_one_that_migrates_tests_and_restores_what_it_owns(
    orchestrator, server, admin, known, tmp_path, write, backups
):
    write(tmp_path / "m", *FOLDER)
    async with roles(server, admin, known, extensions="pg_trgm, pageinspect no_such_one") as (owner, app):
        env = {"DATABASE_URL": owner, "MIGRATIONS_DIR": str(tmp_path / "m"), "BACKUP_DIR": str(backups)}
        env["EXTENSIONS"] = "pg_trgm,pageinspect"
        assert (await orchestrator("migrate", env=env)).returncode == 0
        name = urlsplit(owner).path[1:]
        extensions = "SELECT array_agg(extname::text ORDER BY extname) FROM pg_extension"
        assert await admin.value(server.dsn(name), extensions) == ["pageinspect", "pg_trgm", "plpgsql"]
        tested = await orchestrator("backup", "--test", "--json", env=env)
        assert tested.returncode == 0, tested.stderr
        found = json.loads(tested.stdout)
        assert found["test"]["differences"] == []
        assert found["test"]["isolated"] is (server.major >= 16)
        verified = await orchestrator("verify", env=env)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        restored = await orchestrator("restore", found["backup"]["path"], "--yes", env=env)
        assert restored.returncode == 0, restored.stderr
        assert await admin.value(owner, "SELECT count(*) FROM pg_extension WHERE extname = 'pageinspect'") == 1
        # The one that serves may do what it could, in the database that has the name now.
        assert await admin.value(app, "SELECT count(*) FROM people") == 1


def test_the_manual_holds_the_recipe_word_for_word():
    page = (ROOT / "orchestrator" / "docs" / "security.md").read_text()
    (block,) = re.findall(r"^```sql\n(-- Least privilege.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block == RECIPE.read_text()
