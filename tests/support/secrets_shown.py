"""The passwords that are in use, and the search for them in all that processes print."""

from collections.abc import Iterator

import pytest


class Known:
    """What the session knows: the passwords in use, and everything that processes printed, with the command."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.printed: list[tuple[str, str]] = []

    def assert_no_secret(self, printed: list[tuple[str, str]]) -> None:
        for command, text in printed:
            for secret in self.secrets:
                shown = next((line for line in text.splitlines() if secret in line), None)
                assert shown is None, f"`{command}` printed a password: {shown.replace(secret, '<THE PASSWORD>')}"


@pytest.fixture(scope="session")
def known() -> Iterator[Known]:
    """`known.secrets.add(…)`: one more text that no process may print."""
    known = Known()
    yield known
    known.assert_no_secret(known.printed)
