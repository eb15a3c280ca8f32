"""README is true where a machine can tell: every command in it is run, in the order in which a reader meets it.

Each line of a `sh` block has a rule below; one without is a failure, so that no command stands there untested. They run
in a copy of tests/example_project, on databases of their own. What differs from a reader's run is in `Tour`: ports and
the database's address, the placeholders (`/path/to/orchestrator`, a backup's name), and `--yes` where README says that
the command asks.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from orchestrator.cli import COMMANDS, parser
from orchestrator.variables import VARIABLES, markdown_table

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "tests" / "example_project"
DOCS = ROOT / "orchestrator" / "docs"
# README first, then the pages of the manual; a reader may begin with any of them.
PAGES = {page: page.read_text() for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
README = "\n".join(PAGES.values())
WIDTH = 120
TOKEN = "a-long-random-text"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$")


def blocks(language: str) -> list[tuple[str, str]]:
    """`(heading of the part, text)` of each block in this language, in order."""
    found = []
    for match in _BLOCK.finditer(README):
        if match[1] == language:
            before = re.sub(r"^```.*?^```$", "", README[: match.start()], flags=re.MULTILINE | re.DOTALL)
            headings = [heading[2] for line in before.splitlines() if (heading := _HEADING.match(line))]
            found.append((headings[-1], match[2]))
    return found


def command_lines(block: str) -> list[str]:
    """The commands of a block: continued lines joined, comments and the output that is shown left out."""
    lines = [re.sub(r"\s+#.*$|^#.*$", "", line) for line in block.replace("\\\n", " ").splitlines()]
    if any(line.startswith("$ ") for line in lines):
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [" ".join(line.split()) if "'" not in line else line.strip() for line in lines if line.strip()]


def part(heading: str) -> list[str]:
    """All commands under a heading."""
    return [line for under, block in blocks("sh") if under == heading for line in command_lines(block)]


# ------------------------------------------------------------------------------------------------------------- the text


def test_the_table_of_variables_is_the_codes_own():
    between = README.split("config --markdown` -->\n")[1].split("<!-- end of variables -->")[0]
    assert between.strip() == markdown_table().strip()


def test_no_variable_is_named_that_does_not_exist():
    known = (
        {v.name for v in VARIABLES}
        | {f"{v.name}_FILE" for v in VARIABLES}
        | {"JOBS_TEST_OUTAGE_S", "CHAOS_SEED", "CHAOS_SECONDS", "FAILOVER_ROUNDS"}
    )
    known |= {"POSTGRES_PASSWORD", "ON_ERROR_STOP", "IS_TEMPLATE", "TEST_DATABASE_URL", "CRASH_KILLS", "FUZZ_EXAMPLES"}
    known |= {"ORCHESTRATOR_IMAGE", "DATABASE_MEMORY", "IMAGE_SIZE", "XDG_DATA_HOME"}
    named = set(re.findall(r"\b(?:[A-Z]+_[A-Z_]*[A-Z]|API_TOKEN|JOBS|SCHEMA)\b", README))
    assert named <= known


# What a command cannot be parsed without.
_NEEDED = {
    "new": ["NAME"],
    "completion": ["bash"],
    "repair": ["upgrade"],
    "restore": ["FILE"],
    "notify": ["--test"],
    "jobs": ["list"],
    "schedules": ["list"],
}


def test_the_table_of_commands_is_all_of_them_and_each_example_is_one_that_parses():
    rows = re.findall(r"^\| `orchestrator (\w+)` \|.*\| `orchestrator (.+)` \|$", README, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(command.name for command in COMMANDS)
    assert [example.split()[0] for _, example in rows] == [name for name, _ in rows]
    without_json = README.split("All but ")[1].split(" take `--json`")[0]
    for name, _ in rows:
        words = [name, *_NEEDED.get(name, []), "--json"]
        if f"`{name}`" not in without_json:
            assert parser(name).parse_args(words).json is True


def test_every_command_that_the_text_names_is_one_that_parses():
    named = re.findall(r"`(?:[A-Z_]+=\S+ )*orchestrator ([a-z][^`]*)`", README)
    assert len(named) > len(COMMANDS)
    for text in named:
        words = shlex.split(text.replace("…", ""))
        if words[0] == "healthcheck":
            assert words[1:] in ([], ["--live"])
        else:
            parser(words[0]).parse_args(words if words[1:] else [*words, *_NEEDED.get(words[0], [])])


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        anchors = {
            re.sub(r"[^\w\- ]", "", heading[2].lower()).replace(" ", "-")
            for line in text.splitlines()
            if (heading := _HEADING.match(line))
        }
        targets = set(re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text))
        for target in {one or other for one, other in targets}:
            if target.startswith("#"):
                assert target[1:] in anchors, (page, target)
            elif not target.startswith("https://"):
                assert (page.parent / target).exists(), (page, target)


def test_readme_can_be_read_in_one_sitting_and_names_every_page():
    readme = PAGES[ROOT / "README.md"]
    assert len(readme.splitlines()) <= 200
    for page in set(PAGES) - {ROOT / "README.md"}:
        assert f"(orchestrator/docs/{page.name})" in readme


def test_lines_are_wrapped_where_they_can_be():
    long = [
        line
        for line in README.splitlines()
        if len(line) > WIDTH and not line.startswith(("|", "python3 -m venv")) and " " in line.strip()
    ]
    assert long == []


def test_there_is_one_command_that_runs_it_and_one_that_tests_it():
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv ")]
    run, test = [line.rpartition(" && ")[2] for line in lines]
    assert run == ".venv/bin/orchestrator serve --embedded"
    assert test.startswith(".venv/bin/pytest")


def test_the_files_that_are_shown_are_those_of_the_example_project():
    (jobs,) = [text for _, text in blocks("python") if text.startswith("# my_app/jobs.py\n")]
    assert (PROJECT / "my_app" / "jobs.py").read_text().endswith(jobs.removeprefix("# my_app/jobs.py\n"))
    (handler,) = [text for under, text in blocks("python") if under == "A job handler"]
    assert handler in jobs
    assert [text for _, text in blocks("dockerfile")] == [(PROJECT / "Dockerfile").read_text()]


def test_the_rules_that_are_listed_are_those_of_lint():
    from orchestrator.analysis.lint import RULES

    listed = README.split("\nRules: ")[1].split("`analysis/lint_squawk.py`")[0]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", " ".join(re.findall(r"`([^`]+)`", listed)))) == set(RULES)


# ------------------------------------------------------------------------------------------------------------- the tour


@dataclass
class Tour:
    """A reader at a shell: a copy of the example project, variables that were exported, a database."""

    folder: Path
    database_url: str
    env: dict[str, str]
    orchestrator: Callable
    printed: list[str] = field(default_factory=list)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    def words(self, line: str) -> str:
        """The line, with what a reader would fill in."""
        line = line.replace("postgresql://app:secret@localhost:5432/app", self.database_url)
        if dump := next(self.project.glob("backups/*.dump"), None):
            line = line.replace("app-20261124T030000Z-1f2e3d.dump", dump.name)
        asks = line.startswith(("orchestrator repair", "orchestrator restore"))
        return f"{line} --yes" if asks else line

    async def shell(self, line: str, *, code: int = 0) -> str:
        """Run it in bash; stdout. The exit code is this one."""
        line = self.words(line)
        # zsh has it by itself.
        line = f'fpath=(- "$HOME/zsh"); {line}' if "fpath" in line else line
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", line),
            cwd=self.project,
            env=self.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, f"{line}: exit {process.returncode}\n{out.decode()}{err.decode()}"
        self.printed.append(out.decode() + err.decode())
        return out.decode()

    async def export(self, line: str) -> None:
        """What `export` sets, by bash itself."""
        names = re.findall(r"(\w+)=", line)
        told = await self.shell(f"{line}; env -0")
        values = dict(one.split("=", 1) for one in told.split("\0") if "=" in one)
        self.env |= {name: values[name] for name in names}

    @contextlib.asynccontextmanager
    async def serving(self, line: str) -> AsyncIterator[str]:
        """`… orchestrator serve …` until it is ready; its address. Stopped, and well, at the end."""
        words = shlex.split(self.words(line))
        at = words.index("orchestrator")
        env = self.env | dict(word.split("=", 1) for word in words[:at])
        async with self.orchestrator.running(*words[at + 1 :], env=env, cwd=self.project) as run:
            await run.until_health(200, timeout_s=40)
            yield run.url
        assert run.returncode == 0

    async def curl(self, line: str, url: str) -> str:
        return await self.shell(re.sub(r"(?<= )localhost:3005", url, line))

    def write(self, name: str, sql: str) -> Path:
        """One more migration in the project's folder."""
        folder = self.project / "drizzle"
        journal = json.loads((folder / "meta" / "_journal.json").read_text())
        index = len(journal["entries"])
        when = 1795478400000 + index * 1000
        journal["entries"].append({"idx": index, "version": "7", "when": when, "tag": name, "breakpoints": True})
        (folder / "meta" / "_journal.json").write_text(json.dumps(journal))
        (folder / f"{name}.sql").write_text(sql)
        return folder / f"{name}.sql"


