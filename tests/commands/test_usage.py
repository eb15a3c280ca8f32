"""A command line that cannot be read is answered with the nearest one that can."""

import pytest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["migrte"], "there is no command migrte; did you mean migrate?"),
        (["frobnicate"], "there is no command frobnicate; there is: serve, migrate,"),
        (["serve", "--embeded"], "there is no option --embeded; did you mean --embedded?"),
        (["repair", "acept"], "there is no action acept; did you mean accept?"),
        (["repair"], "which action?\n  accept     accept an edited file's new content"),
        (["schedules"], "which action?\n  list "),
    ],
)
async def test_what_is_unknown_is_answered_with_what_there_is(orchestrator, line, said):
    ended = await orchestrator(*line)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
