"""What the server says beside its answers: the WARNING and NOTICE of a migration's statements."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from orchestrator.lifecycle import Lifecycle

# A block may raise one for each row of a table: so many are shown of a file, of each level, and so much of each.
SHOWN_LIMIT = 50
_LENGTH_LIMIT = 1000
_LEVELS: dict[str, Literal["info", "warning"]] = {"WARNING": "warning", "NOTICE": "info", "INFO": "info"}


class Notices:
    """A listener for asyncpg's `add_log_listener` on the session that migrates.

    `shared` names the files whose statements travel in one message, while they do: whose a notice is cannot be told.
    """

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._shown: Counter[tuple[str, str]] = Counter()
        self.shared: str | None = None

    def __call__(self, _: Any, message: Any) -> None:
        """Show a notice, unless there were too many of its file; what is said to our own SQL is for debugging."""
        migration = self.shared or self._life.migrations.current
        level: Literal["debug", "info", "warning"] = "debug"
        if migration is not None:
            level = _LEVELS.get(message.severity_en or message.severity, "debug")
        facts = {"sqlstate": message.sqlstate, "detail": message.detail, "hint": message.hint}
        if level != "debug":
            key = (str(migration), level)
            self._shown[key] += 1
            if self._shown[key] > SHOWN_LIMIT:
                return
            if self._shown[key] == SHOWN_LIMIT:
                facts["remedy"] = f"This is the last that is shown: a file has {SHOWN_LIMIT} of a level."
        self._life.emit(
            "database.notice_received",
            level=level,
            migration=migration,
            severity=message.severity_en,
            message=_bounded(message.message),
            **{name: _bounded(value) for name, value in facts.items() if value},
        )


def _bounded(text: str) -> str:
    return text if len(text) <= _LENGTH_LIMIT else f"{text[: _LENGTH_LIMIT - 1]}…"