@pytest.fixture
async def tour(tmp_path, database_url, orchestrator, _python_path) -> Tour:
    shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bin").mkdir()
    for name, module in (("orchestrator", "orchestrator"), ("pytest", "pytest")):
        shim = tmp_path / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        shim.chmod(0o755)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": "drizzle",
        "DATA_DIR": str(tmp_path / "data"),
        "COLUMNS": "160",
    }
    if _python_path is not None:
        env["PYTHONPATH"] = _python_path
    return Tour(tmp_path, database_url, env, orchestrator)


# The parts whose commands are run below; a part that is not named here has a command that nobody tests.
PARTS = {
    "Run it",
    "Test it",
    "The rooms",
    "Run the tests",
    "Jobs, in your own project",
    "In a container",
    "From the terminal",
    "The API",
    "Move a Drizzle deployment over, and back",
    "Write and ship a migration",
    "What would run, and what it locks: `plan`",
    "What will hurt: `lint`",
    "Try it: `rehearse`",
    "Is the database what its files make? `verify`",
    "Correct the ledger: `repair`",
    "Backups, and the way back: `backup`, `restore`",
    "Look into the database: `studio`",
    "Completion",
}


def test_no_part_has_commands_that_no_test_here_runs():
    assert {heading for heading, _ in blocks("sh")} == PARTS


