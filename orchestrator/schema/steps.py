"""What a generated migration is made of: statements with their place in the file. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orchestrator.schema.tables import ObjectName

Target = tuple[Literal["table", "column", "enum"], "ObjectName", str]


class Rank(IntEnum):
    """Where a statement stands in the file: each rank needs only what comes before it."""

    ANSWER = auto()  # a rename that somebody confirmed: the rest is written for what comes of it
    DROP_VIEW = auto()
    SCHEMA = auto()
    TYPE = auto()
    DROP_IDENTITY = auto()
    SEQUENCE = auto()
    RENAME = auto()
    DROP_KEY = auto()
    DROP_CONSTRAINT = auto()
    DROP_NAMESAKE = auto()
    RENAME_AGAIN = auto()
    ENUM = auto()
    TABLE = auto()
    ANEW = auto()
    ALTER = auto()
    COLUMN = auto()
    CONSTRAINT = auto()
    INDEX = auto()
    KEY = auto()
    REST = auto()
    VIEW = auto()
    PLACE = auto()
    DROP_COLUMN = auto()
    DROP_TABLE = auto()
    DROP_SEQUENCE = auto()
    DROP_TYPE = auto()
    # Of --online: outside a transaction, then scans that block nobody, then what stands on both.
    DROP_CONCURRENTLY = auto()
    CONCURRENTLY = auto()
    VALIDATE = auto()
    FINISH = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, without its semicolon; empty where there is nothing that could be run, and `note` says why.

    `drops` is True for what takes something away for good. `otherwise` is tried where the server knows no such cast
    (42804, 42846). `target` is the table or column that is made or dropped. `changed_rows` is a query for the number of
    rows whose value the step changes. `allow` is what `lint` is to let pass, and why.
    """

    rank: Rank
    sql: str
    note: str = ""
    drops: bool = False
    otherwise: Step | None = None
    target: Target | None = None
    changed_rows: str = ""
    adds_enum_value: bool = False
    allow: str = ""
