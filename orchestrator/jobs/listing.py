"""Lists of jobs, the newest first, by any filter: what they cost does not grow with the jobs kept. Reads the database.

`jobs_list_index` keeps the jobs of one name, state and queue in the order of their ids. A filter stands for some of
these groups, which are few: they are found by stepping from one to the next, each is asked for its newest, and those
that can be on the page are merged. So what no job matches costs a few steps, and what many match no more than a page.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrator.jobs.store import (
    MESSAGE_MAX,
    STATES,
    SUMMARY,
    JobFilter,
    JobPage,
    JobSummary,
    State,
    conditions_of,
    fields_of,
    in_utc,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULT_BYTES_MAX = 65536
# An id is drawn a moment after `created_at` is read off the clock: by how much they may disagree about who came first.
_SKEW = timedelta(minutes=1)


_IDS = "SELECT j.id FROM orchestrator.jobs j"
# From one name to the next, and within a name and state from one queue to the next, each by one look into the index.
_NAMES = """
    (SELECT j.name FROM orchestrator.jobs j WHERE j.state <> 'running' ORDER BY j.name LIMIT 1)
    UNION ALL
    SELECT next.name FROM names n CROSS JOIN LATERAL (
        SELECT j.name FROM orchestrator.jobs j WHERE j.state <> 'running' AND j.name > n.name ORDER BY j.name LIMIT 1
    ) next
"""
_QUEUES = """
    LATERAL (
        SELECT j.queue FROM orchestrator.jobs j WHERE j.state <> 'running' AND j.name = n.name AND j.state = s.state
        ORDER BY j.queue LIMIT 1
    ) q
    UNION ALL
    SELECT g.name, g.state, q.queue FROM groups g CROSS JOIN LATERAL (
        SELECT j.queue FROM orchestrator.jobs j WHERE j.state <> 'running' AND j.name = g.name AND j.state = g.state
        AND j.queue > g.queue ORDER BY j.queue LIMIT 1
    ) q