def _check_compose(lines: list[str], env: dict[str, str]) -> None:
    """Compose lines name the shipped files; where Compose is, it takes their words and hands the variables on.

    tests/test_container.py brings the same files up.
    """
    shipped = {"compose/compose.yaml", "compose/compose.dev.yaml"}
    brought_up = (ROOT / "tests" / "test_container.py").read_text()
    assert all(f'"{Path(file).name}"' in brought_up for file in shipped)
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[:3] == ["docker", "compose", "-f"]
        assert words[3] in shipped
        assert words[4] in {"up", "port", "logs", "build", "exec"}
        if words[4] == "exec":
            assert words[5:] in (
                ["job-server", "cat", "/run/secrets/api_token"],
                ["job-server", "orchestrator", "status"],
            )
            continue
        assert set(words[5:]) <= {"--build", "--no-build", "--detach", "--wait", "job-server", "3005"}
    try:
        told = subprocess.run(
            ["docker", "compose", "--env-file", os.devnull, "-f", "compose/compose.yaml", "config", "--format", "json"],
            cwd=ROOT,
            capture_output=True,
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | env,
            timeout=20,
            check=False,
        )
    except FileNotFoundError:
        return
    if told.returncode == 0:
        service = json.loads(told.stdout)["services"]["job-server"]
        for name in {"API_TOKEN", "JOBS"} & env.keys():
            assert service["environment"][name] == env[name]
        assert service["image"] == env.get("ORCHESTRATOR_IMAGE", "orchestrator:0.1.0")
        mounted = {volume["target"]: volume["source"] for volume in service["volumes"]}
        assert mounted["/migrations"] == env["MIGRATIONS_DIR"]


