"""What a statement does to tables: its locks, its work, and which locks stay through a transaction. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orchestrator.analysis.ast import Name


class Lock(IntEnum):
    """Table-level lock modes, the weakest first (lockdefs.h)."""

    ACCESS_SHARE = 1
    ROW_SHARE = 2
    ROW_EXCLUSIVE = 3
    SHARE_UPDATE_EXCLUSIVE = 4
    SHARE = 5
    SHARE_ROW_EXCLUSIVE = 6
    EXCLUSIVE = 7
    ACCESS_EXCLUSIVE = 8

    @property
    def mode(self) -> str:
        """As pg_locks has it: `AccessExclusiveLock`."""
        return f"{self.name.title().replace('_', '')}Lock"

    @classmethod
    def of(cls, mode: str) -> Lock:
        """The lock that pg_locks calls `mode`."""
        return next(lock for lock in cls if lock.mode == mode)

    @property
    def blocks(self) -> str:
        """Who waits while it is held."""
        if self is Lock.ACCESS_EXCLUSIVE:
            return "reads and writes"
        if self >= Lock.SHARE:
            return "writes"
        return "other DDL" if self is Lock.SHARE_UPDATE_EXCLUSIVE else "nothing"


class Cause(Enum):
    """Why a statement works on the rows of a table; `lint` has a rule for most of them."""

    NEW_VALUES = "a new column has its own value in each row"
    REQUIRED = "a new column is NOT NULL and has no value"
    INDEX = "an index is built"
    CHECK = "a CHECK is tested"
    NOT_NULL = "a column is tested for NULL"
    FOREIGN_KEY = "each row is looked up in another table"
    REFERENCED = "each row of another table is looked up in this one"
    TYPE_CHANGE = "a column changes its type"
    STORAGE = "the table is stored in another way"
    PARTITION_BOUNDS = "each row is tested against the bounds of a partition"
    VALIDATION = "VALIDATE CONSTRAINT"
    DOMAIN = "the constraint of a domain is tested"
    MAINTENANCE = "VACUUM, ANALYZE, CLUSTER, REINDEX or REFRESH"
    DATA = "rows are written"
    FOLLOWS = "the work on another table, or on the table's rows, makes it necessary"


@dataclass(frozen=True, slots=True)
class Work:
    """Work that grows with the rows of one relation. `why` is for a person.

    `offset` is the place in the statement that asks for it, in bytes from the statement's first token; 0 stands for the
    statement as a whole. `other` is the second table that a foreign key concerns.
    """

    does: Literal["rewrites", "scans", "builds"]
    cause: Cause
    why: str
    offset: int = 0
    other: Name | None = None


@dataclass(frozen=True, slots=True)
class Touch:
    """What a statement does to one relation.

    `fresh`: the pending set itself makes the relation, so that nobody waits for it and it holds nothing.
    """

    table: Name
    kind: str
    lock: Lock
    works: tuple[Work, ...] = ()
    fresh: bool = False
    rows: int | None = None
    size_bytes: int | None = None

    def why(self, does: Literal["rewrites", "scans", "builds"]) -> str:
        """The reasons in one text; empty where there is no such work."""
        return "; ".join(dict.fromkeys(work.why for work in self.works if work.does == does))

    @property
    def rewrites(self) -> str:
        """Why it is rewritten; empty where it is not."""
        return self.why("rewrites")

    @property
    def scans(self) -> str:
        """Why its rows are read; empty where they are not."""
        return self.why("scans")

    @property
    def builds_index(self) -> str:
        """Which index is built; empty where none is."""
        return self.why("builds")

    @property
    def work(self) -> str:
        """The long work that it does under its lock, in a word; empty where it only touches the catalogue."""
        if self.rewrites:
            return "rewrites"
        return "builds an index" if self.builds_index else "scans" if self.scans else ""

    @property
    def hurts(self) -> bool:
        """Whether running code waits for as long as the work takes."""
        return not self.fresh and bool(self.work) and self.lock >= Lock.SHARE


@dataclass(frozen=True, slots=True)
class Impact:
    """What a statement does. The strongest lock comes first in `touches`; `outside` a transaction it must run."""

    touches: tuple[Touch, ...] = ()
    outside: bool = False
    notes: tuple[str, ...] = ()

    @property
    def lock(self) -> Lock | None:
        """The strongest lock on a relation that others use."""
        return max((t.lock for t in self.touches if not t.fresh), default=None)

    @property
    def hurts(self) -> bool:
        """Whether running code waits for long work."""
        return any(t.hurts for t in self.touches)


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A strong lock on a table in use that stays, since a transaction keeps its locks, while a later statement works.

    `taken_by` and `until` are statement indexes within the file; `work` says what the later one does.
    """

    table: Name
    lock: Lock
    taken_by: int
    until: int
    work: str


@dataclass(slots=True)
class Holding:
    """The locks of the open transaction. `add` each statement in order; a new transaction needs a new one."""

    locks: dict[Name, tuple[Lock, int]] = field(default_factory=dict)

    def add(self, index: int, node: str, impact: Impact) -> list[HeldLock]:
        """What is held, on which other tables use waits, while this statement does long work."""
        work = long_work(node, impact)
        held = []
        if work:
            # What the statement itself locks as strongly is its own affair.
            own = {t.table: t.lock for t in impact.touches}
            held = [HeldLock(t, lock, at, index, work) for t, (lock, at) in self.locks.items() if lock > own.get(t, 0)]
        for touch in impact.touches:
            if (
                touch.lock >= Lock.SHARE
                and not touch.fresh
                and touch.kind in {"table", "partitioned", "materialized view"}
            ):
                lock, at = self.locks.get(touch.table, (touch.lock, index))
                self.locks[touch.table] = (max(lock, touch.lock), at)
        return held


_DATA = {"UpdateStmt": "UPDATE", "DeleteStmt": "DELETE", "MergeStmt": "MERGE", "InsertStmt": "INSERT … SELECT"}


def long_work(node: str, impact: Impact) -> str:
    """The work of a statement that grows with a table in use; empty where there is none."""
    if node in _DATA:
        written = [t for t in impact.touches if t.lock is Lock.ROW_EXCLUSIVE]
        in_use = [t for t in impact.touches if not t.fresh]
        if node == "InsertStmt":
            return f"INSERT from {in_use[0].table}" if [t for t in in_use if t not in written] else ""
        return f"{_DATA[node]} of {written[0].table}" if written and not written[0].fresh else ""
    if node == "CallStmt":
        return "CALL"
    at_work = next((t for t in impact.touches if t.work and not t.fresh), None)
    if at_work is None:
        return ""
    return f"{at_work.work}{' on' if at_work.work.startswith('builds') else ''} {at_work.table}"
