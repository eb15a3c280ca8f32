"""What the tests stand on: a real Postgres, the real command as a process, and a proxy that cuts connections.

Each job is a file of tests/support. Whatever the processes print is kept and searched for the passwords in use.
"""

import os

import pytest

pytest_plugins = [
    "support.waiting",
    "support.folders",
    "support.secrets_shown",
    "support.server",
    "support.databases",
    "support.command",
    "support.proxy",
]


def pytest_configure(config: pytest.Config) -> None:
    """Embedded servers are one for each worker; a given one is shared, and some tests look at all of its databases."""
    if os.environ.get("TEST_DATABASE_URL") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("TEST_DATABASE_URL is one server for all: run pytest without -n")
