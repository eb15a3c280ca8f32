"""The job server: handlers, a queue in Postgres, workers, schedules.

For users' modules: `from orchestrator.jobs import Context, enqueue, job`.
"""

from orchestrator.jobs.context import Context
from orchestrator.jobs.queue import enqueue
from orchestrator.jobs.registry import Backoff, job

__all__ = ["Backoff", "Context", "enqueue", "job"]
