"""What prints into a pipe whose reader has ended (`| head`) ends quietly, whatever the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = """\
import sqlalchemy as sa
meta = sa.MetaData()
for n in range(8):
    sa.Table(f"table_{n}", meta, *(sa.Column(f"column_{c}_{'x' * 50}", sa.Text) for c in range(200)))
"""
COMMANDS = {
    "--help": 0,
    "--version": 0,
    "generate --help": 0,
    "help jobs": 0,
    "config --markdown": 0,
    "completion bash": 0,
    "token": 0,
    "generate --check": 1,
    "generate --check --json": 1,
    "status": 0,
    "plan": 0,
    "plan --json": 0,
    "lint": 0,
}


@pytest.mark.parametrize(("command", "code"), COMMANDS.items(), ids=COMMANDS)
async def test_a_pipe_whose_reader_has_ended_is_no_error(command, code, make_database, tmp_path):
    (tmp_path / "my_models.py").write_text(MODELS)
    folder = tmp_path / "migrations"
    (folder / "20260101000000_many").mkdir(parents=True)
    (folder / "20260101000000_many" / "migration.sql").write_text("".join(f"SELECT {n};\n" for n in range(500)))
    reading, writing = os.pipe()
    os.close(reading)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": await make_database(),
        "MIGRATIONS_DIR": str(folder),
        "SCHEMA": "my_models:meta",
    }
    done = subprocess.run(  # noqa: ASYNC221 nothing else runs
        [sys.executable, "-m", "orchestrator", *command.split()],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert "BrokenPipe" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
