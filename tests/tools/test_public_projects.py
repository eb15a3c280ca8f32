"""Three public projects from the package registry, evolved in every way on tables with rows: nothing is lost.

The other ten take `python tests/tools/public_projects.py`.
"""

import asyncio
import subprocess
import sys

import pytest
from tools.public_projects import PROJECTS, evolve

# Each way once: the more tables a project has, the longer each of its ways takes.
LIGHT = {
    "buildbot": ("drop", "not_null_online"),
    "celery": (
        "drop_not_allowed", "enum_add", "enum_drop", "enum_rename", "index", "narrow", "not_null",
        "not_null_with_default", "table_rename", "widen",
    ),
    "jupyterhub": ("identity", "index_online", "partition", "rename", "schema_move"),
}  # fmt: skip
# What their models import, and this program's environment does not hold.
NEEDED = (
    "amqp==5.4.2", "billiard==4.3.2", "click==8.5.1", "constantly==23.10.4", "incremental==24.11.0", "kombu==5.7.0",
    "python-dateutil==4.0.0", "tornado==6.6.1", "traitlets==5.16.1", "twisted==26.10.0", "tzlocal==5.4.5",
    "vine==5.1.0", "zope.interface==8.7",
)  # fmt: skip


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> str:
    """A folder of the three projects and what they need, beside the environment of the tests."""
    target = str(tmp_path_factory.mktemp("projects"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    ]
    wanted = [*(PROJECTS[name].requirement for name in LIGHT), *NEEDED]
    subprocess.run([*pip, "--target", target, *wanted], check=True)
    return target


@pytest.mark.parametrize(("name", "ways"), LIGHT.items(), ids=LIGHT)
async def test_no_evolution_of_a_public_project_loses_anything(name, ways, packages, server, tmp_path):
    done = await asyncio.to_thread(evolve, sys.executable, name, tmp_path, server.dsn(), *ways, path=packages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  ok\n") == len(ways), done.stdout
