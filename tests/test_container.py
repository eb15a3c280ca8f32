"""The image and the Compose stack as they are shipped, on a real engine: no file of theirs is changed for the tests.

Each stack is a Compose project of its own and goes away with its volumes. What differs from a user's start is set in
the environment, as a user would: the migrations, the password, and ports that the engine chooses.
"""

import base64
import json
import os
import re
import secrets
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

ROOT = Path(__file__).parent.parent
STACK = ROOT / "compose" / "compose.yaml"
DATABASE_ALONE = ROOT / "compose" / "compose.dev.yaml"
FILES = {
    "0000_people": "CREATE TABLE people (id serial PRIMARY KEY, name text);",
    "0001_vectors": (
        "CREATE TABLE vectors (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), v vector(3));\n"
        "--> statement-breakpoint\n"
        "CREATE INDEX ON vectors USING hnsw (v vector_l2_ops);"
    ),
    # Long enough for the replicas that did not get the lock to be seen waiting for it.
    "0002_slow": "SELECT pg_sleep(1); INSERT INTO people (name) VALUES ('migrated once');",
}
BROKEN_FILES = {
    "0000_people": FILES["0000_people"],
    "0001_broken": "-- a typing error\nCREATE TABLE pets (id int);\nALTER TABLE poeple ADD COLUMN pet int;",
}
TEN_SECONDS = 10.0  # after which `docker stop` kills, where nobody sets a stop_grace_period

pytestmark = pytest.mark.container


def run(
    *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env, timeout=timeout_s, text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )


