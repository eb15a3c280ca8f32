"""`orchestrator help`: the manual, from the package that is installed."""

import pytest

from orchestrator.cli import COMMANDS, PAGES
from orchestrator.commands.help import pages


async def test_it_lists_every_page_with_its_title(orchestrator):
    run = await orchestrator("help")
    assert run.returncode == 0
    for name, page in pages().items():
        assert f"{name} " in run.stdout
        assert page.read_text().split("\n", 1)[0].removeprefix("# ") in run.stdout


async def test_a_page_is_printed_as_it_is_where_no_terminal_reads_it(orchestrator):
    run = await orchestrator("help", "jobs")
    assert (run.returncode, run.stdout) == (0, pages()["jobs"].read_text())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_page_and_the_page_names_the_command(command):
    assert command.name in pages()[PAGES[command.name]].read_text()


async def test_a_command_leads_to_its_page(orchestrator):
    run = await orchestrator("help", "rehearse")
    assert run.stdout == pages()["before-after"].read_text()


async def test_a_page_that_does_not_exist_is_answered_with_the_nearest_one(orchestrator):
    run = await orchestrator("help", "jbs")
    assert run.returncode == 2
    assert "Did you mean 'jobs'?" in run.stderr
