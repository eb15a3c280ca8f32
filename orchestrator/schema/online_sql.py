"""Changes of a table that is in use, in the form that keeps nobody waiting: what `lint` asks for. Pure: no I/O.

A constraint is added NOT VALID and validated in a later file, an index is built CONCURRENTLY in a file of its own, and
NOT NULL comes by way of a CHECK. `table` and `name` are SQL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.database.quoting import identifier
from orchestrator.schema import ddl
from orchestrator.schema.steps import Rank, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.schema.tables import Constraint

# Of a key whose names are all quoted, as they are read for `generate`.
_UNIQUE = re.compile(
    r"(?P<kind>UNIQUE|PRIMARY KEY)(?P<nulls> NULLS NOT DISTINCT)?"
    r' (?P<columns>\((?:"(?:[^"]|"")++"(?:, )?)++\))'
    r'(?P<include> INCLUDE \((?:"(?:[^"]|"")++"(?:, )?)++\))?'
    r"(?P<when> DEFERRABLE.*)?"
)
_NAME_BYTES = 48
MADE_AGAIN = "drop-constraint because it is made again below"


def constraint(table: str, name: str, one: Constraint) -> Iterator[Step] | None:
    """What adds it; None where there is no such form of it."""
    if one.kind in {"check", "foreign key"}:
        return not_valid(table, name, one.definition, key=one.kind == "foreign key")
    found = _UNIQUE.fullmatch(one.definition)
    return _by_index(table, name, found) if found else None


def not_valid(table: str, name: str, definition: str, *, key: bool = False, note: str = "") -> Iterator[Step]:
    """A CHECK or a foreign key: from now on it holds for new rows, after the scan for all."""
    yield Step(Rank.KEY if key else Rank.CONSTRAINT, ddl.add_constraint(table, name, definition, validated=False))
    yield Step(Rank.VALIDATE, ddl.validate_constraint(table, name), note)


def _by_index(table: str, name: str, found: re.Match[str]) -> Iterator[Step]:
    made = f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} {found['columns']}"
    yield Step(Rank.CONCURRENTLY, f"{made}{found['include'] or ''}{found['nulls'] or ''}")
    yield Step(Rank.FINISH, ddl.add_constraint(table, name, f"{found['kind']} USING INDEX {name}{found['when'] or ''}"))


def index(sql: str) -> Step:
    """CREATE INDEX with CONCURRENTLY, if it does not have it."""
    return Step(Rank.CONCURRENTLY, re.sub(r"^(CREATE (?:UNIQUE )?INDEX )(?!CONCURRENTLY )", r"\1CONCURRENTLY ", sql))


def drop_index(name: str, *, drops: bool) -> Step:
    """DROP INDEX CONCURRENTLY."""
    return Step(Rank.DROP_CONCURRENTLY, f"DROP INDEX CONCURRENTLY {name}", drops=drops)


def not_null(table: str, name: str, raw_name: str, *, note: str = "") -> Iterator[Step]:
    """SET NOT NULL, which looks at no row where a valid CHECK says that none has NULL there."""
    short = raw_name.encode()[:_NAME_BYTES].decode(errors="ignore")
    check = identifier(f"{short}_is_not_null")
    yield from not_valid(table, check, f"CHECK ({name} IS NOT NULL)", note=note or "fails where a row has NULL there")
    yield Step(Rank.FINISH, f"ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL")
    allow = "drop-constraint because the column itself is NOT NULL now"
    yield Step(Rank.FINISH, ddl.drop_constraint(table, check), allow=allow)
