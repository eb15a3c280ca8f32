"""CVE-2018-1058: whatever is planted on the search path, no command, no job and no start of ours calls it."""

from urllib.parse import urlsplit

import pytest

from orchestrator.jobs import enqueue
from orchestrator.jobs.registry import load

from .plants import called, plant

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


async def test_no_other_command_calls_a_planted_function(run, orchestrator, database_url, admin, write, tmp_path):
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


async def test_no_job_request_or_start_calls_a_planted_function(
    orchestrator, database_url, admin, write, tmp_path, wait_until
):
    env = {
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": str(write(tmp_path / "m", *FILES)),
        "BACKUP_DIR": str(tmp_path / "backups"),
        "JOBS": "planted_jobs",
        "API_TOKEN": "token",
    }
    (tmp_path / "planted_jobs.py").write_text(HANDLERS)
    assert (await orchestrator("migrate", env=env)).returncode == 0
    await plant(admin, database_url)
    async with orchestrator.running("serve", env=env, cwd=tmp_path) as service:
        await service.phase("ready")

        async def ask(path, method="GET", **body):
            answer = await service.get(path, method=method, headers={"Authorization": "Bearer token"}, **body)
            assert answer.status < 500, (path, answer.body)
            return answer.body

        made = {}
        for name, payload in JOBS.items():
            made[name] = (await ask("/api/jobs", "POST", json={"name": name, "payload": payload}))["id"]
        for path in (
            "jobs",
            "queues",
            "handlers",
            "schedules",
            "migrations",
            "starts",
            "events",
            f"jobs/{made['fails']}",
        ):
            await ask(f"/api/{path}")
        await wait_until(lambda: ask("/api/jobs?state=running"), 20)
        print(made)
