"""What is missing on this machine (a file, a user, a right) is told at once with its path, and not waited for."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs the command as another user")


# The interpreter may be where nobody else may read: everything is loaded before the user is changed.
AS_ANOTHER = """
import importlib, os, pkgutil, sys
import encodings.idna, encodings.utf_16_be, getpass, stringprep, tenacity, traceback, unicodedata
import orchestrator
for found in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if found.name.startswith(("orchestrator.database", "orchestrator.commands.", "orchestrator.migrator")):
        importlib.import_module(found.name)
from orchestrator.cli import main
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
main(sys.argv[1:])
"""


async def run(*arguments, env, cwd, as_another=False):
    start = ["-c", AS_ANOTHER] if as_another else ["-m", "orchestrator"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *start, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LOG_FORMAT": "json", "DB_WAIT_TIMEOUT": "10", **env},
        cwd=cwd,
    )
    async with asyncio.timeout(40):
        _, err = await process.communicate()
    said = err.decode()
    assert "Traceback" not in said, said
    return process.returncode, [json.loads(line) for line in said.splitlines()]


@pytest.fixture
def certificates(tmp_path):
    """Two pairs of a certificate and its key."""
    for name in ("one", "two"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.crt")]
        subprocess.run([*command, *files], check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize("command", ["wait", "status", "serve"])
async def test_a_key_that_belongs_to_another_certificate_is_told_with_both_paths(command, database_url, certificates):
    crt, key = certificates / "one.crt", certificates / "two.key"
    url = f"{database_url}?sslmode=require&sslcert={crt}&sslkey={key}"
    code, events = await run(command, env={"DATABASE_URL": url, "PORT": "0"}, cwd=certificates)
    assert code == 78, events
    assert str(crt) in events[-1]["error"]
    assert str(key) in events[-1]["error"]


@pytest.mark.parametrize("variable", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
async def test_a_file_of_tls_that_is_missing_is_told_with_its_path(variable, database_url, certificates):
    files = {"sslcert": certificates / "one.crt", "sslkey": certificates / "one.key", variable: "/no/such/file"}
    mode = "verify-full" if variable in {"sslrootcert", "sslcrl"} else "require"
    if variable == "sslcrl":
        files["sslrootcert"] = certificates / "one.crt"
    query = "&".join(f"{name}={path}" for name, path in files.items())
    code, events = await run("wait", env={"DATABASE_URL": f"{database_url}?sslmode={mode}&{query}"}, cwd=certificates)
    assert code == 78, events
    assert "/no/such/file" in events[-1]["error"]


@needs_root
async def test_a_key_that_this_user_may_not_read_is_told_with_its_path(database_url, certificates):
    for directory in (certificates, *certificates.parents[:3]):
        directory.chmod(0o755)
    key = certificates / "one.key"
    key.chmod(0o600)
    url = f"{database_url}?sslmode=require&sslcert={certificates / 'one.crt'}&sslkey={key}"
    code, events = await run("wait", env={"DATABASE_URL": url, "HOME": "/"}, cwd="/", as_another=True)
    assert code == 78, events
    assert f"{key}: Permission denied" in events[-1]["error"]


@needs_root
async def test_the_home_of_another_user_that_holds_a_password_file_is_told_with_its_path(database_url, tmp_path):
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / ".pgpass").write_text("*:*:*:*:unused-password\n")
    without = database_url.replace(":" + database_url.split("://")[1].split("@")[0].partition(":")[2], "", 1)
    code, events = await run("wait", env={"DATABASE_URL": without, "HOME": str(home)}, cwd="/", as_another=True)
    assert code == 78, events
    assert str(home) in events[-1]["error"]


@needs_root
async def test_a_home_that_may_not_be_entered_is_told_with_its_path(database_url, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    env = {"DATABASE_URL": database_url, "HOME": str(home)}
    code, events = await run("wait", env=env, cwd="/", as_another=True)
    assert code == 78, events
    assert str(home) in events[-1]["error"]
    assert "HOME" in events[-1]["remedy"]


@needs_root
async def test_a_user_id_without_a_name_needs_a_user_in_the_url_and_says_so(database_url):
    place = database_url.rpartition("@")[2]
    env = {
        "DATABASE_URL": f"postgresql://{place}",
        "HOME": "/nonexistent",
    }
    code, events = await run("wait", env=env, cwd="/", as_another=True)
    assert code == 78, events
    assert "12345" in events[-1]["error"]
    assert "PGUSER" in events[-1]["remedy"]
    code, events = await run(
        "wait", env={"DATABASE_URL": database_url, "HOME": "/nonexistent"}, cwd="/", as_another=True
    )
    assert code == 0, events


async def test_a_folder_that_is_unmounted_while_the_database_is_waited_for_is_told_with_its_path(
    orchestrator, database_url, tcp_proxy, write, tmp_path
):
    folder = write(tmp_path / "drizzle", ("0000_one", "CREATE TABLE one (id integer PRIMARY KEY)"))
    env = {"DATABASE_URL": tcp_proxy.dsn(database_url), "MIGRATIONS_DIR": str(folder)}
    await tcp_proxy.refuse()
    for command in ("serve", "migrate"):
        write(folder, ("0000_one", "CREATE TABLE one (id integer PRIMARY KEY)"))
        async with orchestrator.running(command, env=env) as run:
            await run.event("database.connect_failed", cause="refused")
            shutil.rmtree(folder)
            await tcp_proxy.accept()
            assert await run.wait() == 70, run.output
            assert str(folder) in run.events[-1]["error"]
            assert len([event for event in run.events if event["event"] == "database.lost"]) == 0
        await tcp_proxy.refuse()