"""


class _Query:
    """The SQL of one list: its parameters, and what can be asked of any group of jobs."""

    def __init__(self, which: JobFilter, states: Sequence[State], before: int | None, first_id: int | None) -> None:
        self.arguments: list[Any] = []
        self.name = None if which.name is None else self._given(which.name, "text")
        self.queue = None if which.queue is None else self._given(which.queue, "text")
        self.schedule = None if which.schedule is None else self._given(which.schedule, "text")
        self._states = states
        limits = []
        if before is not None:
            limits.append(f"j.id < {self._given(before, 'bigint')}")
        if which.since is not None:
            limits.append(f"j.id > {self._given(first_id or 0, 'bigint')}")
            limits.append(f"j.created_at >= {self._given(in_utc(which.since), 'timestamptz')}")
        self.limits = "".join(f" AND {limit}" for limit in limits)

    def _given(self, value: Any, kind: str) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}::{kind}"

    def _matching(self) -> str:
        """The conditions on name and queue themselves."""
        wanted = (("name", self.name), ("queue", self.queue))
        return "".join(f" AND j.{column} = {value}" for column, value in wanted if value is not None)

    def everything(self, limit: int) -> str:
        """The newest of all."""
        return f"{_IDS} WHERE true{self.limits} ORDER BY j.id DESC LIMIT {limit}"

    def by_schedule(self, limit: int) -> str:
        """The newest of one schedule, by the index of what schedules added."""
        states = self._given(list(self._states), "text[]")
        return f"""
            SELECT j.id FROM unnest({states}) AS s(state) CROSS JOIN LATERAL (
                {_IDS} WHERE j.schedule = {self.schedule} AND j.state = s.state{self._matching()}{self.limits}
                ORDER BY j.id DESC LIMIT {limit}
            ) j ORDER BY j.id DESC LIMIT {limit}
        """  # noqa: S608 columns are constants, values are parameters

    def by_group(self, limit: int) -> str:
        """The newest of some names, states and queues."""
        states = self._given([state for state in self._states if state != "running"], "text[]")
        newest = (
            f"{_IDS} WHERE j.state <> 'running' AND j.name = g.name AND j.state = g.state AND j.queue = g.queue"
            f"{self.limits}"
        )
        return f"""
            WITH RECURSIVE names(name) AS (
                {_NAMES if self.name is None else f"SELECT {self.name}"}
            ), groups(name, state, queue) AS (
                SELECT n.name, s.state, q.queue FROM names n CROSS JOIN unnest({states}) AS s(state)
                CROSS JOIN {_QUEUES if self.queue is None else f"(SELECT {self.queue} AS queue) q"}
            ), tops AS MATERIALIZED (
                SELECT g.name, g.state, g.queue, t.id
                FROM groups g CROSS JOIN LATERAL ({newest} ORDER BY j.id DESC LIMIT 1) t
            ), least AS MATERIALIZED (
                -- As many groups as a page has places have one that is as new: nothing older can be on the page.
                SELECT coalesce((SELECT t.id FROM tops t ORDER BY t.id DESC OFFSET {limit - 1} LIMIT 1), 0) AS id
            )
            SELECT j.id FROM tops g CROSS JOIN LATERAL (
                {newest} AND j.id >= (SELECT l.id FROM least l) ORDER BY j.id DESC LIMIT {limit}
            ) j
            UNION ALL
            {_IDS} WHERE {"running" in self._states} AND j.state = 'running'{self._matching()}{self.limits}
            ORDER BY id DESC LIMIT {limit}
        """  # noqa: S608 columns are constants, values are parameters

    def newest(self, limit: int) -> str:
        """Ids of the newest that match, at most `limit`."""
        if self.schedule is not None:
            return self.by_schedule(limit)
        return self.by_group(limit)


# Halving the ids: whatever has a lower one than the answer was added before the moment.
_FIRST_ID = """
WITH RECURSIVE search(low, high) AS (
    SELECT 0::bigint, (SELECT max(id) FROM orchestrator.jobs)
    UNION ALL
    SELECT CASE WHEN f.is_older THEN f.id ELSE m.low END, CASE WHEN f.is_older THEN m.high ELSE m.middle - 1 END
    FROM (SELECT s.low, s.high, s.low + (s.high - s.low) / 2 + 1 AS middle FROM search s WHERE s.low < s.high) m
    CROSS JOIN LATERAL (
        SELECT j.id, j.created_at < $1 AS is_older FROM orchestrator.jobs j WHERE j.id >= m.middle ORDER BY j.id LIMIT 1
    ) f
)
SELECT low FROM search WHERE low >= high
"""


async def _first_id(connection: Any, since: datetime | None) -> int | None:
    if since is None:
        return None
    moment = in_utc(since)
    earliest = datetime.min.replace(tzinfo=moment.tzinfo) + _SKEW
    found: int | None = await connection.fetchval(_FIRST_ID, max(moment, earliest) - _SKEW)
    return found


async def _newest(connection: Any, which: JobFilter, before: int | None, limit: int) -> tuple[str, list[Any]]:
    """The SQL of the newest ids that the filter lets through, and its arguments."""
    if which.retrying is not None or which.failure is not None:
        # What fails or is tried again has indexes of its own, and is little.
        conditions, arguments = conditions_of(which, before)
        return f"{_IDS} WHERE {' AND '.join(conditions)} ORDER BY j.id DESC LIMIT {limit}", arguments
    states = STATES if which.state is None else (which.state,)
    query = _Query(which, states, before, await _first_id(connection, which.since))
    is_narrow = any((which.state, which.name, which.queue, which.schedule))
    return query.newest(limit) if is_narrow else query.everything(limit), query.arguments


async def read_jobs(connection: Any, which: JobFilter, *, before: int | None, limit: int) -> JobPage:
    """A page of `limit` jobs, the newest first; `before` is the last page's `next_cursor`."""
    found, arguments = await _newest(connection, which, before, limit + 1)
    rows = await connection.fetch(
        f"SELECT {SUMMARY} FROM ({found}) f JOIN orchestrator.jobs j ON j.id = f.id ORDER BY j.id DESC",  # noqa: S608 as above
        *arguments,
    )
    jobs = [JobSummary(**fields_of(row)) for row in rows[:limit]]
    return JobPage(jobs, str(jobs[-1].id) if len(rows) > limit else None)


class ResultRow(msgspec.Struct, frozen=True):
    """A job that runs or has ended, in short. `at` is when it ended, else when it began; `error` is the message."""

    id: int
    name: str
    state: State
    output: Any
    error: str | None
    processing_ms: int | None
    at: datetime


_RESULT_STATES: dict[str, tuple[State, ...]] = {
    "processing": ("running",),
    "completed": ("succeeded",),
    "failed": ("failed", "cancelled"),
}


async def read_results(
    connection: Any, *, status: Literal["processing", "completed", "failed"] | None, name: str | None, limit: int
) -> list[ResultRow]:
    """Jobs that run or have ended, the newest first; outputs above 64 KiB are left out."""
    states = _RESULT_STATES[status] if status else tuple(state for some in _RESULT_STATES.values() for state in some)
    query = _Query(JobFilter(name=name), states, None, None)
    rows = await connection.fetch(
        f"""
        SELECT j.id, j.name, j.state,
            CASE WHEN octet_length(j.output::text) <= {_RESULT_BYTES_MAX} THEN j.output::text END AS output,
            left(j.error->>'message', {MESSAGE_MAX}) AS error,
            least(extract(epoch FROM j.finished_at - j.started_at) * 1000, 3600000)::bigint AS processing_ms,
            coalesce(j.finished_at, j.started_at, j.created_at) AS at
        FROM ({query.newest(limit)}) f JOIN orchestrator.jobs j ON j.id = f.id ORDER BY j.id DESC
        """,  # noqa: S608 as above
        *query.arguments,
    )
    return [ResultRow(**fields_of({**row, "error": None}) | {"error": row["error"]}) for row in rows]
