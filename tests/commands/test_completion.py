"""`completion` in real shells, and a help that teaches."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli import COMMANDS, parser
from orchestrator.variables import BY_NAME

_PROBE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
_shtab_orchestrator
printf '%s\\n' "${COMPREPLY[@]}"
"""


async def script(orchestrator, shell, tmp_path):
    pytest.importorskip("shtab")
    done = await orchestrator("completion", shell)
    assert done.returncode == 0, done.stderr
    file = tmp_path / f"completion.{shell}"
    file.write_text(done.stdout)
    return file


async def test_bash_completes_commands_options_choices_and_directories(orchestrator, tmp_path):
    file = await script(orchestrator, "bash", tmp_path)
    (tmp_path / "some_directory").mkdir()

    def completed(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", _PROBE, "probe", str(file), "orchestrator", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        return done.stdout.split()

    assert completed("") == [command.name for command in COMMANDS]
    assert completed("gen") == ["generate"]
    assert completed("generate", "--allow") == ["--allow-drops"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]
    assert completed("new", "--migrations-dir", "some") == ["some_directory"]


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
async def test_zsh_and_fish_can_read_theirs(orchestrator, tmp_path, shell, check):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    file = await script(orchestrator, shell, tmp_path)
    done = await asyncio.to_thread(subprocess.run, [shell, *check, str(file)], check=False)
    assert done.returncode == 0


async def test_without_shtab_one_line_says_what_to_install(orchestrator, tmp_path):
    (tmp_path / "shtab.py").write_text("raise ImportError\n")

    done = await orchestrator("completion", "bash", env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})
    assert (done.returncode, done.stderr) == (78, "completion needs shtab: pip install 'orchestrator[dev]'\n")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_commands_help_has_an_example_and_the_variables_that_it_reads(command):
    whole = parser(command.name)
    text = whole._subparsers._group_actions[0].choices[command.name].format_help()
    assert f"orchestrator {command.example}" in text
    named = re.search(r"reads: ([A-Z_, \n]+)", text)
    assert set(re.findall(r"\w+", named[1]) if named else ()) <= set(BY_NAME)
    assert named or command.name in {"config", "completion", "help", "token"}  # these read all, and none
