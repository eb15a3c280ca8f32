"""The job server: the registry of handlers, the queue in Postgres, workers, schedules, and the built-in jobs.

`claimer.py` claims jobs, `worker.py` runs them, `completer.py` writes their outcomes, `lease.py` and `maintenance.py`
see to those whose worker is gone. Users' modules write `from orchestrator.jobs import Context, enqueue, job`.
"""

from orchestrator.jobs.context import Context
from orchestrator.jobs.queue import enqueue
from orchestrator.jobs.registry import Backoff, job

__all__ = ["Backoff", "Context", "enqueue", "job"]
