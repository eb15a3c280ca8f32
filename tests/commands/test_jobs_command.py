"""`jobs` and `schedules`: over the API of a running server, or on the database where none runs."""

import json

import pytest

HANDLERS = """
from orchestrator.jobs import job


@job("orders.bill", schedule="0 3 * * *")
async def bill(ctx, payload: dict):
    ctx.log.info("order.billed", order=payload.get("order"))
    raise KeyError("customer")


@job("orders.read")
async def read(ctx, payload: dict):
    return payload
"""
TOKEN = "a-token-of-this-command"


@pytest.fixture
def env(database_url, tmp_path, known):
    (tmp_path / "command_jobs.py").write_text(HANDLERS)
    known.secrets.add(TOKEN)
    return {"DATABASE_URL": database_url, "JOBS": "command_jobs", "API_TOKEN": TOKEN}


@pytest.mark.parametrize("over", ["a server", "the database"])
async def test_a_person_at_a_terminal_works_with_the_queue(orchestrator, env, over, wait_until):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        asked = {"ORCHESTRATOR_URL": run.url, "API_TOKEN": TOKEN} if over == "a server" else env

        async def command(*arguments, code=0):
            direct = () if over == "a server" else ("--direct",)
            done = await orchestrator(*arguments, *direct, env=asked)
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout

        made = json.loads(await command("jobs", "add", "orders.bill", '{"order": 7}', "--json"))

        async def failed():
            return json.loads(await command("jobs", "show", str(made["id"]), "--json"))["state"] == "failed"

        await wait_until(failed)
        listed = await command("jobs", "list", "--state", "failed")
        assert "orders.bill" in listed
        assert "customer" in listed
        assert all(len(line) <= 60 for line in listed.splitlines())
        shown = await command("jobs", "show", str(made["id"]))
        assert "raise KeyError" in shown
        assert '"order": 7' in shown
        assert "order.billed" in await command("jobs", "log", str(made["id"]))
        key = json.loads(await command("jobs", "failures", "--json"))["groups"][0]["key"]
        assert "KeyError" in await command("jobs", "failures")
        # Nobody is there to be asked.
        assert await command("jobs", "retry", "--failure", key, code=78) == ""
        assert "1 job retried." in await command("jobs", "retry", "--failure", key, "--yes")

        async def twice():
            job = json.loads(await command("jobs", "show", str(made["id"]), "--json"))
            return job["attempt"] == 2 and job["state"] == "failed"

        await wait_until(twice)
        assert "1 job discarded." in await command("jobs", "discard", "--state", "failed", "--yes")
        assert "No job." in await command("jobs", "list", "--state", "failed")

        assert "default is paused" in await command("jobs", "pause", "default")
        waiting = json.loads(await command("jobs", "add", "orders.read", "--json"))
        assert json.loads(await command("jobs", "show", str(waiting["id"]), "--json"))["state"] == "queued"
        assert f"#{waiting['id']} is cancelled" in await command("jobs", "cancel", str(waiting["id"]))
        assert "default is not paused" in await command("jobs", "resume", "default")
        again = json.loads(await command("jobs", "retry", str(waiting["id"]), "--json"))
        assert again[0]["state"] == "queued"

        schedules = await command("schedules", "list")
        assert "0 3 * * *" in schedules
        assert all(len(line) <= 60 for line in schedules.splitlines())
        assert "paused" in await command("schedules", "pause", "orders.bill")
        assert "*/5 * * * *" in await command("schedules", "set", "orders.bill", "--cron", "*/5 * * * *")
        await command("schedules", "set", "nightly", "--job", "orders.read", "--cron", "0 1 * * *")
        assert "is queued" in await command("schedules", "run", "nightly")
        assert ", on" in await command("schedules", "resume", "orders.bill")


async def test_refusals_say_what_is_taken_and_what_to_set(orchestrator, env):
    async with orchestrator.running("serve", env=env) as run:
        await run.phase("ready")
        url = {"ORCHESTRATOR_URL": run.url}
        refused = await orchestrator("jobs", "list", env=url)
        assert refused.returncode == 78
        assert "API_TOKEN" in refused.stderr
        unknown = await orchestrator("jobs", "add", "unheard.of", env=url | {"API_TOKEN": TOKEN})
        assert unknown.returncode == 1
        assert "orders.read" in unknown.stderr
    away = await orchestrator("jobs", "list", env=url)
    assert away.returncode == 69
    nothing = await orchestrator("jobs", "list", env={})
    assert nothing.returncode == 69
    assert "ORCHESTRATOR_URL" in nothing.stderr


async def test_without_a_server_a_change_is_in_the_audit_trail(orchestrator, env, admin, database_url):
    assert (await orchestrator("migrate", env=env)).returncode == 0
    made = await orchestrator("jobs", "add", "orders.read", "--json", env=env)
    assert made.returncode == 0, made.stderr
    job_id = json.loads(made.stdout)["id"]
    (row,) = await admin(database_url, "SELECT token, path, facts FROM orchestrator.api_changes")
    assert row["token"].endswith("(command)")
    assert (row["path"], json.loads(row["facts"])["job"]) == ("/api/jobs", job_id)
    assert "orders.read" in (await orchestrator("jobs", "list", env=env)).stdout
