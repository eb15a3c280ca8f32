"""CVE-2018-1058: whatever is planted on the search path, no command, no job and no start of ours calls it."""

import importlib

import aiohttp
import pytest
from support.plants import called, plant, unqualified

HANDLERS = """
from orchestrator.jobs import job, enqueue

@job("second")
async def second(ctx, payload):
    return {"seen": payload}

@job("limited", concurrency=1, schedule="* * * * *")
async def limited(ctx, payload):
    await ctx.progress(1, 2, "half")
    ctx.log.info("a line", number=1)
    async with ctx.pool.acquire() as connection:
        async with connection.transaction():
            await enqueue(connection, "second", {"n": 1}, dedupe_key="d", idempotency_key="i")
            await enqueue(connection, "second", {"n": 1}, dedupe_key="d", idempotency_key="i")

@job("fails", retries=1)
async def fails(ctx, payload):
    raise ValueError("on purpose")

@job("waits")
async def waits(ctx, payload):
    import asyncio
    await asyncio.sleep(600)
"""

FILES = [
    (
        "0000_a",
        "CREATE TABLE public.a (id integer PRIMARY KEY, b integer NOT NULL); INSERT INTO public.a VALUES (1, 2);",
    ),
    ("0001_b", "CREATE TABLE public.b (id integer PRIMARY KEY, a integer REFERENCES public.a);"),
    ("0002_c", "ALTER TABLE public.a ADD COLUMN c integer;"),
    ("0003_d", "CREATE INDEX CONCURRENTLY a_b ON public.a (b);--> statement-breakpoint\nDROP INDEX public.a_b;"),
    ("0004_e", "COMMENT ON TABLE public.a IS 'a';"),
    ("0005_f", "COMMENT ON TABLE public.b IS 'b';"),
]

TOKEN = "a-token-that-is-long-enough"
JOBS = {
    "limited": {},
    "fails": {},
    "waits": {},
    "database.analyze": {},
    "database.backup": {"test": True},
    "jobs.prune": {},
    "migrations.verify": {},
}
READ = [
    "health",
    "metrics",
    "openapi.json",
    *(
        "api/jobs",
        "api/jobs?state=failed&name=fails",
        "api/jobs/{id}",
        "api/jobs/{id}/log",
        "api/queues",
        "api/handlers",
    ),
    *("api/schedules", "api/schedules/limited", "api/migrations", "api/starts", "api/events?limit=10"),
    *("api/jobs/queue/stats", "api/jobs/results", "api/jobs/server-status", "api/jobs/scheduler/status"),
    "api/jobs/queue/default/{id}/status",
]


@pytest.fixture
def run(orchestrator, database_url, admin):
    """`await run(*arguments, env=…)`: a command that ends as it should, and has called nothing that was planted."""

    async def run(*arguments, env, codes=(0,)):
        result = await orchestrator(*arguments, env=env, timeout_s=120)
        said = f"{arguments}: {result.stdout}{result.stderr}"
        assert "planted: " not in said, said
        assert await called(admin, database_url) == 0, said
        assert result.returncode in codes, said
        return result

    return run


async def test_no_run_calls_a_planted_function(run, database_url, admin, write, tmp_path):
    await plant(admin, database_url)
    folder = write(tmp_path / "m", *FILES[:2])
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(tmp_path / "backups")}
    await run("migrate", env=env | {"EXTENSIONS": "hstore"})
    write(folder, *FILES)
    await run("migrate", env=env | {"BACKUP_BEFORE_MIGRATE": "pending"})
    await run("migrate", env=env)


