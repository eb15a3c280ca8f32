"""The job server of one process: what runs here, from LAUNCHING until the process stops. Touches a thread of its own.

Handlers run on an event loop in a thread of their own; leases are kept from the loop of HTTP. So a handler that blocks
its loop neither freezes `/health` nor loses its jobs to another replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
import sys
import threading
import time
import traceback
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.firing import Firing
from orchestrator.jobs.lease import Lease
from orchestrator.jobs.maintenance import Maintenance
from orchestrator.jobs.parameters import WorkerParameters
from orchestrator.jobs.worker import StopTimes, Worker
from orchestrator.threads import HandlersLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from orchestrator.dsn import Dsn
    from orchestrator.jobs.context import Service
    from orchestrator.jobs.registry import Registry
    from orchestrator.lifecycle import Lifecycle

_LOOK_EVERY_S = 1.0
_BLOCKED_AFTER_S = 2.0
_SAY_EVERY_S = 30.0
_POOL_FULL_AFTER_S = 10.0
_FRAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs in this process; `started_at` in Unix seconds by this machine's clock."""

    id: int
    name: str
    attempt: int
    started_at: float


class JobServer:
    """What runs here. Its attributes may be read from any thread."""

    def __init__(
        self,
        dsn: Dsn,
        registry: Registry,
        life: Lifecycle,
        *,
        concurrency: int,
        lease_s: float,
        redact: Callable[[str], str],
        service: Service | None = None,
    ) -> None:
        self.worker_id = f"{socket.gethostname()[:60]}-{secrets.token_hex(6)}"
        self.registry, self.concurrency, self.lease_s = registry, concurrency, lease_s
        self._life = life
        self._threads_said_at = float("-inf")
        self._main = asyncio.get_running_loop()
        self._loop = HandlersLoop(self._threads_exhausted)
        self._loop.set_exception_handler(self._stray)
        parameters = WorkerParameters(
            dsn,
            registry,
            worker_id=self.worker_id,
            concurrency=concurrency,
            lease_s=lease_s,
            emit=self._emit_from_afar,
            redact=redact,
            service=service,
        )
        self._worker = Worker(parameters)
        self._lease = Lease(parameters, count=lambda: len(self._worker.runs), changed=self._lease_changed)
        self._maintenance = Maintenance(parameters, emit=life.emit)
        self._firing = Firing(parameters, emit=life.emit)
        self._stop = asyncio.Event()
        self._times = StopTimes.of(0.0)
        self._ended: asyncio.Future[None] = self._main.create_future()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._ticked_at = time.monotonic()

    @property
    def running(self) -> list[RunningJob]:
        """The jobs that run in this process now."""
        runs = list(self._worker.runs.values())
        return [RunningJob(run.id, run.handler.name, run.attempt, run.started_at) for run in runs]

    async def watch(self) -> None:
        """Keep the lease, look after other workers and schedules, and after the handlers' loop, until cancelled.

        Raises whatever a bug of ours raised in the worker: without it this is no job server.
        """
        self._lease.start()
        self._thread.start()
        maintaining = asyncio.create_task(self._maintenance.run(), name="job maintenance")
        firing = asyncio.create_task(self._firing.run(), name="job schedules")
        looking = asyncio.create_task(self._look_after(), name="job loop watcher")
        tasks = (maintaining, firing, looking)
        try:
            await asyncio.wait({*tasks, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            for one in (self._ended, *tasks):
                if one.done():
                    one.result()
            await maintaining  # until it was told to leave
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._lease.end(timeout_s=0.0)

    async def stop(self, watching: asyncio.Task[None], timeout_s: float) -> None:
        """Claim no more, give jobs `timeout_s`, cancel, give back what is left: in 1.75 times that, whatever hangs."""
        self._times = StopTimes.of(timeout_s)
        if self._thread.is_alive():
            self._tell(self._stop.set)
            await asyncio.wait([self._ended], timeout=self._times.total_s)
        if self._thread.is_alive() and not self._ended.done():
            # A handler blocks its loop. The thread ends with the process; its jobs are given back from here.
            self._life.emit("jobs.loop_abandoned", level="error", stack=self._stack(), running=len(self.running))
        # From here on the worker's row is not made again; what it stands for is given back.
        self._firing.leave()
        self._lease.end()
        self._maintenance.leave()
        await asyncio.wait([watching], timeout=self._times.write_s)

    # ---------------------------------------------------------------------------------------------------- other threads

    def _run(self) -> None:
        """The thread: the worker on its loop, until it has stopped. A stray SystemExit does not end it."""
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._tick)
        work = self._worked()
        while work.cancelled() and not self._stop.is_set():
            self._emit_from_afar(
                "jobs.worker_restarted", level="error", hint="A handler has cancelled every task of its event loop."
            )
            work = self._worked()
        error = None if work.cancelled() else work.exception()
        with contextlib.suppress(RuntimeError):  # the loop of HTTP has ended before
            self._main.call_soon_threadsafe(self._end, error)

    def _worked(self) -> asyncio.Task[None]:
        """The worker's task, when it has ended."""
        work = self._loop.create_task(self._worker.run(self._stop, lambda: self._times))
        while not work.done():
            try:
                self._loop.run_until_complete(work)
            except BaseException as stray:  # noqa: BLE001 told, or handed to the loop of HTTP
                if work.done():
                    break
                # A task that a handler started raised SystemExit or KeyboardInterrupt: asyncio lets those through.
                self._emit_from_afar("jobs.stray_exit_ignored", level="error", error=type(stray).__name__)
        return work

    def _end(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _tell(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call it on the loop of the handlers."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _threads_exhausted(self, waiting: int) -> None:
        """In the handlers' thread: a call finds no thread that is free."""
        now = time.monotonic()
        if now - self._threads_said_at > _SAY_EVERY_S:
            self._threads_said_at = now
            self._emit_from_afar(
                "jobs.threads_exhausted",
                level="warning",
                waiting=waiting,
                hint="Handlers keep all threads of asyncio.to_thread busy; further calls wait for their turn.",
            )

    def _lease_changed(self) -> None:
        """In the lease's thread: it is held, or jobs were taken over."""
        self._tell(self._worker.compare_soon)

    def _emit_from_afar(self, name: str, **facts: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self._main.call_soon_threadsafe(functools.partial(self._life.emit, name, **facts))

    def _stray(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a task of a handler's raised, and nobody awaited."""
        if not self._stop.is_set():
            error = context.get("exception")
            self._emit_from_afar("jobs.task_failed", level="warning", error=str(context.get("message")), exc_info=error)

    def _tick(self) -> None:
        self._ticked_at = time.monotonic()

    async def _look_after(self) -> None:
        """Say it when a handler blocks the loop of them all, and where it stands."""
        said_at = 0.0
        blocked = False
        pool_full_since: float | None = None
        while True:
            self._tell(self._tick)
            await asyncio.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            pool_full_since = (pool_full_since or now) if self._worker.is_pool_exhausted else None
            if pool_full_since is not None and now - pool_full_since > _POOL_FULL_AFTER_S:
                pool_full_since = now + _SAY_EVERY_S
                self._life.emit(
                    "jobs.pool_exhausted",
                    level="warning",
                    jobs=sorted({one.name for one in self.running}),
                    hint="All connections of ctx.pool have been in use for a long time. A handler that acquires a"
                    " second one"
                    " while it holds the first can wait for ever: pass the connection on instead.",
                )
            silent_s = time.monotonic() - self._ticked_at
            if silent_s > _BLOCKED_AFTER_S and not self._ended.done():
                blocked = True
                if time.monotonic() - said_at > _SAY_EVERY_S:
                    said_at = time.monotonic()
                    self._life.emit(
                        "jobs.loop_blocked",
                        level="error",
                        blocked_s=round(silent_s, 1),
                        stack=self._stack(),
                        hint="A handler blocks the event loop of all jobs: use asyncio.to_thread for blocking work.",
                    )
            elif blocked:
                blocked, said_at = False, 0.0
                self._life.emit("jobs.loop_freed")

    def _stack(self) -> list[str]:
        """Where the thread of the handlers is, innermost last: files and lines, no values."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001 the way that the manual names
        frames = traceback.extract_stack(frame)[-_FRAMES_SHOWN:] if frame is not None else []
        return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]


@asynccontextmanager
async def job_server(
    dsn: Dsn,
    registry: Registry,
    life: Lifecycle,
    *,
    concurrency: int,
    lease_s: float,
    stop_timeout_s: float,
    redact: Callable[[str], str],
    service: Service | None = None,
) -> AsyncIterator[tuple[JobServer, asyncio.Task[None]]]:
    """Run jobs while the block runs; yields the server, and the task that ends only if it breaks: watch that.

    Nothing is waited for at the start: connections are made as the database allows. At the end jobs have
    `stop_timeout_s` to finish; what does not is cancelled, and queued again without the loss of an attempt.
    """
    server = JobServer(
        dsn,
        registry,
        life,
        concurrency=concurrency,
        lease_s=lease_s,
        redact=redact,
        service=service,
    )
    watching = asyncio.create_task(server.watch(), name="job server")
    try:
        yield server, watching
    finally:
        try:
            await server.stop(watching, stop_timeout_s)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
