"""`verify`: the database is what its files make, or each difference is named, with what the files say."""

import json
import secrets
import signal
from pathlib import Path

import pytest

BREAK = "\n--> statement-breakpoint\n"
WHEN = 1716000000000
RICH = (Path(__file__).parents[1] / "schema" / "rich.sql").read_text()


@pytest.fixture
def run(orchestrator, database_url, tmp_path):
    """`await run("verify", …)` on the folder `m`; JSON of stdout is in `.found`."""

    async def run(command: str, *arguments: str, folder: str = "m", url: str = database_url, **env: str):
        return await orchestrator(
            command, *arguments, env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(tmp_path / folder), **env}
        )

    return run


async def no_scratch_left(admin, url: str) -> bool:
    return not await admin(url, "SELECT datname FROM pg_database WHERE datname ~ '^orchestrator_scratch_'")


async def test_a_migrated_database_is_what_its_files_make(run, admin, database_url, tmp_path, write):
    write(tmp_path / "m", ("0000_rich", RICH), ("0001_more", "ALTER TABLE users ADD COLUMN more int;"))
    assert (await run("migrate")).returncode == 0
    done = await run("verify", "--json", "--privileges")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["equal"], found["differences"], found["ledger"], found["notes"]) == (True, [], [], [])
    assert found["objects_compared"] > 80
    told = await run("verify")
    assert (told.returncode, "The database is what the files make." in told.stdout) == (0, True)
    assert await no_scratch_left(admin, database_url)


async def test_drift_is_named_with_what_the_files_say_and_the_way_back(run, admin, database_url, tmp_path, write):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (id int DEFAULT 1, b text); CREATE INDEX a_b ON a (b);"))
    assert (await run("migrate")).returncode == 0
    await admin.script(
        database_url,
        "ALTER TABLE a ALTER COLUMN id SET DEFAULT 2; DROP INDEX a_b; CREATE SCHEMA other; CREATE TABLE other.t ();"
        "ALTER TABLE orchestrator.starts ADD COLUMN odd int",
    )
    done = await run("verify", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [(d["source"], d["state"], d["kind"], d["name"]) for d in found["differences"]] == [
        ("service", "unexpected", "column", "odd"),
        ("user", "unexpected", "schema", "other"),
        ("user", "changed", "column", "id"),
        ("user", "missing", "index", "public.a_b"),
    ]
    assert found["differences"][1]["contains"] == 1
    assert found["differences"][2]["changes"] == [{"fact": "default", "files": "1", "database": "2"}]
    assert found["differences"][2]["sql"] == ["ALTER TABLE public.a ALTER COLUMN id SET DEFAULT 1;"]
    told = await run("verify")
    assert told.returncode == 1
    assert "default: files 1    database 2" in told.stdout
    assert "4 differences." in told.stdout
    limited = await run("verify", "--json", "--schema", "public", "--schema", "other")
    assert [d["name"] for d in json.loads(limited.stdout)["differences"]] == ["other", "id", "public.a_b"]
    excluded = await run("verify", "--json", *(f"--exclude-schema={s}" for s in ("public", "other", "orchestrator")))
    assert (excluded.returncode, json.loads(excluded.stdout)["differences"]) == (0, [])


async def test_pending_edited_and_lost_files_are_differences_of_the_ledger_and_not_of_the_catalogue(
    run, admin, database_url, tmp_path, write
):
    write(
        tmp_path / "m",
        ("0000_a", "CREATE TABLE a (id int);"),
        ("0001_b", "CREATE TABLE b (id int);"),
        ("0002_c", "CREATE TABLE c (id int);"),
    )
    assert (await run("migrate")).returncode == 0
    write(
        tmp_path / "m2",
        ("0000_a", "CREATE TABLE a (id int); -- said better"),
        ("0001_b", "CREATE TABLE b (id bigint);"),
        ("0002_c", "CREATE TABLE c (id int);"),
        ("0003_d", "CREATE TABLE d (id int);"),
    )
    done = await run("verify", "--json", folder="m2")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(one["kind"], one["name"]) for one in found["ledger"]] == [("pending", "0003_d"), ("edited", "0001_b")]
    assert [(d["kind"], d["name"], d["table"]) for d in found["differences"]] == [("column", "id", "public.b")]
    cosmetic, real = found["edits"]
    assert (cosmetic["name"], cosmetic["cosmetic"], real["cosmetic"]) == ("0000_a", True, False)
    assert "-CREATE TABLE b (id int);\n+CREATE TABLE b (id bigint);" in real["diff"]
    told = await run("verify", folder="m2")
    assert "+CREATE TABLE b (id bigint);" in told.stdout