def docker(*arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 120) -> str:
    """What `docker …` printed on stdout; it must succeed."""
    done = run("docker", *arguments, env=env, timeout_s=timeout_s)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def inspect(container: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(docker("inspect", container))
    return found[0]


def write_drizzle_folder(folder: Path, files: Mapping[str, str]) -> Path:
    """A v0 folder, as drizzle-kit generates it, that the image's user can read."""
    (folder / "meta").mkdir(parents=True)
    entries = []
    for idx, (tag, sql) in enumerate(files.items()):
        (folder / f"{tag}.sql").write_text(sql)
        entries.append({"idx": idx, "version": "7", "when": 1700000000000 + idx, "tag": tag, "breakpoints": True})
    (folder / "meta" / "_journal.json").write_text(
        json.dumps({"version": "7", "dialect": "postgresql", "entries": entries})
    )
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@dataclass(frozen=True, slots=True)
class Stack:
    """A Compose project: the shipped file, and the environment that it is started in."""

    file: Path
    project: str
    env: Mapping[str, str]
    known: Any

    def secrets(self) -> dict[str, str]:
        """The secrets by their files' names, as the stack has made them; no output of any test may hold one."""
        found = {}
        for service in ("vectorchord", "job-server"):
            script = "cd /run/secrets 2>/dev/null && for f in *; do echo $f $(base64 -w0 $f); done"
            for line in self.try_compose("exec", "-T", service, "sh", "-c", script).stdout.splitlines():
                name, encoded = line.removeprefix("\x1b[2K").split()
                found[name] = base64.b64decode(encoded).decode()
        self.known.secrets.update(value for name, value in found.items() if not name.endswith("_url"))
        return found

    def try_compose(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        # No .env of the person who runs the tests.
        start = (
            "docker",
            "compose",
            "--env-file",
            os.devnull,
            "--file",
            str(self.file),
            "--project-name",
            self.project,
        )
        done = run(*start, *arguments, env=self.env, timeout_s=timeout_s)
        self.known.printed.append((f"docker compose {' '.join(arguments)}", done.stdout + done.stderr))
        return done

    def compose(self, *arguments: str, timeout_s: float = 120) -> str:
        done = self.try_compose(*arguments, timeout_s=timeout_s)
        told = f"{done.stderr}\n{self.try_compose('logs', '--tail', '20').stdout}" if done.returncode else ""
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}: exit {done.returncode}\n{told}"
        return done.stdout

    def containers(self, service: str) -> list[dict[str, Any]]:
        return [inspect(name) for name in self.compose("ps", "--all", "--quiet", service).split()]

    def container(self, service: str) -> dict[str, Any]:
        (only,) = self.containers(service)
        return only

    def log(self, service: str) -> list[dict[str, Any]]:
        """The service's log, every line of which must be one JSON object."""
        lines = self.compose("logs", "--no-log-prefix", service).splitlines()
        # Compose of 2024 clears the terminal's line before each, also where there is no terminal.
        return [json.loads(line.removeprefix("\x1b[2K")) for line in lines]

    def sql(self, query: str) -> list[str]:
        """Rows, as psql in the database's container prints them."""
        user, database = self.env.get("POSTGRES_USER", "postgres"), self.env.get("POSTGRES_DB", "streamystats")
        return self.compose(
            "exec", "-T", "vectorchord", "psql", "-qtA", "-U", user, "-d", database, "-c", query
        ).splitlines()

    def url(self, service: str, port: int, *, index: int = 1) -> str:
        return "http://" + self.compose("port", "--index", str(index), service, str(port)).strip().splitlines()[0]


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where no engine answers; CI is to have one."""
    try:
        answers = all(
            run("docker", *words, timeout_s=20).returncode == 0 for words in (["info"], ["compose", "version"])
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        answers = False
    if not answers:
        told = "no Docker engine with Compose v2 answers"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(told)


@pytest.fixture(scope="module")
def image(engine: None) -> Iterator[str]:
    """The image, built from nothing but this tree by the shipped compose file; its tag is this session's own."""
    tag = f"orchestrator:pytest-{secrets.token_hex(4)}"
    env = {**os.environ, "ORCHESTRATOR_IMAGE": tag}
    docker("compose", "--env-file", os.devnull, "--file", str(STACK), "build", "job-server", env=env, timeout_s=600)
    yield tag
    run("docker", "image", "rm", "--force", tag)


@contextmanager
def stacks(folder: Path, known: Any, image: str) -> Iterator[Callable[..., Stack]]:
    """`make(file, files=…, **environment)`: a stack not yet up; taken down, volumes and all, at the end."""
    made: list[Stack] = []

    def make(file: Path = STACK, *, files: Mapping[str, str] | None = None, **environment: str) -> Stack:
        # Nothing of the machine's own environment may change what is tested, but how to reach the engine.
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env |= {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
        env |= {"ORCHESTRATOR_IMAGE": image, "WEB_PORT": "0", "JOB_SERVER_PORT": "0", "POSTGRES_PORT": "0"}
        if files is not None:
            env |= {"MIGRATIONS_DIR": str(write_drizzle_folder(folder / "drizzle", files))}
        stack = Stack(file, f"pytest-{secrets.token_hex(4)}", env | environment, known)
        made.append(stack)
        return stack

    try:
        yield make
    finally:
        for stack in made:
            stack.try_compose("down", "--volumes", "--timeout", "5")


@pytest.fixture
def make_stack(image: str, known: Any, tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    with stacks(tmp_path, known, image) as make:
        yield make


@pytest.fixture(scope="module")
def healthy(image: str, known: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that came up from nothing, for tests that only look."""
    with stacks(tmp_path_factory.mktemp("healthy"), known, image) as make:
        stack = make(files=FILES)
        stack.compose("up", "--detach", "--wait", "--wait-timeout", "100")
        assert len(stack.secrets()) == 7
        yield stack


# ------------------------------------------------------------------------------------------------------------ the image


def test_the_image_runs_as_a_numeric_user_who_is_not_root_and_stops_on_sigterm(image):
    config = json.loads(docker("image", "inspect", image))[0]["Config"]

    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", config["User"])
    assert config["Entrypoint"] == ["orchestrator"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "orchestrator", "healthcheck"]
    assert list(config["ExposedPorts"]) == ["3005/tcp"]


def test_the_image_says_which_version_it_holds(image):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = json.loads(docker("image", "inspect", image))[0]["Config"]["Labels"]

    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def test_the_image_holds_pg_dump_17_or_newer_and_nothing_that_compiles_or_installs(image):
    script = """
        for tool in gcc g++ cc c++ clang make ld as perl-config; do command -v $tool; done
        ls -d /opt/venv/lib/python3*/site-packages/pip /opt/venv/lib/python3*/site-packages/hatchling 2>/dev/null
        pg_dump --version && pg_restore --version && psql --version
    """
    told = docker("run", "--rm", "--read-only", "--network", "none", "--entrypoint", "sh", image, "-c", script)

    assert [line.split()[0] for line in told.splitlines()] == ["pg_dump", "pg_restore", "psql"]
    assert all(int(line.split()[2].split(".")[0]) >= 17 for line in told.splitlines())


def test_every_module_in_the_image_is_compiled(image):
    script = """
import pathlib, importlib.util, orchestrator
files = list(pathlib.Path(orchestrator.__file__).parent.rglob("*.py"))
print(len(files), [str(f) for f in files if not pathlib.Path(importlib.util.cache_from_source(str(f))).exists()])
"""
    told = docker("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", script)

    count, missing = told.split(maxsplit=1)
    assert int(count) > 5
    assert missing.strip() == "[]"


def test_an_image_of_one_s_own_stands_on_it_and_brings_its_handlers(image):
    """README's Dockerfile, which tests/example_project holds."""
    own = f"{image}-own"
    docker("build", "--tag", own, "--build-arg", f"BASE={image}", str(ROOT / "tests" / "example_project"))
    try:
        script = "from orchestrator.jobs.registry import load; print(*sorted(load(['my_app.jobs']).handlers))"
        told = docker("run", "--rm", "--read-only", "--network", "none", "--entrypoint", "python", own, "-c", script)
        config = json.loads(docker("image", "inspect", own))[0]["Config"]
    finally:
        run("docker", "image", "rm", "--force", own)

    assert {"order.place", "order.confirm", "orders.forget"} <= set(told.split())
    assert (config["Entrypoint"], config["User"]) == (["orchestrator"], "10001:10001")


def test_without_a_database_url_the_container_ends_with_78_and_says_what_is_missing(image):
    done = run("docker", "run", "--rm", "--read-only", "--network", "none", image)

    assert done.returncode == 78
    assert "DATABASE_URL" in done.stderr


def test_as_process_1_it_stops_at_once_while_it_waits_for_a_database(image, known):
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    name = docker("run", "--detach", "--network", "none", "--env", f"DATABASE_URL={url}", image).strip()
    try:
        with subprocess.Popen(
            ["docker", "logs", "--follow", name], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        ) as logs:
            assert logs.stdout is not None
            # Ends at the latest when the container does, and the container ends with the test.
            assert any('"database.connect_failed"' in line for line in logs.stdout)
            began = time.monotonic()
            docker("stop", name)
            duration_s = time.monotonic() - began
        state = inspect(name)["State"]
    finally:
        run("docker", "rm", "--force", "--volumes", name)

    assert state["ExitCode"] == 0
    assert duration_s < TEN_SECONDS / 2


# ------------------------------------------------------------------------------------------------------------ the stack


def test_from_nothing_every_service_comes_up_healthy(healthy):
    services = ("vectorchord", "job-server", "web")

    assert {name: healthy.container(name)["State"]["Health"]["Status"] for name in services} == dict.fromkeys(
        services, "healthy"
    )


async def test_the_published_port_answers_health_with_200_and_the_api_asks_for_the_token(healthy):
    token = {"Authorization": f"Bearer {healthy.secrets()['api_token']}"}
    url = healthy.url("job-server", 3005)
    async with aiohttp.ClientSession() as http:
        async with http.get(url + "/health", headers=token) as response:
            body = await response.json()
        async with http.get(url + "/api/jobs") as stranger, http.get(url + "/api/jobs", headers=token) as friend:
            assert (stranger.status, friend.status) == (401, 200)

    assert response.status == 200
    assert (body["status"], body["phase"]) == ("ok", "ready")
    assert body["migrations"]["applied"] == body["migrations"]["total"] >= len(FILES)


def test_the_log_of_job_server_is_json_lines_that_tell_the_start(healthy):
    log = healthy.log("job-server")

    assert all({"timestamp", "level", "event", "logger", "version", "phase"} <= line.keys() for line in log)
    phases = ["connecting", "locking", "extensions", "migrating", "launching", "ready"]
    assert [line["phase"] for line in log if line["event"] == "phase.entered"] == phases
    events = [line["event"] for line in log]
    told = ["http.listening", "database.connected", "lock.acquired", "migrations.planned", "migration.applied"]
    told += ["migrations.completed", "service.ready"]
    assert [events.index(event) for event in told] == sorted(events.index(event) for event in told)
    applied = [line["migration"] for line in log if line["event"] == "migration.applied"]
    assert applied[-len(FILES) :] == list(FILES)


def test_commands_run_beside_the_service_and_in_a_container_of_their_own(healthy):
    assert "applied" in healthy.compose("exec", "-T", "job-server", "orchestrator", "status")
    assert "applied" in healthy.compose("run", "--rm", "-T", "job-server", "status")


def test_the_extensions_are_there_and_public_holds_only_what_the_files_put_there(healthy):
    assert healthy.sql("SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1") == [
        "uuid-ossp",
        "vector",
    ]
    assert healthy.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1") == [
        "people",
        "vectors",
    ]
    assert healthy.sql("SELECT count(*) FROM drizzle.__drizzle_migrations") == [str(len(FILES))]


async def test_web_starts_after_job_server_is_healthy_and_shows_that_it_was(healthy):
    ready = next(line for line in healthy.log("job-server") if line["event"] == "service.ready")
    async with aiohttp.ClientSession() as http, http.get(healthy.url("web", 3000)) as response:
        page = await response.json()

    # Both by the engine's clock, in UTC and to the second.
    assert healthy.container("web")["State"]["StartedAt"][:19] >= ready["timestamp"][:19]
    assert page["job_server"]["http"] == 200
    assert page["job_server"]["health"]["status"] == "ok"


def test_job_server_runs_unprivileged_on_a_root_that_cannot_be_written(healthy):
    script = """
import os, pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
def writable(path):
    try:
        pathlib.Path(path, "probe").touch()
    except OSError:
        return False
    return True
print(os.getuid() != 0, int(status["CapEff"], 16), int(status["CapBnd"], 16), int(status["NoNewPrivs"]))
print([path for path in ("/", "/opt/venv", "/migrations", "/run", "/var", "/tmp", "/backups") if writable(path)])
"""
    told = healthy.compose("exec", "-T", "job-server", "python", "-c", script).splitlines()

    assert told == ["True 0 0 1", "['/tmp', '/backups']"]


def test_a_backup_of_the_stack_is_made_in_its_volume_and_proven_by_a_restore(healthy):
    told = healthy.compose("exec", "-T", "job-server", "orchestrator", "backup", "--test", "--json")
    made = json.loads(told)

    assert made["test"]["differences"] == []
    assert made["backup"]["path"].startswith("/backups/streamystats-")
    assert made["backup"]["tables"]["public.people"] == 1
    assert made["backup"]["pg_dump_version"].startswith("17.")
    listed = json.loads(healthy.compose("exec", "-T", "job-server", "orchestrator", "backup", "--list", "--json"))
    assert made["backup"]["path"] in [one["path"] for one in listed["backups"]]
    assert made["test"]["isolated"] is True
    assert len(made["backup"]["signature"]) == 64
    arguments = healthy.compose("exec", "-T", "job-server", "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert not [value for value in healthy.secrets().values() if value in arguments]


def test_no_secret_is_in_a_log_an_argument_or_an_environment_that_the_engine_shows(healthy):
    values = healthy.secrets()
    for service in ("secrets", "vectorchord", "roles", "job-server", "web"):
        shown = json.dumps(healthy.container(service)) + healthy.compose("logs", service)
        assert not [name for name, value in values.items() if value in shown]
    script = "cat /proc/1/cmdline /proc/1/environ; ls /run/secrets >&2"
    seen = run(*("docker", "exec", healthy.container("job-server")["Id"], "sh", "-c", script))
    assert "DATABASE_URL_FILE=/run/secrets/database_url" in seen.stdout
    assert not [name for name, value in values.items() if value in seen.stdout]
    # The superuser's password is in the database's containers alone.
    assert seen.stderr.split() == ["api_token", "backup_key", "database_url", "migration_database_url"]


def test_the_stack_uses_two_roles_and_none_of_them_is_a_superuser(healthy):
    sessions = "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name ~ '^orchestrator'"
    assert healthy.sql(sessions) == ["app"]
    roles = "SELECT rolname, rolsuper FROM pg_roles WHERE rolname ~ '^app' ORDER BY 1"
    assert healthy.sql(roles) == ["app|f", "app_owner|f"]
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname IN ('public', 'drizzle', 'orchestrator')"
    assert healthy.sql(owners) == ["app_owner"]
    may = "SELECT {}('app', 'public.people', '{}')"
    assert healthy.sql(may.format("has_table_privilege", "SELECT, INSERT, UPDATE, DELETE")) == ["t"]
    assert healthy.sql("SELECT has_schema_privilege('app', 'public', 'CREATE')") == ["f"]


def test_every_service_is_bounded_and_can_do_no_more_than_it_needs(healthy):
    for service in ("secrets", "vectorchord", "roles", "job-server", "web"):
        host = healthy.container(service)["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert 0 < host["Memory"] <= 2 << 30, service
        assert 0 < host["PidsLimit"] <= 512, service
        if service != "vectorchord":
            assert not host["CapAdd"], service


def test_the_image_holds_no_program_that_takes_rights_and_a_list_of_what_is_in_it(image):
    script = "find / -xdev -type f -perm /6000 2>/dev/null; cat /usr/share/sbom.cdx.json"
    told = docker("run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "sh", image, "-c", script)
    bom = json.loads(told)
    names = {one["name"] for one in bom["components"]}

    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert {"orchestrator", "asyncpg", "aiohttp", "libpq5", "libc6", "postgresql-client"} <= names
    assert all(one["version"] and one["purl"].startswith("pkg:") for one in bom["components"])


def test_logs_rotate_and_a_stop_is_given_more_time_than_it_may_take(healthy):
    for service in ("vectorchord", "job-server", "web"):
        logs = healthy.container(service)["HostConfig"]["LogConfig"]
        assert (logs["Type"], set(logs["Config"])) == ("json-file", {"max-size", "max-file"})
    told = json.loads(healthy.compose("exec", "-T", "job-server", "orchestrator", "config", "--json"))["settings"]
    value = {one["variable"]: one["value"] for one in told}
    assert value["SHUTDOWN_TIMEOUT"] == "15s"
    assert healthy.container("job-server")["Config"]["StopTimeout"] > 15


def test_stop_is_clean_and_the_next_start_has_nothing_to_migrate(make_stack):
    stack = make_stack(files={"0000_people": FILES["0000_people"]}, POSTGRES_USER="owner", POSTGRES_DB="people")
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "100")
    began = time.monotonic()
    stack.compose("stop", "web", "job-server")
    duration_s = time.monotonic() - began
    states = {service: stack.container(service)["State"] for service in ("job-server", "web")}
    first = stack.log("job-server")
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "100")
    second = stack.log("job-server")[len(first) :]
    stack.compose("stop")

    assert {service: state["ExitCode"] for service, state in states.items()} == {"job-server": 0, "web": 0}
    assert duration_s < TEN_SECONDS / 2
    assert [line["event"] for line in first][-1] == "service.stopped"
    assert "service.ready" in [line["event"] for line in second]
    assert "migration.applied" not in [line["event"] for line in second]
    assert stack.container("vectorchord")["State"]["ExitCode"] == 0
    # With the containers gone, data and secrets fit one another still.
    stack.compose("down", "--timeout", "5")
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "100")
    assert "service.ready" in [line["event"] for line in stack.log("job-server")]


def test_a_migration_that_fails_leaves_web_unstarted_and_the_log_says_why(make_stack):
    # As it is shipped it is started again after FAILED_HOLD, for ever: no state would stay to look at.
    stack = make_stack(files=BROKEN_FILES, RESTART_POLICY="no", FAILED_HOLD="2s")
    up = stack.try_compose("up", "--detach", "--wait", "--wait-timeout", "100")
    state = stack.container("job-server")["State"]
    log = stack.log("job-server")

    assert up.returncode != 0
    assert "dependency failed to start" in up.stderr
    assert state["ExitCode"] == 70
    assert stack.container("web")["State"]["Status"] == "created"
    failed = next(line for line in log if line["event"] == "service.failed")
    assert (failed["level"], failed["exits_in_s"]) == ("error", 2)
    assert (failed["sqlstate"], failed["line"]) == ("42P01", 3)
    assert failed["file"] == "/migrations/0001_broken.sql"
    assert '"poeple" does not exist' in failed["error"]
    assert failed["restart_helps"] is False
    assert not any(line["event"] == "service.ready" for line in log)
    # The file before it stays, of the broken one nothing does.
    assert stack.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == ["people"]
    assert stack.sql("SELECT count(*) FROM drizzle.__drizzle_migrations") == ["1"]


async def test_three_replicas_on_an_empty_database_migrate_once_and_all_get_ready(make_stack):
    # The password as StreamyStats hands it on, in the environment; and one that breaks whoever pastes it into a URL.
    stack = make_stack(files=FILES, POSTGRES_PASSWORD="p@ss/w#rd%2F$x ${HOME} 'q\"" + secrets.token_hex(4))
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "100", "--scale", "job-server=3")
    logs = [
        [json.loads(line) for line in run("docker", "logs", one["Id"]).stderr.splitlines()]
        for one in stack.containers("job-server")
    ]

    assert len(logs) == 3
    applied = [line["migration"] for log in logs for line in log if line["event"] == "migration.applied"]
    assert sorted(name for name in applied if name in FILES) == sorted(FILES)
    assert len(applied) == len(set(applied))
    assert [sum(line["event"] == "service.ready" for line in log) for log in logs] == [1, 1, 1]
    assert [one["RestartCount"] for one in stack.containers("job-server")] == [0, 0, 0]
    assert stack.sql("SELECT count(*), count(DISTINCT hash) FROM drizzle.__drizzle_migrations") == ["3|3"]
    assert stack.sql("SELECT name FROM people") == ["migrated once"]
    async with aiohttp.ClientSession() as http:
        for index in (1, 2, 3):
            async with http.get(stack.url("job-server", 3005, index=index) + "/health") as response:
                assert response.status == 200


async def test_the_database_alone_takes_a_login_from_this_machine_with_its_password(make_stack, known):
    password = "p@ss 'w" + secrets.token_hex(4)
    known.secrets.add(password)
    stack = make_stack(DATABASE_ALONE, POSTGRES_PASSWORD=password)
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "100")
    host, port = stack.url("vectorchord", 5432).removeprefix("http://").split(":")
    login: dict[str, Any] = {"host": host, "port": int(port), "user": "postgres", "database": "streamystats"}

    assert host == "127.0.0.1"
    connection = await asyncpg.connect(**login, password=password)
    try:
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(**login, password="not the password")
