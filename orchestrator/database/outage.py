"""How often what is connected for ever tries again, and what of it is said. Pure but for the clock that is handed in.

One policy for the sessions of the workers, their lease, the event stream, the samples of the queue, and the wait for
the database: the first failure is said, each change of its cause, and one line every half minute; and once that it is
over, when work has succeeded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.database.connect_errors import Failure

_SAID_EVERY_S = 30.0
_DOUBLINGS_MAX = 10


class Outage:
    """The failures in a row of one connection. Waits double from `least_s` to `most_s`."""

    def __init__(
        self, *, least_s: float = 1.0, most_s: float = 1.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._least_s, self._most_s, self._monotonic = least_s, most_s, monotonic
        self._cause: str | None = None
        self._said_at = 0.0
        self.failures = 0

    def failed(self, failure: Failure) -> bool:
        """Count a failure; whether it is news."""
        self.failures += 1
        now = self._monotonic()
        if failure.cause == self._cause and now - self._said_at < _SAID_EVERY_S:
            return False
        self._cause, self._said_at = failure.cause, now
        return True

    @property
    def wait_s(self) -> float:
        """Seconds until the next try."""
        return min(self._most_s, self._least_s * 2.0 ** min(max(0, self.failures - 1), _DOUBLINGS_MAX))

    def over(self) -> int:
        """Work has succeeded: how many failures there were before it, 0 where there was none."""
        failures, self.failures, self._cause = self.failures, 0, None
        return failures
