"""What must hold after a run, by what the tables say, what the handlers wrote down, and what clients were told."""

import itertools
import json
from datetime import datetime
from pathlib import Path

import asyncpg

from chaos.history import History, Told
from chaos.load import LIMITS

_EVENTS = """
SELECT id, job_id, attempt, state, at FROM orchestrator.job_events WHERE kind = 'transition' ORDER BY id
"""


class Checker:
    """The promises, one method each; `problems` are sentences."""

    def __init__(self, history: History, connection: asyncpg.Connection, directory: Path) -> None:
        self._history, self._connection = history, connection
        self._runs = [json.loads(line) for line in (directory / "runs.jsonl").read_text().splitlines()]
        self.problems: list[str] = []
        self.figures: dict[str, object] = {}

    async def check(self) -> list[str]:
        await self._jobs()
        await self._attempts()
        await self._keys()
        await self._schedules()
        await self._events()
        spans = self._spans()
        self._once_at_a_time(spans, 3, "job")
        self._once_at_a_time([span for span in spans if span[6] is not None], 6, "dedupe key")
        self._limits(spans)
        return self.problems

    def _broken(self, *sentences: str) -> None:
        self.problems += sentences

    async def _jobs(self) -> None:
        """Acknowledged is ended; rolled back never ran; cancelled stays cancelled."""
        history = self._history
        rows = await self._connection.fetch("SELECT id, state FROM orchestrator.jobs")
        states = {row["id"]: row["state"] for row in rows}
        ran = {line[3] for line in self._runs}
        self._broken(*(f"acknowledged job {one} is gone" for one in history.acknowledged - states.keys()))
        # After a crash a number may be drawn again, by a job that was added and kept.
        undone = (history.rolled_back - states.keys()) & ran
        self._broken(*(f"job {one} was rolled back, and ran" for one in undone))
        for one in history.cancelled:
            if states.get(one) != "cancelled":
                self._broken(f"job {one} was cancelled, and is {states.get(one)}")
            if one in ran:
                self._broken(f"job {one} was cancelled before it began, and ran")
        self.figures |= {"acknowledged": len(history.acknowledged), "runs": len(self._runs) // 2}

    async def _attempts(self) -> None:
        """One success a job; no attempt of a worker is lost that lived and was reachable."""
        for row in await self._connection.fetch(
            "SELECT job_id, count(*) FROM orchestrator.job_events WHERE state = 'succeeded'"
            " GROUP BY 1 HAVING count(*) > 1"
        ):
            self._broken(f"job {row[0]} succeeded {row[1]} times")
        for row in await self._connection.fetch(
            "SELECT name, queue, state, sum(n) AS n FROM ("
            " SELECT name, queue, state, count(*) AS n FROM orchestrator.jobs GROUP BY 1, 2, 3"
            " UNION ALL SELECT name, queue, state, -count FROM orchestrator.job_figures"
            ") both_ways GROUP BY 1, 2, 3 HAVING sum(n) <> 0"
        ):
            self._broken(f"{row['name']} {row['queue']} {row['state']}: {row['n']} more than are counted")
        known = {
            row["id"]: row["pid"] for row in await self._connection.fetch("SELECT id, pid FROM orchestrator.workers")
        }
        known |= self._history.workers
        lost = await self._connection.fetch(
            "SELECT job_id, attempt, worker, extract(epoch FROM started_at)::float8 AS since,"
            " extract(epoch FROM finished_at)::float8 AS until FROM orchestrator.attempts WHERE outcome = 'lost'"
        )
        for row in lost:
            pid = known.get(row["worker"], -1)
            if not self._history.is_excused(pid, row["since"], row["until"]):
                self._broken(f"attempt {row['attempt']} of job {row['job_id']} was lost, of pid {pid}, which lived")
        outcomes = await self._connection.fetch(
            "SELECT outcome, count(*) FROM orchestrator.attempts GROUP BY 1 ORDER BY 1"
        )
        self.figures |= {"outcomes": dict(outcomes), "lost": len(lost)}

    async def _keys(self) -> None:
        """A request that is sent again is the same job; a dedupe key names a job of its own."""
        self._broken(*self._history.key_changes)
        rows = await self._connection.fetch(
            "SELECT idempotency_key AS key, id FROM orchestrator.jobs WHERE idempotency_key IS NOT NULL"
            " UNION ALL SELECT key, job_id FROM orchestrator.idempotency_keys"
        )
        there: dict[str, set[int]] = {}
        for row in rows:
            there.setdefault(row["key"], set()).add(row["id"])
        dedupe = dict(await self._connection.fetch("SELECT id, dedupe_key FROM orchestrator.jobs"))
        for key, (job_id, dedupe_key) in self._history.keys.items():
            if there.get(key) != {job_id}:
                self._broken(f"idempotency key {key} was answered by job {job_id}, and stands for {there.get(key)}")
            if dedupe.get(job_id) != dedupe_key:
                self._broken(f"job {job_id} answered dedupe key {dedupe_key}, and has {dedupe.get(job_id)}")
        self.figures["keys"] = len(self._history.keys)

    async def _schedules(self) -> None:
        """A time fires once, and every job of a schedule was fired for a time."""
        twice = await self._connection.fetch(
            "SELECT name, slot, count(*) FROM public.fired GROUP BY 1, 2 HAVING count(*) > 1"
        )
        self._broken(*(f"schedule {row[0]} fired {row[2]} times for {row[1]}" for row in twice))
        unfired = await self._connection.fetch(
            "SELECT j.id FROM orchestrator.jobs j WHERE j.schedule IS NOT NULL AND j.name = 'tick'"
            " AND NOT EXISTS (SELECT FROM public.fired f WHERE f.job_id = j.id AND f.name = j.schedule)"
        )
        self._broken(*(f"job {row[0]} of a schedule was made for no time" for row in unfired))
        self.figures["slots"] = await self._connection.fetchval("SELECT count(*) FROM public.fired")
        if not self.figures["slots"]:
            self._broken("no schedule fired")

    async def _events(self) -> None:
        """Each event is told once to each follower, and those of one job in their order."""
        rows = await self._connection.fetch(_EVENTS)
        for number, told in enumerate(self._history.told):
            if told.began is None:
                self._broken(f"follower {number} was never told anything")
                continue
            written = [(r["job_id"], r["attempt"], r["state"], r["at"]) for r in rows if r["id"] > told.began]
            heard = [(job, attempt, state, datetime.fromisoformat(at)) for job, attempt, state, at in told.events]
            # What was in a gap at the beginning comes later: older than the beginning, and told all the same.
            older = {(r["job_id"], r["attempt"], r["state"], r["at"]) for r in rows if r["id"] <= told.began}
            self._compare(number, told, written, [one for one in heard if one not in older])
        self.figures["told"] = sum(len(told.events) for told in self._history.told)

    def _compare(self, number: int, told: Told, written: list[tuple], heard: list[tuple]) -> None:
        if len(set(heard)) < len(heard):
            self._broken(f"follower {number} was told {len(heard) - len(set(heard))} events twice")
        missing, strange = set(written) - set(heard), set(heard) - set(written)
        if missing:
            self._broken(f"follower {number} was not told {len(missing)} events: {sorted(missing)[:3]}")
        if strange:
            self._broken(f"follower {number} was told {len(strange)} events that are not there: {sorted(strange)[:3]}")
        if told.not_resumed:
            self._broken(f"follower {number} lost its place {told.not_resumed} times")
        order: dict[int, list[tuple]] = {}
        for one in written:
            order.setdefault(one[0], []).append(one)
        seen: dict[int, list[tuple]] = {}
        for one in heard:
            seen.setdefault(one[0], []).append(one)
        for job_id, events in seen.items():
            if events != order.get(job_id) and sorted(events) == sorted(order.get(job_id, [])):
                self._broken(f"follower {number} was told the events of job {job_id} out of their order: {events}")

    # ---------------------------------------------------------------------------------------- what handlers wrote down

    def _spans(self) -> list[tuple]:
        """Each run: since, until, name, job, attempt, pid, key."""
        killed = {one.pid: one.since for one in self._history.excuses if one.why == "killed"}
        spans: dict[tuple, list] = {}
        for at, what, name, job_id, attempt, pid, key in sorted(self._runs, key=lambda line: line[0]):
            if what == "begin":
                spans.setdefault((name, job_id, attempt, pid, key), []).append([at, None])
            else:
                spans[name, job_id, attempt, pid, key][-1][1] = at
        return [
            (since, until or killed.get(run[3], since), *run) for run, times in spans.items() for since, until in times
        ]

    def _once_at_a_time(self, spans: list[tuple], column: int, what: str) -> None:
        by_value: dict[object, list] = {}
        for span in spans:
            by_value.setdefault(span[column], []).append(span)
        for value, mine in by_value.items():
            for one, other in itertools.pairwise(sorted(mine)):
                if other[0] < one[1] and not self._history.is_excused(one[5], one[0], one[1]):
                    self._broken(f"{what} {value} ran twice at once: {one} and {other}")

    def _limits(self, spans: list[tuple]) -> None:
        for name, limit in LIMITS.items():
            # Ends before begins, where they are of the same moment.
            mine = [s for s in spans if s[2] == name and not self._history.is_excused(s[5], s[0], s[1])]
            moments = sorted([(span[0], 1, 1) for span in mine] + [(span[1], 0, -1) for span in mine])
            most = max(itertools.accumulate((step for *_, step in moments), initial=0))
            if most > limit:
                self._broken(f"{most} of {name} ran at once, and {limit} may")
