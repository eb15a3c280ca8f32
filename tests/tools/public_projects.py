"""Evolve the models of thirteen public projects with `generate`: `python tests/tools/public_projects.py [PROJECT]…`.

Each is installed from the package registry, with what this program needs, into a virtual environment of its own in a
temporary directory, and its models go through every way of `support.evolving` on a private server. Takes some minutes a
project, most of it pip's. `test_public_projects.py` does the three that are light in every run of CI.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = (
    "asyncpg", "aiohttp", "tenacity", "structlog", "cronsim", "postgast", "msgspec", "prometheus-client", "rich",
    "alembic>=1.16", "sqlalchemy[asyncio]>=2.0.40", "pgvector",
)  # fmt: skip


@dataclass(frozen=True)
class PublicProject:
    """What to install, a module that holds the models as `Base`, and the tables that its own create_all cannot make."""

    requirement: str
    module: str
    excluded: tuple[str, ...] = ()


PROJECTS = {
    "aiida": PublicProject(
        "aiida-core==2.9.4",
        "from aiida.storage.psql_dos.models.base import Base\n"
        "from aiida.storage.psql_dos.models import authinfo, comment, computer, group, log, node, settings, user\n",
    ),
    "airflow": PublicProject(
        "apache-airflow-core==3.3.2",
        "import airflow.models\nairflow.models.import_all_models()\nfrom airflow.models.base import Base\n",
    ),
    "buildbot": PublicProject("buildbot==4.3.0", "from buildbot.db.model import Model\nBase = Model.metadata\n"),
    "celery": PublicProject(
        "celery==5.7.0",
        "from celery.backends.database import models\n"
        "from celery.backends.database.session import ResultModelBase as Base\n",
    ),
    "dagster": PublicProject(
        "dagster==1.13.29",
        "from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata as Base\n",
    ),
    "flask-appbuilder": PublicProject(
        "flask-appbuilder==5.3.0",
        "import flask_appbuilder.security.sqla.models\nfrom flask_appbuilder import Model as Base\n",
    ),
    "galaxy": PublicProject("galaxy-data==26.1.2", "from galaxy.model import mapper_registry as Base\n"),
    "jupyterhub": PublicProject("jupyterhub==6.1.1", "from jupyterhub.orm import Base\n"),
    "mlflow": PublicProject(
        "mlflow==3.17.2",
        "import mlflow.store.model_registry.dbmodels.models\nimport mlflow.store.tracking.dbmodels.models\n"
        "from mlflow.store.db.base_sql_model import Base\n",
        # A key to a column that no model makes unique; indexes without a column.
        ("input_tags", "trace_tags", "trace_request_metadata"),
    ),
    "optuna": PublicProject("optuna==5.0.0", "from optuna.storages._rdb.models import BaseModel as Base\n"),
    "phoenix": PublicProject("arize-phoenix==20.26.1", "from phoenix.db.models import Base\n"),
    "prefect": PublicProject(
        "prefect==3.9.1",
        "from prefect.server.database.orm_models import Base\n",
        ("flow", "flow_run", "task_run", "deployment", "work_pool", "artifact"),  # no operator class; an index twice
    ),
    "rucio": PublicProject("rucio==37.7.1", "from rucio.db.sqla.models import BASE as Base\n"),
}
# Found where RUCIO_HOME says.
RUCIO = "[database]\ndefault = postgresql://nobody@127.0.0.1/nothing\n"


def evolve(
    python: str, name: str, directory: Path, url: str, *ways: str, path: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the ways in `python`, which can import the project; `path` is looked in for modules, too."""
    module = f"models_of_{name.replace('-', '_')}"
    (directory / f"{module}.py").write_text(PROJECTS[name].module)
    (directory / "etc").mkdir(exist_ok=True)
    (directory / "etc" / "rucio.cfg").write_text(RUCIO)
    excluded = [word for table in PROJECTS[name].excluded for word in ("--exclude", table)]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "AIRFLOW_HOME": str(directory),
        "RUCIO_HOME": str(directory),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(directory), *([path] if path else [])]),
        "DATABASE_URL": url,
    }
    command = [python, "-W", "ignore", "-m", "support.evolving", f"{module}:Base", *excluded, *ways]
    return subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, check=False, timeout=1800)


def installed(name: str, directory: Path) -> str:
    """The Python of a new virtual environment that holds the project and what this program needs."""
    subprocess.run([sys.executable, "-m", "venv", str(directory / "venv")], check=True)
    python = str(directory / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *OURS, PROJECTS[name].requirement], check=True)
    return python


async def main(names: list[str]) -> int:
    from orchestrator.embedded.server import embedded_postgres

    faults = 0
    with tempfile.TemporaryDirectory(prefix="public-projects-") as place:
        async with embedded_postgres(Path(place) / "server", lambda *_, **__: None, durable=False) as server:
            for name in names or PROJECTS:
                directory = Path(place) / name
                directory.mkdir()
                python = await asyncio.to_thread(installed, name, directory)
                done = await asyncio.to_thread(evolve, python, name, directory, server.dsn)
                print(f"{name}: {done.stdout}{done.stderr if done.returncode else ''}", flush=True)
                faults += done.returncode
    return faults


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])) != 0)