def _check_install(line: str) -> None:
    """An install line names extras and files that there are; CI runs the line of the tests itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([a-z,]+)\]", line):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    for file in re.findall(r"-r (\S+)", line):
        assert (ROOT / file).is_file()


async def test_run_it(tour):
    compose, exported = [], {}
    for line in part("Run it"):
        if line.startswith("python3 -m venv .venv && .venv/bin/pip"):
            _check_install(line)
            command = line.split(" && ")[-1].removeprefix(".venv/bin/")
            del tour.env["DATABASE_URL"], tour.env["MIGRATIONS_DIR"]
            async with tour.serving(command) as url:
                assert '"phase":"ready"' in await tour.curl("curl -s localhost:3005/health", url)
                assert "curl -s localhost:3005/health" in README
        elif line == ". .venv/bin/activate":
            assert part("Run it")[0].startswith("python3 -m venv .venv ")
        elif line.startswith("export DATABASE_URL="):
            await tour.export(line)
        elif line.startswith("export MIGRATIONS_DIR="):
            await tour.export(line)
            exported = {name: tour.env[name] for name in re.findall(r"(\w+)=", line)}
        elif line == "orchestrator status":
            assert "0 applied, 1 pending, 1 file" in await tour.shell(line)
        elif line == "orchestrator serve":
            async with tour.serving(line):
                pass
        elif line.startswith("docker compose "):
            compose.append(line)
        else:
            pytest.fail(f"no rule of this test handles: {line}")
    _check_compose(compose, exported)


async def test_test_it(tour):
    for line in [*part("Test it"), *part("The rooms"), *part("Run the tests")]:
        if line.startswith("python3 -m venv .venv && .venv/bin/pip"):
            _check_install(line)
        elif match := re.fullmatch(r"([A-Z_]+)=\d+ pytest (tests/[\w/]+\.py)", line):
            # They take minutes each: run up to where the first test would begin.
            assert f'"{match[1]}"' in (ROOT / match[2]).read_text()
            line = line.replace("pytest tests/", f"pytest --collect-only -q --rootdir {ROOT} {ROOT}/tests/")  # noqa: PLW2901
            assert "tests collected" in await tour.shell(line)
        elif match := re.fullmatch(r"pytest (tests/[\w/]+\.py)( -k \w+)?", line):
            line = line.replace("pytest tests/", f"pytest --collect-only -q --rootdir {ROOT} {ROOT}/tests/")  # noqa: PLW2901
            assert re.search(r"\btests? collected|\d/\d+ tests collected", await tour.shell(line))
        elif line.startswith("grep "):
            assert "claimer.py" in await tour.shell(line.replace("orchestrator/", f"{ROOT}/orchestrator/"))
        else:
            pytest.fail(f"no rule of this test handles: {line}")


async def test_jobs_in_your_own_project_and_the_api(tour, wait_until):
    lines, compose, exported = [*part("Jobs, in your own project"), *part("In a container")], [], {}
    (enqueuing,) = [text for _, text in blocks("python") if text.startswith("await enqueue(")]
    async with contextlib.AsyncExitStack() as open_:
        url = ""
        for line in [*lines, *part("The API")]:
            if line == "cd tests/example_project":
                assert PROJECT.is_dir()
            elif "orchestrator serve --embedded" in line:
                # On the tests' server: that --embedded brings one is seen under "Run it".
                url = await open_.enter_async_context(tour.serving(line.replace(" --embedded", "")))
            elif line.startswith("curl "):
                await tour.curl(line, url)
            elif line.startswith("docker compose "):
                compose.append(line)
            elif line.startswith("docker build "):
                assert line.split()[-1] == str(PROJECT.relative_to(ROOT))
            elif line.startswith("export ORCHESTRATOR_IMAGE="):
                await tour.export(line)
                exported = {name: tour.env.pop(name) for name in re.findall(r"(\w+)=", line)}
            else:
                pytest.fail(f"no rule of this test handles: {line}")
        order, shown, analysis = tour.printed[0], tour.printed[1], tour.printed[-1]
        assert json.loads(order[order.index("{") : order.rindex("}") + 1])["id"] == 1
        assert '"name":"order.place"' in shown
        assert "202 Accepted" in analysis
        assert "Location: /api/jobs/" in analysis

        script = (
            "import asyncio, asyncpg, os\nfrom my_app.jobs import Order\nfrom orchestrator.jobs import enqueue\n"
            "async def main():\n    connection = await asyncpg.connect(os.environ['DATABASE_URL'])\n"
            f"    print({enqueuing.strip()})\nasyncio.run(main())\n"
        )
        (tour.project / "add.py").write_text(script)
        await tour.shell(f"{shlex.quote(sys.executable)} add.py")

        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {TOKEN}"}) as http:

            async def both_done() -> bool:
                async with http.get("/api/jobs?state=succeeded") as answer:
                    return {"order.place", "order.confirm"} <= {job["name"] for job in (await answer.json())["jobs"]}

            await wait_until(both_done)
            for path in re.findall(r"`curl -N localhost:3005(/\S+)`", README):
                async with http.get(path) as answer:
                    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    _check_compose(compose, exported)


async def test_from_the_terminal(tour):
    async with tour.serving("orchestrator serve"):
        tour.env["API_TOKEN"] = ""
        await tour.shell("""orchestrator jobs add database.analyze '{"tables": []}' --direct""")
        for line in part("From the terminal"):
            await tour.shell(line.replace(" 17", " 1"))


async def test_move_a_drizzle_deployment_over(tour):
    for line in part("Move a Drizzle deployment over, and back"):
        if line in {"orchestrator status", "orchestrator plan"}:
            assert "0000_orders" in await tour.shell(line)
        elif line == "orchestrator serve":
            async with tour.serving(line):
                pass
        else:
            pytest.fail(f"no rule of this test handles: {line}")


async def test_write_and_ship_a_migration(tour):
    (models,) = [text for _, text in blocks("python") if text.startswith("# my_app/models.py\n")]
    (tour.project / "my_app" / "models.py").write_text(models)
    for line in part("Write and ship a migration"):
        if line.startswith("pip install "):
            _check_install(line)
        elif line.startswith("export SCHEMA="):
            await tour.export(line)
        elif line == "orchestrator generate add_note":
            await tour.shell(line)
            written = (tour.project / "drizzle" / "0001_add_note.sql").read_text()
            assert written == 'ALTER TABLE "orders" ADD COLUMN "note" TEXT;\n'
        elif line in {"orchestrator lint", "orchestrator migrate", "orchestrator generate --check"}:
            await tour.shell(line)
        else:
            pytest.fail(f"no rule of this test handles: {line}")


async def test_before_a_migration_runs(tour, admin):
    await tour.shell("orchestrator migrate")
    many = "INSERT INTO orders (customer, items) SELECT 'Ada', '{tea}' FROM generate_series(1, 20000); ANALYZE orders"
    await admin.script(tour.database_url, many)
    tour.write("0001_brave_hulk", 'ALTER TABLE "orders" ADD COLUMN "token" uuid DEFAULT gen_random_uuid() NOT NULL;')
    ((_, shown),) = [block for block in blocks("sh") if block[1].startswith("$ orchestrator plan\n")]
    assert part("What would run, and what it locks: `plan`") == ["orchestrator plan"]
    told = [" ".join(line.split()) for line in (await tour.shell("orchestrator plan")).splitlines()]
    for line in shown.splitlines()[1:]:
        same = re.sub(r"\d\.\d", "N", " ".join(line.split()).removesuffix("…").strip())
        assert any(re.sub(r"\d\.\d", "N", one).startswith(same) for one in told), (line, told)

    assert part("What will hurt: `lint`") == ["orchestrator lint --all"]
    await tour.shell("orchestrator lint --all", code=1)
    assert "rewrites-table" in tour.printed[-1]
    (allowed,) = [block for _, block in blocks("sql") if not block.startswith("-- Least privilege")]
    tour.write("0002_allowed", allowed.replace('"users"', '"orders"').replace('"legacy"', '"customer"'))
    assert "drop-column" not in await tour.shell("orchestrator lint --all", code=1)
    ((_, workflow),) = blocks("yaml")
    (command,) = re.findall(r"run: (.+)", workflow)
    assert "::warning file=" in await tour.shell(command, code=1)

    assert part("Try it: `rehearse`") == ["orchestrator rehearse --with-data"]
    assert "The migrations would succeed." in await tour.shell("orchestrator rehearse --with-data")


async def test_verify_studio_and_completion(tour):
    await tour.shell("orchestrator migrate")
    assert part("Is the database what its files make? `verify`") == ["orchestrator verify --schema public"]
    assert "The database is what the files make." in await tour.shell("orchestrator verify --schema public")

    assert part("Look into the database: `studio`") == ["orchestrator studio"]  # run by tests/commands/test_studio.py
    assert '"studio"' in (ROOT / "tests" / "commands" / "test_studio.py").read_text()

    home = tour.folder
    files = [".local/share/bash-completion/completions/orchestrator", "zsh/_orchestrator"]
    files += [".config/fish/completions/orchestrator.fish"]
    for line, file in zip(part("Completion"), files, strict=True):
        assert re.fullmatch(r"orchestrator completion (bash|zsh|fish) +> +\S+", line)
        (home / file).parent.mkdir(parents=True)
        await tour.shell(line)
        assert "rehearse" in (home / file).read_text()


async def test_repair(tour, admin):
    lines = part("Correct the ledger: `repair`")
    file = tour.write("0007_x", "CREATE TABLE x (id int);")
    await tour.shell("orchestrator migrate")
    for line in lines:
        action = line.split()[2]
        if action == "accept":
            file.write_text("CREATE TABLE x (id bigint);")
        elif action == "applied":
            tour.write("0008_y", "CREATE TABLE y (id int);")
            line = line.replace("0007_x", "0008_y")  # noqa: PLW2901 it is the one that is pending
        elif action == "unapplied":
            line = line.replace("0007_x", "0008_y")  # noqa: PLW2901
        elif action == "baseline":
            file.write_text("CREATE TABLE x (id int);")
            await admin.script(tour.database_url, "DROP SCHEMA drizzle CASCADE")
        elif action == "upgrade":
            folder = tour.project / "drizzle"
            for entry in json.loads((folder / "meta" / "_journal.json").read_text())["entries"]:
                stamp = datetime.fromtimestamp(entry["when"] // 1000, UTC).strftime("%Y%m%d%H%M%S")
                new = folder / f"{stamp}_{entry['tag'][5:]}"
                new.mkdir()
                (folder / f"{entry['tag']}.sql").rename(new / "migration.sql")
            shutil.rmtree(folder / "meta")
        else:
            pytest.fail(f"no rule of this test handles: {line}")
        await tour.shell(line)
    actions = await admin(tour.database_url, "SELECT action FROM orchestrator.repairs ORDER BY id")
    assert [row["action"] for row in actions] == [line.split()[2] for line in lines]


async def test_backups_and_the_way_back(tour, admin):
    await tour.shell("orchestrator migrate")
    for line in part("Backups, and the way back: `backup`, `restore`"):
        if line.startswith(("orchestrator backup", "BACKUP_DIR=./backups orchestrator backup")):
            assert ".dump" in await tour.shell(line)
        elif line.endswith("orchestrator serve"):
            async with tour.serving(line):
                pass
        elif line.startswith("orchestrator restore "):
            told = await tour.shell(line)
            (kept,) = re.findall(r'DROP DATABASE "(.+)";', told)
            await admin.script(re.sub(r"/[^/?]+(\?|$)", r"/postgres\1", tour.database_url), f'DROP DATABASE "{kept}"')
        else:
            pytest.fail(f"no rule of this test handles: {line}")