async def test_a_role_that_can_only_read_and_make_databases_can_verify(
    run, admin, database_url, tmp_path, server, write
):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (id serial PRIMARY KEY);"))
    assert (await run("migrate")).returncode == 0
    role = f"reader_{secrets.token_hex(4)}"
    await admin.script(
        database_url,
        f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{server.password}'; GRANT pg_read_all_data TO {role}",
    )
    try:
        done = await run("verify", "--json", url=database_url.replace(f"//{server.user}:", f"//{role}:"))
        assert done.returncode == 0, done.stdout + done.stderr
        await admin.script(database_url, f"ALTER ROLE {role} NOCREATEDB")
        refused = await run("verify", url=database_url.replace(f"//{server.user}:", f"//{role}:"))
        assert refused.returncode == 78
        assert "CREATEDB" in refused.stderr
        elsewhere = await run(
            "verify", "--on", database_url, url=database_url.replace(f"//{server.user}:", f"//{role}:")
        )
        assert elsewhere.returncode == 0, elsewhere.stderr
    finally:
        await admin.script(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_files_that_do_not_run_on_an_empty_database_fail_as_a_start_would(
    run, admin, database_url, tmp_path, write
):
    write(tmp_path / "m", ("0000_a", "CREATE TABLE IF NOT EXISTS a (id int);"), ("0001_b", "SELECT 1;"))
    assert (await run("migrate")).returncode == 0
    write(tmp_path / "m", ("0000_a", "CREATE TABLE a (id nothing);"), ("0001_b", "SELECT 1;"))
    done = await run("verify")
    assert done.returncode == 70
    assert "0000_a.sql:1:20: type" in done.named("service.failed")[0]["error"]
    assert await no_scratch_left(admin, database_url)


async def test_sigterm_in_mid_work_drops_the_scratch_database(
    orchestrator, admin, database_url, tmp_path, write, wait_until
):
    folder = await slow_folder(orchestrator, admin, database_url, tmp_path, write)
    async with orchestrator.running(
        "verify", env={"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    ) as process:
        await asleep(admin, database_url, wait_until)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 143
    assert await no_scratch_left(admin, database_url)


async def test_what_a_kill_leaves_behind_is_dropped_by_the_next_run(
    orchestrator, admin, database_url, tmp_path, write, wait_until
):
    folder = await slow_folder(orchestrator, admin, database_url, tmp_path, write)
    env = {"DATABASE_URL": database_url, "MIGRATIONS_DIR": str(folder)}
    async with orchestrator.running("verify", env=env) as process:
        left = await asleep(admin, database_url, wait_until)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert left in await scratches(admin, database_url)
    # Its backend sleeps on until it looks for its client (client_connection_check_interval).
    await wait_until(lambda: nobody_in(admin, database_url, left), what="the killed process's session has ended")
    (tmp_path / "slow" / "0000_slow.sql").write_text("SELECT 1;")
    assert (await orchestrator("verify", env=env)).returncode in {0, 1}
    assert await no_scratch_left(admin, database_url)


async def slow_folder(orchestrator, admin, url: str, tmp_path: Path, write) -> Path:
    """A folder whose file, once applied, takes a minute to replay."""
    folder = write(tmp_path / "slow", ("0000_slow", "SELECT 1;"))
    done = await orchestrator("migrate", env={"DATABASE_URL": url, "MIGRATIONS_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
    (folder / "0000_slow.sql").write_text("SELECT pg_sleep(60);")
    return folder


async def scratches(admin, url: str) -> list[str]:
    rows = await admin(url, "SELECT datname FROM pg_database WHERE datname ~ '^orchestrator_scratch_'")
    return [row[0] for row in rows]


async def asleep(admin, url: str, wait_until) -> str:
    """Wait until a replay sleeps in a scratch database; its name."""
    return await wait_until(
        lambda: admin.value(
            url,
            "SELECT datname FROM pg_stat_activity WHERE datname ~ '^orchestrator_scratch_' AND wait_event = 'PgSleep'",
        ),
        timeout_s=30,
        what="a replay sleeps",
    )


async def nobody_in(admin, url: str, name: str) -> bool:
    return not await admin(url, "SELECT FROM pg_stat_activity WHERE datname = $1", name)