async def test_no_other_command_calls_a_planted_function(
    run, orchestrator, database_url, server, admin, write, tmp_path
):
    folder = write(tmp_path / "m", *FILES[:-2])
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder), "BACKUP_DIR": str(tmp_path / "backups")}
    assert (await orchestrator("migrate", env=env)).returncode == 0
    await plant(admin, database_url)
    write(folder, *FILES)
    for command in (["wait"], ["status", "--diff"], ["plan"], ["lint"], ["lint", "--all"], ["rehearse"], ["verify"]):
        await run(*command, env=env, codes=(0, 1))
    (folder / "0002_c.sql").write_text(FILES[2][1] + " -- another")
    for command in (["status", "--diff"], ["repair", "accept", "0002_c"], ["repair", "applied", "0004_e", "0005_f"]):
        await run(*command, *(["--yes"] if command[0] == "repair" else []), env=env)
    await run("repair", "unapplied", "0005_f", "--yes", env=env)
    for command in (["verify", "--privileges"], ["rehearse", "--from-files"], ["rehearse", "--with-data"]):
        await run(*command, env=env, codes=(0, 1))
    await run("backup", "--test", env=env)
    (file,) = [path.name for path in (tmp_path / "backups").iterdir() if path.suffix != ".json"]
    await run("restore", file, "--yes", env=env)
    await run("status", env=env)
    kept = "SELECT datname FROM pg_database WHERE datname ~ '^test_.*_before_'"
    for row in await admin(server.dsn(), kept):
        await admin.script(server.dsn(), f'DROP DATABASE "{row[0]}" WITH (FORCE)')


async def test_no_job_request_or_start_calls_a_planted_function(
    orchestrator, database_url, admin, write, tmp_path, wait_until
):
    env = {
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": str(write(tmp_path / "m", *FILES)),
        "BACKUP_DIR": str(tmp_path / "backups"),
        "JOBS": "planted_jobs",
        "API_TOKEN": TOKEN,
    }
    (tmp_path / "planted_jobs.py").write_text(HANDLERS)
    assert (await orchestrator("migrate", env=env, cwd=tmp_path)).returncode == 0
    await plant(admin, database_url)
    async with orchestrator.running("serve", env=env, cwd=tmp_path) as service, aiohttp.ClientSession() as http:
        await service.phase("ready")

        async def ask(path, method="GET", **options):
            async with http.request(
                method, f"{service.url}/{path}", headers={"Authorization": f"Bearer {TOKEN}"}, **options
            ) as answer:
                assert answer.status < 500, (path, await answer.text())
                return await answer.json() if answer.content_type.endswith("json") else await answer.text()

        async def ended(job_id):
            job = await ask(f"api/jobs/{job_id}")
            return job if job["state"] in {"succeeded", "failed", "cancelled"} else None

        made = {
            name: (await ask("api/jobs", "POST", json={"name": name, "payload": payload}))["id"]
            for name, payload in JOBS.items()
        }
        await ask("api/jobs/batch", "POST", json={"jobs": [{"name": "second", "delay_s": 600}, {"name": "second"}]})
        for name in made.keys() - {"waits"}:  # what was planted is a difference that `migrations.verify` finds
            job = await wait_until(lambda one=made[name]: ended(one), 60, name)
            assert job["state"] == ("failed" if name in {"fails", "migrations.verify"} else "succeeded"), job
        for path in READ:
            await ask(path.format(id=made["fails"]))
        await ask(f"api/jobs/{made['fails']}/retry", "POST")
        await ask(f"api/jobs/{made['waits']}/cancel", "POST")
        assert (await wait_until(lambda: ended(made["waits"]), 20))["state"] == "cancelled"
        await ask("api/schedules/limited/trigger", "POST")
        await ask("api/schedules/limited", "PATCH", json={"cron": "*/5 * * * *"})
        await ask("api/schedules/limited", "DELETE")
        await ask("api/jobs/cancel-by-type", "POST", json={"jobName": "second"})
        assert "planted: " not in service.output
        assert await called(admin, database_url) == 0, service.output
    assert "planted: " not in service.output


@pytest.mark.parametrize("module", ["queue"])
def test_sql_for_the_connections_of_others_is_qualified_throughout(module):
    texts = vars(importlib.import_module(f"orchestrator.jobs.{module}"))
    statements = {name: text for name, text in texts.items() if isinstance(text, str) and " orchestrator." in text}
    assert len(statements) >= 4
    for name, text in statements.items():
        assert list(unqualified(text)) == [], name
