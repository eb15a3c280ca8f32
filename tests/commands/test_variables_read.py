"""The variables that a command's help names are those that the command reads."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import COMMANDS, EVERY_RUN_READS, READS
from orchestrator.variables import VARIABLES

ROOT = Path(__file__).parents[2]
RECORD = """
import json, sys
import orchestrator.settings as settings

read = set()

class Recording(settings.Settings, frozen=True):
    def __getattribute__(self, name):
        if sys._getframe(1).f_code.co_filename != settings.__file__:
            read.add(name)
        return super().__getattribute__(name)

settings.Settings = Recording
from orchestrator.cli import parser

path, *argv = sys.argv[1:]
options = parser(argv[0]).parse_args(argv)
code = options.run(options)
with open(path, "w") as file:
    json.dump({"code": code, "read": sorted(read)}, file)
"""
NAMES = {variable.field: {variable.name} for variable in VARIABLES if variable.field} | {
    # The time for a connection is bound into the DSN.
    "database": {"DATABASE_URL", "DB_CONNECT_TIMEOUT"},
    "migration_database": {"DATABASE_URL", "MIGRATION_DATABASE_URL", "DB_CONNECT_TIMEOUT"},
}
# What is read later, or with an option: when a backup is taken, by --embedded, by a built-in job.
SOMETIMES = {
    "serve": "BACKUP_DIR BACKUP_KEEP BACKUP_MAX_AGE BACKUP_KEY DATA_DIR JOBS_RETENTION",
    "migrate": "BACKUP_DIR BACKUP_KEEP BACKUP_MAX_AGE BACKUP_KEY DATA_DIR",
    "plan": "DATA_DIR",
    "generate": "DATA_DIR",
}
FILES = (("0000_a", "CREATE TABLE public.a (id int PRIMARY KEY)"),)
MODELS = """
import sqlalchemy

metadata = sqlalchemy.MetaData()
sqlalchemy.Table("a", metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
"""
RUNS = {
    "serve": ["serve"],
    "migrate": ["migrate"],
    "wait": ["wait"],
    "status": ["status"],
    "plan": ["plan"],
    "lint": ["lint"],
    "rehearse": ["rehearse", "--from-files"],
    "verify": ["verify"],
    "repair": ["repair", "baseline", "--yes"],
    "generate": ["generate", "--check"],
    "new": ["new", "add_b"],
}


@pytest.mark.parametrize("command", RUNS)
async def test_help_names_what_is_read(command, write, tmp_path, database_url):
    folder, result = write(tmp_path / "drizzle", *FILES), tmp_path / "read.json"
    (tmp_path / "models.py").write_text(MODELS)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "DATABASE_URL": database_url,
        "MIGRATIONS_DIR": str(folder),
        "SCHEMA": "models:metadata",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RECORD, str(result), *RUNS[command]),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said = b""
    if command == "serve":
        async for line in process.stderr:
            said += line
            if b'"service.ready"' in line:
                process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        rest = await process.communicate()
    assert result.exists(), said + rest[1]
    fields = json.loads(result.read_text())["read"]
    read = set().union(*(NAMES.get(field, set()) for field in fields))
    listed = set(READS[command].split())
    assert read - listed - set(EVERY_RUN_READS.split()) == set()
    assert listed - read <= set(SOMETIMES.get(command, "").split())


def test_each_command_says_what_it_reads():
    assert set(READS) <= {command.name for command in COMMANDS}
