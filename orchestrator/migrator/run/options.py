"""What the person chose for a run of migrations. Pure: no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from orchestrator.migrator.resolve import Ahead, Policy
    from orchestrator.settings import Settings

TransactionMode = Literal["each", "all"]


class Options(msgspec.Struct, frozen=True):
    """What the person chose. A duration of 0 means: no limit."""

    policy: Policy = "drizzle"
    ahead: Ahead = "refuse"
    transaction: TransactionMode = "each"
    statement_timeout_s: float = 0.0
    ddl_lock_timeout_s: float = 5.0
    ddl_retry_for_s: float = 600.0

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """As the settings say."""
        return cls(
            settings.migration_policy,
            settings.migration_ahead,
            settings.migration_transaction,
            settings.migration_statement_timeout_s,
            settings.migration_ddl_lock_timeout_s,
            settings.migration_ddl_retry_for_s,
        )

    @property
    def statement_timeout_ms(self) -> int:
        """As the server counts it."""
        return _ms(self.statement_timeout_s)

    @property
    def ddl_lock_timeout_ms(self) -> int:
        """As the server counts it."""
        return _ms(self.ddl_lock_timeout_s)


def _ms(seconds: float) -> int:
    """For a setting of the server, where 0 means none: what is shorter than a millisecond is still something."""
    return max(1, int(seconds * 1000)) if seconds else 0
