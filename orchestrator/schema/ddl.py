"""The wording of DDL: the one place that writes what `verify` and `generate` both need. Pure: no I/O.

Names of objects come as SQL, quoted and qualified as the caller wants them; no statement has its semicolon.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from orchestrator.database.quoting import literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def column_tail(facts: Mapping[str, Any]) -> str:
    """A column's or a domain's definition, behind its name; `facts` are those of its `SchemaObject`."""
    parts = [facts["type"]]
    if "collation" in facts:
        parts.append(f"COLLATE {facts['collation']}")
    if "generated" in facts:
        parts.append(f"GENERATED ALWAYS AS {facts['generated']}")
    if "identity" in facts:
        parts.append(identity(facts["identity"], identity_options(facts)))
    if "default" in facts:
        parts.append(f"DEFAULT {facts['default']}")
    if facts.get("not_null"):
        parts.append("NOT NULL")
    return " ".join(parts)


def identity(kind: str, options: str) -> str:
    """GENERATED … AS IDENTITY; `kind` is ALWAYS or BY DEFAULT."""
    return f"GENERATED {kind} AS IDENTITY" + (f" ({options})" if options else "")


def identity_options(facts: Mapping[str, Any]) -> str:
    """The options of an identity's sequence but its type, which is the column's."""
    _, start, options = str(facts.get("identity_options", "")).partition(" START ")
    return f"START {options}" if start else ""


def set_identity(kind: str, options: str) -> str:
    """What changes an identity, behind ALTER COLUMN."""
    changes = re.sub(r"(START|INCREMENT|MINVALUE|MAXVALUE|CACHE|(?:NO )?CYCLE)\b", r"SET \1", options)
    return f"SET GENERATED {kind} {changes}".rstrip()


def comment(on: str, text: str | None) -> str:
    """COMMENT ON; `on` is a kind and a name."""
    return f"COMMENT ON {on} IS {literal(text)}"


def add_constraint(table: str, name: str, definition: str, *, validated: bool = True, of: str = "TABLE") -> str:
    """ALTER TABLE (or, with `of`, DOMAIN) … ADD CONSTRAINT."""
    return f"ALTER {of} {table} ADD CONSTRAINT {name} {definition}{'' if validated else ' NOT VALID'}"


def validate_constraint(table: str, name: str, *, of: str = "TABLE") -> str:
    """ALTER TABLE … VALIDATE CONSTRAINT."""
    return f"ALTER {of} {table} VALIDATE CONSTRAINT {name}"


def drop_constraint(table: str, name: str, *, of: str = "TABLE") -> str:
    """ALTER TABLE … DROP CONSTRAINT."""
    return f"ALTER {of} {table} DROP CONSTRAINT {name}"


def create_enum(name: str, values: Sequence[str]) -> str:
    """CREATE TYPE … AS ENUM."""
    return f"CREATE TYPE {name} AS ENUM ({values_list(values)})"


def values_list(values: Sequence[str]) -> str:
    """The values of an enum as literals."""
    return ", ".join(literal(value).strip() for value in values)


def added_values(name: str, was: Sequence[str], now: Sequence[str]) -> list[str] | None:
    """ALTER TYPE … ADD VALUE for each value that `was` lacks; None where a value goes or moves, which no ALTER does."""
    if [value for value in now if value in was] != list(was):
        return None
    return list(_additions(name, was, now))


def _additions(name: str, was: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    for place, value in enumerate(now):
        if value not in was:
            later = next((other for other in now[place:] if other in was), None)
            position = f" BEFORE {literal(later).strip()}" if later is not None else ""
            yield f"ALTER TYPE {name} ADD VALUE {literal(value).strip()}{position}"


def changed_options(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """SET and RESET of storage options, behind ALTER."""
    changes = [f"{name} = {value}" for name, value in now.items() if was.get(name) != value]
    gone = [name for name in was if name not in now]
    return [f"SET ({', '.join(changes)})"] * bool(changes) + [f"RESET ({', '.join(gone)})"] * bool(gone)


def set_persistence(*, unlogged: bool) -> str:
    """SET LOGGED or UNLOGGED, behind ALTER."""
    return f"SET {'UNLOGGED' if unlogged else 'LOGGED'}"
