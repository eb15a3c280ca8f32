"""The job server: handlers, a queue in Postgres, workers, schedules.

For users' modules: `from orchestrator.jobs import Context, job, enqueue`.
"""

from orchestrator.jobs.queue import enqueue
from orchestrator.jobs.registry import Backoff, job

__all__ = ["Backoff", "enqueue", "job"]
