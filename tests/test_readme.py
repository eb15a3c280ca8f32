"""README is true where a machine can tell."""

import re
from pathlib import Path

from orchestrator.variables import VARIABLES, markdown_table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_table_of_variables_is_the_codes_own():
    between = README.split("config --markdown` -->\n")[1].split("<!-- end of variables -->")[0]
    assert between.strip() == markdown_table().strip()


def test_no_variable_is_named_that_does_not_exist():
    known = {v.name for v in VARIABLES} | {f"{v.name}_FILE" for v in VARIABLES}
    named = set(re.findall(r"`(MIGRATIONS?_[A-Z_]+|DB_[A-Z_]+|LOG_[A-Z]+|DATABASE_URL[A-Z_]*)[=`]", README))
    assert named <= known


def test_every_command_of_the_table_exists():
    from orchestrator.cli import COMMANDS

    named = set(re.findall(r"^\| `orchestrator ([a-z]+)", README, re.MULTILINE))
    assert named <= {command.name for command in COMMANDS}
