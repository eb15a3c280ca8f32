"""Renew the lease of one worker: a thread, a loop and a connection that do nothing else. Touches the database.

All that a worker has claimed is its own for as long as its row in `workers` is renewed, so nothing that can wait may
stand between a living process and that one small statement: no handler, no request, no other statement of ours.

Every wait is bounded by a share of the lease: a renewal begins every sixth of it, and one that has no answer after
another sixth is given up with its connection, so a connection that was dropped in silence is replaced within a third.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from orchestrator import __version__
from orchestrator.database.connect import connect_once
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.database.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.jobs.parameters import WorkerParameters

_BEAT_SHARE = 6
_BEAT_MOST_S = 5.0
_LIMIT_LEAST_S = 0.1
_CONNECT_LEAST_S = 0.5
_AGAIN_LEAST_S, _AGAIN_MOST_S = 0.02, 0.5

# Asynchronous: a renewal that a crash of the server undoes is made again, long before anyone can miss it.
_SETTINGS = "SET synchronous_commit = off; SET jit = off; SET statement_timeout = {limit_ms}"
_RENEW = """
INSERT INTO orchestrator.workers AS w
    (id, host, pid, version, concurrency, running, lease_s, handlers, schemas, seen_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), running = excluded.running
RETURNING w.taken_over
"""


class Lease:
    """The lease of one worker, renewed from `start` until `end`.

    `changed` is called in the lease's own thread when the lease is held, again or for the first time, and when jobs
    were taken over from this worker. `count` says how many jobs run here.
    """

    def __init__(self, parameters: WorkerParameters, *, count: Callable[[], int], changed: Callable[[], None]) -> None:
        self._parameters, self._count, self._changed = parameters, count, changed
        lease_s = parameters.lease_s
        self._every_s = min(lease_s / _BEAT_SHARE, _BEAT_MOST_S)
        self._limit_s = max(_LIMIT_LEAST_S, self._every_s)
        self._connect_limit_s = max(_CONNECT_LEAST_S, min(lease_s / 3, parameters.dsn.connect_timeout_s))
        self._renewed_at: float | None = None
        self._taken_over: int | None = None
        self._outage = Outage(least_s=_AGAIN_LEAST_S, most_s=min(_AGAIN_MOST_S, self._every_s))
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="job lease", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def end(self, *, timeout_s: float = 1.0) -> None:
        """Renew no more. Blocking, for as long as a statement takes to be cut off."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(timeout_s)

    @property
    def age_s(self) -> float | None:
        """Seconds since the last renewal; None before the first."""
        return None if self._renewed_at is None else time.monotonic() - self._renewed_at

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._renew_until_over())
        finally:
            self._loop.close()

    async def _renew_until_over(self) -> None:
        renewing = asyncio.create_task(self._renew_for_ever())
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait({renewing, over}, return_when=asyncio.FIRST_COMPLETED)
        renewing.cancel()
        over.cancel()
        await asyncio.gather(renewing, over, return_exceptions=True)

    async def _renew_for_ever(self) -> None:
        while True:
            connection: Any = None
            try:
                connection = await connect_once(
                    self._parameters.dsn,
                    timeout_s=self._connect_limit_s,
                    application_name="orchestrator lease",
                    silence_s=self._parameters.lease_s / 3,
                )
                if self._parameters.dsn.statement_cache:
                    # The server gives up first: a row that is locked costs a statement, not a connection.
                    await connection.execute(
                        _SETTINGS.format(limit_ms=max(50, int(self._limit_s * 750))), timeout=self._limit_s
                    )
                while True:
                    began = time.monotonic()
                    await self._renew(connection)
                    self._outage.over()
                    await asyncio.sleep(max(0.0, began + self._every_s - time.monotonic()))
            except CONNECTION_ERRORS as error:
                self._failed(error)
                await asyncio.sleep(self._outage.wait_s)
            finally:
                if connection is not None:
                    connection.terminate()

    async def _renew(self, connection: Any) -> None:
        """One renewal; where a lock stands in the way, again and again on the same connection."""
        given = self._parameters
        handlers = given.registry.handlers.values()
        while True:
            began = time.monotonic()
            try:
                taken_over = await connection.fetchval(
                    _RENEW,
                    given.worker_id,
                    socket.gethostname(),
                    os.getpid(),
                    __version__,
                    given.concurrency,
                    self._count(),
                    given.lease_s,
                    [handler.name for handler in handlers],
                    [handler.schema_hash for handler in handlers],
                    timeout=self._limit_s,
                )
            except (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError) as error:
                self._failed(error)
                await asyncio.sleep(_AGAIN_LEAST_S)
                continue
            # From before the statement: what the database counts from is later.
            was_over = self._renewed_at is None or began - self._renewed_at > given.lease_s / 2
            was_taken = taken_over != self._taken_over
            self._renewed_at, self._taken_over = began, taken_over
            if was_over or was_taken:
                self._changed()
            return

    def _failed(self, error: BaseException) -> None:
        """Say it, once a cause and every half minute."""
        failure = classify(error)
        if not self._outage.failed(failure):
            return
        age_s = self.age_s
        self._parameters.emit(
            "jobs.lease_not_renewed",
            level="warning",
            cause=failure.cause,
            sqlstate=failure.sqlstate,
            renewed_s_ago=None if age_s is None else round(age_s, 1),
            lease_s=self._parameters.lease_s,
            hint="Trying again; other workers take these jobs over only when the lease is over.",
        )
