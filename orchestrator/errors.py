"""Errors: one base; each knows its exit code and what the person at the terminal does next. Pure: no I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# sysexits.h, as far as it has a code; docs/when-it-fails.md lists them.
EXIT_BUG = 1
EXIT_UNAVAILABLE = 69
EXIT_MIGRATION = 70
EXIT_LOCKED = 75
EXIT_CONFIG = 78


class OrchestratorError(Exception):
    """Something that the program foresaw and can explain.

    `message` says what and where, `remedy` what to do next, `facts` are keys for the log line. None of the three ever
    holds a secret. `restart_helps` is False where starting again changes nothing.
    """

    exit_code: ClassVar[int] = EXIT_BUG
    restart_helps: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str = "", facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.facts: dict[str, object] = dict(facts or {})

    def described(self) -> dict[str, object]:
        """Message, remedy and facts as one flat set of keys: the last log line, and what those who watch are told."""
        own = {
            "error": self.message,
            "remedy": self.remedy,
            "restart_helps": self.restart_helps,
            "exit_code": self.exit_code,
        }
        return {**{f"error_{name}" if name in own else name: value for name, value in self.facts.items()}, **own}


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with the configuration. `found` is never the value, only its shape where that helps."""

    variable: str
    problem: str
    expected: str
    example: str


class ConfigurationError(OrchestratorError):
    """The settings cannot be used; every problem is in `problems`."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [f"{p.variable}: {p.problem}; expected {p.expected}, e.g. {p.example}" for p in self.problems]
        on_the_line = [p for p in self.problems if not re.fullmatch(r"[A-Z][A-Z0-9_]+", p.variable)]
        super().__init__(
            "; ".join(lines),
            remedy="Run it again so; `--help` behind the command shows its options."
            if len(on_the_line) == len(self.problems)
            else "Set the variables named above, then start again; `orchestrator config` shows what would be used.",
            facts={
                "problems": [
                    {"variable": p.variable, "problem": p.problem, "expected": p.expected, "example": p.example}
                    for p in self.problems
                ]
            },
        )


class DatabaseUnavailableError(OrchestratorError):
    """No usable database within `DB_WAIT_TIMEOUT`."""

    exit_code = EXIT_UNAVAILABLE
    restart_helps = True


class ConnectionRefusedForeverError(OrchestratorError):
    """The server answered in a way that no retry can change: an unknown parameter, a server that is too old."""

    exit_code = EXIT_CONFIG


class ListenError(OrchestratorError):
    """The HTTP port cannot be bound."""

    exit_code = EXIT_CONFIG


class LockTimeoutError(OrchestratorError):
    """Another migrator held the lock for longer than `MIGRATION_LOCK_TIMEOUT`."""

    exit_code = EXIT_LOCKED
    restart_helps = True


class MigrationError(OrchestratorError):
    """A migration failed, or files and ledger disagree. The database is as it was before the file that is named."""

    exit_code = EXIT_MIGRATION
