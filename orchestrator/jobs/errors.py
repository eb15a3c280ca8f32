"""What the queue refuses, and why. Pure: no I/O."""

from __future__ import annotations

from orchestrator.errors import EXIT_CONFIG, OrchestratorError

# In which states a job has to be, to be changed so.
ALLOWED_STATES = {
    "retried": ("scheduled", "failed", "cancelled"),
    "cancelled": ("scheduled", "queued", "running"),
    "discarded": ("succeeded", "failed", "cancelled"),
}


class HandlerError(OrchestratorError):
    """A handler, or a module of JOBS, cannot be used: the start ends (exit 78), since no restart changes the code."""

    exit_code = EXIT_CONFIG


class JobError(OrchestratorError):
    """What a caller of the queue did wrong; nothing was written."""


class UnknownHandlerError(JobError):
    """No handler of this name is known to the process."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"there is no job handler {name!r}",
            remedy="Name one that GET /api/handlers lists; JOBS must name the module of your own.",
            facts={"name": name},
        )
        self.name = name


class PayloadError(JobError):
    """The payload is not what the handler takes. `path` names the field, as in `$.user.id`."""

    def __init__(self, handler: str, path: str, reason: str) -> None:
        super().__init__(
            f"the payload of {handler!r} is wrong at {path}: {reason}",
            remedy="GET /api/handlers has the schema of each handler's payload.",
            facts={"handler": handler, "path": path, "reason": reason},
        )
        self.handler, self.path, self.reason = handler, path, reason


class ScheduleError(JobError):
    """A schedule's cron expression or time zone is none."""


class JobNotFoundError(JobError):
    """There is no job with this id."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"there is no job {job_id}", facts={"job_id": job_id})
        self.job_id = job_id


class ScheduleNotFoundError(JobError):
    """There is no schedule of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r}", facts={"name": name})
        self.name = name


class JobStateError(JobError):
    """The job's state does not allow it. `state` is that state; `sibling_id` the job that holds the same dedupe key."""

    def __init__(self, job_id: int, state: str, wish: str, *, sibling_id: int | None = None) -> None:
        because = f"it is {state}"
        if sibling_id is not None:
            because = f"job {sibling_id} with the same dedupe key is not finished yet"
        super().__init__(
            f"job {job_id} cannot be {wish}: {because}",
            facts={"job_id": job_id, "state": state, "sibling_id": sibling_id},
        )
        self.job_id, self.state, self.sibling_id = job_id, state, sibling_id
        self.allowed = ALLOWED_STATES[wish]


class IdempotencyError(JobError):
    """The idempotency key was used for another job: another handler, or another payload."""

    def __init__(self, job_id: int, key: str) -> None:
        super().__init__(
            f"the idempotency key was used before, for job {job_id}, which is another one",
            remedy="Use a new key for a new request.",
            facts={"job_id": job_id, "key": key},
        )
        self.job_id, self.key = job_id, key
