"""Collects what one statement does to relations, as the rules for it are gone through. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.analysis import ast
from orchestrator.analysis.locks import Cause, Impact, Lock, Touch, Work

if TYPE_CHECKING:
    from orchestrator.analysis.ast import Name
    from orchestrator.analysis.catalog import Known, KnownTable


@dataclass(slots=True)
class _Relation:
    lock: Lock
    kind: str
    works: list[Work] = field(default_factory=list)


@dataclass(slots=True)
class ImpactDraft:
    """The impact of one statement so far. `notes` are for a person."""

    known: Known
    relations: dict[Name, _Relation] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def touch(self, name: Name, lock: Lock, *works: Work, kind: str = "table") -> None:
        """Add what is done to a relation; the strongest lock counts."""
        relation = self.relations.setdefault(self.known.full(name), _Relation(lock, kind))
        relation.lock = max(relation.lock, lock)
        relation.works += [work for work in works if work not in relation.works]

    def tree(self, name: Name, lock: Lock, *works: Work, inherit: bool = True) -> None:
        """The same for a table and what inherits from it. A partitioned table holds no rows; its partitions do."""
        children = self.known.children(name) if inherit else ()
        table = self.known.find(name)
        # Without a catalogue to read, its partitions may be unknown: those that a scheduled job makes, for one.
        is_empty = table is not None and table.kind == "partitioned" and (self.known.live or bool(children))
        self.touch(name, lock, *(() if is_empty else works))
        for child in children:
            self.touch(child.name, lock, *(() if child.kind == "partitioned" else works))

    def reads(self, fields: object, lock: Lock = Lock.ACCESS_SHARE) -> None:
        """The relations that a query names."""
        for name in sorted(ast.read_tables(fields), key=str):
            if name.schema not in {"pg_catalog", "information_schema"}:
                self.touch(name, lock)
        for _, inner in ast.nodes(fields, "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"):
            self.touch(ast.relation(inner["relation"]), Lock.ROW_EXCLUSIVE)

    def rebuild_indexes(self, name: Name, *, inherit: bool) -> None:
        """The indexes of a table that is rewritten are built again."""
        for table in [self.known.find(name), *(self.known.children(name) if inherit else ())]:
            if table and table.indexes > 0:
                count = "index is" if table.indexes == 1 else f"{table.indexes} indexes are"
                work = Work("builds", Cause.FOLLOWS, f"its {count} built again")
                self.touch(table.name, Lock.ACCESS_EXCLUSIVE, work)

    def drop_foreign_keys(
        self, table: KnownTable | None, columns: set[str] | None = None, *, remade: bool = False
    ) -> None:
        """Dropping a foreign key drops its triggers on the other table too, under ACCESS EXCLUSIVE."""
        for key in table.foreign_keys.values() if table else ():
            if columns is None or key.columns & columns:
                works = [referenced_by(table.name)] if table and remade and key.valid else []
                self.touch(key.references, Lock.ACCESS_EXCLUSIVE, *works)

    def impact(self, *, outside: bool) -> Impact:
        """The impact, the strongest lock on a table in use first."""
        touches = []
        for name, relation in self.relations.items():
            table = self.known.find(name)
            touches.append(
                Touch(
                    table=name,
                    kind=table.kind if table else relation.kind,
                    lock=relation.lock,
                    works=tuple(relation.works),
                    fresh=table is not None and table.fresh,
                    rows=table.rows if table else None,
                    size_bytes=table.size_bytes if table else None,
                )
            )
        touches.sort(key=lambda touch: (touch.fresh, -touch.lock, not touch.work))
        return Impact(tuple(touches), outside, tuple(self.notes))


def referenced_by(name: Name) -> Work:
    """The work on the table that a foreign key of `name` leads to. The planner may use an index instead of a scan."""
    return Work("scans", Cause.REFERENCED, f"searched for each row of {name}")
