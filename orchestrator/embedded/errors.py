"""What goes wrong with an embedded server."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, OrchestratorError


class DataDirectoryInUseError(OrchestratorError):
    """Another process has an embedded server on this data directory."""

    exit_code: ClassVar[int] = EXIT_CONFIG


class EmbeddedServerError(OrchestratorError):
    """The embedded server could not be made or started; the message ends with the last lines of its log."""

    exit_code: ClassVar[int] = EXIT_UNAVAILABLE
