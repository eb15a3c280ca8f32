"""Ask the database every few seconds whether it serves, on a connection of its own: a probe reads memory only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from orchestrator.database.connect import PARTING_S, close, connect_once, next_try
from orchestrator.database.connect_errors import CONNECTION_ERRORS, classify
from orchestrator.lifecycle import Phase

if TYPE_CHECKING:
    from orchestrator.dsn import Dsn
    from orchestrator.lifecycle import Lifecycle

_EVERY_S = 5.0
_TIMEOUT_S = 2.0
# Three failed checks in a row are a loss: 5 s until the first, then 2 s apart, each of 2 s at most: under 20 s.
_FAILURES_TO_LOSE = 3
_EVERY_WHEN_FAILING_S = 2.0
_EVERY_WHEN_LOST_S = 1.0
_REPORT_EVERY_S = 30.0


async def watch_database(dsn: Dsn, life: Lifecycle) -> None:
    """Check for ever: lost → CONNECTING (503), back → READY, in this process. Ends only by cancellation."""
    connection: Any = None
    failures, lost_at, said_at = 0, 0.0, 0.0
    # Who answered, from the login before: it stays on `/health`.
    known = life.checks["database"].facts if "database" in life.checks else {"server": dsn.redacted()}
    try:
        while True:
            await asyncio.sleep(_pause_s(failures))
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    connection = await _checked(connection, dsn)
            except CONNECTION_ERRORS as error:
                if connection is not None:
                    connection.terminate()
                    connection = None
                failures += 1
                failure, now = classify(error), time.monotonic()
                facts: dict[str, object] = {
                    "server": dsn.redacted(),
                    "cause": failure.cause,
                    "sqlstate": failure.sqlstate,
                    **failure.told(),
                    "hint": failure.hint,
                    "failures": failures,
                }
                life.check("database", "failed", **facts, **next_try(life, _pause_s(failures)))
                if failures == _FAILURES_TO_LOSE:
                    lost_at = said_at = now
                    life.emit("database.lost", level="error", **facts)
                    life.enter(Phase.CONNECTING, reason="database lost")
                elif failures > _FAILURES_TO_LOSE and now - said_at >= _REPORT_EVERY_S:
                    said_at = now
                    life.emit("database.connect_failed", level="warning", **facts, lost_s=round(now - lost_at, 1))
                elif failures < _FAILURES_TO_LOSE:
                    life.emit("database.check_failed", level="warning", **facts)
                continue
            if failures >= _FAILURES_TO_LOSE:
                life.emit("database.restored", lost_s=round(time.monotonic() - lost_at, 1))
                life.enter(Phase.READY, reason="database restored")
            failures = 0
            life.check("database", "ok", **known)
    finally:
        if connection is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await close(connection, timeout_s=PARTING_S)


def _pause_s(failures: int) -> float:
    if failures == 0:
        return _EVERY_S
    return _EVERY_WHEN_FAILING_S if failures < _FAILURES_TO_LOSE else _EVERY_WHEN_LOST_S


async def _checked(connection: Any, dsn: Dsn) -> Any:
    if connection is None or connection.is_closed():
        connection = await connect_once(dsn, timeout_s=_TIMEOUT_S, application_name="orchestrator monitor")
    try:
        await connection.fetchval("SELECT 1")
    except BaseException:
        connection.terminate()
        raise
    return connection
